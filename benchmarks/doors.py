"""The native kernels under JAX and TensorFlow beside torch's call and the frameworks' own code: times over ours.

    python -m benchmarks.doors jax [--seconds S]
    python -m benchmarks.doors tensorflow [--seconds S]

One framework a process, the sides by turns in it, best times, all of them compiled where they can be. Prints a table.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import torch

import stn
from stn.reading import check_reading

SHAPES = ((64, 1, 28), (16, 3, 64), (4, 16, 128))
Side = dict[str, Callable[[], Any]]


def arrays(n: int, c: int, s: int) -> tuple[np.ndarray, np.ndarray]:
    """An image, channels last, and matrices."""
    rng = np.random.default_rng(0)
    return rng.random((n, s, s, c), "float32"), (np.eye(2, 3) + 0.1 * rng.normal(size=(n, 2, 3))).astype("float32")


def in_torch(image: np.ndarray, theta: np.ndarray) -> tuple[Callable[[], Any], Callable[[], Any]]:
    x = torch.tensor(np.ascontiguousarray(np.moveaxis(image, -1, 1)))
    t, one = torch.tensor(theta), torch.ones_like(x)
    kept = x.clone().requires_grad_(), t.clone().requires_grad_()

    def forward() -> Any:
        with torch.no_grad():
            return stn.warp(x, t)

    return forward, lambda: torch.autograd.grad(stn.warp(*kept), kept, one)


def in_jax(image: np.ndarray, theta: np.ndarray) -> tuple[Side, Side]:
    import jax
    from jax import numpy as jnp
    from jax.scipy.ndimage import map_coordinates

    import stn.jax

    x, t = jnp.asarray(image), jnp.asarray(theta)

    def by_map_coordinates(x: Any, t: Any) -> Any:
        s = x.shape[1]
        lattice = (2 * jnp.arange(s) + 1) / s - 1
        points = jnp.stack([*jnp.meshgrid(lattice, lattice), jnp.ones((s, s))])
        where = (jnp.einsum("bij,jhw->bihw", t, points) + 1) * s / 2 - 0.5
        one = jax.vmap(lambda plane, at: map_coordinates(plane, [at[1], at[0]], 1), (2, None), 2)
        return jax.vmap(one)(x, where)

    sides = {
        "ours": lambda x, t: stn.jax.warp(x, t, data_format="channels_last"),
        "jax.numpy": lambda x, t: stn.jax.warp(x, t, data_format="channels_last", native=False),
        "map_coordinates": by_map_coordinates,
    }
    forward, backward = {}, {}
    for name, side in sides.items():
        run, step = jax.jit(side), jax.jit(jax.grad(lambda x, t, side=side: side(x, t).sum(), (0, 1)))
        forward[name] = lambda run=run: jax.block_until_ready(run(x, t))
        backward[name] = lambda step=step: jax.block_until_ready(step(x, t))
    return forward, backward


def in_tensorflow(image: np.ndarray, theta: np.ndarray) -> tuple[Side, Side]:
    import tensorflow as tf

    import stn.tensorflow

    x, t = tf.constant(image), tf.constant(theta)
    reading, s = check_reading("bilinear", "zeros"), image.shape[1]
    lattice = (2 * tf.range(s, dtype=tf.float32) + 1) / s - 1
    points = tf.stack([*tf.meshgrid(lattice, lattice), tf.ones((s, s))])

    def by_gather(x: Any, t: Any) -> Any:
        where = (tf.einsum("bij,jhw->bhwi", t, points) + 1) * s / 2 - 0.5
        low = tf.floor(where)
        fraction, out = where - low, 0.0
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            at = tf.cast(low, tf.int32) + tf.constant((dx, dy))
            inside = tf.reduce_all((at >= 0) & (at < s), -1, keepdims=True)
            value = tf.gather_nd(x, tf.clip_by_value(at, 0, s - 1)[..., ::-1], batch_dims=1)
            weight = tf.abs(1.0 - dx - fraction[..., :1]) * tf.abs(1.0 - dy - fraction[..., 1:])
            out += tf.where(inside, value, 0.0) * weight
        return out

    sides = {
        "ours": (lambda x, t: stn.tensorflow.read(x, "affine", t, (s, s), reading, True), False),
        "gather": (by_gather, False),
        "gather, jit_compile": (by_gather, True),
    }
    forward, backward = {}, {}
    for name, (side, jit) in sides.items():

        def step(x: Any, t: Any, side: Any = side) -> Any:
            with tf.GradientTape() as tape:
                tape.watch((x, t))
                total = tf.reduce_sum(side(x, t))
            return tape.gradient(total, (x, t))

        run, both = tf.function(side, jit_compile=jit), tf.function(step, jit_compile=jit)
        forward[name] = lambda run=run: run(x, t).numpy()
        backward[name] = lambda both=both: [a.numpy() for a in both(x, t)]
    return forward, backward


def best(sides: Side, seconds: float) -> dict[str, float]:
    for side in sides.values():
        side()
    found = dict.fromkeys(sides, float("inf"))
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for name, side in sides.items():
            for _ in range(3):
                start = time.perf_counter()
                side()
                found[name] = min(found[name], time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("framework", choices=["jax", "tensorflow"])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape and step")
    arguments = parser.parse_args()
    make = {"jax": in_jax, "tensorflow": in_tensorflow}[arguments.framework]
    header = None
    for n, c, s in SHAPES:
        image, theta = arrays(n, c, s)
        for step, sides, torchs in zip(
            ("forward", "with gradients"), make(image, theta), in_torch(image, theta), strict=True
        ):
            times = best(sides | {"stn.warp in torch": torchs}, arguments.seconds)
            ours = times.pop("ours")
            if header is None:
                header = list(times)
                print(f"| images | step | ours, ms | {' | '.join(header)} |\n|---|---|{'---|' * (len(header) + 1)}")
            ratios = " | ".join(f"{times[name] / ours:.2f}" for name in header)
            print(f"| {n} x {s}x{s} x {c} | {step} | {1e3 * ours:.2f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
