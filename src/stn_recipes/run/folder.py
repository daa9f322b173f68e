"""The folder of a run, as it is read and written. Nothing in it is executed."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import pickle
import platform
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import yaml
from torch import Tensor

import stn
from stn import weights
from stn.models import Colocalizer, TransformerClassifier, pretrained

from ..config import TrainConfig
from ..files import write_bytes, write_text
from ..names import untrusted

if TYPE_CHECKING:
    from ..data.module import ImageDataModule


_LARGEST_FILMSTRIP = 1 << 30  # bytes, unpacked: a few images and the theta of each epoch are far below


class RunError(ValueError):
    """A run folder that cannot be used, and why."""


class DamagedError(RunError):
    """A file of a run that is cut short, or no longer what was written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a network has to know of the data it was trained on: data.json."""

    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]  # (C, H, W)
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: ImageDataModule) -> Facts:
        return cls(**{field.name: getattr(data, field.name) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassMeasured:
    """What a network does on the images of a class."""

    images: int
    accuracy: float | None  # None where there are no images


def by_class(
    labels: Tensor,  # (N,)
    correct: Tensor,  # (N,) bool
    names: Sequence[str],
) -> dict[str, ClassMeasured]:
    """What was right of each class, those without an image too.

    >>> by_class(torch.tensor([0, 0]), torch.tensor([True, False]), ["cat", "dog"])["cat"]
    ClassMeasured(images=2, accuracy=0.5)
    """
    count, right = (torch.bincount(one, minlength=len(names)).tolist() for one in (labels, labels[correct]))
    return {
        name: ClassMeasured(images=n, accuracy=r / n if n else None)
        for name, n, r in zip(names, count, right, strict=True)
    }


def mean_over_classes(classes: Mapping[str, ClassMeasured]) -> float:
    """The accuracy where every class that has images counts alike, however many there are of it."""
    found = [one.accuracy for one in classes.values() if one.accuracy is not None]
    return sum(found) / len(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run reached: result.json."""

    recipe: str
    network: str
    transformer: str
    seed: int
    parameters: int
    epochs: int
    test_accuracy: float
    test_loss: float
    val_accuracy: float | None
    train_accuracy: float | None
    train_seconds: float
    classes: dict[str, dict[str, Any]] | None = None  # of the test set, by name: a ClassMeasured each
    robust: dict[str, dict[str, float]] | None = (
        None  # of a classifier that poses were learned for, by what is done about them
    )
    cpu_seconds: float | None = None  # of this process: what it would take on a machine of its own
    threads: int | None = None
    command: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    finished: str | None = None  # ISO 8601
    metrics_digest: str | None = None  # of the tables of epochs, of all resumed parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistakes:
    """Which test images a finished run classifies wrongly: mistakes.json."""

    images: int  # of the test set
    wrong: tuple[int, ...]  # their places in it


