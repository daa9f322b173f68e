"""One flipped bit, anywhere in what a run or a data set keeps on disk: refused, by the name of the file, or harmless.

Every byte of small files, random ones of large files. The readers are called in this process: a flip costs
milliseconds.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stn_recipes.recipes import recipe
from stn_recipes.run.folder import load_run, read_checkpoint
from stn_recipes.run.train import train

EVERY_BYTE = 3000  # of files up to so many bytes


def a_run(folder: Path) -> Path:
    """The smallest run there is, on real digits."""
    config = recipe("digits")
    return train(
        dataclasses.replace(
            config, network="mnist_tutorial", epochs=2, limit_train=100, batch_size=50, threads=1, out=str(folder),
            progress=False,
        )
    )  # fmt: skip


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run).model.state_dict()


READERS: dict[str, Callable[[Path], object]] = {
    "config.yaml": lambda run: load_run(run).config,
    "result.json": lambda run: load_run(run).result,
    "data.json": lambda run: load_run(run).facts,
    "logs/csv/version_0/metrics.csv": lambda run: load_run(run).metrics(),
    "filmstrip.npz": lambda run: load_run(run).filmstrip(),
    "model.safetensors": _weights,
    "checkpoints/last.ckpt": lambda run: read_checkpoint(run / "checkpoints" / "last.ckpt"),
}


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, through containers, arrays and records."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if dataclasses.is_dataclass(a):
        return same(vars(a), vars(b))
    return bool(a == b or (a != a and b != b))


@dataclasses.dataclass
class Outcome:
    """What became of the flips of one file."""

    file: str
    size: int
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in self.counts.most_common())
        return f"{self.file} ({self.size:,} bytes): {counts}"


def places(size: int, some: int, rng: random.Random) -> Iterable[int]:
    return range(size) if size <= max(EVERY_BYTE, some) else sorted(rng.sample(range(size), some))


def flip_file(file: Path, read: Callable[[], object], some: int, seed: int, name: str | None = None) -> Outcome:
    """Flips one bit at each place, reads, and puts the byte back."""
    rng = random.Random(seed)
    truth, whole = read(), file.read_bytes()
    outcome = Outcome(name or file.name, len(whole))
    for place in places(len(whole), some, rng):
        bit = 1 << rng.randrange(8)
        with file.open("r+b") as handle:
            handle.seek(place)
            handle.write(bytes([whole[place] ^ bit]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read()
            what = "harmless" if same(found, truth) else "accepted with another result"
        except (ValueError, OSError) as error:
            what = "refused" if file.name in str(error) else f"refused without the file's name ({type(error).__name__})"
        except Exception as error:
            what = f"an error of another kind ({type(error).__name__})"
        finally:
            with file.open("r+b") as handle:
                handle.seek(place)
                handle.write(whole[place : place + 1])
        outcome.counts[what] += 1
        if what not in ("refused", "harmless"):
            outcome.faults.append(f"{outcome.file}: bit {bit:#04x} of byte {place}: {what}")
    assert file.read_bytes() == whole
    return outcome


def flip_run(run: Path, names: Iterable[str], some: int, seed: int) -> list[Outcome]:
    return [flip_file(run / name, lambda name=name: READERS[name](run), some, seed, name) for name in names]  # type: ignore[misc]


def main(some: int, seed: int) -> int:
    start, faults = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as scratch:
        run = a_run(Path(scratch) / "run")
        for name in READERS:
            (outcome,) = flip_run(run, [name], some, seed)
            faults += len(outcome.faults)
            print(f"flips: {outcome}; {time.perf_counter() - start:.0f} s", flush=True)
            print(*outcome.faults[:10], sep="\n")
        shutil.rmtree(run)
    print(f"flips: {faults} faults")
    return faults
