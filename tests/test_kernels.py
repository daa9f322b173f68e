"""Interpolation kernels: against sums over all pixels in scalar NumPy, by what they reproduce, and every derivative."""

from __future__ import annotations

import functools
import itertools
import math
import pickle
import zlib

import numpy as np
import oracle
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import stn
from stn import kernels
from stn.geometry import lattice
from stn.kernels import Kernel, bspline, cubic, lanczos
from stn.ops import use_backend, which_backend

SIZES = {1: (6,), 2: (4, 5), 3: (3, 4, 2)}
OUT = {1: (9,), 2: (3, 4), 3: (3, 2, 3)}
FILL = torch.tensor([0.7, -1.3], dtype=torch.float64)
MARGIN = 40  # pixels around an image in the oracle: the slowest spline's influence is 0.43^40 = 2e-15 there


def skewed(t):
    return torch.exp(-(t - 0.3).square()) * (1 + 0.5 * t)


# What each mode is, as scalar Python: the function of x - m, and what is done with it.


@functools.cache
def bspline_by_recursion(t, order):
    """De Boor's recursion, from the box."""
    if order == 0:
        return float(-0.5 <= t < 0.5)
    left, right = (bspline_by_recursion(t + half, order - 1) for half in (0.5, -0.5))
    return ((t + (order + 1) / 2) * left + ((order + 1) / 2 - t) * right) / order


def windowed_sinc(t, radius):
    if t == 0 or abs(t) >= radius:
        return float(t == 0)
    x = math.pi * t
    return radius * math.sin(x) * math.sin(x / radius) / (x * x)


def truncated_skewed(t):
    return math.exp(-((t - 0.3) ** 2)) * (1 + 0.5 * t) if -1.5 <= t < 1.5 else 0.0


KERNELS = {  # the mode, its scalar function, whether weights are normalized, whether there is a prefilter
    "integer": ("integer", lambda t: float(-0.5 <= t < 0.5), False, False),
    "lanczos3": ("lanczos3", lambda t: windowed_sinc(t, 3), True, False),
    "lanczos(2)": (lanczos(2), lambda t: windowed_sinc(t, 2), True, False),
    "cubic(-0.5)": (cubic(-0.5), lambda t: oracle.keys(t, -0.5), False, False),
    "cubic(-1)": (cubic(-1), lambda t: oracle.keys(t, -1.0), False, False),
    "skewed": (Kernel(skewed, radius=1.5), truncated_skewed, False, False),
    "skewed, normalized": (Kernel(skewed, 1.5, normalize=True), truncated_skewed, True, False),
    "of sum 1.5": (Kernel(lambda t: 1.5 * (-2 * t.abs()).exp(), 2.5, prefilter=True),
                   lambda t: 1.5 * math.exp(-2 * abs(t)) * (-2.5 <= t < 2.5), False, True),
} | {
    f"bspline{n}": (f"bspline{n}", lambda t, n=n: bspline_by_recursion(t, n), False, True) for n in (2, 3, 4, 5)
} | {"bspline(3)": (bspline(3), lambda t: bspline_by_recursion(t, 3), False, True)}  # fmt: skip
INTERPOLATING = [n for n in KERNELS if "skewed" not in n]
CONSTANT = [n for n in KERNELS if n not in ("skewed", "of sum 1.5")]  # whose weights sum to 1
SMOOTH = {name: KERNELS[name][0] for name in ("lanczos3", "cubic(-0.5)", "bspline2", "bspline3", "bspline5", "skewed")}

# Every mode and padding; in 3D one kernel of each kind, and both conventions only where they pad differently.
IN_3D = ("integer", "lanczos3", "cubic(-0.5)", "skewed, normalized", "of sum 1.5", "bspline2", "bspline3", "bspline5")
CASES = [
    case
    for case in itertools.product(KERNELS, oracle.PADDING_MODES, (False, True), (1, 2, 3))
    if case[3] < 3 or (case[0] in IN_3D and (not case[2] or case[1] == "reflection"))
]

