"""Splines, Lanczos', Keys' and the integer kernel on the CPU: against the reference over the product of what they do, and on
whatever may hurt them."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from records import warp_at
from test_cpu import KINDS, LAYOUTS, PADDINGS, arrange, fill_of, problem
from test_cpu import rng as seeded
from test_signals import problem as signal_problem

import stn
from stn.coordinates import Coordinates
from stn.kernels import Kernel, bspline, cubic, lanczos
from stn.ops import cpu, polynomials, use_backend, which_backend
from stn.ops.autograd import operators
from stn.reading import Reading

pytestmark = pytest.mark.skipif(cpu._reason is not None, reason=f"native kernels: {cpu._reason}")

MADE = {
    "bspline2": bspline(2),
    "bspline3": bspline(3),
    "bspline4": bspline(4),
    "bspline5": bspline(5),
    "lanczos2": lanczos(2),
    "lanczos3": lanczos(3),
    "keys": cubic(-0.6),
    "integer": stn.kernels.NAMED["integer"],
}
# Relative to images of order 1; the filter of the fifth order makes coefficients 50 times as large in two dimensions.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-4}
IN_3D = ("bspline3", "bspline4", "lanczos3")  # of 4, 5 and 6 taps
every_kernel = pytest.mark.parametrize("name", MADE)
every_padding = pytest.mark.parametrize("padding_mode", PADDINGS)


def options_of(name, padding_mode, align_corners, channels=3, dtype=torch.float64):
    fill = fill_of(padding_mode, channels)
    return MADE[name], padding_mode, None if fill is None else fill.to(dtype), align_corners


def three(backend, kind, image, coords, basis, size, options):
    """Output, gradients of the image and of the coordinates."""
    image, coords = image.detach().requires_grad_(), coords.detach().requires_grad_()
    with use_backend(backend):
        out = warp_at(kind, image, coords, size, options, basis)
        weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
        return out.detach(), *torch.autograd.grad(out, (image, coords), weights)


def in_double(made):
    image, coords, basis, size = made
    return image.double(), coords.double(), basis, size


@every_padding
@pytest.mark.parametrize(
    ("name", "kind", "d"),
    [*itertools.product(MADE, KINDS, [2]), *itertools.product(IN_3D, ("affine", "grid"), [3])],
)
def test_agrees_with_the_reference(name, padding_mode, kind, d):
    for align_corners, dtype in itertools.product((False, True) if d == 2 else (False,), TOLERANCE):
        made = problem(kind, d, dtype=dtype)
        if name == "integer":  # of which positions that round to another pixel read another one
            made = [t.double() if isinstance(t, torch.Tensor) else t for t in made]
            dtype = torch.float64
        options = options_of(name, padding_mode, align_corners, dtype=dtype)
        truth = three("reference", kind, *in_double(made), options_of(name, padding_mode, align_corners))
        ours = three("cpu", kind, *made, options)
        for what, a, b in zip(("output", "image", "coordinates"), ours, truth, strict=True):
            atol = max(1.0, float(b.abs().max())) * TOLERANCE[dtype] * (10 if kind == "projective" else 1)
            torch.testing.assert_close(a.double(), b, rtol=0, atol=atol, msg=lambda m, w=what: f"{w}: {m}")
        assert (ours[1] != 0).any()
        assert (ours[2] != 0).any() == (name != "integer")


@every_kernel
@every_padding
@pytest.mark.parametrize("kind", KINDS)
def test_signals_agree_with_the_reference(name, padding_mode, kind):
    torch.manual_seed(0)
    for width, align_corners in itertools.product((1, 2, 9, 300), (False, True)):
        image = torch.randn(3, 3, width, dtype=torch.float64)
        values, basis = signal_problem(kind)
        options = options_of(name, padding_mode, align_corners)
        truth = three("reference", kind, image, values, basis, (17,), options)
        ours = three("cpu", kind, image, values, basis, (17,), options)
        for a, b in zip(ours, truth, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=max(1.0, float(b.abs().max())) * 1e-11)


@every_kernel
@every_padding
def test_sizes_and_layouts(name, padding_mode):
    """One pixel along an axis, sizes around a vector's, more channels than are read together, any strides."""
    sizes = [(1, 1), (1, 6), (6, 1), (2, 3), (15, 17), (33, 16), (40, 70)]
    for e, (size, align_corners) in enumerate(itertools.product(sizes, (False, True))):
        channels = (1, 9, 3)[e % 3]
        image, coords, basis, _ = problem("affine", 2, batch=3, channels=channels, in_size=size, seed=e, spread=0.8)
        image = arrange(image, LAYOUTS[e % len(LAYOUTS)])
        out_size = ((1, 1), (5, 30), (12, 11))[e % 3]
        options = options_of(name, padding_mode, align_corners, channels)
        truth = three("reference", "affine", image, coords, basis, out_size, options)
        ours = three("cpu", "affine", image, coords, basis, out_size, options)
        for a, b in zip(ours, truth, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=max(1.0, float(b.abs().max())) * 1e-11)


