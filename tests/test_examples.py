"""The examples, at a smaller size: each is run as from the command line, and what it measured is what is checked."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import pytest
import torch

import stn

for library in ("PIL", "sklearn", "matplotlib"):
    pytest.importorskip(library)

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["align_faces", "align_series", "align_stack", "rectify_word", "register_pair", "upright_volume"]


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def picture(tmp_path):
    """A smooth texture (160, 240), as an image file."""
    from PIL import Image

    coarse = torch.rand(1, 3, 20, 30)
    smooth = stn.warp(coarse, torch.eye(2, 3)[None], (160, 240), mode="bspline3", padding_mode="border")
    path = tmp_path / "texture.png"
    Image.fromarray((255 * smooth[0].clamp(0, 1)).byte().permute(1, 2, 0).numpy()).save(path)
    return path


def test_a_pair_is_registered(picture, tmp_path, capsys):
    figure = tmp_path / "pair.png"
    errors = load("register_pair").main(
        [str(picture), "--seeds", "2", "--steps", "40", "--threads", "1", "--figure", str(figure)]
    )
    assert all(before > 10 and after < 0.5 for before, after in errors)
    assert f"after {errors[1][1]:6.3f}" in capsys.readouterr().out
    assert figure.stat().st_size > 10_000


def test_a_pair_is_lost_without_the_pyramid(picture):
    ((_, fine),) = load("register_pair").main(
        [str(picture), "--seeds", "1", "--steps", "40", "--levels", "1", "--threads", "1"]
    )
    assert fine > 2


def test_the_corner_error_is_in_pixels():
    example = load("register_pair")
    truth = torch.zeros(1, 8)
    moved = truth.clone()
    moved[0, 4:6] = torch.tensor([0.3, 0.4])  # the bottom right corner, in halves of 200 and of 100 pixels
    assert example.corner_error(moved, truth, (100, 200)) == pytest.approx(math.hypot(30, 20))


def test_the_photo_keeps_its_shape():
    photo = load("register_pair").load_photo(None)
    assert photo.shape == (1, 3, 160, 240)
    assert 0.2 < float(photo.mean()) < 0.8


def test_a_stack_is_aligned(tmp_path):
    figure = tmp_path / "stack.png"
    measured = load("align_stack").main(["--count", "40", "--steps", "120", "--threads", "1", "--figure", str(figure)])
    assert measured["after"] < 0.4 * measured["before"]
    assert measured["after"] < measured["as written"] < measured["before"]
    assert 0.85 < measured["ink"] < 1.15  # it did not hide what differs
    assert figure.stat().st_size > 5_000


def test_the_mean_theta_of_a_stack_is_the_identity():
    example = load("align_stack")
    theta = example.align(example.load_stack(0, 6), steps=3)
    assert float((theta - example.FAMILY.identity()).abs().max()) > 0.01
    torch.testing.assert_close(theta.mean(0), example.FAMILY.identity())


def test_words_are_straightened(tmp_path):
    figure = tmp_path / "words.png"
    measured = load("rectify_word").main(["--steps", "100", "--threads", "1", "--figure", str(figure)])
    assert measured["after"][0] < 0.4 * measured["before"][0]
    assert measured["after"][1] < 0.5 * measured["before"][1]
    assert figure.stat().st_size > 5_000


@pytest.mark.slow
def test_words_are_straightened_to_half_a_pixel():
    measured = load("rectify_word").main(["--threads", "1"])
    assert measured["after"][0] < 0.6
    assert measured["after"][1] < 0.04


def test_a_word_read_by_its_true_outline_is_flat():
    """So the pictures and the points are of the same curve."""
    example = load("rectify_word")
    flat, curves = example.random_words(4), example.random_curves(4)
    theta = example.FAMILY.from_points(example.bend(curves, example.FAMILY.control_points[None].float()))
    assert float(example.point_error(theta, curves).max()) < 0.5
    read = stn.warp(example.draw(flat, curves), theta, example.FLAT, transform=example.FAMILY)
    assert float((read - flat).square().mean()) < 0.03
    assert flat.shape == (4, 1, *example.FLAT)
    assert 0.1 < float(flat.mean()) < 0.6


def test_faces_are_aligned(tmp_path):
    pytest.importorskip("skimage")
    figure = tmp_path / "faces.png"
    measured = load("align_faces").main(["--steps", "80", "--threads", "1", "--figure", str(figure)])
    assert measured["after"] < 0.8 * measured["before"]
    assert measured["after"] < 0.9 * measured["dealt"]  # it is not that they were blurred
    assert measured["error after"] < 0.95 * measured["error before"]
    assert figure.stat().st_size > 5_000


def test_faces_vanish_where_only_their_variance_counts():
    pytest.importorskip("skimage")
    measured = load("align_faces").main(
        ["--steps", "80", "--loss", "variance", "--transform", "affine", "--threads", "1"]
    )
    assert measured["after"] < 0.7 * measured["before"]
    assert measured["error after"] > 0.9 * measured["error before"]


def test_series_are_aligned(tmp_path):
    figure = tmp_path / "series.png"
    measured = load("align_series").main(
        ["--per-class", "40", "--steps", "120", "--threads", "1", "--figure", str(figure)]
    )
    assert measured["variance"][1] < 0.3 * measured["variance"][0]
    assert measured["accuracy"][1] > max(0.97, measured["accuracy"][0])
    assert measured["error"][1] < 0.3 * measured["error"][0]
    assert 0.6 < measured["energy"][1] / measured["energy"][0] < 2  # the bumps are still there
    assert figure.stat().st_size > 10_000


def test_series_vanish_where_only_their_variance_counts():
    measured = load("align_series").main(
        ["--per-class", "40", "--steps", "120", "--loss", "variance", "--threads", "1"]
    )
    assert measured["variance"][1] < 0.1 * measured["variance"][0]
    assert measured["energy"][1] < 0.3 * measured["energy"][0]
    assert measured["error"][1] > 0.9 * measured["error"][0]  # and this loss knows


def test_volumes_are_turned_back(tmp_path):
    figure = tmp_path / "volumes.png"
    measured = load("upright_volume").main(
        ["--turn", "40", "--steps", "80", "--rotations", "6d", "--threads", "1", "--figure", str(figure)]
    )
    assert measured["6d"][1] < 0.7 * measured["6d"][0]
    assert figure.stat().st_size > 5_000


@pytest.mark.slow
@pytest.mark.parametrize("rotation", ["axis-angle", "6d"])
def test_volumes_are_upright(rotation):
    measured = load("upright_volume").main(["--rotations", rotation, "--threads", "1"])
    assert measured[rotation][0] > 25
    assert measured[rotation][1] < 5


def test_scans_meet_in_millimetres(tmp_path):
    pytest.importorskip("nibabel")
    figure, folder = tmp_path / "scans.png", tmp_path / "files"
    folder.mkdir()
    words = ["--scale", "2.5", "--threads", "1", "--figure", str(figure), "--folder", str(folder)]
    measured = load("register_volume").main(words)
    for organ, least in (("head", 0.9), ("ventricle", 0.7), ("nucleus", 0.5)):
        before, rigid, bent = measured[organ]
        assert before < rigid < bent, organ
        assert bent > least, organ
    assert figure.stat().st_size > 5_000
    assert len(list(folder.iterdir())) == 4


def test_the_error_of_a_rotation_is_what_is_left_of_it():
    example = load("upright_volume")
    family, size = example.TURN, (example.SIDE,) * 3
    turns = torch.tensor([[0.0, 0.0, 0.5], [0.3, 0.0, 0.0]])
    found = torch.tensor([[0.0, 0.0, -0.4], [-0.3, 0.0, 0.0]])
    left = example.error_in_degrees(*(family.matrix(theta, stn.Frame(size)) for theta in (turns, found)))
    torch.testing.assert_close(left, torch.tensor([math.degrees(0.1), 0.0]), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (["--steps", "0"], "expected at least 1"),
        (["--threads", "-1"], "expected at least 1"),
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
    [
        ("register_pair", ["no-such-photo.jpg"], "photo: expected an image file"),
        ("register_pair", [__file__], "photo: expected an image file"),
        ("register_pair", ["--shift", "nan"], "--shift: expected a number in [0, 0.25)"),
        ("align_faces", ["--jitter", "3"], "--jitter: 0 to 2"),
        ("align_stack", ["--count", "1"], "--count: at least 2"),
        ("align_series", ["--noise", "nan"], "--noise"),
        ("upright_volume", ["--turn", "0"], "--turn: in (0, 180]"),
    ],
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
