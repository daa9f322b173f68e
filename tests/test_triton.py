"""The Triton kernels against the reference: on the GPU where there is one, and in Triton's interpreter everywhere.

The interpreter is switched on by an environment variable that Triton reads when it is imported, which torch may have
done long before this file runs. So the file runs itself in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from records import reference_at, warp_at
from torch.autograd import forward_ad, gradcheck

import stn
from stn.geometry import affine_positions, projective_positions
from stn.kernels import Kernel
from stn.ops import dispatch, use_backend, which_backend
from stn.ops.backend import Case
from stn.ops.triton import deformable, kernels
from stn.ops.triton import launch as triton

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_VERSION = tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])
HERE = stn.ops.backends()["triton"] == "available"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

NAMED = ("integer", "lanczos(3)", "cubic(-0.5)", "bspline(2)", "bspline(3)", "bspline(4)", "bspline(5)", "lanczos(2)")
MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection", "circular", "constant")
KINDS = ("grid", "affine", "projective", "basis")
IN = {1: (7,), 2: (4, 5), 3: (3, 4, 2)}
OUT = {1: (6,), 2: (3, 4), 3: (2, 2, 3)}


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    # They follow each other in the interpreter.
    monkeypatch.setattr(triton, "_PROGRAMS", 1)


@pytest.fixture
def elsewhere():
    if INTERPRETED:
        pytest.skip("already in the interpreter")


def in_the_interpreter(*selection):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection, __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_in_the_interpreter(elsewhere):
    in_the_interpreter("-m", "not slow")


@pytest.mark.slow
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_the_product_in_the_interpreter(elsewhere, mode, padding_mode):
    in_the_interpreter("-m", "slow", "-k", f"{mode} and {padding_mode}")


def problem(kind, mode="bilinear", padding_mode="zeros", align_corners=False, d=2, *, dtype=torch.float64, batch=2,
            channels=2, in_size=None, out_size=None):  # fmt: skip
    """The kernel as a function of image, coordinates and fill; the reference as another; and what to put in."""
    in_size, out_size = in_size or IN[d], out_size or OUT[d]
    image = torch.randn(batch, channels, *in_size, dtype=dtype)
    fill = torch.randn(channels, dtype=dtype) if padding_mode == "constant" else None
    options = (mode, padding_mode, fill, align_corners)
    if kind == "grid":
        coords = 1.2 * torch.randn(batch, *out_size, d, dtype=dtype)
    elif kind == "affine":
        coords = torch.eye(d, d + 1, dtype=dtype) + 0.3 * torch.randn(batch, d, d + 1, dtype=dtype)
    elif kind == "projective":
        coords = torch.eye(d + 1, dtype=dtype) + 0.3 * torch.randn(batch, d + 1, d + 1, dtype=dtype)
        coords[:, -1, -1] = 0.8
    else:
        coords = 0.5 * torch.randn(batch, 5, d, dtype=dtype)
    basis = torch.randn(math.prod(out_size), 5, dtype=torch.float64).to(DEVICE) if kind == "basis" else None

    def kernel(image, coords, fill=fill, within=None):
        tail = (mode, padding_mode, None if fill is None else fill.to(DEVICE), align_corners)
        with within or use_backend("triton"):
            return warp_at(kind, image.to(DEVICE), coords.to(DEVICE), out_size, tail, basis)

    def truth(image, coords, fill=fill):
        image, coords = image.to(DEVICE), coords.to(DEVICE)
        if kind == "affine":
            coords = stn.transforms.affine_grid(coords, out_size, align_corners=align_corners)
        elif kind == "projective":
            coords = projective_positions(coords, out_size, align_corners)
        elif kind == "basis":
            coords = (basis @ coords.double()).to(coords.dtype).unflatten(1, out_size)
        tail = (mode, padding_mode, None if fill is None else fill.to(DEVICE), align_corners)
        return reference_at(image, coords, *tail)

    return kernel, truth, [image, coords] if fill is None else [image, coords, fill], options


def warp_triton(kind, image, values, size, mode, padding_mode, align_corners=False):
    with use_backend("triton"):
        return warp_at(kind, image, values, size, (mode, padding_mode, None, align_corners))


def results(function, inputs):
    """The output and the gradient of each input."""
    inputs = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    out = function(*inputs)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape, dtype=out.dtype, device=out.device))
    return [out.detach(), *[t.grad for t in inputs]]


def agree(kernel, truth, inputs, rtol=1e-9, atol=1e-10):
    ours, theirs = results(kernel, inputs), results(truth, inputs)
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        assert ours_.dtype == theirs_.dtype
        torch.testing.assert_close(ours_, theirs_, rtol=rtol, atol=atol, equal_nan=True)
    return theirs


# The output and every gradient


def some_of_the_product():
    for number, (mode, padding_mode) in enumerate(itertools.product(MODES, PADDINGS)):
        yield mode, padding_mode, bool(number % 2), 2, KINDS[number % 4]
    for number, (kind, padding_mode) in enumerate(zip((*KINDS, "affine"), PADDINGS, strict=True)):
        yield "bilinear", padding_mode, bool(number % 2), 3, kind
        yield "bilinear", padding_mode, not number % 2, 1, kind
    yield "nearest", "reflection", True, 3, "projective"


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners", "d", "kind"), list(some_of_the_product()))
def test_agrees_with_the_reference(mode, padding_mode, align_corners, d, kind):
    kernel, truth, inputs, _ = problem(kind, mode, padding_mode, align_corners, d)
    theirs = agree(kernel, truth, inputs)
    if mode != "nearest":
        assert all(bool(t.abs().max() > 0) for t in theirs[:3])  # something was compared


def some_polynomials():
    for number, (name, padding_mode) in enumerate(zip(NAMED, itertools.cycle(PADDINGS))):
        yield name, padding_mode, bool(number % 2), 2, KINDS[number % 4]
    yield "bspline(3)", "reflection", False, 2, "affine"
    yield "bspline(4)", "circular", True, 2, "grid"
    yield "lanczos(3)", "constant", False, 2, "basis"
    yield "bspline(2)", "constant", True, 3, "affine"
    yield "cubic(-0.5)", "reflection", True, 3, "projective"


@pytest.mark.parametrize(("name", "padding_mode", "align_corners", "d", "kind"), list(some_polynomials()))
def test_polynomials_agree_with_the_reference(name, padding_mode, align_corners, d, kind):
    kernel, truth, inputs, _ = problem(kind, Kernel.named(name), padding_mode, align_corners, d, batch=1)
    theirs = agree(kernel, truth, inputs, atol=1e-9)
    assert bool(theirs[0].abs().max() > 0)
    if name != "integer":
        assert all(bool(t.abs().max() > 0) for t in theirs[1:3])


def test_polynomials_where_positions_are_none_and_in_whole_numbers(request):
    kernel, truth, inputs, _ = problem("grid", Kernel.named("bspline(3)"), out_size=(2, 3), batch=1)
    inputs[1][0, 0, :, 0] = torch.tensor([torch.nan, torch.inf, -50.0])
    agree(kernel, truth, inputs, atol=1e-9)
    request.getfixturevalue("deterministic")
    agree(kernel, truth, inputs, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_agrees_with_the_reference_over_the_product(mode, padding_mode, d, kind):
    for align_corners in (False, True):
        kernel, truth, inputs, _ = problem(kind, mode, padding_mode, align_corners, d, batch=1, channels=1)
        agree(kernel, truth, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_many_tiles_and_channels(kind, monkeypatch):
    """Sums over programs: more pixels than a tile has, and channels divided among programs."""
    monkeypatch.setattr(triton, "_PROGRAMS", 64)
    kernel, truth, inputs, _ = problem(kind, "bilinear", "border", batch=1, in_size=(9, 7), out_size=(5, 37))
    agree(kernel, truth, inputs, atol=1e-9)


def test_many_tiles_in_3d():
    kernel, truth, inputs, _ = problem("affine", d=3, batch=1, channels=1, out_size=(2, 5, 37))
    agree(kernel, truth, inputs, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_types(kind, dtype):
    """Float32 inside, one rounding of the result."""
    kernel, truth, (image, coords, fill), _ = problem(kind, "bilinear", "constant", dtype=torch.float32)
    image = image.to(dtype)
    step = torch.finfo(dtype).eps
    ours, theirs = results(kernel, [image, coords, fill]), results(truth, [image, coords, fill])
    for ours_, theirs_, rough in zip(ours, theirs, (True, True, False, False), strict=True):
        assert ours_.dtype == theirs_.dtype
        scale = 2 * float(theirs_.abs().max())
        tolerance = scale * max(step if rough else 0.0, 2e-5)
        torch.testing.assert_close(ours_, theirs_, rtol=0, atol=tolerance)


# Positions


@pytest.mark.skipif(INTERPRETED and TRITON_VERSION < (3, 9), reason="the fma of older interpreters rounds twice")
@pytest.mark.parametrize("kind", ["affine", "projective"])
def test_positions_are_exact_to_the_digits_of_a_tile(kind):
    """On an axis of 4096 pixels, where float32 positions are off by 2e-4 pixels from rounding alone."""
    n, out = 4096, 1500
    image = (torch.arange(n) % 2).float().expand(1, 1, 8, n)  # a slope of 1 everywhere
    matrix = torch.tensor([[[0.98765, 0.0, 0.00321], [0.0, 1.0, 0.0], [0.01234, 0.0, 1.0]]])
    if kind == "affine":
        matrix = matrix[:, :2]
    ours = warp_triton(kind, image.to(DEVICE), matrix.to(DEVICE), (8, out), "bilinear", "border").cpu().double()

    x = (2 * torch.arange(out, dtype=torch.float64) + 1 - out) / out
    row = matrix.double()[0]
    u = row[0, 0] * x + row[0, 2]
    if kind == "projective":
        u = u / (row[2, 0] * x + row[2, 2])
    position = (((u + 1) * n - 1) / 2).clamp(0, n - 1)
    t = position - position.floor()
    wanted = torch.where(position.floor() % 2 == 0, t, 1 - t)
    error = (ours - wanted).abs().max()
    assert error < 2e-5
    theirs = reference_at(image, affine_positions(matrix[:, :2], (8, out), False), "bilinear", "border", None, False)
    if kind == "affine":
        assert error < 0.2 * (theirs.double() - wanted).abs().max()


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("kind", ["affine", "projective"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 49)])
def test_identity_and_flips_are_exact(kind, mode, size):
    """Whole pixels, to the last bit: 49 and 7 have no exact inverse."""
    image = torch.rand(1, 1, *size, device=DEVICE)
    for x, y, align_corners in itertools.product((1.0, -1.0), (1.0, -1.0), (False, True)):
        matrix = torch.diag(torch.tensor([x, y, 1.0], device=DEVICE))[None, : 2 if kind == "affine" else 3]
        out = warp_triton(kind, image, matrix, size, mode, "zeros", align_corners)
        assert torch.equal(out, image.flip([axis for axis, sign in ((3, x), (2, y)) if sign < 0]))


def test_ties_go_to_the_even_pixel():
    image = torch.arange(16.0, device=DEVICE).reshape(1, 1, 1, 16)
    for shift in (0, 1, 2, 3):  # position x + shift + 1/2, in tiles that begin anywhere
        matrix = torch.tensor([[[1.0, 0, (2 * shift + 1) / 16], [0, 1.0, 0]]], device=DEVICE)
        out = warp_triton("affine", image, matrix, (1, 16), "nearest", "border").flatten().tolist()
        assert out == [min(float(round(x + shift + 0.5)), 15.0) for x in range(16)]


@pytest.mark.parametrize(("mode", "padding_mode"), [*(("bilinear", p) for p in PADDINGS), ("bicubic", "constant")])
def test_positions_that_are_not_finite_or_huge(mode, padding_mode):
    kernel, truth, inputs, _ = problem("grid", mode, padding_mode, out_size=(2, 4))
    inputs[1][0, 0, :, 0] = torch.tensor([math.nan, math.inf, -math.inf, 1e30])
    inputs[1][1, 0, :, 1] = torch.tensor([-1e30, 1e12, -1e12, math.nan])
    theirs = agree(kernel, truth, inputs)
    assert int(theirs[0].isnan().sum()) == 2 * 4


def test_matrices_that_are_not_finite_or_huge():
    for kind in ("affine", "projective"):
        kernel, truth, (image, coords), _ = problem(kind, "bilinear", "border", batch=5, dtype=torch.float32)
        for image_number, value in enumerate((math.nan, math.inf, -math.inf, 1e30)):
            coords[image_number, 0, 1] = value
        ours, theirs = kernel(image, coords), truth(image, coords)
        assert bool(ours[:3].isnan().all())
        # A huge entry: the border, but for the pixels where the coordinate that it multiplies is 0.
        assert bool(ours[3:].isfinite().all())
        torch.testing.assert_close(ours[4], theirs[4], rtol=0, atol=1e-5)
        coords[3] = 3e38
        assert bool(kernel(image, coords)[3].isfinite().all())


def test_a_projective_matrix_and_its_multiples_are_the_same():
    kernel, truth, (image, coords), _ = problem("projective", dtype=torch.float32)
    wanted = truth(image, coords)
    for factor in (1.0, 2.0**-100, 2.0**100):
        torch.testing.assert_close(kernel(image, factor * coords), wanted, rtol=0, atol=2e-5)


def test_behind_the_horizon():
    kernel, truth, inputs, _ = problem("projective", "bilinear", "border", out_size=(5, 6))
    inputs[1][:, 2, :2] = torch.tensor([[1.5, 0.3], [-0.4, 1.7]])
    theirs = agree(kernel, truth, inputs, rtol=1e-7)
    grid = stn.transforms.projective_grid(inputs[1], (5, 6))
    assert 0 < int((grid.abs() == 1e4).all(-1).sum()) < 60
    assert bool(theirs[2].abs().max() > 0)


# Memory


@pytest.mark.parametrize(("channels", "padding_mode"), [(3, "constant"), (40, "zeros")])
def test_channels_last(channels, padding_mode):
    kernel, truth, inputs, _ = problem("affine", "bilinear", padding_mode, channels=channels)
    wanted = results(truth, inputs)
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    ours = results(kernel, inputs)
    for tensor in ours[:2]:
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    for ours_, wanted_ in zip(ours, wanted, strict=True):
        torch.testing.assert_close(ours_, wanted_, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_strided_and_poisoned_memory(kind):
    """Views cut out of NaN, transposed, strided by two; an expanded image; the expanded gradient of a plain sum."""
    kernel, truth, (image, coords), _ = problem(kind)

    def poisoned(tensor):
        large = torch.full([2 * n + 3 for n in reversed(tensor.shape)], torch.nan, dtype=tensor.dtype)
        view = large.permute(*reversed(range(tensor.ndim)))[tuple(slice(1, 2 * n, 2) for n in tensor.shape)]
        view.copy_(tensor)
        return view

    wanted = truth(image, coords)
    torch.testing.assert_close(kernel(poisoned(image), poisoned(coords)), wanted, rtol=0, atol=1e-10)
    one = image[:1].clone().requires_grad_()
    out = kernel(one.expand_as(image), poisoned(coords))
    torch.testing.assert_close(out, truth(image[:1].expand_as(image), coords), rtol=0, atol=1e-10)
    out.sum().backward()
    other = image[:1].clone().requires_grad_()
    truth(other.expand_as(image), coords).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_axes_of_one_pixel(kind, align_corners):
    kernel, truth, inputs, _ = problem(
        kind, "bilinear", "reflection", align_corners, in_size=(1, 4), out_size=(3, 1), channels=1
    )
    agree(kernel, truth, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batches(kind):
    kernel, _, (image, coords, fill), _ = problem(kind, "bilinear", "constant", batch=0)
    out, *grads = results(kernel, [image, coords, fill])
    assert out.shape == (0, 2, *OUT[2])
    assert [g.shape for g in grads] == [image.shape, coords.shape, fill.shape]


def test_an_axis_that_is_too_long_is_an_error():
    image = torch.zeros((), device=DEVICE).expand(1, 1, 1, 2**30)
    with pytest.raises(ValueError, match=r"image: expected axes of less than 2\^30"):
        warp_triton("grid", image, torch.zeros(1, 1, 1, 2, device=DEVICE), (1, 1), "bilinear", "zeros")


# Deterministic gradients


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_deterministic_gradient_is_the_gradient(deterministic, dtype, scale):
    kernel, truth, inputs, _ = problem("affine", "bicubic", "reflection", dtype=dtype)
    cotangent = torch.randn(2, 2, *OUT[2], dtype=dtype, device=DEVICE)
    cotangent[1] *= 1e-6  # planes of their own scale
    tolerance = 1e-11 if dtype == torch.float64 else 3e-5
    inputs[0].requires_grad_()
    (ours,) = torch.autograd.grad(kernel(*inputs), inputs[0], scale * cotangent)
    with torch.random.fork_rng():
        torch.use_deterministic_algorithms(False)
        (theirs,) = torch.autograd.grad(truth(*inputs), inputs[0], scale * cotangent)
    for image_number in (0, 1):
        unit = theirs[image_number].abs().max()
        torch.testing.assert_close(ours[image_number] / unit, theirs[image_number] / unit, rtol=0, atol=tolerance)


def test_the_deterministic_gradient_has_the_same_bits_in_any_order(deterministic):
    """The same contributions from output pixels in another order."""
    size = (8, 16)
    image = torch.zeros(1, 1, 2, 2, device=DEVICE, requires_grad=True)
    grid, grad = torch.rand(128, 2, device=DEVICE) - 0.5, torch.randn(128, device=DEVICE)
    seen = set()
    for _ in range(4):
        order = torch.randperm(128)
        out = warp_triton("grid", image, grid[order].reshape(1, *size, 2), size, "bilinear", "zeros")
        (back,) = torch.autograd.grad(out, image, grad[order].reshape(1, 1, *size))
        seen.add(tuple(back.flatten().tolist()))
    assert len(seen) == 1


def test_a_gradient_that_is_not_finite_passes_the_deterministic_road(deterministic):
    image = torch.zeros(1, 2, 3, 3, device=DEVICE, requires_grad=True)
    out = warp_triton("affine", image, torch.eye(2, 3, device=DEVICE)[None], (3, 3), "nearest", "zeros")
    grad = torch.ones(1, 2, 3, 3, device=DEVICE)
    grad[0, 0, 0, 0], grad[0, 1, 1, 1] = math.inf, math.nan
    (back,) = torch.autograd.grad(out, image, grad)
    assert torch.equal(back.nan_to_num(7.0, 8.0), grad.nan_to_num(7.0, 8.0))


# Derivatives and transforms


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_derivatives(kind):
    """Through the reference road, which is to be the same function."""
    kernel, truth, inputs, _ = problem(
        kind, "bilinear", "constant", batch=1, channels=1, in_size=(2, 2), out_size=(1, 2)
    )
    ours, theirs = (
        torch.autograd.functional.hessian(lambda *a, f=f: f(*a).square().sum(), tuple(inputs)) for f in (kernel, truth)
    )
    for ours_, theirs_ in zip(sum(ours, ()), sum(theirs, ()), strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-9, atol=1e-9)


def test_gradcheck():
    """With batches of gradients, which is the operator once for each."""
    kernel, _, inputs, _ = problem(
        "affine", "bilinear", "constant", batch=1, channels=1, in_size=(2, 3), out_size=(1, 2)
    )
    assert gradcheck(kernel, [t.requires_grad_() for t in inputs], check_batched_grad=True)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_is_the_transpose_of_reverse_mode(kind):
    kernel, _, inputs, _ = problem(kind, "bilinear", "constant", batch=1)
    tangents = [torch.randn_like(t) for t in inputs]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(inputs, tangents, strict=True)]
        forward = forward_ad.unpack_dual(kernel(*duals)).tangent
    inputs = [t.requires_grad_() for t in inputs]
    cotangent = torch.randn_like(forward)
    grads = torch.autograd.grad(kernel(*inputs), inputs, cotangent)
    back = sum((g * v).sum() for g, v in zip(grads, tangents, strict=True))
    torch.testing.assert_close((forward * cotangent).sum(), back.to(DEVICE), rtol=1e-10, atol=1e-10)


def test_vmap_and_jacobians():
    kernel, truth, (image, coords, fill), _ = problem("affine", "bilinear", "constant", batch=3, channels=1)
    one = torch.func.vmap(lambda i, c: kernel(i[None], c[None], fill)[0])
    torch.testing.assert_close(one(image, coords), truth(image, coords, fill), rtol=0, atol=1e-12)
    shared = torch.func.vmap(lambda c: kernel(image[:1], c[None], fill)[0])
    torch.testing.assert_close(shared(coords), truth(image[:1].expand_as(image), coords, fill), rtol=0, atol=1e-12)
    fills = torch.func.vmap(lambda f: kernel(image, coords, f))(torch.stack([fill, fill + 1]))
    torch.testing.assert_close(fills[1], truth(image, coords, fill + 1), rtol=0, atol=1e-12)
    jacobian = torch.func.jacrev(lambda c: kernel(image[:1], c, fill))(coords[:1])
    wanted = torch.func.jacrev(lambda c: truth(image[:1], c, fill))(coords[:1])
    torch.testing.assert_close(jacobian, wanted, rtol=0, atol=1e-10)
    # Batches of gradients that nobody differentiates.
    leaf = coords[:1].clone().requires_grad_()
    out = kernel(image[:1], leaf, fill)
    basis = torch.eye(out.numel(), dtype=out.dtype, device=DEVICE).unflatten(1, out.shape)
    (rows,) = torch.autograd.grad(out, leaf, basis, is_grads_batched=True)
    torch.testing.assert_close(rows.reshape(jacobian.shape), jacobian, rtol=0, atol=1e-10)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    asked = []
    real = triton._run_backward
    monkeypatch.setattr(
        triton,
        "_run_backward",
        lambda g, i, c, *rest: (asked.append((i is not None, c)), real(g, i, c, *rest))[1],
    )
    for to_image, to_coords in ((True, False), (False, True), (True, True)):
        kernel, _, (image, coords), _ = problem("affine")
        image.requires_grad_(to_image), coords.requires_grad_(to_coords)
        kernel(image, coords).sum().backward()
        assert (image.grad is not None, coords.grad is not None) == (to_image, to_coords)
    assert asked == [(True, False), (False, True), (True, True)]


# Compilers


@pytest.mark.parametrize("kind", ["affine", "basis"])
def test_compile_fullgraph(kind):
    kernel, _, inputs, _ = problem(kind, "bilinear", "constant")
    compiled = torch.compile(
        lambda *a: kernel(*a, within=contextlib.nullcontext()), fullgraph=True, backend="aot_eager"
    )
    eager = results(kernel, inputs)
    with use_backend("triton"):  # around the whole, for compilers do not know it
        graph = results(compiled, inputs)
    for ours, wanted in zip(graph, eager, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


def test_operator():
    _, _, inputs, (mode, padding_mode, _, align_corners) = problem("projective", "bilinear", "constant")
    image, coords, fill = [t.to(DEVICE).requires_grad_() for t in inputs]
    arguments = (image, coords, None, fill.detach(), "projective", OUT[2], mode, padding_mode, align_corners)
    torch.library.opcheck(torch.ops.stn.warp_triton.default, arguments)


@pytest.mark.parametrize(("kernel", "kind", "d"), [
    ("forward", "affine", 2), ("backward", "projective", 2),
    *[pytest.param(k, kind, d, marks=pytest.mark.slow) for k in ("forward", "backward") for kind in KINDS for d in (2, 3)],
])  # fmt: skip
def test_compiles_for_a_gpu(elsewhere, kernel, kind, d, tmp_path, monkeypatch):
    """Down to machine code, which takes no GPU, without a register in memory."""
    import triton as compiler
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels.load()
    function = getattr(kernels, kernel)
    switches = {
        "NDIM": d, "KIND": kind, "MODE": "bilinear", "PADDING": "constant", "ALIGN": 0, "TAPS": 2, "DEGREE": 0,
        "WORK": kernels.tl.float32, "SUM": kernels.tl.float64, "TILE_X": 32, "TILE_Y": 4, "LANES": 1,
        "TO_IMAGE": True, "TO_COORDS": True, "COUNTED": False, "KINK": 2.0**-21,
    }  # fmt: skip
    tuples = {
        "image_strides": d + 2, "out_strides": d + 2, "grad_strides": d + 2, "grad_image_strides": d + 2,
        "coords_strides": d + 2 if kind == "grid" else 3, "basis_strides": d + 1 if kind == "basis" else 1,
        "grad_coords_strides": d + 3 if kind == "grid" else 2, "in_size": d, "out_size": d,
    }  # fmt: skip
    pointers = {"image": "bf16", "out": "bf16", "grad": "bf16", "basis": "fp64", "counts": "i64"}
    pointers |= dict.fromkeys(("coords", "powers", "fill", "grad_image", "scales", "grad_coords"), "fp32")
    signature = {}
    for name in function.arg_names:
        signature[name] = (
            "constexpr" if name in switches
            else ("i32",) * tuples[name] if name in tuples
            else "*" + pointers[name] if name in pointers
            else "fp32" if name == "quantum" else "i32"
        )  # fmt: skip
    constants = {name: value for name, value in switches.items() if name in function.arg_names}
    made = compiler.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", 80, 32), options={"num_warps": 4, "enable_fp_fusion": False},
    )  # fmt: skip
    assert len(made.asm["cubin"]) > 1000
    assert "fma.rn.f32" in made.asm["ptx"]


@pytest.mark.parametrize("name", ["_read", "_pull"])
def test_deformable_attention_compiles_for_a_gpu(elsewhere, name, tmp_path, monkeypatch):
    compiler = pytest.importorskip("triton.compiler")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels.load()
    function = getattr(deformable, name)
    switches = {"LEVELS": 4, "POINTS": 4, "ROWS": 16, "LANES": 32, "KINK": 2.0**-21}
    tuples, numbers = {"sizes": 8, "firsts": 4}, ("rows", "queries", "positions", "heads", "channels")
    signature = {
        n: "constexpr" if n in switches else ("i32",) * tuples[n] if n in tuples else "i32" if n in numbers else "*fp32"
        for n in function.arg_names
    }
    constants = {n: value for n, value in switches.items() if n in function.arg_names}
    made = compiler.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", 80, 32), options={"num_warps": 4},
    )  # fmt: skip
    assert len(made.asm["cubin"]) > 1000


# Deformable attention


MAPS = [(5, 7), (3, 4), (1, 1), (2, 1)]


def attention(dtype=torch.float64, channels=5, *, on_centres=False):
    """Positions on the maps, beyond their borders and far away; all on pixel centres and halfway between, if wanted."""
    random = torch.Generator().manual_seed(0)
    value = torch.randn(2, sum(map(math.prod, MAPS)), 3, channels, generator=random, dtype=torch.float64)
    locations = torch.rand(2, 3, 3, len(MAPS), 2, 2, generator=random, dtype=torch.float64) * 1.6 - 0.3
    locations[0, 0, 0, 0, 0] = 50.0
    if on_centres:
        sides = torch.tensor([size[::-1] for size in MAPS])[:, None]
        locations = (locations * sides * 2).round().clamp(-1, 9) / 2 / sides
        locations[:, ::2] *= 1 - 2**-53  # some a rounding error before it
    weights = torch.rand(locations.shape[:-1], generator=random, dtype=torch.float64)
    return [t.to(DEVICE, dtype).requires_grad_() for t in (value, locations, weights)]


def attended(backend, tensors):
    with use_backend(backend):
        out = stn.deformable_sample(tensors[0], MAPS, *tensors[1:])
        grad = torch.linspace(-1, 2, out.numel(), dtype=out.dtype, device=DEVICE).view_as(out)
        return [out, *torch.autograd.grad(out, tensors, grad)]


@pytest.mark.parametrize(("channels", "on_centres"), [(1, False), (5, False), (5, True)])
def test_deformable_attention_and_its_gradients(monkeypatch, channels, on_centres):
    calls = []
    for name in ("forward", "backward"):
        run = getattr(deformable, name)
        monkeypatch.setattr(deformable, name, lambda *given, run=run, name=name: calls.append(name) or run(*given))
    monkeypatch.setattr(deformable, "_LANES", 4)  # fewer than channels
    tensors = attention(channels=channels, on_centres=on_centres)
    found = attended("triton", tensors)
    assert calls == ["forward", "backward"]
    for ours, theirs in zip(found, attended("reference", tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(attended("triton", [t.float() for t in tensors]), found, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_deformable_attention_where_something_is_not_finite():
    tensors = attention()
    with torch.no_grad():
        tensors[1][1, 2, 0, 1, 1, 1], tensors[1][0, 1, 2, 0, 0, 0] = math.nan, math.inf
        tensors[0][0, 0, 0] = math.nan
    for ours, theirs in zip(attended("triton", tensors), attended("reference", tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_deformable_attention_in_one_order(monkeypatch):
    """Atomic sums have none: where it is asked for, map after map is read by the kernels of the warp, which do."""
    monkeypatch.setattr(deformable, "forward", None)
    torch.use_deterministic_algorithms(True)
    try:
        found = attended("triton", attention())
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, theirs in zip(found, attended("reference", attention()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# The table


def test_who_runs(monkeypatch):
    monkeypatch.setattr(dispatch, "BACKENDS", (triton, *[k for k in dispatch.BACKENDS if k is not triton]))
    monkeypatch.setattr(dispatch, "_known", {})
    case = Case(3, "bicubic", "circular", "cuda", torch.float32)
    assert stn.ops.backends()["triton"] == "available"
    assert triton.refuses(case) is None
    for other in (case._replace(kernel=stn.kernels.lanczos(4)), case._replace(kernel=stn.kernels.lanczos(), ndim=1), case._replace(device="meta"),
                  case._replace(dtype=torch.uint8)):  # fmt: skip
        assert triton.refuses(other)
    if INTERPRETED:  # by name alone, so that it makes nothing else slow
        assert which_backend(2) != "triton"
        with use_backend("triton"):
            assert which_backend(2) == "triton"
    image, theta = torch.randn(1, 1, 4, 4, device=DEVICE), torch.eye(2, 3, device=DEVICE)[None]
    with use_backend("triton"):
        assert torch.equal(stn.warp(image, theta), image)


if not HERE:  # they run in the other process, and would be a screen of skips in this one
    for name, function in list(globals().items()):
        if name.startswith("test_") and "elsewhere" not in inspect.signature(function).parameters:
            del globals()[name]
