"""Registration: the warp that brings one image onto another, by gradient descent on theta, coarse to fine.

There is no network: theta itself is what is learned. Descent alone stops at the next texture edge, so it starts where the
images are small (Lucas and Kanade 1981; as a transformer: Lin and Lucey 2017).
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import check_choice, check_count, check_image, check_number, describe
from .conventions import check_world, spacing_of, theta_from_world
from .coordinates import MATRICES, Frame
from .geometry import compose_matrices, differences, invert_matrix, map_affine, map_projective
from .reading import Fill, Mode, PaddingMode
from .sampling import sample, warp
from .transforms.base import TRANSFORMS, AbstractTransform
from .transforms.config import TransformLike, check_transform
from .transforms.flow import AbstractField

Similarity = Literal["mse", "ncc", "mi"]

_COARSEST = 16  # pixels along the longest axis from which a level is worth it
_HALVINGS = 6  # of the step, from half a pixel, until the finest level is done; half of them on the others
_PATIENCE = 6  # steps without gain before the step is halved
_GAIN, _FLOOR = 3e-4, 0.03  # part of the loss that counts as one, where that is not small itself
_LEAST_OVERLAP = 0.25
_LEAST_DETAIL = 0.35  # of `_alike`; measured on photographs: pairs 0.87 and more, others up to 0.29
_BINS = 32
_SAMPLES = 2**15  # pixels that mutual information is taken from


@dataclass(frozen=True)
class Registration:
    """Where the pixels of `fixed` are read in `moving`: first `transform` in the frame of `fixed`, then `outer` into that
    of `moving`."""

    transform: AbstractTransform
    theta: Tensor  # (1, num_params)
    outer: Tensor  # (1, d, d+1) or (1, d+1, d+1), normalized
    laid: Tensor  # (1, d, d+1), what `outer` is before any registration: as the images lie in the world
    fixed_size: tuple[int, ...]
    moving_size: tuple[int, ...]
    spacing: tuple[float, ...] | None  # of the fixed image, where the world is told
    before: float  # the loss without `transform`, of the images in full
    after: float
    steps: int
    problem: str | None  # why it did not converge

    @property
    def converged(self) -> bool:
        return self.problem is None

    @property
    def frame(self) -> Frame:
        return Frame(self.fixed_size, False, self.spacing)

    def matrix(self) -> Tensor:
        """All of it as one matrix (1, d, d+1) or (1, d+1, d+1).

        Raises:
            ValueError: for families whose warps are no matrices.
        """
        return compose_matrices(self.outer, self.transform.matrix(self.theta, self.frame))

    def warp(self, moving: Tensor, *, mode: Mode = "bilinear", padding_mode: PaddingMode = "zeros", fill: Fill = 0.0) -> Tensor:  # fmt: skip
        """`moving`, or labels on its lattice with `mode="nearest"`, as `fixed` shows it: (1, C, *fixed_size)."""
        return _read(self, self.theta, moving, self.fixed_size, mode=mode, padding_mode=padding_mode, fill=fill)

    def unwarped(self, moving: Tensor, *, mode: Mode = "bilinear", padding_mode: PaddingMode = "zeros") -> Tensor:
        """`moving` on the lattice of `fixed` without any registration: as the two lie in the world, or frame on frame."""
        return warp(moving, self.laid, self.fixed_size, mode=mode, padding_mode=padding_mode)

    def map_points(self, points: Tensor) -> Tensor:
        """Normalized points (1, N, d) of `fixed`, where they lie in `moving`."""
        return _map(self.outer, self.transform.map_points(self.theta, points, self.frame))

    def unmap_points(self, points: Tensor, *, missing: Literal["raise", "nan"] = "raise") -> Tensor:
        """Normalized points (1, N, d) of `moving`, where they appear in `fixed`."""
        outer = invert_matrix(self.outer)
        return self.transform.unmap_points(self.theta, _map(outer, points), self.frame, missing=missing)

    def folds(self) -> bool:
        """Whether the warp folds over somewhere."""
        return bool(self.transform.folds(self.theta, self.fixed_size, self.frame).any())


def register(
    fixed: Tensor,  # (1, C, [D,] H, W)
    moving: Tensor,  # (1, C, [D,] H, W)
    transform: TransformLike = "affine",
    *,
    similarity: Similarity = "ncc",
    fixed_world: Any = None,
    moving_world: Any = None,
    initial: Registration | None = None,
    levels: int | None = None,
    steps: int = 200,
    smoothness: float = 1e-4,
) -> Registration:
    """Find the warp that makes `moving` look like `fixed`: at each pixel of `fixed`, where `moving` is read.

    Adam on theta, on each level of a pyramid from coarse to fine, in steps that start at half a pixel and are halved
    where nothing is gained any more. Only what both images show is compared.

    Args:
        fixed, moving: one image each, of sizes of their own and as many channels.
        transform: the family, its name or its configuration. It works in the frame of `fixed`.
        similarity: "mse": the same brightness; "ncc": the same up to contrast and brightness (the correlation);
            "mi": one tells the other (mutual information; of several channels, their mean), as of two kinds of scanner.
        fixed_world, moving_world: pixel-to-world matrices (d+1, d+1), as `stn.conventions.world_to_normalized` has them. Then
            the start is as the images lie in the world; without, as their frames lie on each other.
        initial: a registration of the same images by a matrix family to start from: `transform` then comes on top of it.
        levels: of the pyramid; from about 16 pixels on unless given.
        steps: on each level, at most.
        smoothness: weight of the bending energy of families that have one in closed form, and of the squared slopes of
            fields.

    Returns:
        A `Registration`. Its `problem` says why it did not converge: still gaining when the steps were used up, hardly
        any overlap, no better than before, edges that do not meet, folds.

    Raises:
        ValueError: for images that are not one each or differ in channels, and for options out of range.

    Example:
        >>> import stn
        >>> y, x = torch.meshgrid(stn.geometry.lattice(32), stn.geometry.lattice(32), indexing="ij")
        >>> moving = (-8 * (x.square() + 2 * y.square()))[None, None].exp()
        >>> fixed = stn.warp(moving, torch.tensor([[0.2, -0.1]]), transform=stn.Translation())
        >>> found = register(fixed, moving, "translation")
        >>> found.converged, [round(v, 2) for v in found.theta[0].tolist()]
        (True, [0.2, -0.1])
    """
    d, fixed_size, moving_size = _check_pair(fixed, moving)
    family = check_transform({"name": transform, "ndim": d} if _takes_ndim(transform, d) else transform)
    if family.ndim != d:
        raise ValueError(f"transform: expected a family in {d}D, as the images, got {family}")
    check_choice("similarity", similarity, ("mse", "ncc", "mi"))
    check_count("steps", steps)
    check_number("smoothness", smoothness, "a finite number of at least 0", lambda v: 0 <= v < math.inf)
    if levels is not None:
        check_number("levels", levels, "an int from 1 to 10", lambda n: isinstance(n, int) and 1 <= n <= 10)
    laid, spacing = _start(d, fixed, fixed_world, fixed_size, moving_world, moving_size)
    outer = laid
    if initial is not None:
        if not isinstance(initial, Registration) or (initial.fixed_size, initial.moving_size) != (
            fixed_size,
            moving_size,
        ):
            raise ValueError(f"initial: expected a registration of images of these sizes, got {describe(initial)}")
        outer = initial.matrix()
    sides = spacing or (1.0,) * d
    moving_sides = (1.0,) * d if moving_world is None else spacing_of(moving_world)
    if levels is None:
        levels = 1 + max(0, round(math.log2(max(fixed_size) / _COARSEST)))
    dtype = torch.float64 if fixed.dtype == torch.float64 else torch.float32
    a, b = fixed.detach().to(dtype), moving.detach().to(dtype)
    theta = family.identity().to(a)[None]
    state = Registration(
        family, theta, outer.to(a), laid.to(a), fixed_size, moving_size, spacing, math.nan, math.nan, 0, None
    )
    unit = min(sides)
    total, finished = 0, False
    for level in reversed(range(levels)):
        size, other = (_reduced(n, s, unit, level) for n, s in ((fixed_size, sides), (moving_size, moving_sides)))
        pair = _Pair(state, _shrink(a, size), _shrink(b, other), similarity, smoothness)
        theta, taken, finished = _descend(pair, theta, steps, _HALVINGS if level == 0 else _HALVINGS // 2)
        total += taken
    full = _Pair(state, a, b, similarity, 0.0)
    with torch.no_grad():
        before, after = float(full(family.identity().to(a)[None])), float(full(theta))
        moved, there = full.read(theta)
        overlap, alike = float(there.mean()), _alike(a, moved, there)
    problem = None
    if not math.isfinite(after):
        problem = "the loss is not finite"
    elif overlap < _LEAST_OVERLAP:
        problem = f"only {overlap:.0%} of the fixed image is covered by the moving one"
    elif after > before + 1e-6:
        problem = f"the images are no more alike than before: the loss was {before:.4g}, and is {after:.4g}"
    elif alike < _LEAST_DETAIL:
        problem = f"the images are hardly alike: their edges have a correlation of {alike:.2f} where they end up"
    elif not finished:
        problem = f"still gaining after {steps} steps on the finest level; try more steps"
    elif family.kind not in MATRICES and bool(family.folds(theta, fixed_size, state.frame).any()):
        problem = "the warp folds over; try more smoothness or fewer control points"
    return replace(state, theta=theta, before=before, after=after, steps=total, problem=problem)


class _Pair:
    """Both images on one level, and how unlike they are."""

    def __init__(self, state: Registration, fixed: Tensor, moving: Tensor, similarity: Similarity, smoothness: float):
        self.state, self.fixed, self.similarity, self.smoothness = state, fixed, similarity, smoothness
        self.size = tuple(fixed.shape[2:])
        # A channel of ones says where the moving image is.
        self.moving = torch.cat([moving, torch.ones_like(moving[:, :1])], 1)
        self.variance = float(fixed.var(correction=0)) or 1.0
        self.histogram = _Histogram(fixed, moving) if similarity == "mi" else None

    def read(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The moving image as it is seen now, and where it is: 1 or 0."""
        read = _read(self.state, theta, self.moving, self.size)
        return read[:, :-1], (read[:, -1:] > 0.999).to(read.dtype).detach()

    def __call__(self, theta: Tensor) -> Tensor:
        """How unlike they are, where both are."""
        moved, there = self.read(theta)
        if self.histogram is not None:
            return self.histogram(moved, there) + self._bending(theta)
        if self.similarity == "mse":
            return _mean((self.fixed - moved).square(), there).mean() / self.variance + self._bending(theta)
        return 1 - _correlation(self.fixed, moved, there) + self._bending(theta)

    def _bending(self, theta: Tensor) -> Tensor | float:
        if not self.smoothness:
            return 0.0
        family = self.state.transform
        if isinstance(family, AbstractField):
            field = family.field(theta)
            slopes = [field.diff(dim=1 + i) * (n - 1) / 2 for i, n in enumerate(family.size) if n > 1]
            return self.smoothness * sum((s.square().mean() for s in slopes), theta.new_zeros(()))
        energy = family.bending_energy(theta)
        return 0.0 if energy is None else self.smoothness * energy.sum()


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """Of each channel, (1, C, 1, ...)."""
    axes = tuple(range(2, values.ndim))
    return (values * there).sum(axes, keepdim=True) / there.sum().clamp_min(1.0)


