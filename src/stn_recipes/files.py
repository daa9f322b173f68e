"""Files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

from stn._files import atomic_path


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file, or leave the old one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or leave the old one."""
    write_bytes(path, text.encode())
