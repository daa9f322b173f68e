"""The read of multi-scale deformable attention: a few positions a query, on feature maps of several sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ._checks import check_float_tensor, check_size, coordinate_dtype, describe
from .ops import deformable
from .sampling import sample


def deformable_sample(
    value: Tensor,  # (B, S, heads, C)
    sizes: Sequence[Sequence[int]],
    locations: Tensor,  # (B, Q, heads, levels, points, d)
    weights: Tensor,  # (B, Q, heads, levels, points)
) -> Tensor:
    """Read feature maps of several sizes at some positions for each query, and add up what was read by weights.

    What multi-scale deformable attention does between its linear layers, with no extension to compile: on the CPU one native
    function, on a GPU one Triton kernel, elsewhere, in portable programs and under `torch.use_deterministic_algorithms` on a
    GPU one read of each map. Pull, bilinear, zeros beyond the border. Positions
    are (x, y[, z]) **in [0, 1]**, as in every model that has such a layer: 0 and 1 are the outer edges of the border pixels of
    each map (`align_corners=False`), so they are half of this package's normalized ones and a half.

    Args:
        value: (B, S, heads, C), the maps flattened one behind the other, S positions in all.
        sizes: ([D,] H, W) of each map, as ints; of a tensor of sizes `sizes.tolist()`.
        locations: (B, Q, heads, levels, points, d), for a map per level, d = 1 to 3.
        weights: (B, Q, heads, levels, points), as they are: a softmax over levels and points is the caller's.

    Returns:
        (B, Q, heads * C), of `value`'s type, the channels of a head together. Positions are float32 (float64 for
        float64), whatever the type of `value`.

    Raises:
        ValueError: for shapes that do not fit, and other types.

    Example:
        >>> value = torch.tensor([1.0, 3.0, 5.0]).view(1, 3, 1, 1)  # a map of 1x2 pixels and one of 1x1
        >>> locations = torch.full((1, 1, 1, 2, 1, 2), 0.5)
        >>> weights = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2, 1)
        >>> deformable_sample(value, [(1, 2), (1, 1)], locations, weights)  # 0.75 * 2 + 0.25 * 5
        tensor([[[2.7500]]])

    Source: Zhu et al. 2021, "Deformable DETR", equation 3.
    """
    maps = _check(value, sizes, locations, weights)
    locations = locations.to(coordinate_dtype(value, locations))
    read = deformable.read(value, maps, locations, weights, partial(by_level, maps))
    return read.flatten(2).to(value.dtype)


def by_level(maps: Sequence[tuple[int, ...]], value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The read, (B, Q, heads, C), one map after the other; in any number of axes, differentiable."""
    batch, _, heads, channels = value.shape
    _, queries, _, _, points, ndim = locations.shape
    places = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5)  # (levels, B, heads, Q, points, d)
    shares = weights.to(value.dtype).permute(3, 0, 2, 1, 4)
    total: Tensor | None = None
    of_level = value.split([math.prod(size) for size in maps], dim=1)
    for level, size, place, share in zip(of_level, maps, places, shares, strict=True):
        image = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, *size)
        grid = place.reshape(batch * heads, *(1,) * (ndim - 1), queries * points, ndim)  # one row, whatever d is
        seen = sample(image, grid).reshape(batch, heads, channels, queries, points)
        part = torch.einsum("bhcqp,bhqp->bqhc", seen, share)
        total = part if total is None else total + part
    assert total is not None
    return total


def _check(value: Tensor, sizes: Sequence[Sequence[int]], locations: Tensor, weights: Tensor) -> list[tuple[int, ...]]:
    """The sizes of the maps."""
    check_float_tensor("value", value, "flattened maps (B, S, heads, C)")
    check_float_tensor("locations", locations, "positions (B, Q, heads, levels, points, d)")
    check_float_tensor("weights", weights, "weights (B, Q, heads, levels, points)")
    if value.ndim != 4:
        raise ValueError(f"value: expected flattened maps (B, S, heads, C), got shape {tuple(value.shape)}")
    if locations.ndim != 6 or not 1 <= locations.shape[-1] <= 3:
        raise ValueError(
            f"locations: expected positions (B, Q, heads, levels, points, d), d = 1 to 3, got shape {tuple(locations.shape)}"
        )
    ndim = locations.shape[-1]
    if isinstance(sizes, Tensor) or not isinstance(sizes, Sequence) or not sizes:
        raise ValueError(f"sizes: expected a list of the size of each map, as ints, got {describe(sizes)}")
    maps = [check_size(size, ndim, f"sizes[{place}]") for place, size in enumerate(sizes)]
    positions = sum(math.prod(size) for size in maps)
    if value.shape[1] != positions:
        raise ValueError(f"value: expected {positions} positions for maps of {maps}, got {value.shape[1]}")
    if (locations.shape[0], *locations.shape[2:4]) != (value.shape[0], value.shape[2], len(maps)):
        raise ValueError(
            f"locations: expected ({value.shape[0]}, Q, {value.shape[2]}, {len(maps)}, points, {ndim}) for value of shape "
            f"{tuple(value.shape)} and {len(maps)} maps, got shape {tuple(locations.shape)}"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f"weights: expected shape {tuple(locations.shape[:-1])}, got {tuple(weights.shape)}")
    return maps
