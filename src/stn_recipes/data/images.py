"""Your own images: a folder of class folders, or of `train` and `test` folders of those."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from .registry import AbstractDataSet, DataError, ImageData, Source, check_folder
from .streams import check_integer, stratified

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
NAMED = 5  # of the images that cannot be read


@dataclass(frozen=True)
class OwnImages(AbstractDataSet):
    name: str = "images"
    background: Literal["zeros", "border"] = "border"
    own_images: bool = True

    def download(self) -> None:
        pass

    def read(self, source: Source, *, train: bool) -> ImageData:
        assert source.data_dir is not None
        root = check_folder("data_dir", source.data_dir)
        folder = _scan_folder(root, 0, 0.2, source.class_names)  # one test set for all seeds
        files = folder.train if train else folder.test
        return _read_images(files, folder.class_names, source.image_size, source.on_bad_image)

    def read_all(self, source: Source) -> ImageData:
        """Every image of a folder, of the classes that `source` names; of `test` alone where there is such a folder."""
        assert source.data_dir is not None
        root = check_folder("data_dir", source.data_dir)
        has_test = (root / "test").is_dir() and (root / "train").is_dir()
        classes = _class_files(root / "test" if has_test else root, source.class_names)
        names = source.class_names or tuple(classes)
        return _read_images(_labelled(classes, names), names, source.image_size, source.on_bad_image)


def image_files(folder: Path) -> list[Path]:
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
        found += [path for path in paths if path.suffix.lower() in _SUFFIXES]
    return sorted(found)


def _class_files(folder: Path, known: tuple[str, ...] | None = None) -> dict[str, list[Path]]:
    """The images of each class folder. Of `known` classes any number will do, and no other."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {path.name: files for path in classes if (files := image_files(path))}
    if not found:
        raise DataError(
            f"{folder}: expected one folder of images per class ({', '.join(sorted(_SUFFIXES))}), "
            f"found {len(classes)} folders and no image in them"
        )
    if known is not None:
        unknown = [name for name in found if name not in known]
        if unknown:
            raise DataError(
                f"{folder}: class {unknown[0]!r} is none of {', '.join(known)}"
                + (f", and so are {len(unknown) - 1} more" if len(unknown) > 1 else "")
            )
    elif len(found) == 1:
        raise DataError(f"{folder}: expected at least two class folders with images, found only {next(iter(found))!r}")
    return found


def _labelled(classes: dict[str, list[Path]], names: tuple[str, ...]) -> list[tuple[Path, int]]:
    return [(file, names.index(name)) for name, files in classes.items() for file in files]


def decode(
    path: str | Path | IO[bytes], size: tuple[int, int] | None = None, mode: str = "RGB"
) -> np.ndarray:  # (H, W[, 3]) uint8
    """An image file, upright, converted to `mode`, resized to `size` (H, W) with antialiasing if given."""
    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range; save it with 8 or 16 bits a channel")
    image = image.convert(mode)
    return np.asarray(image if size is None else image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def unreadable(bad: Sequence[tuple[str | Path, Exception]], total: int) -> str:
    """What to say of images that cannot be read: the first by name, and how many there are."""
    shown = "; ".join(f"{path}: cannot be read as an image: {error}" for path, error in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return (
        f"{shown}{more} ({len(bad)} of {total}). Repair or remove what cannot be read, or pass on_bad_image='skip' "
        "(--on-bad-image skip)."
    )


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
            return decode(path, size)
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
        bad: list[tuple[str | Path, Exception]] = []
        for place, (result, (path, _)) in enumerate(zip(decoded, files, strict=True)):
            if isinstance(result, np.ndarray):
                images[place] = torch.from_numpy(result.copy()).permute(2, 0, 1)
                kept.append(place)
            else:
                bad.append((path, result))
    if bad and on_bad_image == "stop":
        raise DataError(unreadable(bad, len(files))) from bad[0][1]
    for file, error in bad:
        warnings.warn(f"{file}: skipped, cannot be read as an image: {error}", stacklevel=4)
    if not kept:
        raise DataError(f"none of {len(files)} images could be read; the first was {files[0][0]}")
    labels = torch.tensor([label for _, label in files])
    return ImageData(images[kept], labels[kept], class_names) if bad else ImageData(images, labels, class_names)


@dataclass(frozen=True)
class _ImageFolder:
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]
    class_names: tuple[str, ...]


def _scan_folder(root: Path, seed: int, test_fraction: float, known: tuple[str, ...] | None = None) -> _ImageFolder:
    has_train, has_test = (root / "train").is_dir(), (root / "test").is_dir()
    if has_test and not has_train:
        raise DataError(f"{root}: has a test folder but no train folder beside it")
    classes = _class_files(root / "train" if has_train else root, known)
    names = known or tuple(classes)
    files = _labelled(classes, names)
    if has_test:
        test_classes = _class_files(root / "test", known)
        unknown = sorted(set(test_classes) - set(names))
        if unknown:
            raise DataError(
                f"{root / 'test'}: class {unknown[0]!r} is not in {root / 'train'}, which has {', '.join(names)}"
            )
        return _ImageFolder(files, _labelled(test_classes, names), names)
    train, test = stratified(np.array([label for _, label in files]), test_fraction, seed)
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
    check_images(image_size, on_bad_image)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number between 0 and 1, got {test_fraction!r}")
    check_integer("seed", seed, 0)
    folder = _scan_folder(check_folder("path", path), seed, test_fraction)
    size = (image_size[0], image_size[1])
    return (
        _read_images(folder.train, folder.class_names, size, on_bad_image),
        _read_images(folder.test, folder.class_names, size, on_bad_image),
    )


def check_images(image_size: Sequence[int], on_bad_image: str) -> None:
    if len(image_size) != 2 or not all(isinstance(side, int) and side > 0 for side in image_size):
        raise ValueError(f"image_size: expected two positive integers (height, width), got {image_size!r}")
    if on_bad_image not in ("stop", "skip"):
        raise ValueError(f"on_bad_image: expected 'stop' or 'skip', got {on_bad_image!r}")


DATA = OwnImages()
