"""Interpolation kernels as polynomials, for native code that knows none of them by name.

Between two pixels (halfway between two of them where the taps are an odd number) the weight of each tap is a smooth function
of the position's fraction t: a polynomial for splines and for Keys' kernel, and as good as one of degree 12 (float32) or 21
(float64) for Lanczos'. A polynomial interpolates it in Chebyshev's points.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev

from ..kernels import Kernel

MOST_TAPS, MOST_DEGREE = 6, 23  # as csrc/api.h has them


class Polynomials(NamedTuple):
    taps: list[list[float]]  # the weight of each, by powers of u = t - 1/2, from the constant on
    poles: list[float]  # of the prefilter, between -1 and 0; each stands for z and 1 / z
    reach: int  # of the prefilter, in pixels: beyond, it is below the working type's rounding


def refuses(kernel: Kernel) -> str | None:
    """Why a kernel is none of polynomials: what `Kernel` was given may be anything."""
    if kernel.name is None:
        return "has no kernels made of any function"
    few = 3 <= 2 * kernel.radius <= MOST_TAPS  # lanczos(1) has two, and its sum poles too near for a short polynomial
    return None if few else f"has no {kernel.name}, of other than 3 to {MOST_TAPS} taps"


@functools.lru_cache(maxsize=64)
def of(name: str, double: bool) -> Polynomials:
    """A kernel by its name, to the rounding of float64 or float32."""
    kernel = Kernel.named(name)
    tolerance = 8e-15 if double else 1e-8  # of weights of order 1; those that are computed in float64 are as exact
    count = round(2 * kernel.radius)
    check = _weights(kernel, np.linspace(0, 1, 1001)[1:-1])
    best, fewest = math.inf, None
    for degree in range(MOST_DEGREE + 1):
        nodes = np.cos(math.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))  # of 2 u, from -1 to 1
        series = chebyshev.chebfit(nodes, _weights(kernel, (nodes + 1) / 2), degree)
        off = np.abs(chebyshev.chebval(np.linspace(-1, 1, 1001)[1:-1], series).T - check).max()
        if off < 0.5 * best:
            best, fewest = off, series
        if best < tolerance:
            break
    assert fewest is not None
    powers = np.stack([chebyshev.cheb2poly(fewest[:, tap]) for tap in range(count)])
    return Polynomials(
        (powers * 2.0 ** np.arange(powers.shape[1])).tolist(), _poles(kernel, count), _reach(kernel, double)
    )


def _weights(kernel: Kernel, t: np.ndarray) -> np.ndarray:
    """Of each tap, (len(t), taps)."""
    odd = round(2 * kernel.radius) % 2
    weights = [weight for _, weight in kernel.taps(torch.from_numpy(t - odd / 2))]
    return torch.stack(weights, -1).numpy()


def _poles(kernel: Kernel, count: int) -> list[float]:
    """The zeros, within the unit circle, of the polynomial of the kernel's values at the pixels."""
    if not kernel.prefilter:
        return []
    values = [float(weight) for _, weight in kernel.taps(torch.zeros((), dtype=torch.float64))]
    return [float(zero) for zero in np.roots(np.trim_zeros(values)) if abs(zero) < 1]


def _reach(kernel: Kernel, double: bool) -> int:
    if double or not kernel.prefilter:
        return max(len(kernel.response) - 1, 0)
    return next(k for k, value in enumerate(kernel.response) if abs(value) < 2**-28 * kernel.response[0])
