"""The native kernels for the CPU, and the reason when they are missing.

In eager mode an `autograd.Function`, or no autograd at all where nobody asks for a gradient: the cheapest roads. Under
compilers and tracers a registered op with its fake kernel. Second derivatives, forward mode and transforms of the
backward pass come from the reference.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._checks import coordinate_dtype
from . import reference


def _load() -> tuple[Any, str | None]:
    try:
        native = importlib.import_module("._native", __package__)
        if native.connect(Tensor):
            return native, None
        return None, f"torch {torch.__version__} does not offer its tensors to C (__dlpack_c_exchange_api__)"
    except ImportError as error:
        reason = f"cannot be loaded: {error}"
    try:
        return None, str(importlib.import_module("._native_missing", __package__).REASON)
    except ImportError:
        return None, reason


NAME = "cpu"
_native, _reason = _load()
_FORWARD, _GRAD_COORDS, _GRAD_IMAGE = range(3)
_AFFINE, _PROJECTIVE, _BASIS, _GRID = range(4)
_MODES = {"nearest": 0, "bilinear": 1, "bicubic": 2}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2, "circular": 3, "constant": 4}


def unavailable() -> str | None:
    return _reason


def supports(ndim: int, mode: Any, padding_mode: str, device: torch.device) -> bool:
    return device.type == "cpu" and ndim in (2, 3) and mode in _MODES and padding_mode in _PADDINGS


def sample(
    image: Tensor, grid: Tensor, mode: str, padding_mode: str, fill: Tensor | None, align_corners: bool
) -> Tensor:
    return _warp(image, grid, None, _GRID, tuple(grid.shape[1:-1]), mode, padding_mode, fill, align_corners)


def warp_affine(
    image: Tensor,
    matrix: Tensor,
    size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    return _warp(image, matrix, None, _AFFINE, size, mode, padding_mode, fill, align_corners)


def warp_projective(
    image: Tensor,
    matrix: Tensor,
    size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    return _warp(image, matrix, None, _PROJECTIVE, size, mode, padding_mode, fill, align_corners)


def warp_basis(
    image: Tensor,
    basis: Tensor,
    coefficients: Tensor,
    size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    return _warp(image, coefficients, basis, _BASIS, size, mode, padding_mode, fill, align_corners)


def _warp(
    image: Tensor,
    coords: Tensor,
    basis: Tensor | None,
    kind: int,
    size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    if kind == _BASIS:
        coords = coords.to(torch.float64)
    if fill is not None:
        fill = fill.to(coordinate_dtype(image)).expand(image.shape[1])
    if mode != "nearest" and _is_channels_last(image) and (mode == "bicubic" or image.element_size() == 2):
        image = image.contiguous()  # plane by plane is faster, copy and all
    grads = torch.is_grad_enabled()
    needs_fill = grads and fill is not None and fill.requires_grad
    needs_basis = grads and basis is not None and basis.requires_grad
    if needs_fill or needs_basis:  # nobody trains these: the road without a kernel of its own
        return _reference(kind, size, mode, padding_mode, align_corners)(image, coords, basis, fill)
    options = (kind, _MODES[mode], _PADDINGS[padding_mode], align_corners)
    # A transform inside of a compiled function cannot see through the op.
    compiling, transforms = torch.compiler.is_compiling(), torch._C._are_functorch_transforms_active()
    if compiling and transforms:
        return _reference(kind, size, mode, padding_mode, align_corners)(image, coords, basis, fill)
    if compiling or torch._C._len_torch_dispatch_stack():
        return _op(image, coords, basis, fill, list(size), *options)
    out: Tensor
    if transforms or forward_ad._current_level >= 0:
        out = _Warp.apply(image, coords, basis, fill, size, options)
    elif grads and (image.requires_grad or coords.requires_grad):
        out = _EagerWarp.apply(image, coords, basis, fill, size, options)
    else:
        out = _forward(image, coords, basis, fill, size, options)
    return out


_MODE_NAMES, _PADDING_NAMES = list(_MODES), list(_PADDINGS)
_Options = tuple[int, int, int, bool]


def _reference(
    kind: int, size: tuple[int, ...], mode: str, padding_mode: str, align_corners: bool
) -> Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]:
    def run(image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None) -> Tensor:
        rest = (mode, padding_mode, fill, align_corners)
        if kind == _AFFINE:
            return reference.warp_affine(image, coords, size, *rest)
        if kind == _PROJECTIVE:
            return reference.warp_projective(image, coords, size, *rest)
        if kind == _BASIS:
            assert basis is not None
            return reference.warp_basis(image, basis, coords, size, *rest)
        return reference.sample(image, coords, *rest)

    return run


def _call(
    what: int,
    image: Tensor,
    coords: Tensor,
    basis: Tensor | None,
    fill: Tensor | None,
    options: _Options,
    out: Tensor,
    result: Tensor,
) -> bool:
    """Fills `result`: the output, or the gradient of the coordinates or of the image (in whose layout `image` then comes).

    False, and nothing filled, where the gradient of the image has to be of the working type.
    """
    kind, mode, padding, align_corners = options
    threads = torch.get_num_threads()
    done: bool = _native.run(what, mode, padding, kind, align_corners, threads, image, coords, basis, fill, out, result)
    return done


def _is_channels_last(image: Tensor) -> bool:
    return not image.is_contiguous() and image.shape[1] > 1 and image.stride(1) == 1


def _empty(like: Tensor, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(B, C, *size) in the memory format of `like`."""
    shape = (like.shape[0], like.shape[1], *size)
    if not _is_channels_last(like):
        return like.new_empty(shape, dtype=dtype)
    return like.new_empty((shape[0], *size, shape[1]), dtype=dtype).movedim(-1, 1)


