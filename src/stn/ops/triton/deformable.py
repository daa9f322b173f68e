"""Multi-scale deformable attention's read on the GPU, in Triton.

A program takes some of the (image, query, head) that read, ROWS of them, and goes through their maps and points; the channels of a head lie
next to each other, LANES of them at a time. The gradient of the value adds up atomically, in whatever order the card has it.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from . import kernels
from .kernels import _jit

if TYPE_CHECKING:
    import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

_ROWS, _LANES = 16, 64


def forward(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """What each head of each query reads, as `deformable.read`; all dense and of one type."""
    out = value.new_empty(value.shape[0], locations.shape[1], *value.shape[2:])
    if out.numel():
        kernels.load()
        arguments, options = _arguments(value, locations, sizes)
        programs = -(-out[..., 0].numel() // _ROWS), -(-out.shape[-1] // options["LANES"])
        with torch.cuda.device_of(value):
            _read[programs](value, locations, weights, out, *arguments, **options)
    return out


def backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights."""
    found = torch.zeros_like(value), torch.zeros_like(locations), torch.zeros_like(weights)
    if grad.numel():
        kernels.load()
        arguments, options = _arguments(value, locations, sizes)
        kink = reference.KINK * torch.finfo(value.dtype).eps
        with torch.cuda.device_of(value):
            _pull[(-(-grad[..., 0].numel() // _ROWS),)](
                grad, value, locations, weights, *found, *arguments, KINK=kink, **options
            )
    return found


def _arguments(value: Tensor, locations: Tensor, sizes: Sequence[int]) -> tuple[list[object], dict[str, int]]:
    batch, positions, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    areas = [height * width for height, width in zip(sizes[::2], sizes[1::2], strict=True)]
    firsts = tuple(accumulate(areas[:-1], initial=0))
    rows = batch * queries * heads
    lanes = min(1 << (channels - 1).bit_length(), _LANES)
    options = {"LEVELS": levels, "POINTS": points, "ROWS": _ROWS, "LANES": lanes, "num_warps": 4}
    return [tuple(sizes), firsts, rows, queries, positions, heads, channels], options


@_jit
def _rows(rows, queries, positions, heads, channels, ROWS: tl.constexpr):
    """The rows of this program (ROWS, 1), which exist, and where the value's first channel of each is on the first map."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    return row, row < rows, (row // heads // queries * positions * heads + row % heads) * channels


@_jit
def _place(locations, entry, exists, height, width):
    """A position on a map: the pixel to the left and above, the shares of those to the right and below, whether it is near the
    map, and 0, or NaN where it is not finite."""
    x = tl.load(locations + 2 * entry, mask=exists, other=0.0)
    y = tl.load(locations + 2 * entry + 1, mask=exists, other=0.0)
    lost = (x - x) + (y - y)
    x = x * width - 0.5
    y = y * height - 0.5
    near = exists & (x > -2.0) & (y > -2.0) & (x < width + 1.0) & (y < height + 1.0)
    x = tl.where(near, x, 0.0)
    y = tl.where(near, y, 0.0)
    left = tl.floor(x)
    above = tl.floor(y)
    return left.to(tl.int64), above.to(tl.int64), x - left, y - above, near, lost


@_jit
def _inside(column, row, near, height, width):
    return near & (column >= 0) & (column < width) & (row >= 0) & (row < height)


@_jit
def _read(
    value, locations, weights, out, sizes, firsts, rows, queries, positions, heads, channels,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    row, exists, base = _rows(rows, queries, positions, heads, channels, ROWS)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)[None, :]
    there = exists & (lane < channels)
    total = tl.zeros((ROWS, LANES), out.dtype.element_ty)
    for level in tl.static_range(LEVELS):
        height = sizes[2 * level]
        width = sizes[2 * level + 1]
        for point in range(POINTS):
            entry = (row * LEVELS + level) * POINTS + point
            left, above, right, below, near, lost = _place(locations, entry, exists, height, width)
            weight = tl.load(weights + entry, mask=exists, other=0.0)
            total += lost
            for tap in tl.static_range(4):
                column = left + tap % 2
                line = above + tap // 2
                share = (right if tap % 2 else 1.0 - right) * (below if tap // 2 else 1.0 - below)
                pixel = value + base + (firsts[level] + line * width + column) * heads * channels
                seen = there & _inside(column, line, near, height, width)
                total += weight * share * tl.load(pixel + lane, mask=seen, other=0.0)
    tl.store(out + row * channels + lane, total, mask=there)


@_jit
def _seen(grad, pixel, row, here, channels, LANES: tl.constexpr):
    """What the gradient of the output sees of a pixel, (ROWS, 1): its product with the value there, 0 beyond the border."""
    total = tl.zeros(row.shape, grad.dtype.element_ty)
    for first in range(0, channels, LANES):
        lane = first + tl.arange(0, LANES)[None, :]
        mask = here & (lane < channels)
        g = tl.load(grad + row * channels + lane, mask=mask, other=0.0)
        total += tl.sum(g * tl.load(pixel + lane, mask=mask, other=0.0), 1)[:, None]
    return total


@_jit
def _pull(
    grad, value, locations, weights, to_value, to_locations, to_weights, sizes, firsts, rows, queries, positions, heads, channels,
    KINK: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    row, exists, base = _rows(rows, queries, positions, heads, channels, ROWS)
    for level in tl.static_range(LEVELS):
        height = sizes[2 * level]
        width = sizes[2 * level + 1]
        step = heads * channels
        start = base + tl.cast(firsts[level], tl.int64) * step
        for point in range(POINTS):
            entry = (row * LEVELS + level) * POINTS + point
            left, above, right, below, near, lost = _place(locations, entry, exists, height, width)
            weight = tl.load(weights + entry, mask=exists, other=0.0)
            for tap in tl.static_range(4):
                column = left + tap % 2
                line = above + tap // 2
                share = (right if tap % 2 else 1.0 - right) * (below if tap // 2 else 1.0 - below)
                offset = start + (line * width + column) * step
                here = _inside(column, line, near, height, width)
                for first in range(0, channels, LANES):
                    lane = first + tl.arange(0, LANES)[None, :]
                    mask = here & (lane < channels)
                    g = tl.load(grad + row * channels + lane, mask=mask, other=0.0)
                    tl.atomic_add(to_value + offset + lane, weight * share * g, mask=mask, sem="relaxed")
            nw = _at(grad, value, start, left, above, row, near, height, width, step, channels, LANES)
            ne = _at(grad, value, start, left + 1, above, row, near, height, width, step, channels, LANES)
            sw = _at(grad, value, start, left, above + 1, row, near, height, width, step, channels, LANES)
            se = _at(grad, value, start, left + 1, above + 1, row, near, height, width, step, channels, LANES)
            upper = (1.0 - right) * nw + right * ne
            lower = (1.0 - right) * sw + right * se
            west = (1.0 - below) * nw + below * sw
            east = (1.0 - below) * ne + below * se
            across = east - west
            down = lower - upper
            # On a pixel's centre the slope is the mean of both sides.
            low = tl.minimum(KINK * width, 0.5)
            before = right <= low
            kink = near & (before | (1.0 - right <= low))
            if tl.max(kink.to(tl.int32)) > 0:
                far = tl.where(before, left - 1, left + 2)
                a = _at(grad, value, start, far, above, row, kink, height, width, step, channels, LANES)
                b = _at(grad, value, start, far, above + 1, row, kink, height, width, step, channels, LANES)
                beyond = (1.0 - below) * a + below * b
                across = tl.where(kink, 0.5 * (across + tl.where(before, west - beyond, beyond - east)), across)
            low = tl.minimum(KINK * height, 0.5)
            before = below <= low
            kink = near & (before | (1.0 - below <= low))
            if tl.max(kink.to(tl.int32)) > 0:
                far = tl.where(before, above - 1, above + 2)
                a = _at(grad, value, start, left, far, row, kink, height, width, step, channels, LANES)
                b = _at(grad, value, start, left + 1, far, row, kink, height, width, step, channels, LANES)
                beyond = (1.0 - right) * a + right * b
                down = tl.where(kink, 0.5 * (down + tl.where(before, upper - beyond, beyond - lower)), down)
            tl.store(to_locations + 2 * entry, tl.where(near, weight * across * width, 0.0), mask=exists)
            tl.store(to_locations + 2 * entry + 1, tl.where(near, weight * down * height, 0.0), mask=exists)
            tl.store(to_weights + entry, (1.0 - below) * upper + below * lower + lost, mask=exists)


@_jit
def _at(grad, value, start, column, line, row, near, height, width, step, channels, LANES: tl.constexpr):
    """`_seen` of a pixel by its column and line."""
    here = _inside(column, line, near, height, width)
    return _seen(grad, value + start + (line * width + column) * step, row, here, channels, LANES)
