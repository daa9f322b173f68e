"""Multi-scale deformable attention's read: native on the CPU and in Triton, differentiable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _torch, cpu, native
from .triton import deformable as triton

Otherwise = Callable[[Tensor, Tensor, Tensor], Tensor]  # of value, locations and weights
Gradients = tuple[Tensor, Tensor, Tensor]


def read(
    value: Tensor,  # (B, S, heads, C)
    sizes: Sequence[tuple[int, ...]],
    locations: Tensor,  # (B, Q, heads, levels, points, d)
    weights: Tensor,  # (B, Q, heads, levels, points)
    otherwise: Otherwise,
) -> Tensor:
    """What each head of each query reads of maps, (B, Q, heads, C), in the type of `locations`, which is float32 or float64;
    as `otherwise` says where no native code can run, or the maps are not of two dimensions."""
    device = value.device.type
    unordered = native.in_triton(device) and torch.are_deterministic_algorithms_enabled()
    if locations.shape[-1] != 2 or unordered or native.refuses(device, has_triton=True):
        return otherwise(value, locations, weights)
    flat = [side for size in sizes for side in size]
    dtype = locations.dtype
    return native.call(
        native.Native(
            partial(_forward, sizes=flat),
            partial(_backward, sizes=flat),
            partial(_operator, sizes=flat),
            otherwise,
            has_triton=True,
        ),
        value.to(dtype),
        locations,
        weights.to(dtype),
    )


def _forward(value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    if native.in_triton(value.device.type):
        return triton.forward(*_dense(value, locations, weights), sizes)
    out = torch.empty(_shape(value, locations), dtype=value.dtype)
    _run(value, locations, weights, sizes, out, None)
    return out


def _backward(grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]) -> Gradients:
    grad = _torch.materialized(grad.to(value.dtype)).contiguous()
    if native.in_triton(value.device.type):
        return triton.backward(grad, *_dense(value, locations, weights), sizes)
    of_value, of_locations, of_weights = (torch.zeros(t.shape, dtype=value.dtype) for t in (value, locations, weights))
    found = of_value, of_locations, of_weights
    _run(value, locations, weights, sizes, grad, found)
    return found


def _shape(value: Tensor, locations: Tensor) -> tuple[int, ...]:
    return value.shape[0], locations.shape[1], value.shape[2], value.shape[3]


def _dense(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value, locations, weights = (tensor.detach().resolve_neg().contiguous() for tensor in (value, locations, weights))
    return value, locations, weights


def _run(
    value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int], result: Tensor, gradients: Gradients | None
) -> None:
    if not result.numel():
        return
    of_value, of_locations, of_weights = _dense(value, locations, weights)
    cpu._native.deform(
        of_value,
        list(zip(sizes[::2], sizes[1::2], strict=True)),
        of_locations,
        of_weights,
        result.detach(),
        *(gradients or (None, None, None)),
        torch.get_num_threads(),
    )


@torch.library.custom_op("stn::deformable", mutates_args=())
def _operator(value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    return _forward(value, locations, weights, sizes)


@torch.library.custom_op("stn::deformable_backward", mutates_args=())
def _operator_backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, value, locations, weights, sizes)


@_operator.register_fake
def _(value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    return value.new_empty(_shape(value, locations))


@_operator_backward.register_fake
def _(grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]) -> Gradients:
    return value.new_empty(value.shape), value.new_empty(locations.shape), value.new_empty(weights.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.sizes = inputs[3]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_operator_backward(grad, *ctx.saved_tensors, ctx.sizes), None)


_operator.register_autograd(_differentiate, setup_context=_setup)
