"""The warp in plain PyTorch: the truth that every other kernel is compared with, and the fallback.

Any number of axes, every mode, every padding, every derivative. One rule for all of them: an output value is the sum
over the taps of each axis of weight times pixel, and padding decides which pixel an integer position outside the image
stands for. For rows of three pixels `a b c`:

    zeros        0 0 0 | a b c | 0 0 0
    constant     k k k | a b c | k k k
    border       a a a | a b c | c c c
    reflection   c b a | a b c | c b a      (align_corners=False: about the outer edge)
    reflection   . c b | a b c | b a .      (align_corners=True: about the border pixel's centre)
    circular     a b c | a b c | a b c

Linear interpolation has a kink where a position lies on a pixel's centre, as all do at the identity. The derivative by
the position is there the mean of the slopes on both sides, the central difference; which pixels lie beyond the border
is a matter of padding. Of one side alone it would be a matter of rounding which. Values do not read the third pixel,
and where it is not finite the slope is that of one side.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import get_args

import torch
from torch import Tensor

from .._checks import coordinate_dtype
from .._tracing import is_portable
from ..coordinates import Coordinates, Kind, positions
from ..kernels import Kernel
from ..reading import Reading
from . import _torch, layout
from .backend import Case

NAME = "reference"
OPAQUE = False
KINDS: tuple[str, ...] = get_args(Kind)
CUBIC_A = -0.75  # Keys' parameter, the value torch's bicubic has
KINK = (
    4  # positions within KINK * eps * n pixels of a centre, on an axis of n pixels, lie on it: rounding is below that
)
_Tap = tuple[Tensor, Tensor | None, Tensor]  # the part of an axis in an index, whether inside the image, weight
_FAR = 2.0**30  # positions beyond are all the same far outside; keeps the cast to int defined


def refuses(case: Case) -> str | None:
    return None


def forward(image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    """image (B, C, *in) read at coordinates of any kind -> (B, C, *out).

    Where a position is not finite the result is NaN (0 where the image's type has no NaN), and no gradient passes: neither
    to the position nor to the image.
    """
    if coordinates.kind not in ("grid", "pixels"):
        grid = positions(coordinates, reading.align_corners, coordinate_dtype(image))
        coordinates = Coordinates("grid", coordinates.size, grid)
    return layout.as_image(_read(image, coordinates, reading), image)


def backward(
    grad: Tensor, image: Tensor, coordinates: Coordinates, reading: Reading, for_image: bool, for_values: bool
) -> tuple[Tensor | None, Tensor | None]:
    """By torch's own autograd, so differentiable in turn."""

    def run(image: Tensor, values: Tensor) -> Tensor:
        return forward(image, coordinates._replace(values=values), reading)

    grads = torch.func.vjp(run, image, coordinates.values)[1](grad)
    return (grads[0] if for_image else None, grads[1] if for_values else None)


def _read(image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    grid = coordinates.values
    kernel, padding, fill, align_corners = reading
    sizes, margin = image.shape[2:], 0
    has_nan = image.is_floating_point()
    exact = kernel == "nearest" and not has_nan  # integers stay what they are
    if not exact:
        image = image.to(grid.dtype)
    if isinstance(kernel, Kernel) and kernel.prefilter:
        image, margin = prefiltered(image, kernel, padding, fill, align_corners)
        padding, fill = ("border" if margin else padding), None
    batch, channels, *in_size = image.shape
    out_size = grid.shape[1:-1]
    flat = image.flatten(2)  # (B, C, N_in)
    points = grid.flatten(1, -2)  # (B, N_out, d)
    finite = points.isfinite().all(-1)
    points = torch.where(finite[..., None], points, 0.0)
    stride = [math.prod(in_size[axis + 1 :]) for axis in range(len(in_size))]

    axes: list[list[_Tap]] = []
    background = flat.new_zeros(()) if fill is None else fill.to(flat.dtype).reshape(1, -1, 1)

    def tap(axis: int, k: Tensor, weight: Tensor) -> _Tap:
        index, inside = pad(k, in_size[axis], padding, align_corners)
        return index * stride[axis], inside, weight

    def read(taps: tuple[_Tap, ...]) -> Tensor:
        """The pixels (B, C, N_out) that one tap of each axis stands for."""
        indices, insides, _ = zip(*taps, strict=True)
        value = flat.gather(2, sum(indices[1:], indices[0])[:, None].expand(-1, channels, -1))
        known = [inside for inside in insides if inside is not None]
        return torch.where(functools.reduce(torch.logical_and, known)[:, None], value, background) if known else value

    kinks = []
    for axis in range(len(in_size)):
        coordinate = points[..., len(in_size) - 1 - axis]  # x is the last axis of the image
        m = sizes[axis]
        position = _in_pixels(coordinate, m, align_corners) if coordinates.kind == "grid" else coordinate
        position = position.clamp(-_FAR, _FAR) + margin
        axes.append([tap(axis, k, weight) for k, weight in _axis_taps(position, kernel)])
        if kernel == "bilinear" and _has_derivatives(grid):
            kinks.append([tap(axis, k, weight) for k, weight in _kink(position, m)])

    out = torch.zeros((), dtype=flat.dtype, device=flat.device)
    for taps in itertools.product(*axes):
        out = read(taps) if exact else out + read(taps) * _weight(taps)[:, None]
    for axis, around in enumerate(kinks):
        bend = torch.zeros((), dtype=flat.dtype, device=flat.device)
        sound = torch.ones((), dtype=torch.bool, device=flat.device)
        for taps in itertools.product(*axes[:axis], around, *axes[axis + 1 :]):
            value = read(taps)
            finite_value = value.isfinite()
            sound = sound & finite_value
            bend = bend + torch.where(finite_value, value, 0.0) * _weight(taps)[:, None]
        out = out + torch.where(sound, bend, 0.0)
    lost = torch.nan if has_nan else 0
    return torch.where(finite[:, None], out, lost).reshape(batch, channels, *out_size)


def _weight(taps: tuple[_Tap, ...]) -> Tensor:
    weights = [weight for _, _, weight in taps]
    return functools.reduce(torch.mul, weights)


def _has_derivatives(grid: Tensor) -> bool:
    if is_portable():  # for which a program has no use where it goes
        return False
    if _torch.transforming() or _torch.in_forward_mode():
        return True
    return grid.requires_grad and torch.is_grad_enabled()


def kink_width(dtype: torch.dtype, n: int) -> float:
    """How far from a pixel's centre a position still lies on it, in pixels, on an axis of n pixels."""
    return min(KINK * torch.finfo(dtype).eps * n, 0.5)


def meets_kinks(grid: Tensor, in_size: tuple[int, ...], align_corners: bool) -> bool:
    """Whether any position of a grid (B, *out, d) lies on a pixel's centre along any axis."""
    for axis, n in enumerate(reversed(in_size)):
        position = _in_pixels(grid[..., axis], n, align_corners)
        if bool(((position - position.round()).abs() <= kink_width(grid.dtype, n)).any()):
            return True
    return False


def _kink(position: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """The pixels around a position on a pixel's centre, with weights that are 0, and whose derivatives are what the mean of
    the slopes on both sides has beyond the slope on the side that `_axis_taps` takes; 0 for other positions."""
    here = position.detach()
    centre = here.round()
    on = (here - centre).abs() <= kink_width(here.dtype, n)
    side = torch.where(here < centre, 0.5, -0.5).to(here.dtype)
    step = (position - here) * torch.where(on, side, 0.0)
    first = centre.long()
    return [(first - 1, step), (first, -2 * step), (first + 1, step)]


def _in_pixels(normalized: Tensor, n: int, align_corners: bool) -> Tensor:
    return normalized * ((n - 1) / 2) + (n - 1) / 2 if align_corners else ((normalized + 1) * n - 1) / 2


def _axis_taps(position: Tensor, mode: str | Kernel) -> list[tuple[Tensor, Tensor]]:
    """The integer positions that are read along one axis, with their weights."""
    if isinstance(mode, Kernel):
        return mode.taps(position)
    if mode == "nearest":
        return [(position.detach().round().long(), 1 + 0 * position)]  # a gradient of zero to the position
    low = position.floor()
    t = position - low.detach()
    first = low.detach().long()
    if mode == "bilinear":
        return [(first, 1 - t), (first + 1, t)]
    return [(first + k - 1, _cubic(t - (k - 1))) for k in range(4)]


def prefiltered(
    image: Tensor, kernel: Kernel, padding_mode: str, fill: Tensor | None, align_corners: bool
) -> tuple[Tensor, int]:
    """The coefficients of an image, and how many more there are on each side of it.

    The image goes on for ever as its padding says, and the filter that makes its coefficients is as good as finite. A
    reflected or repeated image has reflected or repeated coefficients. The others are different beyond the border:
    there the image is widened by what the filter reaches; from there on they are constant.
    """
    reach = len(kernel.response) - 1
    margin = 0 if padding_mode in ("reflection", "circular") else reach
    background = 0.0 if fill is None else fill.to(image).reshape(1, -1, *[1] * (image.ndim - 2))
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        tap = torch.arange(-margin - reach, n + margin + reach, device=image.device)
        index, inside = pad(tap, n, padding_mode, align_corners)
        rows = image.index_select(axis, index)
        if inside is not None:
            rows = torch.where(inside.reshape(-1, *[1] * (image.ndim - 1 - axis)), rows, background)
        # Not conv1d, which autocast and GPUs run with too few digits.
        image = kernel.response[0] * rows.narrow(axis, reach, n + 2 * margin)
        for k, weight in enumerate(kernel.response[1:], 1):
            both = [rows.narrow(axis, start, n + 2 * margin) for start in (reach - k, reach + k)]
            image = torch.add(image, both[0] + both[1], alpha=weight)
        # What the background is along the next axis.
        background = background * (2 * sum(kernel.response) - kernel.response[0])
    return image, margin


def _cubic(x: Tensor) -> Tensor:
    x, a = x.abs(), CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x <= 1, near, far)


def pad(tap: Tensor, n: int, padding_mode: str, align_corners: bool) -> tuple[Tensor, Tensor | None]:
    """The pixel that an integer position stands for, and whether it is inside (None: always)."""
    if padding_mode in ("zeros", "constant"):
        return tap.clamp(0, n - 1), (tap >= 0) & (tap < n)
    if padding_mode == "border":
        return tap.clamp(0, n - 1), None
    if padding_mode == "circular":
        return tap.remainder(n), None
    if align_corners:
        period = max(2 * (n - 1), 1)
        m = tap.remainder(period)
        return torch.minimum(m, period - m).clamp(0, n - 1), None
    m = tap.remainder(2 * n)
    return torch.minimum(m, 2 * n - 1 - m), None
