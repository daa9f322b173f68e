"""Values added to an image: against a loop, as the adjoint of `sample`, and with every gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import stn
from stn import conventions

SIZES = {1: ((7,), (5,)), 2: ((5, 6), (4, 3)), 3: ((4, 3, 5), (2, 3, 2))}
PADDINGS = ["zeros", "border", "reflection", "circular"]


def some(d, batch=2, channels=3):
    size, out = SIZES[d]
    grid = 2.6 * torch.rand(batch, *out, d, dtype=torch.float64) - 1.3
    return torch.randn(batch, channels, *out, dtype=torch.float64), grid, size


@pytest.mark.parametrize("backend", ["reference", "cpu", "aten"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_push_and_count_by_a_loop(d, backend):
    """The definition of push: each value goes to the 2^d pixels around its position, by the linear weights; those outside
    get nothing. Count is push of ones."""
    if stn.ops.backends()[backend] != "available" or (d == 1 and backend != "reference"):
        pytest.skip("does not run it")
    values, grid, size = some(d)
    pixels = conventions.normalized_to_pixel(grid, size).flip(-1)  # as array indices
    wanted, counted = torch.zeros(2, 3, *size, dtype=torch.float64), torch.zeros(2, 1, *size, dtype=torch.float64)
    for b in range(2):
        for at in itertools.product(*[range(n) for n in values.shape[2:]]):
            position = pixels[(b, *at)].tolist()
            for corner in itertools.product((0, 1), repeat=d):
                index = [math.floor(p) + c for p, c in zip(position, corner, strict=True)]
                weight = math.prod(1 - abs(p - i) for p, i in zip(position, index, strict=True))
                if all(0 <= i < n for i, n in zip(index, size, strict=True)):
                    wanted[(b, slice(None), *index)] += weight * values[(b, slice(None), *at)]
                    counted[(b, 0, *index)] += weight
    with stn.ops.use_backend(backend):
        torch.testing.assert_close(stn.splat(values, grid, size), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(stn.splat_count(grid, size), counted, rtol=0, atol=1e-12)
    pixel = {"units": "pixel", "order": "ij"}
    torch.testing.assert_close(stn.splat(values, pixels, size, **pixel), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(stn.splat_count(pixels, size, **pixel), counted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic", "bspline3", "integer"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_adjoint_of_sample(align_corners, padding_mode, mode):
    values, grid, size = some(2)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    pushed = (stn.splat(values, grid, size, **options) * image).sum()
    torch.testing.assert_close(pushed, (values * stn.sample(image, grid, **options)).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("units", ["normalized", "pixel"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_gradient(d, padding_mode, units):
    values, grid, size = some(d, batch=1, channels=2)
    if units == "pixel":
        grid = conventions.normalized_to_pixel(grid, size)
    run = lambda v, g: stn.splat(v, g, size, padding_mode=padding_mode, units=units)  # noqa: E731
    inputs = (values.requires_grad_(), grid.requires_grad_())
    torch.autograd.gradcheck(run, inputs)
    torch.autograd.gradgradcheck(run, inputs, atol=1e-4)
    weights = torch.randn(1, 2, *size, dtype=torch.float64)
    (got,) = torch.autograd.grad((run(*inputs) * weights).sum(), values)
    torch.testing.assert_close(got, stn.sample(weights, grid, padding_mode=padding_mode, units=units))


def test_functorch_and_compile_agree():
    values, grid, size = some(2)
    wanted = stn.splat(values, grid, size)
    each = torch.func.vmap(lambda v, g: stn.splat(v[None], g[None], size)[0])(values, grid)
    torch.testing.assert_close(each, wanted, rtol=0, atol=1e-12)
    by_func = torch.func.grad(lambda v: stn.splat(v, grid, size).square().sum())(values)
    torch.compiler.reset()
    compiled = torch.compile(lambda v, g: stn.splat(v, g, size), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(values, grid), wanted, rtol=0, atol=1e-12)
    values.requires_grad_()
    (by_tape,) = torch.autograd.grad(stn.splat(values, grid, size).square().sum(), values)
    torch.testing.assert_close(by_func, by_tape, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_and_batches(dtype):
    values, grid, size = some(2)
    out = stn.splat(values.to(dtype), grid.float(), size)
    assert out.dtype == dtype
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(out.double(), stn.splat(values, grid, size), rtol=tolerance, atol=tolerance)
    one = stn.splat(values[:1], grid, size)
    assert one.shape[0] == stn.splat(values, grid[:1], size).shape[0] == 2
    torch.testing.assert_close(one[1:], stn.splat(values[:1], grid[1:], size))
    values.requires_grad_()
    stn.splat(values[:1], grid, size).sum().backward()
    assert values.grad[1].abs().max() == 0 < values.grad[0].abs().max()
    assert stn.splat(values[:, :, :0], grid[:, :0], size).abs().max() == 0


def test_a_position_that_is_not_finite_adds_nothing():
    values, grid, size = some(2)
    grid[0, 1, 1] = math.nan
    values, grid = values.requires_grad_(), grid.requires_grad_()
    out = stn.splat(values, grid, size)
    out.square().sum().backward()
    kept = values.detach().clone()
    kept[0, :, 1, 1] = 0
    torch.testing.assert_close(out, stn.splat(kept, grid.nan_to_num(0.0), size))
    assert values.grad.isfinite().all()
    assert (values.grad[0, :, 1, 1] == 0).all()
    assert grid.grad.isfinite().all()


def test_what_is_refused():
    values, grid, size = some(2)
    for name, call, bads in (
        ("values", lambda bad: stn.splat(bad, grid, size), (values[0, 0], values.int(), None)),
        ("grid", lambda bad: stn.splat(values, bad, size), (grid[:, :2], grid[..., :1], grid.int(), None, grid[0])),
        ("grid", lambda bad: stn.splat(values, bad, size), (grid[:1].repeat(3, 1, 1, 1), grid.to("meta"))),
        ("size", lambda bad: stn.splat(values, grid, bad), ((4,), (0, 4), 4, None)),
        ("padding_mode", lambda bad: stn.splat(values, grid, size, padding_mode=bad), ("constant", "zero", None)),
        ("mode", lambda bad: stn.splat(values, grid, size, mode=bad), ("linear", None)),
        ("units", lambda bad: stn.splat(values, grid, size, units=bad), ("pixels", None)),
        ("order", lambda bad: stn.splat(values, grid, size, order=bad), ("yx", None)),
        ("grid", lambda bad: stn.splat_count(bad, size), (grid[..., :1], grid.int(), None, grid[0])),
    ):
        for bad in bads:
            with pytest.raises(ValueError, match=rf"^{name}: "):
                call(bad)
