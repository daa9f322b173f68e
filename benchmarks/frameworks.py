"""`stn.keras` under each framework: how far it is from the reference in float64, and how fast it is beside others' code.

    python -m benchmarks.frameworks                          # everything, into docs/keras.md
    python -m benchmarks.frameworks differences jax          # one framework's differences, as JSON
    python -m benchmarks.frameworks speed tensorflow         # one framework's times beside other code, as JSON

Each framework has a process of its own: Keras chooses when it is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stn
from stn.transforms import TRANSFORMS, AbstractTransform

FRAMEWORKS = ("tensorflow", "jax", "torch")
PAGE = Path(__file__).parents[1] / "docs" / "keras.md"
SIZES = {1: ((9,), (7,)), 2: ((9, 8), (6, 7)), 3: ((4, 5, 6), (3, 4, 5))}  # of the image and of the output


def families() -> dict[str, AbstractTransform]:
    """Every family in 2D, in 1D and 3D where that is other code, with the options that are, and compositions."""
    made = {name: family() for name, family in TRANSFORMS.items() if name != "compose"}
    return made | {
        "cpab": stn.CPAB(steps=10),  # what other frameworks take where the CPU is exact
        "affine in 1D": stn.Affine(1),
        "affine in 3D": stn.Affine(3),
        "similarity, bounded": stn.Similarity(max_angle=1.0, max_scale=2.0, max_shift=0.5),
        "similarity in 3D": stn.Similarity(3),
        "similarity in 3D by 6 numbers": stn.Similarity(3, rotation="6d"),
        "projective in 3D": stn.Projective(3),
        "tps in 3D": stn.ThinPlateSpline((2, 3, 3)),
        "tps on two rows, by points": stn.ThinPlateSpline.two_rows(8, theta_is="points"),
        "bspline in 3D, 2 levels": stn.BSpline((3, 3, 3), levels=2),
        "displacement in 3D": stn.DisplacementField((3, 3, 3)),
        "velocity in 1D": stn.VelocityField((5,)),
        "velocity in 3D": stn.VelocityField((3, 3, 3)),
        "cpab in 1D": stn.CPAB((4,)),
        "cpab in 3D": stn.CPAB((2, 2, 2), steps=10),
        "polar, log": stn.Polar(log=True),
        "affine @ projective": stn.Affine() @ stn.Projective(),
        "similarity @ tps": stn.Similarity() @ stn.ThinPlateSpline((3, 3)),
        "tps @ cpab": stn.ThinPlateSpline((3, 3)) @ stn.CPAB((2, 2), steps=10),
        "velocity @ rotation": stn.VelocityField((3, 3)) @ stn.Rotation(),
    }


def problem(transform: AbstractTransform, dtype: str) -> list[np.ndarray]:
    """An image, theta, and weights that the output is summed with, near no kink: the first of which the reference says the
    same gradient in float32."""
    in_size, size = SIZES[transform.ndim]
    for seed in range(50):
        rng = np.random.default_rng(seed)
        image, weights = rng.normal(size=(2, *in_size, 3)), rng.normal(size=(2, *size, 3))
        theta = transform.identity().numpy() + 0.2 * rng.normal(size=(2, transform.num_params))
        arrays = [a.astype(dtype) for a in (image, theta, weights)]
        exact, narrow = truth(transform, *arrays)[2], truth(transform, *arrays, dtype=torch.float32)[2]
        if abs(exact - narrow).max() < 1e-5 * max(1.0, abs(exact).max()):
            break
    return arrays


def truth(
    transform: AbstractTransform,
    image: np.ndarray,
    theta: np.ndarray,
    weights: np.ndarray,
    dtype: torch.dtype = torch.float64,
) -> list[np.ndarray]:
    """The output, and the gradients of its weighted sum by image and theta, by torch's reference."""
    i, t, w = (torch.tensor(a, dtype=dtype) for a in (np.moveaxis(image, -1, 1), theta, np.moveaxis(weights, -1, 1)))
    i.requires_grad_(), t.requires_grad_()
    with stn.ops.use_backend("reference"):
        out = stn.warp(i, t, SIZES[transform.ndim][1], transform=transform, padding_mode="border")
        for_image, for_theta = torch.autograd.grad((out * w).sum(), (i, t))
    return [out.detach().movedim(1, -1).numpy(), for_image.movedim(1, -1).numpy(), for_theta.numpy()]


