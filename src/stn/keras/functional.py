"""`sample`, `warp` and the old package's call, of whatever tensors the framework behind Keras has."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch
from keras import ops

from .. import sampling
from .._checks import check_choice, check_flag, check_size, describe
from ..antialias import sample_antialiased
from ..coordinates import MATRICES, Coordinates, Frame
from ..ops import reference as portable_backend
from ..ops.dispatch import asked_for
from ..reading import Mode, PaddingMode, Reading, check_reading, fit_fill
from ..transforms import Affine
from ..transforms.base import AbstractTransform
from ..transforms.config import TransformLike, check_transform
from . import families, roads
from .backends import BACKEND, Array, convert, plain, type_name, working_type
from .lowering import lower


@plain
def sample(
    image: Array,  # (B, *in, C) or (B, C, *in)
    grid: Array,  # (B, *out, d)
    *,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill: float | Sequence[float] = 0.0,
    antialias: bool = False,
    align_corners: bool = False,
    data_format: str | None = None,
) -> Array:
    """`stn.sample` for Keras: reads an image at the positions in `grid`.

    Pull, (x, y[, z]), normalized. Differentiable in both arguments, compiled or not; with "bilinear" a position on a
    pixel's centre has the mean of the slopes on both sides as its derivative. Under TensorFlow and JAX that mean is part of
    the first derivative in reverse mode alone.

    Args:
        image: (B, H, W, C), (B, D, H, W, C) or (B, W, C), channels first with `data_format`; any float type.
        grid: (B, *out, d). A batch of 1 on either side is broadcast.
        mode, padding_mode, fill, align_corners: as for `stn.sample`.
        antialias: as for `stn.sample`. Under TensorFlow and JAX every pixel's points are read at once, from each of the smaller
            copies, which takes memory for 17 (39, 128) times the output in 1D (2D, 3D), and the native kernels have no part in it.
        data_format: "channels_last" or "channels_first"; Keras' own setting unless given.

    Returns:
        (B, *out, C) or (B, C, *out) in the image's type. NaN where a position is not finite.

    Raises:
        ValueError: for wrong shapes, types and unknown options.

    Example:
        >>> import numpy as np, keras, stn.keras
        >>> image = np.array([[[[1.0], [3.0]]]], "float32")  # one row of two pixels
        >>> out = stn.keras.sample(image, np.zeros((1, 1, 1, 2), "float32"), data_format="channels_last")
        >>> keras.ops.convert_to_numpy(out).tolist()
        [[[[2.0]]]]
    """
    image, first = _check_image(image, data_format)
    reading = check_reading(mode, padding_mode, fill, align_corners)
    check_flag("antialias", antialias)
    d = len(image.shape) - 2
    grid = check_array("grid", grid, f"positions (B, *out, {d})")
    if len(grid.shape) != d + 2 or grid.shape[-1] != d:
        raise ValueError(f"grid: expected (B, {'D, ' * (d == 3)}{'H, ' * (d > 1)}W, {d}), got {describe(grid)}")
    if BACKEND == "torch":
        options: Any = {"fill": fill, "antialias": antialias, "align_corners": align_corners}
        return _moved(image, first, lambda x: sampling.sample(x, grid, mode=mode, padding_mode=padding_mode, **options))
    size = tuple(grid.shape[1:-1])
    _check_static("grid", size)
    if antialias:
        return _antialiased(image, [grid], size, reading, first)
    return read(image, Coordinates("grid", size, grid), reading, first)


@plain
def warp(
    image: Array,  # (B, *in, C) or (B, C, *in)
    theta: Array,  # (B, d, d+1), (B, d+1, d+1), or (B, num_params) of `transform`
    size: tuple[int, ...] | None = None,
    *,
    transform: TransformLike | None = None,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill: float | Sequence[float] = 0.0,
    antialias: bool = False,
    align_corners: bool = False,
    data_format: str | None = None,
) -> Array:
    """`stn.warp` for Keras: each output pixel is read in the image where theta says.

    Pull, (x, y[, z]), normalized. On TensorFlow and JAX the family's own torch code is exported once for each size, which
    takes about a second, and runs as ops of the framework.

    Args:
        image: as for `sample`; its size must be known when the model is built, the batch need not be.
        theta: matrices, or with `transform` that family's parameters. A batch of 1 on either side is broadcast.
        size: of the output, ([D,] H, W); the image's own unless given.
        transform: any family of `stn.transforms`, a composition `a @ b`, its name or its configuration.
        mode, padding_mode, fill, antialias, align_corners, data_format: as for `sample`.

    Returns:
        (B, *size, C) or (B, C, *size) in the image's type.

    Raises:
        ValueError: for wrong shapes, types and unknown options.

    Example:
        >>> import numpy as np, keras, stn.keras
        >>> row = np.array([[[[1.0], [2.0], [3.0]]]], "float32")
        >>> flip = np.array([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], "float32")
        >>> keras.ops.convert_to_numpy(stn.keras.warp(row, flip, data_format="channels_last")).ravel().tolist()
        [3.0, 2.0, 1.0]
    """
    image, first = _check_image(image, data_format)
    reading = check_reading(mode, padding_mode, fill, align_corners)
    check_flag("antialias", antialias)
    image_size = tuple(image.shape[2:] if first else image.shape[1:-1])
    family = None if transform is None else check_transform(transform)
    size = sampling.check_target(image_size, size, family)
    theta = check_array("theta", theta, "parameters")
    if BACKEND == "torch":
        options: Any = {"padding_mode": padding_mode, "fill": fill, "antialias": antialias}
        options |= {"align_corners": align_corners, "mode": mode}
        options["transform"] = None if family is None else on_device(family, str(theta.device))
        return _moved(image, first, lambda x: sampling.warp(x, theta, size, **options))
    frame = Frame(image_size, align_corners)
    if antialias:
        return _antialiased(image, _footprints(image, theta, size, family, frame), size, reading, first)
    theta = ops.cast(theta, working_type(theta))
    return read(image, _where_to_read(theta, size, family, frame), reading, first)


@plain
def spatial_transformer_network(
    input_fmap: Array,  # (B, H, W, C)
    theta: Array,  # (B, 6)
    out_dims: tuple[int, int] | None = None,
    *,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool = False,
) -> Array:
    """Warp channels-last images by affine parameters: the one call of the `stn` package for TensorFlow.

    `stn.spatial_transformer_network` comes here with TensorFlow's and JAX's arrays.

    Args:
        input_fmap: (B, H, W, C), floating point.
        theta: (B, 6), the matrix (2, 3) row by row; pull, (x, y), normalized.
        out_dims: (H, W) of the output; the input's unless given.

    Returns:
        (B, *out_dims, C).

    Example:
        >>> import numpy as np, stn.keras
        >>> theta = np.array([[1.0, 0, 0, 0, 1, 0]] * 2, "float32")
        >>> tuple(stn.keras.spatial_transformer_network(np.ones((2, 8, 8, 3), "float32"), theta, (4, 4)).shape)
        (2, 4, 4, 3)
    """
    input_fmap = check_array("input_fmap", input_fmap, "(B, H, W, C)")
    if len(input_fmap.shape) != 4:
        raise ValueError(f"input_fmap: expected (B, H, W, C), got {describe(input_fmap)}")
    size = None if out_dims is None else check_size(out_dims, 2, "out_dims")
    options: Any = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    return warp(input_fmap, theta, size, transform=_AFFINE, data_format="channels_last", **options)


_AFFINE = Affine()


def read(image: Array, coordinates: Coordinates, reading: Reading, first: bool) -> Array:
    """Reads under TensorFlow and JAX, by what `roads` picks, or in other modes by the reference, lowered.

    Args:
        image: (B, C, *in) where `first`, else (B, *in, C); any float type.
        coordinates: of the same batch or of 1, in float32 or float64.

    Returns:
        (B, C, *size) or (B, *size, C) in the image's type.
    """
    _check_fill(image, reading, first)
    if reading.kernel in roads.MODES:
        return roads.read(image, coordinates, reading, first)
    roads.is_native(coordinates, reading)  # never; that is an error where they are asked for
    grid = ops.cast(families.positions(coordinates, reading.align_corners), working_type(image))
    return _in_planes(functools.partial(_lowered_sample, *_apart(reading)), image, [grid], coordinates.size, first)


def _antialiased(
    image: Array,
    where: list[
        Array
    ],  # the positions (B, *size, d), and unless their differences say it the Jacobian (B, *size, d, d)
    size: tuple[int, ...],
    reading: Reading,
    first: bool,
) -> Array:
    """`read`, averaged over what each pixel stands for, by torch's own code, lowered."""
    _check_fill(image, reading, first)
    if asked_for() not in (None, portable_backend.NAME):
        raise ValueError(
            f"backend: expected {portable_backend.NAME!r} with antialias under {BACKEND}, got {asked_for()!r}"
        )
    working = working_type(image)
    where = [ops.cast(array, working) for array in where]
    return _in_planes(functools.partial(_lowered_antialias, *_apart(reading), len(where)), image, where, size, first)


