"""The weights that come with the package: whole, as accurate as their records say, and at hand by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil

import pytest
import torch

from stn import models
from stn.models import pretrained
from stn_recipes import cli
from stn_recipes.run.folder import load_run_or_pretrained
from stn_recipes.run.train import evaluate

NAMES = models.pretrained_names()
DATA = os.environ.get("STN_MNIST")  # a folder with MNIST's official files


def wrong(run, **settings):
    run.config = dataclasses.replace(run.config, **settings)
    measured = evaluate(run)
    return round((1 - measured.test_accuracy) * measured.images), measured.images


def test_they_are_small():
    assert NAMES
    files = [pretrained.FOLDER / name / "model.safetensors" for name in NAMES]
    assert sum(file.stat().st_size for file in files) <= 2 << 20


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_the_one_of_the_record(name):
    said = pretrained.record(name)
    content = (pretrained.FOLDER / name / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == said["sha256"]
    model = models.create(name, pretrained=True)
    assert isinstance(model, models.LabelledClassifier)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == said["parameters"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.transformer.transform.config()["name"] == said["transformer"]
    assert f"{100 * len(said['wrong']) / said['images']:.2f} %" in (pretrained.FOLDER / name / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in NAMES if pretrained.record(name)["digits"]])
def test_the_accuracy_on_the_digits_that_anyone_has(name):
    said = pretrained.record(name)["digits"]
    got, images = wrong(load_run_or_pretrained(name), dataset="digits")
    assert images == said["images"]
    assert abs(got - said["wrong"]) <= 1  # roundings differ between processors


@pytest.mark.skipif(DATA is None, reason="STN_MNIST names no folder with MNIST's official files")
@pytest.mark.parametrize("name", NAMES)
def test_the_accuracy_on_the_whole_test_set(name):
    said = pretrained.record(name)
    own = {} if said["settings"]["dataset"] == "digits" else {"data_dir": DATA}
    got, images = wrong(load_run_or_pretrained(name), **own)
    assert images == said["images"]
    assert abs(got - len(said["wrong"])) <= 2


def test_what_is_asked_for_wrongly():
    with pytest.raises(ValueError, match="name: expected one of"):
        models.create("compact", pretrained=True)
    with pytest.raises(ValueError, match="name: expected one of"):
        models.create("mnist_r")
    with pytest.raises(ValueError, match="transform: expected none beside pretrained, got 'tps'"):
        models.create(NAMES[0], pretrained=True, transform="tps")
    with pytest.raises(ValueError, match="pretrained: expected"):
        models.create(NAMES[0], pretrained=1)


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    shutil.copytree(pretrained.FOLDER / NAMES[0], tmp_path / NAMES[0])
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    assert models.pretrained_names() == NAMES[:1]
    file = tmp_path / NAMES[0] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        models.create(NAMES[0], pretrained=True)


def test_the_commands_take_their_names(tmp_path, monkeypatch, capsys):
    from PIL import Image

    from stn_recipes.data.registry import load

    monkeypatch.chdir(tmp_path)
    _, test = load("digits")
    for place in range(5):
        Image.fromarray(test.images[place, 0].numpy()).save(f"{place}.png")
    assert cli.main(["predict", "mnist_r", *(f"{place}.png" for place in range(5)), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert sum(row["class"] == str(int(label)) for row, label in zip(rows, test.labels[:5], strict=True)) >= 4
    assert (tmp_path / "mnist_r" / "predictions" / "0.rectified.png").exists()
    assert cli.main(["models", "--pretrained"]) == 0
    assert "mnist_r" in capsys.readouterr().out
    assert cli.main(["predict", "mnist_x", "0.png"]) == 1
    assert "expected the folder of a run" in capsys.readouterr().err


def test_the_hub_reads_the_folder():
    hub = pytest.importorskip("stn.hub")
    model = models.create(NAMES[0], pretrained=True)
    images = torch.rand(2, *model.settings["in_shape"])
    back = hub.Classifier.from_pretrained(pretrained.FOLDER / NAMES[0])
    assert torch.equal(back(back.normalize(images)), model(model.normalize(images)))
