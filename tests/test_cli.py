"""The command line: what it prints, its exit codes, and that a user's mistake never shows a traceback."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import stn
from stn_recipes import cli, predict
from stn_recipes.recipes import RECIPES, recipe


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.fixture
def dot(tmp_path: Path) -> Path:
    """A black image, 40 high and 60 wide, with one bright spot right of the centre."""
    pixels = np.zeros((40, 60), np.uint8)
    pixels[19:22, 44:47] = 255  # 15 pixels to the right of the middle
    file = tmp_path / "dot.png"
    Image.fromarray(pixels).save(file)
    return file


def spot(file: Path) -> tuple[float, float]:
    """The centre of brightness relative to the image's centre: (right, up), in pixels."""
    pixels = np.asarray(Image.open(file).convert("L"), dtype=float)
    rows, columns = np.indices(pixels.shape)
    x, y = (pixels * columns).sum() / pixels.sum(), (pixels * rows).sum() / pixels.sum()
    return x - (pixels.shape[1] - 1) / 2, (pixels.shape[0] - 1) / 2 - y


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "usage: stn" in out


def test_a_family_with_options_in_a_file_and_on_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quick.yaml").write_text("transformer: {name: similarity, max_angle: 0.5}\nepochs: 1\nlimit_train: 32\n")
    quick = ["train", "digits", "--config", "quick.yaml", "--threads", "1", "--batch-size", "16"]
    code, out, _ = run(capsys, *quick)
    assert code == 0
    assert "compact, similarity transformer" in out
    kept = yaml.safe_load(Path("runs/digits-similarity-s0/config.yaml").read_text())
    assert kept["transformer"] == {"name": "similarity", "max_angle": 0.5}
    assert "similarity transformer" in Path("runs/digits-similarity-s0/report.html").read_text()
    assert "similarity" in run(capsys, "compare", "runs/digits-similarity-s0")[1]
    code, _, err = run(capsys, *quick, "--transformer", '{"name": "similarity", "max_angel": 0.5}')
    assert code == 1
    assert "transformer: options: 'similarity' has no option 'max_angel'" in err


def test_train_help_shows_the_recipes_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "train", "cifar10_small", "--help")
    assert "--data-dir" in out
    assert "--num-nodes" in out
    assert f"default: {recipe('cifar10_small').epochs}" in out
    assert " at 0x" not in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["trian"], 2, "invalid choice: 'trian'"),
        (["trian"], 2, "did you mean 'train'?"),
        (["train", "--transformer", "afine"], 2, "--transformer: expected one of affine,"),
        (["train", "--transformer", "afine"], 2, "got 'afine'; did you mean 'affine'?"),
        (["train", "--dataset", "cifar"], 2, "did you mean 'cifar10'?"),
        (["train", "--epochs", "many"], 2, "--epochs: expected a whole number, got 'many'"),
        (["train", "--image-size", "32,32,32"], 2, "--image-size: expected a height and a width in pixels"),
        (["train", "--image-size", "wide"], 2, "got 'wide'"),
        (["warp", "x.png", "--out", "y.png", "--shift", "10"], 2, "--shift: expected two numbers of pixels"),
        (["models", "--transformer"], 2, "expected one argument\n"),
        (["predict", "--json"], 2, "required: run, image"),
        (["train", "--clip", "none"], 2, "--clip: expected a number or null, got 'none'"),
        (
            ["train", "--distortion", "rtz"],
            2,
            "expected one of r, rts, p, e, t, tc, t84, tc84, rts_each, or yours as package.module:name or null, got 'rtz'; did you mean 'rts'?",
        ),
        (["train", "--penalties", "3"], 2, "--penalties: expected a mapping, got '3'"),
        (["train", "--epocks", "3"], 2, "did you mean --epochs?"),
        (["train", "--data-dri", "x"], 2, "did you mean --data-dir?"),
        (["train", "--epochs", "many"], 2, "epochs"),
        (["train", "--transformer", "afine"], 2, "transformer"),
        (["train", "mnits"], 1, "did you mean 'mnist'?"),
        (["train", "digits", "--network", "cifar10smal"], 1, "did you mean 'cifar10_small'?"),
        (["train", "digits", "--val-fraction", "2"], 1, "val_fraction"),
        (["train", "digits", "--epochs", "0"], 1, "epochs"),
        (["train", "digits", "--batch-size", "0"], 1, "batch_size"),
        (["train", "digits", "--lr", "-1"], 1, "lr"),
        (["train", "digits", "--penalties", '{"fould": 1.0}'], 1, "did you mean 'fold'?"),
        (["train", "digits", "--penalties", '{"fold": -1.0}'], 1, "fold"),
        (["train", "images"], 1, "data_dir"),
        (["train", "digits", "--transformer", "none", "--control"], 1, "control"),
        (["train", "digits", "--devices", "0"], 1, "devices"),
        (["train", "--config", "missing.yaml"], 2, "missing.yaml"),
        (["train", "--resume", "missing"], 1, "missing: expected the folder of a run"),
        (["evaluate", "missing"], 1, "missing: expected the folder of a run"),
        (["report", "missing"], 1, "missing: expected the folder of a run"),
        (["compare", "missing"], 1, "missing: expected the folder of a run"),
        (["predict", "missing", "x.png"], 1, "missing: expected the folder of a run"),
        (["models", "compct"], 1, "did you mean 'compact'?"),
        (["recipes", "digit"], 1, "did you mean 'digits'?"),
        (["warp", "missing.png", "--out", "x.png"], 1, "missing.png"),
    ],
)
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], code: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    got, _, err = run(capsys, *words)
    assert (got, said in err) == (code, True), err
    assert not list(tmp_path.iterdir())


