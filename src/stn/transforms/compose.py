"""Two warps as one, so that the image is resampled once."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import AbstractTransform


class Compose(AbstractTransform):
    """`outer @ inner`: the map p -> outer(inner(p)); theta is outer's followed by inner's.

    As warps of an image: first by `outer`, then by `inner`, without the resampling in between.

    Example:
        >>> from stn import Rotation, Translation
        >>> both = Rotation() @ Translation()
        >>> both.num_params, both.map_points(torch.tensor([[0.0, 0.5, 0.0]]), torch.zeros(1, 1, 2))
        (3, tensor([[[0.5000, 0.0000]]]))
    """

    def __init__(self, outer: AbstractTransform, inner: AbstractTransform) -> None:
        super().__init__()
        for argument, value in (("outer", outer), ("inner", inner)):
            if not isinstance(value, AbstractTransform):
                raise ValueError(f"{argument}: expected a transform, got {value!r}")
        if outer.ndim != inner.ndim:
            raise ValueError(f"inner: expected {outer.ndim}D as outer, got {inner.ndim}D")
        self.ndim = outer.ndim
        self.outer, self.inner = outer, inner

    @property
    def num_params(self) -> int:
        return self.outer.num_params + self.inner.num_params

    def identity(self) -> Tensor:
        return torch.cat([self.outer.identity(), self.inner.identity()])

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """theta (B, num_params) as outer's and inner's."""
        outer, inner = self.check_theta(theta).split([self.outer.num_params, self.inner.num_params], dim=1)
        return outer, inner

    def map_points(
        self, theta: Tensor, points: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        outer, inner = self.split(theta)
        points = self.inner.map_points(inner, points, image_size=image_size, align_corners=align_corners)
        return self.outer.map_points(outer, points, image_size=image_size, align_corners=align_corners)
