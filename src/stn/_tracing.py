"""Who turns Python into a program: exporters whose programs must run without `stn`, and `torch.fx`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_F = TypeVar("_F", bound=Callable[..., object])


def constant_when_compiled(function: _F) -> _F:
    """Compilers take what the function returns as a constant and do not look into it; they do not know context variables.

    It is `torch.compiler.assume_constant_result`, which imports the compiler at once, and that takes seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_exporting: ContextVar[bool] = ContextVar("stn_exporting", default=False)


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Inside the block `torch.export` makes portable programs."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


@constant_when_compiled
def _asked_for() -> bool:
    return _exporting.get() or torch.onnx.is_in_onnx_export()


def is_portable() -> bool:
    """Whether a program is being made that must run without `stn`, and in other runtimes than torch."""
    return _asked_for() if torch.compiler.is_compiling() else _exporting.get()


def is_symbolic(value: Any) -> bool:
    """Whether `torch.fx` traces: the value is a proxy, of which nothing is known."""
    return not isinstance(value, Tensor) and isinstance(value, torch.fx.Proxy)


def as_one_step(module: nn.Module, *inputs: Any) -> Any:
    """The call of a module in a graph of `torch.fx`, which does not look into it."""
    tracer = inputs[0].tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), inputs, {})


def of_one_size(image: Tensor) -> Tensor:
    """The image (B, C, *size), which in a program of `torch.jit.trace` has to have the size that it has here: what a family makes of its
    size are constants there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        size = [int(n) for n in image.shape[2:]]
    for axis, n in enumerate(size, 2):
        image = image.split_with_sizes([n], axis)[0]  # which is an error for any other sum
    return image
