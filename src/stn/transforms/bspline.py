"""Free-form deformation: a lattice of control points, and the cubic B-spline through what they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .._checks import check_bound, check_float_tensor, check_number, check_size, coordinate_dtype, describe
from ..coordinates import SQUARE, Coordinates, Frame
from ..geometry import lattice
from .base import AbstractTransform, exact
from .bounds import bounded, unbounded

# Gauss and Legendre's, exact up to degree 7; squares of cubics have 6. As lists, which a compiler takes.
_NODES, _WEIGHTS = (values.tolist() for values in np.polynomial.legendre.leggauss(4))


def bspline_displacement(coefficients: Tensor, points: Tensor) -> Tensor:
    """The cubic B-spline with the given control points, at any points.

    Along each axis the n + 3 control points lie at -1 + (i - 1) * 2 / n: on [-1, 1] with its ends, and one more beyond
    either end. Twice continuously differentiable on [-1, 1]; beyond, the border's values go on. Equal coefficients
    give that value, and coefficients linear in their positions the linear function, exactly.

    Args:
        coefficients: (B, h, w, 2) or (B, d, h, w, 3); each of d, h, w at least 4.
        points: (B, N, d), normalized, (x, y[, z]).

    Returns:
        (B, N, d).

    Raises:
        ValueError: for any other shape or type.

    Example:
        >>> bspline_displacement(torch.full((1, 4, 4, 2), 0.5), torch.zeros(1, 1, 2))
        tensor([[[0.5000, 0.5000]]])

    Source: Rueckert et al. 1999, equation 1.
    """
    d = _check_coefficients(coefficients)
    check_float_tensor("points", points, f"points (B, N, {d})")
    if points.ndim != 3 or points.shape[2] != d or points.shape[0] not in (1, coefficients.shape[0]):
        raise ValueError(f"points: expected ({coefficients.shape[0]}, N, {d}), got shape {tuple(points.shape)}")
    return _evaluate(coefficients, points.to(coordinate_dtype(coefficients)))[0]


def _evaluate(coefficients: Tensor, points: Tensor, *, slopes: bool = False) -> list[Tensor]:
    """The spline's displacement at points (B, N, d), and with `slopes` its derivative along each axis, (x, y[, z])."""
    shape, d = coefficients.shape[1:-1], points.shape[-1]
    # Points go last, so that sums over the 4^d coefficients that matter for each run along memory.
    index = torch.zeros((), dtype=torch.long, device=points.device)
    places = []
    for axis, n in enumerate(shape):
        span, t = _locate(points[..., d - 1 - axis], n - 3)
        taps = span[:, None] + torch.arange(4, device=points.device)[:, None]  # (B, 4, N)
        index = index[..., None, :] * n + taps.reshape(taps.shape[0], *[1] * axis, *taps.shape[1:]) if axis else taps
        places.append(t)
    flat = coefficients.to(points.dtype).flatten(1, -2).transpose(1, 2).contiguous()  # (B, d, number of coefficients)
    index = index.flatten(1)[:, None]
    picked = flat.gather(2, index.expand(flat.shape[0], d, -1))
    sums = [picked.unflatten(2, (*[4] * d, -1))]  # (B, d, [4,] 4, 4, N)
    for axis in reversed(range(d)):  # x, y, z: the value, and the slope along each axis so far
        t, spans = places[axis][:, None], shape[axis] - 3
        t = t.reshape(t.shape[0], *[1] * (axis + 1), t.shape[-1])
        weights = _basis(t, dim=0)
        after = [_weighted(each, weights) for each in sums]
        if slopes:
            x = points[..., d - 1 - axis].reshape(t.shape)
            scale = ((x >= -1) & (x <= 1)).to(t.dtype) * (spans / 2)  # beyond, the border's values go on
            after.append(_weighted(sums[0], _basis(t, 1, dim=0) * scale))
        sums = after
    return [each.transpose(1, 2) for each in sums]


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """The sum of values (..., 4, N) with weights (4, ..., N): (..., N)."""
    total = values[..., 0, :] * weights[0]
    for tap in range(1, 4):
        total = torch.addcmul(total, values[..., tap, :], weights[tap])
    return total


