"""The one op that carries the work, and who runs it.

A backend is a module that says what it refuses, and computes:

    NAME                         as `stn.ops.backends()` lists it
    OPAQUE                       whether compilers and tracers cannot see into it
    KINDS                        of coordinates that it reads; of the others a grid is made for it
    refuses(case)                None, or the reason why it does not run the case
    forward(image, coordinates, reading)                        the output, in the image's type and memory format
    backward(grad, image, coordinates, reading, for_image, for_values)    the gradients, None where not asked for

To add one, write the file and put it into `BACKENDS`: the first that does not refuse runs. `autograd` makes it
differentiable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .._checks import check_choice, coordinate_dtype
from .._tracing import constant_when_compiled, is_portable
from ..coordinates import Coordinates, positions
from ..kernels import Kernel
from ..reading import Reading
from . import aten, autograd, cpu, reference
from .backend import Backend, Case
from .triton import launch as triton

BACKENDS: tuple[Backend, ...] = (cpu, triton, aten, reference)

# What `use_backend` asks for in this context: each thread and each task has its own.
_wanted: ContextVar[str | None] = ContextVar("stn_backend", default=None)


@constant_when_compiled
def asked_for() -> str | None:
    """The backend that `use_backend` names here."""
    return _wanted.get()


# Who runs a case, by what makes it: a `Case` takes longer to make than to look up.
_known: dict[tuple[Any, ...], Backend] = {}


def warp(image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    """Reads image (B, C, *in) at the coordinates of equal batch: (B, C, *size), in its type and memory format."""
    what = (
        image.ndim - 2,
        reading.kernel,
        reading.padding,
        image.device.type,
        image.dtype,
        asked_for(),
        is_portable(),
    )
    backend = _known.get(what)
    if backend is None:
        backend = _choose(Case(*what))
        if not torch.compiler.is_compiling():
            _known[what] = backend
    kind, size, values, _ = coordinates
    if kind == "pixels":  # as a normalized grid, or in another type, they would be rounded
        if kind not in backend.KINDS or values.dtype != coordinate_dtype(image):
            return _by_reference(image, coordinates, reading)
    elif kind not in backend.KINDS:
        grid = positions(coordinates, reading.align_corners, coordinate_dtype(image))
        coordinates = Coordinates("grid", size, grid)
    elif values.dtype != coordinate_dtype(image):
        coordinates = coordinates._replace(values=values.to(coordinate_dtype(image)))
    return autograd.warp(backend, image, coordinates, reading)


def _by_reference(image: Tensor, coordinates: Coordinates, reading: Reading) -> Tensor:
    if asked_for() not in (None, reference.NAME):
        raise ValueError(
            f"backend: expected {reference.NAME!r} for positions in pixels of {coordinates.values.dtype} and an image of "
            f"{image.dtype}, got {asked_for()!r}"
        )
    return autograd.warp(reference, image, coordinates, reading)


def backends() -> dict[str, str]:
    """Every backend in order of preference: "available", or the reason why it is not.

    Example:
        >>> backends()["reference"]
        'available'
    """
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

    def state(backend: Backend) -> str:
        reasons = [
            backend.refuses(Case(2, "bilinear", "zeros", device, torch.float32, backend.NAME)) for device in devices
        ]
        return "available" if None in reasons else str(reasons[0])

    return {backend.NAME: state(backend) for backend in BACKENDS}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside the block every warp of this thread (of this task, in asyncio) runs on the named backend; a case that it
    refuses is a ValueError. A compiled function keeps the backend that it was compiled with.

    Example:
        >>> with use_backend("reference"):
        ...     which_backend(2)
        'reference'
    """
    check_choice("name", name, [backend.NAME for backend in BACKENDS])
    token = _wanted.set(name)
    try:
        yield
    finally:
        _wanted.reset(token)


def which_backend(
    ndim: int,
    mode: str | Kernel = "bilinear",
    padding_mode: str = "zeros",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> str:
    """The name of the backend that runs this case."""
    return _choose(Case(ndim, mode, padding_mode, torch.device(device).type, dtype, asked_for())).NAME


def _choose(case: Case) -> Backend:
    reasons = []
    for backend in BACKENDS:
        if case.asked_for in (None, backend.NAME):
            reason = "programs that run without stn cannot call it" if case.portable and backend.OPAQUE else None
            reason = reason or backend.refuses(case)
            if reason is None:
                return backend
            reasons.append(f"{backend.NAME!r}: {reason}")
    raise ValueError(f"backend: expected one that runs {case.describe()}, got {'; '.join(reasons)}")


for _backend in BACKENDS:
    if _backend.OPAQUE:
        autograd.register(_backend)
