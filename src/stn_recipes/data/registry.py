"""What a data set is, and every one by name."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stn._checks import check_choice

from ..names import check_named, imported, is_import_path, split
from . import DATASETS, HUB

if TYPE_CHECKING:
    from .lazy import LazyImages
    from .pixels import Fit


MEMORY_LIMIT = 2 << 30


class DataError(ValueError):
    """A data set is missing, damaged or unusable; the message names the file and says what to do."""


@dataclass(frozen=True)
class ImageData:
    """Images and labels of one set."""

    images: Tensor | LazyImages  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    class_names: tuple[str, ...]
    groups: Tensor | None = None  # (N,) int64: images of one number show one and the same thing; no split parts them

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
        if self.groups is not None and (self.groups.dtype, self.groups.shape) != (torch.int64, self.labels.shape):
            raise ValueError(
                f"groups: expected int64 of shape ({len(self.images)},), "
                f"got {self.groups.dtype} of shape {tuple(self.groups.shape)}"
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
        images = self.images[chosen] if isinstance(self.images, Tensor) else self.images.take(places)
        groups = None if self.groups is None else self.groups[chosen]
        return ImageData(images, self.labels[chosen], self.class_names, groups)


class Source(NamedTuple):
    """Where a set is read from, and how images of any size are."""

    data_dir: Path | None = None  # None: the user's cache, filled from the network
    image_size: tuple[int, int] = (64, 64)  # (H, W) that images of any size are brought to
    fit: Fit = "stretch"  # how
    on_bad_image: str = "stop"  # or "skip"
    memory_limit: int = MEMORY_LIMIT  # bytes of a set that are kept in memory
    progress: bool = True
    columns: tuple[str | None, str | None] = (None, None)  # of images and labels, of a data set by Hugging Face
    class_names: tuple[str, ...] | None = None  # that the folders of your own images go by; None: what is there


class AbstractDataSet(ABC):
    """A data set: one file of this folder that ends with `DATA`, an instance of a final subclass.

    Attributes:
        name: as in `DATASETS`; of one of yours whatever you like.
        background: how an image goes on beyond its border: "zeros" for black, "border" where it has none of its own.
        own_images: whether it is the user's folder, and not a fixed set.
        any_size: whether its images are of any size, and brought to `Source.image_size`.
    """

    name: str
    background: Literal["zeros", "border"]
    own_images: bool = False
    any_size: bool = False

    @abstractmethod
    def download(self) -> None:
        """Fetch the files that are not in the cache yet; nothing for a set without files."""

    @abstractmethod
    def read(self, source: Source, *, train: bool) -> ImageData:
        """The training or the test set.

        Raises:
            DataError: for a file that is missing, fails its checksum or cannot be downloaded.
        """


def get(name: str | Mapping[str, Any], argument: str = "dataset") -> AbstractDataSet:
    """A data set by name; or one of yours, `package.module:name`, an instance or a subclass of `AbstractDataSet`, which a
    mapping with the name has options for.

    Raises:
        ValueError: for an unknown one, with the nearest, and for an import path that names no data set.
    """
    check_named(argument, name, DATASETS)
    name, options = split(name)
    if name.startswith(HUB) and not options:
        of_hub: AbstractDataSet = importlib.import_module(f"{__package__}.hub").HubDataSet(name)
        return of_hub
    found = imported(argument, name) if is_import_path(name) else importlib.import_module(f"{__package__}.{name}").DATA
    if isinstance(found, type) and issubclass(found, AbstractDataSet):
        try:
            found, options = found(**options), {}
        except TypeError as error:
            raise ValueError(f"{argument}: {name} cannot be made: {error}") from error
    if not isinstance(found, AbstractDataSet):
        raise ValueError(f"{argument}: expected an instance or a subclass of AbstractDataSet, got {name}, {found!r}")
    if options:
        raise ValueError(f"{argument}: expected no options of {name}, got {', '.join(map(str, options))}")
    return found


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
    check_choice("name", name, [known for known in DATASETS if not get(known).own_images])
    source = Source(None if data_dir is None else Path(data_dir), progress=progress)
    data = get(name)
    return data.read(source, train=True), data.read(source, train=False)


def check_folder(argument: str, path: str | os.PathLike[str]) -> Path:
    """An existing folder, `~` expanded."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{argument}: expected a folder, got {str(path)!r}, which {what}")
    return folder
