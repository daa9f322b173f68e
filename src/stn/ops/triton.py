"""The warp on the GPU, in Triton: one forward and one backward kernel for every case, compiled from small pieces.

A program makes one tile of the output, TILE_X by TILE_Y pixels of one slice of one image, for some of its channels,
LANES at a time: where to read is worked out once for all of them and never stored.

Positions of affine and projective maps go in steps from the tile's first pixel, whose position is worked out in pairs
of float32 (the second what rounding took from the first; consumer cards have one float64 unit for 64 of float32), and
are kept relative to a whole number of pixels near by: they are exact to the digits of the tile, not to those of the
image. Compilers may not contract products and sums here (`enable_fp_fusion`); what is to be fused says so.

The sums that make the gradient of a matrix or of coefficients are taken per program, written out and added up in one
order: the same bits every time. So is the gradient of a grid, which nothing adds to.

The gradient of the image adds up atomically, in whatever order the card has it. Under
`torch.use_deterministic_algorithms` it adds up in whole numbers instead, 2^-k of the largest gradient of a channel (k =
58 less the binary digits of the number of output pixels: 42 at 224 x 224), of which the order does not matter: the same
bits every time again, for 8 bytes more a pixel.

Derivatives of derivatives, forward mode and the transforms of `torch.func` go by way of the reference.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"
# ruff: noqa: RUF005, SIM300 (Triton knows sums of tuples and no stars; its types are no constants)
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
_PIXELS = 256  # of a tile: 2 for each of its 128 threads, in 64 registers in 2D; half as many where more are needed
_PROGRAMS = 1024  # fill the largest cards; channels are divided among programs until there are as many
_HORIZON = reference.HORIZON


@functools.cache
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
    # Once, as Triton looks when it is imported.
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
def _normalized(pixel, n, ALIGN: tl.constexpr, WORK: tl.constexpr):
    """The normalized coordinate of an output pixel, and what rounding took from it."""
    steps = tl.cast(2 * pixel + 1 - n, WORK)
    pixels = tl.cast(tl.maximum(n - ALIGN, 1), WORK)
    high = steps / pixels
    return high, tl.fma(-high, pixels, steps) / pixels


@_jit
def _ratio(a, b, WORK: tl.constexpr):
    """a / max(b, 1), rounded to nearest: exactly 1 from a size to itself."""
    a = tl.cast(a, WORK)
    b = tl.cast(tl.maximum(b, 1), WORK)
    return a / b if WORK == tl.float64 else tl.div_rn(a, b)


@_jit
def _line(row, stride, unit, here, here_low, NDIM: tl.constexpr, WORK: tl.constexpr):
    """A row of a matrix times `unit`, applied to a point: the value, what rounding took from it, the entries without
    the last, and whether all are finite."""
    entry = tl.load(row + NDIM * stride)
    finite = tl.abs(entry) < float("inf")
    value = _bounded(entry * unit, 1e28)
    low = 0.0 * value
    entries = ()
    for axis in tl.static_range(NDIM):
        entry = tl.load(row + axis * stride)
        finite = finite & (tl.abs(entry) < float("inf"))
        entry = _bounded(entry * unit, 1e28)  # far outside like anything larger, and its products are finite
        product = entry * here[axis]
        low += tl.fma(entry, here[axis], -product) + entry * here_low[axis]
        total = value + product
        back = total - value
        low += (value - (total - back)) + (product - back)
        value = total
        entries = entries + (entry,)
    return value, low, entries, finite


@_jit
def _bounded(x, limit):
    """NaN stays NaN."""
    return tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))


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
        here = ()
        here_low = ()
        for axis in tl.static_range(NDIM):
            high, low = _normalized(start[axis], out_size[axis], ALIGN, WORK)
            here = here + (high,)
            here_low = here_low + (low,)
        on_x = ahead[0].to(WORK)
        on_y = ahead[1].to(WORK)
        unit = tl.full((), 1.0, WORK)
        sound = unit == unit
        if KIND == "projective":
            last = coords + NDIM * strides[1]
            largest = tl.abs(tl.load(last))
            for axis in tl.static_range(NDIM):
                largest = tl.maximum(largest, tl.abs(tl.load(last + (axis + 1) * strides[2])))
            # A matrix and its multiples are the same map: 2^64 times smaller or larger one has room.
            unit = tl.where(
                largest > 1e18, 5.421010862427522e-20, tl.where(largest < 1e-18, 18446744073709551616.0, unit)
            )
            horizon = 1e-4 * (largest * unit)
            depth, depth_low, entries, sound = _line(last, strides[2], unit, here, here_low, NDIM, WORK)
            depth_x = entries[0] * _ratio(2, out_size[0] - ALIGN, WORK)
            depth_y = entries[1] * _ratio(2, out_size[1] - ALIGN, WORK)
            denominator = tl.fma(depth_y, on_y, tl.fma(depth_x, on_x, depth))
            hidden = denominator <= horizon
            denominator = tl.where(hidden, 1.0, denominator)
            nearness = tl.where(hidden, 0.0, unit / denominator)
        for axis in tl.static_range(NDIM):
            size = in_size[axis] - ALIGN
            half = 0.5 * tl.cast(size, WORK)
            centre = 0.5 * tl.cast(in_size[axis] - 1, WORK)
            value, low, entries, finite = _line(
                coords + axis * strides[1], strides[2], unit, here, here_low, NDIM, WORK
            )
            guess = half * value
            if KIND == "projective":
                guess = tl.where(depth > horizon, guess / depth, 0.0)
            guess += centre
            # Even, so that a tie goes to the same pixel with and without it.
            near = tl.where(tl.abs(guess) < 536870912.0, 2.0 * tl.floor(0.5 * guess), 0.0)
            rest = centre - near
            step_x = entries[0] * _ratio(size, out_size[0] - ALIGN, WORK)
            step_y = entries[1] * _ratio(size, out_size[1] - ALIGN, WORK)
            if KIND == "projective":
                product = rest * depth
                lost = tl.fma(rest, depth, -product) + (half * low + rest * depth_low)
                step_x = tl.fma(rest, depth_x, step_x)
                step_y = tl.fma(rest, depth_y, step_y)
            else:
                product = rest
                lost = half * low
            position = tl.fma(half, value, product) + lost
            position = tl.fma(step_y, on_y, tl.fma(step_x, on_x, position))
            if KIND == "projective":
                numerator = tl.fma(entries[0] * _ratio(2, out_size[0] - ALIGN, WORK), on_x, value)
                numerator = tl.fma(entries[1] * _ratio(2, out_size[1] - ALIGN, WORK), on_y, numerator)
                far = tl.where(numerator < 0.0, rest - 1e4 * half, rest + 1e4 * half)
                position = tl.where(hidden, far, position / denominator)
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
    part = _bounded(part, 1073741824.0)  # 2^30: beyond it all is the same far outside
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
            index = tl.minimum(index, period - index)
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
                    total = tl.fma(value, weight_y * _weight(beyond_x, kx, MODE), total)
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
                        to_x = tl.fma(value, _slope(beyond_x, kx, MODE) * weight_y * weight_z, to_x)
                        to_y = tl.fma(value, weight_x * _slope(beyond_y, ky, MODE) * weight_z, to_y)
                        if NDIM == 3:
                            to_z = tl.fma(value, weight_x * weight_y * slope_z, to_z)
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
            here = (_normalized(start[0] + ahead[0], out_size[0], ALIGN, WORK)[0],)
            here = here + (_normalized(start[1] + ahead[1], out_size[1], ALIGN, WORK)[0],)
            if NDIM == 3:
                here = here + (_normalized(start[2], out_size[2], ALIGN, WORK)[0],)
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


def _plan(image: Tensor, size: Sequence[int], halved: bool) -> tuple[tuple[int, int], int, dict[str, int]]:
    """How many programs for tiles and for channels, how many channels each has, and the sizes of a tile."""
    batch, channels = image.shape[:2]
    height, width = size[-2:]
    # Channels-last images are read along the channels.
    lanes = min(_power(channels), 32) if channels > 1 and image.stride(1) == 1 else 1
    pixels = min(_PIXELS, 1024 // lanes) // (2 if halved else 1)
    tile_y = min(max(pixels // min(_power(width), 32), 1), _power(height))
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
    mode: str, padding_mode: str, align_corners: bool, *, backward: bool,
) -> tuple[tuple[int, int], list[Any], dict[str, Any]]:  # fmt: skip
    """What both kernels take."""
    _compile()
    if max(*image.shape[2:], *size) >= _LARGEST_AXIS:
        raise ValueError(f"image: expected axes of less than 2^30 pixels, got {tuple(image.shape)} to {tuple(size)}")
    d = len(size)
    work = tl.float64 if coords.dtype == torch.float64 else tl.float32
    programs, share, tile = _plan(image, size, backward or mode == "bicubic")
    terms, total = 0, work
    basis_strides: tuple[int, ...] = (0,)
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
        "enable_fp_fusion": False,
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
            image, coords, basis, fill, kind, size, mode, padding_mode, align_corners, backward=False
        )
        with torch.cuda.device_of(image):
            _forward[programs](*arguments, out, _xyz(out, 2), **options)
    return out


def _run_backward(
    grad: Tensor, to_image: bool, to_coords: bool, to_fill: bool, image: Tensor, coords: Tensor,
    basis: Tensor | None, fill: Tensor | None, *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of the image, of the coordinates and of the fill; of those not asked for an empty tensor."""
    mode = options[2]
    grad_image, grad_coords, grad_fill = (coords.new_empty(0) for _ in range(3))
    if to_image:
        grad_image = _empty_like_format(image, image.shape[2:], coords.dtype).zero_()
    if to_coords:
        grad_coords = torch.zeros_like(coords, memory_format=torch.contiguous_format)
    to_coords = to_coords and mode != "nearest"  # of which the position has no gradient
    if grad.numel() and (to_image or to_coords):
        target = grad_image if to_image else None
        moved = _run_backward_kernel(grad, target, to_coords, image, coords, basis, fill, *options)
        grad_coords = grad_coords if moved is None else moved
    if to_fill:
        assert fill is not None
        nothing, one = coords.new_zeros(()).expand(image.shape[0], 1, *image.shape[2:]), fill.new_ones(1)
        outside = _run_forward(nothing, coords, basis, one, *options)  # (B, 1, *size), how much of a pixel is fill
        grad_fill = (grad * outside).transpose(0, 1).flatten(1).sum(1)
        grad_fill = grad_fill if fill.numel() > 1 else grad_fill.sum(0, keepdim=True)
    return grad_image.to(image.dtype) if to_image else grad_image, grad_coords, grad_fill