class Run:
    """A run's folder, read when asked.

    Attributes:
        config, result: settings, and what it reached (None for an unfinished run).
        facts: of its data.
        model: the network with its final weights (an unfinished run: of the last epoch), in eval mode.
        data: the data set; it is read when something of it is asked for.
        trust: whether the code that the settings name, `package.module:name`, may be imported; without it `model` and
            `data` of such a run are refused, and nothing is executed.
    """

    def __init__(self, path: Path, *, trust: bool = False) -> None:
        self.path = path
        self.config = read_config(path)
        self.trust = trust

    def check_trust(self) -> None:
        """Raises RunError where the settings name code to import, and nobody has said that it may be."""
        if self.config.imports and not self.trust:
            raise RunError(untrusted(self.path, self.config.imports))

    @cached_property
    def result(self) -> Result | None:
        file = self.path / "result.json"
        return _read_record(file, Result) if file.exists() else None

    @cached_property
    def mistakes(self) -> Mistakes | None:
        """None for an unfinished run, and for one of a version that did not keep them."""
        file = self.path / "mistakes.json"
        return _read_record(file, Mistakes) if self.result and file.exists() else None

    @cached_property
    def facts(self) -> Facts:
        file = self.path / "data.json"
        if not file.exists():
            raise RunError(f"{self.path}: expected data.json; the run stopped before it began")
        return _read_record(file, Facts)

    @cached_property
    def model(self) -> TransformerClassifier | Colocalizer:
        self.check_trust()
        facts = self.facts
        try:
            model = self.config.make_model(facts.input_shape, len(facts.class_names))
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"{self.path}: no such network can be made for images of the shape {facts.input_shape} that data.json "
                f"gives ({reason})"
            ) from error
        load_weights(model, self.path)
        return model.eval()

    @property
    def classifier(self) -> TransformerClassifier:
        """`model`. Raises RunError where it has no classes, but finds what its images have in common."""
        if self.config.digit is not None:
            raise RunError(
                f"{self.path}: expected a run that classifies; this one finds what its images have in common, which its "
                "report.html shows"
            )
        model = self.model
        assert isinstance(model, TransformerClassifier)
        return model

    @cached_property
    def data(self) -> ImageDataModule:
        self.check_trust()
        data = self.config.make_data(self.facts.class_names)
        data.prepare_data()
        return data

    def metrics(self) -> list[dict[str, float]]:
        """One record for each epoch, of all resumed parts: epoch (from 1), train_loss, val_accuracy, ...

        Raises:
            DamagedError: where a file is no such table or, of a finished run, not what was written.
        """
        files = metrics_files(self.path)
        kept = self.result and self.result.metrics_digest
        if kept and kept != digest_of_files(files):
            names = ", ".join(map(str, files)) or f"{self.path / 'logs' / 'csv'}: no metrics.csv"
            raise DamagedError(f"{names}: damaged, not the metrics that were written")
        merged: dict[int, dict[str, float]] = {}
        for file in files:
            part = _read_metrics(file)
            # An epoch that was begun before a stop and done again after it counts as done again.
            merged = {e: m for e, m in merged.items() if e < min(part, default=0) or not part} | part
        return [{**m, "epoch": e} for e, m in sorted(merged.items()) if "train_loss" in m]

    def filmstrip(self) -> tuple[Tensor, Tensor, np.ndarray] | None:
        """Images (N, C, H, W), their theta (E, N, P) and the epochs (E,) it was kept after; None for a control."""
        file = self.path / "filmstrip.npz"
        if not file.exists():
            return None
        try:
            with zipfile.ZipFile(file) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > _LARGEST_FILMSTRIP:
                    raise ValueError("it claims to be larger than any filmstrip")
            with np.load(file) as kept:
                return torch.from_numpy(kept["images"]), torch.from_numpy(kept["theta"]), kept["epochs"]
        except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError) as error:
            raise DamagedError(f"{file}: damaged ({error})") from error


class Pretrained(Run):
    """Weights that come with the package, as the run that they are of.

    Attributes:
        path: a folder of the recipe's name, where what is made of it goes by default; nothing is read from there.
    """

    def __init__(self, name: str) -> None:
        self.path = Path(name)
        self.config = _config_of(pretrained.record(name)["settings"])
        self.trust = False
        self._network = pretrained.load(name)

    @property
    def result(self) -> None:
        return None

    @property
    def facts(self) -> Facts:
        said = self._network.settings
        return Facts(
            **{field.name: tuple(said[_SAID.get(field.name, field.name)]) for field in dataclasses.fields(Facts)}
        )

    @property
    def model(self) -> TransformerClassifier:
        return self._network


_SAID = {"input_shape": "in_shape"}  # what a network calls it


def metrics_files(run: Path) -> list[Path]:
    """The tables of epochs of a run, in the order in which its parts were trained."""
    files = (run / "logs" / "csv").glob("version_*/metrics.csv")
    return sorted(files, key=lambda file: int(file.parent.name.removeprefix("version_")))


