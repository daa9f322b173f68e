"""The affine family, and everything that is affine under a constraint, each a parametrization of its own.

| family | theta | identity |
|---|---|---|
| `Affine` | the matrix, row by row (6) | 1 0 0 0 1 0 |
| `Similarity` | angle, scale, shift x, shift y (4) | 0 0 0 0 |
| `Rigid` | angle, shift x, shift y (3) | 0 0 0 |
| `Attention` | scale, shift x, shift y (3) | 0 0 0 |
| `Crop` | scale x, scale y, shift x, shift y (4) | 0 0 0 0 |
| `Translation` | shift x, shift y (2) | 0 0 |
| `Rotation` | angle (1) | 0 |

Scales are logarithms (`scale=exp(theta)`), so they never reach zero or flip; `log_scale=False` takes them as they are,
with identity 1, as Jaderberg et al. write their attention. Angles are radians; since y points down, a positive angle
turns the sampled frame clockwise, so the content turns counterclockwise. Scales above 1 zoom out, shifts are in
normalized units of the input. Bounds are smooth, `bound * tanh(theta / bound)`: the identity and the slope there
stay as they are.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from .._checks import check_bound, check_size, coordinate_dtype
from ..conventions import check_matrix, compose_matrices, extent, invert_matrix
from ..ops import reference
from .base import AbstractTransform


def affine_grid(theta: Tensor, size: tuple[int, ...], *, align_corners: bool = False) -> Tensor:
    """The sampling positions of affine maps.

    Pull, (x, y[, z]), normalized: position = theta (x, y[, z], 1) for each pixel centre of the output.

    Args:
        theta: (B, 2, 3) or (B, 3, 4).
        size: of the output, (H, W) or (D, H, W).

    Returns:
        (B, H, W, 2) or (B, D, H, W, 3), float32 (float64 for a float64 theta).

    Raises:
        ValueError: for any other shape, type or size.

    Example:
        >>> affine_grid(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), (1, 2))
        tensor([[[[-0.5000,  0.0000],
                  [ 0.5000,  0.0000]]]])

    Source: Jaderberg et al. 2015, equation 1.
    """
    d = check_matrix("theta", theta)
    return reference.affine_grid(theta.to(coordinate_dtype(theta)), check_size(size, d), align_corners)


class AbstractMatrixTransform(AbstractTransform):
    """A family whose warps are affine maps."""

    @abstractmethod
    def matrix(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        """theta (B, num_params) as affine maps (B, 2, 3)."""

    def map_points(
        self, theta: Tensor, points: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        points = self.check_points(self.check_theta(theta), points)
        m = self.matrix(theta, image_size=image_size, align_corners=align_corners)
        return (points[:, :, None, :] * m[:, None, :, :-1]).sum(-1) + m[:, None, :, -1]

    def grid(
        self,
        theta: Tensor,
        size: tuple[int, ...],
        *,
        image_size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        size = check_size(size, self.ndim)
        m = self.matrix(theta, image_size=image_size or size, align_corners=align_corners)
        return affine_grid(m, size, align_corners=align_corners)


class Affine(AbstractMatrixTransform):
    """Any affine map: theta (B, 6) is the matrix (2, 3), row by row.

    Args:
        max_delta: bounds every entry's distance from the identity, smoothly; None for no bound.

    Example:
        >>> Affine().matrix(Affine().identity()[None])
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
    """

    def __init__(self, *, max_delta: float | None = None) -> None:
        super().__init__()
        check_bound("max_delta", max_delta)
        self.max_delta = max_delta

    @property
    def num_params(self) -> int:
        return 6

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])

    def matrix(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        theta = self.check_theta(theta)
        if self.max_delta is not None:
            identity = self.identity().to(theta)
            theta = identity + _bounded(theta - identity, self.max_delta)
        return theta.reshape(-1, 2, 3)

    def inverse(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        """Raises ValueError for a singular matrix, or for an inverse outside `max_delta`."""
        return self.from_matrix(invert_matrix(self.matrix(theta)))

    def compose(
        self, a: Tensor, b: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        """The theta of p -> a(b(p))."""
        return self.from_matrix(compose_matrices(self.matrix(a), self.matrix(b)))

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The theta (B, 6) of affine maps (B, 2, 3). Raises ValueError where `max_delta` is exceeded."""
        if check_matrix("matrix", matrix) != 2:
            raise ValueError(f"matrix: expected (B, 2, 3), got shape {tuple(matrix.shape)}")
        theta = matrix.to(coordinate_dtype(matrix)).reshape(-1, 6)
        identity = self.identity().to(theta)
        return identity + _unbounded(theta - identity, self.max_delta, "max_delta")

    def extra_repr(self) -> str:
        return "" if self.max_delta is None else f"max_delta={self.max_delta:g}"


