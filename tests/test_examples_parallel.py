"""The example that places transformers in networks, at a smaller size: they add digits."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import stn

for library in ("lightning", "sklearn", "matplotlib"):
    pytest.importorskip(library)

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["add_digits"]


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_networks_that_add_are_trained(tmp_path, capsys):
    figure = tmp_path / "sums.png"
    measured = load("add_digits").main(
        ["--networks", "1xST", "fcn", "--steps", "20", "--threads", "1", "--figure", str(figure)]
    )
    assert list(measured) == ["1xST", "fcn"]
    assert all(0.7 < share <= 1 for share in measured.values())  # so early
    assert f"{measured['fcn']:.1%} of the sums" in capsys.readouterr().out
    assert (tmp_path / "sums-1xST.png").stat().st_size > 5_000


@pytest.mark.slow
def test_two_transformers_add():
    measured = load("add_digits").main(["--networks", "2xST", "fcn", "--steps", "700", "--threads", "1"])
    assert measured["2xST"] < 0.78
    assert measured["2xST"] < measured["fcn"] - 0.08


def test_all_have_the_same_number_of_parameters():
    example = load("add_digits")
    counts = {name: example.parameters(example.build(name)) for name in example.NETWORKS}
    assert counts["2xST"] == example.parameters(example.transformed(2))
    assert all(counts["2xST"] <= count < 1.01 * counts["2xST"] for count in counts.values())
    assert not any(isinstance(m, stn.ParallelTransformers) for m in example.build("fcn").modules())
    assert example.build("2xST")[0].count == 2


def test_pairs_of_digits():
    example = load("add_digits")
    digits, _ = example.load("digits")
    images, sums = example.make_pairs(digits, 40, seed=0)
    plain, same = example.make_pairs(digits, 40, seed=0, strength=0.0)
    assert images.shape == (40, 2, 42, 42)
    assert torch.equal(sums, same)
    assert int(sums.max()) <= 18
    torch.testing.assert_close(example.make_pairs(digits, 40, seed=0)[0], images, rtol=0, atol=0)
    assert not torch.equal(example.make_pairs(digits, 40, seed=0, epoch=1)[1], sums)
    # Without distortion each channel is one of the digits in the middle, and the sum that of their labels.
    middle = (plain[:, :, 7:35, 7:35] * 255).round().to(torch.uint8)
    labels = [[int(digits.labels[(digits.images[:, 0] == one).all((1, 2))][0]) for one in pair] for pair in middle]
    assert torch.tensor(labels).sum(1).tolist() == sums.tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (["--steps", "0"], "expected at least 1"),
        (["--seed", "-1"], "at least 0"),
        (["--figure", "nowhere/figure.png"], "--figure: expected a .png in a folder that exists"),
    ],
)
def test_bad_options_are_one_line(name, wrong, complaint, capsys):
    with pytest.raises(SystemExit):
        load(name).main(wrong)
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert "error: " in line
    assert complaint in line


@pytest.mark.parametrize(
    ("name", "wrong", "complaint"),
    [("add_digits", ["--data", "nowhere"], "--data: ")],
)
def test_bad_values_are_one_line(name, wrong, complaint, capsys):
    with pytest.raises(SystemExit):
        load(name).main(wrong)
    assert complaint in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_every_example_says_how_and_what(name):
    words = load(name).__doc__
    assert f"python examples/{name}.py" in words
    assert re.search(r"\d", words.split("Measured")[1])
    assert f"({name}.py)" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
