"""The tables of docs/results.md, cell by cell: every run that they are made of, and the command that repeats it.

    nice python -m benchmarks.campaign --data-dir DATA --out runs/campaign [--jobs 2] [--only 'mnist_r-*'] [--list]
    python -m benchmarks.campaign --data-dir DATA --check

A cell is one run of `stn train` on one thread. The sweep makes those that are not made yet, in the order of the table
below, and goes on where it was stopped. Each finished cell is a small file, docs/campaign/NAME.json, under version
control: a cell that has one is not run again. `--check` runs one of them again, picked at random among the shortest, and
says whether it ends where the seeds of that cell say that it should.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stn.ops import cpu
from stn_recipes.cli import config_of
from stn_recipes.files import write_text
from stn_recipes.run.folder import load_run
from stn_recipes.run.sweep import Planned, Processes, SweepError, sweep

from .run import processor

RECORDS = Path(__file__).parents[1] / "docs" / "campaign"


@dataclasses.dataclass(frozen=True)
class Cells:
    """A recipe with each of the families on each of the seeds."""

    recipe: str
    families: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    schedule: str = "full"  # a name of its own for each set of options
    options: tuple[str, ...] = ()  # of `stn train`, beside the recipe's own


TABLE_1 = ("affine", "projective", "tps", "none")
SHORT = ("--epochs=12",)
OWN = "own"  # the family that the recipe has
EXACT = "--precision=32-true"

CAMPAIGN = (
    *(
        Cells(f"mnist_{name}", ("affine", "none"), schedule="short", options=SHORT)
        for name in ("r", "rts", "p", "e", "tc")
    ),
    Cells("mnist_rts", ("affine", "none"), schedule="size28", options=("--size=28",)),  # of the transformer's output
    *(Cells(f"mnist_{name}", TABLE_1) for name in ("r", "rts", "p", "e")),
    Cells("mnist_tc", ("affine", "none")),
    Cells("mnist_addition", TABLE_1),
    Cells("gtsrb", ("affine", "none")),
    Cells("gtsrb_two", ("affine", "none")),
    *(
        Cells("colocalize", (OWN,), seeds, f"{name}_digit{digit}", (f"--distortion={name}", f"--digit={digit}", EXACT))
        for name, seeds in (("tc84", (0, 1, 2)), ("t84", (0,)))
        for digit in range(10)
    ),
)


def cells() -> Iterator[tuple[str, list[str]]]:
    """The name of each cell and the words after `stn train`: the first seed of everything, then the second, ..."""
    rows = [
        (place, group, family, seed) for group in CAMPAIGN for family in group.families
        for place, seed in enumerate(group.seeds)
    ]  # fmt: skip
    for _, group, family, seed in sorted(rows, key=lambda row: row[0]):
        words = [
            group.recipe,
            *([] if family == OWN else [f"--transformer={family}"]),
            f"--seed={seed}",
            *group.options,
        ]
        words += [*([] if EXACT in words else ["--precision=auto"]), "--threads=1"]
        yield f"{group.recipe}-{family}-s{seed}-{group.schedule}", words


def record(name: str, words: list[str], folder: Path) -> dict[str, Any]:
    """What is kept of a finished cell."""
    run = load_run(folder)
    result, mistakes = run.result, run.mistakes
    assert result is not None
    assert mistakes is not None
    return {
        "name": name,
        "recipe": result.recipe,
        "transformer": result.transformer,
        "seed": result.seed,
        "schedule": name.rpartition("-")[2],
        "command": "stn train " + shlex.join([*words[:1], "--data-dir=DATA", *words[1:]]),
        "test_error": 100 * len(mistakes.wrong) / mistakes.images,  # percent, of the last epoch's weights
        "val_error": None if result.val_accuracy is None else round(100 * (1 - result.val_accuracy), 4),
        "parameters": result.parameters,
        "epochs": result.epochs,
        "minutes": round(result.train_seconds / 60, 1),
        "cpu_minutes": None if result.cpu_seconds is None else round(result.cpu_seconds / 60, 1),
        "threads": result.threads,
        "precision": run.config.precision,
        "machine": processor(),
        "instruction_set": cpu._native.instruction_set() if cpu._native else None,
        "versions": result.versions,
        "finished": result.finished,
        "images": mistakes.images,
        "wrong": list(mistakes.wrong),  # places in the test set of this seed: what the paired test needs
    }


def records() -> dict[str, dict[str, Any]]:
    """The finished cells by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(RECORDS.glob("*.json"))}


