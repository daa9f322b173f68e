"""Warps that average each output pixel over its area in the image: the native code, differentiable.

It reads by linear interpolation, with every padding, images of every float type (those of 16 bits as float32), in one, two
and three dimensions. Gradients are the native code's too, in eager mode, when compiled, and in transforms of `torch.func`.
Tangents, what differentiates a gradient, a fill that is trained, and whatever the native code refuses come from torch's own
differentiable functions, which the caller passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import coordinate_dtype
from ..coordinates import Coordinates
from ..kernels import Kernel
from ..reading import Reading
from . import _torch, cpu, layout, native, signals

_PLAIN = (Tensor, nn.Parameter)
Otherwise = Callable[[Tensor, Coordinates, Tensor, Reading], Tensor]
_MOST_NUMBERS: int = cpu._native.MOST_NUMBERS if cpu._native else 0  # that a copy of an image may have
LEVELS = 8  # copies at most, each half the size of the one before


def smallest(size: tuple[int, ...]) -> int:
    """The number of the smallest copy of an image: each has half the size of the one before."""
    return min(LEVELS, max(math.ceil(math.log2(max(size))), 0))


def refuses(device: str, kernel: str | Kernel = "bilinear") -> str | None:
    """Why the native code does not average what is read on a device by a kernel, None where it does."""
    other = None if kernel == "bilinear" else f"averages what 'bilinear' reads, not {str(kernel)!r}"
    return native.refuses(device) or other


def average(
    image: Tensor, coordinates: Coordinates, jacobian: Tensor, reading: Reading, otherwise: Otherwise
) -> Tensor:
    """`stn.antialias.sample_antialiased`: by the native code where it can run, as `otherwise` says where not."""
    forward_mode, fill = _torch.in_forward_mode(), reading.fill
    compiling = torch.compiler.is_compiling()
    given = (image, coordinates.values, jacobian)
    learnt = fill is not None and fill.requires_grad and torch.is_grad_enabled()
    if (
        refuses(image.device.type, reading.kernel)
        or forward_mode
        or learnt
        or _does_not_fit(image, coordinates)
        or (_torch.transforming() if compiling else _torch.tracing())
    ):
        return otherwise(image, coordinates, jacobian, reading)
    dtype = coordinate_dtype(image)
    tensors = [image.to(dtype), coordinates.values.to(dtype), jacobian.to(dtype)]
    how = (fill, coordinates.kind, list(coordinates.size), reading.padding, reading.align_corners)
    if compiling or (not _torch.transforming() and (_torch.modes() or any(type(t) not in _PLAIN for t in given))):
        out = _operator(*tensors, *how)
    else:
        out = _Average.apply(*tensors, *how, otherwise)
    return layout.as_image(out.to(image.dtype), image)


def _does_not_fit(image: Tensor, coordinates: Coordinates) -> bool:
    """Nothing to read or to write, and copies whose numbers an int cannot count."""
    if not (image.numel() and all(coordinates.size) and coordinates.values.shape[0]):
        return True
    return 4 * math.prod([n + 4 for n in image.shape[2:]]) >= _MOST_NUMBERS


def _records(
    values: Tensor, fill: Tensor | None, kind: Any, size: list[int], padding: str, align_corners: bool
) -> tuple[Coordinates, Reading]:
    return Coordinates(kind, tuple(size), values), Reading("bilinear", padding, fill, align_corners)


def _forward(image: Tensor, values: Tensor, jacobian: Tensor, fill: Tensor | None, *how: Any) -> Tensor:
    """`how`: the kind of coordinates, the size of the output, the padding and align_corners."""
    out = torch.empty((*image.shape[:2], *how[1]), dtype=image.dtype)
    _run(cpu._FORWARD, out, image, values, jacobian, fill, *how)
    return out


def _backward(
    grad: Tensor, image: Tensor, values: Tensor, jacobian: Tensor, fill: Tensor | None, *how: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`how`: as of `_forward`, and then whether the image's gradient is wanted, and the values' and the Jacobian's."""
    *options, for_image, for_values = how
    grad = _torch.materialized(grad.to(image.dtype)).contiguous()
    grad_image = grad_values = grad_jacobian = None
    if for_image:
        grad_image = torch.empty(image.shape, dtype=image.dtype)
        _run(cpu._GRAD_IMAGE, grad, grad_image, values, jacobian, fill, *options)
    if for_values:
        grad_values, grad_jacobian = _run(cpu._GRAD_COORDINATES, grad, image, values, jacobian, fill, *options)
    return grad_image, grad_values, grad_jacobian


