"""Exact behaviour of older packages, for whoever has weights trained with them. New code wants `stn.warp`.

The `stn` package for TensorFlow (1.0.1) samples at 0.5 (x + 1) (W - 2), one pixel too few, and computes the weights
after clipping the corners, so that the last row and column come out as zero: its identity is not the identity,
[0, 1, 2, 3, 4] -> [0, 0.75, 1.5, 2.25, 3]. Here these numbers are kept.

voxelmorph integrates velocities that are zero outside of the image, from a short step that is the velocity itself; ours go
on beyond the border, from the midpoint. libcpab finds its basis by an SVD, so its theta means something with that basis alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import (
    check_batches,
    check_float_tensor,
    check_image,
    check_number,
    check_size,
    coordinate_dtype,
    describe,
)
from .channels_last import check_image_last
from .geometry import lattice_points
from .sampling import sample
from .transforms import CPAB


def spatial_transformer_network(
    input_fmap: Tensor,  # (B, H, W, C)
    theta: Tensor,  # (B, 6)
    out_dims: tuple[int, int] | None = None,
) -> Tensor:
    """The old package's `spatial_transformer_network`, to float rounding.

    Returns:
        (B, *out_dims, C), differentiable in both arguments.

    Example:
        >>> row = torch.arange(5.0).expand(1, 5, 5)[..., None]
        >>> spatial_transformer_network(row, torch.tensor([[1.0, 0, 0, 0, 1, 0]]))[0, 0, :, 0]
        tensor([0.0000, 0.7500, 1.5000, 2.2500, 3.0000])
    """
    check_image_last(input_fmap)
    size = tuple(input_fmap.shape[1:3]) if out_dims is None else check_size(out_dims, 2, "out_dims")
    check_float_tensor("theta", theta, "(B, 6) parameters")
    if theta.shape != (input_fmap.shape[0], 6):
        raise ValueError(f"theta: expected ({input_fmap.shape[0]}, 6), got shape {tuple(theta.shape)}")
    check_batches("input_fmap", input_fmap, "theta", theta)
    grid = affine_grid_generator(size[0], size[1], theta)
    return bilinear_sampler(input_fmap, grid[:, 0], grid[:, 1])


def affine_grid_generator(height: int, width: int, theta: Tensor) -> Tensor:
    """The old package's grid (B, 2, H, W): x, then y, on a lattice from -1 to 1 inclusive."""
    check_size((height, width), 2, "(height, width)")
    check_float_tensor("theta", theta, "(B, 6) parameters")
    if theta.ndim != 2 or theta.shape[1] != 6:
        raise ValueError(f"theta: expected (B, 6), got shape {tuple(theta.shape)}")
    dtype = coordinate_dtype(theta)
    x = torch.linspace(-1, 1, width, dtype=dtype, device=theta.device)
    y = torch.linspace(-1, 1, height, dtype=dtype, device=theta.device)
    m = theta.to(dtype).reshape(-1, 2, 3, 1, 1)
    return m[:, :, 0] * x + m[:, :, 1] * y[:, None] + m[:, :, 2]


