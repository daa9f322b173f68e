"""`stn.jax` against the reference in float64: by the native kernels, and on `jax.numpy` alone."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

import stn
from stn.ops import cpu
from stn.reading import check_reading

jax = pytest.importorskip("jax")
jnp = jax.numpy
import stn.jax  # noqa: E402
from stn.jax import native, portable  # noqa: E402

is_native = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
MODES, PADDINGS = ("nearest", "bilinear", "bicubic"), ("zeros", "border", "reflection", "circular", "constant")
# Of the largest of 1 and the values.
TOLERANCE = {"float64": 1e-11, "float32": 3e-5, "bfloat16": 2e-2, "float16": 3e-3}
ROADS = [pytest.param(True, marks=is_native, id="native"), pytest.param(False, id="portable")]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


def arrays(kind, d, dtype, seed=0):
    """An image (2, 3, *in), coordinates and the gradient of the output (2, 3, *out), of numbers that `dtype` has."""
    rng = np.random.default_rng(seed)
    size, out = ((7, 9), (5, 6)) if d == 2 else ((4, 5, 6), (3, 4, 5))
    working = "float64" if dtype == "float64" else "float32"
    rounded = lambda a: np.asarray(jnp.asarray(a).astype(dtype).astype("float64"))  # noqa: E731
    matrix = np.eye(d, d + 1)[None] + 0.3 * rng.normal(size=(2, d, d + 1))
    values = (
        {
            "affine": matrix,
            "projective": np.concatenate([matrix, [[[*(0.2, -0.1, 0.1)[:d], 1.0]]] * 2], 1),
            "grid": rng.uniform(-1.5, 1.5, size=(2, *out, d)),
        }[kind]
        .astype(working)
        .astype("float64")
    )
    return rounded(rng.normal(size=(2, 3, *size))), values, rounded(rng.normal(size=(2, 3, *out))), out


@functools.cache
def by_reference(kind, d, dtype, mode, padding, align):
    image, values, grad, out = arrays(kind, d, dtype)
    image, values = torch.tensor(image, requires_grad=True), torch.tensor(values, requires_grad=True)
    options = {
        "mode": mode,
        "padding_mode": padding,
        "fill": 0.7 if padding == "constant" else 0.0,
        "align_corners": align,
    }
    with stn.ops.use_backend("reference"):
        got = stn.sample(image, values, **options) if kind == "grid" else stn.warp(image, values, out, **options)
        gradients = torch.autograd.grad(
            got, (image, values), torch.tensor(grad), allow_unused=True, materialize_grads=True
        )
    return [a.detach().numpy() for a in (got, *gradients)]


def check_case(kind, d, dtype, mode, padding, align, last, on_native):
    image, values, grad, out = arrays(kind, d, dtype)
    moved = (lambda a: np.moveaxis(a, 1, -1)) if last else (lambda a: a)
    options = {
        "mode": mode,
        "padding_mode": padding,
        "fill": 0.7 if padding == "constant" else 0.0,
        "align_corners": align,
    }
    options |= {"data_format": "channels_last" if last else "channels_first", "native": on_native}
    working = jnp.float64 if dtype == "float64" else jnp.float32
    run = lambda i, v: stn.jax.sample(i, v, **options) if kind == "grid" else stn.jax.warp(i, v, out, **options)  # noqa: E731
    got, pull = jax.vjp(run, jnp.asarray(moved(image)).astype(dtype), jnp.asarray(values, working))
    assert got.dtype == dtype
    gradients = pull(jnp.asarray(moved(grad)).astype(dtype))
    assert gradients[0].dtype == dtype
    wanted = by_reference(kind, d, dtype, mode, padding, align)
    for one, other, what in zip((got, *gradients), wanted, ("value", "image", "coordinates"), strict=True):
        other = other if what == "coordinates" else moved(other)
        difference = np.abs(np.asarray(one, "float64") - other).max() / max(1.0, np.abs(other).max())
        assert difference <= TOLERANCE[dtype], (what, kind, d, dtype, mode, padding, align, last)


@is_native
@pytest.mark.parametrize(("kind", "dtype"), [("affine", "float32"), ("projective", "float64"), ("grid", "float32")])
def test_values_and_both_gradients(kind, dtype):
    """Every mode, padding and alignment, the layouts by turns."""
    cases = itertools.product(MODES, PADDINGS, (False, True))
    for last, (mode, padding, align) in zip(itertools.cycle((False, True, True, False)), cases, strict=False):
        check_case(kind, 2, dtype, mode, padding, align, last, True)
    for mode, padding in zip(itertools.cycle(MODES), PADDINGS, strict=False):
        check_case(kind, 3, dtype, mode, padding, False, mode != "nearest", True)


@is_native
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    for mode, last in zip(("bilinear", "bicubic"), (False, True), strict=True):
        check_case("affine", 2, dtype, mode, "border", False, last, True)


@pytest.mark.parametrize("mode", MODES)
def test_without_the_native_kernels(mode):
    paddings = {"nearest": ("circular",), "bilinear": ("zeros", "reflection", "constant"), "bicubic": ("border",)}[mode]
    for align, padding in zip(itertools.cycle((True, False)), paddings, strict=False):
        check_case("affine", 2, "float64", mode, padding, align, align, False)


def test_without_the_native_kernels_in_3d_behind_a_horizon():
    check_case("projective", 3, "float64", "bilinear", "reflection", True, False, False)


@pytest.mark.parametrize("on_native", ROADS)
def test_on_a_kink_both_sides_count(on_native):
    """And what is no position is NaN, and gives nothing to the image."""
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 6, 8)), "float32")
    theta = jnp.eye(2, 3)[None].astype("float32")
    run = lambda i, t: (stn.jax.warp(i, t, native=on_native) ** 2).sum()  # noqa: E731
    got = jax.grad(run, (0, 1))(image, theta)
    ti, tt = (torch.tensor(np.array(a), dtype=torch.float64, requires_grad=True) for a in (image, theta))
    with stn.ops.use_backend("reference"):
        wanted = torch.autograd.grad(stn.warp(ti, tt).square().sum(), (ti, tt))
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(one), other.numpy(), rtol=1e-4, atol=1e-4)
    lost = jnp.asarray([[[[np.nan, 0.0], [0.1, 0.2], [np.inf, 0.0]]]], "float32")
    out = stn.jax.sample(image, lost, native=on_native)
    assert jnp.isnan(out[0, 0, 0]).tolist() == [True, False, True]
    gradient = jax.grad(lambda i: stn.jax.sample(i, lost, native=on_native).sum())(image)
    np.testing.assert_allclose(float(gradient[0, 0].sum()), 1.0, rtol=1e-5)


@pytest.mark.parametrize("on_native", ROADS)
def test_vmap_and_jit(on_native):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(3, 2, 2, 6, 7)), "float32")
    theta = jnp.asarray(np.eye(2, 3) + 0.2 * rng.normal(size=(3, 2, 2, 3)), "float32")
    fill = {"padding_mode": "constant", "fill": [0.5, -1.0], "native": on_native}
    run = lambda i, t: stn.jax.warp(i, t, (4, 5), **fill)  # noqa: E731
    loss = lambda i, t: (run(i, t) ** 2).sum()  # noqa: E731
    one_by_one = jnp.stack([run(i, t) for i, t in zip(image, theta, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(image, theta), one_by_one, rtol=1e-5, atol=1e-5)
    shared = jax.vmap(run, (None, 0))(image[0], theta)
    np.testing.assert_allclose(shared, jnp.stack([run(image[0], t) for t in theta]), rtol=1e-5, atol=1e-5)
    twice = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(image, theta)
    np.testing.assert_allclose(twice[2, 1], run(image[2], theta[1]), rtol=1e-5, atol=1e-5)
    wanted = [jax.grad(loss, (0, 1))(i, t) for i, t in zip(image, theta, strict=True)]
    for gradients in (
        jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(image, theta),
        jax.grad(lambda i, t: (jax.vmap(run)(i, t) ** 2).sum(), (0, 1))(image, theta),
    ):
        for k in range(2):
            np.testing.assert_allclose(gradients[k], jnp.stack([w[k] for w in wanted]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("on_native", ROADS)
@pytest.mark.parametrize(("mode", "padding"), [("bicubic", "zeros"), ("bilinear", "constant")])
def test_second_derivatives(on_native, mode, padding):
    """By theta twice, and by theta and the image, with the gradient's own on which they are linear."""
    options = {
        "mode": mode,
        "padding_mode": padding,
        "fill": 0.7 if padding == "constant" else 0.0,
        "native": on_native,
    }
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 5, 6)))
    theta = jnp.asarray([[[0.87, 0.1, 0.03], [-0.1, 0.8, 0.02]]])
    run = lambda i, t: (stn.jax.warp(i, t, **options) ** 2).sum()  # noqa: E731
    slope = jax.grad(run, (0, 1))
    rng, step = np.random.default_rng(1), 1e-6
    along = jnp.asarray(rng.normal(size=image.shape)), jnp.asarray(rng.normal(size=theta.shape))
    along_slope = lambda i, t: sum((a * b).sum() for a, b in zip(slope(i, t), along, strict=True))  # noqa: E731
    second = jax.jit(jax.grad(along_slope, (0, 1)))(image, theta)
    there, back = (slope(image + s * along[0], theta + s * along[1]) for s in (step, -step))
    for one, up, down in zip(second, there, back, strict=True):
        np.testing.assert_allclose(one, (up - down) / (2 * step), rtol=1e-5, atol=1e-5)


