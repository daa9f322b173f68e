"""torch's own `grid_sample`, wherever it is right."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .._tracing import is_portable
from ..coordinates import Coordinates
from ..reading import Reading
from . import _torch, layout, reference
from .backend import Case

NAME = "aten"
OPAQUE = False
KINDS = ("grid",)
_MODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}
_FAR = 1e30  # stays finite in float32 as a sum of four, times any size
_FAR_ELSEWHERE = 2.0**16  # stays an int32 in pixels: other runtimes turn what is beyond into any pixel
_MARGIN = 2  # pixels of background around the image: beyond the first every tap is repeated, and none is the image's


def refuses(case: Case) -> str | None:
    if case.ndim == 1 or (case.ndim == 3 and case.kernel == "bicubic"):
        return f"torch has no {case.kernel} in {case.ndim}D"
    if case.kernel not in _MODES:
        return f"torch has no {case.kernel}"
    if case.padding not in (*_PADDINGS, "constant"):
        return f"torch has no {case.padding} padding"
    return None if case.dtype.is_floating_point else f"torch reads no {case.dtype}"


def forward(image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    grid, finite = _tame(coordinates.values, image)
    # Half-precision images are widened: torch's own half-precision kernels for the CPU read out of bounds on images of
    # more than 32767 pixels (torch 2.13).
    wide = image.to(grid.dtype)
    kernel, padding, fill, align_corners = reading
    assert isinstance(kernel, str)
    if padding == "constant":
        assert fill is not None
        background = fill.to(grid.dtype).reshape(1, -1, *[1] * (image.ndim - 2))
        # To subtract the background and to add it again would cost the image the digits of a large one.
        if kernel == "nearest":
            inside = F.grid_sample(torch.ones_like(wide[:, :1]), grid, kernel, "zeros", align_corners) != 0
            out = torch.where(inside, F.grid_sample(wide, grid, kernel, "zeros", align_corners), background)
        else:
            padded, ratio = _in_margin(wide, background, align_corners)
            out = F.grid_sample(padded, grid * ratio, kernel, "border", align_corners)
    else:
        out = F.grid_sample(wide, grid, kernel, padding, align_corners)
    return layout.as_image(torch.where(finite, out, torch.nan), image)


def backward(
    grad: Tensor, image: Tensor, coordinates: Coordinates, reading: Reading, for_image: bool, for_values: bool
) -> tuple[Tensor | None, Tensor | None]:
    if (
        for_values and reading.kernel == "bilinear" and _meets_kinks(image, coordinates, reading)
    ):  # torch takes one side
        grad_image = backward(grad, image, coordinates, reading, True, False)[0] if for_image else None
        return grad_image, reference.backward(grad, image, coordinates, reading, False, True)[1]
    grid, finite = _tame(coordinates.values, image)
    wide = image.to(grid.dtype)
    grad = torch.where(finite, grad.to(grid.dtype), 0.0)
    kernel, padding, fill, align_corners = reading
    assert isinstance(kernel, str)
    margin, ratio = 0, None
    if padding == "constant":
        assert fill is not None
        background = fill.to(grid.dtype).reshape(1, -1, *[1] * (image.ndim - 2))
        if kernel == "nearest":  # which passes nothing to the background
            padding = "zeros"
        else:
            wide, ratio = _in_margin(wide, background, align_corners)
            grid, padding, margin = grid * ratio, "border", _MARGIN
    call = torch.ops.aten.grid_sampler_2d_backward if image.ndim == 4 else torch.ops.aten.grid_sampler_3d_backward
    # contiguous: an expanded gradient (of a plain sum, say) is read with wrong strides on some devices
    wanted = [for_image, for_values]
    for_wide, for_grid = call(grad.contiguous(), wide, grid, _MODES[kernel], _PADDINGS[padding], align_corners, wanted)
    grad_image = grad_values = None
    if for_image:
        if margin:
            for_wide = for_wide[(..., *[slice(margin, n - margin) for n in for_wide.shape[2:]])].contiguous()
        grad_image = for_wide.to(image.dtype)
    if for_values:
        # A position far out is as good as constant, and one that is not finite passes nothing.
        far = (coordinates.values.abs() <= _FAR).to(for_grid.dtype)
        grad_values = for_grid * (far if ratio is None else far * ratio)
    return grad_image, grad_values


def _meets_kinks(image: Tensor, coordinates: Coordinates, reading: Reading) -> bool:
    values = coordinates.values
    if (
        _torch.modes() or values.device.type == "meta" or torch.compiler.is_compiling()
    ):  # numbers that nobody may look at
        return False
    return reference.meets_kinks(values, tuple(image.shape[2:]), reading.align_corners)


def _tame(grid: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """The grid (B, *out, d) with a position in place of those that are not finite, and where those are (B, 1, *out)."""
    # Where a position is NaN or infinite torch reads some pixel, depending on mode, padding and device, and its backward
    # writes out of bounds (torch 2.13, float64). So none gets there.
    finite = grid.detach().isfinite().all(-1)
    far = _FAR_ELSEWHERE if is_portable() else _FAR
    return torch.where(finite[..., None], grid, 0.0).clamp(-far, far), finite[:, None]


def _in_margin(image: Tensor, background: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The image in a margin of background, to be repeated for ever, and what coordinates of the larger one shrink by."""
    margin = [_MARGIN, _MARGIN] * (image.ndim - 2)
    inside = F.pad(torch.ones_like(image[:1, :1], dtype=torch.bool), margin)
    ratio = [(n - align_corners) / (n + 2 * _MARGIN - align_corners) for n in reversed(image.shape[2:])]
    return torch.where(inside, F.pad(image, margin), background), image.new_tensor(ratio)
