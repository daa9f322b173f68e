"""Recipes of a user's own parts: families, networks, data sets and distortions by import path, with options."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import stn
from stn.hub import Classifier
from stn.models import OWN
from stn.transforms import TRANSFORMS
from stn_recipes import cli
from stn_recipes.config import TrainConfig
from stn_recipes.data import distortions
from stn_recipes.data.registry import AbstractDataSet, get
from stn_recipes.export import export
from stn_recipes.names import import_paths, is_import_path, label
from stn_recipes.publish import command, publish
from stn_recipes.recipes import recipe
from stn_recipes.report import write_report
from stn_recipes.report.table import read_table
from stn_recipes.run import loggers
from stn_recipes.run.folder import RunError, load_run
from stn_recipes.run.sweep import product
from stn_recipes.run.train import Classification, evaluate, resume, train

SMALL = replace(
    recipe("digits"), network="mnist_tutorial", epochs=1, threads=1, lr=0.05, limit_train=64, progress=False
)
MODULE = '''
import torch
from torch import nn

import stn
from stn_recipes.data.registry import AbstractDataSet, ImageData, get


class Spiral(stn.AbstractTransform):
    def __init__(self, turns: float = 1.0) -> None:
        super().__init__()
        self.turns = turns

    @property
    def num_params(self):
        return 1

    def identity(self):
        return torch.zeros(1)

    def map_points(self, theta, points, frame=stn.coordinates.SQUARE):
        theta = self.check_theta(theta)
        points = self.check_points(theta, points)
        angle = self.turns * theta[:, None] * (-points.square().sum(-1, keepdim=True)).exp()
        x, y = points.split(1, -1)
        return torch.cat([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1)


def net(in_shape, num_classes, width=8):
    return nn.Sequential(
        nn.Conv2d(in_shape[0], width, 5, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )


class Bright(AbstractDataSet):
    """The digits, brighter."""

    name, background = "bright", "zeros"

    def __init__(self, by: int = 1) -> None:
        self.by = by

    def download(self):
        pass

    def read(self, source, *, train):
        data = get("digits").read(source, train=train)
        return ImageData((data.images // 2 + self.by).to(torch.uint8), data.labels, data.class_names)


def darken(images, random, strength=0.5):
    return images * (1 - strength * random[:, :1, None, None])
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of a user's own in the current folder, gone again afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE)
    path, families, networks = list(sys.path), dict(TRANSFORMS), dict(OWN)
    yield tmp_path
    sys.modules.pop("mine", None)
    sys.path[:] = path
    for registry, before in ((TRANSFORMS, families), (OWN, networks)):
        registry.clear()
        registry.update(before)  # type: ignore[attr-defined]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


# Options on the command line


@pytest.mark.parametrize(
    ("words", "transformer"),
    [
        (["--transformer", "similarity", "--transformer.max-angle", "1.6"], {"name": "similarity", "max_angle": 1.6}),
        (["--transformer.max-angle=1.6", "--transformer=similarity"], {"name": "similarity", "max_angle": 1.6}),
        (["--transformer.max_delta", "0.5"], {"name": "affine", "max_delta": 0.5}),  # the recipe's own family
        (["--config", "tps.yaml", "--transformer.max-offset", "0.5"], {"name": "tps", "max_offset": 0.5}),
        (["--config", "rigid.yaml", "--transformer.max-angle", "2"], {"name": "rigid", "max_shift": 0.5, "max_angle": 2}),
        (["--config", "rigid.yaml", "--transformer", "rotation", "--transformer.max-angle", "2"], {"name": "rotation", "max_angle": 2}),
        (["--transformer", "affine", "--transformer.fixed", "[[1, null, 0], [0, 1, 0]]"], {"name": "affine", "fixed": [[1, None, 0], [0, 1, 0]]}),
        (
            ["--transformer", "compose", "--transformer.outer", "tps", "--transformer.outer.max-offset", "0.5"],
            None,
        ),
    ],
)  # fmt: skip
def test_options_of_a_family_on_the_command_line(
    words: list[str], transformer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tps.yaml").write_text("transformer: tps\n")
    Path("rigid.yaml").write_text("transformer: {name: rigid, max_shift: 0.5, max_angle: 1.0}\n")
    if transformer is None:  # families in families are of YAML alone
        with pytest.raises(SystemExit):
            cli.config_of(["digits", *words])
        return
    config = cli.config_of(["digits", *words])
    assert config.transformer == transformer
    family = config.make_family()
    assert family is not None
    assert transformer.items() <= family.config().items()  # type: ignore[attr-defined]
    assert yaml.safe_load(yaml.safe_dump(config.as_plain()))["transformer"] == transformer


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--transformer", "similarity", "--transformer.max-angel", "1"], 1, "did you mean 'max_angle'?"),
        (["--transformer", "similarity", "--transformer.max-angle", "wide"], 1, "transformer: max_angle: expected None or a finite number above 0, got 'wide'"),
        (["--transformer", "similarty", "--transformer.max-angle", "1"], 2, "did you mean 'similarity'?"),
        (["--transformer", "none", "--transformer.max-angle", "1"], 1, "transformer: expected no options of none"),
        (["--transformer.max-angle"], 1, "--transformer.max_angle: expected a value"),
        (["--distortion.x", "1", "--distortion", "null"], 1, "distortion: expected a name for the options x, got None"),
        (["--network", "mnist_tutorial", "--network.width", "3"], 1, "name: expected no options of 'mnist_tutorial', got width"),
        (["--dataset.size", "3"], 1, "dataset: expected no options of digits, got size"),
        (["--distortion", "rts", "--distortion.degree", "3"], 1, "options of 'rts'"),
        (["--transformer", "a:b:c"], 2, "--transformer: expected one of affine"),
        (["--network", "a/b:c"], 1, "network: expected an import path such as package.module:name, got 'a/b:c'"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_named(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    got, _, err = run(capsys, "train", "digits", *words)
    assert (got, said in err) == (code, True), err
    assert not list(tmp_path.iterdir())


class InLine:
    """An engine that trains in this process, which has torch loaded already."""

    def __init__(self, jobs: int) -> None: ...

    def submit(self, words: list[str], log: Path) -> Future[int]:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        future: Future[int] = Future()
        future.set_result(cli.main(["train", *words]))
        return future

    def stop(self) -> None: ...


def test_options_are_trained_with_swept_and_told_apart_in_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stn_recipes.run.sweep.Processes", InLine)
    words = ["--network", "mnist_tutorial", "--epochs", "1", "--limit-train", "64", "--threads", "1", "--no-report"]
    options = ["--transformer", "similarity,none", "--transformer.max-angle", "0.5,1.6"]
    code, _, err = run(capsys, "sweep", "digits", *options, *words, "--out", "out")
    assert code == 0, err
    names = {f"digits-similarity-s0-transformer.max_angle={angle}" for angle in ("0.5", "1.6")} | {"digits-none-s0"}
    assert {file.parent.name for file in Path("out").glob("*/result.json")} == names
    bounded = load_run(Path("out/digits-similarity-s0-transformer.max_angle=1.6"))
    assert bounded.model.transformer is not None
    assert bounded.model.transformer.transform.config() == stn.Similarity(max_angle=1.6).config()
    table = read_table(Path("out"))
    assert table.keys("column") == [("similarity max_angle=0.5",), ("similarity max_angle=1.6",), ("none",)]
    assert all(cell.control is not None for cell in table.cells if cell.column != ("none",))


def test_labels_are_short_and_plain() -> None:
    assert label("tps") == "tps"
    assert label({"name": "tps", "control_points": [3, 3]}) == "tps control_points=[3, 3]"
    assert is_import_path("a.b:C.d")
    assert not any(
        map(is_import_path, ("a", "a.b", "a:", ":b", "a b:c", "timm:resnet18", "a:b\n", "a/b:c", "https://a:b"))
    )
    nested = {"name": "compose", "outer": {"name": "m:A"}, "inner": {"name": "n:B", "kept": {"deep": "o:C"}}}
    assert list(import_paths({"transformer": nested})) == ["m:A", "n:B", "o:C"]


# Parts of one's own


def test_parts_of_ones_own_from_the_command_line(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--transformer",
        "mine:Spiral",
        "--transformer.turns",
        "2.5",
        "--network",
        "mine:net",
        "--network.width",
        "6",
    ]
    words += [
        "--dataset",
        "mine:Bright",
        "--dataset.by",
        "3",
        "--distortion",
        "mine:darken",
        "--distortion.strength",
        "0.25",
        "--augment",
        "affine",
        "--augment.degrees",
        "25",
    ]
    quick = ["--quick", "--epochs", "1", "--limit-train", "64", "--threads", "1", "--control"]
    code, out, err = run(capsys, "train", "digits", *words, *quick)
    assert code == 0, err
    assert "mine:net width=6, Spiral transformer" in out
    assert "The control without a transformer, the network as it is" in out
    folder = Path("runs/digits-Spiral-s0")
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert kept["transformer"] == {"name": "mine:Spiral", "turns": 2.5}
    assert kept["distortion"] == {"name": "mine:darken", "strength": 0.25}
    assert kept["augment"] == {"name": "affine", "degrees": 25}
    assert (kept["network"], kept["dataset"]) == ({"name": "mine:net", "width": 6}, {"name": "mine:Bright", "by": 3})
    assert not (folder / "report.html").exists()  # a quick try

    made = load_run(folder, trust=True)
    assert made.model.transformer is not None
    assert made.model.transformer.transform.config() == {"name": "mine:Spiral", "turns": 2.5}
    assert made.model.classifier[0].out_channels == 6
    assert load_run(folder / "control", trust=True).model.transformer is None
    plain = get("digits").read(made.data._source(), train=False)
    test = made.data.test_data()
    assert torch.equal(test.data.images, plain.images // 2 + 3)
    assert test.distortion.name == "mine:darken"  # type: ignore[union-attr]
    darkest = (test[list(range(50))][0] * torch.tensor(made.facts.std) + torch.tensor(made.facts.mean)).amax((1, 2, 3))
    brightest = test.data.images[:50].amax((1, 2, 3)) / 255
    assert ((darkest <= brightest + 1e-5) & (darkest >= 0.75 * brightest - 1e-5)).all()
    assert not torch.allclose(darkest, brightest, atol=0.01)

    # A run is read without executing anything; only who trusts it has its code imported.
    sys.modules.pop("mine")
    needs = (
        ["evaluate", str(folder)], ["predict", str(folder), "x.png"], ["export", str(folder), "--to", "onnx"],
        ["train", "--resume", str(folder), "--epochs", "2"], ["train", "--init-from", str(folder)],
    )  # fmt: skip
    for asked in needs:
        code, _, err = run(capsys, *asked)
        assert code == 1
        assert f"{folder}: its settings name code to import, mine:Spiral, mine:net, mine:Bright, mine:darken" in err
        assert "--trust" in err
        assert "mine" not in sys.modules
    with pytest.raises(RunError, match=r"expected a (transformer|network) that others have"):
        publish(folder, out="published")
    assert run(capsys, "compare", str(folder), str(folder / "control"))[0] == 0
    page = write_report(folder)
    assert "its settings name code to import" in page.read_text()
    assert "mine" not in sys.modules

    # And whoever does finds all of it again.
    code, out, err = run(capsys, "evaluate", str(folder), "--trust", "--json")
    assert code == 0, err
    assert made.result is not None
    assert json.loads(out)["test_accuracy"] == pytest.approx(made.result.test_accuracy, abs=1e-6)
    Image.new("L", (28, 28)).save("x.png")
    code, out, err = run(capsys, "predict", str(folder), "x.png", "--trust", "--json")
    assert (code, json.loads(out)[0]["class"] in "0123456789") == (0, True), err
    assert "its settings name code to import" not in write_report(folder, trust=True).read_text()
    assert export(folder, "pt2", trust=True)[1] < 1e-4
    code, _, err = run(capsys, "train", "--resume", str(folder), "--epochs", "2", "--trust", "--no-report")
    assert code == 0, err
    assert load_run(folder).result.epochs == 2  # type: ignore[union-attr]
    code, _, err = run(capsys, "train", "--init-from", str(folder), "--epochs", "1", "--trust", "--no-report")
    assert code == 0, err
    # Without its module it is refused by name.
    (mine / "mine.py").unlink()
    sys.modules.pop("mine")
    code, _, err = run(capsys, "evaluate", str(folder), "--trust")
    assert (code, "expected 'mine:Spiral' to be importable" in err) == (1, True), err


def test_what_is_named_has_to_be_of_its_kind(mine: Path) -> None:
    for settings, said in (
        ({"transformer": "mine:net"}, "transformer: expected a family, a subclass of stn.AbstractTransform"),
        ({"transformer": "stn:AbstractTransform"}, "transformer: expected a family"),
        ({"transformer": "os:system"}, "transformer: expected a family"),
        ({"transformer": "mine:Bright"}, "transformer: expected a family"),
        ({"transformer": "mine:Spirl"}, "transformer: expected 'Spirl' in mine.*did you mean 'Spiral'"),
        ({"transformer": "nowhere.at.all:Spiral"}, "transformer: expected 'nowhere.at.all:Spiral' to be importable"),
        ({"transformer": {"name": "mine:Spiral", "turn": 1.0}}, "has no option 'turn'.*did you mean 'turns'"),
        ({"network": {"name": "mine:net", "depth": 3}}, "name: mine:net cannot be called with .*depth"),
        ({"network": "mine:darken"}, "name: mine:darken cannot be called"),
        ({"network": {"name": "mine:net", "at": "9"}}, "at: expected the name of a layer"),
        ({"network": {"name": "mine:net", "at": "7"}}, "at: expected a layer that takes feature maps"),
        ({"network": {"name": "mine:net", "at": "3"}, "size": 14}, "size: expected None before a layer"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(SMALL, **settings).make_model((1, 28, 28), 10)  # type: ignore[arg-type]
    for settings, said in (
        ({"dataset": "mine:net"}, "dataset: expected an instance or a subclass of AbstractDataSet"),
        ({"dataset": {"name": "mine:Bright", "to": 3}}, "dataset: mine:Bright cannot be made: .*'to'"),
        ({"distortion": {"name": "mine:darken", "much": 3}}, "distortion: mine:darken cannot be called so: .*'much'"),
        ({"distortion": "mine:Bright"}, "distortion: expected a function of images and random numbers"),
        ({"augment": {"name": "mine:darken", "much": 3}}, "augment: mine:darken cannot be called so: .*'much'"),
        ({"augment": {"name": "affine", "turn": 3}}, "options of 'affine': .*'turn'"),
        ({"distortion": "mine:torch"}, "distortion: expected a function of images"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(SMALL, **settings).make_data()  # type: ignore[arg-type]
    OWN["mine:bad"] = lambda in_shape, num_classes: nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    with pytest.raises(
        ValueError, match=r"name: expected of mine:bad logits \(B, 10\), got a tensor of shape \(1, 3\)"
    ):
        stn.models.create("mine:bad", in_shape=(1, 28, 28))
    with pytest.raises(ValueError, match="distortion: expected of mine:turn"):
        distortions.OwnDistortion("mine:turn", lambda images, random: images.mT[:, :, 1:])(
            torch.rand(2, 1, 5, 5), torch.rand(2, 16)
        )
    assert isinstance(get("mine:Bright"), AbstractDataSet)


def test_a_transformer_before_a_layer(mine: Path) -> None:
    """It warps the features; what it does to them is shown on the image."""
    config = replace(SMALL, network={"name": "mine:net", "at": "3"}, transformer="rotation")
    model = config.make_model((1, 28, 28), 10).eval()
    image = torch.rand(3, 1, 28, 28)
    bare = replace(config, transformer="none", network="mine:net").make_model((1, 28, 28), 10).eval()
    bare.classifier.load_state_dict(model.classifier.state_dict())  # the names are the network's own
    with torch.no_grad():
        torch.testing.assert_close(model(image), bare(image), rtol=0, atol=1e-5)  # at the identity
        model.transformer.localizer.head[-1].bias += 0.5
        features = model.classifier[:3](image)
        assert model.transformer.localizer(features).shape == (3, 1)
        wanted = bare.classifier[3:](model.transformer(features))
        torch.testing.assert_close(model(image), wanted)
        logits, warp = model.look(image)
        torch.testing.assert_close(logits, wanted)
        assert not torch.allclose(logits, bare(image), atol=1e-4)
        torch.testing.assert_close(
            warp.output, stn.warp(image, warp.theta, transform=stn.Rotation(), padding_mode="border")
        )
        torch.testing.assert_close(model.warp(image).theta, model.transformer.theta(features))
    assert len(list(model.transformer.parameters())) + len(list(model.classifier.parameters())) == len(
        list(model.parameters())
    )
    done = load_run(train(replace(config, out=str(mine / "deep"))), trust=True)
    assert done.result is not None
    assert evaluate(done).test_accuracy == pytest.approx(done.result.test_accuracy, abs=1e-6)
    assert export(done.path, "onnx", trust=True)[1] < 1e-4
    with pytest.raises(ValueError, match="at: expected None but for one transformer"):
        stn.models.create({"name": "mine:net", "at": "3"}, in_shape=(1, 28, 28), pool=2)


# A quick try


def test_a_quick_try_is_small(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = cli.config_of(["mnist_r", "--quick"])
    assert (config.quick, config.epochs) == (True, 2)
    assert cli.config_of(["mnist_r", "--quick", "--epochs", "5"]).epochs == 5
    assert product(["digits"], {"quick": ["true"]}, cli.config_of)[0].config.quick
    assert not product(["digits"], {"quick": ["false"]}, cli.config_of)[0].config.quick
    data = replace(recipe("digits"), quick=True).make_data()
    assert (len(data.train_data()), len(data.val_data() or ()), len(data.test_data())) == (1000, 216, 359)
    module = sys.modules[type(data).__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUICK_EVAL", 100)
        few = replace(recipe("digits"), quick=True, seed=5).make_data()
        assert (len(few.val_data() or ()), len(few.test_data())) == (100, 100)
        assert set(few.test_data().targets.tolist()) == set(range(10))
        other = replace(recipe("digits"), quick=True, seed=6).make_data().test_data()
        assert torch.equal(few.test_data().data.images, other.data.images)
    own = ["--network", "mnist_tutorial", "--threads", "1", "--limit-train", "50", "--epochs", "1"]
    code, _, err = run(capsys, "train", "digits", "--quick", *own, "--report", "--out", str(tmp_path / "run"))
    assert (code, (tmp_path / "run" / "report.html").exists()) == (0, True), err


# Sweeps of one's own parts


def test_sweeps_name_folders_by_the_part_and_trust_what_they_were_told(mine: Path) -> None:
    runs = product(
        ["digits"], {"transformer": ["mine:Spiral", "none"], "network": ["mine:net", "compact"]}, cli.config_of
    )
    assert [run.name for run in runs][:2] == ["digits-Spiral-s0-network=net", "digits-Spiral-s0-network=compact"]
    from stn_recipes.run.folder import write_config
    from stn_recipes.run.sweep import _Row

    for planned, trusted in ((runs[0], True), (runs[3], False)):
        folder = mine / planned.name
        folder.mkdir()
        write_config(folder, planned.config)
        assert ("--trust" in _Row(planned, folder).words()) == trusted


# Weights from elsewhere, and a frozen classifier


def test_a_frozen_classifier_stays_as_it_is(mine: Path) -> None:
    torch.manual_seed(3)
    sys.path.append(str(mine))
    import mine as module

    network = module.net((1, 42, 42), 10)
    network[1].running_mean += 0.25
    torch.save({"state_dict": network.state_dict()}, "net.pt")
    config = replace(SMALL, network="mine:net", weights="net.pt", freeze=True, out=str(mine / "run"), weight_decay=0.1)
    done = load_run(train(config), trust=True)
    for name, value in network.state_dict().items():
        assert torch.equal(done.model.classifier.state_dict()[name], value), name
    before = config.make_model((1, 42, 42), 10).transformer.localizer.state_dict()
    after = done.model.transformer.localizer.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    task = Classification(done.model, config)
    assert not task.train().model.classifier.training
    assert task.model.transformer.training
    free = load_run(train(replace(config, freeze=False, out=str(mine / "free"))), trust=True)
    assert not torch.equal(free.model.classifier[1].running_mean, network[1].running_mean)
    resume(done.path, overrides={"epochs": 2}, trust=True)
    assert torch.equal(load_run(done.path, trust=True).model.classifier[1].running_mean, network[1].running_mean)


def test_weights_of_another_network_are_refused_by_name(mine: Path) -> None:
    from safetensors.torch import save_file

    from stn_recipes.run.pieces import load_classifier

    model = replace(SMALL, network="mnist_tutorial").make_model((1, 28, 28), 10)
    state = {name: value + 1 for name, value in model.classifier.state_dict().items()}
    save_file(state, "good.safetensors")
    load_classifier(model, Path("good.safetensors"))
    assert all(torch.equal(model.classifier.state_dict()[name], value) for name, value in state.items())
    first = next(iter(state))
    for name, content, said in (
        ("lost", {k: v for k, v in state.items() if k != first}, f"1 tensors differ, first {first} with shape None"),
        ("more", {**state, "head.bias": torch.zeros(3)}, r"first head.bias with shape \(3,\), not None"),
        ("shape", {**state, first: torch.zeros(2, 2)}, rf"first {first} with shape \(2, 2\)"),
    ):
        torch.save(content, f"{name}.pt")
        save_file(content, f"{name}.safetensors")
        for suffix in ("pt", "safetensors"):
            with pytest.raises(ValueError, match=rf"{name}.{suffix}: holds the weights of another network.*{said}"):
                load_classifier(model, Path(f"{name}.{suffix}"))
    torch.save(model, "whole.pt")
    Path("broken.pt").write_bytes(b"broken")
    torch.save([1], "list.pt")
    for name, said in (("whole", "weights_only"), ("broken", "damaged"), ("list", "expected a state dict")):
        with pytest.raises(ValueError, match=rf"{name}.pt: .*{said}"):
            load_classifier(model, Path(f"{name}.pt"))
    with pytest.raises(FileNotFoundError):
        load_classifier(model, Path("nowhere.pt"))
    for settings, said in (
        ({"freeze": True}, "freeze: expected the classifier's weights"),
        ({"freeze": True, "weights": "x", "transformer": "none"}, "freeze: expected a transformer to train"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(SMALL, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="control: expected --widen false with --weights"):
        train(replace(SMALL, weights="good.safetensors", control=True, out=str(mine / "no")))


# Networks of timm


class FakeTimm(types.ModuleType):
    """What of timm is called, for where it is not installed: it needs a torchvision that is built for this torch."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.made: list[dict[str, object]] = []

    def list_models(self) -> list[str]:
        return ["resnet18", "vit_tiny"]

    def is_model(self, name: str) -> bool:
        return name.partition(".")[0] in self.list_models()

    def create_model(
        self, name: str, *, pretrained: bool, num_classes: int, in_chans: int, drop_rate: float = 0.0, width: int = 4
    ) -> nn.Module:
        self.made.append({"name": name, "pretrained": pretrained, "drop_rate": drop_rate})
        net = nn.Sequential(OrderedDict(
            conv1=nn.Conv2d(in_chans, width, 3, 2), bn1=nn.BatchNorm2d(width), layer1=nn.Conv2d(width, width, 3),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), fc=nn.Linear(width, num_classes),
        ))  # fmt: skip
        net.pretrained_cfg = {"classifier": "fc"}
        return net


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> FakeTimm:
    fake = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


