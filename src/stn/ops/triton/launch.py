"""The warp on the GPU, in Triton: what is launched, with what.

The sums that make the gradient of a matrix or of coefficients are taken per program, written out and added up in one
order: the same bits every time. So is the gradient of a grid, which nothing adds to.

The gradient of the image adds up atomically, in whatever order the card has it. Under
`torch.use_deterministic_algorithms` it adds up in whole numbers instead, 2^-k of the largest gradient of a channel (k =
58 less the binary digits of the number of output pixels: 42 at 224 x 224), of which the order does not matter: the same
bits every time again, for 8 bytes more a pixel.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._checks import coordinate_dtype
from ...coordinates import Coordinates
from ...kernels import Kernel
from ...reading import Reading
from .. import layout, polynomials, reference, signals
from ..backend import Case
from . import kernels

NAME = "triton"
OPAQUE = True
KINDS = ("affine", "projective", "basis", "grid")
_TAPS: dict[Any, int] = {"nearest": 1, "bilinear": 2, "bicubic": 4, "integer": 1}
_PADDINGS = ("zeros", "border", "reflection", "circular", "constant")
_LARGEST_AXIS = 2**30  # pixels are counted in int32 along an axis, and in int64 in memory
_PIXELS = 256  # of a tile: 2 for each of its 128 threads, in 64 registers in 2D; half as many where more are needed
_PROGRAMS = 1024  # fill the largest cards; channels are divided among programs until there are as many


def refuses(case: Case) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if case.device == "cpu":  # the interpreter is for tests: where it is asked for, and nowhere else
        if not _interpreted():
            return "no CUDA device (TRITON_INTERPRET=1 runs it on the CPU, for tests)"
        if case.asked_for != NAME:
            return "the interpreter runs by name alone"
    elif case.device != "cuda":
        return f"runs on CUDA devices, not on {case.device}"
    if isinstance(case.kernel, Kernel):
        reason = None if case.kernel.name == "integer" else polynomials.refuses(case.kernel)
        if reason is None and case.ndim == 1:
            reason = f"has no {case.kernel.name} for signals"
        if reason is not None:
            return reason
    elif case.kernel not in _TAPS:
        return f"has no {case.kernel}"
    if case.padding not in _PADDINGS:
        return f"has no {case.padding} padding"
    return None if case.dtype.is_floating_point and case.dtype.itemsize > 1 else f"reads no {case.dtype}"


@functools.cache
def _interpreted() -> bool:
    # Once, as Triton looks when it is imported.
    return os.environ.get("TRITON_INTERPRET") == "1"


def forward(image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    if image.ndim == 3:
        return signals.forward(forward, image, coordinates, reading)
    out = layout.empty_like(image, coordinates.size, image.dtype)
    if out.numel():
        read = _coefficients(image, reading)[0]
        programs, arguments, options = _arguments(read, image.shape[2:], coordinates, reading, backward=False)
        with torch.cuda.device_of(image):
            kernels.forward[programs](*arguments, out, _xyz(out, 2), **options)
    return out


def backward(
    grad: Tensor, image: Tensor, coordinates: Coordinates, reading: Reading, for_image: bool, for_values: bool
) -> tuple[Tensor | None, Tensor | None]:
    if image.ndim == 3:
        return signals.backward(backward, grad, image, coordinates, reading, for_image, for_values)
    values = coordinates.values
    read, to_image = _coefficients(image, reading, for_image)
    grad_image = layout.empty_like(read, tuple(read.shape[2:]), values.dtype).zero_() if for_image else None
    grad_values = torch.zeros_like(values, memory_format=torch.contiguous_format) if for_values else None
    for_values = for_values and _mode(reading) not in ("nearest", "integer")  # of which the position has no gradient
    if grad.numel() and (for_image or for_values):
        moved = _run_backward(grad, grad_image, for_values, read, image.shape[2:], coordinates, reading)
        grad_values = grad_values if moved is None else moved
    if grad_image is not None and to_image is not None:
        (grad_image,) = to_image(grad_image)
    return (None if grad_image is None else grad_image.to(image.dtype), grad_values)


def _mode(reading: Reading) -> str:
    """What the kernels call it."""
    if isinstance(reading.kernel, Kernel):
        return "integer" if reading.kernel.name == "integer" else "polynomials"
    return reading.kernel


def _coefficients(
    image: Tensor, reading: Reading, for_image: bool = False
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor]] | None]:
    """What is read in place of the image, by the filter of the reference; and where it is something else, the way back of a
    gradient."""
    kernel, padding, fill, align_corners = reading
    if not isinstance(kernel, Kernel) or not kernel.prefilter:
        return image, None

    def filtered(image: Tensor) -> Tensor:
        return reference.prefiltered(image, kernel, padding, fill, align_corners)[0]

    wide = image.to(coordinate_dtype(image))
    if not for_image:
        return filtered(wide), None
    coefficients, back = torch.func.vjp(filtered, wide)[:2]
    return coefficients, back


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


@functools.lru_cache(maxsize=64)
def _powers(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of a kernel's polynomials, (degree + 1, taps)."""
    return torch.tensor(polynomials.of(name, dtype == torch.float64).taps, dtype=dtype).t().contiguous().to(device)


