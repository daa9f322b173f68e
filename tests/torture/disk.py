"""A disk that is full, at any point of a run: an error in one line, nothing half-written, and with more room the same
weights. On a tmpfs of so many pages, which takes the rights of root."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .kill import ARGUMENTS, half_written, outcome, run

PAGE = 4096
ROOM = 64 << 20


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A folder with room for so many bytes."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def more_room(disk: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(disk)], check=True)


def refused() -> str | None:
    """Why there can be no small disk here, or None."""
    if os.name != "posix" or os.geteuid() != 0:
        return "a tmpfs takes the rights of root"
    try:
        with small_disk(PAGE):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no tmpfs can be mounted here ({error})"


def campaign(times: int, seed: int, say: Callable[[str], None] = print, epochs: int = 2) -> list[str]:
    """So many runs on disks of random sizes; what went wrong, in words."""
    torch.set_num_threads(1)
    arguments = [*ARGUMENTS, "--epochs", str(epochs)]
    rng, problems, start = random.Random(seed), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with small_disk(ROOM) as disk:
            if run([*arguments, "--out", str(disk / "run")], log) != 0:
                return [f"the run with room for all: {log.read_text()}"]
            truth = outcome(disk / "run")
            files = [f.stat().st_size for f in disk.rglob("*") if f.is_file()]
            needed = sum(-(-size // PAGE) for size in files)
        say(f"disk: a run takes {needed} pages")
        for number in range(times):
            pages = rng.randrange(1, needed + 2)
            log = Path(scratch) / f"log{number}"
            with small_disk(PAGE * pages) as disk:
                folder = disk / "run"
                code = run([*arguments, "--out", str(folder)], log)
                said = log.read_text()
                what = f"seed {seed}, a disk of {pages} pages"
                if code not in (0, 1) or "Traceback" in said:
                    problems.append(f"{what}: exit {code}\n{said[-3000:]}")
                elif code == 1 and "No space left on device" not in said:
                    problems.append(f"{what}: nothing is said of a full disk\n{said[-1000:]}")
                if folder.exists() and (broken := half_written(folder)):
                    problems.append(f"{what}: half-written {broken}")
                left = [f.name for f in folder.rglob(".*") if f.is_file()] if folder.exists() else []
                if left:
                    problems.append(f"{what}: left behind {left}")
                more_room(disk)
                again = ["train", "--resume", str(folder)] if (folder / "config.yaml").exists() else None
                code = run(again or [*arguments, "--out", str(folder)], log)
                if code != 0:
                    problems.append(f"{what}, then room: exit {code}\n{log.read_text()[-3000:]}")
                    continue
                found = outcome(folder)
                problems += [f"{what}, then room: another {k}" for k in truth if found[k] != truth[k]]
            say(f"disk: {number + 1} of {times}, {len(problems)} problems, {time.perf_counter() - start:.0f} s")
    return problems


def main(times: int, seed: int) -> int:
    if reason := refused():
        print(f"disk: left out: {reason}")
        return 0
    problems = campaign(times, seed, lambda line: print(line, flush=True))
    print(*problems, sep="\n")
    return len(problems)
