"""Sampling that does not alias: each output pixel averages what it stands for in the input.

The warp's Jacobian says how far a step of one output pixel along each axis of the output goes in the input. Where that
is more than a pixel, the image is read at several points of a parallelogram (in 3D a parallelepiped) of that shape, a
pixel apart from its ends inwards, and averaged: each point stands for a pixel's length, and what is left in the middle
for the rest. So where an output pixel covers n x n whole pixels, the result is their mean. Where the points would be too
many they read smaller, smoothed copies of the image. All of it is differentiable in theta; a warp that shrinks nothing
gives what it gives without.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from .coordinates import Coordinates, positions
from .ops import _torch, area, reference
from .ops import dispatch as ops
from .reading import Reading

# How many points a parallelogram of the finest copy that is read whole has at most, by its number of long sides: then a
# copy of half the size is read, in which they are a quarter as many. The native code (ops/csrc/area.cpp) has the same.
_POINTS = {1: {1: 8.0}, 2: {1: 8.0, 2: 6.0}, 3: {1: 8.0, 2: 6.0, 3: 8.0}}
_ALONE = 1.5  # a copy is read alone until its pixels are this many times too small, and from twice on no more
_MOST = {1: 17, 2: 39, 3: 128}  # points of a pixel in one copy, whatever its Jacobian
_LONGEST = 1e8  # pixels; keeps products of three of them finite


def sample_antialiased(
    image: Tensor,  # (B, C, *in)
    coordinates: Coordinates,  # "affine" or "grid"
    jacobian: Tensor,  # (B, d, d) of an affine map, (B, *out, d, d) of a grid
    reading: Reading,
) -> Tensor:
    """The image read at the coordinates, averaged over each output pixel.

    jacobian has in its columns the steps in the input, in pixels (x, y[, z]), for one pixel of the output.
    """
    return area.average(image, coordinates, jacobian, reading, _average)


def _average(image: Tensor, coordinates: Coordinates, jacobian: Tensor, reading: Reading) -> Tensor:
    """`sample_antialiased` by torch's own functions and the warps of any backend: what the native code is compared with."""
    d = image.ndim - 2
    size, kind, out_size = image.shape[2:], image.dtype, coordinates.size
    _, padding_mode, fill, align_corners = reading
    smooth = Reading("bilinear", padding_mode, fill, align_corners=False)  # how the smaller copies are read
    grid = positions(coordinates, align_corners)
    if coordinates.kind == "affine":
        jacobian = jacobian.reshape(-1, *[1] * d, d, d)
    jacobian = jacobian.expand(*grid.shape, d)
    image = image.to(grid.dtype)
    # What is not finite is nowhere, as a position that is not, and gets no gradient.
    finite = jacobian.isfinite().all(-1).all(-1)
    grid = torch.where(finite[..., None], grid, torch.nan)
    axes = torch.where(finite[..., None, None], jacobian, 0.0).clamp(-_LONGEST, _LONGEST)
    lengths = axes.square().sum(-2).clamp_min(1.0).sqrt()  # (B, *out, d)
    last = area.smallest(tuple(size))
    coarse = _coarseness(lengths)
    half = image.new_tensor([n / 2 for n in reversed(size)])
    centre, mirror = grid, grid.new_ones(d)  # in units of half the image; where a reflection turns round
    if align_corners:
        centre = grid * grid.new_tensor([(n - 1) / n for n in reversed(size)])
        mirror = grid.new_tensor([(n - 1) / n if n > 1 else 1.0 for n in reversed(size)])

    out = image.new_zeros((*image.shape[:2], *out_size))
    copy = image
    for number, share in enumerate(_shares(coarse, last)):
        if number:
            if _most(coarse, 2.0**last) <= 2 ** (number - 1) * _ALONE:
                break
            copy = _halve(copy, padding_mode, fill)
        # Beyond the last copy the points move apart instead.
        unit = (coarse / 2).clamp_min(2.0**number)
        counts = (lengths / unit[..., None]).clamp_min(1.0)
        total = torch.where(share > 0, counts.detach().ceil().prod(-1), 0.0)
        points = round(_most(total, _MOST[d]))
        if not points:
            continue
        weight, offset = _comb(counts, points)  # (points, B, *out), (points, B, *out, d)
        moved = (axes * offset[..., None, :]).sum(-1) / half
        if number:
            # A copy covers its pixels times 2^number, which is more than the image where that does not go into its size.
            cover = [n / (m * 2**number) for n, m in zip(reversed(size), reversed(copy.shape[2:]), strict=True)]
            position = (_within(centre + moved, padding_mode, mirror) + 1) * centre.new_tensor(cover) - 1
        else:
            stretch = [n / (n - 1) if n > 1 else 1.0 for n in reversed(size)] if align_corners else [1.0] * d
            position = grid + moved * grid.new_tensor(stretch)
        # Points are more rows of the output.
        together = Coordinates("grid", (points * out_size[0], *out_size[1:]), position.movedim(0, 1).flatten(1, 2))
        value = ops.warp(copy, together, smooth if number else reading).unflatten(2, (points, out_size[0]))
        weight = (share * weight).movedim(0, 1)[:, None]
        out = out + torch.where(weight != 0, weight * value, 0.0 * weight).sum(2)
    return torch.where(finite[:, None], out, torch.nan).to(kind)