def test_an_unknown_setting_in_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text("epocks: 7\n")
    code, _, err = run(capsys, "train", "--config", str(tmp_path / "own.yaml"))
    assert (code, "does not accept option 'epocks'; did you mean 'epochs'?" in err) == (2, True), err


def test_settings_come_from_the_recipe_then_yaml_then_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stn_recipes.run import train

    seen = []
    monkeypatch.setattr(train, "train", lambda config: seen.append(config) or tmp_path)
    monkeypatch.setattr(train, "is_main_process", lambda: False)
    (tmp_path / "own.yaml").write_text("recipe: mnist_r\nepochs: 7\nlr: 0.25\n")
    assert run(capsys, "train", "--config", str(tmp_path / "own.yaml"), "--lr", "0.5", "--data-dir", "a-b", "--no-progress")[0] == 0  # fmt: skip
    config = seen[0]
    assert (config.recipe, config.distortion, config.epochs, config.lr) == ("mnist_r", "r", 7, 0.5)
    assert (config.data_dir, config.progress, config.control) == ("a-b", False, False)
    assert config.weight_decay == recipe("mnist_r").weight_decay
    assert run(capsys, "train", "mnist", "--clip", "null", "--dropout", "null")[0] == 0
    assert recipe("mnist").clip is not None
    assert (seen[1].clip, seen[1].dropout) == (None, None)


def test_a_resumed_run_obeys_the_options_that_are_given_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stn_recipes.run import folder, train

    monkeypatch.chdir(tmp_path)
    Path("RUN").mkdir()
    folder.write_config(Path("RUN"), recipe("digits"))
    seen = []
    monkeypatch.setattr(train, "resume", lambda run, overrides, trust: seen.append((run, overrides)) or tmp_path)
    monkeypatch.setattr(train, "is_main_process", lambda: False)
    assert recipe("digits").accelerator == "auto"
    for words, wanted in (
        ([], {}),
        (["--accelerator", "auto", "--threads", "2"], {"accelerator": "auto", "threads": 2}),
        (["--accelerator", "cpu"], {"accelerator": "cpu"}),
        (["--epochs", "20", "--no-progress"], {"epochs": 20, "progress": False}),
        (["--lr", "0.1", "--control"], {"lr": 0.1, "control": True}),
    ):
        code, _, err = run(capsys, "train", "--resume", "RUN", *words)
        assert code == 0, err
        assert seen.pop() == (Path("RUN"), wanted)


