"""The warp on the GPU, in Triton: one forward and one backward kernel for every case, compiled from small pieces.

A program makes one tile of the output, TILE_X by TILE_Y pixels of one slice of one image, for some of its channels,
LANES at a time: where to read is worked out once for all of them and never stored.

Positions of affine and projective maps start from the tile's first pixel in float64, a few operations a program and
not a pixel, because consumer cards have one float64 unit for 64 of float32. From there they go in float32 steps,
and relative to a whole number of pixels near by, so that they are exact to the digits of the tile and not to those of
the image. The sums that make the gradient of a matrix or of coefficients are taken per program, written out and added
up in one order: the same bits every time. So is the gradient of a grid, which nothing adds to.

The gradient of the image adds up atomically, in whatever order the card has it. Under
`torch.use_deterministic_algorithms` it adds up in whole numbers instead, 2^-k of the largest gradient of a channel (k =
58 less the binary digits of the number of output pixels: 42 at 224 x 224), of which the order does not matter: the same
bits every time again, for 8 bytes more a pixel.

Derivatives of derivatives, forward mode and the transforms of `torch.func` go by way of the reference.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"
# ruff: noqa: RUF005 (Triton knows sums of tuples, not stars)
from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import reference

if TYPE_CHECKING:
    import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

NAME = "triton"
_TAPS = {"nearest": 1, "bilinear": 2, "bicubic": 4}
_PADDINGS = ("zeros", "border", "reflection", "circular", "constant")
_LARGEST_AXIS = 2**30  # pixels are counted in int32 along an axis, and in int64 in memory
_TILE = 1024  # pixels times channels that a program holds at once: 8 for each of its 128 threads
_PROGRAMS = 1024  # fill the largest cards; channels are divided among programs until there are as many
_HORIZON = 1e-4  # as transforms/projective.py: what is nearer to the horizon is sent 1 / _HORIZON away


def unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not _interpreted() and not torch.cuda.is_available():
        return "no CUDA device (TRITON_INTERPRET=1 runs it on the CPU, for tests)"
    return None


def supports(ndim: int, mode: Any, padding_mode: str, device: torch.device) -> bool:
    if device.type == "cpu":  # the interpreter is for tests: where it is asked for, and nowhere else
        from . import warp

        here = _interpreted() and warp._forced == NAME
    else:
        here = device.type == "cuda"
    return here and ndim in (2, 3) and isinstance(mode, str) and mode in _TAPS and padding_mode in _PADDINGS


@functools.cache
def _interpreted() -> bool:
    # Once: Triton looks when it is imported, and it is imported once.
    return os.environ.get("TRITON_INTERPRET") == "1"


def sample(
    image: Tensor, grid: Tensor, mode: str, padding_mode: str, fill: Tensor | None, align_corners: bool
) -> Tensor:
    """As `reference.sample`, in the image's type."""
    return _warp("grid", image, grid, None, fill, tuple(grid.shape[1:-1]), mode, padding_mode, align_corners)


