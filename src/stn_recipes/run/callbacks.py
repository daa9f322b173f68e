"""What happens around the epochs of a training: seeds, the log, the watch over the transformer, whole checkpoints."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

import stn

from ..files import write_bytes

if TYPE_CHECKING:
    from stn.models import TransformerClassifier

    from ..config import TrainConfig
    from ..data.module import ImageDataModule
    from .train import Classification

FILMSTRIP_IMAGES = 8


class EpochSeed(Callback):
    """Random numbers of an epoch (dropout) depend on the seed, the epoch and the rank: a resumed run draws the same."""

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        config: TrainConfig = module.config  # type: ignore[assignment]
        entropy = np.random.SeedSequence((config.seed, trainer.current_epoch, trainer.global_rank))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))


class EpochLog(Callback):
    """One line for each epoch, and the time spent training, over all resumed parts."""

    HEADER = "epoch   train loss   train acc   val loss   val acc         lr   seconds"

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._start = self._cpu_start = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.cpu_seconds = state_dict["seconds"], state_dict["cpu_seconds"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        module.print(self.HEADER)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        spent = time.perf_counter() - self._start
        self.seconds += spent
        self.cpu_seconds += time.process_time() - self._cpu_start
        module.log("lr", trainer.optimizers[0].param_groups[0]["lr"], sync_dist=True)
        metrics = trainer.callback_metrics

        def text(name: str, width: int, digits: int, factor: float = 1.0) -> str:
            value = metrics.get(name)
            return f"{'-':>{width}}" if value is None else f"{factor * float(value):{width}.{digits}f}"

        line = f"{trainer.current_epoch + 1:5d}   {text('train_loss', 10, 4)}   {text('train_accuracy', 8, 2, 100)}%"
        line += f"   {text('val_loss', 8, 4)}   {text('val_accuracy', 6, 2, 100)}%"
        module.print(f"{line}   {text('lr', 8, 5)}   {spent:7.1f}")


class Averaging(WeightAveraging):
    """The exponential average of the weights and of batch norm's statistics over the steps, which becomes the result.

    Early on it spans the steps so far, a tenth of them, so that a short run does not end at its random weights.
    Validation and checkpoints see the average; a checkpoint holds the weights that training goes on with beside it.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, count: Tensor) -> Tensor:
            return averaged + (current - averaged) * (1 - min(decay, (1 + int(count)) / (10 + int(count))))

        super().__init__(avg_fn=average)

    @property
    def network(self) -> TransformerClassifier:
        """The averaged one."""
        assert self._average_model is not None
        return cast("Classification", self._average_model.module).model


class Watch(Callback):
    """Looks at the transformer after every epoch: names a collapse, and keeps what a few images were warped to."""

    def __init__(self, path: Path, averaging: Averaging | None = None) -> None:
        self.path = path
        self.averaging = averaging
        self.images: Tensor | None = None
        self.theta: list[np.ndarray] = []
        self.epochs: list[int] = []

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        held_out = data.val_data() or data.train_data()
        count = min(len(held_out), 256)
        self.images = held_out.__getitems__(range(count))[0]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch and self.path.exists():  # resumed: keep what lies before
            with np.load(self.path) as old:
                keep = old["epochs"] <= trainer.current_epoch
                self.theta, self.epochs = list(old["theta"][keep]), old["epochs"][keep].tolist()
        else:
            self._look(trainer, module, 0)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._look(trainer, module, trainer.current_epoch + 1)

    @torch.no_grad()
    def _look(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        network = cast("Classification", module).model if self.averaging is None else self.averaging.network
        if network.transformer is None or self.images is None:
            return
        training = {part: part.training for part in network.modules()}
        images = self.images.to(module.device)
        warp = network.eval().warp(images)
        for part, mode in training.items():  # as they were, and not all alike: a frozen classifier is never in training
            part.training = mode
        assert warp is not None
        diagnosis = stn.diagnose(images, warp)
        if epoch:
            values = {"scale": diagnosis.scale, "outside": diagnosis.out_of_frame, "contrast": diagnosis.contrast}
            for name, value in values.items():
                module.log(f"transformer_{name}", value, sync_dist=True)
        for problem in diagnosis.problems:
            module.print(f"warning: after epoch {epoch} the transformer shows {problem}")
        shown = min(FILMSTRIP_IMAGES, len(images))
        self.theta.append(warp.theta[:shown].float().cpu().numpy())
        self.epochs.append(epoch)
        if not trainer.is_global_zero:
            return
        buffer = io.BytesIO()
        np.savez(buffer, images=self.images[:shown].numpy(), theta=np.stack(self.theta), epochs=np.array(self.epochs))
        write_bytes(self.path, buffer.getbuffer())


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning writes beside and then copies, which a full disk cuts short: here a checkpoint is whole, or the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(path), buffer.getbuffer())
