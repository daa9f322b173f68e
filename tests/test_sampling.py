"""The op: the reference against scalar loops, the kernels against the reference, and both on everything that bites."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from records import reference_at
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import stn
from stn.geometry import affine_positions
from stn.ops import use_backend, which_backend

# The kernels that run on the CPU of this machine; Triton has tests of its own.
BACKENDS = [name for name, state in stn.ops.backends().items() if state == "available" and name != "triton"]
CASES = list(itertools.product(oracle.MODES, oracle.PADDING_MODES, (False, True), (2, 3)))
SIZES = {2: (4, 5), 3: (3, 4, 2)}
OUT = {2: (3, 4), 3: (3, 2, 4)}
FILL = torch.tensor([0.7, -1.3], dtype=torch.float64)

cases = pytest.mark.parametrize(("mode", "padding_mode", "align_corners", "d"), CASES)


def runs(backend, mode, padding_mode, d):
    try:
        with use_backend(backend):
            return which_backend(d, mode, padding_mode) == backend
    except ValueError:
        return False


BACKEND_CASES = [(backend, *case) for backend in BACKENDS for case in CASES if runs(backend, *case[:2], case[3])]
backend_cases = pytest.mark.parametrize(("backend", "mode", "padding_mode", "align_corners", "d"), BACKEND_CASES)
kernel_cases = pytest.mark.parametrize(
    ("kernel", "mode", "padding_mode", "align_corners", "d"), [c for c in BACKEND_CASES if c[0] != "reference"]
)


def rng(*key):
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def generic_grid(generator, in_size, out_size, align_corners, batch=2, reach=4):
    """Positions up to `reach` pixels outside, at least a tenth of a pixel from every kink of every kernel."""
    d = len(in_size)
    whole = [generator.integers(-reach, n + reach, (batch, *out_size)) for n in in_size]
    part = generator.uniform(0.1, 0.4, (batch, *out_size, d)) + 0.5 * generator.integers(0, 2, (batch, *out_size, d))
    grid = np.empty((batch, *out_size, d))
    for axis, n in enumerate(in_size):
        position = whole[axis] + part[..., axis]
        grid[..., d - 1 - axis] = np.vectorize(lambda p: oracle.normalize(p, n, align_corners))(position)
    return grid


def problem(mode, padding_mode, align_corners, d, reach=None):
    """image (2, 2, *in), grid (2, *out, d) and the options, in float64."""
    generator = rng(mode, padding_mode, align_corners, d)
    image = torch.from_numpy(generator.standard_normal((2, 2, *SIZES[d])))
    reach = {2: 4, 3: 2}[d] if reach is None else reach
    grid = torch.from_numpy(generic_grid(generator, SIZES[d], OUT[d], align_corners, reach=reach))
    fill = FILL if padding_mode == "constant" else 0.0
    opts = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners, "fill": fill}
    return image, grid, opts


def little_problem(mode, padding_mode, align_corners, d):
    """One channel and a few positions at the image, for derivatives by finite differences."""
    image, grid, opts = problem(mode, padding_mode, align_corners, d, reach=1)
    image, grid = image[:1, :1].clone().requires_grad_(), grid[:1, :2, :2].clone().requires_grad_()
    opts["fill"] = 0.7 if padding_mode == "constant" else 0.0
    return image, grid, opts


def theta_near_identity(d, batch=2, dtype=torch.float64, spread=0.3):
    generator = rng("theta", d, batch)
    return torch.from_numpy(np.eye(d, d + 1) + spread * generator.standard_normal((batch, d, d + 1))).to(dtype)


def smooth_image(size, channels=2, dtype=torch.float64):
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=dtype) for n in size], indexing="ij")
    return torch.stack([sum(torch.sin((2 + c) * a + k) for k, a in enumerate(axes)) for c in range(channels)])[None]


def expected(image, grid, opts):
    fill = np.asarray(opts["fill"])
    return torch.from_numpy(
        oracle.sample(
            image.double().numpy(),
            grid.double().numpy(),
            opts["mode"],
            opts["padding_mode"],
            opts["align_corners"],
            fill,
        )
    )


# The reference against the oracle


@cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_reference_agrees_with_the_oracle(mode, padding_mode, align_corners, d, dtype):
    image, grid, opts = problem(mode, padding_mode, align_corners, d)
    image = image.to(dtype)
    grid = grid.to(torch.float64 if dtype == torch.float64 else torch.float32)
    with use_backend("reference"):
        out = stn.sample(image, grid, **opts)
    assert out.dtype == dtype
    atol = oracle.TOLERANCE[str(dtype).removeprefix("torch.")]
    torch.testing.assert_close(out.double(), expected(image, grid, opts), rtol=0, atol=atol)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("d", [2, 3])
def test_affine_grid_agrees_with_the_oracle(align_corners, d):
    theta = theta_near_identity(d)
    size = (3, 1, 4)[-d:]
    grid = stn.transforms.affine_grid(theta, size, align_corners=align_corners)
    torch.testing.assert_close(
        grid, torch.from_numpy(oracle.affine_grid(theta.numpy(), size, align_corners)), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("d", [2, 3])
def test_warp_agrees_with_the_oracle(backend, align_corners, d):
    """The whole road from theta to pixels, to another size."""
    image, _, opts = problem("bilinear", "zeros", align_corners, d)
    theta = theta_near_identity(d)
    with use_backend(backend):
        out = stn.warp(image, theta, OUT[d], **opts)
    wanted = oracle.warp(image.numpy(), theta.numpy(), OUT[d], align_corners=align_corners)
    torch.testing.assert_close(out, torch.from_numpy(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("padding_mode", oracle.PADDING_MODES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_padding_far_outside(n, padding_mode, align_corners):
    """Every pixel position from 3 images to the left to 3 to the right, read exactly."""
    image = torch.arange(1.0, n + 1, dtype=torch.float64).reshape(1, 1, 1, n)
    positions = np.arange(-3 * n, 4 * n + 1)
    if align_corners and n == 1:
        positions = np.zeros(3, int)  # an axis of one pixel has a single position
    x = [oracle.normalize(p + 1e-9, n, align_corners) for p in positions]
    grid = torch.tensor([[[(value, 0.0) for value in x]]], dtype=torch.float64)
    fill = 9.0 if padding_mode == "constant" else 0.0
    for backend in BACKENDS:
        if not runs(backend, "nearest", padding_mode, 2):
            continue
        with use_backend(backend):
            out = stn.sample(
                image, grid, mode="nearest", padding_mode=padding_mode, fill=fill, align_corners=align_corners
            )
        taps = [oracle.pad(int(p), n, padding_mode, align_corners) for p in positions]
        wanted = [fill if k is None else k + 1.0 for k in taps]
        assert out.flatten().tolist() == wanted, backend


# The kernels against the reference: forward and every gradient


@kernel_cases
def test_kernel_agrees_with_the_reference(kernel, mode, padding_mode, align_corners, d):
    image, grid, opts = problem(mode, padding_mode, align_corners, d)
    theta = theta_near_identity(d)
    weights = torch.from_numpy(rng("weights", d).standard_normal((2, 2, *OUT[d])))
    results = {}
    for backend in (kernel, "reference"):
        fill = FILL.clone().requires_grad_() if padding_mode == "constant" else 0.0
        inputs = [t.clone().requires_grad_() for t in (image, grid, theta)]
        with use_backend(backend):
            sampled = stn.sample(inputs[0], inputs[1], **{**opts, "fill": fill})
            warped = stn.warp(inputs[0], inputs[2], OUT[d], **{**opts, "fill": fill})
        (sampled * weights).sum().backward(retain_graph=True)
        by_sample = [inputs[0].grad.clone(), inputs[1].grad.clone()]
        (warped * weights).sum().backward()
        fill_grad = [fill.grad] if padding_mode == "constant" else []
        results[backend] = [sampled, warped, *by_sample, *[t.grad for t in inputs], *fill_grad]
    for ours, truth in zip(results[kernel], results["reference"], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-11)
    if mode != "nearest":
        assert all(bool(t.abs().max() > 0) for t in results["reference"])  # something was compared


@kernel_cases
def test_kernel_agrees_with_the_oracle_in_float32(kernel, mode, padding_mode, align_corners, d):
    image, grid, opts = problem(mode, padding_mode, align_corners, d)
    image, grid = image.float(), grid.float()
    with use_backend(kernel):
        out = stn.sample(image, grid, **opts)
    torch.testing.assert_close(out.double(), expected(image, grid, opts), rtol=0, atol=oracle.TOLERANCE["float32"])


# Derivatives


@backend_cases
def test_gradcheck(backend, mode, padding_mode, align_corners, d):
    image, grid, opts = little_problem(mode, padding_mode, align_corners, d)
    with use_backend(backend):
        assert gradcheck(lambda i, g: stn.sample(i, g, **opts), (image, grid), check_batched_grad=False)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_gradcheck_through_theta(mode, align_corners, d):
    image = problem(mode, "border", align_corners, d)[0][:1].requires_grad_()
    theta = theta_near_identity(d, batch=1).requires_grad_()
    options_ = {"mode": mode, "padding_mode": "border", "align_corners": align_corners}
    assert gradcheck(lambda i, t: stn.warp(i, t, OUT[d], **options_), (image, theta))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection", "constant"])
def test_gradgradcheck(backend, mode, padding_mode):
    image, grid, opts = little_problem(mode, padding_mode, False, 2)
    with use_backend(backend):
        assert gradgradcheck(lambda i, g: stn.sample(i, g, **opts), (image, grid))


def test_gradgradcheck_in_3d():
    image, grid, opts = little_problem("bilinear", "border", True, 3)
    assert gradgradcheck(lambda i, g: stn.sample(i, g, **opts), (image, grid))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "constant"])
def test_forward_mode_is_the_transpose_of_reverse_mode(backend, padding_mode, d):
    image, _, opts = problem("bilinear", padding_mode, False, d)
    theta = theta_near_identity(d)
    generator = rng("tangents", d)
    tangents = [torch.from_numpy(generator.standard_normal(t.shape)) for t in (image, theta)]
    cotangent = torch.from_numpy(generator.standard_normal((2, 2, *OUT[d])))
    with use_backend(backend):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, v) for t, v in zip((image, theta), tangents, strict=True)]
            forward = forward_ad.unpack_dual(stn.warp(*duals, OUT[d], **opts)).tangent
        inputs = [t.clone().requires_grad_() for t in (image, theta)]
        grads = torch.autograd.grad(stn.warp(*inputs, OUT[d], **opts), inputs, cotangent)
    there = (forward * cotangent).sum()
    back = sum((g * v).sum() for g, v in zip(grads, tangents, strict=True))
    assert abs(there) > 1e-3
    torch.testing.assert_close(there, back, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_and_jacrev(backend):
    image, theta = smooth_image((5, 6))[0], theta_near_identity(2, batch=3)

    def one(t):
        return stn.warp(image[None], t[None], (2, 3), padding_mode="border")[0]

    with use_backend(backend):
        together = stn.warp(image[None], theta, (2, 3), padding_mode="border")
        torch.testing.assert_close(torch.func.vmap(one)(theta), together, rtol=0, atol=1e-14)
        images = torch.stack([image, image + 1, 2 * image])
        mapped = torch.func.vmap(lambda i, t: stn.warp(i[None], t[None])[0])(images, theta)
        torch.testing.assert_close(mapped, stn.warp(images, theta), rtol=0, atol=1e-14)
        jacobian = torch.func.jacrev(one)(theta[0])
        torch.testing.assert_close(jacobian, torch.func.jacfwd(one)(theta[0]), rtol=0, atol=1e-10)
        numeric = torch.autograd.functional.jacobian(one, theta[0])
    assert jacobian.shape == (2, 2, 3, 2, 3)
    torch.testing.assert_close(jacobian, numeric, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", oracle.MODES)
def test_the_gradients_nobody_asked_for_are_none(mode):
    image, grid, opts = problem(mode, "zeros", False, 2)
    image.requires_grad_()
    stn.sample(image, grid, **opts).sum().backward()
    assert image.grad is not None
    assert grid.grad is None


# Compilers


@pytest.mark.parametrize(("mode", "padding_mode", "d"), [
    ("bilinear", "zeros", 2), ("bicubic", "constant", 2), ("bilinear", "circular", 2), ("nearest", "border", 3),
])  # fmt: skip
def test_compile_fullgraph(mode, padding_mode, d):
    image, _, opts = problem(mode, padding_mode, False, d)
    theta = theta_near_identity(d)

    def run(i, t):
        return stn.warp(i, t, OUT[d], **opts)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (run, compiled):
        inputs = [t.clone().requires_grad_() for t in (image, theta)]
        out = function(*inputs)
        out.square().sum().backward()
        results.append([out, inputs[0].grad, inputs[1].grad])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_compile_with_inductor():
    image, _, opts = problem("bilinear", "border", False, 2)
    theta = theta_near_identity(2)
    compiled = torch.compile(lambda i, t: stn.warp(i, t, OUT[2], **opts), fullgraph=True)
    torch.testing.assert_close(compiled(image, theta), stn.warp(image, theta, OUT[2], **opts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "constant"])
def test_export_with_a_dynamic_batch(padding_mode):
    class Module(torch.nn.Module):
        def forward(self, image, theta):
            fill = 0.5 if padding_mode == "constant" else 0.0
            return stn.warp(image, theta, (3, 4), padding_mode=padding_mode, fill=fill)

    image, theta = smooth_image((5, 6), dtype=torch.float32), theta_near_identity(2, 3, torch.float32)
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Module(), (image.expand(3, -1, -1, -1).clone(), theta), dynamic_shapes=({0: batch}, {0: batch})
    )
    seven, many = (
        image.repeat(7, 1, 1, 1) * torch.arange(7.0).reshape(-1, 1, 1, 1),
        theta_near_identity(2, 7, torch.float32),
    )
    torch.testing.assert_close(program.module()(seven, many), Module()(seven, many), rtol=0, atol=1e-6)


# Types and memory


def test_autocast_changes_nothing():
    image, theta = smooth_image((9, 12), dtype=torch.float32), theta_near_identity(2, dtype=torch.float32)
    similarity = torch.randn(2, 4)
    plain = stn.warp(image, theta), stn.warp(image, similarity, transform=stn.Similarity())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = stn.warp(image, theta), stn.warp(image, similarity, transform=stn.Similarity())
    for a, b in zip(plain, cast, strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [181, 182, 300])
@pytest.mark.parametrize("mode", oracle.MODES)
def test_half_precision_images_of_any_size_are_exact(n, dtype, mode):
    """torch's own kernels for half precision on the CPU go wrong from 182x182 on."""
    image = torch.ones(1, 1, n, n, dtype=dtype)
    theta = torch.tensor([[[0.9, 0.2, 0.3], [-0.2, 1.1, 0.1]]])
    out = stn.warp(image, theta, padding_mode="border", mode=mode)
    assert out.dtype == dtype
    assert torch.equal(out, image)
    grid = stn.transforms.affine_grid(theta, (n, n))
    assert torch.equal(stn.sample(image, grid, padding_mode="border", mode=mode), image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_keep_float32_coordinates(dtype):
    """The result is the float32 result rounded, to one unit: kernels may order their sums by the image's type.
    Half-precision coordinates would be off by percents."""
    image = smooth_image((200, 190), dtype=torch.float32).to(dtype)
    theta = theta_near_identity(2, 1, torch.float32)
    for align_corners in (False, True):
        out = stn.warp(image, theta, align_corners=align_corners)
        wanted = stn.warp(image.float(), theta, align_corners=align_corners).to(dtype)
        torch.testing.assert_close(out, wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_half_precision_gradients_flow():
    image = smooth_image((6, 7), dtype=torch.float32).bfloat16().requires_grad_()
    theta = theta_near_identity(2, 1, torch.float32).requires_grad_()
    stn.warp(image, theta).square().sum().backward()
    assert image.grad.dtype == torch.bfloat16
    assert theta.grad.dtype == torch.float32
    assert bool(image.grad.isfinite().all() and (theta.grad != 0).any())


def test_a_float64_image_or_theta_is_served_in_the_images_type():
    image, theta = smooth_image((5, 6)), theta_near_identity(2, 1)
    assert stn.warp(image, theta.float()).dtype == torch.float64
    assert stn.warp(image.float(), theta).dtype == torch.float32
    torch.testing.assert_close(stn.warp(image.float(), theta).double(), stn.warp(image, theta), rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [2, 3])
def test_channels_last_is_kept(backend, d):
    layout = torch.channels_last if d == 2 else torch.channels_last_3d
    image = smooth_image(SIZES[d], channels=3).repeat(2, *[1] * (d + 1))
    theta = theta_near_identity(d)
    with use_backend(backend):
        wanted = stn.warp(image, theta)
        out = stn.warp(image.contiguous(memory_format=layout), theta)
    assert wanted.is_contiguous()
    assert out.is_contiguous(memory_format=layout)
    assert not out.is_contiguous()
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [2, 3])
def test_non_contiguous_and_poisoned_memory(backend, d):
    """A view cut out of NaN, transposed, and strided by two: only the pixels of the view are read or written."""
    image, grid, opts = problem("bilinear", "zeros", False, d)
    theta = theta_near_identity(d)
    weights = torch.from_numpy(rng("w").standard_normal((2, 2, *OUT[d])))

    def poisoned(tensor):
        large = torch.full([2 * n + 3 for n in reversed(tensor.shape)], torch.nan, dtype=tensor.dtype)
        view = large.permute(*reversed(range(tensor.ndim)))[tuple(slice(1, 2 * n, 2) for n in tensor.shape)]
        view.copy_(tensor)
        assert not view.is_contiguous()
        return large, view

    with use_backend(backend):
        results = []
        for prepare in (lambda t: (t.clone(), t.clone()), poisoned):
            views = [prepare(t)[1].detach().requires_grad_() for t in (image, grid, theta)]
            sampled, warped = stn.sample(views[0], views[1], **opts), stn.warp(views[0], views[2], OUT[d], **opts)
            cotangent = prepare(weights)[1]
            ((sampled + warped) * cotangent).sum().backward()
            results.append([sampled, warped, *[v.grad for v in views]])
        for plain, view in zip(*results, strict=True):
            torch.testing.assert_close(view, plain, rtol=0, atol=1e-12)
        large, view = poisoned(image)
        before = large.clone()
        stn.sample(view, grid, **opts)
        assert torch.equal(large.nan_to_num(7), before.nan_to_num(7))  # the arguments are left alone


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [2, 3])
def test_expanded_gradients(backend, d):
    """`.sum()` hands down a gradient of stride 0."""
    image, grid, opts = problem("bilinear", "zeros", False, d)
    with use_backend(backend):
        first = grid.clone().requires_grad_()
        stn.sample(image, first, **opts).sum().backward()
        second = grid.clone().requires_grad_()
        (stn.sample(image, second, **opts) * torch.ones(2, 2, *OUT[d], dtype=torch.float64)).sum().backward()
    torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding_mode", oracle.PADDING_MODES[:3])
