"""What numbers a network is trained in."""

from __future__ import annotations

import warnings
from typing import Any

import torch

# x86 instructions that multiply bfloat16; torch emulates them where there are none.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    return any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)


def choose(precision: str, accelerator: str) -> str:
    """Lightning's name of the precision to train in: "auto" is bf16-mixed where the hardware has bfloat16, else 32-true.

    A choice that the hardware is slow at is named in a warning, and obeyed.
    """
    on_gpu = accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    if on_gpu:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = accelerator in ("cpu", "auto") and cpu_has_bfloat16()
    if precision == "auto":
        return "bf16-mixed" if fast else "32-true"
    if precision.startswith("bf16") and not fast:
        where = "GPU" if on_gpu else "CPU"
        hint = "" if on_gpu else ", 3 to 4 times slower than 32-true on a CPU with AVX2"
        warnings.warn(f"precision: {precision} is emulated on this {where}{hint}; --precision auto avoids it")
    return precision
