"""What the ops for TensorFlow promise, in a process of its own: TensorFlow takes seconds to import, and brings an LLVM.

    python -m tests.tensorflow_contract

Ends with "held"; an assertion ends it otherwise.
"""

from __future__ import annotations

import itertools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import tensorflow as tf
import torch

import stn
import stn.tensorflow
from stn.ops import cpu
from stn.reading import check_reading

MODES, PADDINGS = ("nearest", "bilinear", "bicubic"), ("zeros", "border", "reflection", "circular", "constant")
TOLERANCE = {"float64": 1e-11, "float32": 3e-5, "bfloat16": 2e-2, "float16": 3e-3}  # of the largest of 1 and the values


def values_and_both_gradients(kind, d, dtype, mode, padding, align, last):
    rng = np.random.default_rng(0)
    size, out = ((7, 9), (5, 6)) if d == 2 else ((4, 5, 6), (3, 4, 5))
    matrix = np.eye(d, d + 1)[None] + 0.3 * rng.normal(size=(2, d, d + 1))
    values = {
        "affine": matrix,
        "projective": np.concatenate([matrix, [[[*(0.2, -0.1, 0.1)[:d], 1.0]]] * 2], 1),
        "grid": rng.uniform(-1.5, 1.5, size=(2, *out, d)),
    }[kind]
    values = tf.constant(values, "float64" if dtype == "float64" else "float32")
    move = (lambda a: np.moveaxis(a, 1, -1)) if last else (lambda a: a)
    back = (lambda a: np.moveaxis(a, -1, 1)) if last else (lambda a: a)
    image = tf.cast(tf.constant(move(rng.normal(size=(2, 3, *size)))), dtype)
    grad = tf.cast(tf.constant(move(rng.normal(size=(2, 3, *out)))), dtype)
    fill = 0.7 if padding == "constant" else 0.0
    assert stn.tensorflow.refuses(kind, check_reading(mode, padding, fill, align)) is None
    with tf.GradientTape() as tape:
        tape.watch((image, values))
        got = stn.tensorflow.read(image, kind, values, out, check_reading(mode, padding, fill, align), last)
    assert got.dtype == dtype
    found = (got, *tape.gradient(got, (image, values), grad))
    wide = lambda a: tf.cast(a, "float64").numpy()  # noqa: E731
    options = {"mode": mode, "padding_mode": padding, "fill": fill, "align_corners": align}
    ti, tv = torch.tensor(back(wide(image)), requires_grad=True), torch.tensor(wide(values), requires_grad=True)
    with stn.ops.use_backend("reference"):
        wanted = stn.sample(ti, tv, **options) if kind == "grid" else stn.warp(ti, tv, out, **options)
    upstream = torch.tensor(back(wide(grad)))
    gradients = torch.autograd.grad(wanted, (ti, tv), upstream, allow_unused=True, materialize_grads=True)
    for one, other, what in zip(found, (wanted, *gradients), ("value", "image", "coordinates"), strict=True):
        one = wide(one) if what == "coordinates" else back(wide(one))
        other = other.detach().numpy()
        difference = np.abs(one - other).max() / max(1.0, np.abs(other).max())
        assert difference <= TOLERANCE[dtype], (what, difference, kind, d, dtype, mode, padding, align, last)


def every_case():
    kinds = itertools.cycle(("affine", "projective", "grid"))
    layouts = itertools.cycle((False, True, True, False))
    for mode, padding, align, dtype in itertools.product(MODES, PADDINGS, (False, True), ("float32", "float64")):
        values_and_both_gradients(next(kinds), 2, dtype, mode, padding, align, next(layouts))
    for mode, padding in itertools.product(MODES, PADDINGS):
        values_and_both_gradients(next(kinds), 3, "float32", mode, padding, False, next(layouts))
    for dtype, mode in itertools.product(("bfloat16", "float16"), MODES):
        values_and_both_gradients("affine", 2, dtype, mode, "border", False, next(layouts))


