"""Reading an image at given positions: `sample` with a grid, `warp` with a theta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ._checks import (
    check_batches,
    check_choice,
    check_flag,
    check_float_tensor,
    check_image,
    check_size,
    coordinate_dtype,
    describe,
)
from .ops import warp as op
from .transforms.affine import AbstractMatrixTransform
from .transforms.base import AbstractTransform
from .transforms.projective import AbstractProjectiveTransform, facing
from .transforms.tps import ThinPlateSpline

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection", "circular", "constant")

Mode = Literal["bilinear", "nearest", "bicubic"]
PaddingMode = Literal["zeros", "border", "reflection", "circular", "constant"]
Fill = float | Sequence[float] | Tensor


def sample(
    image: Tensor,  # (B, C, [D,] H, W)
    grid: Tensor,  # (B, *out, d)
    *,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill: Fill = 0.0,
    align_corners: bool = False,
) -> Tensor:
    """Read `image` at the positions in `grid`.

    Pull, (x, y[, z]), normalized to [-1, 1]. Outside the image, rows of pixels `a b c` go on as

        zeros        0 0 0 | a b c | 0 0 0
        constant     k k k | a b c | k k k      (k = fill)
        border       a a a | a b c | c c c
        reflection   c b a | a b c | c b a      (with align_corners: c b | a b c | b a)
        circular     a b c | a b c | a b c

    Args:
        image: (B, C, H, W) or (B, C, D, H, W), any float type. Coordinates, weights and sums are float32 (float64
            for a float64 image) whatever its type; the result has its type and memory format.
        grid: (B, Ho, Wo, 2) or (B, Do, Ho, Wo, 3). A batch of 1 on either side is broadcast.
        mode: "bilinear" (trilinear on volumes), "nearest" (ties to the even pixel), "bicubic" (Keys, A = -0.75).
        fill: for `padding_mode="constant"`: a number, or one per channel.
        align_corners: False: -1 and 1 are the outer edges of the border pixels; True: their centres.

    Returns:
        (B, C, *out). NaN where a position is not finite.

    Raises:
        ValueError: for wrong shapes, types, devices, sizes of zero and unknown options.

    Example:
        >>> image = torch.tensor([[[[1.0, 3.0]]]])
        >>> sample(image, torch.tensor([[[[0.0, 0.0]]]]))
        tensor([[[[2.]]]])

    Source: Jaderberg et al. 2015, section 3.3.
    """
    check_image(image)
    d = image.ndim - 2
    check_float_tensor("grid", grid, f"positions (B, *out, {d})")
    if grid.ndim != d + 2 or grid.shape[-1] != d:
        raise ValueError(
            f"grid: expected (B, {'D, ' * (d == 3)}H, W, {d}) for an image of shape {tuple(image.shape)}, got shape {tuple(grid.shape)}"
        )
    if 0 in grid.shape[1:-1]:
        raise ValueError(f"grid: expected every output size to be at least 1, got shape {tuple(grid.shape)}")
    background = _check_options(image, mode, padding_mode, fill, align_corners)
    batch = check_batches("image", image, "grid", grid)
    image, grid = image.expand(batch, *image.shape[1:]), grid.expand(batch, *grid.shape[1:])
    return op.sample(image, grid, mode, padding_mode, background, align_corners)


def warp(
    image: Tensor,  # (B, C, [D,] H, W)
    theta: Tensor,  # (B, d, d+1), (B, d+1, d+1), or (B, num_params) of `transform`
    size: tuple[int, ...] | None = None,
    *,
    transform: AbstractTransform | None = None,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill: Fill = 0.0,
    align_corners: bool = False,
) -> Tensor:
    """Warp `image` by `theta`: each output pixel is read in the image where theta says.

    Pull, (x, y[, z]), normalized. Identical to `sample(image, transform.grid(theta, size))`, without the grid where
    the kernel can do without.

    Args:
        image: (B, C, H, W) or (B, C, D, H, W).
        theta: affine matrices (B, 2, 3) or (B, 3, 4); projective ones (B, 3, 3) or (B, 4, 4); or, with `transform`, that family's parameters (B, num_params).
            A batch of 1 on either side is broadcast.
        size: of the output, ([D,] H, W); the image's own unless given.
        mode, padding_mode, fill, align_corners: as for `sample`.

    Returns:
        (B, C, *size) in the image's type and memory format. NaN where a position is not finite.

    Raises:
        ValueError: for wrong shapes, types, devices, sizes of zero and unknown options.

    Example:
        >>> flip = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
        >>> warp(torch.tensor([[[[1.0, 2.0, 3.0]]]]), flip)
        tensor([[[[3., 2., 1.]]]])

    Source: Jaderberg et al. 2015, section 3.
    """
    check_image(image)
    d = image.ndim - 2
    background = _check_options(image, mode, padding_mode, fill, align_corners)
    image_size = tuple(image.shape[2:])
    size = image_size if size is None else check_size(size, d)
    if transform is None:
        _check_matrix(theta, d)
    elif not isinstance(transform, AbstractTransform):
        raise ValueError(f"transform: expected a transform such as stn.Affine(), got {describe(transform)}")
    elif transform.ndim != d:
        raise ValueError(f"transform: expected one in {d}D for an image of shape {tuple(image.shape)}, got {transform}")
    else:
        theta = transform.check_theta(theta)
    batch = check_batches("image", image, "theta", theta)
    image = image.expand(batch, *image.shape[1:])
    if isinstance(transform, AbstractMatrixTransform):
        theta, transform = transform.matrix(theta, image_size=image_size, align_corners=align_corners), None
    if transform is None and theta.shape[1] == d:
        matrix = theta.expand(batch, -1, -1)
        return op.warp_affine(image, matrix, size, mode, padding_mode, background, align_corners)
    if isinstance(transform, AbstractProjectiveTransform):
        theta, transform = transform.matrix(theta), None
    if transform is None:
        matrix = facing(theta).expand(batch, -1, -1)
        return op.warp_projective(image, matrix, size, mode, padding_mode, background, align_corners)
    if isinstance(transform, ThinPlateSpline):
        basis, coefficients = transform.basis(size, align_corners=align_corners), transform.coefficients(theta)
        coefficients = coefficients.expand(batch, -1, -1)
        return op.warp_basis(image, basis, coefficients, size, mode, padding_mode, background, align_corners)
    grid = transform.grid(theta, size, image_size=image_size, align_corners=align_corners)
    return op.sample(image, grid.expand(batch, *grid.shape[1:]), mode, padding_mode, background, align_corners)


def _check_matrix(theta: Tensor, d: int) -> None:
    """(B, d, d+1), affine, or (B, d+1, d+1), projective."""
    expected = f"matrices (B, {d}, {d + 1}) or (B, {d + 1}, {d + 1})"
    check_float_tensor("theta", theta, expected)
    if theta.ndim != 3 or theta.shape[1] not in (d, d + 1) or theta.shape[2] != d + 1:
        flat = (
            "; name the family of a flat theta with transform=, stn.Affine() for six numbers" if theta.ndim == 2 else ""
        )
        raise ValueError(f"theta: expected {expected}, got shape {tuple(theta.shape)}{flat}")


def _check_options(image: Tensor, mode: str, padding_mode: str, fill: Fill, align_corners: bool) -> Tensor | None:
    """The fill per channel (1,) or (C,) for constant padding, None for any other."""
    check_flag("align_corners", align_corners)
    check_choice("mode", mode, MODES)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    if padding_mode != "constant":
        if not isinstance(fill, (int, float)) or fill != 0:
            raise ValueError(
                f"fill: expected 0 with padding_mode={padding_mode!r}; it belongs to padding_mode='constant'"
            )
        return None
    try:
        dtype = fill.dtype if isinstance(fill, Tensor) else coordinate_dtype(image)
        background = torch.as_tensor(fill, dtype=dtype, device=image.device).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"fill: expected a number or one per channel, got {describe(fill)}") from error
    if background.is_complex() or background.numel() not in (1, image.shape[1]):
        raise ValueError(f"fill: expected a number or {image.shape[1]} of them, one per channel, got {describe(fill)}")
    return background