@every_kernel
@every_padding
def test_positions_that_are_none(name, padding_mode):
    """NaN, infinite and far away positions, beside those that are none of these."""
    image, grid, _, _ = problem("grid", 2, in_size=(5, 6), out_size=(9, 40))
    strange = [torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 1e5, 40.0, -40.0, 1e300]
    for row, value in enumerate(strange):
        grid[0, row, row::7, row % 2] = value
    for align_corners in (False, True):
        options = options_of(name, padding_mode, align_corners)
        truth = three("reference", "grid", image, grid, None, (9, 40), options)
        ours = three("cpu", "grid", image, grid, None, (9, 40), options)
        near = grid.abs().amax(-1) < 1e4  # beyond, what is left of the fraction is a matter of rounding
        assert torch.equal(ours[0].isnan(), truth[0].isnan())
        for a, b in zip(
            (ours[0].movedim(1, -1)[near], ours[2][near]), (truth[0].movedim(1, -1)[near], truth[2][near]), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        assert all(grad.isfinite().all() for grad in ours[1:])
        if padding_mode not in ("reflection", "circular"):
            torch.testing.assert_close(ours[0], truth[0], rtol=0, atol=1e-10, equal_nan=True)
            torch.testing.assert_close(ours[1], truth[1], rtol=0, atol=1e-10)


@every_kernel
def test_pixels_that_are_not_finite(name):
    """What they reach is not finite, and nothing else: a recursive filter alone would spread them everywhere."""
    image, coords, _, size = problem("affine", 2, in_size=(100, 90), out_size=(120, 110), spread=0.05)
    for value in (torch.nan, torch.inf):
        image[0, 1, 40, 50] = value
        options = options_of(name, "border", False)
        weights = torch.ones(2, 3, 120, 110, dtype=torch.float64)
        weights[1, 0, 20, 20] = value
        results = []
        for backend in ("reference", "cpu"):
            i, c = image.clone().requires_grad_(), coords.clone().requires_grad_()
            with use_backend(backend):
                out = warp_at("affine", i, c, size, options, None)
                results.append((out.detach(), *torch.autograd.grad(out, (i, c), weights)))
        for what, a, b in zip(("output", "image", "coordinates"), *results, strict=True):
            if what == "coordinates":  # of which every number is a sum over all pixels
                continue
            assert torch.equal(a.isfinite(), b.isfinite()), what
            assert 0 < b.isfinite().sum() < b.numel()
            torch.testing.assert_close(a[b.isfinite()], b[b.isfinite()], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["bspline3", "lanczos3"])
def test_a_gradient_that_is_not_finite(name):
    image, coords, _, _ = problem("affine", 2, batch=1, in_size=(100, 90), spread=0.05)
    weights = torch.ones(1, 3, 60, 70, dtype=torch.float64)
    weights[0, 0, 20, 20] = torch.nan
    grads = []
    for backend in ("reference", "cpu"):
        i = image.clone().requires_grad_()
        with use_backend(backend):
            out = warp_at("affine", i, coords, (60, 70), options_of(name, "border", False), None)
            grads.append(torch.autograd.grad(out, i, weights)[0])
    assert 0 < grads[0].isnan().sum() < 90 * 100
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=1e-9, equal_nan=True)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
def test_other_types(name, dtype):
    image, coords, _, size = problem("affine", 2, in_size=(20, 30), out_size=(18, 25), dtype=torch.float32)
    image = (image * 60 + 120).clamp(0, 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    options = options_of(name, "zeros", False)
    with use_backend("cpu"):
        ours = warp_at("affine", image, coords, size, options, None)
    with use_backend("reference"):
        truth = warp_at("affine", image, coords, size, options, None)
    assert ours.dtype == dtype
    assert (ours.float() - truth.float()).abs().max() <= (1 if dtype == torch.uint8 else 3e-2)
    assert (ours != truth).double().mean() < 0.04  # by a last bit
    if dtype != torch.uint8:
        ours, truth = (three(b, "affine", image, coords, None, size, options) for b in ("cpu", "reference"))
        for a, b in zip(ours, truth, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=3e-2 * max(1.0, float(b.abs().max())))


@every_kernel
@pytest.mark.parametrize("d", [1, 2, 3])
def test_nothing_to_read_or_write(name, d):
    for batch, channels, size in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        image = torch.rand(batch, channels, *[4] * d, requires_grad=True)
        grid = torch.zeros(batch, *[size] * d, d, requires_grad=True)
        out = stn.sample(image, grid, mode=MADE[name])
        out.sum().backward()
        assert out.shape == (batch, channels, *[size] * d)
        assert not any(t.grad.any() for t in (image, grid))


@pytest.mark.parametrize("padding_mode", ["border", "circular"])
def test_the_image_gradient_of_one_large_image(padding_mode):
    """Which is divided into parts of rows."""
    image, coords, _, size = problem("affine", 2, batch=1, channels=1, in_size=(90, 80), out_size=(270, 250))
    for name in ("bspline2", "bspline3"):
        options = options_of(name, padding_mode, False, 1)
        ours, truth = (three(b, "affine", image, coords, None, size, options)[1] for b in ("cpu", "reference"))
        torch.testing.assert_close(ours, truth, rtol=0, atol=float(truth.abs().max()) * 1e-11)


@every_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_for_any_number_of_threads(name, kind):
    before = torch.get_num_threads()
    try:
        for batch, channels, in_size, out_size in ((5, 3, (120, 90), (80, 110)), (1, 1, (300, 200), (150, 260))):
            made = problem(
                kind, 2, batch=batch, channels=channels, in_size=in_size, out_size=out_size, dtype=torch.float32
            )
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                options = options_of(name, "reflection", False, channels, torch.float32)
                results.append(three("cpu", kind, *made, options))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("set_", ["baseline", "x86-64-v3", ""])
def test_every_instruction_set_agrees(set_):
    try:
        cpu._native.choose(set_)
        for name, d, dtype in itertools.product(IN_3D, (2, 3), TOLERANCE):
            made = problem(
                "affine", d, in_size=(20, 33) if d == 2 else None, out_size=(9, 50)[: d if d == 2 else 0], dtype=dtype
            )
            options = options_of(name, "reflection", False)
            truth = three("reference", "affine", *in_double(made), options)
            for a, b in zip(three("cpu", "affine", *made, options), truth, strict=True):
                atol = max(1.0, float(b.abs().max())) * TOLERANCE[dtype]
                torch.testing.assert_close(a.double(), b, rtol=0, atol=atol)
    finally:
        cpu._native.choose("")


@pytest.mark.parametrize("name", ["bspline3", "lanczos3", "integer"])
def test_compiled_and_registered(name):
    image, coords, _, size = problem("affine", 2, dtype=torch.float32)
    image.requires_grad_(), coords.requires_grad_()
    plain = stn.warp(image, coords, size=size, mode=MADE[name])
    compiled = torch.compile(stn.warp, fullgraph=True, backend="aot_eager")
    for mode in (name, MADE[name]):
        assert torch.equal(compiled(image, coords, size=size, mode=mode), plain)
    (op,) = [op for op in operators() if op.name() == "stn::warp_cpu"]
    if name != "integer":  # whose gradients opcheck cannot tell from those of another
        torch.library.opcheck(op, (image, coords, None, None, "affine", list(size), MADE[name].name, "zeros", False))


def test_who_runs_what():
    for d, (name, mode) in itertools.product((1, 2, 3), MADE.items()):
        assert which_backend(d, mode) == "cpu", name
    for mode in (
        lanczos(1),
        lanczos(4),
        Kernel(lambda t: 1 - t.abs(), radius=1),
        Kernel(bspline(3).function, radius=2),
    ):
        assert which_backend(2, mode) == "reference"
    for name in ("bspline2", "bspline3", "bspline4", "bspline5", "lanczos3", "integer"):
        assert which_backend(2, stn.reading.check_reading(name, "zeros").kernel) == "cpu"


def test_names_are_those_of_kernels():
    for kernel in MADE.values():
        again = Kernel.named(kernel.name)
        t = torch.linspace(-2.9, 2.9, 101, dtype=torch.float64)
        assert (again.radius, again.normalize, again.prefilter) == (kernel.radius, kernel.normalize, kernel.prefilter)
        assert torch.equal(again.function(t), kernel.function(t))
        assert pickle.loads(pickle.dumps(kernel)).name == kernel.name
    assert Kernel(cubic(-1).function, radius=2).name is None


@pytest.mark.parametrize("double", [False, True])
def test_polynomials_are_the_kernels(double):
    generator = seeded("polynomials")
    for name, kernel in MADE.items():
        if name == "integer":
            continue
        made = polynomials.of(kernel.name, double)
        taps = len(made.taps)
        assert len(made.poles) == ((int(name[-1]) // 2) if "bspline" in name else 0)
        t = generator.uniform(0, 1, 200)
        truth = torch.stack([w for _, w in kernel.taps(torch.from_numpy(t - taps % 2 / 2))], -1)
        u = torch.from_numpy(t - 0.5)
        for tap in range(taps):
            value = sum(c * u**power for power, c in enumerate(made.taps[tap]))
            torch.testing.assert_close(value, truth[:, tap], rtol=0, atol=1e-14 if double else 1e-8)


def test_the_door_refuses():
    image = torch.rand(1, 1, 4, 4)
    how = (cpu._FORWARD, 0, 0, 0, False, 1)
    theta = torch.eye(2, 3)[None]
    taps = [[1.0], [0.0], [0.0]]
    made = cpu._native.polynomials(taps, [], 0)
    half, out = image.half(), torch.empty(1, 1, 4, 4)
    with pytest.raises(ValueError, match="out: expected float32 or float64"):
        cpu._native.run(*how, half, theta, None, None, half, half, made)
    with pytest.raises(ValueError, match="is_signal: expected images of one row"):
        cpu._native.run(*how, image, theta, None, None, out, out, made, True)
    with pytest.raises(ValueError):
        cpu._native.run(*how, image, theta, None, None, out, out, object())
    for bad in (([[1.0]], [], 0), ([[1.0]] * 7, [], 0), ([[1.0], [1.0], [1.0, 2.0]], [], 0), ([[1.0] * 25] * 3, [], 0)):
        with pytest.raises(ValueError, match="taps"):
            cpu._native.polynomials(*bad)
    for bad in (([1.0], 0), ([-1.0], 0), ([-0.1] * 3, 0)):
        with pytest.raises(ValueError, match="poles"):
            cpu._native.polynomials(taps, *bad)
    with pytest.raises(ValueError, match="reach"):
        cpu._native.polynomials(taps, [-0.1], -1)


def test_positions_in_pixels():
    image = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    at = torch.rand(2, 5, 6, 2, dtype=torch.float64) * 14 - 2
    for name in MADE:
        reading = Reading(MADE[name], "zeros", None, False)
        coordinates = Coordinates("pixels", (5, 6), at)
        truth = stn.ops.reference.forward(image, coordinates, reading)
        torch.testing.assert_close(cpu.forward(image, coordinates, reading), truth, rtol=0, atol=1e-11)