every_kernel = pytest.mark.parametrize("name", KERNELS)
smooth_kernels = pytest.mark.parametrize("name", SMOOTH)
paddings = pytest.mark.parametrize("padding_mode", oracle.PADDING_MODES)
corners = pytest.mark.parametrize("align_corners", [False, True])
dimensions = pytest.mark.parametrize("d", [1, 2, 3])


def rng(*key):
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def axis_matrix(positions, n, function, normalize, stands_for):
    """What each position reads of n pixels, and of the background, in the last column."""
    out = np.zeros((len(positions), n + 1))
    for row, x in zip(out, positions, strict=True):
        for m in range(math.floor(x) - 9, math.floor(x) + 11):
            k = stands_for(m)
            row[-1 if k is None else k] += function(x - m)
        if normalize:
            row /= row.sum()
    return out


def along(matrix, array, axis):
    return np.moveaxis(np.tensordot(matrix, array, ([1], [axis])), 0, axis)


@functools.cache
def inverse_system(name, n, mode, align_corners):
    """By the interpolation system, densely."""
    matrix = axis_matrix(range(n), n, KERNELS[name][1], False, lambda m: oracle.pad(m, n, mode, align_corners))
    return np.linalg.inv(matrix[:, :n])


def coefficients(image, name, padding_mode, align_corners, fill):
    """Where the padding goes on for ever it is cut off MARGIN pixels away."""
    d, margin = image.ndim - 1, 0
    if padding_mode not in ("reflection", "circular"):
        margin = MARGIN
        width = [(0, 0)] + [(margin, margin)] * d
        if padding_mode == "border":
            image = np.pad(image, width, mode="edge")
        else:
            image = np.stack([np.pad(c, width[1:], constant_values=f) for c, f in zip(image, fill, strict=True)])
    for axis in range(1, d + 1):
        mode = "border" if margin else padding_mode
        image = along(inverse_system(name, image.shape[axis], mode, align_corners), image, axis)
    return image, margin


def expected(image, grid, name, padding_mode, align_corners, fill):
    """One image (C, *in) at positions (N, d)."""
    _, function, normalize, prefilter = KERNELS[name]
    size, margin, mode = image.shape[1:], 0, padding_mode
    fill = np.zeros(len(image)) + np.asarray(fill)
    if prefilter:
        image, margin = coefficients(image, name, padding_mode, align_corners, fill)
        mode = "border" if margin else padding_mode
    background = np.stack([np.pad(c, (0, 1), constant_values=f) for c, f in zip(image, fill, strict=True)])
    matrices = []
    for axis, n in enumerate(size):
        wide = n + 2 * margin
        x = [oracle.unnormalize(g, n, align_corners) + margin for g in grid[:, len(size) - 1 - axis]]
        matrices.append(axis_matrix(x, wide, function, normalize, lambda m: oracle.pad(m, wide, mode, align_corners)))
    letters = "xyz"[: len(size)]
    return np.einsum(f"c{letters}," + ",".join("n" + k for k in letters) + "->cn", background, *matrices, optimize=True)


def positions_around(generator, size, out, align_corners, reach):
    """Positions up to `reach` pixels outside, a tenth of a pixel from whole and half pixels."""
    grid = np.empty((*out, len(size)))
    for axis, n in enumerate(size):
        part = generator.uniform(0.1, 0.4, out) + 0.5 * generator.integers(0, 2, out)
        position = generator.integers(-reach, n + reach, out) + part
        grid[..., len(size) - 1 - axis] = np.vectorize(lambda p: oracle.normalize(p, n, align_corners))(position)
    return torch.from_numpy(grid)


def problem(name, padding_mode, align_corners, d, reach=None):
    reach = {1: 4, 2: 2, 3: 1}[d] if reach is None else reach
    generator = rng(name, padding_mode, align_corners, d)
    image = torch.from_numpy(generator.standard_normal((2, 2, *SIZES[d])))
    grid = torch.stack([positions_around(generator, SIZES[d], OUT[d], align_corners, reach) for _ in range(2)])
    options = {"mode": KERNELS[name][0], "padding_mode": padding_mode, "align_corners": align_corners}
    return image, grid, options | ({"fill": FILL} if padding_mode == "constant" else {})


def theta_near_identity(d, batch=2):
    return torch.eye(d, d + 1, dtype=torch.float64) + 0.2 * torch.randn(batch, d, d + 1, dtype=torch.float64)


