"""What keeps a transformer from losing itself: penalties on a warp, to add to the loss of a task.

| penalty | holds | zero for |
|---|---|---|
| `identity` | how far the warp moves things | the identity |
| `scale` | zooming out until the output is blank, zooming in until it is flat | scales from `low` to `high` |
| `fold` | turning over, locally | warps whose Jacobian determinant has one sign and is at least `margin` |
| `smoothness` | shifts that change from place to place | shifts; with `order=2` affine maps |
| `bending` | shifts that do not change evenly | affine maps |
| `out_of_frame` | looking past the image's edges | warps that read within [-1, 1] |

Each takes a `Warp`, of any family, and gives a scalar: the mean over the batch (0 for an empty one), differentiable in
theta. Everything is in normalized units, and looked at on a coarse lattice of `points` positions along each axis of the
output, so it costs the same whatever the size of the image. A warp that has details finer than the lattice, such as a
displacement field of more points, needs more `points`, or most of it goes unseen.

Positions behind the horizon of a projective map are far out of frame and no gradient passes there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_number, coordinate_dtype, describe, nearest_name
from .geometry import lattice_points
from .transformer import Warp

_FLAT = 1e-4  # determinants up to about this are no scale: the gradient of their logarithm fades out


def identity(warp: Warp, *, points: int = 9) -> Tensor:
    """The squared distance between where each output point is read and where it is, mean over the frame.

    It means the same for every family: a shift by t gives |t|^2. `Polar` has no identity, and is never at 0.

    Args:
        warp: `transformer.warp(image)`.
        points: along each axis; the centres of as many cells.

    Raises:
        ValueError: for anything but a warp, or too few points.

    Example:
        >>> import stn
        >>> theta = torch.tensor([[0.5, 0.0]])
        >>> identity(Warp(torch.zeros(1, 1, 4, 4), theta, stn.Translation(), (4, 4), (4, 4), False))
        tensor(0.2500)
    """
    _check(warp, points=points)
    return _mean(_looked_at(warp, "identity", points))


def scale(warp: Warp, *, low: float = 1.0, high: float = 1.0, points: int = 9) -> Tensor:
    """How far the local scale leaves [low, high]: the squared difference of logarithms, mean over the frame.

    The local scale is |determinant of the Jacobian|^(1/d) in normalized coordinates: 1 for the whole image, 2 where
    the warp zooms out twice. Twice as large and half as large cost the same. It is the mean of the axes: one that
    grows as the other shrinks is left to `identity`. Mirror images are no matter. Where the scale is 0 the
    gradient is 0 too, not infinite.

    Args:
        warp: `transformer.warp(image)`.
        low, high: scales that cost nothing; only 1 unless given.
        points: along each axis; the centres of as many cells.

    Raises:
        ValueError: unless 0 < low <= high, and as for `identity`.

    Example:
        >>> import stn
        >>> theta = torch.tensor([[1.0, 0.0, 0.0]])  # log scale, shift
        >>> warp = Warp(torch.zeros(1, 1, 4, 4), theta, stn.Attention(), (4, 4), (4, 4), False)
        >>> scale(warp), scale(warp, high=3.0)
        (tensor(1.), tensor(0.))
    """
    _check(warp, points=points, low=low, high=high)
    return _mean(_looked_at(warp, "scale", points, low=low, high=high))


def fold(warp: Warp, *, margin: float = 0.01, points: int = 9) -> Tensor:
    """How far the determinant of the Jacobian is from `margin`, on the wrong side: mean of relu(margin - determinant).

    A mirror image does not fold: as in `transform.folds`, what counts is that all determinants have one sign. The
    determinants of a warp are taken with the sign that most of them have (positive in a tie).

    Args:
        warp: `transformer.warp(image)`.
        margin: the least determinant that costs nothing, at least 0: the part of the image that the output would show
            if it were so everywhere. Zooming in beyond it costs too, so it is to be small.
        points: along each axis; the centres of as many cells.

    Raises:
        ValueError: for a margin that is negative or not finite, and as for `identity`.

    Example:
        >>> import stn
        >>> theta = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
        >>> flat, mirrored = (
        ...     Warp(torch.zeros(1, 1, 4, 4), t[None], stn.Affine(), (4, 4), (4, 4), False) for t in theta
        ... )
        >>> fold(flat, margin=0.25), fold(mirrored, margin=0.25)
        (tensor(0.2500), tensor(0.))
    """
    _check(warp, points=points, margin=margin)
    return _mean(_looked_at(warp, "fold", points, margin=margin))


def smoothness(warp: Warp, *, order: int = 1, points: int = 9) -> Tensor:
    """How much the displacement changes from place to place: its squared derivatives, mean over the frame.

    The displacement is where a point is read, minus the point; derivatives are differences on a lattice from edge to
    edge, divided by its spacing. With `order=1` all first derivatives are summed (for an affine map the squared
    entries of its linear part minus the identity), with `order=2` all second ones, mixed ones twice.

    Args:
        warp: `transformer.warp(image)`.
        order: 1 or 2.
        points: along each axis, the first and the last on the edges.

    Raises:
        ValueError: for another order, and as for `identity`.

    Example:
        >>> import stn
        >>> theta = torch.tensor([[1.5, 0.0, 0.0, 0.0, 1.0, 0.0]])
        >>> warp = Warp(torch.zeros(1, 1, 4, 4), theta, stn.Affine(), (4, 4), (4, 4), False)
        >>> smoothness(warp), smoothness(warp, order=2)
        (tensor(0.2500), tensor(0.))

    Source: Horn and Schunck 1981 (first order), Rueckert et al. 1999 (second).
    """
    _check(warp, points=points, order=order)
    return _mean(_looked_at(warp, "smoothness", points, order=order))


def bending(warp: Warp, *, points: int = 9) -> Tensor:
    """The bending energy: `transform.bending_energy` where the family has it, else `smoothness` of order 2.

    That is exact for `BSpline` (mean over the frame, as the differences are) and for `ThinPlateSpline`, whose energy
    is the integral over the whole plane or space; `points` matters to other families alone. No guard against folds.

    Raises:
        ValueError: as for `identity`.

    Example:
        >>> import stn
        >>> theta = torch.tensor([[0.1, 0.0, -0.1, 0.0, -0.1, 0.0, 0.1, 0.0]])
        >>> bending(Warp(torch.zeros(1, 1, 4, 4), theta, stn.ThinPlateSpline((2, 2)), (4, 4), (4, 4), False))
        tensor(0.3626)
    """
    _check(warp, points=points)
    energy = warp.transform.bending_energy(warp.theta)
    return smoothness(warp, order=2, points=points) if energy is None else _mean(energy)


def out_of_frame(warp: Warp, *, points: int = 9) -> Tensor:
    """How far outside of [-1, 1] the warp reads: the squared distance from the frame, mean over the output.

    Args:
        warp: `transformer.warp(image)`.
        points: along each axis, the first and the last on the edges.

    Raises:
        ValueError: as for `identity`.

    Example:
        >>> import stn
        >>> theta = torch.tensor([[2.0, 0.0]])
        >>> out_of_frame(Warp(torch.zeros(1, 1, 4, 4), theta, stn.Translation(), (4, 4), (4, 4), False), points=3)
        tensor(1.6667)
    """
    _check(warp, points=points)
    return _mean(_looked_at(warp, "out_of_frame", points))


def _identity(mapped: Tensor, where: Tensor) -> Tensor:
    return (mapped - where).square().sum(-1).mean(1)


def _scale(determinant: Tensor, where: Tensor, *, low: float, high: float) -> Tensor:
    size = (determinant.square() + _FLAT**2).log() / (2 * where.shape[-1])
    beyond = (size - math.log(high)).relu() + (math.log(low) - size).relu()
    return beyond.square().mean(1)


def _fold(determinant: Tensor, where: Tensor, *, margin: float) -> Tensor:
    mirrored = determinant.detach().sign().sum(1, keepdim=True) < 0
    return (margin - torch.where(mirrored, -determinant, determinant)).relu().mean(1)


def _smoothness(mapped: Tensor, where: Tensor, *, order: int) -> Tensor:
    d = where.shape[-1]
    points = round(where.shape[1] ** (1 / d))
    changes = [(mapped - where).unflatten(1, (points,) * d)]
    for _ in range(order):
        changes = [c.diff(dim=axis + 1) * ((points - 1) / 2) for c in changes for axis in range(d)]
    return torch.stack([c.square().sum(-1).flatten(1).mean(1) for c in changes]).sum(0)


def _out_of_frame(mapped: Tensor, where: Tensor) -> Tensor:
    return (mapped.abs() - 1).relu().square().sum(-1).mean(1)


class Formula(NamedTuple):
    """A penalty of each image, (B,), of what its warp does at points of the frame."""

    edges: bool  # the points (1, N, d) are a lattice from edge to edge, not the centres of as many cells
    slopes: (
        bool  # it looks at the determinants of the Jacobian there, (B, N), not at the points that are read, (B, N, d)
    )
    of: Callable[..., Tensor]  # what it looks at, the points, options -> (B,)


# Of these alone; `bending` has a formula of its family, or is the smoothness of second order. At the centres of cells, for on the very
# edge of the frame some families have a kink.
FORMULAS = {
    "identity": Formula(False, False, _identity),
    "scale": Formula(False, True, _scale),
    "fold": Formula(False, True, _fold),
    "smoothness": Formula(True, False, _smoothness),
    "out_of_frame": Formula(True, False, _out_of_frame),
}


PENALTIES: dict[str, Callable[..., Tensor]] = {
    "identity": identity,
    "scale": scale,
    "fold": fold,
    "smoothness": smoothness,
    "bending": bending,
    "out_of_frame": out_of_frame,
}


class Penalty:
    """A weighted sum of penalties: warp -> scalar, to add to the loss.

    Args:
        points: for all of them.
        low, high: of `scale`.
        margin: of `fold`.
        order: of `smoothness`.
        weights: one for each penalty, by its name: finite, at least 0. One of weight 0 is only looked at by `terms`.

    Call it with what `transformer.warp` returns, or an iterable of warps, whose penalties add.

    Raises:
        ValueError: for an unknown name (with the nearest one), a weight or an option out of range, no weight at all.

    Example:
        >>> import stn
        >>> penalty = Penalty(identity=0.1, fold=1.0)
        >>> transformer = stn.SpatialTransformer(stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28)))
        >>> warp = transformer.warp(torch.rand(4, 1, 28, 28))
        >>> bool(penalty(warp) == 0), sorted(penalty.terms(warp))
        (True, ['fold', 'identity'])
    """

    def __init__(
        self,
        *,
        points: int = 9,
        low: float = 1.0,
        high: float = 1.0,
        margin: float = 0.01,
        order: int = 1,
        **weights: float,
    ) -> None:
        if not weights:
            raise ValueError(f"weights: expected at least one of {', '.join(PENALTIES)}, got none")
        for name, weight in weights.items():
            if name not in PENALTIES:
                raise ValueError(
                    f"{name}: expected names among {', '.join(PENALTIES)}, got {name!r}{nearest_name(name, PENALTIES)}"
                )
            check_number(name, weight, "a finite weight of at least 0", lambda v: 0 <= v < math.inf)
        _check_options(points=points, low=low, high=high, margin=margin, order=order)
        self.weights = weights
        self.points = points
        self.options: dict[str, dict[str, float]] = {
            "scale": {"low": low, "high": high},
            "fold": {"margin": margin},
            "smoothness": {"order": order},
        }

    def __call__(self, warp: Warp | Iterable[Warp]) -> Tensor:
        terms = self.terms(warp).items()
        # A term of weight 0 may be infinite.
        weighted = [self.weights[name] * term if self.weights[name] else torch.zeros_like(term) for name, term in terms]
        return torch.stack(weighted).sum()

    def terms(self, warp: Warp | Iterable[Warp]) -> dict[str, Tensor]:
        """Each penalty by its name, without its weight."""
        try:
            warps = [warp] if isinstance(warp, Warp) else list(warp)
        except TypeError:
            raise ValueError(f"warp: expected a warp or an iterable of warps, got {describe(warp)}") from None
        if not warps:
            raise ValueError("warp: expected at least one warp, got none")
        return {
            name: torch.stack(
                [PENALTIES[name](one, points=self.points, **self.options.get(name, {})) for one in warps]
            ).sum()
            for name in self.weights
        }

    def __repr__(self) -> str:
        return f"Penalty({', '.join(f'{name}={weight:g}' for name, weight in self.weights.items())})"


def _check(warp: Warp, **options: float) -> None:
    if not isinstance(warp, Warp):
        raise ValueError(f"warp: expected the result of `transformer.warp(image)`, got {describe(warp)}")
    _check_options(**options)


def _check_options(
    *, points: float, low: float = 1.0, high: float = 1.0, margin: float = 0.0, order: float = 1
) -> None:
    check_number("points", points, "an int of at least 3", lambda n: isinstance(n, int) and n >= 3)
    check_number("low", low, "a finite number above 0", lambda v: 0 < v < math.inf)
    check_number("high", high, f"a finite number of at least low={low:g}", lambda v: low <= v < math.inf)
    check_number("margin", margin, "a finite number of at least 0", lambda v: 0 <= v < math.inf)
    check_number("order", order, "1 or 2", lambda v: isinstance(v, int) and v in (1, 2))


def _looked_at(warp: Warp, name: str, points: int, **options: float) -> Tensor:
    """A formula's penalty of each image of a warp, (B,)."""
    edges, slopes, of = FORMULAS[name]
    where = lattice_points(warp.theta.to(coordinate_dtype(warp.theta)), (points,) * len(warp.size), edges)
    what = warp.transform.determinant(warp.theta, where, warp.frame) if slopes else warp.map_points(where)
    return of(what, where, **options)


def _mean(values: Tensor) -> Tensor:
    """The mean over the batch (B,), 0 for an empty one."""
    return values.sum() / max(values.shape[0], 1)
