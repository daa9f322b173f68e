"""The ground that families, converters and backends stand on: lattices of pixel centres, and maps of points.

Coordinates are normalized to [-1, 1] per axis and ordered (x, y[, z]); sizes are ([[D,] H,] W); maps are a pull, from the
output to the input. See `stn.conventions` for the frame and for how to come into it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import check_batches, check_float_tensor, check_size, coordinate_dtype, describe

HORIZON = 1e-4  # denominators up to this part of the largest entry of their row are on the horizon
_BEHIND = 1 / HORIZON  # where points on the horizon and behind it are sent


# Lattices


def extent(size: tuple[int, ...], *, align_corners: bool = False) -> tuple[float, ...]:
    """Pixels per normalized unit along each axis, ordered (x, y[, z]): W/2, or (W-1)/2 with `align_corners`."""
    size = check_size(size)
    return tuple((n - 1) / 2 if align_corners else n / 2 for n in reversed(size))


def lattice(
    n: int, *, align_corners: bool = False, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """The normalized coordinates (n,) of the pixel centres along an axis of `n` pixels; one pixel lies at 0."""
    traced = isinstance(n, Tensor) and torch.jit.is_tracing()
    if not traced and (isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) or n < 0):
        raise ValueError(f"n: expected an int of at least 0, got {describe(n)}")
    # Integers over an integer: exactly symmetric, and within one rounding of the true value.
    steps = torch.arange(1 - n, max(n, 1 - n), 2, dtype=dtype or torch.float32, device=device)
    return steps / max(n - 1, 1) if align_corners else steps / max(n, 1)


def lattice_points(like: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """The pixel centres of an output, (1, N, d), row by row."""
    axes = [lattice(n, align_corners=align_corners, dtype=like.dtype, device=like.device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).reshape(1, -1, len(size))


# Affine and projective maps


def map_affine(matrix: Tensor, points: Tensor) -> Tensor:
    """Points (B, N, d) through affine maps (B, d, d+1)."""
    return (points[:, :, None, :] * matrix[:, None, :, :-1]).sum(-1) + matrix[:, None, :, -1]


def map_projective(matrix: Tensor, points: Tensor, *, two_sided: bool = False) -> Tensor:
    """Points (B, N, d) through projective maps (B, d+1, d+1) whose denominators are positive on the visible side."""
    return divide(map_affine(matrix, points), matrix, two_sided=two_sided)


def affine_positions(matrix: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """Affine maps (B, k, d+1) on the lattice of `size`: (B, *size, k). Only the last sum is of full size."""
    d, k = len(size), matrix.shape[1]
    total = matrix[:, :, d].reshape(-1, *[1] * d, k)
    for axis in reversed(range(d)):  # z, y, x: coarse to fine
        coordinate = lattice(size[d - 1 - axis], align_corners=align_corners, dtype=matrix.dtype, device=matrix.device)
        shape = [1] * (d + 2)
        shape[d - axis] = -1
        total = total + coordinate.reshape(shape) * matrix[:, :, axis].reshape(-1, *[1] * d, k)
    return total


def projective_positions(
    matrix: Tensor, size: tuple[int, ...], align_corners: bool, *, two_sided: bool = False
) -> Tensor:
    """Projective maps (B, d+1, d+1), whose denominators are positive on the visible side, on the lattice of `size`."""
    return divide(affine_positions(matrix, size, align_corners), matrix, two_sided=two_sided)


def basis_positions(basis: Tensor, coefficients: Tensor, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """basis (N, K) @ coefficients (B, K, d), in float64 because large terms may cancel, as positions (B, *size, d)."""
    grid = torch.einsum("nk,bkd->bnd", basis.to(torch.float64), coefficients.to(torch.float64))
    return grid.to(dtype, memory_format=torch.contiguous_format).unflatten(1, size)


def field_positions(field: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """The lattice of `size`, displaced by a field (B, *any, d) that is linear between its points, whose border ones lie on -1 and 1:
    positions (B, *size, d). One axis after the other."""
    d = len(size)
    for axis, n_out in enumerate(size):
        position = lattice(n_out, align_corners=align_corners, dtype=field.dtype, device=field.device)
        n = field.shape[axis + 1]
        position = (position + 1) * ((n - 1) / 2)
        low = position.floor()
        first = low.long()
        weight = (position - low).reshape(-1, *[1] * (d - axis))
        after = field.index_select(axis + 1, (first + 1).clamp(max=n - 1))
        field = torch.lerp(field.index_select(axis + 1, first), after, weight)
    return lattice_points(field, size, align_corners).reshape(*size, d) + field


def horizon(like: Tensor, matrix: Tensor) -> Tensor:
    """The denominators that are taken as 0, one for each matrix, as (B, 1, ...) to compare with `like[..., -1]`."""
    return HORIZON * matrix[:, -1].abs().amax(1).reshape(-1, *[1] * max(like.ndim - 2, 0))


def divide(h: Tensor, matrix: Tensor, *, two_sided: bool = False) -> Tensor:
    """Numerators and denominator (B, ..., d+1) to positions (B, ..., d): NaN, without a gradient, where one is not finite.

    Far away on the horizon and behind it; with `two_sided` where there is nothing to divide by alone.
    """
    numerator, denominator = h[..., :-1], h[..., -1:]
    lost = ~h.isfinite().all(-1, keepdim=True)
    hidden = denominator == 0 if two_sided else denominator <= horizon(h, matrix)[..., None]
    far = torch.where(numerator.detach().signbit(), -_BEHIND, _BEHIND).to(h.dtype)
    safe = torch.where(lost, 0.0, numerator) / torch.where(lost | hidden, 1.0, denominator)
    return torch.where(lost, torch.nan, torch.where(hidden, far, safe))


def facing(matrix: Tensor) -> Tensor:
    """The same maps (B, d+1, d+1), signed so that the denominator is positive at the centre."""
    return torch.where(matrix[:, -1:, -1:] < 0, -matrix, matrix)


def as_projective(matrix: Tensor) -> Tensor:
    """Affine maps (B, d, d+1) with their last row, (B, d+1, d+1); projective ones as they are."""
    d = matrix.shape[2] - 1
    last = torch.eye(d + 1, dtype=matrix.dtype, device=matrix.device)[matrix.shape[1] :]
    return torch.cat([matrix, last.expand(matrix.shape[0], -1, -1)], dim=1)


def invert_matrix(matrix: Tensor) -> Tensor:
    """The inverse of affine maps (B, d, d+1) or projective maps (B, d+1, d+1), differentiable.

    Raises:
        ValueError: where a matrix is singular (eager only: a compiled graph gives infinities or NaN).

    Example:
        >>> invert_matrix(torch.tensor([[[2.0, 0.0, 1.0], [0.0, 4.0, 2.0]]]))
        tensor([[[ 0.5000,  0.0000, -0.5000],
                 [ 0.0000,  0.2500, -0.5000]]])
    """
    d = check_matrix("matrix", matrix, projective=True)
    m = matrix.to(coordinate_dtype(matrix))
    affine = m.shape[1] == d
    inverse, singular = torch.linalg.inv_ex(m[:, :, :d] if affine else m)
    if not torch.compiler.is_compiling() and bool((singular != 0).any()):
        raise ValueError(f"matrix: expected invertible maps, got a singular one at index {int(singular.nonzero()[0])}")
    if not affine:
        return inverse
    shift = -(inverse * m[:, None, :, d]).sum(-1, keepdim=True)
    return torch.cat([inverse, shift], dim=-1)


def compose_matrices(a: Tensor, b: Tensor) -> Tensor:
    """The map p -> a(b(p)) of affine maps (B, d, d+1), projective maps (B, d+1, d+1), or one of each.

    As warps: the image is warped by `a`, then by `b`. The result is affine where both are, else projective.
    """
    d = check_matrix("a", a, projective=True)
    if check_matrix("b", b, projective=True) != d:
        raise ValueError(f"b: expected maps in {d}D as a, got shape {tuple(b.shape)}")
    check_batches("a", a, "b", b)
    rows = max(a.shape[1], b.shape[1])
    # Multiply and add rather than matmul, which autocast would run in half precision.
    product = (as_projective(a)[:, :, :, None] * as_projective(b)[:, None, :, :]).sum(2)
    return product[:, :rows]


def check_matrix(argument: str, matrix: Tensor, *, projective: bool = False) -> int:
    """The dimension d of affine maps (B, d, d+1), with `projective` also of (B, d+1, d+1), or a ValueError."""
    expected = "affine maps (B, d, d+1)" + projective * " or projective maps (B, d+1, d+1)"
    check_float_tensor(argument, matrix, expected)
    d = matrix.shape[-1] - 1 if matrix.ndim == 3 else 0
    if d not in (1, 2, 3) or matrix.shape[1] not in ((d, d + 1) if projective else (d,)):
        raise ValueError(f"{argument}: expected {expected} with d of 1, 2 or 3, got shape {tuple(matrix.shape)}")
    return d


# Any map


def derivative(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The derivative (B, N, d, d) of a function of points (B, N, d) that maps each by itself, one row an output."""
    return linearized(function, points)[1]


