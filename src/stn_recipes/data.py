"""Data sets as uint8 tensors, distorted on the fly, in batches that depend on (seed, epoch, sample) alone.

Files are the official ones and verified by checksum before anything is read from them. Nothing here keeps a random
state: the order of an epoch, the split and the distortion of a sample are functions of the seed, so runs repeat
exactly at any number of workers or ranks, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import difflib
import gzip
import io
import math
import os
import pickle
import sys
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stn_recipes import distortions

__all__ = [
    "DATASETS",
    "DataError",
    "EpochSampler",
    "ImageData",
    "ImageDataModule",
    "ImageDataset",
    "load",
    "load_image_folder",
]

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "images")

# Second word of every seed (seed, stream, epoch). numpy pads a seed with zeros, so all of them have three words.
_STREAMS = {"train": 0, "val": 1, "test": 2, "augment": 3, "shuffle": 4, "test_split": 5, "val_split": 6}

_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
}
_IDX = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}
_CIFAR_TAR = ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
_CIFAR_FOLDER = "cifar-10-batches-py"
_CIFAR = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
# where each set may lie inside data_dir, first match wins
_FOLDERS = {
    "mnist": ("mnist", "MNIST/raw", ""),
    "fashion_mnist": ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", ""),
    "cifar10": ("", "cifar10"),
}
_DIGIT_NAMES = tuple("0123456789")
_FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_STATISTICS_IMAGES = 10_000


class DataError(ValueError):
    """A data set is missing, damaged or unusable; the message names the file and says what to do."""


@dataclass(frozen=True)
class ImageData:
    """Images and labels of one set."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images: expected uint8 (N, C, H, W), got {self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: expected int64 of shape ({len(self.images)},), "
                f"got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise ValueError(
                f"labels: expected 0 to {len(self.class_names) - 1} for {len(self.class_names)} class names, "
                f"got {int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, places: np.ndarray) -> ImageData:
        """The samples at these places, in this order."""
        chosen = torch.from_numpy(places)
        return ImageData(self.images[chosen], self.labels[chosen], self.class_names)


def _generator(seed: int, stream: str, epoch: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, _STREAMS[stream], epoch))


def _stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the (train, test) samples; every class gives `fraction` of itself, at least one if it has two."""
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        places = _generator(seed, "test_split", int(label)).permutation(np.flatnonzero(labels == label))
        count = math.floor(fraction * len(places) + 0.5)
        test[places[: min(max(count, 1), len(places) - 1)]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


# Official files


def _verified(path: Path, md5: str, name: str) -> Path:
    found = pooch.file_hash(str(path), alg="md5")
    if found != md5:
        raise DataError(
            f"{path}: damaged or not the official file of {name!r}: expected md5 {md5}, found {found} "
            f"({path.stat().st_size} bytes). Delete it and download {path.name} again."
        )
    return path


def _fetch(name: str, file: str, md5: str, progress: bool) -> Path:
    """Download into the cache folder of the user, or find it there, verified."""
    url = _URLS[name] + file
    folder = Path(pooch.os_cache("stn")) / name
    try:
        path = pooch.retrieve(url, f"md5:{md5}", fname=file, path=folder, progressbar=progress)
    except (OSError, ValueError) as error:  # requests raises OSErrors, a wrong checksum is a ValueError
        raise DataError(
            f"could not download {url} to {folder}: {error}\nWithout a network, put the official file into a folder "
            f"and pass it as data_dir (--data-dir); expected md5 {md5}."
        ) from error
    return Path(path)


def _find(name: str, file: str, data_dir: Path) -> Path | None:
    return next((path for folder in _FOLDERS[name] if (path := data_dir / folder / file).is_file()), None)


def _locate(name: str, file: str, md5: str, data_dir: Path | None, progress: bool) -> Path:
    if data_dir is None:
        return _fetch(name, file, md5, progress)
    path = _find(name, file, data_dir)
    if path is None:
        places = ", ".join(str(data_dir / folder) for folder in _FOLDERS[name])
        raise DataError(
            f"{file} of {name!r} is in none of {places}. Get it from {_URLS[name]}{file} (md5 {md5}), "
            "or leave data_dir out to download it."
        )
    return _verified(path, md5, name)


def _read_idx(path: Path) -> np.ndarray:
    """An array in the idx format of uint8: two zero bytes, type 8, number of axes, their sizes, the data."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=axes, offset=4).astype(int)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