def _arguments(
    image: Tensor, in_size: Sequence[int], coordinates: Coordinates, reading: Reading, *, backward: bool
) -> tuple[tuple[int, int], list[Any], dict[str, Any]]:
    """What both kernels take. The image is larger than `in_size` by a margin where it is coefficients."""
    kernels.load()
    tl = kernels.tl
    kind, size, coords, basis = coordinates
    kernel, padding_mode, fill, align_corners = reading
    mode, powers = _mode(reading), None
    margin = (image.shape[2] - in_size[0]) // 2
    if isinstance(kernel, Kernel) and mode == "polynomials":
        powers = _powers(str(kernel.name), coords.dtype, coords.device)
        if kernel.prefilter:
            padding_mode, fill = ("border" if margin else padding_mode), None
    fill = None if fill is None else fill.to(coords.dtype)
    if max(*image.shape[2:], *size) >= _LARGEST_AXIS:
        raise ValueError(f"image: expected axes of less than 2^30 pixels, got {tuple(image.shape)} to {tuple(size)}")
    d = len(size)
    work = tl.float64 if coords.dtype == torch.float64 else tl.float32
    programs, share, tile = _plan(image, size, backward or mode in ("bicubic", "polynomials"))
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
        tuple(reversed(in_size)),
        tuple(reversed(size)),
        image.shape[1],
        share,
        coords if powers is None else powers,
        margin,
    ]
    options = {
        "NDIM": d,
        "KIND": kind,
        "MODE": mode,
        "PADDING": padding_mode,
        "ALIGN": int(align_corners),
        "TAPS": _TAPS[mode] if powers is None else powers.shape[1],
        "DEGREE": 0 if powers is None else powers.shape[0] - 1,
        "WORK": work,
        "SUM": total,
        **tile,
        "num_warps": 4,
        "enable_fp_fusion": False,
    }
    return programs, arguments, options


def _run_backward(
    grad: Tensor,
    grad_image: Tensor | None,
    to_coords: bool,
    image: Tensor,
    in_size: Sequence[int],
    coordinates: Coordinates,
    reading: Reading,
) -> Tensor | None:
    """Adds to `grad_image` where there is one, and returns the gradient of the coordinates where that is asked for."""
    kind, size, coords, _ = coordinates
    programs, arguments, switches = _arguments(image, in_size, coordinates, reading, backward=True)
    counted = grad_image is not None and torch.are_deterministic_algorithms_enabled()
    # Arguments that a case does not touch are any tensor.
    counts = scales = sums = coords
    quantum = 1.0
    strides: tuple[int, ...] = (0, 0)
    if counted:
        assert grad_image is not None
        counts = torch.zeros_like(grad_image, dtype=torch.int64)
        # The weights of an output pixel are below 4 in sum, so no sum is above 2^62; those of Keys' kernel may be more.
        extra = 0
        if isinstance(reading.kernel, Kernel) and str(reading.kernel.name).startswith("cubic"):
            steep = 1 + abs(_powers(str(reading.kernel.name), torch.float64, torch.device("cpu"))[-1]).max().item()
            extra = max(0, math.ceil(len(size) * math.log2(steep)) - 2)
        quantum = 2.0 ** (58 - extra - (math.prod(size) - 1).bit_length())
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
        kernels.backward[programs](
            *arguments, grad, _xyz(grad, 2), image if grad_image is None else grad_image,
            _xyz(image if grad_image is None else grad_image, 2), counts, scales, quantum, sums, strides,
            TO_IMAGE=grad_image is not None, TO_COORDS=to_coords, COUNTED=counted,
            KINK=reference.KINK * torch.finfo(coords.dtype).eps, **switches,
        )  # fmt: skip
    if counted:
        assert grad_image is not None
        unit = torch.ldexp(torch.ones_like(largest, dtype=torch.float64), exponent) / quantum
        grad_image += counts * unit.reshape(*unit.shape, *[1] * len(size))
    if not to_coords:
        return None
    return sums.sum(0) if kind == "grid" else sums.unflatten(0, (image.shape[0], -1)).sum((1, 2))
