"""The native kernels: against the reference in float64 over the product of what they do, and on whatever may hurt them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from records import reference_at, warp_at

import stn
from stn.coordinates import Coordinates, positions
from stn.geometry import affine_positions, facing
from stn.ops import cpu, use_backend

pytestmark = pytest.mark.skipif(cpu._reason is not None, reason=f"native kernels: {cpu._reason}")

MODES = ("nearest", "bilinear", "bicubic")
PADDINGS = ("zeros", "border", "reflection", "circular", "constant")
KINDS = ("affine", "projective", "basis", "grid")
CASES = list(itertools.product(KINDS, MODES, PADDINGS, (False, True), (2, 3)))
cases = pytest.mark.parametrize(("kind", "mode", "padding_mode", "align_corners", "d"), CASES)

# Largest difference from the reference in float64, relative to images and gradients of order 1.
TOLERANCE = {
    torch.float64: 1e-10,  # sums of a few thousand products; positions within 1e-13 pixels
    torch.float32: 2e-4,  # positions within 1e-6 pixels; slopes of order 3 on each axis, sums of 100 pixels
    torch.bfloat16: 3e-2,  # one rounding of values up to 8
    torch.float16: 4e-3,
}
LAYOUTS = ("contiguous", "channels_last", "strided", "expanded")


def rng(*key):
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def arrange(image, layout):
    """The same numbers in another memory layout; what lies between them is NaN."""
    if layout == "channels_last":
        return image.contiguous(memory_format=torch.channels_last if image.ndim == 4 else torch.channels_last_3d)
    if layout == "strided":
        large = torch.full([2 * n + 1 for n in image.shape], torch.nan, dtype=image.dtype)
        view = large[tuple(slice(1, None, 2) for _ in image.shape)]
        view.copy_(image)
        return view
    if layout == "expanded":
        return image[:1].expand_as(image)
    return image.contiguous()


def problem(kind, d, *, batch=2, channels=3, in_size=None, out_size=None, seed=0, dtype=torch.float64, spread=0.3):
    """image, coordinates, basis and the function of ops/ that takes them; nothing lies on a kink."""
    generator = rng(kind, d, seed)
    in_size = in_size or (7, 9) if d == 2 else in_size or (4, 5, 6)
    out_size = out_size or ((6, 8) if d == 2 else (3, 4, 5))
    image = torch.from_numpy(generator.standard_normal((batch, channels, *in_size))).to(dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    if kind == "affine":
        coords, basis = torch.from_numpy(np.eye(d, d + 1) + spread * generator.standard_normal((batch, d, d + 1))), None
    elif kind == "projective":
        coords, basis = (
            torch.from_numpy(np.eye(d + 1) + spread * generator.standard_normal((batch, d + 1, d + 1))),
            None,
        )
        coords = facing(coords)
    elif kind == "basis":
        n = int(np.prod(out_size))
        basis = torch.from_numpy(generator.standard_normal((n, 5)))
        coords = torch.from_numpy(0.5 * generator.standard_normal((batch, 5, d)))
    else:
        coords, basis = torch.from_numpy(generator.uniform(-1.6, 1.6, (batch, *out_size, d))), None
    if kind != "basis":
        coords = coords.to(real)
    return image, coords, basis, out_size


def problem_off_kinks(kind, d, align_corners, first=0, **options):
    """The first whose positions lie on no kink of linear interpolation, by what float32 takes for one: there its slope is
    another than that of float64."""
    for seed in itertools.count(first):
        image, coords, basis, size = made = problem(kind, d, seed=seed, **options)
        at = positions(Coordinates(kind, size, coords.double(), basis), align_corners)
        pixels = stn.conventions.normalized_to_pixel(at, tuple(image.shape[2:]), align_corners=align_corners)
        if bool(((pixels - pixels.round()).abs() > 8 * torch.finfo(torch.float32).eps * max(image.shape[2:])).all()):
            return made
    raise AssertionError


def run(backend, kind, image, coords, basis, size, options):
    with use_backend(backend):
        return warp_at(kind, image, coords, size, options, basis)


def all_of(backend, kind, image, coords, basis, size, options, weights=None):
    """Output, and the gradients of image and coordinates."""
    image, coords = image.detach().requires_grad_(), coords.detach().requires_grad_()
    out = run(backend, kind, image, coords, basis, size, options)
    weights = torch.ones_like(out) if weights is None else weights.to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, (image, coords), weights)


def fill_of(padding_mode, channels=3):
    return torch.linspace(-1, 1, channels, dtype=torch.float64) if padding_mode == "constant" else None


def compare(ours, truth, dtype, scale=1.0):
    for name, a, b in zip(("output", "image gradient", "coordinate gradient"), ours, truth, strict=True):
        size = max(1.0, float(b.nan_to_num(0, 0, 0).abs().max()) if b.numel() else 1.0)
        assert a.shape == b.shape, name
        torch.testing.assert_close(
            a.double(),
            b.double(),
            rtol=0,
            atol=scale * TOLERANCE[dtype] * size,
            equal_nan=True,
            msg=lambda m: f"{name}: {m}",
        )


# Over the product


@cases
def test_agrees_with_the_reference_in_float64(kind, mode, padding_mode, align_corners, d):
    image, coords, basis, size = problem(kind, d)
    options = (mode, padding_mode, fill_of(padding_mode), align_corners)
    weights = torch.from_numpy(rng("w").standard_normal((2, 3, *size)))
    truth = all_of("reference", kind, image, coords, basis, size, options, weights)
    for layout in LAYOUTS:
        pixels = arrange(image, layout)
        if layout == "expanded":
            truth = all_of("reference", kind, pixels, coords, basis, size, options, weights)
        compare(all_of("cpu", kind, pixels, coords, basis, size, options, weights), truth, torch.float64)


@cases
def test_agrees_in_float32_and_half_precision(kind, mode, padding_mode, align_corners, d):
    """Larger images, so that the loops for the pixels inside run; 17 channels, so that those over channels do."""
    size = (9, 37) if d == 2 else (3, 4, 21)
    shape = (24, 40) if d == 2 else (6, 12, 22)
    for dtype, layout in itertools.product((torch.float32, torch.bfloat16, torch.float16), LAYOUTS[:2]):
        channels = 17 if layout == "channels_last" else 2
        options = {"batch": 1, "channels": channels, "in_size": shape, "out_size": size, "dtype": dtype, "spread": 0.1}
        image, coords, basis, _ = problem_off_kinks(kind, d, align_corners, **options)
        image = arrange(image, layout)
        options = (mode, padding_mode, fill_of(padding_mode, channels), align_corners)
        weights = torch.from_numpy(rng("w").standard_normal((1, channels, *size))).to(dtype)
        truth = all_of("reference", kind, image.double(), coords.double(), basis, size, options, weights)
        ours = all_of("cpu", kind, image, coords, basis, size, options, weights)
        if mode == "nearest":  # a rounded position may fall on the other side of a tie
            wrong = ~torch.isclose(ours[0].double(), truth[0], rtol=1e-2, atol=1e-2)
            assert int(wrong.sum()) <= 2 * channels
            continue
        assert ours[0].dtype == ours[1].dtype == dtype
        compare(ours, truth, dtype, scale=4 if mode == "bicubic" else 1)


@pytest.mark.parametrize("set_", ["baseline", "x86-64-v3", ""])
def test_every_instruction_set_agrees(set_):
    """The library holds the same code three times; the processor here may lack the last."""
    try:
        cpu._native.choose(set_)
        for kind, mode, padding_mode, (d, channels), layout in itertools.product(
            KINDS, MODES[1:], ("zeros", "reflection"), ((2, 3), (2, 24), (3, 3)), LAYOUTS[:2]
        ):
            image, coords, basis, size = problem(
                kind, d, channels=channels, in_size=(20, 33) if d == 2 else None, dtype=torch.float32
            )
            image = arrange(image, layout)
            options = (mode, padding_mode, None, False)
            truth = all_of("reference", kind, image.double(), coords.double(), basis, size, options)
            compare(all_of("cpu", kind, image, coords, basis, size, options), truth, torch.float32, scale=4)
    finally:
        cpu._native.choose("")


@pytest.mark.parametrize("layout", LAYOUTS[:3])
@pytest.mark.parametrize("kind", KINDS)
def test_many_channels(kind, layout):
    """Vectors of channels: in full ones and not, narrower and wider than images, with positions that are not finite."""
    shapes = ((64, (12, 21)), (16, (5, 3)), (37, (9, 40)), (150, (19, 16)))
    for (channels, in_size), padding_mode in itertools.product(shapes, PADDINGS):
        image, coords, basis, size = problem(
            kind, 2, channels=channels, in_size=in_size, out_size=(11, 17), dtype=torch.float32, spread=0.1
        )
        image = arrange(image, layout)
        weights = torch.from_numpy(rng("w").standard_normal((2, channels, *size))).float()
        if channels == 37 or layout == "channels_last":
            weights = arrange(weights, "channels_last")
        options = ("bilinear", padding_mode, fill_of(padding_mode, channels), channels % 2 == 0)
        kept, bad = weights.double(), torch.zeros(2, 1, *size, dtype=torch.bool)
        if kind == "affine":
            coords[1] *= -0.7  # turned round
        if kind == "grid":
            coords[1, 5, 3] = -60
            bad[0, :, 2:4, :9], bad[1, :, 1, 2] = True, True
            kept = kept.masked_fill(bad, 0)
        truth = list(all_of("reference", kind, image.double(), coords.double(), basis, size, options, kept))
        truth[0] = truth[0].masked_fill(bad, torch.nan)
        if kind == "grid":
            coords[0, 2:4, :9, 0], coords[1, 1, 2] = torch.nan, torch.inf
        compare(all_of("cpu", kind, image, coords, basis, size, options, weights), truth, torch.float32)


@pytest.mark.parametrize("mode", MODES)
def test_integer_images_are_read_and_rounded(mode):
    image = torch.arange(0, 240, dtype=torch.uint8).reshape(1, 2, 10, 12)
    matrix = torch.tensor([[[0.9, 0.2, 0.05], [-0.1, 0.8, 0.0]]])
    with use_backend("cpu"):
        out = stn.warp(image, matrix, (8, 9), mode=mode, padding_mode="border")
    grid = affine_positions(matrix.double(), (8, 9), False)
    wanted = reference_at(image.double(), grid, mode, "border", None, False)
    assert out.dtype == torch.uint8
    assert float((out.double() - wanted.clamp(0, 255)).abs().max()) <= 0.5 + 1e-4


# Adversaries

entries = st.floats(-3, 3) | st.sampled_from([0.0, 1.0, -1.0, 2.0, 1e-30, 1e6, -1e9, 1e30, float("nan"), float("inf")])


@given(
    in_size=st.tuples(st.integers(1, 9), st.integers(1, 70)),
    out_size=st.tuples(st.integers(1, 5), st.integers(1, 70)),
    matrix=st.lists(entries, min_size=6, max_size=6),
    mode=st.sampled_from(MODES[1:]),
    padding_mode=st.sampled_from(PADDINGS),
    align_corners=st.booleans(),
    channels=st.integers(1, 18),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_any_affine_warp(in_size, out_size, matrix, mode, padding_mode, align_corners, channels, layout, dtype, seed):
    """Never out of range (run it under the sanitizers), and the reference's result wherever positions are not huge."""
    image = torch.from_numpy(rng(seed).standard_normal((2, channels, *in_size))).to(dtype)
    image = arrange(image, layout)
    theta = torch.tensor(matrix, dtype=dtype).reshape(1, 2, 3).expand(2, -1, -1)
    options = (mode, padding_mode, fill_of(padding_mode, channels), align_corners)
    ours = all_of("cpu", "affine", image, theta, None, out_size, options)
    if bool(theta.isfinite().all()) and float(theta.abs().max()) < 100:
        truth = run("reference", "affine", image.double(), theta.double(), None, out_size, options)
        scale = 1 + float(theta.abs().max()) * max(in_size)  # positions are rounded relative to their size
        torch.testing.assert_close(ours[0].double(), truth, rtol=0, atol=TOLERANCE[dtype] * scale)
    elif not bool(theta.isfinite().all()):
        rows = ~theta[0].isfinite().all(1)
        assert bool(ours[0].isnan().any()) or not bool(rows.any())
    assert bool(ours[1].isfinite().all())