class _AbstractConstrained(AbstractMatrixTransform):
    """Turn, then scale, then shift: p -> S^-1 R(angle) S diag(scale) p + shift, with S the image's half extent in
    pixels, so that the turn is a true one on the image. Each member has some of the three."""

    # How many numbers of theta each takes.
    _turns = 0
    _scales = 0  # 1: one for both axes, 2: one for each
    _shifts = 0

    def __init__(
        self,
        *,
        max_angle: float | None = None,
        max_scale: float | None = None,
        max_shift: float | None = None,
        log_scale: bool = True,
    ) -> None:
        super().__init__()
        check_bound("max_angle", max_angle)
        check_bound("max_scale", max_scale, above=1.0)
        check_bound("max_shift", max_shift)
        if max_scale is not None and not log_scale:
            raise ValueError("max_scale: expected None with log_scale=False, which has no bounded form")
        self.max_angle, self.max_scale, self.max_shift, self.log_scale = max_angle, max_scale, max_shift, log_scale

    @property
    def num_params(self) -> int:
        return self._turns + self._scales + self._shifts

    def identity(self) -> Tensor:
        theta = torch.zeros(self.num_params)
        if not self.log_scale:
            theta[self._turns : self._turns + self._scales] = 1.0
        return theta

    def decode(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta as angle (B, 1) in radians, scale (B, 2) and shift (B, 2)."""
        theta = self.check_theta(theta)
        angle, scale, shift = theta.split([self._turns, self._scales, self._shifts], dim=1)
        angle = _bounded(angle, self.max_angle) if self._turns else theta.new_zeros(theta.shape[0], 1)
        if not self._scales:
            scale = theta.new_ones(theta.shape[0], 1)
        elif self.log_scale:
            scale = _bounded(scale, None if self.max_scale is None else math.log(self.max_scale)).exp()
        shift = _bounded(shift, self.max_shift) if self._shifts else theta.new_zeros(theta.shape[0], 2)
        return angle, scale.expand(-1, 2), shift

    def encode(self, angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The inverse of `decode`. Raises ValueError where a bound is exceeded."""
        parts = []
        if self._turns:
            parts.append(_unbounded(angle, self.max_angle, "max_angle"))
        if self._scales:
            scale = scale[:, : self._scales]
            bound = None if self.max_scale is None else math.log(self.max_scale)
            parts.append(_unbounded(scale.log(), bound, "max_scale") if self.log_scale else scale)
        if self._shifts:
            parts.append(_unbounded(shift, self.max_shift, "max_shift"))
        return torch.cat(parts, dim=1)

    def matrix(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        """theta as affine maps (B, 2, 3), true to the aspect of `image_size`."""
        angle, scale, shift = self.decode(theta)
        return torch.cat([self._linear(angle, scale, image_size, align_corners), shift[:, :, None]], dim=-1)

    def inverse(
        self, theta: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        angle, scale, shift = self.decode(theta)
        if not self.log_scale and not torch.compiler.is_compiling() and bool((scale == 0).any()):
            raise ValueError("theta: expected invertible maps, got a scale of 0")
        angle, scale = -angle, 1 / scale
        linear = self._linear(angle, scale, image_size, align_corners)
        return self.encode(angle, scale, -(linear * shift[:, None, :]).sum(-1))

    def compose(
        self, a: Tensor, b: Tensor, *, image_size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Tensor:
        """The theta of p -> a(b(p)), in the same family."""
        angle_a, scale_a, shift_a = self.decode(a)
        angle_b, scale_b, shift_b = self.decode(b)
        linear = self._linear(angle_a, scale_a, image_size, align_corners)
        return self.encode(angle_a + angle_b, scale_a * scale_b, (linear * shift_b[:, None, :]).sum(-1) + shift_a)

    def _linear(self, angle: Tensor, scale: Tensor, image_size: tuple[int, ...] | None, align_corners: bool) -> Tensor:
        if not self._turns:
            return torch.diag_embed(scale)
        half_x, half_y = (
            (1.0, 1.0)
            if image_size is None
            else extent(check_size(image_size, 2, "image_size"), align_corners=align_corners)
        )
        # An axis of one pixel has no length with align_corners: nothing turns into it.
        y_per_x = half_y / half_x if half_x and half_y else 0.0
        x_per_y = half_x / half_y if half_x and half_y else 0.0
        cos, sin = angle.cos(), angle.sin()
        rows = [torch.cat([cos, -y_per_x * sin], dim=1), torch.cat([x_per_y * sin, cos], dim=1)]
        return torch.stack(rows, dim=1) * scale[:, None, :]

    def extra_repr(self) -> str:
        options = {"max_angle": self.max_angle, "max_scale": self.max_scale, "max_shift": self.max_shift}
        shown = [f"{name}={value:g}" for name, value in options.items() if value is not None]
        return ", ".join(shown + ([] if self.log_scale else ["log_scale=False"]))


class Similarity(_AbstractConstrained):
    """Rotation, one scale and shift: theta (B, 4) = angle, log scale, shift x, shift y. True to the aspect.

    Args:
        max_angle: radians. max_scale: the scale stays within [1/max_scale, max_scale]. max_shift: normalized units.
        log_scale: False takes the scale itself, with identity 1.

    Example:
        >>> Similarity(max_angle=1.0).identity()
        tensor([0., 0., 0., 0.])
    """

    _turns, _scales, _shifts = 1, 1, 2


class Rigid(_AbstractConstrained):
    """Rotation and shift: theta (B, 3) = angle, shift x, shift y. True to the aspect."""

    _turns, _shifts = 1, 2

    def __init__(self, *, max_angle: float | None = None, max_shift: float | None = None) -> None:
        super().__init__(max_angle=max_angle, max_shift=max_shift)


class Attention(_AbstractConstrained):
    """One scale and shift, the paper's attention: theta (B, 3) = log scale, shift x, shift y."""

    _scales, _shifts = 1, 2

    def __init__(
        self, *, max_scale: float | None = None, max_shift: float | None = None, log_scale: bool = True
    ) -> None:
        super().__init__(max_scale=max_scale, max_shift=max_shift, log_scale=log_scale)


class Crop(_AbstractConstrained):
    """A scale for each axis and shift, an upright box: theta (B, 4) = log scale x, log scale y, shift x, shift y."""

    _scales, _shifts = 2, 2

    def __init__(
        self, *, max_scale: float | None = None, max_shift: float | None = None, log_scale: bool = True
    ) -> None:
        super().__init__(max_scale=max_scale, max_shift=max_shift, log_scale=log_scale)


class Translation(_AbstractConstrained):
    """Shift: theta (B, 2) = shift x, shift y."""

    _shifts = 2

    def __init__(self, *, max_shift: float | None = None) -> None:
        super().__init__(max_shift=max_shift)


class Rotation(_AbstractConstrained):
    """Rotation about the centre: theta (B, 1) = angle. True to the aspect."""

    _turns = 1

    def __init__(self, *, max_angle: float | None = None) -> None:
        super().__init__(max_angle=max_angle)


def _bounded(delta: Tensor, bound: float | None) -> Tensor:
    return delta if bound is None else bound * torch.tanh(delta / bound)


def _unbounded(value: Tensor, bound: float | None, argument: str) -> Tensor:
    if bound is None:
        return value
    if not torch.compiler.is_compiling() and bool((value.abs() >= bound).any()):
        raise ValueError(
            f"{argument}: the result exceeds the bound of this transform; compose or invert its matrix instead"
        )
    return bound * torch.atanh(value / bound)