def bspline_grid(coefficients: Tensor, size: tuple[int, ...], *, align_corners: bool = False) -> Tensor:
    """The sampling positions of a cubic B-spline free-form deformation.

    Pull, (x, y[, z]), normalized: position = p + `bspline_displacement`(p) for each pixel centre p of the output, one
    axis after the other.

    Args:
        coefficients: (B, h, w, 2) or (B, d, h, w, 3), as for `bspline_displacement`.
        size: of the output, (H, W) or (D, H, W).

    Returns:
        (B, *size, d), float32 (float64 for float64 coefficients).

    Raises:
        ValueError: for any other shape, type or size.

    Example:
        >>> bspline_grid(torch.full((1, 4, 4, 2), 0.25), (1, 2))
        tensor([[[[-0.2500,  0.2500],
                  [ 0.7500,  0.2500]]]])
    """
    d = _check_coefficients(coefficients)
    size = check_size(size, d, least=0)
    field = coefficients.to(coordinate_dtype(coefficients))
    axes = [lattice(n, align_corners=align_corners, dtype=field.dtype, device=field.device) for n in size]
    with exact(field.device):
        for positions in axes:  # the axis that is summed over comes back last: (B, d, *size) in the end
            field = torch.tensordot(field, _basis_matrix(positions, field.shape[1] - 3), dims=([1], [1]))
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1) + field.movedim(1, -1)


def bspline_bending_energy(coefficients: Tensor) -> Tensor:
    """How much a free-form deformation bends: the mean over the frame of its squared second derivatives.

    The integral over [-1, 1]^d of the sum over all pairs of axes of |second derivative of the displacement|^2, divided
    by the volume 2^d; derivatives by normalized coordinates. Exact, from the products of the basis functions. Zero for
    affine maps alone.

    Args:
        coefficients: (B, h, w, 2) or (B, d, h, w, 3), as for `bspline_displacement`.

    Returns:
        (B,).

    Raises:
        ValueError: for any other shape or type.

    Example:
        >>> x = torch.tensor([-3.0, -1.0, 1.0, 3.0])  # where the control points are; their spline curves by 2
        >>> bspline_bending_energy(torch.stack([x.square().expand(4, 4), torch.zeros(4, 4)], dim=-1)[None])
        tensor([4.])

    Source: Rueckert et al. 1999, equation 3.
    """
    d = _check_coefficients(coefficients)
    field = coefficients.to(coordinate_dtype(coefficients))
    matrices = [_quadrature_matrices(n - 3, field) for n in field.shape[1:-1]]
    total = field.new_zeros(field.shape[0])
    with exact(field.device):
        for first, second in [(i, j) for i in range(d) for j in range(i, d)]:
            values = field
            for axis in range(d):
                order = (axis == first) + (axis == second)
                values = torch.tensordot(values, matrices[axis][order], dims=([1], [1]))
            total = total + (1 if first == second else 2) * values.square().flatten(1).sum(1)
    return total / 2**d


