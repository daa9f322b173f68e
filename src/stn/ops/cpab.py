"""Points along a velocity that is continuous and affine in each cell: the native closed form, differentiable.

Gradients are the native code's too, in eager mode, when compiled, and in transforms of `torch.func`. Tangents, and what
differentiates a gradient, come from torch's own differentiable functions, which the caller passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..tessellation import mesh
from . import _torch, cpu, native

Otherwise = Callable[[Tensor, Tensor], Tensor]  # of velocities and points


def flow(velocities: Tensor, points: Tensor, tessellation: tuple[int, ...], otherwise: Otherwise) -> Tensor:
    """Where points (B, N, d) get in one unit of time, by velocities (B, V, d) at the vertices of a tessellation in two or
    three dimensions: exactly on the CPU, as `otherwise` says where no native code can run."""
    return native.call(
        native.Native(
            partial(_forward, tessellation=tessellation),
            partial(_backward, tessellation=tessellation),
            partial(_operator, tessellation=list(tessellation)),
            otherwise,
        ),
        velocities,
        points,
    )


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
