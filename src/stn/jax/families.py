"""Families for JAX: those whose coordinates are an affine function of theta, which torch works out once for each size."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from jax import numpy as jnp

from ..coordinates import Frame, positions
from ..transforms.base import AbstractTransform
from .portable import working_type

Array = Any
_LARGEST = 2**25  # numbers of a slope
_STEP = 0.1  # away from the identity; projective maps turn over far from it


class _Affine(NamedTuple):
    """values = at_identity + (theta - identity) @ slope; with a basis they are its coefficients."""

    kind: str
    identity: np.ndarray  # (num_params,)
    at_identity: np.ndarray  # (...)
    slope: np.ndarray  # (num_params, ...)
    basis: np.ndarray | None  # (pixels, K)


def coordinates(transform: AbstractTransform, theta: Array, size: tuple[int, ...], frame: Frame) -> tuple[str, Array]:
    """The kind of coordinates and their values, as `portable.read` takes them.

    Raises:
        ValueError: for families that are not affine in theta.
    """
    family = _affine_in_theta(transform, size, frame)
    dtype = working_type(theta)
    identity, start, slope = (jnp.asarray(a, dtype) for a in (family.identity, family.at_identity, family.slope))
    with jax.default_matmul_precision("highest"):
        values = start + jnp.tensordot(theta.astype(dtype) - identity, slope, 1)
        if family.basis is not None:
            values = jnp.einsum("nk,bkd->bnd", jnp.asarray(family.basis, dtype), values)
            return "grid", values.reshape(-1, *size, len(size))
    return family.kind, values


@functools.lru_cache(64)
def _affine_in_theta(transform: AbstractTransform, size: tuple[int, ...], frame: Frame) -> _Affine:
    n = transform.num_params
    name = type(transform).__name__
    if n * math.prod(size) * len(size) > _LARGEST:
        raise ValueError(
            f"transform: expected at most {_LARGEST} parameters times coordinates of pixels, got {name} with {n} for an "
            f"output of size {size}; stn.keras has it under JAX"
        )
    identity = transform.identity().double().reshape(1, n)
    generator = torch.Generator().manual_seed(0)
    steps = [torch.zeros(1, n), torch.eye(n), torch.randn(3, n, generator=generator) / 2]
    thetas = identity + _STEP * torch.cat(steps).double()
    with torch.no_grad():
        kind, _, values, basis = made = transform.coordinates(thetas, size, frame)
        if kind == "field":
            kind, values = "grid", positions(made, frame.align_corners)
    slope = (values[1 : n + 1] - values[0]) / _STEP
    expected = values[0] + torch.tensordot(thetas[n + 1 :] - identity, slope, 1)
    if kind == "two-sided" or not torch.allclose(expected, values[n + 1 :], rtol=1e-9, atol=1e-9):
        raise ValueError(
            f"transform: expected a family whose positions are an affine function of theta (Affine, Translation, "
            f"Projective, ThinPlateSpline, BSpline, DisplacementField, ...), got {name}; make its matrices with "
            f"jax.numpy, or take stn.keras, which has all families under JAX"
        )
    start, known = values[0].numpy(), None if basis is None else basis.numpy()
    return _Affine(kind, identity[0].numpy(), start, slope.numpy(), known)
