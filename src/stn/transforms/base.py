"""What every family of warps has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_float_tensor, check_size, coordinate_dtype, describe
from ..conventions import lattice


class AbstractTransform(nn.Module, ABC):
    """A family of warps: theta (B, num_params) -> where each output point is read in the input (pull).

    A member defines `num_params`, `identity` and `map_points`; the grid follows. Options are fixed at construction;
    theta is data. Families that keep angles or lengths need to know the shape of the image, because normalized
    coordinates of a non-square image are not square: they take `image_size`, the size ([D,] H, W) of the image that is
    read. Without it the frame is taken as square.
    """

    ndim: int = 2

    @property
    @abstractmethod
    def num_params(self) -> int:
        """The width of theta."""

    @property
    def param_names(self) -> tuple[str, ...]:
        """What the numbers of theta are, in order, for pictures and tables."""
        return tuple(f"theta {i}" for i in range(self.num_params))

    @abstractmethod
    def identity(self) -> Tensor:
        """The theta (num_params,) of the warp that changes nothing."""

    @abstractmethod
    def map_points(
        self,
        theta: Tensor,  # (B, num_params)
        points: Tensor,  # (B, N, d)
        *,
        image_size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        """Output points (B, N, d), normalized (x, y), to the input points (B, N, d) that are read for them."""

    def grid(
        self,
        theta: Tensor,  # (B, num_params)
        size: tuple[int, ...],
        *,
        image_size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        """The sampling positions (B, *size, d) for an output of `size`; `image_size` is `size` unless given."""
        theta = self.check_theta(theta)
        size = check_size(size, self.ndim)
        points = self._lattice(theta, size, align_corners)
        mapped = self.map_points(theta, points, image_size=image_size or size, align_corners=align_corners)
        return mapped.reshape(theta.shape[0], *size, self.ndim)

    def jacobian(
        self, theta: Tensor, points: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        """The derivative of `map_points` at output points (B, N, d): (B, N, d, d), one row an input coordinate."""
        theta = self.check_theta(theta)
        points = self.check_points(theta, points).expand(theta.shape[0], -1, -1)

        def mapped(points: Tensor) -> Tensor:
            return self.map_points(theta, points, image_size=image_size, align_corners=align_corners)

        return derivative(mapped, points)

    def as_matrix(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor | None:
        """theta as affine maps (B, d, d+1), or as projective ones (B, d+1, d+1) whose denominators are positive on the
        visible side; None for families whose warps are neither."""
        return None

    def as_basis(
        self, theta: Tensor, size: tuple[int, ...], *, align_corners: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """The grid as a product: a basis (N, K) for the N pixels of `size`, row by row, and coefficients (B, K, d); None
        for families whose grids are no linear function of few numbers."""
        return None

    def determinant(
        self, theta: Tensor, points: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        """The determinant of `jacobian`, (B, N): how much of the input an output point stands for. Negative where the
        warp mirrors, 0 where it collapses."""
        jacobian = self.jacobian(theta, points, image_size=image_size, align_corners=align_corners)
        # Written out: exact, with a gradient where it is singular, and no small factorizations.
        first, *others = jacobian.unbind(-2)
        if self.ndim == 1:
            return first[..., 0]
        if self.ndim == 2:
            return first[..., 0] * others[0][..., 1] - first[..., 1] * others[0][..., 0]
        return (first * torch.linalg.cross(*others)).sum(-1)

    def folds(
        self,
        theta: Tensor,
        size: tuple[int, ...],
        *,
        image_size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        """Whether each warp folds over or collapses on the pixel centres of `size`: (B,), true where the Jacobian
        determinant vanishes or has both signs. A mirror image does not fold."""
        theta = self.check_theta(theta)
        size = check_size(size, self.ndim)
        points = self._lattice(theta, size, align_corners)
        sign = self.determinant(theta, points, image_size=image_size or size, align_corners=align_corners).sign()
        return ~((sign > 0).all(1) | (sign < 0).all(1))

    def unmap_points(
        self,
        theta: Tensor,  # (B, num_params)
        points: Tensor,  # (B, N, d)
        *,
        image_size: tuple[int, ...] | None = None,
        align_corners: bool = False,
        tolerance: float = 1e-4,
        missing: Literal["raise", "nan"] = "raise",
    ) -> Tensor:
        """Input points (B, N, d) to the output points where they appear: the inverse of `map_points`, by Newton's method.

        Args:
            tolerance: the largest distance, in normalized units, that is left between `map_points` of the result and
                `points`.
            missing: what becomes of points for which it is not reached, because the warp folds there or never reads
                them: "raise", or "nan" in their place.

        Raises:
            ValueError: for such points, unless `missing="nan"`.
        """
        check_choice("missing", missing, ("raise", "nan"))
        theta = self.check_theta(theta)
        target = self.check_points(theta, points).expand(theta.shape[0], -1, -1)

        def mapped(points: Tensor) -> Tensor:
            return self.map_points(theta, points, image_size=image_size, align_corners=align_corners)

        found = target
        missed = (mapped(found) - target).detach().norm(dim=-1)
        for _ in range(50):
            if bool((missed <= 0.01 * tolerance).all()):
                break
            jacobian = self.jacobian(theta, found, image_size=image_size, align_corners=align_corners)
            step = torch.linalg.solve_ex(jacobian, (mapped(found) - target)[..., None])[0][..., 0]
            found = found - step / step.norm(dim=-1, keepdim=True).clamp_min(1.0)  # never more than half the frame
            missed = (mapped(found) - target).detach().norm(dim=-1)
        if missing == "nan":
            return torch.where((missed <= tolerance)[..., None], found, torch.nan)
        if bool((~(missed <= tolerance)).any()):
            image, point = (~(missed <= tolerance)).nonzero()[0].tolist()
            raise ValueError(
                f"points: expected points that the warp reaches, but point {point} of image {image} is missed by "
                f"{float(missed[image, point]):.2g}: the warp folds or does not read there"
            )
        return found

    def map_boxes(
        self,
        theta: Tensor,  # (B, num_params)
        boxes: Tensor,  # (B, N, 2 d)
        *,
        image_size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        """Upright boxes (x0, y0[, z0], x1, y1[, z1]) of the output to the upright boxes (B, N, 2 d) in the input that
        hold what they show: the bounds of a lattice of 9 points an axis in each box."""
        theta = self.check_theta(theta)
        points = self._points_in(theta, boxes)
        mapped = self.map_points(theta, points.flatten(1, 2), image_size=image_size, align_corners=align_corners)
        return _bounds(mapped.unflatten(1, points.shape[1:3]))

    def unmap_boxes(
        self,
        theta: Tensor,  # (B, num_params)
        boxes: Tensor,  # (B, N, 2 d)
        *,
        image_size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        """Upright boxes of the input to the upright boxes (B, N, 2 d) of the output in which they appear, as
        `map_boxes`. Raises ValueError where `unmap_points` does."""
        theta = self.check_theta(theta)
        points = self._points_in(theta, boxes)
        found = self.unmap_points(theta, points.flatten(1, 2), image_size=image_size, align_corners=align_corners)
        return _bounds(found.unflatten(1, points.shape[1:3]))

    def _points_in(self, theta: Tensor, boxes: Tensor) -> Tensor:
        """A lattice of 9 points an axis in each box, (B, N, 9^d, d)."""
        d = self.ndim
        if not isinstance(boxes, Tensor) or boxes.ndim != 3 or boxes.shape[-1] != 2 * d:
            raise ValueError(f"boxes: expected (B, N, {2 * d}), got {describe(boxes)}")
        t = torch.linspace(0, 1, 9, dtype=theta.dtype, device=theta.device)
        inside = torch.stack(torch.meshgrid([t] * d, indexing="ij"), -1).reshape(-1, d)
        low, high = boxes[:, :, None, :d].to(theta.dtype), boxes[:, :, None, d:].to(theta.dtype)
        return low + (high - low) * inside

    def inverse(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        """The theta of the inverse warp, in the same family."""
        raise ValueError(f"transform: {type(self).__name__} has no inverse within its family")

    def inverted(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> tuple[AbstractTransform, Tensor]:
        """The inverse warp, as a family and its theta: the family itself, but for compositions, whose order turns round.

        Raises:
            ValueError: as `inverse`.
        """
        return self, self.inverse(theta, image_size=image_size, align_corners=align_corners)

    def forward(self, theta: Tensor, size: tuple[int, ...]) -> Tensor:
        """`grid(theta, size)`."""
        return self.grid(theta, size)

    def __matmul__(self, other: AbstractTransform) -> AbstractTransform:
        from .compose import Compose

        return Compose(self, other)

    def _lattice(self, theta: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
        """The pixel centres of an output, (B, N, d)."""
        return lattice_points(theta, size, align_corners).expand(theta.shape[0], -1, -1)

    def check_theta(self, theta: Tensor) -> Tensor:
        """theta as float32 or float64 (B, num_params), or a ValueError that says the right width."""
        name = type(self).__name__
        check_float_tensor("theta", theta, f"(B, {self.num_params}) parameters of {name}")
        if theta.ndim != 2 or theta.shape[1] != self.num_params:
            raise ValueError(
                f"theta: expected (B, {self.num_params}) parameters of {name}, got shape {tuple(theta.shape)}"
            )
        return theta.to(coordinate_dtype(theta))

    def check_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """points as (B, N, d) in theta's type, or a ValueError."""
        check_float_tensor("points", points, f"points (B, N, {self.ndim})")
        if points.ndim != 3 or points.shape[2] != self.ndim or points.shape[0] not in (1, theta.shape[0]):
            raise ValueError(f"points: expected ({theta.shape[0]}, N, {self.ndim}), got shape {tuple(points.shape)}")
        if points.device != theta.device:
            raise ValueError(f"points: expected on the device of theta ({theta.device}), got {points.device}")
        return points.to(theta.dtype)


def derivative(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The derivative (B, N, d, d) of a function of points (B, N, d) that maps each by itself, one row an output."""
    _, pull, *_ = torch.func.vjp(function, points)
    units = torch.eye(points.shape[-1], dtype=points.dtype, device=points.device)
    return torch.stack([pull(unit.expand_as(points))[0] for unit in units], dim=-2)


def lattice_points(like: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """The pixel centres of an output, (1, N, d)."""
    axes = [lattice(n, align_corners=align_corners, dtype=like.dtype, device=like.device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).reshape(1, -1, len(size))


def _bounds(points: Tensor) -> Tensor:
    """The upright boxes (B, N, 2 d) around points (B, N, M, d)."""
    return torch.cat([points.amin(2), points.amax(2)], dim=-1)