def _footprints(
    image: Array, theta: Array, size: tuple[int, ...], transform: AbstractTransform | None, frame: Frame
) -> list[Array]:
    """Where the pixels of the output are read, (B, *size, d), and how many pixels of the input, in the columns of
    (B, *size, d, d), one of theirs is along each axis."""
    d, theta = len(size), ops.cast(theta, working_type(image))
    assert frame.image_size is not None
    coordinates = _where_to_read(theta, size, transform, frame)
    if coordinates.kind == "affine":
        grid = families.positions(coordinates, frame.align_corners)
        steps = ops.reshape(coordinates.values[:, :, :d], (-1, *[1] * d, d, d)) * ops.ones_like(grid)[..., None]
    else:
        points = families.lattice(theta, size, frame.align_corners)
        if transform is None or coordinates.kind in MATRICES:
            mapped = families.map_matrix_with_slopes(coordinates, points)
        else:
            mapped = families.map_with_slopes(transform, theta, points, frame)
        grid, steps = (ops.reshape(a, (-1, *size, *[d] * n)) for n, a in enumerate(mapped, 1))
    like = torch.empty(0, dtype=getattr(torch, type_name(theta.dtype)))
    scale = sampling.pixels_per_pixel(like, frame.image_size, size, frame.align_corners, frame.align_corners)
    return [grid, steps * convert(scale.numpy())]