# Values


@pytest.mark.parametrize(("name", "padding_mode", "align_corners", "d"), CASES)
def test_agreement_with_the_oracle(name, padding_mode, align_corners, d):
    image, grid, options = problem(name, padding_mode, align_corners, d)
    wanted = [
        expected(i.numpy(), g.reshape(-1, d).numpy(), name, padding_mode, align_corners, options.get("fill", [0, 0]))
        for i, g in zip(image, grid, strict=True)
    ]
    wanted = torch.from_numpy(np.stack(wanted)).reshape(2, 2, *OUT[d])
    assert wanted.std() > 0.05
    # filters are cut off at 1e-13 of their response, which is up to 10 along each axis
    torch.testing.assert_close(stn.sample(image, grid, **options), wanted, rtol=0, atol=1e-11)
    with use_backend("reference"):
        torch.testing.assert_close(stn.sample(image, grid, **options), wanted, rtol=0, atol=1e-11)
    if padding_mode == "constant":
        return
    single = stn.sample(image.float(), grid.float(), **options)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "padding_mode", "align_corners", "d"), [c for c in CASES if c[0] in INTERPOLATING])
def test_pixels_are_reproduced_at_pixel_centres(name, padding_mode, align_corners, d):
    """Those of the padding too."""
    image, _, options = problem(name, padding_mode, align_corners, d)
    size = SIZES[d]
    places = list(itertools.product(*[range(-3, n + 3) for n in size]))
    grid = [[oracle.normalize(p, n, align_corners) for p, n in zip(place, size, strict=True)] for place in places]
    grid = torch.tensor(grid, dtype=torch.float64).flip(-1).reshape(1, -1, *[1] * (d - 1), d)
    out = stn.sample(image[:1], grid, **options)[0].flatten(1)
    wanted = torch.zeros_like(out)
    for column, place in enumerate(places):
        index = [oracle.pad(p, n, padding_mode, align_corners) for p, n in zip(place, size, strict=True)]
        fill = options.get("fill", torch.zeros(2))
        wanted[:, column] = fill if None in index else image[(0, slice(None), *index)]
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CONSTANT)
@pytest.mark.parametrize(("d", "align_corners"), [(1, False), (1, True), (2, False), (2, True), (3, False)])
def test_constants_stay_constant(name, align_corners, d):
    image, theta = torch.full((2, 2, *SIZES[d]), 3.7, dtype=torch.float64), 1.5 * theta_near_identity(d)
    for padding_mode, fill in (("border", 0.0), ("reflection", 0.0), ("circular", 0.0), ("constant", 3.7)):
        options = {"padding_mode": padding_mode, "fill": fill, "align_corners": align_corners}
        out = stn.warp(image, theta, OUT[d], mode=KERNELS[name][0], **options)
        torch.testing.assert_close(out, torch.full_like(out, 3.7), rtol=0, atol=1e-11)


def test_cubic_of_minus_three_quarters_is_bicubic():
    image, theta = torch.randn(2, 3, 6, 7, dtype=torch.float64), theta_near_identity(2)
    for padding_mode in ("zeros", "border", "reflection", "circular"):
        out, wanted = (stn.warp(image, theta, mode=m, padding_mode=padding_mode) for m in (cubic(-0.75), "bicubic"))
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-13)


def polynomial(degree, size, at=None):
    """A polynomial with every power up to `degree` of each axis, about the centre; at pixels, or positions (N, d)."""
    if at is None:
        axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
        at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flip(-1)  # (x, y)
    powers = torch.stack([(0.7 * at) ** k / math.factorial(k + 2) for k in range(degree + 1)]).sum(0)
    return powers.prod(-1)


def read_in_the_middle(mode, degree, size):
    """The largest error of a polynomial image within two pixels of the centre."""
    away = 4 * torch.rand(1, 20, *[1] * (len(size) - 1), len(size), dtype=torch.float64) - 2
    grid = away * 2 / torch.tensor(size[::-1], dtype=torch.float64)
    out = stn.sample(polynomial(degree, size)[None, None], grid, mode=mode)
    return float((out.flatten() - polynomial(degree, size, away.reshape(20, -1))).abs().max())


