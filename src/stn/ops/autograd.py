"""Any backend as a differentiable op, in the cheapest way that is right:

1. nothing to differentiate: the backend's forward;
2. plain reverse mode: `_EagerWarp`, an `autograd.Function` whose backward is the backend's;
3. `torch.func` at work: `_Warp`, the same with a rule for vmap (the mapped axis joins the batch);
4. compilers, exporters, tensors that wrap others: a registered op with its fake, where the backend is opaque;
5. tangents, derivatives of derivatives, a fill or a basis that is trained, `torch.jit.trace`: the reference, made of
   torch's own differentiable functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..coordinates import Coordinates, Kind
from ..kernels import Kernel
from ..reading import Reading
from . import _torch, layout, reference
from .backend import Backend

_PLAIN = (Tensor, nn.Parameter)


def warp(backend: Backend, image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    """`backend.forward`, differentiable, whoever traces, transforms or wraps."""
    kind, size, values, basis = coordinates
    fill = reading.fill
    if backend is reference:
        return reference.forward(image, coordinates, reading)
    grads = torch.is_grad_enabled()
    if grads and ((fill is not None and fill.requires_grad) or (basis is not None and basis.requires_grad)):
        return reference.forward(image, coordinates, reading)
    if torch.compiler.is_compiling():
        if not backend.OPAQUE:
            return backend.forward(image, coordinates, reading)
        if _torch.transforming() or _torch.in_forward_mode():  # which do not see through an op
            return reference.forward(image, coordinates, reading)
        # Not a view: inductor sorts the strides of those that it saves for the backward, and cannot where they are symbols
        # (torch 2.13, pytorch #172204). It makes the copy as it works out the positions.
        coordinates = coordinates._replace(values=values.clone(memory_format=torch.contiguous_format))
        return _operators[backend.NAME](image, coordinates, reading)
    if _torch.tracing() and torch.onnx.is_in_onnx_export():
        raise ValueError("dynamo: expected torch.onnx.export(..., dynamo=True), got the exporter that traces")
    if _torch.in_forward_mode() or _torch.tracing():
        return reference.forward(image, coordinates, reading)
    image, coordinates, reading = _in_memory(image, coordinates, reading)
    values, fill = coordinates.values, reading.fill
    if _torch.transforming():
        out: Tensor = _Warp.apply(image, values, basis, fill, backend, kind, size, reading._replace(fill=None))
        return out
    if _torch.modes() or type(image) not in _PLAIN or type(values) not in _PLAIN:
        if not backend.OPAQUE:
            return backend.forward(image, coordinates, reading)
        return _operators[backend.NAME](image, coordinates, reading)
    if grads and (image.requires_grad or values.requires_grad):
        left_behind = _torch.is_wrapped(image) or _torch.is_wrapped(values)
        apply = _EagerWarp.apply if left_behind else _apply_eager
        out = apply(image, values, basis, fill, (backend, coordinates, reading))
    else:
        out = backend.forward(image, coordinates, reading)
    return out


def _in_memory(image: Tensor, coordinates: Coordinates, reading: Reading) -> tuple[Tensor, Coordinates, Reading]:
    """The same numbers in memory, of views that are negated only when somebody looks (`conj().imag`)."""
    if image.is_neg():
        image = image.resolve_neg()
    if coordinates.values.is_neg():
        coordinates = coordinates._replace(values=coordinates.values.resolve_neg())
    if reading.fill is not None and reading.fill.is_neg():
        reading = reading._replace(fill=reading.fill.resolve_neg())
    return image, coordinates, reading


def _saved_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    image, values, basis, fill = ctx.saved_tensors
    backend, kind, size, reading = ctx.how
    coordinates = Coordinates(kind, size, values, basis)
    if fill is not None:
        reading = reading._replace(fill=fill)
    for_image, for_values = ctx.needs_input_grad[:2]
    wrapped = _torch.is_wrapped
    # Somebody will differentiate the gradient, transforms it, or pulls back what a transform has left behind.
    again = torch.is_grad_enabled() or _torch.transforming() or _torch.in_forward_mode()
    if again or wrapped(grad) or wrapped(image) or wrapped(values):
        return reference.backward(grad, image, coordinates, reading, for_image, for_values)
    if _torch.modes() or not _torch.is_in_memory(grad):
        grad = _torch.materialized(grad)
        if backend.OPAQUE and grad.numel():
            return _operators[backend.NAME].backward(grad, image, coordinates, reading, for_image, for_values)
    return backend.backward(grad, image, coordinates, reading, for_image, for_values)


class _Warp(torch.autograd.Function):
    @staticmethod
    def forward(
        image: Tensor,
        values: Tensor,
        basis: Tensor | None,
        fill: Tensor | None,
        backend: Backend,
        kind: Kind,
        size: tuple[int, ...],
        reading: Reading,
    ) -> Tensor:
        return backend.forward(image, Coordinates(kind, size, values, basis), reading._replace(fill=fill))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.how = inputs[4:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_saved_backward(ctx, grad), None, None, None, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        """The mapped axis joins the batch."""
        image, values, basis, fill, *how = inputs
        n = info.batch_size
        if in_dims[2] is not None or in_dims[3] is not None:
            slices = []
            for k in range(n):
                tensors = [t if d is None else t.select(d, k) for t, d in zip(inputs[:4], in_dims[:4], strict=True)]
                slices.append(_Warp.apply(*tensors, *how))
            return torch.stack(slices), 0
        image, values = (
            t.expand(n, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in ((image, in_dims[0]), (values, in_dims[1]))
        )
        out = _Warp.apply(image.flatten(0, 1), values.flatten(0, 1), basis, fill, *how)
        return out.unflatten(0, (n, -1)), 0


class _EagerWarp(torch.autograd.Function):
    """`_Warp` for plain reverse mode: `apply` of a function with `setup_context` inspects signatures at every call."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        values: Tensor,
        basis: Tensor | None,
        fill: Tensor | None,
        what: tuple[Backend, Coordinates, Reading],  # of the same tensors, which are arguments to be seen by autograd
    ) -> Tensor:
        backend, coordinates, reading = what
        ctx.save_for_backward(image, values, basis, fill)
        kept = reading if fill is None else reading._replace(fill=None)  # tensors are kept by autograd alone
        ctx.how = backend, coordinates.kind, coordinates.size, kept
        return backend.forward(image, coordinates, reading)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_saved_backward(ctx, grad), None, None, None)


