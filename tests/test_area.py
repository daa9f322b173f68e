"""The native average over areas, against the one that is made of warps: values and every gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import stn
from stn import antialias
from stn.coordinates import Coordinates, positions
from stn.ops import area
from stn.reading import Reading

pytestmark = pytest.mark.skipif(
    stn.ops.backends()["cpu"] != "available", reason="the native code is not there: " + stn.ops.backends()["cpu"]
)
PADDINGS = ("zeros", "border", "reflection", "circular", "constant")
# Channels, the image's size, the output's.
SHAPES = [(3, (37, 30), (9, 14)), (1, (16, 21), (8, 8)), (5, (20, 40), (12, 17)), (2, (60,), (17,)), (1, (1,), (3,)),
          (3, (7, 9, 11), (4, 2, 3)), (1, (6, 5, 7), (3, 3, 2)), (2, (1, 9), (3, 4)), (2, (1, 5, 1), (2, 2, 3))]  # fmt: skip


def case(shape, padding, align_corners, kind, factor, dtype=torch.float64, batch=2):
    """An image, coordinates of `kind` off all kinks, their Jacobian of about `factor` pixels, and how the image is read."""
    channels, size, out = shape
    d = len(size)
    image = torch.randn(batch, channels, *size, dtype=dtype)
    matrix = torch.eye(d, dtype=dtype) + 0.2 * torch.randn(batch, d, d, dtype=dtype)
    steps = matrix * factor * (1 + torch.rand(batch, 1, d, dtype=dtype))
    coordinates = Coordinates("affine", out, torch.cat([matrix, 0.3 * torch.randn(batch, d, 1, dtype=dtype)], -1))
    if kind == "grid":
        grid = positions(coordinates, align_corners)
        coordinates = Coordinates("grid", out, grid + 0.05 * torch.randn_like(grid))
        steps = steps.reshape(batch, *[1] * d, d, d) * (1 + 0.5 * torch.rand(batch, *out, 1, d, dtype=dtype))
    for axis, n in enumerate(reversed(size)):  # which has no length
        if n == 1 and align_corners:
            steps[..., axis, :] = 0
    fill = torch.randn(channels, dtype=dtype) if padding == "constant" else None
    return image, coordinates, steps, Reading("bilinear", padding, fill, align_corners)


def results(average, image, coordinates, steps, reading):
    """The output and the gradients of everything, for a loss that tells all of it apart."""
    tensors = [t.detach().clone().requires_grad_() for t in (image, coordinates.values, steps)]
    out = average(tensors[0], coordinates._replace(values=tensors[1]), tensors[2], reading)
    weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).reshape(out.shape)
    out.nan_to_num().mul(weights).sum().backward()
    return [out.detach(), *(t.grad for t in tensors)]


def native(*given):
    assert area.refuses("cpu") is None
    return area.average(*given, None)  # which could not be anything else


def compare(given, atol):
    for got, wanted in zip(results(native, *given), results(antialias._average, *given), strict=True):
        torch.testing.assert_close(
            got, wanted, rtol=atol, atol=atol * (1 + float(wanted.nan_to_num().abs().max())), equal_nan=True
        )


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.2, 5.0, 40.0])
@pytest.mark.parametrize("kind", ["affine", "grid"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, kind, factor):
    for padding, align_corners in itertools.product(PADDINGS, (False, True)):
        if len(shape[1]) == 3 and factor == 5.0 and padding in ("reflection", "constant"):
            continue  # 125 points of 8 taps each
        compare(case(shape, padding, align_corners, kind, factor), 1e-10)


def test_outputs_of_several_blocks():
    compare(case((1, (60, 70), (66, 75)), "zeros", False, "affine", 1.7, batch=1), 1e-10)


def test_points_that_move_apart():
    """Where even the smallest copy is too fine."""
    for padding in ("reflection", "zeros"):
        compare(case((1, (16, 21), (8, 8)), padding, False, "grid", 150.0), 1e-10)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("out", [(16, 16), (8, 8), (11, 32), (32, 32), (4, 4)])
def test_positions_on_kinks(out, align_corners):
    """At the exact identity all points lie on pixels' centres, where the slope is the mean of both sides."""
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    matrix = torch.eye(2, 3, dtype=torch.float64)[None]
    step = torch.tensor([(32 - align_corners) / (n - align_corners) for n in reversed(out)], dtype=torch.float64)
    for padding in ("zeros", "border", "reflection", "circular"):
        coordinates, reading = Coordinates("affine", out, matrix), Reading("bilinear", padding, None, align_corners)
        compare((image, coordinates, torch.diag(step)[None], reading), 1e-10)


@pytest.mark.parametrize("kind", ["affine", "grid"])
def test_float32(kind):
    """Close to float64; with positions off all kinks, whose side would be a matter of rounding."""
    given = case(SHAPES[0], "border", False, kind, 2.3)
    wanted = results(native, *given)
    image, coordinates, steps, reading = given
    single = image.float(), coordinates._replace(values=coordinates.values.float()), steps.float(), reading
    for got, exact in zip(results(native, *single), wanted, strict=True):
        assert got.dtype == torch.float32
        assert float((got.double() - exact).norm() / exact.norm()) < 1e-4