def _prepare(
    coords: Tensor, basis: Tensor | None, fill: Tensor | None, kind: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if kind != _GRID:
        coords = coords.contiguous()
    if basis is not None:
        basis = basis.to(torch.float64)
        if basis.stride(0) != 1:  # pixels next to each other: (N, K) stored as (K, N)
            basis = basis.t().contiguous().t()
    return coords, basis, None if fill is None else fill.contiguous()


def _forward(
    image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None, size: tuple[int, ...], options: _Options
) -> Tensor:
    if image.is_contiguous() and image.shape[2:] == size:
        out = torch.empty_like(image)  # the cheapest allocation
    else:
        out = _empty(image, size, image.dtype)
    if out.numel():
        coords, basis, fill = _prepare(coords, basis, fill, options[0])
        _call(_FORWARD, image, coords, basis, fill, options, out, out)
    return out


def _backward(
    grad: Tensor,
    image: Tensor,
    coords: Tensor,
    basis: Tensor | None,
    fill: Tensor | None,
    options: _Options,
    for_image: bool,
    for_coords: bool,
) -> tuple[Tensor | None, Tensor | None]:
    if not grad.is_contiguous() and _native.pixel_stride(grad) < 0:
        grad = grad.contiguous()
    kept = coords
    coords, basis, fill = _prepare(coords, basis, fill, options[0])
    grad_image = grad_coords = None
    empty = not grad.numel()
    if for_image:
        shape = tuple(image.shape[2:])
        grad_image = torch.empty_like(image) if image.is_contiguous() else _empty(image, shape, image.dtype)
        if empty:
            grad_image.zero_()
        elif not _call(_GRAD_IMAGE, grad_image, coords, basis, fill, options, grad, grad_image):
            sums = _empty(image, shape, coordinate_dtype(image))
            _call(_GRAD_IMAGE, sums, coords, basis, fill, options, grad, sums)
            grad_image.copy_(sums)
    if for_coords:
        grad_coords = torch.empty_like(kept, memory_format=torch.contiguous_format)
        if empty or options[1] == _MODES["nearest"]:
            grad_coords.zero_()
        else:
            _call(_GRAD_COORDS, image, coords, basis, fill, options, grad, grad_coords)
    return grad_image, grad_coords


class _Warp(torch.autograd.Function):
    @staticmethod
    def forward(
        image: Tensor,
        coords: Tensor,
        basis: Tensor | None,
        fill: Tensor | None,
        size: tuple[int, ...],
        options: _Options,
    ) -> Tensor:
        return _forward(image, coords, basis, fill, size, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.size, ctx.options = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, coords, basis, fill = ctx.saved_tensors
        for_image, for_coords = ctx.needs_input_grad[:2]
        # Somebody will differentiate the gradient, or transforms it, or pulls back what a transform has left behind.
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor
        again = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        if again or wrapped(grad) or wrapped(image) or wrapped(coords):
            truth = _truth(basis, fill, ctx.size, ctx.options)
            grads = torch.func.vjp(truth, image, coords)[1](grad.to(coordinate_dtype(image)))
            return (grads[0] if for_image else None, grads[1] if for_coords else None, None, None, None, None)
        grads = _backward(grad, image, coords, basis, fill, ctx.options, for_image, for_coords)
        return (*grads, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, image_t: Tensor | None, coords_t: Tensor | None, *_: Any) -> Tensor:
        image, coords, basis, fill = ctx.saved_tensors
        tangents = tuple(torch.zeros_like(p) if t is None else t for p, t in ((image, image_t), (coords, coords_t)))
        # The transpose of the transpose: a jvp in here would be nested forward mode, which torch lacks.
        pulled = torch.func.vjp(_truth(basis, fill, ctx.size, ctx.options), image, coords)
        pushed: Tensor = torch.func.vjp(pulled[1], torch.zeros_like(pulled[0]))[1](tangents)[0]
        return pushed.to(image.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        """The mapped axis joins the batch."""
        image, coords, basis, fill, size, options = inputs
        n = info.batch_size
        if in_dims[2] is not None or in_dims[3] is not None:
            slices = []
            for k in range(n):
                tensors = [t if d is None else t.select(d, k) for t, d in zip(inputs[:4], in_dims[:4], strict=True)]
                slices.append(_Warp.apply(*tensors, size, options))
            return torch.stack(slices), 0
        image, coords = (
            t.expand(n, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in ((image, in_dims[0]), (coords, in_dims[1]))
        )
        out = _Warp.apply(image.flatten(0, 1), coords.flatten(0, 1), basis, fill, size, options)
        return out.unflatten(0, (n, -1)), 0


class _EagerWarp(torch.autograd.Function):
    """`_Warp` for plain reverse mode: `apply` of a function with `setup_context` inspects signatures at every call."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        coords: Tensor,
        basis: Tensor | None,
        fill: Tensor | None,
        size: tuple[int, ...],
        options: _Options,
    ) -> Tensor:
        ctx.size, ctx.options = size, options
        ctx.save_for_backward(image, coords, basis, fill)
        return _forward(image, coords, basis, fill, size, options)

    backward = _Warp.backward


def _truth(
    basis: Tensor | None, fill: Tensor | None, size: tuple[int, ...], options: _Options
) -> Callable[[Tensor, Tensor], Tensor]:
    kind, mode, padding, align_corners = options
    run = _reference(kind, size, _MODE_NAMES[mode], _PADDING_NAMES[padding], align_corners)
    return lambda image, coords: run(image, coords, basis, fill)


# Under compilers and tracers


@torch.library.custom_op("stn::warp_cpu", mutates_args=())
def _op(
    image: Tensor,
    coords: Tensor,
    basis: Tensor | None,
    fill: Tensor | None,
    size: list[int],
    kind: int,
    mode: int,
    padding: int,
    align_corners: bool,
) -> Tensor:
    return _forward(image, coords, basis, fill, tuple(size), (kind, mode, padding, align_corners))


@_op.register_fake
def _(image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None, size: list[int], *_: Any) -> Tensor:
    return _empty(image, tuple(size), image.dtype)


@torch.library.custom_op("stn::warp_cpu_backward", mutates_args=())
def _op_backward(
    grad: Tensor,
    image: Tensor,
    coords: Tensor,
    basis: Tensor | None,
    fill: Tensor | None,
    kind: int,
    mode: int,
    padding: int,
    align_corners: bool,
    for_image: bool,
    for_coords: bool,
) -> tuple[Tensor, Tensor]:
    options = (kind, mode, padding, align_corners)
    grads = _backward(grad, image, coords, basis, fill, options, for_image, for_coords)
    return (
        image.new_empty(0) if grads[0] is None else grads[0],
        coords.new_empty(0) if grads[1] is None else grads[1],
    )


@_op_backward.register_fake
def _(
    grad: Tensor,
    image: Tensor,
    coords: Tensor,
    basis: Tensor | None,
    fill: Tensor | None,
    kind: int,
    mode: int,
    padding: int,
    align_corners: bool,
    for_image: bool,
    for_coords: bool,
) -> tuple[Tensor, Tensor]:
    return (
        _empty(image, tuple(image.shape[2:]), image.dtype) if for_image else image.new_empty(0),
        coords.new_empty(coords.shape) if for_coords else coords.new_empty(0),
    )


def _op_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, kind, mode, padding, align_corners = inputs
    ctx.options = (kind, mode, padding, align_corners)
    ctx.save_for_backward(*tensors)


def _op_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    image, coords, basis, fill = ctx.saved_tensors
    for_image, for_coords = ctx.needs_input_grad[:2]
    grads = _op_backward(grad, image, coords, basis, fill, *ctx.options, for_image, for_coords)
    return (grads[0] if for_image else None, grads[1] if for_coords else None, *[None] * 7)


_op.register_autograd(_op_grad, setup_context=_op_setup)
