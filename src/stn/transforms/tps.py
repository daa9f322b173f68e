"""Thin plate splines: the smoothest warp that moves given points where they are told.

theta (B, K d) is the shift of each control point, (x, y[, z]) point by point, in normalized units; 0 is the identity.
The control points lie in the *output*; control point p is read in the input at p + shift. In between, the shift bends
as little as it can: it has the least bending energy, the integral of its squared second derivatives over the plane (or
space). That is an affine map and a sum of kernels at the control points, U(r) = r^2 log r in 2D and U(r) = -r in 3D.

A spline can fold, and a low bending energy is no guard: it is 0 for every affine map, mirrored and collapsed ones too.
With `max_offset` below half the distance of neighbours no two of them change places, which helps and does not suffice:
`folds` tells.

The energy is measured in the normalized frame, whatever the shape of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from .._checks import (
    check_batches,
    check_bound,
    check_choice,
    check_float_tensor,
    check_number,
    check_size,
    coordinate_dtype,
    describe,
)
from ..coordinates import SQUARE, Coordinates, Frame
from ..geometry import check_matrix, lattice_points
from ..ops import _torch
from .base import AbstractTransform, constants
from .bounds import bounded, unbounded


def tps_grid(
    theta: Tensor,
    control_points: Tensor,
    size: tuple[int, ...],
    *,
    regularization: float = 0.0,
    align_corners: bool = False,
) -> Tensor:
    """The sampling positions of thin plate splines.

    Pull, (x, y[, z]), normalized: control point p of the output is read at p + its shift in theta. The spline is solved
    anew at each call; a `ThinPlateSpline` solves it once.

    Args:
        theta: (B, K d), the shift of each control point, point by point.
        control_points: (K, 2) or (K, 3), constants: no gradient reaches them; or (B, K, d), others for each image, which
            gradients reach.
        size: of the output, (H, W) or (D, H, W).
        regularization: 0 passes through the shifted points; more trades distance from them for less bending.

    Returns:
        (B, H, W, 2) or (B, D, H, W, 3), float32 (float64 for a float64 theta).

    Raises:
        ValueError: for wrong shapes, types or sizes, and for control points that are too few, repeated, on one line (in
            3D: in one plane) or not finite.

    Example:
        >>> points = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
        >>> theta = torch.tensor([[0.1, 0.0, 0.1, 0.0, 0.1, 0.0, 0.1, 0.0]])  # every point by 0.1 along x
        >>> tps_grid(theta, points, (2, 1))
        tensor([[[[ 0.1000, -0.5000]],
                 [[ 0.1000,  0.5000]]]])

    Source: Bookstein 1989; Wahba 1990, section 2.4; Jaderberg et al. 2015, section 3.2.
    """
    if isinstance(control_points, Tensor) and control_points.ndim == 3:
        return _grid_of_each(theta, control_points, size, regularization, align_corners)
    transform = ThinPlateSpline(control_points, regularization=regularization)
    transform = transform.to(theta.device if isinstance(theta, Tensor) else None)
    return transform.grid(theta, size, Frame(align_corners=align_corners))


def thin_plate_spline(
    source: Tensor,  # (B, K, d) or (K, d)
    target: Tensor,  # (K, d)
    *,
    regularization: float = 0.0,
) -> tuple[ThinPlateSpline, Tensor]:
    """The thin plate spline that carries points of the input onto points of the output, and its theta.

    Pull, (x, y[, z]), normalized: output point `target[k]` is read at input point `source[k]`, so what the input shows
    at `source[k]` appears at `target[k]`.

    Args:
        source: (B, K, d), or (K, d) for a batch of one, points of the input; gradients reach them.
        target: (K, d), points of the output, constants: the control points of the spline.
        regularization: 0 passes through the points; more allows for noise in them.

    Returns:
        The transform, on the device of `target`, and theta (B, K d) for it.

    Raises:
        ValueError: for wrong shapes or types, and as for `ThinPlateSpline` for the target points.

    Example:
        >>> target = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
        >>> transform, theta = thin_plate_spline(0.5 * target, target)
        >>> transform.map_points(theta, torch.tensor([[[1.0, 0.5]]]))
        tensor([[[0.5000, 0.2500]]])

    Source: Bookstein 1989.
    """
    if isinstance(target, Tensor) and target.ndim == 3:
        raise ValueError(f"target: expected points (K, d), one set for the batch, got shape {tuple(target.shape)}")
    points = _check_control_points(target, "target")
    check_float_tensor("source", source, "points (B, K, d)")
    if source.ndim not in (2, 3) or source.shape[-2:] != points.shape:
        raise ValueError(
            f"source: expected points (B, {points.shape[0]}, {points.shape[1]}) as target, got shape {tuple(source.shape)}"
        )
    if source.device != target.device:
        raise ValueError(f"source: expected on the device of target ({target.device}), got {source.device}")
    transform = ThinPlateSpline(target, regularization=regularization)
    return transform, transform.from_points(source if source.ndim == 3 else source[None])


class ThinPlateSpline(AbstractTransform):
    """The warp of least bending that shifts each control point by what theta says.

    theta (B, K d) = shift x, shift y[, shift z] of each control point. Pull: control points lie in the output; control
    point p is read in the input at p + shift. Affine shifts give the affine map exactly (`from_matrix`).

    The spline is solved once, in float64: its weights alternate in sign and cancel, which costs float32 five digits on a
    20 x 20 lattice. On a lattice of pixels that has happened before theta comes: there the shifts are multiplied by the
    *cardinal* functions, each the spline that moves one control point by one, in which nothing is left to cancel and
    float32 is enough. At points of any other place the spline is evaluated in float64. Positions are theta's type. The
    control points and the solution follow the module to a device, but keep float64 under `.half()` and the like; they are
    part of the configuration, not of the state_dict.

    Args:
        control_points: (K, d) with d = 2 or 3, normalized, a tensor or nested lists; or the size of a lattice
            ([nz,] ny, nx), see `lattice`. The default is the paper's 16 points.
        regularization: 0 passes through the shifted points; more trades distance from them for less bending: the sum
            over the points of squared distances plus `regularization / (8 pi)` times the bending energy is least.
        max_offset: bounds every shift, smoothly; None for no bound.
        theta_is: "shifts", or "points" for a theta of the points themselves that are read for the control points, as
            text rectifiers predict them; the identity is the control points.

    Raises:
        ValueError: for fewer than d + 1 control points, for repeated ones, ones that are not finite or that lie on one
            line (in 3D: in one plane), and for options out of range.

    Example:
        >>> transform = ThinPlateSpline((3, 3))
        >>> theta = torch.zeros(1, 9, 2)
        >>> theta[0, 4] = torch.tensor([0.25, 0.0])  # the middle of the output is read to the right of the middle
        >>> transform.map_points(theta.flatten(1), torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
        tensor([[[0.2500, 0.0000],
                 [1.0000, 1.0000]]])

    Source: Duchon 1977; Bookstein 1989. Equal to `scipy.interpolate.RBFInterpolator` of degree 1, with
    `smoothing=regularization` and the kernel "thin_plate_spline" in 2D, "linear" in 3D.
    """

    control_points: Tensor  # (K, d)
    _solve: Tensor  # (K + d + 1, K): shifts -> kernel weights, constant, linear part
    _root: Tensor  # (K - d - 1, K): shifts -> numbers whose sum of squares is the bending energy

    def __init__(
        self,
        control_points: Tensor | Sequence[int] | Sequence[Sequence[float]] = (4, 4),
        *,
        regularization: float = 0.0,
        max_offset: float | None = None,
        theta_is: Literal["shifts", "points"] = "shifts",
    ) -> None:
        super().__init__()
        check_choice("theta_is", theta_is, ("shifts", "points"))
        _check_regularization(regularization)
        check_bound("max_offset", max_offset)
        with constants():
            self._size, points = _lattice_or_points(control_points)
        device = control_points.device if isinstance(control_points, Tensor) else None
        self.ndim, self.regularization, self.max_offset = points.shape[1], float(regularization), max_offset
        self.theta_is: Literal["shifts", "points"] = theta_is
        self._kept: tuple[object, Tensor] | None = None
        with constants():
            solve, root = _factor(points, self.regularization)
        self._register_constants(device, control_points=points, _solve=solve, _root=root)

    @classmethod
    def lattice(
        cls,
        *size: int,
        regularization: float = 0.0,
        max_offset: float | None = None,
        theta_is: Literal["shifts", "points"] = "shifts",
    ) -> Self:
        """Control points on a regular lattice of `ny, nx` or `nz, ny, nx` points, the outer ones on the frame's edges:
        rows from top to bottom, each from left to right.

        Example:
            >>> ThinPlateSpline.lattice(2, 3).control_points[:4].tolist()
            [[-1.0, -1.0], [0.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]
        """
        return cls(size, regularization=regularization, max_offset=max_offset, theta_is=theta_is)

    @classmethod
    def two_rows(
        cls,
        points: int = 20,
        *,
        regularization: float = 0.0,
        max_offset: float | None = None,
        theta_is: Literal["shifts", "points"] = "shifts",
    ) -> Self:
        """The layout of text rectifiers: half of the points along the top edge, from left to right, then half along the
        bottom edge; where they are read follows the outline of the word.

        Source: Shi et al. 2016, "Robust Scene Text Recognition with Automatic Rectification".

        Example:
            >>> ThinPlateSpline.two_rows(4).control_points.tolist()
            [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]
        """
        if isinstance(points, bool) or not isinstance(points, int) or points < 4 or points % 2:
            raise ValueError(f"points: expected an even int of at least 4, got {describe(points)}")
        return cls((2, points // 2), regularization=regularization, max_offset=max_offset, theta_is=theta_is)

    def config(self) -> dict[str, Any]:
        """As for any family. A lattice is kept by its size; other points are lists, every digit of them."""
        return super().config() | ({} if self._size is None else {"control_points": list(self._size)})

    @property
    def num_params(self) -> int:
        return self.control_points.numel()

    def identity(self) -> Tensor:
        if self.theta_is == "points":
            return self._constants["control_points"].flatten().float()
        return torch.zeros(self.num_params)

    def offsets(self, theta: Tensor) -> Tensor:
        """theta as the shift of each control point, (B, K, d); float64 where theta is points."""
        theta = self.check_theta(theta)
        if theta.device != self.control_points.device:
            raise ValueError(
                f"theta: expected on the device of the transform ({self.control_points.device}), got {theta.device}; "
                f"move the transform with .to()"
            )
        if self.theta_is == "points":
            theta = theta.to(torch.float64) - self.control_points.flatten()
        return bounded(theta, self.max_offset).unflatten(1, tuple(self.control_points.shape))

    def map_points(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        points = self.check_points(self.check_theta(theta), points)
        offsets = self.offsets(theta)
        # Products of float64 are safe from autocast and TF32, which leave no right digit.
        coefficients = self._solve @ offsets.to(torch.float64)
        basis = _basis(points.to(torch.float64), self.control_points)
        # Points of the whole batch take one product for the whole batch.
        one = points.shape[0] == 1
        shift = torch.einsum("nk,bkd->bnd", basis[0], coefficients) if one else basis @ coefficients
        return (points + shift).to(points.dtype, memory_format=torch.contiguous_format)

    def coordinates(self, theta: Tensor, size: tuple[int, ...], frame: Frame = SQUARE) -> Coordinates:
        coefficients = self.coefficients(theta)
        return Coordinates("basis", size, coefficients, self._basis_at(size, frame.align_corners, coefficients.dtype))

    def basis(self, size: tuple[int, ...], *, align_corners: bool = False) -> Tensor:
        """The cardinal functions and x, y[, z] at the pixels of an output of `size`, (N, K + d), N adjacent in memory; float64.

        Cardinal function k is the shift for a shift of 1 of control point k and none of the others. With `coefficients`
        they give the grid: `grid(theta, size) = basis(size) @ coefficients(theta)`, up to rounding and shape. The last
        one asked for is kept: it only depends on the configuration.

        Example:
            >>> ThinPlateSpline((2, 2)).basis((1, 2))[:, :4].float()  # halfway down, a quarter of the way across
            tensor([[0.3750, 0.1250, 0.3750, 0.1250],
                    [0.1250, 0.3750, 0.1250, 0.3750]])
        """
        return self._basis_at(check_size(size, self.ndim, least=0), align_corners, torch.float64)

    def _basis_at(self, size: tuple[int, ...], align_corners: bool, dtype: torch.dtype) -> Tensor:
        device = self.control_points.device
        if device.type == "cpu":  # whose kernel multiplies in float64 at no cost
            dtype = torch.float64
        if torch.compiler.is_compiling():
            return self._new_basis(size, align_corners, dtype)
        key = (size, align_corners, device, dtype)
        kept = self._kept  # read once: another thread may put another size there at any moment
        if kept is None or kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                basis = self._new_basis(size, align_corners, dtype)
            if type(basis) is not Tensor or _torch.is_wrapped(basis):  # made under a tracer, and good for that alone
                return basis
            kept = self._kept = key, basis
        return kept[1]

    def _new_basis(self, size: tuple[int, ...], align_corners: bool, dtype: torch.dtype) -> Tensor:
        points = self._lattice(self.control_points.new_empty(1, 0), size, align_corners)[0]
        cardinal = _basis(points, self.control_points) @ self._solve
        return torch.cat([cardinal, points], dim=1).to(dtype).t().contiguous().t()

    def coefficients(self, theta: Tensor) -> Tensor:
        """What `basis` is to be multiplied by, (B, K + d, d): the shifts, and below them 1 for x, y[, z] each."""
        shifts = self.offsets(theta).to(coordinate_dtype(theta))
        identity = torch.eye(self.ndim, dtype=shifts.dtype, device=shifts.device)
        return torch.cat([shifts, identity.expand(shifts.shape[0], -1, -1)], dim=1)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": None}

    def bending_energy(self, theta: Tensor) -> Tensor:
        """How much each warp bends, (B,): the integral of its squared second derivatives, summed over the axes, over
        the whole plane or space in normalized units. 0 for affine maps; no guard against folds.

        Example:
            >>> transform = ThinPlateSpline((2, 2))
            >>> transform.bending_energy(torch.tensor([[0.1, 0.0, -0.1, 0.0, -0.1, 0.0, 0.1, 0.0]]))
            tensor([0.3626])

        Source: Bookstein 1989; Wahba 1990, section 2.4.
        """
        offsets = self.offsets(theta)
        return (self._root @ offsets.to(torch.float64)).square().sum((1, 2)).to(coordinate_dtype(theta))

    def from_points(self, points: Tensor) -> Tensor:
        """The theta (B, K d) that reads the control points at `points` (B, K, d). Raises ValueError where `max_offset`
        is exceeded."""
        check_float_tensor("points", points, "points (B, K, d)")
        if points.ndim != 3 or points.shape[1:] != self.control_points.shape:
            k, d = self.control_points.shape
            raise ValueError(f"points: expected (B, {k}, {d}), got shape {tuple(points.shape)}")
        dtype = coordinate_dtype(points)
        offsets = points.to(torch.float64) - self.control_points
        if self.theta_is == "points":
            offsets = unbounded(offsets, self.max_offset, "max_offset") + self.control_points
            return offsets.to(dtype).flatten(1)
        return unbounded(offsets.to(dtype).flatten(1), self.max_offset, "max_offset")

    def fit(self, displacement: Callable[[Tensor], Tensor]) -> Tensor:
        """The theta that moves the control points so."""
        return self.from_points(self.control_points + displacement(self.control_points))

    def from_matrix(self, matrix: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta (B, K d) of affine maps (B, d, d+1), exact. Raises ValueError where `max_offset` is exceeded."""
        d = self.ndim
        if check_matrix("matrix", matrix) != d:
            raise ValueError(f"matrix: expected (B, {d}, {d + 1}), got shape {tuple(matrix.shape)}")
        m = matrix.to(torch.float64)
        points = (self.control_points[:, None, :] * m[:, None, :, :d]).sum(-1) + m[:, None, :, d]
        return self.from_points(points if matrix.dtype == torch.float64 else points.float())

    def extra_repr(self) -> str:
        shown = [f"{self.control_points.shape[0]} points in {self.ndim}D"]
        shown += [f"regularization={self.regularization:g}"] if self.regularization else []
        shown += [] if self.theta_is == "shifts" else [f"theta_is={self.theta_is!r}"]
        return ", ".join(shown + ([] if self.max_offset is None else [f"max_offset={self.max_offset:g}"]))


def _grid_of_each(
    theta: Tensor, control_points: Tensor, size: tuple[int, ...], regularization: float, align_corners: bool
) -> Tensor:
    """`tps_grid` with control points (B, K, d) that differ: one system for each image, solved whole, in float64."""
    _check_regularization(regularization)
    check_float_tensor("control_points", control_points, "control points (B, K, 2) or (B, K, 3)")
    if not torch.compiler.is_compiling():
        for index, each in enumerate(control_points):
            try:
                _check_control_points(each, "control_points")
            except ValueError as error:
                raise ValueError(f"{error}, among the points (K, 2) or (K, 3) of index {index}") from None
    k, d = control_points.shape[1:]
    size = check_size(size, d, least=0)
    check_float_tensor("theta", theta, f"(B, {k * d}) parameters")
    if theta.ndim != 2 or theta.shape[1] != k * d:
        raise ValueError(f"theta: expected (B, {k * d}), got shape {tuple(theta.shape)}")
    batch = check_batches("theta", theta, "control_points", control_points)
    points = control_points.to(torch.float64)
    basis = _basis(points, points[:, None])  # (B, K, K + d + 1)
    kernels = basis[..., :k] + regularization * torch.eye(k, dtype=torch.float64, device=points.device)
    polynomials = basis[..., k:]
    system = torch.cat(
        [
            torch.cat([kernels, polynomials], dim=2),
            torch.nn.functional.pad(polynomials.mT, (0, d + 1)),
        ],
        dim=1,
    )
    shifts = torch.nn.functional.pad(theta.to(torch.float64).unflatten(1, (k, d)), (0, 0, 0, d + 1))
    coefficients = torch.linalg.solve(system.expand(batch, -1, -1), shifts.expand(batch, -1, -1))
    lattice = lattice_points(points, size, align_corners)
    grid = lattice + _basis(lattice.expand(points.shape[0], -1, -1), points[:, None]) @ coefficients
    return grid.to(coordinate_dtype(theta)).unflatten(1, size)


def _check_regularization(value: float) -> None:
    check_number("regularization", value, "a finite number of at least 0", lambda v: 0 <= v < math.inf)


def _check_control_points(points: Tensor, argument: str) -> Tensor:
    """Control points (K, d) as float64 on the CPU, or a ValueError."""
    check_float_tensor(argument, points, "control points (K, 2) or (K, 3)")
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ValueError(f"{argument}: expected control points (K, 2) or (K, 3), got shape {tuple(points.shape)}")
    k, d = points.shape
    if k < d + 1:
        raise ValueError(f"{argument}: expected at least {d + 1} control points in {d}D, got {k}")
    points = points.detach().to("cpu", torch.float64, copy=True)
    if not bool(points.isfinite().all()):
        raise ValueError(
            f"{argument}: expected finite control points, got {points[~points.isfinite().all(1)][0].tolist()}"
        )
    spread = torch.linalg.svdvals(points - points.mean(0))
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    near = torch.triu(distance <= 1e-6 * float(spread[0]), diagonal=1)
    if bool(near.any()):
        i, j = near.nonzero()[0].tolist()
        raise ValueError(
            f"{argument}: expected distinct control points, but points {i} and {j} are both {points[i].tolist()}"
        )
    if float(spread[-1]) <= 1e-6 * float(spread[0]):
        raise ValueError(
            f"{argument}: expected control points that are not all {'on one line' if d == 2 else 'in one plane'}"
        )
    return points


def _lattice_or_points(control_points: Any) -> tuple[tuple[int, ...] | None, Tensor]:
    """The size of a lattice ([nz,] ny, nx) that spans the frame, None for points of their own; and the points (K, d)."""
    size, listed = None, not isinstance(control_points, str) and isinstance(control_points, Sequence)
    try:
        if listed and any(isinstance(point, Sequence) for point in control_points):
            control_points = torch.tensor(control_points, dtype=torch.float64)
        elif not isinstance(control_points, Tensor):
            size = check_size(control_points, 3 if listed and len(control_points) == 3 else 2, least=2)
    except (TypeError, ValueError):
        raise ValueError(
            f"control_points: expected points (K, 2) or (K, 3), a tensor or nested lists, or a lattice of 2 or 3 ints of "
            f"at least 2, got {describe(control_points)}"
        ) from None
    if size is not None:
        axes = [torch.arange(1 - n, n, 2, dtype=torch.float64) / (n - 1) for n in size]
        control_points = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).reshape(-1, len(size))
    return size, _check_control_points(control_points, "control_points")


def _kernel(points: Tensor, control_points: Tensor) -> Tensor:
    """U(|points (..., N, d) - control_points (K, d)|), (..., N, K); finite gradients at the control points too."""
    axes = zip(points.unbind(-1), control_points.unbind(-1), strict=True)
    r2 = sum(((p[..., None] - c).square() for p, c in axes), torch.zeros((), dtype=points.dtype, device=points.device))
    safe = torch.where(r2 > 0, r2, 1.0)
    return 0.5 * r2 * safe.log() if points.shape[-1] == 2 else -r2 / safe.sqrt()


def _basis(points: Tensor, control_points: Tensor) -> Tensor:
    """Kernels, 1, x, y[, z] at points (B, N, d): (B, N, K + d + 1)."""
    return torch.cat([_kernel(points, control_points), torch.ones_like(points[..., :1]), points], dim=-1)


def _factor(points: Tensor, regularization: float) -> tuple[Tensor, Tensor]:
    """The spline through K points as a linear map of their values, and a root of its bending energy.

    With kernel matrix U, P = (1, x, y[, z]) and the columns of N a basis of what is orthogonal to P, the weights are
    N (N'UN + regularization)^-1 N' values: N'UN is positive definite, so Cholesky will do.
    """
    k, d = points.shape
    kernel = _kernel(points, points)
    polynomials = torch.cat([torch.ones_like(points[:, :1]), points], dim=1)
    q, r = torch.linalg.qr(polynomials, mode="complete")
    span, null = q[:, : d + 1], q[:, d + 1 :]
    inner = null.T @ kernel @ null
    inner = (inner + inner.T) / 2
    eye = torch.eye(k, dtype=points.dtype, device=points.device)
    factor, failed = torch.linalg.cholesky_ex(inner + regularization * eye[d + 1 :, d + 1 :])
    inner_root, inner_failed = torch.linalg.cholesky_ex(inner)
    if int(failed) or int(inner_failed):
        raise ValueError("control_points: expected points that are further apart; in float64 they have no spline")
    reduced = torch.cholesky_solve(null.T, factor)  # (K - d - 1, K)
    weights = null @ reduced
    affine = torch.linalg.solve_triangular(r[: d + 1], span.T @ (eye - kernel @ weights), upper=True)
    # The kernels are 8 pi times fundamental solutions of the squared Laplacian.
    root = math.sqrt(8 * math.pi) * (inner_root.T @ reduced)
    return torch.cat([weights, affine]), root
