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
from stn.coordinates import Frame
from stn.transforms import TRANSFORMS, AbstractTransform

FRAMEWORKS = ("tensorflow", "jax", "torch")
PAGE = Path(__file__).parents[1] / "docs" / "keras.md"
SIZES = {1: ((9,), (7,)), 2: ((9, 8), (6, 7)), 3: ((4, 5, 6), (3, 4, 5))}  # of the image and of the output


def families() -> dict[str, AbstractTransform]:
    """Every family in 2D, in 1D and 3D where that is other code, with the options that are, and compositions."""
    made = {name: family() for name, family in TRANSFORMS.items() if name != "compose"}
    return made | {
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
        "cpab in 3D": stn.CPAB((2, 2, 2)),
        "polar, log": stn.Polar(log=True),
        "affine @ projective": stn.Affine() @ stn.Projective(),
        "similarity @ tps": stn.Similarity() @ stn.ThinPlateSpline((3, 3)),
        "tps @ cpab": stn.ThinPlateSpline((3, 3)) @ stn.CPAB((2, 2)),
        "velocity @ rotation": stn.VelocityField((3, 3)) @ stn.Rotation(),
    }


def problem(transform: AbstractTransform, dtype: str) -> list[np.ndarray]:
    """An image, theta, and weights that the output is summed with, near no kink: of the first theta whose gradient does
    not jump where it changes by a millionth."""
    in_size, size = SIZES[transform.ndim]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image, weights = rng.normal(size=(2, *in_size, 3)), rng.normal(size=(2, *size, 3))
        theta = transform.identity().numpy() + 0.2 * rng.normal(size=(2, transform.num_params))
        here, there = (truth(transform, image, t, weights)[2] for t in (theta, theta * (1 + 1e-6) + 1e-6))
        if abs(here - there).max() < 1e-4 * max(1.0, abs(here).max()):
            break
    return [a.astype(dtype) for a in (image, theta, weights)]


def truth(transform: AbstractTransform, image: np.ndarray, theta: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """The output, and the gradients of its weighted sum by image and theta, by torch's reference in float64."""
    i, t, w = (torch.tensor(a, dtype=torch.float64) for a in (np.moveaxis(image, -1, 1), theta, np.moveaxis(weights, -1, 1)))
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
