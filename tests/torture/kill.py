"""Kill -9 at random instants of training and of report writing: what is on disk is whole, and resuming gives the same
weights, bit for bit."""

from __future__ import annotations

import contextlib
import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from stn_recipes.cli import main as stn

ARGUMENTS = [
    "train", "digits", "--network", "mnist_tutorial", "--epochs", "4", "--batch-size", "64", "--lr", "0.05", "--threads", "1",
    "--limit-train", "600",
]  # fmt: skip


MOST = 12  # attempts at a run


def _stn(arguments: list[str], log: Path) -> None:
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    torch.set_num_threads(1)
    code = stn(arguments)
    sys.stdout.flush()
    os._exit(code)


def run(arguments: list[str], log: Path, after: float | None = None) -> int | None:
    """The exit code of a command in a process of its own; None where it was killed, so many seconds after its start."""
    child = multiprocessing.get_context("fork").Process(target=_stn, args=(arguments, log))
    child.start()
    child.join(after)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
        child.join()
    return None if child.exitcode == -signal.SIGKILL else child.exitcode


def _whole_page(file: Path) -> None:
    if not file.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise ValueError("cut short")


def _whole_image(file: Path) -> None:
    with Image.open(file) as image:
        image.load()


def _whole_arrays(file: Path) -> None:
    with np.load(file) as arrays:
        for name in arrays:
            _ = arrays[name]


WHOLE: dict[str, Callable[[Path], object]] = {
    ".json": lambda file: json.loads(file.read_text(encoding="utf-8")),
    ".yaml": lambda file: yaml.safe_load(file.read_text(encoding="utf-8")),
    ".safetensors": load_file,
    ".ckpt": lambda file: torch.load(file, weights_only=True),
    ".npz": _whole_arrays,
    ".html": _whole_page,
    ".png": _whole_image,
}


def half_written(folder: Path) -> list[str]:
    """Files that are there under their own name and cannot be read. Logs grow line by line and may end in a part of one."""
    found = []
    for file in sorted(folder.rglob("*")):
        check = WHOLE.get(file.suffix)
        if file.is_file() and check is not None and not file.name.startswith(".") and "logs" not in file.parts:
            try:
                check(file)
            except Exception as error:
                found.append(f"{file}: {error}")
    return found


def outcome(folder: Path) -> dict[str, object]:
    """What must be the same however often a run was stopped."""
    result = json.loads((folder / "result.json").read_text())
    metrics: dict[tuple[int, str], float] = {}
    for file in sorted((folder / "logs" / "csv").glob("version_*/metrics.csv"), key=lambda f: int(f.parent.name[8:])):
        with file.open(newline="") as rows:
            for row in csv.DictReader(rows):
                with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut short
                    epoch = int(row["epoch"])
                    metrics.update(
                        {(epoch, k): float(v) for k, v in row.items() if v and k in ("train_loss", "val_loss")}
                    )
    return {
        "weights": (folder / "model.safetensors").read_bytes(),
        "accuracy": (result["test_accuracy"], result["val_accuracy"]),
        "epochs": result["epochs"],
        "metrics": metrics,
    }


def campaign(
    times: int, seed: int, say: Callable[[str], None] = print, arguments: list[str] | None = None
) -> list[str]:
    """So many runs, each killed once or more and resumed until it is done; what went wrong, in words."""
    arguments = ARGUMENTS if arguments is None else arguments
    torch.set_num_threads(1)
    rng, problems, kills = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        log = home / "log"
        start, began = time.perf_counter(), time.time()
        code = run([*arguments, "--out", str(home / "whole")], log)
        length = time.perf_counter() - start
        if code != 0:
            return [f"the run that nobody killed: exit {code}\n{log.read_text()}"]
        truth = outcome(home / "whole")
        training = (home / "whole" / "result.json").stat().st_mtime - began
        say(f"kill: a whole run takes {length:.1f} s, {training:.1f} of them to train")
        number = 0
        while kills < times:
            number += 1
            folder, log, instants = home / f"run{number}", home / f"log{number}", []
            for attempt in range(MOST):
                # As often while it trains as while it writes the report; at last it may finish.
                after = rng.uniform(0, 1.05 * rng.choice([training, length])) if attempt < MOST - 1 else None
                instants.append(round(after or 0, 3))
                if (folder / "config.yaml").exists():
                    code = run(["train", "--resume", str(folder)], log, after)
                else:
                    code = run([*arguments, "--out", str(folder)], log, after)
                kills += code is None
                if broken := half_written(folder) if folder.exists() else []:
                    problems.append(f"half-written after {instants}: {broken}")
                if code is not None:
                    break
            what = f"seed {seed}, run {number}, killed after {instants[:-1]} s"
            if code != 0:
                problems.append(f"{what}: exit {code}\n{log.read_text()[-3000:]}")
                continue
            found = outcome(folder)
            problems += [f"{what}: another {k}" for k in truth if found[k] != truth[k]]
            if not (folder / "report.html").exists():
                problems.append(f"{what}: no report")
            say(f"kill: {kills} kills in {number} runs, {len(problems)} problems, {time.perf_counter() - start:.0f} s")
    return problems


def main(times: int, seed: int) -> int:
    problems = campaign(times, seed, lambda line: print(line, flush=True))
    print(*problems, sep="\n")
    return len(problems)


__all__ = ["campaign", "half_written", "main", "outcome", "run"]