def bilinear_sampler(img: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The old package's sampler: img (B, H, W, C) at x, y (B, Ho, Wo) in [-1, 1] -> (B, Ho, Wo, C)."""
    check_image_last(img, "img")
    batch, height, width, channels = img.shape
    for argument, value in (("x", x), ("y", y)):
        check_float_tensor(argument, value, "positions (B, Ho, Wo)")
        if value.ndim != 3 or value.shape[0] != batch or value.shape != x.shape:
            raise ValueError(f"{argument}: expected ({batch}, Ho, Wo), got shape {tuple(value.shape)}")
        check_batches("img", img, argument, value)
    x, y = 0.5 * (x + 1) * (width - 2), 0.5 * (y + 1) * (height - 2)
    flat = img.to(x.dtype).reshape(batch, height * width, channels)
    out = torch.zeros((), dtype=x.dtype, device=img.device)
    for column, weight_x in _corners(x, width):
        for row, weight_y in _corners(y, height):
            index = (row * width + column).flatten(1)[..., None].expand(-1, -1, channels)
            out = out + flat.gather(1, index).reshape(*x.shape, channels) * (weight_x * weight_y)[..., None]
    return out.to(img.dtype)


def vecint(
    velocity: Tensor,  # (B, d, [[D,] H,] W)
    steps: int = 7,
) -> Tensor:
    """voxelmorph's `VecInt`: the displacements that following a velocity field for one unit of time amounts to.

    Velocities and displacements in pixels, the component of the first axis first (row, then column). Scaling and squaring,
    as `stn.transforms.VelocityField`, but starting with `velocity / 2**steps`, and with zeros outside of the image.

    Returns:
        (B, d, [[D,] H,] W), float32 (float64 for a float64 velocity). As a grid: the lattice of pixels plus the
        displacements, channels last, for `stn.sample(..., units="pixel", order="ij")`.

    Raises:
        ValueError: for any other shape, type or number of steps.

    Example:
        >>> vecint(torch.full((1, 1, 3), 0.5), steps=1)
        tensor([[[0.5000, 0.5000, 0.4375]]])

    Source: Dalca et al. 2018; Balakrishnan et al. 2019.
    """
    size = check_image(velocity, "velocity")
    if velocity.shape[1] != len(size):
        raise ValueError(f"velocity: expected {len(size)} channels for size {size}, got shape {tuple(velocity.shape)}")
    check_number("steps", steps, "an int from 0 to 30", lambda n: isinstance(n, int) and 0 <= n <= 30)
    displacement = velocity.to(coordinate_dtype(velocity)) / 2**steps
    lattice = lattice_points(displacement, size, True).reshape(1, *size, len(size))
    pixels = displacement.new_tensor([max(n - 1, 1) / 2 for n in reversed(size)])
    for _ in range(steps):
        grid = lattice + displacement.movedim(1, -1).flip(-1) / pixels
        displacement = displacement + sample(displacement, grid, align_corners=True)
    return displacement


def cpab_theta(
    cells: Tensor,  # (B, cells, d, d+1)
    transform: CPAB,
) -> Tensor:
    """libcpab's velocity fields as theta of `stn.CPAB`.

    libcpab's theta are coefficients in a basis that its SVD has chosen; the fields themselves, the affine map of each cell on
    the frame [0, 1], are `cells = (basis @ theta.T).T.reshape(B, -1, d, d + 1)` with its `params.basis`. They are found
    here exactly: fields of one tessellation are the same space.

    Args:
        cells: in libcpab's order: row after row of rectangles, and in each the triangles at the top, right, bottom and left.
        transform: of the same tessellation (its `tess_size` is [nx, ny], ours (ny, nx)) and constraints. It follows the
            field exactly, or in the steps of `stn.CPAB`; libcpab's own steps are of another kind, and approximate the same flow.

    Returns:
        (B, num_params).

    Raises:
        ValueError: for wrong shapes, and for fields that the family does not have: other constraints, another tessellation
            or cells in another order, of which the maps do not fit together at the vertices.

    Source: Freifeld et al. 2017; Detlefsen 2018 (libcpab).
    """
    if not isinstance(transform, CPAB):
        raise ValueError(f"transform: expected a stn.CPAB, got {describe(transform)}")
    d = transform.ndim
    check_float_tensor("cells", cells, f"affine maps (B, cells, {d}, {d + 1})")
    basis = transform.coefficients(torch.eye(transform.num_params, dtype=torch.float64, device=cells.device))
    if cells.ndim != 4 or cells.shape[1:] != basis.shape[1:]:
        raise ValueError(f"cells: expected (B, {', '.join(map(str, basis.shape[1:]))}), got shape {tuple(cells.shape)}")
    # p on [-1, 1] is 2 q - 1 with q on [0, 1], so the velocity is 2 (A (p + 1) / 2 + b).
    there = cells.to(torch.float64)
    linear, constant = there[..., :d], there[..., d]
    ours = torch.cat([linear, (linear.sum(-1) + 2 * constant)[..., None]], dim=-1)
    theta = torch.einsum("bcij,pcij->bp", ours, basis)
    missed = (transform.coefficients(theta) - ours).abs()
    tolerance = (1e-4 if coordinate_dtype(cells) == torch.float32 else 1e-9) * ours.abs().amax().clamp_min(1.0)
    if not torch.compiler.is_compiling() and bool((~(missed <= tolerance)).any()):
        image, cell = (~(missed <= tolerance)).nonzero()[0, :2].tolist()
        raise ValueError(f"cells: expected fields of {transform}, got one that is not at index {image}, cell {cell}")
    return theta.to(coordinate_dtype(cells))


def _corners(position: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    low = position.detach().floor()
    first, second = (p.clamp(0, n - 1).nan_to_num(0.0) for p in (low, low + 1))
    return [(first.long(), second - position), (second.long(), position - first)]
