"""Amounts of memory as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1} | {f"{p}{b}": base**n for n, p in enumerate("KMGT", 1) for b, base in (("iB", 1024), ("B", 1000))}  # fmt: skip
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) *([A-Za-z]*)")


def bytes_of(argument: str, text: str) -> int:
    """`2GiB`, `500 MB` or `0` in bytes.

    Raises:
        ValueError: for anything else.

    >>> bytes_of("memory_limit", "1.5KiB")
    1536
    """
    found = _AMOUNT.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{argument}: expected an amount of memory such as 2GiB, 500MB or 0, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])
