"""A displacement for every point of a lattice: the family without any constraint."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from .._checks import check_bound, check_float_tensor, check_size, coordinate_dtype, describe
from ..coordinates import SQUARE, Coordinates, Frame
from ..geometry import field_positions, lattice_points
from ..ops import flow
from .base import AbstractTransform
from .bounds import bounded, unbounded


def displacement_grid(displacement: Tensor, size: tuple[int, ...], *, align_corners: bool = False) -> Tensor:
    """The sampling positions of a displacement field, linearly brought to the size of the output.

    Pull, (x, y[, z]), normalized: position = p + displacement(p) for each pixel centre p of the output. The first and
    the last point of the field's lattice lie on -1 and 1, whatever `align_corners`, which is about the output alone.

    Args:
        displacement: (B, h, w, 2) or (B, d, h, w, 3), in normalized units; in 1D (B, w, 1). Any resolution.
        size: of the output, ([D,] H, W).

    Returns:
        (B, *size, d), float32 (float64 for a float64 displacement).

    Raises:
        ValueError: for any other shape, type or size.

    Example:
        >>> displacement_grid(torch.tensor([[[0.0], [1.0]]]), (3,), align_corners=True)
        tensor([[[-1.0000],
                 [ 0.5000],
                 [ 2.0000]]])
    """
    d = check_field("displacement", displacement)
    size = check_size(size, d, least=0)
    return field_positions(displacement.to(coordinate_dtype(displacement)), size, align_corners)


def sample_field(field: Tensor, points: Tensor) -> Tensor:
    """A field (B, *res, d) read linearly at points (B, N, d); beyond -1 and 1 its border goes on.

    Example:
        >>> sample_field(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[0.0], [5.0]]]))
        tensor([[[0.5000],
                 [1.0000]]])
    """
    check_field("field", field)
    return flow.read(field, points)


def check_field(argument: str, field: Tensor) -> int:
    """The dimension d of a field (B, *res, d), or a ValueError."""
    check_float_tensor(argument, field, "a field (B, *res, d)")
    d = field.ndim - 2
    if d not in (1, 2, 3) or field.shape[-1] != d or 0 in field.shape[1:]:
        raise ValueError(f"{argument}: expected (B, [[d,] h,] w, {d if d in (1, 2, 3) else 2}), got {describe(field)}")
    return d


class AbstractField(AbstractTransform):
    """A family whose theta is a vector for each point of a lattice over [-1, 1], border points on -1 and 1.

    theta (B, d * h * w) goes point by point, (x, y[, z]) of each, row after row as the pixels of an image.
    """

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        if not isinstance(size, (tuple, list)) or len(size) not in (1, 2, 3):
            raise ValueError(f"size: expected 1 to 3 positive ints ([[D,] H,] W), got {describe(size)}")
        self.size = check_size(size, len(size))
        self.ndim = len(size)

    @property
    def num_params(self) -> int:
        return self.ndim * math.prod(self.size)

    def identity(self) -> Tensor:
        return torch.zeros(self.num_params)

    def field(self, theta: Tensor) -> Tensor:
        """theta (B, num_params) as vectors on the lattice (B, *self.size, d)."""
        return self.check_theta(theta).reshape(-1, *self.size, self.ndim)

    @abstractmethod
    def displacement(self, theta: Tensor) -> Tensor:
        """theta (B, num_params) as displacements on the lattice (B, *self.size, d)."""

    def map_points(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        theta = self.check_theta(theta)
        points = self.check_points(theta, points).expand(theta.shape[0], -1, -1)
        return points + sample_field(self.displacement(theta), points)

    def coordinates(self, theta: Tensor, size: tuple[int, ...], frame: Frame = SQUARE) -> Coordinates:
        return Coordinates("field", size, self.displacement(theta))


class DisplacementField(AbstractField):
    """A displacement at each point of a lattice, linear in between: theta (B, d * prod(size)).

    Pull, normalized: p -> p + displacement(p). Nothing keeps it from folding: penalize roughness, or take
    `VelocityField`, whose smooth fields do not. There is no inverse within the family. Beyond the frame the
    border's displacement goes on.

    Args:
        size: of the lattice, (W,), (H, W) or (D, H, W), at any resolution; its border points lie on -1 and 1.
        max_offset: bounds every component, in normalized units, smoothly; None for no bound.

    Example:
        >>> DisplacementField((4, 5)).num_params
        40
    """

    def __init__(self, size: tuple[int, ...] = (8, 8), *, max_offset: float | None = None) -> None:
        super().__init__(size)
        check_bound("max_offset", max_offset)
        self.max_offset = max_offset

    def displacement(self, theta: Tensor) -> Tensor:
        """theta (B, num_params) as displacements on the lattice (B, *self.size, d), within the bound."""
        return bounded(self.field(theta), self.max_offset)

    def fit(self, displacement: Callable[[Tensor], Tensor]) -> Tensor:
        """The theta that moves the points of the lattice so."""
        like = torch.zeros((), dtype=torch.float64)
        return unbounded(
            displacement(lattice_points(like, self.size, True)[0]).flatten(1), self.max_offset, "max_offset"
        )

    def extra_repr(self) -> str:
        return f"{self.size}" + ("" if self.max_offset is None else f", max_offset={self.max_offset:g}")
