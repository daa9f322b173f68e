"""Runs as a table: what each kind of run reached over its seeds, beside its control and the published figure.

Numbers are those of the last epoch's weights. Runs are never averaged over different settings.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table as RichTable

from ..config import RESUMABLE, TrainConfig, Transformer
from ..names import NAMED, label
from ..recipes import RECIPES
from ..recipes.published import Published, published
from ..run.folder import Run, RunError, load_run
from .sections.headline import sign_test

Key = tuple[Any, ...]  # the values of the settings that name a row or a column

_APART = {*RESUMABLE, "seed", "out", "schedule_start"}  # of the settings: they make no other kind of run
_SETTINGS = [setting.name for setting in dataclasses.fields(TrainConfig)]


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two networks on the same test images, those of all seeds together."""

    wins: int  # images that the transformer alone gets right
    losses: int  # and the control alone

    @property
    def chance(self) -> float:
        """How likely so uneven a split is by chance alone: the sign test, both sides."""
        return sign_test(self.wins, self.losses)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but the seed."""

    row: Key
    column: Key
    runs: Sequence[Run]  # finished, by seed
    unfinished: int
    tried: int  # configurations of this recipe in the folder, whatever their seeds and families
    control: Cell | None

    @property
    def config(self) -> TrainConfig:
        return self.runs[0].config

    @cached_property
    def errors(self) -> list[float]:
        """The test error of each seed, in percent."""
        return [error(run) for run in self.runs]

    @property
    def mean(self) -> float:
        return statistics.mean(self.errors)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the seeds; None of a single one."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None

    @property
    def validation(self) -> float | None:
        """The mean validation error, in percent: what choices are made by."""
        found = [run.result.val_accuracy for run in self.runs if run.result]
        return None if None in found else 100 * (1 - statistics.mean(a for a in found if a is not None))

    @property
    def parameters(self) -> int:
        assert self.runs[0].result is not None
        return self.runs[0].result.parameters

    @property
    def minutes(self) -> float:
        """The mean time of training."""
        return statistics.mean(run.result.train_seconds for run in self.runs if run.result) / 60

    @property
    def published(self) -> Published | None:
        return published(self.config)

    @cached_property
    def paired(self) -> Paired | None:
        """With the control, on the seeds that both have; None without a control, or where no run kept its mistakes."""
        if self.control is None:
            return None
        others = {run.config.seed: run.mistakes for run in self.control.runs}
        wins = losses = compared = 0
        for run in self.runs:
            mine, theirs = run.mistakes, others.get(run.config.seed)
            if mine is not None and theirs is not None and mine.images == theirs.images:
                wins += len(set(theirs.wrong) - set(mine.wrong))
                losses += len(set(mine.wrong) - set(theirs.wrong))
                compared += 1
        return Paired(wins, losses) if compared else None


def error(run: Run) -> float:
    """The test error of a finished run, in percent."""
    assert run.result is not None
    if run.mistakes is not None:
        return 100 * len(run.mistakes.wrong) / run.mistakes.images
    return 100 * (1 - run.result.test_accuracy)


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells by row and column, each named by the values of some settings."""

    rows: tuple[str, ...]  # settings
    columns: tuple[str, ...]
    cells: Sequence[Cell]  # in the order of rows, then columns
    configurations: int  # that were tried, whatever their seeds
    unfinished: Sequence[Path]

    def keys(self, which: str) -> list[Key]:
        """The rows or the columns, each once, in order."""
        return list(dict.fromkeys(getattr(cell, which) for cell in sorted(self.cells, key=lambda c: _rank(c, which))))

    def at(self, row: Key, column: Key) -> Cell | None:
        return next((cell for cell in self.cells if (cell.row, cell.column) == (row, column)), None)


