"""What a backend is asked, and what it is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..coordinates import Coordinates
from ..kernels import Kernel
from ..reading import Reading


class Case(NamedTuple):
    """What decides which backend runs."""

    ndim: int
    kernel: str | Kernel
    padding: str
    device: str  # its type
    dtype: torch.dtype  # of the image
    asked_for: str | None = None  # by `use_backend`
    portable: bool = False  # for a program that runs without `stn`

    def describe(self) -> str:
        return f"{self.kernel}, {self.padding} in {self.ndim}D for {self.dtype} on {self.device}"


class Backend(Protocol):
    """See `dispatch`."""

    @property
    def NAME(self) -> str: ...

    @property
    def OPAQUE(self) -> bool: ...

    @property
    def KINDS(self) -> tuple[str, ...]: ...

    def refuses(self, case: Case, /) -> str | None: ...

    def forward(self, image: Tensor, coordinates: Coordinates, reading: Reading, /) -> Tensor: ...

    def backward(
        self,
        grad: Tensor,
        image: Tensor,
        coordinates: Coordinates,
        reading: Reading,
        for_image: bool,
        for_values: bool,
        /,
    ) -> tuple[Tensor | None, Tensor | None]: ...