@pytest.mark.parametrize("size", [(100,), (90, 91)])
@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_splines_reproduce_polynomials_of_their_order(order, size):
    """Far from the borders, whose padding is no polynomial; 45 pixels away its influence is below 1e-16 of it."""
    assert read_in_the_middle(bspline(order), order, size) < 3e-9
    assert read_in_the_middle(bspline(order), order + 1, size) > 5e-8


def test_cubics_reproduce_polynomials():
    assert read_in_the_middle(cubic(-0.5), 2, (9, 10)) < 1e-13
    assert read_in_the_middle(cubic(-0.5), 3, (9, 10)) > 1e-4
    assert read_in_the_middle(cubic(-0.75), 2, (9, 10)) > 1e-3


def test_integer_is_nearest_with_ties_upwards():
    image = torch.arange(8.0).reshape(1, 1, 8)
    grid = ((2 * torch.tensor([0.5, 1.5, 2.5, 3.5]) + 1) / 8 - 1).double().reshape(1, -1, 1)  # without rounding
    assert stn.sample(image.double(), grid, mode="integer").flatten().tolist() == [1, 2, 3, 4]
    assert stn.sample(image.double(), grid, mode="nearest").flatten().tolist() == [0, 2, 2, 4]
    elsewhere = 2.4 * torch.rand(1, 200, 1) - 1.2
    for padding_mode in oracle.PADDING_MODES:
        out, wanted = (stn.sample(image, elsewhere, mode=m, padding_mode=padding_mode) for m in ("integer", "nearest"))
        assert torch.equal(out, wanted)
    wanted = (((elsewhere + 1) * 8 - 1) / 2 + 0.5).floor().clamp(0, 7).flatten()
    assert torch.equal(stn.sample(image, elsewhere, mode="integer", padding_mode="border").flatten(), wanted)


def test_a_kernel_is_a_function_of_position_minus_pixel():
    """One that looks back alone reads the pixel at or before the position."""
    image = torch.arange(6.0).reshape(1, 1, 6).double()
    grid = ((2 * torch.tensor([1.0, 1.2, 1.8, 3.4]) + 1) / 6 - 1).double().reshape(1, -1, 1)
    before = Kernel(lambda t: (t >= -1e-9).to(t), radius=1)
    assert stn.sample(image, grid, mode=before).flatten().tolist() == [1, 1, 1, 3]


def test_normalize_divides_by_the_sum_of_each_axis():
    image, grid = torch.randn(1, 1, 5, 6, dtype=torch.float64), torch.rand(1, 4, 4, 2, dtype=torch.float64) - 0.5
    plain, even = (Kernel(skewed, 1.5, normalize=n) for n in (False, True))
    ones = torch.ones_like(image)
    wanted = stn.sample(image, grid, mode=plain, padding_mode="border") / stn.sample(
        ones, grid, mode=plain, padding_mode="border"
    )
    torch.testing.assert_close(stn.sample(image, grid, mode=even, padding_mode="border"), wanted)
    assert (stn.sample(ones, grid, mode=plain) - 1).abs().min() > 0.1


@paddings
@corners
@pytest.mark.parametrize("name", ["lanczos3", "bspline3", "cubic(-0.5)"])
def test_axes_of_one_pixel(name, padding_mode, align_corners):
    for size in ((1,), (1, 1), (1, 4), (4, 1), (1, 1, 3)):
        image, d = torch.rand(1, 1, *size, dtype=torch.float64), len(size)
        fill = 0.5 if padding_mode == "constant" else 0.0
        options = {"padding_mode": padding_mode, "align_corners": align_corners, "fill": fill}
        out = stn.warp(image, torch.eye(d, d + 1)[None], mode=KERNELS[name][0], **options)
        torch.testing.assert_close(out, image, rtol=0, atol=1e-11)


# Derivatives