def read_table(
    folder: Path, rows: Sequence[str] = (), columns: Sequence[str] = ("transformer",), *, trust: bool = False
) -> Table:
    """The runs below a folder as a table.

    Args:
        folder: of a sweep; the runs in it and in its folders, `RUN/control` too.
        rows: settings that tell the rows apart; the recipe, and whatever else differs between its runs, unless given.
        columns: settings that tell the columns apart.
        trust: the code that the settings of the runs name may be imported, for the pictures of the page.

    Raises:
        ValueError: for a name that is no setting, or a cell of runs that differ in more than the seed.
        RunError: where there is no finished run.
    """
    for argument, names in (("rows", rows), ("columns", columns)):
        for name in names:
            if name not in _SETTINGS or name in _APART:
                allowed = ", ".join(n for n in _SETTINGS if n not in _APART)
                raise ValueError(f"{argument}: expected settings, any of {allowed}, got {name!r}")
    if set(rows) & set(columns):
        raise ValueError(f"columns: expected other settings than the rows, got {', '.join(columns)}")
    runs = _runs(folder, trust)
    finished = [run for run in runs if run.result is not None]
    if not finished:
        raise RunError(f"{folder}: expected finished runs, found {len(runs)} unfinished ones")
    if not rows:
        rows = [name for name in ("recipe", *_varying(runs)) if name not in columns]
    groups: dict[tuple[Key, Key], list[Run]] = defaultdict(list)
    for run in finished:
        groups[_key(run.config, rows), _key(run.config, columns)].append(run)
    for (row, column), of in groups.items():
        differ = _differences([run.config for run in of])
        if differ:
            raise ValueError(
                f"rows: expected settings that tell the runs apart, but those of {_words((*row, *column))} differ in "
                f"{', '.join(differ)}; add it: --rows {','.join([*rows, *differ])}"
            )
    waiting = Counter((_key(run.config, rows), _key(run.config, columns)) for run in runs if run.result is None)
    tried = {
        name: len({_kind(run.config, "transformer") for run in runs if run.config.recipe == name})
        for name in {run.config.recipe for run in runs}
    }

    def cell(row: Key, column: Key, control: Cell | None) -> Cell:
        by_seed = {run.config.seed: run for run in reversed(groups[row, column])}  # the same run twice counts once
        found = [by_seed[seed] for seed in sorted(by_seed)]
        return Cell(row, column, found, waiting[row, column], tried[found[0].config.recipe], control)

    controls = {key: cell(*key, None) for key, of in groups.items() if of[0].config.transformer == "none"}
    cells = []
    for row, column in groups:
        plain = [
            tuple("none" if name == "transformer" else value for name, value in zip(names, key, strict=True))
            for names, key in ((rows, row), (columns, column))
        ]
        control = controls.get((plain[0], plain[1]))
        cells.append(controls.get((row, column)) or cell(row, column, control))
    cells.sort(key=lambda c: (_rank(c, "row"), _rank(c, "column")))
    unfinished = [run.path for run in runs if run.result is None]
    return Table(tuple(rows), tuple(columns), cells, len({_kind(run.config) for run in runs}), unfinished)


def _runs(folder: Path, trust: bool) -> list[Run]:
    if not folder.is_dir():
        raise RunError(f"{folder}: expected a folder of runs")
    found = [Path(place) for place, _, files in os.walk(folder) if "config.yaml" in files]
    return [load_run(path, trust=trust) for path in sorted(found)]


def _key(config: TrainConfig, names: Iterable[str]) -> Key:
    return tuple(_hashable(name, getattr(config, name)) for name in names)


def _kind(config: TrainConfig, *apart: str) -> Key:
    """All that makes a run what it is, but for the seed."""
    return _key(config, [name for name in _SETTINGS if name not in _APART and name not in apart])


def _hashable(name: str, value: Any) -> Any:
    if name in NAMED and value is not None:
        return label(value)
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value


def _differences(configs: Sequence[TrainConfig]) -> list[str]:
    names = [name for name in _SETTINGS if name not in _APART]
    return [name for name in names if len({_key(config, [name]) for config in configs}) > 1]


def _varying(runs: Sequence[Run]) -> list[str]:
    """The settings that differ between runs of the same recipe and family."""
    groups: dict[Key, list[TrainConfig]] = defaultdict(list)
    for run in runs:
        groups[_key(run.config, ("recipe", "transformer"))].append(run.config)
    found = {name for configs in groups.values() for name in _differences(configs)}
    return [name for name in _SETTINGS if name in found]


_ORDER = {name: place for place, name in enumerate((*RECIPES, *get_args(Transformer)))}


def _rank(cell: Cell, which: str) -> tuple[Any, ...]:
    """Recipes and families as they are listed, the control last, numbers by size, all else by name."""
    return tuple(
        (0, _ORDER[value.partition(" ")[0]], value)  # with options behind a family without
        if isinstance(value, str) and value.partition(" ")[0] in _ORDER
        else (1, value, "")
        if isinstance(value, (int, float))
        else (2, 0, str(value))
        for value in getattr(cell, which)
    )


