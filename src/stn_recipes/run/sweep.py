"""Many runs: a product of settings, each run trained by `stn train` in a process of its own.

The engine is a pool of threads that wait for these processes, or Ray, which starts them wherever it has room. What is on
disk decides: a folder with a result is kept, one without is gone on with, so a sweep is repeated until it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import logging
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..config import FLAGS, RESUMABLE, TrainConfig
from ..names import NAMED, is_import_path, label, split
from .folder import RunError, load_run, read_config
from .precision import choose

LOG = "train.log"  # in the folder of a run: what its process printed


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run that a sweep is to make."""

    name: str  # of its folder
    words: tuple[str, ...]  # after `stn train`
    config: TrainConfig  # what they mean


def product(
    recipes: Sequence[str],
    options: Mapping[str, Sequence[str]],
    config_of: Callable[[Sequence[str]], TrainConfig],
) -> list[Planned]:
    """Every recipe with every combination of the options.

    Args:
        options: the values of each option of `stn train`, as its command line has them, by the option's name.
        config_of: the settings that are meant by the words after `stn train`.

    Raises:
        ValueError: for an option without a value, or two runs of the same name.
    """
    for option, values in options.items():
        if not values or not all(values):
            raise ValueError(f"{option}: expected values with commas between them, got {','.join(values)!r}")
    several = [name for name, values in options.items() if len(values) > 1 and name not in ("transformer", "seed")]
    runs: dict[str, Planned] = {}
    for recipe, *chosen in itertools.product(recipes, *options.values()):
        given = dict(zip(options, chosen, strict=True))
        of_family = [name for name in given if name.startswith("transformer.")]
        control = bool(of_family) and given.get("transformer") == "none"
        if control:  # which has no family to have options
            given = {name: value for name, value in given.items() if name not in of_family}
        words = (recipe, *(_word(name, value) for name, value in given.items()))
        config = config_of(words)
        name = "-".join(
            [
                recipe,
                _short(given.get("transformer", config.family)),
                f"s{config.seed}",
                *(
                    f"{option}={_short(given[option]) if option in NAMED else given[option]}"
                    for option in several
                    if option in given
                ),
            ]
        )
        name = re.sub(r"[^\w.,=+-]+", "_", name).replace("_-", "-")
        if control and name in runs:
            continue
        if name in runs:
            raise ValueError(f"expected every run once, got {name} twice")
        runs[name] = Planned(name, words, config)
    return list(runs.values())


def _word(option: str, value: str) -> str:
    """An option of `stn train` with its value; one that is there or not takes none."""
    option = option.replace("_", "-")
    if option in FLAGS:
        return f"--{option}" if value == "true" else f"--no-{option}"
    return f"--{option}={value}"


def _short(text: str) -> str:
    """A name with its options as a folder has it: an import path without its module."""
    value = yaml.safe_load(text)
    if not isinstance(value, (str, dict)) or (isinstance(value, dict) and not isinstance(value.get("name"), str)):
        return text
    name, options = split(value)
    return label({"name": name.rpartition(":")[2] if is_import_path(name) else name, **options})


def execute(words: Sequence[str], log: Path, folder: Path) -> int:
    """`stn train WORDS` in a process of its own, started in `folder`, which writes to the end of `log`: its exit code.

    Ctrl-C is passed on to the process, and its end waited for.
    """
    process = _start(words, log, folder)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise


def _start(words: Sequence[str], log: Path, folder: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        print("$ stn train", shlex.join(words), file=out, flush=True)
        command = [sys.executable, "-m", "stn_recipes", "train", *words]
        # In a session of its own the terminal's Ctrl-C does not reach it; it is told once, from here.
        return subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )


class Engine(Protocol):
    """What runs the processes."""

    def submit(self, words: Sequence[str], log: Path) -> Future[int]:
        """The exit code of `stn train WORDS`, once it has ended."""

    def stop(self) -> None:
        """Start nothing more, interrupt what runs, and wait for its end."""


class Processes:
    """So many at a time, on this machine."""

    def __init__(self, jobs: int) -> None:
        self.pool = ThreadPoolExecutor(jobs)
        self.running: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def submit(self, words: Sequence[str], log: Path) -> Future[int]:
        return self.pool.submit(self._run, words, log)

    def _run(self, words: Sequence[str], log: Path) -> int:
        with self.lock:
            if self.stopped:
                return -signal.SIGINT
            process = _start(words, log, Path.cwd())
            self.running.add(process)
        code = process.wait()
        with self.lock:
            self.running.discard(process)
        return code

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.send_signal(signal.SIGINT)
        self.pool.shutdown(cancel_futures=True)


class Ray:
    """Wherever a Ray cluster has room, `threads` cores a run. Its machines see the folders under the same names."""

    def __init__(self, address: str, threads: int) -> None:
        try:
            self.ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError as error:
            raise ValueError(f"ray: {error.name} is missing; pip install 'spatial-transformers[sweep]'") from error
        try:
            self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise ValueError(f"ray: expected the address of a cluster, got {address!r}: {error}") from error
        self.execute = self.ray.remote(num_cpus=threads, max_retries=0)(execute)
        self.tasks: list[Any] = []

    def submit(self, words: Sequence[str], log: Path) -> Future[int]:
        task = self.execute.remote(words, log, Path.cwd())
        self.tasks.append(task)
        found: Future[int] = task.future()
        return found

    def stop(self) -> None:
        for task in self.tasks:
            self.ray.cancel(task)  # raises KeyboardInterrupt in it
        self.ray.wait(self.tasks, num_returns=len(self.tasks))


