"""Images of any size: how they are brought to one, and that reading them when needed changes nothing."""

from __future__ import annotations

import io
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from stn_recipes import progress
from stn_recipes.config import TrainConfig
from stn_recipes.data import distortions, images, lazy, streams
from stn_recipes.data.images import load_image_folder
from stn_recipes.data.lazy import LazyImages
from stn_recipes.data.module import EpochSampler, ImageDataModule
from stn_recipes.data.pixels import FITS, decode, fitted
from stn_recipes.data.registry import DataError
from stn_recipes.predict import predict
from stn_recipes.run import train as training
from stn_recipes.run.folder import load_run
from stn_recipes.run.train import evaluate, resume, train
from stn_recipes.sizes import bytes_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder, elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lazy.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "stn" / "read"


@pytest.fixture
def folder(tmp_path):
    """Three classes of noise of as many brightnesses, of all shapes, modes and formats."""
    numbers = np.random.default_rng(0)
    root = tmp_path / "photographs"
    for label, (name, count) in enumerate((("dark", 20), ("light", 12), ("middle", 6))):
        for place in range(count):
            height, width = numbers.integers(12, 60, 2)
            level = (40, 220, 130)[label]
            pixels = numbers.integers(level - 30, level + 30, (height, width, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).convert(("RGB", "L", "P", "RGBA", "CMYK")[place % 5])
            exif = Image.Exif()
            exif[0x0112] = 1 + place % 8
            file = root / name / f"{place}.{'tif' if image.mode == 'CMYK' else 'png'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file, exif=exif)
    return root


# How an image is brought to a size


def test_stretch_crop_and_pad():
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, :20], stripes[:, 20:40], stripes[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image = Image.fromarray(stripes)
    stretched, cropped, padded = (
        np.asarray(fitted(image, (20, 20), fit)).astype(int) for fit in ("stretch", "crop", "pad")
    )
    assert stretched[10, 2].tolist() == [255, 0, 0]
    assert stretched[10, 17].tolist() == [0, 0, 255]
    assert (cropped == (0, 255, 0)).all()
    assert (padded[:6] == 0).all()
    assert (padded[13:] == 0).all()
    assert padded[10, 2].tolist() == [255, 0, 0]
    assert padded[10, 17].tolist() == [0, 0, 255]
    assert (padded[6:13].sum(2) > 200).all(), "7 rows of 20 are a third"
    tall = np.asarray(fitted(image.rotate(90, expand=True), (20, 20), "pad"))
    assert (tall[:, :6] == 0).all()
    assert tall[10, 10].tolist() == [0, 255, 0]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (2, 3)])
def test_extreme_images_fill_their_size(fit, size):
    found = np.asarray(fitted(Image.new("RGB", size, (200, 200, 200)), (16, 24), fit))
    assert found.shape == (16, 24, 3)
    assert (found == 200).any()
    assert fit == "pad" or (found == 200).all()


# Read when needed


def batches(data, epoch, train=True):
    loader = data.train_dataloader() if train else data.test_dataloader()
    loader.sampler.set_epoch(epoch)
    pixels, labels = zip(*loader, strict=True)
    return torch.cat(pixels), torch.cat(labels)


@pytest.mark.parametrize("fit", FITS)
def test_lazy_images_are_those_in_memory(folder, fit):
    whole = load_image_folder(folder, (14, 18), fit=fit)
    parts = load_image_folder(folder, (14, 18), fit=fit, memory_limit=0)
    for inside, outside in zip(whole, parts, strict=True):
        assert isinstance(inside.images, torch.Tensor)
        assert isinstance(outside.images, LazyImages)
        assert outside.images.shape == inside.images.shape
        assert torch.equal(outside.images[torch.arange(len(outside))], inside.images)
        some = np.array([3, 0, 3])
        assert torch.equal(outside.take(some).images[torch.tensor([2, 1])], inside.take(some).images[[2, 1]])
        assert torch.equal(outside.labels, inside.labels)
        for place in (0, len(inside) - 1):
            wanted = decode(outside.images.name(place), (14, 18), fit=fit)
            assert np.array_equal(inside.images[place].permute(1, 2, 0), wanted)


def test_a_set_that_just_fits_is_read_into_memory(folder):
    whole, _ = load_image_folder(folder, (14, 18))
    size = whole.images.numel()
    assert isinstance(load_image_folder(folder, (14, 18), memory_limit=size)[0].images, torch.Tensor)
    assert isinstance(load_image_folder(folder, (14, 18), memory_limit=size - 1)[0].images, LazyImages)


