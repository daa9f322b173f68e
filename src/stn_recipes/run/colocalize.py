"""Finding what a set of images has in common, without labels."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from stn.models import Colocalizer
from stn.models.colocalizer import Windows

from ..config import TrainConfig
from .task import AbstractTask

MARGIN = 1.0  # between encodings of length 1, whose square distance is at most 4
SOFTNESS = 0.1  # of the minimum over the windows that a found one is held against
FOUND = MARGIN / 2  # a start that ends with a lower loss has found what the images have in common; others stay near 1
FRAME = torch.tensor([[[-1.0, -1.0, 1.0, 1.0]]])  # of a crop


class Colocalization(AbstractTask[Colocalizer]):
    """Triplets of crops: two images' found windows, and another window of the first image.

    No box and no label is in the loss; boxes only measure. What counts as right is an intersection over union of more than a
    half with the box.
    """

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._measure("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure("test", batch)

    def _measure(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, boxes = batch
        windows = self.model.windows(images.contiguous(memory_format=self.memory_format))
        loss = triplet_loss(windows, self.model.localizer.apart)
        self.keep(stage, loss.detach(), self.found(images, boxes))
        return loss

    @torch.no_grad()
    def found(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Which of the transformer's windows are where the boxes are: (B,)."""
        return overlap(frames(self.model, images), boxes) > 0.5


class Starts(Callback):
    """Trains from one random start after the other, `config.epochs` each, until one has found something, at most
    `config.starts`; the weights that had the lowest loss are the result. No box has a say."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.losses: list[float] = []  # at the end of each start
        self.best: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.best = state_dict["losses"], state_dict["best"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.should_stop = self._done()  # of a run that was interrupted after its last epoch

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not self.losses or trainer.current_epoch != len(self.losses) * self.config.epochs:
            return
        module.print(
            f"Start {len(self.losses)} of {self.config.starts} ended with a loss of {self.losses[-1]:.3f}: again"
        )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        new = self.config.make_model(data.input_shape, data.num_classes, start=len(self.losses))
        self._model(module).load_state_dict(new.state_dict())
        trainer.optimizers[0].state.clear()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.config.epochs:
            return
        loss = float(trainer.callback_metrics["train_loss"])
        if not self.losses or loss < min(self.losses):
            self.best = {name: value.detach().clone() for name, value in self._model(module).state_dict().items()}
        self.losses.append(loss)
        trainer.should_stop = self._done()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._done():
            self._model(module).load_state_dict(self.best)

    def _done(self) -> bool:
        return len(self.losses) == self.config.starts or any(loss < FOUND for loss in self.losses)

    @staticmethod
    def _model(module: LightningModule) -> Colocalizer:
        assert isinstance(module, Colocalization)
        return module.model


def frames(model: Colocalizer, images: Tensor) -> Tensor:
    """The windows that the transformer cuts, as boxes (B, 4), normalized."""
    warp = model.transformer.warp(images)
    boxes: Tensor = warp.map_boxes(FRAME.to(images))[:, 0]
    return boxes


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (B,) of upright boxes (B, 4).

    >>> overlap(torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.0, 3.0, 1.0]]))
    tensor([0.3333])
    """
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    either = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    return both / either


def triplet_loss(
    windows: Windows,
    apart: Tensor,  # (N, N) bool: which windows have little in common
) -> Tensor:
    """The hinge on triplets, its mean over all places of the first window, each as likely as the localizer says.

    Two found windows are to be closer to each other than the first is to any other window of its image, by a margin. The
    first window is each of the lattice, weighted by the softmax of the scores, so that the gradient knows every place and
    not only the slope at one. The window of the other image is drawn by its scores. The third is the closest, by a soft
    minimum, of the windows that lie apart from the first.
    """
    likely = windows.heat.float().softmax(1)  # (B, N)
    seen = windows.encodings.float()
    count = len(seen)
    drawn = torch.multinomial(likely.detach(), 1)[:, 0]
    crops = seen[torch.arange(count, device=drawn.device), drawn]  # (B, E)
    to_found = 2 - 2 * seen @ crops.T  # (B, N, B): square distances
    to_others = (2 - 2 * seen @ seen.transpose(1, 2)).masked_fill(~apart, torch.inf)  # (B, N, N)
    closest = -SOFTNESS * torch.logsumexp(-to_others / SOFTNESS, dim=2)
    hinge = F.relu(to_found - closest[..., None] + MARGIN)
    own = torch.eye(count, dtype=torch.bool, device=hinge.device)[:, None]
    each = hinge.masked_fill(own, 0).sum(2) / max(count - 1, 1)  # (B, N)
    return (likely * each).sum(1).mean()
