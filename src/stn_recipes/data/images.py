"""Your own images: a folder of class folders, or of `train` and `test` folders of those."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stn._checks import check_choice

from ..progress import counting, track
from .lazy import LazyImages, loaded
from .pixels import FITS, Fit
from .registry import MEMORY_LIMIT, AbstractDataSet, DataError, ImageData, Source, check_folder
from .streams import check_integer, stratified

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class OwnImages(AbstractDataSet):
    name: str = "images"
    background: Literal["zeros", "border"] = "border"
    own_images: bool = True
    any_size: bool = True

    def download(self) -> None:
        pass

    def read(self, source: Source, *, train: bool) -> ImageData:
        return _read(source, train=train)  # one test set for all seeds

    def read_all(self, source: Source) -> ImageData:
        """Every image of a folder, of the classes that `source` names; of `test` alone where there is such a folder."""
        root = check_folder("data_dir", source.data_dir or "")
        has_test = (root / "test").is_dir() and (root / "train").is_dir()
        return _scan(root / "test" if has_test else root, source.class_names, source.progress).images(source)


def image_files(folder: Path) -> list[Path]:
    """Image files below a folder, sorted; linked folders are entered once."""
    return [Path(path) for path in _walk(folder)]


def _walk(folder: str | Path, tick: Callable[[], None] = lambda: None) -> Iterator[str]:
    """The paths of the image files below a folder, sorted by their parts; `tick` is called for whatever is found."""
    seen: set[tuple[int, int]] = set()

    def entries(place: str) -> Iterator[os.DirEntry[str]]:
        found = os.stat(place)
        if (found.st_dev, found.st_ino) in seen:
            return iter(())
        seen.add((found.st_dev, found.st_ino))
        kept = []
        with os.scandir(place) as inside:
            for entry in inside:
                tick()
                if not entry.name.startswith("."):
                    kept.append(entry)
        return iter(sorted(kept, key=_name))

    levels = [entries(os.fspath(folder))]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif entry.is_dir():
            levels.append(entries(entry.path))
        elif os.path.splitext(entry.name)[1].lower() in _SUFFIXES:
            yield entry.path


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


class Paths:
    """Many paths in two arrays."""

    def __init__(self, paths: Iterable[str]) -> None:
        text, ends = bytearray(), array("q", [0])
        for path in paths:
            text += os.fsencode(path)
            ends.append(len(text))
        self._text, self._ends = np.frombuffer(text, dtype=np.uint8), np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        return os.fsdecode(self._text[self._ends[place] : self._ends[place + 1]].tobytes())


class FileImages(LazyImages):
    """Image files."""

    def __init__(self, paths: Paths, places: np.ndarray, size: tuple[int, int], fit: Fit) -> None:
        super().__init__(size, fit)
        self.paths, self.places = paths, places

    def __len__(self) -> int:
        return len(self.places)

    def take(self, places: np.ndarray) -> FileImages:
        return FileImages(self.paths, self.places[places], self.size, self.fit)

    def name(self, place: int) -> str:
        return self.paths[int(self.places[place])]

    def open(self, place: int) -> str:
        return self.name(place)

    def state(self, progress: bool) -> bytes:
        """A digest of their paths, sizes and times of change."""
        digest = hashlib.sha256()
        for place in track(range(len(self)), "Looking at files", len(self), shown=progress):
            path = self.name(place)
            with contextlib.suppress(OSError):  # a link to nothing: by its name alone
                found = os.stat(path)
                digest.update(struct.pack("<QQ", found.st_size, found.st_mtime_ns))
            digest.update(os.fsencode(os.path.abspath(path)) + b"\0")
        return digest.digest()


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


@dataclass(frozen=True)
class _Classes:
    """The files of class folders, class by class."""

    paths: Paths
    labels: np.ndarray  # (N,) int64
    names: tuple[str, ...]

    def images(self, source: Source, places: np.ndarray | None = None) -> ImageData:
        """Those at `places`, or all."""
        places = np.arange(len(self.paths)) if places is None else places
        files = FileImages(self.paths, places, source.image_size, source.fit)
        return loaded(files, self.labels[places], self.names, source)


def _scan(folder: Path, known: tuple[str, ...] | None, progress: bool) -> _Classes:
    """The images of each class folder. Of `known` classes any number will do, and no other."""
    classes = _class_folders(folder)
    counts: dict[str, int] = {}

    def files(tick: Callable[[], None]) -> Iterator[str]:
        for path in classes:
            for file in _walk(path, tick):
                counts[path.name] = counts.get(path.name, 0) + 1
                yield file

    with counting("Listing images", shown=progress) as tick:
        paths = Paths(files(tick))
    if not counts:
        raise DataError(
            f"{folder}: expected one folder of images per class ({', '.join(sorted(_SUFFIXES))}), "
            f"found {len(classes)} folders and no image in them"
        )
    if known is not None:
        unknown = [name for name in counts if name not in known]
        if unknown:
            raise DataError(
                f"{folder}: class {unknown[0]!r} is none of {', '.join(known)}"
                + (f", and so are {len(unknown) - 1} more" if len(unknown) > 1 else "")
            )
    elif len(counts) == 1:
        raise DataError(f"{folder}: expected at least two class folders with images, found only {next(iter(counts))!r}")
    names = known or tuple(counts)
    labels = np.repeat([names.index(name) for name in counts], list(counts.values()))
    return _Classes(paths, labels, names)


def _read(source: Source, *, train: bool, seed: int = 0, test_fraction: float = 0.2) -> ImageData:
    """The training or the test set of a folder; `seed` chooses the latter where it has no folder of its own."""
    root, known, progress = check_folder("data_dir", source.data_dir or ""), source.class_names, source.progress
    has_train, has_test = (root / "train").is_dir(), (root / "test").is_dir()
    if has_test and not has_train:
        raise DataError(f"{root}: has a test folder but no train folder beside it")
    classes = _scan(root / "train" if has_train else root, known, progress)
    if has_test:
        test = root / "test"
        others = [path for path in _class_folders(test) if path.name not in classes.names and any(_walk(path))]
        if others:
            raise DataError(
                f"{test}: class {others[0].name!r} is not in {root / 'train'}, which has {', '.join(classes.names)}"
            )
        return classes.images(source) if train else _scan(test, classes.names, progress).images(source)
    first, second = stratified(classes.labels, test_fraction, seed)
    if not len(second):
        raise DataError(f"{root}: no class has two images, so none can be set aside for the test")
    return classes.images(source, first if train else second)


def load_image_folder(
    path: str | os.PathLike[str],
    image_size: tuple[int, int] = (64, 64),
    *,
    fit: Fit = "stretch",
    on_bad_image: str = "stop",
    memory_limit: int = MEMORY_LIMIT,
    seed: int = 0,
    test_fraction: float = 0.2,
) -> tuple[ImageData, ImageData]:
    """The train and the test set of a folder with one folder of images per class, or with `train` and `test` of those.

    Images are read as `stn_recipes.data.pixels.decode` says and brought to `image_size` (H, W) with antialiasing: "stretch" changes
    their aspect, "crop" and "pad" keep it. Without a `test` folder, `test_fraction` of each class is set
    aside, chosen by `seed`. Links to files and folders are followed. An image that cannot be read, or claims more
    pixels than Pillow's limit against decompression bombs, stops the run, or with `on_bad_image="skip"` is named in a
    warning and left out. A set of more than `memory_limit` bytes stays on the disk: its `images` are a `LazyImages`, which
    gives the same values.

    Raises `DataError` naming the folder or the file: no such folder, no images, fewer than two classes, a bad image.
    """
    check_images(image_size, on_bad_image, fit)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number between 0 and 1, got {test_fraction!r}")
    check_integer("seed", seed, 0)
    check_integer("memory_limit", memory_limit, 0)
    source = Source(check_folder("path", path), (image_size[0], image_size[1]), fit, on_bad_image, memory_limit)
    train, test = (_read(source, train=part, seed=seed, test_fraction=test_fraction) for part in (True, False))
    return train, test


def check_images(image_size: Sequence[int], on_bad_image: str, fit: str) -> None:
    if len(image_size) != 2 or not all(isinstance(side, int) and side > 0 for side in image_size):
        raise ValueError(f"image_size: expected two positive integers (height, width), got {image_size!r}")
    if on_bad_image not in ("stop", "skip"):
        raise ValueError(f"on_bad_image: expected 'stop' or 'skip', got {on_bad_image!r}")
    check_choice("fit", fit, FITS)


DATA = OwnImages()
