"""Two warps as one, so that the image is resampled once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_size
from ..conventions import compose_matrices
from ..ops import reference
from .affine import map_affine
from .base import AbstractTransform
from .projective import map_projective


class Compose(AbstractTransform):
    """`outer @ inner`: the map p -> outer(inner(p)); theta is outer's followed by inner's.

    As warps of an image: first by `outer`, then by `inner`, without the resampling in between. Matrices are multiplied,
    other families follow one another.

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

    @property
    def param_names(self) -> tuple[str, ...]:
        parts = {"outer": self.outer, "inner": self.inner}
        return tuple(f"{part} {name}" for part, family in parts.items() for name in family.param_names)

    def identity(self) -> Tensor:
        return torch.cat([self.outer.identity(), self.inner.identity()])

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """theta (B, num_params) as outer's and inner's."""
        outer, inner = self.check_theta(theta).split([self.outer.num_params, self.inner.num_params], dim=1)
        return outer, inner

    def as_matrix(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor | None:
        """The product of the two matrices, or None where one of the two is no matrix family."""
        outer, inner = self.split(theta)
        a = self.outer.as_matrix(outer, image_size=image_size, align_corners=align_corners)
        b = self.inner.as_matrix(inner, image_size=image_size, align_corners=align_corners)
        return None if a is None or b is None else compose_matrices(a, b)

    def map_points(
        self, theta: Tensor, points: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        theta = self.check_theta(theta)
        matrix = self.as_matrix(theta, image_size=image_size, align_corners=align_corners)
        if matrix is not None:
            points = self.check_points(theta, points)
            return (map_affine if matrix.shape[1] == self.ndim else map_projective)(matrix, points)
        outer, inner = self.split(theta)
        points = self.inner.map_points(inner, points, image_size=image_size, align_corners=align_corners)
        return self.outer.map_points(outer, points, image_size=image_size, align_corners=align_corners)

    def grid(
        self,
        theta: Tensor,
        size: tuple[int, ...],
        *,
        image_size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        size = check_size(size, self.ndim)
        matrix = self.as_matrix(theta, image_size=image_size or size, align_corners=align_corners)
        if matrix is None:
            outer, inner = self.split(theta)
            options: Any = {"image_size": image_size or size, "align_corners": align_corners}
            points = self.inner.grid(inner, size, **options).flatten(1, -2)
            return self.outer.map_points(outer, points, **options).reshape(-1, *size, self.ndim)
        grid = reference.affine_grid if matrix.shape[1] == self.ndim else reference.projective_grid
        return grid(matrix, size, align_corners)

    def inverse(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        """Raises ValueError: the order turns round, so the inverse is another family. See `inverted`."""
        raise ValueError(
            "transform: the inverse of a composition is another family; `inverted(theta)` gives it with its theta"
        )

    def inverted(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> tuple[AbstractTransform, Tensor]:
        """The inverse warp: the inverse of `inner` @ the inverse of `outer`, and its theta.

        Raises:
            ValueError: where one of the two has no inverse.
        """
        outer, inner = self.split(theta)
        a, theta_a = self.outer.inverted(outer, image_size=image_size, align_corners=align_corners)
        b, theta_b = self.inner.inverted(inner, image_size=image_size, align_corners=align_corners)
        return Compose(b, a), torch.cat([theta_b, theta_a], dim=1)