def test_forward_mode():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 5, 6)))
    theta = jnp.asarray([[[0.87, 0.1, 0.03], [-0.1, 0.8, 0.02]]])
    run = lambda t, on_native=False: (stn.jax.warp(image, t, native=on_native) ** 2).sum()  # noqa: E731
    _, forward = jax.jvp(run, (theta,), (jnp.ones_like(theta),))
    np.testing.assert_allclose(forward, jax.grad(run)(theta).sum(), rtol=1e-9)
    if native.unavailable() is None:
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(lambda t: run(t, True), (theta,), (jnp.ones_like(theta),))


@pytest.mark.parametrize("on_native", ROADS)
def test_what_is_exported_runs_where_there_is_no_stn(on_native):
    """On every platform, with an open batch, gradients too."""
    image = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 5, 6)), "float32")
    theta = jnp.tile(jnp.asarray([[[0.87, 0.1, 0.03], [-0.1, 0.8, 0.02]]], "float32"), (3, 1, 1))
    run = jax.jit(lambda i, t: stn.jax.warp(i, t, native=on_native))
    run(image, theta)  # what is compiled for here is not what is exported
    shapes = jax.export.symbolic_args_specs((image, theta), ("b, 2, 5, 6", "b, 2, 3"))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(*shapes)
    assert f"custom_call @{native.TARGET}" not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(image, theta), run(image, theta), rtol=1e-5, atol=1e-5)
    slope = jax.jit(jax.grad(lambda i, t: (run(i, t) ** 2).sum(), (0, 1)))
    again = jax.export.deserialize(jax.export.export(slope)(image, theta).serialize())
    for one, other in zip(again.call(image, theta), slope(image, theta), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@is_native
def test_without_compiling():
    image, theta = jnp.ones((1, 1, 3, 4)), jnp.eye(2, 3)[None]
    with jax.disable_jit():
        np.testing.assert_allclose(stn.jax.warp(image, theta), image, rtol=1e-6)


FAMILIES = {
    "affine": stn.Affine(), "affine in 3D": stn.Affine(3), "translation": stn.Translation(), "projective": stn.Projective(),
    "tps": stn.ThinPlateSpline((3, 4)), "bspline": stn.BSpline((4, 4)), "displacement": stn.DisplacementField((3, 3)),
    "attention": stn.Attention(log_scale=False),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    family = FAMILIES[name]
    d = family.ndim
    size, out = ((7, 9), (5, 6)) if d == 2 else ((4, 5, 6), (3, 4, 5))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 3, *size))
    theta = family.identity().double().numpy().reshape(1, -1) + 0.1 * rng.normal(size=(2, family.num_params))
    run = lambda i, t: stn.jax.warp(i, t, out, transform=family)  # noqa: E731
    got, pull = jax.vjp(run, jnp.asarray(image), jnp.asarray(theta))
    gradients = pull(jnp.ones_like(got))
    ti, tt = (torch.tensor(a, requires_grad=True) for a in (image, theta))
    with stn.ops.use_backend("reference"):
        wanted = stn.warp(ti, tt, out, transform=family)
    for one, other in zip((got, *gradients), (wanted, *torch.autograd.grad(wanted.sum(), (ti, tt))), strict=True):
        np.testing.assert_allclose(np.asarray(one), other.detach().numpy(), rtol=1e-9, atol=1e-9)


