"""Sampling as the documentation states it, in scalar loops of float64 NumPy: shares no code and no formula's spelling
with the package, and is far too slow for anything but tests."""

from __future__ import annotations

import itertools
import math

import numpy as np

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection", "circular", "constant")

# Largest absolute difference from the oracle, for images of order 1 and positions within four pixels of the image.
TOLERANCE = {
    "float64": 1e-12,  # sums of up to 64 products of order 10; a few thousand roundings of 1e-16
    "float32": 2e-5,  # the position is off by 1e-6 pixels; bicubic weights are up to 3 in slope on each of 3 axes
    "float16": 4e-3,  # one rounding of the result, 2^-11 relative, of values up to 8
    "bfloat16": 4e-2,  # the same with 2^-8
}


def unnormalize(coordinate: float, n: int, align_corners: bool) -> float:
    """-1 and 1 are the centres of the first and last pixel, or their outer edges."""
    unit = (coordinate + 1.0) / 2.0
    return unit * (n - 1) if align_corners else unit * n - 0.5


def normalize(position: float, n: int, align_corners: bool) -> float:
    """Solved for the coordinate. An axis of one pixel with align_corners has none: 0."""
    if align_corners:
        return 0.0 if n == 1 else 2.0 * position / (n - 1) - 1.0
    return (2.0 * position + 1.0) / n - 1.0


def pad(position: int, n: int, padding_mode: str, align_corners: bool) -> int | None:
    """The pixel that stands for an integer position; None for the background. Walks, step by step."""
    if 0 <= position < n:
        return position
    if padding_mode in ("zeros", "constant"):
        return None
    if padding_mode == "border":
        return 0 if position < 0 else n - 1
    if padding_mode == "circular":
        while position < 0:
            position += n
        while position >= n:
            position -= n
        return position
    assert padding_mode == "reflection"
    if n == 1:
        return 0
    while not 0 <= position < n:
        if align_corners:  # the mirror stands on the border pixel's centre
            position = -position if position < 0 else 2 * (n - 1) - position
        else:  # on its outer edge
            position = -1 - position if position < 0 else 2 * n - 1 - position
    return position


def keys(distance: float, a: float = -0.75) -> float:
    """Keys' cubic convolution kernel."""
    r = abs(distance)
    if r <= 1:
        return (a + 2) * r**3 - (a + 3) * r**2 + 1
    if r < 2:
        return a * r**3 - 5 * a * r**2 + 8 * a * r - 4 * a
    return 0.0


def taps(position: float, mode: str) -> list[tuple[int, float]]:
    """The pixels that are read along one axis, and how much of each."""
    low = math.floor(position)
    if mode == "nearest":
        if position - low == 0.5:
            return [(low if low % 2 == 0 else low + 1, 1.0)]
        return [(low if position - low < 0.5 else low + 1, 1.0)]
    if mode == "bilinear":
        return [(k, 1.0 - abs(position - k)) for k in (low, low + 1)]
    assert mode == "bicubic"
    return [(k, keys(position - k)) for k in range(low - 1, low + 3)]


def sample(
    image: np.ndarray,  # (B, C, *in)
    grid: np.ndarray,  # (B, *out, d), (x, y[, z])
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: np.ndarray | float = 0.0,
) -> np.ndarray:
    batch, channels, *in_size = image.shape
    background = np.zeros(channels) + np.asarray(fill, dtype=np.float64)
    out = np.zeros((batch, channels, *grid.shape[1:-1]))
    for b in range(batch):
        for cell in np.ndindex(*grid.shape[1:-1]):
            axes = []
            for axis, n in enumerate(in_size):
                coordinate = float(grid[(b, *cell)][len(in_size) - 1 - axis])
                position = unnormalize(coordinate, n, align_corners)
                axes.append([(pad(k, n, padding_mode, align_corners), w) for k, w in taps(position, mode)])
            for c in range(channels):
                total = 0.0
                for corner in itertools.product(*axes):
                    weight = math.prod(w for _, w in corner)
                    index = tuple(k for k, _ in corner)
                    total += weight * (background[c] if None in index else float(image[(b, c, *index)]))
                out[(b, c, *cell)] = total
    return out


def affine_grid(theta: np.ndarray, size: tuple[int, ...], align_corners: bool = False) -> np.ndarray:
    """theta (B, d, d+1) -> (B, *size, d)."""
    d = len(size)
    out = np.zeros((theta.shape[0], *size, d))
    for b in range(theta.shape[0]):
        for cell in np.ndindex(*size):
            point = [normalize(cell[d - 1 - axis], size[d - 1 - axis], align_corners) for axis in range(d)]
            for row in range(d):
                out[(b, *cell)][row] = sum(theta[b, row, k] * point[k] for k in range(d)) + theta[b, row, d]
    return out


def warp(image: np.ndarray, theta: np.ndarray, size: tuple[int, ...], **options: object) -> np.ndarray:
    grid = affine_grid(theta, size, bool(options.get("align_corners", False)))
    return sample(image, grid, **options)  # type: ignore[arg-type]


def seed_package(image: np.ndarray, theta: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The `stn` 1.0.1 package for TensorFlow: image (B, H, W, C), theta (B, 6) -> (B, *size, C)."""
    batch, height, width, channels = image.shape
    out = np.zeros((batch, *size, channels))
    for b in range(batch):
        a = [float(v) for v in theta[b]]
        for i, y_t in enumerate(np.linspace(-1.0, 1.0, size[0])):
            for j, x_t in enumerate(np.linspace(-1.0, 1.0, size[1])):
                x = 0.5 * (a[0] * x_t + a[1] * y_t + a[2] + 1.0) * (width - 2)
                y = 0.5 * (a[3] * x_t + a[4] * y_t + a[5] + 1.0) * (height - 2)
                x0, y0 = math.floor(x), math.floor(y)
                x0, x1 = (min(max(k, 0), width - 1) for k in (x0, x0 + 1))
                y0, y1 = (min(max(k, 0), height - 1) for k in (y0, y0 + 1))
                out[b, i, j] = (
                    (x1 - x) * (y1 - y) * image[b, y0, x0]
                    + (x1 - x) * (y - y0) * image[b, y1, x0]
                    + (x - x0) * (y1 - y) * image[b, y0, x1]
                    + (x - x0) * (y - y0) * image[b, y1, x1]
                )
    return out
