"""Data sets of Hugging Face, made here and read from the disk: no network."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

datasets = pytest.importorskip("datasets")

from stn_recipes import cli  # noqa: E402
from stn_recipes.data import lazy, registry  # noqa: E402
from stn_recipes.data.hub import ArrowImages  # noqa: E402
from stn_recipes.data.module import ImageDataModule  # noqa: E402
from stn_recipes.data.pixels import decode  # noqa: E402
from stn_recipes.data.registry import DataError, Source  # noqa: E402
from stn_recipes.publish import command  # noqa: E402
from stn_recipes.run.folder import read_config  # noqa: E402

LEVELS = {"dark": 40, "light": 210}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")


def encoded(level, seed):
    """A picture of a shape of its own, as the bytes of a PNG file."""
    numbers = np.random.default_rng(seed)
    shape = (*numbers.integers(10, 40, 2), 3)
    file = io.BytesIO()
    Image.fromarray(numbers.integers(level - 30, level + 30, shape, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows(count, seed=0):
    names = [("dark", "dark", "light")[place % 3] for place in range(count)]
    return names, [{"bytes": encoded(LEVELS[name], seed + place), "path": None} for place, name in enumerate(names)]


def table(images, labels, *, feature=None, image="photo", label="kind", **more):
    features = {image: datasets.Image(), label: feature or datasets.ClassLabel(names=list(LEVELS))}
    features |= {name: datasets.Image() if name == "mask" else datasets.Value("int64") for name in more}
    return datasets.Dataset.from_dict({image: images, label: labels, **more}, features=datasets.Features(features))


def saved(folder, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return f"hf:{folder}"


def read(name, *, train=True, **options):
    source = Source(image_size=(12, 16), progress=False, **options)
    return registry.get(name).read(source, train=train)


def test_splits_columns_and_classes(tmp_path):
    names, images = rows(30)
    name = saved(tmp_path / "set", train=table(images, names), test=table(*reversed(rows(9, 100))))
    train, test = read(name), read(name, train=False)
    assert train.class_names == ("dark", "light")
    assert (len(train), len(test)) == (30, 9)
    assert train.labels.tolist() == [int(one == "light") for one in names]
    for place in (0, 17):
        wanted = decode(io.BytesIO(images[place]["bytes"]), (12, 16))
        assert np.array_equal(train.images[place].permute(1, 2, 0), wanted)
    # Without a test set a fifth of each class is one.
    name = saved(tmp_path / "one", train=table(images, names))
    train, test = read(name), read(name, train=False)
    assert torch.bincount(test.labels).tolist() == [4, 2]
    assert len(train) == 24
    everything = torch.cat([train.images, test.images]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 30
    # A test set whose classes are kept back is none.
    hidden = table(images[:5], [-1] * 5)
    name = saved(tmp_path / "hidden", train=table(images, names), test=hidden, validation=table(images[:4], names[:4]))
    assert len(read(name, train=False)) == 4
    # The classes of a trained network go by their names.
    known = read(name, class_names=("none", "light", "dark"))
    assert known.labels.tolist() == [2 - int(one == "light") for one in names]
    with pytest.raises(DataError, match="train: class 'dark' is none of light, none"):
        read(name, class_names=("light", "none"))


def test_lazy_from_arrow_is_as_in_memory(tmp_path):
    names, images = rows(24)
    name = saved(tmp_path / "set", train=table(images, names))
    whole, parts = read(name, fit="pad"), read(name, fit="pad", memory_limit=0)
    assert isinstance(parts.images, ArrowImages)
    assert torch.equal(parts.images[torch.arange(len(parts))], whole.images)
    options = {"dataset": name, "image_size": (12, 16), "distortion": "tc", "batch_size": 5}
    memory, disk = ImageDataModule(**options), ImageDataModule(**options, memory_limit="0", num_workers=2)
    for data in (memory, disk):
        data.setup("test")
    assert (disk.mean, disk.std) == (memory.mean, memory.std)
    for mine, theirs in zip(disk.train_dataloader(), memory.train_dataloader(), strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])


def test_columns_that_could_be_others_are_told(tmp_path):
    names, images = rows(12)
    name = saved(tmp_path / "set", train=table(images, names, mask=images[::-1], size=list(range(12))))
    with pytest.raises(
        DataError, match=r"image_column: .* has 2 columns of images.*--image-column.*photo, kind, mask, size"
    ):
        read(name)
    whole = read(name, columns=("mask", None))
    assert np.array_equal(
        read(name, columns=("photo", None)).images[0].permute(1, 2, 0), decode(io.BytesIO(images[0]["bytes"]), (12, 16))
    )
    assert not torch.equal(whole.images, read(name, columns=("photo", None)).images)
    with pytest.raises(DataError, match=r"image_column: expected a column of images of .* \(photo, mask\), got 'size'"):
        read(name, columns=("size", None))
    with pytest.raises(DataError, match=r"label_column: expected a column of classes of .*got 'nothing'"):
        read(name, columns=("photo", "nothing"))


def test_words_and_numbers_are_classes(tmp_path):
    names, images = rows(12)
    words = table(images, names, feature=datasets.Value("string"), label="label")
    assert read(saved(tmp_path / "words", train=words)).class_names == ("dark", "light")
    numbers = table(images, [(10, 9)[one == "light"] for one in names], feature=datasets.Value("int64"), label="label")
    found = read(saved(tmp_path / "numbers", train=numbers))
    assert found.class_names == ("9", "10")
    other = table(images, names, feature=datasets.Value("string"), label="genus")
    name = saved(tmp_path / "other", train=other)
    with pytest.raises(DataError, match=r"label_column: .* has 0 columns of classes"):
        read(name)
    assert read(name, columns=(None, "genus")).class_names == ("dark", "light")
    floats = saved(
        tmp_path / "floats", train=table(images, [0.5] * 12, feature=datasets.Value("float32"), label="label")
    )
    with pytest.raises(DataError, match="expected whole numbers, words or classes, got 'label' of float32"):
        read(floats)
    one = saved(tmp_path / "one", train=table(images, ["x"] * 12, feature=datasets.Value("string"), label="label"))
    with pytest.raises(DataError, match="expected at least two classes in 'label', got 1"):
        read(one)


def test_what_cannot_be_used_is_named(tmp_path):
    names, images = rows(12)
    images[4] = {"bytes": images[4]["bytes"][:60], "path": None}
    images[7] = None
    labels = names.copy()
    name = saved(tmp_path / "set", train=table(images, labels), test=table(images[:3], names[:3]))
    for limit in (0, 1 << 30):
        with pytest.raises(
            DataError, match=r"train, row 4: cannot be read.*train, row 7: .*there is no image.*2 of 12"
        ):
            read(name, memory_limit=limit)
    with pytest.warns(UserWarning, match="row [47]: skipped"):
        assert len(read(name, on_bad_image="skip", memory_limit=0)) == 10
    with pytest.raises(DataError, match=r"train, row 2: no class \(1 of 3 rows\)"):
        read(saved(tmp_path / "none", train=table(images[:3], [0, 1, None])))
    with pytest.raises(DataError, match="expected a split called train, found test"):
        read(saved(tmp_path / "test", test=table(images[:3], names[:3])))
    with pytest.raises(DataError, match=r"dataset: hf:.*nowhere cannot be read from"):
        read(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=r"image_column, label_column: only data sets by Hugging Face"):
        ImageDataModule(dataset="digits", label_column="kind")


def test_that_rows_can_be_read_is_remembered(tmp_path, monkeypatch):
    names, images = rows(12)
    name = saved(tmp_path / "set", train=table(images, names), test=table(images[:3], names[:3]))
    read(name, memory_limit=0)
    monkeypatch.setattr(lazy, "decode", None)
    assert len(read(name, memory_limit=0)) == 12


def test_files_of_parquet_are_read_by_the_folder(tmp_path):
    names, images = rows(12)
    (tmp_path / "set").mkdir()
    table(images, names).to_parquet(str(tmp_path / "set" / "train.parquet"))
    assert len(read(f"hf:{tmp_path / 'set'}", train=False)) == 3


def test_a_run_on_the_command_line(tmp_path, capsys):
    names, images = rows(40)
    name = saved(tmp_path / "set", train=table(images, names))
    run = tmp_path / "run"
    words = ["train", "images", "--dataset", name, "--image-size", "28", "--network", "mnist_tutorial", "--epochs", "2"]
    words += ["--threads", "1", "--memory-limit", "0", "--num-workers", "2", "--balance", "true", "--out", str(run)]
    words += ["--transformer", "none", "--no-progress", "--batch-size", "8"]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert name in (run / "config.yaml").read_text()
    page = (run / "report.html").read_text()
    assert "hf:DATA images" in page
    assert str(tmp_path) not in page
    config = read_config(run)
    assert "--dataset hf:DATA" in command(config, control=False)
    assert replace(config, dataset="hf:user/name").shareable("hf:user/name") == "hf:user/name"
    capsys.readouterr()
    moved = Path(name.removeprefix("hf:")).rename(tmp_path / "moved")
    assert cli.main(["evaluate", str(run), "--json"]) == 1
    assert "cannot be read from" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run), "--json", "--data-dir", str(moved)]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert (measured["what"], measured["images"]) == ("test set", 8)
    assert measured["test_accuracy"] == json.loads((run / "result.json").read_text())["test_accuracy"]
    assert cli.main(["train", "images", "--dataset", "hg:x"]) == 1


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'spatial-transformers\[hf\]'"):
        read("hf:any")