def warp_affine(
    image: Tensor,
    matrix: Tensor,
    size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """`sample` at affine maps (B, d, d+1) of the lattice of `size`."""
    return _warp("affine", image, matrix, None, fill, size, mode, padding_mode, align_corners)


def warp_projective(
    image: Tensor,
    matrix: Tensor,
    size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """`sample` at projective maps (B, d+1, d+1) of the lattice of `size`; what has a positive denominator is visible."""
    return _warp("projective", image, matrix, None, fill, size, mode, padding_mode, align_corners)


def warp_basis(
    image: Tensor,
    basis: Tensor,
    coefficients: Tensor,
    size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """`sample` at basis (N_out, K), a constant, times coefficients (B, K, d), in the more exact of their types."""
    assert not basis.requires_grad
    return _warp("basis", image, coefficients, basis, fill, size, mode, padding_mode, align_corners)


def _warp(kind: str, image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None, *options: Any) -> Tensor:
    fill = None if fill is None else fill.to(coords.dtype)
    run = _operator if torch.compiler.is_compiling() else _Warp.apply
    out: Tensor = run(image, coords, basis, fill, kind, *options)
    return out


# The kernels. Axes are ordered x, y[, z], in tuples; `whole` and `part` add up to a position in pixels.

_functions: list[Any] = []


def _jit(function: Any) -> Any:
    """To be compiled. Importing Triton takes longer than importing all of this package, so that waits for `_compile`."""
    _functions.append(function)
    return function


@functools.cache
def _compile() -> None:
    import triton
    import triton.language

    names = globals()
    names["tl"] = triton.language
    names.update({function.__name__: triton.jit(function) for function in _functions})


@_jit
def _tile(out_size, NDIM: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr):
    """The image and the tile of this program: its first pixel, the way from there to each (P, 1), and which exist."""
    across = (out_size[0] + TILE_X - 1) // TILE_X
    down = (out_size[1] + TILE_Y - 1) // TILE_Y
    number = tl.program_id(0)
    first_x = number % across * TILE_X
    number = number // across
    first_y = number % down * TILE_Y
    number = number // down
    if NDIM == 3:
        start = (first_x, first_y, number % out_size[2])
        number = number // out_size[2]
    else:
        start = (first_x, first_y)
    lane = tl.arange(0, TILE_X * TILE_Y)[:, None]
    ahead = (lane % TILE_X, lane // TILE_X)
    exists = (first_x + ahead[0] < out_size[0]) & (first_y + ahead[1] < out_size[1])
    return number.to(tl.int64), start, ahead, exists


@_jit
def _pixel(start, ahead, strides, FIRST: tl.constexpr, NDIM: tl.constexpr):
    """Where in memory the pixels of the tile are, by the strides of x, y[, z] from number FIRST on."""
    offset = (start[0] + ahead[0]).to(tl.int64) * strides[FIRST]
    offset += (start[1] + ahead[1]).to(tl.int64) * strides[FIRST + 1]
    if NDIM == 3:
        offset += tl.cast(start[2], tl.int64) * strides[FIRST + 2]
    return offset


@_jit
def _line(row, stride, gain, rates, centred, NDIM: tl.constexpr):
    """A row of a matrix, in float64, times `gain`: its value at the tile's first pixel, its steps from pixel to pixel,
    and whether it is finite."""
    entry = tl.load(row + NDIM * stride).to(tl.float64)
    value = entry * gain
    finite = tl.abs(entry) < float("inf")
    steps = ()
    for axis in tl.static_range(NDIM):
        entry = tl.load(row + axis * stride).to(tl.float64)
        finite = finite & (tl.abs(entry) < float("inf"))
        step = entry * gain * rates[axis]
        value += step * centred[axis]
        steps = steps + (step,)
    return value, steps, finite


@_jit
def _rate(n, ALIGN: tl.constexpr):
    """Normalized units from one output pixel to the next, in float64: 2 / n. Two steps of Newton's method are several
    times fewer operations than a division."""
    pixels = tl.maximum(n - ALIGN, 1)
    exact = tl.cast(pixels, tl.float64)
    rate = (1.0 / tl.cast(pixels, tl.float32)).to(tl.float64)
    rate = rate * (2.0 - exact * rate)
    return 2.0 * (rate * (2.0 - exact * rate))


@_jit
def _normalized(pixel, n, ALIGN: tl.constexpr, WORK: tl.constexpr):
    """The normalized coordinate of an output pixel."""
    return (tl.cast(pixel, WORK) - 0.5 * tl.cast(n - 1, WORK)) * _rate(n, ALIGN).to(WORK)


@_jit
def _locate(
    coords,
    strides,
    basis,
    basis_strides,
    terms,
    in_size,
    out_size,
    batch,
    start,
    ahead,
    exists,
    NDIM: tl.constexpr,
    KIND: tl.constexpr,
    ALIGN: tl.constexpr,
    WORK: tl.constexpr,
    SUM: tl.constexpr,
):
    """Where the pixels of the tile are read: `whole` a scalar and `part` (P, 1) along each axis, NaN where that is not
    finite. And for projective maps one over the denominator, 0 on the horizon and behind it."""
    coords += batch * strides[0]
    whole = ()
    part = ()
    nearness = 1.0
    if KIND == "affine" or KIND == "projective":
        rates = ()
        centred = ()
        for axis in tl.static_range(NDIM):
            rates = rates + (_rate(out_size[axis], ALIGN),)
            centred = centred + (tl.cast(start[axis], tl.float64) - 0.5 * tl.cast(out_size[axis] - 1, tl.float64),)
        unit = tl.full((), 1.0, tl.float64)
        sound = unit == unit
        if KIND == "projective":
            # A matrix and its multiples are the same map: the largest entry of the last row becomes 1.
            largest = tl.full((), 0.0, tl.float64)
            for axis in tl.static_range(NDIM + 1):
                entry = tl.load(coords + NDIM * strides[1] + axis * strides[2]).to(tl.float64)
                largest = tl.maximum(largest, tl.abs(entry))
            unit = 1.0 / tl.where(largest > 0.0, largest, 1.0)
            depth, depth_steps, sound = _line(coords + NDIM * strides[1], strides[2], unit, rates, centred, NDIM)
            denominator = depth.to(WORK) + depth_steps[0].to(WORK) * ahead[0] + depth_steps[1].to(WORK) * ahead[1]
            hidden = denominator <= 1e-4
            denominator = tl.where(hidden, 1.0, denominator)
            nearness = tl.where(hidden, 0.0, unit.to(WORK) / denominator)
        for axis in tl.static_range(NDIM):
            half = 0.5 * tl.cast(in_size[axis] - ALIGN, tl.float64)
            centre = 0.5 * tl.cast(in_size[axis] - 1, tl.float64)
            value, steps, finite = _line(coords + axis * strides[1], strides[2], half * unit, rates, centred, NDIM)
            guess = value
            if KIND == "projective":
                guess = tl.where(depth > 1e-4, (value.to(tl.float32) / depth.to(tl.float32)).to(tl.float64), 0.0)
            guess += centre
            # Even, so that a tie goes to the same pixel with and without it.
            near = tl.where(tl.abs(guess) < 536870912.0, 2.0 * tl.floor(0.5 * guess), 0.0)
            rest = value
            step_x = steps[0]
            step_y = steps[1]
            if KIND == "projective":
                rest += (centre - near) * depth
                step_x += (centre - near) * depth_steps[0]
                step_y += (centre - near) * depth_steps[1]
            else:
                rest += centre - near
            # Entries near float32's largest: still far away, and still finite.
            shrink = tl.where(tl.abs(rest) + tl.abs(step_x) + tl.abs(step_y) > 1e30, 1e-15, 1.0)
            position = (rest * shrink).to(WORK)
            position += (step_x * shrink).to(WORK) * ahead[0] + (step_y * shrink).to(WORK) * ahead[1]
            if KIND == "projective":
                numerator = (value * shrink).to(WORK)
                numerator += (steps[0] * shrink).to(WORK) * ahead[0] + (steps[1] * shrink).to(WORK) * ahead[1]
                left = (centre - near - 1e4 * half).to(WORK)
                right = (centre - near + 1e4 * half).to(WORK)
                position = tl.where(hidden, tl.where(numerator < 0, left, right), position / denominator)
            whole = whole + (near.to(tl.int32),)
            part = part + (tl.where(finite & sound, position, float("nan")),)
    else:
        if KIND == "grid":
            coords += _pixel(start, ahead, strides, 1, NDIM)
        else:
            basis += _pixel(start, ahead, basis_strides, 1, NDIM)
        for axis in tl.static_range(NDIM):
            if KIND == "grid":
                normalized = tl.load(coords + axis * strides[NDIM + 1], mask=exists, other=0.0)
            else:
                total = tl.zeros(exists.shape, SUM)
                for k in range(terms):
                    factor = tl.load(coords + k * strides[1] + axis * strides[2]).to(SUM)
                    total += factor * tl.load(basis + k * basis_strides[0], mask=exists, other=0.0).to(SUM)
                normalized = total.to(WORK)
            n = tl.cast(in_size[axis], WORK)
            if ALIGN:
                position = normalized * (0.5 * (n - 1.0)) + 0.5 * (n - 1.0)
            else:
                position = 0.5 * ((normalized + 1.0) * n - 1.0)
            whole = whole + (0,)
            part = part + (tl.where(tl.abs(normalized) < float("inf"), position, float("nan")),)
    return whole, part, nearness


@_jit
def _first_tap(whole, part, MODE: tl.constexpr):
    """The first pixel that is read along an axis, and how far beyond the pixel below the position lies."""
    part = tl.where(part > 1073741824.0, 1073741824.0, tl.where(part < -1073741824.0, -1073741824.0, part))  # 2^30
    low = tl.floor(part)
    beyond = part - low
    index = tl.where(low == low, low, 0.0).to(tl.int32)
    if MODE == "nearest":
        index += ((beyond > 0.5) | ((beyond == 0.5) & ((index & 1) == 1))).to(tl.int32)
    if MODE == "bicubic":
        index -= 1
    return whole + index, beyond


@_jit
def _weight(beyond, k, MODE: tl.constexpr):
    """The weight of tap number k; NaN for NaN."""
    if MODE == "nearest":
        weight = tl.where(beyond == beyond, 1.0, beyond)
    elif MODE == "bilinear":
        weight = tl.where(k == 0, 1.0 - beyond, beyond)
    else:
        x = tl.abs(beyond + (1 - k))
        weight = tl.where(x <= 1.0, (1.25 * x - 2.25) * x * x + 1.0, ((x - 5.0) * x + 8.0) * x * -0.75 + 3.0)
    return weight


@_jit
def _slope(beyond, k, MODE: tl.constexpr):
    """The derivative of `_weight` in `beyond`."""
    if MODE == "bilinear":
        slope = tl.where(k == 0, -1.0, 1.0) + 0.0 * beyond
    else:
        signed = beyond + (1 - k)
        x = tl.abs(signed)
        slope = tl.where(x <= 1.0, (3.75 * x - 4.5) * x, (-2.25 * x + 7.5) * x - 6.0)
        slope = tl.where(signed < 0.0, -slope, slope)
    return slope


@_jit
def _remainder(a, n):
    m = a % n
    return tl.where(m < 0, m + n, m)


@_jit
def _padded(index, n, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """The pixel that an integer position stands for, and whether there is one."""
    if PADDING == "border":
        index = tl.minimum(tl.maximum(index, 0), n - 1)
    elif PADDING == "circular":
        index = _remainder(index, n)
    elif PADDING == "reflection":
        if ALIGN:
            period = tl.maximum(2 * (n - 1), 1)
            index = _remainder(index, period)
            index = tl.minimum(tl.minimum(index, period - index), n - 1)
        else:
            index = _remainder(index, 2 * n)
            index = tl.minimum(index, 2 * n - 1 - index)
    return index.to(tl.int64), (index >= 0) & (index < n)  # tested whatever the padding: nothing else may be touched


@_jit
def _forward(
    image,
    image_strides,
    coords,
    coords_strides,
    basis,
    basis_strides,
    terms,
    fill,
    fill_stride,
    in_size,
    out_size,
    channels,
    per_program,
    out,
    out_strides,
    NDIM: tl.constexpr,
    KIND: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    TAPS: tl.constexpr,
    WORK: tl.constexpr,
    SUM: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    LANES: tl.constexpr,
):
    batch, start, ahead, exists = _tile(out_size, NDIM, TILE_X, TILE_Y)
    whole, part, _ = _locate(
        coords, coords_strides, basis, basis_strides, terms, in_size, out_size, batch, start, ahead, exists,
        NDIM, KIND, ALIGN, WORK, SUM,
    )  # fmt: skip
    first_x, beyond_x = _first_tap(whole[0], part[0], MODE)
    first_y, beyond_y = _first_tap(whole[1], part[1], MODE)
    if NDIM == 3:
        first_z, beyond_z = _first_tap(whole[2], part[2], MODE)
    image += batch * image_strides[0]
    out += batch * out_strides[0] + _pixel(start, ahead, out_strides, 2, NDIM)

    begin = tl.program_id(1) * per_program
    for c in range(begin, tl.minimum(begin + per_program, channels), LANES):
        channel = c + tl.arange(0, LANES)[None, :]
        wanted = exists & (channel < channels)
        plane = image + channel.to(tl.int64) * image_strides[1]
        if PADDING == "constant":
            background = tl.load(fill + channel * fill_stride, mask=channel < channels, other=0.0)
        total = tl.zeros(wanted.shape, WORK)
        for kz in range(TAPS if NDIM == 3 else 1):
            row = plane
            there_z = wanted
            weight_z = 1.0
            if NDIM == 3:
                z, inside = _padded(first_z + kz, in_size[2], PADDING, ALIGN)
                row += z * image_strides[4]
                there_z = wanted & inside
                weight_z = _weight(beyond_z, kz, MODE)
            for ky in tl.static_range(TAPS):
                y, inside = _padded(first_y + ky, in_size[1], PADDING, ALIGN)
                there_y = there_z & inside
                weight_y = weight_z * _weight(beyond_y, ky, MODE)
                for kx in tl.static_range(TAPS):
                    x, inside = _padded(first_x + kx, in_size[0], PADDING, ALIGN)
                    there = there_y & inside
                    value = tl.load(row + y * image_strides[3] + x * image_strides[2], mask=there, other=0.0).to(WORK)
                    if PADDING == "constant":
                        value = tl.where(there, value, background)
                    total += value * (weight_y * _weight(beyond_x, kx, MODE))
        tl.store(out + channel.to(tl.int64) * out_strides[1], total.to(out.dtype.element_ty), mask=wanted)


@_jit
def _backward(
    image,
    image_strides,
    coords,
    coords_strides,
    basis,
    basis_strides,
    terms,
    fill,
    fill_stride,
    in_size,
    out_size,
    channels,
    per_program,
    grad,
    grad_strides,
    grad_image,
    grad_image_strides,
    counts,
    scales,
    quantum,
    grad_coords,
    grad_coords_strides,
    NDIM: tl.constexpr,
    KIND: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    TAPS: tl.constexpr,
    WORK: tl.constexpr,
    SUM: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    LANES: tl.constexpr,
    TO_IMAGE: tl.constexpr,
    TO_COORDS: tl.constexpr,
    COUNTED: tl.constexpr,
):
    batch, start, ahead, exists = _tile(out_size, NDIM, TILE_X, TILE_Y)
    whole, part, nearness = _locate(
        coords, coords_strides, basis, basis_strides, terms, in_size, out_size, batch, start, ahead, exists,
        NDIM, KIND, ALIGN, WORK, SUM,
    )  # fmt: skip
    first_x, beyond_x = _first_tap(whole[0], part[0], MODE)
    first_y, beyond_y = _first_tap(whole[1], part[1], MODE)
    if NDIM == 3:
        first_z, beyond_z = _first_tap(whole[2], part[2], MODE)
    image += batch * image_strides[0]
    grad += batch * grad_strides[0] + _pixel(start, ahead, grad_strides, 2, NDIM)

    # What reaches the position along each axis, in pixels.
    to_x = tl.zeros((TILE_X * TILE_Y, LANES), WORK)
    to_y = tl.zeros((TILE_X * TILE_Y, LANES), WORK)
    to_z = tl.zeros((TILE_X * TILE_Y, LANES), WORK)
    begin = tl.program_id(1) * per_program
    for c in range(begin, tl.minimum(begin + per_program, channels), LANES):
        channel = c + tl.arange(0, LANES)[None, :]
        wanted = exists & (channel < channels)
        arrived = tl.load(grad + channel.to(tl.int64) * grad_strides[1], mask=wanted, other=0.0).to(WORK)
        plane = image + channel.to(tl.int64) * image_strides[1]
        if PADDING == "constant":
            background = tl.load(fill + channel * fill_stride, mask=channel < channels, other=0.0)
        if TO_IMAGE:
            place = batch * grad_image_strides[0] + channel.to(tl.int64) * grad_image_strides[1]
            if COUNTED:
                counted = arrived * tl.load(scales + batch * channels + channel, mask=channel < channels, other=0.0)
        for kz in range(TAPS if NDIM == 3 else 1):
            z = tl.zeros((1, 1), tl.int64)
            there_z = wanted
            weight_z = 1.0
            slope_z = 0.0
            if NDIM == 3:
                z, inside = _padded(first_z + kz, in_size[2], PADDING, ALIGN)
                there_z = wanted & inside
                weight_z = _weight(beyond_z, kz, MODE)
                if TO_COORDS:
                    slope_z = _slope(beyond_z, kz, MODE)
            for ky in tl.static_range(TAPS):
                y, inside = _padded(first_y + ky, in_size[1], PADDING, ALIGN)
                there_y = there_z & inside
                weight_y = _weight(beyond_y, ky, MODE)
                for kx in tl.static_range(TAPS):
                    x, inside = _padded(first_x + kx, in_size[0], PADDING, ALIGN)
                    there = there_y & inside
                    weight_x = _weight(beyond_x, kx, MODE)
                    if TO_COORDS:
                        pixel = y * image_strides[3] + x * image_strides[2]
                        if NDIM == 3:
                            pixel += z * image_strides[4]
                        value = tl.load(plane + pixel, mask=there, other=0.0).to(WORK)
                        if PADDING == "constant":
                            value = tl.where(there, value, background)
                        value *= arrived
                        to_x += value * (_slope(beyond_x, kx, MODE) * weight_y * weight_z)
                        to_y += value * (weight_x * _slope(beyond_y, ky, MODE) * weight_z)
                        if NDIM == 3:
                            to_z += value * (weight_x * weight_y * slope_z)
                    if TO_IMAGE:
                        weight = weight_x * weight_y * weight_z
                        pixel = place + y * grad_image_strides[3] + x * grad_image_strides[2]
                        if NDIM == 3:
                            pixel += z * grad_image_strides[4]
                        if COUNTED:
                            count = counted * weight * quantum
                            finite = tl.abs(count) < 4611686018427387904.0  # 2^62
                            count = tl.floor(tl.where(finite, count, 0.0) + 0.5).to(tl.int64)
                            tl.atomic_add(counts + pixel, count, mask=there & finite, sem="relaxed")
                            # What is not finite adds up to the same in any order.
                            tl.atomic_add(
                                grad_image + pixel, arrived * weight, mask=there & (finite == 0), sem="relaxed"
                            )
                        else:
                            tl.atomic_add(grad_image + pixel, arrived * weight, mask=there, sem="relaxed")

    if TO_COORDS:
        to_position = (tl.sum(to_x, 1)[:, None], tl.sum(to_y, 1)[:, None], tl.sum(to_z, 1)[:, None])
        # One sum a program, in a row of its own.
        row = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * grad_coords_strides[0]
        if KIND == "grid":
            row = tl.program_id(1).to(tl.int64) * grad_coords_strides[0] + batch * grad_coords_strides[1]
            row = row + _pixel(start, ahead, grad_coords_strides, 2, NDIM)
        elif KIND == "basis":
            basis += _pixel(start, ahead, basis_strides, 1, NDIM)
        else:
            to_depth = tl.zeros(exists.shape, WORK)
            here = (_normalized(start[0] + ahead[0], out_size[0], ALIGN, WORK),)
            here = here + (_normalized(start[1] + ahead[1], out_size[1], ALIGN, WORK),)
            if NDIM == 3:
                here = here + (_normalized(start[2], out_size[2], ALIGN, WORK),)
        for axis in tl.static_range(NDIM):
            # No gradient where the position is cut off, as where it is not finite.
            reached = exists & (tl.abs(part[axis]) <= 1073741824.0)
            pull = tl.where(reached, to_position[axis], 0.0)
            to_normalized = pull * (0.5 * tl.cast(in_size[axis] - ALIGN, WORK))
            if KIND == "grid":
                tl.store(grad_coords + row + axis, to_normalized, mask=exists)
            elif KIND == "basis":
                for k in range(terms):
                    factor = tl.load(basis + k * basis_strides[0], mask=exists, other=0.0).to(WORK)
                    tl.store(grad_coords + row + k * NDIM + axis, tl.sum(factor * to_normalized))
            else:
                if KIND == "projective":
                    to_normalized *= nearness
                    from_centre = whole[axis] + part[axis] - 0.5 * tl.cast(in_size[axis] - 1, WORK)
                    to_depth -= tl.where(reached, pull * nearness * from_centre, 0.0)
                for column in tl.static_range(NDIM):
                    entry = tl.sum(to_normalized * here[column])
                    tl.store(grad_coords + row + axis * (NDIM + 1) + column, entry)
                tl.store(grad_coords + row + axis * (NDIM + 1) + NDIM, tl.sum(to_normalized))
        if KIND == "projective":
            for column in tl.static_range(NDIM):
                tl.store(grad_coords + row + NDIM * (NDIM + 1) + column, tl.sum(to_depth * here[column]))
            tl.store(grad_coords + row + NDIM * (NDIM + 1) + NDIM, tl.sum(to_depth))


# The launchers


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def _plan(
    kind: str, image: Tensor, size: Sequence[int], mode: str
) -> tuple[tuple[int, int], int, dict[str, Any]]:  # programs, channels of each, sizes of a tile
    batch, channels = image.shape[:2]
    height, width = size[-2:]
    # Channels-last images are read along the channels.
    lanes = min(_power(channels), 32 if image.stride(1) == 1 else 4)
    pixels = _TILE // lanes // (2 if mode == "bicubic" else 1)
    tile_y = min(pixels // min(_power(width), 32), _power(height))
    tile_x = min(pixels // tile_y, _power(width))
    tiles = batch * -(-width // tile_x) * -(-height // tile_y) * math.prod(size[:-2])
    share = _power(channels)
    while share > lanes and tiles * -(-channels // share) < _PROGRAMS:
        share //= 2
    return (tiles, -(-channels // share)), share, {"TILE_X": tile_x, "TILE_Y": tile_y, "LANES": lanes}


def _xyz(tensor: Tensor, lead: int, trail: int = 0) -> tuple[int, ...]:
    """The strides, those of the axes in space turned to x, y[, z]."""
    strides = tensor.stride()
    end = len(strides) - trail
    return (*strides[:lead], *reversed(strides[lead:end]), *strides[end:])


def _arguments(
    image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None, kind: str, size: Sequence[int],
    mode: str, padding_mode: str, align_corners: bool,
) -> tuple[tuple[int, int], list[Any], dict[str, Any]]:  # fmt: skip
    """What both kernels take."""
    _compile()
    if max(*image.shape[2:], *size) >= _LARGEST_AXIS:
        raise ValueError(f"image: expected axes of less than 2^30 pixels, got {tuple(image.shape)} to {tuple(size)}")
    d = len(size)
    work = tl.float64 if coords.dtype == torch.float64 else tl.float32
    programs, share, tile = _plan(kind, image, size, mode)
    terms, total = 0, work
    basis_strides: tuple[int, ...] = ()
    if basis is not None:
        terms = basis.shape[1]
        total = tl.float64 if torch.float64 in (basis.dtype, coords.dtype) else tl.float32
        basis_strides = (basis.stride(1), *_xyz(basis[:, 0].unflatten(0, tuple(size)), 0))
    arguments = [
        image,
        _xyz(image, 2),
        coords,
        _xyz(coords, 1, 1) if kind == "grid" else coords.stride(),
        coords if basis is None else basis,
        basis_strides,
        terms,
        coords if fill is None else fill,
        int(fill is not None and fill.numel() > 1),
        tuple(reversed(image.shape[2:])),
        tuple(reversed(size)),
        image.shape[1],
        share,
    ]
    options = {
        "NDIM": d,
        "KIND": kind,
        "MODE": mode,
        "PADDING": padding_mode,
        "ALIGN": int(align_corners),
        "TAPS": _TAPS[mode],
        "WORK": work,
        "SUM": total,
        **tile,
        "num_warps": 4,
    }
    return programs, arguments, options


def _empty_like_format(image: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Of the image's batch, channels and memory format: channels-last or contiguous."""
    batch, channels = image.shape[:2]
    if channels > 1 and image.stride(1) == 1 and not image.is_contiguous():
        return image.new_empty(batch, *size, channels, dtype=dtype).movedim(-1, 1)
    return image.new_empty(batch, channels, *size, dtype=dtype)


def _run_forward(
    image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None, kind: str, size: Sequence[int],
    mode: str, padding_mode: str, align_corners: bool,
) -> Tensor:  # fmt: skip
    out = _empty_like_format(image, size, image.dtype)
    if out.numel():
        programs, arguments, options = _arguments(
            image, coords, basis, fill, kind, size, mode, padding_mode, align_corners
        )
        with torch.cuda.device_of(image):
            _forward[programs](*arguments, out, _xyz(out, 2), **options)
    return out


def _run_backward(
    grad: Tensor, to_image: bool, to_coords: bool, to_fill: bool, image: Tensor, coords: Tensor,
    basis: Tensor | None, fill: Tensor | None, *options: Any,
) -> list[Tensor]:  # fmt: skip
    """The gradients of the image, of the coordinates and of the fill: those that are asked for."""
    mode = options[2]
    moves = mode != "nearest" and grad.numel() > 0  # else the position has no gradient
    to_image_now, to_coords_now = to_image and grad.numel() > 0, to_coords and moves
    grads = []
    grad_image = _empty_like_format(image, image.shape[2:], coords.dtype).zero_() if to_image else None
    sums = None
    if to_image_now or to_coords_now:
        sums = _run_backward_kernel(grad, grad_image, to_coords_now, image, coords, basis, fill, *options)
    if grad_image is not None:
        grads.append(grad_image.to(image.dtype))
    if to_coords:
        grads.append(torch.zeros_like(coords, memory_format=torch.contiguous_format) if sums is None else sums)
    if to_fill:
        assert fill is not None
        nothing, one = coords.new_zeros(()).expand(image.shape[0], 1, *image.shape[2:]), fill.new_ones(1)
        outside = _run_forward(nothing, coords, basis, one, *options)  # (B, 1, *size), how much of a pixel is fill
        per_channel = (grad * outside).transpose(0, 1).flatten(1).sum(1)
        grads.append(per_channel if fill.numel() > 1 else per_channel.sum(0, keepdim=True))
    return grads


def _run_backward_kernel(
    grad: Tensor, grad_image: Tensor | None, to_coords: bool, image: Tensor, coords: Tensor,
    basis: Tensor | None, fill: Tensor | None, kind: str, size: Sequence[int], *options: Any,
) -> Tensor | None:  # fmt: skip
    """Adds to `grad_image` where there is one, and returns the gradient of the coordinates where that is asked for."""
    programs, arguments, switches = _arguments(image, coords, basis, fill, kind, size, *options)
    counted = grad_image is not None and torch.are_deterministic_algorithms_enabled()
    # Arguments that a case does not touch are any tensor.
    counts = scales = sums = coords
    quantum, strides = 1.0, (0, 0)
    if counted:
        assert grad_image is not None
        counts = torch.zeros_like(grad_image, dtype=torch.int64)
        # The weights of an output pixel are below 4 in sum, so no sum is above 2^62.
        quantum = 2.0 ** (58 - (math.prod(size) - 1).bit_length())
        largest = grad.detach().to(coords.dtype).nan_to_num(0.0, 0.0, 0.0).abs().flatten(2).amax(2)
        exponent = torch.frexp(largest)[1].clamp(-126, 126)
        scales = torch.ldexp(torch.ones_like(largest), -exponent)
    if to_coords and kind == "grid":
        sums = coords.new_empty(programs[1], *coords.shape)
        strides = _xyz(sums, 2, 1)
    elif to_coords:
        sums = coords.new_empty(*programs, *coords.shape[1:])
        strides = (coords[0].numel(), 0)
    with torch.cuda.device_of(image):
        _backward[programs](
            *arguments, grad, _xyz(grad, 2), image if grad_image is None else grad_image,
            _xyz(image if grad_image is None else grad_image, 2), counts, scales, quantum, sums, strides,
            TO_IMAGE=grad_image is not None, TO_COORDS=to_coords, COUNTED=counted, **switches,
        )  # fmt: skip
    if counted:
        assert grad_image is not None
        unit = torch.ldexp(torch.ones_like(largest, dtype=torch.float64), exponent) / quantum
        grad_image += counts * unit.reshape(*unit.shape, *[1] * len(size))
    if not to_coords:
        return None
    return sums.sum(0) if kind == "grid" else sums.unflatten(0, (image.shape[0], -1)).sum((1, 2))


# The derivatives


class _Warp(torch.autograd.Function):
    """What eager mode calls: a third of the time of an operator."""

    @staticmethod
    def forward(image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None, *options: Any) -> Tensor:
        return _run_forward(image, coords, basis, fill, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options = inputs[4:]
        ctx.save_for_backward(*inputs[:4])
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, coords, basis, fill = ctx.saved_tensors
        to_image, to_coords, _, to_fill = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():  # somebody will differentiate the gradient
            grads = _reference_vjp(image, coords, basis, fill, ctx.options)[1](grad)
            grads = [g for g, wanted in zip(grads, (to_image, to_coords, to_fill), strict=False) if wanted]
        else:
            grads = _Gradients.apply(grad, image, coords, basis, fill, to_image, to_coords, to_fill, *ctx.options)
        return _spread(grads, to_image, to_coords, to_fill) + (None,) * len(ctx.options)

    @staticmethod
    def jvp(
        ctx: Any, image_t: Tensor | None, coords_t: Tensor | None, _: None, fill_t: Tensor | None, *__: Any
    ) -> Tensor:
        image, coords, basis, fill = ctx.saved_tensors
        given = [(image, image_t), (coords, coords_t), (fill, fill_t)]
        tangents = tuple(torch.zeros_like(p) if t is None else t for p, t in given if p is not None)
        # The transpose of the transpose: a jvp in here would be nested forward mode, which torch lacks.
        out, pull = _reference_vjp(image, coords, basis, fill, ctx.options)
        pushed: Tensor = torch.func.vjp(pull, torch.zeros_like(out))[1](tangents)[0]
        return pushed

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        if in_dims[2] is not None or in_dims[3] is not None:
            return torch.stack([_Warp.apply(*one) for one in _slices(info.batch_size, in_dims, inputs)]), 0
        # The axis becomes a part of the batch.
        images, coords = (
            (tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)).flatten(0, 1)
            for dim, tensor in zip(in_dims[:2], inputs[:2], strict=True)
        )
        return _Warp.apply(images, coords, *inputs[2:]).unflatten(0, (info.batch_size, -1)), 0


class _Gradients(torch.autograd.Function):
    """The backward kernel, for batches of gradients too. Nobody differentiates it."""

    @staticmethod
    def forward(
        grad: Tensor, image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None,
        to_image: bool, to_coords: bool, to_fill: bool, *options: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return tuple(_run_backward(grad, to_image, to_coords, to_fill, image, coords, basis, fill, *options))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        each = [_Gradients.apply(*one) for one in _slices(info.batch_size, in_dims, inputs)]
        grads = tuple(torch.stack(tensors) for tensors in zip(*each, strict=True))
        return grads, (0,) * len(grads)


def _slices(count: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[list[Any]]:
    pairs = list(zip(in_dims, inputs, strict=True))
    return [[value if dim is None else value.select(dim, i) for dim, value in pairs] for i in range(count)]


def _spread(grads: Sequence[Tensor], to_image: bool, to_coords: bool, to_fill: bool) -> tuple[Tensor | None, ...]:
    """The gradients that were asked for at their places among image, coords, basis, fill."""
    left = iter(grads)
    return tuple(next(left) if wanted else None for wanted in (to_image, to_coords, False, to_fill))


def _reference_vjp(
    image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None, options: tuple[Any, ...]
) -> Any:
    """The warp on the reference, and its pullback to image, coords and, where there is one, fill."""
    primals = [image, coords] if fill is None else [image, coords, fill]
    return torch.func.vjp(lambda i, c, f=None: _reference(i, c, basis, f, *options), *primals)


def _reference(
    image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None, kind: str, size: tuple[int, ...],
    mode: str, padding_mode: str, align_corners: bool,
) -> Tensor:  # fmt: skip
    grid = coords
    if kind == "affine":
        grid = reference.affine_grid(coords, size, align_corners)
    elif kind == "projective":
        numerator = reference.affine_grid(coords[:, :-1], size, align_corners)
        denominator = reference.affine_grid(coords[:, 1:], size, align_corners)[..., -1:]
        hidden = denominator <= _HORIZON * coords[:, -1].abs().amax(1).reshape(-1, *[1] * denominator[0].ndim)
        far = torch.full_like(numerator, 1 / _HORIZON).copysign(numerator.detach())
        grid = torch.where(hidden, far, numerator / torch.where(hidden, 1.0, denominator))
    elif kind == "basis":
        assert basis is not None
        dtype = torch.promote_types(basis.dtype, coords.dtype)
        grid = (basis.to(dtype) @ coords.to(dtype)).to(coords.dtype).unflatten(1, size)
    return reference.sample(image, grid, mode, padding_mode, fill, align_corners).to(image.dtype)


# For compilers: opaque, as there is nothing to fuse with a gather, and nothing to take apart.

_OPTIONS = "str kind, SymInt[] size, str mode, str padding_mode, bool align_corners"
_operator = torch.library.custom_op(
    "stn::triton_warp",
    _run_forward,
    mutates_args=(),
    schema=f"(Tensor image, Tensor coords, Tensor? basis, Tensor? fill, {_OPTIONS}) -> Tensor",
)
_backward_operator = torch.library.custom_op(
    "stn::triton_warp_backward",
    _run_backward,
    mutates_args=(),
    schema=(
        "(Tensor grad, bool to_image, bool to_coords, bool to_fill, Tensor image, Tensor coords, Tensor? basis, "
        f"Tensor? fill, {_OPTIONS}) -> Tensor[]"
    ),
)


@_operator.register_fake
def _(
    image: Tensor, coords: Tensor, basis: Tensor | None, fill: Tensor | None, kind: str, size: Sequence[int], *_: Any
) -> Tensor:
    return _empty_like_format(image, size, image.dtype)


@_backward_operator.register_fake
def _(
    grad: Tensor, to_image: bool, to_coords: bool, to_fill: bool, image: Tensor, coords: Tensor,
    basis: Tensor | None, fill: Tensor | None, *_: Any,
) -> list[Tensor]:  # fmt: skip
    grads = [_empty_like_format(image, image.shape[2:], image.dtype)] if to_image else []
    if to_coords:
        grads.append(torch.empty_like(coords, memory_format=torch.contiguous_format))
    if to_fill:
        assert fill is not None
        grads.append(torch.empty_like(fill))
    return grads


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[4:]
    ctx.save_for_backward(*inputs[:4])


def _differentiate_operator(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    to_image, to_coords, _, to_fill = ctx.needs_input_grad[:4]
    grads = _backward_operator(grad, to_image, to_coords, to_fill, *ctx.saved_tensors, *ctx.options)
    return _spread(grads, to_image, to_coords, to_fill) + (None,) * len(ctx.options)


_operator.register_autograd(_differentiate_operator, setup_context=_setup_operator)