@pytest.mark.parametrize("distortion", [None, "rts", "tc"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_from_memory_and_from_disk(folder, distortion, workers):
    options = {
        "dataset": "images", "data_dir": str(folder), "image_size": (16, 16), "fit": "crop", "distortion": distortion,
        "augment": "flip_shift", "batch_size": 5, "val_fraction": 0.2, "eval_batch_size": 3,
    }  # fmt: skip
    memory = ImageDataModule(**options)
    disk = ImageDataModule(**options, memory_limit="0", num_workers=workers)
    for data in (memory, disk):
        data.setup("test")
    assert isinstance(memory.train_data().data.images, torch.Tensor)
    assert isinstance(disk.train_data().data.images, LazyImages)
    assert (disk.mean, disk.std, disk.class_names) == (memory.mean, memory.std, memory.class_names)
    for epoch in (0, 3):
        for mine, theirs in zip(batches(disk, epoch), batches(memory, epoch), strict=True):
            assert torch.equal(mine, theirs)
    assert torch.equal(batches(disk, 0, train=False)[0], batches(memory, 0, train=False)[0])
    assert torch.equal(disk.val_data().__getitems__(range(3))[0], memory.val_data().__getitems__(range(3))[0])


def test_workers_are_those_that_are_told_or_one_for_each_core(folder, monkeypatch):
    monkeypatch.setattr("stn_recipes.data.module.cores", lambda: 6)
    for limit, told, wanted in (("0", None, 6), ("0", 3, 3), ("0", 0, 0), ("1GiB", None, 0), ("1GiB", 2, 2)):
        data = ImageDataModule(dataset="images", data_dir=str(folder), memory_limit=limit, num_workers=told)
        data.setup("fit")
        assert data.train_dataloader().num_workers == wanted, (limit, told)
    monkeypatch.setattr("stn_recipes.data.module.cores", lambda: 40)
    assert ImageDataModule(dataset="images", data_dir=str(folder), memory_limit="0").train_dataloader().num_workers == 8


# Damaged files


def damage(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_damaged_images_are_named_before_anything_is_read_from_the_set(folder):
    for name in ("dark/3.png", "middle/2.png"):
        damage(folder / name)
    said = []
    for limit in (0, 1 << 30):
        with pytest.raises(
            DataError, match=r"dark/3\.png: cannot be read .*middle/2\.png: cannot be read .*2 of"
        ) as caught:
            images.DATA.read_all(lazy.Source(folder, (8, 8), memory_limit=limit, progress=False))
        said.append(str(caught.value))
    assert said[0] == said[1]
    with pytest.warns(UserWarning, match="skipped") as in_memory:
        whole = load_image_folder(folder, (8, 8), on_bad_image="skip")
    with pytest.warns(UserWarning, match="skipped") as on_disk:
        parts = load_image_folder(folder, (8, 8), on_bad_image="skip", memory_limit=0)
    first, second = ([str(warning.message) for warning in one] for one in (in_memory, on_disk))
    assert len(first) == 2
    assert first == second
    for inside, outside in zip(whole, parts, strict=True):
        assert torch.equal(outside.images[torch.arange(len(outside))], inside.images)
        assert torch.equal(outside.labels, inside.labels)
    assert len(whole[0]) + len(whole[1]) == 36


def test_that_a_set_can_be_read_is_remembered_until_a_file_changes(folder, cache, monkeypatch):
    read = []

    def counted(file, *arguments, **options):
        read.append(file)
        return decode(file, *arguments, **options)

    monkeypatch.setattr(lazy, "decode", counted)

    def load():
        read.clear()
        load_image_folder(folder, (8, 8), memory_limit=0)
        return len(read)

    assert load() == 38
    assert len(set(read)) == 38
    assert load() == 0
    (folder / "light" / "3.png").write_bytes((folder / "light" / "5.png").read_bytes())
    os.utime(folder / "light" / "3.png", ns=(1, 1))
    with_it = load()  # of the two sets the one that has the file
    assert 0 < with_it < 38
    assert load() == 0
    for record in cache.iterdir():
        record.write_text("[[0")
    assert load() == 38
    monkeypatch.setattr(lazy, "write_text", lambda *_: (_ for _ in ()).throw(OSError("full")))
    shutil.rmtree(cache)
    assert load() == 38
    assert load() == 38


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_damaged_later_stops_the_epoch_by_name(folder, workers):
    data = ImageDataModule(
        dataset="images", data_dir=str(folder), image_size=(8, 8), memory_limit="0", num_workers=workers, val_fraction=0
    )
    data.setup("fit")
    damage(Path(data.train_data().data.images.name(7)))
    with pytest.raises(DataError) as caught:
        batches(data, 0)
    said = str(caught.value)
    assert said.startswith(data.train_data().data.images.name(7) + ": cannot be read as an image any more: ")
    assert "Traceback" not in said


def test_a_bomb_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # 3481 only earns a warning from Pillow
    Image.new("L", (59, 59)).save(folder / "dark" / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png.*exceeds limit"):
        load_image_folder(folder, (8, 8), memory_limit=0)


# Listing


def test_files_are_listed_in_the_order_of_their_parts(tmp_path):
    names = [
        "b/c.png",
        "b.png",
        "b-/a.png",
        "a/z/1.jpg",
        "a/z.png",
        "a/Z.PNG",
        "b/d/e.gif",
        "b/no.txt",
        ".h/x.png",
        "a/.x.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    found = images.image_files(tmp_path)
    assert found == sorted(found)
    wanted = {tmp_path / name for name in [*names[:7], "gone.png"]}
    assert set(found) == wanted
    assert len(found) == len(wanted)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_paths_are_kept_as_they_are():
    paths = ["/a/b.png", "", "/Straße/写真.png", os.fsdecode(b"/odd\xff\xfe.png")]
    kept = images.Paths(paths)
    assert [kept[place] for place in range(len(kept))] == paths
    assert len(images.Paths([])) == 0


# Progress


def shown(terminal, steps, **options):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    with progress.counting("Listing images", console=console, **options) as tick:
        for _ in range(steps):
            tick()
    return file.getvalue()


def test_progress_is_shown_after_a_while_and_a_log_gets_lines(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    assert shown(True, 1) == ""
    assert "Listing images" in shown(True, 5)
    assert "5/5" in shown(True, 5, total=5)
    assert "0/5" not in shown(True, 5, total=5)
    assert shown(True, 5, shown=False) == ""
    assert shown(False, 15) == ""
    assert shown(False, 65).splitlines() == ["Listing images: 20", "Listing images: 40", "Listing images: 60"]
    assert shown(False, 25, total=1500).splitlines() == ["Listing images: 20 of 1,500"]
    assert list(progress.track(iter("abc"), "Reading")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("2GiB", 2 << 30), ("500 MB", 500_000_000), ("1.5KiB", 1536), ("1TB", 10**12)],
)
def test_amounts_of_memory(text, size):
    assert bytes_of("memory_limit", text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2gib", "-1", "2 GiB of it", "1e3", "2Gi"])
def test_no_amounts_of_memory(text):
    with pytest.raises(ValueError, match="memory_limit: expected an amount of memory such as 2GiB, 500MB or 0, got"):
        TrainConfig(memory_limit=text)


# A run


def test_a_run_from_disk_is_the_run_from_memory(folder, tmp_path):
    config = TrainConfig(
        recipe="images", dataset="images", data_dir=str(folder), image_size=(20, 28), fit="pad", network="compact",
        transformer="similarity", epochs=2, batch_size=8, lr=0.01, threads=1, progress=False, out=str(tmp_path / "memory"),
    )  # fmt: skip
    memory = load_run(train(config))
    disk = load_run(train(replace(config, memory_limit="0", num_workers=2, out=str(tmp_path / "disk"))))
    assert isinstance(disk.data.test_data().data.images, LazyImages)
    assert disk.facts == memory.facts
    for mine, theirs in zip(disk.model.state_dict().values(), memory.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert disk.result is not None
    assert memory.result is not None
    assert disk.result.test_loss == memory.result.test_loss
    assert disk.mistakes == memory.mistakes
    assert evaluate(disk).classes == evaluate(memory).classes
    assert resume(disk.path, overrides={"memory_limit": "1GiB"}) == disk.path
    assert evaluate(load_run(disk.path), folder).what == "test set"
    # An image is brought to the size as those of the training were.
    wide = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 90, 3), dtype=np.uint8)).save(wide)
    confidence = predict(disk.path, [wide])[0]["confidence"]
    padded = tmp_path / "padded.png"
    Image.fromarray(decode(wide, (20, 28), fit="pad")).save(padded)
    assert predict(disk.path, [padded])[0]["confidence"] == confidence
    Image.fromarray(decode(wide, (20, 28))).save(padded)
    assert predict(disk.path, [padded])[0]["confidence"] != confidence


def test_a_run_that_met_a_damaged_file_goes_on_when_it_is_mended(folder, tmp_path, monkeypatch):
    config = TrainConfig(
        recipe="images", dataset="images", data_dir=str(folder), image_size=(28, 28), network="mnist_tutorial", epochs=1,
        transformer="none", memory_limit="0", val_fraction=0.0, threads=1, progress=False, out=str(tmp_path / "run"),
    )  # fmt: skip
    begin, damaged = training._begin, {}

    def begun(run, config, data, task):
        begin(run, config, data, task)
        if not damaged:
            file = Path(data.train_data().data.images.name(20))
            damaged[file] = file.read_bytes()
            damage(file)

    monkeypatch.setattr(training, "_begin", begun)
    with pytest.raises(
        DataError, match=r"cannot be read as an image any more: .* go on with: stn train --resume .*run$"
    ):
        train(config)
    (file,) = damaged
    file.write_bytes(damaged[file])
    assert load_run(resume(tmp_path / "run")).result is not None


# Classes of very different sizes


def test_an_epoch_in_balance_has_as_many_of_each_class(folder):
    labels = np.repeat([0, 1, 2, 5], [60, 30, 7, 4])
    found = streams.balanced(labels, np.random.default_rng(0))
    assert len(found) == 101
    counts = np.bincount(labels[found[:, 0]], minlength=6)
    assert sorted(counts[[0, 1, 2, 5]]) == [25, 25, 25, 26]
    for place in range(101):  # the first time, the second time, ...
        times = sorted(found[found[:, 0] == place, 1])
        assert times == list(range(len(times)))
    met = np.bincount(found[:, 0], minlength=101)
    assert met[:60].max() == 1
    for own in (met[90:97], met[97:]):
        assert own.max() - own.min() <= 1
    assert (np.diff(labels[found[:, 0]]) != 0).sum() > 40, "mixed"
    assert streams.balanced(np.empty(0, np.int64), np.random.default_rng(0)).shape == (0, 2)


def test_balanced_epochs_repeat_and_are_shared_out(folder):
    options = {"dataset": "images", "data_dir": str(folder), "image_size": (8, 8), "val_fraction": 0.0, "balance": True}
    data = ImageDataModule(**options, distortion="r", batch_size=4)
    data.setup("fit")
    labels = data.train_data().data.labels
    assert sorted(torch.bincount(labels).tolist()) == [5, 10, 16]
    pixels, seen = batches(data, 1)
    assert sorted(torch.bincount(seen).tolist()) == [10, 10, 11]
    again = ImageDataModule(**options, distortion="r", batch_size=7, num_workers=2, memory_limit="0")
    for mine, theirs in zip(batches(again, 1), (pixels, seen), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(batches(data, 2)[1], seen)
    # Every draw of an image that comes again is distorted otherwise.
    assert len(torch.unique(pixels.flatten(1), dim=0)) == len(pixels)
    classes = labels.numpy()
    whole = list(EpochSampler(31, shuffle=True, balance=classes))
    parts = [list(EpochSampler(31, shuffle=True, balance=classes, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [16, 16]
    assert [one for pair in zip(*parts, strict=True) for one in pair] == [*whole, whole[0]]
    with pytest.raises(ValueError, match="balance: expected the classes of 5 samples that are shuffled, got 4 classes"):
        EpochSampler(5, shuffle=True, balance=np.zeros(4, np.int64))
    # The validation set is as it is.
    held = ImageDataModule(**{**options, "val_fraction": 0.3})
    assert len(torch.cat([one for _, one in held.val_dataloader()])) == len(held.val_data())


def test_rows_that_are_drawn_alone_are_those_of_the_table(monkeypatch, folder):
    for seed in (0, 2**40):
        table = distortions.draw(50, 7, seed=seed, stream=3, epoch=11)
        for place in (0, 1, 49):
            row = distortions.draw_row(7, seed=seed, stream=3, epoch=11, place=place)
            assert np.array_equal(row, table[place])
            assert not np.array_equal(distortions.draw_row(7, seed=seed, stream=3, epoch=11, place=place, again=1), row)
    options = {"dataset": "images", "data_dir": str(folder), "image_size": (8, 8), "distortion": "r", "balance": True}
    small = batches(ImageDataModule(**options), 2)[0]
    monkeypatch.setattr("stn_recipes.data.module._LARGEST_TABLE", 10)
    assert torch.equal(batches(ImageDataModule(**options), 2)[0], small)
