"""Who reads the image under TensorFlow and JAX: the native kernels on the CPU, or ops of the framework, with the same numbers.

`stn.ops.use_backend` says which: "cpu" the native kernels, or a ValueError with the reason why not; "reference" ops of the
framework. Without it the native kernels read what they can.
"""

from __future__ import annotations

from keras import ops

from ..coordinates import MATRICES, Coordinates
from ..ops import cpu
from ..ops import reference as portable_backend
from ..ops.dispatch import asked_for
from ..reading import Reading
from . import families, on_ops
from .backends import BACKEND, Array, type_name, working_type

MODES = ("nearest", "bilinear", "bicubic")
_TYPES = ("float32", "float64", "float16", "bfloat16")  # of images that the kernels read


def read(image: Array, coordinates: Coordinates, reading: Reading, first: bool) -> Array:
    """Reads in one of `MODES`.

    Args:
        image: (B, C, *in) where `first`, else (B, *in, C); any float type.
        coordinates: of the same batch or of 1, in float32 or float64.

    Returns:
        (B, C, *size) or (B, *size, C) in the image's type.
    """
    native = is_native(coordinates, reading)  # before anything is made of them
    dtype, working = type_name(image.dtype), working_type(image)
    kind, size, values, _ = coordinates
    if kind not in ("affine", "projective"):
        kind, values = "grid", families.positions(coordinates, reading.align_corners)
    values = ops.cast(values, working)
    image, values = of_one_batch(image if dtype in _TYPES else ops.cast(image, working), values)
    if BACKEND == "jax":
        from ..jax import functional

        out = functional.read(image, kind, values, size, reading, not first, native)
    elif native:
        from .. import tensorflow

        out = tensorflow.read(image, kind, values, size, reading, not first)
    else:
        out = on_ops.read(ops.cast(image, working), kind, values, size, reading, not first)
    return ops.cast(out, dtype)


def is_native(coordinates: Coordinates, reading: Reading) -> bool:
    """Whether the native kernels read, or a ValueError where they are asked for and cannot."""
    wanted = asked_for()
    if wanted not in (None, cpu.NAME, portable_backend.NAME):
        raise ValueError(f"backend: expected {cpu.NAME!r} or {portable_backend.NAME!r} under {BACKEND}, got {wanted!r}")
    if wanted == portable_backend.NAME:
        return False
    reason = _refuses(coordinates, reading)
    if wanted == cpu.NAME and reason is not None:
        raise ValueError(f"backend: expected one that runs {reading.kernel} here, got {cpu.NAME!r}: {reason}")
    return reason is None


def _refuses(coordinates: Coordinates, reading: Reading) -> str | None:
    d = len(coordinates.size)
    if reading.kernel not in MODES:
        return "it is the reference, lowered"
    if d == 1:
        return "signals are read by ops of the framework"
    if BACKEND == "jax":
        from ..jax import native

        return native.unavailable()
    from .. import tensorflow

    return tensorflow.refuses("affine" if coordinates.kind in MATRICES else "grid", reading)


def of_one_batch(image: Array, values: Array) -> tuple[Array, Array]:
    a, b = image.shape[0], values.shape[0]
    if a == b:
        return image, values
    if b == 1:
        return image, ops.broadcast_to(values, (ops.shape(image)[0], *values.shape[1:]))
    if a == 1:
        return ops.broadcast_to(image, (ops.shape(values)[0], *image.shape[1:])), values
    if a is not None and b is not None:
        raise ValueError(f"theta or grid: expected a batch of {a} (as image) or 1, got {b}")
    return image, values
