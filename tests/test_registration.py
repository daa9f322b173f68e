"""`stn.register` and `stn register`: what they find, what they carry along, and when they say that they found nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

import stn
from stn import conventions, volumes
from stn_recipes.cli import main


def texture(size, seed=0, channels=1, scales=((4, 1.0), (8, 0.6), (16, 0.3))):
    """Smooth noise of several scales, (1, channels, *size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    mode = {2: "bicubic", 3: "trilinear"}[len(size)]
    total = torch.zeros(1, channels, *size)
    for n, weight in scales:
        coarse = torch.randn(1, channels, *[max(2, round(n * s / max(size))) for s in size], generator=generator)
        total += weight * F.interpolate(coarse, size, mode=mode, align_corners=False)
    return ((total - total.min()) / (total.max() - total.min())).contiguous()


def worst(found, truth, size):
    """The largest distance in pixels of the moving image between where points of the fixed one are read and should be."""
    points = 1.6 * torch.rand(1, 50, len(size)) - 0.8
    half = torch.tensor(stn.geometry.extent(size))
    return float(((found.map_points(points) - truth(points)) * half).norm(dim=-1).max())


SMALL = {
    "translation": (stn.Translation(), [0.15, -0.1]),
    "rigid": (stn.Rigid(), [0.2, 0.1, -0.1]),
    "similarity": (stn.Similarity(), [0.2, -0.1, 0.1, 0.05]),
    "affine": (stn.Affine(), [0.95, 0.15, 0.1, -0.1, 1.05, -0.05]),
    "corners": (stn.Corners(), [0.2, 0.1, -0.1, 0.15, -0.2, -0.1, 0.1, -0.1]),
}


@pytest.mark.parametrize("name", SMALL)
def test_what_was_done_to_an_image_is_found(name):
    family, theta = SMALL[name]
    moving, theta = texture((40, 56)), torch.tensor([theta])
    frame = stn.Frame((40, 56))
    fixed = stn.warp(moving, theta, transform=family, padding_mode="border")
    found = stn.register(fixed, moving, name)
    assert found.converged, found.problem
    assert found.after < 0.05 * found.before
    assert worst(found, lambda p: family.map_points(theta, p, frame), (40, 56)) < 0.3
    points = torch.rand(1, 5, 2) - 0.5
    torch.testing.assert_close(found.unmap_points(found.map_points(points)), points, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stn.warp(moving, found.matrix()), found.warp(moving))


@pytest.mark.parametrize(
    ("similarity", "change"),
    [("mse", lambda x: x), ("ncc", lambda x: 0.3 * x + 0.5), ("mi", lambda x: 1 - x), ("mi", lambda x: (3 * x).sin())],
)
def test_likeness_is_what_was_asked_for(similarity, change):
    moving, theta = texture((48, 48)), torch.tensor([[0.15, -0.1]])
    family = stn.Translation()
    fixed = change(stn.warp(moving, theta, transform=family, padding_mode="border"))
    found = stn.register(fixed, moving, family, similarity=similarity)
    assert found.converged, found.problem
    assert worst(found, lambda p: family.map_points(theta, p), (48, 48)) < 0.5


def test_a_contrast_that_mse_cannot_see_through():
    moving = texture((48, 48))
    fixed = 1 - stn.warp(moving, torch.tensor([[0.15, -0.1]]), transform=stn.Translation(), padding_mode="border")
    found = stn.register(fixed, moving, "translation", similarity="mse")
    assert worst(found, lambda p: p + torch.tensor([0.15, -0.1]), (48, 48)) > 1


# Volumes, in the world


def world_pair(turn=0.2):
    """Two volumes of one body, of 1 x 1 x 3 and 1.5 mm voxels, the second turned about z and shifted in the scanner; and
    the matrix (1, 3, 4) that maps millimetres of the first to those of the second."""
    fine = texture((30, 30, 30), 3)
    body = torch.diag(torch.tensor([1.5, 1.5, 1.5, 1.0], dtype=torch.float64))
    world = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    world[:3, 3] = torch.tensor([4.0, 3, 3])
    cos, sin = math.cos(turn), math.sin(turn)
    matrix = torch.tensor([[[cos, -sin, 0, 6.0], [sin, cos, 0, -2.0], [0, 0, 1, 1.0]]], dtype=torch.float64)
    size = (12, 34, 36)
    theta = conventions.theta_from_world(matrix, body, (30, 30, 30), world, size).float()
    return stn.warp(fine, theta, size), fine, world, body, matrix


def test_volumes_of_different_spacing_are_brought_together_in_millimetres():
    fixed, moving, fixed_world, moving_world, matrix = world_pair()
    family = stn.Rigid(3, spacing=(1, 1, 3))
    found = stn.register(fixed, moving, family, fixed_world=fixed_world, moving_world=moving_world)
    assert found.converged, found.problem
    sizes = moving_world, (30, 30, 30), fixed_world, (12, 34, 36)
    back = conventions.theta_to_world(found.matrix(), *sizes)
    assert (back[0, :, :3] @ back[0, :, :3].T - torch.eye(3)).abs().max() < 1e-4  # rigid in millimetres
    points = torch.rand(1, 30, 3, dtype=torch.float64) * torch.tensor([30.0, 30, 30]) + 5
    missed = stn.geometry.map_affine(back.double(), points) - stn.geometry.map_affine(matrix, points)
    assert missed.norm(dim=-1).max() < 0.5  # mm
    blind = stn.register(fixed, moving, family, steps=1)
    assert not torch.allclose(blind.unwarped(moving), found.unwarped(moving))


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("family", [stn.BSpline((5, 5)), stn.VelocityField((6, 6))], ids=["bspline", "velocity"])
def test_what_is_bent_is_found_on_top_of_an_affine_map(family):
    size = (48, 48)
    moving = texture(size, 5)
    torch.manual_seed(1)
    bend = stn.BSpline((4, 4))
    theta = 0.06 * torch.randn(1, bend.num_params)
    shift = torch.tensor([[[1.0, 0, 0.1], [0, 1, -0.08]]])
    grid = stn.geometry.map_affine(shift, bend.grid(theta, size).flatten(1, -2)).reshape(1, *size, 2)
    fixed = stn.sample(moving, grid, padding_mode="border")
    first = stn.register(fixed, moving, "affine")
    found = stn.register(fixed, moving, family, initial=first)
    assert torch.equal(found.outer, first.matrix())
    assert found.converged, found.problem
    assert found.after < 0.3 * first.after
    mask = moving > 0.55
    truth = stn.sample(mask.to(torch.uint8), grid, mode="nearest").bool()
    scores = [dice(f(mask, mode="nearest"), truth) for f in (found.unwarped, first.warp, found.warp)]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.95
    points = torch.rand(1, 9, 2) - 0.5
    torch.testing.assert_close(found.unmap_points(found.map_points(points)), points, atol=1e-3, rtol=1e-3)


# When nothing is found


def test_images_that_show_different_things_do_not_converge():
    scales = ((4, 0.5), (12, 1.0), (24, 1.0))
    for transform in ("affine", "corners"):
        fixed, moving = (texture((64, 80), seed, scales=scales) for seed in (1, 2))
        found = stn.register(fixed, moving, transform)
        assert not found.converged
        assert "alike" in found.problem or "covered" in found.problem or "gaining" in found.problem


def test_too_few_steps_are_said():
    moving = texture((48, 48))
    fixed = stn.warp(moving, torch.tensor([[0.1, -0.1]]), transform=stn.Translation(), padding_mode="border")
    found = stn.register(fixed, moving, "translation", steps=8)
    assert "still gaining after 8 steps" in found.problem


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("fixed", (torch.rand(2, 1, 16, 16), torch.rand(1, 1, 16, 16)), {}),
        ("moving", (torch.rand(1, 1, 16, 16), torch.rand(1, 3, 16, 16)), {}),
        ("moving", (torch.rand(1, 1, 16, 16), torch.rand(1, 1, 8, 16, 16)), {}),
        ("moving", (torch.rand(1, 1, 16, 16), torch.ones(1, 1, 16, 16)), {}),
        ("fixed", (torch.full((1, 1, 16, 16), math.nan), torch.rand(1, 1, 16, 16)), {}),
        ("fixed", (torch.ones(1, 1, 16, 16, dtype=torch.uint8), torch.rand(1, 1, 16, 16)), {}),
        ("transform", (torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16), "afine"), {}),
        ("transform", (torch.rand(1, 1, 8, 16, 16), torch.rand(1, 1, 8, 16, 16), "corners"), {}),
        ("similarity", (torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)), {"similarity": "ssim"}),
        ("steps", (torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)), {"steps": 0}),
        ("levels", (torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)), {"levels": 0}),
        ("smoothness", (torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)), {"smoothness": -1.0}),
        ("moving_world", (torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)), {"fixed_world": torch.eye(3)}),
        ("fixed_world", (torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)),
         {"fixed_world": torch.eye(4), "moving_world": torch.eye(3)}),
        ("initial", (torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)), {"initial": "affine"}),
    ],
)  # fmt: skip
def test_what_cannot_be_registered_is_refused(argument, arguments, options):
    with pytest.raises(ValueError, match=rf"^{argument}: "):
        stn.register(*arguments, **options)


