"""Exact behaviour of older packages, for whoever has weights trained with them. New code wants `stn.warp`.

The `stn` package for TensorFlow (1.0.1) samples at 0.5 (x + 1) (W - 2), one pixel too few, and computes the weights
after clipping the corners, so that the last row and column come out as zero: its identity is not the identity,
[0, 1, 2, 3, 4] -> [0, 0.75, 1.5, 2.25, 3]. Here these numbers are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_batches, check_float_tensor, check_size, coordinate_dtype
from .transformer import check_image_last


def spatial_transformer_network(
    input_fmap: Tensor,  # (B, H, W, C)
    theta: Tensor,  # (B, 6)
    out_dims: tuple[int, int] | None = None,
) -> Tensor:
    """The old package's `spatial_transformer_network`, to float rounding.

    Returns:
        (B, *out_dims, C), differentiable in both arguments.

    Example:
        >>> row = torch.arange(5.0).expand(1, 5, 5)[..., None]
        >>> spatial_transformer_network(row, torch.tensor([[1.0, 0, 0, 0, 1, 0]]))[0, 0, :, 0]
        tensor([0.0000, 0.7500, 1.5000, 2.2500, 3.0000])
    """
    check_image_last(input_fmap)
    size = tuple(input_fmap.shape[1:3]) if out_dims is None else check_size(out_dims, 2, "out_dims")
    check_float_tensor("theta", theta, "(B, 6) parameters")
    if theta.shape != (input_fmap.shape[0], 6):
        raise ValueError(f"theta: expected ({input_fmap.shape[0]}, 6), got shape {tuple(theta.shape)}")
    check_batches("input_fmap", input_fmap, "theta", theta)
    grid = affine_grid_generator(size[0], size[1], theta)
    return bilinear_sampler(input_fmap, grid[:, 0], grid[:, 1])


def affine_grid_generator(height: int, width: int, theta: Tensor) -> Tensor:
    """The old package's grid (B, 2, H, W): x, then y, on a lattice from -1 to 1 inclusive."""
    check_size((height, width), 2, "(height, width)")
    check_float_tensor("theta", theta, "(B, 6) parameters")
    if theta.ndim != 2 or theta.shape[1] != 6:
        raise ValueError(f"theta: expected (B, 6), got shape {tuple(theta.shape)}")
    dtype = coordinate_dtype(theta)
    x = torch.linspace(-1, 1, width, dtype=dtype, device=theta.device)
    y = torch.linspace(-1, 1, height, dtype=dtype, device=theta.device)
    m = theta.to(dtype).reshape(-1, 2, 3, 1, 1)
    return m[:, :, 0] * x + m[:, :, 1] * y[:, None] + m[:, :, 2]


def bilinear_sampler(img: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The old package's sampler: img (B, H, W, C) at x, y (B, Ho, Wo) in [-1, 1] -> (B, Ho, Wo, C)."""
    check_image_last(img, "img")
    batch, height, width, channels = img.shape
    for argument, value in (("x", x), ("y", y)):
        check_float_tensor(argument, value, "positions (B, Ho, Wo)")
        if value.ndim != 3 or value.shape[0] != batch or value.shape != x.shape:
            raise ValueError(f"{argument}: expected ({batch}, Ho, Wo), got shape {tuple(value.shape)}")
        check_batches("img", img, argument, value)
    x, y = 0.5 * (x + 1) * (width - 2), 0.5 * (y + 1) * (height - 2)
    flat = img.to(x.dtype).reshape(batch, height * width, channels)
    out = torch.zeros((), dtype=x.dtype, device=img.device)
    for column, weight_x in _corners(x, width):
        for row, weight_y in _corners(y, height):
            index = (row * width + column).flatten(1)[..., None].expand(-1, -1, channels)
            out = out + flat.gather(1, index).reshape(*x.shape, channels) * (weight_x * weight_y)[..., None]
    return out.to(img.dtype)


def _corners(position: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    low = position.detach().floor()
    first, second = (p.clamp(0, n - 1).nan_to_num(0.0) for p in (low, low + 1))
    return [(first.long(), second - position), (second.long(), position - first)]
