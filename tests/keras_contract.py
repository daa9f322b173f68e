"""What `stn.keras` promises under one framework; a process of its own, for Keras chooses when it is imported.

    KERAS_BACKEND=jax python -m tests.keras_contract sample|everything

Prints what it has checked, one thing a line, and ends with "held"; an assertion ends it otherwise.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from keras import layers, ops

import stn
import stn.keras
from benchmarks import frameworks
from stn.coordinates import Frame
from stn.keras import families
from stn.keras.backends import without_triton

BACKEND = keras.config.backend()
# Largest difference from float64, over the largest number (at least 1) of what is compared: float32 sums of some ten terms,
# at positions within 1e-6 of a pixel.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
DTYPES = ("float32", "float64")
torch.set_num_threads(1)


def close(got, wanted, dtype, what):
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == dtype, (what, g.dtype)
        assert g.shape == w.shape, (what, g.shape, w.shape)
        missed = abs(g - w).max() / max(1.0, abs(w).max())
        assert missed <= TOLERANCE[dtype], (what, dtype, missed)


def check_families(*, everything):
    """Every family: where it reads, and its gradient by theta. On torch, and with `everything`, the whole warp, every type
    and every variant; else one type a family, the other one under the next framework, and every other variant."""
    if everything or BACKEND == "torch":
        found = frameworks.differences(None, list(DTYPES), compiled=True)
        for name, by_type in found.items():
            for dtype, (*errors, _) in by_type.items():
                assert max(errors) <= TOLERANCE[dtype], (name, dtype, errors)
        assert len(found) == len(frameworks.families())
        return
    for number, (name, transform) in enumerate(frameworks.families().items()):
        if " " in name and number % 2 == (BACKEND == "jax"):
            continue
        dtype = DTYPES[(number + (BACKEND == "jax")) % 2]
        in_size, size = frameworks.SIZES[transform.ndim]
        frame = Frame(in_size, number % 3 == 0)
        _, theta, _ = frameworks.problem(transform, dtype)
        weights = np.random.default_rng(1).normal(size=(2, *size, transform.ndim)).astype(dtype)

        def grid(theta, transform=transform, size=size, frame=frame):
            return families.positions(families.coordinates(transform, theta, size, frame), frame.align_corners)

        got = gradients(grid, theta, weights)
        t = torch.tensor(theta.astype("float64"), requires_grad=True)
        wanted = transform.grid(t, size, frame)
        (gradient,) = torch.autograd.grad((wanted * torch.tensor(weights)).sum(), t)
        close(got, (wanted.detach().numpy(), gradient.numpy()), dtype, name)
        print(name, dtype, flush=True)


def gradients(function, theta, weights):
    """The output and the gradient of its weighted sum, of a function of theta; compiled on JAX."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        t = tf.constant(theta)
        with tf.GradientTape() as tape:
            tape.watch(t)
            out = function(t)
            loss = tf.reduce_sum(out * weights)
        return out.numpy(), tf.convert_to_tensor(tape.gradient(loss, t)).numpy()
    import jax

    def loss(t):
        out = function(t)
        return (out * weights).sum(), out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jax.numpy.asarray(theta))
    return np.asarray(out), np.asarray(gradient)