# The command


def run(capsys, *words):
    code = main(["register", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def photos(tmp_path):
    moving = texture((48, 64), channels=3)
    theta = torch.tensor([[0.95, 0.1, 0.1, -0.1, 1.05, -0.05]])
    fixed = stn.warp(moving, theta, transform=stn.Affine(), padding_mode="border")
    for name, image in (("moving", moving), ("fixed", fixed)):
        array = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    return tmp_path, theta


def test_photos_on_the_command_line(photos, capsys):
    folder, theta = photos
    mask = Image.fromarray((np.indices((48, 64)).sum(0) > 60).astype(np.uint8) * 7).convert("P")
    mask.putpalette([0, 0, 0] * 7 + [255, 0, 0] + [0, 0, 0] * 248)
    mask.save(folder / "mask.png")
    there = stn.Affine().map_points(theta, torch.tensor([[[0.0, 0.0], [0.5, -0.25]]]))
    pixels = conventions.normalized_to_pixel(there, (48, 64))[0].tolist()
    (folder / "points.csv").write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in pixels))
    words = [folder / "fixed.png", folder / "moving.png", "--out", folder / "warped.png"]
    words += [
        "--theta",
        folder / "theta.safetensors",
        "--points",
        folder / "points.csv",
        "--labels",
        folder / "mask.png",
    ]
    code, said, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "loss" in said
    names = {"warped.png", "warped.before_after.png", "theta.safetensors", "warped.points.csv", "warped.labels.png"}
    assert names <= {path.name for path in folder.iterdir()}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    kept = load_file(folder / "theta.safetensors")
    torch.testing.assert_close(kept["theta"], theta, atol=0.02, rtol=0)
    torch.testing.assert_close(kept["matrix"].flatten(1), kept["theta"])
    lines = (folder / "warped.points.csv").read_text().splitlines()
    assert lines[0] == "x,y"
    found = torch.tensor([[float(v) for v in line.split(",")] for line in lines[1:]])
    wanted = conventions.normalized_to_pixel(torch.tensor([[0.0, 0.0], [0.5, -0.25]]), (48, 64))
    assert (found - wanted).abs().max() < 0.5
    with Image.open(folder / "warped.labels.png") as labels:
        assert labels.mode == "P"
        assert labels.getpalette()[21:24] == [255, 0, 0]
        assert set(np.unique(np.asarray(labels))) == {0, 7}
    fixed, warped = (np.asarray(Image.open(folder / f"{n}.png"), dtype=float) for n in ("fixed", "warped"))
    assert abs(fixed - warped)[8:-8, 8:-8].mean() < 4