def linearized(function: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    """What such a function makes of points, (B, N, d), and its `derivative` there."""
    values, pull, *_ = torch.func.vjp(function, points)
    units = torch.eye(points.shape[-1], dtype=points.dtype, device=points.device)
    return values, torch.stack([pull(unit.expand_as(points))[0] for unit in units], dim=-2)


def linearized_once(function: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    """`linearized` where no derivative of either is asked for: without transforms, which know no fused backward."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        values = function(points)
        if not values.requires_grad:  # a constant
            return values, torch.zeros_like(points)[..., None].expand(*points.shape, points.shape[-1])
        rows = [
            torch.autograd.grad(row.sum(), points, retain_graph=True, materialize_grads=True)[0]
            for row in values.unbind(-1)
        ]
    return values.detach(), torch.stack(rows, dim=-2)


def determinants(matrices: Tensor) -> Tensor:
    """Of matrices (..., d, d), d of 1 to 3. Written out: exact, with a gradient where one is singular, and no small
    factorizations."""
    first, *others = matrices.unbind(-2)
    if not others:
        return first[..., 0]
    if len(others) == 1:
        return first[..., 0] * others[0][..., 1] - first[..., 1] * others[0][..., 0]
    return (first * torch.linalg.cross(*others)).sum(-1)


def differences(values: Tensor, axis: int) -> Tensor:
    """How much values change for one step along an axis: the mean of the steps from the one before and to the one after;
    of those that there are and that are finite, 0 where there is none.

    Example:
        >>> differences(torch.tensor([0.0, 1.0, 4.0, torch.nan]), 0)
        tensor([1., 2., 3., 0.])
    """
    step = values.diff(dim=axis)
    known = step.isfinite()
    none = torch.zeros_like(values.narrow(axis, 0, min(values.shape[axis], 1)))
    step = torch.where(known, step, 0.0)
    before, after = torch.cat([none, step], axis), torch.cat([step, none], axis)
    counted = known.to(values.dtype)
    count = torch.cat([none, counted], axis) + torch.cat([counted, none], axis)
    return (before + after) / count.clamp_min(1.0)


def bounding_boxes(points: Tensor) -> Tensor:
    """The upright boxes (B, N, 2 d) around points (B, N, M, d)."""
    return torch.cat([points.amin(2), points.amax(2)], dim=-1)