def check_reading(*, everything):
    """Every mode and padding: value, and the gradients by image and positions; by the native kernels and on ops."""
    rng = np.random.default_rng(0)
    modes, paddings = ("nearest", "bilinear", "bicubic"), ("zeros", "border", "reflection", "circular", "constant")
    for number, (mode, padding) in enumerate(itertools.product(modes, paddings)):
        if BACKEND == "jax" and not everything and number % 2:
            continue
        dtype, align_corners, d = DTYPES[number // 2 % 2], number % 3 == 0, (2, 3, 1)[number % 3 if number % 4 else 0]
        in_size, size = (7, 5, 6)[:d], (4, 3, 5)[:d]
        fill = [0.7, -1.3] if padding == "constant" else 0.0
        options = {"mode": mode, "padding_mode": padding, "fill": fill, "align_corners": align_corners}
        image, weights = rng.normal(size=(2, *in_size, 2)), rng.normal(size=(2, *size, 2))
        # In pixels a sixteenth to seven beside a centre or a border, on no kink.
        steps = (rng.integers(-8, 14, size=(2, *size, d)) + rng.uniform(1 / 16, 7 / 16, size=(2, *size, d))).astype(
            dtype
        )
        grid = np.stack([2 * (steps[..., a] + 0.5) / in_size[d - 1 - a] - 1 for a in range(d)], -1)
        if align_corners:
            grid = np.stack([2 * steps[..., a] / (in_size[d - 1 - a] - 1) - 1 for a in range(d)], -1)
        arrays = [a.astype(dtype) for a in (image, grid, weights)]

        def read(image, grid, options=options):
            return stn.keras.sample(image, grid, data_format="channels_last", **options)

        found = {}
        for road in roads_to_take(d):
            with chosen(road):
                found[road] = frameworks.differentiated(read, compiled=BACKEND == "jax")(*arrays)
        i, g, w = (torch.tensor(a.astype("float64")) for a in arrays)
        i.requires_grad_(), g.requires_grad_()
        with stn.ops.use_backend("reference"):
            out = stn.sample(i.movedim(-1, 1), g, **options).movedim(1, -1)
            wanted = [out.detach(), *torch.autograd.grad((out * w).sum(), (i, g))]
        for road, got in found.items():
            close(got, [a.numpy() for a in wanted], dtype, (mode, padding, align_corners, d, road))
        print(mode, padding, dtype, flush=True)


def check_corners_of_the_rules(*, everything):
    """Kinks, positions that are not finite, images that are not, halves, layouts, batches of one, other kernels."""
    rng = np.random.default_rng(0)
    image, weights = rng.normal(size=(2, 5, 6, 2)), rng.normal(size=(2, 5, 6, 2))
    theta = np.array([[1.0, 0, 0, 0, 1, 0], [1.0, 0, 1 / 3, 0, 1, 0.4]])  # on centres, both

    def warp(image, theta):
        return stn.keras.warp(image, theta, transform="affine", data_format="channels_last")

    found = {}
    for road in roads_to_take(2):
        with chosen(road):
            found[road] = frameworks.differentiated(warp, compiled=BACKEND == "jax")(image, theta, weights)
    with stn.ops.use_backend("reference"):
        i, t, w = (torch.tensor(a) for a in (image, theta, weights))
        i.requires_grad_(), t.requires_grad_()
        out = stn.warp(i.movedim(-1, 1), t, transform=stn.Affine()).movedim(1, -1)
        wanted = [out.detach(), *torch.autograd.grad((out * w).sum(), (i, t))]
    for road, got in found.items():
        close(got, [a.numpy() for a in wanted], "float64", f"kinks, {road}")

    grid = rng.uniform(-1, 1, size=(2, 3, 4, 2))
    grid[0, 1, 2, 0], grid[1, 0, 0] = np.nan, np.inf
    lost = ~np.isfinite(grid).all(-1)

    def read(image, grid):
        return stn.keras.sample(image, grid, data_format="channels_last")

    weights = np.where(lost[..., None], 0.0, 1.0) * rng.normal(size=(2, 3, 4, 2))
    out, for_image, for_grid = frameworks.differentiated(read, compiled=BACKEND == "jax")(image, grid, weights)
    assert (np.isnan(out).all(-1) == lost).all()
    assert np.isfinite(for_image).all()
    assert (for_grid[lost] == 0).all()

    half = stn.keras.warp(
        image.astype("float16"), theta.astype("float32"), transform="affine", data_format="channels_last"
    )
    assert keras.backend.standardize_dtype(half.dtype) == "float16"
    whole = numbers(warp(image, theta))
    assert abs(numbers(half).astype("float64") - whole).max() < 1e-2
    first = stn.keras.warp(np.moveaxis(image, -1, 1), theta, transform="affine", data_format="channels_first")
    assert abs(np.moveaxis(numbers(first), 1, -1) - whole).max() < 1e-12
    alone = numbers(warp(image, theta[:1]))
    assert abs(alone[0] - whole[0]).max() < 1e-12
    assert alone.shape == whole.shape
    matrices = stn.keras.warp(image, theta.reshape(2, 2, 3), data_format="channels_last")
    assert abs(numbers(matrices) - whole).max() < 1e-12
    homography = np.concatenate([theta.reshape(2, 2, 3), np.array([[[0.1, 0.2, 1.0]]] * 2)], 1)
    for sign in (1, -1):
        got = numbers(stn.keras.warp(image, sign * homography, (3, 4), data_format="channels_last"))
        wanted = stn.warp(torch.tensor(image).movedim(-1, 1), torch.tensor(homography), (3, 4)).movedim(1, -1)
        assert abs(got - wanted.numpy()).max() < 1e-12
    for mode in ("lanczos3", "bspline3") if everything or BACKEND != "jax" else ("bspline3",):
        got = numbers(stn.keras.sample(image, np.nan_to_num(grid, posinf=0.3), mode=mode, data_format="channels_last"))
        wanted = stn.sample(
            torch.tensor(image).movedim(-1, 1), torch.tensor(np.nan_to_num(grid, posinf=0.3)), mode=mode
        )
        assert abs(got - wanted.movedim(1, -1).numpy()).max() < 1e-12, mode


def roads_to_take(d):
    """The backends that `stn.keras` has here, by name; None is its own choice."""
    if BACKEND == "torch":
        return (None,)
    return ("cpu", "reference") if d > 1 and is_native() else ("reference",)


def chosen(road):
    return contextlib.nullcontext() if road is None else stn.ops.use_backend(road)


def is_native():
    """Whether the native kernels can be had at all, as `stn info` says it."""
    if BACKEND == "jax":
        from stn.jax import native

        return native.unavailable() is None
    import stn.tensorflow

    return stn.tensorflow.unavailable() is None


def check_who_reads():
    """The native kernels where they can, and ops of the framework in what is compiled by XLA under TensorFlow, saved or
    exported; second derivatives; the switch."""
    rng = np.random.default_rng(0)
    image, theta = rng.normal(size=(2, 5, 6, 2)), np.array([[0.87, 0.1, 0.03, -0.1, 0.8, 0.02]] * 2)

    def warp(image, theta, **options):
        return stn.keras.warp(image, theta, transform="affine", data_format="channels_last", **options)

    with stn.ops.use_backend("aten"), pytest.raises(ValueError, match="expected 'cpu' or 'reference'"):
        warp(image, theta)
    with stn.ops.use_backend("cpu"), pytest.raises(ValueError, match="lowered"):
        warp(image, theta, mode="lanczos3")
    if not is_native():
        return
    found = {road: second_derivative(warp, image, theta, road) for road in ("cpu", "reference")}
    assert abs(found["cpu"] - found["reference"]).max() < 1e-9 * abs(found["reference"]).max()
    {"jax": check_programs_of_jax, "tensorflow": check_programs_of_tensorflow}[BACKEND](warp, image, theta)


def second_derivative(warp, image, theta, road):
    """Of a function of both gradients, by image and theta."""
    options = {"padding_mode": "constant", "fill": 0.7}
    with chosen(road):
        if BACKEND == "jax":
            import jax

            slope = jax.grad(lambda i, t: (warp(i, t, **options) ** 2).sum(), (0, 1))
            both = jax.grad(lambda i, t: sum(jax.numpy.sin(s).sum() for s in slope(i, t)), (0, 1))(image, theta)
        else:
            import tensorflow as tf

            inputs = [tf.constant(image), tf.constant(theta)]
            with tf.GradientTape() as outer:
                outer.watch(inputs)
                with tf.GradientTape() as inner:
                    inner.watch(inputs)
                    loss = tf.reduce_sum(warp(*inputs, **options) ** 2)
                total = tf.add_n([tf.reduce_sum(tf.sin(s)) for s in inner.gradient(loss, inputs)])
            both = outer.gradient(total, inputs)
    return np.concatenate([np.ravel(b) for b in both])


def check_programs_of_jax(warp, image, theta):
    import jax

    from stn.jax import native

    call = f"custom_call @{native.TARGET}"
    text = lambda: jax.jit(lambda *a: warp(*a)).lower(image, theta).as_text()  # noqa: E731
    assert call in text()
    with chosen("reference"):
        assert call not in text()
    run = jax.jit(warp)
    shapes = jax.export.symbolic_args_specs((image, theta), ("b, 5, 6, 2", "b, 6"))
    exported = jax.export.export(run)(*shapes)
    assert call not in exported.mlir_module()
    assert abs(np.asarray(exported.call(image, theta)) - np.asarray(run(image, theta))).max() < 1e-12


LOADED = """
import sys
sys.modules["stn"] = None
import numpy as np, tensorflow as tf
kept = np.load(sys.argv[1] + "/arrays.npz")
served, module = (tf.saved_model.load(sys.argv[1] + name) for name in ("/served", "/module"))
for call in (served.serve, module.opened, module.called):
    assert abs(call(tf.constant(kept["image"])).numpy() - kept["out"]).max() < 1e-5
"""


def check_programs_of_tensorflow(warp, image, theta):
    import tensorflow as tf

    def names(function):
        graph = function.get_concrete_function(tf.constant(image), tf.constant(theta)).graph.as_graph_def()
        return {node.op for part in (graph.node, *(f.node_def for f in graph.library.function)) for node in part}

    assert "StnWarp" in names(tf.function(warp))
    assert "StnWarp" not in names(tf.function(warp, jit_compile=True))
    with chosen("reference"):
        assert "StnWarp" not in names(tf.function(warp))

    localizer = keras.Sequential([layers.Flatten(), stn.keras.identity_head("affine")])
    layer = stn.keras.SpatialTransformer(localizer, "affine", (4, 3), data_format="channels_last")
    model = keras.Sequential([keras.Input((5, 6, 2)), layer])
    model.compile("adam", "mse", jit_compile=False)
    narrow = image.astype("float32")
    model.fit(narrow, np.ones((2, 4, 3, 2), "float32"), verbose=0)
    # Functions that have run here, by the native kernels, and are saved then.
    module = tf.Module()
    module.model, module.called = model, tf.function(lambda image: model(image))
    module.opened = tf.function(lambda i: model(i), input_signature=[tf.TensorSpec((None, 5, 6, 2))])
    out = [module.called(tf.constant(narrow)), module.opened(tf.constant(narrow)), model.predict(narrow, verbose=0)]
    assert max(abs(numbers(o) - out[2]).max() for o in out) < 1e-6
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder + "/served", verbose=False)
        tf.saved_model.save(module, folder + "/module")
        np.savez(folder + "/arrays.npz", image=narrow, out=out[2])
        done = subprocess.run([sys.executable, "-c", LOADED, folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]


def check_refusals():
    image, theta = np.ones((2, 5, 6, 1), "float32"), np.array([[1.0, 0, 0, 0, 1, 0]], "float32")
    localizer = keras.Sequential([layers.Flatten(), layers.Dense(5)])
    refused = {
        "theta: expected (B, 6) parameters of Affine": lambda: stn.keras.warp(image, theta[:, :5], transform="affine"),
        "theta: expected": lambda: stn.keras.warp(image, theta),
        "transform: name: expected one of": lambda: stn.keras.warp(image, theta, transform="afine"),
        "mode: expected one of": lambda: stn.keras.warp(image, theta, transform="affine", mode="linear"),
        "image: expected": lambda: stn.keras.warp(image[0, 0], theta, transform="affine"),
        "floating-point type": lambda: stn.keras.warp(image.astype("int32"), theta, transform="affine"),
        "data_format: expected one of": lambda: stn.keras.warp(image, theta, transform="affine", data_format="last"),
        "grid: expected": lambda: stn.keras.sample(image, theta),
        "fill: expected": lambda: stn.keras.warp(
            image, theta, transform="affine", padding_mode="constant", fill=[1.0, 2.0], data_format="channels_last"
        ),
        "localizer: expected an output of shape (B, 6)": lambda: stn.keras.SpatialTransformer(localizer)(image),
        "of known size": lambda: stn.keras.SpatialTransformer(localizer)(keras.Input((None, None, 1))),
        "localizer: expected a Keras layer": lambda: stn.keras.SpatialTransformer(None),
        "symbolic": lambda: stn.keras.warp(keras.Input((5, 6, 1)), theta, transform="affine"),
        "batch": lambda: stn.keras.warp(image, np.repeat(theta, 3, 0), transform="affine"),
        "input_fmap: expected (B, H, W, C)": lambda: stn.keras.spatial_transformer_network(image[0], theta),
    }
    refused |= {
        "fold: expected a finite weight": lambda: stn.keras.penalty(theta, "affine", fold=-1.0),
        "weights: expected at least one": lambda: stn.keras.penalty(theta, "affine"),
        "folds: expected names among": lambda: stn.keras.penalty(theta, "affine", folds=1.0),
        "size: expected": lambda: stn.keras.penalty(theta, "affine", (5,), fold=1.0),
        "theta: expected (B, 2) parameters": lambda: stn.keras.penalty(theta, "translation", fold=1.0),
        "penalties: expected weights by name": lambda: stn.keras.SpatialTransformer(localizer, penalties=["fold"]),
        "points: expected": lambda: stn.keras.SpatialTransformer(localizer, penalties={"fold": 1.0, "points": 1}),
    }
    if BACKEND != "torch":
        refused["backend: expected 'reference' with antialias"] = asked_of_the_native_kernels
    for words, call in refused.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            call()


def asked_of_the_native_kernels():
    with stn.ops.use_backend("cpu"):
        stn.keras.sample(np.ones((1, 4, 4, 1)), np.zeros((1, 2, 2, 2)), antialias=True)


# Families by what becomes of their slopes: none of their own, chained, integrated, read from a field whose knots the points
# meet (at 9 points the middle of an odd lattice), in closed form.
BENT = {
    "affine": stn.Affine(),
    "similarity": stn.Similarity(),
    "projective": stn.Projective(),
    "tps": stn.ThinPlateSpline((3, 3)),
    "bspline": stn.BSpline((3, 3)),
    "displacement": stn.DisplacementField((3, 5)),
    "velocity": stn.VelocityField((3, 4), steps=3),
    "cpab": stn.CPAB((2, 2), zero_boundary=False, steps=4),
    "polar": stn.Polar(),
    "composed": stn.Similarity() @ stn.ThinPlateSpline((2, 3)),
    "composed of what is integrated": stn.VelocityField((3, 3), steps=2) @ stn.CPAB((2, 2), steps=2),
    "affine in 1D": stn.Affine(1),
    "cpab in 1D": stn.CPAB((4,)),
    "displacement in 3D": stn.DisplacementField((2, 3, 3)),
    "tps in 3D": stn.ThinPlateSpline((2, 2, 2)),
    "cpab in 3D": stn.CPAB((1, 1, 2), zero_boundary=False, steps=2),
}
# Each on its own, at work on a warp that does nothing bad.
AT_WORK = {
    "identity": {},
    "scale": {"low": 1.1, "high": 1.2},
    "fold": {"margin": 2.0},
    "smoothness": {"order": 2},
    "bending": {},
    "out_of_frame": {},
}
# Of a sample: compilers take half a minute for a family on JAX.
SAMPLE = {
    "jax": ("displacement", "cpab"),
    "tensorflow": ("projective", "displacement", "cpab", "composed of what is integrated"),
    "torch": tuple(BENT),
}


def check_penalties(*, everything):
    """Each penalty of every family, and its gradient by theta."""
    for number, (family, transform) in enumerate(BENT.items()):
        if not everything and family not in SAMPLE[BACKEND]:
            continue
        rng = np.random.default_rng(number)
        # Where slopes jump between the cells that points are carried to, float32 is rounded to either side, in torch as well.
        dtype = (
            "float64"
            if family in ("cpab", "cpab in 3D", "composed of what is integrated")
            else DTYPES[(number + (BACKEND == "jax")) % 2]
        )
        theta = (transform.identity().numpy() + 0.2 * rng.normal(size=(2, transform.num_params))).astype(dtype)
        size, points = (6, 7, 8)[: transform.ndim], 9 if transform.ndim < 3 else 5
        shares = np.arange(1, len(AT_WORK) + 1) / 3

        def of_each(theta, transform=transform, size=size, points=points):
            return [
                stn.keras.penalty(theta, transform, size, points=points, **{name: 1.0}, **options)
                for name, options in AT_WORK.items()
            ]

        t = torch.tensor(theta.astype("float64"), requires_grad=True)
        warp = stn.Warp(t, t, transform, size, size, False)
        with without_triton():
            penalties = stn.penalties.PENALTIES
            wanted = torch.stack([penalties[name](warp, points=points, **o) for name, o in AT_WORK.items()])
            (slope,) = torch.autograd.grad((wanted * torch.tensor(shares)).sum(), t)
        if BACKEND == "torch":
            t = torch.tensor(theta, requires_grad=True)
            got = torch.stack(of_each(t))
            (gradient,) = torch.autograd.grad((got * torch.tensor(shares.astype(dtype))).sum(), t)
            found = got.detach().numpy(), gradient.numpy()
        else:
            found = gradients(lambda t, f=of_each: ops.stack(f(t)), theta, shares.astype(dtype))
        close(found, (wanted.detach().numpy(), slope.numpy()), dtype, family)
        print("penalties", family, dtype, flush=True)
    theta = np.array([[1.0, 0.2, 0, 0.1, 1, 0.3]] * 2)
    with np.errstate(all="raise"):
        both = numbers(stn.keras.penalty(theta, "affine", identity=2.0, fold=0.5, margin=2.0))
    single = [numbers(stn.keras.penalty(theta, "affine", margin=2.0, **w)) for w in ({"identity": 1.0}, {"fold": 1.0})]
    assert abs(both - 2 * single[0] - 0.5 * single[1]) < 1e-12
    assert single[0] > 0 < single[1]
    nothing = numbers(stn.keras.penalty(theta[:0], "affine", identity=1.0, fold=0.0))
    assert nothing.shape == ()
    assert nothing == 0


def check_antialias(*, everything):
    """Antialiased reading: value, and the gradients by image and by theta or positions."""
    rng = np.random.default_rng(0)
    cases = [  # whose steps are: of a matrix, of the horizon, of a family, of neighbours
        ("affine", "zeros", "bilinear", False),
        ("projective", "border", "bilinear", True),
        ("displacement", "reflection", "bilinear", False),
        (None, "constant", "bicubic", False),
        ("cpab", "circular", "bilinear", True),
        ("affine in 1D", "border", "bilinear", False),
        ("displacement in 3D", "zeros", "bilinear", False),
        ("composed", "border", "lanczos3", False),
        ("cpab in 1D", "constant", "nearest", True),
    ]
    for number, (name, padding, mode, align_corners) in enumerate(cases):
        if not (everything or BACKEND == "torch") and number not in {"jax": (2, 3), "tensorflow": (0, 1)}[BACKEND]:
            continue
        transform = stn.Affine() if name is None else BENT[name]
        d, dtype = transform.ndim, DTYPES[(number + (BACKEND == "jax")) % 2]
        in_size, size = ((8,), (5, 8), (4, 3, 4))[d - 1], ((3,), (2, 3), (2, 1, 2))[d - 1]
        fill = [0.7, -1.3] if padding == "constant" else 0.0
        options = {"mode": mode, "padding_mode": padding, "fill": fill, "align_corners": align_corners}
        image, weights = rng.normal(size=(2, *in_size, 2)), rng.normal(size=(2, *size, 2))
        theta = transform.identity().numpy() + 0.1 * rng.normal(size=(2, transform.num_params))
        if name is None:
            theta = transform.grid(torch.tensor(theta), size).numpy()
        arrays = [a.astype(dtype) for a in (image, theta, weights)]

        def read(image, theta, options=options, name=name, size=size, transform=transform):
            options = {**options, "antialias": True, "data_format": "channels_last"}
            if name is None:
                return stn.keras.sample(image, theta, **options)
            return stn.keras.warp(image, theta, size, transform=transform, **options)

        got = frameworks.differentiated(read, compiled=BACKEND == "jax" or everything)(*arrays)
        i, t, w = (torch.tensor(a.astype("float64")) for a in arrays)
        i.requires_grad_(), t.requires_grad_()
        planes = i.movedim(-1, 1)
        with stn.ops.use_backend("reference"), without_triton():
            if name is None:
                out = stn.sample(planes, t, antialias=True, **options)
            else:
                out = stn.warp(planes, t, size, transform=transform, antialias=True, **options)
            out = out.movedim(1, -1)
            wanted = [out.detach(), *torch.autograd.grad((out * w).sum(), (i, t))]
        close(got, [a.numpy() for a in wanted], dtype, ("antialias", name, padding, mode))
        plain = numbers(stn.keras.warp(image, np.eye(d, d + 1)[None], size, data_format="channels_last"))
        assert abs(plain - wanted[0].numpy()).max() > 0.05
        print("antialias", name, padding, mode, dtype, flush=True)
    matrices = np.array([[[1.9, 0.1, 0.1], [0, 2.1, 0], [0.1, 0.2, 1.0]]])
    image = rng.normal(size=(2, 5, 8, 2))
    for matrix in (matrices, -matrices, matrices[:, :2]):  # one for both images
        got = stn.keras.warp(image, matrix, (3, 4), antialias=True, data_format="channels_last")
        with without_triton():
            wanted = stn.warp(torch.tensor(image).movedim(-1, 1), torch.tensor(matrix), (3, 4), antialias=True)
        assert abs(numbers(got) - wanted.movedim(1, -1).numpy()).max() < 1e-12


def check_layer():
    """fit, save, load; an open batch; compiled where the framework compiles."""
    rng = np.random.default_rng(0)
    images, classes = rng.random((40, 12, 12, 1), dtype="float32"), rng.integers(0, 3, 40)
    transform = stn.Similarity(max_angle=1.0) @ stn.ThinPlateSpline((2, 2))
    localizer = keras.Sequential(
        [layers.Flatten(), layers.Dense(4, activation="tanh"), stn.keras.identity_head(transform)]
    )
    penalties = {"identity": 0.5, "fold": 1.0, "margin": 2.0, "points": 5}
    seen = stn.keras.SpatialTransformer(localizer, transform, (8, 9), data_format="channels_last", penalties=penalties)
    model = keras.Sequential([keras.Input((12, 12, 1)), seen, layers.Flatten(), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=BACKEND != "torch")
    assert model.layers[0].output.shape == (None, 8, 9, 1)
    model.fit(images, classes, epochs=1, batch_size=16, verbose=0)  # the last batch has 8
    assert abs(numbers(localizer.layers[-1].kernel)).max() > 0
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.keras")
        again = keras.models.load_model(Path(folder) / "model.keras")
    kept, config = again.layers[0].get_config(), seen.get_config()
    assert {k: v for k, v in kept.items() if k != "localizer"} == {k: v for k, v in config.items() if k != "localizer"}
    assert seen.get_config()["transform"] == transform.config()
    assert (model.predict(images[:5], verbose=0) == again.predict(images[:5], verbose=0)).all()
    # What the layer adds to the loss is what its penalties say of its theta.
    added = numbers(again.evaluate(images[:8], classes[:8], batch_size=8, verbose=0))
    scores = model(images[:8])
    alone = numbers(loss(classes[:8], scores))
    wanted = numbers(stn.keras.penalty(seen.theta(images[:8]), transform, (12, 12), **penalties))
    assert wanted > 0.5
    assert abs(added - alone - wanted) < 1e-5


def check_compiled(*, everything):
    """Compiled whole with an open batch, and mapped over a further axis."""
    names = None if everything else ["affine", "tps"]
    for name, by_type in frameworks.differences(names, ["float32"], compiled=True).items():
        assert max(by_type["float32"][:3]) <= TOLERANCE["float32"], (name, by_type)
    image, theta = np.random.default_rng(0).normal(size=(3, 2, 5, 6, 1)), np.array([[1.0, 0.2, 0, 0.1, 1, 0.3]] * 2)
    theta = np.stack([theta, 2 * theta, 3 * theta])

    def warp(image, theta):
        return stn.keras.warp(image, theta, transform="affine", data_format="channels_last")

    one_by_one = np.stack([numbers(warp(i, t)) for i, t in zip(image, theta, strict=True)])
    if BACKEND == "jax":
        import jax

        mapped = jax.jit(jax.vmap(warp))(image, theta)
        slopes = jax.vmap(jax.grad(lambda i, t: warp(i, t).sum(), 1))(image, theta)
        assert np.isfinite(np.asarray(slopes)).all()
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True, input_signature=[tf.TensorSpec((None, 5, 6, 1)), tf.TensorSpec((None, 6))])
        def opened(image, theta):
            return warp(image, theta)

        for count in (1, 2):
            got = opened(image[0, :count].astype("float32"), theta[0, :count].astype("float32"))
            assert abs(got.numpy() - one_by_one[0, :count]).max() < 1e-5
        mapped = tf.vectorized_map(lambda both: warp(*both), (tf.constant(image), tf.constant(theta)))
    else:
        mapped = torch.func.vmap(warp)(torch.tensor(image), torch.tensor(theta))
    assert abs(numbers(mapped) - one_by_one).max() < 1e-12


def numbers(array):
    return ops.convert_to_numpy(array)


def main(what):
    if BACKEND == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    everything = what == "everything"
    check_families(everything=everything)
    check_reading(everything=everything)
    check_corners_of_the_rules(everything=everything)
    check_penalties(everything=everything)
    check_antialias(everything=everything)
    if BACKEND != "torch":
        check_who_reads()
    check_refusals()
    check_layer()
    check_compiled(everything=everything)
    print("held")


if __name__ == "__main__":
    main(sys.argv[1])