@given(
    values=st.lists(st.floats(width=32), min_size=24, max_size=24),
    mode=st.sampled_from(MODES),
    padding_mode=st.sampled_from(PADDINGS),
    kind=st.sampled_from(["grid", "projective"]),
    size=st.sampled_from([(1, 1), (1, 6), (5, 1), (3, 4)]),
    align_corners=st.booleans(),
)
def test_any_number_as_a_position(values, mode, padding_mode, kind, size, align_corners):
    image = torch.ones(1, 2, *size)
    values = torch.tensor(values, dtype=torch.float32)
    coords = values.reshape(1, 3, 4, 2) if kind == "grid" else facing(values[:9].reshape(1, 3, 3))
    out, grad_image, _ = all_of(
        "cpu", kind, image, coords, None, (3, 4), (mode, padding_mode, fill_of(padding_mode, 2), align_corners)
    )
    assert bool(grad_image.isfinite().all())
    if kind == "grid":
        bad = ~coords[0].isfinite().all(-1)
        assert bool((out[0].isnan() == bad).all())


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("channels", "size"), [(2, (6, 7)), (2, (40, 50)), (32, (12, 20))])
def test_infinities_and_nan_in_the_image_stay_where_they_are_read(mode, padding_mode, channels, size):
    image = torch.rand(1, channels, *size, dtype=torch.float64)
    image[0, 0, 2, 3], image[0, 1, 4, 0], image[0, -1, 0, 0] = torch.inf, torch.nan, -torch.inf
    matrix = torch.tensor([[[0.93, 0.21, 0.05], [-0.11, 0.87, 0.02]]], dtype=torch.float64)
    options = (mode, padding_mode, fill_of(padding_mode, channels), False)
    wanted = run("reference", "affine", image, matrix, None, (12, 13), options)
    for dtype in (torch.float64, torch.float32):
        for layout in LAYOUTS[:3]:
            pixels = arrange(image.to(dtype), layout)
            ours = run("cpu", "affine", pixels, matrix.to(dtype), None, (12, 13), options)
            assert torch.equal(ours.isfinite(), wanted.isfinite())
            assert torch.equal(ours.isnan(), wanted.isnan())


