"""Official files: found in a folder or downloaded once, and verified by checksum before anything is read from them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pooch
import torch

from .registry import AbstractDataSet, DataError, ImageData, Source, check_folder


@dataclass(frozen=True)
class Origin:
    """Where the files of a data set come from."""

    name: str  # of the data set
    url: str  # of the folder of the files, with the slash
    folders: tuple[str, ...]  # where they may lie inside data_dir, first match wins

    def fetch(self, file: str, md5: str, progress: bool = True) -> Path:
        """Download into the cache folder of the user, or find it there, verified."""
        url = self.url + file
        folder = Path(pooch.os_cache("stn")) / self.name
        try:
            path = pooch.retrieve(url, f"md5:{md5}", fname=file, path=folder, progressbar=progress)
        except (OSError, ValueError) as error:  # requests raises OSErrors, a wrong checksum is a ValueError
            raise DataError(
                f"could not download {url} to {folder}: {error}\nWithout a network, put the official file into a "
                f"folder and pass it as data_dir (--data-dir); expected md5 {md5}."
            ) from error
        return Path(path)

    def locate(self, file: str, md5: str, source: Source) -> Path:
        """The file in the folder or the cache that `source` says, verified."""
        if source.data_dir is None:
            return self.fetch(file, md5, source.progress)
        data_dir = check_folder("data_dir", source.data_dir)
        path = next((path for folder in self.folders if (path := data_dir / folder / file).is_file()), None)
        if path is None:
            places = ", ".join(str(data_dir / folder) for folder in self.folders)
            raise DataError(
                f"{file} of {self.name!r} is in none of {places}. Get it from {self.url}{file} (md5 {md5}), "
                "or leave data_dir out to download it."
            )
        return self.verified(path, md5)

    def verified(self, path: Path, md5: str) -> Path:
        found = pooch.file_hash(str(path), alg="md5")
        if found != md5:
            raise DataError(
                f"{path}: damaged or not the official file of {self.name!r}: expected md5 {md5}, found {found} "
                f"({path.stat().st_size} bytes). Delete it and download {path.name} again."
            )
        return path


@dataclass(frozen=True)
class IdxDataSet(AbstractDataSet):
    """Grey images in the format of MNIST: a file of images and a file of labels, for training and for the test."""

    name: str
    class_names: tuple[str, ...]
    background: Literal["zeros", "border"]
    origin: Origin
    files: Mapping[str, str]  # name -> md5: training images and labels, test images and labels

    def download(self) -> None:
        for file, md5 in self.files.items():
            self.origin.fetch(file, md5)

    def read(self, source: Source, *, train: bool) -> ImageData:
        names = list(self.files)[0 if train else 2 :][:2]
        images, labels = (torch.from_numpy(_read_idx(self.origin.locate(n, self.files[n], source))) for n in names)
        return ImageData(images[:, None], labels.to(torch.int64), self.class_names)


def _read_idx(path: Path) -> np.ndarray:
    """An array in the idx format of uint8: two zero bytes, type 8, number of axes, their sizes, the data."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=axes, offset=4).astype(int)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
