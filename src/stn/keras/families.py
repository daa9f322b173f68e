"""Where output pixels are read: theta of any family, by the family's own torch code.

Families that integrate keep their loop: written out, compilers take minutes over it. Their steps are exported each by
itself, and `repeat` runs them.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable

import numpy as np
import torch
from keras import ops

from .. import geometry
from ..coordinates import MATRICES, Coordinates, Frame, Kind
from ..coordinates import map_points as map_matrices
from ..transforms import CPAB, DisplacementField, VelocityField, from_config
from ..transforms.base import AbstractTransform, Compose
from . import portable
from .backends import Array, convert, repeat, type_name, with_slopes
from .lowering import lower

_EXAMPLES = 3  # of the batch: any number that is not 0 or 1, which exporters take for constants
_KEPT = 256  # programs


def coordinates(
    transform: AbstractTransform,
    theta: Array,  # (B, num_params), float32 or float64
    size: tuple[int, ...],
    frame: Frame,
) -> Coordinates:
    """`transform.coordinates`, of the framework's own tensors."""
    d = transform.ndim
    if isinstance(transform, VelocityField):
        return coordinates(DisplacementField(transform.size), _integrated(transform, theta), size, frame)
    if isinstance(transform, Compose) and transform.kind == "grid":
        outer, inner = _split(transform, theta)
        points = positions(coordinates(transform.inner, inner, size, frame), frame.align_corners)
        points = ops.reshape(points, (-1, int(np.prod(size)), d))
        mapped = map_points(transform.outer, outer, points, frame)
    elif isinstance(transform, CPAB) and d > 1:
        mapped = map_points(transform, theta, lattice(theta, size, frame.align_corners), frame)
    else:
        program, kind, basis = _coordinates(canonical(transform), size, frame, _torch_type(theta))
        return Coordinates(kind, size, program(theta), basis)
    return Coordinates("grid", size, ops.reshape(mapped, (-1, *size, d)))


def map_points(
    transform: AbstractTransform,
    theta: Array,  # (B, num_params)
    points: Array,  # (B, N, d)
    frame: Frame,
) -> Array:
    """`transform.map_points`, of the framework's own tensors."""
    dtype = _torch_type(theta)
    if isinstance(transform, VelocityField):
        return map_points(DisplacementField(transform.size), _integrated(transform, theta), points, frame)
    if isinstance(transform, Compose) and transform.kind == "grid":
        outer, inner = _split(transform, theta)
        return map_points(transform.outer, outer, map_points(transform.inner, inner, points, frame), frame)
    if isinstance(transform, CPAB) and transform.ndim > 1:
        start, step = _flow(canonical(transform), points.shape[1], dtype)
        short = start(theta)
        return repeat(lambda points: step(short, points), points, transform.steps_taken)
    return _map_points(canonical(transform), points.shape[1], frame, dtype)(theta, points)


def map_with_slopes(
    transform: AbstractTransform,
    theta: Array,  # (B, num_params)
    points: Array,  # (B, N, d)
    frame: Frame,
) -> tuple[Array, Array]:
    """`map_points`, and its derivative (B, N, d, d), one row an input coordinate; for TensorFlow and JAX."""
    dtype = _torch_type(theta)
    if isinstance(transform, VelocityField):
        return map_with_slopes(DisplacementField(transform.size), _integrated(transform, theta), points, frame)
    if isinstance(transform, Compose) and transform.kind == "grid":
        outer, inner = _split(transform, theta)
        points, first = map_with_slopes(transform.inner, inner, points, frame)
        points, then = map_with_slopes(transform.outer, outer, points, frame)
        return points, portable.product("bnij,bnjk->bnik", then, first)
    if isinstance(transform, CPAB) and transform.ndim > 1:
        start, step = _flow(canonical(transform), points.shape[1], dtype, slopes=True)
        short, d = start(theta), transform.ndim
        unit = ops.zeros_like(points)[..., None] + convert(np.eye(d), type_name(theta.dtype))
        state = repeat(
            lambda state: step(short, state), ops.concatenate([unit, points[..., None]], -1), transform.steps_taken
        )
        return state[..., d], state[..., :d]
    program = _map_points(canonical(transform), points.shape[1], frame, dtype, slopes=True)
    return with_slopes(lambda points: program(theta, points), points)


def map_matrix_with_slopes(coordinates: Coordinates, points: Array) -> tuple[Array, Array]:
    """`map_with_slopes` of the maps of projective coordinates."""
    kind, size, values, _ = coordinates
    program = _matrix_points(kind, size, points.shape[1], _torch_type(values))
    return with_slopes(lambda points: program(values, points), points)


def lattice(theta: Array, size: tuple[int, ...], align_corners: bool) -> Array:
    """The pixel centres of an output, (B, N, d), row by row."""
    points = geometry.lattice_points(torch.empty(0, dtype=_torch_type(theta)), size, align_corners)
    return ops.broadcast_to(convert(points.numpy()), (ops.shape(theta)[0], *points.shape[1:]))


