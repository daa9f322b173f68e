import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from PIL import Image

from stn_recipes.data import DATASETS, cifar10, distortions, fashion_mnist, images, mnist, official, registry, streams
from stn_recipes.data.images import load_image_folder
from stn_recipes.data.module import EpochSampler, ImageDataModule, ImageDataset
from stn_recipes.data.pixels import decode
from stn_recipes.data.registry import DataError, ImageData, load

REAL = os.environ.get("STN_DATA_DIR")
needs_real = pytest.mark.skipif(REAL is None, reason="STN_DATA_DIR does not name the folder of the real data sets")


def md5(content):
    return hashlib.md5(content).hexdigest()


def small(count=40, side=12, channels=1, classes=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    return ImageData(images, torch.arange(count) % classes, tuple("abcdefgh"[:classes]))


# Digits


def test_digits_are_split_once_and_by_class():
    train, test = load("digits")
    assert train.images.shape == (1438, 1, 28, 28)
    assert test.images.shape == (359, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.class_names == tuple("0123456789")
    counts = torch.bincount(test.labels, minlength=10)
    assert counts.min() >= 34
    assert counts.max() <= 37
    assert train.images.max() == 255
    again = load("digits")[1]
    assert torch.equal(again.images, test.images)
    everything = torch.cat([train.images, test.images])
    assert len(torch.unique(everything.flatten(1), dim=0)) == 1797


def test_digits_are_scikit_learns_enlarged():
    from sklearn.datasets import load_digits

    train, _ = load("digits")
    tiny = torch.nn.functional.adaptive_avg_pool2d(train.images.double(), 8) / 255 * 16
    original = torch.from_numpy(load_digits().images)[:, None]
    distance = torch.cdist(tiny[:50].flatten(1), original.flatten(1))
    nearest = distance.argmin(1)
    assert torch.equal(torch.from_numpy(load_digits().target)[nearest], train.labels[:50])


# Official files


def idx(array):
    return gzip.compress(
        struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


@pytest.fixture
def fake_mnist(monkeypatch):
    """File contents of a tiny MNIST whose checksums are the expected ones."""
    rng = np.random.default_rng(0)
    files = {}
    for name, count in (("train", 20), ("t10k", 10)):
        files[f"{name}-images-idx3-ubyte.gz"] = idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[f"{name}-labels-idx1-ubyte.gz"] = idx((np.arange(count) % 10).astype(np.uint8))
    sums = {name: md5(content) for name, content in files.items()}
    monkeypatch.setattr(mnist, "DATA", replace(mnist.DATA, files=sums))
    return files


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw"])
def test_idx_files(tmp_path, fake_mnist, folder):
    write(tmp_path / folder, fake_mnist)
    train, test = load("mnist", tmp_path)
    assert train.images.shape == (20, 1, 28, 28)
    assert test.labels.tolist() == list(range(10))
    raw = gzip.decompress(fake_mnist["t10k-images-idx3-ubyte.gz"])[16:]
    assert test.images.numpy().tobytes() == raw


def test_damaged_and_missing_files(tmp_path, fake_mnist):
    write(tmp_path, fake_mnist)
    name = "train-labels-idx1-ubyte.gz"
    whole = fake_mnist[name]
    for damaged in (whole[:-5], whole[:20] + bytes([whole[20] ^ 1]) + whole[21:], b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            load("mnist", tmp_path)
        for part in (str(tmp_path / name), md5(whole), md5(damaged), f"{len(damaged)} bytes", "again"):
            assert part in str(caught.value)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name} of 'mnist' is in none of") as caught:
        load("mnist", tmp_path)
    assert md5(whole) in str(caught.value)
    with pytest.raises(DataError, match=r"data_dir: expected a folder, got .*does not exist"):
        load("mnist", tmp_path / "nowhere")
    with pytest.raises(DataError, match="which is a file"):
        load("mnist", tmp_path / "t10k-labels-idx1-ubyte.gz")


def test_fashion_mnist_does_not_take_mnists_files(tmp_path, fake_mnist, monkeypatch):
    fashion = {name: content + b"" for name, content in fake_mnist.items()}
    fashion["t10k-images-idx3-ubyte.gz"] = idx(np.zeros((10, 28, 28), np.uint8))
    sums = {name: md5(content) for name, content in fashion.items()}
    monkeypatch.setattr(fashion_mnist, "DATA", replace(fashion_mnist.DATA, files=sums))
    write(tmp_path, fake_mnist)
    with pytest.raises(DataError, match="not the official file of 'fashion_mnist'"):
        load("fashion_mnist", tmp_path)
    write(tmp_path / "fashion_mnist", fashion)
    _, test = load("fashion_mnist", tmp_path)
    assert test.images.max() == 0
    assert test.class_names[9] == "Ankle boot"
    assert load("mnist", tmp_path)[1].images.max() > 0


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def moved_to(monkeypatch, module, url):
    monkeypatch.setattr(module, "DATA", replace(module.DATA, origin=replace(module.DATA.origin, url=url)))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local mirror; yields its folder. Downloads go to tmp_path / "cache"."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        for module in (mnist, fashion_mnist, cifar10):
            moved_to(monkeypatch, module, f"http://127.0.0.1:{httpd.server_address[1]}/")
        monkeypatch.setattr(official.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
        yield folder
        httpd.shutdown()


def test_download_verifies_and_happens_once(server, fake_mnist, tmp_path, capfd):
    write(server, fake_mnist)
    train, _ = load("mnist")
    assert train.images.shape == (20, 1, 28, 28)
    assert "100%" in capfd.readouterr().err  # pooch's progress bar
    for name in fake_mnist:
        (server / name).unlink()
    assert torch.equal(load("mnist", progress=False)[0].images, train.images)
    assert (tmp_path / "cache/stn/mnist/t10k-labels-idx1-ubyte.gz").is_file()


def test_download_of_a_wrong_file_or_none(server, fake_mnist):
    write(server, fake_mnist)
    (server / "train-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"could not download http.*train-images.*(?s:.*)data_dir \(--data-dir\)"):
        load("mnist", progress=False)
    (server / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match="404"):
        load("mnist", progress=False)


def test_no_network(monkeypatch, tmp_path):
    moved_to(monkeypatch, mnist, "http://127.0.0.1:9/")
    monkeypatch.setattr(official.pooch, "os_cache", lambda project: tmp_path / project)
    with pytest.raises(DataError, match=r"Without a network.*--data-dir"):
        load("mnist", progress=False)


@pytest.fixture
def fake_cifar(monkeypatch):
    rng = np.random.default_rng(0)
    files = {}
    for name in cifar10.DATA.files:
        if name == "batches.meta":
            content = {"label_names": list("abcdefghij")}
        else:
            content = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        files[name] = pickle.dumps(content, protocol=4)
    sums = {name: md5(content) for name, content in files.items()}
    monkeypatch.setattr(cifar10, "DATA", replace(cifar10.DATA, files=sums))
    return files


def archive(files, path):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return md5(path.read_bytes())


def test_cifar_from_folder_archive_and_download(fake_cifar, tmp_path, monkeypatch, server):
    write(tmp_path / "a/cifar-10-batches-py", fake_cifar)
    train, test = load("cifar10", tmp_path / "a")
    assert train.images.shape == (50, 3, 32, 32)
    assert train.class_names == tuple("abcdefghij")
    third = pickle.loads(fake_cifar["data_batch_3"])["data"]
    assert train.images[20:30].numpy().tobytes() == third.tobytes()
    assert torch.equal(load("cifar10", tmp_path / "a/cifar-10-batches-py")[1].images, test.images)

    tar = server / "cifar-10-python.tar.gz"
    monkeypatch.setattr(cifar10, "DATA", replace(cifar10.DATA, archive=(tar.name, archive(fake_cifar, tar))))
    for place in (server, None):
        train_2, test_2 = load("cifar10", place, progress=False)
        assert torch.equal(train_2.images, train.images)
        assert torch.equal(test_2.images, test.images)
    tar.write_bytes(tar.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: damaged"):
        load("cifar10", server)
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz of 'cifar10' is in none of"):
        load("cifar10", tmp_path)


def test_cifar_damaged_and_missing_batches(fake_cifar, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write(folder, fake_cifar)
    (folder / "data_batch_2").write_bytes(fake_cifar["data_batch_2"][:-1])
    with pytest.raises(DataError, match="data_batch_2: damaged"):
        load("cifar10", tmp_path)
    (folder / "data_batch_2").unlink()
    with pytest.raises(DataError, match="data_batch_2: missing"):
        load("cifar10", tmp_path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_malicious_pickle_is_refused_even_with_the_right_checksum(fake_cifar, tmp_path, monkeypatch):
    bomb = pickle.dumps({"data": Malicious(tmp_path / "owned"), "labels": []}, protocol=4)
    write(tmp_path / "cifar-10-batches-py", {**fake_cifar, "data_batch_4": bomb})
    with pytest.raises(DataError, match="damaged"):
        load("cifar10", tmp_path)
    monkeypatch.setitem(cifar10.DATA.files, "data_batch_4", md5(bomb))
    with pytest.raises(DataError, match=r"data_batch_4: not a batch.*refused to load posix.mkdir"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "owned").exists()
    pickle.loads(bomb)  # the bomb is live
    assert (tmp_path / "owned").exists()


def test_every_file_of_a_data_set_is_registered():
    folder = Path(registry.__file__).parent
    assert {file.stem for file in folder.glob("*.py") if "\nDATA = " in file.read_text()} == set(DATASETS)
    for name in DATASETS:
        data = registry.get(name)
        assert data.name == name
        assert data.background in ("zeros", "border")
    with pytest.raises(ValueError, match=r"dataset: expected one of digits, .*did you mean 'cifar10'"):
        registry.get("cifar")


def test_load_names():
    with pytest.raises(ValueError, match=r"name: expected one of digits, mnist.*got 'minst'; did you mean 'mnist'"):
        load("minst")
    with pytest.raises(ValueError, match="name: expected one of"):
        load("images")


@needs_real
def test_real_mnist():
    train, test = load("mnist", REAL)
    assert train.images.shape == (60000, 1, 28, 28)
    assert test.images.shape == (10000, 1, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert abs(train.images.double().mean().item() / 255 - 0.1307) < 1e-4


@needs_real
def test_real_cifar10():
    train, test = load("cifar10", REAL)
    assert train.images.shape == (50000, 3, 32, 32)
    assert len(test) == 10000
    assert train.class_names[:3] == ("airplane", "automobile", "bird")
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    means = train.images.transpose(0, 1).flatten(1).double().mean(1) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)


# Folders of images


def picture(path, colour=(200, 10, 10), size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for place in range(10):
        picture(root / "red" / f"{place}.png", (250 - place, 0, 0))
        picture(root / "Green" / "deep" / f"{place}.jpg", (0, 250 - place, 0))
    (root / "red" / "notes.txt").write_text("not an image")
    (root / "red" / ".hidden.png").write_text("not an image")
    (root / ".cache").mkdir()
    (root / "empty").mkdir()
    return root


def test_class_folders(folder):
    train, test = load_image_folder(folder, (16, 24))
    assert train.class_names == ("Green", "red")
    assert train.images.shape == (16, 3, 16, 24)
    assert torch.bincount(test.labels).tolist() == [2, 2]
    for part in (train, test):
        strongest = part.images.float().mean((2, 3)).argmax(1)
        assert torch.equal(strongest, 1 - part.labels)
    same = load_image_folder(folder, (16, 24))
    assert torch.equal(same[1].images, test.images)
    other = load_image_folder(folder, (16, 24), seed=1)
    assert not torch.equal(other[1].images, test.images)
    reds = torch.cat([part.images[part.labels == 1][:, 0, 0, 0] for part in (train, test)])
    assert sorted(reds.tolist()) == list(range(241, 251))


def test_train_and_test_folders(tmp_path):
    for place in range(3):
        for name in ("a", "b"):
            picture(tmp_path / "train" / name / f"{place}.png")
    picture(tmp_path / "test" / "b" / "0.png", (1, 2, 3))
    picture(tmp_path / "test" / "a" / "0.png", (4, 5, 6))
    train, test = load_image_folder(tmp_path, (8, 8))
    assert len(train) == 6
    assert test.images[:, 0, 0, 0].tolist() == [4, 1]
    assert test.labels.tolist() == [0, 1]
    picture(tmp_path / "test" / "c" / "0.png")
    with pytest.raises(DataError, match="class 'c' is not in"):
        load_image_folder(tmp_path)


def test_upright_modes_and_links(tmp_path):
    root = tmp_path / "root"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left half is shown on top
    halves = Image.new("RGB", (40, 40), (0, 0, 255))
    halves.paste((255, 255, 0), (0, 0, 20, 40))
    (root / "a").mkdir(parents=True)
    halves.save(root / "a" / "0.jpg", exif=exif, quality=95)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.fromarray(np.full((5, 5), 128 << 8, np.uint16)).save(elsewhere / "deep.png")
    Image.new("P", (5, 5)).save(elsewhere / "palette.png")
    Image.new("L", (5, 5), 7).save(elsewhere / "grey.png")
    Image.new("RGBA", (5, 5), (9, 8, 7, 0)).save(elsewhere / "alpha.png")
    (root / "b").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(elsewhere)  # a loop
    (root / "a" / "1.png").symlink_to(elsewhere / "grey.png")
    classes = images._scan(root, None, False)
    everything = [classes.paths[place] for place in range(len(classes.paths))]
    assert [Path(path).name for path in everything] == [
        "0.jpg",
        "1.png",
        "alpha.png",
        "deep.png",
        "grey.png",
        "palette.png",
    ]
    pixels = [decode(path, (40, 40)) for path in everything]
    assert pixels[0][5, 20, 2] < 40  # yellow above
    assert pixels[0][35, 20, 2] > 215  # blue below
    assert [image[20, 20].tolist() for image in pixels[1:5]] == [[7] * 3, [9, 8, 7], [128] * 3, [7] * 3]


def test_bad_images_stop_or_are_skipped(folder):
    content = (folder / "red" / "3.png").read_bytes()
    (folder / "red" / "3.png").write_bytes(content[: len(content) // 2])
    (folder / "red" / "4.png").write_text("no image at all")
    with pytest.raises(DataError, match=r"[34]\.png: cannot be read as an image: .*on_bad_image='skip'"):
        load_image_folder(folder)
    with pytest.warns(UserWarning, match=r"[34]\.png: skipped") as caught:
        train, test = load_image_folder(folder, on_bad_image="skip")
    named = {name for name in ("3.png", "4.png") for warning in caught if name in str(warning.message)}
    assert named == {"3.png", "4.png"}
    assert len(train) + len(test) == 18
    assert torch.bincount(torch.cat([train.labels, test.labels])).tolist() == [10, 8]
    colours = torch.cat([train.images, test.images]).float().mean((2, 3)).argmax(1)
    assert torch.equal(colours, 1 - torch.cat([train.labels, test.labels]))


def test_all_unreadable_images_are_named_or_counted(folder):
    for place in range(7):
        (folder / "red" / f"bad{place}.png").write_text("no image at all")
    with pytest.raises(DataError) as caught:
        images.DATA.read_all(registry.Source(folder))
    said = str(caught.value)
    assert all(f"bad{place}.png: cannot be read as an image" in said for place in range(5))
    assert "bad5" not in said
    assert "; and 2 more (7 of 27)" in said
    assert said.endswith("or pass on_bad_image='skip' (--on-bad-image skip).")


def test_classes_go_by_the_names_of_a_trained_network(folder, tmp_path):
    known = ("blue", "Green", "red", "yellow")
    data = module(dataset="images", data_dir=str(folder), class_names=known, limit_train=None)
    data.setup("fit")
    assert (data.class_names, data.num_classes) == (known, 4)
    everything = data.everything((0.0,) * 3, (1.0,) * 3)
    assert len(everything) == 20
    pixels, labels = everything.__getitems__(range(20))
    assert torch.equal(labels, torch.where(pixels.mean((2, 3)).argmax(1) == 1, 1, 2))
    (folder / "Green").rename(folder / "green")
    with pytest.raises(DataError, match="class 'green' is none of blue, Green, red, yellow"):
        module(dataset="images", data_dir=str(folder), class_names=known).setup("fit")
    one = tmp_path / "one"
    one.mkdir()
    (folder / "red").rename(one / "red")
    data = module(dataset="images", data_dir=str(one), class_names=known)
    assert data.everything((0.0,) * 3, (1.0,) * 3).data.labels.tolist() == [2] * 10


def test_decompression_bombs_are_refused(folder, monkeypatch):
    picture(folder / "red" / "huge.png", size=(60, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # 3600 only earns a warning from Pillow
    with pytest.raises(DataError, match=r"huge\.png.*exceeds limit"):
        load_image_folder(folder)


def test_unusable_folders(tmp_path):
    with pytest.raises(DataError, match="path: expected a folder"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected one folder of images per class"):
        load_image_folder(tmp_path)
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected one folder of images per class"):
        load_image_folder(tmp_path)
    picture(tmp_path / "one" / "a.png")
    with pytest.raises(DataError, match="at least two class folders with images, found only 'one'"):
        load_image_folder(tmp_path)
    picture(tmp_path / "two" / "a.png")
    with pytest.raises(DataError, match="no class has two images"):
        load_image_folder(tmp_path)
    picture(tmp_path / "test" / "two" / "a.png")
    with pytest.raises(DataError, match="no train folder"):
        load_image_folder(tmp_path)
    for argument, options in {
        "image_size": {"image_size": (0, 4)},
        "on_bad_image": {"on_bad_image": "ignore"},
        "test_fraction": {"test_fraction": 1.0},
        "seed": {"seed": -1},
    }.items():
        with pytest.raises(ValueError, match=f"{argument}: expected"):
            load_image_folder(tmp_path, **options)


# Batches


def test_image_data_checks():
    good = small()
    with pytest.raises(ValueError, match="images: expected uint8"):
        ImageData(good.images.float(), good.labels, good.class_names)
    with pytest.raises(ValueError, match="labels: expected int64"):
        ImageData(good.images, good.labels[:3], good.class_names)
    with pytest.raises(ValueError, match="labels: expected 0 to 1"):
        ImageData(good.images, good.labels, ("a", "b"))


def test_dataset_normalizes_and_returns_what_was_asked():
    data = small(channels=3)
    dataset = ImageDataset(data, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images, labels = dataset.__getitems__([(4, 7), (4, 2)])
    expected = (data.images[[7, 2]].float() / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor(
        [0.5, 0.6, 0.7]
    )[:, None, None]
    torch.testing.assert_close(images, expected)
    assert labels.tolist() == [3, 2]
    assert images.dtype == torch.float32
    single = dataset[7]
    assert torch.equal(single[0], images[0])
    assert dataset.__getitems__([])[0].shape == (0, 3, 12, 12)


def test_fresh_every_epoch_or_fixed():
    data = small()
    moving = ImageDataset(data, distortion=distortions.get("rts"), augment=distortions.get("flip_shift"))
    fixed = ImageDataset(data, distortion=distortions.get("rts"), stream="val", fixed=True)
    other = ImageDataset(data, distortion=distortions.get("rts"), stream="test", fixed=True)
    places = range(len(data))

    def batch(dataset, epoch):
        return dataset.__getitems__([(epoch, place) for place in places])[0]

    assert torch.equal(batch(moving, 1), batch(moving, 1))
    assert not torch.equal(batch(moving, 1), batch(moving, 2))
    assert torch.equal(batch(fixed, 1), batch(fixed, 2))
    assert not torch.equal(batch(fixed, 0), batch(other, 0))
    picked = [(1, 5), (1, 3)]
    assert torch.equal(moving.__getitems__(picked)[0], batch(moving, 1)[[5, 3]])
    assert moving.image_shape == batch(moving, 1).shape[1:]


def test_augmentation_comes_before_distortion():
    data = small()
    both = ImageDataset(data, distortion=distortions.get("t"), augment=distortions.get("affine"), seed=4)
    images, _ = both.__getitems__([(2, 6)])
    augment = distortions.draw(len(data), 4, seed=4, stream=streams.STREAMS["augment"], epoch=2)[[6]]
    place = distortions.draw(len(data), 2, seed=4, stream=streams.STREAMS["train"], epoch=2)[[6]]
    expected = distortions.get("affine")(data.images[[6]].float() / 255, augment)
    torch.testing.assert_close(images, distortions.get("t")(expected, place))


def test_clutter_comes_from_the_same_set():
    data = small()
    dataset = ImageDataset(data, distortion=distortions.get("tc"))
    images, _ = dataset.__getitems__([(0, 3)])
    random = distortions.draw(len(data), 32, seed=0, stream=0, epoch=0)[[3]]
    expected = distortions.get("tc")(
        data.images[[3]].float() / 255, random, source=data.images, index=torch.tensor([3])
    )
    assert torch.equal(images, expected)


def test_dataset_errors():
    dataset = ImageDataset(small())
    with pytest.raises(ValueError, match=r"items: expected one epoch in a batch, got \[0, 1\]"):
        dataset.__getitems__([(0, 1), (1, 1)])
    with pytest.raises(IndexError, match="items: expected indices from 0 to 39, got 1 to 40"):
        dataset.__getitems__([(0, 1), (0, 40)])
    with pytest.raises(ValueError, match="mean: expected 1 numbers"):
        ImageDataset(small(), mean=(0.0, 0.0))
    with pytest.raises(ValueError, match="stream: expected one of train, val, test, got 'vall'; did you mean 'val'"):
        ImageDataset(small(), stream="vall")
    with pytest.raises(ValueError, match="augment: expected None for a fixed set"):
        ImageDataset(small(), augment=distortions.get("affine"), fixed=True)


def test_sampler_shuffles_by_seed_and_epoch():
    def order(epoch, seed=0):
        sampler = EpochSampler(50, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert {pair[0] for pair in pairs} == {epoch}
        return [pair[1] for pair in pairs]

    assert sorted(order(0)) == list(range(50))
    assert order(3) == order(3)
    assert order(3) != order(4)
    assert order(3) != order(3, seed=1)
    assert [pair[1] for pair in EpochSampler(5, shuffle=False)] == list(range(5))


@pytest.mark.parametrize(("count", "world_size"), [(10, 3), (12, 4), (2, 5), (0, 2)])
def test_sampler_shards(count, world_size):
    def shards(shuffle):
        samplers = [
            EpochSampler(count, shuffle=shuffle, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        parts = [[index for _, index in sampler] for sampler in samplers]
        assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
        return parts

    whole = [index for _, index in EpochSampler(count, shuffle=True)]
    train = shards(shuffle=True)
    assert len({len(part) for part in train}) == 1
    woven = [part[step] for step in range(len(train[0])) for part in train]
    assert woven == list(np.resize(whole, len(woven)))
    assert set(woven) == set(range(count))
    evaluation = shards(shuffle=False)
    assert sorted(index for part in evaluation for index in part) == list(range(count))


def test_sampler_errors():
    with pytest.raises(ValueError, match="rank: expected 0 to 1 for a world_size of 2, got 2"):
        EpochSampler(4, shuffle=True, rank=2, world_size=2)
    with pytest.raises(ValueError, match="epoch: expected an integer of at least 0, got -1"):
        EpochSampler(4, shuffle=True).set_epoch(-1)
    with pytest.raises(TypeError):
        EpochSampler(4, True)


# The Lightning data module


def module(**options):
    options = {"dataset": "digits", "batch_size": 64, "limit_train": 200} | options
    return ImageDataModule(**options)


def epoch_of(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_module_attributes():
    data = module(distortion="rts")
    data.setup("fit")
    assert data.input_shape == (1, 42, 42)
    assert data.num_classes == 10
    assert data.class_names == tuple("0123456789")
    assert data._test is None, "the test set is read only when asked for"
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, 1, 42, 42)
    assert labels.dtype == torch.int64
    first = data.train_data().__getitems__(range(200))[0]
    assert abs(first.mean()) < 1e-4
    assert abs(first.std() - 1) < 1e-3
    assert len(data.test_data()) == 359
    assert data.test_data() is data.test_data()
    data = module()
    data.setup("test")
    assert data._test is not None


def test_module_splits_the_training_set_only():
    data = module(limit_train=None, val_fraction=0.25)
    data.setup("fit")
    train, val = data.train_data().data, data.val_data().data
    assert (len(train), len(val)) == (1438 - 360, 360)
    expected, test = load("digits")
    together = torch.cat([train.images, val.images]).flatten(1)
    assert torch.equal(torch.unique(together, dim=0), torch.unique(expected.images.flatten(1), dim=0))
    assert torch.equal(data.test_data().data.images, test.images)
    again = module(limit_train=None, val_fraction=0.25, distortion="r")
    assert torch.equal(again.val_data().data.images, val.images)
    other = module(limit_train=None, val_fraction=0.25, seed=1)
    assert not torch.equal(other.val_data().data.images, val.images)
    limited = module(limit_train=7, val_fraction=0.25)
    assert torch.equal(limited.train_data().data.images, train.images[:7])


def test_no_validation():
    data = module(val_fraction=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    assert data.val_data() is None


def test_batches_do_not_depend_on_workers_or_batch_size():
    options = {"distortion": "rts", "augment": "affine"}
    images, labels = epoch_of(module(**options), 3)
    for change in ({"num_workers": 2}, {"batch_size": 17}):
        same_images, same_labels = epoch_of(module(**options, **change), 3)
        assert torch.equal(labels, same_labels)
        assert torch.equal(images, same_images), change
    assert not torch.equal(images, epoch_of(module(**options), 4)[0])
    assert not torch.equal(images, epoch_of(module(**options, seed=1), 3)[0])
    fixed = [torch.cat([batch for batch, _ in module(**options).val_dataloader()]) for _ in range(2)]
    assert torch.equal(*fixed)
    small_batches = module(**options, eval_batch_size=5, num_workers=2).val_dataloader()
    assert torch.equal(torch.cat([batch for batch, _ in small_batches]), fixed[0])


def test_module_errors(tmp_path):
    for argument, options in {
        "dataset": {"dataset": "digit"},
        "batch_size": {"batch_size": 0},
        "eval_batch_size": {"eval_batch_size": 2.5},
        "val_fraction": {"val_fraction": 1.0},
        "seed": {"seed": -1},
        "num_workers": {"num_workers": -1},
        "limit_train": {"limit_train": 0},
        "name": {"distortion": "rr"},
        "augment": {"augment": "rts"},
        "image_size": {"image_size": (8, 8)},
        "data_dir": {"dataset": "images"},
        "on_bad_image": {"on_bad_image": "ignore"},
    }.items():
        with pytest.raises(ValueError, match=f"^{argument}: "):
            module(**options)
    with pytest.raises(ValueError, match="limit_train: expected at most 1294"):
        module(limit_train=5000).setup("fit")
    with pytest.raises(ValueError, match="val_fraction: "):
        module(val_fraction=1e-9).setup("fit")
    with pytest.raises(DataError, match="does not exist"):
        module(dataset="mnist", data_dir=str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(TypeError):
        ImageDataModule("digits")


def test_module_with_images(folder):
    data = module(dataset="images", data_dir=str(folder), image_size=(20, 24), limit_train=None, augment="flip_shift")
    data.prepare_data()
    data.setup("fit")
    assert data.input_shape == (3, 20, 24)
    assert data.class_names == ("Green", "red")
    assert len(data.mean) == len(data.std) == 3
    other = module(dataset="images", data_dir=str(folder), image_size=(20, 24), limit_train=None, seed=5)
    assert torch.equal(other.test_data().data.images, data.test_data().data.images), "one test set for all seeds"


def test_prepare_data_downloads(server, fake_mnist, tmp_path):
    write(server, fake_mnist)
    module(dataset="mnist").prepare_data()
    assert len(list((tmp_path / "cache/stn/mnist").iterdir())) == 4


class Recorder(lightning.LightningModule):
    """Learns nothing to speak of and remembers every batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = []

    def training_step(self, batch, _):
        self.seen.append((self.current_epoch, batch[0].clone(), batch[1].clone()))
        return (self.weight * batch[0].mean()) ** 2

    def validation_step(self, batch, _):
        self.validated.append(batch[0].clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, epochs, workers, checkpoint=None):
    recorder = Recorder()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        callbacks=[lightning.callbacks.ModelCheckpoint(folder, save_last=True)],
    )
    trainer.fit(recorder, datamodule=module(distortion="r", num_workers=workers), ckpt_path=checkpoint)
    return recorder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_sets_the_epoch_and_resumes_exactly(tmp_path, workers):
    whole = fit(tmp_path / "whole", 4, workers)
    fit(tmp_path / "half", 2, workers)
    resumed = fit(tmp_path / "half", 4, workers, checkpoint=str(tmp_path / "half" / "last.ckpt"))
    assert [epoch for epoch, _, _ in whole.seen] == [epoch for epoch in range(4) for _ in range(4)]
    data = module(distortion="r")
    for epoch in range(4):
        images, labels = epoch_of(data, epoch)
        assert torch.equal(torch.cat([seen[1] for seen in whole.seen if seen[0] == epoch]), images)
        assert torch.equal(torch.cat([seen[2] for seen in whole.seen if seen[0] == epoch]), labels)
    assert [epoch for epoch, _, _ in resumed.seen] == [2, 2, 2, 2, 3, 3, 3, 3]
    for before, after in zip(whole.seen[8:], resumed.seen, strict=True):
        assert torch.equal(before[1], after[1])
        assert torch.equal(before[2], after[2])
    assert torch.equal(whole.validated[-1], whole.validated[-2])


@needs_real
def test_module_on_real_mnist():
    data = ImageDataModule(dataset="mnist", data_dir=REAL, distortion="tc", batch_size=256)
    data.setup("fit")
    assert len(data.train_data()) == 54000
    assert data.input_shape == (1, 60, 60)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (256, 1, 60, 60)
    assert len(labels.unique()) == 10


def test_nothing_is_written_into_data_dir(tmp_path, fake_mnist):
    write(tmp_path, fake_mnist)
    load("mnist", tmp_path)
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == sorted(fake_mnist)