def _run_backward_kernel(
    grad: Tensor, grad_image: Tensor | None, to_coords: bool, image: Tensor, coords: Tensor,
    basis: Tensor | None, fill: Tensor | None, kind: str, size: Sequence[int], *options: Any,
) -> Tensor | None:  # fmt: skip
    """Adds to `grad_image` where there is one, and returns the gradient of the coordinates where that is asked for."""
    programs, arguments, switches = _arguments(image, coords, basis, fill, kind, size, *options, backward=True)
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
            grads = (*_reference_vjp(image, coords, basis, fill, ctx.options)[1](grad), None)
        else:
            run = _run_backward if _has_memory(grad) else _backward_operator
            grads = run(grad, to_image, to_coords, to_fill, image, coords, basis, fill, *ctx.options)
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


def _slices(count: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[list[Any]]:
    pairs = list(zip(in_dims, inputs, strict=True))
    return [[value.select(dim, i) if isinstance(dim, int) else value for dim, value in pairs] for i in range(count)]


def _has_memory(tensor: Tensor) -> bool:
    """Not so under `vmap`, of either kind."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def _spread(grads: Sequence[Tensor | None], *wanted: bool) -> tuple[Tensor | None, ...]:
    """Gradients of image, coordinates and fill at their places among image, coords, basis, fill."""
    to_image, to_coords, to_fill = (grad if want else None for grad, want in zip(grads, wanted, strict=False))
    return to_image, to_coords, None, to_fill


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
        grid = reference.projective_grid(coords, size, align_corners)
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
        f"Tensor? fill, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
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
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        _empty_like_format(image, image.shape[2:], image.dtype) if to_image else coords.new_empty(0),
        torch.empty_like(coords, memory_format=torch.contiguous_format) if to_coords else coords.new_empty(0),
        coords.new_empty(0) if fill is None or not to_fill else torch.empty_like(fill),
    )


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[4:]
    ctx.save_for_backward(*inputs[:4])


def _differentiate_operator(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    to_image, to_coords, _, to_fill = ctx.needs_input_grad[:4]
    grads = _backward_operator(grad, to_image, to_coords, to_fill, *ctx.saved_tensors, *ctx.options)
    return _spread(grads, to_image, to_coords, to_fill) + (None,) * len(ctx.options)


_operator.register_autograd(_differentiate_operator, setup_context=_setup_operator)