def differentiated(function: Callable[[Any, Any], Any], *, compiled: bool) -> Callable[..., list[np.ndarray]]:
    """A function of an image and theta, as one of (image, theta, weights) that gives the output and the gradients of its
    weighted sum, in the framework behind Keras."""
    import keras

    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def with_tape(image: Any, theta: Any, weights: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch([image, theta])
                out = function(image, theta)
                loss = tf.reduce_sum(out * weights)
            return (out, *map(tf.convert_to_tensor, tape.gradient(loss, [image, theta])))

        run = tf.function(with_tape, jit_compile=True) if compiled else with_tape
        return lambda *arrays: [r.numpy() for r in run(*map(tf.constant, arrays))]
    if backend == "jax":
        import jax

        def loss(image: Any, theta: Any, weights: Any) -> Any:
            out = function(image, theta)
            return (out * weights).sum(), out

        def with_grad(*arrays: Any) -> Any:
            (_, out), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(*arrays)
            return (out, *gradients)

        run = jax.jit(with_grad) if compiled else with_grad
        return lambda *arrays: [np.asarray(r) for r in run(*map(jax.numpy.asarray, arrays))]

    def with_autograd(*arrays: np.ndarray) -> list[np.ndarray]:
        image, theta, weights = (torch.tensor(a) for a in arrays)
        image.requires_grad_(), theta.requires_grad_()
        out = function(image, theta)
        return [r.detach().numpy() for r in (out, *torch.autograd.grad((out * weights).sum(), (image, theta)))]

    return with_autograd


def differences(names: list[str] | None, dtypes: list[str], *, compiled: bool = True) -> dict[str, Any]:
    """By family and type: the largest differences of value, image gradient and theta gradient, each over the largest
    number (at least 1) of what it is compared with; and the seconds of this process that it took, export and all."""
    import stn.keras

    results: dict[str, Any] = {}
    for name, transform in families().items():
        if names is not None and name not in names:
            continue
        for dtype in dtypes:
            arrays = problem(transform, dtype)
            size = SIZES[transform.ndim][1]

            def warp(image: Any, theta: Any, size: Any = size, transform: Any = transform) -> Any:
                return stn.keras.warp(
                    image, theta, size, transform=transform, padding_mode="border", data_format="channels_last"
                )

            start = time.process_time()
            got = differentiated(warp, compiled=compiled)(*arrays)
            seconds = time.process_time() - start
            wanted = truth(transform, *arrays)
            assert all(g.dtype == dtype and g.shape == w.shape for g, w in zip(got, wanted, strict=True)), name
            errors = [float(abs(g - w).max() / max(1.0, abs(w).max())) for g, w in zip(got, wanted, strict=True)]
            results.setdefault(name, {})[dtype] = [*errors, seconds]
            print(name, dtype, *(f"{e:.1e}" for e in errors), f"{seconds:.1f} s", file=sys.stderr, flush=True)
    return results


# Speed


CASES = {
    "16, 64 x 64, 3 channels": (16, 64, 3),
    "64, 28 x 28, 1 channel": (64, 28, 1),
    "4, 224 x 224, 3 channels": (4, 224, 3),
}


def gathered(xp: Any, take: Callable[[Any, Any], Any], image: Any, theta: Any) -> Any:
    """What the many copies of this code do: a grid by a product, four corners, zeros beyond the border."""
    batch, height, width, channels = image.shape
    y, x = np.meshgrid(*((2 * np.arange(n, dtype="float32") + 1) / n - 1 for n in (height, width)), indexing="ij")
    points = xp.asarray(np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3))
    where = xp.einsum("nk,bik->bni", points, xp.reshape(theta, (batch, 2, 3)))
    x, y = ((where[..., 0] + 1) * width - 1) / 2, ((where[..., 1] + 1) * height - 1) / 2
    left, top = xp.floor(x), xp.floor(y)
    flat, start = (
        xp.reshape(image, (-1, channels)),
        xp.asarray(np.arange(batch, dtype="int32")[:, None] * (height * width)),
    )
    out = 0.0
    for column, of_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, of_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            i, j = (xp.clip(v, 0, n - 1).astype("int32") for v, n in ((row, height), (column, width)))
            out = out + take(flat, start + i * width + j) * xp.where(inside, of_x * of_y, 0.0)[..., None]
    return xp.reshape(out, image.shape)