@dataclasses.dataclass
class _Row:
    """A run on its way."""

    run: Planned
    folder: Path
    state: str = "waiting"  # running, finished, kept, failed
    log_size: int = 0  # before this sweep
    began: float = 0.0

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def text(self) -> str:
        """What there is to say of its state."""
        if self.state in ("finished", "kept"):
            result = load_run(self.folder).result
            assert result is not None
            return f"{1 - result.test_accuracy:.2%} test error, {result.train_seconds / 60:.1f} min"
        lines = _tail(self.log)
        if self.state == "failed":
            return (lines or ["it ended without a word"])[-1].removeprefix("stn: error: ")
        epochs = [words for words in map(str.split, lines) if len(words) == 7 and words[0].isdigit()]
        return f"epoch {epochs[-1][0]} of {self.run.config.epochs}, validation {epochs[-1][4]}" if epochs else ""

    def words(self) -> list[str]:
        """After `stn train`, to begin or to go on."""
        words = list(self.run.words)
        if (self.folder / "config.yaml").exists():
            options = {word: word.lstrip("-").partition("=")[0].replace("-", "_") for word in words[1:]}
            kept = [word for word, option in options.items() if option in RESUMABLE]
            trust = ["--trust"] if self.run.config.imports else []  # that were named for this sweep, too
            return ["--resume", str(self.folder), *kept, *trust, "--no-progress"]
        return [*words, f"--out={self.folder}", "--no-progress"]


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


class SweepError(ValueError):
    """Some runs of a sweep failed; the message names them."""


def sweep(
    planned: Sequence[Planned],
    out: Path,
    engine: Engine,
    *,
    report: bool = True,
    finished: Callable[[Planned, Path], None] | None = None,
) -> None:
    """Make the runs that are not made yet, each in OUT/NAME, and say how it goes.

    A finished run is kept, an interrupted one goes on from its last epoch, a failed one is named, and the others go on.

    Args:
        report: write the report of each run, too.
        finished: called with each finished run and its folder, those that were kept first.

    Raises:
        RunError: for a folder that holds another run than the one planned, or where another sweep is at work. Nothing
            was started then.
        SweepError: at the end, naming the runs that failed.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, when the processes have ended; what they finished is on disk.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = [_Row(run, out / run.name) for run in planned]
    with _alone(out), _terminated_like_interrupted(), _Board(rows) as board:
        for row in rows:
            if (row.folder / "config.yaml").exists():
                _check_same(row)
                if load_run(row.folder).result is not None:
                    board.now(row, "kept")
                    if finished is not None:
                        finished(row.run, row.folder)
        try:
            running: dict[Future[int], _Row] = {}
            for row in rows:
                if row.state != "kept":
                    row.log_size = row.log.stat().st_size if row.log.exists() else 0
                    running[engine.submit([*row.words(), *([] if report else ["--no-report"])], row.log)] = row
            while running:
                ended, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in ended:
                    row = running.pop(future)
                    error = future.exception()
                    if error is not None:
                        raise error
                    board.now(row, "finished" if (row.folder / "result.json").exists() else "failed")
                    if row.state == "finished" and finished is not None:
                        finished(row.run, row.folder)
                board.look()
        except BaseException as error:
            engine.stop()
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("stopped; the same command goes on") from None
            raise
    failed = [row for row in rows if row.state == "failed"]
    if failed:
        said = "".join(f"\n  {row.run.name}: {row.text} ({row.log})" for row in failed)
        raise SweepError(f"{len(failed)} of {len(rows)} runs failed; the same command tries them again:{said}")


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    try:
        with FileLock(out / ".sweep.lock", blocking=False):
            yield
    except Timeout:
        raise RunError(f"{out}: another sweep is at work here; wait for its end, or name another --out") from None


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """A batch system's SIGTERM ends the runs as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_same(row: _Row) -> None:
    there, wanted = read_config(row.folder), row.run.config
    wanted = dataclasses.replace(wanted, precision=choose(wanted.precision, wanted.accelerator))
    for setting in dataclasses.fields(TrainConfig):
        name = setting.name
        if name in (*RESUMABLE, "out", "schedule_start"):
            continue
        if getattr(there, name) != getattr(wanted, name):
            raise RunError(
                f"{row.folder}: expected a run with {name} {getattr(wanted, name)!r}, found one with "
                f"{getattr(there, name)!r}; name another --out"
            )


class _Board:
    """How the runs go: a table that lives in a terminal, a line for each change elsewhere."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self.rows = rows
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, transient=True, auto_refresh=False)

    def __enter__(self) -> _Board:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def now(self, row: _Row, state: str) -> None:
        """A run is in another state."""
        row.state = state
        text = row.text
        print(f"{state:<8}  {row.run.name}{':' if text else ''} {text}".rstrip())

    def look(self) -> None:
        """Which runs have begun; the table anew."""
        for row in self.rows:
            if row.state == "waiting" and row.log.exists() and row.log.stat().st_size > row.log_size:
                row.began = time.monotonic()
                self.now(row, "running")
        if self.live.is_started:
            self.live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        count = {state: sum(row.state == state for row in self.rows) for state in ("finished", "failed", "waiting")}
        done = sum(row.state == "kept" for row in self.rows) + count["finished"]
        title = f"{done} of {len(self.rows)} finished, {count['failed']} failed, {count['waiting']} waiting"
        table = Table("run", "minutes", "", box=None, caption=title, caption_justify="left", min_width=48)
        for row in self.rows:
            if row.state == "running":
                table.add_row(row.run.name, f"{(time.monotonic() - row.began) / 60:.1f}", row.text)
        return table
