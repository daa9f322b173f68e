"""Linearized multi-sampling: the values of `sample`, with a gradient that sees further than the next pixel.

The gradient of linear interpolation is the difference of the two nearest pixels: noise on a textured image, and zero
where the thing to move towards is a few pixels away. Here the gradient of each output pixel is the slope of a plane
fitted to the image at random positions around the one that is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import check_image, check_number, coordinate_dtype, describe
from .coordinates import Coordinates, check_grid, positions
from .ops import _torch, linearized
from .reading import Fill, Mode, PaddingMode, Reading, check_reading
from .sampling import check_sides, check_target, read, where_to_read
from .transforms.base import AbstractTransform

_RIDGE = (
    1e-4  # for each sample, of the squared spread: nothing to a plane that is held, and samples on a line hold none
)


def linearized_sample(
    image: Tensor,  # (B, C, [[D,] H,] W)
    grid: Tensor,  # (B, *out, d)
    *,
    samples: int = 8,
    spread: float = 2.0,
    generator: torch.Generator | None = None,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill: Fill = 0.0,
    align_corners: bool = False,
) -> Tensor:
    """`sample(image, grid)`, with another gradient to the grid.

    The value is exactly that of `sample`, and so is the gradient to the image. The gradient to the grid is, for each
    output pixel and channel, the slope of the plane of least squares through the image at the position itself and at
    `samples` positions around it, which are drawn anew at each call and for each pixel: the mean over the pixels, which
    is what reaches theta, then varies least. Where native code draws them (float images in two or three dimensions on the CPU, read
    linearly, zeros, border or constant beyond), they come in pairs on opposite sides, nearly normal. So `mode="nearest"` has a gradient, too. The slope is a constant: there is
    no second derivative by the grid. Where no gradient to the grid is asked for, nothing is drawn and nothing is spent;
    where it is, the image is read about `samples` times more.

    Args:
        image, grid, mode, padding_mode, fill, align_corners: as for `sample`.
        samples: positions around each, at least d + 1. More, less noise.
        spread: their standard deviation along each axis, in pixels of the image: about as far as things are to be moved
            at once, and no less than the step from one output pixel to the next, where the output is coarser.
        generator: for the positions, on the device of the grid; torch's global one unless given.

    Returns:
        (B, C, *out), as `sample`. A position that is not finite passes no gradient.

    Raises:
        ValueError: for options out of range, and as `sample` does.

    Example:
        >>> image = torch.arange(16.0).expand(1, 1, 16, 16)  # brighter by 1 from pixel to pixel, by 8 per unit
        >>> grid = torch.zeros(1, 1, 1, 2, requires_grad=True)
        >>> linearized_sample(image, grid).sum().backward()
        >>> [round(slope, 1) + 0.0 for slope in grid.grad.flatten().tolist()]
        [8.0, 0.0]

    Source: Jiang et al. 2019, "Linearized Multi-Sampling for Differentiable Image Transformation".
    """
    check_image(image)
    reading = check_reading(mode, padding_mode, fill, align_corners)
    return _read(image, check_grid(image, grid), reading, samples, spread, generator, "grid")


def linearized_warp(
    image: Tensor,  # (B, C, [[D,] H,] W)
    theta: Tensor,  # (B, d, d+1), (B, d+1, d+1), or (B, num_params) of `transform`
    size: tuple[int, ...] | None = None,
    *,
    transform: AbstractTransform | None = None,
    samples: int = 8,
    spread: float = 2.0,
    generator: torch.Generator | None = None,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill: Fill = 0.0,
    align_corners: bool = False,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """`stn.warp(image, theta)` with the gradient to theta of `linearized_sample`.

    Args:
        image, theta, size, transform, mode, padding_mode, fill, align_corners, spacing: as for `stn.warp`.
        samples, spread, generator: as for `linearized_sample`.

    Returns:
        (B, C, *size): what `sample` reads at the transform's grid.

    Raises:
        ValueError: as both do.

    Example:
        >>> import stn
        >>> image = torch.rand(1, 1, 8, 8)
        >>> theta = torch.zeros(1, 2, requires_grad=True)
        >>> out = linearized_warp(image, theta, transform=stn.Translation(), spread=3.0)
        >>> torch.equal(out, stn.warp(image, theta, transform=stn.Translation()))
        True
    """
    image_size = check_image(image)
    reading = check_reading(mode, padding_mode, fill, align_corners)
    size = check_target(image_size, size, transform)
    sides = check_sides(spacing, len(image_size), transform)
    return read_linearized(image, theta, size, transform, reading, samples, spread, generator, sides)


def read_linearized(
    image: Tensor,
    theta: Tensor,
    size: tuple[int, ...],
    transform: AbstractTransform | None,
    reading: Reading,
    samples: int = 8,
    spread: float = 2.0,
    generator: torch.Generator | None = None,
    spacing: tuple[float, ...] | None = None,
) -> Tensor:
    """`linearized_warp` for what has been checked, but for theta, the batches and the fill."""
    coordinates = where_to_read(image, theta, size, transform, reading.align_corners, spacing)
    grid = positions(coordinates, reading.align_corners, coordinate_dtype(theta))
    return _read(image, Coordinates("grid", size, grid), reading, samples, spread, generator, "theta")


def _read(
    image: Tensor,
    coordinates: Coordinates,
    reading: Reading,
    samples: int,
    spread: float,
    generator: torch.Generator | None,
    argument: str,
) -> Tensor:
    grid, d = coordinates.values, image.ndim - 2
    check_number("spread", spread, "a finite number of pixels above 0", lambda v: 0 < v < math.inf)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator: expected None or a torch.Generator, got {describe(generator)}")
    check_number("samples", samples, f"an int of at least {d + 1}", lambda n: isinstance(n, int) and n > d)
    value = read(image, coordinates._replace(values=grid.detach()), reading, argument)
    if not (torch.is_grad_enabled() and grid.requires_grad):
        return value
    grid = grid.to(coordinate_dtype(image, grid)).expand(value.shape[0], *grid.shape[1:])
    if linearized.refuses(image, reading) is None:
        image = image.expand(value.shape[0], *image.shape[1:])
        return _ByNative.apply(value, grid, image, reading, samples, spread, linearized.seed(generator))

    def draw(sample: int) -> Tensor:
        return torch.randn(d, *grid.shape[:-1], generator=generator, dtype=grid.dtype, device=grid.device)

    with torch.no_grad():
        slope = _slope(image.to(grid.dtype), grid, samples, spread, draw, reading)
    out: Tensor = _WithSlope.apply(value, grid, slope)
    return out


class _WithSlope(torch.autograd.Function):
    """value (B, C, *out), whose derivative by grid (B, *out, d) is slope (d, B, C, *out)."""

    @staticmethod
    def forward(value: Tensor, grid: Tensor, slope: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad, (grad * slope).sum(2).movedim(0, -1), None


class _ByNative(torch.autograd.Function):
    """The same where native code makes the gradient, and nothing before it is asked for."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, grid: Tensor, image: Tensor, reading: Reading, samples: int, spread: float, seed: int
    ) -> Tensor:
        ctx.save_for_backward(grid, image, reading.fill)
        ctx.how = reading._replace(fill=None), samples, spread, seed
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grid, image, fill = ctx.saved_tensors
        reading, samples, spread, seed = ctx.how
        reading = reading._replace(fill=fill)
        if torch.is_grad_enabled() or linearized.refuses(image, reading) or not _torch.is_in_memory(grad):
            drawn = linearized.noise(seed, samples, grid)
            with torch.no_grad():
                slope = _slope(image.to(grid.dtype), grid, samples, spread, drawn.__getitem__, reading)
            for_grid = (grad * slope).sum(2).movedim(0, -1)
        else:
            for_grid = linearized.gradient(grad, image, grid, reading, samples, spread, seed)
        return grad, for_grid, *[None] * 5


