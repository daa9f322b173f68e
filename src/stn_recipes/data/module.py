"""Batches for Lightning: a data set split, distorted, augmented and normalized."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stn._checks import check_choice

from ..names import split
from ..progress import track
from ..sizes import bytes_of
from . import HUB, distortions
from .images import OwnImages, check_images
from .lazy import LazyImages, cores
from .pixels import Fit
from .registry import DataError, ImageData, Source, get
from .streams import STREAMS, balanced, check_integer, generator

_STATISTICS_IMAGES = 10_000
_STATISTICS_PIXELS = 1 << 24  # at a time
_LARGEST_TABLE = 1 << 22  # random numbers; rows of larger ones are drawn when they are needed
_MOST_WORKERS = 8  # unless told otherwise
_QUICK_TRAIN, _QUICK_EVAL = 1_000, 500


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Normalized, augmented and distorted images of one set, a whole batch at a time.

    `stream` ("train", "val" or "test") keeps the random numbers of the sets apart. A `fixed` set always uses those of
    epoch 0 and is never augmented. With `grow` the distortion grows over so many epochs, from none in the first. Clutter is cut from `source` (N, C, H, W),
    bytes, or else from the other images of the set. Applied in order: `augment`, `distortion`, (x - mean) / std with one mean and std
    per channel.

    `__getitems__` takes the (epoch, index) pairs of an `EpochSampler` and returns the collated batch, so a
    `DataLoader` is given `collate_fn=ImageDataset.collate`. A plain index means epoch 0. A third number says how often the
    image was met in the epoch before: it is distorted otherwise each time.

    >>> from stn_recipes.data.registry import load
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
        grow: int = 0,
        source: Tensor | LazyImages | None = None,
    ):
        check_integer("seed", seed, 0)
        check_choice("stream", stream, ("train", "val", "test"))
        check_integer("grow", grow, 0)
        if grow and (distortion is None or distortion.neutral is None):
            which = "no distortion" if distortion is None else repr(distortion.name)
            raise ValueError(f"grow: expected 0 for {which}, which cannot grow from none, got {grow}")
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
        self.grow = grow
        self.source = source
        self.targets = data.labels  # what a batch holds beside the images
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

    def boxes(self) -> Tensor:
        """Where the images of a fixed set lie on their canvases: (N, 4), as `RandomPlacement.boxes`."""
        assert self.fixed
        assert isinstance(self.distortion, distortions.RandomPlacement)
        places = np.arange(len(self))
        random = self._random(self.stream, self.distortion.num_random, 0, places, np.zeros_like(places))
        return self.distortion.boxes(random, (self.data.images.shape[2], self.data.images.shape[3]))

    def _random(self, stream: str, num_random: int, epoch: int, places: np.ndarray, again: np.ndarray) -> np.ndarray:
        """Rows of the table of the epoch, and of further tables for images that are met again in it."""
        of: dict[str, Any] = {"seed": self.seed, "stream": STREAMS[stream], "epoch": epoch}
        if len(self.data) * num_random > _LARGEST_TABLE:
            rows = np.empty((len(places), num_random))
            drawn = np.ones(len(places), dtype=bool)
        else:
            if stream not in self._tables or self._tables[stream][0] != epoch:
                self._tables[stream] = (epoch, distortions.draw(len(self.data), num_random, **of))
            rows, drawn = self._tables[stream][1][places], again > 0
        for row in np.flatnonzero(drawn):
            place, time = int(places[row]), int(again[row])
            rows[row] = distortions.draw_row(num_random, place=place, again=time, **of)
        return rows

    def __getitems__(self, items: Sequence[tuple[int, ...] | int]) -> tuple[Tensor, Tensor]:
        triples = np.zeros((len(items), 3), dtype=np.int64)  # epoch, place, how often it was met before
        for row, item in enumerate(items):
            if isinstance(item, (int, np.integer)):
                triples[row, 1] = item
            else:
                triples[row, : len(item)] = item
        epochs, places, again = triples.T
        epoch = int(epochs[0]) if len(items) and not self.fixed else 0
        if not self.fixed and (epochs != epoch).any():
            raise ValueError(f"items: expected one epoch in a batch, got {sorted(set(epochs.tolist()))}")
        if len(places) and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"items: expected indices from 0 to {len(self) - 1}, got {places.min()} to {places.max()}")
        index = torch.from_numpy(places.copy())
        images = self.data.images[index].float().div_(255)
        if self.augment is not None:
            random = self._random("augment", self.augment.num_random, epoch, places, again)
            images = self.augment(images, random, source=self.data.images, index=index)
        if self.distortion is not None:
            random = self._random(self.stream, self.distortion.num_random, epoch, places, again)
            if epoch < self.grow:
                random = self.distortion.neutral + epoch / self.grow * (random - self.distortion.neutral)
            if self.source is None:
                images = self.distortion(images, random, source=self.data.images, index=index)
            else:
                images = self.distortion(images, random, source=self.source)
        return images.sub_(self._mean).div_(self._std), self.targets[index]

    def __getitem__(self, items: Any) -> tuple[Tensor, Tensor]:
        """A batch for a list of items, a single image and its label for one item."""
        if isinstance(items, list):
            return self.__getitems__(items)
        images, labels = self.__getitems__([items])
        return images[0], labels[0]


class EpochSampler(Sampler[tuple[int, ...]]):
    """Pairs (epoch, index) for one rank of an epoch, in an order that depends on (seed, epoch) alone.

    Shuffled (training), every rank gets the same number of samples: the permutation is continued from its start until
    it divides by `world_size`. Unshuffled (evaluation), each sample goes to exactly one rank. Rank r takes every
    `world_size`-th sample from r on. `set_epoch` is called by Lightning's Trainer.

    With `balance`, the class (count,) of each sample, an epoch has as many samples of every class and no more than
    `count` in all: (epoch, index, again), the last saying how often the sample was there before. Of a large class some are
    left out, others in each epoch; those of a small one come again, each as often as the others or once more.

    >>> sampler = EpochSampler(4, shuffle=True, seed=0)
    >>> sampler.set_epoch(2)
    >>> sorted(sampler)
    [(2, 0), (2, 1), (2, 2), (2, 3)]
    >>> [index for _, index, _ in sorted(EpochSampler(4, shuffle=True, balance=np.array([0, 0, 0, 1])))][2:]
    [3, 3]
    """

    def __init__(
        self,
        count: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        balance: np.ndarray | None = None,
    ):
        check_integer("count", count, 0)
        check_integer("seed", seed, 0)
        check_integer("world_size", world_size, 1)
        check_integer("rank", rank, 0)
        if rank >= world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1} for a world_size of {world_size}, got {rank}")
        if balance is not None and (not shuffle or len(balance) != count):
            raise ValueError(
                f"balance: expected the classes of {count} samples that are shuffled, got {len(balance)} classes with "
                f"shuffle={shuffle}"
            )
        self.count = count
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.balance = balance
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        check_integer("epoch", epoch, 0)
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return math.ceil(self.count / self.world_size)
        return len(range(self.rank, self.count, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        # a generator: the epoch is looked up when the first batch is asked for
        epoch = self.epoch
        order = np.arange(self.count)[:, None]
        if self.shuffle:
            numbers = generator(self.seed, "shuffle", epoch)
            order = (
                numbers.permutation(self.count)[:, None] if self.balance is None else balanced(self.balance, numbers)
            )
            order = np.resize(order, (len(self) * self.world_size, order.shape[1]))
        for row in order[self.rank :: self.world_size]:
            yield epoch, *row.tolist()


class _Loader(DataLoader[tuple[Tensor, Tensor]]):
    """Starts its workers when the first batch is asked for.

    Lightning creates the iterator of a resumed run before it tells the sampler the epoch, and workers would have
    fetched batches of epoch 0 by then. What a worker could not read is said in the words that it would have without.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DataError as error:  # of a worker: behind its traceback, in the words of torch
            raise DataError(str(error).rpartition("DataError: ")[2].strip()) from error