class BSpline(AbstractTransform):
    """Cubic B-spline free-form deformation: theta (B, num_params) = displacements of control points.

    Pull, normalized: p -> p + the spline's displacement at p, twice continuously differentiable on the frame; beyond
    it the border's displacement goes on. theta goes level by level, coarse to fine, and in each point by point,
    (x, y[, z]) of each, row after row as the pixels of an image. Each level halves the distance of the control points;
    the displacements of all levels add. There is no inverse within the family.

    A single level does not fold where every component stays below 0.48 times the distance of its control points in
    2D, 0.40 in 3D (Choi and Lee 2000); that distance is 2 / (n - 1) for n points on the frame.

    Args:
        lattice: control points of the first level on the frame, border to border, (ny, nx) or (nz, ny, nx), at least 2
            along each axis. One more beyond each border belongs to theta: (ny + 2) * (nx + 2) points.
        levels: number of lattices.
        max_offset: bounds every component of every control point, in normalized units, smoothly; so no point moves
            by more than `levels` times as much along an axis. None for no bound.

    Example:
        >>> BSpline((3, 4)).num_params, BSpline((3, 4), levels=2).num_params
        (60, 186)

    Source: Rueckert et al. 1999; several levels: Lee et al. 1997, Schnabel et al. 2001.
    """

    def __init__(self, lattice: tuple[int, ...] = (4, 4), *, levels: int = 1, max_offset: float | None = None) -> None:
        super().__init__()
        if not isinstance(lattice, (tuple, list)) or len(lattice) not in (2, 3):
            raise ValueError(f"lattice: expected (ny, nx) or (nz, ny, nx), got {describe(lattice)}")
        self.lattice = check_size(lattice, len(lattice), "lattice")
        if min(self.lattice) < 2:
            raise ValueError(f"lattice: expected at least 2 control points along each axis, got {self.lattice}")
        check_number("levels", levels, "an int from 1 to 10", lambda n: isinstance(n, int) and 1 <= n <= 10)
        check_bound("max_offset", max_offset)
        self.ndim, self.levels, self.max_offset = len(self.lattice), levels, max_offset
        # Of each level, the points along each axis, those beyond the border included.
        self.shapes = [tuple((n - 1) * 2**level + 3 for n in self.lattice) for level in range(levels)]

    @property
    def num_params(self) -> int:
        return self.ndim * sum(math.prod(shape) for shape in self.shapes)

    def identity(self) -> Tensor:
        return torch.zeros(self.num_params)

    def coefficients(self, theta: Tensor) -> Tensor:
        """theta as one spline on the finest lattice (B, *shape, d), within the bound; all levels in one, exactly."""
        theta = bounded(self.check_theta(theta), self.max_offset)
        total: Tensor | None = None
        for shape, part in zip(
            self.shapes, theta.split([self.ndim * math.prod(s) for s in self.shapes], dim=1), strict=True
        ):
            level = part.reshape(-1, *shape, self.ndim)
            total = level if total is None else _refine(total) + level
        assert total is not None
        return total

    def map_points(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        theta = self.check_theta(theta)
        points = self.check_points(theta, points)
        return points + bspline_displacement(self.coefficients(theta), points)

    def _linearize(self, theta: Tensor, points: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        displacement, *slopes = _evaluate(self.coefficients(theta), points, slopes=True)
        unit = torch.eye(self.ndim, dtype=points.dtype, device=points.device)
        return points + displacement, torch.stack(slopes, dim=-1) + unit

    def coordinates(self, theta: Tensor, size: tuple[int, ...], frame: Frame = SQUARE) -> Coordinates:
        grid = bspline_grid(self.coefficients(theta), size, align_corners=frame.align_corners)
        return Coordinates("grid", size, grid)

    def fit(self, displacement: Callable[[Tensor], Tensor]) -> Tensor:
        """The theta that moves so as many points as the finest level has coefficients; it holds the other levels."""
        # The points on the frame, and one more next to each end.
        axes = [lattice(n - 2, align_corners=True, dtype=torch.float64) for n in self.shapes[-1]]
        axes = [torch.cat([a, a[:1] + (a[1] - a[0]) / 3, a[-1:] - (a[1] - a[0]) / 3]) for a in axes]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)
        field = displacement(points.reshape(-1, self.ndim))
        field = field.reshape(-1, *points.shape)
        for axis, at in enumerate(axes, start=1):
            rows = field.movedim(axis, -1)[..., None]
            field = torch.linalg.solve(_basis_matrix(at.to(field), len(at) - 3), rows)[..., 0].movedim(-1, axis)
        last = unbounded(field.flatten(1), self.max_offset, "max_offset")
        return torch.nn.functional.pad(last, (self.num_params - last.shape[1], 0))

    def bending_energy(self, theta: Tensor) -> Tensor:
        """`bspline_bending_energy` of the whole deformation, (B,)."""
        return bspline_bending_energy(self.coefficients(theta))

    def extra_repr(self) -> str:
        shown = [f"{self.lattice}"] + ([] if self.levels == 1 else [f"levels={self.levels}"])
        return ", ".join(shown + ([] if self.max_offset is None else [f"max_offset={self.max_offset:g}"]))


def _check_coefficients(coefficients: Tensor) -> int:
    check_float_tensor("coefficients", coefficients, "control points (B, *shape, d)")
    d = coefficients.ndim - 2
    if d not in (2, 3) or coefficients.shape[-1] != d or min(coefficients.shape[1:-1]) < 4:
        raise ValueError(
            f"coefficients: expected (B, h, w, 2) or (B, d, h, w, 3), at least 4 points along each axis, "
            f"got shape {tuple(coefficients.shape)}"
        )
    return d


def _locate(x: Tensor, spans: int) -> tuple[Tensor, Tensor]:
    """The span that x lies in and where in it, 0 to 1."""
    u = ((x + 1) * (spans / 2)).clamp(0, spans)
    low = u.detach().floor().clamp(max=spans - 1)
    return low.nan_to_num(0.0).long(), u - low


def _basis(t: Tensor, derivative: int = 0, *, dim: int = -1) -> Tensor:
    """The four cubic B-splines that are not zero in a span, or a derivative by t: (..., 4), or along another `dim`."""
    s = 1 - t
    if derivative == 0:
        return torch.stack([s**3, (3 * t - 6) * t * t + 4, (3 * s - 6) * s * s + 4, t**3], dim) / 6
    if derivative == 1:
        return torch.stack([-s * s, (3 * t - 4) * t, (4 - 3 * s) * s, t * t], dim) / 2
    return torch.stack([s, 3 * t - 2, 3 * s - 2, t], dim)


def _basis_matrix(x: Tensor, spans: int, derivative: int = 0) -> Tensor:
    """Every basis function at every x (N,): (N, spans + 3)."""
    span, t = _locate(x, spans)
    taps = span[:, None] + torch.arange(4, device=x.device)
    values = _basis(t, derivative) * (spans / 2) ** derivative
    return x.new_zeros(x.shape[0], spans + 3).scatter(1, taps, values)


def _quadrature_matrices(spans: int, like: Tensor) -> list[Tensor]:
    """Every basis function, its first and its second derivative where Gauss and Legendre look, times the root of their
    weights: the sum of squares is the integral over [-1, 1]."""
    t = (torch.tensor(_NODES, dtype=torch.float64) + 1) / 2
    root = (torch.tensor(_WEIGHTS, dtype=torch.float64) / spans).sqrt().repeat(spans)
    x = ((torch.arange(spans, dtype=torch.float64)[:, None] + t) * (2 / spans) - 1).flatten()
    return [(root[:, None] * _basis_matrix(x, spans, derivative)).to(like) for derivative in range(3)]


def _refine(coefficients: Tensor) -> Tensor:
    """The same spline on a lattice of half the distance: (B, *shape, d) -> (B, *finer, d)."""
    for axis in range(1, coefficients.ndim - 1):
        n = coefficients.shape[axis]
        before, at, after = (coefficients.narrow(axis, k, n - 2) for k in range(3))
        on = (before + 6 * at + after) / 8
        between = (coefficients.narrow(axis, 0, n - 1) + coefficients.narrow(axis, 1, n - 1)) / 2
        # between, on, between, on, ..., between
        pairs = torch.stack([between.narrow(axis, 0, n - 2), on], dim=axis + 1).flatten(axis, axis + 1)
        coefficients = torch.cat([pairs, between.narrow(axis, n - 2, 1)], dim=axis)
    return coefficients
