"""SciPy's spline interpolation, `ndimage` of order 2 to 5: the same splines, prefilter included.

Where SciPy cuts corners itself the two part, and a test says by how much. "reflect" starts its recursion with one term
wrong, worth the pole to the power of 2 n - 1: hence no axis of fewer than 16 pixels. For "grid-constant" and "nearest" it
widens the image by 12 pixels and takes what follows as a reflection, where here nothing of the filter is left out: for
order 5 that is 2e-9 at the border and 5e-8 five pixels beyond it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stn
from stn import conventions as frame

from . import agree, normal, pixel_map, uniform, warped

ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed")

SIZES = {1: ((20,), (9,)), 2: ((18, 20), (5, 6)), 3: ((16, 18, 17), (3, 5, 7))}
EXACT = {  # theirs -> ours
    "reflect": {"padding_mode": "reflection"},
    "mirror": {"padding_mode": "reflection", "align_corners": True},
    "grid-wrap": {"padding_mode": "circular"},
}
CUT_OFF = {"grid-constant": {"padding_mode": "constant", "fill": 0.7}, "nearest": {"padding_mode": "border"}}
ATOL = 1e-10  # ours are cut off at 1e-13 of the response

orders = pytest.mark.parametrize("order", [2, 3, 4, 5])
dimensions = pytest.mark.parametrize("d", [1, 2, 3])


def mapped(image, indices, order, options):
    """`map_coordinates` in our words: positions as array indices, stacked first."""
    points = torch.from_numpy(indices).movedim(0, -1).flip(-1)
    grid = frame.pixel_to_normalized(points, image.shape, align_corners=options.get("align_corners", False))[None]
    return stn.sample(torch.from_numpy(image)[None, None], grid, mode=f"bspline{order}", **options)[0, 0].numpy()


@orders
@dimensions
@pytest.mark.parametrize("mode", EXACT)
def test_affine_transform(d, mode, order):
    in_size, out_size = SIZES[d]
    image, matrix = normal(*in_size), pixel_map(d)
    wanted = ndimage.affine_transform(image, matrix[:, :d], matrix[:, d], output_shape=out_size, order=order, mode=mode)
    if d == 1:  # `theta_from_pixel` begins in 2D
        indices = matrix[:, :1] * np.arange(out_size[0]) + matrix[:, 1:]
        agree(mapped(image, indices, order, EXACT[mode]), wanted, ATOL)
    else:
        agree(warped(image, matrix, out_size, order="ij", mode=f"bspline{order}", **EXACT[mode]), wanted, ATOL)


@orders
@dimensions
@pytest.mark.parametrize("mode", EXACT)
def test_map_coordinates(d, mode, order):
    in_size, out_size = SIZES[d]
    image = normal(*in_size)
    indices = uniform(-1.0, 2.0, (d, *out_size)) * np.reshape(in_size, (d, *[1] * d))
    wanted = ndimage.map_coordinates(image, indices, order=order, mode=mode)
    agree(mapped(image, indices, order, EXACT[mode]), wanted, ATOL)


@orders
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("mode", CUT_OFF)
def test_modes_that_scipy_cuts_off(d, mode, order):
    """Tight in the middle of a large image, of order 4 and 5 looser at its border."""
    n = 50
    image = normal(*[n] * d)
    for low, high, atol in ((20, n - 21, ATOL), (0, n - 1, 1e-8 if order > 3 else ATOL)):
        indices = uniform(low, high, (d, 40))
        indices[0, 0] = low
        wanted = ndimage.map_coordinates(image, indices, order=order, mode=mode, cval=0.7)
        out = mapped(image, indices.reshape(d, 40, *[1] * (d - 1)), order, CUT_OFF[mode])
        agree(out.reshape(-1), wanted, atol)


@orders
def test_who_is_right_about_small_images(order):
    """The interpolating spline goes through the pixels. Ours does; SciPy's "reflect" does not."""
    image, places = normal(4), np.arange(4.0)[None]
    agree(mapped(image, places, order, EXACT["reflect"]), image, ATOL)
    theirs = ndimage.map_coordinates(image, places, order=order, mode="reflect")
    assert np.abs(theirs - image).max() < 0.1


@orders
def test_spline_filter(order):
    """The coefficients themselves."""
    image = normal(19, 22)
    ours, margin = stn.ops.reference.prefiltered(
        torch.from_numpy(image)[None, None], stn.kernels.bspline(order), "reflection", None, False
    )
    assert margin == 0
    agree(ours[0, 0], ndimage.spline_filter(image, order=order, mode="reflect"), ATOL)
