"""The op below the public edge, for the tests of backends: the two records from loose options."""

from __future__ import annotations

from stn.coordinates import Coordinates
from stn.ops import dispatch, reference
from stn.reading import Reading


def warp_at(kind, image, values, size, options, basis=None):
    """Whatever backend is asked for; options are (mode, padding_mode, fill, align_corners)."""
    return dispatch.warp(image, Coordinates(kind, tuple(size), values, basis), Reading(*options))


def sample_at(image, grid, *options):
    return warp_at("grid", image, grid, grid.shape[1:-1], options)


def reference_at(image, grid, *options):
    return reference.forward(image, Coordinates("grid", tuple(grid.shape[1:-1]), grid), Reading(*options))
