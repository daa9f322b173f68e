"""Reading an image at given positions: `sample` with a grid, `warp` with a theta."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from . import kernels
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
from .antialias import sample_antialiased
from .conventions import extent
from .ops import warp as op
from .transforms.affine import map_affine
from .transforms.base import AbstractTransform, derivative, lattice_points
from .transforms.projective import facing, map_projective

MODES = ("bilinear", "nearest", "bicubic", *kernels.NAMED)
PADDING_MODES = ("zeros", "border", "reflection", "circular", "constant")

Mode = (
    Literal["bilinear", "nearest", "bicubic", "integer", "lanczos3", "bspline2", "bspline3", "bspline4", "bspline5"]
    | kernels.Kernel
)
PaddingMode = Literal["zeros", "border", "reflection", "circular", "constant"]
Fill = float | Sequence[float] | Tensor


def sample(
    image: Tensor,  # (B, C, [[D,] H,] W)
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
        image: (B, C, H, W), (B, C, D, H, W) or, in 1D, (B, C, W), any float type. Coordinates, weights and sums are float32 (float64
            for a float64 image) whatever its type; the result has its type and memory format.
        grid: (B, Ho, Wo, 2), (B, Do, Ho, Wo, 3) or (B, Wo, 1). A batch of 1 on either side is broadcast.
        mode: "bilinear" (trilinear on volumes), "nearest" (ties to the even pixel), "bicubic" (Keys, A = -0.75);
            slower: "integer" (the paper's: nearest, ties upwards), "lanczos3", "bspline2" to "bspline5" (interpolating
            splines), or a `stn.kernels.Kernel` of your own.
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
            f"grid: expected (B, {'D, ' * (d == 3)}{'H, ' * (d > 1)}W, {d}) for an image of shape {tuple(image.shape)}, got shape {tuple(grid.shape)}"
        )
    if 0 in grid.shape[1:-1]:
        raise ValueError(f"grid: expected every output size to be at least 1, got shape {tuple(grid.shape)}")
    kernel, background = check_mode(mode), _check_options(image, padding_mode, fill, align_corners)
    batch = check_batches("image", image, "grid", grid)
    image, grid = image.expand(batch, *image.shape[1:]), grid.expand(batch, *grid.shape[1:])
    return op.sample(image, grid, kernel, padding_mode, background, align_corners)


def valid_mask(grid: Tensor) -> Tensor:
    """Where positions lie within the image: true inside the frame [-1, 1] of every axis.

    What `sample` reads there is the image and not its padding, to the border pixel's outer edge (`align_corners=False`)
    or centre (True).

    Args:
        grid: (B, *out, d), normalized.

    Returns:
        (B, 1, *out), bool; false where a position is not finite.

    Raises:
        ValueError: for any other shape or type.

    Example:
        >>> valid_mask(torch.tensor([[[0.5], [1.5]]]))
        tensor([[[ True, False]]])
    """
    check_float_tensor("grid", grid, "positions (B, *out, d)")
    if grid.ndim not in (3, 4, 5) or grid.shape[-1] != grid.ndim - 2:
        raise ValueError(f"grid: expected positions (B, *out, d), d = 1 to 3, got shape {tuple(grid.shape)}")
    return (grid.abs() <= 1).all(-1)[:, None]


def warp(
    image: Tensor,  # (B, C, [[D,] H,] W)
    theta: Tensor,  # (B, d, d+1), (B, d+1, d+1), or (B, num_params) of `transform`
    size: tuple[int, ...] | None = None,
    *,
    transform: AbstractTransform | None = None,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill: Fill = 0.0,
    antialias: bool = False,
    align_corners: bool = False,
) -> Tensor:
    """Warp `image` by `theta`: each output pixel is read in the image where theta says.

    Pull, (x, y[, z]), normalized. Identical to `sample(image, transform.grid(theta, size))`, without the grid where
    the kernel can do without.

    Args:
        image: (B, C, H, W), (B, C, D, H, W) or (B, C, W).
        theta: affine matrices (B, 2, 3), (B, 3, 4) or (B, 1, 2); projective ones (B, 3, 3) or (B, 4, 4); or, with `transform`, that family's parameters (B, num_params).
            A batch of 1 on either side is broadcast.
        size: of the output, ([D,] H, W); the image's own unless given.
        mode, padding_mode, fill, align_corners: as for `sample`.
        antialias: average over what each output pixel stands for in the input, where that is more than a pixel, by the
            warp's Jacobian: along each axis by its own measure. Several times the cost; nothing changes where the warp
            does not shrink the image.

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
    kernel, background = check_mode(mode), _check_options(image, padding_mode, fill, align_corners)
    check_flag("antialias", antialias)
    image_size = tuple(image.shape[2:])
    theta, size = check_warp(image, theta, size, transform)
    batch = check_batches("image", image, "theta", theta)
    if image.shape[0] != batch:
        image = image.expand(batch, *image.shape[1:])
    matrix: Tensor | None
    if transform is None:
        matrix = theta if theta.shape[1] == d else facing(theta.to(coordinate_dtype(theta)))
    else:
        matrix = transform.as_matrix(theta, image_size=image_size, align_corners=align_corners)
    if antialias:
        return _warp_antialiased(image, theta, matrix, transform, size, kernel, padding_mode, background, align_corners)
    if matrix is not None:
        read = op.warp_affine if matrix.shape[1] == d else op.warp_projective
        if matrix.shape[0] != batch:
            matrix = matrix.expand(batch, -1, -1)
        return read(image, matrix, size, kernel, padding_mode, background, align_corners)
    assert transform is not None
    linear = transform.as_basis(theta, size, align_corners=align_corners)
    if linear is not None:
        basis, coefficients = linear[0], linear[1].expand(batch, -1, -1)
        return op.warp_basis(image, basis, coefficients, size, kernel, padding_mode, background, align_corners)
    grid = transform.grid(theta, size, image_size=image_size, align_corners=align_corners)
    return op.sample(image, grid.expand(batch, *grid.shape[1:]), kernel, padding_mode, background, align_corners)