def test_volumes_on_the_command_line(tmp_path, capsys):
    pytest.importorskip("nibabel")
    fixed, moving, fixed_world, moving_world, matrix = world_pair(0.1)
    volumes.save(tmp_path / "fixed.nii.gz", fixed, fixed_world)
    volumes.save(tmp_path / "moving.nii", moving, moving_world)
    labels = (moving > 0.5).to(torch.int16) * 300
    volumes.save(tmp_path / "labels.nii.gz", labels, moving_world)
    centre = torch.tensor([[[20.0, 20, 20]]], dtype=torch.float64)
    there = stn.geometry.map_affine(matrix, centre)[0, 0].tolist()
    (tmp_path / "points.csv").write_text(",".join(map(str, there)) + "\n")
    words = [tmp_path / "fixed.nii.gz", tmp_path / "moving.nii", "--out", tmp_path / "out.nii.gz"]
    words += ["--transform", "rigid", "--theta", tmp_path / "theta.npz"]
    words += ["--points", tmp_path / "points.csv", "--labels", tmp_path / "labels.nii.gz"]
    code, _, err = run(capsys, *words)
    assert (code, err) == (0, "")
    out, carried = volumes.load(tmp_path / "out.nii.gz"), volumes.load(tmp_path / "out.labels.nii.gz")
    torch.testing.assert_close(out.world, fixed_world)
    assert out.size == carried.size == (12, 34, 36)
    assert carried.data.dtype == torch.int16
    assert set(carried.data.unique().tolist()) == {0, 300}
    assert dice(carried.data > 0, fixed > 0.5) > 0.9
    with np.load(tmp_path / "theta.npz") as kept:
        assert json.loads(str(kept["transform"]))["spacing"] == [1.0, 1.0, 3.0]
        np.testing.assert_allclose(kept["world_matrix"][0], matrix[0].numpy(), atol=0.5)
        np.testing.assert_allclose(kept["world_matrix"][0, :, :3], matrix[0, :, :3].numpy(), atol=0.02)
    point = [float(v) for v in (tmp_path / "out.points.csv").read_text().splitlines()[1].split(",")]
    assert (torch.tensor(point) - 20).abs().max() < 0.5
    assert (tmp_path / "out.before_after.png").stat().st_size > 1000