def test_only_the_output_is_written_and_all_of_it(monkeypatch):
    """Results come in memory full of NaN, between guards that must survive."""
    guards = []

    def poisoned(*shape, dtype=None, **_):
        shape = shape[0] if isinstance(shape[0], (tuple, list, torch.Size)) else shape
        n = int(np.prod(shape))
        memory = torch.full((n + 512,), 7.0, dtype=dtype)
        memory[256 : 256 + n] = torch.nan
        guards.append((memory, n))
        return memory[256 : 256 + n].reshape(shape)

    for kind, mode, (d, channels), layout in itertools.product(
        KINDS, MODES, ((2, 1), (2, 9), (2, 35), (3, 2)), ("contiguous", "channels_last")
    ):
        image, coords, basis, size = problem(
            kind, d, channels=channels, out_size=(5, 29) if d == 2 else None, dtype=torch.float32
        )
        image = arrange(image, layout)
        options = (mode, "zeros", None, False)
        with monkeypatch.context() as patch:
            patch.setattr(cpu.torch, "empty", poisoned)
            results = all_of("cpu", kind, image, coords, basis, size, options)
        assert all(bool(r.isfinite().all()) for r in results)
        assert all(bool((m[:256] == 7).all() and (m[256 + n :] == 7).all()) for m, n in guards)
        guards.clear()


