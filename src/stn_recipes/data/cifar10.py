"""CIFAR-10: 50,000 and 10,000 colour photographs of 32x32 pixels (Krizhevsky 2009)."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .official import Origin
from .registry import AbstractDataSet, DataError, ImageData, Source, check_folder

_FOLDER = "cifar-10-batches-py"


@dataclass(frozen=True)
class Cifar10(AbstractDataSet):
    """Its class names are in its files; they are read from the archive, or from the folder that it unpacks to."""

    origin: Origin
    archive: tuple[str, str]  # name, md5
    files: Mapping[str, str]  # in the archive: name -> md5
    name: str = "cifar10"
    background: Literal["zeros", "border"] = "border"

    def download(self) -> None:
        self.origin.fetch(*self.archive)

    def read(self, source: Source, *, train: bool) -> ImageData:
        batches = [file for file in self.files if file.startswith("data_batch" if train else "test_batch")]
        *parts, meta = self._content([*batches, "batches.meta"], source)
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([part["labels"] for part in parts]).astype(np.int64)
        return ImageData(torch.from_numpy(images), torch.from_numpy(labels), tuple(meta["label_names"]))

    def _content(self, files: Sequence[str], source: Source) -> list[dict[str, Any]]:
        """What is in some of the batches."""
        folder = None if source.data_dir is None else self._unpacked(check_folder("data_dir", source.data_dir))
        if folder is not None:
            missing = [file for file in files if not (folder / file).is_file()]
            if missing:
                raise DataError(
                    f"{folder / missing[0]}: missing (expected md5 {self.files[missing[0]]}). "
                    f"Extract {self.archive[0]} from {self.origin.url} again."
                )
            paths = [self.origin.verified(folder / file, self.files[file]) for file in files]
            return [_unpickle(path.read_bytes(), str(path)) for path in paths]
        archive = self.origin.locate(*self.archive, source)
        with tarfile.open(archive) as tar:
            content = {
                member.name.removeprefix(f"{_FOLDER}/"): tar.extractfile(member).read()  # type: ignore[union-attr]
                for member in tar
                if member.isfile() and member.name.removeprefix(f"{_FOLDER}/") in files
            }
        return [_unpickle(content[file], f"{archive}:{file}") for file in files]

    def _unpacked(self, data_dir: Path) -> Path | None:
        """The folder of the batches in `data_dir`, which may be that folder itself."""
        for place in self.origin.folders:
            if (folder := data_dir / place / _FOLDER).is_dir():
                return folder
        return data_dir if (data_dir / "data_batch_1").is_file() else None


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


DATA = Cifar10(
    origin=Origin("cifar10", "https://www.cs.toronto.edu/~kriz/", ("", "cifar10")),
    archive=("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    files={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)