def test_who_reads(monkeypatch):
    """The native kernels where they can; `jax.numpy` with the same numbers where they are missing."""
    image = np.random.default_rng(0).normal(size=(1, 1, 5, 6)).astype("float32")
    theta = np.asarray([[[0.9, 0.1, 0.03], [-0.1, 0.8, 0.02]]], "float32")
    text = lambda **options: jax.jit(lambda t: stn.jax.warp(image, t, **options)).lower(theta).as_text()  # noqa: E731
    wanted = stn.jax.warp(image, theta)
    if native.unavailable() is None:
        assert f"custom_call @{native.TARGET}" in text()
    assert f"custom_call @{native.TARGET}" not in text(native=False)
    monkeypatch.setattr(native, "unavailable", lambda: "left out")
    jax.clear_caches()
    assert f"custom_call @{native.TARGET}" not in text()
    np.testing.assert_allclose(stn.jax.warp(image, theta), wanted, rtol=1e-5, atol=1e-5)
    jax.clear_caches()


def test_bytes_and_nothing():
    picture = (np.random.default_rng(0).random((1, 2, 5, 6)) * 255).astype("uint8")
    theta = np.asarray([[[0.9, 0.1, 0.03], [-0.1, 0.8, 0.02]]], "float32")
    with stn.ops.use_backend("reference"):
        wanted = stn.warp(torch.tensor(picture), torch.tensor(theta)).numpy()
    for on_native in (True, False):
        got = np.asarray(stn.jax.warp(picture, theta, native=on_native))
        assert got.dtype == np.uint8
        assert np.abs(got.astype(int) - wanted).max() <= 1
        assert stn.jax.warp(picture[:0], theta[:0], native=on_native).shape == (0, 2, 5, 6)
        assert stn.jax.warp(picture, theta, (0, 4), native=on_native).shape == (1, 2, 0, 4)
        gradient = jax.grad(lambda i: stn.jax.warp(i, theta, (0, 4), native=on_native).sum())(picture.astype("float32"))
        assert not gradient.any()