@pytest.mark.parametrize("d", [2, 3])
def test_empty_batches(backend, padding_mode, d):
    for images, thetas in ((0, 0), (0, 1), (1, 0)):
        image = torch.zeros(images, 2, *SIZES[d], requires_grad=True)
        theta = torch.zeros(thetas, d, d + 1, requires_grad=True)
        with use_backend(backend):
            out = stn.warp(image, theta, OUT[d], padding_mode=padding_mode)
            sampled = stn.sample(image, stn.transforms.affine_grid(theta, OUT[d]), padding_mode=padding_mode)
        assert out.shape == sampled.shape == (0, 2, *OUT[d])
        (out.sum() + sampled.sum()).backward()
        assert image.grad.shape == image.shape
        assert theta.grad.shape == theta.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_one_is_broadcast_both_ways(backend):
    images, thetas = torch.randn(3, 2, 5, 6, dtype=torch.float64), theta_near_identity(2, 3)
    with use_backend(backend):
        one_theta = stn.warp(images, thetas[:1], (4, 4))
        torch.testing.assert_close(one_theta, stn.warp(images, thetas[:1].repeat(3, 1, 1), (4, 4)))
        one_image = stn.warp(images[:1], thetas, (4, 4))
        torch.testing.assert_close(one_image, stn.warp(images[:1].repeat(3, 1, 1, 1), thetas, (4, 4)))
        grid = stn.transforms.affine_grid(thetas, (4, 4))
        torch.testing.assert_close(stn.sample(images[:1], grid), one_image)
        torch.testing.assert_close(stn.sample(images, grid[:1]), one_theta)
        flat = thetas.reshape(3, 6)
        torch.testing.assert_close(stn.warp(images[:1], flat, (4, 4), transform=stn.Affine()), one_image)
        both = stn.Affine() @ stn.Affine()
        identity = both.identity().double()[None]
        torch.testing.assert_close(stn.warp(images, identity, transform=both), images, rtol=0, atol=1e-12)
        image, theta = images[:1].clone().requires_grad_(), thetas.clone().requires_grad_()
        stn.warp(image, theta).sum().backward()
    assert image.grad.shape == (1, 2, 5, 6)