@pytest.mark.parametrize("kind", ["affine", "grid"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_numbers_that_are_none_or_huge(value, kind):
    """Nowhere where they are not finite, without a gradient; far away where they are huge; other images as they were."""
    for dtype, which in itertools.product((torch.float32, torch.float64), ("values", "steps")):
        image, coordinates, steps, reading = case(SHAPES[0], "constant", False, kind, 2.3, dtype)
        clean = results(native, image, coordinates, steps, reading)
        spoiled = {"values": coordinates.values.clone(), "steps": steps.clone()}
        spoiled[which][0, 0, 0] = value
        got = results(native, image, coordinates._replace(values=spoiled["values"]), spoiled["steps"], reading)
        assert all(torch.equal(g[1], c[1]) for g, c in zip((got[0], *got[1:]), clean, strict=True))
        assert bool(got[0][0].isnan().any()) == (not math.isfinite(value))
        assert not got[0][0].isinf().any()
        assert all(g.isfinite().all() for g in got[1:])


def test_pixels_that_are_not_finite_stay_where_they_are():
    image, coordinates, steps, reading = case(SHAPES[0], "zeros", False, "affine", 1.3)
    clean = native(image, coordinates, steps, reading)
    image[0, 1, 18, 15] = math.inf
    out = native(image, coordinates, steps, reading)
    touched = ~out.isfinite()
    assert 0 < int(touched.sum()) < 20
    assert torch.equal(out[~touched], clean[~touched])


@pytest.mark.parametrize("kind", ["affine", "grid"])
def test_bits_do_not_depend_on_threads(kind):
    threads = torch.get_num_threads()
    try:
        for batch, shape in ((1, (9, (90, 80), (60, 70))), (5, (1, (64, 64), (33, 40)))):
            given = case(shape, "reflection", False, kind, 2.7, torch.float32, batch)
            found = []
            for n in (1, 2, 3, 7):
                torch.set_num_threads(n)
                found.append(results(native, *given))
            for other in found[1:]:
                assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_layouts():
    """Channels-last, every other pixel, transposed, expanded: the same bits, in the image's memory format."""
    image = torch.randn(3, 4, 25, 31)
    theta = torch.tensor([[[1.1, 0.2, 0.1], [-0.3, 0.9, 0.0]]]).expand(3, -1, -1)
    wanted = stn.warp(image, theta, (9, 8), antialias=True)
    wide = torch.zeros(3, 4, 25, 62)
    wide[..., ::2] = image
    transposed = image.transpose(2, 3).contiguous().transpose(2, 3)
    layouts = image.contiguous(memory_format=torch.channels_last), wide[..., ::2], transposed
    for other in layouts:
        given = other.detach().requires_grad_()
        out = stn.warp(given, theta, (9, 8), antialias=True)
        assert torch.equal(out, wanted)
        (grad,) = torch.autograd.grad(out.square().sum(), given)
        plain = image.clone().requires_grad_()
        assert torch.equal(
            grad, torch.autograd.grad(stn.warp(plain, theta, (9, 8), antialias=True).square().sum(), plain)[0]
        )
    one = stn.warp(image[:1].expand(3, -1, -1, -1), theta, (9, 8), antialias=True)
    assert torch.equal(one, wanted[:1].expand_as(one))


def test_empty_ones():
    theta = torch.eye(2, 3)[None]
    image = torch.rand(1, 2, 9, 9, requires_grad=True)
    for size in ((0, 4), (3, 0)):
        out = stn.warp(image, theta, size, antialias=True)
        assert out.shape == (1, 2, *size)
        assert torch.autograd.grad(out.sum(), image)[0].abs().max() == 0
    assert stn.warp(image[:, :0], theta, (3, 4), antialias=True).shape == (1, 0, 3, 4)
    assert stn.warp(image[:0], theta, (3, 4), antialias=True).shape == (0, 2, 3, 4)


def test_who_averages():
    assert area.refuses("cpu") is None
    assert "runs on the CPU" in area.refuses("cuda")
    assert "nearest" in area.refuses("cpu", "nearest")
    with stn.ops.use_backend("reference"):
        assert "reference" in area.refuses("cpu")


def test_derivatives_of_derivatives_and_transforms():
    image, coordinates, steps, reading = case((2, (9, 8), (3, 2)), "border", False, "grid", 2.2, batch=1)

    def run(image, values, steps):
        return area.average(image, coordinates._replace(values=values), steps, reading, antialias._average)

    inputs = tuple(t.clone().requires_grad_() for t in (image, coordinates.values, steps))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    batched = [torch.stack([t, t.flip(0) * 0.9]) for t in (image, coordinates.values, steps)]
    got = torch.func.vmap(run)(*batched)
    torch.testing.assert_close(got, torch.stack([run(*[t[k] for t in batched]) for k in range(2)]), rtol=0, atol=1e-13)
    each = torch.func.vmap(torch.func.grad(lambda *t: run(*t).sum(), argnums=(0, 1, 2)))(*batched)
    one = torch.func.grad(lambda *t: run(*t).sum(), argnums=(0, 1, 2))(*[t[1] for t in batched])
    for together, alone in zip(each, one, strict=True):
        torch.testing.assert_close(together[1], alone, rtol=0, atol=1e-12)


def test_compiled():
    image, coordinates, steps, reading = case((2, (9, 8), (3, 2)), "constant", False, "affine", 2.2)

    def run(image, values, steps):
        return area.average(image, coordinates._replace(values=values), steps, reading, antialias._average)

    found = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        inputs = [t.clone().requires_grad_() for t in (image, coordinates.values, steps)]
        out = function(*inputs)
        out.square().sum().backward()
        found.append([out.detach(), *(t.grad for t in inputs)])
    for eager, compiled in zip(*found, strict=True):
        assert torch.equal(eager, compiled)
