"""Bars for what takes a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

PATIENCE = 2.0  # seconds without a word
BETWEEN = 20.0  # seconds between the lines of a log
_REDRAW = 0.1  # seconds


def track(items: Iterable[T], what: str, total: int | None = None, *, shown: bool = True) -> Iterator[T]:
    """The items, counted as `counting` does."""
    with counting(what, total, shown=shown) as tick:
        for item in items:
            yield item
            tick()


@contextlib.contextmanager
def counting(
    what: str, total: int | None = None, *, shown: bool = True, console: Console | None = None
) -> Iterator[Callable[[], None]]:
    """A function to call for each step. From the third second on a bar says how many there were, or, where there is no
    terminal, a line now and then.

    Args:
        what: is being done, "Reading images".
        total: how many steps there will be, if that is known.
        console: to write to; standard error unless given.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=total)
    begun = last = monotonic()
    between = _REDRAW if console.is_terminal else BETWEEN
    count, started = 0, False

    def tick() -> None:
        nonlocal count, last, started
        count += 1
        now = monotonic()
        if now - begun < PATIENCE or now - last < between:
            return
        last = now
        if console.is_terminal:
            bar.update(task, completed=count)
            if not started:
                bar.start()
                started = True
        else:
            of = f" of {total:,}" if total else ""
            console.print(f"{what}: {count:,}{of}", soft_wrap=True, highlight=False)

    try:
        yield tick if shown else _nothing
    finally:
        if started:
            bar.stop()


def _nothing() -> None:
    pass
