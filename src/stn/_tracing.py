"""Who turns Python into a program: exporters whose programs must run without `stn`, and `torch.fx`."""

from __future__ import annotations

import contextlib
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