IMAGE, EYE = np.zeros((1, 2, 4, 5), "float32"), np.eye(2, 3, dtype="float32")[None]
WRONG = {
    "image: expected": lambda: stn.jax.warp(IMAGE[0], EYE),
    "image: expected at least": lambda: stn.jax.warp(IMAGE[..., :0], EYE),
    "float type or uint8": lambda: stn.jax.warp(IMAGE.astype("int32"), EYE),
    "theta: expected matrices": lambda: stn.jax.warp(IMAGE, EYE[..., :2]),
    "theta: .* transform=": lambda: stn.jax.warp(IMAGE, EYE.reshape(1, 6)),
    "theta: expected .B, 6.": lambda: stn.jax.warp(IMAGE, EYE[:, :, 0], transform="affine"),
    "affine function of theta": lambda: stn.jax.warp(IMAGE, EYE[:, :1, 0], transform="rotation"),
    "batch of 3": lambda: stn.jax.warp(IMAGE.repeat(2, 0), EYE.repeat(3, 0)),
    "grid: expected": lambda: stn.jax.sample(IMAGE, np.zeros((1, 3, 3, 3), "float32")),
    "mode: expected": lambda: stn.jax.warp(IMAGE, EYE, mode="lanczos3"),
    "padding_mode: expected": lambda: stn.jax.warp(IMAGE, EYE, padding_mode="mirror"),
    "data_format: expected": lambda: stn.jax.warp(IMAGE, EYE, data_format="NCHW"),
    "native: expected": lambda: stn.jax.warp(IMAGE, EYE, native=1),
    "fill: expected": lambda: stn.jax.warp(IMAGE, EYE, padding_mode="constant", fill=[1.0, 2.0, 3.0]),
    "size: expected": lambda: stn.jax.warp(IMAGE, EYE, (3,)),
}  # fmt: skip


