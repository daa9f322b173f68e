"""torch's `grid_sampler` ops on the native kernels: csrc/override.cpp, registered once, switched on and off."""

from __future__ import annotations

from functools import cache

import torch

from . import _torch, cpu
from .backend import Case


@cache
def unavailable() -> str | None:
    """Why not. The first call registers the kernels, switched off."""
    reason = cpu.refuses(Case(2, "bilinear", "zeros", "cpu", torch.float32, cpu.NAME))
    if reason is not None:
        return f"the native backend {reason}"
    _torch.warn_of_overrides()
    missing: str = cpu._native.override(_torch.LIBRARY, _torch.GRID_SAMPLERS)
    return f"torch {torch.__version__} lacks {missing}" if missing else None


def switch(on: bool) -> None:
    cpu._native.switch_override(on)


def calls() -> tuple[int, int]:
    """How many calls ran here, and how many torch's own kernels ran."""
    ours, theirs = cpu._native.override_calls()
    return ours, theirs