def _coarseness(lengths: Tensor) -> Tensor:
    """How large the pixels of the copy that is read should be, at least 1: the lengths (B, *out, d) are those of the sides."""
    each = lengths.unbind(-1)
    coarse = torch.ones_like(each[0])
    for sides, points in _POINTS[len(each)].items():
        for chosen in itertools.combinations(each, sides):
            content = math.prod(chosen[1:], start=chosen[0]) / points
            coarse = torch.maximum(coarse, content if sides == 1 else content ** (1 / sides))
    return coarse


def _shares(coarse: Tensor, last: int) -> list[Tensor]:
    """What each of the copies counts."""
    shares, before = [], torch.ones_like(coarse)
    for number in range(last + 1):
        beyond = ((coarse / 2.0**number - _ALONE) / (2 - _ALONE)).clamp(0.0, 1.0)
        if number == last:
            beyond = torch.zeros_like(beyond)
        shares.append(before - beyond)
        before = beyond
    return shares


def _comb(counts: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """The weights (points, *) of points along all sides and their places (points, *, d), in lengths of the sides from the
    middle; counts (*, d): how many pixels each side is long."""
    number = torch.arange(points, device=counts.device, dtype=counts.dtype).reshape(-1, *[1] * (counts.ndim - 1))
    weight, places = torch.ones((), dtype=counts.dtype, device=counts.device), []
    for count in counts.unbind(-1):
        n = count.detach().ceil()
        k, number = number.remainder(n), (number / n).floor()
        step = torch.minimum(k, n - 1 - k)  # from the nearer end
        # Of the middle one or two, whose share of the length is what the others leave.
        is_inner = step + 1 > (n - 1) / 2
        rest = count - n + 2
        inner = torch.where(n % 2 == 1, rest - 1, rest / 2)
        # Two that move apart: as far as the spread of the pixels asks that they stand for.
        u = rest - 1
        apart = u * (1 + u * (0.375 * u - 0.875))
        place = torch.where(is_inner, torch.where(n % 2 == 1, 0.0, apart), (count - 1) / 2 - step)
        places.append(torch.sign(k - (n - 1) / 2) * place / count)
        weight = weight * torch.where(is_inner, inner, 1.0) / count
    weight = torch.where(number >= 1, 0.0, weight)  # points that others have
    return weight, torch.stack(places, dim=-1)


def _within(position: Tensor, padding_mode: str, mirror: Tensor) -> Tensor:
    """Positions outside as those inside the image that they stand for: a smaller copy covers more than the image, so
    it neither repeats nor turns round where the image does."""
    if padding_mode == "circular":
        return (position + 1).remainder(2) - 1
    if padding_mode == "reflection":
        turned = (position + mirror).remainder(4 * mirror)
        return torch.minimum(turned, 4 * mirror - turned) - mirror
    return position


def _most(values: Tensor, bound: float) -> float:
    """The largest of them; the bound where that cannot be known when the program is made."""
    if values.device.type == "meta" or torch.compiler.is_compiling() or _torch.tracing():
        return bound
    try:
        return float(values.detach().amax()) if values.numel() else 0.0
    except RuntimeError:  # under vmap there is no number to be had
        return bound


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
