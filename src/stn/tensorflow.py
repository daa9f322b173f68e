"""The native backend's kernels as ops of TensorFlow, on the CPU and outside of `jit_compile`.

What front ends for TensorFlow read images with: `unavailable` says whether there are ops, `refuses` why they do not run a
case, `read` runs it.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from .ops import cpu
from .reading import Reading

Array = Any
_LIBRARY = "_native.tensorflow.so"


@functools.cache
def unavailable() -> str | None:
    """Why there are no ops. The first call loads them."""
    try:
        _ops()
    except (ImportError, OSError) as error:
        return str(error)
    return None


def refuses(kind: str, reading: Reading) -> str | None:
    """Why `read` does not run this here, or None: there is no op of ours in what XLA compiles, nor where a program is
    saved that is loaded without `stn`. TensorFlow traces a function once more to save it."""
    if unavailable() is not None:
        return unavailable()
    if kind not in ("affine", "projective", "grid") or reading.kernel not in cpu._MODES:
        return f"there is no op for kind {kind!r} and kernel {reading.kernel!r}"
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util
    from tensorflow.python.saved_model import save_context

    if _has_accelerator():
        return "TensorFlow has a device that is no CPU"
    if save_context.in_save_context():
        return "a program is being saved, which is loaded without stn"
    if not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        return "XLA compiles"
    return None


@functools.cache
def _has_accelerator() -> bool:
    import tensorflow as tf

    return any(device.device_type not in ("CPU", "XLA_CPU") for device in tf.config.list_physical_devices())


def read(
    image: Array,  # (B, C, *in), or (B, *in, C) where `last`; float16, bfloat16, float32, float64, or uint8
    kind: str,  # "affine", "projective" or "grid"
    values: Array,  # (B, d, d+1) | (B, d+1, d+1) with denominators positive on the visible side | (B, *size, d)
    size: tuple[int, ...],
    reading: Reading,
    last: bool,
) -> Array:
    """Reads an image at coordinates of the same batch: (B, C, *size) or (B, *size, C), in the image's type.

    Differentiable in the image and the coordinates. The kernels have first derivatives; further ones, in reverse mode, are
    those of `stn.keras` on ops of TensorFlow.

    Raises:
        tensorflow.errors.InvalidArgumentError: for shapes and types that do not fit.
    """
    import tensorflow as tf

    working = tf.float64 if image.dtype == tf.float64 else tf.float32
    fill = tf.zeros((0,), working)
    if reading.fill is not None:
        channels = tf.shape(image)[-1 if last else 1]
        fill = tf.broadcast_to(tf.constant(reading.fill.to(torch.float64).numpy(), working), (channels,))
    options = [0, cpu._COORDINATES[kind], cpu._MODES[reading.kernel], cpu._PADDINGS[reading.padding]]
    options += [int(reading.align_corners), int(last), cpu.threads()]
    wanted = tf.constant(size, tf.int64)
    out = _ops().stn_warp(image=image, coordinates=tf.cast(values, working), fill=fill, size=wanted, options=options)
    shape = (image.shape[0], *size, image.shape[-1]) if last else (image.shape[0], image.shape[1], *size)
    return tf.ensure_shape(out, shape)


def missing() -> str | None:
    """What is missing for the ops, as far as can be said without TensorFlow, which takes seconds to import."""
    if not sys.platform.startswith("linux"):
        return "the native kernels are for TensorFlow on Linux alone"
    if cpu._native is None:
        return f"the native backend {cpu._reason}"
    if not _library().exists():
        return f"{_LIBRARY} is not beside the native backend"
    return None if importlib.util.find_spec("tensorflow") else "TensorFlow is not installed"


def _library() -> Path:
    return Path(cpu._native.__file__).with_name(_LIBRARY)


@functools.cache
def _ops() -> Any:
    reason = missing()
    if reason is not None:
        raise ImportError(reason)
    import tensorflow as tf

    try:
        ops = tf.load_op_library(str(_library()))
    except tf.errors.OpError as error:
        raise ImportError(f"TensorFlow {tf.__version__} does not load {_LIBRARY}: {error.message}") from error
    if not hasattr(ops, "stn_warp"):
        raise ImportError(f"TensorFlow {tf.__version__} has no C interface for kernels that {_LIBRARY} knows")

    @tf.RegisterGradient("StnWarp")
    def _(op: Any, grad: Array) -> tuple[Array | None, ...]:
        image, values, fill, _ = op.inputs
        options = op.get_attr("options")
        if not image.dtype.is_floating:
            return None, tf.zeros_like(values), None, None
        for_image = ops.stn_warp_grad_image(
            shape=tf.shape(image, tf.int64), coordinates=values, gradient=grad, options=options
        )
        for_image = tf.ensure_shape(tf.cast(for_image, image.dtype), image.shape)
        if options[2] == cpu._MODES["nearest"]:
            return for_image, tf.zeros_like(values), None, None
        for_values = ops.stn_warp_grad_coordinates(
            image=image, coordinates=values, gradient=grad, fill=fill, options=options
        )
        return for_image, tf.ensure_shape(for_values, values.shape), None, None

    @tf.RegisterGradient("StnWarpGradImage")
    def _(op: Any, along: Array) -> tuple[Array | None, ...]:
        shape, values, grad = op.inputs
        image = tf.ensure_shape(tf.zeros(shape, along.dtype), along.shape)  # whose numbers, and the fill, do not matter
        wide = tf.cast(grad, along.dtype)
        _, for_values, for_grad = _second(op, 0, image, values, wide, tf.zeros((0,), along.dtype), along)
        return None, for_values, tf.cast(for_grad, grad.dtype)

    @tf.RegisterGradient("StnWarpGradCoordinates")
    def _(op: Any, along: Array) -> tuple[Array | None, ...]:
        image, values, grad, fill = op.inputs
        wide = tf.cast(image, along.dtype), values, tf.cast(grad, along.dtype)
        for_image, for_values, for_grad = _second(op, 1, *wide, fill, along)
        return tf.cast(for_image, image.dtype), for_values, tf.cast(for_grad, grad.dtype), None

    return ops


def _second(op: Any, which: int, image: Array, values: Array, grad: Array, fill: Array, along: Array) -> list[Array]:
    """The gradients of <along, gradient of the read by image (0) or values (1)> by image, values and `grad`."""
    import tensorflow as tf

    from .keras import on_ops
    from .keras.backends import BACKEND

    if BACKEND != "tensorflow":
        raise ValueError(f"second derivatives: expected TensorFlow behind Keras, on whose ops they are, got {BACKEND}")
    kind, mode, padding, align_corners, last, _ = op.get_attr("options")[1:]
    name = {code: name for name, code in cpu._COORDINATES.items()}[kind]
    kernel = {code: name for name, code in cpu._MODES.items()}[mode]
    beyond = {code: name for name, code in cpu._PADDINGS.items()}[padding]
    background = None if beyond != "constant" else fill if which else tf.zeros((1,), image.dtype)
    reading = Reading(kernel, beyond, background, bool(align_corners))
    size = tuple(grad.shape[1:-1] if last else grad.shape[2:])
    inputs = [image, values, grad]
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            out = on_ops.read(image, name, values, size, reading, bool(last))
        first = inner.gradient(out, inputs[which], grad, unconnected_gradients="zero")
    return list(outer.gradient(first, inputs, along, unconnected_gradients="zero"))
