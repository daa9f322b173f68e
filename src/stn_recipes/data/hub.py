"""Data sets of Hugging Face `datasets`, by name: `hf:NAME`, `hf:NAME:CONFIGURATION` or `hf:FOLDER`."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from . import HUB
from .lazy import LazyImages, loaded
from .pixels import Fit
from .registry import AbstractDataSet, DataError, ImageData, Source
from .streams import stratified

if TYPE_CHECKING:
    from datasets import Dataset

_TEST_SPLITS = ("test", "validation", "valid", "val")  # the first that has labels
_LABELS = ("label", "labels", "class", "target")  # what columns of them are called


class ArrowImages(LazyImages):
    """Images in the column of an Arrow table, which is mapped into memory and not read into it."""

    def __init__(self, table: Dataset, places: np.ndarray, size: tuple[int, int], fit: Fit, called: str) -> None:
        super().__init__(size, fit)
        self.table, self.places, self.called = table, places, called
        (self.column,) = table.column_names

    def __len__(self) -> int:
        return len(self.places)

    def take(self, places: np.ndarray) -> ArrowImages:
        return ArrowImages(self.table, self.places[places], self.size, self.fit, self.called)

    def name(self, place: int) -> str:
        return f"{self.called}, row {self.places[place]}"

    def open(self, place: int) -> str | IO[bytes]:
        image = self.table[int(self.places[place])][self.column]
        if image is None:
            raise ValueError("there is no image")
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else str(image["path"])

    def state(self, progress: bool) -> bytes | None:
        """A digest of the files of the table; None for a table that has none, or images in files of their own."""
        files = [file["filename"] for file in self.table.cache_files]
        if (
            not files
            or not len(self)
            or self.table[0][self.column] is None
            or self.table[0][self.column]["bytes"] is None
        ):
            return None
        digest = hashlib.sha256(self.places.tobytes() + self.column.encode())
        for file in files:
            found = os.stat(file)
            digest.update(f"{os.path.abspath(file)} {found.st_size} {found.st_mtime_ns}\0".encode())
        return digest.digest()


@dataclass(frozen=True)
class HubDataSet(AbstractDataSet):
    """Splits with a column of images and a column of classes.

    The test set is the split `test`, or `validation` where there is none or its classes are not told, or else a fifth of each
    class of `train`, the same for every seed.
    """

    name: str
    background: Literal["zeros", "border"] = "border"
    any_size: bool = True

    def download(self) -> None:
        self._splits(Source())

    def read(self, source: Source, *, train: bool) -> ImageData:
        splits = self._splits(source)
        if "train" not in splits:
            raise DataError(f"{self.name}: expected a split called train, found {', '.join(splits) or 'none'}")
        image, label = self._columns(splits["train"], source)
        labels, names = self._labels(splits["train"], "train", label, source.class_names)
        part, places = "train", np.arange(len(labels))
        for other in _TEST_SPLITS:
            if other in splits and label in splits[other].column_names and _told(splits[other], label):
                if not train:
                    part = other
                    labels, _ = self._labels(splits[other], other, label, names)
                    places = np.arange(len(labels))
                break
        else:
            first, second = stratified(labels, 0.2, 0)
            if not len(second):
                raise DataError(f"{self.name}: no class has two images, so none can be set aside for the test")
            places = first if train else second
        from datasets import Image

        table = splits[part].select_columns([image]).cast_column(image, Image(decode=False))
        images = ArrowImages(table, places, source.image_size, source.fit, f"{self.name}, {part}")
        return loaded(images, labels[places], names, source)

    def _splits(self, source: Source) -> dict[str, Dataset]:
        try:
            import datasets
        except ImportError as error:
            if error.name != "datasets":
                raise
            raise DataError("dataset: datasets is missing; pip install 'spatial-transformers[hf]'") from error

        name, _, configuration = self.name.removeprefix(HUB).partition(":")
        place = str(source.data_dir) if source.data_dir is not None else name
        if not source.progress:
            datasets.disable_progress_bars()
        try:
            if (Path(place) / "dataset_dict.json").is_file() or (Path(place) / "state.json").is_file():
                found: Any = datasets.load_from_disk(place)
            else:
                found = datasets.load_dataset(place, configuration or None)
        except Exception as error:  # of the library, the transport and the file formats alike
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"dataset: {self.name} cannot be read from {place}: {reason[0]}") from error
        return dict(found) if isinstance(found, dict) else {"train": found}

    def _columns(self, table: Dataset, source: Source) -> tuple[str, str]:
        """Of images and of classes: those that are told, or the only ones that can be meant."""
        from datasets import ClassLabel, Image

        features = table.features
        of_kind = {kind: [n for n, f in features.items() if isinstance(f, kind)] for kind in (Image, ClassLabel)}
        classes = of_kind[ClassLabel] or [name for name in _LABELS if name in features][:1]
        found = []
        for argument, told, candidates, what in (
            ("image_column", source.columns[0], of_kind[Image], "of images"),
            ("label_column", source.columns[1], classes, "of classes"),
        ):
            if told is not None and (told not in features or (told not in candidates and what == "of images")):
                listed = candidates if what == "of images" else list(features)
                raise DataError(
                    f"{argument}: expected a column {what} of {self.name} ({', '.join(listed) or 'there is none'}), "
                    f"got {told!r}"
                )
            if told is None and len(candidates) != 1:
                raise DataError(
                    f"{argument}: {self.name} has {len(candidates)} columns {what}, expected to be told which "
                    f"(--{argument.replace('_', '-')}); it has {', '.join(features)}"
                )
            found.append(told or candidates[0])
        return found[0], found[1]

    def _labels(
        self, table: Dataset, split: str, column: str, known: tuple[str, ...] | None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """The class of each row, and the names of the classes, which are `known`, or those of the column."""
        from datasets import ClassLabel

        feature, values = table.features[column], _values(table, column)
        missing = [row for row, value in enumerate(values) if _untold(value)]
        if missing:
            raise DataError(f"{self.name}, {split}, row {missing[0]}: no class ({len(missing)} of {len(values)} rows)")
        if isinstance(feature, ClassLabel):
            told = [feature.names[value] for value in values]
            names = tuple(feature.names)
        elif feature.dtype in ("string", "large_string", "bool") or feature.dtype.startswith(("int", "uint")):
            told = [str(value) for value in values]
            names = tuple(str(value) for value in sorted(set(values)))
        else:
            raise DataError(
                f"label_column: expected whole numbers, words or classes, got {column!r} of {feature.dtype}"
            )
        places = {name: place for place, name in enumerate(known or names)}
        unknown = sorted(set(told) - set(places))
        if unknown:
            raise DataError(f"{self.name}, {split}: class {unknown[0]!r} is none of {', '.join(places)}")
        if len(places) < 2:
            raise DataError(f"{self.name}, {split}: expected at least two classes in {column!r}, got {len(places)}")
        return np.array([places[name] for name in told], dtype=np.int64), tuple(places)


def _values(table: Dataset, column: str) -> list[Any]:
    values: list[Any] = table.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()
    return values


def _untold(value: Any) -> bool:
    return value is None or value == -1


def _told(table: Dataset, column: str) -> bool:
    """Whether any row has a class: those of a test set may be kept back, as -1 or nothing."""
    return not all(map(_untold, _values(table, column)))
