"""Projective maps (homographies): straight lines stay straight, parallels need not.

| family | theta | identity |
|---|---|---|
| `Projective` | the matrix, row by row, without the last entry, which is 1 (8; 15 in 3D) | 1 0 0 0 1 0 0 0 |
| `Corners` | the shift of each corner: top left, top right, bottom right, bottom left (8) | 0 0 0 0 0 0 0 0 |

A position is a numerator over a denominator that vanishes along a line of the output, the horizon. The side that holds
the output's centre is visible. Points on the horizon and behind it show nothing: they are sent 10000 frames away, where
every padding but `circular` and `reflection` shows background or border, and no gradient passes. `Projective(behind="shown")`
shows it, as other programs do.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from .._checks import (
    check_bound,
    check_choice,
    check_float_tensor,
    check_size,
    coordinate_dtype,
    describe,
)
from ..coordinates import SQUARE, Coordinates, Frame, Kind, map_points
from ..geometry import (
    as_projective,
    compose_matrices,
    divide,
    facing,
    horizon,
    map_affine,
    projective_positions,
)
from .base import AbstractTransform
from .bounds import bounded, evenly, unbounded

Behind = Literal["hidden", "shown"]


def projective_grid(
    theta: Tensor, size: tuple[int, ...], *, align_corners: bool = False, behind: Behind = "hidden"
) -> Tensor:
    """The sampling positions of projective maps.

    Pull, (x, y[, z]), normalized: for each pixel centre of the output, theta (x, y[, z], 1), divided by its last
    entry. A matrix and its multiples are the same map. Pixels on the horizon, or on the other side of it than the
    output's centre, are sent to +-10000 on each axis, and no gradient passes there.

    Args:
        theta: (B, 3, 3) or (B, 4, 4).
        size: of the output, (H, W) or (D, H, W).
        behind: "hidden", or "shown" for the positions that the division gives behind the horizon too: mirrored, as in OpenCV,
            Keras and TensorFlow Addons.

    Returns:
        (B, H, W, 2) or (B, D, H, W, 3), float32 (float64 for a float64 theta).

    Raises:
        ValueError: for any other shape, type or size.

    Example:
        >>> projective_grid(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]]), (1, 2))
        tensor([[[[-1.0000,  0.0000],
                  [ 0.3333,  0.0000]]]])

    Source: Hartley and Zisserman 2004, section 2.3; Jaderberg et al. 2015, section 3.2.
    """
    d = _check_projective("theta", theta)
    check_choice("behind", behind, ("hidden", "shown"))
    matrix, size = facing(theta.to(coordinate_dtype(theta))), check_size(size, d, least=0)
    return projective_positions(matrix, size, align_corners, two_sided=behind == "shown")


class AbstractProjectiveTransform(AbstractTransform):
    """A family whose warps are projective maps."""

    kind: Kind = "projective"

    @abstractmethod
    def matrix(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        """theta (B, num_params) as projective maps (B, d+1, d+1), whose last entry is 1."""

    @abstractmethod
    def from_matrix(self, matrix: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta of projective maps (B, d+1, d+1), up to a factor, or of affine maps (B, d, d+1)."""

    def coordinates(self, theta: Tensor, size: tuple[int, ...], frame: Frame = SQUARE) -> Coordinates:
        return Coordinates(self.kind, size, self.matrix(theta))

    def map_points(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        """Output points (B, N, d) to input points. Those on the horizon or behind it go to +-10000 on each axis."""
        points = self.check_points(self.check_theta(theta), points)
        return map_points(Coordinates(self.kind, (), self.matrix(theta)), points)

    def unmap_points(
        self,
        theta: Tensor,
        points: Tensor,
        frame: Frame = SQUARE,
        *,
        tolerance: float = 1e-4,
        missing: Literal["raise", "nan"] = "raise",
    ) -> Tensor:
        """Input points (B, N, d) to the output points where they appear, by the inverse matrix: nothing is iterated.

        Raises:
            ValueError: for a singular matrix, or a point that only appears behind the horizon (`missing="nan"`: NaN).
        """
        check_choice("missing", missing, ("raise", "nan"))
        theta = self.check_theta(theta)
        points = self.check_points(theta, points)
        inverse = _invert(self.matrix(theta))
        h = map_affine(inverse, points)
        # The denominator here is one over the denominator of the map, so it is not to be turned to face the centre.
        hidden = self._hidden(h, inverse) | ~points.isfinite().all(-1)
        found = divide(h, inverse, two_sided=self.kind == "two-sided")
        if missing == "nan":
            return torch.where(hidden[..., None], torch.nan, found)
        if not torch.compiler.is_compiling() and bool(hidden.any()):
            image, point = hidden.nonzero()[0].tolist()
            raise ValueError(
                f"points: expected points that the warp reaches, but point {point} of image {image} lies behind the "
                f"horizon or is not finite"
            )
        return found

    def _hidden(self, h: Tensor, matrix: Tensor) -> Tensor:
        """Where nothing is shown, of numerators and denominator (B, ..., d+1)."""
        if self.kind == "two-sided":
            return h[..., -1] == 0
        return ~(h[..., -1] > horizon(h, matrix))

    def inverse(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta of the inverse maps.

        Raises:
            ValueError: for a singular matrix, for an inverse outside the bound, and for one that the family does not
                have, because the horizon hides the input's centre (`Corners`: one of its corners).
        """
        return self._from_unturned(_invert(self.matrix(theta)), "theta")

    def compose(self, a: Tensor, b: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta of p -> a(b(p)).

        Raises:
            ValueError: for a result outside the bound or the family, as for `inverse`.
        """
        return self._from_unturned(compose_matrices(self.matrix(a), self.matrix(b)), "b")

    def _from_unturned(self, matrix: Tensor, argument: str) -> Tensor:
        """`from_matrix`, for a matrix whose sign says which side of the horizon is visible."""
        hidden = self._hidden(matrix[:, -1, -1:], matrix)
        if not torch.compiler.is_compiling() and bool(hidden.any()):
            raise ValueError(
                f"{argument}: expected maps with a result within {type(self).__name__}, but the horizon hides the "
                f"centre at index {int(hidden.nonzero()[0])}"
            )
        return self.from_matrix(matrix)

    def _check_any_matrix(self, matrix: Tensor) -> Tensor:
        """Affine or projective maps as projective ones, in float32 or float64, facing the centre."""
        d = self.ndim
        check_float_tensor("matrix", matrix, f"maps (B, {d + 1}, {d + 1}) or (B, {d}, {d + 1})")
        if matrix.ndim != 3 or matrix.shape[1] not in (d, d + 1) or matrix.shape[2] != d + 1:
            raise ValueError(
                f"matrix: expected maps (B, {d + 1}, {d + 1}) or (B, {d}, {d + 1}), got shape {tuple(matrix.shape)}"
            )
        return facing(as_projective(matrix.to(coordinate_dtype(matrix))))


class Projective(AbstractProjectiveTransform):
    """Any projective map with the output's centre on its visible side.

    theta (B, 8), or (B, 15) in 3D: the matrix (d+1, d+1) row by row without the last entry, which is 1. `from_matrix`
    takes affine maps too, exactly.

    Args:
        ndim: 2 or 3.
        max_delta: bounds every entry's distance from the identity, smoothly; None for no bound. Below 1/2 (1/3 in 3D)
            there is no horizon in the frame, whatever theta.
        behind: the horizon, "hidden", or "shown" as the division gives it: mirrored, as in OpenCV, Keras and TensorFlow
            Addons. Gradients grow without bound towards the horizon then.

    Raises:
        ValueError: for another `ndim`, bound or choice.

    Example:
        >>> Projective().matrix(torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.5, 0.0]]))
        tensor([[[1.0000, 0.0000, 0.0000],
                 [0.0000, 1.0000, 0.0000],
                 [0.5000, 0.0000, 1.0000]]])

    Source: Jaderberg et al. 2015, section 3.2.
    """

    def __init__(self, ndim: int = 2, *, max_delta: float | None = None, behind: Behind = "hidden") -> None:
        super().__init__()
        if not isinstance(ndim, int) or ndim not in (2, 3):
            raise ValueError(f"ndim: expected 2 or 3, got {describe(ndim)}")
        check_bound("max_delta", max_delta)
        check_choice("behind", behind, ("hidden", "shown"))
        self.ndim, self.max_delta, self.behind = ndim, max_delta, behind
        self.kind: Kind = "projective" if behind == "hidden" else "two-sided"

    @property
    def num_params(self) -> int:
        return (self.ndim + 1) ** 2 - 1

    def identity(self) -> Tensor:
        return torch.eye(self.ndim + 1).flatten()[:-1].clone()

    def matrix(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        theta = self.check_theta(theta)
        if self.max_delta is not None:
            identity = self.identity().to(theta)
            theta = identity + bounded(theta - identity, self.max_delta)
        entries = torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1)
        return entries.reshape(-1, self.ndim + 1, self.ndim + 1)

    def spread(self, unit: Tensor) -> Tensor:
        unit = self.check_unit(unit)
        if self.max_delta is None:
            raise ValueError("transform: expected Projective with max_delta to spread theta over, got None")
        return self.identity().to(unit) + evenly(unit, self.max_delta)

    def from_matrix(self, matrix: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta of projective maps (B, d+1, d+1), up to a factor, or of affine maps (B, d, d+1).

        Raises:
            ValueError: for any other shape, where the last entry is 0 (the output's centre lies on the horizon), or
                where `max_delta` is exceeded.
        """
        m = self._check_any_matrix(matrix)
        last = m[:, -1, -1]
        if not torch.compiler.is_compiling() and bool((last == 0).any()):
            raise ValueError(
                f"matrix: expected maps whose last entry is not 0, got 0 at index {int((last == 0).nonzero()[0])}"
            )
        theta = (m / last[:, None, None]).flatten(1)[:, :-1]
        if self.max_delta is not None:
            identity = self.identity().to(theta)
            theta = identity + unbounded(theta - identity, self.max_delta, "max_delta")
        return theta

    def extra_repr(self) -> str:
        shown = [] if self.ndim == 2 else [f"ndim={self.ndim}"]
        shown += ["behind='shown'"] if self.kind == "two-sided" else []
        return ", ".join(shown + ([] if self.max_delta is None else [f"max_delta={self.max_delta:g}"]))


class Corners(AbstractProjectiveTransform):
    """The projective map that reads the quadrilateral whose corners theta shifts.

    theta (B, 8) = shift x, shift y of the top left, top right, bottom right and bottom left corner of the output's
    frame (the points +-1, whatever `align_corners`), in normalized units of the input: output corner c reads at
    c + shift. The entries are of one scale, which the matrix's own are not.

    Where the quadrilateral is not convex the horizon crosses the frame (see `projective_grid`); with three corners on
    a line the map is singular, and only asking for its inverse is an error; one whose signed area is 0 (a bow tie, all
    corners on one line) has no map, and gives positions that are not finite.

    Args:
        max_shift: bounds every shift, smoothly; None for no bound. Below 1/2 the quadrilateral is convex, whatever
            theta.

    Raises:
        ValueError: for a bound that is not positive.

    Example:
        >>> theta = torch.tensor([[0.5, 0.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0]])  # narrower at the top
        >>> Corners().map_points(theta, torch.tensor([[[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]]))
        tensor([[[-0.5000, -1.0000],
                 [ 1.0000,  1.0000],
                 [ 0.0000, -0.3333]]])

    Source: the four-point parametrization of Baker, Datta and Kanade 2006; the closed form is that of Heckbert 1989,
    section 2.2.3, in areas.
    """

    def __init__(self, *, max_shift: float | None = None) -> None:
        super().__init__()
        check_bound("max_shift", max_shift)
        self.max_shift = max_shift

    @property
    def num_params(self) -> int:
        return 8

    @property
    def param_names(self) -> tuple[str, ...]:
        corners = ("top left", "top right", "bottom right", "bottom left")
        return tuple(f"{corner} {axis}" for corner in corners for axis in "xy")

    def identity(self) -> Tensor:
        return torch.zeros(8)

    def corners(self, theta: Tensor) -> Tensor:
        """Where the output's corners are read, (B, 4, 2)."""
        theta = self.check_theta(theta)
        return _frame_corners(theta) + bounded(theta, self.max_shift).reshape(-1, 4, 2)

    def matrix(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        # Four points have one relation, and Cramer's rule gives it: the sum of +-area[k] * (q[k], 1) is 0, where
        # area[k] is that of the triangle of the other three. The square's corners have it with equal areas, so the
        # homography takes corner k to area[k] * (q[k], 1): polynomials, and one division to make the last entry 1.
        q = self.corners(theta)  # (B, 4, 2)
        side, across = q.roll(-2, 1) - q.roll(-1, 1), q.roll(-3, 1) - q.roll(-1, 1)
        area = side[..., 0] * across[..., 1] - side[..., 1] * across[..., 0]  # (B, 4), twice the area
        lifted = area[..., None] * torch.nn.functional.pad(q, (0, 1), value=1.0)  # (B, 4, 3)
        tl, tr, br, bl = lifted.unbind(1)
        m = torch.stack([tr + br - tl - bl, br + bl - tl - tr, tl + tr + br + bl], dim=-1)
        return m / m[:, 2:, 2:]

    def spread(self, unit: Tensor) -> Tensor:
        unit = self.check_unit(unit)
        if self.max_shift is None:
            raise ValueError("transform: expected Corners with max_shift to spread theta over, got None")
        return evenly(unit, self.max_shift)

    def from_matrix(self, matrix: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta of projective maps (B, 3, 3), up to a factor, or of affine maps (B, 2, 3).

        Raises:
            ValueError: for any other shape, where the horizon hides a corner of the frame, or where `max_shift` is
                exceeded.
        """
        m = self._check_any_matrix(matrix)
        corners = _frame_corners(m)
        h = map_affine(m, corners)
        hidden = (h[..., -1] <= horizon(h, m)).any(1)
        if not torch.compiler.is_compiling() and bool(hidden.any()):
            raise ValueError(
                f"matrix: expected maps with every corner of the frame in front of the horizon, got one behind it at "
                f"index {int(hidden.nonzero()[0])}"
            )
        return unbounded((divide(h, m) - corners).flatten(1), self.max_shift, "max_shift")

    def extra_repr(self) -> str:
        return "" if self.max_shift is None else f"max_shift={self.max_shift:g}"


def _check_projective(argument: str, matrix: Tensor) -> int:
    """The dimension d of projective maps (B, d+1, d+1), or a ValueError."""
    check_float_tensor(argument, matrix, "projective maps (B, d+1, d+1)")
    if matrix.ndim != 3 or matrix.shape[1] not in (3, 4) or matrix.shape[2] != matrix.shape[1]:
        raise ValueError(
            f"{argument}: expected projective maps (B, 3, 3) or (B, 4, 4), got shape {tuple(matrix.shape)}"
        )
    return matrix.shape[1] - 1


def _frame_corners(like: Tensor) -> Tensor:
    """Top left, top right, bottom right, bottom left, (1, 4, 2)."""
    return torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]], dtype=like.dtype, device=like.device)


def _invert(matrix: Tensor) -> Tensor:
    """The inverse of projective maps (B, d+1, d+1), not turned to face the centre."""
    # Rows of one size: a row's scale is no sign of a singular matrix.
    scale = matrix.detach().abs().amax(-1, keepdim=True)
    even = matrix / scale
    inverse, failed = torch.linalg.inv_ex(even)
    if not torch.compiler.is_compiling():
        condition = even.detach().abs().sum(-1).amax(-1) * inverse.detach().abs().sum(-1).amax(-1)
        singular = (failed != 0) | ~(condition < 0.1 / torch.finfo(matrix.dtype).eps)
        if bool(singular.any()):
            raise ValueError(
                f"theta: expected invertible maps, got a singular one at index {int(singular.nonzero()[0])}"
            )
    return inverse / scale.transpose(1, 2)