def _in_planes(
    lowered: Callable[..., Callable[..., Array]], image: Array, where: list[Array], size: tuple[int, ...], first: bool
) -> Array:
    """What a lowered program of (B, C, *in) images and arrays of the same batch makes of those of another order or batch."""
    d, working = len(size), working_type(image)
    planes = ops.cast(image if first else ops.transpose(image, (0, d + 1, *range(1, d + 1))), working)
    known = planes
    for array in where:
        known, _ = roads.of_one_batch(known, array)
    where = [roads.of_one_batch(known, array)[1] for array in where]
    out = ops.cast(lowered(tuple(known.shape[1:]), size, working)(known, *where), type_name(image.dtype))
    return out if first else ops.transpose(out, (0, *range(2, d + 2), 1))


@functools.lru_cache(64)
def _lowered_sample(
    how: Reading, fill: _Fill, image_shape: tuple[int, ...], size: tuple[int, ...], dtype: str
) -> Callable[[Array, Array], Array]:
    """The reference itself, for the kernels that are not written by hand."""
    reading = _together(how, fill)
    image = torch.zeros(3, *image_shape, dtype=getattr(torch, dtype))
    grid = torch.zeros(3, *size, len(size), dtype=image.dtype)

    def run(image: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return sampling.read(image, Coordinates("grid", size, grid), reading, "grid")

    return lower(run, image, grid, ndim=1)


_Fill = tuple[float, ...] | None


def _apart(reading: Reading) -> tuple[Reading, _Fill]:
    """A reading without its fill, and its fill as numbers, by which programs are kept."""
    return reading._replace(fill=None), None if reading.fill is None else tuple(reading.fill.tolist())


def _together(reading: Reading, fill: _Fill) -> Reading:
    return reading if fill is None else reading._replace(fill=torch.tensor(fill, dtype=torch.float64))


@functools.lru_cache(64)
def _lowered_antialias(
    how: Reading, fill: _Fill, arrays: int, image_shape: tuple[int, ...], size: tuple[int, ...], dtype: str
) -> Callable[..., Array]:
    """`stn.antialias`, of an image and positions, with their Jacobian where there are two arrays."""
    reading, d = _together(how, fill), len(size)
    image = torch.zeros(3, *image_shape, dtype=getattr(torch, dtype))
    where = [torch.zeros(3, *size, *[d] * n, dtype=image.dtype) for n in range(1, arrays + 1)]

    def run(image: torch.Tensor, grid: torch.Tensor, *steps: torch.Tensor) -> torch.Tensor:
        coordinates = Coordinates("grid", size, grid)
        if steps:
            return sample_antialiased(image, coordinates, steps[0], fit_fill(reading, image))
        return sampling.read_antialiased(image, coordinates, reading)

    by_reference = reading.kernel not in roads.MODES or reading.padding not in ("zeros", "border", "reflection")
    return lower(run, image, *where, ndim=1 if by_reference else d)


def _check_fill(image: Array, reading: Reading, first: bool) -> None:
    channels = image.shape[1 if first else -1]
    if reading.fill is not None and reading.fill.numel() not in (1, channels):
        raise ValueError(
            f"fill: expected a number or {channels} of them, one per channel, got {reading.fill.numel()} of them"
        )


def _where_to_read(
    theta: Array, size: tuple[int, ...], transform: AbstractTransform | None, frame: Frame
) -> Coordinates:
    d, shape = len(size), tuple(theta.shape)
    if transform is not None:
        if len(shape) != 2 or shape[1] != transform.num_params:
            name = type(transform).__name__
            raise ValueError(f"theta: expected (B, {transform.num_params}) parameters of {name}, got {describe(theta)}")
        return families.coordinates(transform, theta, size, frame)
    if shape[1:] == (d, d + 1):
        return Coordinates("affine", size, theta)
    if shape[1:] == (d + 1, d + 1):
        return Coordinates("projective", size, ops.where(theta[:, -1:, -1:] < 0, -theta, theta))
    hint = "; name the family of a flat theta with transform=" if len(shape) == 2 else ""
    raise ValueError(
        f"theta: expected matrices (B, {d}, {d + 1}) or (B, {d + 1}, {d + 1}), got {describe(theta)}{hint}"
    )


def check_array(argument: str, value: Any, expected: str) -> Array:
    if isinstance(value, keras.KerasTensor):
        raise ValueError(
            f"{argument}: expected {expected} as an array, got a symbolic tensor; in a functional model take "
            f"stn.keras.SpatialTransformer, or call this in a layer of your own"
        )
    try:
        array = ops.convert_to_tensor(value)
        dtype = type_name(array.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{argument}: expected {expected} as an array, got {describe(value)}") from error
    if "float" not in dtype:
        raise ValueError(f"{argument}: expected {expected} of a floating-point type, got {dtype}")
    return array


def _check_image(image: Any, data_format: str | None) -> tuple[Array, bool]:
    """The image as an array, and whether its channels come first."""
    if data_format is None:
        data_format = keras.config.image_data_format()
    check_choice("data_format", data_format, ("channels_last", "channels_first"))
    first = data_format == "channels_first"
    expected = "images (B, C, [[D,] H,] W)" if first else "images (B, [[D,] H,] W, C)"
    image = check_array("image", image, expected)
    if len(image.shape) not in (3, 4, 5):
        raise ValueError(f"image: expected {expected}, got {describe(image)}")
    _check_static("image", tuple(image.shape[1:]))
    return image, first


def _check_static(argument: str, size: tuple[int | None, ...]) -> None:
    if None in size or 0 in size:
        raise ValueError(f"{argument}: expected every size but the batch's to be known and at least 1, got {size}")


def _moved(image: torch.Tensor, first: bool, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A function of (B, C, *in) images for those of another order."""
    return function(image) if first else function(image.movedim(-1, 1)).movedim(1, -1)


@functools.lru_cache(64)
def on_device(transform: AbstractTransform, device: str) -> AbstractTransform:
    return copy.deepcopy(transform).to(device)
