"""What keeps a transformer from losing itself: the penalties of `stn.penalties` under Keras.

Where points go is looked at by `families`; what a penalty makes of it is its formula in torch, lowered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from keras import ops

from .._checks import check_flag, check_size, describe
from ..coordinates import Frame
from ..geometry import determinants, lattice_points
from ..penalties import FORMULAS, Penalty
from ..transformer import Warp
from ..transforms.base import AbstractTransform
from ..transforms.config import TransformLike, check_transform
from . import families
from .backends import BACKEND, Array, plain, type_name, working_type
from .functional import check_array, on_device
from .lowering import lower


@plain
def penalty(
    theta: Array,  # (B, num_params)
    transform: TransformLike,
    size: Sequence[int] | None = None,
    *,
    align_corners: bool = False,
    points: int = 9,
    low: float = 1.0,
    high: float = 1.0,
    margin: float = 0.01,
    order: int = 1,
    **weights: float,
) -> Array:
    """The weighted sum of penalties on a warp, to add to the loss: `stn.penalties.Penalty` for Keras.

    The mean over the batch, differentiable in theta, compiled or not. In a model the layer adds it to the loss by itself
    (`stn.keras.SpatialTransformer(..., penalties=...)`). The loss of a model whose output is theta is
    `lambda _, theta: stn.keras.penalty(theta, "affine", fold=1.0)`.

    Args:
        theta: the parameters, in a float type.
        transform: any family of `stn.transforms`, a composition, its name or its configuration.
        size: of the image, ([D,] H, W), which families that keep angles or lengths need; without it the frame is taken as
            square.
        align_corners: where -1 and 1 lie in that image.
        points, low, high, margin, order: as for `stn.penalties.Penalty`.
        weights: one for each penalty, by its name: identity, scale, fold, smoothness, bending, out_of_frame.

    Returns:
        A scalar, float32 (float64 for a float64 theta).

    Raises:
        ValueError: for a theta of another shape or type, for an unknown name, a weight or an option out of range, no weight at
            all.

    Example:
        >>> import numpy as np, keras, stn.keras
        >>> theta = np.array([[0.5, 0.0]], "float32")
        >>> float(stn.keras.penalty(theta, "translation", identity=2.0))
        0.5
    """
    family = check_transform(transform)
    wanted = Penalty(points=points, low=low, high=high, margin=margin, order=order, **weights)
    check_flag("align_corners", align_corners)
    image_size = None if size is None else check_size(size, family.ndim)
    theta = check_array("theta", theta, "parameters")
    if len(theta.shape) != 2 or theta.shape[1] != family.num_params:
        name = type(family).__name__
        raise ValueError(f"theta: expected (B, {family.num_params}) parameters of {name}, got {describe(theta)}")
    theta = ops.cast(theta, working_type(theta))
    if BACKEND == "torch":
        return wanted(_warp(theta, on_device(family, str(theta.device)), image_size, align_corners))
    frame = Frame(image_size, align_corners)
    found: dict[tuple[bool, bool], Array] = {}  # what the warp does, which penalties look at together
    total: Any = 0.0
    for name, weight in wanted.weights.items():
        if weight:  # one of 0 may be infinite
            of_each = _of_each(name, family, theta, frame, points, wanted.options.get(name, {}), found)
            count = ops.cast(ops.maximum(ops.shape(theta)[0], 1), type_name(theta.dtype))
            total = total + weight * (ops.sum(of_each) / count)
    return total if any(wanted.weights.values()) else ops.zeros((), dtype=type_name(theta.dtype))


def _warp(
    theta: torch.Tensor, transform: AbstractTransform, image_size: tuple[int, ...] | None, align_corners: bool
) -> Warp:
    """The warp of no image: penalties look at where it goes."""
    size = image_size or (2,) * transform.ndim
    return Warp(theta, theta, transform, size, size, align_corners)


def _of_each(
    name: str,
    family: AbstractTransform,
    theta: Array,
    frame: Frame,
    points: int,
    options: dict[str, float],
    found: dict[tuple[bool, bool], Array],
) -> Array:
    """One penalty of each image, (B,)."""
    dtype = torch.float64 if type_name(theta.dtype) == "float64" else torch.float32
    if name == "bending":
        energy = _energy(families.canonical(family), dtype)
        if energy is not None:
            return energy(theta)
        name, options = "smoothness", {"order": 2}
    edges, slopes, _ = FORMULAS[name]
    if (edges, slopes) not in found:
        where = families.lattice(theta, (points,) * family.ndim, edges)
        found[edges, slopes] = (
            families.map_with_slopes(family, theta, where, frame)[1]
            if slopes
            else families.map_points(family, theta, where, frame)
        )
    return _formula(name, family.ndim, points, dtype, tuple(options.items()))(found[edges, slopes])


@functools.lru_cache(256)
def _energy(transform: AbstractTransform, dtype: torch.dtype) -> Callable[[Array], Array] | None:
    theta = transform.identity().to(dtype)[None].repeat(3, 1)
    if transform.bending_energy(theta) is None:
        return None
    return lower(lambda theta: transform.bending_energy(theta), theta)  # type: ignore[arg-type, return-value]


@functools.lru_cache(256)
def _formula(
    name: str, d: int, points: int, dtype: torch.dtype, options: tuple[tuple[str, float], ...]
) -> Callable[[Array], Array]:
    edges, slopes, of = FORMULAS[name]
    where = lattice_points(torch.empty(0, dtype=dtype), (points,) * d, edges)
    if slopes:
        jacobian = torch.eye(d, dtype=dtype).repeat(3, points**d, 1, 1)
        return lower(lambda jacobian: of(determinants(jacobian), where, **dict(options)), jacobian)
    return lower(lambda mapped: of(mapped, where, **dict(options)), where.repeat(3, 1, 1))
