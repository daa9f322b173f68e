"""The one op that carries the work: which kernel runs, and the types around it.

A kernel is a module with `NAME`, `unavailable()` (the reason, or None), `supports(...)`, `sample(...)`,
`warp_affine(...)`, `warp_projective(...)` and `warp_basis(...)`. To add one, write the file and put it into `KERNELS`:
the first that supports the case and is available runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .._checks import check_choice, coordinate_dtype
from ..kernels import Kernel
from . import aten, cpu, reference, triton

KERNELS = (cpu, triton, aten, reference)

_forced: str | None = None


def backends() -> dict[str, str]:
    """Every kernel in order of preference: "available", or the reason why it is not.

    Example:
        >>> backends()["reference"]
        'available'
    """
    return {kernel.NAME: kernel.unavailable() or "available" for kernel in KERNELS}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside the block every warp runs on the named kernel, in all threads; a case that it lacks is a ValueError.

    Example:
        >>> with use_backend("reference"):
        ...     which_backend(2)
        'reference'
    """
    global _forced
    check_choice("name", name, backends())
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def which_backend(
    ndim: int, mode: str | Kernel = "bilinear", padding_mode: str = "zeros", device: torch.device | str = "cpu"
) -> str:
    """The name of the kernel that runs this case."""
    return str(_select(ndim, mode, padding_mode, torch.device(device)).NAME)


def _select(ndim: int, mode: str | Kernel, padding_mode: str, device: torch.device):  # type: ignore[no-untyped-def]  # a module
    for kernel in KERNELS:
        if (
            _forced in (None, kernel.NAME)
            and kernel.supports(ndim, mode, padding_mode, device)
            and kernel.unavailable() is None
        ):
            return kernel
    raise ValueError(
        f"backend: expected one that supports {mode}, {padding_mode} in {ndim}D on {device}, got {_forced!r}"
    )


def sample(
    image: Tensor,
    grid: Tensor,
    mode: str | Kernel,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """image (B, C, *in) at grid (B, *out, d), equal batches; the result has the image's type and memory format."""
    kernel = _select(image.ndim - 2, mode, padding_mode, image.device)
    out = kernel.sample(image, _as_coordinates(grid, image), mode, padding_mode, fill, align_corners)
    return _as_image(out, image)


def warp_affine(
    image: Tensor,
    matrix: Tensor,
    size: tuple[int, ...],
    mode: str | Kernel,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """`sample` at the affine grid of matrix (B, d, d+1) without the caller ever seeing a grid."""
    kernel = _select(image.ndim - 2, mode, padding_mode, image.device)
    out = kernel.warp_affine(image, _as_coordinates(matrix, image), size, mode, padding_mode, fill, align_corners)
    return _as_image(out, image)


def warp_projective(
    image: Tensor,
    matrix: Tensor,
    size: tuple[int, ...],
    mode: str | Kernel,
    padding_mode: str,
    fill: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """`sample` at the grid of projective maps (B, d+1, d+1) whose denominators are positive on the visible side."""
    kernel = _select(image.ndim - 2, mode, padding_mode, image.device)
    out = kernel.warp_projective(image, _as_coordinates(matrix, image), size, mode, padding_mode, fill, align_corners)
    return _as_image(out, image)


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
    """`sample` at the grid basis (N, K) @ coefficients (B, K, d), the N pixels of `size` row by row.

    Summed in float64. A basis whose pixels are adjacent in memory, (K, N) transposed, is read as it is.
    """
    kernel = _select(image.ndim - 2, mode, padding_mode, image.device)
    out = kernel.warp_basis(image, basis, coefficients, size, mode, padding_mode, fill, align_corners)
    return _as_image(out, image)


# Calls on tensors cost about as much as a small warp: each is left out where nothing is to be done.


def _as_coordinates(theta: Tensor, image: Tensor) -> Tensor:
    dtype = coordinate_dtype(image)
    return theta if theta.dtype == dtype else theta.to(dtype)


def _as_image(out: Tensor, image: Tensor) -> Tensor:
    if out.dtype != image.dtype:
        out = out.to(image.dtype)
    if not image.is_contiguous() and image.shape[1] > 1 and image.stride(1) == 1:
        out = out.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last, in words that vmap knows
    return out