def in_functions():
    """An open batch in a graph; inside of `jit_compile` the ops step aside."""
    reading, seen = check_reading("bilinear", "zeros"), []
    image, theta = tf.random.normal((3, 6, 7, 2)), tf.eye(2, 3, (3,)) * 0.9

    def step(image, theta):
        seen.append(stn.tensorflow.refuses("affine", reading) is None)
        if not seen[-1]:
            return tf.reduce_sum(theta)
        with tf.GradientTape() as tape:
            tape.watch(theta)
            out = stn.tensorflow.read(image, "affine", theta, (4, 5), reading, True)
        assert out.shape.as_list() == [None, 4, 5, 2]
        return tape.gradient(out, theta)

    signature = [tf.TensorSpec((None, 6, 7, 2)), tf.TensorSpec((None, 2, 3))]
    graph = tf.function(step, input_signature=signature)
    for n in (3, 1, 0):
        assert graph(image[:n], theta[:n]).shape == (n, 2, 3)
    tf.function(step, input_signature=signature, jit_compile=True)(image, theta)
    assert seen == [True, False]


def what_is_wrong():
    ops = stn.tensorflow._ops()
    good = [0, cpu._COORDINATES["affine"], 1, 0, 0, 1, 1]
    image, theta, none, size = (
        tf.zeros((1, 4, 5, 2)),
        tf.zeros((1, 2, 3)),
        tf.zeros((0,)),
        tf.constant([4, 5], tf.int64),
    )

    def call(image=image, theta=theta, fill=none, size=size, options=good):
        return ops.stn_warp(image=image, coordinates=theta, fill=fill, size=size, options=options)

    def image_gradient(shape, grad):
        return ops.stn_warp_grad_image(
            shape=tf.constant(shape, tf.int64), coordinates=theta, gradient=grad, options=good
        )

    call()
    cases = {
        "rank": lambda: call(image=image[0]),
        "six axes": lambda: call(image=tf.zeros((1, 1, 1, 1, 1, 1))),
        "no axes": lambda: call(image=tf.zeros(())),
        "matrices": lambda: call(theta=theta[:, :1]),
        "the coordinates' type": lambda: call(theta=tf.cast(theta, tf.float64), fill=tf.cast(none, tf.float64)),
        "batches": lambda: call(theta=tf.zeros((2, 2, 3))),
        "three sizes": lambda: call(size=tf.constant([1, 2, 3], tf.int64)),
        "negative": lambda: call(size=tf.constant([-4, 5], tf.int64)),
        "enormous": lambda: call(size=tf.constant([2**40, 2**40], tf.int64)),
        "no pixels": lambda: call(image=image[:, :0]),
        "options": lambda: call(options=good[:3]),
        "fill": lambda: call(fill=tf.zeros((3,)), options=[*good[:3], cpu._PADDINGS["constant"], *good[4:]]),
        **{f"option {k}": lambda k=k: call(options=[*good[:k], 99, *good[k + 1 :]]) for k in range(1, 6)},
        "shape": lambda: image_gradient([1, 4, 5], image),
        "negative shape": lambda: image_gradient([1, -4, 5, 2], image),
        "enormous shape": lambda: image_gradient([2**40, 2**40, 5, 2], image),
        "other channels": lambda: image_gradient([1, 4, 5, 3], image),
        "the nearest": lambda: ops.stn_warp_grad_coordinates(
            image=image, coordinates=theta, gradient=image, fill=none, options=[0, 0, 0, 0, 0, 1, 1]
        ),
    }
    for name, case in cases.items():
        try:
            case()
        except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError):
            continue
        raise AssertionError(name)
    picture = tf.constant(np.random.default_rng(0).integers(0, 256, (1, 4, 5, 2)), tf.uint8)
    assert np.array_equal(call(image=picture, theta=tf.eye(2, 3, (1,))).numpy(), picture.numpy())


if __name__ == "__main__":
    torch.set_num_threads(1)
    every_case()
    in_functions()
    what_is_wrong()
    print("held")