def contenders(framework: str, size: int, channels: int) -> dict[str, Callable[[Any, Any], Any]]:
    """Functions of an image (B, size, size, C) and theta (B, 6) with the same numbers."""
    import keras
    from keras import ops

    import stn.keras

    def ours(image: Any, theta: Any) -> Any:
        return stn.keras.warp(image, theta, transform="affine", data_format="channels_last")

    def in_pixels(theta: Any) -> list[Any]:
        """Rows of the matrix for pixel indices, the centre of the first pixel at 0."""
        a, b, c, d, e, f = (theta[:, k] for k in range(6))
        half = (size - 1) / 2
        return [a, b, half - half * (a + b) + c * size / 2, d, e, half - half * (d + e) + f * size / 2]

    def of_keras(image: Any, theta: Any) -> Any:
        rows = in_pixels(theta)
        eight = ops.stack([*rows, 0 * rows[0], 0 * rows[0]], 1)
        return keras.ops.image.affine_transform(image, eight, data_format="channels_last")

    def on_ops(image: Any, theta: Any) -> Any:
        with stn.ops.use_backend("reference"):
            return ours(image, theta)

    found = {"stn.keras": ours, "keras.ops.image.affine_transform": of_keras}
    if framework == "tensorflow":
        ours.jit = False  # type: ignore[attr-defined]
        found["stn.keras, jit_compile"] = on_ops
    if framework == "jax":
        found['stn.keras, `use_backend("reference")`'] = on_ops
        import jax
        from jax import numpy as jnp

        def map_coordinates(image: Any, theta: Any) -> Any:
            index = jnp.arange(size, dtype=jnp.float32)
            y, x = jnp.meshgrid(index, index, indexing="ij")

            def one(image: Any, row: Any) -> Any:
                a, b, c, d, e, f = row
                where = [d * x + e * y + f, a * x + b * y + c]
                return jax.vmap(lambda plane: jax.scipy.ndimage.map_coordinates(plane, where, 1), 2, 2)(image)

            return jax.vmap(one)(image, jnp.stack(in_pixels(theta), 1))

        found["jax.scipy.ndimage.map_coordinates"] = map_coordinates
        found["gather code"] = lambda image, theta: gathered(
            jnp, lambda flat, i: jnp.take(flat, i, axis=0), image, theta
        )
    if framework == "tensorflow":
        import tensorflow as tf

        numpy_like = tf.experimental.numpy
        numpy_like.experimental_enable_numpy_behavior()
        found["gather code"] = lambda image, theta: gathered(numpy_like, tf.gather, image, theta)
    return found


