"""Reading an image at given positions: `sample` with a grid, `warp` with a theta."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ._checks import (
    check_batches,
    check_choice,
    check_flag,
    check_float_tensor,
    check_readable,
    check_size,
    check_spacing,
    coordinate_dtype,
    describe,
)
from ._tracing import is_portable, of_one_size
from .antialias import sample_antialiased
from .conventions import pixel_to_normalized
from .coordinates import MATRICES, Coordinates, Frame, check_grid, check_matrices, map_points, positions
from .geometry import derivative, differences, extent, lattice_points
from .ops import _torch
from .ops import dispatch as ops
from .reading import Fill, Mode, PaddingMode, Reading, check_reading, fit_fill
from .transforms.base import AbstractTransform

Units = Literal["normalized", "pixel"]
Order = Literal["xy", "ij"]


def sample(
    image: Tensor,  # (B, C, [[D,] H,] W)
    grid: Tensor,  # (B, *out, d)
    *,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill: Fill = 0.0,
    antialias: bool = False,
    align_corners: bool = False,
    units: Units = "normalized",
    order: Order = "xy",
) -> Tensor:
    """Read `image` at the positions in `grid`.

    Pull, (x, y[, z]), normalized to [-1, 1] unless `units` and `order` say otherwise. Outside the image, rows of pixels `a b c` go on as

        zeros        0 0 0 | a b c | 0 0 0
        constant     k k k | a b c | k k k      (k = fill)
        border       a a a | a b c | c c c
        reflection   c b a | a b c | c b a      (with align_corners: c b | a b c | b a)
        circular     a b c | a b c | a b c

    Args:
        image: (B, C, H, W), (B, C, D, H, W) or, in 1D, (B, C, W), any float type. Coordinates, weights and sums are float32 (float64
            for a float64 image) whatever its type; the result has its type and memory format. Bytes (uint8) are read
            too, without a gradient, and rounded, halves to even; other integers, such as labels, with "nearest".
        grid: (B, Ho, Wo, 2), (B, Do, Ho, Wo, 3) or (B, Wo, 1). A batch of 1 on either side is broadcast.
        mode: "bilinear" (trilinear on volumes), "nearest" (ties to the even pixel), "bicubic" (Keys, A = -0.75);
            slower: "integer" (the paper's: nearest, ties upwards), "lanczos3", "bspline2" to "bspline5" (interpolating
            splines), or a `stn.kernels.Kernel` of your own.
        fill: for `padding_mode="constant"`: a number, or one per channel.
        antialias: as for `warp`, by the differences of neighbouring positions. A jump in the grid counts as shrinking.
        align_corners: False: -1 and 1 are the outer edges of the border pixels; True: their centres. Of positions in
            pixels it only says about what a reflection turns.
        units: "pixel" for positions in pixels: integers are pixel centres, the first is 0. They are read as they are,
            halfway between two pixels too, in float64 where they come so. On the native backend, and elsewhere, or
            in float64 of another image, on the reference, which is several times slower.
        order: "ij" for positions that are array indices, ([slice,] row, column).

    Returns:
        (B, C, *out). NaN (of integers 0) where a position is not finite, from where no gradient passes. With "bilinear"
        a position on a pixel's centre, where the slope jumps, has the mean of both sides as its derivative.

    Raises:
        ValueError: for wrong shapes, types, devices, sizes of zero and unknown options.

    Example:
        >>> image = torch.tensor([[[[1.0, 3.0]]]])
        >>> sample(image, torch.tensor([[[[0.0, 0.0]]]]))
        tensor([[[[2.]]]])
        >>> sample(image, torch.tensor([[[[0.0, 0.75]]]]), units="pixel", order="ij")  # row 0, column 0.75
        tensor([[[[2.5000]]]])

    Source: Jaderberg et al. 2015, section 3.3.
    """
    if has_torch_function_variadic(image, grid):
        options: dict[str, Any] = {
            "mode": mode,
            "padding_mode": padding_mode,
            "fill": fill,
            "antialias": antialias,
            "align_corners": align_corners,
            "units": units,
            "order": order,
        }
        out: Tensor = handle_torch_function(sample, (image, grid), image, grid, **options)
        return out
    check_readable(image, mode)
    reading = check_reading(mode, padding_mode, fill, align_corners)
    coordinates = locate(image, grid, units, order)
    if antialias is not False:
        check_flag("antialias", antialias)
        return read_antialiased(image, coordinates, reading)
    return read(image, coordinates, reading, "grid")


def locate(image: Tensor, grid: Any, units: Any, order: Any) -> Coordinates:
    """Positions for a checked image, in the units and the order that a caller named."""
    coordinates = check_grid(image, grid)
    if units == "normalized" and order == "xy":
        return coordinates
    check_choice("units", units, ("normalized", "pixel"))
    check_choice("order", order, ("xy", "ij"))
    values = coordinates.values
    if order == "ij":
        values = values.flip(-1)
    if units == "normalized":
        return coordinates._replace(values=values)
    return Coordinates("pixels", coordinates.size, values.to(coordinate_dtype(image, values)))


def read_antialiased(image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    """`read`, averaged over what each pixel stands for, as far as its neighbours tell."""
    _refuse_bytes(image)
    grid = coordinates.values.to(coordinate_dtype(image))
    size, align_corners = tuple(image.shape[2:]), reading.align_corners
    if coordinates.kind == "pixels":
        grid = pixel_to_normalized(grid, size, align_corners=align_corners)
    batch = check_batches("image", image, "grid", grid)
    steps = torch.stack([differences(grid, axis) for axis in reversed(range(1, grid.ndim - 1))], dim=-1)
    steps = steps * grid.new_tensor(extent(size, align_corners=align_corners))[:, None]
    steps = steps.expand(batch, *steps.shape[1:])
    coordinates = Coordinates("grid", coordinates.size, grid.expand(batch, *grid.shape[1:]))
    return sample_antialiased(image.expand(batch, *image.shape[1:]), coordinates, steps, fit_fill(reading, image))


def _refuse_bytes(image: Tensor) -> None:
    if not image.is_floating_point():
        raise ValueError(f"antialias: expected False for images of {image.dtype}, got True")


def read(image: Tensor, coordinates: Coordinates, reading: Reading, argument: str = "theta") -> Tensor:
    """`sample` for what has been checked, but for the batches and the fill."""
    values = coordinates.values
    if not image.is_floating_point() and values.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{argument}: expected one that needs no gradient for images of {image.dtype}, which have none; detach it, or "
            f"read in torch.no_grad()"
        )
    batch = check_batches("image", image, argument, values)
    if image.shape[0] != batch:
        image = image.expand(batch, *image.shape[1:])
    elif values.shape[0] != batch:
        coordinates = coordinates._replace(values=values.expand(batch, *values.shape[1:]))
    return ops.warp(image, coordinates, reading if reading.fill is None else fit_fill(reading, image))


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
    lattice_align_corners: bool | None = None,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """Warp `image` by `theta`: each output pixel is read in the image where theta says.

    Pull, (x, y[, z]), normalized. Identical to `sample(image, transform.grid(theta, size))`, without the grid where
    the kernel can do without.

    Args:
        image: (B, C, H, W), (B, C, D, H, W) or (B, C, W), of any type that `sample` takes.
        theta: affine matrices (B, 2, 3), (B, 3, 4) or (B, 1, 2); projective ones (B, 3, 3) or (B, 4, 4); or, with `transform`, that family's parameters (B, num_params).
            A batch of 1 on either side is broadcast.
        size: of the output, ([D,] H, W); the image's own unless given.
        mode, padding_mode, fill, align_corners: as for `sample`.
        antialias: average over what each output pixel stands for in the input, where that is more than a pixel, by the
            warp's Jacobian: along each axis by its own measure, whole pixels by their mean. Several times the cost; nothing
            changes where the warp does not shrink the image.
        lattice_align_corners: where the pixels of the output lie, if not as `align_corners`, which then is about the
            image alone: for networks that were trained with a mixture of both (see `stn.conventions`). The grid is made.
        spacing: the length of a pixel's side in the image along (x, y[, z]), such as (1, 1, 3) for voxels of 1 x 1 x 3
            mm, with a `transform` that keeps angles or lengths: it then does so in millimetres. Matrices say all that
            they do themselves; `stn.conventions.theta_from_world` makes one from a matrix in millimetres.

    Returns:
        (B, C, *size) in the image's type and memory format. NaN where a position is not finite, as `sample`.

    Raises:
        ValueError: for wrong shapes, types, devices, sizes of zero and unknown options.

    Example:
        >>> flip = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
        >>> warp(torch.tensor([[[[1.0, 2.0, 3.0]]]]), flip)
        tensor([[[[3., 2., 1.]]]])

    Source: Jaderberg et al. 2015, section 3.
    """
    if has_torch_function_variadic(image, theta):
        options: dict[str, Any] = {"transform": transform, "mode": mode, "padding_mode": padding_mode, "fill": fill}
        options |= {"antialias": antialias, "align_corners": align_corners}
        options |= {"lattice_align_corners": lattice_align_corners, "spacing": spacing}
        out: Tensor = handle_torch_function(warp, (image, theta), image, theta, size, **options)
        return out
    image_size = check_readable(image, mode)
    reading = check_reading(mode, padding_mode, fill, align_corners)
    check_flag("antialias", antialias)
    size = check_target(image_size, size, transform)
    if lattice_align_corners is not None:
        check_flag("lattice_align_corners", lattice_align_corners)
    sides = check_sides(spacing, len(image_size), transform)
    return read_warp(image, theta, size, transform, reading, antialias, lattice_align_corners, sides)


def check_target(
    image_size: tuple[int, ...], size: tuple[int, ...] | None, transform: AbstractTransform | None
) -> tuple[int, ...]:
    """The size of the output for an image of `image_size`, and a ValueError for a transform that does not fit it."""
    d = len(image_size)
    if transform is not None:
        if not isinstance(transform, AbstractTransform):
            raise ValueError(f"transform: expected a transform such as stn.Affine(), got {describe(transform)}")
        if transform.ndim != d:
            raise ValueError(f"transform: expected one in {d}D for an image of size {image_size}, got {transform}")
    return image_size if size is None else check_size(size, d, least=0)


def check_sides(spacing: Any, d: int, transform: AbstractTransform | None) -> tuple[float, ...] | None:
    """The spacing of an image in `d` dimensions for a transform, or a ValueError."""
    if spacing is not None and transform is None:
        raise ValueError(
            f"spacing: expected None with theta as matrices, which are in normalized coordinates whatever the spacing, or "
            f"transform= such as stn.Rotation(3), got {describe(spacing)}"
        )
    return check_spacing(spacing, d)


def pixels_per_pixel(
    like: Tensor, image_size: tuple[int, ...], size: tuple[int, ...], align_corners: bool, of_lattice: bool
) -> Tensor:
    """What a Jacobian (d, d) is to be multiplied with to be pixels of the input for a pixel of the output."""
    of_input = like.new_tensor(extent(image_size, align_corners=align_corners))
    of_output = like.new_tensor(extent(size, align_corners=of_lattice))
    # An axis of one pixel with align_corners has no length.
    return of_input[:, None] / torch.where(of_output == 0, torch.inf, of_output)


def where_to_read(
    image: Tensor,
    theta: Tensor,
    size: tuple[int, ...],
    transform: AbstractTransform | None,
    align_corners: bool,
    spacing: tuple[float, ...] | None = None,
) -> Coordinates:
    """The coordinates of `warp`; checks theta."""
    if transform is None:
        return check_matrices(theta, size)
    return transform.coordinates(theta, size, Frame(tuple(image.shape[2:]), align_corners, spacing))


def read_warp(
    image: Tensor,
    theta: Tensor,
    size: tuple[int, ...],
    transform: AbstractTransform | None,
    reading: Reading,
    antialias: bool,
    lattice_align_corners: bool | None = None,
    spacing: tuple[float, ...] | None = None,
) -> Tensor:
    """`warp` for what has been checked, but for theta, the batches and the fill."""
    if transform is not None and _torch.tracing():
        image = of_one_size(image)
    of_lattice = reading.align_corners if lattice_align_corners is None else lattice_align_corners
    coordinates = where_to_read(image, theta, size, transform, of_lattice, spacing)
    if antialias:
        _refuse_bytes(image)
    if not antialias or 0 in size:
        if of_lattice != reading.align_corners:
            coordinates = Coordinates("grid", size, positions(coordinates, of_lattice, coordinate_dtype(image)))
        return read(image, coordinates, reading)
    d, image_size = len(size), tuple(image.shape[2:])
    dtype = coordinate_dtype(image)
    coordinates = coordinates._replace(values=coordinates.values.to(dtype))
    like = coordinates.values
    scale = pixels_per_pixel(like, image_size, size, reading.align_corners, of_lattice)
    batch = check_batches("image", image, "theta", theta)
    image, reading = image.expand(batch, *image.shape[1:]), fit_fill(reading, image)
    if coordinates.kind == "affine":
        matrix = like.expand(batch, -1, -1)
        coordinates, steps = coordinates._replace(values=matrix), matrix[..., :d] * scale
        if of_lattice != reading.align_corners:
            coordinates = Coordinates("grid", size, positions(coordinates, of_lattice))
            steps = steps.reshape(-1, *[1] * d, d, d).expand(*coordinates.values.shape, d)
        return sample_antialiased(image, coordinates, steps, reading)
    if is_portable():
        raise ValueError(
            "antialias: expected False, or an affine transform, in a program that is exported: the derivative of others would keep the "
            "batch of the example"
        )
    if transform is None or transform.kind in MATRICES:
        mapping = functools.partial(map_points, coordinates)
    else:
        mapping = functools.partial(transform.map_points, theta.to(dtype), frame=Frame(image_size, of_lattice, spacing))
    points = lattice_points(like, size, of_lattice).expand(theta.shape[0], -1, -1)
    steps = (derivative(lambda p: mapping(p), points) * scale).expand(*points.shape, d)
    grid = mapping(points).reshape(-1, *size, d).expand(batch, *size, d)
    steps = steps.reshape(-1, *size, d, d).expand(batch, *size, d, d)
    return sample_antialiased(image, Coordinates("grid", size, grid), steps, reading)
