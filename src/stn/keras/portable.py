"""Reading an image on `keras.ops`, for TensorFlow and JAX: what `ops/reference.py` says, channels last.

All of it is differentiated by the framework, but for the derivative on a pixel's centre: there linear interpolation has
a kink, and the slope is the mean of both sides. What that adds to the slope of one side is worked out in the backward
pass, and only where any position of the batch lies on a centre.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import torch
from keras import ops

from ..ops.reference import CUBIC_A, KINK
from ..reading import Reading
from .backends import Array, all_digits, convert, take_rows, type_name

_FAR = 2.0**30  # positions beyond are all the same far outside; keeps the cast to int defined
_Tap = tuple[Array, Array | None, Array]  # the part of an axis in an index, whether inside the image, weight


def read(
    image: Array,  # (B, *in, C)
    grid: Array,  # (B, *out, d), normalized, of the same type
    reading: Reading,
) -> Array:
    """(B, *out, C). NaN where a position is not finite, from where no gradient passes."""
    kernel, padding, fill, align_corners = reading
    sizes = tuple(image.shape[1:-1])
    d = len(sizes)
    finite = ops.all(ops.isfinite(grid), -1, keepdims=True)
    grid = ops.where(finite, grid, ops.zeros_like(grid))
    positions = []
    for axis, n in enumerate(sizes):
        x = grid[..., d - 1 - axis]  # x is the last axis of the image
        position = x * ((n - 1) / 2) + (n - 1) / 2 if align_corners else ((x + 1) * n - 1) / 2
        inside = ops.abs(position) <= _FAR
        positions.append(ops.where(inside, position, ops.cast(ops.where(position < 0, -_FAR, _FAR), position.dtype)))
    background = (
        None
        if fill is None
        else convert(fill.numpy() if isinstance(fill, torch.Tensor) else fill, type_name(image.dtype))
    )
    if kernel == "bilinear":
        positions = [_on_centre(position, n)[0] for position, n in zip(positions, sizes, strict=True)]
    how: dict[str, Any] = {"padding": padding, "background": background, "align_corners": align_corners}
    look, at_once = functools.partial(_look, **how), functools.partial(_look_at_once, **how)
    out = (look if d < 3 else at_once)(image, [_taps(position, kernel) for position in positions])
    if kernel == "bilinear":
        out = out + _both_sides(at_once)(ops.stop_gradient(image), *positions)
    return ops.where(finite, out, convert(math.nan, type_name(image.dtype)))


def product(equation: str, a: Array, b: Array) -> Array:
    with all_digits():
        return ops.einsum(equation, a, b)


def _look(
    image: Array,
    axes: list[list[tuple[Array, Array]]],  # for each axis the integer positions that are read, and their weights
    *,
    padding: str,
    background: Array | None,
    align_corners: bool,
) -> Array:
    """The sum of weight times pixel over the taps of all axes."""
    sizes = tuple(image.shape[1:-1])
    batch = ops.shape(image)[0]
    flat = ops.reshape(image, (-1, image.shape[-1]))
    start = ops.reshape(ops.arange(batch, dtype="int32") * math.prod(sizes), (-1, *[1] * len(sizes)))
    padded: list[list[_Tap]] = []
    for axis, (n, taps) in enumerate(zip(sizes, axes, strict=True)):
        stride = math.prod(sizes[axis + 1 :])
        known = [(*_pad(tap, n, padding, align_corners), weight) for tap, weight in taps]
        padded.append([(index * stride, inside, weight) for index, inside, weight in known])
    out = None
    for combination in itertools.product(*padded):
        indices, insides, weights = zip(*combination, strict=True)
        value = take_rows(flat, sum(indices, start))
        limited = [inside for inside in insides if inside is not None]
        if limited:
            there = ops.expand_dims(functools.reduce(ops.logical_and, limited), -1)
            value = ops.where(there, value, ops.zeros_like(value) if background is None else background)
        value = value * functools.reduce(lambda a, b: a * b, weights)[..., None]
        out = value if out is None else out + value
    return out


def _look_at_once(
    image: Array,
    axes: list[list[tuple[Array, Array]]],
    *,
    padding: str,
    background: Array | None,
    align_corners: bool,
) -> Array:
    """`_look` with one gather for all taps: a few operations in place of some for each, which compile sooner."""
    sizes = tuple(image.shape[1:-1])
    d = len(sizes)
    index: Any = ops.reshape(ops.arange(ops.shape(image)[0], dtype="int32") * math.prod(sizes), (-1, *[1] * d))
    there: Any = None
    weight: Any = None
    for axis, (n, taps) in enumerate(zip(sizes, axes, strict=True)):
        tap, share = (ops.stack(list(parts)) for parts in zip(*taps, strict=True))
        pixel, inside = _pad(tap, n, padding, align_corners)
        apart = (*[1] * axis, len(taps), *[1] * (d - 1 - axis), -1, *tap.shape[2:])
        index = index + ops.reshape(pixel, apart) * math.prod(sizes[axis + 1 :])
        share = ops.reshape(share, apart)
        weight = share if weight is None else weight * share
        if inside is not None:
            inside = ops.reshape(inside, apart)
            there = inside if there is None else ops.logical_and(there, inside)
    value = take_rows(ops.reshape(image, (-1, image.shape[-1])), index)
    if there is not None:
        value = ops.where(there[..., None], value, ops.zeros_like(value) if background is None else background)
    return ops.sum(value * weight[..., None], tuple(range(d)))


def _taps(position: Array, kernel: Any) -> list[tuple[Array, Array]]:
    """The integer positions that are read along one axis, with their weights."""
    if kernel == "nearest":
        # A gradient of zero to the position.
        return [(ops.cast(ops.round(ops.stop_gradient(position)), "int32"), 1 + 0 * position)]
    low = ops.stop_gradient(ops.floor(position))
    t, first = position - low, ops.cast(low, "int32")
    if kernel == "bilinear":
        return [(first, 1 - t), (first + 1, t)]
    return [(first + k - 1, _cubic(t - (k - 1))) for k in range(4)]


def _cubic(x: Array) -> Array:
    x, a = ops.abs(x), CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return ops.where(x <= 1, near, far)


def _pad(tap: Array, n: int, padding: str, align_corners: bool) -> tuple[Array, Array | None]:
    """The pixel that an integer position stands for, and whether it is inside (None: always)."""
    if padding in ("zeros", "constant"):
        return ops.clip(tap, 0, n - 1), ops.logical_and(tap >= 0, tap < n)
    if padding == "border":
        return ops.clip(tap, 0, n - 1), None
    if padding == "circular":
        return ops.mod(tap, n), None
    if align_corners:
        period = max(2 * (n - 1), 1)
        m = ops.mod(tap, period)
        return ops.clip(ops.minimum(m, period - m), 0, n - 1), None
    m = ops.mod(tap, 2 * n)
    return ops.minimum(m, 2 * n - 1 - m), None


def _on_centre(position: Array, n: int) -> tuple[Array, Array]:
    """The position, exactly on a pixel's centre where it lies on it but for rounding, and whether it does.

    Compilers may work out a position twice, and round it differently; who is on which side must not depend on that.
    """
    here = ops.stop_gradient(position)
    centre = ops.round(here)
    eps = float(np.finfo(type_name(position.dtype)).eps)
    on = ops.abs(here - centre) <= min(KINK * eps * n, 0.5)
    return ops.where(on, centre + (position - here), position), on


def _both_sides(look: Any) -> Any:
    """A function of an image and positions that is 0, and whose derivative by a position on a pixel's centre is what the
    mean of the slopes on both sides has beyond the slope on the side that `_taps` takes."""

    @ops.custom_gradient
    def nothing(image: Array, *positions: Array) -> Any:
        sizes = tuple(image.shape[1:-1])
        on = [_on_centre(position, n)[1] for position, n in zip(positions, sizes, strict=True)]

        def backward(grad: Array, *upstream: Any, **_: Any) -> tuple[Array, ...]:
            def slopes() -> list[Array]:
                taps = [_taps(position, "bilinear") for position in positions]
                found = []
                for axis, position in enumerate(positions):
                    first, side = ops.cast(ops.round(position), "int32"), -0.5 * ops.ones_like(position)
                    around = [(first - 1, side), (first, -2 * side), (first + 1, side)]
                    bend = look(image, [*taps[:axis], around, *taps[axis + 1 :]])
                    bend = ops.where(ops.isfinite(bend), bend, ops.zeros_like(bend))
                    found.append(ops.where(on[axis], ops.sum(bend * grad, -1), ops.zeros_like(position)))
                return found

            some = functools.reduce(ops.logical_or, [ops.any(which) for which in on])
            found = ops.cond(some, slopes, lambda: [ops.zeros_like(position) for position in positions])
            return (ops.zeros_like(image), *found)

        return ops.zeros((*ops.shape(positions[0]), image.shape[-1]), dtype=image.dtype), backward

    return nothing
