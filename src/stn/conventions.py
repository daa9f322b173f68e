"""The frame of the whole package, and exact conversions into it from every peer.

Coordinates are normalized to [-1, 1] per axis and ordered (x, y) or (x, y, z); sizes are ([D,] H, W). With
`align_corners=False` (the default everywhere) -1 and 1 are the outer edges of the border pixels, with `True` their
centres. Every warp is a *pull*: it maps output coordinates to the input coordinates that are read there.

Coming from a peer, with `theta_from_pixel(matrix, in_size, out_size, ...)`:

| peer | its matrix | arguments |
|---|---|---|
| torch `affine_grid` and `grid_sample` | output -> input, normalized (x, y[, z]) | none: it is a theta |
| OpenCV `warpAffine`, `warpPerspective` | source -> destination, pixels (x, y) | `direction="push"` |
| OpenCV with `WARP_INVERSE_MAP` | destination -> source | default |
| kornia `warp_affine`, `warp_perspective` | source -> destination, pixels (x, y) | `direction="push"` |
| kornia `warp_affine3d` | source -> destination, pixels (x, y, z) | `direction="push"` |
| scikit-image `warp(image, inverse_map)` | output -> input, pixels (x, y) | default, the transform's `params` |
| SciPy `ndimage.affine_transform` | output -> input, array indices | `order="ij"`, matrix and offset side by side |
| Keras `ops.image.affine_transform` | output -> input, pixels (x, y) | default, its first six numbers as (2, 3) |
| dm_pix `affine_transform` | output -> input, (row, column) | `order="ij"`, without the channel axis |

Whole programs, with a recipe for each in `docs/compatibility.md`:

| program | its convention | here |
|---|---|---|
| SciPy `map_coordinates`, `grid_pull` | array indices | `sample(..., units="pixel", order="ij")` |
| Keras `map_coordinates`, RAFT | the same; (x, y) in pixels | the same; `units="pixel"` |
| OpenCV, Keras, TensorFlow Addons | behind a horizon the image goes on, mirrored | `Projective(behind="shown")` |
| clovaai text recognition | half-pixel lattice, aligned corners in the sampler, absolute points | `ThinPlateSpline.two_rows(20, theta_is="points")`, `warp(..., align_corners=True, lattice_align_corners=False)` |
| ASTER | the reverse, points in [0, 1], a clamped grid | `theta_is="points"`, `grid(..., Frame(align_corners=True))`, `sample(image, grid.clamp(-1, 1))` |
| Sonnet v1 constraints | fixed entries | `Affine(fixed=...)` |
| torch-interpol, MONAI push and count | | `splat`, `splat_count` |
| voxelmorph `VecInt`, libcpab | | `compat.vecint`, `compat.cpab_theta` |

Four pairs of points (OpenCV, kornia `get_perspective_transform`; Keras `perspective_transform`) give a matrix of the
same kind; where the second four are the output's corners, the first four, normalized, are `Corners.corners`. Positions
in pixels are a grid after `pixel_to_normalized`, or are read as they are with `sample(..., units="pixel")`: `remap` of OpenCV, and of kornia with `align_corners=True`, has x, y
apart; SciPy `map_coordinates` has array indices. The matrices of kornia are in pixels, so its default
`align_corners=True` shows what ours does, but for reflections. Torch7's grid is (y, x): `order="ij"`. Code that
feeds `linspace(-1, 1)` to a half-pixel sampler is repaired by `change_align_corners`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._checks import check_choice, check_float_tensor, check_size, coordinate_dtype
from .geometry import as_projective, check_matrix, extent, invert_matrix

Size = tuple[int, ...]


def pixel_to_normalized(points: Tensor, size: Size, *, align_corners: bool = False) -> Tensor:
    """Pixel coordinates (pixel centres are integers, the first is 0) to normalized ones.

    Args:
        points: (..., d), ordered (x, y[, z]), in pixels.
        size: ([[D,] H,] W) of the image they lie in.

    Along an axis of one pixel with `align_corners=True` every pixel coordinate lies at 0.

    Example:
        >>> pixel_to_normalized(torch.tensor([[0.0, 0.0]]), (2, 4))
        tensor([[-0.7500, -0.5000]])
    """
    half, centre = _frame(points, size, align_corners)
    return (points - centre) / torch.where(half == 0, torch.inf, half)


def normalized_to_pixel(points: Tensor, size: Size, *, align_corners: bool = False) -> Tensor:
    """Normalized coordinates (..., d) to pixels; the inverse of `pixel_to_normalized`.

    Example:
        >>> normalized_to_pixel(torch.tensor([[-0.75, -0.5]]), (2, 4))
        tensor([[0., 0.]])
    """
    half, centre = _frame(points, size, align_corners)
    return points * half + centre


def _frame(points: Tensor, size: Size, align_corners: bool) -> tuple[Tensor, Tensor]:
    check_float_tensor("points", points, "points (..., d)")
    size = check_size(size)
    if points.shape[-1:] != (len(size),):
        raise ValueError(f"points: expected (..., {len(size)}) for size {size}, got shape {tuple(points.shape)}")
    return _half_and_centre(points, size, align_corners)


def _half_and_centre(like: Tensor, size: Size, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Pixels per normalized unit, and the pixel coordinate of the centre, (d,) each, ordered (x, y[, z])."""
    half = like.new_tensor(extent(size, align_corners=align_corners))
    return half, like.new_tensor([(n - 1) / 2 for n in reversed(size)])


