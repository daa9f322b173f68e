"""Points along a velocity that is continuous and affine in each cell: the native closed form, differentiable.

Gradients are the native code's too, in eager mode, when compiled, and in transforms of `torch.func`. Tangents, and what
differentiates a gradient, come from torch's own differentiable functions, which the caller passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._tracing import is_portable
from ..tessellation import mesh
from . import _torch, cpu, dispatch

_PLAIN = (Tensor, nn.Parameter)
Otherwise = Callable[[Tensor, Tensor], Tensor]  # of velocities and points


def refuses(device: str) -> str | None:
    """Why the native code does not run here, None where it does."""
    if is_portable():
        return "programs that run without stn cannot call it"
    if dispatch.asked_for() not in (None, cpu.NAME):
        return f"{dispatch.asked_for()!r} was asked for"
    if device != "cpu":
        return f"runs on the CPU, not on {device}"
    return cpu._reason


def flow(velocities: Tensor, points: Tensor, tessellation: tuple[int, ...], otherwise: Otherwise) -> Tensor:
    """Where points (B, N, d) get in one unit of time, by velocities (B, V, d) at the vertices of a tessellation in two or
    three dimensions: exactly on the CPU, as `otherwise` says where no native code can run."""
    forward_mode = _torch.in_forward_mode()
    if torch.compiler.is_compiling():
        if refuses(points.device.type) or _torch.transforming() or forward_mode:
            return otherwise(velocities, points)
        return _operator(velocities, points, list(tessellation))
    if forward_mode or _torch.tracing() or refuses(points.device.type):
        return otherwise(velocities, points)
    if not _torch.transforming() and (_torch.modes() or type(velocities) not in _PLAIN or type(points) not in _PLAIN):
        return _operator(velocities, points, list(tessellation))
    out: Tensor = _Flow.apply(velocities, points, tessellation, otherwise)
    return out


def _forward(velocities: Tensor, points: Tensor, tessellation: tuple[int, ...]) -> Tensor:
    ends = torch.empty(points.shape, dtype=points.dtype)
    if points.numel():
        _run(velocities, points, tessellation, ends, None, None)
    return ends


def _backward(grad: Tensor, velocities: Tensor, points: Tensor, tessellation: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    for_points = torch.empty(points.shape, dtype=points.dtype)
    for_velocities = torch.zeros(velocities.shape, dtype=torch.float64)
    if points.numel():
        grad = _torch.materialized(grad.to(points.dtype)).contiguous()
        _run(velocities, points, tessellation, for_points, grad, for_velocities)
    return for_velocities.to(velocities.dtype), for_points


def _run(
    velocities: Tensor,
    points: Tensor,
    tessellation: tuple[int, ...],
    result: Tensor,
    grad: Tensor | None,
    for_velocities: Tensor | None,
) -> None:
    found = mesh(tessellation)
    cpu._native.follow(
        tessellation,
        found.generators,
        found.slots,
        found.beyond,
        found.order,
        found.weights,
        found.outside,
        velocities.detach().to(torch.float64).contiguous(),
        points.detach().resolve_neg(),
        result,
        None if grad is None else grad.detach(),
        for_velocities,
        torch.get_num_threads(),
    )


class _Flow(torch.autograd.Function):
    @staticmethod
    def forward(velocities: Tensor, points: Tensor, tessellation: tuple[int, ...], otherwise: Otherwise) -> Tensor:
        return _forward(velocities, points, tessellation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.how = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        velocities, points = ctx.saved_tensors
        tessellation, otherwise = ctx.how
        if _torch.in_forward_mode():
            return (*torch.func.vjp(otherwise, velocities, points)[1](grad), None, None)
        return (*_Pull.apply(grad, velocities, points, tessellation, otherwise), None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        n, batch, tensors = _in_batch(info, in_dims[:2], inputs[:2])
        return _Flow.apply(*tensors, *inputs[2:]).unflatten(0, (n, batch)), 0


class _Pull(torch.autograd.Function):
    """The gradients of the velocities and of the points."""

    @staticmethod
    def forward(
        grad: Tensor, velocities: Tensor, points: Tensor, tessellation: tuple[int, ...], otherwise: Otherwise
    ) -> tuple[Tensor, Tensor]:
        return _backward(grad, velocities, points, tessellation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.otherwise = inputs[4]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        def pulled(grad: Tensor, velocities: Tensor, points: Tensor) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = torch.func.vjp(ctx.otherwise, velocities, points)[1](grad)
            return found

        return (*torch.func.vjp(pulled, *ctx.saved_tensors)[1](grads), None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        n, batch, tensors = _in_batch(info, in_dims[:3], inputs[:3])
        found = _Pull.apply(*tensors, *inputs[3:])
        return tuple(each.unflatten(0, (n, batch)) for each in found), (0, 0)


def _in_batch(info: Any, dims: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> tuple[int, int, list[Tensor]]:
    """Tensors whose mapped axis has joined the batch."""
    n = info.batch_size
    moved = [t.expand(n, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    return n, moved[0].shape[1], [t.flatten(0, 1) for t in moved]


@torch.library.custom_op("stn::cpab_flow", mutates_args=())
def _operator(velocities: Tensor, points: Tensor, tessellation: list[int]) -> Tensor:
    return _forward(velocities, points, tuple(tessellation))


@torch.library.custom_op("stn::cpab_flow_backward", mutates_args=())
def _operator_backward(
    grad: Tensor, velocities: Tensor, points: Tensor, tessellation: list[int]
) -> tuple[Tensor, Tensor]:
    return _backward(grad, velocities, points, tuple(tessellation))


@_operator.register_fake
def _(velocities: Tensor, points: Tensor, tessellation: list[int]) -> Tensor:
    return points.new_empty(points.shape)


@_operator_backward.register_fake
def _(grad: Tensor, velocities: Tensor, points: Tensor, tessellation: list[int]) -> tuple[Tensor, Tensor]:
    return velocities.new_empty(velocities.shape), points.new_empty(points.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.tessellation = inputs[2]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_operator_backward(grad, *ctx.saved_tensors, ctx.tessellation), None)


_operator.register_autograd(_differentiate, setup_context=_setup)