def control_of(cell: dict[str, Any], among: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The cell without a transformer that has the same recipe, seed and schedule."""
    return among.get(f"{cell['recipe']}-none-s{cell['seed']}-{cell['schedule']}")


def keep(cell: dict[str, Any]) -> None:
    """Write the file of a cell, and its control's figure into it, and into those that it is the control of."""
    known = records() | {cell["name"]: cell}
    for one in known.values():
        control = control_of(one, known)
        if one is cell or (control is cell and one["transformer"] != "none"):
            error = None if control is None or control is one else control["test_error"]
            wrong = json.dumps(one["wrong"])
            text = json.dumps({**one, "control_error": error, "wrong": "WRONG"}, indent=1)
            write_text(RECORDS / f"{one['name']}.json", text.replace('"WRONG"', wrong) + "\n")


def plan(only: str, data_dir: str | None) -> list[Planned]:
    """The cells that are not done yet."""
    done = records()
    data = [] if data_dir is None else [f"--data-dir={data_dir}"]
    found = []
    for name, words in cells():
        if fnmatch.fnmatch(name, only) and name not in done:
            words = [*words, *data]
            found.append(Planned(name, tuple(words), config_of(words)))
    return found


def run(out: Path, only: str, data_dir: str | None, jobs: int) -> None:
    """Make the cells that are not done yet, and keep each as it ends."""
    of = dict(cells())
    RECORDS.mkdir(parents=True, exist_ok=True)

    def finished(cell: Planned, folder: Path) -> None:
        keep(record(cell.name, of[cell.name], folder))

    sweep(plan(only, data_dir), out, Processes(jobs), report=False, finished=finished)


def spread(cell: dict[str, Any], among: dict[str, dict[str, Any]]) -> tuple[float, float, int]:
    """Mean and standard deviation of a cell's test error over its seeds, in percent, and how many there are.

    The deviation is at least that of counting errors among so many images.
    """
    same = ("recipe", "transformer", "schedule")
    errors = [one["test_error"] for one in among.values() if all(one[key] == cell[key] for key in same)]
    share = statistics.mean(errors) / 100
    counting = 100 * (share * (1 - share) / cell["images"]) ** 0.5
    return 100 * share, max(statistics.stdev(errors) if len(errors) > 1 else 0.0, counting), len(errors)


def check(data_dir: str | None, only: str) -> bool:
    """Run one of the shortest cells again, picked at random; whether it ends within three deviations of its mean."""
    known = {name: cell for name, cell in records().items() if fnmatch.fnmatch(name, only)}
    if not known:
        raise SystemExit(f"{RECORDS}: expected files of finished cells, found none")
    shortest = {}
    for cell in sorted(known.values(), key=lambda cell: -cell["epochs"]):
        shortest[cell["recipe"], cell["transformer"]] = cell["epochs"]
    name, cell = random.choice(
        [item for item in known.items() if item[1]["epochs"] == shortest[item[1]["recipe"], item[1]["transformer"]]]
    )
    words = [word for word in shlex.split(cell["command"])[2:] if word != "--data-dir=DATA"]
    words += [] if data_dir is None else [f"--data-dir={data_dir}"]
    print(f"{name}: {cell['minutes']} minutes on {cell['machine']}")
    with tempfile.TemporaryDirectory() as folder:
        sweep([Planned(name, tuple(words), config_of(words))], Path(folder), Processes(1), report=False)
        result = load_run(Path(folder, name)).result
    assert result is not None
    error = 100 * (1 - result.test_accuracy)
    mean, deviation, seeds = spread(cell, known)
    within = abs(error - mean) <= 3 * deviation
    print(
        f"{name}: {error:.2f} % now, {cell['test_error']:.2f} % then; stated {mean:.2f} ± {deviation:.2f} % over {seeds} "
        f"seeds: {'within' if within else 'NOT within'} three deviations"
    )
    return within


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="folder of the official files; downloaded to the cache if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/campaign"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--only", default="*", help="the cells whose name matches, such as 'mnist_r-*'")
    parser.add_argument("--list", action="store_true", help="name the cells and what they reached, run nothing")
    parser.add_argument("--check", action="store_true", help="run one finished cell again")
    a = parser.parse_args()
    if a.list:
        done = records()
        for name, _ in cells():
            if fnmatch.fnmatch(name, a.only):
                print(f"{name:<40}" + (f"{done[name]['test_error']:6.2f} %" if name in done else "     -"))
    elif a.check:
        sys.exit(not check(a.data_dir, a.only))
    else:
        try:
            run(a.out, a.only, a.data_dir, a.jobs)
        except SweepError as error:
            raise SystemExit(str(error)) from error
        except KeyboardInterrupt as stop:
            raise SystemExit(str(stop)) from None


if __name__ == "__main__":
    main()
