"""What differs between the frameworks behind Keras, and which implementation reads the image in each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

Array = Any  # a tensor of the framework behind Keras

_F = TypeVar("_F", bound=Callable[..., Any])

BACKEND: str = keras.config.backend()

if BACKEND == "jax":
    import jax.numpy as elementary  # Keras' own sines and roots make float32 of float64
else:
    elementary = ops


def type_name(dtype: Any) -> str:
    """The name of a type; float64 is float32 where JAX has no other."""
    name: str = keras.backend.standardize_dtype(dtype)
    if name == "float64" and BACKEND == "jax":
        import jax

        return "float64" if jax.config.read("jax_enable_x64") else "float32"
    return name


def working_type(*arrays: Array) -> str:
    """float64 where any of the arrays is float64, else float32: coordinates are never half precision."""
    return "float64" if any(type_name(array.dtype) == "float64" for array in arrays) else "float32"


def convert(value: Any, dtype: str | None = None) -> Array:
    """A number or an array as a tensor. Not `ops.cast`, which takes Python's numbers through float32 on TensorFlow."""
    if isinstance(value, np.ndarray):
        name = type_name(value.dtype) if dtype is None else dtype
        return ops.convert_to_tensor(value, dtype={"int64": "int32"}.get(name, name))
    if hasattr(value, "dtype"):
        return value if dtype is None or type_name(value.dtype) == dtype else ops.cast(value, dtype)
    return ops.convert_to_tensor(value, dtype=dtype)


def take_rows(
    flat: Array,  # (N, C)
    index: Array,  # int32, any shape, 0 to N - 1
) -> Array:
    """The rows (*index.shape, C); the index is trusted, and Keras' own looks for negative ones."""
    if BACKEND == "jax":
        return flat.at[index].get(mode="promise_in_bounds")
    if BACKEND == "tensorflow":
        import tensorflow

        return tensorflow.gather(flat, index)
    return ops.take(flat, index, axis=0)


def take_along(array: Array, axis: int, index: Array) -> Array:
    """torch's `gather`: Keras' own broadcasts, of which XLA has no gradient in TensorFlow's loops."""
    if BACKEND == "tensorflow":
        import tensorflow

        last = len(array.shape) - 1
        array, index = ops.moveaxis(array, axis, last), ops.moveaxis(index, axis, last)
        found = tensorflow.gather(array, index, axis=last, batch_dims=last)
        return ops.moveaxis(found, last, axis)
    return ops.take_along_axis(array, index, axis=axis)


def repeat(step: Callable[[Array], Array], state: Array, times: int) -> Array:
    """`step` applied `times` times, as a loop that the compilers do not unroll."""
    if BACKEND == "jax":
        import jax

        return jax.lax.fori_loop(0, times, lambda _, state: step(state), state)
    if BACKEND == "tensorflow":
        import tensorflow

        def body(i: Array, state: Array) -> tuple[Array, Array]:
            return i + 1, tensorflow.ensure_shape(step(state), state.shape)

        # Without the maximum XLA has no gradient of the loop.
        return tensorflow.while_loop(lambda i, _: i < times, body, (0, state), maximum_iterations=times)[1]
    for _ in range(times):
        state = step(state)
    return state


def with_slopes(function: Callable[[Array], Array], points: Array) -> tuple[Array, Array]:
    """What a function makes of points (B, N, d), each by itself, and its derivative (B, N, d, d), one row an output."""
    d = points.shape[-1]
    units = np.eye(d)
    if BACKEND == "jax":
        import jax

        values, pull = jax.vjp(function, points)
        rows = [pull(ops.broadcast_to(convert(unit, type_name(values.dtype)), values.shape))[0] for unit in units]
        return values, ops.stack(rows, -2)
    import tensorflow

    with tensorflow.GradientTape(persistent=True) as tape:
        tape.watch(points)
        values = function(points)
    along = [ops.ones_like(values) * convert(unit, type_name(values.dtype)) for unit in units]
    return values, ops.stack([tape.gradient(values, points, a, unconnected_gradients="zero") for a in along], -2)


def all_digits() -> contextlib.AbstractContextManager[Any]:
    """Where products of float32 are of float32: TPUs, and GPUs by their settings, keep three digits of it."""
    if BACKEND == "jax":
        import jax

        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


@contextlib.contextmanager
def without_triton() -> Iterator[None]:
    """Where torch does not load Triton: it and TensorFlow each bring an LLVM, and the second one ends the process."""
    if "tensorflow" not in sys.modules or "triton" in sys.modules:
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["triton"]


def plain(function: _F) -> _F:
    """TensorFlow does not rewrite the function: it holds no `if` or loop over tensors."""
    if BACKEND == "tensorflow":
        import tensorflow

        return tensorflow.autograph.experimental.do_not_convert(function)
    return function