@pytest.mark.parametrize("what", ["batch", "channels"])
@pytest.mark.parametrize("kind", KINDS)
def test_empty(kind, what):
    image, coords, basis, size = problem(kind, 2)
    if what == "batch":
        image, coords = image[:0], coords[:0]
    else:
        image = image[:, :0]
    out, grad_image, grad_coords = all_of("cpu", kind, image, coords, basis, size, ("bilinear", "zeros", None, False))
    assert out.shape == (*image.shape[:2], *size)
    assert grad_image.shape == image.shape
    assert grad_coords.shape == coords.shape
    assert not bool(grad_coords.any())


@pytest.mark.parametrize("out_pixel", ["scalar", "transposed", "channels_last"])
@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_gradients_that_come_in_any_layout(out_pixel, layout):
    image, coords, basis, size = problem("affine", 2, channels=4)
    image = arrange(image, layout)
    weights = torch.from_numpy(rng("g").standard_normal((2, 4, *size)))
    weights = {
        "scalar": torch.ones((), dtype=torch.float64).expand_as(weights),
        "transposed": weights.transpose(2, 3).contiguous().transpose(2, 3),
        "channels_last": weights.contiguous(memory_format=torch.channels_last),
    }[out_pixel]
    options = ("bilinear", "zeros", None, False)
    truth = all_of("reference", "affine", image, coords, basis, size, options, weights)
    compare(all_of("cpu", "affine", image, coords, basis, size, options, weights), truth, torch.float64)