@smooth_kernels
@dimensions
def test_gradcheck(name, d):
    """In 3D kernels of few taps alone, and no padding that makes a spline filter far beyond the image."""
    if d == 3 and name in ("bspline5", "lanczos3"):
        pytest.skip("hundreds of taps, of which 1D and 2D have shown everything")
    for padding_mode, align_corners in (("constant", False), ("reflection", True))[d == 3 :]:
        image, grid, options = problem(name, padding_mode, align_corners, d, reach=1)
        options |= {"fill": 0.7} if padding_mode == "constant" else {}
        inputs = [image[:1, :1].clone().requires_grad_(), grid.flatten(1, -2)[:1, :2].clone().requires_grad_()]
        shape = (1, 2, *[1] * (d - 1), d)
        assert gradcheck(lambda i, g: stn.sample(i, g.reshape(shape), **options), inputs)
        theta = theta_near_identity(d, 1).requires_grad_()
        assert gradcheck(lambda t: stn.warp(image[:1, :1], t, (2, 1, 1)[:d], **options), (theta,))


@smooth_kernels
def test_gradgradcheck(name):
    image, grid, options = problem(name, "border", False, 2, reach=0)
    inputs = (image[:1, :1, :2, :3].clone().requires_grad_(), grid[:1, :1, :2].clone().requires_grad_())
    assert gradgradcheck(lambda i, g: stn.sample(i, g, **options), inputs)


@pytest.mark.parametrize("name", ["bspline2", "bspline3", "bspline5"])
def test_second_derivatives_at_pixel_centres(name):
    """Where the warp starts: at the identity. These splines curve evenly there."""
    image = torch.randn(1, 1, 9, dtype=torch.float64)

    def curvature(x):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            stn.sample(image, x.reshape(1, -1, 1), mode=name, align_corners=True).sum(), x, create_graph=True
        )
        return torch.autograd.grad(slope.sum(), x)[0]

    at = torch.arange(-3, 4, dtype=torch.float64) / 4  # pixels 1 to 7
    torch.testing.assert_close(curvature(at), curvature(at + 1e-9), rtol=1e-5, atol=1e-5)
    assert curvature(at).abs().min() > 1e-3


@pytest.mark.parametrize(("function", "wanted"), [
    (cubic(-0.5).function, -5.0), (lanczos(3).function, -(math.pi**2) / 3 * (1 + 1 / 9)),
    (bspline(2).function, -2.0), (bspline(3).function, -2.0),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_at_and_near_their_centre(function, wanted, dtype):
    """The second derivative there in closed form, and the first beside it; a quotient of small numbers would lose both."""
    t = torch.tensor([0.0, 1e-7, -1e-6, 1e-5, 1e-4, -1e-3], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(function(t).sum(), t, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), t)
    torch.testing.assert_close(curvature, torch.full_like(t, wanted), rtol=0, atol=2e-2)
    torch.testing.assert_close(
        slope.detach(), wanted * t.detach(), rtol=1e-2, atol=1e-6 if dtype == torch.float32 else 0
    )


def test_lanczos_is_the_quotient_it_stands_for():
    t = torch.linspace(-3, 3, 1001, dtype=torch.float64)
    wanted = torch.tensor([windowed_sinc(float(x), 3) for x in t], dtype=torch.float64)
    torch.testing.assert_close(lanczos(3).function(t), wanted, rtol=0, atol=1e-15)


@every_kernel
def test_forward_mode_is_the_transpose_of_reverse_mode(name):
    image, _, options = problem(name, "constant", False, 2)
    theta = theta_near_identity(2)
    tangents = torch.randn_like(image), torch.randn_like(theta)
    out, forward = torch.func.jvp(lambda i, t: stn.warp(i, t, (3, 4), **options), (image, theta), tangents)
    cotangent = torch.randn_like(out)
    _, pull = torch.func.vjp(lambda i, t: stn.warp(i, t, (3, 4), **options), image, theta)
    back = sum((g * v).sum() for g, v in zip(pull(cotangent), tangents, strict=True))
    assert abs(back) > 1e-3
    torch.testing.assert_close((forward * cotangent).sum(), back, rtol=1e-10, atol=1e-10)


@every_kernel
def test_vmap(name):
    image, _, options = problem(name, "constant", True, 2)
    theta = theta_near_identity(2)
    mapped = torch.func.vmap(lambda i, t: stn.warp(i[None], t[None], (3, 4), **options)[0])(image, theta)
    torch.testing.assert_close(mapped, stn.warp(image, theta, (3, 4), **options), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["integer", "cubic(-0.5)", "skewed, normalized", "bspline3"])
def test_compile_fullgraph(name):
    image, _, options = problem(name, "border", False, 2)
    theta = theta_near_identity(2)

    def run(i, t):
        return stn.warp(i, t, (3, 4), **options)

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="eager")):
        inputs = [t.clone().requires_grad_() for t in (image, theta)]
        out = function(*inputs)
        out.square().sum().backward()
        results.append([out.detach(), *(t.grad for t in inputs)])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager, rtol=0, atol=1e-12)