def digest_of_files(files: Iterable[Path]) -> str:
    """What tells whether any of them changed."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _read_metrics(file: Path) -> dict[int, dict[str, float]]:
    epochs: dict[int, dict[str, float]] = {}
    try:
        for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
            values = {k: float(v) for k, v in row.items() if k and v not in (None, "")}
            if "test_accuracy" not in values and "epoch" in values:
                epochs.setdefault(int(values["epoch"]) + 1, {}).update(values)
    except (ValueError, TypeError, OverflowError, csv.Error) as error:
        raise DamagedError(f"{file}: damaged, or not a table of epochs ({error})") from error
    return epochs


def load_run(path: str | Path, *, trust: bool = False) -> Run:
    """A run by its folder. With `trust` the code that its settings name may be imported.

    Raises:
        RunError: where there is none, or it is damaged.
    """
    return Run(Path(path), trust=trust)


def load_run_or_pretrained(name: str | Path, *, trust: bool = False) -> Run:
    """A run by its folder, or weights that come with the package by their name.

    Raises:
        RunError: where there is neither, or it is damaged.
    """
    if str(name) in pretrained.pretrained_names() and not (Path(name) / "config.yaml").exists():
        return Pretrained(str(name))
    return load_run(name, trust=trust)


def read_config(path: Path) -> TrainConfig:
    """The settings of a run."""
    file = path / "config.yaml"
    if not file.exists():
        raise RunError(f"{path}: expected the folder of a run, with config.yaml in it; `stn train` makes one")
    try:
        text, mark, digest = file.read_text(encoding="utf-8").partition(_LAST_LINE)
        if mark and digest.strip() != _digest(text):
            raise ValueError("it is not what was written; delete its last line to go on with a change made by hand")
        return _config_of(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise RunError(f"{file}: not the settings of a run ({error})") from error


def _config_of(values: dict[str, Any]) -> TrainConfig:
    return TrainConfig(**{**values, "image_size": tuple(values["image_size"])})


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A Lightning checkpoint, read without executing anything in it.

    Raises:
        DamagedError: for a file that is cut short or has changed.
        RunError: for one that holds more than numbers.
    """
    try:
        if zipfile.is_zipfile(file):  # torch does not look at the checksums of its archive
            with zipfile.ZipFile(file) as archive:
                packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
                wrong = packed[0] if packed else archive.testzip()
            if wrong:
                raise ValueError(f"{wrong} is not what was written")
        content = torch.load(file, map_location="cpu", weights_only=True)
        content["state_dict"], content["epoch"]
    except Exception as error:  # torch raises half a dozen types for damaged files
        if isinstance(error, OSError) and error.filename is not None:  # it cannot be opened
            raise
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        kind = RunError if isinstance(error, pickle.UnpicklingError) else DamagedError
        raise kind(f"{file}: damaged, or not a checkpoint of this program ({reason})") from error
    return dict(content)


def load_weights(model: TransformerClassifier | Colocalizer, run: Path) -> None:
    """Put the weights of a run into `model`: model.safetensors, or checkpoints/last.ckpt of an unfinished run."""
    file = run / "model.safetensors"
    if file.exists():
        try:
            state = weights.read_weights(file)
        except ValueError as error:
            raise DamagedError(str(error)) from error
    else:
        file = run / "checkpoints" / "last.ckpt"
        if not file.exists():
            raise RunError(
                f"{run}: expected model.safetensors or checkpoints/last.ckpt; the run has not finished an epoch"
            )
        state = {k.removeprefix("model."): v for k, v in read_checkpoint(file)["state_dict"].items()}
    try:
        weights.load_weights(model, state, file)
    except ValueError as error:
        raise RunError(str(error)) from error


def write_weights(file: Path, state: dict[str, Tensor]) -> None:
    """Weights as safetensors, with their digest."""
    write_bytes(file, weights.serialize_weights(state))


_LAST_LINE = "# digest of the lines above, which a change by hand deletes: "


def write_config(path: Path, config: TrainConfig) -> None:
    """config.yaml of a run."""
    text = yaml.safe_dump(config.as_plain(), sort_keys=False)
    write_text(path / "config.yaml", f"{text}{_LAST_LINE}{_digest(text)}\n")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_record(file: Path, record: Facts | Result | Mistakes) -> None:
    """A record as JSON, with a digest of it."""
    content = dataclasses.asdict(record)
    indent = None if isinstance(record, Mistakes) else 1
    write_text(file, json.dumps(content | {"digest": _digest(json.dumps(content))}, indent=indent))


_Record = TypeVar("_Record", Facts, Result, Mistakes)


def _read_record(file: Path, kind: type[_Record]) -> _Record:
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        digest = content.pop("digest", None)  # older runs have none
        if digest is not None and digest != _digest(json.dumps(content)):
            raise ValueError("it is not what was written")
        known = {field.name for field in dataclasses.fields(kind)}
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in content.items() if name in known
        }
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise RunError(f"{file}: damaged ({error})") from error


def versions() -> dict[str, str]:
    """What a run was made with."""
    return {
        "stn": stn.__version__,
        "torch": torch.__version__,
        "lightning": metadata.version("lightning"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