def test_a_network_of_timm_by_name(timm: FakeTimm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    words = [
        "--network",
        "timm:resnet18",
        "--transformer",
        "rotation",
        "--quick",
        "--epochs",
        "1",
        "--limit-train",
        "64",
    ]
    code, out, err = run(
        capsys, "train", "digits", *words, "--threads", "1", "--dropout", "0.25", "--control", "--out", str(path)
    )
    assert code == 0, err
    assert all(made == {"name": "resnet18", "pretrained": False, "drop_rate": 0.25} for made in timm.made)
    assert "timm:resnet18, rotation transformer" in out
    assert (load_run(path).config.imports, load_run(path).config.widens) == ((), False)  # timm is no code of the run
    done = load_run(path)
    assert done.model.classifier.fc.out_features == 10
    assert evaluate(done).test_accuracy == pytest.approx(done.result.test_accuracy, abs=1e-6)  # type: ignore[union-attr]
    assert "the network as it is" in out
    write_report(path)
    publish(path, out=tmp_path / "published")
    back = Classifier.from_pretrained(tmp_path / "published")
    image = torch.rand(2, *done.facts.input_shape)
    torch.testing.assert_close(back(image), done.model(image))


def test_what_timm_cannot_do_is_said(timm: FakeTimm, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(**options: object) -> nn.Module:
        return stn.models.create({"name": "timm:resnet18", **options}, in_shape=(3, 32, 32), transform="rotation")

    for call, said in (
        (lambda: stn.models.create("timm:resnet81", in_shape=(3, 32, 32)), "did you mean 'resnet18'"),
        (lambda: stn.models.create("timm:resnet18"), r"in_shape: expected \(C, H, W\) for a network that is not ours"),
        (
            lambda: stn.models.create("timm:resnet18", in_shape=(3, 1, 1)),
            r"in_shape: timm:resnet18 cannot take images of the shape \(3, 1, 1\)",
        ),
        (lambda: create(depth=3), "name: timm:resnet18 cannot be made with .*depth"),
        (
            lambda: create(pretrained=True),
            "expected no option 'pretrained' of timm:resnet18, which --weights FILE says",
        ),
        (lambda: create(checkpoint_path="x"), "expected no option 'checkpoint_path'"),
        (lambda: create(at="layr1"), "at: expected the name of a layer, such as conv1, .*did you mean 'layer1'"),
        (
            lambda: create(at="fc"),
            r"at: expected a layer that takes feature maps \(B, C, H, W\), once, got 'fc', a tensor of shape \(1, 4\)",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    assert create(at="layer1").transformer.localizer(torch.rand(2, 4, 15, 15)).shape == (2, 1)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"name: expected timm, .*pip install 'spatial-transformers\[timm\]'"):
        create()


def test_weights_for_another_number_of_classes_leave_the_last_layer_alone(
    timm: FakeTimm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stn_recipes.run.pieces import load_classifier

    theirs = timm.create_model("resnet18", pretrained=False, num_classes=1000, in_chans=3)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    model = stn.models.create("timm:resnet18", in_shape=(3, 32, 32), num_classes=7)
    head = model.classifier.fc.weight.clone()
    load_classifier(model, tmp_path / "theirs.pt")
    assert torch.equal(model.classifier.conv1.weight, theirs.conv1.weight)
    assert torch.equal(model.classifier.fc.weight, head)
    assert "of 1000 classes, not 7: fc starts at random" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"expected weights for 7 classes under freeze, got fc\.weight for 1000"):
        load_classifier(model, tmp_path / "theirs.pt", freeze=True)


def test_a_network_of_timm_itself() -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    for name, at in (("resnet18", "layer2"), ("mobilenetv3_small_100", "blocks.2"), ("convnext_atto", "stages.1")):
        model = stn.models.create(
            {"name": f"timm:{name}", "at": at}, in_shape=(3, 64, 64), num_classes=5, transform="similarity"
        )
        bare = timm.create_model(name, num_classes=5).eval()
        bare.load_state_dict(model.classifier.state_dict())
        image = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(image), bare(image), rtol=1e-4, atol=1e-4)
        model(image).sum().backward()
        assert model.transformer.localizer.head[-1].bias.grad.abs().sum() > 0


# Loggers


def test_loggers_by_lightnings_names(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = train(replace(SMALL, logger="csv", out="quiet"))
    assert load_run(quiet).metrics()[0]["train_loss"] > 0
    assert not (quiet / "logs" / "tensorboard").exists()
    both = train(replace(SMALL, logger=["csv", "tensorboard"], out="both"))
    assert list(both.glob("logs/tensorboard/events.*"))
    assert resume(quiet, overrides={"logger": "tensorboard"}) == quiet  # it changes no result
    assert cli.config_of(["digits", "--logger", "wandb"]).logger == "wandb"
    assert cli.config_of(["digits", "--logger", "[csv, mlflow]"]).logger == ["csv", "mlflow"]

    kept: list[tuple[str, object]] = []

    class Wandb(loggers.WandbLogger):
        def __init__(self, **options: object) -> None:
            kept.append(("made", options))
            self._save_dir = str(options["save_dir"])

        name = version = property(lambda self: "wandb")
        experiment = None

        def log_hyperparams(self, params: object) -> None:
            kept.append(("settings", params))

        def log_metrics(self, metrics: object, step: int | None = None) -> None:
            kept.append(("metrics", metrics))

        def after_save_checkpoint(self, callback: object) -> None: ...
        def finalize(self, status: str) -> None: ...
        def save(self) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(loggers, "WandbLogger", Wandb)
        seen = train(replace(SMALL, logger="wandb", out="seen"))
    assert kept[0] == ("made", {"name": "seen", "project": "stn", "save_dir": Path("seen/logs")})
    assert kept[1] == ("settings", load_run(seen).config.as_plain())
    assert any(what == "metrics" and "val_accuracy" in content for what, content in kept)  # type: ignore[operator]
    assert load_run(seen).metrics() == load_run(quiet).metrics()
    for name in ("wandb", "mlflow"):
        if importlib.util.find_spec(name) is None:
            code, _, err = run(capsys, "train", "digits", "--logger", name, "--out", "none")
            assert (code, f"logger: expected {name} to be installed: pip install {name}" in err) == (1, True), err
            assert not Path("none").exists()
    code, _, err = run(capsys, "train", "digits", "--logger", "wand")
    assert (code, "did you mean 'wandb'?" in err) == (2, True), err


def test_the_command_of_a_card_says_them_all() -> None:
    words = ["digits", "--transformer", "similarity", "--transformer.max-angle", "1.6", "--quick", "--epochs", "3"]
    config = cli.config_of([*words, "--weights", "FILE", "--freeze"])
    said = shlex.split(command(config, control=False))
    assert said[:2] == ["stn", "train"]
    assert cli.config_of(said[2:]) == config


def test_settings_are_plain_text(mine: Path) -> None:
    """YAML has no word for the parser's own kind of text."""
    config = cli.config_of(["digits", "--transformer", "mine:Spiral", "--dataset", "mine:Bright"])
    assert type(config.transformer) is type(config.dataset) is str
    assert isinstance(config, TrainConfig)
