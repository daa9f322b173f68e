"""The native kernels for the CPU, and the reason when they are missing."""

from __future__ import annotations

import importlib
import os
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from .._checks import coordinate_dtype
from ..coordinates import Coordinates
from ..kernels import Kernel
from ..reading import Reading
from . import layout, polynomials, reference, signals
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
KINDS = ("affine", "projective", "basis", "field", "grid", "pixels")
_native, _reason = _load()
# What the native code calls things.
_MODES: dict[Any, int] = _native.MODES if _native else {}
_PADDINGS: dict[str, int] = _native.PADDINGS if _native else {}
_COORDINATES: dict[str, int] = _native.COORDINATES if _native else {}
if _native:
    _FORWARD, _GRAD_COORDINATES, _GRAD_IMAGE = _native.FORWARD, _native.GRAD_COORDINATES, _native.GRAD_IMAGE
    _INTEGER = _native.INTEGER  # a mode that is no torch mode: "nearest", but for ties
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8)


def refuses(case: Case) -> str | None:
    if _reason is not None:
        return _reason
    if case.device != "cpu":
        return f"runs on the CPU, not on {case.device}"
    if isinstance(case.kernel, Kernel):
        reason = None if case.kernel.name == "integer" else polynomials.refuses(case.kernel)
        if reason is not None:
            return reason
    elif case.kernel not in _MODES:
        return f"has no {case.kernel} for the CPU"
    if case.padding not in _PADDINGS:
        return f"has no {case.padding} padding"
    if case.ndim == 1 and case.dtype == torch.uint8:
        return "has no kernels for signals of bytes"
    return None if case.dtype in _TYPES else f"has no kernels for {case.dtype}"


def forward(image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    if isinstance(reading.kernel, Kernel) and reading.kernel.name != "integer":
        return _forward_by_polynomials(image, coordinates, reading)
    if image.ndim == 3:
        return signals.forward(forward, image, coordinates, reading)
    if not image.is_contiguous() and _is_better_plane_by_plane(image, reading):
        return layout.as_image(forward(image.contiguous(), coordinates, reading), image)
    out = layout.empty_like(image, coordinates.size, image.dtype)
    if out.numel():
        _run(_FORWARD, image, _prepared(coordinates), _with_fill(reading, image), out, out)
    return out


def backward(
    grad: Tensor, image: Tensor, coordinates: Coordinates, reading: Reading, for_image: bool, for_values: bool
) -> tuple[Tensor | None, Tensor | None]:
    if isinstance(reading.kernel, Kernel) and reading.kernel.name != "integer":
        return _backward_by_polynomials(grad, image, coordinates, reading, for_image, for_values)
    if image.ndim == 3:
        return signals.backward(backward, grad, image, coordinates, reading, for_image, for_values)
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
        if empty or reading.kernel == "nearest" or isinstance(reading.kernel, Kernel):  # the integer kernel
            grad_values.zero_()
        else:
            _run(_GRAD_COORDINATES, image, prepared, reading, grad, grad_values)
        if grad_values.dtype != coordinates.values.dtype:
            grad_values = grad_values.to(coordinates.values.dtype)
    return grad_image, grad_values


# Kernels of polynomials. What they read is a copy in any case, of the working type and dense.


def _forward_by_polynomials(
    image: Tensor, coordinates: Coordinates, reading: Reading, is_signal: bool = False
) -> Tensor:
    if image.ndim == 3:
        return signals.forward(partial(_forward_by_polynomials, is_signal=True), image, coordinates, reading)
    wide = image.to(coordinate_dtype(image))
    out = wide.new_empty((*wide.shape[:2], *coordinates.size))
    if out.numel():
        prepared, filled = _prepared(coordinates), _with_fill(reading, wide)
        if not _run(_FORWARD, wide, prepared, filled, out, out, is_signal):
            return reference.forward(image, coordinates, reading)
    return layout.as_image(out, image)


def _backward_by_polynomials(
    grad: Tensor,
    image: Tensor,
    coordinates: Coordinates,
    reading: Reading,
    for_image: bool,
    for_values: bool,
    is_signal: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    if image.ndim == 3:
        by_rows = partial(_backward_by_polynomials, is_signal=True)
        return signals.backward(by_rows, grad, image, coordinates, reading, for_image, for_values)
    wide = image.to(coordinate_dtype(image)).contiguous()
    grad = grad.to(wide.dtype).contiguous()
    prepared, filled = _prepared(coordinates), _with_fill(reading, wide)
    results: list[Tensor | None] = []
    for what, like in ((_GRAD_IMAGE, wide), (_GRAD_COORDINATES, prepared.values)):
        if not (for_image if what == _GRAD_IMAGE else for_values):
            results.append(None)
            continue
        result = torch.zeros(like.shape, dtype=like.dtype)
        lends = result if what == _GRAD_IMAGE else wide
        if grad.numel() and not _run(what, lends, prepared, filled, grad, result, is_signal):
            return reference.backward(grad.to(image.dtype), image, coordinates, reading, for_image, for_values)
        results.append(result)
    grad_image, grad_values = results
    return (
        None if grad_image is None else layout.as_image(grad_image, image),
        None if grad_values is None else grad_values.to(coordinates.values.dtype),
    )


@lru_cache(maxsize=64)
def _polynomials(name: str, double: bool) -> Any:
    return _native.polynomials(*polynomials.of(name, double))


def threads() -> int:
    """Of a call that is not torch's: OMP_NUM_THREADS, or as many as the process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else len(os.sched_getaffinity(0))


def _run(
    what: int,
    image: Tensor,
    coordinates: Coordinates,
    reading: Reading,
    out: Tensor,
    result: Tensor,
    is_signal: bool = False,
) -> bool:
    """Fills `result`: the output, or the gradient of the coordinates or of the image (in whose layout `image` then comes).

    False, and nothing to be used, where the gradient of the image has to be of the working type, and where the recursive
    filter of a spline met numbers that are not finite, which it would spread all over.
    """
    kind, _, values, basis = coordinates
    kernel, padding, fill, align_corners = reading
    mode, of = 0, None
    if not isinstance(kernel, Kernel):
        mode = _MODES[kernel]
    elif kernel.name == "integer":
        mode = _INTEGER
    else:
        of = _polynomials(str(kernel.name), out.dtype == torch.float64)
    done: bool = _native.run(
        what,
        mode,
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
        of,
        is_signal,
    )
    return done


def _is_better_plane_by_plane(image: Tensor, reading: Reading) -> bool:
    """Copy and all."""
    narrow = reading.kernel == "bicubic" or (reading.kernel != "nearest" and image.element_size() == 2)
    return narrow and layout.is_channels_last(image)


def _prepared(coordinates: Coordinates) -> Coordinates:
    """As the kernels take them: dense, but for a grid; a basis and its coefficients in float64."""
    kind, size, values, basis = coordinates
    if basis is None and (kind in ("grid", "pixels") or values.is_contiguous()):
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