def _run(
    what: int,
    out: Tensor,
    image: Tensor,
    values: Tensor,
    jacobian: Tensor,
    fill: Tensor | None,
    kind: str,
    size: list[int],
    padding: str,
    align_corners: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Fills `out`, or the gradient of the image, which comes in its place; or returns those of the values and the Jacobian."""
    coordinates, _ = _records(values, fill, kind, size, padding, align_corners)
    is_signal, is_grid = image.ndim == 3, kind == "grid"
    if is_signal:  # an image of one row
        image, out = image.unsqueeze(2), out.unsqueeze(2)
        values = signals.in_plane(coordinates, image).values
        jacobian = F.pad(jacobian, (0, 1, 0, 1))
    values = values.flatten(1, -2) if is_grid else values
    jacobian = jacobian.flatten(1, -3) if is_grid else jacobian
    values, jacobian = (t.detach().resolve_neg().contiguous() for t in (values, jacobian))
    for_values = for_jacobian = None
    if what == cpu._GRAD_COORDINATES:
        for_values, for_jacobian = torch.empty_like(values), torch.empty_like(jacobian)
    if fill is not None:
        fill = fill.detach().resolve_neg().to(image.dtype).expand(image.shape[1]).contiguous()
    cpu._native.average(
        what,
        cpu._PADDINGS[padding],
        is_grid,
        align_corners,
        is_signal,
        smallest(tuple(image.shape[2:])),
        torch.get_num_threads(),
        image.detach().resolve_neg(),
        values,
        jacobian,
        fill,
        out.detach(),
        for_values,
        for_jacobian,
    )
    if for_values is None or for_jacobian is None:
        return None, None
    if is_grid:
        shape = (1, *size) if is_signal else size
        for_values, for_jacobian = for_values.unflatten(1, shape), for_jacobian.unflatten(1, size)
    if is_signal:
        for_values, for_jacobian = signals.of_line(for_values, coordinates), for_jacobian[..., :1, :1]
    return for_values, for_jacobian


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(image: Tensor, values: Tensor, jacobian: Tensor, fill: Tensor | None, *how: Any) -> Tensor:
        return _forward(image, values, jacobian, fill, *how[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.how = inputs[4:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        asked = bool(needs[0]), bool(needs[1] or needs[2])
        if _torch.in_forward_mode():
            *tensors, fill = ctx.saved_tensors
            found = torch.func.vjp(_function(fill, ctx.how), *tensors)[1](grad)
        else:
            found = _Pull.apply(grad, *ctx.saved_tensors, *ctx.how, *asked)
        wanted = (asked[0], asked[1], asked[1])
        grads = [g if want else None for g, want in zip(found, wanted, strict=True)]
        return (*grads, None, *[None] * len(ctx.how))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _mapped(_Average.apply, info, in_dims, inputs, 3), 0


class _Pull(torch.autograd.Function):
    """The gradients of the image, the values and the Jacobian; those that nobody asks for are empty."""

    @staticmethod
    def forward(
        grad: Tensor, image: Tensor, values: Tensor, jacobian: Tensor, fill: Tensor | None, *how: Any
    ) -> tuple[Tensor, ...]:
        options = (*how[:-3], *how[-2:])  # all but `otherwise`
        found = _backward(grad, image, values, jacobian, fill, *options)
        return tuple(grad.new_empty(image.shape[:1]) if g is None else g for g in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.how = inputs[5:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, fill = ctx.saved_tensors
        *how, for_image, for_values = ctx.how
        asked = (for_image, for_values, for_values)

        def pulled(grad: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            found = torch.func.vjp(_function(fill, how), *given)[1](grad)
            return tuple(g for g, want in zip(found, asked, strict=True) if want)

        wanted = tuple(g for g, want in zip(grads, asked, strict=True) if want)
        return (*torch.func.vjp(pulled, *tensors)[1](wanted), None, *[None] * len(ctx.how))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return tuple(_mapped(_Pull.apply, info, in_dims, inputs, 4)), (0, 0, 0)


def _function(fill: Tensor | None, how: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What an average is made of, as a function of what it is differentiated by."""
    *options, otherwise = how

    def run(image: Tensor, values: Tensor, jacobian: Tensor) -> Tensor:
        coordinates, reading = _records(values, fill, *options)
        out: Tensor = otherwise(image, coordinates, jacobian, reading)
        return out

    return run


def _mapped(apply: Callable[..., Any], info: Any, dims: tuple[Any, ...], inputs: tuple[Any, ...], count: int) -> Any:
    """`apply` with the mapped axis in the batch of the first `count` inputs; for every fill by itself."""
    n, how = info.batch_size, inputs[count + 1 :]
    moved = [
        t.expand(n, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(inputs[:count], dims, strict=False)
    ]
    fill, at = inputs[count], dims[count]
    if at is None:
        found = apply(*(t.flatten(0, 1) for t in moved), fill, *how)
        return found.unflatten(0, (n, -1)) if isinstance(found, Tensor) else [t.unflatten(0, (n, -1)) for t in found]
    each = [apply(*(t[k] for t in moved), fill.select(at, k), *how) for k in range(n)]
    return torch.stack(each) if isinstance(each[0], Tensor) else [torch.stack(g) for g in zip(*each, strict=True)]


@torch.library.custom_op("stn::area_average", mutates_args=())
def _operator(
    image: Tensor,
    values: Tensor,
    jacobian: Tensor,
    fill: Tensor | None,
    kind: str,
    size: list[int],
    padding: str,
    align_corners: bool,
) -> Tensor:
    return _forward(image, values, jacobian, fill, kind, size, padding, align_corners)


@torch.library.custom_op("stn::area_average_backward", mutates_args=())
def _operator_backward(
    grad: Tensor,
    image: Tensor,
    values: Tensor,
    jacobian: Tensor,
    fill: Tensor | None,
    kind: str,
    size: list[int],
    padding: str,
    align_corners: bool,
    for_image: bool,
    for_values: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    found = _backward(grad, image, values, jacobian, fill, kind, size, padding, align_corners, for_image, for_values)
    first, second, third = (grad.new_empty(0) if g is None else g for g in found)
    return first, second, third


@_operator.register_fake
def _(
    image: Tensor, values: Tensor, jacobian: Tensor, fill: Tensor | None, kind: str, size: list[int], *_: Any
) -> Tensor:
    return image.new_empty((*image.shape[:2], *size))


@_operator_backward.register_fake
def _(grad: Tensor, image: Tensor, values: Tensor, jacobian: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    asked = (rest[-2], rest[-1], rest[-1])
    first, second, third = (
        t.new_empty(t.shape if want else 0) for t, want in zip((image, values, jacobian), asked, strict=True)
    )
    return first, second, third


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.how = inputs[4:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    asked = bool(needs[0]), bool(needs[1] or needs[2])
    found = _operator_backward(grad, *ctx.saved_tensors, *ctx.how, *asked)
    grads = [g if want else None for g, want in zip(found, (asked[0], asked[1], asked[1]), strict=True)]
    return (*grads, *[None] * 5)


_operator.register_autograd(_differentiate, setup_context=_setup)
