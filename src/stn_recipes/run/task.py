"""What the tasks of a run have in common: the optimizer with its schedule, and what is counted."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric

import stn

from ..config import TrainConfig

Model = TypeVar("Model", bound=nn.Module)


class AbstractTask(LightningModule, Generic[Model]):
    """A network that is trained, with the localizer's learning rate apart."""

    model: Model

    def __init__(self, model: Model, config: TrainConfig) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.config = config
        self.schedule_begins = False  # in the middle of a run
        self.means = nn.ModuleDict(
            {f"{stage}_{name}": MeanMetric() for stage in ("train", "val", "test") for name in ("loss", "accuracy")}
        )
        self.mistakes = CatMetric()  # the places of the test images that are wrong, -1 for the others
        self.tested = 0  # images of this process

    def on_test_start(self) -> None:
        self.mistakes.reset()
        self.tested = 0

    def keep(
        self,
        stage: str,
        loss: Tensor,
        correct: Tensor,  # (B,)
    ) -> None:
        """Count a batch of a stage ("train", "val" or "test"): its loss, and which of its images are right."""
        if stage == "test":
            own = torch.arange(self.tested, self.tested + len(correct), device=correct.device)
            places = own * self.trainer.world_size + self.trainer.global_rank  # as the sampler shares them out
            self.mistakes.update(torch.where(correct, -1, places))
            self.tested += len(correct)
        for name, value in (("loss", loss), ("accuracy", correct.float().mean())):
            # Metrics that count themselves: Lightning's own mean over processes is off when their shares differ.
            mean = self.means[f"{stage}_{name}"]
            assert isinstance(mean, MeanMetric)
            mean.update(value, weight=len(correct))
            self.log(f"{stage}_{name}", mean, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        c = self.config
        groups = []
        for group in stn.parameter_groups(self.model, lr=c.lr, localizer_lr_scale=c.localizer_lr_scale):
            trained = [p for p in group["params"] if p.requires_grad]
            decayed = [p for p in trained if p.ndim > 1]
            plain = [p for p in trained if p.ndim <= 1]
            groups.append({**group, "params": decayed, "weight_decay": c.weight_decay})
            groups.append({**group, "params": plain, "weight_decay": 0.0})
        optimizer: torch.optim.Optimizer
        if c.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=c.lr, momentum=c.momentum, nesterov=c.momentum > 0)
        else:
            optimizer = torch.optim.AdamW(groups, lr=c.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(steps // c.epochs * c.warmup)
        steps -= steps // c.epochs * c.schedule_start + warmup
        scheduler: torch.optim.lr_scheduler.LRScheduler
        if c.schedule == "onecycle":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=[group["lr"] for group in groups],
                total_steps=max(steps, 8),  # of 4 steps the way up is none, and torch divides by its length
                pct_start=0.25,
                div_factor=10.0,
                final_div_factor=100.0,
                cycle_momentum=False,
            )
        elif c.schedule == "cosine":
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        elif c.schedule == "step":
            scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 3, steps * 2 // 3])
        else:
            scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        if warmup:
            rise = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup)
            scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, scheduler], milestones=[warmup])
        self.first_rates = scheduler.get_last_lr()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["epoch"] + 1 <= self.config.schedule_start:  # of before the run was extended
            checkpoint["lr_schedulers"] = []
            self.schedule_begins = True

    def on_train_start(self) -> None:
        if self.schedule_begins:  # the optimizer's state, which was loaded, has the rates that the last one ended at
            for group, rate in zip(self.trainer.optimizers[0].param_groups, self.first_rates, strict=True):
                group["lr"] = rate