def _statistics(dataset: ImageDataset, count: int, progress: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the first `count` images as they come out."""
    total = squares = torch.zeros(dataset.image_shape[0], dtype=torch.float64)
    most = max(1, min(1000, _STATISTICS_PIXELS // math.prod(dataset.image_shape)))
    starts = range(0, count, most)
    for start in track(starts, "Measuring mean and deviation", len(starts), shown=progress):
        images, _ = dataset.__getitems__(range(start, min(start + most, count)))
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
    (64x64 unless told) with its aspect as `fit` says; without a `test` folder the same fifth is the test set for every `seed`.
    "hf:NAME" is a data set by Hugging Face, whose columns are `image_column` and `label_column` where more than one could be.
    What takes more than `memory_limit` stays where it is and is read by workers. `distortion` is a
    name of `stn_recipes.distortions` for all three sets: drawn afresh every epoch for training, once and for all for
    validation and test. `augment` is one for training alone, applied before it. The validation set is `val_fraction`
    of the training images, chosen by `seed`; 0 means none. `limit_train` keeps the first n of the remaining, for
    quick trials; `quick` at most 1,000 of them, and at most 500 to validate and 500 to test. With `balance` an epoch has as many images of each class (`EpochSampler`). The distortion of the training images grows over the first `grow` epochs, from none. The test set is not read before it is asked for. With `digit` the data is one set of
    `limit_train` training images of this class, for training and test alike, distorted once and for all, with clutter of the
    other classes; its `boxes` are what is to be found. With `class_names`, those of a trained network, the
    class folders of "images" get their labels by name; a folder of another name is refused.

    After `setup`: `class_names`, `num_classes`, `input_shape` (C, H, W) as the network sees it, `mean` and `std` per
    channel of the training images without augmentation (of the first 10,000 if they are distorted or of any size).

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
        dataset: str | Mapping[str, Any],
        data_dir: str | None = None,
        distortion: str | Mapping[str, Any] | None = None,
        augment: str | Mapping[str, Any] | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int | None = None,
        image_size: tuple[int, int] | None = None,
        fit: Fit = "stretch",
        on_bad_image: str = "stop",
        memory_limit: str = "2GiB",
        image_column: str | None = None,
        label_column: str | None = None,
        balance: bool = False,
        progress: bool = True,
        limit_train: int | None = None,
        quick: bool = False,
        grow: int = 0,
        digit: int | None = None,
        class_names: tuple[str, ...] | None = None,
    ):
        super().__init__()
        self.dataset = get(dataset)
        check_integer("batch_size", batch_size, 1)
        check_integer("eval_batch_size", eval_batch_size, 1)
        check_integer("seed", seed, 0)
        if num_workers is not None:
            check_integer("num_workers", num_workers, 0)
        if limit_train is not None:
            check_integer("limit_train", limit_train, 1)
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction: expected a number from 0 to below 1, got {val_fraction!r}")
        if self.dataset.own_images and data_dir is None:
            raise ValueError(f"data_dir: expected the folder of the class folders for dataset {dataset!r}, got None")
        if not self.dataset.any_size and image_size is not None:
            raise ValueError(f"image_size: only images of any size have one, got {image_size!r} for {dataset!r}")
        if not split(dataset)[0].startswith(HUB) and (image_column, label_column) != (None, None):
            raise ValueError(
                f"image_column, label_column: only data sets by Hugging Face have them, got {image_column!r} and "
                f"{label_column!r} for {dataset!r}"
            )
        size = image_size or (64, 64)
        check_images(size, on_bad_image, fit)
        self.data_dir = data_dir
        self.distortion = None if distortion is None else distortions.get(distortion)
        self.augment = None if augment is None else distortions.get(augment, argument="augment")
        if self.augment is not None and (self.augment.needs_source or self.augment.output_size((28, 28)) != (28, 28)):
            raise ValueError(f"augment: expected one that keeps the size (affine, flip_shift, r, e), got {augment!r}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.seed = seed
        self.num_workers = num_workers
        self.image_size = (size[0], size[1])
        self.fit = fit
        self.on_bad_image = on_bad_image
        self.memory_limit = bytes_of("memory_limit", memory_limit)
        self.columns = (image_column, label_column)
        self.balance = balance
        self.progress = progress
        self.limit_train = limit_train
        self.quick = quick
        self.grow = grow
        self.digit = digit
        if digit is not None:
            check_integer("digit", digit, 0)
            if not isinstance(self.distortion, distortions.RandomPlacement):
                raise ValueError(
                    f"distortion: expected one that places the digit (t, tc, t84, tc84), got {distortion!r}"
                )
            if val_fraction or augment is not None or limit_train is None:
                raise ValueError(
                    "digit: its images are one set that is trained on and measured, expected val_fraction=0, "
                    f"augment=None and a limit_train, got {val_fraction!r}, {augment!r} and {limit_train!r}"
                )
        self.known_classes = class_names
        self._train: ImageDataset | None = None
        self._val: ImageDataset | None = None
        self._test: ImageDataset | None = None

    def _read(self, train: bool) -> ImageData:
        return self.dataset.read(self._source(), train=train)

    def _source(self) -> Source:
        data_dir = None if self.data_dir is None else Path(self.data_dir)
        return Source(
            data_dir,
            self.image_size,
            self.fit,
            self.on_bad_image,
            self.memory_limit,
            self.progress,
            self.columns,
            class_names=self.known_classes,
        )

    def prepare_data(self) -> None:
        """Download what is not there yet; runs once per machine."""
        if self.data_dir is None:
            self.dataset.download()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the training set; with `stage="test"` the test set too."""
        if self._train is None and self.digit is not None:
            self._train = self._test = self._of_one_class(self.digit)
        if self._train is None:
            data = self._read(train=True)
            order, held_out = self._split(data)
            remaining = len(data) - held_out
            if remaining == 0 or (self.val_fraction > 0 and held_out == 0):
                raise ValueError(
                    f"val_fraction: {self.val_fraction} of {len(data)} images leaves {remaining} to train on and "
                    f"{held_out} to validate on, expected at least one of each"
                )
            if self.limit_train is not None and self.limit_train > remaining:
                raise ValueError(f"limit_train: expected at most {remaining} (what there is), got {self.limit_train}")
            few = (_QUICK_TRAIN, _QUICK_EVAL) if self.quick else (None, None)
            chosen = data.take(order[held_out:][: self.limit_train][: few[0]])
            self.class_names = data.class_names
            self.num_classes = len(data.class_names)
            plain = ImageDataset(chosen, distortion=self.distortion, seed=self.seed)
            all_of_them = self.distortion is None and not self.dataset.any_size
            count = len(plain) if all_of_them else min(len(plain), _STATISTICS_IMAGES)
            self.mean, self.std = _statistics(plain, count, self.progress)
            self.input_shape = plain.image_shape
            self._train = ImageDataset(
                chosen, distortion=self.distortion, augment=self.augment, mean=self.mean, std=self.std, seed=self.seed,
                grow=self.grow,
            )  # fmt: skip
            self._val = self._fixed(data.take(order[:held_out][: few[1]]), "val") if held_out else None
        if stage == "test":
            self.test_data()

    def _split(self, data: ImageData) -> tuple[np.ndarray, int]:
        """The images in a random order, and how many of the first are the validation set: whole groups, if there are any."""
        order = generator(self.seed, "val_split").permutation(len(data))
        held_out = math.floor(self.val_fraction * len(data) + 0.5)
        if data.groups is None or not held_out:
            return order, held_out
        groups = data.groups.numpy()[order]
        held = np.zeros(len(groups), dtype=bool)
        for group in dict.fromkeys(groups.tolist()):
            if held.sum() >= held_out:
                break
            held |= groups == group
        return np.concatenate([order[held], order[~held]]), int(held.sum())

    def _of_one_class(self, digit: int) -> ImageDataset:
        """`limit_train` images of a class, distorted once and for all, among clutter of the images of other classes."""
        data = self._read(train=True)
        if digit >= len(data.class_names):
            raise ValueError(f"digit: expected 0 to {len(data.class_names) - 1}, got {digit}")
        own = np.flatnonzero(data.labels.numpy() == digit)
        assert self.limit_train is not None
        if self.limit_train > len(own):
            raise ValueError(f"limit_train: expected at most {len(own)} (what there is), got {self.limit_train}")
        chosen = data.take(generator(self.seed, "val_split").permutation(own)[: self.limit_train])
        options: dict[str, Any] = {
            "distortion": self.distortion, "seed": self.seed, "fixed": True, "source": data.take(np.flatnonzero(data.labels.numpy() != digit)).images
        }  # fmt: skip
        self.class_names, self.num_classes = (data.class_names[digit],), 1
        plain = ImageDataset(chosen, **options)
        self.mean, self.std = _statistics(plain, len(plain), self.progress)
        self.input_shape = plain.image_shape
        found = ImageDataset(chosen, mean=self.mean, std=self.std, **options)
        found.targets = found.boxes()
        return found

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
        self.setup("fit")
        if self._test is None:
            data = self._read(train=False)
            if self.quick and len(data) > _QUICK_EVAL:  # of all classes, and the same for every seed
                data = data.take(np.sort(generator(0, "val_split").permutation(len(data))[:_QUICK_EVAL]))
            self._test = self._fixed(data, "test")
        return self._test

    def everything(self, mean: Sequence[float], std: Sequence[float]) -> ImageDataset:
        """All of your own images in the folder as one set, fixed as a test set is, normalized by `mean` and `std`."""
        assert isinstance(self.dataset, OwnImages)
        data = self.dataset.read_all(self._source())
        return ImageDataset(
            data, distortion=self.distortion, mean=mean, std=std, seed=self.seed, stream="test", fixed=True
        )

    def loader(self, dataset: ImageDataset, *, train: bool = False) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of a set: in order, or shuffled by the seed and the epoch to train on."""
        trainer = self.trainer
        sampler = EpochSampler(
            len(dataset),
            shuffle=train,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            balance=dataset.data.labels.numpy() if train and self.balance else None,
        )
        workers = self._workers(dataset)
        return _Loader(
            dataset,
            batch_size=self.batch_size if train else self.eval_batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=ImageDataset.collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # its own: workers or none, training draws the same random numbers
        )

    def _workers(self, dataset: ImageDataset) -> int:
        """Processes that prepare batches: unless told, of images that have to be read one for each core, up to 8."""
        if self.num_workers is not None:
            return self.num_workers
        if isinstance(dataset.data.images, Tensor):
            return 0
        share = min(_MOST_WORKERS, cores() // (self.trainer.num_devices if self.trainer else 1))
        return share if share > 1 else 0

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self.loader(self.train_data(), train=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]] | list[Any]:
        dataset = self.val_data()
        return [] if dataset is None else self.loader(dataset)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self.loader(self.test_data())
