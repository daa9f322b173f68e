"""Images that are read when they are asked for, and sets of them: in memory while they fit, from where they lie beyond that."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, ClassVar, Self, TypeVar

import numpy as np
import PIL
import pooch
import torch
from PIL import Image
from torch import Tensor

from ..files import write_text
from ..progress import track
from .pixels import Fit, decode
from .registry import DataError, ImageData, Source

NAMED = 5  # of the images that cannot be read
_AT_A_TIME = 1024  # handed to the threads

In = TypeVar("In")
Out = TypeVar("Out")


class LazyImages(ABC):
    """Images (N, 3, H, W) of bytes that are read when they are asked for: `images[places]` as of a tensor.

    Nothing of it is a Python object for each image: worker processes would copy every page of memory that they look at.

    Attributes:
        size, fit: the size (H, W) that they are brought to, and how.
    """

    dtype: ClassVar[torch.dtype] = torch.uint8
    ndim: ClassVar[int] = 4

    def __init__(self, size: tuple[int, int], fit: Fit) -> None:
        self.size, self.fit = size, fit

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, places: np.ndarray) -> Self:
        """The images at these places, in this order; none is read."""

    @abstractmethod
    def name(self, place: int) -> str:
        """What to call an image in a message."""

    @abstractmethod
    def open(self, place: int) -> str | IO[bytes]:
        """The file of an image, by its path or open."""

    @abstractmethod
    def state(self, progress: bool) -> bytes | None:
        """What changes when any of the files does; None where nothing can tell."""

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, *self.size))

    def __getitem__(self, places: Tensor) -> Tensor:
        """The images at these places, (B, 3, H, W). Raises DataError for one that cannot be read, by name."""
        found = np.empty((len(places), *self.shape[1:]), dtype=np.uint8)
        with _bombs_refused():
            for row, pixels in enumerate(in_threads(self.attempt, places.tolist())):
                if isinstance(pixels, Exception):
                    name = self.name(int(places[row]))
                    raise DataError(f"{name}: cannot be read as an image any more: {pixels}") from pixels
                found[row] = pixels.transpose(2, 0, 1)
        return torch.from_numpy(found)

    def attempt(self, place: int) -> np.ndarray | Exception:
        """The pixels (H, W, 3), or why there are none."""
        try:
            return decode(self.open(place), self.size, fit=self.fit)
        except Exception as error:  # decoders raise anything on damaged input
            return error

    def problem(self, place: int) -> str | None:
        """Why an image cannot be read, None if it can."""
        try:
            decode(self.open(place))
        except Exception as error:
            return str(error)
        return None


def in_threads(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """`map` in several threads, a few items ahead; in a worker process, of which there are many, in its own thread."""
    if torch.utils.data.get_worker_info() is not None:
        yield from map(function, items)
        return
    remaining = iter(items)
    with ThreadPoolExecutor(min(8, cores())) as pool:
        while block := [item for item, _ in zip(remaining, range(_AT_A_TIME), strict=False)]:
            yield from pool.map(function, block)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _bombs_refused() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def loaded(images: LazyImages, labels: np.ndarray, class_names: tuple[str, ...], source: Source) -> ImageData:
    """A set of images: in memory if that takes at most `source.memory_limit` bytes, else read when asked for.

    Every image is read once, so that what is damaged is named before anything is trained on: into memory, or to see that
    it can be. That it could is written down in the user's cache, and true as long as no file changes.

    Raises:
        DataError: for images that cannot be read, by name; with `source.on_bad_image="skip"` they are left out and a
            warning names them.
    """
    kept: Tensor | LazyImages
    if math.prod(images.shape) > source.memory_limit:
        kept, bad = images, _unreadable(images, source.progress)
    else:
        kept, bad = torch.empty(images.shape, dtype=torch.uint8), []
        with _bombs_refused():
            each = in_threads(images.attempt, range(len(images)))
            for place, pixels in enumerate(track(each, "Reading images", len(images), shown=source.progress)):
                if isinstance(pixels, Exception):
                    bad.append((place, str(pixels)))
                else:
                    kept[place] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    targets = torch.from_numpy(labels.astype(np.int64))
    if not bad:
        return ImageData(kept, targets, class_names)
    if source.on_bad_image == "stop":
        raise DataError(unreadable([(images.name(place), reason) for place, reason in bad], len(images)))
    for place, reason in bad:
        warnings.warn(f"{images.name(place)}: skipped, cannot be read as an image: {reason}", stacklevel=4)
    good = np.delete(np.arange(len(images)), [place for place, _ in bad])
    if not len(good):
        raise DataError(f"none of {len(images)} images could be read; the first was {images.name(0)}")
    return ImageData(kept, targets, class_names).take(good)


def unreadable(bad: Sequence[tuple[str, str]], total: int) -> str:
    """What to say of images that cannot be read, by name and reason: the first ones, and how many there are."""
    shown = "; ".join(f"{name}: cannot be read as an image: {reason}" for name, reason in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return (
        f"{shown}{more} ({len(bad)} of {total}). Repair or remove what cannot be read, or pass on_bad_image='skip' "
        "(--on-bad-image skip)."
    )


def _unreadable(images: LazyImages, progress: bool) -> list[tuple[int, str]]:
    """The places of all images that cannot be read, and why: as it was written down, or by reading them all."""
    state = images.state(progress)
    record = None
    if state is not None:
        versions = f"{PIL.__version__} {Image.MAX_IMAGE_PIXELS}".encode()
        record = Path(pooch.os_cache("stn")) / "read" / f"{hashlib.sha256(state + versions).hexdigest()[:32]}.json"
        with contextlib.suppress(OSError, ValueError, TypeError):  # not there, or damaged: read them again
            return [(int(place), str(reason)) for place, reason in json.loads(record.read_text(encoding="utf-8"))]
    with _bombs_refused():
        each = in_threads(images.problem, range(len(images)))
        told = enumerate(track(each, "Checking images", len(images), shown=progress))
        bad = [(place, reason) for place, reason in told if reason is not None]
    if record is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            record.parent.mkdir(parents=True, exist_ok=True)
            write_text(record, json.dumps(bad))
    return bad
