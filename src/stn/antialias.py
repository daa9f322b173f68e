"""Sampling that does not alias: each output pixel averages what it stands for in the input.

The warp's Jacobian says how far a step of one output pixel along each axis of the output goes in the input. Where that
is more than a pixel, the image is read at several points of a parallelogram (in 3D a parallelepiped) of that shape and
averaged with a tent. The points are those of a lattice that is even both over the whole and along each side, so a long
and thin parallelogram is followed with all of them; where they are still too far apart they read smaller, smoothed
copies of the image. All of it is differentiable in theta; a warp that shrinks nothing gives what it gives without, to
rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .coordinates import Coordinates
from .ops import dispatch as ops
from .ops import reference
from .reading import Reading

# Rank-1 lattices of 8, 16 and 32 points, the ones with the largest distances: point k has the coordinates g k modulo
# their number, for each g.
_LATTICES = {1: (8, (1,)), 2: (16, (1, 13)), 3: (32, (1, 29, 23))}
_LEVELS = 8  # copies at most, each half the size of the one before


def sample_antialiased(
    image: Tensor,  # (B, C, *in)
    grid: Tensor,  # (B, *out, d)
    jacobian: Tensor,  # (B, *out, d, d)
    reading: Reading,
    *,
    at_once: bool = False,
) -> Tensor:
    """The image read at the grid, averaged over each output pixel.

    jacobian has in its columns the steps in the input, in pixels (x, y[, z]), for one pixel of the output. With `at_once` all
    points of a pixel are read by one call: for programs whose operations are to be few, at the cost of memory.
    """
    d = image.ndim - 2
    size, kind, out_size = image.shape[2:], image.dtype, tuple(grid.shape[1:-1])
    _, padding_mode, fill, align_corners = reading
    smooth = Reading("bilinear", padding_mode, fill, align_corners=False)  # how the smaller copies are read
    image = image.to(grid.dtype)
    # The image's own kernel is a pixel wide already, so a step of length s is widened by s - 1/s, and one of up to a
    # pixel not at all. That has a finite slope everywhere, where the exact root of s^2 - 1 has not.
    squared = jacobian.square().sum(-2)  # (B, *out, d)
    widening = (1 - 1 / squared.clamp_min(1.0)).masked_fill(squared.isnan(), torch.nan)
    axes = jacobian * widening[..., None, :]
    last = min(_LEVELS, max(math.ceil(math.log2(max(size))), 0))
    level = (0.5 * _gap(axes, _LATTICES[d][0]).clamp_min(1.0).log2()).clamp_max(last)  # (B, *out)
    half = image.new_tensor([n / 2 for n in reversed(size)], dtype=grid.dtype)
    centre, mirror = grid, grid.new_ones(d)  # in units of half the image; where a reflection turns round
    if align_corners:
        centre = grid * grid.new_tensor([(n - 1) / n for n in reversed(size)])
        mirror = grid.new_tensor([(n - 1) / n if n > 1 else 1.0 for n in reversed(size)])

    out = torch.zeros((), dtype=image.dtype, device=image.device)
    copy = image
    for number in range(_needed(level, last) + 1):
        if number:
            copy = _halve(copy, padding_mode, fill)
        share = (1 - (level - number).abs()).clamp_min(0.0)[:, None]
        # A copy covers its pixels times 2^number, which is more than the image where that does not go into its size.
        cover = centre.new_tensor(
            [n / (m * 2**number) for n, m in zip(reversed(size), reversed(copy.shape[2:]), strict=True)]
        )
        total = torch.zeros((), dtype=image.dtype, device=image.device)
        for some in axes.new_tensor(_tent(d)).split(_LATTICES[d][0] if at_once else 1):
            k = some.shape[0]
            moved = (axes[:, None] * some.reshape(k, *[1] * d, 1, d)).sum(-1) / half  # (B, k, *out, d)
            if number:
                position = (_within(centre[:, None] + moved, padding_mode, mirror) + 1) * cover - 1
            else:
                stretch = (n / (n - 1) if n > 1 else 1.0 for n in reversed(size)) if align_corners else [1.0] * d
                position = grid[:, None] + moved * grid.new_tensor(list(stretch))
            coordinates = Coordinates("grid", (k * out_size[0], *out_size[1:]), position.flatten(1, 2))
            value = ops.warp(copy, coordinates, smooth) if number else ops.warp(image, coordinates, reading)
            total = total + (value.unflatten(2, (k, out_size[0])).sum(2) if k > 1 else value)
        out = out + share * total
    return (out / _LATTICES[d][0]).to(kind)


def _gap(axes: Tensor, points: int) -> Tensor:
    """How far apart the points are, in pixels, squared: of the longest side, the largest face or the whole, each
    shared among all of them, that which leaves the widest gap."""
    gap = axes.square().sum(-2).amax(-1) * (2 / points) ** 2
    columns = axes.unbind(-1)
    if len(columns) == 2:
        a, b = columns
        gap = torch.maximum(gap, (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).abs() * 4 / points)
    if len(columns) == 3:
        a, b, c = columns
        faces = [torch.linalg.cross(p, q).square().sum(-1) for p, q in ((a, b), (b, c), (c, a))]
        gap = torch.maximum(gap, torch.stack(faces).amax(0).clamp_min(1e-6).sqrt() * 4 / points)
        volume = (torch.linalg.cross(a, b) * c).sum(-1).abs() * 8 / points
        gap = torch.maximum(gap, volume.clamp_min(1e-6) ** (2 / 3))
    return gap


def _tent(d: int) -> list[list[float]]:
    """Offsets within (-1, 1)^d, as dense as a tent along each axis, and the same on both sides of 0."""
    points, generators = _LATTICES[d]
    shares = [[((g * k + (g - 1) // 2) % points + 0.5) / points for g in generators] for k in range(points)]
    return [[math.copysign(1 - math.sqrt(1 - abs(2 * u - 1)), u - 0.5) for u in row] for row in shares]


def _within(position: Tensor, padding_mode: str, mirror: Tensor) -> Tensor:
    """Positions outside as those inside the image that they stand for: a smaller copy covers more than the image, so
    it neither repeats nor turns round where the image does."""
    if padding_mode == "circular":
        return (position + 1).remainder(2) - 1
    if padding_mode == "reflection":
        turned = (position + mirror).remainder(4 * mirror)
        return torch.minimum(turned, 4 * mirror - turned) - mirror
    return position


def _needed(level: Tensor, last: int) -> int:
    """The last copy that any pixel reads; all of them where it would take a host synchronization to know."""
    if level.device.type != "cpu" or torch.compiler.is_compiling():
        return last
    try:
        return math.ceil(float(level.detach().nan_to_num(0.0).amax())) if level.numel() else 0
    except RuntimeError:  # under vmap there is no number to be had
        return last


def _halve(image: Tensor, padding_mode: str, fill: Tensor | None) -> Tensor:
    """An image of half the size, smoothed by 1 3 3 1 along each axis; its pixel i covers the pixels 2i and 2i + 1."""
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        total = torch.zeros((), dtype=image.dtype, device=image.device)
        for offset, weight in ((-1, 1 / 8), (0, 3 / 8), (1, 3 / 8), (2, 1 / 8)):
            tap = torch.arange(offset, n + n % 2 + offset, 2, device=image.device)
            index, inside = reference.pad(tap, n, padding_mode, False)
            value = image.index_select(axis, index)
            if inside is not None:
                background = 0.0 if fill is None else fill.to(image).reshape(1, -1, *[1] * (image.ndim - 2))
                inside = inside.reshape(-1, *[1] * (image.ndim - 1 - axis))
                value = torch.where(inside, value, background)
            total = total + weight * value
        image = total
    return image
