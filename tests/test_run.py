"""Training: runs are whole, repeatable, resumable to the same weights, and nothing in them is executed on loading."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
import tensorboard.compat
import torch
from safetensors.torch import load_file, save_file

import stn
from stn_recipes.config import Transformer
from stn_recipes.data.module import ImageDataModule
from stn_recipes.recipes import RECIPES, recipe
from stn_recipes.run import precision
from stn_recipes.run.folder import RunError, load_run, read_checkpoint
from stn_recipes.run.train import Classification, evaluate, resume, train

# The smallest network on the embedded digits: an epoch takes well under a second.
SMALL = replace(recipe("digits"), network="mnist_tutorial", epochs=3, threads=1, lr=0.05, batch_size=32)
SMALL_ARGUMENTS = ["digits", "--network", "mnist_tutorial", "--epochs", "3", "--threads", "1", "--lr", "0.05"]
SMALL_ARGUMENTS += ["--batch-size", "32"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its control."""
    return train(replace(SMALL, out=str(tmp_path_factory.mktemp("runs") / "run"), control=True))


def stn_process(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "stn_recipes", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_holds_what_it_promises(trained: Path) -> None:
    for folder in (trained, trained / "control"):
        names = {path.name for path in folder.iterdir()}
        assert {"config.yaml", "data.json", "result.json", "model.safetensors", "checkpoints", "logs"} <= names
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert list((folder / "logs" / "csv").glob("version_0/metrics.csv"))
        assert list((folder / "logs" / "tensorboard").glob("events.*"))
    run = load_run(trained)
    assert [m["epoch"] for m in run.metrics()] == [1, 2, 3]
    assert {"train_loss", "val_accuracy", "lr", "transformer_scale"} <= run.metrics()[-1].keys()
    assert run.metrics()[-1]["train_loss"] < run.metrics()[0]["train_loss"]
    kept = run.filmstrip()
    assert kept is not None
    images, theta, epochs = kept
    assert theta.shape == (4, len(images), 6)
    assert epochs.tolist() == [0, 1, 2, 3]
    identity = stn.Affine().identity()
    assert torch.equal(theta[0], identity.expand_as(theta[0]))
    assert not torch.equal(theta[3], theta[0])


def test_tensorboard_does_without_tensorflow(trained: Path) -> None:
    assert list(trained.glob("logs/tensorboard/events.*"))
    assert tensorboard.compat.tf.__version__ == "stub"


def test_penalties_theta_and_antialiasing_reach_the_network() -> None:
    config = replace(SMALL, penalties={"identity": 2.0}, feed_theta=True, antialias=True)
    task = Classification(config.make_model((1, 28, 28), 10), config)
    transformer = task.model.transformer
    assert transformer is not None
    assert transformer.antialias
    with torch.no_grad():
        transformer.localizer.head[-1].bias += 0.25  # six entries: shifts by 0.25, turns and scales
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    task.eval()  # no dropout, so that the two losses differ by the penalty alone
    with_penalty, plain = task._measure("train", (images, labels)), task._measure("val", (images, labels))
    wanted = 2.0 * stn.penalties.identity(transformer.warp(images))
    assert float(wanted) > 0.1
    torch.testing.assert_close(with_penalty - plain, wanted)


def test_a_run_of_four_steps(tmp_path: Path) -> None:
    """Of which torch's one-cycle schedule is undefined."""
    train(replace(SMALL, limit_train=100, batch_size=25, epochs=1, val_fraction=0.05, out=str(tmp_path / "run")))


def test_evaluate_repeats_the_result(trained: Path) -> None:
    for folder in (trained, trained / "control"):
        run = load_run(folder)
        measured = evaluate(run)
        assert measured.test_accuracy == pytest.approx(run.result.test_accuracy, abs=1e-6)
        assert measured.test_loss == pytest.approx(run.result.test_loss, rel=1e-4)
        assert measured.images == 359


def test_the_control_has_no_transformer_and_no_fewer_parameters(trained: Path) -> None:
    run, control = load_run(trained), load_run(trained / "control")
    assert control.model.transformer is None
    assert run.model.transformer is not None
    assert run.result.parameters <= control.result.parameters <= 1.02 * run.result.parameters


def test_the_same_seed_gives_the_same_weights_and_another_does_not(trained: Path, tmp_path: Path) -> None:
    again = train(replace(SMALL, out=str(tmp_path / "again"), num_workers=2))
    assert same(weights(trained), weights(again))
    other = train(replace(SMALL, out=str(tmp_path / "other"), seed=1))
    assert not same(weights(trained), weights(other))


def test_the_test_set_is_read_once_after_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reads: list[bool] = []
    original = ImageDataModule._read

    def read(self: ImageDataModule, train: bool) -> object:
        reads.append(train)
        if not train:
            assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
        return original(self, train)

    monkeypatch.setattr(ImageDataModule, "_read", read)
    train(replace(SMALL, out=str(tmp_path / "run"), epochs=1))
    assert reads == [True, False]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_resumes_to_the_same_weights(how: signal.Signals, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = stn_process("train", *SMALL_ARGUMENTS, "--out", str(folder))
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:1] == ["1"]:
            process.send_signal(how)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (130 if how == signal.SIGINT else -9)
    if how == signal.SIGINT:
        assert f"--resume {folder}" in errors
    assert not (folder / "result.json").exists()
    resume(folder)
    assert same(weights(trained), weights(folder))
    assert load_run(folder).metrics() == load_run(trained).metrics()


def test_resuming_a_finished_run_changes_nothing(trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    resume(trained)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_what_a_resumed_run_cannot_honour_is_refused(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    for finished in (True, False):
        for name, value in (
            ("lr", 0.5),
            ("epochs", 2),
            ("seed", 3),
            ("precision", "bf16-mixed"),
            ("transformer", "tps"),
        ):
            with pytest.raises(ValueError, match=rf"^{name}: expected .*as the run has it, got {value!r}"):
                resume(run, overrides={name: value})
        if finished:
            (run / "result.json").unlink()
    with pytest.raises(ValueError, match="finish it first"):
        resume(run, overrides={"epochs": 40})
    with pytest.raises(ValueError, match=f"stn train --init-from {run}"):
        resume(run, overrides={"lr": 0.5})


def test_a_finished_run_is_extended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a constant rate to the weights of one long run; with another schedule it begins anew, and says so."""
    long = train(replace(SMALL, schedule="constant", epochs=3, out=str(tmp_path / "long")))
    short = train(replace(SMALL, schedule="constant", epochs=2, out=str(tmp_path / "short")))
    resume(short, overrides={"epochs": 3})
    assert "the same as one run of 3" in capsys.readouterr().out
    assert same(weights(long), weights(short))
    assert load_run(short).metrics() == load_run(long).metrics()
    assert load_run(short).result.epochs == load_run(short).config.epochs == 3

    cycle = train(replace(SMALL, epochs=1, seed=1, out=str(tmp_path / "cycle")))
    resume(cycle, overrides={"epochs": 3})
    assert "from 1 to 3 epochs; the onecycle schedule begins anew at epoch 2" in capsys.readouterr().out
    rates = [m["lr"] for m in load_run(cycle).metrics()]
    assert rates[1] > 100 * rates[0]  # up again
    assert rates[2] < 0.01 * rates[1]  # and down to nothing at the end
    down = train(replace(SMALL, epochs=1, schedule="cosine", out=str(tmp_path / "down")))
    resume(down, overrides={"epochs": 3})
    rates = [m["lr"] for m in load_run(down).metrics()]
    assert rates[1] == pytest.approx(SMALL.lr / 2)  # half way down again, from the top
    # Stopped in the extension, it goes on as if it had not been.
    again = copy_of(cycle, tmp_path / "again")
    (again / "result.json").unlink()
    (again / "checkpoints" / "last.ckpt").write_bytes(b"")
    # Of the extension: which of its two epochs is the better one is a matter of rounding, and so of the processor.
    assert read_checkpoint(again / "checkpoints" / "best.ckpt")["epoch"] in (1, 2)
    resume(again)
    assert same(weights(cycle), weights(again))


def test_a_run_starts_from_the_weights_of_another(trained: Path, tmp_path: Path) -> None:
    config = replace(SMALL, init_from=str(trained), lr=0.0, epochs=1, control=True, out=str(tmp_path / "run"))
    run = train(config)
    for part in ("", "control"):  # at a rate of zero only the statistics of batch norm could move
        before, after = load_run(trained / part).model.state_dict(), load_run(run / part).model.state_dict()
        learned = [name for name in before if not re.search("running|num_batches", name)]
        assert same({n: before[n] for n in learned}, {n: after[n] for n in learned})
    with pytest.raises(RunError, match=r"another network than the settings say: .* tensors differ"):
        train(replace(config, network="compact", out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()
    with pytest.raises(RunError, match="expected the folder of a run"):
        train(replace(config, init_from=str(tmp_path), out=str(tmp_path / "other")))


def test_auto_chooses_the_precision_and_a_bad_choice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for capabilities, chosen in (
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": False, "avx2": True}, "32-true"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        assert precision.choose("auto", "cpu") == precision.choose("auto", "auto") == chosen
        assert precision.choose("auto", "mps") == "32-true"
        assert precision.choose("32-true", "cpu") == "32-true"
    with pytest.warns(UserWarning, match="bf16-mixed is emulated on this CPU, 3 to 4 times slower"):
        assert precision.choose("bf16-mixed", "cpu") == "bf16-mixed"


def test_a_run_is_not_written_over(trained: Path) -> None:
    with pytest.raises(RunError, match="already holds a run"):
        train(replace(SMALL, out=str(trained)))


def test_a_run_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    for wrong, said in (({"network": "nope"}, "name: expected one of"), ({"precision": "7-bit"}, "7-bit")):
        with pytest.raises(ValueError, match=said):
            train(replace(SMALL, out=str(tmp_path / "run"), **wrong))
    assert not (tmp_path / "run").exists()


def test_early_stop(tmp_path: Path) -> None:
    # A learning rate of zero never gets better: the second epoch is the last.
    run = train(replace(SMALL, out=str(tmp_path / "run"), lr=0.0, epochs=10, early_stop=1))
    assert load_run(run).result.epochs == 2


def test_two_processes_on_the_cpu(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    distributed = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
    process = stn_process("train", *SMALL_ARGUMENTS, "--out", str(folder), *distributed)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    run = load_run(folder)
    assert [m["epoch"] for m in run.metrics()] == [1, 2, 3]
    # Every test image was seen by exactly one process.
    assert run.result.test_accuracy == pytest.approx(evaluate(run).test_accuracy, abs=1e-6)


def copy_of(run: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(run, to)
    return to


def test_damaged_weights_are_refused(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"model\.safetensors: damaged"):
        _ = load_run(run).model


def test_weights_of_another_network_are_refused(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    save_file(stn.models.create("cifar10_small").state_dict(), run / "model.safetensors")
    with pytest.raises(RunError, match="another network"):
        _ = load_run(run).model


def test_a_damaged_checkpoint_is_refused_on_resume(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    (run / "result.json").unlink()
    file = run / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:-2000])
    best = run / "checkpoints" / "best.ckpt"
    best.write_bytes(b"PK")
    with pytest.raises(RunError, match=r"last\.ckpt: damaged.*best\.ckpt: damaged"):
        resume(run)
    best.unlink()
    with pytest.raises(RunError, match=r"last\.ckpt: damaged"):
        resume(run)


@pytest.mark.parametrize("left", [0, 100, -2000])
def test_a_truncated_checkpoint_gives_way_to_the_best(
    left: int, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(trained, tmp_path / "run")
    (run / "result.json").unlink()
    (run / "model.safetensors").unlink()
    file = run / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:left])
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")["epoch"] + 1
    resume(run)
    said = capsys.readouterr().err
    assert f"{file}: damaged" in said
    assert f"best.ckpt, which is of epoch {best}" in said
    assert same(weights(trained), weights(run))


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_loading_a_checkpoint_executes_nothing(trained: Path, tmp_path: Path) -> None:
    run, marker = copy_of(trained, tmp_path / "run"), tmp_path / "executed"
    torch.save({"state_dict": {}, "epoch": 1, "evil": Malicious(marker)}, run / "checkpoints" / "last.ckpt")
    (run / "result.json").unlink()
    with pytest.raises(RunError, match="damaged, or not a checkpoint"):
        resume(run)
    (run / "model.safetensors").write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(RunError):
        _ = load_run(run).model
    assert not marker.exists()


def test_a_damaged_config_or_result_is_refused(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    (run / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"result\.json: damaged"):
        _ = load_run(run).result
    (run / "config.yaml").write_text("epochs: [")
    with pytest.raises(RunError, match=r"config\.yaml: not the settings"):
        load_run(run)
    (run / "config.yaml").write_text("epochs: none\nimage_size: [64, 64]")
    with pytest.raises(RunError, match=r"config\.yaml: not the settings of a run \(epochs: expected a finite number"):
        load_run(run)
    with pytest.raises(RunError, match="expected the folder of a run"):
        load_run(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_recipes.files import write_text

    file = tmp_path / "file.json"
    write_text(file, "old")

    def fill_the_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as opened:
            opened.write(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_leaves_the_last_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_recipes import files

    original, folder = Path.write_bytes, tmp_path / "run"

    def fill_the_disk(self: Path, content: bytes) -> int:
        if (folder / "checkpoints" / "last.ckpt").exists() and ".last.ckpt" in self.name:
            original(self, bytes(content)[:1000])
            raise OSError(28, "No space left on device")
        return original(self, content)

    monkeypatch.setattr(files.Path, "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        train(replace(SMALL, out=str(folder)))
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["epoch"] == 0
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    monkeypatch.undo()
    resume(folder)
    assert load_run(folder).result.epochs == 3


def test_a_collapse_is_named_while_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A localizer that learns a thousand times too fast, unclipped, runs away within an epoch.
    config = replace(SMALL, epochs=1, localizer_lr_scale=100.0, clip=None, out=str(tmp_path / "run"))
    train(config)
    assert "the transformer shows" in capsys.readouterr().out


def test_localizer_has_its_own_rate_and_biases_no_decay() -> None:
    config = replace(SMALL, weight_decay=0.1, lr=0.5, localizer_lr_scale=0.1, schedule="constant")
    task = Classification(config.make_model((1, 28, 28), 10), config)
    task.trainer = type("T", (), {"estimated_stepping_batches": 10})()  # type: ignore[assignment]
    optimizer = task.configure_optimizers()["optimizer"]
    rates = {id(p): (g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    transformer = task.model.transformer
    assert transformer is not None
    for parameter in task.model.parameters():
        inside = any(parameter is p for p in transformer.localizer.parameters())
        assert rates[id(parameter)] == (pytest.approx(0.05 if inside else 0.5), 0.1 if parameter.ndim > 1 else 0.0)


def test_every_recipe_builds_its_network_and_its_control() -> None:
    shapes = {
        "digits": (1, 28, 28),
        "mnist": (1, 28, 28),
        "mnist_addition": (2, 28, 28),
        "cifar10": (3, 32, 32),
        "gtsrb": (3, 40, 40),
        "images": (3, 64, 64),
    }
    sizes = {"rts": 42, "rts_each": 42, "p": 42, "tc": 60}
    for name in RECIPES:
        config = recipe(name)
        assert config.recipe == name
        if config.learn == "poses":  # its classifier is that of a run, and its own control
            assert config.make_model((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
            continue
        if config.digit is not None:  # it is nothing without its transformer
            assert config.make_model((1, 84, 84), 1)(torch.zeros(2, 1, 84, 84)).shape == (2, 64)
            continue
        channels, side, _ = shapes[config.dataset]
        side = sizes.get(config.distortion or "", side)
        counts = []
        for transformer in (config.transformer, "none"):
            model = replace(config, transformer=transformer).make_model((channels, side, side), 10)  # type: ignore[arg-type]
            assert model(torch.zeros(2, channels, side, side)).shape == (2, 10)
            counts.append(sum(p.numel() for p in model.parameters()))
        assert counts[0] <= counts[1] <= 1.03 * counts[0], name


def test_every_family_can_be_trained_by_name() -> None:
    assert set(get_args(Transformer)) == {*stn.transforms.TRANSFORMS, "none"}


def test_a_family_is_trained_with_options_of_its_own(tmp_path: Path) -> None:
    family = {"name": "similarity", "max_angle": 0.5}
    out = str(tmp_path / "run")
    run = load_run(train(replace(SMALL, transformer=family, epochs=1, limit_train=64, control=True, out=out)))
    assert run.config.transformer == family
    assert run.model.transformer is not None
    assert run.model.transformer.transform.config() == stn.Similarity(max_angle=0.5).config()
    assert run.result is not None
    assert run.result.transformer == "similarity"
    assert load_run(run.path / "control").model.transformer is None
    assert resume(run.path, overrides={"transformer": family}) == run.path
    with pytest.raises(ValueError, match=r"transformer: expected .*'max_angle': 0\.5.*, as the run"):
        resume(run.path, overrides={"transformer": "similarity"})
    with pytest.raises(ValueError, match=r"transformer: options: .*did you mean 'max_angle'\?"):
        replace(SMALL, transformer={"name": "similarity", "max_angel": 0.5})


def test_every_setting_of_a_network_and_of_a_data_set_reaches_it() -> None:
    """Options of the same name; a setting that nobody takes would be ignored in silence."""
    network, data = (set(inspect.signature(of).parameters) for of in (stn.models.create, ImageDataModule))
    elsewhere = {
        "recipe", "preset", "network", "transformer", "penalties", "epochs", "optimizer", "momentum", "lr", "schedule", "warmup",
        "weight_decay", "mixup", "ema", "starts",
        "localizer_lr_scale", "clip", "label_smoothing", "early_stop", "init_from", "schedule_start", "out", "control",
        "accelerator", "devices", "num_nodes", "strategy", "precision", "channels_last", "threads",
        "weights", "freeze", "logger", "learn",
    }  # fmt: skip
    assert {setting.name for setting in fields(SMALL)} - network - data == elsewhere
    config = replace(
        SMALL,
        network="compact",
        batch_size=7,
        val_fraction=0.25,
        limit_train=50,
        seed=3,
        distortion=None,
        pool=2,
        antialias=True,
    )
    module = config.make_data()
    assert (module.batch_size, module.val_fraction, module.limit_train, module.seed) == (7, 0.25, 50, 3)
    assert module.distortion is None
    model = config.make_model((1, 28, 28), 10)
    assert (model.pool.kernel_size, model.transformer.antialias) == (2, True)


def test_results_are_json_with_versions(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert result["versions"]["torch"] == torch.__version__
    assert result["epochs"] == 3
    assert 0 <= result["test_accuracy"] <= 1
