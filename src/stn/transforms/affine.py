"""The affine family, and everything that is affine under a constraint, each a parametrization of its own.

| family | theta in 2D | identity |
|---|---|---|
| `Affine` | the matrix, row by row (6); any of its entries can be fixed | 1 0 0 0 1 0 |
| `Similarity` | angle, scale, shift x, shift y (4) | 0 0 0 0 |
| `Rigid` | angle, shift x, shift y (3) | 0 0 0 |
| `Attention` | scale, shift x, shift y (3) | 0 0 0 |
| `Crop` | scale x, scale y, shift x, shift y (4) | 0 0 0 0 |
| `Translation` | shift x, shift y (2) | 0 0 |
| `Rotation` | angle (1) | 0 |

All of them exist in 3D (`ndim=3`), where a rotation takes three numbers, the axis times the angle, or six
(`rotation="6d"`); those that do not turn exist in 1D too.

Scales are logarithms (`scale=exp(theta)`), so they never reach zero or flip; `log_scale=False` takes them as they are,
with identity 1, as Jaderberg et al. write their attention. Angles are radians; since y points down, a positive angle
turns the sampled frame clockwise, so the content turns counterclockwise. Scales above 1 zoom out, shifts are in
normalized units of the input. Bounds are smooth, `bound * tanh(theta / bound)`: the identity and the slope there
stay as they are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import (
    check_bound,
    check_choice,
    check_flag,
    check_number,
    check_size,
    check_spacing,
    coordinate_dtype,
    describe,
)
from ..coordinates import SQUARE, Coordinates, Frame, half_lengths
from ..geometry import affine_positions, check_matrix, compose_matrices, invert_matrix, map_affine
from .base import AbstractTransform
from .bounds import bounded, bounded_length, evenly, unbounded, unbounded_length
from .rotations import Angle, AxisAngle, Rotations, SixD


def affine_grid(theta: Tensor, size: tuple[int, ...], *, align_corners: bool = False) -> Tensor:
    """The sampling positions of affine maps.

    Pull, (x, y[, z]), normalized: position = theta (x, y[, z], 1) for each pixel centre of the output.

    Args:
        theta: (B, 2, 3) or (B, 3, 4); in 1D (B, 1, 2).
        size: of the output, (H, W) or (D, H, W); in 1D (W,).

    Returns:
        (B, H, W, 2) or (B, D, H, W, 3), in 1D (B, W, 1); float32 (float64 for a float64 theta).

    Raises:
        ValueError: for any other shape, type or size.

    Example:
        >>> affine_grid(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), (1, 2))
        tensor([[[[-0.5000,  0.0000],
                  [ 0.5000,  0.0000]]]])

    Source: Jaderberg et al. 2015, equation 1.
    """
    d = check_matrix("theta", theta)
    return affine_positions(theta.to(coordinate_dtype(theta)), check_size(size, d, least=0), align_corners)


class AbstractMatrixTransform(AbstractTransform):
    """A family whose warps are affine maps."""

    kind = "affine"

    @abstractmethod
    def matrix(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        """theta (B, num_params) as affine maps (B, d, d+1)."""

    @abstractmethod
    def from_matrix(self, matrix: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta (B, num_params) of affine maps (B, d, d+1) that belong to the family."""

    def coordinates(self, theta: Tensor, size: tuple[int, ...], frame: Frame = SQUARE) -> Coordinates:
        return Coordinates("affine", size, self.matrix(theta, frame))

    def map_points(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        points = self.check_points(self.check_theta(theta), points)
        return map_affine(self.matrix(theta, frame), points)

    def _linearize(self, theta: Tensor, points: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        matrix = self.matrix(theta, frame)
        return map_affine(matrix, points), matrix[:, None, :, :-1].expand(-1, points.shape[1], -1, -1)


class Affine(AbstractMatrixTransform):
    """Any affine map: theta (B, d (d+1)) is the matrix (d, d+1), row by row, without the entries that are fixed.

    Args:
        ndim: 1, 2 or 3.
        max_delta: bounds every entry's distance from the identity, smoothly; None for no bound.
        fixed: the matrix (d, d+1) as nested sequences, a number for an entry that is fixed and None for one that theta says. Where
            a number is not the identity's, `identity` is the nearest map that there is.

    Raises:
        ValueError: for another `ndim` or bound, for a `fixed` of another shape, and for one that leaves theta nothing.

    Example:
        >>> Affine().matrix(Affine().identity()[None])
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
        >>> shear = Affine(fixed=[[1, None, 0], [0, 1, 0]])
        >>> shear.matrix(torch.tensor([[0.5]]))
        tensor([[[1.0000, 0.5000, 0.0000],
                 [0.0000, 1.0000, 0.0000]]])
    """

    def __init__(
        self,
        ndim: int = 2,
        *,
        max_delta: float | None = None,
        fixed: Sequence[Sequence[float | None]] | None = None,
    ) -> None:
        super().__init__()
        self.ndim = _check_ndim(ndim, (1, 2, 3))
        check_bound("max_delta", max_delta)
        self.max_delta = max_delta
        entries = [None] * (ndim * (ndim + 1)) if fixed is None else _check_fixed(fixed, ndim)
        self.fixed = None if fixed is None else tuple(map(tuple, fixed))
        self._fixed = tuple(entries)
        self._free = [i for i, entry in enumerate(entries) if entry is None]
        self._all_free = len(self._free) == len(entries)

    @property
    def num_params(self) -> int:
        return len(self._free)

    @property
    def param_names(self) -> tuple[str, ...]:
        axes = "xyz"[: self.ndim]
        names = [name for to in axes for name in (*(f"{to} from {of}" for of in axes), f"shift {to}")]
        return tuple(names[i] for i in self._free)

    @property
    def closed(self) -> bool:
        return self.max_delta is None and self._all_free

    def identity(self) -> Tensor:
        entries = torch.eye(self.ndim, self.ndim + 1).flatten()
        return entries if self._all_free else entries[self._free]

    def matrix(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        theta = self.check_theta(theta)
        if self.max_delta is not None:
            identity = self.identity().to(theta)
            theta = identity + bounded(theta - identity, self.max_delta)
        if not self._all_free:
            columns = iter(theta.unbind(1))
            entries = [next(columns) if e is None else theta.new_full(theta.shape[:1], e) for e in self._fixed]
            theta = torch.stack(entries, dim=1)
        return theta.reshape(-1, self.ndim, self.ndim + 1)

    def inverse(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        """Raises ValueError for a singular matrix, or for an inverse outside `max_delta` or `fixed`."""
        return self.from_matrix(invert_matrix(self.matrix(theta)))

    def compose(self, a: Tensor, b: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta of p -> a(b(p))."""
        return self.from_matrix(compose_matrices(self.matrix(a), self.matrix(b)))

    def from_matrix(self, matrix: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta (B, num_params) of affine maps (B, d, d+1). Raises ValueError where `max_delta` is exceeded or an entry
        is not the one that is fixed."""
        theta = _check_matrix(matrix, self.ndim).flatten(1)
        if not self._all_free:
            theta = self._without_fixed(theta)
        identity = self.identity().to(theta)
        return identity + unbounded(theta - identity, self.max_delta, "max_delta")

    def spread(self, unit: Tensor) -> Tensor:
        unit = self.check_unit(unit)
        if self.max_delta is None:
            raise ValueError("transform: expected Affine with max_delta to spread theta over, got None")
        return self.identity().to(unit) + evenly(unit, self.max_delta)

    def _without_fixed(self, entries: Tensor) -> Tensor:
        tolerance = 1e-4 if entries.dtype == torch.float32 else 1e-9
        for i, wanted in enumerate(self._fixed):
            if wanted is None or torch.compiler.is_compiling():
                continue
            missed = ~((entries[:, i] - wanted).abs() <= tolerance * max(1.0, abs(wanted)))
            if bool(missed.any()):
                row, column = divmod(i, self.ndim + 1)
                index = int(missed.nonzero()[0])
                raise ValueError(
                    f"matrix: expected maps with {wanted:g} in row {row}, column {column}, which is fixed, got "
                    f"{float(entries[index, i]):g} at index {index}"
                )
        return entries[:, self._free]

    def extra_repr(self) -> str:
        shown = [] if self.ndim == 2 else [f"ndim={self.ndim}"]
        shown += [] if self.max_delta is None else [f"max_delta={self.max_delta:g}"]
        if not self._all_free:
            width = self.ndim + 1
            shown.append(f"fixed={[list(self._fixed[i : i + width]) for i in range(0, len(self._fixed), width)]}")
        return ", ".join(shown)


RotationName = Literal["axis-angle", "6d"]


class AbstractConstrained(AbstractMatrixTransform):
    """Turn, then scale, then shift: p -> S^-1 R S diag(scale) p + shift, with S the image's half extent in pixels, or in
    millimetres where `spacing` says how large they are, so that the turn R is a true one on the image. Each member has
    some of the three."""

    _turns = False
    _scales: Literal["none", "one", "each"] = "none"  # one for all axes, or one for each
    _shifts = False

    def __init__(
        self,
        ndim: int = 2,
        *,
        rotation: RotationName = "axis-angle",
        max_angle: float | None = None,
        max_scale: float | None = None,
        max_shift: float | None = None,
        log_scale: bool = True,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.ndim = _check_ndim(ndim, (2, 3) if self._turns else (1, 2, 3))
        self.spacing = check_spacing(spacing, self.ndim)
        check_choice("rotation", rotation, ("axis-angle", "6d"))
        if rotation == "6d" and self.ndim != 3:
            raise ValueError("rotation: expected 'axis-angle' with ndim=2; '6d' belongs to ndim=3")
        if rotation == "6d" and max_angle is not None:
            raise ValueError("max_angle: expected None with rotation='6d', which has no bounded form")
        check_bound("max_angle", max_angle)
        if max_angle is not None and max_angle > 2 * math.pi:
            raise ValueError(f"max_angle: expected radians, up to a whole turn of 2 pi, got {max_angle:g}; in degrees?")
        check_bound("max_scale", max_scale, above=1.0)
        check_bound("max_shift", max_shift)
        check_flag("log_scale", log_scale)
        if max_scale is not None and not log_scale:
            raise ValueError("max_scale: expected None with log_scale=False, which has no bounded form")
        self.rotation = rotation
        self.max_angle, self.max_scale, self.max_shift, self.log_scale = max_angle, max_scale, max_shift, log_scale
        self._rotations: Rotations = Angle() if self.ndim == 2 else AxisAngle() if rotation == "axis-angle" else SixD()
        # How many numbers of theta the turn, the scale and the shift take.
        self.widths = (
            self._rotations.n if self._turns else 0,
            {"none": 0, "one": 1, "each": self.ndim}[self._scales],
            self.ndim if self._shifts else 0,
        )

    @property
    def num_params(self) -> int:
        return sum(self.widths)

    @property
    def param_names(self) -> tuple[str, ...]:
        axes = "xyz"[: self.ndim]
        turns, scales, shifts = self.widths
        scale = "log scale" if self.log_scale else "scale"
        scaled = [scale] if scales == 1 else [f"{scale} {axis}" for axis in axes[:scales]]
        return (*self._rotations.names[:turns], *scaled, *(f"shift {axis}" for axis in axes[:shifts]))

    @property
    def closed(self) -> bool:
        return self.max_angle is None and self.max_scale is None and self.max_shift is None

    def identity(self) -> Tensor:
        turns, scales, shifts = self.widths
        numbers = self._rotations.identity()[:turns] + [0.0 if self.log_scale else 1.0] * scales + [0.0] * shifts
        return torch.tensor(numbers)

    def decode(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta as rotation (B, 1) in radians ((B, 3) or (B, 6) in 3D), scale (B, d) and shift (B, d)."""
        theta = self.check_theta(theta)
        turn, scale, shift = theta.split(self.widths, dim=1)
        if not self._turns:
            turn = theta.new_tensor(self._rotations.identity()).expand(theta.shape[0], -1)
        else:
            turn = bounded_length(turn, self.max_angle)
        if self._scales == "none":
            scale = theta.new_ones(theta.shape[0], 1)
        elif self.log_scale:
            scale = bounded(scale, None if self.max_scale is None else math.log(self.max_scale)).exp()
        shift = bounded(shift, self.max_shift) if self._shifts else theta.new_zeros(theta.shape[0], self.ndim)
        return turn, scale.expand(-1, self.ndim), shift

    def encode(self, turn: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The inverse of `decode`. Raises ValueError where a bound is exceeded."""
        parts = []
        if self._turns:
            parts.append(unbounded_length(turn, self.max_angle, "max_angle"))
        if self._scales != "none":
            scale = scale[:, : self.widths[1]]
            bound = None if self.max_scale is None else math.log(self.max_scale)
            parts.append(unbounded(scale.log(), bound, "max_scale") if self.log_scale else scale)
        if self._shifts:
            parts.append(unbounded(shift, self.max_shift, "max_shift"))
        return torch.cat(parts, dim=1)

    def spread(self, unit: Tensor) -> Tensor:
        unit = self.check_unit(unit)
        turns, scales, shifts = self.widths
        if self.rotation == "6d" or not self.log_scale:
            raise ValueError(
                f"transform: expected {type(self).__name__} with bounds to spread theta over, which rotation='6d' and log_scale=False "
                "have none of"
            )
        for name, width in (("max_scale", scales), ("max_shift", shifts)):
            if width and getattr(self, name) is None:
                raise ValueError(
                    f"transform: expected {type(self).__name__} with {name} to spread theta over, got None"
                )
        turn, scale, shift = unit.split(self.widths, dim=1)
        if self.max_angle is None:
            turn = math.pi * (2 * turn - 1) / max(turns, 1) ** 0.5
        else:
            turn = unbounded_length(
                0.999 * self.max_angle * (2 * turn - 1) / max(turns, 1) ** 0.5, self.max_angle, "max_angle"
            )
        parts = [turn]
        if self.max_scale is not None:
            parts.append(evenly(scale, math.log(self.max_scale)))
        if self.max_shift is not None:
            parts.append(evenly(shift, self.max_shift))
        return torch.cat(parts, dim=1)

    def matrix(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        """theta as affine maps (B, d, d+1), true to the aspect of the frame."""
        turn, scale, shift = self.decode(theta)
        return torch.cat([self._linear(turn, scale, frame), shift[:, :, None]], dim=-1)

    def from_matrix(self, matrix: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta of affine maps (B, d, d+1). Raises ValueError for maps outside the family or its bounds."""
        matrix = _check_matrix(matrix, self.ndim)
        pixels = matrix[:, :, :-1] / self._aspect(matrix, frame)
        if self._turns:
            determinant = torch.linalg.det(pixels)
            size = determinant.sign() * determinant.abs() ** (1 / self.ndim)
            scale = size[:, None].expand(-1, self.ndim) if self._scales != "none" else torch.ones_like(pixels[:, 0])
            turn = self._rotations.from_matrix(pixels / scale[:, None, :])
        else:
            scale = pixels.diagonal(dim1=1, dim2=2)
            turn = matrix.new_tensor(self._rotations.identity()).expand(len(matrix), -1)
        theta = self.encode(turn, scale, matrix[:, :, -1])
        missed = self.matrix(theta, frame) - matrix
        tolerance = 1e-4 if matrix.dtype == torch.float32 else 1e-9
        if not torch.compiler.is_compiling() and bool((~(missed.abs() <= tolerance)).any()):
            raise ValueError(
                f"matrix: expected maps of {type(self).__name__}, got one that is not at index "
                f"{int((~(missed.abs() <= tolerance)).nonzero()[0, 0])}"
            )
        return theta

    def inverse(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        turn, scale, shift = self.decode(theta)
        if not self.log_scale and not torch.compiler.is_compiling() and bool((scale == 0).any()):
            raise ValueError("theta: expected invertible maps, got a scale of 0")
        turn, scale = self._rotations.inverse(turn), 1 / scale
        linear = self._linear(turn, scale, frame)
        return self.encode(turn, scale, -(linear * shift[:, None, :]).sum(-1))

    def compose(self, a: Tensor, b: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta of p -> a(b(p)), in the same family."""
        turn_a, scale_a, shift_a = self.decode(a)
        turn_b, scale_b, shift_b = self.decode(b)
        linear = self._linear(turn_a, scale_a, frame)
        turn = self._rotations.compose(turn_a, turn_b)
        return self.encode(turn, scale_a * scale_b, (linear * shift_b[:, None, :]).sum(-1) + shift_a)

    def _linear(self, turn: Tensor, scale: Tensor, frame: Frame) -> Tensor:
        if not self._turns:
            return torch.diag_embed(scale)
        return self._rotations.matrix(turn) * self._aspect(turn, frame) * scale[:, None, :]

    def _aspect(self, like: Tensor, frame: Frame) -> Tensor | float:
        """(d, d), or 1 for all: what an entry of a matrix on pixels becomes in normalized coordinates."""
        half = half_lengths(frame, self.ndim, self.spacing)
        if half is None:
            return 1.0
        if not torch.compiler.is_compiling() and all(h == half[0] > 0 for h in half):  # or lengths are no numbers
            return 1.0
        # An axis of one pixel has no length with align_corners: nothing turns into it.
        ratio = [[to / of if to and of else float(i == j) for j, to in enumerate(half)] for i, of in enumerate(half)]
        return like.new_tensor(ratio)

    def extra_repr(self) -> str:
        shown = [] if self.ndim == 2 else [f"ndim={self.ndim}"]
        shown += [] if self.rotation == "axis-angle" else [f"rotation={self.rotation!r}"]
        options = {"max_angle": self.max_angle, "max_scale": self.max_scale, "max_shift": self.max_shift}
        shown += [f"{name}={value:g}" for name, value in options.items() if value is not None]
        shown += [] if self.log_scale else ["log_scale=False"]
        return ", ".join(shown + ([] if self.spacing is None else [f"spacing={self.spacing}"]))


class Similarity(AbstractConstrained):
    """Rotation, one scale and shift, true to the aspect: theta (B, 4) = angle, log scale, shift x, shift y.

    In 3D theta (B, 7) has the rotation's vector in place of the angle, and a shift z.

    Args:
        ndim: 2 or 3.
        rotation: in 3D, "axis-angle": the axis times the angle, in radians; "6d": the first two columns of the
            rotation matrix, made orthonormal, which is continuous in the rotation (theta has 3 numbers more).
        max_angle: radians. max_scale: the scale stays within [1/max_scale, max_scale]. max_shift: normalized units.
        log_scale: False takes the scale itself, with identity 1.
        spacing: the length of a pixel's side along (x, y[, z]), such as (1, 1, 3) for voxels of 1 x 1 x 3 mm: turns are
            then true ones in space. Square unless given, here or with the image (`stn.warp(..., spacing=)`).

    Example:
        >>> Similarity(max_angle=1.0).identity()
        tensor([0., 0., 0., 0.])
        >>> Similarity(3).num_params
        7
    """

    _turns, _scales, _shifts = True, "one", True


class Rigid(AbstractConstrained):
    """Rotation and shift, true to the aspect: theta (B, 3) = angle, shift x, shift y; in 3D (B, 6), with
    `rotation="6d"` (B, 9). Options as of `Similarity`."""

    _turns, _shifts = True, True

    def __init__(
        self,
        ndim: int = 2,
        *,
        rotation: RotationName = "axis-angle",
        max_angle: float | None = None,
        max_shift: float | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(ndim, rotation=rotation, max_angle=max_angle, max_shift=max_shift, spacing=spacing)


class Attention(AbstractConstrained):
    """One scale and shift, the paper's attention: theta (B, 3) = log scale, shift x, shift y; any dimension."""

    _scales, _shifts = "one", True

    def __init__(
        self, ndim: int = 2, *, max_scale: float | None = None, max_shift: float | None = None, log_scale: bool = True
    ) -> None:
        super().__init__(ndim, max_scale=max_scale, max_shift=max_shift, log_scale=log_scale)


class Crop(AbstractConstrained):
    """A scale for each axis and shift, an upright box: theta (B, 4) = log scale x, log scale y, shift x, shift y; any
    dimension."""

    _scales, _shifts = "each", True

    def __init__(
        self, ndim: int = 2, *, max_scale: float | None = None, max_shift: float | None = None, log_scale: bool = True
    ) -> None:
        super().__init__(ndim, max_scale=max_scale, max_shift=max_shift, log_scale=log_scale)


class Translation(AbstractConstrained):
    """Shift: theta (B, 2) = shift x, shift y; any dimension."""

    _shifts = True

    def __init__(self, ndim: int = 2, *, max_shift: float | None = None) -> None:
        super().__init__(ndim, max_shift=max_shift)


class Rotation(AbstractConstrained):
    """Rotation about the centre, true to the aspect: theta (B, 1) = angle; in 3D (B, 3), with `rotation="6d"` (B, 6).
    Options as of `Similarity`."""

    _turns = True

    def __init__(
        self,
        ndim: int = 2,
        *,
        rotation: RotationName = "axis-angle",
        max_angle: float | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(ndim, rotation=rotation, max_angle=max_angle, spacing=spacing)


def _check_ndim(ndim: int, choices: tuple[int, ...]) -> int:
    if isinstance(ndim, bool) or not isinstance(ndim, int) or ndim not in choices:
        raise ValueError(f"ndim: expected {', '.join(map(str, choices[:-1]))} or {choices[-1]}, got {describe(ndim)}")
    return ndim


def _check_fixed(fixed: Any, d: int) -> list[float | None]:
    """The entries of a matrix row by row, numbers and None, or a ValueError."""
    expected = f"{d} rows of {d + 1} finite numbers or None"
    rows = list(fixed) if isinstance(fixed, Sequence) and not isinstance(fixed, str) else []
    if len(rows) != d or any(isinstance(r, str) or not isinstance(r, Sequence) or len(r) != d + 1 for r in rows):
        raise ValueError(f"fixed: expected {expected}, got {describe(fixed)}")
    entries = [entry for row in rows for entry in row]
    for entry in entries:
        if entry is not None:
            check_number("fixed", entry, expected, math.isfinite)
    if None not in entries:
        raise ValueError(f"fixed: expected at least one entry of None for theta, got {describe(fixed)}")
    return entries


def _check_matrix(matrix: Tensor, d: int) -> Tensor:
    if check_matrix("matrix", matrix) != d:
        raise ValueError(f"matrix: expected (B, {d}, {d + 1}), got shape {tuple(matrix.shape)}")
    return matrix.to(coordinate_dtype(matrix))
