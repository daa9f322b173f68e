"""Antialiasing by the Jacobian: nothing changes where nothing shrinks, and what shrinks is averaged."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

import stn
from stn import antialias
from stn.geometry import lattice

SIZES = {1: (21,), 2: (13, 18), 3: (7, 9, 6)}
BACKENDS = [name for name in ("reference", "cpu") if stn.ops.backends()[name] == "available"]
PADDINGS = ("zeros", "border", "reflection", "circular", "constant")
dimensions = pytest.mark.parametrize("d", [1, 2, 3])
corners = pytest.mark.parametrize("align_corners", [False, True])


def scaled(d, *factors, shift=0.0):
    """Zoom by a factor along x, y[, z], (1, d, d+1)."""
    return torch.cat([torch.diag(torch.tensor(factors).double()), torch.full((d, 1), shift).double()], 1)[None]


def rms(x):
    return float(x.square().mean().sqrt())


def zone_plate(n):
    """Every frequency up to that of the pixels, one in each place."""
    at = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    return torch.cos(math.pi * (at[:, None].square() + at.square()) / n)[None, None]


def noise(*size, d=2):
    return torch.randn(1, 1, *(size if len(size) > 1 else size * d), dtype=torch.float64)


def supersampled(image, theta, size, points=16, *, align_corners=False, **options):
    """The mean over each output pixel's own area, of an image of square pixels unless a mode is given."""
    axes = [lattice(n, align_corners=align_corners, dtype=torch.float64) for n in size]
    within = (torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5
    axes = [(a[:, None] + within * 2 / (n - align_corners)).flatten() for a, n in zip(axes, size, strict=True)]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    grid = (at[..., None, :] @ theta[0, :, :-1].T)[..., 0, :] + theta[0, :, -1]
    fine = stn.sample(image, grid[None], align_corners=align_corners, **{"mode": "nearest", **options})
    return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1](fine, points)


# Where nothing shrinks


@dimensions
@corners
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "lanczos3"])
def test_identity_and_zooming_in_change_nothing(d, align_corners, mode):
    if (d, mode) == (3, "lanczos3"):
        pytest.skip("27 points of 216 taps, of which 1D and 2D have shown everything")
    image = torch.randn(1, 2, *SIZES[d], dtype=torch.float64)
    for theta in (scaled(d, *[1.0] * d), scaled(d, *[0.6] * d, shift=0.21), -scaled(d, *(1.0, 0.9, 0.3)[:d])):
        for padding_mode in PADDINGS:
            options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
            plain, smooth = (stn.warp(image, theta, antialias=a, **options) for a in (False, True))
            torch.testing.assert_close(smooth, plain, rtol=0, atol=1e-12)