@pytest.mark.parametrize("match", WRONG)
def test_errors(match):
    with pytest.raises(ValueError, match=match):
        WRONG[match]()


@is_native
def test_what_is_wrong_below_the_checks_raises():
    """The foreign function itself is given arrays of wrong types, shapes, numbers and options."""
    good = [0, cpu._COORDINATES["affine"], 1, 0, 0, 0, 1]
    f = lambda *shape, dtype="float32": np.zeros(shape, dtype)  # noqa: E731
    image, theta, out = f(1, 2, 4, 5), f(1, 2, 3), jax.ShapeDtypeStruct((1, 2, 4, 5), "float32")

    def call(arrays, result, options=good):
        jax.block_until_ready(jax.ffi.ffi_call(native.TARGET, result)(*arrays, options=np.array(options, np.int64)))

    call([image, theta], out)
    cases = {
        "another number": ([image], out),
        "number of options": ([image, theta], out, good[:3]),
        "two dimensions": ([image, theta], jax.ShapeDtypeStruct((4, 5), "float32")),
        "a type": ([image.astype("int32"), theta], jax.ShapeDtypeStruct((1, 2, 4, 5), "int32")),
        "two types": ([image, theta.astype("float64")], out),
        "the output's type": ([image, theta], jax.ShapeDtypeStruct((1, 2, 4, 5), "float64")),
        "batches": ([image, f(2, 2, 3)], out),
        "channels": ([image, theta], jax.ShapeDtypeStruct((1, 3, 4, 5), "float32")),
        "matrices": ([image, f(1, 3, 2)], out),
        "six axes": ([f(1, 1, 1, 1, 1, 1), theta], out),
        "no pixels": ([f(1, 2, 0, 5), theta], out),
        "fill": ([image, theta, f(3)], out, [0, 0, 1, 4, 0, 0, 1]),
        **{f"option {k}": ([image, theta], out, [*good[:k], 99, *good[k + 1 :]]) for k in range(6)},
        "a grid": ([image, f(1, 4, 4, 2)], out, [0, cpu._COORDINATES["grid"], 1, 0, 0, 0, 1]),
        "the gradient": ([image, theta, image], jax.ShapeDtypeStruct((1, 2, 4), "float32"), [1, *good[1:]]),
        "the nearest": ([image, theta, image], jax.ShapeDtypeStruct((1, 2, 3), "float32"), [1, 0, 0, 0, 0, 0, 1]),
    }
    for case in cases.values():
        with pytest.raises(Exception, match=r"expected|nearest"):
            call(*case)


def test_neither_keras_nor_tensorflow_is_imported():
    program = (
        "import sys, stn.jax; print([name for name in ('keras', 'tensorflow', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


def test_plans_are_of_one_kind():
    """What `read` of the front ends takes: coordinates that are already made."""
    reading = check_reading("bilinear", "zeros")
    image, grid = jnp.ones((1, 4, 5, 2)), jnp.zeros((1, 3, 3, 2))
    assert stn.jax.read(image, "grid", grid, (3, 3), reading, last=True).shape == (1, 3, 3, 2)
    assert not native.takes(portable.Plan("basis", (3, 3), "bilinear", "zeros", False, True))