def test_the_settings_of_the_run_to_start_from_are_the_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stn_recipes.run import folder, train

    seen = []
    monkeypatch.setattr(train, "train", lambda config: seen.append(config) or tmp_path)
    monkeypatch.setattr(train, "is_main_process", lambda: False)
    kept = replace(recipe("mnist_r"), seed=7, schedule_start=20, control=True, out=str(tmp_path))
    folder.write_config(tmp_path, kept)
    own = replace(kept, schedule_start=0, control=False, out=None, init_from=str(tmp_path))
    assert run(capsys, "train", "--init-from", str(tmp_path), "--lr", "0.5")[0] == 0
    assert seen.pop() == replace(own, lr=0.5)
    assert run(capsys, "train", "digits", "--init-from", str(tmp_path))[0] == 0
    assert seen.pop() == replace(recipe("digits"), init_from=str(tmp_path))


@pytest.mark.parametrize(
    "words",
    [["--version"], ["--help"], ["train", "--help"], ["train", "digits", "--epocks", "3"], ["train", "mnits"], ["recipes"],
     ["train", "--transformer", "afine"], ["train", "digits", "--epochs", "0"], ["trian"], ["warp", "--help"],
     ["train", "--transformer", "afine", "--transformer.max-delta", "1"], ["train", "digits", "--transformer.max-delta"],
     ["train", "digits", "--transformer", "mine:Spiral", "--transformer.turns", "2", "--epochs", "0"]],
)  # fmt: skip
def test_what_needs_no_torch_loads_none(words: list[str]) -> None:
    code = "import sys; from stn_recipes import cli; cli.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("words", [["train", "--resume", "x"], ["evaluate", "x"], ["predict", "x", "y"], ["compare", "x"], ["info"]])  # fmt: skip
def test_what_needs_no_lightning_loads_none(words: list[str]) -> None:
    code = "import sys; from stn_recipes import cli; cli.main(sys.argv[1:]); sys.exit('lightning' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr


def test_the_version_is_that_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[1].split() == ["stn", stn.__version__]


def test_sizes_and_shifts_as_people_write_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stn_recipes.run import train

    seen = []
    monkeypatch.setattr(train, "train", lambda config: seen.append(config.image_size) or tmp_path)
    monkeypatch.setattr(train, "is_main_process", lambda: False)
    for text, wanted in (("32", (32, 32)), ("32,48", (32, 48)), ("[32, 48]", (32, 48)), ("(32,48)", (32, 48))):
        assert run(capsys, "train", "--image-size", text)[0] == 0
        assert seen.pop() == wanted
    monkeypatch.setattr(predict, "warp_file", lambda *_, shift, **__: seen.append(shift))
    for words in (["--shift", "10,5"], ["--shift=10,5"], ["--shift", "[10, 5]"], ["--shift", "-10,5"], ["--shift", "-1e1,-.5"]):  # fmt: skip
        assert run(capsys, "warp", "a.png", "--out", "b.png", *words)[0] == 0
    assert seen == [(10.0, 5.0)] * 3 + [(-10.0, 5.0), (-10.0, -0.5)]


def test_temporary_names_are_not_told(
    monkeypatch: pytest.MonkeyPatch, dot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Path, to: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "replace", refuse)
    code, _, err = run(capsys, "warp", str(dot), "--out", str(tmp_path / "out.png"))
    assert (code, err) == (1, f"stn: error: Permission denied: {tmp_path / 'out.png'}\n")


def test_runs_side_by_side_fit_80_columns_and_keep_their_paths_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stn_recipes.run import folder

    paths = []
    for name, transformer in (("finished", "displacement"), ("unfinished", "none")):
        path = tmp_path / f"a-rather-long-name-of-a-folder-that-does-not-fit-{name}"
        path.mkdir()
        folder.write_config(path, replace(recipe("mnist_r"), transformer=transformer, seed=12345, epochs=1000))  # type: ignore[arg-type]
        paths.append(str(path))
    reached = folder.Result(
        recipe="mnist_r", network="compact", transformer="displacement", seed=12345, parameters=123_456_789, epochs=1000,
        test_accuracy=1.0, test_loss=0.0, val_accuracy=1.0, train_accuracy=1.0, train_seconds=600_000.0,
    )  # fmt: skip
    folder.write_record(Path(paths[0]) / "result.json", reached)
    code, out, _ = run(capsys, "compare", *paths)
    lines = out.splitlines()
    assert code == 0
    assert [line for line in lines if line.startswith("/")] == paths
    assert all(len(line) <= 80 for line in lines if not line.startswith("/")), out
    assert "123,456,789" in out
    assert "unfinished" in out
    code, out, _ = run(capsys, "compare", *paths, "--json")
    assert [len(row) for row in json.loads(out)] == [len(fields(folder.Result)) + 1, 1]  # the path, too


