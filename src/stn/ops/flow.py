"""Vectors on a lattice over [-1, 1], border points on -1 and 1: read, and followed as velocities, which is native on the CPU."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..coordinates import Coordinates
from ..geometry import lattice_points
from ..reading import Reading
from . import _torch, cpu, dispatch, native

_LINEAR = Reading("bilinear", "border", None, align_corners=True)
_MOST = 2**28  # points


def read(field: Tensor, points: Tensor) -> Tensor:
    """A field (B, *res, d) read linearly at points (B, N, d); beyond -1 and 1 its border goes on."""
    grid = points.reshape(points.shape[0], *[1] * (field.ndim - 3), *points.shape[1:])
    image = field.movedim(-1, 1).contiguous()
    return dispatch.warp(image, Coordinates("grid", tuple(grid.shape[1:-1]), grid), _LINEAR).flatten(2).movedim(1, -1)


def short_step(velocity: Tensor, steps: int) -> Tensor:
    """The displacements after 2^-steps of the unit of time, by the midpoint rule."""
    short = velocity / 2**steps
    return _moved(short, short / 2)


def twice(displacement: Tensor) -> Tensor:
    """The map composed with itself."""
    return displacement + _moved(displacement, displacement)


def integrate(velocity: Tensor, steps: int) -> Tensor:
    """The displacements (B, *res, d) that velocities of float32 or float64 amount to: `twice`, `steps` times, after `short_step`."""
    otherwise = partial(_step_by_step, steps=steps)
    if native.refuses(velocity.device.type) or math.prod(velocity.shape[1:-1]) > _MOST:
        return otherwise(velocity)
    if velocity.ndim == 3:  # a plane of one row
        return integrate(torch.nn.functional.pad(velocity, (0, 1)).unsqueeze(1), steps).squeeze(1)[..., :1]
    return native.call(
        native.Native(
            partial(_forward, steps=steps), partial(_backward, steps=steps), partial(_operator, steps=steps), otherwise
        ),
        velocity,
    )


def _step_by_step(velocity: Tensor, steps: int) -> Tensor:
    displacement = short_step(velocity, steps)
    for _ in range(steps):
        displacement = twice(displacement)
    return displacement


def _moved(field: Tensor, displacement: Tensor) -> Tensor:
    """A field read where its own points are displaced to."""
    points = lattice_points(field, tuple(field.shape[1:-1]), True)
    return read(field, points + displacement.flatten(1, -2)).reshape(displacement.shape)


def _forward(velocity: Tensor, steps: int) -> Tensor:
    out = torch.empty(velocity.shape, dtype=velocity.dtype)
    dense = velocity.detach().resolve_neg().contiguous()
    if cpu._native.follow(dense, steps, out, None, torch.get_num_threads()):
        return out
    return _step_by_step(dense, steps)  # numbers that are not finite


def _backward(grad: Tensor, velocity: Tensor, steps: int) -> tuple[Tensor]:
    out = torch.empty(velocity.shape, dtype=velocity.dtype)
    dense = velocity.detach().resolve_neg().contiguous()
    grad = _torch.materialized(grad).contiguous()
    if cpu._native.follow(dense, steps, grad, out, torch.get_num_threads()):
        return (out,)
    found: tuple[Tensor] = torch.func.vjp(partial(_step_by_step, steps=steps), dense)[1](grad)
    return found


@torch.library.custom_op("stn::integrate_velocity", mutates_args=())
def _operator(velocity: Tensor, steps: int) -> Tensor:
    return _forward(velocity, steps)


@torch.library.custom_op("stn::integrate_velocity_backward", mutates_args=())
def _operator_backward(grad: Tensor, velocity: Tensor, steps: int) -> Tensor:
    return _backward(grad, velocity, steps)[0]


@_operator.register_fake
def _(velocity: Tensor, steps: int) -> Tensor:
    return velocity.new_empty(velocity.shape)


@_operator_backward.register_fake
def _(grad: Tensor, velocity: Tensor, steps: int) -> Tensor:
    return velocity.new_empty(velocity.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.steps = inputs[1]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _operator_backward(grad, *ctx.saved_tensors, ctx.steps), None


_operator.register_autograd(_differentiate, setup_context=_setup)