def _warp_antialiased(
    image: Tensor,
    theta: Tensor,
    matrix: Tensor | None,
    transform: AbstractTransform | None,
    size: tuple[int, ...],
    mode: str | kernels.Kernel,
    padding_mode: str,
    background: Tensor | None,
    align_corners: bool,
) -> Tensor:
    d, image_size = len(size), tuple(image.shape[2:])
    theta = theta.to(coordinate_dtype(image))
    points = lattice_points(theta, size, align_corners).expand(theta.shape[0], -1, -1)
    if matrix is not None:
        mapping = functools.partial(map_affine if matrix.shape[1] == d else map_projective, matrix.to(theta.dtype))
    else:
        assert transform is not None
        mapping = functools.partial(transform.map_points, theta, image_size=image_size, align_corners=align_corners)
    of_input, of_output = (points.new_tensor(extent(n, align_corners=align_corners)) for n in (image_size, size))
    # Pixels of the input for a pixel of the output; an axis of one pixel with align_corners has no length.
    scale = of_input[:, None] / torch.where(of_output == 0, torch.inf, of_output)
    steps = derivative(lambda p: mapping(p), points) * scale
    batch = image.shape[0]
    grid = mapping(points).reshape(-1, *size, d).expand(batch, *size, d)
    steps = steps.reshape(-1, *size, d, d).expand(batch, *size, d, d)
    return sample_antialiased(image, grid, steps, mode, padding_mode, background, align_corners)


def check_mode(mode: Any) -> str | kernels.Kernel:
    """The mode as the op takes it: one of torch's own names, or a kernel."""
    if isinstance(mode, kernels.Kernel):
        return mode
    check_choice("mode", mode, MODES)
    return kernels.NAMED.get(mode, mode)


def check_warp(
    image: Tensor, theta: Tensor, size: tuple[int, ...] | None, transform: AbstractTransform | None
) -> tuple[Tensor, tuple[int, ...]]:
    """theta and the size of the output, as `warp` goes on with them for a checked image."""
    d = image.ndim - 2
    size = tuple(image.shape[2:]) if size is None else check_size(size, d)
    if transform is None:
        _check_matrix(theta, d)
    elif not isinstance(transform, AbstractTransform):
        raise ValueError(f"transform: expected a transform such as stn.Affine(), got {describe(transform)}")
    elif transform.ndim != d:
        raise ValueError(f"transform: expected one in {d}D for an image of shape {tuple(image.shape)}, got {transform}")
    else:
        theta = transform.check_theta(theta)
    return theta, size


def _check_matrix(theta: Tensor, d: int) -> None:
    """(B, d, d+1), affine, or (B, d+1, d+1), projective."""
    expected = f"matrices (B, {d}, {d + 1}) or (B, {d + 1}, {d + 1})"
    check_float_tensor("theta", theta, expected)
    if theta.ndim != 3 or theta.shape[1] not in (d, d + 1) or theta.shape[2] != d + 1:
        hint = ""
        if theta.ndim == 2:
            hint = "; name the family of a flat theta with transform=, stn.Affine() for six numbers"
        if d == 1 and theta.shape[-1] == 3:
            hint = "; an image of three dimensions is (B, C, W), a signal: a picture needs its batch, (1, C, H, W)"
        raise ValueError(f"theta: expected {expected}, got shape {tuple(theta.shape)}{hint}")


def _check_options(image: Tensor, padding_mode: str, fill: Fill, align_corners: bool) -> Tensor | None:
    """The fill per channel (1,) or (C,) for constant padding, None for any other."""
    check_flag("align_corners", align_corners)
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