# Properties

small = st.tuples(st.integers(2, 12), st.integers(2, 40))
tame = st.lists(st.floats(-1.5, 1.5), min_size=6, max_size=6)
properties = {
    "size": small, "out": small, "matrix": tame, "mode": st.sampled_from(MODES), "padding_mode": st.sampled_from(PADDINGS[:4]),
    "align_corners": st.booleans(), "seed": st.integers(0, 1000),
}  # fmt: skip


@given(**properties)
def test_adjoint(size, out, matrix, mode, padding_mode, align_corners, seed):
    """<warp(u), v> = <u, warp*(v)>, and the warp is linear."""
    generator = rng(seed)
    u, u2 = (torch.from_numpy(generator.standard_normal((1, 2, *size))) for _ in range(2))
    v = torch.from_numpy(generator.standard_normal((1, 2, *out)))
    theta = torch.tensor(matrix, dtype=torch.float64).reshape(1, 2, 3)
    options = (mode, padding_mode, None, align_corners)
    forward, back, _ = all_of("cpu", "affine", u, theta, None, out, options, v)
    torch.testing.assert_close((forward * v).sum(), (u * back).sum(), rtol=1e-6, atol=1e-9)
    other = run("cpu", "affine", u2, theta, None, out, options)
    together = run("cpu", "affine", 2 * u - 3 * u2, theta, None, out, options)
    torch.testing.assert_close(together, 2 * forward - 3 * other, rtol=0, atol=1e-10)


@given(**properties)
def test_a_constant_is_constant_inside(size, out, matrix, mode, padding_mode, align_corners, seed):
    theta = torch.tensor(matrix, dtype=torch.float64).reshape(1, 2, 3)
    image = torch.full((1, 1, *size), 1.5, dtype=torch.float64)
    warped = run("cpu", "affine", image, theta, None, out, (mode, padding_mode, None, align_corners))
    if padding_mode == "zeros":
        grid = affine_positions(theta, out, align_corners)
        reach = 1 - 4 / torch.tensor([size[1], size[0]])  # the taps of a cubic kernel
        inside = (grid.abs() < reach).all(-1)[:, None]
        warped = warped[inside]
    torch.testing.assert_close(warped, torch.full_like(warped, 1.5), rtol=1e-12, atol=1e-12)


# Threads and processes


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_for_any_number_of_threads(kind, d):
    before = torch.get_num_threads()
    try:
        for mode, padding_mode, channels, layout in (
            ("bilinear", "zeros", 3, "contiguous"), ("bicubic", "border", 1, "contiguous"),
            ("bilinear", "reflection", 17, "channels_last"), ("nearest", "constant", 2, "contiguous"),
            ("bilinear", "border", 40, "contiguous"), ("bilinear", "zeros", 32, "channels_last"),
        ):  # fmt: skip
            image, coords, basis, size = problem(
                kind, d, channels=channels, dtype=torch.float32, in_size=(90, 120) if d == 2 else (16, 20, 24),
                out_size=(100, 110) if d == 2 else (14, 20, 26),
            )  # fmt: skip
            image = arrange(image, layout)
            options = (mode, padding_mode, fill_of(padding_mode, channels), False)
            results = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(all_of("cpu", kind, image, coords, basis, size, options))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


