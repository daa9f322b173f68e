"""The recipe that learns poses in front of a classifier that is not touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stn
from stn_recipes.cli import config_of
from stn_recipes.recipes import recipe
from stn_recipes.report import write_report
from stn_recipes.run.folder import RunError, load_run
from stn_recipes.run.poses import Poses
from stn_recipes.run.train import evaluate, resume, train

UPRIGHT = replace(
    recipe("digits"), transformer="none", distortion=None, network="mnist_tutorial", epochs=4, threads=1, lr=0.05, batch_size=32,
    seed=3, progress=False,
)  # fmt: skip


@pytest.fixture(scope="session")
def upright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(replace(UPRIGHT, out=str(tmp_path_factory.mktemp("runs") / "upright")))


@pytest.fixture(scope="session")
def robust(upright: Path) -> Path:
    words = ["robustify", "--init-from", str(upright), "--epochs", "2", "--threads", "1", "--batch-size", "64"]
    return train(replace(config_of(words), out=str(upright.parent / "robust"), progress=False))


def test_the_data_and_the_network_are_those_of_the_run(upright: Path, robust: Path) -> None:
    config = load_run(robust).config
    assert (config.dataset, config.network, config.seed, config.val_fraction) == (
        "digits", "mnist_tutorial", 3, UPRIGHT.val_fraction,
    )  # fmt: skip
    assert (config.learn, config.transformer, config.optimizer, config.epochs) == ("poses", "rotation", "adamw", 2)
    assert config.augment is None
    assert load_run(robust).facts == load_run(upright).facts


def test_the_classifier_is_not_touched(upright: Path, robust: Path) -> None:
    before, after = (load_file(run / "model.safetensors") for run in (upright, robust))
    kept = {name: value for name, value in after.items() if name.startswith("classifier.")}
    assert kept.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in kept.items())
    start = load_run(robust).config.make_model((1, 28, 28), 10).state_dict()
    learned = [name for name in after if not torch.equal(after[name], start[name]) and name not in kept]
    assert any(name.startswith("transformer.localizer.offset") for name in learned)
    assert any(name.startswith("transformer.localizer.likely") for name in learned)


def test_in_training_the_classifier_is_not(robust: Path) -> None:
    config = replace(load_run(robust).config, network="compact")  # with batch norm and dropout
    task = Poses(config.make_model((1, 28, 28), 10), config).train()  # type: ignore[arg-type]
    assert not any(module.training for module in task.model.classifier.modules())
    assert not any(parameter.requires_grad for parameter in task.model.classifier.parameters())
    assert task.localizer.training
    assert all(parameter.requires_grad for parameter in task.localizer.parameters())


def test_what_it_reached_is_in_the_result_and_on_the_page(upright: Path, robust: Path) -> None:
    result = load_run(robust).result
    assert result is not None
    assert result.robust is not None
    assert list(result.robust) == [
        "as it is", "localizer", "localizer, gate", "search", "search, gate", "mean over copies",
    ]  # fmt: skip
    was = load_run(upright).result
    assert was is not None
    assert result.robust["as it is"]["upright"] == pytest.approx(was.test_accuracy)
    assert result.robust["localizer"]["upright"] == pytest.approx(result.test_accuracy)
    assert result.robust["as it is"]["posed"] < was.test_accuracy - 0.2
    assert result.robust["search"]["passes"] == result.robust["mean over copies"]["passes"] == 23
    for way in ("localizer, gate", "search, gate"):
        assert result.robust[way]["upright"] > was.test_accuracy - 0.06
    assert evaluate(load_run(robust)).test_accuracy == pytest.approx(result.test_accuracy)
    page = write_report(robust).read_text()
    assert 'id="poses"' in page
    assert f"{100 * result.robust['search']['posed']:.2f}%" in page
    assert 'id="poses"' not in write_report(upright).read_text()


def test_it_goes_on_where_it_was_stopped(robust: Path, tmp_path: Path) -> None:
    config = load_run(robust).config
    whole = load_file(robust / "model.safetensors")
    run = train(replace(config, out=str(tmp_path / "again"), schedule="constant", epochs=1))
    resume(run, overrides={"epochs": 2})
    other = train(replace(config, out=str(tmp_path / "whole"), schedule="constant"))
    a, b = (load_file(path / "model.safetensors") for path in (run, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert a.keys() == whole.keys()


def test_from_a_file_of_weights(upright: Path, tmp_path: Path) -> None:
    before = load_file(upright / "model.safetensors")
    save_file({name.removeprefix("classifier."): value for name, value in before.items()}, tmp_path / "own.safetensors")
    words = ["robustify", "--weights", str(tmp_path / "own.safetensors"), "--dataset", "digits", "--epochs", "1"]
    words += ["--widen", str(UPRIGHT.widen).lower(), "--quick"]
    run = train(replace(config_of(words), out=str(tmp_path / "run"), threads=1, progress=False, seed=3))
    after = load_file(run / "model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_transformer_goes_on_alone(robust: Path) -> None:
    model = load_run(robust).classifier
    assert isinstance(model.transformer, stn.SpatialTransformer)
    straight, guesses = model.transformer, model.transformer.localizer
    assert isinstance(guesses, stn.PoseLocalizer)
    guesses.count = 3
    again = stn.canonicalize(model.classifier, straight.transform, starts=0, steps=0, localizer=guesses)
    assert again(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_hub_does_not_take_it(robust: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from stn_recipes.publish import classifier

    with pytest.raises(RunError, match="learned from labels"):
        classifier(load_run(robust))


def test_a_run_that_cannot_be_is_refused(upright: Path, tmp_path: Path) -> None:
    poses = replace(
        recipe("robustify"), dataset="digits", network="mnist_tutorial", threads=1, epochs=1, progress=False
    )
    with pytest.raises(ValueError, match="learn: expected the classifier"):
        train(replace(poses, out=str(tmp_path / "a")))
    with pytest.raises(ValueError, match="learn: expected labels"):
        replace(poses, control=True)
    with pytest.raises(ValueError, match="learn: expected labels"):
        replace(poses, transformer="none")
    with pytest.raises(ValueError, match="max_scale"):
        train(replace(poses, transformer="similarity", init_from=str(upright), out=str(tmp_path / "b")))
    other = train(replace(UPRIGHT, transformer="rotation", epochs=1, quick=True, out=str(tmp_path / "c")))
    with pytest.raises(RunError, match="init_from: expected a run without a transformer"):
        train(replace(poses, init_from=str(other), out=str(tmp_path / "d")))
    assert not (tmp_path / "d").exists()
