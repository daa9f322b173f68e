"""Learning poses in front of a classifier that is not touched."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

import stn
from stn.models import TransformerClassifier
from stn.pose import spread_evenly

from ..config import TrainConfig
from ..progress import track
from .pieces import freeze_classifier
from .task import AbstractTask

if TYPE_CHECKING:
    from ..data.module import ImageDataModule, ImageDataset

QUANTILE = 0.99  # of the upright images that keep their class
_IMAGES = 1000  # measured, and as many to calibrate on


class Poses(AbstractTask[TransformerClassifier]):
    """Images warped by chance within the family's bounds; the localizer is to say what brings them back.

    No label is in the loss. What counts as right is what the classifier makes of the image that was brought back; of the test set, of the
    image as it is.
    """

    def __init__(self, model: TransformerClassifier, config: TrainConfig) -> None:
        super().__init__(model, config)
        freeze_classifier(model)
        self.transformer, self.localizer = parts(model)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        freeze_classifier(self.model)
        return self

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._measure("train", batch, None)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure("val", batch, self._drawn(batch_idx))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure("test", batch, self._drawn(batch_idx))

    def _drawn(self, batch_idx: int) -> torch.Generator:
        """The same poses in every epoch."""
        return torch.Generator().manual_seed(self.config.seed * 100_003 + batch_idx)

    def _measure(self, stage: str, batch: tuple[Tensor, Tensor], generator: torch.Generator | None) -> Tensor:
        images, labels = batch
        family, padding = self.transformer.transform, self.config.padding_mode
        posed, theta = stn.pose_at_random(images, family, generator=generator, padding_mode=padding)
        loss = self.localizer.loss(posed, theta)
        with torch.no_grad():
            logits = self.model(images if stage == "test" else posed)
        self.keep(stage, loss.detach(), logits.argmax(1) == labels)
        return loss


def parts(model: TransformerClassifier) -> tuple[stn.SpatialTransformer, stn.PoseLocalizer]:
    """The transformer of a network that learns poses, and its localizer."""
    transformer = model.transformer
    assert transformer is not None
    assert isinstance(transformer.localizer, stn.PoseLocalizer)
    return transformer, transformer.localizer


@torch.no_grad()
def robustness(task: Poses, data: ImageDataModule) -> dict[str, dict[str, float]]:
    """What can be done about images in other poses, without touching the classifier: for each way of it the accuracy on test images as they
    are and in poses drawn by chance, the forward passes and the milliseconds of the processor that an image takes.

    The gates are calibrated on images that were held out, or, where none were, on some that were trained on.
    """
    model = task.model.eval()
    transformer, localizer = parts(model)
    family, padding = transformer.transform, task.config.padding_mode
    test = data.test_data()
    upright, labels = _some(test)
    held = _some(data.val_data() or data.train_data())[0]
    device = next(model.parameters()).device
    upright, labels, held = upright.to(device), labels.to(device), held.to(device)
    posed, _ = stn.pose_at_random(upright, family, generator=task._drawn(0), padding_mode=padding)
    found: dict[str, dict[str, float]] = {}

    def add(name: str, network: Callable[[Tensor], Tensor], passes: int) -> None:
        begin = time.process_time()
        right = [
            float((torch.cat([network(part) for part in images.split(250)]).argmax(1) == labels).double().mean())
            for images in (upright, posed)
        ]
        ms = 1000 * (time.process_time() - begin) / (2 * len(labels))
        found[name] = {"upright": right[0], "posed": right[1], "passes": passes, "ms": round(ms, 3)}

    classifier = model.classifier
    search = stn.canonicalize(classifier, family, steps=3, padding_mode=padding).to(device)
    guess = stn.canonicalize(classifier, family, starts=0, steps=0, localizer=localizer, padding_mode=padding).to(
        device
    )
    ways: list[tuple[str, Callable[[], tuple[Callable[[Tensor], Tensor], int]]]] = [
        ("as it is", lambda: (classifier, 1)),
        ("localizer", lambda: (model, 1)),
        ("localizer, gate", lambda: (_calibrated(guess, held), guess.passes + 1)),
        ("search", lambda: (search, search.passes)),
        ("search, gate", lambda: (_calibrated(search, held), search.passes)),
        ("mean over copies", lambda: (_Mean(classifier, transformer, search.passes), search.passes)),
    ]
    for name, make in track(ways, "Measuring robustness", len(ways), shown=task.config.progress):
        add(name, *make())
    return found


def _calibrated(robust: stn.Canonicalizer, images: Tensor) -> stn.Canonicalizer:
    robust.calibrate(images.split(250), QUANTILE)
    return robust


class _Mean:
    """The control: the mean probability over copies in poses spread over the bounds."""

    def __init__(
        self, classifier: Callable[[Tensor], Tensor], transformer: stn.SpatialTransformer, copies: int
    ) -> None:
        self.classifier, self.transformer = classifier, transformer
        self.thetas = spread_evenly(transformer.transform, copies)

    def __call__(self, images: Tensor) -> Tensor:
        copies = (
            self.transformer.warp(images, theta.to(images).expand(len(images), -1)).output for theta in self.thetas
        )
        return torch.stack([self.classifier(copy).softmax(1) for copy in copies]).mean(0)


def _some(data: ImageDataset) -> tuple[Tensor, Tensor]:
    """Images spread over a set, and their labels."""
    count = min(len(data), _IMAGES)
    return data.__getitems__(torch.linspace(0, len(data) - 1, count).round().long().tolist())