def _child(queue, image, theta):
    torch.set_num_threads(2)
    queue.put(stn.warp(image, theta).flatten()[:100].tolist())  # torch's own parallel loops would hang here


def test_a_forked_process_does_not_hang():
    """After the parent used its threads: the child has none of them."""
    image, theta = torch.rand(8, 3, 64, 64), torch.eye(2, 3).repeat(8, 1, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    wanted = stn.warp(image, theta).flatten()[:100].tolist()
    torch.set_num_threads(before)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue, image, theta), daemon=True)
    child.start()
    try:
        assert queue.get(timeout=30) == wanted
    finally:
        child.kill()
        child.join()


# Autograd and compilers


def test_opcheck():
    for kind, padding_mode in (
        ("affine", "constant"),
        ("projective", "zeros"),
        ("basis", "border"),
        ("grid", "reflection"),
    ):
        image, coords, basis, size = problem(kind, 2, dtype=torch.float32)
        fill = None if padding_mode != "constant" else fill_of("constant").float()
        arguments = (
            image.requires_grad_(), coords.requires_grad_(), basis, fill, kind, list(size), "bilinear",
            padding_mode, False,
        )  # fmt: skip
        torch.library.opcheck(torch.ops.stn.warp_cpu.default, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_in_one_graph(kind):
    image, coords, basis, size = problem(kind, 2, channels=5)
    image = image.contiguous(memory_format=torch.channels_last)
    options = ("bilinear", "border", None, False)

    def ours(image, coords):
        return warp_at(kind, image, coords, size, options, basis)

    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    results = []
    for function in (ours, compiled):
        inputs = image.clone().requires_grad_(), coords.clone().requires_grad_()
        out = function(*inputs)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("kind", ["projective", "basis"])
def test_second_derivatives_vmap_and_forward_mode(kind):
    """Those of affine maps and grids are in test_sampling."""
    image, coords, basis, size = problem(kind, 2, batch=1, channels=1, in_size=(4, 5), out_size=(2, 3), spread=0.1)
    options = ("bicubic", "border", None, False)

    def ours(image, coords):
        return warp_at(kind, image, coords, size, options, basis)

    inputs = image.requires_grad_(), coords.requires_grad_()
    assert torch.autograd.gradcheck(ours, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(ours, inputs)
    tangent = torch.ones_like(coords)
    pushed = torch.func.jvp(lambda c: ours(image, c), (coords,), (tangent,))[1]
    numeric = (ours(image, coords + 1e-6 * tangent) - ours(image, coords - 1e-6 * tangent)) / 2e-6
    torch.testing.assert_close(pushed, numeric, rtol=0, atol=1e-6)
    many = torch.stack([coords, 0.9 * coords])
    mapped = torch.func.vmap(lambda c: ours(image, c))(many)
    torch.testing.assert_close(mapped[1], ours(image, many[1]))


def test_the_gradient_of_the_fill_is_not_lost():
    fill = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    image = torch.rand(1, 2, 4, 5, dtype=torch.float64)
    theta = torch.tensor([[[1.5, 0.2, 0.1], [0.1, 1.6, 0.0]]], dtype=torch.float64)
    grads = []
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            out = stn.warp(image, theta, padding_mode="constant", fill=fill)
        grads.append(torch.autograd.grad(out.square().sum(), fill)[0])
    torch.testing.assert_close(*grads)
    assert bool(grads[0].abs().max() > 0)


# The ways that large, narrow and many images take


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 3, 300, 310), (150, 260)), ((1, 1, 500, 600), (300, 280)), ((2, 5, 260, 140), (140, 150))],
)
def test_large_images(shape, size, mode, padding_mode):
    """The image's gradient in tiles or in parts: every pixel belongs to one of them, and margins to none or the border."""
    generator = rng(shape, mode, padding_mode)
    image = torch.from_numpy(generator.standard_normal(shape))
    for scale in (0.4, 1.0, 2.2):
        matrix = scale * (np.eye(2, 3) + 0.3 * generator.standard_normal((shape[0], 2, 3)))
        theta = torch.from_numpy(matrix)
        options = (mode, padding_mode, fill_of(padding_mode, shape[1]), False)
        weights = torch.from_numpy(generator.standard_normal((shape[0], shape[1], *size)))
        args = "affine", image, theta, None, size, options, weights
        compare(all_of("cpu", *args), all_of("reference", *args), torch.float64)
        narrow = "affine", image.float(), theta.float(), None, size, options, weights
        # The reference at the rounded theta: what is left is the kernel's own rounding, of positions up to 600 pixels.
        exact = "affine", image.float().double(), theta.float().double(), None, size, options, weights
        ours, truth = all_of("cpu", *narrow), all_of("reference", *exact)
        for a, b in zip(ours[:2], truth[:2], strict=True):  # a position next to a kink has another slope in float32
            torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-3 * float(b.abs().max()))


