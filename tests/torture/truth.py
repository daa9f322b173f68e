"""Sampling and its gradients as the documentation states them, in float64 NumPy, a whole image at a time.

Written from the definition like `tests/oracle.py`, with which the tests compare it; shares nothing with the package.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

CUBIC_A = -0.75
FAR = 1e9  # positions beyond are far outside of every image; keeps the cast to int defined

Array = np.ndarray


def lattice(size: tuple[int, ...], align_corners: bool) -> Array:
    """The pixel centres of an output, (N, d), (x, y[, z])."""
    axes = []
    for n in size:
        k = np.arange(n, dtype=np.float64)
        axes.append((2 * k / (n - 1) - 1 if n > 1 else 0 * k) if align_corners else (2 * k + 1) / n - 1)
    return np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1).reshape(-1, len(size))


@functools.cache
def spline_basis(control: tuple[int, ...], size: tuple[int, ...], align_corners: bool) -> Array:
    """What a thin plate spline makes at the pixels of `size` of a unit shift of each control point, (N, K)."""

    def kernel(a: Array, b: Array) -> Array:
        r = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
        return r**2 * np.log(np.where(r > 0, r, 1)) if len(control) == 2 else -r

    centres = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in control], indexing="ij")[::-1], -1)
    centres = centres.reshape(-1, len(control))
    k, d = centres.shape
    system = np.zeros((k + d + 1, k + d + 1))
    system[:k, :k] = kernel(centres, centres)
    system[:k, k:] = np.concatenate([np.ones((k, 1)), centres], 1)
    system[k:, :k] = system[:k, k:].T
    weights = np.linalg.solve(system, np.eye(k + d + 1)[:, :k])
    points = lattice(size, align_corners)
    return np.concatenate([kernel(points, centres), np.ones((len(points), 1)), points], 1) @ weights


def pad(tap: Array, n: int, padding_mode: str, align_corners: bool) -> tuple[Array, Array]:
    """The pixel that an integer position stands for, and whether it is one and not the background."""
    inside = (tap >= 0) & (tap < n)
    if padding_mode in ("zeros", "constant"):
        return np.where(inside, tap, 0), inside
    if padding_mode == "border":
        return np.minimum(np.maximum(tap, 0), n - 1), np.ones_like(inside)
    if padding_mode == "circular":
        return tap % n, np.ones_like(inside)
    assert padding_mode == "reflection"
    if align_corners:
        m = tap % max(2 * n - 2, 1)
        return (np.where(m >= n, 2 * n - 2 - m, m) if n > 1 else 0 * tap), np.ones_like(inside)
    m = tap % (2 * n)
    return np.where(m >= n, 2 * n - 1 - m, m), np.ones_like(inside)


def _keys(x: Array) -> tuple[Array, Array]:
    """The cubic convolution kernel and its derivative."""
    a, r, sign = CUBIC_A, np.abs(x), np.sign(x)
    near, far = r <= 1, r < 2
    value = np.where(near, (a + 2) * r**3 - (a + 3) * r**2 + 1, np.where(far, a * (r**3 - 5 * r**2 + 8 * r - 4), 0))
    slope = np.where(near, 3 * (a + 2) * r**2 - 2 * (a + 3) * r, np.where(far, a * (3 * r**2 - 10 * r + 8), 0))
    return value, slope * sign


def taps(position: Array, mode: str) -> tuple[Array, Array, Array]:
    """The pixels that are read along one axis at positions (...), with weights and their derivatives: (..., T)."""
    p = position[..., None]
    low = np.floor(p)
    if mode == "nearest":
        k = np.rint(p)  # ties to even
        return k, np.ones_like(p), np.zeros_like(p)
    if mode == "integer":
        k = np.floor(p + 0.5)
        return k, np.ones_like(p), np.zeros_like(p)
    t = p - low
    if mode == "bilinear":
        # On a pixel the slope is the mean of both sides: the central difference.
        on = t == 0
        slope = np.concatenate([np.where(on, -0.5, 0), np.where(on, 0, -1), np.where(on, 0.5, 1)], -1)
        return low + np.array([-1, 0, 1]), np.concatenate([0 * t, 1 - t, t], -1), slope
    assert mode == "bicubic"
    k = low + np.arange(-1, 3)
    return k, *_keys(p - k)


@dataclass
class Truth:
    """What a warp gives, and how much went into it."""

    position: Array  # (B, N, d) in pixels, in the order of the image's axes
    out: Array  # (B, C, N)
    touched: Array  # (B, C, N): the sum of the magnitudes of what was summed
    reads: Array  # (B, N, K) the pixels that are read, -1 for the background
    weight: Array  # (B, N, K)


class Problem:
    """An image read at coordinates; everything in float64, of equal batches."""

    def __init__(
        self,
        image: Array,  # (B, C, *in)
        coords: Array,
        kind: str,
        size: tuple[int, ...],
        mode: str,
        padding_mode: str,
        fill: Array,  # (C,)
        align_corners: bool,
        control: tuple[int, ...] = (),
    ) -> None:
        self.image, self.coords, self.kind, self.size = image, coords, kind, size
        self.mode, self.padding_mode, self.fill, self.align_corners = mode, padding_mode, fill, align_corners
        self.control = control
        self.in_size = image.shape[2:]
        self.d = len(self.in_size)
        self.n = math.prod(size)

    def normalized(self) -> Array:
        """The positions (B, N, d), (x, y[, z])."""
        if self.kind == "grid":
            return self.coords.reshape(len(self.coords), -1, self.d)
        self.points = lattice(self.size, self.align_corners)
        if self.kind == "basis":
            self.basis = spline_basis(self.control, self.size, self.align_corners)
            return self.points + self.basis @ self.coords.reshape(len(self.coords), -1, self.d)
        self.points = np.concatenate([self.points, np.ones((self.n, 1))], 1)
        h = self.points @ self.coords.transpose(0, 2, 1)
        if self.kind == "affine":
            return h
        self.denominator = h[..., -1:]
        return h[..., :-1] / self.denominator

    def forward(self) -> Truth:
        batch, channels = self.image.shape[:2]
        self.grid = self.normalized()
        axes, position = [], np.empty_like(self.grid)
        for axis, n in enumerate(self.in_size):
            u = self.grid[..., self.d - 1 - axis]
            p = (u + 1) / 2 * (n - 1) if self.align_corners else (u + 1) / 2 * n - 0.5
            position[..., axis] = p
            k, w, slope = taps(np.clip(np.nan_to_num(p, nan=0.0, posinf=FAR, neginf=-FAR), -FAR, FAR), self.mode)
            index, inside = pad(k.astype(np.int64), n, self.padding_mode, self.align_corners)
            axes.append((index, inside, w, slope))
        index, inside, weight = axes[0][0], axes[0][1], axes[0][2]
        slopes = [a[3] if i == 0 else a[2] for i, a in enumerate([axes[0]] * self.d)]
        for axis in range(1, self.d):
            i, s, w, slope = axes[axis]

            def product(a: Array, b: Array) -> Array:
                return (a[..., :, None] * b[..., None, :]).reshape(*a.shape[:-1], -1)

            index = (index[..., :, None] * self.in_size[axis] + i[..., None, :]).reshape(*index.shape[:-1], -1)
            inside = product(inside, s)
            weight = product(weight, w)
            slopes = [product(one, slope if b == axis else w) for b, one in enumerate(slopes)]
        self.index, self.inside, self.weight, self.slopes = index, inside, weight, slopes
        flat = self.image.reshape(batch, channels, -1)
        rows = np.arange(batch)[:, None, None]
        value = flat.transpose(0, 2, 1)[rows, index]  # (B, N, K, C)
        self.value = np.where(inside[..., None], value, self.fill)
        # A pixel without weight counts for nothing, whatever it is.
        part = np.where(weight[..., None] == 0, 0, self.value * weight[..., None])
        out = part.sum(2).transpose(0, 2, 1)
        out = np.where(np.isfinite(position).all(-1)[:, None], out, np.nan)
        reads = np.where(inside, index, -1)
        return Truth(position, out, np.abs(part).sum(2).transpose(0, 2, 1), reads, weight)

    def backward(self, g: Array) -> tuple[Array, Array, Array, Array]:
        """The gradients of image and coordinates for that of the output (B, C, N), each with the sum of the magnitudes
        of what went into it. Points that are not finite must come with zeros."""
        batch, channels = self.image.shape[:2]
        pixels = math.prod(self.in_size)
        slot = (np.arange(batch)[:, None, None] * pixels + self.index).reshape(-1)
        images = []
        for upstream, weight in ((g, self.weight * self.inside), (np.abs(g), np.abs(self.weight) * self.inside)):
            planes = [
                np.bincount(slot, (weight * upstream[:, c, :, None]).reshape(-1), batch * pixels)
                for c in range(channels)
            ]
            images.append(np.stack(planes, 0).reshape(channels, batch, *self.in_size).swapaxes(0, 1))
        back = np.einsum("bcn,bnkc->bnk", g, self.value)  # what a unit of each weight is worth
        size = np.einsum("bcn,bnkc->bnk", np.abs(g), np.abs(self.value))
        of_grid, of_size = np.empty_like(self.grid), np.empty_like(self.grid)
        for axis, n in enumerate(self.in_size):
            scale = (n - 1) / 2 if self.align_corners else n / 2
            of_grid[..., self.d - 1 - axis] = scale * (back * self.slopes[axis]).sum(-1)
            of_size[..., self.d - 1 - axis] = scale * (size * np.abs(self.slopes[axis])).sum(-1)
        return images[0], self._of_coords(of_grid, False), images[1], self._of_coords(of_size, True)

    def _of_coords(self, of_grid: Array, magnitudes: bool) -> Array:
        if self.kind == "grid":
            return of_grid.reshape(self.coords.shape)
        if self.kind == "basis":
            basis = np.abs(self.basis) if magnitudes else self.basis
            return (basis.T @ of_grid).reshape(self.coords.shape)
        points = np.abs(self.points) if magnitudes else self.points
        if self.kind == "affine":
            return of_grid.transpose(0, 2, 1) @ points
        den, grid = self.denominator, self.grid
        if magnitudes:
            den, grid = np.abs(den), np.abs(grid)
        last = (of_grid * grid).sum(-1, keepdims=True)
        h = np.concatenate([of_grid, last if magnitudes else -last], -1) / den
        return h.transpose(0, 2, 1) @ points
