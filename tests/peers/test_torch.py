"""`affine_grid` and `grid_sample` of torch: the same theta, options and numbers, forward and backward."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.nn import functional as F

import stn

SIZES = {2: ((7, 10), (5, 6)), 3: ((4, 6, 5), (3, 5, 7))}
MODES = [(2, "bilinear"), (2, "nearest"), (2, "bicubic"), (3, "bilinear"), (3, "nearest")]  # torch has no 3D bicubic


def backend(name):
    return contextlib.nullcontext() if name == "default" else stn.ops.use_backend(name)


@pytest.mark.parametrize("name", ["default", "reference"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(("d", "mode"), MODES)
def test_warp_and_its_gradients(d, mode, padding_mode, align_corners, name):
    in_size, out_size = SIZES[d]
    image = torch.randn(2, 3, *in_size, dtype=torch.float64, requires_grad=True)
    theta = torch.eye(d, d + 1, dtype=torch.float64) + 0.4 * torch.randn(2, d, d + 1, dtype=torch.float64)
    theta.requires_grad_()
    grid = F.affine_grid(theta, [2, 3, *out_size], align_corners=align_corners)
    wanted = F.grid_sample(image, grid, mode, padding_mode, align_corners)
    assert float(grid.detach().abs().max()) > 1.2  # the padding is seen

    torch.testing.assert_close(
        stn.transforms.affine_grid(theta, out_size, align_corners=align_corners), grid, rtol=0, atol=1e-14
    )
    options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    weights = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, [image, theta], weights, retain_graph=True)
    with backend(name):
        for out in (stn.warp(image, theta, out_size, **options), stn.sample(image, grid, **options)):
            torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
            # theta's gradient is a sum over the image of values of order 10
            for got, expected in zip(
                torch.autograd.grad(out, [image, theta], weights, retain_graph=True), gradients, strict=True
            ):
                torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", ["default", "reference"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(("d", "mode"), MODES)
def test_sample_far_outside(d, mode, padding_mode, align_corners, name):
    """Positions up to six frames away, where reflections fold many times, and an axis of a single pixel."""
    for in_size in (SIZES[d][0], (1, *SIZES[d][0][1:])):
        image = torch.randn(2, 2, *in_size, dtype=torch.float64)
        grid = 12 * torch.rand(2, *SIZES[d][1], d, dtype=torch.float64) - 6
        wanted = F.grid_sample(image, grid, mode, padding_mode, align_corners)
        with backend(name):
            out = stn.sample(image, grid, mode=mode, padding_mode=padding_mode, align_corners=align_corners)
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
