"""The kernels: one forward and one backward for every case, compiled from small pieces.

A program makes one tile of the output, TILE_X by TILE_Y pixels of one slice of one image, for some of its channels,
LANES at a time: where to read is worked out once for all of them and never stored.

Positions of affine and projective maps go in steps from the tile's first pixel, whose position is worked out in pairs
of float32 (the second what rounding took from the first; consumer cards have one float64 unit for 64 of float32), and
are kept relative to a whole number of pixels near by: they are exact to the digits of the tile, not to those of the
image. Compilers may not contract products and sums here (`enable_fp_fusion`); what is to be fused says so.

Axes are ordered x, y[, z], in tuples; `whole` and `part` add up to a position in pixels.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"
# ruff: noqa: RUF005, SIM300 (Triton knows sums of tuples and no stars; its types are no constants)
from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

_functions: list[Any] = []


def _jit(function: Any) -> Any:
    """To be compiled. Importing Triton takes longer than importing all of this package, so that waits for `load`."""
    _functions.append(function)
    return function


@functools.cache
def load() -> None:
    import triton
    import triton.language

    for function in _functions:  # of several files
        function.__globals__["tl"] = triton.language
        function.__globals__[function.__name__] = triton.jit(function)


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
def _first_tap(whole, part, MODE: tl.constexpr, TAPS: tl.constexpr):
    """The first pixel that is read along an axis, and how far beyond the pixel below the position lies; where the taps of
    a kernel of polynomials are an odd number, beyond the middle between two."""
    part = _bounded(part, 1073741824.0)  # 2^30: beyond it all is the same far outside
    if MODE == "polynomials" and TAPS % 2 == 1:
        part += 0.5
    low = tl.floor(part)
    beyond = part - low
    index = tl.where(low == low, low, 0.0).to(tl.int32)
    if MODE == "polynomials":
        index -= (TAPS - 1) // 2
    if MODE == "integer":
        index += (beyond >= 0.5).to(tl.int32)
    if MODE == "nearest":
        index += ((beyond > 0.5) | ((beyond == 0.5) & ((index & 1) == 1))).to(tl.int32)
    if MODE == "bicubic":
        index -= 1
    return whole + index, beyond


@_jit
def _weight(beyond, k, MODE: tl.constexpr):
    """The weight of tap number k; NaN for NaN."""
    if MODE == "nearest" or MODE == "integer":
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
def _tap(beyond, k, powers, MODE: tl.constexpr, TAPS: tl.constexpr, DEGREE: tl.constexpr):
    """`_weight`, and of a kernel of polynomials, whose coefficients are (DEGREE + 1, TAPS)."""
    if MODE == "polynomials":
        weight = tl.load(powers + DEGREE * TAPS + k) + 0.0 * beyond
        for d in range(1, DEGREE + 1):
            weight = tl.fma(weight, beyond - 0.5, tl.load(powers + (DEGREE - d) * TAPS + k))
    else:
        weight = _weight(beyond, k, MODE)
    return weight


@_jit
def _tap_slope(beyond, k, powers, MODE: tl.constexpr, TAPS: tl.constexpr, DEGREE: tl.constexpr):
    """The derivative of `_tap` in `beyond`."""
    if MODE == "polynomials":
        slope = DEGREE * tl.load(powers + DEGREE * TAPS + k) + 0.0 * beyond
        for d in range(1, DEGREE):
            slope = tl.fma(slope, beyond - 0.5, (DEGREE - d) * tl.load(powers + (DEGREE - d) * TAPS + k))
    else:
        slope = _slope(beyond, k, MODE)
    return slope


@_jit
def _across(first, beyond, n, KINK: tl.constexpr, WORK: tl.constexpr):
    """The first tap and the rest on the other side of the kink for positions that lie on a pixel's centre, and 1 for those."""
    width = tl.minimum(KINK * tl.cast(n, WORK), 0.5)
    right = (beyond <= width).to(tl.int32)
    left = (beyond >= 1.0 - width).to(tl.int32) * (1 - right)
    beyond = tl.where(right == 1, 1.0, tl.where(left == 1, 0.0, beyond))
    return first - right + left, beyond, right + left


@_jit
def _mean_if_finite(a, b):
    return tl.where(tl.abs(b) < float("inf"), 0.5 * a + 0.5 * b, a)


