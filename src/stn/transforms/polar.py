"""Polar and log-polar frames around a predicted origin: turns, and scales, become shifts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_choice, check_flag, check_number, check_spacing
from ..coordinates import SQUARE, Coordinates, Frame, half_lengths
from ..geometry import lattice
from .base import AbstractTransform

_LOG_MIN_RADIUS = 0.05


class Polar(AbstractTransform):
    """The image around an origin, unrolled: theta (B, 2) = origin x, origin y.

    Pull, normalized: along the output's x axis the radius grows, from `min_radius` at -1 to `max_radius` at 1, evenly
    or, with `log`, by equal ratios; along its y axis the angle goes once around, from 0 at -1 to 2 pi at 1, starting
    on the image's x axis and turning towards its y axis (clockwise as seen, since y points down). Output (H, W) thus
    has W radii and H angles, the layout of OpenCV's `warpPolar`. An image turned about the origin by k / H of a circle
    is the same output shifted circularly by k rows (with `align_corners=False`; with True the first and the last row
    are the same angle); with `log`, an image scaled about the origin by s is the output shifted along x by
    2 ln(s) / ln(max_radius / min_radius).

    Radii are lengths on the image, in units of half its shorter side, so circles are circles on images that are not
    square: pass a `stn.Frame`, as `stn.warp` does. Without it `grid` takes the output's size for the image's.

    No theta makes this the warp that changes nothing: `identity()` is the neutral origin, the centre of the image.
    There is no inverse within the family; `to_polar` carries points of the image into the output.

    Args:
        log: radii by equal ratios.
        min_radius: at the output's left edge; 0 unless given, 0.05 with `log`, where it has to be above 0.
        max_radius: at the right edge; 1 reaches the nearest side of the image from its centre.
        spacing: the length of a pixel's side along x and y; square unless given, here or with the image.

    Raises:
        ValueError: unless 0 <= min_radius < max_radius.

    Example:
        >>> family = Polar()
        >>> family.map_points(family.identity()[None], torch.tensor([[[-1.0, 0.0], [0.0, -1.0], [1.0, -1.0]]]))
        tensor([[[0.0000, 0.0000],
                 [0.5000, 0.0000],
                 [1.0000, 0.0000]]])

    Source: Esteves et al. 2018, Polar Transformer Networks.
    """

    def __init__(
        self,
        *,
        log: bool = False,
        min_radius: float | None = None,
        max_radius: float = 1.0,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.spacing = check_spacing(spacing, 2)
        check_flag("log", log)
        check_number("max_radius", max_radius, "a finite number above 0", lambda r: 0 < r < math.inf)
        if min_radius is None:
            min_radius = _LOG_MIN_RADIUS if log else 0.0
        check_number(
            "min_radius",
            min_radius,
            f"a number {'above' if log else 'from'} 0 and below max_radius={max_radius:g}",
            lambda r: (r > 0 if log else r >= 0) and r < max_radius,
        )
        self.log, self.min_radius, self.max_radius = log, float(min_radius), float(max_radius)

    @property
    def num_params(self) -> int:
        return 2

    @property
    def param_names(self) -> tuple[str, ...]:
        return "origin x", "origin y"

    def identity(self) -> Tensor:
        """The neutral origin, 0 0: the centre. Not a warp that changes nothing; this family has none."""
        return torch.zeros(2)

    def map_points(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        theta = self.check_theta(theta)
        points = self.check_points(theta, points)
        angle = math.pi * (points[..., 1] + 1)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        units = self._units(theta, frame)
        return theta[:, None] + self._radius(points[..., :1]) * direction * units

    def coordinates(self, theta: Tensor, size: tuple[int, ...], frame: Frame = SQUARE) -> Coordinates:
        theta = self.check_theta(theta)
        axes = (lattice(n, align_corners=frame.align_corners, dtype=theta.dtype, device=theta.device) for n in size)
        y, x = axes
        angle = math.pi * (y + 1)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        around = direction * self._units(theta, frame)  # (H, 2)
        return Coordinates("grid", size, theta[:, None, None] + self._radius(x)[:, None] * around[:, None])

    def to_polar(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        """Points of the image (B, N, 2) to the points of the output (B, N, 2) that are read there.

        The reverse of `map_points`: x is the radius, beyond [-1, 1] where it lies outside the radii of this transform
        (with `log` the origin itself is at minus infinity), y the angle, in [-1, 1).

        Example:
            >>> Polar().to_polar(torch.zeros(1, 2), torch.tensor([[[0.5, 0.0], [0.0, 1.0]]]))
            tensor([[[ 0.0000, -1.0000],
                     [ 1.0000, -0.5000]]])
        """
        theta = self.check_theta(theta)
        points = self.check_points(theta, points)
        offset = (points - theta[:, None]) / self._units(theta, frame)
        origin = (offset == 0).all(-1, keepdim=True)
        # At the origin the angle is 0, and neither the root nor the angle has a derivative to poison the others with.
        safe = torch.where(origin, torch.ones_like(offset), offset)
        radius = torch.where(origin[..., 0], 0.0, safe.square().sum(-1).sqrt())
        angle = torch.where(origin[..., 0], 0.0, torch.atan2(safe[..., 1], safe[..., 0]))
        if self.log:
            part = (radius / self.min_radius).log() / math.log(self.max_radius / self.min_radius)
        else:
            part = (radius - self.min_radius) / (self.max_radius - self.min_radius)
        return torch.stack([2 * part - 1, (angle / math.pi).remainder(2.0) - 1], dim=-1)

    def unmap_points(
        self,
        theta: Tensor,
        points: Tensor,
        frame: Frame = SQUARE,
        *,
        tolerance: float = 1e-4,
        missing: Literal["raise", "nan"] = "raise",
    ) -> Tensor:
        """`to_polar`: nothing is iterated. No point is missing but, with `log`, the origin.

        Raises:
            ValueError: for the origin with `log` (`missing="nan"`: NaN).
        """
        check_choice("missing", missing, ("raise", "nan"))
        found = self.to_polar(theta, points, frame)
        nowhere = ~found.isfinite().all(-1)
        if missing == "nan":
            return torch.where(nowhere[..., None], torch.nan, found)
        if bool(nowhere.any()):
            raise ValueError(
                "points: expected finite points that the warp reaches; with log=True it never reads the origin"
            )
        return found

    def _radius(self, x: Tensor) -> Tensor:
        part = (x + 1) / 2
        if self.log:
            return self.min_radius * (part * math.log(self.max_radius / self.min_radius)).exp()
        return self.min_radius + (self.max_radius - self.min_radius) * part

    def _units(self, theta: Tensor, frame: Frame) -> Tensor:
        """Half the image's shorter side, in normalized units of x and of y."""
        half = half_lengths(frame, 2, self.spacing)
        if half is None:
            return theta.new_ones(2)
        # An axis of one pixel has no length with align_corners: that of a pixel.
        sides = frame.spacing or self.spacing or (1.0, 1.0)
        half = tuple(h or side / 2 for h, side in zip(half, sides, strict=True))
        return theta.new_tensor([min(half) / h for h in half])

    def extra_repr(self) -> str:
        shown = ["log=True"] if self.log else []
        if self.min_radius != (_LOG_MIN_RADIUS if self.log else 0.0):
            shown.append(f"min_radius={self.min_radius:g}")
        shown += [] if self.max_radius == 1 else [f"max_radius={self.max_radius:g}"]
        return ", ".join(shown + ([] if self.spacing is None else [f"spacing={self.spacing}"]))
