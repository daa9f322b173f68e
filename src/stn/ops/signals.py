"""Signals, (B, C, W), by kernels for images: a signal is an image of equal rows that is read halfway between two of them.

Halfway, because there every tap lies inside the image, both rows count a half, which is exact, and no kink is near.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..coordinates import Coordinates
from ..kernels import Kernel
from ..reading import Reading


class _Forward(Protocol):
    def __call__(self, image: Tensor, coordinates: Coordinates, reading: Reading, /) -> Tensor: ...


class _Backward(Protocol):
    def __call__(
        self,
        grad: Tensor,
        image: Tensor,
        coordinates: Coordinates,
        reading: Reading,
        for_image: bool,
        for_values: bool,
        /,
    ) -> tuple[Tensor | None, Tensor | None]: ...


def forward(of_images: _Forward, image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    rows = _rows(image, reading)
    return of_images(rows, in_plane(coordinates, rows), reading).squeeze(2)


def backward(
    of_images: _Backward,
    grad: Tensor,
    image: Tensor,
    coordinates: Coordinates,
    reading: Reading,
    for_image: bool,
    for_values: bool,
) -> tuple[Tensor | None, Tensor | None]:
    rows = _rows(image, reading)
    if for_image and image.element_size() < 4:  # each row's share would be rounded before they are summed
        rows = rows.float()
    grad_image, grad_values = of_images(
        grad.unsqueeze(2).to(rows.dtype), rows, in_plane(coordinates, rows), reading, for_image, for_values
    )
    if grad_image is not None:
        grad_image = grad_image.sum(2, dtype=rows.dtype).to(image.dtype)
    if grad_values is not None:
        grad_values = of_line(grad_values, coordinates).to(coordinates.values.dtype)
    return grad_image, grad_values


def _rows(image: Tensor, reading: Reading) -> Tensor:
    """(B, C, H, W), H as many as there are taps, which all read the same; one for kernels that know of signals."""
    kernel = reading.kernel
    count = {"nearest": 2, "bilinear": 2, "bicubic": 4, "integer": 2}
    rows = count.get(str(kernel.name), 1) if isinstance(kernel, Kernel) else count[kernel]
    return image.unsqueeze(2).expand(-1, -1, rows, -1)


def in_plane(coordinates: Coordinates, rows: Tensor) -> Coordinates:
    """The same in two dimensions: y is the middle, 0 or in pixels halfway."""
    kind, (width,), values, basis = coordinates
    if kind == "affine":
        a, shift = values.unbind(-1)
        none = torch.zeros_like(a)
        values = torch.stack([a, none, shift, none, none, none], dim=-1).reshape(-1, 2, 3)
    elif kind == "projective":
        first, last = values.unbind(1)
        rows = torch.stack([first, torch.zeros_like(first), last], dim=1)
        values = torch.stack([rows[..., 0], torch.zeros_like(rows[..., 0]), rows[..., 1]], dim=-1)
    else:
        middle = (rows.shape[2] - 1) / 2 if kind == "pixels" else 0.0
        values = torch.nn.functional.pad(values, (0, 1), value=middle)
        if kind != "basis":
            values = values.unsqueeze(1)
    return Coordinates(kind, (1, width), values, basis)


def of_line(grad: Tensor, coordinates: Coordinates) -> Tensor:
    """What is of x in the gradient of `in_plane`'s values."""
    if coordinates.kind == "affine":
        return grad[:, :1, ::2]
    if coordinates.kind == "projective":
        return grad[:, ::2, ::2]
    return grad[..., :1] if coordinates.kind == "basis" else grad.squeeze(1)[..., :1]