_RECONSTRUCT = np.empty(0).__reduce__()[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Builds plain containers and NumPy arrays; refuses every other name, so that a pickle cannot run code."""

    _ALLOWED: dict[tuple[str, str], Any] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}: only NumPy arrays are allowed here")
        return self._ALLOWED[module, name]


def _unpickle(data: bytes, origin: str) -> dict[str, Any]:
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{origin}: not a batch of CIFAR-10: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{origin}: not a batch of CIFAR-10: expected a dict, found {type(content).__name__}")
    return content


def _cifar10(files: Sequence[str], data_dir: Path | None, progress: bool) -> list[dict[str, Any]]:
    """The content of some of the batches, from the extracted folder if there is one, else straight from the archive."""
    folder = (
        None
        if data_dir is None
        else next((path for place in _FOLDERS["cifar10"] if (path := data_dir / place / _CIFAR_FOLDER).is_dir()), None)
    )
    if folder is None and data_dir is not None and (data_dir / "data_batch_1").is_file():
        folder = data_dir  # the extracted folder itself was given
    if folder is not None:
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise DataError(
                f"{folder / missing[0]}: missing (expected md5 {_CIFAR[missing[0]]}). "
                f"Extract {_CIFAR_TAR[0]} from {_URLS['cifar10']} again."
            )
        paths = [_verified(folder / file, _CIFAR[file], "cifar10") for file in files]
        return [_unpickle(path.read_bytes(), str(path)) for path in paths]
    archive = _locate("cifar10", *_CIFAR_TAR, data_dir, progress)
    with tarfile.open(archive) as tar:
        content = {
            member.name.removeprefix(f"{_CIFAR_FOLDER}/"): tar.extractfile(member).read()  # type: ignore[union-attr]
            for member in tar
            if member.isfile() and member.name.removeprefix(f"{_CIFAR_FOLDER}/") in files
        }
    return [_unpickle(content[file], f"{archive}:{file}") for file in files]


def _load_digits() -> tuple[ImageData, ImageData]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images)[:, None] * (255 / 16)
    large = F.interpolate(small, size=(28, 28), mode="bicubic", align_corners=False)
    data = ImageData(
        large.round().clamp(0, 255).to(torch.uint8), torch.from_numpy(bunch.target.astype(np.int64)), _DIGIT_NAMES
    )
    train, test = _stratified(bunch.target, 0.2, seed=0)
    return data.take(train), data.take(test)


def _load_split(name: str, data_dir: Path | None, train: bool, progress: bool) -> ImageData:
    if name == "digits":
        return _load_digits()[0 if train else 1]
    if name == "cifar10":
        batches = [file for file in _CIFAR if file.startswith("data_batch" if train else "test_batch")]
        *parts, meta = _cifar10([*batches, "batches.meta"], data_dir, progress)
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([part["labels"] for part in parts]).astype(np.int64)
        return ImageData(torch.from_numpy(images), torch.from_numpy(labels), tuple(meta["label_names"]))
    images_file, labels_file = list(_IDX[name])[0 if train else 2 :][:2]
    images = _read_idx(_locate(name, images_file, _IDX[name][images_file], data_dir, progress))
    labels = _read_idx(_locate(name, labels_file, _IDX[name][labels_file], data_dir, progress)).astype(np.int64)
    names = _DIGIT_NAMES if name == "mnist" else _FASHION_NAMES
    return ImageData(torch.from_numpy(images)[:, None], torch.from_numpy(labels), names)


def _check_name(argument: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{argument}: expected one of {', '.join(known)}, got {name!r}{hint}")


def _check_dir(argument: str, path: str | os.PathLike[str]) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{argument}: expected a folder, got {str(path)!r}, which {what}")
    return folder


def _data_folder(name: str, data_dir: str | os.PathLike[str] | None) -> Path | None:
    return None if data_dir is None or name == "digits" else _check_dir("data_dir", data_dir)


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> tuple[ImageData, ImageData]:
    """The train and the test set of "digits", "mnist", "fashion_mnist" or "cifar10", as uint8.

    "digits" are the 1797 real handwritten digits of 8x8 pixels and 17 grey levels that come with scikit-learn,
    enlarged to 28x28 (bicubic), a fixed fifth of each class being the test set; they need no file. The others are
    read from their official files: with `data_dir`, from that folder or its sub-folder `mnist`, `fashion_mnist`,
    `cifar-10-batches-py`; without, downloaded once into the user's cache folder, with a progress bar if `progress`.
    Grey images have one channel.

    Raises `ValueError` for an unknown name and `DataError` for a file that is missing, fails its checksum or cannot
    be downloaded.

    >>> train, test = load("digits")
    >>> train.images.shape, len(test)
    (torch.Size([1438, 1, 28, 28]), 359)
    """
    _check_name("name", name, [known for known in DATASETS if known != "images"])
    folder = _data_folder(name, data_dir)
    return _load_split(name, folder, True, progress), _load_split(name, folder, False, progress)


# Folders of images


def _image_files(folder: Path) -> list[Path]:
    """Image files below a class folder, sorted; linked folders are entered once."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(place, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in _IMAGE_SUFFIXES]
    return sorted(found)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {path.name: files for path in classes if (files := _image_files(path))}
    if not found:
        raise DataError(
            f"{folder}: expected one folder of images per class ({', '.join(sorted(_IMAGE_SUFFIXES))}), "
            f"found {len(classes)} folders and no image in them"
        )
    if len(found) == 1:
        raise DataError(f"{folder}: expected at least two class folders with images, found only {next(iter(found))!r}")
    return found


def _decode(path: Path, size: tuple[int, int]) -> np.ndarray:  # (H, W, 3) uint8
    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range; save it with 8 or 16 bits a channel")
    return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _read_images(
    files: list[tuple[Path, int]],  # path, label
    class_names: tuple[str, ...],
    size: tuple[int, int],
    on_bad_image: str,
) -> ImageData:
    images = torch.empty(len(files), 3, *size, dtype=torch.uint8)
    kept = []

    def attempt(path: Path) -> np.ndarray | Exception:
        try:
            return _decode(path, size)
        except Exception as error:  # decoders raise anything on damaged input
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        decoded = track(
            pool.map(attempt, (path for path, _ in files)),
            description="Reading images",
            total=len(files),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        bad = []
        for place, (result, (path, _)) in enumerate(zip(decoded, files, strict=True)):
            if isinstance(result, np.ndarray):
                images[place] = torch.from_numpy(result.copy()).permute(2, 0, 1)
                kept.append(place)
                continue
            if on_bad_image == "stop":
                pool.shutdown(cancel_futures=True)
                raise DataError(
                    f"{path}: cannot be read as an image: {result}. Repair or remove it, or pass on_bad_image='skip'."
                ) from result
            bad.append(f"{path}: skipped, cannot be read as an image: {result}")
    for message in bad:
        warnings.warn(message, stacklevel=4)
    if not kept:
        raise DataError(f"none of {len(files)} images could be read; the first was {files[0][0]}")
    labels = torch.tensor([label for _, label in files])
    return ImageData(images[kept], labels[kept], class_names) if bad else ImageData(images, labels, class_names)


@dataclass(frozen=True)
class _ImageFolder:
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]
    class_names: tuple[str, ...]


def _scan_folder(path: str | os.PathLike[str], seed: int, test_fraction: float) -> _ImageFolder:
    root = _check_dir("path", path)
    has_train, has_test = (root / "train").is_dir(), (root / "test").is_dir()
    if has_test and not has_train:
        raise DataError(f"{root}: has a test folder but no train folder beside it")
    classes = _class_files(root / "train" if has_train else root)
    names = tuple(classes)
    files = [(file, label) for label, name in enumerate(names) for file in classes[name]]
    if has_test:
        test_classes = _class_files(root / "test")
        unknown = sorted(set(test_classes) - set(names))
        if unknown:
            raise DataError(
                f"{root / 'test'}: class {unknown[0]!r} is not in {root / 'train'}, which has {', '.join(names)}"
            )
        test_files = [(file, names.index(name)) for name in test_classes for file in test_classes[name]]
        return _ImageFolder(files, test_files, names)
    train, test = _stratified(np.array([label for _, label in files]), test_fraction, seed)
    if not len(test):
        raise DataError(f"{root}: no class has two images, so none can be set aside for the test")
    return _ImageFolder([files[place] for place in train], [files[place] for place in test], names)


def load_image_folder(
    path: str | os.PathLike[str],
    image_size: tuple[int, int] = (64, 64),
    *,
    on_bad_image: str = "stop",
    seed: int = 0,
    test_fraction: float = 0.2,
) -> tuple[ImageData, ImageData]:
    """The train and the test set of a folder with one folder of images per class, or with `train` and `test` of those.

    Images are turned upright (EXIF), converted to RGB (transparency is dropped) and resized to `image_size` (H, W)
    with antialiasing, whatever their aspect ratio. Without a `test` folder, `test_fraction` of each class is set
    aside, chosen by `seed`. Links to files and folders are followed. An image that cannot be read, or claims more
    pixels than Pillow's limit against decompression bombs, stops the run, or with `on_bad_image="skip"` is named in a
    warning and left out.

    Raises `DataError` naming the folder or the file: no such folder, no images, fewer than two classes, a bad image.
    """
    _check_images(image_size, on_bad_image)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number between 0 and 1, got {test_fraction!r}")
    _check_integer("seed", seed, 0)
    folder = _scan_folder(path, seed, test_fraction)
    size = (image_size[0], image_size[1])
    return (
        _read_images(folder.train, folder.class_names, size, on_bad_image),
        _read_images(folder.test, folder.class_names, size, on_bad_image),
    )


def _check_images(image_size: Sequence[int], on_bad_image: str) -> None:
    if len(image_size) != 2 or not all(isinstance(side, int) and side > 0 for side in image_size):
        raise ValueError(f"image_size: expected two positive integers (height, width), got {image_size!r}")
    if on_bad_image not in ("stop", "skip"):
        raise ValueError(f"on_bad_image: expected 'stop' or 'skip', got {on_bad_image!r}")


def _check_integer(argument: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{argument}: expected an integer of at least {least}, got {value!r}")


# Batches


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Normalized, augmented and distorted images of one set, a whole batch at a time.

    `stream` ("train", "val" or "test") keeps the random numbers of the sets apart. A `fixed` set always uses those of
    epoch 0 and is never augmented. Applied in order: `augment`, `distortion`, (x - mean) / std with one mean and std
    per channel.

    `__getitems__` takes the (epoch, index) pairs of an `EpochSampler` and returns the collated batch, so a
    `DataLoader` is given `collate_fn=ImageDataset.collate`. A plain index means epoch 0.

    >>> train, _ = load("digits")
    >>> images, labels = ImageDataset(train, distortion=distortions.get("rts"))[[0, 1, 2]]
    >>> images.shape
    torch.Size([3, 1, 42, 42])
    """

    def __init__(
        self,
        data: ImageData,
        *,
        distortion: distortions.Distortion | None = None,
        augment: distortions.Distortion | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        stream: str = "train",
        fixed: bool = False,
    ):
        _check_integer("seed", seed, 0)
        _check_name("stream", stream, ("train", "val", "test"))
        channels = data.images.shape[1]
        for argument, value in (("mean", mean), ("std", std)):
            if value is not None and len(value) != channels:
                raise ValueError(f"{argument}: expected {channels} numbers, one per channel, got {value!r}")
        if fixed and augment is not None:
            raise ValueError(f"augment: expected None for a fixed set, got {augment!r}")
        self.data = data
        self.distortion = distortion
        self.augment = augment
        self.seed = seed
        self.stream = stream
        self.fixed = fixed
        self._mean = torch.tensor(tuple(mean or (0.0,) * channels)).view(-1, 1, 1)
        self._std = torch.tensor(tuple(std or (1.0,) * channels)).view(-1, 1, 1)
        self._tables: dict[str, tuple[int, np.ndarray]] = {}

    @staticmethod
    def collate(batch: Any) -> Any:
        """`__getitems__` has collated already."""
        return batch

    def __len__(self) -> int:
        return len(self.data)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that come out."""
        channels, height, width = self.data.images.shape[1:]
        size = (height, width)
        for step in (self.augment, self.distortion):
            size = size if step is None else step.output_size(size)
        return channels, *size

    def _random(self, stream: str, num_random: int, epoch: int, places: np.ndarray) -> np.ndarray:
        if stream not in self._tables or self._tables[stream][0] != epoch:
            table = distortions.draw(len(self.data), num_random, seed=self.seed, stream=_STREAMS[stream], epoch=epoch)
            self._tables[stream] = (epoch, table)
        return self._tables[stream][1][places]

    def __getitems__(self, items: Sequence[tuple[int, int] | int]) -> tuple[Tensor, Tensor]:
        pairs = np.array([(0, item) if isinstance(item, (int, np.integer)) else item for item in items], dtype=np.int64)
        pairs = pairs.reshape(-1, 2)
        epoch = int(pairs[0, 0]) if len(pairs) and not self.fixed else 0
        places = pairs[:, 1]
        if not self.fixed and (pairs[:, 0] != epoch).any():
            raise ValueError(f"items: expected one epoch in a batch, got {sorted(set(pairs[:, 0].tolist()))}")
        if len(places) and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"items: expected indices from 0 to {len(self) - 1}, got {places.min()} to {places.max()}")
        index = torch.from_numpy(places)
        images = self.data.images[index].float().div_(255)
        if self.augment is not None:
            random = self._random("augment", self.augment.num_random, epoch, places)
            images = self.augment(images, random, source=self.data.images, index=index)
        if self.distortion is not None:
            random = self._random(self.stream, self.distortion.num_random, epoch, places)
            images = self.distortion(images, random, source=self.data.images, index=index)
        return images.sub_(self._mean).div_(self._std), self.data.labels[index]

    def __getitem__(self, items: Any) -> tuple[Tensor, Tensor]:
        """A batch for a list of items, a single image and its label for one item."""
        if isinstance(items, list):
            return self.__getitems__(items)
        images, labels = self.__getitems__([items])
        return images[0], labels[0]


class EpochSampler(Sampler[tuple[int, int]]):
    """Pairs (epoch, index) for one rank of an epoch, in an order that depends on (seed, epoch) alone.

    Shuffled (training), every rank gets the same number of samples: the permutation is continued from its start until
    it divides by `world_size`. Unshuffled (evaluation), each sample goes to exactly one rank. Rank r takes every
    `world_size`-th sample from r on. `set_epoch` is called by Lightning's Trainer.

    >>> sampler = EpochSampler(4, shuffle=True, seed=0)
    >>> sampler.set_epoch(2)
    >>> sorted(sampler)
    [(2, 0), (2, 1), (2, 2), (2, 3)]
    """

    def __init__(self, count: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1):
        _check_integer("count", count, 0)
        _check_integer("seed", seed, 0)
        _check_integer("world_size", world_size, 1)
        _check_integer("rank", rank, 0)
        if rank >= world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1} for a world_size of {world_size}, got {rank}")
        self.count = count
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        _check_integer("epoch", epoch, 0)
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return math.ceil(self.count / self.world_size)
        return len(range(self.rank, self.count, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # a generator: the epoch is looked up when the first batch is asked for
        epoch = self.epoch
        order = np.arange(self.count)
        if self.shuffle:
            order = _generator(self.seed, "shuffle", epoch).permutation(order)
            order = np.resize(order, len(self) * self.world_size)
        for index in order[self.rank :: self.world_size].tolist():
            yield epoch, index


class _Loader(DataLoader[tuple[Tensor, Tensor]]):
    """Starts its workers when the first batch is asked for.

    Lightning creates the iterator of a resumed run before it tells the sampler the epoch, and workers would have
    fetched batches of epoch 0 by then.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


def _statistics(dataset: ImageDataset, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the first `count` images as they come out."""
    total = squares = torch.zeros(dataset.image_shape[0], dtype=torch.float64)
    for start in range(0, count, 1000):
        images, _ = dataset.__getitems__(range(start, min(start + 1000, count)))
        values = images.transpose(0, 1).flatten(1)
        total = total + values.sum(1, dtype=torch.float64)
        squares = squares + values.square().sum(1, dtype=torch.float64)
    pixels = count * math.prod(dataset.image_shape[1:])
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 1e-4, std, 1.0).tolist())