def theta_from_pixel(
    matrix: Tensor,  # (B, d, d+1) or (B, d+1, d+1)
    in_size: Size,
    out_size: Size,
    *,
    direction: Literal["pull", "push"] = "pull",
    order: Literal["xy", "ij"] = "xy",
    align_corners: bool = False,
) -> Tensor:
    """A peer's affine or projective matrix on pixel coordinates, as this package's theta of the same shape.

    Args:
        matrix: (B, d, d+1), or (B, d+1, d+1) for a projective map, d of 1, 2 or 3, acting on pixel coordinates whose
            integers are pixel centres.
        in_size, out_size: ([[D,] H,] W) of the image that is read and of the one that is made.
        direction: "pull" if the matrix maps output pixels to input pixels, "push" if input to output.
        order: "xy" if it acts on (x, y[, z]), "ij" if on array indices ([slice,] row, column).

    Raises:
        ValueError: for a wrong shape, an unknown choice, or a singular matrix with `direction="push"`.

    Example:
        >>> shift = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]])  # reads two pixels to the right
        >>> theta_from_pixel(shift, (8, 8), (8, 8))
        tensor([[[1.0000, 0.0000, 0.5000],
                 [0.0000, 1.0000, 0.0000]]])
    """
    d = _check_conversion("matrix", matrix, in_size, out_size, direction, order)
    m = matrix.to(torch.float64)
    if order == "ij":
        m = _reverse_axes(m, d)
    if direction == "push":
        m = invert_matrix(m)
    half_in, mid_in = _half_and_centre(m, in_size, align_corners)
    half_out, mid_out = _half_and_centre(m, out_size, align_corners)
    m = as_projective(m)
    shift = m[:, :, d:] + (m[:, :, :d] * mid_out).sum(-1, keepdim=True)
    m = torch.cat([m[:, :, :d] * half_out, shift], dim=2)
    per_axis = torch.where(half_in == 0, torch.inf, half_in)[:, None]
    m = torch.cat([(m[:, :d] - mid_in[:, None] * m[:, d:]) / per_axis, m[:, d:]], dim=1)
    return m[:, : matrix.shape[1]].to(coordinate_dtype(matrix))


def theta_to_pixel(
    theta: Tensor,  # (B, d, d+1) or (B, d+1, d+1)
    in_size: Size,
    out_size: Size,
    *,
    direction: Literal["pull", "push"] = "pull",
    order: Literal["xy", "ij"] = "xy",
    align_corners: bool = False,
) -> Tensor:
    """This package's theta as a matrix on pixel coordinates of the same shape; the inverse of `theta_from_pixel`.

    A projective matrix is whole only up to a factor, and its last entry need not be 1.

    Raises:
        ValueError: for a wrong shape, an unknown choice, a singular matrix with `direction="push"`, or an output
            axis of one pixel with `align_corners=True`, which has no scale.
    """
    d = _check_conversion("theta", theta, in_size, out_size, direction, order)
    m = theta.to(torch.float64)
    if align_corners and 1 in out_size:
        raise ValueError(f"out_size: expected no axis of one pixel with align_corners=True, got {tuple(out_size)}")
    half_in, mid_in = _half_and_centre(m, in_size, align_corners)
    half_out, mid_out = _half_and_centre(m, out_size, align_corners)
    m = as_projective(m)
    m = torch.cat([m[:, :d] * half_in[:, None] + mid_in[:, None] * m[:, d:], m[:, d:]], dim=1)
    linear = m[:, :, :d] / half_out
    m = torch.cat([linear, m[:, :, d:] - (linear * mid_out).sum(-1, keepdim=True)], dim=2)[:, : theta.shape[1]]
    if direction == "push":
        m = invert_matrix(m)
    if order == "ij":
        m = _reverse_axes(m, d)
    return m.to(coordinate_dtype(theta))


def change_align_corners(theta: Tensor, in_size: Size, out_size: Size, *, to: bool) -> Tensor:
    """An affine or projective theta made for one pixel convention, as the theta that does the same in the other.

    Args:
        to: the `align_corners` that the result is for; `theta` is for the opposite.
    """
    pixel = theta_to_pixel(theta, in_size, out_size, align_corners=not to)
    return theta_from_pixel(pixel, in_size, out_size, align_corners=to)


def _check_conversion(argument: str, matrix: Tensor, in_size: Size, out_size: Size, direction: str, order: str) -> int:
    d = check_matrix(argument, matrix, projective=True)
    check_size(in_size, d, "in_size")
    check_size(out_size, d, "out_size")
    check_choice("direction", direction, ("pull", "push"))
    check_choice("order", order, ("xy", "ij"))
    return d


def _reverse_axes(matrix: Tensor, d: int) -> Tensor:
    matrix = torch.cat([matrix[:, :d].flip(1), matrix[:, d:]], dim=1)
    return torch.cat([matrix[:, :, :d].flip(2), matrix[:, :, d:]], dim=2)