@dimensions
def test_a_larger_output_of_a_zoom_out_changes_nothing(d):
    """What counts is pixels of the input for a pixel of the output."""
    image = torch.randn(1, 2, *SIZES[d], dtype=torch.float64)
    theta, size = scaled(d, *[2.0] * d, shift=0.1), tuple(2 * n for n in SIZES[d])
    smooth = stn.warp(image, theta, size, antialias=True)
    torch.testing.assert_close(smooth, stn.warp(image, theta, size), rtol=0, atol=1e-12)
    half = tuple(n // 2 for n in SIZES[d])
    identity = scaled(d, *[1.0] * d)
    assert (stn.warp(image, identity, half, antialias=True) - stn.warp(image, identity, half)).abs().max() > 0.1


def test_rotations_change_nothing():
    """On an image that is not square too, where they are no rotations of the frame."""
    image, theta = torch.randn(4, 1, 30, 17, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    plain, smooth = (stn.warp(image, theta, transform=stn.Rotation(), antialias=a) for a in (False, True))
    torch.testing.assert_close(smooth, plain, rtol=0, atol=1e-12)


# What shrinks is averaged


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
@pytest.mark.parametrize("picture", ["zone plate", "noise"])
def test_aliasing_against_the_exact_area_average(picture, factor):
    """Root mean square error to the mean over each pixel's area, beside that of reading single points."""
    image = zone_plate(128) if picture == "zone plate" else noise(128)
    theta, size = scaled(2, 1.0, 1.0, shift=1 / 256), (128 // factor,) * 2  # a quarter of a pixel
    wanted = supersampled(image, theta, size, padding_mode="reflection")
    plain, smooth = (stn.warp(image, theta, size, antialias=a, padding_mode="reflection") for a in (False, True))
    assert rms(smooth - wanted) < {2: 1e-9, 4: 0.12, 8: 0.2, 16: 0.2}[factor] * rms(plain - wanted)
    assert rms(smooth) < 1.05 * rms(wanted)
    torchs = F.interpolate(image, size, mode="bilinear", antialias=True)
    assert rms(smooth - torchs) < 0.4 * rms(plain - torchs)


@pytest.mark.parametrize("factor", [2.0, 3.0, 5.0, 8.0, 11.0])
def test_what_varies_slowly_is_kept(factor):
    """A wave of 5 output pixels, by its height: averaging over one pixel costs it some, over two it would be gone."""
    n = round(10 * factor) * 6
    x = torch.arange(n, dtype=torch.float64) + 0.5
    wave = torch.cos(2 * math.pi * x / (5 * factor))[None, None, None].expand(1, 1, round(8 * factor), n)
    out = stn.warp(wave, scaled(2, 1.0, 1.0), (8, 60), antialias=True, padding_mode="border")[0, 0, 4, 10:50]
    assert 0.5 < math.sqrt(2) * rms(out) < 0.97
    assert abs(float(out.mean())) < 0.02


@dimensions
def test_means_are_kept(d):
    """A bright pixel in the middle of darkness has the same share of the smaller image wherever it is."""
    size, n = (32,) * d, 8
    sums = []
    for at in (12, 13, 14, 15, 16):
        image = torch.zeros(1, 1, *size, dtype=torch.float64)
        image[(0, 0, *[at] * d)] = 1.0
        sums.append(float(stn.warp(image, scaled(d, *[1.0] * d), (n,) * d, antialias=True).sum()) * 4**d)
    assert sums == pytest.approx([1.0] * 5, abs=0.12 * d)
    assert sum(sums[:4]) / 4 == pytest.approx(1.0, abs=0.03 * d)


@dimensions
@corners
def test_constants_stay_constant_under_every_padding(d, align_corners):
    image = torch.full((1, 2, *SIZES[d]), 3.7, dtype=torch.float64)
    theta = scaled(d, *(5.0, 3.0, 9.0)[:d], shift=0.3)
    for padding_mode in ("border", "reflection", "circular", "constant"):
        options = {"padding_mode": padding_mode, "align_corners": align_corners}
        options |= {"fill": 3.7} if padding_mode == "constant" else {}
        out = stn.warp(image, theta, antialias=True, **options)
        torch.testing.assert_close(out, torch.full_like(out, 3.7), rtol=0, atol=1e-12)
    # and zeros are zeros: an image in the middle of them keeps its share of the area
    out = stn.warp(image, scaled(d, *[4.0] * d), (16,) * d, antialias=True, align_corners=align_corners)
    covered = [n / (16 * (n - 1) * 4 / 15) if align_corners else 0.25 for n in SIZES[d]]
    assert float(out.mean()) == pytest.approx(3.7 * math.prod(covered), rel=0.05)


def test_fill_is_one_for_each_channel():
    image = torch.full((1, 2, 16, 16), 1.0) * torch.tensor([2.0, -3.0]).reshape(1, 2, 1, 1)
    out = stn.warp(image, scaled(2, 9.0, 6.0).float(), antialias=True, padding_mode="constant", fill=[2.0, -3.0])
    torch.testing.assert_close(out, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("n", [48, 49, 45])
@corners
def test_padding_outside_repeats_the_image(padding_mode, n, align_corners):
    """Eight periods across: a smaller copy of an odd image covers a pixel too many, which must not add up."""
    rough = F.interpolate(noise(5), (n, n), mode="bicubic")
    fill = 0.4 if padding_mode == "constant" else 0.0
    options = {"padding_mode": padding_mode, "fill": fill, "align_corners": align_corners}
    theta = scaled(2, 6.0, 6.0, shift=0.03)
    wanted = supersampled(rough, theta, (n, n), 8, **options)
    error = rms(stn.warp(rough, theta, antialias=True, **options) - wanted)
    assert error < 0.35 * rms(wanted - wanted.mean())


# Along each axis by its own measure


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_detail_across_the_zoom_is_kept(factor, axis):
    """Shrunk along one axis, an image keeps stripes of 4 pixels along the other, of which an even blur leaves half or
    nothing."""
    n = 64
    stripes = torch.cos(math.pi / 2 * torch.arange(n, dtype=torch.float64))
    image = (stripes if axis == 3 else stripes[:, None]).expand(1, 1, n, n)
    size, small = ((n // factor, n) if axis == 3 else (n, n // factor)), (n // factor,) * 2
    options = {"antialias": True, "padding_mode": "circular"}
    identity = scaled(2, 1.0, 1.0)
    assert rms(stn.warp(image, identity, size, **options)) > 0.99 * rms(image)
    assert rms(stn.warp(image, identity, small, **options)) < (0.71 if factor == 2 else 0.1) * rms(image)


def test_detail_across_a_strong_zoom_is_kept_better_than_by_an_even_blur():
    """By 16: there the reading passes to smaller copies, which are even; it costs half of stripes of 6 pixels."""
    n = 96
    image = torch.cos(math.pi / 3 * torch.arange(n, dtype=torch.float64))[:, None].expand(1, 1, n, n)
    options = {"antialias": True, "padding_mode": "circular"}
    kept = rms(stn.warp(image, scaled(2, 1.0, 1.0), (n, n // 16), **options))
    even = rms(stn.warp(image, scaled(2, 1.0, 1.0), (n // 16, n // 16), **options))
    assert 0.35 * rms(image) < kept < 0.6 * rms(image)
    assert even < 0.02 * rms(image)


def test_the_long_way_of_a_rotated_zoom_is_averaged():
    """Stripes of 3.2 pixels along and across the direction that is halved, at 30 degrees."""
    turn, half = stn.Rotation().matrix(torch.tensor([[math.pi / 6]]).double()), scaled(2, 2.0, 1.0)
    theta = torch.cat([turn[:, :, :2] @ half[:, :, :2], half[:, :, 2:]], 2)
    axes = torch.meshgrid(*[torch.arange(96, dtype=torch.float64)] * 2, indexing="ij")
    waves = {}
    for name, angle in (("long", math.pi / 6), ("short", math.pi / 6 + math.pi / 2)):
        phase = math.cos(angle) * axes[1] + math.sin(angle) * axes[0]
        image = torch.cos(2 * math.pi * phase / 3.2)[None, None]
        options = {"padding_mode": "border"}
        plain, smooth = (stn.warp(image, theta, antialias=a, **options)[..., 38:58, 38:58] for a in (False, True))
        waves[name] = rms(smooth) / rms(plain)
    assert waves["short"] > 0.95
    assert waves["long"] < 0.6


@dimensions
def test_one_axis_alone_is_a_problem_in_1d(d):
    """An image that varies along x alone, shrunk along x alone: the same in any dimension, whatever lies across."""
    row = torch.randn(1, 1, 24, dtype=torch.float64)
    image = row.reshape(1, 1, *[1] * (d - 1), 24).expand(1, 1, *(6, 5)[: d - 1], 24)
    theta = scaled(d, 1.7, *[1.0] * (d - 1), shift=0.02)
    out = stn.warp(image, theta, antialias=True, padding_mode="border")
    line = out.reshape(-1, 24)
    torch.testing.assert_close(line, line[:1].expand_as(line), rtol=0, atol=1e-12)
    wanted = supersampled(row, scaled(1, 1.7, shift=0.02), (24,), padding_mode="border")
    plain = stn.warp(row, scaled(1, 1.7, shift=0.02), padding_mode="border")
    assert rms(line[0] - wanted[0, 0]) < 0.35 * rms(plain - wanted)


@pytest.mark.parametrize(
    ("size", "small"),
    [((48, 36), (24, 12)), ((48, 36), (16, 18)), ((24, 64), (24, 8)), ((24,), (6,)), ((8, 9, 6), (4, 3, 3))],
)
def test_whole_pixels_have_their_mean(size, small):
    """Where an output pixel covers n x m whole pixels, exactly."""
    d, factors = len(size), [n // m for n, m in zip(size, small, strict=True)]
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    wanted = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[d - 1](image, factors)
    for backend in BACKENDS:
        with stn.ops.use_backend(backend):
            out = stn.warp(image, scaled(d, *[1.0] * d), small, antialias=True)
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)


def test_the_points_along_a_side():
    """Their number, their weights, and a spread of which neither its value nor its slope jumps where one more comes in."""
    counts = torch.linspace(1, 9, 801, dtype=torch.float64)
    weight, place = antialias._comb(counts[:, None], 9)
    place = place[..., 0] * counts
    torch.testing.assert_close(weight.sum(0), torch.ones_like(counts))
    torch.testing.assert_close((weight * place).sum(0), torch.zeros_like(counts))
    assert torch.equal((weight > 0).sum(0), counts.ceil().long())
    spread = (weight * place.square()).sum(0)
    assert (spread - (counts.square() - 1) / 12).abs().max() < 0.07
    torch.testing.assert_close(spread[::100], (counts[::100].square() - 1) / 12)
    slope = spread.diff()
    assert slope.diff().abs().max() < 0.001
    at = place[weight[:, 700] > 0, 700].sort().values
    assert at.diff().tolist() == pytest.approx([1.0] * 7)


def test_no_more_points_than_are_planned():
    """In a program that cannot count them."""
    for d, most in antialias._MOST.items():
        lengths = torch.cat([torch.rand(20000, d, dtype=torch.float64), torch.rand(20000, d).double().pow(4)]) * 200
        coarse = antialias._coarseness(lengths.clamp_min(1.0))
        unit = (coarse / 2).clamp_min(1.0)
        assert 0.7 * most < (lengths / unit[:, None]).clamp_min(1.0).ceil().prod(-1).max() <= most


# Every family


FAMILIES = {
    "affine": stn.Affine(), "similarity": stn.Similarity(), "projective": stn.Projective(), "corners": stn.Corners(),
    "tps": stn.ThinPlateSpline((3, 3)), "bspline": stn.BSpline((3, 3)), "displacement": stn.DisplacementField((3, 4)),
    "velocity": stn.VelocityField((5, 5)), "cpab": stn.CPAB((2, 2), zero_boundary=False), "polar": stn.Polar(),
    "composed": stn.ThinPlateSpline((3, 3)) @ stn.Similarity(), "composed, projective": stn.Projective() @ stn.Rigid(),
    "1D": stn.Crop(1), "1D field": stn.DisplacementField((5,)), "3D": stn.Similarity(3), "3D tps": stn.ThinPlateSpline((2, 2, 2)),
    "3D projective": stn.Projective(3),
}  # fmt: skip
every_family = pytest.mark.parametrize("family", FAMILIES)


def near_identity(transform, batch=2, spread=0.1):
    return transform.identity().double() + spread * torch.randn(batch, transform.num_params, dtype=torch.float64)


@every_family
@corners
def test_families_that_shrink_are_averaged_by_area(family, align_corners):
    """Towards an output of a third of the size, against 64 readings of each pixel at positions of the family's own."""
    transform = FAMILIES[family]
    d = transform.ndim
    size, out = {1: (60,), 2: (48, 57), 3: (15, 18, 12)}[d], {1: (20,), 2: (16, 19), 3: (5, 6, 4)}[d]
    image, theta = torch.randn(2, 1, *size, dtype=torch.float64), near_identity(transform, spread=0.05)
    options = {"align_corners": align_corners, "padding_mode": "border"}
    points = 8 if d < 3 else 4
    axes = [lattice(n, align_corners=align_corners, dtype=torch.float64) for n in out]
    within = (torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5
    axes = [(a[:, None] + within * 2 / (n - align_corners)).flatten() for a, n in zip(axes, out, strict=True)]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    grid = transform.map_points(theta, at.reshape(1, -1, d), stn.Frame(size, align_corners))
    fine = stn.sample(image, grid.reshape(2, *at.shape), **options)
    wanted = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[d - 1](fine, points)
    plain, smooth = (stn.warp(image, theta, out, transform=transform, antialias=a, **options) for a in (False, True))
    assert rms(smooth - wanted) < 0.4 * rms(plain - wanted)


def test_matrices_are_taken_as_they_are():
    image, theta = noise(20, 24), near_identity(stn.Affine(), 1)
    wanted = stn.warp(image, theta, (7, 8), transform=stn.Affine(), antialias=True)
    matrix = theta.reshape(1, 2, 3)
    torch.testing.assert_close(stn.warp(image, matrix, (7, 8), antialias=True), wanted, rtol=0, atol=1e-14)
    square = torch.cat([matrix, torch.tensor([[[0.0, 0.0, 1.0]]]).double()], 1)
    torch.testing.assert_close(stn.warp(image, -2 * square, (7, 8), antialias=True), wanted, rtol=0, atol=1e-12)


def test_a_horizon_in_the_frame():
    """Towards it the warp shrinks without limit, and beyond it there is padding: all finite, with every gradient."""
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 1.3]], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        image = torch.rand(1, 1, 31, 20, dtype=dtype, requires_grad=True)
        moved = theta.to(dtype).requires_grad_()
        out = stn.warp(image, moved, transform=stn.Projective(), antialias=True, padding_mode="constant", fill=0.5)
        assert out.isfinite().all()
        assert (out.detach()[0, 0, 0] == 0.5).all()
        out.square().sum().backward()
        assert image.grad.isfinite().all()
        assert moved.grad.isfinite().all()


# Derivatives


@pytest.mark.parametrize("family", ["affine", "projective", "tps", "displacement", "composed", "1D", "3D"])
def test_gradcheck(family):
    """Of warps with several copies in play; the positions are random, off every kink."""
    transform = FAMILIES[family]
    d = transform.ndim
    image = torch.randn(1, 1, *{1: (12,), 2: (6, 7), 3: (3, 4, 3)}[d], dtype=torch.float64, requires_grad=True)
    theta = near_identity(transform, 1).requires_grad_()
    size = (2, 1, 1)[:d]
    with torch.no_grad():
        steps = [stn.warp(image, theta, size, transform=transform, antialias=a) for a in (False, True)]
    assert (steps[0] - steps[1]).abs().max() > 0.01
    assert gradcheck(
        lambda i, t: stn.warp(i, t, size, transform=transform, antialias=True, padding_mode="border"),
        (image, theta),
        fast_mode=d > 1 and family != "affine",
    )


def test_the_gradient_sees_beyond_neighbouring_pixels():
    """What antialiasing is for in training: a dot five pixels from the one that is read attracts it."""
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 16, 21] = 1.0
    for smooth, seen in ((False, False), (True, True)):
        theta = torch.tensor([[0.0, 0.0]], requires_grad=True)
        out = stn.warp(image, theta, (2, 2), transform=stn.Translation(), antialias=smooth)
        (gradient,) = torch.autograd.grad(out[0, 0, 1, 1], theta)
        assert bool(gradient.abs().max() > 1e-4) == seen


def test_forward_mode_and_vmap():
    image, theta = torch.randn(3, 1, 12, 14, dtype=torch.float64), near_identity(stn.Affine(), 3).reshape(3, 2, 3)

    def run(i, t):
        return stn.warp(i[None], t[None], (3, 4), antialias=True, padding_mode="border")[0]

    together = stn.warp(image, theta, (3, 4), antialias=True, padding_mode="border")
    torch.testing.assert_close(torch.func.vmap(run)(image, theta), together, rtol=0, atol=1e-13)
    forward, reverse = (f(lambda t: run(image[0], t))(theta[0]) for f in (torch.func.jacfwd, torch.func.jacrev))
    torch.testing.assert_close(forward, reverse, rtol=0, atol=1e-11)
    assert forward.abs().max() > 0.1


# Compilers, and how many copies are made


@pytest.mark.parametrize(
    "family", ["1D", *(pytest.param(f, marks=pytest.mark.slow) for f in ("affine", "composed, projective"))]
)
def test_compile_fullgraph(family):
    transform = FAMILIES[family]
    size, out = ((4, 3), (1, 2)) if transform.ndim == 2 else ((5,), (2,))
    image, theta = torch.randn(2, 1, *size, dtype=torch.float64), near_identity(transform)

    def run(i, t):
        return stn.warp(i, t, out, transform=transform, antialias=True, padding_mode="border")

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="eager")):
        inputs = [t.clone().requires_grad_() for t in (image, theta)]
        value = function(*inputs)
        value.square().sum().backward()
        results.append([value.detach(), *(t.grad for t in inputs)])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager, rtol=0, atol=1e-11)


def test_points_and_copies_are_counted_where_they_can_be():
    """In a graph nothing is known: there all of them are made."""
    level = torch.tensor([[0.2, 1.4]])
    assert antialias._most(level, 5.0) == pytest.approx(1.4)
    assert antialias._most(torch.zeros(0, 3), 5.0) == 0
    assert antialias._most(level.to("meta"), 5.0) == 5
    compiled = torch.compile(lambda x: x + antialias._most(x, 5.0), fullgraph=True, backend="eager")
    assert torch.equal(compiled(level), level + 5)
    counted = []
    torch.func.vmap(lambda x: (counted.append(antialias._most(x, 5.0)), x)[1])(level)
    assert counted == [5]


def test_more_points_and_copies_than_are_needed_change_nothing(monkeypatch):
    image, theta = noise(24, 20), scaled(2, 7.0, 6.0, shift=0.1)
    with stn.ops.use_backend("reference"):
        out = stn.warp(image, theta, antialias=True)
        monkeypatch.setattr(antialias, "_most", lambda values, bound: bound)
        torch.testing.assert_close(stn.warp(image, theta, antialias=True), out, rtol=0, atol=1e-14)
        monkeypatch.setattr(antialias, "_most", lambda values, bound: 1.0)
        assert (stn.warp(image, theta, antialias=True) - out).abs().max() > 1e-3


# Types and shapes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_are_averaged_in_float32(dtype):
    image, theta = torch.randn(2, 2, 33, 20).to(dtype), near_identity(stn.Affine()).float().reshape(2, 2, 3)
    out = stn.warp(image, theta, (8, 5), antialias=True)
    assert out.dtype == dtype
    assert torch.equal(out, stn.warp(image.float(), theta, (8, 5), antialias=True).to(dtype))
    assert stn.warp(image.float(), theta.double(), (8, 5), antialias=True).dtype == torch.float32


@corners
@pytest.mark.parametrize("size", [(1,), (1, 1), (1, 9), (9, 1), (5, 1, 7), (1, 1, 1), (3, 2)])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_axes_of_one_pixel_and_tiny_outputs(size, padding_mode, align_corners):
    d = len(size)
    image = torch.rand(1, 2, *size, dtype=torch.float64)
    options = {"padding_mode": padding_mode, "align_corners": align_corners, "antialias": True}
    same = stn.warp(image, scaled(d, *[1.0] * d), **options)
    torch.testing.assert_close(same, image, rtol=0, atol=1e-12)
    small = stn.warp(image, scaled(d, *[1.0] * d), (1,) * d, **options)
    assert small.shape == (1, 2, *[1] * d)
    assert small.isfinite().all()
    if not align_corners and padding_mode in ("border", "reflection", "circular"):
        middle = supersampled(image, scaled(d, *[1.0] * d), (1,) * d, 32, padding_mode=padding_mode)
        torch.testing.assert_close(small, middle, rtol=0, atol=0.25)


def test_batches():
    image, theta = torch.randn(3, 2, 20, 22, dtype=torch.float64), near_identity(stn.Affine(), 3).reshape(3, 2, 3)

    def run(i, t):
        return stn.warp(i, t, (5, 6), antialias=True)

    torch.testing.assert_close(run(image[:1], theta), run(image[:1].expand(3, -1, -1, -1), theta), rtol=0, atol=0)
    torch.testing.assert_close(run(image, theta[:1]), run(image, theta[:1].expand(3, -1, -1)), rtol=0, atol=0)
    one_by_one = torch.cat([run(i[None], t[None]) for i, t in zip(image, theta, strict=True)])
    torch.testing.assert_close(run(image, theta), one_by_one, rtol=0, atol=1e-13)
    assert run(image[:0], theta[:1]).shape == (0, 2, 5, 6)
    assert run(image[:1], theta[:0]).shape == (0, 2, 5, 6)
    last = image.to(memory_format=torch.channels_last)
    assert run(last, theta).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@dimensions
def test_theta_that_is_not_finite_gives_nan(value, d):
    image, theta = torch.rand(2, 1, *SIZES[d]), scaled(d, *[2.5] * d).float().repeat(2, 1, 1)
    clean = stn.warp(image, theta, antialias=True)
    theta[0, 0, 0] = value
    out = stn.warp(image, theta, antialias=True)
    assert out[0].isnan().all()
    torch.testing.assert_close(out[1], clean[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [1, 0, None, "yes", torch.tensor(True)])
def test_bad_input(value):
    with pytest.raises(ValueError, match="antialias: expected True or False"):
        stn.warp(torch.rand(1, 1, 4, 4), torch.eye(2, 3)[None], antialias=value)
    with pytest.raises(ValueError, match="antialias: expected True or False"):
        stn.SpatialTransformer(torch.nn.Identity(), antialias=value)


def test_the_layer_passes_it_on():
    localizer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(400, 6))
    transformer = stn.SpatialTransformer(localizer, size=(4, 4), antialias=True)
    image = torch.rand(2, 1, 20, 20)
    theta = transformer.theta(image)
    wanted = stn.warp(image, theta, (4, 4), transform=stn.Affine(), antialias=True, padding_mode="border")
    assert torch.equal(transformer(image), wanted)
    assert torch.equal(transformer.warp(image).output, wanted)
