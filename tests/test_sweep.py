"""Sweeps: the product of settings as runs, kept, gone on with and named; never two on one folder."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from benchmarks import campaign
from stn_recipes.cli import _list, config_of, main
from stn_recipes.config import TrainConfig
from stn_recipes.run.folder import Mistakes, RunError, load_run, write_config, write_record
from stn_recipes.run.sweep import Planned, Processes, SweepError, product, sweep
from stn_recipes.run.train import evaluate, resume, train

TINY = ["--network=mnist_tutorial", "--epochs=2", "--limit-train=200", "--batch-size=50", "--lr=0.05"]


def planned(*seeds: int, options: list[str] = TINY) -> list[Planned]:
    words = [("digits", f"--seed={seed}", "--threads=1", *options) for seed in seeds]
    return [Planned(f"s{seed}", w, config_of(w)) for seed, w in zip(seeds, words, strict=True)]


class Instant:
    """An engine that trains nothing: the process of a run ends at once, well or badly."""

    def __init__(self, *bad: str) -> None:
        self.bad = bad
        self.words: list[list[str]] = []
        self.stopped = False

    def submit(self, words: list[str], log: Path) -> Future[int]:
        self.words.append(list(words))
        log.parent.mkdir(exist_ok=True)
        if log.parent.name in self.bad:
            log.write_text("epoch\nstn: error: the disk is full\n")
        else:
            done(log.parent, config_of([w for w in words[:] if not w.startswith(("--out", "--no-"))]), (1, 2))
        future: Future[int] = Future()
        future.set_result(int(log.parent.name in self.bad))
        return future

    def stop(self) -> None:
        self.stopped = True


def done(folder: Path, config: TrainConfig, wrong: tuple[int, ...], images: int = 100) -> Path:
    """A finished run, as far as its records go."""
    from stn_recipes.run.folder import Result

    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    accuracy = 1 - len(wrong) / images
    same = {name: getattr(config, name) for name in ("recipe", "network", "seed", "epochs")}
    result = Result(
        parameters=1000, test_accuracy=accuracy, test_loss=0.1, val_accuracy=accuracy, train_accuracy=1.0,
        train_seconds=60.0, transformer=config.family, **same,
    )  # fmt: skip
    write_record(folder / "result.json", result)
    write_record(folder / "mistakes.json", Mistakes(images=images, wrong=wrong))
    return folder


def test_the_product_has_readable_names() -> None:
    options = {"transformer": ["affine", "none"], "seed": ["0", "1"], "lr": ["0.1", "5e-2"], "epochs": ["3"]}
    runs = product(["digits", "mnist"], options, config_of)
    assert len(runs) == len({run.name for run in runs}) == 2 * 2 * 2 * 2
    assert [run.name for run in runs[:2]] == ["digits-affine-s0-lr=0.1", "digits-affine-s0-lr=5e-2"]
    config = runs[-1].config
    assert (config.recipe, config.transformer, config.seed, config.lr, config.epochs) == ("mnist", "none", 1, 0.05, 3)
    assert config_of(runs[-1].words) == config
    assert product(["digits"], {}, config_of)[0].name == "digits-affine-s0"
    bounded = _list('rotation,{"name": "similarity", "max_angle": 0.5}')
    names = [run.name for run in product(["digits"], {"transformer": bounded}, config_of)]
    assert names == ["digits-rotation-s0", "digits-similarity_max_angle=0.5-s0"]


def test_a_list_is_cut_at_its_commas_but_not_inside_brackets() -> None:
    assert _list('{"fold": 1.0, "scale": 0.1},{}, 3') == ['{"fold": 1.0, "scale": 0.1}', "{}", "3"]
    assert _list("[32,48],64") == ["[32,48]", "64"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--transformer", "affin"], "did you mean 'affine'"),
        (["--lr", "0.1,"], "lr: expected values with commas between them, got '0.1,'"),
        (["--seeds", "0,0"], "expected every run once, got digits-affine-s0 twice"),
        (["--jobs", "0"], "jobs: expected at least 1, got 0"),
        (["--epochs", "0"], "epochs: expected a finite number of at least 1, got 0"),
        (["--jobs", "2", "--ray", "auto"], "jobs: of this machine, not of a Ray cluster"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_starts(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "digits", *words, "--out", str(tmp_path / "out")]) in (1, 2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_from_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two runs at a time, one of which fails; the other goes on, and the next time it is kept."""
    out = tmp_path / "out"
    command = ["sweep", "digits", "--seeds", "3", *TINY[1:], "--jobs", "2", "--no-report"]
    command += ["--out", str(out), "--network", "mnist_tutorial,nope"]
    assert main(command) == 1
    said = capfd.readouterr()
    name = "digits-affine-s3-network=mnist_tutorial"
    assert re.search(rf"finished  {name}: [\d.]+% test error", said.out)
    failed = f"digits-affine-s3-network=nope: name: expected one of .* got 'nope'.* \\({out}/digits-affine-s3-network=nope/train.log\\)"
    assert re.search(f"1 of 2 runs failed.*\n.*{failed}", said.err), said.err
    run = load_run(out / name)
    assert (run.config.threads, run.config.seed, run.config.transformer) == (1, 3, "affine")
    assert not (out / name / "report.html").exists()
    # What a run gets wrong is kept, and is what its weights get wrong.
    assert run.mistakes is not None
    wrong = [
        place for place, (image, label) in enumerate(run.data.test_data())
        if int(run.model(image[None]).argmax()) != int(label)
    ]  # fmt: skip
    assert list(run.mistakes.wrong) == wrong
    assert run.mistakes.images == len(run.data.test_data())
    assert len(wrong) / run.mistakes.images == pytest.approx(1 - evaluate(run).test_accuracy)

    before = {path: path.stat().st_mtime_ns for path in (out / name).rglob("*")}
    assert main(command) == 1
    assert f"kept      {name}" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (out / name).rglob("*")} == before


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_sweep_goes_on_to_the_same_weights(how: signal.Signals, tmp_path: Path) -> None:
    out, epochs = tmp_path / "out", 4
    options = [*TINY, f"--epochs={epochs}"]
    command = [sys.executable, "-m", "stn_recipes", "sweep", "digits", *options, "--no-report", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = out / "digits-affine-s0"
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    with FileLock(run / "train.lock", blocking=False):  # nobody trains it any more
        assert not (run / "result.json").exists()
    assert main(command[3:]) == 0
    assert "$ stn train --resume" in (run / "train.log").read_text()
    whole = train(replace(config_of(["digits", *options]), threads=1, out=str(tmp_path / "whole")))
    a, b = (load_file(folder / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished: list[str] = []
    runs = planned(0, 1, 2)
    with pytest.raises(SweepError, match=r"1 of 3 runs failed.*\n  s1: the disk is full \(.*train.log\)"):
        sweep(runs, tmp_path, Instant("s1"), finished=lambda run, folder: finished.append(run.name))
    assert sorted(finished) == ["s0", "s2"]
    engine = Instant()
    sweep(runs, tmp_path, engine, report=False, finished=lambda run, folder: finished.append(run.name))
    assert [words[1] for words in engine.words] == ["--seed=1"]
    assert engine.words[0][-2:] == ["--no-progress", "--no-report"]
    assert sorted(finished) == ["s0", "s0", "s1", "s2", "s2"]
    assert "kept      s0: 2.00% test error, 1.0 min" in capsys.readouterr().out


def test_an_interrupted_run_is_resumed_with_what_may_change(tmp_path: Path) -> None:
    (run,) = planned(0, options=[*TINY, "--num-workers=2"])
    (tmp_path / "s0").mkdir()
    write_config(tmp_path / "s0", replace(run.config, num_workers=0))

    class Stop(Instant):
        def submit(self, words: list[str], log: Path) -> Future[int]:
            self.words.append(list(words))
            raise KeyboardInterrupt

    engine = Stop()
    with pytest.raises(KeyboardInterrupt):
        sweep([run], tmp_path, engine)
    assert engine.stopped
    folder = str((tmp_path / "s0").resolve())
    assert engine.words == [["--resume", folder, "--threads=1", "--num-workers=2", "--no-progress"]]
    with FileLock(tmp_path / ".sweep.lock", blocking=False):  # the next one may begin
        pass


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    sweep(planned(0), tmp_path, Instant())
    engine = Instant()
    with pytest.raises(RunError, match="s0: expected a run with epochs 5, found one with 2; name another --out"):
        sweep(planned(0, 1, options=[*TINY, "--epochs=5"]), tmp_path, engine)
    assert engine.words == []


def test_two_sweeps_on_one_folder_are_refused(tmp_path: Path) -> None:
    engine = Instant()
    with FileLock(tmp_path / ".sweep.lock"), pytest.raises(RunError, match="another sweep is at work here"):
        sweep(planned(0), tmp_path, engine)
    assert engine.words == []
    sweep(planned(0), tmp_path, engine)
    assert len(engine.words) == 1


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = train(replace(config_of(["digits", *TINY]), epochs=1, threads=1, out=str(tmp_path / "run")))
    (run / "result.json").unlink()
    before = (run / "model.safetensors").read_bytes()
    with FileLock(run / "train.lock"), pytest.raises(RunError, match="another process is training this run"):
        resume(run)
    assert (run / "model.safetensors").read_bytes() == before
    resume(run)
    assert (run / "result.json").exists()


@pytest.mark.slow
def test_a_sweep_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    log = tmp_path / "ray.log"
    start = [
        "start",
        "--head",
        "--port=0",
        "--num-cpus=2",
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--block",
    ]
    with log.open("w") as opened:
        head = subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", *start], stdout=opened, stderr=opened)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"ray start --address='([^']+)'", log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            assert head.poll() is None, log.read_text()
            time.sleep(0.1)
        out = tmp_path / "out"
        command = [sys.executable, "-m", "stn_recipes", "sweep", "digits", "--seeds", "0,1", *TINY, "--no-report"]
        command += ["--out", str(out), "--network", "mnist_tutorial,nope", "--ray", found[1]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1, done.stderr
        assert "2 of 4 runs failed" in done.stderr
        for seed in (0, 1):
            assert load_run(out / f"digits-affine-s{seed}-network=mnist_tutorial").result is not None
        assert "got 'nope'" in done.stderr
    finally:
        head.terminate()
        head.wait(60)


def test_ray_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", "digits", *TINY, "--out", str(tmp_path / "out"), "--ray", "auto"]) == 1
    assert "pip install 'spatial-transformers[sweep]'" in capsys.readouterr().err


# The campaign


def test_every_cell_of_the_campaign_can_be_trained() -> None:
    names = [name for name, _ in campaign.cells()]
    assert len(names) == len(set(names)) > 50
    for name, words in campaign.cells():
        config = config_of(words)
        assert config.threads == 1
        family = config.transformer if isinstance(config.transformer, str) else "own"
        assert name.startswith(f"{config.recipe}-{family}-s{config.seed}-")
        if family != "none" and config.digit is None:  # what has no classes has no control
            assert name.replace(f"-{family}-", "-none-") in names, "no control"


def test_finished_cells_are_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "RECORDS", tmp_path / "records")
    cells = campaign.Cells("digits", ("affine", "none"), (0, 1), "short", tuple(TINY))
    monkeypatch.setattr(campaign, "CAMPAIGN", (cells,))
    engines: list[Instant] = []

    def engine(jobs: int) -> Instant:
        engines.append(Instant("digits-none-s1-short"))
        return engines[-1]

    monkeypatch.setattr(campaign, "Processes", engine)
    with pytest.raises(SweepError):
        campaign.run(tmp_path / "runs", "*", "DATA_DIR", 1)
    known = campaign.records()
    assert list(known) == ["digits-affine-s0-short", "digits-affine-s1-short", "digits-none-s0-short"]
    cell = known["digits-affine-s0-short"]
    assert cell["command"].startswith(
        "stn train digits --data-dir=DATA --transformer=affine --seed=0 --network=mnist_tutorial"
    )
    assert (cell["test_error"], cell["wrong"], cell["images"], cell["control_error"]) == (2.0, [1, 2], 100, 2.0)
    assert cell["machine"]
    assert "instruction_set" in cell
    assert cell["minutes"] == 1.0
    assert known["digits-affine-s1-short"]["control_error"] is None  # it failed, and comes with the next time
    assert "DATA_DIR" not in "".join(file.read_text() for file in (tmp_path / "records").iterdir())
    assert not [words for words in engines[0].words if "--no-report" not in words]

    monkeypatch.setattr(campaign, "Processes", lambda jobs: engines.append(Instant()) or engines[-1])
    campaign.run(tmp_path / "elsewhere", "*", None, 1)  # the files decide, not the runs
    assert [words[2] for words in engines[-1].words] == ["--seed=1"]
    assert campaign.records()["digits-affine-s1-short"]["control_error"] == 2.0

    assert campaign.check(None, "*")
    monkeypatch.setattr(
        campaign, "load_run", lambda folder: load_run(done(folder, load_run(folder).config, (*range(9),)))
    )
    assert not campaign.check(None, "*")  # 9 %, and three deviations of counting around 2 % end at 6.2


def test_processes_run_so_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none is started after the stop."""

    def start(words: list[str], log: Path, folder: Path) -> subprocess.Popen[bytes]:
        # A shell starts what it puts into the background with Ctrl-C ignored, and children inherit that.
        return subprocess.Popen(
            words, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        )

    monkeypatch.setattr("stn_recipes.run.sweep._start", start)
    engine = Processes(2)
    futures = [engine.submit(["sleep", "60"], tmp_path / "log") for _ in range(3)]
    while len(engine.running) < 2:
        time.sleep(0.01)
    engine.stop()
    assert [future.cancelled() or future.result() for future in futures] == [-signal.SIGINT, -signal.SIGINT, True]
    assert not engine.running
