"""Signals by the kernels for images."""

import math

import pytest
import torch
from records import reference_at, warp_at

import stn
from stn.coordinates import Coordinates, positions
from stn.ops import backends, use_backend, which_backend

pytestmark = pytest.mark.skipif(backends()["cpu"] != "available", reason="no native backend")

KINDS = ("affine", "projective", "basis", "grid")
PADDINGS = ("zeros", "border", "reflection", "circular", "constant")
SIZE = 17


def problem(kind, batch=3, dtype=torch.float64):
    """Values of coordinates, and their basis."""
    if kind == "grid":
        return 1.3 * torch.randn(batch, SIZE, 1, dtype=dtype), None
    if kind == "basis":
        return torch.randn(batch, 5, 1, dtype=dtype), torch.randn(SIZE, 5, dtype=torch.float64)
    if kind == "affine":
        return torch.randn(batch, 1, 2, dtype=dtype), None
    return torch.eye(2, dtype=dtype) + 0.2 * torch.randn(batch, 2, 2, dtype=dtype), None


def compare(kind, image, values, basis, mode, padding_mode, align_corners, tolerance):
    fill = torch.tensor([0.5], dtype=values.dtype) if padding_mode == "constant" else None
    options = (mode, padding_mode, fill, align_corners)
    results = []
    for native in (True, False):
        dtype = None if native else torch.float64
        i, v = (t.detach().to(dtype or t.dtype).requires_grad_() for t in (image, values))
        with use_backend("cpu" if native else "reference"):
            out = warp_at(kind, i, v, (SIZE,), options, basis)
        assert out.dtype == i.dtype
        weights = torch.linspace(1, 2, SIZE, dtype=out.dtype)
        results.append((out.detach(), *torch.autograd.grad((out * weights).sum(), (i, v))))
    for ours, truth in zip(*results, strict=True):
        scale = max(1.0, float(truth.abs().max()))
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=scale * tolerance)
    return results[0]


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(kind, padding_mode, mode):
    assert which_backend(1, mode, padding_mode) == "cpu"
    for width in (1, 2, 9, 300):
        for align_corners in (False, True):
            image = torch.randn(3, 4, width, dtype=torch.float64)
            values, basis = problem(kind)
            _, grad_image, grad_values = compare(kind, image, values, basis, mode, padding_mode, align_corners, 1e-11)
            assert (grad_image != 0).any()
            assert (mode == "nearest") == (grad_values == 0).all() or width == 1


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last(kind):
    image = torch.randn(3, 9, 4, dtype=torch.float64).transpose(1, 2)
    out, *_ = compare(kind, image, *problem(kind), "bilinear", "zeros", False, 1e-11)
    assert out.stride(1) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_rounded_once(kind, dtype):
    """The gradient of an image is a sum over its rows and over what is read there, all before the rounding."""
    image = torch.randn(3, 4, 9).to(dtype)
    compare(kind, image, *problem(kind, dtype=torch.float32), "bilinear", "border", False, torch.finfo(dtype).eps)


def test_positions_that_are_not_finite():
    image = torch.randn(1, 2, 9, requires_grad=True)
    grid = torch.tensor([0.1, math.nan, 0.3, math.inf])[None, :, None].requires_grad_()
    out = stn.sample(image, grid)
    assert out.isnan().any(1).flatten().tolist() == [False, True, False, True]
    grad_image, grad_grid = torch.autograd.grad(torch.where(out.isnan(), 0.0, out).sum(), (image, grid))
    assert grad_image.isfinite().all()
    assert (grad_grid.flatten() != 0).tolist() == [True, False, True, False]


def test_a_pixel_centre_has_the_mean_of_both_slopes():
    image = torch.tensor([[[0.0, 1.0, 4.0]]], dtype=torch.float64)
    grid = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(stn.sample(image, grid).sum(), grid)[0]
    assert float(slope) == pytest.approx(2.0 * 1.5)  # the mean of 1 and 3, for 1.5 pixels a unit


def test_bytes_run_on_the_reference():
    assert which_backend(1, dtype=torch.uint8) == "reference"
    image = torch.tensor([[[10, 20, 40]]], dtype=torch.uint8)
    assert stn.warp(image, torch.tensor([[[-1.0, 0.0]]])).tolist() == [[[40, 20, 10]]]


def test_gradients_of_gradients():
    image, theta = torch.randn(1, 1, 9, dtype=torch.float64), torch.tensor([[[0.73, 0.11]]], dtype=torch.float64)
    assert torch.autograd.gradgradcheck(stn.warp, (image.requires_grad_(), theta.requires_grad_()))


def test_the_grid_is_that_of_the_coordinates():
    image, (values, _) = torch.randn(3, 2, 9), problem("projective", dtype=torch.float32)
    grid = positions(Coordinates("projective", (SIZE,), values), False)
    truth = reference_at(image, grid, "bilinear", "zeros", None, False)
    with use_backend("cpu"):
        torch.testing.assert_close(
            warp_at("projective", image, values, (SIZE,), ("bilinear", "zeros", None, False)), truth
        )
