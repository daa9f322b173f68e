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
| ITK, ANTs, FSL, nibabel in millimetres | output -> input, world (x, y, z) | `theta_from_world`, with both voxel-to-world matrices |
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

from typing import Any, Literal

import torch
from torch import Tensor

from ._checks import check_choice, check_float_tensor, check_size, coordinate_dtype, describe
from .geometry import as_projective, check_matrix, compose_matrices, extent, invert_matrix, map_affine

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


def world_to_normalized(points: Tensor, world: Any, size: Size, *, align_corners: bool = False) -> Tensor:
    """World coordinates, such as millimetres in a scanner, to normalized ones of an image.

    Args:
        points: (..., d), ordered (x, y[, z]), in the world.
        world: the image's pixel-to-world matrix (d+1, d+1), as `nibabel`'s `affine`: from pixel coordinates
            (x, y[, z]), whose integers are pixel centres, to the world. A tensor or an array.
        size: ([D,] H, W) of the image. Of an array that nibabel gives, which is indexed (x, y, z), that is the shape
            backwards; `stn.volumes.load` gives it so.

    Raises:
        ValueError: for wrong shapes and types, and for a matrix that is not finite, singular or not affine.

    Example:
        >>> world = torch.tensor([[1.0, 0, 0, -10], [0, 1, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])  # 1 x 1 x 3 mm
        >>> world_to_normalized(torch.tensor([[-10.0, -20.0, 8.0]]), world, (2, 4, 4))
        tensor([[-0.7500, -0.7500,  0.5000]])
    """
    matrix = check_world("world", world, len(check_size(size)))
    check_float_tensor("points", points, "points (..., d)")
    if points.shape[-1:] != (len(size),):
        raise ValueError(f"points: expected (..., {len(size)}) for size {size}, got shape {tuple(points.shape)}")
    pixels = map_affine(invert_matrix(matrix[None, :-1]).to(points.device), points.double().reshape(1, -1, len(size)))
    found = pixel_to_normalized(pixels, size, align_corners=align_corners)
    return found.reshape(points.shape).to(coordinate_dtype(points))


def normalized_to_world(points: Tensor, world: Any, size: Size, *, align_corners: bool = False) -> Tensor:
    """Normalized coordinates (..., d) of an image to those of the world; the inverse of `world_to_normalized`.

    Example:
        >>> world = torch.diag(torch.tensor([1.0, 1, 3, 1]))  # voxels of 1 x 1 x 3 mm, the first at the origin
        >>> normalized_to_world(torch.zeros(1, 3), world, (5, 5, 5))
        tensor([[2., 2., 6.]])
    """
    matrix = check_world("world", world, len(check_size(size)))
    pixels = normalized_to_pixel(points.double(), size, align_corners=align_corners).reshape(1, -1, len(size))
    found = map_affine(matrix[None, :-1].to(points.device), pixels)
    return found.reshape(points.shape).to(coordinate_dtype(points))


def theta_from_world(
    matrix: Tensor,  # (B, d, d+1) or (B, d+1, d+1)
    in_world: Any,
    in_size: Size,
    out_world: Any,
    out_size: Size,
    *,
    direction: Literal["pull", "push"] = "pull",
    align_corners: bool = False,
) -> Tensor:
    """An affine or projective map of world coordinates, such as millimetres, as this package's theta of the same shape.

    The identity brings an image onto the lattice of another as the two lie in the world: resampling.

    Args:
        matrix: (B, d, d+1) or (B, d+1, d+1), on (x, y[, z]) of the world.
        in_world, out_world: pixel-to-world matrices (d+1, d+1), as of `world_to_normalized`, of the image that is read
            and of the one that is made.
        in_size, out_size: their sizes ([D,] H, W).
        direction: "pull" if the matrix maps points of the output to points of the input, as transforms of ITK do.

    Raises:
        ValueError: as `theta_from_pixel` and `world_to_normalized`.

    Example:
        >>> fine, coarse = torch.eye(4), torch.diag(torch.tensor([1.0, 1, 3, 1]))
        >>> theta_from_world(torch.eye(3, 4)[None], coarse, (4, 9, 9), fine, (10, 9, 9)).round(decimals=3)[0, 2]
        tensor([0.0000, 0.0000, 0.8330, 0.0000])
    """
    d = check_matrix("matrix", matrix, projective=True)
    to_pixel = invert_matrix(check_world("in_world", in_world, d)[None, :-1])
    to_world = check_world("out_world", out_world, d)[None, :-1]
    check_choice("direction", direction, ("pull", "push"))
    m = matrix.to("cpu", torch.float64)
    if direction == "push":
        m = invert_matrix(m)
    pixels = compose_matrices(compose_matrices(to_pixel, m), to_world)
    theta = theta_from_pixel(pixels, in_size, out_size, align_corners=align_corners)
    return theta.to(matrix.device, coordinate_dtype(matrix))


