"""The gradient of positions by linearized multi-sampling: native on the CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reading import Reading
from . import _torch, cpu, native

_PADDINGS = ("zeros", "border", "constant")


def refuses(image: Tensor, reading: Reading) -> str | None:
    """Why no native code runs here, None where it does."""
    if image.ndim not in (4, 5):
        return f"runs in two and three dimensions, not in {image.ndim - 2}"
    if reading.kernel != "bilinear":
        return f"reads linearly, not by {reading.kernel}"
    if reading.padding not in _PADDINGS:
        return f"has no {reading.padding} padding"
    if torch.compiler.is_compiling() or _torch.tracing() or _torch.modes() or _torch.transforming():
        return "runs in eager mode"
    if _torch.in_forward_mode():
        return "knows no tangents"
    return native.refuses(image.device.type)


def seed(generator: torch.Generator | None) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def noise(drawn: int, samples: int, grid: Tensor) -> Tensor:
    """What is drawn for a grid (B, *out, d): (samples, d, B, *out), in pairs u and -u, of mean 0 and standard deviation 1."""
    batch, *out, d = grid.shape
    made = torch.empty(samples, d, batch, math.prod(out), dtype=grid.dtype)
    cpu._native.noise(made, drawn)
    return made.unflatten(3, out)


def gradient(
    grad: Tensor,  # (B, C, *out)
    image: Tensor,  # (B, C, *in)
    grid: Tensor,  # (B, *out, d), of float32 or float64, the type of the sums
    reading: Reading,
    samples: int,
    spread: float,
    drawn: int,
) -> Tensor:
    """The slope of the plane through each pixel's samples times the gradient of the output: that of the grid."""
    image, grad, points = (
        t.detach().resolve_neg().to(grid.dtype).contiguous() for t in (image, grad.flatten(2), grid.flatten(1, -2))
    )
    fill = None if reading.fill is None else reading.fill.detach().to(grid.dtype).expand(image.shape[1]).contiguous()
    result = torch.zeros_like(points)
    if grad.numel():
        cpu._native.linearize(
            image,
            points,
            grad,
            fill,
            cpu._PADDINGS[reading.padding],
            reading.align_corners,
            samples,
            spread,
            drawn,
            result,
            torch.get_num_threads(),
        )
    return result.view(grid.shape)
