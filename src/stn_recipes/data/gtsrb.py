"""The German traffic sign benchmark: 39,209 and 12,630 photographs of 43 signs (Stallkamp et al. 2012), at 40x40 pixels.

Thirty frames in a row of the training set, a track, show one and the same sign, so a validation set takes whole tracks.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from ..progress import track
from .official import Origin
from .pixels import decode
from .registry import AbstractDataSet, DataError, ImageData, Source, check_folder

SIZE = (40, 40)
SMALL = ("train.zip", "test.zip")  # a copy whose images have been resized already


class _Image(NamedTuple):
    name: str  # in the archive
    label: int
    track: int  # in its class


@dataclass(frozen=True)
class TrafficSigns(AbstractDataSet):
    """Whole images, with the margin around the sign, in colour, resized whatever their aspect ratio, which is nearly 1."""

    class_names: tuple[str, ...]
    origin: Origin
    files: Mapping[str, str]  # name -> md5: training images, test images, test labels
    counts: tuple[int, int]  # of images to train on and to test
    name: str = "gtsrb"
    background: Literal["zeros", "border"] = "border"

    def download(self) -> None:
        for file, md5 in self.files.items():
            self.origin.fetch(file, md5)

    def read(self, source: Source, *, train: bool) -> ImageData:
        small = None if source.data_dir is None else self._small(check_folder("data_dir", source.data_dir), train)
        if small is not None:
            return self._read(small, _listed(small), train, source.progress)
        training, test, truth = (self.origin.locate(file, md5, source) for file, md5 in self.files.items())
        return self._read(training if train else test, _training if train else _test(truth), train, source.progress)

    def _small(self, data_dir: Path, train: bool) -> Path | None:
        """The small copy in a folder: `train.zip` and `test.zip` of files CLASS/TRACK_FRAME, of a test CLASS/NUMBER."""
        for place in self.origin.folders:
            if all((data_dir / place / file).is_file() for file in SMALL):
                return data_dir / place / SMALL[0 if train else 1]
        return None

    def _read(
        self, archive: Path, listed: Callable[[zipfile.ZipFile], Iterator[_Image]], train: bool, progress: bool
    ) -> ImageData:
        try:
            with zipfile.ZipFile(archive) as opened:
                found = list(listed(opened))
                self._check(archive, found, self.counts[0 if train else 1])
                images = torch.empty(len(found), 3, *SIZE, dtype=torch.uint8)
                shown = track(found, "Reading traffic signs", len(found), shown=progress)
                for place, image in enumerate(shown):
                    pixels = decode(io.BytesIO(opened.read(image.name)), SIZE)  # the archive checks each file's sum
                    images[place] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        except (zipfile.BadZipFile, OSError, ValueError, SyntaxError) as error:  # Pillow's, too, on damaged input
            if isinstance(error, DataError):
                raise
            raise DataError(f"{archive}: damaged: {error}. Delete it and get it again.") from error
        labels = torch.tensor([image.label for image in found])
        tracks = torch.tensor([image.label * 100_000 + image.track for image in found])
        return ImageData(images, labels, self.class_names, tracks if train else None)

    def _check(self, archive: Path, found: list[_Image], count: int) -> None:
        classes = Counter(image.label for image in found)
        strangers = sorted(set(classes) - set(range(len(self.class_names))))
        if len(found) != count or strangers or len(classes) != len(self.class_names):
            raise DataError(
                f"{archive}: expected {count} images of {len(self.class_names)} classes, found {len(found)} of "
                f"{len(classes)}" + (f", such as class {strangers[0]}" if strangers else "")
            )


def _listed(archive: Path) -> Callable[[zipfile.ZipFile], Iterator[_Image]]:
    def images(opened: zipfile.ZipFile) -> Iterator[_Image]:
        for name in sorted(opened.namelist(), key=lambda name: Path(name).name if archive.name == SMALL[1] else name):
            label, _, stem = name.rpartition(".")[0].partition("/")
            yield _Image(name, int(label), int(stem.partition("_")[0]))

    return images


def _training(opened: zipfile.ZipFile) -> Iterator[_Image]:
    """GTSRB/Final_Training/Images/CLASS/TRACK_FRAME.ppm"""
    for name in sorted(opened.namelist()):
        if name.endswith(".ppm"):
            label, stem = Path(name).parts[-2:]
            yield _Image(name, int(label), int(stem.partition("_")[0]))


def _test(truth: Path) -> Callable[[zipfile.ZipFile], Iterator[_Image]]:
    """GTSRB/Final_Test/Images/NUMBER.ppm, and the classes in a file of their own."""

    def images(opened: zipfile.ZipFile) -> Iterator[_Image]:
        with zipfile.ZipFile(truth) as table, table.open("GT-final_test.csv") as file:
            rows = csv.DictReader(io.TextIOWrapper(file, encoding="ascii"), delimiter=";")
            labels = {row["Filename"]: int(row["ClassId"]) for row in rows}
        for name in sorted(opened.namelist()):
            if name.endswith(".ppm"):
                yield _Image(name, labels.get(Path(name).name, -1), 0)

    return images


DATA = TrafficSigns(
    class_names=(
        "20 km/h", "30 km/h", "50 km/h", "60 km/h", "70 km/h", "80 km/h", "end of 80 km/h", "100 km/h", "120 km/h",
        "no passing", "no passing for trucks", "priority at the crossing", "priority road", "yield", "stop", "no vehicles",
        "no trucks", "no entry", "danger", "bend to the left", "bend to the right", "double bend", "bumpy road",
        "slippery road", "road narrows", "road works", "traffic lights", "pedestrians", "children", "bicycles",
        "ice or snow", "wild animals", "end of all limits", "turn right ahead", "turn left ahead", "straight ahead",
        "straight or right", "straight or left", "keep right", "keep left", "roundabout", "end of no passing",
        "end of no passing for trucks",
    ),
    origin=Origin(
        "gtsrb", "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/", ("gtsrb", "GTSRB", "")
    ),
    files={
        "GTSRB_Final_Training_Images.zip": "f33fd80ac59bff73c82d25ab499e03a3",
        "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
        "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
    },
    counts=(39_209, 12_630),
)  # fmt: skip
