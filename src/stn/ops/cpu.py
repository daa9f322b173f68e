"""The native kernels for the CPU, and the reason when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from .._checks import coordinate_dtype
from ..coordinates import Coordinates
from ..reading import Reading
from . import layout
from .backend import Case


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
OPAQUE = True
KINDS = ("affine", "projective", "basis", "grid")
_native, _reason = _load()
# What the native code calls things.
_MODES: dict[Any, int] = _native.MODES if _native else {}
_PADDINGS: dict[str, int] = _native.PADDINGS if _native else {}
_COORDINATES: dict[str, int] = _native.COORDINATES if _native else {}
if _native:
    _FORWARD, _GRAD_COORDINATES, _GRAD_IMAGE = _native.FORWARD, _native.GRAD_COORDINATES, _native.GRAD_IMAGE
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8)


def refuses(case: Case) -> str | None:
    if _reason is not None:
        return _reason
    if case.device != "cpu":
        return f"runs on the CPU, not on {case.device}"
    if case.kernel not in _MODES:
        return f"has no {case.kernel} for the CPU"
    if case.padding not in _PADDINGS:
        return f"has no {case.padding} padding"
    if case.ndim == 1:
        return "has no kernels for signals"
    return None if case.dtype in _TYPES else f"has no kernels for {case.dtype}"


def forward(image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    if not image.is_contiguous() and _is_better_plane_by_plane(image, reading):
        return layout.as_image(forward(image.contiguous(), coordinates, reading), image)
    out = layout.empty_like(image, coordinates.size, image.dtype)
    if out.numel():
        _run(_FORWARD, image, _prepared(coordinates), _with_fill(reading, image), out, out)
    return out


def backward(
    grad: Tensor, image: Tensor, coordinates: Coordinates, reading: Reading, for_image: bool, for_values: bool
) -> tuple[Tensor | None, Tensor | None]:
    if not image.is_contiguous() and _is_better_plane_by_plane(image, reading):
        image = image.contiguous()
    if not grad.is_contiguous() and _native.pixel_stride(grad) < 0:
        grad = grad.contiguous()
    prepared, reading = _prepared(coordinates), _with_fill(reading, image)
    grad_image = grad_values = None
    empty = not grad.numel()
    if for_image:
        shape = tuple(image.shape[2:])
        grad_image = torch.empty_like(image) if image.is_contiguous() else layout.empty_like(image, shape, image.dtype)
        if empty:
            grad_image.zero_()
        elif not _run(_GRAD_IMAGE, grad_image, prepared, reading, grad, grad_image):
            sums = layout.empty_like(image, shape, coordinate_dtype(image))
            _run(_GRAD_IMAGE, sums, prepared, reading, grad, sums)
            grad_image.copy_(sums)
    if for_values:
        values = prepared.values
        dense = values.is_contiguous()
        grad_values = torch.empty_like(values) if dense else torch.empty(values.shape, dtype=values.dtype)
        if empty or reading.kernel == "nearest":
            grad_values.zero_()
        else:
            _run(_GRAD_COORDINATES, image, prepared, reading, grad, grad_values)
        if grad_values.dtype != coordinates.values.dtype:
            grad_values = grad_values.to(coordinates.values.dtype)
    return grad_image, grad_values


def _run(what: int, image: Tensor, coordinates: Coordinates, reading: Reading, out: Tensor, result: Tensor) -> bool:
    """Fills `result`: the output, or the gradient of the coordinates or of the image (in whose layout `image` then comes).

    False, and nothing filled, where the gradient of the image has to be of the working type.
    """
    kind, _, values, basis = coordinates
    kernel, padding, fill, align_corners = reading
    done: bool = _native.run(
        what,
        _MODES[kernel],
        _PADDINGS[padding],
        _COORDINATES[kind],
        align_corners,
        torch.get_num_threads(),
        image,
        values,
        basis,
        fill,
        out,
        result,
    )
    return done


def _is_better_plane_by_plane(image: Tensor, reading: Reading) -> bool:
    """Copy and all."""
    narrow = reading.kernel == "bicubic" or (reading.kernel != "nearest" and image.element_size() == 2)
    return narrow and layout.is_channels_last(image)


def _prepared(coordinates: Coordinates) -> Coordinates:
    """As the kernels take them: dense, but for a grid; a basis and its coefficients in float64."""
    kind, size, values, basis = coordinates
    if basis is None and (kind == "grid" or values.is_contiguous()):
        return coordinates
    if basis is not None:
        values, basis = values.to(torch.float64), basis.to(torch.float64)
        if basis.stride(0) != 1:  # pixels next to each other: (N, K) stored as (K, N)
            basis = basis.t().contiguous().t()
    return Coordinates(kind, size, values.contiguous(), basis)


def _with_fill(reading: Reading, image: Tensor) -> Reading:
    """A fill for each channel."""
    if reading.fill is None:
        return reading
    fill = reading.fill.to(coordinate_dtype(image)).expand(image.shape[1]).contiguous()
    return reading._replace(fill=fill)
