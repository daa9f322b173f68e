"""Whether the backends of this machine compute what the reference does."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from .. import geometry
from .._checks import check_count
from ..coordinates import Coordinates, Kind
from ..reading import check_reading, fit_fill
from . import dispatch
from .backend import Backend, Case

_KINDS: tuple[Kind, ...] = ("affine", "projective", "basis", "field", "grid")
_MODES = ("bilinear", "nearest", "bicubic")
_PADDINGS = ("zeros", "border", "reflection", "circular", "constant")
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # a position of float32 is off by up to eps times 20 pixels


class Checked(NamedTuple):
    """How a backend compares with the reference."""

    cases: int  # that it runs, of those that were drawn
    largest: float  # difference of any number, values of order 1
    wrong: tuple[str, ...]  # the cases beyond rounding


def check(cases: int = 100, seed: int = 0) -> dict[str, Checked]:
    """Compare every backend that is available with the reference on small random cases: values, and in float64 both
    gradients. On a GPU, where there is one, and on the CPU.

    Args:
        cases: how many are drawn; a backend runs those that it does not refuse.
        seed: of the drawing.

    Raises:
        ValueError: for other than positive integers.

    Example:
        >>> check(20)["aten"].wrong
        ()
    """
    check_count("cases", cases)
    drawn = random.Random(seed)
    problems = [_Problem(drawn, seed + n) for n in range(cases)]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found = {}
    for backend in dispatch.BACKENDS[:-1]:
        results = [problem.compare(backend, device) for device in devices for problem in problems]
        compared = [(what, difference, fine) for what, difference, fine in filter(None, results)]
        if compared:
            largest = max(difference for _, difference, _ in compared)
            found[backend.NAME] = Checked(len(compared), largest, tuple(what for what, _, fine in compared if not fine))
    return found


class _Problem:
    """One case, drawn."""

    def __init__(self, drawn: random.Random, seed: int) -> None:
        self.seed = seed
        self.kind = drawn.choice(_KINDS)
        self.mode, self.padding = drawn.choice(_MODES), drawn.choice(_PADDINGS)
        self.d = drawn.choice((2, 2, 2, 3))
        self.align_corners = drawn.random() < 0.5
        # Rounding decides between two pixels of "nearest", and at a kink between two slopes: of float32, values that blend.
        self.dtype = torch.float64 if self.mode == "nearest" else drawn.choice((torch.float64, torch.float32))
        self.image_size = tuple(drawn.randint(2, 20) for _ in range(self.d))
        self.size = tuple(drawn.randint(1, 20) for _ in range(self.d))
        self.batch, self.channels = drawn.randint(1, 3), drawn.choice((1, 3, 16))

    def compare(self, backend: Backend, device: str) -> tuple[str, float, bool] | None:
        """What was compared, the largest difference, and whether it is within rounding; None where the backend refuses."""
        if backend.refuses(Case(self.d, self.mode, self.padding, device, self.dtype, backend.NAME)) is not None:
            return None
        truth = self._run(dispatch.BACKENDS[-1].NAME, "cpu", torch.float64)
        ours = self._run(backend.NAME, device, self.dtype)
        if self.dtype == torch.float32:
            ours, truth = ours[:1], truth[:1]
        pairs = [(a.double().cpu(), b) for a, b in zip(ours, truth, strict=True)]
        largest = max(float((a - b).abs().max()) / max(1.0, float(b.abs().max())) for a, b in pairs)
        what = (
            f"{self.kind}, {self.mode}, {self.padding}, align_corners={self.align_corners}, {self.dtype} on {device}: "
        )
        what += f"({self.batch}, {self.channels}, {self.image_size}) to {self.size}, off by {largest:.1e}"
        return what, largest, largest <= _TOLERANCE[self.dtype]  # NaN is not

    def _run(self, name: str, device: str, dtype: torch.dtype) -> list[Tensor]:
        """The output and, of sums that weigh it unevenly, the gradients of the image and of the values."""
        numbers = torch.Generator().manual_seed(self.seed)
        image = torch.randn(self.batch, self.channels, *self.image_size, generator=numbers)
        values, basis = self._values(numbers)
        image, values = (t.to(device, dtype).requires_grad_() for t in (image, values))
        coordinates = Coordinates(self.kind, self.size, values, None if basis is None else basis.to(device, dtype))
        fill = 0.5 if self.padding == "constant" else 0.0
        reading = fit_fill(check_reading(self.mode, self.padding, fill, self.align_corners), image)
        with dispatch.use_backend(name):
            out = dispatch.warp(image, coordinates, reading)
        return [out.detach(), *torch.autograd.grad(out.sin().sum(), (image, values))]

    def _values(self, numbers: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The values of coordinates near the identity, and a basis where they need one."""
        d = self.d

        def normal(*shape: int) -> Tensor:
            return torch.randn(self.batch, *shape, generator=numbers)

        if self.kind == "grid":
            return normal(*self.size, d), None
        if self.kind == "field":
            return 0.3 * normal(*(3 + axis for axis in range(d)), d), None
        if self.kind == "basis":
            return normal(5, d), torch.randn(math.prod(self.size), 5, generator=numbers)
        matrix = torch.eye(d + 1) + 0.2 * normal(d + 1, d + 1)
        if self.kind == "affine":
            return matrix[:, :-1].contiguous(), None
        matrix[:, -1] = torch.tensor([0.0] * d + [1.0]) + 0.1 * normal(d + 1)
        return geometry.facing(matrix), None