def stn_process(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)  # type: ignore[call-overload, no-any-return]


def test_a_job_log_sees_every_line_when_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """if True:
        import os
        from stn_recipes import cli
        from stn_recipes.__main__ import main
        cli.main = lambda: print("epoch 1") or os._exit(0)  # which leaves behind what is in a buffer
        main()
    """
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert stn_process("-c", code).communicate(timeout=60) == ("epoch 1\n", "")


@pytest.mark.parametrize("module", ["jsonargparse", "yaml", "torch", "numpy", "lightning", "stn_recipes.run.train"])
def test_ctrl_c_while_modules_load_says_one_line(module: str) -> None:
    code = f"""if True:
        import importlib.abc, os, signal, sys
        from stn_recipes.__main__ import main
        class Stop(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == {module!r}:
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Stop())
        main()
    """
    process = stn_process("-c", code, "train", "digits", "--epochs", "1")
    assert process.communicate(timeout=60) == ("", "\nstn: interrupted\n")
    assert process.returncode == 130


def test_a_warning_is_a_line_without_source_code() -> None:
    code = """if True:
        import warnings
        from stn_recipes import cli
        from stn_recipes.__main__ import main
        cli.main = lambda: warnings.warn("slow") or 0
        main()
    """
    assert stn_process("-c", code).communicate(timeout=60) == ("", "stn: warning: slow\n")


def test_ctrl_c_after_the_last_epoch_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stn_recipes import report
    from stn_recipes.run import folder, train

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "my run"
    options = ["--network", "mnist_tutorial", "--epochs", "1", "--threads", "1", "--no-progress", "--out", str(path)]
    with monkeypatch.context() as patch:
        patch.setattr(train, "_finish", stop)
        code, _, err = run(capsys, "train", "digits", *options)
    assert (code, err.strip()) == (130, f"stn: stopped; go on with: stn train --resume '{path}'")
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_report", stop)
        code, _, err = run(capsys, "train", "--resume", str(path))
    assert (code, err.strip()) == (130, f"stn: trained; write the report with: stn report '{path}'")
    assert folder.load_run(path).result.epochs == 1  # type: ignore[union-attr]


def test_the_settings_of_a_recipe_are_a_config_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stn_recipes.run import train

    seen = []
    monkeypatch.setattr(train, "train", lambda config: seen.append(config) or tmp_path)
    monkeypatch.setattr(train, "is_main_process", lambda: False)
    for name in RECIPES:
        _, out, _ = run(capsys, "recipes", name)
        assert yaml.safe_load(out)["recipe"] == name
        (tmp_path / "all.yaml").write_text(out)
        assert run(capsys, "train", "--config", str(tmp_path / "all.yaml"))[0] == 0
        assert seen.pop() == recipe(name)


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "recipes")
    assert all(name in out for name in RECIPES)
    _, out, _ = run(capsys, "models")
    assert all(name in out for name in stn.models.names())
    assert "39,884" in out
    _, out, _ = run(capsys, "models", "cifar10_large")
    assert "1,585,008" in out
    _, out, _ = run(capsys, "info")
    assert stn.__version__ in out
    assert "reference" in out
    assert "threads" in out
    native = stn.ops.cpu._native
    assert re.search(r"^instruction set +" + (native.instruction_set() if native else "none"), out, re.MULTILINE)


def test_warp_turns_counterclockwise_scales_and_shifts(dot: Path, tmp_path: Path) -> None:
    assert spot(dot) == pytest.approx((15.5, -0.5))
    out = tmp_path / "out.png"
    for options, wanted in (
        ({}, (15.5, -0.5)),
        ({"rotate": 90.0}, (0.5, 15.5)),
        ({"rotate": 45.0, "scale": 0.5}, (0.5 * 16 * math.sqrt(0.5), 0.5 * 15 * math.sqrt(0.5))),
        ({"shift": (-20.0, 10.0)}, (-4.5, -10.5)),
        ({"rotate": 90.0, "shift": (5.0, 3.0)}, (5.5, 12.5)),
    ):
        predict.warp_file(dot, out, **options)  # type: ignore[arg-type]
        assert Image.open(out).size == (60, 40)
        assert spot(out) == pytest.approx(wanted, abs=0.15), options