# Places where it bites


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", oracle.MODES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (28, 28), (31, 17)])
def test_identity_and_flips_are_exact(backend, mode, padding_mode, align_corners, size):
    """Integer coordinates, where floor is a cliff: one rounding of the position is all that is lost."""
    image = torch.rand(1, 2, *size)
    # A position in the last of n pixels is off by up to n * 2^-23; so is a bilinear value, a bicubic one three times that.
    atol = max(size) * 2**-23 * (3 if mode == "bicubic" else 1)
    opts = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    with use_backend(backend):
        for x, y in itertools.product((1.0, -1.0), repeat=2):
            theta = torch.tensor([[[x, 0.0, 0.0], [0.0, y, 0.0]]])
            out = stn.warp(image, theta, **opts)
            wanted = image.flip([axis for axis, sign in ((3, x), (2, y)) if sign < 0])
            torch.testing.assert_close(out, wanted, rtol=0, atol=atol)
            out = stn.warp(image.double(), theta.double(), **opts)
            torch.testing.assert_close(out, wanted.double(), rtol=0, atol=atol * 2**-28)


def test_identity_and_flips_in_3d():
    image = torch.rand(1, 2, 3, 4, 5)
    for align_corners in (False, True):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            theta = torch.cat([torch.diag(torch.tensor(signs)), torch.zeros(3, 1)], dim=1)[None]
            wanted = image.flip([4 - axis for axis, sign in enumerate(signs) if sign < 0])
            out = stn.warp(image, theta, align_corners=align_corners)
            torch.testing.assert_close(out, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", oracle.MODES)
@pytest.mark.parametrize("padding_mode", oracle.PADDING_MODES[:3])
def test_the_axes_are_x_y_z(backend, mode, padding_mode):
    """One bright pixel, moved by whole pixels along each axis alone."""
    image = torch.zeros(1, 1, 4, 5)
    image[0, 0, 1, 3] = 1.0
    opts = {"mode": mode, "padding_mode": padding_mode}
    with use_backend(backend):
        right = stn.warp(image, torch.tensor([[[1.0, 0, 2 / 5], [0, 1.0, 0]]]), **opts)  # read one pixel to the right
        down = stn.warp(image, torch.tensor([[[1.0, 0, 0], [0, 1.0, 2 / 4]]]), **opts)
    assert divmod(int(right.argmax()), 5) == (1, 2)
    assert divmod(int(down.argmax()), 5) == (0, 3)


def test_the_third_axis_is_z():
    image = torch.zeros(1, 1, 3, 4, 5)
    image[0, 0, 1, 2, 3] = 1.0
    for axis, wanted in enumerate(((1, 2, 2), (1, 1, 3), (0, 2, 3))):
        theta = torch.eye(3, 4)[None].clone()
        theta[0, axis, 3] = 2 / (5, 4, 3)[axis]
        assert float(stn.warp(image, theta)[0, 0][wanted]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("padding_mode", oracle.PADDING_MODES[:3])
@pytest.mark.parametrize("align_corners", [False, True])
def test_huge_theta(backend, mode, padding_mode, align_corners):
    image = torch.rand(1, 1, 6, 7) + 1
    for value in (1e9, 1e30, -1e30):
        theta = torch.full((1, 2, 3), value, requires_grad=True)
        with use_backend(backend):
            out = stn.warp(image, theta, mode=mode, padding_mode=padding_mode, align_corners=align_corners)
        out.sum().backward()
        out = out.detach()
        assert bool(out.isfinite().all())
        if padding_mode == "zeros":
            centre = out.abs() < 1e-5
            assert int(centre.sum()) >= 6 * 7 - 6  # everything but the line that happens to hit the image
        elif mode != "bicubic":
            assert float(out.min()) >= 0.999
            assert float(out.max()) <= 2.001


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_theta_reads_one_point(backend):
    image = smooth_image((6, 7), dtype=torch.float32)
    with use_backend(backend):
        out = stn.warp(image, torch.full((1, 2, 3), 1e-30))
        centre = stn.sample(image, torch.zeros(1, 1, 1, 2))
    torch.testing.assert_close(out, centre.expand_as(out), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("padding_mode", oracle.PADDING_MODES[:3])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_positions_that_are_not_finite_give_nan(backend, mode, padding_mode, value, d):
    """And only they: the rest of the batch, and the rest of the grid, stay as they are. Backward never crashes."""
    image, grid, opts = problem(mode, padding_mode, False, d)
    clean = stn.sample(image, grid, **opts)
    grid[0].flatten(0, -2)[1, 0] = value
    theta = theta_near_identity(d)
    clean_warp = stn.warp(image, theta, OUT[d], **opts)
    theta[0, 0, 1] = value
    image.requires_grad_(), grid.requires_grad_(), theta.requires_grad_()
    with use_backend(backend):
        out, warped = stn.sample(image, grid, **opts), stn.warp(image, theta, OUT[d], **opts)
    hit = out.detach().flatten(2).isnan()
    assert hit[0, :, 1].all()
    assert hit.sum() == 2
    torch.testing.assert_close(out.detach().flatten(2)[~hit], clean.flatten(2)[~hit], rtol=0, atol=1e-12)
    assert warped[0].isnan().all()
    torch.testing.assert_close(warped[1], clean_warp[1], rtol=0, atol=1e-12)
    (out.nansum() + warped.nansum()).backward()
    assert bool(image.grad[1].isfinite().all())
    assert bool(grid.grad[1].isfinite().all())
    assert bool(theta.grad[1].isfinite().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_pixel_stays_where_it_is_read(backend):
    image = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    image[0, 0, 2, 2] = torch.nan
    with use_backend(backend):
        out = stn.warp(image, torch.tensor([[[1.0, 0, 0.1], [0, 1.0, 0.1]]], dtype=torch.float64))
    assert int(out.isnan().sum()) == 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", oracle.MODES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_large_fill_costs_the_image_no_digits(backend, mode, align_corners):
    image = torch.rand(1, 1, 8, 9)
    theta = torch.tensor([[[0.5, 0.1, 0.05], [-0.1, 0.5, 0.0]]])  # reads inside alone
    opts = {"mode": mode, "align_corners": align_corners}
    with use_backend(backend):
        out = stn.warp(image, theta, padding_mode="constant", fill=1e8, **opts)
        torch.testing.assert_close(out, stn.warp(image, theta, **opts), rtol=0, atol=2e-5)
        outside = stn.warp(image, torch.tensor([[[1.0, 0, 9.0], [0, 1, 0]]]), padding_mode="constant", fill=1e8, **opts)
    assert bool(((outside - 1e8).abs() <= 64).all())  # 8 units in the last place


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_with_a_fill(backend):
    """Nearest keeps a label map a label map, with ties where `padding_mode="zeros"` has them."""
    labels = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8)
    for theta in (torch.tensor([[[2.0, 0, 0], [0, 2.0, 0]]]), torch.tensor([[[0.9, 0.3, 0], [-0.3, 0.9, 0.1]]])):
        for size in ((8, 8), (4, 4)):
            with use_backend(backend):
                zeros = stn.warp(labels, theta, size, mode="nearest")
                filled = stn.warp(labels, theta, size, mode="nearest", padding_mode="constant", fill=255.0)
            assert torch.equal(filled, torch.where(zeros == 0, 255.0, zeros))


def test_fill_takes_a_number_or_one_per_channel():
    image = torch.zeros(2, 3, 4, 4)
    away = torch.tensor([[[1.0, 0, 10.0], [0, 1, 0]]])
    for fill in ((1.0, 2.0, 3.0), torch.tensor([1.0, 2.0, 3.0]), [1, 2, 3]):
        out = stn.warp(image, away, padding_mode="constant", fill=fill)
        assert out[1, :, 2, 2].tolist() == [1.0, 2.0, 3.0]
    assert stn.warp(image, away, padding_mode="constant", fill=5).unique().tolist() == [5.0]


def test_a_case_that_the_forced_kernel_lacks_is_an_error():
    """It says so, and no other kernel runs in its place."""
    with use_backend("aten"), pytest.raises(ValueError, match=r"backend: .*circular.*'aten'"):
        stn.warp(torch.ones(1, 1, 3, 3), torch.eye(2, 3)[None], padding_mode="circular")
    with use_backend("aten"), pytest.raises(ValueError, match=r"backend: .*bicubic.*3D"):
        stn.sample(torch.ones(1, 1, 3, 3, 3), torch.zeros(1, 3, 3, 3, 3), mode="bicubic")


def test_the_forced_kernel_runs_and_is_released():
    native = stn.ops.backends()["cpu"] == "available"
    first = "cpu" if native else "aten"
    assert which_backend(2) == first
    assert which_backend(2, "bilinear", "circular") == ("cpu" if native else "reference")
    assert which_backend(3, "bicubic") == ("cpu" if native else "reference")
    with use_backend("reference"):
        assert which_backend(2) == "reference"
        with use_backend("aten"):
            assert which_backend(2) == "aten"
        assert which_backend(2) == "reference"
    assert which_backend(2) == first
    with pytest.raises(RuntimeError, match="boom"), use_backend("reference"):
        raise RuntimeError("boom")
    assert which_backend(2) == first


# Properties

sizes = st.tuples(st.integers(1, 7), st.integers(1, 7))
seeds = st.integers(0, 2**16)
modes = st.sampled_from(oracle.MODES)
paddings = st.sampled_from(oracle.PADDING_MODES)
entries = st.lists(st.floats(-3, 3), min_size=6, max_size=6)


@given(size=sizes, out=sizes, theta=entries, mode=modes, align_corners=st.booleans(), value=st.floats(-100, 100),
       padding_mode=st.sampled_from(["border", "reflection", "circular"]))  # fmt: skip
def test_a_constant_image_stays_constant(size, out, theta, mode, align_corners, value, padding_mode):
    image = torch.full((1, 1, *size), value, dtype=torch.float64)
    matrix = torch.tensor(theta, dtype=torch.float64).reshape(1, 2, 3)
    opts = {"mode": mode, "align_corners": align_corners}
    warped = stn.warp(image, matrix, out, padding_mode=padding_mode, **opts)
    torch.testing.assert_close(warped, torch.full_like(warped, value), rtol=1e-12, atol=1e-12)
    filled = stn.warp(image, matrix, out, padding_mode="constant", fill=value, **opts)
    torch.testing.assert_close(filled, warped, rtol=1e-12, atol=1e-12)


@given(size=sizes, out=sizes, theta=entries, mode=modes, padding_mode=paddings, align_corners=st.booleans(),
       seed=seeds, a=st.floats(-5, 5), b=st.floats(-5, 5))  # fmt: skip
def test_linear_in_the_image(size, out, theta, mode, padding_mode, align_corners, seed, a, b):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 1, 2, *size, generator=generator, dtype=torch.float64)
    matrix = torch.tensor(theta, dtype=torch.float64).reshape(1, 2, 3)

    def run(image):
        return stn.warp(image, matrix, out, mode=mode, padding_mode=padding_mode, align_corners=align_corners)

    torch.testing.assert_close(run(a * first + b * second), a * run(first) + b * run(second), rtol=0, atol=1e-10)


@given(size=sizes, out=sizes, theta=entries, mode=modes, padding_mode=paddings, align_corners=st.booleans(), seed=seeds,
       backend=st.sampled_from(list(stn.ops.backends())))  # fmt: skip
def test_the_image_gradient_is_the_adjoint(size, out, theta, mode, padding_mode, align_corners, seed, backend):
    """<warp(u), v> = <u, warp*(v)> for the gradient warp* with respect to the image."""
    if not runs(backend, mode, padding_mode, 2):
        backend = "reference"
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(1, 2, *size, generator=generator, dtype=torch.float64).requires_grad_()
    v = torch.randn(1, 2, *out, generator=generator, dtype=torch.float64)
    matrix = torch.tensor(theta, dtype=torch.float64).reshape(1, 2, 3)
    with use_backend(backend):
        warped = stn.warp(u, matrix, out, mode=mode, padding_mode=padding_mode, align_corners=align_corners)
        (adjoint,) = torch.autograd.grad(warped, u, v)
    torch.testing.assert_close((warped * v).sum(), (u * adjoint).sum(), rtol=1e-10, atol=1e-10)


@given(size=sizes, out=sizes, theta=entries, mode=modes, padding_mode=paddings, align_corners=st.booleans(), seed=seeds)
def test_any_affine_warp_agrees_with_the_oracle(size, out, theta, mode, padding_mode, align_corners, seed):
    """Including positions on the kinks: bilinear and bicubic are continuous there."""
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = torch.tensor(theta, dtype=torch.float64).reshape(1, 2, 3)
    if mode == "nearest":
        mode = "bilinear"  # a tie is decided by the last bit of the position
    fill = 0.5 if padding_mode == "constant" else 0.0
    opts = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners, "fill": fill}
    wanted = oracle.warp(image.numpy(), matrix.numpy(), out, **opts)
    torch.testing.assert_close(stn.warp(image, matrix, out, **opts), torch.from_numpy(wanted), rtol=0, atol=1e-10)


def test_the_reference_is_what_runs_where_no_kernel_does():
    """`warp` and `sample` are the same road, for every family."""
    image = smooth_image((6, 7))
    theta = theta_near_identity(2, 1)
    grid = affine_positions(theta, (4, 5), False)
    torch.testing.assert_close(stn.warp(image, theta, (4, 5)), stn.sample(image, grid), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        stn.warp(image, theta, (4, 5), padding_mode="circular"),
        reference_at(image, grid, "bilinear", "circular", None, False),
        rtol=0, atol=1e-14,
    )  # fmt: skip
