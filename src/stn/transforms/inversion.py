"""Where a warp reads a given point: its inverse by numbers, for any family, in pieces of bounded memory.

Newton's method for each point. Many points at once, such as all voxels of a volume, start from the inverse of the warp
on a lattice, which a fixed-point iteration finds by linear reading: one step of Newton then does for most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..coordinates import Coordinates
from ..geometry import lattice_points
from ..ops import dispatch as ops
from ..reading import Reading

Linearize = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (B, N, d) -> mapped (B, N, d), derivative (B, N, d, d)

_LINEAR = Reading("bilinear", "border", None, align_corners=True)
STEPS = 50
_PIECE = 2**14  # points at a time, over the batch
_MANY = 2**13  # points from which a common start pays
_LATTICE = {1: 1025, 2: 129, 3: 65}  # the points along each axis of its lattice, at most
_SETTLED = 12  # rounds of the fixed-point iteration; each gains a factor of the displacement's slope


def pieces(count: int, batch: int) -> Iterator[slice]:
    """Parts of `count` points of a batch, each small enough for a family to look at."""
    size = max(1, _PIECE // max(batch, 1))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def in_pieces(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """A function of points (B, N, d), each by itself: (B, N, ...), without its memory for all of them at once."""
    batch, count, _ = points.shape
    if batch * count <= _PIECE:
        return function(points)
    return torch.cat([function(points[:, piece]) for piece in pieces(count, batch)], dim=1)


def unmapped(linearize: Linearize, target: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The points (B, N, d) that are mapped to `target`, and by how far each misses it, (B, N). Without gradients.

    A point is done at a hundredth of `tolerance`, or within it where another step gains nothing more.
    """
    batch, count, _ = target.shape
    start = target
    if count >= _MANY:
        displacement = _inverse_on_lattice(linearize, target)
        start = target + in_pieces(lambda points: _read(displacement, points), target)
    found, missed = torch.empty_like(target), target.new_empty(batch, count)
    for piece in pieces(count, batch):
        found[:, piece], missed[:, piece] = _newton(linearize, start[:, piece], target[:, piece], tolerance)
    return found, missed


def step(linearize: Linearize, points: Tensor, target: Tensor) -> Tensor:
    """One step of Newton's method, (B, N, d). From the solution it moves nothing, and has the gradient of the inverse."""
    mapped, derivative = linearize(points)
    return points - solve(derivative, mapped - target)


def _newton(linearize: Linearize, start: Tensor, target: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    found, missed = start.clone(), torch.full_like(start[..., 0], torch.inf)
    at, pending = start, torch.arange(start.shape[1], device=start.device)
    for count in range(STEPS + 1):
        mapped, derivative = linearize(at)
        goal, last = target[:, pending], missed[:, pending]
        now = (mapped - goal).norm(dim=-1)
        better = (now < last)[..., None]
        found[:, pending] = torch.where(better, at, found[:, pending])
        missed[:, pending] = torch.where(better[..., 0], now, last)
        # Also what is lost for good: a point that is not a number stays one.
        done = (now <= 0.01 * tolerance) | ((now <= tolerance) & (now > last / 2)) | ~now.isfinite()
        going = (~done).any(0)
        if count == STEPS or not bool(going.any()):
            break
        pending, at = pending[going], at[:, going]
        move = solve(derivative[:, going], (mapped - goal)[:, going])
        at = at - move / move.norm(dim=-1, keepdim=True).clamp_min(1.0)  # never more than half the frame
    return found, missed


def solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """The x (..., d) of matrix (..., d, d) @ x = vector (..., d), by Cramer's rule: small factorizations are slow."""
    d = matrix.shape[-1]
    if d == 1:
        return vector / matrix[..., 0]
    columns = matrix.unbind(-1)
    if d == 2:
        (a, c), (b, e) = columns[0].unbind(-1), columns[1].unbind(-1)
        u, v = vector.unbind(-1)
        return torch.stack([e * u - b * v, a * v - c * u], -1) / (a * e - b * c)[..., None]
    first, second, third = columns
    across = torch.linalg.cross(second, third)
    rows = [across, torch.linalg.cross(third, first), torch.linalg.cross(first, second)]
    determinant = (first * across).sum(-1, keepdim=True)
    return torch.stack([(row * vector).sum(-1) for row in rows], -1) / determinant


def _inverse_on_lattice(linearize: Linearize, like: Tensor) -> Tensor:
    """The displacements (B, *lattice, d) of the inverse, about: v(y) = -u(y + v(y)), the border going on beyond."""
    batch, count, d = like.shape
    size = (min(_LATTICE[d], round(count ** (1 / d)) + 1),) * d
    points = lattice_points(like, size, True).expand(batch, -1, -1)
    forward = in_pieces(lambda p: linearize(p)[0], points) - points
    field = forward.nan_to_num(0.0).reshape(batch, *size, d)
    inverse = torch.zeros_like(points)
    for _ in range(_SETTLED):
        inverse = -_read(field, points + inverse)
    # Where the slope is above 1 there is no settling down: Newton's method starts at the point itself.
    settled = (inverse + _read(field, points + inverse)).norm(dim=-1, keepdim=True) < 0.05
    return torch.where(settled, inverse, 0.0).reshape(batch, *size, d)


def _read(field: Tensor, points: Tensor) -> Tensor:
    """A field (B, *lattice, d), border points on -1 and 1, linearly at points (B, N, d); its border goes on beyond."""
    d = field.shape[-1]
    grid = points.reshape(points.shape[0], *[1] * (d - 1), *points.shape[1:])
    image = field.movedim(-1, 1).contiguous()
    return ops.warp(image, Coordinates("grid", tuple(grid.shape[1:-1]), grid), _LINEAR).flatten(2).movedim(1, -1)
