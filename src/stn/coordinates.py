"""Where output pixels are read in the image: one record for every family of warps, and what a family may know of the
image."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import geometry
from ._checks import check_flag, check_float_tensor, check_size, check_spacing, coordinate_dtype, describe

Kind = Literal["affine", "projective", "two-sided", "basis", "field", "grid", "pixels"]
MATRICES = ("affine", "projective", "two-sided")  # the kinds that are one


class Coordinates(NamedTuple):
    """Where the pixels of an output are read. Pull, (x, y[, z]), normalized but for "pixels"; trusted below the public
    edge."""

    kind: Kind
    size: tuple[int, ...]  # of the output, ([[D,] H,] W)
    # "affine": (B, d, d+1); "projective": (B, d+1, d+1), whose denominators are positive on the visible side;
    # "two-sided": the same, with what lies behind the horizon; "basis": (B, K, d), the coefficients of `basis`;
    # "field": (B, *any, d), displacements on a lattice whose border points lie on -1 and 1, linear in between; "grid": (B, *size, d);
    # "pixels": the same in pixels of the image, whose centres are integers
    values: Tensor
    basis: Tensor | None = None  # (N, K), the N pixels of the output row by row


class Frame(NamedTuple):
    """What a family may know of the image that is read.

    Families that keep angles or lengths need its size ([D,] H, W), because normalized coordinates of an image that is
    not square are not square; without it the frame is taken as square. Where pixels are not square either, they need
    the length of a pixel's side along each axis too, (x, y[, z]), in whatever unit: voxels of 1 x 1 x 3 mm have
    `spacing=(1, 1, 3)`. It is the family's own `spacing` unless said here.

    Example:
        >>> import stn
        >>> quarter, right = torch.tensor([[torch.pi / 2]]), torch.tensor([[[1.0, 0.0]]])  # 10 pixels from the centre
        >>> stn.Rotation().map_points(quarter, right, Frame((10, 20)))[..., 1]  # and still, of an image 10 pixels high
        tensor([[2.]])
    """

    image_size: tuple[int, ...] | None = None
    align_corners: bool = False
    spacing: tuple[float, ...] | None = None


SQUARE = Frame()


def check_frame(frame: Any, ndim: int) -> Frame:
    """A frame for images in `ndim` dimensions, or a ValueError."""
    if frame is SQUARE:
        return SQUARE
    if not isinstance(frame, Frame):
        raise ValueError(f"frame: expected a stn.Frame(image_size, align_corners, spacing), got {describe(frame)}")
    image_size, align_corners, spacing = frame
    check_flag("align_corners", align_corners)
    size = None if image_size is None else check_size(image_size, ndim, "image_size")
    sides = check_spacing(spacing, ndim)
    return frame if size is image_size and sides == spacing else Frame(size, align_corners, sides)


def half_lengths(frame: Frame, ndim: int, spacing: tuple[float, ...] | None = None) -> tuple[float, ...] | None:
    """How long a normalized unit is along (x, y[, z]), for families that keep angles or lengths: in pixels, or in the
    unit of the spacing. None where all axes are taken as the same.

    Args:
        spacing: the family's own, for frames that say none.

    Raises:
        ValueError: where the frame and the family disagree.
    """
    image_size, align_corners, told = check_frame(frame, ndim)
    if told is not None and spacing is not None and told != spacing:
        raise ValueError(f"spacing: expected {spacing}, that of the family, or None, got {told}")
    sides = told or spacing
    if image_size is None:
        return sides
    half = geometry.extent(image_size, align_corners=align_corners)
    return half if sides is None else tuple(h * s for h, s in zip(half, sides, strict=True))


def check_grid(image: Tensor, grid: Any) -> Coordinates:
    """Positions (B, *out, d) for a checked image, or a ValueError."""
    d = image.ndim - 2
    check_float_tensor("grid", grid, f"positions (B, *out, {d})")
    if grid.ndim != d + 2 or grid.shape[-1] != d:
        raise ValueError(
            f"grid: expected (B, {'D, ' * (d == 3)}{'H, ' * (d > 1)}W, {d}) for an image of shape "
            f"{tuple(image.shape)}, got shape {tuple(grid.shape)}"
        )
    return Coordinates("grid", tuple(grid.shape[1:-1]), grid)


def check_matrices(theta: Any, size: tuple[int, ...]) -> Coordinates:
    """Affine maps (B, d, d+1) or projective ones (B, d+1, d+1) for an output of `size`, or a ValueError."""
    d = len(size)
    if isinstance(theta, Tensor) and theta.ndim == 3 and theta.is_floating_point():
        _, rows, columns = theta.shape
        if rows == d and columns == d + 1:
            return Coordinates("affine", size, theta)
        if rows == columns == d + 1:
            return Coordinates("projective", size, geometry.facing(theta.to(coordinate_dtype(theta))))
    expected = f"matrices (B, {d}, {d + 1}) or (B, {d + 1}, {d + 1})"
    check_float_tensor("theta", theta, expected)
    hint = ""
    if theta.ndim == 2:
        hint = "; name the family of a flat theta with transform=, stn.Affine() for six numbers"
    if d == 1 and theta.shape[-1] == 3:
        hint = "; an image of three dimensions is (B, C, W), a signal: a picture needs its batch, (1, C, H, W)"
    raise ValueError(f"theta: expected {expected}, got shape {tuple(theta.shape)}{hint}")


def positions(coordinates: Coordinates, align_corners: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Where each output pixel is read, (B, *size, d); in the type of the values unless `dtype` says another."""
    kind, size, values, basis = coordinates
    if kind == "basis":
        assert basis is not None
        return geometry.basis_positions(basis, values, size, dtype or values.dtype)
    if dtype is not None:
        values = values.to(dtype)
    if kind == "affine":
        return geometry.affine_positions(values, size, align_corners)
    if kind == "field":
        return geometry.field_positions(values, size, align_corners)
    if kind in MATRICES:
        return geometry.projective_positions(values, size, align_corners, two_sided=kind == "two-sided")
    return values


def map_points(coordinates: Coordinates, points: Tensor) -> Tensor:
    """Points (B, N, d) through the maps of coordinates that are matrices."""
    if coordinates.kind == "affine":
        return geometry.map_affine(coordinates.values, points)
    return geometry.map_projective(coordinates.values, points, two_sided=coordinates.kind == "two-sided")
