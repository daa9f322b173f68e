"""Every `grid_sample` of a process on the native kernels of `stn`."""

from __future__ import annotations

import threading
import warnings
from types import TracebackType
from typing import NamedTuple

from .ops import override

_lock = threading.Lock()
_open = 0


class Calls(NamedTuple):
    native: int
    torch: int


class Acceleration:
    """What `accelerate` returns; close it, or leave its `with` block, and torch's own kernels run again.

    `reason` says why torch's kernels run in spite of it; None where it works.
    """

    def __init__(self) -> None:
        global _open
        self.closed = False
        with _lock:
            self.reason = override.unavailable()
            if self.reason is None:
                self._before = Calls(*override.calls())
                _open += 1
                override.switch(True)

    @property
    def calls(self) -> Calls:
        """How many calls (backwards are calls of their own) the native kernels ran since this was made, and how many were
        left to torch.
        """
        if self.reason is not None:
            return Calls(0, 0)
        return Calls(*(now - before for now, before in zip(override.calls(), self._before, strict=True)))

    def close(self) -> None:
        """Twice is as good as once. While another acceleration is open, that one goes on."""
        global _open
        with _lock:
            if not self.closed and self.reason is None:
                _open -= 1
                override.switch(_open > 0)
            self.closed = True

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "on" if self.reason is None else f"torch's own kernels run: {self.reason}"
        return f"<stn.accelerate: {state}>"


def accelerate() -> Acceleration:
    """Runs every `torch.nn.functional.grid_sample` of the process, and its gradients, on the native kernels for the CPU.

    In programs that know nothing of `stn`, in traced, scripted and exported ones, in every thread: the kernels of torch's
    ops `aten::grid_sampler_2d`, `aten::grid_sampler_3d` and their backwards are replaced below autograd. Undone by closing
    what is returned, or at the end of a `with` block; accelerations nest, and the last one that closes undoes it. Values are
    torch's to rounding, contiguous and in the image's type; at a kink of linear interpolation the gradient of a position is
    the mean of both sides, where torch takes one. Half-precision images are read with positions, weights and sums in
    float32, and right whatever their size, where torch 2.13 reads out of bounds beyond 32,767 pixels.

    torch's own kernels still run for small calls, where they are faster, for nearest neighbours in float32 and float64, whose
    ties are a matter of the last bit, for tensors on other devices and for whatever is an error. What `torch.compile` makes
    of `grid_sample` is code of its own, which this does not touch. docs/accelerate.md has the figures.

    Where the native backend is missing, or torch has not what this needs, a warning says so, and nothing changes.

    Example:
        >>> import torch
        >>> image, grid = torch.rand(1, 3, 64, 64), torch.rand(1, 64, 64, 2) * 2 - 1
        >>> wanted = torch.nn.functional.grid_sample(image, grid, align_corners=False)
        >>> with accelerate() as acceleration:
        ...     out = torch.nn.functional.grid_sample(image, grid, align_corners=False)
        >>> torch.allclose(out, wanted, atol=1e-6)
        True
        >>> acceleration.calls
        Calls(native=1, torch=0)
    """
    acceleration = Acceleration()
    if acceleration.reason is not None:
        warnings.warn(f"accelerate: torch's own kernels go on: {acceleration.reason}", stacklevel=2)
    return acceleration
