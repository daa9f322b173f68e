"""The native backend's kernels as a foreign function of XLA, with both gradients and a rule for vmap."""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.custom_batching import custom_vmap

from ..ops import cpu
from .portable import Plan, working_type

TARGET = "stn_warp"
Array = Any


@functools.cache
def unavailable() -> str | None:
    """Why not. The first call registers the function."""
    if not sys.platform.startswith("linux"):
        return "the native kernels are for JAX on Linux alone"
    if cpu._native is None:
        return f"the native backend {cpu._reason}"
    if not hasattr(jax, "ffi"):
        return f"jax {jax.__version__} has no jax.ffi; 0.5 has"
    jax.ffi.register_ffi_target(TARGET, cpu._native.xla_handler(), platform="cpu")
    return None


def takes(plan: Plan) -> bool:
    return unavailable() is None and plan.kernel in cpu._MODES and plan.kind in ("affine", "projective", "grid")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def read(
    plan: Plan,
    image: Array,  # (B, C, *in) or (B, *in, C)
    values: Array,  # matrices or a grid, of the working type
    *fill: Array,  # (C,), of the working type, where the padding is constant
) -> Array:
    """`portable.read`, on the CPU alone and once differentiable in reverse mode."""
    channels = image.shape[-1 if plan.last else 1]
    shape = (image.shape[0], *plan.size, channels) if plan.last else (image.shape[0], channels, *plan.size)
    return _call(plan, cpu._FORWARD, jax.ShapeDtypeStruct(shape, image.dtype), image, values, *fill)


def _forward(plan: Plan, image: Array, values: Array, *fill: Array) -> tuple[Array, tuple[Array, ...]]:
    return read(plan, image, values, *fill), (image, values, *fill)


def _backward(plan: Plan, kept: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    """XLA drops the call of a gradient that nobody reads."""
    image, values, *fill = kept
    if not jnp.issubdtype(image.dtype, jnp.floating):
        return (np.zeros(image.shape, jax.dtypes.float0), jnp.zeros_like(values), *map(jnp.zeros_like, fill))
    sums = jax.ShapeDtypeStruct(image.shape, working_type(image))
    for_image = _call(plan, cpu._GRAD_IMAGE, sums, values, grad).astype(image.dtype)
    for_values = jnp.zeros_like(values)
    if plan.kernel != "nearest":
        like = jax.ShapeDtypeStruct(values.shape, values.dtype)
        for_values = _call(plan, cpu._GRAD_COORDINATES, like, image, values, grad, *fill)
    return (for_image, for_values, *map(jnp.zeros_like, fill))


read.defvjp(_forward, _backward)


def _call(plan: Plan, what: int, result: jax.ShapeDtypeStruct, *arrays: Array) -> Array:
    modes = cpu._COORDINATES[plan.kind], cpu._MODES[plan.kernel], cpu._PADDINGS[plan.padding]
    options = np.array([what, *modes, plan.align_corners, plan.last, cpu.threads()], np.int64)
    has_fill = plan.padding == "constant" and what != cpu._GRAD_IMAGE

    @custom_vmap
    def call(*arrays: Array) -> Array:
        shape = (arrays[0].shape[0], *result.shape[1:])
        run = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(shape, result.dtype), vmap_method="sequential")
        return run(*arrays, options=options)

    @call.def_vmap
    def _(n: int, batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        """Many batches are one larger batch."""
        if has_fill and batched[-1]:
            return jax.lax.map(lambda some: call(*_joined(some, arrays, batched)), _split(arrays, batched)), True
        flat, count = [], len(arrays) - has_fill
        for array, has_axis in zip(arrays[:count], batched[:count], strict=True):
            all_of_it = array if has_axis else jnp.broadcast_to(array, (n, *array.shape))
            flat.append(all_of_it.reshape(-1, *all_of_it.shape[2:]))
        out = call(*flat, *arrays[count:])
        return out.reshape(n, -1, *out.shape[1:]), True

    return call(*arrays)


def _split(arrays: tuple[Array, ...], batched: list[bool]) -> list[Array]:
    return [array for array, has_axis in zip(arrays, batched, strict=True) if has_axis]


def _joined(some: list[Array], arrays: tuple[Array, ...], batched: list[bool]) -> list[Array]:
    rest = iter(some)
    return [next(rest) if has_axis else array for array, has_axis in zip(arrays, batched, strict=True)]
