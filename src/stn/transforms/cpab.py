"""CPAB: following a continuous velocity field that is affine in each cell of a tessellation. It cannot fold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .._checks import check_choice, check_flag, check_number, check_size, describe
from .._tracing import is_portable
from ..coordinates import SQUARE, Frame
from ..ops.cpab import flow
from ..tessellation import count, simplices
from .base import AbstractTransform, constants, exact

_STEPS = 10  # in 2D and 3D, where no native code can run


def cpab_basis(tessellation: tuple[int, ...], *, zero_boundary: bool = True, volume_preserving: bool = False) -> Tensor:
    """An orthonormal basis of the continuous velocity fields that are affine in each cell.

    The frame [-1, 1]^d is divided evenly into `tessellation` intervals (nx,), rectangles (ny, nx) or boxes
    (nz, ny, nx). Intervals are cells; a rectangle is four triangles about its centre: top, right, bottom, left; a box
    is five tetrahedra, the one that touches no corner of three faces first, mirrored from each box to the next so that
    their faces fit. In a cell the velocity at p is A (p, 1) with A of shape (d, d+1).

    Such a field is known by its velocities at the vertices, so there are d times as many dimensions as vertices:
    n + 1 in 1D, 2 ((nx+1)(ny+1) + nx ny) in 2D, 3 (nx+1)(ny+1)(nz+1) in 3D. `zero_boundary` takes away the
    components that point through the frame's border: n - 1 dimensions in 1D.

    The basis spans the null space of the constraints that Freifeld et al. write down (each pair of cells agrees at the
    vertices it shares; nothing flows through the border; no divergence). Of all its orthonormal bases this is the one
    closest to the velocities at single vertices, so each parameter acts about one vertex, along one axis, and the
    result depends on no solver's choice; with `volume_preserving` those are projected, and made orthonormal in order.

    Args:
        zero_boundary: nothing flows through the border of the frame; along it things may move.
        volume_preserving: no divergence in any cell, so that the warp keeps areas, or volumes.

    Returns:
        (dimensions, cells, d, d+1), float64, orthonormal over the last three.

    Raises:
        ValueError: for anything but one to three positive ints, and where only the field of zero is left.

    Example:
        >>> cpab_basis((5,)).shape, cpab_basis((2, 2), zero_boundary=False).shape
        (torch.Size([4, 5, 1, 2]), torch.Size([26, 16, 2, 3]))

    Source: Freifeld et al. 2015, 2017.
    """
    tessellation = _check_tessellation(tessellation, zero_boundary, volume_preserving)
    _, cells, inverses = _tessellate(tessellation)
    at_vertices = _vertex_basis(tessellation, zero_boundary, volume_preserving)
    return _cell_coefficients(at_vertices, cells, inverses)


def cpab_velocity(coefficients: Tensor, points: Tensor, tessellation: tuple[int, ...]) -> Tensor:
    """The velocities of fields given cell by cell; outside of the frame that of the nearest point of the frame.

    Args:
        coefficients: (B, cells, d, d+1), in the order of `cpab_basis`.
        points: (B, N, d), of the same type.

    Returns:
        (B, N, d).

    Raises:
        ValueError: for any other shape.

    Example:
        >>> stretch = torch.tensor([[[[2.0, 1.0]]]])
        >>> cpab_velocity(stretch, torch.tensor([[[0.5], [3.0]]]), (1,))
        tensor([[[2.],
                 [3.]]])
    """
    tessellation = _check_tessellation(tessellation)
    d = len(tessellation)
    cells = count(tessellation)
    if coefficients.shape[1:] != (cells, d, d + 1):
        raise ValueError(f"coefficients: expected (B, {cells}, {d}, {d + 1}), got shape {tuple(coefficients.shape)}")
    if points.ndim != 3 or points.shape[2] != d or points.shape[0] not in (1, coefficients.shape[0]):
        raise ValueError(f"points: expected ({coefficients.shape[0]}, N, {d}), got shape {tuple(points.shape)}")
    return _apply_cells(coefficients, points.expand(coefficients.shape[0], -1, -1), tessellation)


def cpab_flow_1d(nodes: Tensor, points: Tensor) -> Tensor:
    """Where points get in one unit of time in a velocity that is linear between evenly spaced nodes. Exact.

    In an interval where the velocity is v + a (x - x0), the time to its end and the way within it have closed forms;
    the times through whole intervals are summed once for all points. Beyond the frame the velocity of its end goes on.

    Args:
        nodes: (B, n + 1), velocities at n + 1 evenly spaced positions from -1 to 1.
        points: (B, N, 1), of the same type.

    Returns:
        (B, N, 1).

    Raises:
        ValueError: for any other shape.

    Example:
        >>> cpab_flow_1d(torch.tensor([[-1.0, 1.0]]), torch.tensor([[[0.25]]]))  # velocity x: grows by e
        tensor([[[0.6796]]])

    Source: Freifeld et al. 2017, section 5; Martinez et al. 2022.
    """
    if nodes.ndim != 2 or nodes.shape[1] < 2:
        raise ValueError(f"nodes: expected (B, n + 1), n at least 1, got {describe(nodes)}")
    if points.ndim != 3 or points.shape[2] != 1 or points.shape[0] not in (1, nodes.shape[0]):
        raise ValueError(f"points: expected ({nodes.shape[0]}, N, 1), got {describe(points)}")
    n = nodes.shape[1] - 1
    h = 2 / n
    x = points[..., 0].expand(nodes.shape[0], -1)

    def position(node: Tensor) -> Tensor:
        return (2 * node - n).to(x.dtype) / n

    # One more interval at either side, of constant velocity: index 0 ends at node 0, index n + 1 starts at node n.
    slopes = torch.nn.functional.pad(nodes.diff(dim=1) / h, (1, 1))

    # From where each point is to the next node in the direction it moves.
    inside = x.clamp(-1, 1)
    span = _index((inside.detach() + 1) / h, n - 1)
    nearest = _index((inside.detach() + 1) / h + 0.5, n)  # so that a point on a node has its velocity, exactly
    velocity = nodes.gather(1, nearest) + slopes.gather(1, span + 1) * (inside - position(nearest))
    interval = torch.where(x.detach() < -1, 0, torch.where(x.detach() > 1, n + 1, span + 1))
    right = velocity.detach() > 0
    node = torch.where(right, interval, interval - 1)
    exists = (node >= 0) & (node <= n)
    node = node.clamp(0, n)
    first = _time(position(node) - x, velocity, nodes.gather(1, node), exists)

    # Through whole intervals: one where the velocity turns, or that takes longer than there is time, is never crossed.
    whole = _time(torch.full_like(nodes[:, 1:], h), nodes[:, :-1].abs(), nodes[:, 1:].abs(), _same_sign(nodes))
    until = torch.nn.functional.pad(whole.double().cumsum(1), (1, 0))  # (B, n + 1): differences of sums stay exact
    left = 1 - first
    crossed = left.detach() > 0
    here = until.gather(1, node)
    marks, target = until.detach(), (here + torch.where(right, left, -left)).detach()
    last = torch.where(right, _count_below(marks, target, True) - 1, _count_below(marks, target, False)).clamp(0, n)
    left = (left - (until.gather(1, last) - here).abs()).to(x.dtype)

    # The rest of the time within one interval.
    start = torch.where(crossed, position(last), x)
    speed = torch.where(crossed, nodes.gather(1, last), velocity)
    slope = slopes.gather(1, torch.where(crossed, torch.where(right, last + 1, last), interval))
    time = torch.where(crossed, left, torch.ones_like(left))
    limit = math.log(torch.finfo(x.dtype).max) - 1  # only a point that rests can have e^slope beyond all bounds
    return (start + speed * time * _expm1_over((slope * time).clamp(max=limit)))[..., None]


def _count_below(marks: Tensor, target: Tensor, equal: bool) -> Tensor:
    """How many ascending marks (B, n) are below each target (B, N), or below or equal: (B, N)."""
    if not is_portable():
        return torch.searchsorted(marks, target, right=equal)
    marks, target = marks[:, None], target[..., None]  # ONNX has no searchsorted
    return ((marks <= target) if equal else (marks < target)).sum(-1)


class CPAB(AbstractTransform):
    """Following a velocity field that is continuous, and affine in each cell, for one unit of time: theta (B,
    num_params) = its coefficients in the orthonormal `cpab_basis`.

    Pull, normalized. The exact flow is a homeomorphism whatever theta, and differentiable in it, also at the identity;
    `inverse(theta)` is -theta. With `zero_boundary` it maps the frame onto itself. Beyond the frame the velocity of its
    nearest point goes on.

    The integration is exact up to rounding: in closed form from cell to cell, with the exact times of crossing, and so is
    the gradient. In 2D and 3D that is native code for the CPU; elsewhere (on a GPU, in exported programs, in other
    frameworks, for tangents and second derivatives) and wherever `steps` are given it is the fourth-order Runge and Kutta
    method, of second order where a path crosses from one cell into the next. With theta of unit variance on 4 x 4
    rectangles, whose warps move points by up to 0.8, 10 steps miss the exact flow by at most 1e-3 (a tenth of a pixel on a
    side of 200) and going there and back misses by at most 2e-4; 40 steps by 1e-4 and 5e-6.

    Args:
        tessellation: number of intervals (nx,), rectangles (ny, nx), each four triangles, or boxes (nz, ny, nx), each
            five tetrahedra.
        zero_boundary: nothing flows through the border of the frame.
        volume_preserving: areas, or volumes, stay.
        steps: of the integration in 2D and 3D, the same everywhere; None for the exact flow, and 10 steps where no native
            code can run.

    Raises:
        ValueError: where the constraints leave no field but zero: in 1D a field without divergence is a constant, and
            with `zero_boundary` that is zero.

    Example:
        >>> family = CPAB((4,))
        >>> family.num_params, family.identity()
        (3, tensor([0., 0., 0.]))
        >>> there = family.map_points(torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[[-1.0], [0.1], [1.0]]]))
        >>> family.map_points(-torch.tensor([[1.0, -2.0, 0.5]]), there)
        tensor([[[-1.0000],
                 [ 0.1000],
                 [ 1.0000]]])

    Source: Freifeld et al. 2015 and 2017; in a transformer Detlefsen et al. 2018.
    """

    vertex_basis: Tensor  # (P, vertices, d): `cpab_basis`, as velocities at the vertices
    _cells: Tensor
    _inverses: Tensor

    def __init__(
        self,
        tessellation: tuple[int, ...] = (3, 3),
        *,
        zero_boundary: bool = True,
        volume_preserving: bool = False,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self.tessellation = _check_tessellation(tessellation, zero_boundary, volume_preserving)
        if steps is not None:
            check_number(
                "steps", steps, "None or an int from 1 to 10000", lambda n: isinstance(n, int) and 1 <= n <= 10_000
            )
        self.ndim, self.steps = len(self.tessellation), steps
        self.zero_boundary, self.volume_preserving = zero_boundary, volume_preserving
        with constants():
            _, cells, inverses = _tessellate(self.tessellation)
            basis = _vertex_basis(self.tessellation, zero_boundary, volume_preserving)
        self._register_constants(vertex_basis=basis, _cells=cells, _inverses=inverses)

    @property
    def num_params(self) -> int:
        return self.vertex_basis.shape[0]

    def identity(self) -> Tensor:
        return torch.zeros(self.num_params)

    def coefficients(self, theta: Tensor) -> Tensor:
        """theta (B, num_params) as the field in each cell, (B, cells, d, d+1)."""
        return _cell_coefficients(self.vertex_velocities(theta), self._cells, self._inverses)

    def vertex_velocities(self, theta: Tensor) -> Tensor:
        """theta (B, num_params) as the velocities at the vertices, (B, vertices, d): the corners of the intervals or
        boxes, row after row, then the centres of the rectangles."""
        theta = self.check_theta(theta)
        with exact(theta.device):
            return torch.tensordot(theta, self.vertex_basis.to(theta.dtype), dims=1)

    def velocity(self, theta: Tensor, points: Tensor) -> Tensor:
        """The velocities (B, N, d) at points (B, N, d)."""
        theta = self.check_theta(theta)
        return cpab_velocity(self.coefficients(theta), self.check_points(theta, points), self.tessellation)

    def map_points(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        theta = self.check_theta(theta)
        points = self.check_points(theta, points).expand(theta.shape[0], -1, -1)
        if self.ndim == 1:
            return cpab_flow_1d(self.vertex_velocities(theta)[..., 0], points)
        if self.steps is None:
            return flow(self.vertex_velocities(theta), points, self.tessellation, self._in_steps)
        return self._in_steps(self.vertex_velocities(theta), points)

    def _in_steps(self, velocities: Tensor, points: Tensor) -> Tensor:
        """`map_points` in 2D and 3D by Runge and Kutta's method, from the velocities at the vertices (B, vertices, d)."""
        short = _cell_coefficients(velocities, self._cells, self._inverses) / self.steps_taken
        for _ in range(self.steps_taken):
            points = self.step(short, points)
        return points

    @property
    def steps_taken(self) -> int:
        """`steps`, and where that is None as many as are taken where no native code can run."""
        return _STEPS if self.steps is None else self.steps

    def short(self, theta: Tensor) -> Tensor:
        """The field of one of the steps, (B, cells, d, d+1): `coefficients` over their number."""
        return self.coefficients(theta) / self.steps_taken

    def step(self, short: Tensor, points: Tensor) -> Tensor:
        """One step of `map_points` in 2D and 3D: where points (B, N, d) get by the field `short`."""
        return _runge_kutta(lambda p: _apply_cells(short, p, self.tessellation), points)

    def step_with_slopes(self, short: Tensor, state: Tensor) -> Tensor:
        """`step` of points with their derivatives: of (B, N, d, d+1), in whose last column the points are, and in the others
        how they change with where they started from."""
        return _runge_kutta(lambda s: _apply_cells_with_slopes(short, s, self.tessellation), state)

    def unmap_points(
        self,
        theta: Tensor,
        points: Tensor,
        frame: Frame = SQUARE,
        *,
        tolerance: float = 1e-4,
        missing: Literal["raise", "nan"] = "raise",
    ) -> Tensor:
        """Input points (B, N, d) to the output points where they appear, by the same field followed backwards. Where
        steps miss by more than `tolerance` it is Newton's method."""
        check_choice("missing", missing, ("raise", "nan"))
        theta = self.check_theta(theta)
        target = self.check_points(theta, points)
        found = self.map_points(-theta, target)
        with torch.no_grad():
            missed = (self.map_points(theta, found) - target).norm(dim=-1)
        if bool((missed <= tolerance).all()):
            return found
        return super().unmap_points(theta, points, frame, tolerance=tolerance, missing=missing)

    def inverse(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        """-theta: the same field, followed backwards."""
        return -self.check_theta(theta)

    def extra_repr(self) -> str:
        shown = [f"{self.tessellation}"] + ([] if self.zero_boundary else ["zero_boundary=False"])
        shown += ["volume_preserving=True"] if self.volume_preserving else []
        return ", ".join(shown + ([] if self.steps is None else [f"steps={self.steps}"]))


def _check_tessellation(
    tessellation: tuple[int, ...], zero_boundary: bool = True, volume_preserving: bool = False
) -> tuple[int, ...]:
    if not isinstance(tessellation, (tuple, list)) or len(tessellation) not in (1, 2, 3):
        raise ValueError(f"tessellation: expected (nx,), (ny, nx) or (nz, ny, nx), got {describe(tessellation)}")
    check_flag("zero_boundary", zero_boundary)
    check_flag("volume_preserving", volume_preserving)
    return check_size(tessellation, len(tessellation), "tessellation")


# The tessellation: its vertices, its cells, and in which of them a point lies


def _tessellate(tessellation: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The vertices (V, d), those of each cell (cells, d+1), and the matrices (cells, d+1, d+1) from values at a cell's
    vertices to the coefficients of the affine function with those values."""
    vertices, cells = simplices(tessellation)
    homogeneous = np.concatenate([vertices[cells], np.ones((*cells.shape, 1))], axis=-1)
    return torch.from_numpy(vertices), torch.from_numpy(cells), torch.from_numpy(np.linalg.inv(homogeneous))


def _vertex_basis(tessellation: tuple[int, ...], zero_boundary: bool, volume_preserving: bool) -> Tensor:
    """The basis as velocities at the vertices (P, V, d)."""
    d = len(tessellation)
    vertices, cells, inverses = _tessellate(tessellation)
    free = vertices.abs() != 1 if zero_boundary else torch.ones_like(vertices, dtype=torch.bool)
    which, component = free.nonzero(as_tuple=True)
    single = torch.zeros(len(which), *vertices.shape, dtype=torch.float64)
    single[torch.arange(len(which)), which, component] = 1.0
    fields = _cell_coefficients(single, cells, inverses)
    flat = fields.flatten(1).numpy()
    values, vectors = np.linalg.eigh(flat @ flat.T)
    mix = vectors / np.sqrt(values) @ vectors.T  # the inverse root of the Gram matrix: the nearest orthonormal basis
    if volume_preserving and len(mix):
        divergence = fields[..., :d].diagonal(dim1=-2, dim2=-1).sum(-1).numpy()
        mix = _null_space((mix @ divergence).T) @ mix
    if not len(mix):
        raise ValueError(
            f"tessellation: expected one on which a velocity other than zero fits, got {tessellation} with "
            f"zero_boundary={zero_boundary}, volume_preserving={volume_preserving}"
        )
    basis = torch.zeros(len(mix), *vertices.shape, dtype=torch.float64)
    basis[:, which, component] = torch.from_numpy(mix)
    return basis


def _null_space(constraints: np.ndarray) -> np.ndarray:
    """Orthonormal rows: the projections of the axes on the null space, one after the other."""
    _, singular, rows = np.linalg.svd(constraints)
    rank = int((singular > 1e-10 * max(singular[0], 1.0)).sum()) if len(singular) else 0
    projector = rows[rank:].T @ rows[rank:]
    found = np.zeros((0, len(projector)))
    for row in projector:
        for _ in range(2):  # once more, for the rounding of the first time
            row = row - found.T @ (found @ row)
        length = np.linalg.norm(row)
        if length > 1e-7 and len(found) < len(projector) - rank:
            found = np.concatenate([found, row[None] / length])
    assert len(found) == len(projector) - rank
    return found


def _index(position: Tensor, last: int) -> Tensor:
    return position.nan_to_num(0.0).floor().long().clamp(0, last)


def _locate(points: Tensor, tessellation: tuple[int, ...]) -> Tensor:
    """The cell (B, N) that each point (B, N, d) of the frame lies in."""
    d = len(tessellation)
    box = torch.zeros((), dtype=torch.long, device=points.device)
    odd = torch.zeros((), dtype=torch.long, device=points.device)
    within: list[Tensor] = []  # x, y[, z] in the box, 0 to 1
    for axis, n in enumerate(tessellation):
        position = (points[..., d - 1 - axis] + 1) * (n / 2)
        index = _index(position, n - 1)
        box, odd = box * n + index, odd + index
        within.insert(0, position - index)
    if d == 1:
        return box
    if d == 2:
        x, y = within[0] - 0.5, within[1] - 0.5
        part = torch.where(x.abs() >= y.abs(), torch.where(x > 0, 1, 3), torch.where(y > 0, 2, 0))
        return box * 4 + part
    x, y, z = within
    x = torch.where(odd % 2 == 1, 1 - x, x)
    part = torch.where(x > y + z, 1, 0) + torch.where(y > x + z, 2, 0) + torch.where(z > x + y, 3, 0)
    return box * 5 + torch.where(x + y + z > 2, 4, part)


def _cell_coefficients(velocities: Tensor, cells: Tensor, inverses: Tensor) -> Tensor:
    """Velocities at the vertices (B, V, d) as the affine maps of the cells (B, cells, d, d+1)."""
    corners = velocities.index_select(1, cells.flatten()).unflatten(1, cells.shape)  # (B, cells, d+1, d)
    return (corners.mT[:, :, :, None] * inverses.to(velocities.dtype)[:, None]).sum(-1)


def _apply_cells(coefficients: Tensor, points: Tensor, tessellation: tuple[int, ...]) -> Tensor:
    """The affine map of the cell that each point lies in, or the nearest of the frame: (B, N, d)."""
    d = len(tessellation)
    points = points.clamp(-1, 1)
    picked = _pick_cells(coefficients, points, tessellation)
    return (picked[..., :d] * points[..., None, :]).sum(-1) + picked[..., d]


def _apply_cells_with_slopes(coefficients: Tensor, state: Tensor, tessellation: tuple[int, ...]) -> Tensor:
    """`_apply_cells` of points, the last column of (B, N, d, d+1), and what it makes of the others, their derivatives."""
    d = len(tessellation)
    points = state[..., d]
    clamped = points.clamp(-1, 1)
    picked = _pick_cells(coefficients, clamped, tessellation)
    slopes = torch.where((clamped == points)[..., None], state[..., :d], 0.0)
    moved = (picked[..., :d, None] * torch.cat([slopes, clamped[..., None]], -1)[..., None, :, :]).sum(-2)
    return torch.cat([moved[..., :d], moved[..., d:] + picked[..., d:]], -1)


def _pick_cells(coefficients: Tensor, points: Tensor, tessellation: tuple[int, ...]) -> Tensor:
    """The map (B, N, d, d+1) of the cell that each point of the frame lies in."""
    d = len(tessellation)
    cell = _locate(points.detach(), tessellation)
    return coefficients.flatten(2).gather(1, cell[..., None].expand(-1, -1, d * (d + 1))).unflatten(2, (d, d + 1))


def _runge_kutta(velocity: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """A step of length one."""
    k1 = velocity(points)
    k2 = velocity(points + k1 / 2)
    k3 = velocity(points + k2 / 2)
    k4 = velocity(points + k3)
    return points + (k1 + 2 * (k2 + k3) + k4) / 6


# The closed forms of one dimension


def _same_sign(nodes: Tensor) -> Tensor:
    sign = nodes.detach().sign()
    return (sign[:, :-1] * sign[:, 1:]) > 0


def _time(way: Tensor, start: Tensor, end: Tensor, possible: Tensor) -> Tensor:
    """How long a way takes while the velocity changes linearly from `start` to `end`; 2 where it is not possible, or
    takes longer than the one unit of time there is."""
    possible = possible & (start.detach().sign() * end.detach().sign() > 0)
    start = torch.where(possible, start, torch.ones_like(start))
    end = torch.where(possible, end, torch.ones_like(end))
    change = (end - start) / start
    time = way / start * _log1p_over(change)
    return torch.where(possible & (time.detach() <= 1), time, torch.full_like(time, 2.0))


def _expm1_over(z: Tensor) -> Tensor:
    """(e^z - 1) / z, 1 at 0, and smooth there."""
    small = z.detach().abs() < 0.3
    far = torch.where(small, torch.ones_like(z), z)
    near = torch.where(small, z, torch.zeros_like(z))
    series = torch.ones_like(z)
    for k in range(13, 1, -1):
        series = 1 + series * near / k
    return torch.where(small, series, far.expm1() / far)


def _log1p_over(z: Tensor) -> Tensor:
    """log(1 + z) / z for z > -1, 1 at 0, and smooth there."""
    small = z.detach().abs() < 0.1
    far = torch.where(small, torch.ones_like(z), z)
    near = torch.where(small, z, torch.zeros_like(z))
    series = torch.zeros_like(z)
    for k in range(16, -1, -1):
        series = 1 / (k + 1) - series * near
    return torch.where(small, series, far.log1p() / far)