def _integrated(transform: VelocityField, theta: Array) -> Array:
    """The displacements that velocities amount to, as theta of a `DisplacementField`."""
    start, step = _doubling(canonical(transform), _torch_type(theta))
    return ops.reshape(repeat(step, start(theta), transform.steps), (-1, transform.num_params))


def positions(coordinates: Coordinates, align_corners: bool) -> Array:
    """Where each output pixel is read, (B, *size, d)."""
    kind, size, values, basis = coordinates
    if kind == "basis":
        assert basis is not None
        constant = convert(basis.numpy(), type_name(values.dtype))
        return ops.reshape(portable.product("nk,bkd->bnd", constant, values), (-1, *size, values.shape[-1]))
    if kind in MATRICES:
        return _matrix_positions(kind, size, align_corners, _torch_type(values))(values)
    return values


def _split(transform: Compose, theta: Array) -> tuple[Array, Array]:
    width = transform.outer.num_params
    return theta[:, :width], theta[:, width:]


def _torch_type(array: Array) -> torch.dtype:
    return torch.float64 if type_name(array.dtype) == "float64" else torch.float32


# The programs, each exported once for a configuration


@functools.lru_cache(_KEPT)
def canonical(transform: AbstractTransform) -> AbstractTransform:
    """One transform for all of the same configuration, on the CPU."""
    try:
        return _of(json.dumps(transform.config()))
    except ValueError:  # a family of somebody's own that has no name
        return copy.deepcopy(transform).to("cpu")


@functools.lru_cache(_KEPT)
def _of(config: str) -> AbstractTransform:
    return from_config(json.loads(config))


def _example(transform: AbstractTransform, dtype: torch.dtype) -> torch.Tensor:
    return transform.identity().to(dtype).expand(_EXAMPLES, -1).contiguous()


@functools.lru_cache(_KEPT)
def _coordinates(
    transform: AbstractTransform, size: tuple[int, ...], frame: Frame, dtype: torch.dtype
) -> tuple[Callable[[Array], Array], Kind, torch.Tensor | None]:
    theta = _example(transform, dtype)
    made = transform.coordinates(theta, size, frame)
    if made.kind == "field":
        return lower(lambda theta: transform.grid(theta, size, frame), theta, ndim=transform.ndim), "grid", None
    program = lower(lambda theta: transform.coordinates(theta, size, frame).values, theta, ndim=transform.ndim)
    return program, made.kind, made.basis


@functools.lru_cache(_KEPT)
def _map_points(
    transform: AbstractTransform, count: int, frame: Frame, dtype: torch.dtype, slopes: bool = False
) -> Callable[[Array, Array], Array]:
    points = torch.zeros(_EXAMPLES, count, transform.ndim, dtype=dtype)
    return lower(
        lambda theta, points: transform.map_points(theta, points, frame),
        _example(transform, dtype),
        points,
        ndim=transform.ndim,
        kinks=slopes,
    )


@functools.lru_cache(_KEPT)
def _flow(
    transform: CPAB, count: int, dtype: torch.dtype, slopes: bool = False
) -> tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]:
    theta, d = _example(transform, dtype), transform.ndim
    state = torch.zeros(_EXAMPLES, count, *((d, d + 1) if slopes else (d,)), dtype=dtype)
    step = transform.step_with_slopes if slopes else transform.step
    return lower(transform.short, theta), lower(step, transform.short(theta), state)


@functools.lru_cache(_KEPT)
def _doubling(
    transform: VelocityField, dtype: torch.dtype
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    theta = _example(transform, dtype)
    start = lower(transform.short, theta, ndim=transform.ndim)
    return start, lower(transform.twice, transform.short(theta), ndim=transform.ndim)


@functools.lru_cache(_KEPT)
def _matrix_points(
    kind: Kind, size: tuple[int, ...], count: int, dtype: torch.dtype
) -> Callable[[Array, Array], Array]:
    d = len(size)
    eye = torch.eye(d + 1, dtype=dtype).repeat(_EXAMPLES, 1, 1)
    points = torch.zeros(_EXAMPLES, count, d, dtype=dtype)
    return lower(lambda matrix, points: map_matrices(Coordinates(kind, size, matrix), points), eye, points)


@functools.lru_cache(_KEPT)
def _matrix_positions(
    kind: str, size: tuple[int, ...], align_corners: bool, dtype: torch.dtype
) -> Callable[..., Array]:
    d = len(size)
    eye = torch.eye(d + 1, dtype=dtype).expand(_EXAMPLES, -1, -1).contiguous()
    if kind == "affine":
        return lower(lambda matrix: geometry.affine_positions(matrix, size, align_corners), eye[:, :d].contiguous())
    two_sided = kind == "two-sided"
    return lower(lambda matrix: geometry.projective_positions(matrix, size, align_corners, two_sided=two_sided), eye)