def test_export():
    class Module(torch.nn.Module):
        def forward(self, image, theta):
            return stn.warp(image, theta, (3, 4), mode="bspline3", padding_mode="border")

    inputs = torch.rand(2, 1, 5, 6), theta_near_identity(2).float()
    program = torch.export.export(Module(), inputs)
    torch.testing.assert_close(program.module()(*inputs), Module()(*inputs), rtol=0, atol=1e-6)


# Types, batches, places where it bites


@every_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_are_filtered_and_read_in_float32(name, dtype):
    image, theta = torch.randn(2, 2, 20, 17).to(dtype), theta_near_identity(2).float()
    options = {"mode": KERNELS[name][0], "padding_mode": "border"}
    wanted = stn.warp(image.float(), theta, **options)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out, single = stn.warp(image, theta, **options), stn.warp(image.float(), theta, **options)
        assert torch.equal(out, wanted.to(dtype))
        assert torch.equal(single, wanted)


@every_kernel
@paddings
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_positions_that_are_not_finite_give_nan(name, padding_mode, value):
    image, grid, options = problem(name, padding_mode, False, 2)
    clean = stn.sample(image, grid, **options)
    grid[0, 1, 2, 0] = value
    image.requires_grad_()
    out = stn.sample(image, grid, **options)
    hit = out.detach().isnan()
    assert hit[0, :, 1, 2].all()
    assert int(hit.sum()) == 2
    torch.testing.assert_close(out.detach()[~hit], clean[~hit], rtol=0, atol=0)
    out.nansum().backward()
    assert image.grad[1].isfinite().all()


@every_kernel
def test_positions_far_outside_are_padding(name):
    image = torch.rand(1, 1, 5, 6)
    for x in (1e9, -1e30):
        out = stn.sample(image, torch.full((1, 1, 1, 2), x), mode=KERNELS[name][0])
        assert out.item() == pytest.approx(0.0, abs=1e-6)


def test_a_large_fill_costs_the_middle_of_a_spline_no_digits():
    image, theta = torch.rand(1, 1, 80, 80), torch.tensor([[[0.05, 0.01, 0.0], [-0.01, 0.05, 0.0]]])
    near = stn.warp(image, theta, mode="bspline3", padding_mode="constant", fill=1e8)
    torch.testing.assert_close(near, stn.warp(image, theta, mode="bspline3", padding_mode="border"), rtol=0, atol=1e-5)


@every_kernel
@dimensions
def test_empty_batches(name, d):
    image = torch.zeros(0, 2, *SIZES[d], requires_grad=True)
    out = stn.warp(image, torch.zeros(1, d, d + 1), OUT[d], mode=KERNELS[name][0], padding_mode="border")
    assert out.shape == (0, 2, *OUT[d])
    out.sum().backward()
    assert image.grad.shape == image.shape


def test_channels_last_is_kept():
    image, theta = torch.randn(2, 3, 6, 7).to(memory_format=torch.channels_last), theta_near_identity(2).float()
    out = stn.warp(image, theta, mode="bspline3")
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, stn.warp(image.contiguous(), theta, mode="bspline3"), rtol=0, atol=1e-6)


def test_training_after_inference_mode():
    """Nothing that was computed in there is kept for later."""
    with torch.inference_mode():
        kernel = bspline(5)
        stn.warp(torch.rand(1, 1, 5, 6, dtype=torch.float64), torch.eye(2, 3)[None], mode=kernel)
    image = torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    stn.warp(image, torch.eye(2, 3)[None], mode=kernel).sum().backward()
    torch.testing.assert_close(image.grad, torch.ones_like(image), rtol=0, atol=1e-11)


