"""The memory format of a result is that of its image."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(image: Tensor) -> bool:
    return not image.is_contiguous() and image.shape[1] > 1 and image.stride(1) == 1


def empty_like(image: Tensor, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Fresh memory for (B, C, *size), channels-last where `image` is."""
    if dtype == image.dtype and image.is_contiguous() and image.shape[2:] == size:
        return torch.empty_like(image)  # the cheapest allocation
    shape = (image.shape[0], image.shape[1], *size)
    if not is_channels_last(image):
        return image.new_empty(shape, dtype=dtype)
    return image.new_empty((shape[0], *size, shape[1]), dtype=dtype).movedim(-1, 1)


def as_image(out: Tensor, image: Tensor) -> Tensor:
    """`out` in the type and the memory format of `image`; for integers rounded, halves to even, within their range."""
    if out.dtype != image.dtype:
        if not image.is_floating_point() and image.dtype != torch.bool:
            limits = torch.iinfo(image.dtype)
            out = out.round().clamp(limits.min, limits.max)
        out = out.to(image.dtype)
    # In words that vmap knows.
    return out.movedim(1, -1).contiguous().movedim(-1, 1) if is_channels_last(image) else out