@_jit
def _slopes(
    image,
    image_strides,
    fill,
    fill_stride,
    grad,
    grad_strides,
    in_size,
    channels,
    per_program,
    first,
    beyond,
    sound,
    NDIM: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    WORK: tl.constexpr,
    LANES: tl.constexpr,
):
    """What reaches the positions along x, y, z with linear interpolation, (P, 1) each."""
    to_x = tl.zeros((sound.shape[0], LANES), WORK)
    to_y = tl.zeros((sound.shape[0], LANES), WORK)
    to_z = tl.zeros((sound.shape[0], LANES), WORK)
    begin = tl.program_id(1) * per_program
    for c in range(begin, tl.minimum(begin + per_program, channels), LANES):
        channel = c + tl.arange(0, LANES)[None, :]
        wanted = sound & (channel < channels)
        arrived = tl.load(grad + channel.to(tl.int64) * grad_strides[1], mask=wanted, other=0.0).to(WORK)
        plane = image + channel.to(tl.int64) * image_strides[1]
        if PADDING == "constant":
            background = tl.load(fill + channel * fill_stride, mask=channel < channels, other=0.0)
        for kz in range(2 if NDIM == 3 else 1):
            row = plane
            there_z = wanted
            weight_z = 1.0
            slope_z = 0.0
            if NDIM == 3:
                z, inside = _padded(first[2] + kz, in_size[2], PADDING, ALIGN)
                row += z * image_strides[4]
                there_z = wanted & inside
                weight_z = _weight(beyond[2], kz, "bilinear")
                slope_z = _slope(beyond[2], kz, "bilinear")
            for ky in tl.static_range(2):
                y, inside = _padded(first[1] + ky, in_size[1], PADDING, ALIGN)
                there_y = there_z & inside
                weight_y = _weight(beyond[1], ky, "bilinear")
                for kx in tl.static_range(2):
                    x, inside = _padded(first[0] + kx, in_size[0], PADDING, ALIGN)
                    there = there_y & inside
                    weight_x = _weight(beyond[0], kx, "bilinear")
                    value = tl.load(row + y * image_strides[3] + x * image_strides[2], mask=there, other=0.0).to(WORK)
                    if PADDING == "constant":
                        value = tl.where(there, value, background)
                    value *= arrived
                    to_x = tl.fma(value, _slope(beyond[0], kx, "bilinear") * weight_y * weight_z, to_x)
                    to_y = tl.fma(value, weight_x * _slope(beyond[1], ky, "bilinear") * weight_z, to_y)
                    if NDIM == 3:
                        to_z = tl.fma(value, weight_x * weight_y * slope_z, to_z)
    return tl.sum(to_x, 1)[:, None], tl.sum(to_y, 1)[:, None], tl.sum(to_z, 1)[:, None]


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
def forward(
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
    powers,
    margin,
    out,
    out_strides,
    NDIM: tl.constexpr,
    KIND: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    TAPS: tl.constexpr,
    DEGREE: tl.constexpr,
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
    first_x, beyond_x = _first_tap(whole[0] + margin, part[0], MODE, TAPS)
    first_y, beyond_y = _first_tap(whole[1] + margin, part[1], MODE, TAPS)
    if NDIM == 3:
        first_z, beyond_z = _first_tap(whole[2] + margin, part[2], MODE, TAPS)
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
                z, inside = _padded(first_z + kz, in_size[2] + 2 * margin, PADDING, ALIGN)
                row += z * image_strides[4]
                there_z = wanted & inside
                weight_z = _tap(beyond_z, kz, powers, MODE, TAPS, DEGREE)
            for ky in tl.static_range(TAPS):
                y, inside = _padded(first_y + ky, in_size[1] + 2 * margin, PADDING, ALIGN)
                there_y = there_z & inside
                weight_y = weight_z * _tap(beyond_y, ky, powers, MODE, TAPS, DEGREE)
                for kx in tl.static_range(TAPS):
                    x, inside = _padded(first_x + kx, in_size[0] + 2 * margin, PADDING, ALIGN)
                    there = there_y & inside
                    value = tl.load(row + y * image_strides[3] + x * image_strides[2], mask=there, other=0.0).to(WORK)
                    if PADDING == "constant":
                        value = tl.where(there, value, background)
                    total = tl.fma(value, weight_y * _tap(beyond_x, kx, powers, MODE, TAPS, DEGREE), total)
        tl.store(out + channel.to(tl.int64) * out_strides[1], total.to(out.dtype.element_ty), mask=wanted)


@_jit
def backward(
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
    powers,
    margin,
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
    DEGREE: tl.constexpr,
    WORK: tl.constexpr,
    SUM: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    LANES: tl.constexpr,
    TO_IMAGE: tl.constexpr,
    TO_COORDS: tl.constexpr,
    COUNTED: tl.constexpr,
    KINK: tl.constexpr,
):
    batch, start, ahead, exists = _tile(out_size, NDIM, TILE_X, TILE_Y)
    whole, part, nearness = _locate(
        coords, coords_strides, basis, basis_strides, terms, in_size, out_size, batch, start, ahead, exists,
        NDIM, KIND, ALIGN, WORK, SUM,
    )  # fmt: skip
    first_x, beyond_x = _first_tap(whole[0] + margin, part[0], MODE, TAPS)
    first_y, beyond_y = _first_tap(whole[1] + margin, part[1], MODE, TAPS)
    if NDIM == 3:
        first_z, beyond_z = _first_tap(whole[2] + margin, part[2], MODE, TAPS)
    # A position that is not finite passes no gradient.
    sound = exists
    for axis in tl.static_range(NDIM):
        sound = sound & (part[axis] == part[axis])
    image += batch * image_strides[0]
    grad += batch * grad_strides[0] + _pixel(start, ahead, grad_strides, 2, NDIM)

    # What reaches the position along each axis, in pixels.
    to_x = tl.zeros((TILE_X * TILE_Y, LANES), WORK)
    to_y = tl.zeros((TILE_X * TILE_Y, LANES), WORK)
    to_z = tl.zeros((TILE_X * TILE_Y, LANES), WORK)
    begin = tl.program_id(1) * per_program
    for c in range(begin, tl.minimum(begin + per_program, channels), LANES):
        channel = c + tl.arange(0, LANES)[None, :]
        wanted = sound & (channel < channels)
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
                z, inside = _padded(first_z + kz, in_size[2] + 2 * margin, PADDING, ALIGN)
                there_z = wanted & inside
                weight_z = _tap(beyond_z, kz, powers, MODE, TAPS, DEGREE)
                if TO_COORDS:
                    slope_z = _tap_slope(beyond_z, kz, powers, MODE, TAPS, DEGREE)
            for ky in tl.static_range(TAPS):
                y, inside = _padded(first_y + ky, in_size[1] + 2 * margin, PADDING, ALIGN)
                there_y = there_z & inside
                weight_y = _tap(beyond_y, ky, powers, MODE, TAPS, DEGREE)
                for kx in tl.static_range(TAPS):
                    x, inside = _padded(first_x + kx, in_size[0] + 2 * margin, PADDING, ALIGN)
                    there = there_y & inside
                    weight_x = _tap(beyond_x, kx, powers, MODE, TAPS, DEGREE)
                    if TO_COORDS:
                        pixel = y * image_strides[3] + x * image_strides[2]
                        if NDIM == 3:
                            pixel += z * image_strides[4]
                        value = tl.load(plane + pixel, mask=there, other=0.0).to(WORK)
                        if PADDING == "constant":
                            value = tl.where(there, value, background)
                        value *= arrived
                        to_x = tl.fma(
                            value, _tap_slope(beyond_x, kx, powers, MODE, TAPS, DEGREE) * weight_y * weight_z, to_x
                        )
                        to_y = tl.fma(
                            value, weight_x * _tap_slope(beyond_y, ky, powers, MODE, TAPS, DEGREE) * weight_z, to_y
                        )
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
        sum_x = tl.sum(to_x, 1)[:, None]
        sum_y = tl.sum(to_y, 1)[:, None]
        sum_z = tl.sum(to_z, 1)[:, None]
        if MODE == "bilinear":
            # On a pixel's centre the mean of the slopes on both sides; of this one where the other is not finite.
            across_x, rest_x, kinks = _across(first_x, beyond_x, in_size[0], KINK, WORK)
            across_y, rest_y, more = _across(first_y, beyond_y, in_size[1], KINK, WORK)
            kinks = kinks + more
            across = (across_x, across_y)
            rest = (rest_x, rest_y)
            if NDIM == 3:
                across_z, rest_z, more = _across(first_z, beyond_z, in_size[2], KINK, WORK)
                kinks = kinks + more
                across = across + (across_z,)
                rest = rest + (rest_z,)
            if tl.max(tl.where(sound, kinks, 0)) > 0:
                other_x, other_y, other_z = _slopes(
                    image, image_strides, fill, fill_stride, grad, grad_strides, in_size, channels, per_program,
                    across, rest, sound, NDIM, PADDING, ALIGN, WORK, LANES,
                )  # fmt: skip
                sum_x = _mean_if_finite(sum_x, other_x)
                sum_y = _mean_if_finite(sum_y, other_y)
                sum_z = _mean_if_finite(sum_z, other_z)
        to_position = (sum_x, sum_y, sum_z)
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
            # Nor where it is cut off.
            reached = sound & (tl.abs(part[axis]) <= 1073741824.0)
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
                    to_normalized *= tl.where(sound, nearness, 0.0)
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