# How it reads


def _words(key: Key) -> str:
    return ", ".join(map(str, key))


def figure(cell: Cell | None, *, paper: bool = False) -> str:
    """`0.43 ± 0.02`, and with `paper` the published figure in brackets behind it."""
    if cell is None:
        return "-"
    text = f"{cell.mean:.2f}" + ("" if cell.deviation is None else f" ± {cell.deviation:.2f}")
    if paper and cell.published is not None:
        text += f" ({cell.published.error:g})"
    return text


def matrix(table: Table, *, paper: bool = False) -> list[list[str]]:
    """The table in short: a line of headings, and a line for each row."""
    columns = table.keys("column")
    head = [" ".join(table.rows), *map(_words, columns)]
    return [
        head,
        *([_words(row), *(figure(table.at(row, c), paper=paper) for c in columns)] for row in table.keys("row")),
    ]


def details(table: Table) -> list[dict[str, Any]]:
    """All that there is to say of each cell, by heading; None where there is nothing."""
    lines = []
    for cell in table.cells:
        paired, control = cell.paired, cell.control
        lines.append(
            {
                **dict(zip((*table.rows, *table.columns), (*cell.row, *cell.column), strict=True)),
                "seeds": len(cell.runs),
                "error %": cell.mean,
                "deviation": cell.deviation,
                "control %": None if control is None else control.mean,
                "published %": cell.published.error if cell.published else None,
                "only it right": paired.wins if paired else None,
                "only control right": paired.losses if paired else None,
                "by chance": paired.chance if paired else None,
                "validation error %": cell.validation,
                "parameters": cell.parameters,
                "minutes": cell.minutes,
                "configurations": cell.tried,
                "unfinished": cell.unfinished,
            }
        )
    return lines


def shown(line: Mapping[str, Any]) -> list[str]:
    """The values of a line of `details`, as they are read."""
    texts = []
    for name, value in line.items():
        if value is None:
            texts.append("-")
        elif name == "by chance":
            texts.append("p < 0.001" if value < 0.001 else f"p = {value:.2g}")
        elif name in ("error %", "deviation", "control %", "validation error %"):
            texts.append(f"{value:.2f}")
        elif name == "parameters":
            texts.append(f"{value:,}")
        else:
            texts.append(f"{value:.1f}" if name == "minutes" else str(value))
    return texts


def notes(table: Table) -> list[str]:
    """What has to be said with the figures."""
    said = [
        "Test errors in percent, of the last epoch's weights: mean ± standard deviation over the seeds.",
        f"{_count(table.configurations, 'configuration')} tried in this folder, counting each family; the seed apart.",
        "By chance: the sign test on the test images of all seeds together, those where one of the two is right.",
    ]
    if any(cell.published for cell in table.cells):
        said.append(f"Published: {'; '.join(sorted({c.published.what for c in table.cells if c.published}))}.")
    if table.unfinished:
        said.append(
            f"{_count(len(table.unfinished), 'run')} not finished: {', '.join(p.name for p in table.unfinished)}."
        )
    return said


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def as_text(table: Table, *, paper: bool = False) -> str:
    """For a terminal."""
    lines = details(table)
    console = Console(width=240, file=io.StringIO(), highlight=False)
    for grid in (matrix(table, paper=paper), [list(lines[0]), *map(shown, lines)]):
        rich = RichTable(box=None, pad_edge=False)
        for place, heading in enumerate(grid[0]):
            rich.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
        for row in grid[1:]:
            rich.add_row(*row)
        console.print(rich)
        console.print()
    for note in notes(table):
        console.print(note, soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def as_markdown(table: Table, *, paper: bool = False) -> str:
    """For a page of documentation."""
    lines = details(table)
    parts = []
    for grid in (matrix(table, paper=paper), [list(lines[0]), *map(shown, lines)]):
        escaped = [[text.replace("|", "\\|") for text in row] for row in grid]
        rule = ["---", *["---:"] * (len(grid[0]) - 1)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes(table))]) + "\n"


def as_csv(table: Table) -> str:
    """A line for each cell, for other programs: None is empty."""
    lines = details(table)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()
