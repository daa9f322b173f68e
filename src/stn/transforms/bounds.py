"""Smooth bounds, `bound * tanh(value / bound)`: the identity and the slope there stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def bounded(delta: Tensor, bound: float | None) -> Tensor:
    """Numbers that stay within +-bound; None for no bound."""
    return delta if bound is None else bound * torch.tanh(delta / bound)


def unbounded(value: Tensor, bound: float | None, argument: str) -> Tensor:
    """The inverse of `bounded`. Raises ValueError, in the name of `argument`, where the bound is exceeded."""
    if bound is None:
        return value
    if not torch.compiler.is_compiling() and bool((value.abs() >= bound).any()):
        raise ValueError(
            f"{argument}: the result exceeds the bound of this transform; compose or invert its matrix instead"
        )
    return bound * torch.atanh(value / bound)


def evenly(unit: Tensor, bound: float) -> Tensor:
    """Numbers from 0 to 1 to those that `bounded` spreads evenly within +-bound, all but its last thousandth."""
    return bound * torch.atanh(0.999 * (2 * unit - 1))


def bounded_length(vector: Tensor, bound: float | None) -> Tensor:
    """Vectors (B, n) whose length stays below the bound; their direction and the slope at 0 stay as they are."""
    if bound is None or vector.shape[1] == 1:
        return bounded(vector, bound)
    return vector * _ratio(lambda length: bound * torch.tanh(length / bound), vector)


def unbounded_length(vector: Tensor, bound: float | None, argument: str) -> Tensor:
    """The inverse of `bounded_length`. Raises ValueError where the bound is exceeded."""
    if bound is None or vector.shape[1] == 1:
        return unbounded(vector, bound, argument)
    return vector * _ratio(lambda length: unbounded(length, bound, argument), vector)


def _ratio(function: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    """function(length) / length, (B, 1): 1 for the shortest vectors, where both functions above are the identity."""
    square = vector.square().sum(1, keepdim=True)
    small = square < 1e-16
    length = torch.where(small, torch.ones_like(square), square).sqrt()
    inside = torch.where(small, torch.zeros_like(length), length)
    return torch.where(small, torch.ones_like(length), function(inside) / length)
