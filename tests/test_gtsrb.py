"""Traffic signs: the official archives and a small copy of them, the split by track, the network with two transformers."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import stn
from stn import models
from stn_recipes.data import gtsrb
from stn_recipes.data.module import ImageDataModule
from stn_recipes.data.registry import DataError, ImageData, Source

TRACKS, FRAMES, NAMES = 3, 4, ("stop", "yield", "go")
TRAIN, TEST = len(NAMES) * TRACKS * FRAMES, 7
REAL = os.environ.get("STN_DATA_DIR")


def pixels(label, track, frame, size=(31, 29)):
    generator = np.random.default_rng((label, track, frame))
    return Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(image, format):
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def archive(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in content.items():
            opened.writestr(name, data)


def everything():
    """(label, track, frame) of the training images, (label, number) of the test images, which are in no order."""
    train = [(label, track, frame) for label in range(len(NAMES)) for track in range(TRACKS) for frame in range(FRAMES)]
    return train, [(number * 2 % len(NAMES), number) for number in range(TEST)]


@pytest.fixture
def official(tmp_path):
    """The official archives, and the data set that knows their sums."""
    train, test = everything()
    archive(tmp_path / "gtsrb/GTSRB_Final_Training_Images.zip", {
        f"GTSRB/Final_Training/Images/{label:05d}/{track:05d}_{frame:05d}.ppm": encoded(pixels(label, track, frame), "PPM")
        for label, track, frame in train
    } | {"GTSRB/Final_Training/Images/00000/GT-00000.csv": b"Filename;Width"})  # fmt: skip
    archive(tmp_path / "gtsrb/GTSRB_Final_Test_Images.zip", {
        f"GTSRB/Final_Test/Images/{number:05d}.ppm": encoded(pixels(label, 99, number), "PPM") for label, number in test
    })  # fmt: skip
    rows = ["Filename;Width;ClassId", *(f"{number:05d}.ppm;29;{label}" for label, number in reversed(test))]
    archive(tmp_path / "gtsrb/GTSRB_Final_Test_GT.zip", {"GT-final_test.csv": "\n".join(rows)})
    files = {name: md5(tmp_path / "gtsrb" / name) for name in gtsrb.DATA.files}
    return tmp_path, replace(gtsrb.DATA, class_names=NAMES, counts=(TRAIN, TEST), files=files)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def small(tmp_path):
    """The small copy, its images 40x40 already."""
    train, test = everything()
    archive(tmp_path / "gtsrb/train.zip", {
        f"{label:02d}/{track:05d}_{frame:05d}.png": encoded(pixels(label, track, frame, (40, 40)), "PNG")
        for label, track, frame in train
    })  # fmt: skip
    archive(tmp_path / "gtsrb/test.zip", {
        f"{label:02d}/{number:05d}.png": encoded(pixels(label, 99, number, (40, 40)), "PNG") for label, number in test
    })  # fmt: skip
    return tmp_path, replace(gtsrb.DATA, class_names=NAMES, counts=(TRAIN, TEST))


def as_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def check(data_dir, data, prepare):
    train, test = (data.read(Source(data_dir, progress=False), train=which) for which in (True, False))
    of_train, of_test = everything()
    assert train.labels.tolist() == [label for label, _, _ in of_train]
    assert test.labels.tolist() == [label for label, _ in of_test]
    assert train.groups.tolist() == [label * 100_000 + track for label, track, _ in of_train]
    assert test.groups is None
    assert train.class_names == NAMES
    assert torch.equal(train.images[5], as_tensor(prepare(pixels(*of_train[5]))))
    label, number = of_test[4]
    assert torch.equal(test.images[4], as_tensor(prepare(pixels(label, 99, number))))


def test_the_official_archives(official):
    check(*official, lambda image: image.resize((40, 40), Image.Resampling.BILINEAR))


def test_the_small_copy(small):
    data_dir, data = small
    train = data.read(Source(data_dir, progress=False), train=True)
    test = data.read(Source(data_dir, progress=False), train=False)
    of_train, of_test = everything()
    assert torch.equal(train.images[5], as_tensor(pixels(*of_train[5], (40, 40))))
    assert torch.equal(test.images[4], as_tensor(pixels(of_test[4][0], 99, of_test[4][1], (40, 40))))
    assert test.labels.tolist() == [label for label, _ in of_test]
    assert train.groups.tolist() == [label * 100_000 + track for label, track, _ in of_train]


def test_damage_is_refused(small, official):
    data_dir, data = small
    file = data_dir / "gtsrb/train.zip"
    whole = file.read_bytes()
    with pytest.raises(DataError, match=r"train.zip: expected 37 images of 3 classes, found 36 of 3"):
        replace(data, counts=(TRAIN + 1, TEST)).read(Source(data_dir), train=True)
    with pytest.raises(DataError, match=r"train.zip: expected 36 images of 2 classes, found 36 of 3, such as class 2"):
        replace(data, class_names=NAMES[:2]).read(Source(data_dir), train=True)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (bytes(flipped), whole[: len(whole) // 2], b"no archive"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"train.zip: damaged.*get it again"):
            data.read(Source(data_dir), train=True)
    archive(file, {"notes/read me.txt": b"hello"})
    with pytest.raises(DataError, match=r"train.zip: damaged: invalid literal for int"):
        data.read(Source(data_dir), train=True)
    for name in gtsrb.SMALL:
        (data_dir / "gtsrb" / name).unlink()
    (data_dir / "gtsrb/GTSRB_Final_Test_GT.zip").write_bytes(b"other")
    with pytest.raises(DataError, match=r"GTSRB_Final_Test_GT.zip: damaged or not the official file of 'gtsrb'"):
        official[1].read(Source(data_dir), train=False)
    (data_dir / "gtsrb/GTSRB_Final_Test_GT.zip").unlink()
    with pytest.raises(DataError, match=r"GTSRB_Final_Test_GT.zip of 'gtsrb' is in none of"):
        official[1].read(Source(data_dir), train=False)


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_a_track_is_never_parted(small, monkeypatch, fraction):
    data_dir, data = small
    monkeypatch.setattr(gtsrb, "DATA", data)
    parts = set()
    for seed in range(4):
        module = ImageDataModule(dataset="gtsrb", data_dir=str(data_dir), val_fraction=fraction, seed=seed)
        train, val = module.train_data().data.groups, module.val_data().data.groups
        assert not set(train.tolist()) & set(val.tolist())
        assert len(train) + len(val) == TRAIN
        assert fraction * TRAIN <= len(val) < fraction * TRAIN + FRAMES
        parts.add(tuple(sorted(set(val.tolist()))))
    assert len(parts) > 1  # the seed chooses
    whole = ImageDataModule(dataset="gtsrb", data_dir=str(data_dir), val_fraction=0.0)
    assert len(whole.train_data()) == TRAIN


def test_groups_are_checked():
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"groups: expected int64 of shape \(2,\), got torch.int64 of shape \(3,\)"):
        ImageData(images, labels, ("a",), torch.zeros(3, dtype=torch.int64))


def test_the_deep_network_has_its_second_transformer_on_feature_maps():
    model = models.create("signs_deep", transform="similarity", num_classes=43)
    first, second = (m for m in model.modules() if isinstance(m, stn.SpatialTransformer))
    assert first is model.transformer
    assert model.classifier[models.signs.DEPTH] is second
    seen = []
    second.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    image = torch.rand(2, 3, 40, 40)
    model(image).square().sum().backward()
    assert seen == [(2, 32, 20, 20)]
    heads = [one.localizer[-1].head[-1] for one in (first, second)]
    assert all((head.bias.grad != 0).all() for head in heads)
    torch.testing.assert_close(second.theta(torch.rand(2, 32, 20, 20)), second.transform.identity().expand(2, -1))
    control = models.create("signs_deep", transform=None, num_classes=43)
    assert not [m for m in control.modules() if isinstance(m, stn.SpatialTransformer)]
    bare = models.create("signs_deep", transform=None, widen=False, num_classes=43)
    assert not [m for m in bare.modules() if isinstance(m, stn.SpatialTransformer)]


def test_a_dark_sign_is_as_bright_as_the_others():
    model = models.create("signs", num_classes=43).eval()
    bright = torch.rand(2, 3, 40, 40) + 1
    with torch.no_grad():
        of_bright, of_dark, of_other = model(bright), model(0.1 * bright), model(bright.flip(0))
    assert (of_dark - of_bright).abs().max() < 0.1 * (of_other - of_bright).abs().max()


@pytest.mark.skipif(REAL is None, reason="STN_DATA_DIR does not name the folder of the real data sets")
def test_the_real_signs():
    train = gtsrb.DATA.read(Source(REAL, progress=False), train=True)
    assert train.images.shape == (39_209, 3, 40, 40)
    assert len(train.groups.unique()) == 1_307