_apply_eager = _torch.plain_apply(_EagerWarp)


class _Operator:
    """An opaque backend as a registered op, `stn::warp_NAME`, with its fake and its backward, `stn::warp_NAME_backward`."""

    def __init__(self, backend: Backend) -> None:
        def forward(
            image: Tensor,
            values: Tensor,
            basis: Tensor | None,
            fill: Tensor | None,
            kind: str,
            size: list[int],
            kernel: str,
            padding: str,
            align_corners: bool,
        ) -> Tensor:
            coordinates, reading = records(values, basis, fill, kind, size, kernel, padding, align_corners)
            return backend.forward(*_in_memory(image, coordinates, reading))

        def backward(
            grad: Tensor,
            image: Tensor,
            values: Tensor,
            basis: Tensor | None,
            fill: Tensor | None,
            kind: str,
            size: list[int],
            kernel: str,
            padding: str,
            align_corners: bool,
            for_image: bool,
            for_values: bool,
        ) -> tuple[Tensor, Tensor]:
            coordinates, reading = records(values, basis, fill, kind, size, kernel, padding, align_corners)
            image, coordinates, reading = _in_memory(image, coordinates, reading)
            grad = _torch.materialized(grad)
            grads = backend.backward(grad, image, coordinates, reading, for_image, for_values)
            return (
                image.new_empty(0) if grads[0] is None else grads[0],
                values.new_empty(0) if grads[1] is None else grads[1],
            )

        self._forward = torch.library.custom_op(f"stn::warp_{backend.NAME}", forward, mutates_args=())
        self._backward = torch.library.custom_op(f"stn::warp_{backend.NAME}_backward", backward, mutates_args=())
        self._forward.register_fake(_fake_forward)
        self._backward.register_fake(_fake_backward)
        self._forward.register_autograd(self._differentiate, setup_context=_setup)

    def __call__(self, image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
        out: Tensor = self._forward(image, *_loose(coordinates, reading))
        return out

    def backward(
        self,
        grad: Tensor,
        image: Tensor,
        coordinates: Coordinates,
        reading: Reading,
        for_image: bool,
        for_values: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        grads = self._backward(grad, image, *_loose(coordinates, reading), for_image, for_values)
        return (grads[0] if for_image else None, grads[1] if for_values else None)

    def _differentiate(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for_image, for_values = ctx.needs_input_grad[:2]
        grads = self._backward(grad, *ctx.saved_tensors, *ctx.how, for_image, for_values)
        return (grads[0] if for_image else None, grads[1] if for_values else None, *[None] * 7)


def _loose(coordinates: Coordinates, reading: Reading) -> tuple[Any, ...]:
    kind, size, values, basis = coordinates
    kernel = reading.kernel.name if isinstance(reading.kernel, Kernel) else reading.kernel
    return (values, basis, reading.fill, kind, list(size), kernel, reading.padding, reading.align_corners)


def records(
    values: Tensor,
    basis: Tensor | None,
    fill: Tensor | None,
    kind: Any,
    size: list[int],
    kernel: str,
    padding: str,
    align_corners: bool,
) -> tuple[Coordinates, Reading]:
    made = kernel if kernel in ("nearest", "bilinear", "bicubic") else Kernel.named(kernel)
    return Coordinates(kind, tuple(size), values, basis), Reading(made, padding, fill, align_corners)


def _fake_forward(
    image: Tensor, values: Tensor, basis: Tensor | None, fill: Tensor | None, kind: str, size: list[int], *_: Any
) -> Tensor:
    return layout.empty_like(image, tuple(size), image.dtype)


def _fake_backward(grad: Tensor, image: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    for_image, for_values = rest[-2:]
    return (
        layout.empty_like(image, tuple(image.shape[2:]), image.dtype) if for_image else image.new_empty(0),
        torch.empty_like(values, memory_format=torch.contiguous_format) if for_values else values.new_empty(0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.how = inputs[4:]


_operators: dict[str, _Operator] = {}


def operators() -> list[Any]:
    """The registered ops, each a function of an image and of what `records` takes."""
    return [getattr(torch.ops.stn, f"warp_{name}").default for name in _operators]


def register(backend: Backend) -> None:
    """Makes the op of an opaque backend; once."""
    _operators[backend.NAME] = _Operator(backend)