def speed(framework: str, seconds: float = 2.0) -> dict[str, Any]:
    """By case and contender: milliseconds of the warp, and of it with the gradients of image and theta, compiled; the best
    of rounds in which the contenders take turns. None where one has no gradient or does not compile."""
    results: dict[str, Any] = {}
    for case, (batch, size, channels) in CASES.items():
        rng = np.random.default_rng(0)
        image = rng.random((batch, size, size, channels), dtype="float32")
        theta = (np.array([[0.9, -0.3, 0.05, 0.3, 0.9, -0.05]]) + 0.02 * rng.normal(size=(batch, 6))).astype("float32")
        steps = {
            name: compiled(f, framework, image, theta) for name, f in contenders(framework, size, channels).items()
        }
        first = None
        for name, (forward, _) in steps.items():
            got = np.asarray(forward())
            first = got if first is None else first
            # Others blend the border with their zeros by rules of their own.
            inner = (slice(None), *[slice(size // 3, -(size // 3))] * 2)
            assert abs(got - first)[inner].max() < 1e-3, name
        best = {name: [float("inf") if run else None for run in pair] for name, pair in steps.items()}
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for name, pair in steps.items():
                for k, run in enumerate(pair):
                    if run is not None:
                        start = time.perf_counter()
                        run()
                        best[name][k] = min(best[name][k], 1e3 * (time.perf_counter() - start))
        results[case] = best
        print(case, best, file=sys.stderr, flush=True)
    return results


def compiled(function: Callable[..., Any], framework: str, *arrays: np.ndarray) -> tuple[Callable[[], Any], Any]:
    """The function of the arrays, and it with the gradients of its sum, or None; compiled and run once."""
    if framework == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(a) for a in arrays]

        def both(*tensors: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                loss = tf.reduce_sum(function(*tensors) ** 2)
            return tape.gradient(loss, tensors)

        try:
            jit = getattr(function, "jit", True)
            tf.function(function, jit_compile=jit)(*tensors)
        except tf.errors.InvalidArgumentError:  # XLA has no such op
            jit = False
        forward = tf.function(function, jit_compile=jit)
        backward = tf.function(both, jit_compile=jit)
        runs = (lambda: forward(*tensors).numpy(), lambda: [g.numpy() for g in backward(*tensors)])
    elif framework == "jax":
        import jax

        tensors = [jax.numpy.asarray(a) for a in arrays]
        forward = jax.jit(function)
        backward = jax.jit(jax.grad(lambda *a: (function(*a) ** 2).sum(), (0, 1)))
        runs = (lambda: jax.block_until_ready(forward(*tensors)), lambda: jax.block_until_ready(backward(*tensors)))
    else:
        tensors = [torch.tensor(a) for a in arrays]

        def plain() -> Any:
            with torch.no_grad():
                return function(*tensors)

        def with_gradients() -> Any:
            leaves = [t.clone().requires_grad_() for t in tensors]
            return torch.autograd.grad((function(*leaves) ** 2).sum(), leaves)

        runs = (plain, with_gradients)
    runs[0]()
    try:
        runs[1]()
    except Exception as error:  # whatever a framework raises where it has no gradient
        print(f"no gradient: {type(error).__name__} {str(error)[:100]}", file=sys.stderr)
        return runs[0], None
    return runs


# The page


def table(found: dict[str, Any]) -> str:
    """The differences of all frameworks, one line a family."""
    lines = [
        f"| family | {' | '.join(f'{framework}, {dtype}' for framework in found for dtype in ('float32', 'float64'))} |",
        f"|---{'|---' * 2 * len(found)}|",
    ]
    for name in next(iter(found.values())):
        cells = []
        for of_framework in found.values():
            for dtype in ("float32", "float64"):
                value, for_image, for_theta, _ = of_framework[name][dtype]
                cells.append(f"{value:.0e} {for_image:.0e} {for_theta:.0e}".replace("e-0", "e-"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def times(found: dict[str, Any]) -> str:
    lines = ["| framework | images | | warp | with gradients |", "|---|---|---|---|---|"]
    for framework, cases in found.items():
        for case, contenders in cases.items():
            for name, pair in contenders.items():
                cells = [f"{t:.2f} ms" if t is not None else "none" for t in pair]
                lines.append(f"| {framework} | {case} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(page: Path, **parts: str) -> None:
    """Puts each part between its marks in the page."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        assert mark.search(text), name
        text = mark.sub(lambda found, part=part: f"{found[1]}\n{part}\n\n{found[2]}", text)
    part_file = page.with_suffix(".part")
    part_file.write_text(text, encoding="utf-8")
    part_file.replace(page)


def measured(what: str, framework: str) -> dict[str, Any]:
    """A part, by a process of its own."""
    environment = {**os.environ, "KERAS_BACKEND": framework, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-m", "benchmarks.frameworks", what, framework]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("differences", "speed"), help="both, and the page, unless given")
    parser.add_argument("framework", nargs="?", choices=FRAMEWORKS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.framework is None:
        wanted = ("differences", "speed") if options.what is None else (options.what,)
        made = {"differences": table, "speed": times}
        write(options.page, **{what: made[what]({f: measured(what, f) for f in FRAMEWORKS}) for what in wanted})
        return
    torch.set_num_threads(1)
    if options.what == "differences":
        print(json.dumps(differences(None, ["float32", "float64"])))
    else:
        print(json.dumps(speed(options.framework)))


if __name__ == "__main__":
    main()
