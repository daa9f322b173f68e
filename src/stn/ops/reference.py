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
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import coordinate_dtype
from ..conventions import lattice
from ..kernels import Kernel

NAME = "reference"
CUBIC_A = -0.75  # Keys' parameter, the value torch's bicubic has
HORIZON = 1e-4  # denominators up to this part of the largest entry of their row are on the horizon
_BEHIND = 1 / HORIZON  # where points on the horizon and behind it are sent
_FAR = 2.0**30  # positions beyond are all the same far outside; keeps the cast to int defined


def unavailable() -> str | None:
    return None


def supports(ndim: int, mode: str | Kernel, padding_mode: str, device: torch.device) -> bool:
    return True


def affine_grid(matrix: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """Affine maps (B, k, d+1) on the lattice of `size`: (B, *size, k). Only the last sum is of full size."""
    d, k = len(size), matrix.shape[1]
    total = matrix[:, :, d].reshape(-1, *[1] * d, k)
    for axis in reversed(range(d)):  # z, y, x: coarse to fine
        coordinate = lattice(size[d - 1 - axis], align_corners=align_corners, dtype=matrix.dtype, device=matrix.device)
        shape = [1] * (d + 2)
        shape[d - axis] = -1
        total = total + coordinate.reshape(shape) * matrix[:, :, axis].reshape(-1, *[1] * d, k)
    return total


def projective_grid(matrix: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """Projective maps (B, d+1, d+1), whose denominators are positive on the visible side, on the lattice of `size`."""
    return divide(affine_grid(matrix, size, align_corners), matrix)


def horizon(like: Tensor, matrix: Tensor) -> Tensor:
    """The denominators that are taken as 0, one for each matrix, as (B, 1, ...) to compare with `like[..., -1]`."""
    return HORIZON * matrix[:, -1].abs().amax(1).reshape(-1, *[1] * max(like.ndim - 2, 0))


def divide(h: Tensor, matrix: Tensor) -> Tensor:
    """Numerators and denominator (B, ..., d+1) to positions (B, ..., d)."""
    numerator, denominator = h[..., :-1], h[..., -1:]
    # Not `~(denominator > threshold)`: NaN is to stay NaN.
    hidden = denominator <= horizon(h, matrix)[..., None]
    far = torch.full_like(numerator, _BEHIND).copysign(numerator.detach())
    return torch.where(hidden, far, numerator / torch.where(hidden, 1.0, denominator))


def warp_affine(
    image: Tensor,
    matrix: Tensor,
    size: tuple[int, ...],
    mode: str | Kernel,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    return sample(image, affine_grid(matrix, size, align_corners), mode, padding_mode, fill, align_corners)


def warp_projective(
    image: Tensor,
    matrix: Tensor,
    size: tuple[int, ...],
    mode: str | Kernel,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    return sample(image, projective_grid(matrix, size, align_corners), mode, padding_mode, fill, align_corners)


def basis_grid(basis: Tensor, coefficients: Tensor, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """basis (N, K) @ coefficients (B, K, d), in float64 because large terms may cancel, as a grid (B, *size, d)."""
    grid = torch.einsum("nk,bkd->bnd", basis.to(torch.float64), coefficients.to(torch.float64))
    return grid.to(dtype, memory_format=torch.contiguous_format).unflatten(1, size)


def warp_basis(
    image: Tensor,
    basis: Tensor,
    coefficients: Tensor,
    size: tuple[int, ...],
    mode: str | Kernel,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    dtype = coordinate_dtype(image)
    return sample(image, basis_grid(basis, coefficients, size, dtype), mode, padding_mode, fill, align_corners)


def sample(
    image: Tensor,
    grid: Tensor,
    mode: str | Kernel,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """image (B, C, *in) read at grid (B, *out, d) -> (B, C, *out), in the grid's float type."""
    sizes, margin = image.shape[2:], 0
    image = image.to(grid.dtype)
    if isinstance(mode, Kernel) and mode.prefilter:
        image, margin = _prefilter(image, mode, padding_mode, fill, align_corners)
        padding_mode, fill = ("border" if margin else padding_mode), None
    batch, channels, *in_size = image.shape
    out_size = grid.shape[1:-1]
    flat = image.flatten(2)  # (B, C, N_in)
    points = grid.flatten(1, -2)  # (B, N_out, d)
    stride = [math.prod(in_size[axis + 1 :]) for axis in range(len(in_size))]

    # (index into flat, weight, inside the image), grown axis by axis into the product of the taps
    taps: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for axis, n in enumerate(in_size):
        normalized = points[..., len(in_size) - 1 - axis]  # x is the last axis of the image
        m = sizes[axis]
        position = normalized * ((m - 1) / 2) + (m - 1) / 2 if align_corners else ((normalized + 1) * m - 1) / 2
        position = position.clamp(-_FAR, _FAR) + margin + 0 * normalized.detach()  # NaN where it is not finite
        new = [(*pad(tap, n, padding_mode, align_corners), weight) for tap, weight in _axis_taps(position, mode)]
        if not taps:
            taps = [(index * stride[axis], weight, inside) for index, inside, weight in new]
        else:
            taps = [
                (
                    index + more * stride[axis],
                    weight * factor,
                    inside if inside is None or also is None else inside & also,
                )
                for index, weight, inside in taps
                for more, also, factor in new
            ]

    background = 0.0 if fill is None else fill.to(flat.dtype).reshape(1, -1, 1)
    out = torch.zeros((), dtype=flat.dtype, device=flat.device)
    for index, weight, inside in taps:
        value = flat.gather(2, index[:, None].expand(-1, channels, -1))
        if inside is not None:
            value = torch.where(inside[:, None], value, background)
        out = out + value * weight[:, None]
    return out.reshape(batch, channels, *out_size)


def _axis_taps(position: Tensor, mode: str | Kernel) -> list[tuple[Tensor, Tensor]]:
    """The integer positions that are read along one axis, with their weights."""
    if isinstance(mode, Kernel):
        return mode.taps(position)
    if mode == "nearest":
        nearest = position.round()
        # A gradient of zero to the position, and NaN where the position is NaN.
        return [(_to_index(nearest), 1 + 0 * position)]
    low = position.floor()
    t = position - low.detach()
    first = _to_index(low)
    if mode == "bilinear":
        return [(first, 1 - t), (first + 1, t)]
    return [(first + k - 1, _cubic(t - (k - 1))) for k in range(4)]


def _prefilter(
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


def _to_index(position: Tensor) -> Tensor:
    return position.detach().nan_to_num(0.0).long()


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
