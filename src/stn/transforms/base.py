"""What every family of warps has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .._checks import check_float_tensor, check_size, coordinate_dtype
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
        axes = [lattice(n, align_corners=align_corners, dtype=theta.dtype, device=theta.device) for n in size]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).reshape(1, -1, self.ndim)
        points = points.expand(theta.shape[0], -1, -1)
        mapped = self.map_points(theta, points, image_size=image_size or size, align_corners=align_corners)
        return mapped.reshape(theta.shape[0], *size, self.ndim)

    def inverse(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        """The theta of the inverse warp, in the same family."""
        raise ValueError(f"transform: {type(self).__name__} has no inverse within its family")

    def forward(self, theta: Tensor, size: tuple[int, ...]) -> Tensor:
        """`grid(theta, size)`."""
        return self.grid(theta, size)

    def __matmul__(self, other: AbstractTransform) -> AbstractTransform:
        from .compose import Compose

        return Compose(self, other)

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