def test_what_did_not_converge_has_a_code_of_its_own_words(photos, capsys):
    folder, _ = photos
    words = [folder / "fixed.png", folder / "moving.png", "--out", folder / "warped.png", "--steps", "3"]
    code, _, err = run(capsys, *words)
    assert code == 1
    assert "did not converge: still gaining after 3 steps" in err
    assert (folder / "warped.png").exists()


def test_a_bent_photo_on_the_command_line(photos, capsys):
    folder, _ = photos
    words = [folder / "fixed.png", folder / "moving.png", "--out", folder / "warped.png", "--transform", "bspline"]
    code, said, _ = run(capsys, *words, "--theta", folder / "field.safetensors", "--steps", "40")
    assert code in (0, 1)
    assert "affine: loss" in said
    assert "bspline: loss" in said
    assert load_file(folder / "field.safetensors")["grid"].shape == (48, 64, 2)


def test_files_that_do_not_fit_are_refused_by_name(photos, capsys):
    folder, _ = photos
    a, b, out = folder / "fixed.png", folder / "moving.png", folder / "x.png"
    (folder / "bad.csv").write_text("1,2,3\n")
    (folder / "text.png").write_text("no image")
    Image.new("L", (9, 9)).save(folder / "small.png")
    cases = [
        ([a, folder / "none.png", "--out", out], "none.png"),
        ([a, folder / "text.png", "--out", out], "text.png"),
        ([a, folder / "none.nii", "--out", out], "moving: expected a photo"),
        ([a, b, "--out", folder / "x.nope"], "out: expected an image file"),
        ([a, b, "--out", folder / "no" / "x.png"], "out: expected a folder that exists"),
        ([a, b, "--out", out, "--theta", folder / "x.pt"], "theta: expected a file named"),
        ([a, b, "--out", out, "--picture", folder / "x.txt"], "picture: expected an image file"),
        ([a, b, "--out", out, "--points", folder / "bad.csv"], "points: expected lines of 2"),
        ([a, b, "--out", out, "--points", folder / "none.csv"], "none.csv"),
        ([a, b, "--out", out, "--labels", folder / "small.png"], "labels: expected the size of moving"),
        ([a, b, "--out", out, "--labels", folder / "text.png"], "labels: "),
        ([a, b, "--out", out, "--steps", "0"], "steps: "),
        ([a, b, "--out", out, "--transform", "bspline", "--control-points", "1"], "lattice: "),
    ]
    for words, expected in cases:
        code, _, err = run(capsys, *words)
        assert code == 1, words
        assert expected in err, (words, err)
        assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["affine", "volume"])
def test_a_peer_finds_the_same(case):
    """SimpleITK, on a pair of the benchmark whose truth is known."""
    pytest.importorskip("SimpleITK")
    from benchmarks.registration import main as measure

    rows = measure(["--only", case, "--seeds", "0"])
    errors = {row["program"]: row["error"] for row in rows}
    assert errors["stn"] < 0.3
    assert errors["SimpleITK"] < 1
    assert all(row["before"] > 5 for row in rows)
