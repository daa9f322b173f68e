"""The native backend's kernels as a foreign function of XLA, with both gradients and a rule for vmap.

They are an operation of JAX, `warp_p`, of which there are two programs: the kernels on the CPU, and `portable` on other
devices and in what `jax.export` makes, which has to run where there is no `stn`. Its derivatives are those of `portable`, so
that the gradients, which are the same operation, can be differentiated once more.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.core import ShapedArray
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive
from jax.interpreters import mlir

from ..ops import cpu
from . import portable
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
    if unavailable() is not None or len(plan.size) not in (2, 3):
        return False
    return plan.kernel in cpu._MODES and plan.kind in ("affine", "projective", "grid")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def read(
    plan: Plan,
    image: Array,  # (B, C, *in) or (B, *in, C)
    values: Array,  # matrices or a grid, of the working type
    *fill: Array,  # (C,), of the working type, where the padding is constant
) -> Array:
    """`portable.read`, by the kernels where they are; in reverse mode alone."""
    channels = image.shape[-1 if plan.last else 1]
    shape = (*plan.size, channels) if plan.last else (channels, *plan.size)
    return _run(Call(plan, cpu._FORWARD, shape, image.dtype), image, values, *fill)


def _forward(plan: Plan, image: Array, values: Array, *fill: Array) -> tuple[Array, tuple[Array, ...]]:
    return read(plan, image, values, *fill), (image, values, *fill)


def _backward(plan: Plan, kept: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    """XLA drops the call of a gradient that nobody reads."""
    image, values, *fill = kept
    if not jnp.issubdtype(image.dtype, jnp.floating):
        return (np.zeros(image.shape, jax.dtypes.float0), jnp.zeros_like(values), *map(jnp.zeros_like, fill))
    for_image = _run(Call(plan, cpu._GRAD_IMAGE, image.shape[1:], working_type(image)), values, grad)
    for_values = jnp.zeros_like(values)
    if plan.kernel != "nearest":
        wanted = Call(plan, cpu._GRAD_COORDINATES, values.shape[1:], values.dtype)
        for_values = _run(wanted, image, values, grad, *fill)
    return (for_image.astype(image.dtype), for_values, *map(jnp.zeros_like, fill))


read.defvjp(_forward, _backward)


class Call(NamedTuple):
    """All of a call of the kernels that is no array."""

    plan: Plan
    what: int  # the output or one of the gradients
    shape: tuple[int, ...]  # of the result, without the batch
    dtype: Any


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(call: Call, *arrays: Array) -> Array:
    has_fill = call.plan.padding == "constant" and call.what != cpu._GRAD_IMAGE

    @custom_vmap
    def run(*arrays: Array) -> Array:
        return warp_p.bind(*arrays, call=call)

    @run.def_vmap
    def _(n: int, batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        """Many batches are one larger batch."""
        if has_fill and batched[-1]:
            return jax.lax.map(lambda some: run(*_joined(some, arrays, batched)), _split(arrays, batched)), True
        flat, count = [], len(arrays) - has_fill
        for array, has_axis in zip(arrays[:count], batched[:count], strict=True):
            all_of_it = array if has_axis else jnp.broadcast_to(array, (n, *array.shape))
            flat.append(all_of_it.reshape(-1, *all_of_it.shape[2:]))
        out = run(*flat, *arrays[count:])
        return out.reshape(n, -1, *out.shape[1:]), True

    return run(*arrays)


@_run.defjvp
def _(call: Call, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    return _run(call, *primals), jax.jvp(functools.partial(_on_jax_numpy, call), primals, tangents)[1]


def _split(arrays: tuple[Array, ...], batched: list[bool]) -> list[Array]:
    return [array for array, has_axis in zip(arrays, batched, strict=True) if has_axis]


def _joined(some: list[Array], arrays: tuple[Array, ...], batched: list[bool]) -> list[Array]:
    rest = iter(some)
    return [next(rest) if has_axis else array for array, has_axis in zip(arrays, batched, strict=True)]


# The operation, and its two programs

warp_p = Primitive("stn_warp")


@warp_p.def_abstract_eval
def _(*arrays: Any, call: Call) -> Any:
    return ShapedArray((arrays[0].shape[0], *call.shape), jnp.dtype(call.dtype))


@warp_p.def_impl
def _(*arrays: Array, call: Call) -> Array:  # where nothing is compiled: `jax.disable_jit`
    with jax.disable_jit(False):
        return jax.jit(functools.partial(warp_p.bind, call=call))(*arrays)


def _by_kernels(call: Call, *arrays: Array) -> Array:
    plan = call.plan
    modes = cpu._COORDINATES[plan.kind], cpu._MODES[plan.kernel], cpu._PADDINGS[plan.padding]
    options = np.array([call.what, *modes, plan.align_corners, plan.last, cpu.threads()], np.int64)
    like = jax.ShapeDtypeStruct((arrays[0].shape[0], *call.shape), call.dtype)
    return jax.ffi.ffi_call(TARGET, like, vmap_method="sequential")(*arrays, options=options)


def _on_jax_numpy(call: Call, *arrays: Array) -> Array:
    if call.what == cpu._FORWARD:
        return portable.read(call.plan, *arrays)
    if call.what == cpu._GRAD_IMAGE:  # whose numbers, and the fill, it does not depend on
        values, grad = arrays
        nothing = jnp.zeros((values.shape[0], *call.shape), call.dtype)
        channels = call.shape[-1 if call.plan.last else 0]
        fill = (jnp.zeros(channels, call.dtype),) * (call.plan.padding == "constant")
        _, pull = jax.vjp(lambda image: portable.read(call.plan, image, values, *fill), nothing)
        return pull(grad.astype(call.dtype))[0]
    image, values, grad, *background = arrays
    return jax.vjp(lambda values: portable.read(call.plan, image, values, *background), values)[1](grad)[0]


def _lower(context: Any, *arrays: Any, call: Call) -> Any:
    exported = context.module_context.lowering_parameters.for_export
    program = _on_jax_numpy if exported else _by_kernels
    return mlir.lower_fun(functools.partial(program, call), multiple_results=False)(context, *arrays)


def _lower_elsewhere(context: Any, *arrays: Any, call: Call) -> Any:
    return mlir.lower_fun(functools.partial(_on_jax_numpy, call), multiple_results=False)(context, *arrays)


mlir.register_lowering(warp_p, _lower_elsewhere)
mlir.register_lowering(warp_p, _lower, platform="cpu")
