"""torch's own `grid_sample` wherever it is right, with the derivatives it lacks taken from the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import coordinate_dtype
from ..kernels import Kernel
from . import reference

NAME = "aten"
_MODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}
_FAR = 1e30  # stays finite in float32 as a sum of four, times any size
_MARGIN = 1  # pixels of background around the image: beyond the first every tap is repeated


def unavailable() -> str | None:
    return None


def supports(ndim: int, mode: str | Kernel, padding_mode: str, device: torch.device) -> bool:
    return padding_mode != "circular" and mode in _MODES and (ndim < 3 or mode != "bicubic")


def warp_affine(
    image: Tensor,
    matrix: Tensor,
    size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    grid = reference.affine_grid(_tame(matrix), size, align_corners)
    poison = (0 * matrix.detach()).sum((1, 2))
    return _sample(image, grid, mode, padding_mode, fill, align_corners) + poison.reshape(-1, *[1] * (image.ndim - 1))


def warp_projective(
    image: Tensor,
    matrix: Tensor,
    size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    grid = reference.projective_grid(matrix, size, align_corners)
    return sample(image, grid, mode, padding_mode, fill, align_corners)


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
    dtype = coordinate_dtype(image)
    grid = reference.basis_grid(basis, coefficients, size, dtype)
    return sample(image, grid, mode, padding_mode, fill, align_corners)


def sample(
    image: Tensor,
    grid: Tensor,
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """As `reference.sample`."""
    poison = torch.stack([0 * axis for axis in grid.detach().unbind(-1)]).sum(0)
    return _sample(image, _tame(grid), mode, padding_mode, fill, align_corners) + poison[:, None]


def _tame(positions: Tensor) -> Tensor:
    # Where a position is NaN or infinite torch reads some pixel, depending on mode, padding and device, and its backward
    # writes out of bounds (torch 2.13, float64). So none gets there, and NaN is added to the result.
    return positions.nan_to_num(0.0, 0.0, 0.0).clamp(-_FAR, _FAR)


def _sample(
    image: Tensor,
    grid: Tensor,
    mode: str,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    # Half-precision images are widened: torch's own half-precision kernels for the CPU read out of bounds on images of
    # more than 32767 pixels (torch 2.13).
    image = image.to(grid.dtype)
    if image.ndim == 3:  # torch has no 1D: an image of one row, read at y = 0, its centre
        row = _sample(image[:, :, None], F.pad(grid[:, None], (0, 1)), mode, padding_mode, fill, align_corners)
        return row[:, :, 0]
    if padding_mode == "constant":
        assert fill is not None
        background = fill.to(image.dtype).reshape(1, -1, *[1] * (image.ndim - 2))
        # To subtract the background and to add it again would cost the image the digits of a large one.
        if mode == "nearest":
            inside = _sample(torch.ones_like(image[:, :1]), grid, mode, "zeros", None, align_corners) != 0
            return torch.where(inside, _sample(image, grid, mode, "zeros", None, align_corners), background)
        # A margin of background, repeated for ever; in coordinates of the larger image the grid shrinks.
        margin = [_MARGIN, _MARGIN] * (image.ndim - 2)
        inside = F.pad(torch.ones_like(image[:1, :1], dtype=torch.bool), margin)
        ratio = [(n - align_corners) / (n + 2 * _MARGIN - align_corners) for n in reversed(image.shape[2:])]
        padded = torch.where(inside, F.pad(image, margin), background)
        return _sample(padded, grid * grid.new_tensor(ratio), mode, "border", None, align_corners)
    if torch.compiler.is_compiling():
        return F.grid_sample(image, grid, mode, padding_mode, align_corners)
    out: Tensor = _GridSample.apply(image, grid, mode, padding_mode, align_corners)
    return out


class _GridSample(torch.autograd.Function):
    """`grid_sample` with double backward and forward mode, both by way of the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
        return F.grid_sample(image, grid, mode, padding_mode, align_corners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, grid, *ctx.options = inputs
        ctx.save_for_backward(image, grid)
        ctx.save_for_forward(image, grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, grid = ctx.saved_tensors
        mode, padding_mode, align_corners = ctx.options
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # somebody will differentiate the gradient
            pull = torch.func.vjp(
                lambda i, g: reference.sample(i, g, mode, padding_mode, None, align_corners), image, grid
            )[1]
            grads = pull(grad)
        else:
            call = (
                torch.ops.aten.grid_sampler_2d_backward if image.ndim == 4 else torch.ops.aten.grid_sampler_3d_backward
            )
            # contiguous: an expanded gradient (of a plain sum, say) is read with wrong strides on some devices
            grads = call(
                grad.contiguous(), image, grid, _MODES[mode], _PADDINGS[padding_mode], align_corners, list(wanted)
            )
        return (*(g if w else None for g, w in zip(grads, wanted, strict=True)), None, None, None)

    @staticmethod
    def jvp(ctx: Any, image_t: Tensor | None, grid_t: Tensor | None, *_: Any) -> Tensor:
        image, grid = ctx.saved_tensors
        mode, padding_mode, align_corners = ctx.options
        tangents = tuple(torch.zeros_like(p) if t is None else t for p, t in ((image, image_t), (grid, grid_t)))
        # The transpose of the transpose: a jvp in here would be nested forward mode, which torch lacks.
        pulled = torch.func.vjp(
            lambda i, g: reference.sample(i, g, mode, padding_mode, None, align_corners), image, grid
        )
        pushed: Tensor = torch.func.vjp(pulled[1], torch.zeros_like(pulled[0]))[1](tangents)[0]
        return pushed
