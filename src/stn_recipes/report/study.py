"""What the sections of a report have in common: a run, its control, and what they make of the test images."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from stn.models import Colocalizer, TransformerClassifier

from ..data.registry import DataError
from ..progress import track
from ..run.folder import Run, RunError

if TYPE_CHECKING:
    from ..data.module import ImageDataset

BATCH = 500  # images

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What a network made of the test images."""

    labels: Tensor  # (N,)
    predicted: Tensor  # (N,)
    confidence: Tensor  # (N,)
    theta: Tensor | None  # (N, P)

    @property
    def correct(self) -> Tensor:
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())


@dataclass(frozen=True)
class Network:
    """A network and the images that it wants."""

    name: str  # in the figures
    model: TransformerClassifier
    normalize: Callable[[Tensor], Tensor]  # images as the run has them -> as this network wants them


class Study:
    """A run and its control, read and measured when first asked. What cannot be read is None, and a note says why.

    Args:
        run: what the page is about.
        control: what it is compared with, or None.
        data_dir: where the data lies now, if not where the run had it.
    """

    def __init__(self, run: Run, control: Run | None = None, *, data_dir: str | None = None) -> None:
        self.run, self.control = run, control
        self.notes: list[str] = []
        self.config = dataclasses.replace(run.config)  # as the run was told
        if data_dir is not None:
            run.config.data_dir = data_dir

    @property
    def kind(self) -> str:
        """What the run trained, in words."""
        if self.config.transformer == "none":
            return "control without a transformer"
        return f"{self.config.family} transformer"

    @property
    def finished(self) -> datetime.datetime | None:
        finished = self.run.result and self.run.result.finished
        return datetime.datetime.fromisoformat(finished) if finished else None

    @property
    def names(self) -> tuple[str, str]:
        """Of the run and the control, in the figures."""
        return name_of(self.run), "control"

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        return self.run.metrics()

    @cached_property
    def model(self) -> TransformerClassifier | Colocalizer | None:
        return self._attempt("its weights cannot be read", lambda: self.run.model)

    @cached_property
    def data(self) -> ImageDataset | None:
        """The test set."""
        return self._attempt("its data set cannot be read", lambda: self.run.data.test_data())

    @cached_property
    def networks(self) -> list[Network]:
        """The run's and the control's; none where they cannot be measured, or do not classify."""
        if not isinstance(self.model, TransformerClassifier) or self.data is None:
            return []
        networks = [Network(name_of(self.run), self.model, lambda images: images)]
        if self.control is not None:
            (mean, std), (other_mean, other_std) = statistics(self.run), statistics(self.control)
            model = self.control.model
            assert isinstance(model, TransformerClassifier)
            networks.append(Network("control", model, lambda images: (images * std + mean - other_mean) / other_std))
        return networks

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """Of each of the networks."""
        outcomes = [self._outcome(network) for network in self.networks]
        for of, outcome in zip((self.run, self.control), outcomes, strict=False):
            assert of is not None
            if of.result is None or of.config.seed != self.run.config.seed:
                continue
            reached, now = of.result.test_accuracy, outcome.accuracy
            if abs(reached - now) > 1.5 / len(outcome.labels):
                self.notes.append(
                    f"{name_of(of).capitalize()}: result.json says a test accuracy of {reached:.2%}, but measured for "
                    f"this page it is {now:.2%}. The data or the program has changed since."
                )
        return outcomes

    @property
    def outcome(self) -> Outcome | None:
        return self.outcomes[0] if self.outcomes else None

    @property
    def control_outcome(self) -> Outcome | None:
        return self.outcomes[1] if len(self.outcomes) > 1 else None

    def batches(self, indices: Sequence[int] | None = None, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """Test images and their labels."""
        assert self.data is not None
        indices = range(len(self.data)) if indices is None else indices
        for start in range(0, len(indices), size):
            yield self.data.__getitems__(list(indices[start : start + size]))

    def _outcome(self, network: Network) -> Outcome:
        labels, predicted, confidence, theta = [], [], [], []
        assert self.data is not None
        steps = -(-len(self.data) // BATCH)
        for images, truth in track(self.batches(), f"Measuring the {network.name}", steps):
            logits, warp = network.model.look(network.normalize(images))
            if warp is not None:
                theta.append(warp.theta.float())
            top = logits.float().softmax(1).max(1)
            labels.append(truth)
            predicted.append(top.indices)
            confidence.append(top.values)
        return Outcome(
            torch.cat(labels), torch.cat(predicted), torch.cat(confidence), torch.cat(theta) if theta else None
        )

    def _attempt(self, problem: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (RunError, DataError, OSError) as error:
            reason = self.shareable(str(error).splitlines()[0])
            self.notes.append(f"Parts of this page are missing, because {problem}: {reason}")
            return None

    def shareable(self, text: str) -> str:
        """Without the folders of this machine: a report is passed on."""
        for config in (self.config, self.run.config):
            text = config.shareable(text)
        if self.run.path.is_absolute():
            text = text.replace(f"{self.run.path.parent}/", "")
        return text


def name_of(run: Run) -> str:
    return "control" if run.config.transformer == "none" else "transformer"


def statistics(run: Run) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the channels of its images, (1, C, 1, 1) each."""
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (run.facts.mean, run.facts.std))
    return mean, std
