"""From one family to another, where both can say the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import check_spacing, describe
from ..coordinates import MATRICES, Frame, check_frame
from ..geometry import as_projective
from .base import AbstractTransform, Compose

_CHECKED = 200  # points, at least, on which both are compared
_GROWTH = {1: 1.6180339887498949, 2: 1.3247179572447461, 3: 1.2207440846057596}  # x^(d + 1) = x + 1


def convert(
    theta: Tensor,  # (B, source.num_params)
    source: AbstractTransform,
    target: AbstractTransform,
    *,
    image_size: tuple[int, ...] | None = None,
    align_corners: bool = False,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """The theta of `target` for the very warp that theta is for `source`; an error where it is not exactly the same.

    Any matrix family goes into any other that has the matrix, and an affine map into thin plate splines, B-splines and
    displacement fields of any lattice; a spline or a field goes into another one that holds it, a finer one say. The
    result is compared with the source on points all over the frame, so what comes back is right there to float32's
    last digits. Beyond the frame splines and fields may go on differently.

    Args:
        target: any affine or projective family, `ThinPlateSpline`, `BSpline` or `DisplacementField`.
        image_size: ([D,] H, W) of the image that is read, where either family is true to the aspect.
        spacing: of its pixels, (x, y[, z]), where they are not square and the families do not say it themselves.

    Returns:
        (B, target.num_params).

    Raises:
        ValueError: where `target` cannot express the warp, or only beyond its bounds.

    Example:
        >>> import stn
        >>> turn = torch.tensor([[0.5]])
        >>> convert(turn, stn.Rotation(), stn.Affine()).round(decimals=2)
        tensor([[ 0.8800, -0.4800,  0.0000,  0.4800,  0.8800,  0.0000]])
    """
    for argument, value in (("source", source), ("target", target)):
        if not isinstance(value, AbstractTransform):
            raise ValueError(f"{argument}: expected a transform such as stn.Affine(), got {describe(value)}")
    if source.ndim != target.ndim:
        raise ValueError(f"target: expected a family in {source.ndim}D as the source, got {target}")
    theta = source.check_theta(theta)
    dtype, theta = theta.dtype, theta.double()
    frame = check_frame(Frame(image_size, align_corners, check_spacing(spacing, source.ndim)), source.ndim)
    result = _express(theta, source, target, dtype, frame).to(dtype)
    points = _spread(_CHECKED + 4 * (source.num_params + target.num_params), source.ndim)
    points = points.to(theta).expand(len(theta), -1, -1)
    wanted = source.map_points(theta, points, frame)
    got = target.map_points(result.double(), points, frame)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    missed = ~((got - wanted).abs() <= tolerance * (1 + wanted.abs()))
    if bool(missed.any()):
        raise _cannot(source, target, f"; that at index {int(missed.nonzero()[0, 0])} is not")
    return result


def _spread(n: int, d: int) -> Tensor:
    """Points (1, n, d) all over the frame, evenly, on no lattice: a field agrees with any other on its own points.

    Source: the additive recurrence of Roberts 2018.
    """
    steps = torch.tensor([_GROWTH[d] ** -(k + 1) for k in range(d)], dtype=torch.float64)
    return 2 * (torch.arange(n, dtype=torch.float64)[None, :, None] * steps).remainder(1.0) - 1


def _cannot(source: AbstractTransform, target: AbstractTransform, more: str = "") -> ValueError:
    return ValueError(f"target: expected a family that can express these warps of {source}, got {target}{more}")


def _express(
    theta: Tensor,
    source: AbstractTransform,
    target: AbstractTransform,
    dtype: torch.dtype,
    frame: Frame,
) -> Tensor:
    """The theta of `target` that agrees with the source wherever `target` is free to."""
    d = source.ndim

    def displacement(points: Tensor) -> Tensor:  # (N, d) -> (B, N, d)
        points = points.to(theta)[None].expand(len(theta), -1, -1)
        return source.map_points(theta, points, frame) - points

    if target.kind in MATRICES:
        if source.kind not in MATRICES or isinstance(target, Compose):
            raise _cannot(source, target)
        # The type says how exactly the matrix has to be one of the family.
        matrix = source.matrix(theta, frame).to(dtype)
        if target.kind != "affine":
            return target.from_matrix(as_projective(matrix))
        if matrix.shape[1] > d:  # a projective map that is affine has a last row 0 ... 0 w
            matrix = matrix / matrix[:, -1:, -1:]
        return target.from_matrix(matrix[:, :d], frame)
    fitted = target.fit(displacement)
    if fitted is None:
        raise _cannot(source, target)
    return fitted
