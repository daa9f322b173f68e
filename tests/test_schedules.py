"""Averaged weights, schedules, mixtures, the paper's preset: what they mean, and that a stopped run ends as if it had not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stn_recipes.cli import config_of
from stn_recipes.config import TrainConfig
from stn_recipes.recipes import PRESETS, RECIPES, recipe
from stn_recipes.run import callbacks
from stn_recipes.run.folder import load_run, read_checkpoint
from stn_recipes.run.train import Classification, evaluate, resume, train

TINY = replace(
    recipe("digits"), network="mnist_tutorial", epochs=3, threads=1, lr=0.05, batch_size=50, limit_train=200, clip=None
)

# Each with what it has to hold to: a resumed run ends at the same bits.
VARIANTS = {
    "ema": {"ema": 0.9, "schedule": "constant", "network": "compact"},  # which has batch norm
    "ema_of_onecycle_without_validation": {"ema": 0.9, "val_fraction": 0.0},
    "cosine_warmup": {"schedule": "cosine", "warmup": 1.5},
    "step_warmup": {"schedule": "step", "warmup": 0.5, "optimizer": "adamw", "lr": 0.002},
    "mixup": {"mixup": 0.4, "label_smoothing": 0.1, "momentum": 0.0},
    "everything": {"schedule": "cosine", "warmup": 1.0, "mixup": 0.2, "label_smoothing": 0.05, "ema": 0.99},
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(Exception):
    """In place of the power failing."""


def train_and_kill(config: TrainConfig, epoch: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose process dies in the middle of an epoch, counted from 0."""

    def die(self: callbacks.EpochSeed, trainer: object, module: object, outputs: object, batch: object, i: int) -> None:
        if trainer.current_epoch == epoch and i == 1:  # type: ignore[attr-defined]
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.EpochSeed, "on_train_batch_end", die, raising=False)
        with pytest.raises(Killed):
            train(config)
    return Path(str(config.out))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with none of the options."""
    return train(replace(TINY, epochs=2, out=str(tmp_path_factory.mktemp("runs") / "plain")))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_killed_run_resumes_to_the_same_weights(
    name: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, epochs=2, **VARIANTS[name])  # type: ignore[arg-type]
    whole = train(replace(config, out=str(tmp_path / "whole")))
    killed = train_and_kill(replace(config, out=str(tmp_path / "killed")), 1, monkeypatch)
    assert not (killed / "result.json").exists()
    resume(killed)
    assert same(weights(whole), weights(killed))
    assert load_run(whole).metrics() == load_run(killed).metrics()
    assert not same(weights(whole), weights(plain)), "the options changed nothing"


def test_the_average_is_the_result(tmp_path: Path) -> None:
    """By hand: the same training, averaged after every step."""
    config = replace(TINY, schedule="constant", epochs=2, ema=0.9, out=str(tmp_path / "run"))
    run = load_run(train(config))
    checkpoint = read_checkpoint(run.path / "checkpoints" / "last.ckpt")
    final = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    assert same(final, weights(run.path))
    going_on = {name.removeprefix("model."): value for name, value in checkpoint["current_model_state"].items()}
    plain = weights(train(replace(config, ema=None, out=str(tmp_path / "plain"))))
    assert same(going_on, plain), "averaging changed the training"

    class Kept(callbacks.EpochSeed):
        steps: list[dict[str, torch.Tensor]] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer: object, module: Classification, *_: object) -> None:  # type: ignore[override]
            self.steps.append({name: value.clone() for name, value in module.model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stn_recipes.run.train.EpochSeed", Kept)
        train(replace(config, ema=None, out=str(tmp_path / "kept")))
    assert len(Kept.steps) == 8
    average = Kept.steps[0]
    for count, step in enumerate(Kept.steps[1:], start=1):
        decay = min(0.9, (1 + count) / (10 + count))
        average = {name: decay * average[name] + (1 - decay) * value for name, value in step.items()}
    for name, value in weights(run.path).items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-6)
    # What evaluates, predicts and reports reads these weights; the film ends with them, too.
    assert evaluate(run).test_accuracy == pytest.approx(run.result.test_accuracy, abs=1e-6)
    images, theta, _ = run.filmstrip()
    torch.testing.assert_close(run.model.transformer.warp(images).theta.detach(), theta[-1], rtol=1e-4, atol=1e-5)


def test_a_finished_average_is_extended(tmp_path: Path) -> None:
    config = replace(TINY, schedule="constant", ema=0.9, epochs=3)
    long = train(replace(config, out=str(tmp_path / "long")))
    short = train(replace(config, epochs=2, out=str(tmp_path / "short")))
    resume(short, overrides={"epochs": 3})
    assert same(weights(long), weights(short))


def rates(config: TrainConfig, steps: int) -> list[float]:
    """The learning rate of the classifier at each step."""
    task = Classification(config.make_model((1, 28, 28), 10), config)
    task.trainer = type("T", (), {"estimated_stepping_batches": steps})()  # type: ignore[assignment]
    made = task.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(max(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        scheduler.step()
    return found


def test_schedules() -> None:
    config = replace(TINY, lr=1.0, epochs=10)
    step = rates(replace(config, schedule="step"), 30)
    assert step == pytest.approx([1.0] * 10 + [0.1] * 10 + [0.01] * 10)
    warm = rates(replace(config, schedule="step", warmup=1.0), 33)
    assert warm == pytest.approx([1 / 3, 5 / 9, 7 / 9, *[1.0] * 10, *[0.1] * 10, *[0.01] * 10])
    cosine = rates(replace(config, schedule="cosine", warmup=2.0), 100)
    assert cosine[0] == pytest.approx(1 / 20)
    assert cosine[20] == max(cosine) == pytest.approx(1.0)
    assert cosine[60] == pytest.approx(0.5, abs=1e-6)
    assert cosine[-1] < 0.001


def test_the_warmup_of_an_extended_run_begins_anew(tmp_path: Path) -> None:
    config = replace(TINY, schedule="cosine", warmup=1.5, epochs=2, out=str(tmp_path / "run"))
    run = train(config)
    resume(run, overrides={"epochs": 4})
    seen = [m["lr"] for m in load_run(run).metrics()]
    assert seen[2] == pytest.approx(TINY.lr * (1 / 6 + 5 / 6 * 4 / 6), rel=1e-4)  # 4 of the 6 steps up
    assert seen[3] == pytest.approx(0.0, abs=1e-8)


def test_mixtures_of_images_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Classification(TINY.make_model((1, 28, 28), 10), replace(TINY, mixup=0.5)).eval()
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(0.25))
    monkeypatch.setattr(torch, "randperm", lambda n: torch.tensor([1, 2, 3, 0]))
    loss = task.training_step((images, labels), 0)
    mixed = task(0.75 * images + 0.25 * images.roll(-1, 0)).log_softmax(1)
    rows = torch.arange(4)
    wanted = -(0.75 * mixed[rows, labels] + 0.25 * mixed[rows, labels.roll(-1)]).mean()
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ema": 1.0}, r"ema: expected a number in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum: expected a number in \[0, 1\), got -0.1"),
        ({"mixup": -1.0}, "mixup: expected a finite number of at least 0.0, got -1.0"),
        ({"warmup": 1.0}, "warmup: expected 0 with schedule='onecycle', got 1.0"),
        ({"schedule": "cosine", "warmup": 3.0}, "warmup: expected less than 3 epochs, got 3.0"),
    ],
)
def test_what_no_run_can_have_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        replace(TINY, **options)  # type: ignore[arg-type]


def test_the_preset_of_the_paper() -> None:
    assert set(PRESETS["paper"]) == {name for name in RECIPES if name.startswith("mnist_")} - {"mnist_addition"}
    for name, config in PRESETS["paper"].items():
        assert (config.recipe, config.preset) == (name, "paper")
        side = {"mnist_rts": 42, "mnist_p": 42, "mnist_tc": 60}.get(name, 28)
        for network in ("st_cnn", "st_fcn"):
            for transformer in ("tps", "none"):
                model = replace(config, network=network, transformer=transformer).make_model((1, side, side), 10)  # type: ignore[arg-type]
                assert 380_000 <= sum(p.numel() for p in model.parameters()) <= 420_000, (name, network, transformer)
    config = config_of(["mnist_rts", "--preset", "paper", "--transformer", "tps", "--seed=3"])
    assert (config.network, config.pool, config.transformer, config.seed) == ("st_cnn", 2, "tps", 3)
    # 150k iterations of 60,000 images in batches of 256, a tenth of the rate after each 50k
    steps = -(-60_000 // config.batch_size) * config.epochs
    assert steps == pytest.approx(150_000, rel=0.005)
    seen = rates(replace(config, network="mnist_tutorial", pool=1, epochs=640), 640)
    assert seen == pytest.approx([0.01] * 213 + [0.001] * 213 + [0.0001] * 214)
    assert config_of(["mnist_rts"]) == recipe("mnist_rts")
    with pytest.raises(
        ValueError, match=r"preset: expected a recipe that has 'paper', which are mnist_r, .* got 'digits'"
    ):
        config_of(["digits", "--preset=paper"])