def _correlation(a: Tensor, b: Tensor, there: Tensor) -> Tensor:
    a, b = a - _mean(a, there), b - _mean(b, there)
    spread = (_mean(a.square(), there) * _mean(b.square(), there)).clamp_min(1e-20).sqrt()
    return (_mean(a * b, there) / spread).mean()


def _alike(fixed: Tensor, moved: Tensor, there: Tensor) -> float:
    """The correlation of the edges of both at a size of 64 pixels, beyond their mean over 9 of them: broad patches of any
    two images can be brought onto each other, edges cannot."""
    size = tuple(min(n, max(4, round(64 * n / max(fixed.shape[2:])))) for n in fixed.shape[2:])
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1]

    def edges(image: Tensor) -> Tensor:
        small = _shrink(image.mean(1, keepdim=True), size)
        steps = [differences(small, axis).square() for axis in range(2, small.ndim)]
        strength = torch.stack(steps).sum(0).sqrt()
        return strength - pool(strength, 9, 1, 4, count_include_pad=False)

    kept = (_shrink(there, size) > 0.999).to(fixed.dtype)
    return float(_correlation(edges(fixed * there), edges(moved * there), kept))


class _Histogram:
    """The mutual information of two images, from a joint histogram that is smooth in the second.

    Source: Mattes et al. 2003.
    """

    def __init__(self, fixed: Tensor, moving: Tensor) -> None:
        n = fixed[0, 0].numel()
        self.step = max(1, n // _SAMPLES)
        gray = moving.mean(1)
        self.low, self.high = float(gray.amin()), float(gray.amax())
        values = fixed.mean(1).flatten()[:: self.step]
        self.rows = self._weights(values, float(values.amin()), float(values.amax()))

    def __call__(self, moved: Tensor, there: Tensor) -> Tensor:
        columns = self._weights(moved.mean(1).flatten()[:: self.step], self.low, self.high)
        joint = self.rows.T @ (columns * there.flatten()[:: self.step, None])
        joint = joint / joint.sum().clamp_min(1e-20)
        apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
        return -(joint * ((joint + 1e-12) / (apart + 1e-12)).log()).sum()

    @staticmethod
    def _weights(values: Tensor, low: float, high: float) -> Tensor:
        """Of each value (N,) in each bin (N, bins): a cubic B-spline, two bins wide on either side."""
        at = (values - low) / max(high - low, 1e-20) * (_BINS - 5) + 2
        t = (at[:, None] - torch.arange(_BINS, dtype=values.dtype, device=values.device)).abs()
        near, far = 2 / 3 - t * t + t**3 / 2, (2 - t).clamp_min(0) ** 3 / 6
        return torch.where(t < 1, near, far)


def _descend(pair: _Pair, theta: Tensor, steps: int, halvings: int) -> tuple[Tensor, int, bool]:
    """The best theta, the steps taken, and whether the last ones gained nothing."""
    theta = theta.clone().requires_grad_()
    first = rate = 1.0 / max(pair.size)  # half a pixel
    optimizer = torch.optim.Adam([theta], lr=rate, betas=(0.9, 0.99))
    best, kept, since = math.inf, theta.detach().clone(), 0
    for taken in range(steps):
        optimizer.zero_grad()
        loss = pair(theta)
        value = float(loss.detach())
        if not math.isfinite(value):
            return kept, taken, False
        since = 0 if value < best - _GAIN * max(abs(best), _FLOOR) or not math.isfinite(best) else since + 1
        if value < best:
            best, kept = value, theta.detach().clone()
        if since >= _PATIENCE:
            rate, since = rate / 2, 0
            if rate < first / 2**halvings:
                return kept, taken, True
            optimizer.param_groups[0]["lr"] = rate
            with torch.no_grad():
                theta.copy_(kept)
            continue
        loss.backward()
        optimizer.step()
    return kept, steps, False


def _read(state: Registration, theta: Tensor, moving: Tensor, size: tuple[int, ...], **options: Any) -> Tensor:
    family, frame = state.transform, state.frame
    if family.kind in ("affine", "projective"):
        return warp(moving, compose_matrices(state.outer, family.matrix(theta, frame)), size, **options)
    grid = family.grid(theta, size, frame)
    mapped = _map(state.outer, grid.flatten(1, -2)).reshape(grid.shape)
    return sample(moving, mapped, **options)


def _map(matrix: Tensor, points: Tensor) -> Tensor:
    """Points (B, N, d) through affine or projective maps."""
    matrix = matrix.to(points)
    return map_affine(matrix, points) if matrix.shape[1] < matrix.shape[2] else map_projective(matrix, points)


def _reduced(size: tuple[int, ...], spacing: tuple[float, ...], unit: float, level: int) -> tuple[int, ...]:
    """The size of a level on which pixels are about as long along each axis, 2^level times the shortest of the image."""
    sides = reversed(spacing)  # of (x, y[, z])
    return tuple(max(min(n, 4), math.ceil(n / max(1.0, unit * 2**level / s))) for n, s in zip(size, sides, strict=True))


def _shrink(image: Tensor, size: tuple[int, ...]) -> Tensor:
    return image if tuple(image.shape[2:]) == size else F.interpolate(image, size, mode="area")


def _start(
    d: int, like: Tensor, fixed_world: Any, fixed_size: tuple[int, ...], moving_world: Any, moving_size: tuple[int, ...]
) -> tuple[Tensor, tuple[float, ...] | None]:
    """The map from the frame of the fixed image to that of the moving one, and the spacing of the fixed one."""
    if (fixed_world is None) != (moving_world is None):
        raise ValueError("moving_world: expected the matrices of both images or of none, got one")
    identity = torch.eye(d, d + 1, dtype=torch.float64)[None]
    if fixed_world is None:
        return identity, None
    for argument, world in (("fixed_world", fixed_world), ("moving_world", moving_world)):
        check_world(argument, world, d)
    return theta_from_world(identity, moving_world, moving_size, fixed_world, fixed_size), spacing_of(fixed_world)


def _takes_ndim(transform: TransformLike, d: int) -> bool:
    """Whether the name alone is given of a family that is told the dimension."""
    if not isinstance(transform, str) or transform not in TRANSFORMS:
        return False
    return "ndim" in inspect.signature(TRANSFORMS[transform]).parameters


def _check_pair(fixed: Any, moving: Any) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    fixed_size, moving_size = check_image(fixed, "fixed"), check_image(moving, "moving")
    if fixed.shape[0] != 1 or moving.shape[0] != 1:
        argument, image = ("fixed", fixed) if fixed.shape[0] != 1 else ("moving", moving)
        raise ValueError(f"{argument}: expected one image (1, C, [D,] H, W), got {describe(image)}")
    if fixed.ndim != moving.ndim or fixed.shape[1] != moving.shape[1] or fixed.device != moving.device:
        raise ValueError(
            f"moving: expected an image of {fixed.ndim - 2} dimensions and {fixed.shape[1]} channels on {fixed.device}, as "
            f"fixed, got {describe(moving)} on {moving.device}"
        )
    for argument, image in (("fixed", fixed), ("moving", moving)):
        if not bool(image.isfinite().all()):
            raise ValueError(f"{argument}: expected finite values, got some that are not")
        if bool((image == image.flatten()[0]).all()):
            raise ValueError(f"{argument}: expected an image that shows something, got one value all over")
    return len(fixed_size), fixed_size, moving_size
