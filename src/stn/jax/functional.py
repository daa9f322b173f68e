"""`sample` and `warp` of JAX's arrays, and `read`, below which it is decided who reads the image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from .. import sampling
from .._checks import check_choice, check_flag, describe
from ..coordinates import Frame
from ..reading import Mode, PaddingMode, Reading, check_reading
from ..transforms.config import TransformLike, check_transform
from . import families, native, portable
from .portable import Plan, working_type

Array = Any
_MODES = ("nearest", "bilinear", "bicubic")
_FORMATS = ("channels_first", "channels_last")


def sample(
    image: Array,  # (B, C, *in), or (B, *in, C)
    grid: Array,  # (B, *out, d)
    *,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill: float | Sequence[float] = 0.0,
    align_corners: bool = False,
    data_format: str = "channels_first",
    native: bool = True,
) -> Array:
    """`stn.sample` for JAX: reads an image at the positions in `grid`.

    Pull, (x, y[, z]), normalized. For `jit`, `vmap` and `grad`; at a kink the gradient of a position is the mean of both
    sides.

    Args:
        image: (B, C, H, W) or (B, C, D, H, W), channels last with `data_format`; a float type, or uint8 without gradients.
        grid: (B, *out, d). A batch of 1 on either side is broadcast.
        mode: "bilinear", "nearest" or "bicubic".
        padding_mode, fill, align_corners: as for `stn.sample`. There is no gradient of `fill`.
        native: False keeps to `jax.numpy` on the CPU, too: for forward mode, of which the native kernels have none. Second
            derivatives, other devices and what `jax.export` makes are on `jax.numpy` by themselves.

    Returns:
        (B, C, *out) or (B, *out, C), in the image's type. NaN where a position is not finite.

    Raises:
        ValueError: for wrong shapes, types and unknown options.

    Example:
        >>> import numpy as np, stn.jax
        >>> row = np.array([[[[1.0, 3.0]]]], "float32")
        >>> stn.jax.sample(row, np.zeros((1, 1, 1, 2), "float32")).tolist()
        [[[[2.0]]]]
    """
    image, reading, last = _check(image, mode, padding_mode, fill, align_corners, data_format, native)
    d = image.ndim - 2
    grid = _check_floats("grid", grid, f"positions (B, *out, {d})")
    if grid.ndim != d + 2 or grid.shape[-1] != d:
        raise ValueError(f"grid: expected (B, {'D, ' * (d == 3)}H, W, {d}), got {describe(grid)}")
    return read(image, "grid", grid, tuple(grid.shape[1:-1]), reading, last, native)


def warp(
    image: Array,  # (B, C, *in), or (B, *in, C)
    theta: Array,  # (B, d, d+1), (B, d+1, d+1), or (B, num_params) of `transform`
    size: tuple[int, ...] | None = None,
    *,
    transform: TransformLike | None = None,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill: float | Sequence[float] = 0.0,
    align_corners: bool = False,
    data_format: str = "channels_first",
    native: bool = True,
) -> Array:
    """`stn.warp` for JAX: each output pixel is read in the image where theta says.

    Pull, (x, y[, z]), normalized.

    Args:
        image: as for `sample`.
        theta: matrices, or with `transform` that family's parameters. A batch of 1 on either side is broadcast.
        size: of the output, ([D,] H, W); the image's own unless given.
        transform: a family whose positions are an affine function of theta, its name or its configuration: Affine,
            Translation, Projective, ThinPlateSpline, BSpline, DisplacementField, Polar, and without logarithms of scales
            Attention and Crop. For others make matrices with `jax.numpy`, or take `stn.keras`.
        mode, padding_mode, fill, align_corners, data_format, native: as for `sample`.

    Returns:
        (B, C, *size) or (B, *size, C), in the image's type.

    Raises:
        ValueError: for wrong shapes, types, unknown options, and for a family that is not among those.

    Example:
        >>> import numpy as np, stn.jax
        >>> row = np.array([[[[1.0, 2.0, 3.0]]]], "float32")
        >>> flip = np.array([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], "float32")
        >>> stn.jax.warp(row, flip).ravel().tolist()
        [3.0, 2.0, 1.0]
    """
    image, reading, last = _check(image, mode, padding_mode, fill, align_corners, data_format, native)
    image_size = tuple(image.shape[1:-1] if last else image.shape[2:])
    d = len(image_size)
    family = None if transform is None else check_transform(transform)
    size = sampling.check_target(image_size, size, family)
    theta = _check_floats("theta", theta, "parameters")
    if family is not None:
        if theta.ndim != 2 or theta.shape[1] != family.num_params:
            name = type(family).__name__
            raise ValueError(f"theta: expected (B, {family.num_params}) parameters of {name}, got {describe(theta)}")
        kind, values = families.coordinates(family, theta, size, Frame(image_size, align_corners))
    elif theta.shape[1:] in ((d, d + 1), (d + 1, d + 1)):
        kind, values = "affine" if theta.shape[1] == d else "projective", theta
    else:
        hint = "; name the family of a flat theta with transform=" if theta.ndim == 2 else ""
        expected = f"matrices (B, {d}, {d + 1}) or (B, {d + 1}, {d + 1})"
        raise ValueError(f"theta: expected {expected}, got {describe(theta)}{hint}")
    if kind == "projective":
        values = jnp.where(values[:, -1:, -1:] < 0, -values, values)
    return read(image, kind, values, size, reading, last, native)


def read(
    image: Array,
    kind: str,
    values: Array,
    size: tuple[int, ...],
    reading: Reading,
    last: bool,
    native: bool = True,
) -> Array:
    """Reads an image at coordinates that are known to fit it; for front ends that have made their checks.

    Args:
        image: (B, C, *in), or (B, *in, C) where `last`.
        kind, values: "affine" (B, d, d+1), "projective" (B, d+1, d+1) with denominators that are positive on the visible
            side, or "grid" (B, *size, d).

    Returns:
        (B, C, *size) or (B, *size, C), in the image's type.
    """
    working = working_type(image)
    values = values.astype(working)
    batch = max(image.shape[0], values.shape[0]) if 0 not in (image.shape[0], values.shape[0]) else 0
    for name, array in (("image", image), ("theta or grid", values)):
        if array.shape[0] not in (1, batch):
            raise ValueError(f"{name}: expected a batch of {batch} or 1, got {array.shape[0]}")
    image = jnp.broadcast_to(image, (batch, *image.shape[1:]))
    values = jnp.broadcast_to(values, (batch, *values.shape[1:]))
    background: tuple[Array, ...] = ()
    if reading.fill is not None:
        channels = image.shape[-1 if last else 1]
        if reading.fill.numel() not in (1, channels):
            raise ValueError(f"fill: expected a number or {channels} of them, got {reading.fill.numel()} of them")
        background = (jnp.broadcast_to(jnp.asarray(reading.fill.numpy(), working), (channels,)),)
    plan = Plan(kind, size, str(reading.kernel), reading.padding, reading.align_corners, last)
    return _read(plan, native, image, values, *background)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(plan: Plan, on_native: bool, *arrays: Array) -> Array:
    if on_native and native.takes(plan):
        return native.read(plan, *arrays)
    return portable.read(plan, *arrays)


def _check(
    image: Any, mode: Any, padding_mode: Any, fill: Any, align_corners: Any, data_format: Any, on_native: Any
) -> tuple[Array, Reading, bool]:
    check_choice("mode", mode, _MODES)
    check_choice("data_format", data_format, _FORMATS)
    check_flag("native", on_native)
    last = data_format == "channels_last"
    expected = "(B, H, W, C) or (B, D, H, W, C)" if last else "(B, C, H, W) or (B, C, D, H, W)"
    image = _as_array("image", image, expected)
    if image.dtype != jnp.uint8:
        image = _check_floats("image", image, f"{expected} of a float type or uint8")
    if image.ndim not in (4, 5):
        raise ValueError(f"image: expected {expected}, got {describe(image)}")
    if 0 in image.shape[1:]:
        raise ValueError(f"image: expected at least one channel and one pixel, got shape {tuple(image.shape)}")
    return image, check_reading(mode, padding_mode, fill, align_corners), last


def _as_array(argument: str, value: Any, expected: str) -> Array:
    if isinstance(value, jax.Array):
        return value
    try:
        return jnp.asarray(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{argument}: expected {expected}, got {describe(value)}") from error


def _check_floats(argument: str, value: Any, expected: str) -> Array:
    array = _as_array(argument, value, expected)
    if array.dtype not in (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16):
        raise ValueError(f"{argument}: expected {expected} of a float type, got {describe(array)}")
    return array