def _slope(
    image: Tensor,
    grid: Tensor,
    samples: int,
    spread: float,
    draw: Callable[[int], Tensor],  # random numbers of mean 0 and variance 1, (d, B, *out)
    reading: Reading,
) -> Tensor:
    """The derivative by position of the plane of least squares, (d, B, C, *out)."""
    batch, *out, d = grid.shape
    pixel = [2 / max(n - reading.align_corners, 1) for n in reversed(image.shape[2:])]
    offset = spread * torch.tensor(pixel, dtype=grid.dtype, device=grid.device)
    centre = read(image, Coordinates("grid", tuple(out), grid), reading)
    # Sums over the samples of u, u u', the change of the value from the centre, and both together. The centre itself
    # has zeros for all of them, and only counts.
    first, second = grid.new_zeros(d, batch, *out), grid.new_zeros(d, d, batch, *out)
    change, both = torch.zeros_like(centre), centre.new_zeros(d, *centre.shape)
    for sample in range(samples):
        u = draw(sample)
        moved = grid + u.movedim(0, -1) * offset
        changed = read(image, Coordinates("grid", tuple(out), moved), reading) - centre
        first += u
        second.addcmul_(u[:, None], u)
        change += changed
        both.addcmul_(changed, u[:, :, None])
    mean = first / (samples + 1)
    ridge = _RIDGE * samples * torch.eye(d, dtype=grid.dtype, device=grid.device)
    gram = second - first[:, None] * mean + ridge.reshape(d, d, *[1] * (d + 1))
    adjugate = _adjugate(gram)
    determinant = (gram[0] * adjugate[0]).sum(0)  # both are symmetric
    right = both - change * mean[:, :, None]
    slope = (adjugate[:, :, :, None] * right).sum(1) / (determinant[:, None] * offset.reshape(d, *[1] * (d + 2)))
    return torch.where(grid.isfinite().all(-1)[:, None], slope, 0.0)


def _adjugate(m: Tensor) -> Tensor:
    """Of symmetric matrices (d, d, ...) with d up to 3: the determinant times the inverse, without factorizations."""
    if len(m) == 1:
        return torch.ones_like(m)
    if len(m) == 2:
        return torch.stack([torch.stack([m[1, 1], -m[0, 1]]), torch.stack([-m[0, 1], m[0, 0]])])
    return torch.linalg.cross(m.roll(-1, 0), m.roll(-2, 0), dim=1)