def test_warp_command(capsys: pytest.CaptureFixture[str], dot: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jpg"
    code, said, _ = run(capsys, "warp", str(dot), "--rotate", "45", "--scale", "0.8", "--out", str(out))
    assert (code, said.strip()) == (0, str(out))
    assert Image.open(out).size == (60, 40)
    code, _, err = run(capsys, "warp", str(dot), "--out", str(tmp_path / "out.nope"))
    assert (code, "out.nope: expected the name of an image file" in err) == (1, True)
    code, _, err = run(capsys, "warp", str(dot), "--scale", "0", "--out", str(out))
    assert (code, "scale: expected" in err) == (1, True)
    code, _, err = run(capsys, "warp", str(dot), "--out", str(tmp_path / "no" / "folder.png"))
    assert (code, "folder" in err) == (1, True)
    (tmp_path / "broken.png").write_bytes(dot.read_bytes()[:40])
    code, _, err = run(capsys, "warp", str(tmp_path / "broken.png"), "--out", str(out))
    assert (code, "broken.png: not a readable image" in err) == (1, True)


def test_train_predict_compare_and_evaluate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--network", "mnist_tutorial", "--epochs", "1", "--threads", "1", "--no-progress"]
    code, out, err = run(capsys, "train", "digits", *options, "--control")
    assert code == 0, err
    folder = Path("runs/digits-affine-s0")
    assert out.strip().endswith(f"Report: {folder / 'report.html'}")
    assert (folder / "report.html").stat().st_size > 10_000
    for part in (folder, folder / "control"):
        parameters = json.loads((part / "result.json").read_text())["parameters"]
        assert out.count(f"{parameters:,}") >= 2  # the log and the closing table
    again = run(capsys, "train", "digits", *options)
    assert "digits-affine-s0-2" in again[1]

    code, out, _ = run(capsys, "evaluate", str(folder), "--json")
    result = json.loads((folder / "result.json").read_text())
    assert json.loads(out)["test_accuracy"] == pytest.approx(result["test_accuracy"], abs=1e-6)
    code, out, _ = run(capsys, "compare", str(folder), str(folder / "control"))
    assert code == 0
    assert f"{result['test_accuracy']:.2%}" in out

    for name in ("one/digit.png", "two/digit.png"):
        Path(name).parent.mkdir()
        Image.fromarray(np.tile(np.arange(0, 240, 8, dtype=np.uint8), (30, 1))).save(name)
    Path("bad.png").write_bytes(b"not an image")
    code, out, _ = run(capsys, "predict", str(folder), "one/digit.png", "two/digit.png", "--json", "--out", "seen")
    rows = json.loads(out)
    assert code == 0
    assert len({row["rectified"] for row in rows}) == 2
    for row in rows:
        assert row["class"] in "0123456789"
        assert 0.1 <= row["confidence"] <= 1
        assert Image.open(row["rectified"]).size == (42, 42)  # what the network of this recipe sees
    code, _, err = run(capsys, "predict", str(folder), "bad.png", "one/digit.png")
    assert (code, "bad.png: not a readable image" in err) == (1, True)
    with pytest.warns(UserWarning, match=r"skipped: bad\.png"):
        code, out, _ = run(
            capsys, "predict", str(folder), "bad.png", "one/digit.png", "--on-bad-image", "skip", "--json"
        )
    assert (code, len(json.loads(out))) == (0, 1)
    code, out, _ = run(capsys, "predict", str(folder / "control"), "one/digit.png", "--json")
    assert json.loads(out)[0]["rectified"] is None


def test_no_permission_to_write(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")  # stands for it when the tests run as root
    code, _, err = run(capsys, "train", "digits", "--epochs", "1", "--out", str(tmp_path / "file" / "run"))
    assert (code, "stn: error:" in err) == (1, True)


def test_own_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for label, level in (("dark", 40), ("light", 200)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(level - 30, level + 30, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{i}.png")
    options = ["--data-dir", str(tmp_path / "set"), "--image-size", "[32, 48]", "--epochs", "2", "--threads", "1"]
    code, out, err = run(capsys, "train", "images", *options, "--out", str(tmp_path / "run"), "--no-progress")
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_accuracy"] >= 0.5
    code, out, _ = run(capsys, "predict", str(tmp_path / "run"), str(tmp_path / "set" / "dark" / "0.png"), "--json")
    assert json.loads(out)[0]["class"] in ("dark", "light")
    (tmp_path / "set" / "dark" / "0.png").write_bytes(b"broken")
    code, _, err = run(capsys, "train", "images", *options, "--out", str(tmp_path / "second"), "--no-progress")
    assert (code, "0.png" in err, (tmp_path / "second").exists()) == (1, True, False)


def coloured(folder: Path, **colours: tuple[int, int, int]) -> Path:
    """A folder for each colour with eight noisy images of it."""
    generator = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(8):
            noise = generator.integers(-20, 20, (16, 16, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


RED, GREEN, BLUE, GREY = (200, 30, 30), (30, 200, 30), (30, 30, 200), (120, 120, 120)


def test_evaluate_on_other_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine = coloured(tmp_path / "mine", blue=BLUE, green=GREEN, grey=GREY, red=RED)
    path = tmp_path / "run"
    options = ["--network", "mnist_tutorial", "--image-size", "28", "--epochs", "8", "--threads", "1", "--lr", "0.02"]
    options += ["--batch-size", "4", "--transformer", "none", "--no-progress", "--out", str(path)]
    code, _, err = run(capsys, "train", "images", "--data-dir", str(mine), *options)
    assert code == 0, err

    def measured(folder: Path) -> dict[str, Any]:
        code, out, err = run(capsys, "evaluate", str(path), "--data-dir", str(folder), "--json")
        assert code == 0, err
        return dict(json.loads(out))

    result = json.loads((path / "result.json").read_text())
    assert result["test_accuracy"] == 1.0  # or the rest shows nothing
    # Moved, it is the data of the run still, of which a fifth was kept for the test.
    moved = measured(mine.rename(tmp_path / "moved"))
    assert (moved["what"], moved["images"], moved["test_accuracy"]) == ("test set", 8, 1.0)
    # Other images: all of them, by the names of their classes.
    some = measured(coloured(tmp_path / "some", grey=GREY, red=RED))
    assert (some["images"], some["test_accuracy"]) == (16, 1.0)
    assert some["classes"]["red"] == some["classes"]["grey"] == {"images": 8, "accuracy": 1.0}
    assert some["classes"]["blue"] == {"images": 0, "accuracy": None}
    wrong = coloured(tmp_path / "wrong", red=GREEN, green=GREEN)
    assert measured(wrong)["classes"]["red"] == {"images": 8, "accuracy": 0.0}
    code, out, _ = run(capsys, "evaluate", str(path), "--data-dir", str(wrong))
    assert f"everything in {wrong}: accuracy 50.00%" in out
    assert re.search(r"^  green +100\.00% of 8$", out, re.MULTILINE)
    assert re.search(r"^  blue +- of 0$", out, re.MULTILINE)
    assert measured(coloured(tmp_path / "one", red=RED))["images"] == 8
    unknown = coloured(tmp_path / "unknown", red=RED, violet=BLUE)
    code, _, err = run(capsys, "evaluate", str(path), "--data-dir", str(unknown))
    assert (code, "class 'violet' is none of blue, green, grey, red" in err) == (1, True)

    # A folder to predict, and all that is unreadable in it.
    code, out, err = run(capsys, "predict", str(path), str(tmp_path / "some"), "--json")
    rows = json.loads(out)
    assert (code, len(rows)) == (0, 16), err
    assert all(Path(row["image"]).parent.name == row["class"] for row in rows)
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, "predict", str(path), str(tmp_path / "empty"))
    assert (code, "empty, which has none" in err) == (1, True)
    for i in (1, 5):
        (tmp_path / "some" / "red" / f"{i}.png").write_text("no image")
    code, _, err = run(capsys, "predict", str(path), str(tmp_path / "some"))
    assert code == 1
    assert all(said in err for said in ("red/1.png: not a", "red/5.png: not a", "(2 of 16)", "--on-bad-image skip"))


def test_without_the_train_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from stn_recipes.__main__ import main

    monkeypatch.delitem(sys.modules, "stn_recipes.cli")
    monkeypatch.setitem(sys.modules, "jsonargparse", None)  # as if it were not installed
    assert main() == 1
    assert "pip install 'spatial-transformers[train]'" in capsys.readouterr().err
