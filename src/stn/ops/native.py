"""Native functions of a batch of tensors, made differentiable: gradients by native code in eager mode and under `vmap`, and what
differentiates a gradient, or asks for tangents, by a function of torch's own that says the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._tracing import is_portable
from . import _torch, cpu, dispatch
from .backend import Case
from .triton import launch as triton


class Native(NamedTuple):
    """A function of tensors whose first axis is the batch, with a result whose first axis is the batch."""

    forward: Callable[..., Tensor]  # of the tensors
    backward: Callable[..., tuple[Tensor | None, ...]]  # of the gradient of the result and the tensors
    operator: Callable[..., Tensor]  # the same, registered with torch, for compiled and exported programs
    otherwise: Callable[..., Tensor]  # the same, of torch's own functions, differentiable as often as one likes
    has_triton: bool = False  # whether it also runs in Triton, where `in_triton` says so


_PLAIN = (Tensor, nn.Parameter)


def in_triton(device: str) -> bool:
    """Whether Triton is who would run here: on other devices than the CPU, or by name."""
    return device != "cpu" or dispatch.asked_for() == triton.NAME


def refuses(device: str, *, has_triton: bool = False) -> str | None:
    """Why no native code runs here, None where it does."""
    if is_portable():
        return "programs that run without stn cannot call it"
    if has_triton and in_triton(device) and dispatch.asked_for() in (None, triton.NAME):
        return triton.refuses(Case(2, "bilinear", "zeros", device, torch.float32, dispatch.asked_for()))
    if dispatch.asked_for() not in (None, cpu.NAME):
        return f"{dispatch.asked_for()!r} was asked for"
    if device != "cpu":
        return f"runs on the CPU, not on {device}"
    return cpu._reason


def call(native: Native, *tensors: Tensor) -> Tensor:
    """The native function of tensors of one device, or what stands in for it here."""
    refused = refuses(tensors[0].device.type, has_triton=native.has_triton)
    forward_mode, transforming = _torch.in_forward_mode(), _torch.transforming()
    if torch.compiler.is_compiling():
        return native.otherwise(*tensors) if refused or transforming or forward_mode else native.operator(*tensors)
    if refused or forward_mode or _torch.tracing():
        return native.otherwise(*tensors)
    if not transforming and (_torch.modes() or any(type(tensor) not in _PLAIN for tensor in tensors)):
        return native.operator(*tensors)
    out: Tensor = _Forward.apply(native, *tensors)
    return out


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(native: Native, *tensors: Tensor) -> Tensor:
        return native.forward(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.native = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if _torch.in_forward_mode():
            return (None, *torch.func.vjp(ctx.native.otherwise, *ctx.saved_tensors)[1](grad))
        return (None, *_Pull.apply(ctx.native, grad, *ctx.saved_tensors))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], native: Native, *tensors: Tensor) -> tuple[Tensor, int]:
        n, batch, joined = _in_batch(info, in_dims[1:], tensors)
        return _Forward.apply(native, *joined).unflatten(0, (n, batch)), 0


class _Pull(torch.autograd.Function):
    """The gradients of all tensors."""

    @staticmethod
    def forward(native: Native, grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return native.backward(grad, *tensors)  # type: ignore[return-value]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.otherwise = inputs[0].otherwise
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        def pulled(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = torch.func.vjp(ctx.otherwise, *tensors)[1](grad)
            return found

        return (None, *torch.func.vjp(pulled, *ctx.saved_tensors)[1](grads))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], native: Native, *tensors: Tensor) -> tuple[Any, Any]:
        n, batch, joined = _in_batch(info, in_dims[1:], tensors)
        found = _Pull.apply(native, *joined)
        return tuple(each.unflatten(0, (n, batch)) for each in found), (0,) * len(found)


def _in_batch(info: Any, dims: tuple[Any, ...], tensors: tuple[Any, ...]) -> tuple[int, int, list[Tensor]]:
    """Tensors whose mapped axis has joined the batch."""
    n = info.batch_size
    moved = [t.expand(n, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    return n, moved[0].shape[1], [t.flatten(0, 1) for t in moved]