def theta_to_world(
    theta: Tensor,  # (B, d, d+1) or (B, d+1, d+1)
    in_world: Any,
    in_size: Size,
    out_world: Any,
    out_size: Size,
    *,
    direction: Literal["pull", "push"] = "pull",
    align_corners: bool = False,
) -> Tensor:
    """An affine or projective theta as a map of world coordinates; the inverse of `theta_from_world`.

    Example:
        >>> world = torch.diag(torch.tensor([1.0, 1, 3, 1]))
        >>> shift = torch.eye(3, 4)[None] + torch.tensor([0, 0, 0, 1.0]) * torch.tensor([0.0, 0, 0.5])[:, None]
        >>> theta_to_world(shift, world, (4, 8, 8), world, (4, 8, 8))[0, 2]  # reads 3 mm further up
        tensor([0., 0., 1., 3.])
    """
    d = check_matrix("theta", theta, projective=True)
    from_pixel = check_world("in_world", in_world, d)[None, :-1]
    to_pixel = invert_matrix(check_world("out_world", out_world, d)[None, :-1])
    check_choice("direction", direction, ("pull", "push"))
    pixels = theta_to_pixel(theta.to("cpu", torch.float64), in_size, out_size, align_corners=align_corners)
    m = compose_matrices(compose_matrices(from_pixel, pixels), to_pixel)
    if direction == "push":
        m = invert_matrix(m)
    return m.to(theta.device, coordinate_dtype(theta))


def spacing_of(world: Any) -> tuple[float, ...]:
    """The lengths of a pixel's sides along its own axes (x, y[, z]), of a pixel-to-world matrix (d+1, d+1).

    Example:
        >>> spacing_of(torch.tensor([[0.0, -2, 0, 7], [1, 0, 0, 7], [0, 0, 3, 7], [0, 0, 0, 1]]))
        (1.0, 2.0, 3.0)
    """
    return tuple(check_world("world", world)[:-1, :-1].norm(dim=0).tolist())


def check_world(argument: str, world: Any, d: int | None = None) -> Tensor:
    """A pixel-to-world matrix (d+1, d+1) in float64 on the CPU, or a ValueError."""
    expected = "a pixel-to-world matrix (d+1, d+1)" if d is None else f"a pixel-to-world matrix ({d + 1}, {d + 1})"
    try:
        matrix = torch.as_tensor(world).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{argument}: expected {expected}, got {describe(world)}") from None
    n = matrix.shape[0] if matrix.ndim == 2 else 0
    if n not in (2, 3, 4) or matrix.shape[1] != n or d not in (None, n - 1):
        raise ValueError(f"{argument}: expected {expected}, got {describe(world)}")
    last = torch.eye(n, dtype=torch.float64)[-1]
    if not bool(matrix.isfinite().all()) or not torch.equal(matrix[-1], last):
        raise ValueError(
            f"{argument}: expected {expected}, finite, with a last row of 0 ... 0 1, got {matrix.tolist()}"
        )
    if float(torch.linalg.det(matrix)) == 0:
        raise ValueError(f"{argument}: expected {expected} that is invertible, got {matrix.tolist()}")
    return matrix


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
