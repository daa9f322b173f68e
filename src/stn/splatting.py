"""The other way round: values that are added to an image at given positions, the adjoint of `sample`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import check_batches, check_choice, check_float_tensor, check_image, check_size, coordinate_dtype
from .coordinates import Coordinates
from .ops import _torch
from .reading import PADDING_MODES, Mode, PaddingMode, Reading, check_reading
from .sampling import Order, Units, locate, read


def splat(
    values: Tensor,  # (B, C, *out)
    grid: Tensor,  # (B, *out, d)
    size: tuple[int, ...],
    *,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool = False,
    units: Units = "normalized",
    order: Order = "xy",
) -> Tensor:
    """Add each value to the pixels that `sample` would read at its position, by the weights with which it would.

    The adjoint of `sample` in the image, for the same grid and options: `(splat(v, grid, size) * image).sum()` is
    `(v * sample(image, grid)).sum()`. What lies outside is lost (zeros) or goes to the pixel that stands for it there.
    Differentiable in the values, whose gradient is `sample`, and in the grid.

    Args:
        values: (B, C, Ho, Wo), (B, C, Do, Ho, Wo) or (B, C, Wo), any float type; summed in float32 (float64 for
            float64).
        grid: (B, Ho, Wo, 2), (B, Do, Ho, Wo, 3) or (B, Wo, 1). A batch of 1 on either side is broadcast.
        size: of the image, ([D,] H, W).
        mode, align_corners, units, order: as for `sample`.
        padding_mode: as for `sample`, but "constant", which is no linear map.

    Returns:
        (B, C, *size), in the values' type. A position that is not finite adds nothing.

    Raises:
        ValueError: for wrong shapes, types, devices and unknown options.

    Example:
        >>> splat(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.25], [1.0]]]), (3,), units="pixel")
        tensor([[[0.0000, 2.7500, 0.2500]]])
    """
    check_image(values, "values", least=0)
    check_choice("padding_mode", padding_mode, [name for name in PADDING_MODES if name != "constant"])
    reading = check_reading(mode, padding_mode, align_corners=align_corners)
    size = check_size(size, values.ndim - 2)
    coordinates = locate(values, grid, units, order)
    if coordinates.size != tuple(values.shape[2:]):
        raise ValueError(f"grid: expected positions of {tuple(values.shape[2:])} values, got {coordinates.size}")
    batch = check_batches("values", values, "grid", grid)
    values = values.expand(batch, *values.shape[1:])
    image = values.new_zeros(batch, values.shape[1], *size)
    if torch.compiler.is_compiling() or _torch.transforming():
        (out,) = torch.func.vjp(lambda i: read(i, coordinates, reading), image)[1](values)
        return out
    result: Tensor = _Splat.apply(values, coordinates.values, image, coordinates, reading)
    return result


def splat_count(
    grid: Tensor,  # (B, *out, d)
    size: tuple[int, ...],
    *,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool = False,
    units: Units = "normalized",
    order: Order = "xy",
) -> Tensor:
    """How much each pixel gets from positions of weight 1: `splat` of ones, (B, 1, *size).

    `splat(values, ...) / splat_count(...)` is the mean of what came, where anything did.

    Args:
        grid, size, mode, padding_mode, align_corners, units, order: as for `splat`.

    Raises:
        ValueError: as `splat`.

    Example:
        >>> splat_count(torch.tensor([[[1.25], [1.0]]]), (3,), units="pixel")
        tensor([[[0.0000, 1.7500, 0.2500]]])
    """
    d = len(check_size(size))
    check_float_tensor("grid", grid, "positions (B, *out, d)")
    if grid.ndim != d + 2 or grid.shape[-1] != d:
        raise ValueError(f"grid: expected positions (B, *out, {d}) for size {size}, got shape {tuple(grid.shape)}")
    ones = grid.new_ones(grid.shape[0], 1, *grid.shape[1:-1], dtype=coordinate_dtype(grid))
    return splat(
        ones, grid, size, mode=mode, padding_mode=padding_mode, align_corners=align_corners, units=units, order=order
    )


class _Splat(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, where: Tensor, image: Tensor, coordinates: Coordinates, reading: Reading
    ) -> Tensor:
        """The gradient of `sample` in an image of zeros."""
        ctx.save_for_backward(values, where)
        ctx.how = coordinates.kind, coordinates.size, reading  # tensors are kept by autograd alone
        image = image.detach().requires_grad_()
        with torch.enable_grad():
            out = read(image, coordinates._replace(values=where.detach()), reading)
        (sums,) = torch.autograd.grad(out, image, values.detach())
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(grad * splat(values)).sum() is (values * sample(grad)).sum(), and so are its gradients."""
        values, where = ctx.saved_tensors
        kind, size, reading = ctx.how
        again, for_where = torch.is_grad_enabled(), None
        with torch.enable_grad():
            at = where if where.requires_grad else where.detach().requires_grad_()
            out = _finite(read(grad, Coordinates(kind, size, at), reading), at)
            if ctx.needs_input_grad[1]:
                (for_where,) = torch.autograd.grad(out, at, values, create_graph=again)
        return out if again else out.detach(), for_where, None, None, None


def _finite(out: Tensor, where: Tensor) -> Tensor:
    """What was read, and 0 where nothing was added."""
    return torch.where(where.isfinite().all(-1)[:, None], out, 0.0)
