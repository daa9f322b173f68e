"""Many images of one's own: files generated, listed, checked and read for an epoch, with the memory that it takes.

    python -m benchmarks.data [--images 100000] [--side 32] [--links] [--workers N] [--folder FOLDER] [--epochs 1] [--json FILE]

The files are JPEGs in ten class folders. With `--links` only a few hundred are written and the others are hard links to
them, for a million names in little space: they are listed, and not read unless `--epochs` says so. Resident memory is that of
this process and of its workers, added up; pages that they share count in each.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pooch
import torch
from PIL import Image

from stn_recipes.data.images import _scan
from stn_recipes.data.module import ImageDataModule
from stn_recipes.progress import track

from .run import processor, versions

CLASSES = 10
WRITTEN = 500  # files of their own, with links

T = TypeVar("T")


def generate(folder: Path, count: int, side: int, links: bool) -> None:
    numbers = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class {label}").mkdir(parents=True)
    own: list[Path] = []
    for place in track(range(count), "Generating", count):
        file = folder / f"class {place % CLASSES}" / f"{place:07d}.jpg"
        if links and place >= WRITTEN:
            os.link(own[place % WRITTEN], file)
            continue
        coarse = Image.fromarray(numbers.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, quality=85)
        own.append(file)


def resident() -> float:
    """MiB of this process and those that it has started."""
    total = 0
    for name in ("self", *_children()):
        try:
            pages = int(Path("/proc", name, "statm").read_text().split()[1])
        except OSError:  # it has ended
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total / 2**20


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


class Peak:
    """The largest resident memory while it is open, looked at ten times a second."""

    def __enter__(self) -> Peak:
        self.mebibytes, self._done = resident(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.1):
            self.mebibytes = max(self.mebibytes, resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def step(what: str, count: int, do: Callable[[], T]) -> tuple[T, dict[str, Any]]:
    wall, cpu = time.perf_counter(), time.process_time()
    with Peak() as peak:
        found = do()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    row = {
        "step": what,
        "seconds": wall,
        "cpu": cpu,
        "per_second": count / wall,
        "peak": peak.mebibytes,
        "end": resident(),
    }
    print(
        f"{what:<28} {wall:8.1f} s {count / wall:10,.0f} files/s {peak.mebibytes:8.0f} MiB at most {row['end']:8.0f} at the end",
        flush=True,
    )
    return found, row


def epoch(loader: torch.utils.data.DataLoader[Any], number: int) -> list[float]:
    """Resident memory at each tenth of an epoch."""
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    steps, seen = len(loader), []
    for place, _ in enumerate(loader):
        if place % max(1, steps // 10) == 0:
            seen.append(round(resident(), 1))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    epochs = a.epochs if a.epochs is not None else 0 if a.links else 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = (a.folder or Path(temporary)) / "images"
        rows: list[dict[str, Any]] = []

        def keep(what: str, do: Callable[[], T], count: int = a.images) -> T:
            found, row = step(what, count, do)
            rows.append(row)
            return found

        if not folder.exists():
            keep("generate", lambda: generate(folder, a.images, a.side, a.links))
        listed = keep("list", lambda: _scan(folder, None, True))
        assert len(listed.paths) == a.images
        del listed
        if epochs:
            pooch.os_cache = lambda project: Path(temporary) / "cache"
            data = ImageDataModule(
                dataset="images", data_dir=str(folder), image_size=(a.side, a.side), fit="crop", augment="flip_shift",
                memory_limit="0", num_workers=a.workers, val_fraction=0.0,
            )  # fmt: skip
            part = a.images * 4 // 5  # what is not set aside for the test
            keep("list, check, measure (train)", lambda: data.setup("fit"), part)
            keep("the same once more", lambda: _again(data).setup("fit"), part)
            loader = data.train_dataloader()
            for number in range(epochs):
                seen = keep(f"epoch {number + 1}, {loader.num_workers} workers", lambda: epoch(loader, number), part)
                print("    MiB at each tenth:", *(f"{one:.0f}" for one in seen), flush=True)
                rows[-1] |= {"tenths": seen, "images": len(data.train_data())}
    said = {"images": a.images, "side": a.side, "links": a.links, "processor": processor(), **versions()}
    if a.json is not None:
        a.json.write_text(json.dumps({**said, "rows": rows}, indent=1))


def _again(data: ImageDataModule) -> ImageDataModule:
    return ImageDataModule(
        dataset="images",
        data_dir=data.data_dir,
        image_size=data.image_size,
        fit=data.fit,
        memory_limit="0",
        val_fraction=0.0,
    )


if __name__ == "__main__":
    main()
