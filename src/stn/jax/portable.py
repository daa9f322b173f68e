"""The sampler on `jax.numpy`, on any device: what the native backend computes, with gradients of every order."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp

from ..geometry import HORIZON
from ..ops.reference import CUBIC_A, KINK

Array = Any
_FAR = 2.0**30  # positions beyond are all the same far outside; keeps the cast to int defined


class Plan(NamedTuple):
    """All of a call that is no array."""

    kind: str  # "affine", "projective" or "grid"
    size: tuple[int, ...]  # of the output
    kernel: str
    padding: str
    align_corners: bool
    last: bool  # whether channels are


def working_type(*arrays: Array) -> Any:
    """Of coordinates, weights and sums."""
    return jnp.float64 if any(array.dtype == jnp.float64 for array in arrays) else jnp.float32


def read(
    plan: Plan,
    image: Array,  # (B, C, *in) or (B, *in, C)
    values: Array,  # matrices (B, d, d+1), (B, d+1, d+1), or a grid (B, *size, d), of the working type
    *fill: Array,  # (C,), of the working type, where the padding is constant
) -> Array:
    """(B, C, *size) or (B, *size, C), in the image's type. NaN where a position is not finite, from where no gradient passes."""
    dtype = image.dtype
    pixels = (image if plan.last else jnp.moveaxis(image, 1, -1)).astype(values.dtype)
    sizes, d = pixels.shape[1:-1], len(plan.size)
    grid = values if plan.kind == "grid" else _positions(values, plan)
    finite = jnp.isfinite(grid).all(-1, keepdims=True)
    grid = jnp.where(finite, grid, 0)
    positions = []
    for axis, n in enumerate(sizes):
        x = grid[..., d - 1 - axis]  # x is the last axis of the image
        position = x * ((n - 1) / 2) + (n - 1) / 2 if plan.align_corners else ((x + 1) * n - 1) / 2
        far = jnp.where(position < 0, -_FAR, _FAR).astype(position.dtype)
        positions.append(jnp.where(jnp.abs(position) <= _FAR, position, far))
    background = jax.lax.stop_gradient(fill[0]) if fill else jnp.zeros((), pixels.dtype)
    out = _look(pixels, background, [_taps(position, plan.kernel) for position in positions], plan)
    if plan.kernel == "bilinear":
        out = out + _both_sides(plan)(jax.lax.stop_gradient(pixels), background, *positions)
    out = jnp.where(finite, out, math.nan)
    if dtype == jnp.uint8:
        out = jnp.where(finite, jnp.clip(jnp.round(out), 0, 255), 0)
    return (out if plan.last else jnp.moveaxis(out, -1, 1)).astype(dtype)


def _positions(matrix: Array, plan: Plan) -> Array:
    d, rows = len(plan.size), matrix.shape[1]
    total = matrix[:, :, d].reshape(-1, *[1] * d, rows)
    for axis, n in enumerate(reversed(plan.size)):
        steps = jnp.arange(n, dtype=matrix.dtype)
        ends = 2 * steps / (n - 1) - 1 if n > 1 else 0 * steps
        lattice = ends if plan.align_corners else (2 * steps + 1) / n - 1
        lattice = lattice.reshape(*[1] * (d - axis), -1, *[1] * (axis + 1))
        total = total + lattice * matrix[:, :, axis].reshape(-1, *[1] * d, rows)
    if plan.kind == "affine":
        return total
    numerator, denominator = total[..., :-1], total[..., -1:]
    lost = ~jnp.isfinite(total).all(-1, keepdims=True)
    horizon = HORIZON * jnp.abs(matrix[:, -1]).max(1).reshape(-1, *[1] * (d + 1))
    hidden = denominator <= horizon
    far = jnp.where(jnp.signbit(jax.lax.stop_gradient(numerator)), -1 / HORIZON, 1 / HORIZON).astype(total.dtype)
    safe = jnp.where(lost, 0, numerator) / jnp.where(lost | hidden, 1, denominator)
    return jnp.where(lost, math.nan, jnp.where(hidden, far, safe))