def test_a_default_device_does_not_matter():
    with torch.device("meta"):
        kernel = bspline(3)
    assert kernel.response == kernels.NAMED["bspline3"].response
    assert len(kernel.response) > 10


@pytest.mark.parametrize("name", ["lanczos3", "bspline3", "cubic(-0.5)", "lanczos(2)", "bspline(3)"])
def test_a_transformer_with_a_kernel_is_pickled(name):
    localizer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 6))
    transformer = stn.SpatialTransformer(localizer, mode=KERNELS[name][0])
    image = torch.rand(2, 1, 6, 6)
    assert torch.equal(pickle.loads(pickle.dumps(transformer))(image), transformer(image))


def test_functions_run_on_the_reference_alone():
    for d in (1, 2, 3):
        assert which_backend(d, Kernel(skewed, 1.5)) == "reference"
        assert which_backend(d, Kernel(cubic().function, 2)) == "reference"
    with use_backend("aten"), pytest.raises(ValueError, match="backend: "):
        stn.warp(torch.rand(1, 1, 4, 4), torch.eye(2, 3)[None], mode="lanczos3")


@pytest.mark.parametrize(("build", "message"), [
    (lambda: Kernel(3, 1), "function: .* got 3"),
    (lambda: Kernel(torch.abs, 0.7), "radius: .* got 0.7"),
    (lambda: Kernel(torch.abs, 0), "radius: .* got 0"),
    (lambda: Kernel(torch.abs, 65), "radius: .* got 65"),
    (lambda: Kernel(torch.abs, "2"), "radius: .* got '2'"),
    (lambda: Kernel(torch.abs, math.nan), "radius: .* got nan"),
    (lambda: Kernel(torch.abs, 1, normalize=1), "normalize: expected True or False, got 1"),
    (lambda: Kernel(torch.abs, 1, prefilter="yes"), "prefilter: expected True or False, got 'yes'"),
    (lambda: Kernel(lambda t: (1 - t.abs() / 2) / 2, 2, prefilter=True), r"prefilter: .*0.25, 0.5, 0.25"),
    (lambda: Kernel(lambda t: (t.abs() < 0.5) + 0.499 * (t.abs() > 0.5), 1.5, prefilter=True), "prefilter: "),
    (lambda: Kernel(skewed, 1.5, prefilter=True), "prefilter: .*symmetric"),
    (lambda: Kernel(lambda t: t / 0, 1.5, prefilter=True), "prefilter: "),
    (lambda: cubic("sharp"), "a: .* got 'sharp'"), (lambda: cubic(math.inf), "a: .* got inf"),
    (lambda: cubic(True), "a: .* got True"),
    (lambda: lanczos(0), "radius: .* got 0"), (lambda: lanczos(9), "radius: .* got 9"),
    (lambda: lanczos(2.0), "radius: .* got 2.0"), (lambda: lanczos(True), "radius: .* got True"),
    (lambda: bspline(1), "order: .* got 1"), (lambda: bspline(6), "order: .* got 6"),
    (lambda: bspline(3.0), "order: .* got 3.0"), (lambda: bspline(None), "order: .* got None"),
])  # fmt: skip
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("mode", ["bspline", "lanczos", cubic, 3, None])
def test_bad_modes(mode):
    image, theta = torch.rand(1, 1, 4, 4), torch.eye(2, 3)[None]
    with pytest.raises(ValueError, match=r"mode: expected one of .*bspline3"):
        stn.warp(image, theta, mode=mode)
    with pytest.raises(ValueError, match="mode: "):
        stn.SpatialTransformer(torch.nn.Identity(), mode=mode)


def test_a_lattice_of_the_same_size_gives_the_image_back():
    """At single precision too, for every kernel that interpolates."""
    axes = [lattice(n) for n in (28, 31)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)[None]
    image = torch.rand(1, 1, 28, 31)
    for name in INTERPOLATING:
        out = stn.sample(image, grid, mode=KERNELS[name][0], padding_mode="reflection")
        torch.testing.assert_close(out, image, rtol=0, atol=5e-5)