@pytest.mark.parametrize("kind", ["affine", "projective"])
@pytest.mark.parametrize("width", [1, 2, 31, 63, 64, 65, 129])
def test_every_width_of_the_output(kind, width):
    """Narrow outputs have several rows in a chunk of pixels, and share one lattice unless their steps are long."""
    for spread, rows in ((0.2, 40), (30.0, 7)):
        shape = {"in_size": (20, 30), "out_size": (rows, width), "spread": spread}
        image, coords, _, size = problem_off_kinks(kind, 2, False, first=width, **shape)
        options = ("bilinear", "zeros", None, False)
        for dtype in (torch.float64, torch.float32):
            image, coords = image.to(dtype), coords.to(dtype)
            truth = all_of("reference", kind, image.double(), coords.double(), None, size, options)
            ours = all_of("cpu", kind, image, coords, None, size, options)
            compare(ours, truth, dtype, scale=1 if spread < 1 else 100)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7])
def test_a_basis_is_shared_by_teams_of_images(batch):
    for size, members in (((6, 8), 1), ((30, 31), 7), ((70, 90), 4)):  # the last has no frame of its own
        image, _, _, _ = problem("basis", 2, batch=batch, in_size=(24, 30), out_size=size)
        generator = rng(batch, size)
        basis = torch.from_numpy(generator.standard_normal((size[0] * size[1], members)))
        coords = torch.from_numpy(0.4 * generator.standard_normal((batch, members, 2)))
        options = ("bilinear", "zeros", None, False)
        args = "basis", image, coords, basis, size, options
        compare(all_of("cpu", *args), all_of("reference", *args), torch.float64)


def test_a_tensor_type_without_the_c_interface_is_refused():
    assert not cpu._native.connect(int)
    assert cpu._native.connect(torch.Tensor)


@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8 << 30, reason="needs 8 GiB of free memory"
)
def test_more_than_2_to_the_31_elements():
    """Images and outputs whose last pixels lie beyond 32 bits."""
    n = 46342  # squared, 2.1e9
    image = torch.zeros(1, 1, n, n, dtype=torch.uint8)
    patch = torch.arange(64, dtype=torch.uint8).reshape(8, 8)
    image[0, 0, -8:, -8:] = patch
    shift = 1 - 8 / n
    theta = torch.tensor([[[8 / n, 0, shift], [0, 8 / n, shift]]], dtype=torch.float32)
    with use_backend("cpu"):
        out = stn.warp(image, theta, (8, 8), mode="nearest")
        assert torch.equal(out[0, 0], patch)
        del image
        small = patch[None, None] + 1
        out = stn.warp(small, torch.eye(2, 3)[None], (n, n), mode="nearest")
    corners = out[0, 0, [0, -1, -1], [0, 0, -1]]
    assert corners.tolist() == [1, 57, 64]