def _look(image: Array, background: Array, axes: list[list[tuple[Array, Array]]], plan: Plan) -> Array:
    """The sum of weight times pixel over the taps of all axes, each an integer position and its weight."""
    sizes = image.shape[1:-1]
    flat = image.reshape(-1, image.shape[-1])
    start = (jnp.arange(image.shape[0]) * math.prod(sizes)).reshape(-1, *[1] * len(sizes))
    padded = []
    for axis, (n, taps) in enumerate(zip(sizes, axes, strict=True)):
        stride = math.prod(sizes[axis + 1 :])
        padded.append([(_pad(tap, n, plan), (tap >= 0) & (tap < n), stride, weight) for tap, weight in taps])
    total = None
    for combination in itertools.product(*padded):
        index = start + sum(pixel * stride for pixel, _, stride, _ in combination)
        value = flat.at[index].get(mode="promise_in_bounds")
        if plan.padding in ("zeros", "constant"):
            inside = functools.reduce(jnp.logical_and, [inside for _, inside, _, _ in combination])[..., None]
            value = jnp.where(inside, value, background)
        value = value * math.prod(weight for _, _, _, weight in combination)[..., None]
        total = value if total is None else total + value
    return total


def _taps(position: Array, kernel: str) -> list[tuple[Array, Array]]:
    """The integer positions that are read along one axis, with their weights."""
    if kernel == "nearest":
        nearest = jnp.round(jax.lax.stop_gradient(position))
        return [(nearest.astype(jnp.int32), jnp.ones_like(nearest))]
    low = jnp.floor(jax.lax.stop_gradient(position))
    t, first = position - low, low.astype(jnp.int32)
    if kernel == "bilinear":
        return [(first, 1 - t), (first + 1, t)]
    return [(first + k - 1, _cubic(t - (k - 1))) for k in range(4)]


def _cubic(x: Array) -> Array:
    u, a = jnp.abs(x), CUBIC_A
    near = ((a + 2) * u - (a + 3)) * x * x + 1  # of x, whose square has a second derivative at 0
    return jnp.where(u <= 1, near, ((u - 5) * u + 8) * u * a - 4 * a)


def _pad(tap: Array, n: int, plan: Plan) -> Array:
    """The pixel that an integer position stands for."""
    if plan.padding == "circular":
        return tap % n
    if plan.padding == "reflection" and plan.align_corners:
        m = tap % max(2 * (n - 1), 1)
        return jnp.clip(jnp.minimum(m, 2 * (n - 1) - m), 0, n - 1)
    if plan.padding == "reflection":
        m = tap % (2 * n)
        return jnp.minimum(m, 2 * n - 1 - m)
    return jnp.clip(tap, 0, n - 1)


def _both_sides(plan: Plan) -> Callable[..., Array]:
    """A function of an image, its background and positions that is 0, and whose derivative by a position on a pixel's centre is what the mean
    of the slopes on both sides has beyond the slope on the side that `_taps` takes."""

    @jax.custom_jvp
    def nothing(image: Array, background: Array, *positions: Array) -> Array:
        # vmap wants the value to have its batches where the tangent has them; XLA drops the terms.
        mapped = sum(0 * jnp.isnan(array).any().astype(jnp.int32) for array in (image, background, *positions))
        return jnp.zeros((*positions[0].shape, image.shape[-1]), image.dtype) + mapped.astype(image.dtype)

    @nothing.defjvp
    def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
        image, background, *positions = primals
        eps = float(jnp.finfo(image.dtype).eps)
        centres = [jnp.round(position) for position in positions]
        on = [
            jnp.abs(position - centre) <= min(KINK * eps * n, 0.5)
            for position, centre, n in zip(positions, centres, image.shape[1:-1], strict=True)
        ]

        def bends() -> list[Array]:
            taps = [_taps(position, "bilinear") for position in positions]
            found = []
            for axis, (position, centre) in enumerate(zip(positions, centres, strict=True)):
                side = jnp.where(position < centre, 0.5, -0.5).astype(position.dtype)
                first = centre.astype(jnp.int32)
                around = [(first - 1, side), (first, -2 * side), (first + 1, side)]
                bend = _look(image, background, [*taps[:axis], around, *taps[axis + 1 :]], plan)
                found.append(jnp.where(on[axis][..., None] & jnp.isfinite(bend), bend, 0))
            return found

        some = functools.reduce(jnp.logical_or, [which.any() for which in on])
        none = jnp.zeros((*positions[0].shape, image.shape[-1]), image.dtype)
        slopes = jax.lax.cond(some, bends, lambda: [none] * len(positions))
        tangent = sum(slope * tangent[..., None] for slope, tangent in zip(slopes, tangents[2:], strict=True))
        return nothing(*primals), tangent

    return nothing
