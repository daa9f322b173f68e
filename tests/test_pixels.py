"""Positions in pixels, in either order, and antialiasing at a raw grid."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from records import warp_at

import stn
from stn import conventions
from stn.geometry import differences


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("align_corners", [False, True])
def test_halves_are_not_lost(align_corners, dtype):
    """Every position halfway between two pixels, of rows of many lengths: ties go to the even pixel, or upwards, and the
    linear weights are a half each, to the last bit."""
    for n in (2, 3, 7, 10, 49, 100, 641, 1000, 3001):
        row = torch.arange(n, dtype=dtype)[None, None]
        halves = (torch.arange(n - 1, dtype=dtype) + 0.5)[None, :, None]
        read = lambda mode: stn.sample(row, halves, mode=mode, units="pixel", align_corners=align_corners)[0, 0]  # noqa: E731
        low = torch.arange(n - 1, dtype=dtype)
        assert torch.equal(read("nearest"), low + low % 2)
        assert torch.equal(read("integer"), low + 1)
        assert torch.equal(read("bilinear"), low + 0.5)


def test_a_normalized_grid_would_lose_them():
    """What the option is for: the same by a round trip in float32 is another picture."""
    row = torch.arange(641.0)[None, None]
    halves = (torch.arange(640.0) + 0.5)[None, :, None]
    grid = conventions.pixel_to_normalized(halves, (641,))
    assert not torch.equal(
        stn.sample(row, grid, mode="nearest"), stn.sample(row, halves, mode="nearest", units="pixel")
    )


def test_positions_in_float64_stay_so():
    row, at = torch.arange(2000.0)[None, None], torch.tensor([[[1000.5 - 1e-9], [1000.5 + 1e-9]]], dtype=torch.float64)
    out = stn.sample(row, at, mode="nearest", units="pixel")
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == [1000.0, 1001.0]


@pytest.mark.parametrize("order", ["xy", "ij"])
@pytest.mark.parametrize("units", ["normalized", "pixel"])
@pytest.mark.parametrize("size", [(9,), (6, 9), (4, 6, 9)])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection", "circular", "constant"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_agrees_with_the_grid_of_the_house(align_corners, padding_mode, size, units, order):
    d = len(size)
    image = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    grid = 1.3 * torch.rand(1, *[5] * d, d, dtype=torch.float64) * 2 - 1.3
    options = {"padding_mode": padding_mode, "fill": 0.5 * (padding_mode == "constant"), "align_corners": align_corners}
    wanted = stn.sample(image, grid, **options)
    told = conventions.normalized_to_pixel(grid, size, align_corners=align_corners) if units == "pixel" else grid
    told = (told.flip(-1) if order == "ij" else told).requires_grad_()
    got = stn.sample(image, told, units=units, order=order, **options)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
    torch.autograd.gradcheck(
        lambda i, g: stn.sample(i, g, units=units, order=order, **options)[:, :1],
        (image.detach()[:1, :1].requires_grad_(), told[(slice(None), *[slice(2)] * d)].detach().requires_grad_()),
    )


native = pytest.mark.skipif(stn.ops.backends()["cpu"] != "available", reason="no native backend")


@native
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection", "circular", "constant"])
@pytest.mark.parametrize("size", [(9,), (6, 9), (4, 6, 9)])
def test_the_native_backend_agrees_with_the_reference(size, padding_mode, mode):
    """Between pixels, on their centres and halfway, far outside, and where a position is not finite."""
    d = len(size)
    fill = torch.tensor([0.5], dtype=torch.float64) if padding_mode == "constant" else None
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    pixels = 12 * torch.rand(2, *[5] * d, d, dtype=torch.float64) - 2
    pixels[0] = (2 * pixels[0]).round() / 2
    pixels[1].view(-1)[:3] = torch.tensor([1e9, -1e9, torch.nan], dtype=torch.float64)
    for align_corners in (False, True):
        results = []
        for backend in ("cpu", "reference"):
            i, p = (t.clone().requires_grad_() for t in (image, pixels))
            with stn.ops.use_backend(backend):
                out = warp_at("pixels", i, p, p.shape[1:-1], (mode, padding_mode, fill, align_corners))
            gradients = torch.autograd.grad(out.nan_to_num().sin().sum(), (i, p))
            results.append((out.detach(), *gradients))
        for ours, truth in zip(*results, strict=True):
            torch.testing.assert_close(ours, truth, rtol=0, atol=1e-9, equal_nan=True)
        assert results[0][0].isnan().any()


@native
def test_who_runs_positions_in_pixels():
    image, pixels = torch.rand(1, 1, 4, 4), torch.rand(1, 2, 2, 2)
    with stn.ops.use_backend("reference"):
        truth = stn.sample(image, pixels.double(), units="pixel")
    torch.testing.assert_close(stn.sample(image, pixels, units="pixel"), truth)
    for backend, positions in (("aten", pixels), ("cpu", pixels.double())):  # which would round them
        with stn.ops.use_backend(backend), pytest.raises(ValueError, match=f"'reference' .*got '{backend}'"):
            stn.sample(image, positions, units="pixel")


def test_labels_and_bytes_are_read_too():
    labels = torch.tensor([[[2**40, 2**40 + 1, 7]]])
    at = torch.tensor([[[0.5], [1.5], [1.0]]])
    assert stn.sample(labels, at, mode="nearest", units="pixel").tolist() == [[[2**40, 7, 2**40 + 1]]]


def test_what_is_refused():
    image, grid = torch.rand(1, 1, 4, 4), torch.zeros(1, 2, 2, 2)
    for name, bads in {
        "units": ("pixels", None, 1),
        "order": ("yx", None, True),
        "antialias": (1, None, "yes"),
    }.items():
        for bad in bads:
            with pytest.raises(ValueError, match=rf"^{name}: "):
                stn.sample(image, grid, **{name: bad})
    with pytest.raises(ValueError, match=r"^antialias: .*uint8"):
        stn.sample(image.byte(), grid, antialias=True)
    with pytest.raises(ValueError, match=r"^grid: "):
        stn.sample(image.expand(2, -1, -1, -1), grid.expand(3, -1, -1, -1), antialias=True)


# Antialiasing at a raw grid


@pytest.mark.parametrize(("size", "out"), [((40,), (9,)), ((40, 36), (9, 7)), ((20, 18, 22), (5, 4, 6))])
@pytest.mark.parametrize("align_corners", [False, True])
def test_an_affine_grid_is_averaged_as_its_warp(align_corners, size, out):
    """The differences of an affine grid are its derivative."""
    d = len(size)
    theta = torch.eye(d, d + 1, dtype=torch.float64)[None] + 0.1 * torch.randn(1, d, d + 1, dtype=torch.float64)
    image = torch.rand(2, 2, *size, dtype=torch.float64)
    wanted = stn.warp(image, theta, out, antialias=True, align_corners=align_corners)
    grid = stn.transforms.affine_grid(theta, out, align_corners=align_corners)
    torch.testing.assert_close(
        stn.sample(image, grid, antialias=True, align_corners=align_corners), wanted, rtol=0, atol=1e-10
    )
    assert (wanted - stn.warp(image, theta, out, align_corners=align_corners)).abs().max() > 0.05
    pixels = conventions.normalized_to_pixel(grid, size, align_corners=align_corners).flip(-1)
    got = stn.sample(image, pixels, antialias=True, align_corners=align_corners, units="pixel", order="ij")
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_nothing_changes_where_nothing_shrinks():
    image, grid = torch.rand(1, 1, 8, 8), stn.Affine().grid(stn.Affine().identity()[None], (8, 8))
    torch.testing.assert_close(stn.sample(image, grid, antialias=True), image)


def test_a_position_that_is_lost_loses_no_neighbour():
    image = torch.rand(1, 1, 32, 32)
    grid = stn.Affine().grid(stn.Affine().identity()[None], (8, 8))
    grid[0, 3, 3] = math.nan
    out = stn.sample(image, grid, antialias=True)
    assert out.isnan().nonzero().tolist() == [[0, 0, 3, 3]]


def test_antialiased_gradients():
    image = torch.rand(1, 1, 12, 12, dtype=torch.float64, requires_grad=True)
    grid = (stn.Affine().grid(stn.Affine().identity()[None].double(), (3, 3)) * 0.9).detach()
    grid = (grid + 0.05 * torch.randn_like(grid)).requires_grad_()
    torch.autograd.gradcheck(lambda i, g: stn.sample(i, g, antialias=True), (image, grid), atol=1e-4)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_differences(n):
    values = torch.randn(2, n, 3)
    got = differences(values, 1)
    assert got.shape == values.shape
    for b, c in itertools.product(range(2), range(3)):
        row = values[b, :, c]
        for i in range(n):
            steps = [float(row[j + 1] - row[j]) for j in (i - 1, i) if 0 <= j < n - 1]
            assert float(got[b, i, c]) == pytest.approx(sum(steps) / max(len(steps), 1), abs=1e-6)
