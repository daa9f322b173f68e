"""How an image is read between its pixels and beyond them: one record, checked once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import kernels
from ._checks import check_choice, check_flag, coordinate_dtype, describe

MODES = ("bilinear", "nearest", "bicubic", *kernels.NAMED)
PADDING_MODES = ("zeros", "border", "reflection", "circular", "constant")

Mode = (
    Literal["bilinear", "nearest", "bicubic", "integer", "lanczos3", "bspline2", "bspline3", "bspline4", "bspline5"]
    | kernels.Kernel
)
PaddingMode = Literal["zeros", "border", "reflection", "circular", "constant"]
Fill = float | Sequence[float] | Tensor


class Reading(NamedTuple):
    """How an image is read; made by `check_reading`, trusted everywhere below the public edge."""

    kernel: str | kernels.Kernel  # between pixels: "nearest", "bilinear", "bicubic", or a kernel
    padding: str  # beyond them
    fill: Tensor | None  # (1,) or (C,), of constant padding alone
    align_corners: bool


def check_reading(mode: Any, padding_mode: Any, fill: Any = 0.0, align_corners: Any = False) -> Reading:
    """The options of a public call as a `Reading`, or a ValueError that names the one that is wrong."""
    if padding_mode == "constant":
        return _without_fill.__wrapped__(mode, padding_mode, align_corners)._replace(fill=_background(fill))
    if not isinstance(fill, (int, float)) or fill != 0:
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        raise ValueError(f"fill: expected 0 with padding_mode={padding_mode!r}; it belongs to padding_mode='constant'")
    if torch.compiler.is_compiling():  # which does not look into caches
        return _without_fill.__wrapped__(mode, padding_mode, align_corners)
    try:
        return _without_fill(mode, padding_mode, align_corners)
    except TypeError:  # not hashable, so nothing that it could be
        return _without_fill.__wrapped__(mode, padding_mode, align_corners)


@functools.lru_cache(typed=True)  # True is not 1 here
def _without_fill(mode: Any, padding_mode: Any, align_corners: Any) -> Reading:
    if not isinstance(mode, kernels.Kernel):
        check_choice("mode", mode, MODES)
        mode = kernels.NAMED.get(mode, mode)
    check_flag("align_corners", align_corners)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    return Reading(mode, padding_mode, None, align_corners)


def fit_fill(reading: Reading, image: Tensor) -> Reading:
    """The same for a given image: the fill on its device, of a type for it, one for all channels or one for each."""
    fill = reading.fill
    if fill is None:
        return reading
    if fill.numel() not in (1, image.shape[1]):
        raise ValueError(
            f"fill: expected a number or {image.shape[1]} of them, one per channel, got {fill.numel()} of them"
        )
    if fill.device.type == "meta" != image.device.type:
        raise ValueError(f"fill: expected numbers, got {describe(fill)} without any")
    if image.is_floating_point() or image.dtype == torch.uint8:
        return reading._replace(fill=fill.to(image.device, coordinate_dtype(image)))
    whole = fill.round() if fill.is_floating_point() else fill  # labels may lie beyond what float32 tells apart
    return reading._replace(fill=whole.to(image.device, image.dtype))


def _background(fill: Any) -> Tensor:
    try:
        dtype = fill.dtype if isinstance(fill, Tensor) else torch.float64
        device = fill.device if isinstance(fill, Tensor) else "cpu"
        background = torch.as_tensor(fill, dtype=dtype, device=device).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"fill: expected a number or one per channel, got {describe(fill)}") from error
    if background.is_complex() or not background.numel():
        raise ValueError(f"fill: expected a number or one per channel, got {describe(fill)}")
    return background