class ImageDataModule(LightningDataModule):
    """A data set split into train, validation and test, distorted, augmented and normalized, for Lightning's Trainer.

    `dataset` is one of `DATASETS`; "images" reads the folder `data_dir` as `load_image_folder` does, at `image_size`
    (64x64 unless told); without a `test` folder the same fifth is the test set for every `seed`. `distortion` is a
    name of `stn_recipes.distortions` for all three sets: drawn afresh every epoch for training, once and for all for
    validation and test. `augment` is one for training alone, applied before it. The validation set is `val_fraction`
    of the training images, chosen by `seed`; 0 means none. `limit_train` keeps the first n of the remaining, for
    quick trials. The test set is not read before it is asked for.

    After `setup`: `class_names`, `num_classes`, `input_shape` (C, H, W) as the network sees it, `mean` and `std` per
    channel of the training images without augmentation (of the first 10,000 if they are distorted).

    Batches are (images float32 (B, C, H, W), labels int64 (B,)). Under several ranks pass
    `use_distributed_sampler=False` to the Trainer: the batches are split here.

    Raises `ValueError` naming the argument, and `DataError` as `load` does.

    >>> data = ImageDataModule(dataset="digits", distortion="r", batch_size=64)
    >>> data.setup("fit")
    >>> data.input_shape, data.num_classes
    ((1, 28, 28), 10)
    """

    def __init__(
        self,
        *,
        dataset: str,
        data_dir: str | None = None,
        distortion: str | None = None,
        augment: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        image_size: tuple[int, int] | None = None,
        on_bad_image: str = "stop",
        limit_train: int | None = None,
    ):
        super().__init__()
        _check_name("dataset", dataset, DATASETS)
        _check_integer("batch_size", batch_size, 1)
        _check_integer("eval_batch_size", eval_batch_size, 1)
        _check_integer("seed", seed, 0)
        _check_integer("num_workers", num_workers, 0)
        if limit_train is not None:
            _check_integer("limit_train", limit_train, 1)
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction: expected a number from 0 to below 1, got {val_fraction!r}")
        if dataset == "images" and data_dir is None:
            raise ValueError("data_dir: expected the folder of the class folders for dataset 'images', got None")
        if dataset != "images" and image_size is not None:
            raise ValueError(f"image_size: only dataset 'images' has one, got {image_size!r} for {dataset!r}")
        size = image_size or (64, 64)
        _check_images(size, on_bad_image)
        self.dataset = dataset
        self.data_dir = data_dir
        self.distortion = None if distortion is None else distortions.get(distortion)
        self.augment = None if augment is None else distortions.get(augment)
        if self.augment is not None and (self.augment.needs_source or self.augment.output_size((28, 28)) != (28, 28)):
            raise ValueError(f"augment: expected one that keeps the size (affine, flip_shift, r, e), got {augment!r}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.seed = seed
        self.num_workers = num_workers
        self.image_size = (size[0], size[1])
        self.on_bad_image = on_bad_image
        self.limit_train = limit_train
        self._train: ImageDataset | None = None
        self._val: ImageDataset | None = None
        self._test: ImageDataset | None = None

    def _read(self, train: bool) -> ImageData:
        if self.dataset == "images":
            assert self.data_dir is not None
            folder = _scan_folder(self.data_dir, seed=0, test_fraction=0.2)  # one test set for all seeds
            files = folder.train if train else folder.test
            return _read_images(files, folder.class_names, self.image_size, self.on_bad_image)
        return _load_split(self.dataset, _data_folder(self.dataset, self.data_dir), train, progress=True)

    def prepare_data(self) -> None:
        """Download what is not there yet; runs once per machine."""
        if self.data_dir is None and self.dataset in _IDX:
            for file, md5 in _IDX[self.dataset].items():
                _fetch(self.dataset, file, md5, progress=True)
        elif self.data_dir is None and self.dataset == "cifar10":
            _fetch("cifar10", *_CIFAR_TAR, progress=True)

    def setup(self, stage: str | None = None) -> None:
        """Read and split the training set; with `stage="test"` the test set too."""
        if self._train is None:
            data = self._read(train=True)
            order = _generator(self.seed, "val_split").permutation(len(data))
            held_out = math.floor(self.val_fraction * len(data) + 0.5)
            remaining = len(data) - held_out
            if remaining == 0 or (self.val_fraction > 0 and held_out == 0):
                raise ValueError(
                    f"val_fraction: {self.val_fraction} of {len(data)} images leaves {remaining} to train on and "
                    f"{held_out} to validate on, expected at least one of each"
                )
            if self.limit_train is not None and self.limit_train > remaining:
                raise ValueError(f"limit_train: expected at most {remaining} (what there is), got {self.limit_train}")
            chosen = data.take(order[held_out:][: self.limit_train])
            self.class_names = data.class_names
            self.num_classes = len(data.class_names)
            plain = ImageDataset(chosen, distortion=self.distortion, seed=self.seed)
            self.mean, self.std = _statistics(
                plain, len(plain) if self.distortion is None else min(len(plain), _STATISTICS_IMAGES)
            )
            self.input_shape = plain.image_shape
            self._train = ImageDataset(
                chosen, distortion=self.distortion, augment=self.augment, mean=self.mean, std=self.std, seed=self.seed
            )
            self._val = self._fixed(data.take(order[:held_out]), "val") if held_out else None
        if stage == "test":
            self.test_data()

    def _fixed(self, data: ImageData, stream: str) -> ImageDataset:
        return ImageDataset(
            data, distortion=self.distortion, mean=self.mean, std=self.std, seed=self.seed, stream=stream, fixed=True
        )

    def train_data(self) -> ImageDataset:
        """The training set; `[[(epoch, index), ...]]` gives the batch that training sees."""
        self.setup("fit")
        assert self._train is not None
        return self._train

    def val_data(self) -> ImageDataset | None:
        """The validation set, or None if there is none."""
        self.setup("fit")
        return self._val

    def test_data(self) -> ImageDataset:
        """The test set, distorted once and for all; read at the first call."""
        if self._test is None:
            self.setup("fit")
            self._test = self._fixed(self._read(train=False), "test")
        return self._test

    def _loader(self, dataset: ImageDataset, train: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        trainer = self.trainer
        sampler = EpochSampler(
            len(dataset),
            shuffle=train,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        return _Loader(
            dataset,
            batch_size=self.batch_size if train else self.eval_batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=ImageDataset.collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # its own: workers or none, training draws the same random numbers
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader(self.train_data(), train=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]] | list[Any]:
        dataset = self.val_data()
        return [] if dataset is None else self._loader(dataset, train=False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader(self.test_data(), train=False)
