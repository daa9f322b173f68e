"""Training, resuming, measuring and loading runs. Lightning's Trainer is the engine.

A run is a folder:

    config.yaml          every setting                      model.safetensors    final weights
    data.json            classes, input shape, mean, std    result.json          what it reached
    logs/csv, logs/tensorboard                              filmstrip.npz        theta of a few images after each epoch
    checkpoints/last.ckpt, checkpoints/best.ckpt            report.html, figures/
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import itertools
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

import stn
from stn.models import TransformerClassifier

from .config import TrainConfig
from .data import ImageDataModule
from .files import write_bytes, write_text

FILMSTRIP_IMAGES = 8


class RunError(ValueError):
    """A run folder that cannot be used, and why."""


class Interrupted(Exception):
    """Training was stopped by the user; the last finished epoch is on disk."""


def is_main_process() -> bool:
    """False in the further processes of a distributed run."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def make_data(config: TrainConfig) -> ImageDataModule:
    """The data set that a configuration names."""
    return ImageDataModule(
        dataset=config.dataset,
        data_dir=config.data_dir,
        distortion=config.distortion,
        augment=config.augment,
        batch_size=config.batch_size,
        val_fraction=config.val_fraction,
        seed=config.seed,
        num_workers=config.num_workers,
        image_size=config.image_size if config.dataset == "images" else None,
        on_bad_image=config.on_bad_image,
        limit_train=config.limit_train,
    )


def make_model(config: TrainConfig, in_shape: tuple[int, int, int], num_classes: int) -> TransformerClassifier:
    """The network that a configuration names, with the random weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return stn.models.create(
            config.network,
            transform=config.transformer,
            in_shape=in_shape,
            num_classes=num_classes,
            dropout=config.dropout,
            padding_mode=config.padding_mode,
            theta_grad_scale=config.theta_grad_scale,
            antialias=config.antialias,
            gradient=config.gradient,
            feed_theta=config.feed_theta,
            pool=config.pool,
            widen=config.widen,
        )


class Classification(LightningModule):
    """Cross-entropy on a classifier, with the localizer's learning rate apart."""

    def __init__(self, model: TransformerClassifier, config: TrainConfig) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.config = config
        self.penalty = config.penalty()
        self.means = torch.nn.ModuleDict(
            {f"{stage}_{name}": MeanMetric() for stage in ("train", "val", "test") for name in ("loss", "accuracy")}
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, stn.Warp | None]:
        return self.model.look(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._measure("train", batch, self.config.label_smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure("test", batch)

    def _measure(self, stage: str, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> Tensor:
        images, labels = batch
        logits, warp = self.look(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        accuracy = (logits.argmax(1) == labels).float().mean()
        for name, value in (("loss", loss.detach()), ("accuracy", accuracy)):
            # Metrics that count themselves: Lightning's own mean over processes is off when their shares differ.
            mean = self.means[f"{stage}_{name}"]
            assert isinstance(mean, MeanMetric)
            mean.update(value, weight=len(labels))
            self.log(f"{stage}_{name}", mean, on_step=False, on_epoch=True)
        if stage == "train" and self.penalty is not None and warp is not None:
            loss = loss + self.penalty(warp)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        c = self.config
        groups = []
        for group in stn.parameter_groups(self.model, lr=c.lr, localizer_lr_scale=c.localizer_lr_scale):
            decayed = [p for p in group["params"] if p.ndim > 1]
            plain = [p for p in group["params"] if p.ndim <= 1]
            groups.append({**group, "params": decayed, "weight_decay": c.weight_decay})
            groups.append({**group, "params": plain, "weight_decay": 0.0})
        optimizer: torch.optim.Optimizer
        if c.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=c.lr, momentum=0.9, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=c.lr)
        steps = int(self.trainer.estimated_stepping_batches)
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
        else:
            scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


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


class Watch(Callback):
    """Looks at the transformer after every epoch: names a collapse, and keeps what a few images were warped to."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
        assert isinstance(module, Classification)
        transformer = module.model.transformer
        if transformer is None or self.images is None:
            return
        training = transformer.training
        images = self.images.to(module.device)
        warp = transformer.eval().warp(images)
        transformer.train(training)
        diagnosis = stn.diagnose(images, warp)
        if epoch:
            values = {f"transformer_{name}": getattr(diagnosis, name) for name in ("scale", "out_of_frame", "contrast")}
            for name, value in values.items():
                module.log(name, value, sync_dist=True)
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


def train(config: TrainConfig) -> Path:
    """Train what `config` says, from the start, and return the folder of the run.

    Raises:
        RunError: where the folder already holds a run.
        Interrupted: on Ctrl-C; `resume` goes on from the last finished epoch.
    """
    run = _run_folder(config)
    if config.control and config.transformer == "none":
        raise ValueError("control: expected a transformer to compare with, got transformer='none'")
    if is_main_process() and (run / "config.yaml").exists():
        raise RunError(f"{run} already holds a run: continue it with --resume {run}, or name another folder with --out")
    _fit(run, config, checkpoint=None)
    if config.control:
        _train_control(run, config)
    return run


def _run_folder(config: TrainConfig) -> Path:
    """`config.out`, or the first free name under runs/; the further processes of a distributed run are told by the first."""
    if config.out is not None:
        return Path(config.out)
    if not is_main_process():
        return Path(os.environ["STN_RUN_FOLDER"])
    name = f"{config.recipe}-{config.transformer}-s{config.seed}"
    folders = (Path("runs", name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    run = next(folder for folder in folders if not folder.exists())
    os.environ["STN_RUN_FOLDER"] = str(run)
    return run


def resume(run: Path, *, overrides: Mapping[str, Any] | None = None) -> Path:
    """Go on with a run from its last finished epoch, to the same weights as if it had never stopped.

    Args:
        overrides: settings that do not change the result, such as `data_dir` or `progress`.

    Raises:
        RunError: for a folder that is no run, or a damaged checkpoint.
    """
    config = dataclasses.replace(read_config(run), **(overrides or {}))
    if not (run / "result.json").exists():
        checkpoint = run / "checkpoints" / "last.ckpt"
        if checkpoint.exists():
            read_checkpoint(checkpoint)
        _fit(run, config, checkpoint if checkpoint.exists() else None)
    if config.control:
        _train_control(run, config)
    return run


def _train_control(run: Path, config: TrainConfig) -> None:
    folder = run / "control"
    control = dataclasses.replace(config, transformer="none", control=False, out=str(folder))
    if is_main_process():
        print(f"\nThe control without a transformer, at least as many parameters: {folder}")
    if (folder / "config.yaml").exists():
        resume(folder, overrides={"data_dir": config.data_dir, "progress": config.progress})
    else:
        train(control)


def _fit(run: Path, config: TrainConfig, checkpoint: Path | None) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = make_data(config)
    data.prepare_data()
    data.setup("fit")
    facts = {
        "class_names": list(data.class_names),
        "input_shape": list(data.input_shape),
        "mean": list(data.mean),
        "std": list(data.std),
    }
    task = Classification(make_model(config, data.input_shape, data.num_classes), config)
    parameters = sum(p.numel() for p in task.model.parameters())
    log = EpochLog()
    monitor = "val_accuracy" if data.val_data() else "train_accuracy"
    folder = run / "checkpoints"
    options: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "save_on_train_epoch_end": True}
    callbacks: list[Callback] = [
        EpochSeed(),
        log,
        Watch(run / "filmstrip.npz"),
        ModelCheckpoint(filename="best", monitor=monitor, mode="max", save_top_k=1, **options),
    ]
    if config.early_stop is not None:
        callbacks.append(EarlyStopping(monitor, mode="max", patience=config.early_stop, check_on_train_epoch_end=True))
    # Last, so that it holds the state of all the others.
    callbacks.append(ModelCheckpoint(filename="last", monitor=None, save_top_k=1, **options))
    progress = config.progress and sys.stderr.isatty()
    if progress:
        callbacks.append(TQDMProgressBar(leave=False))
    trainer = Trainer(
        max_epochs=config.epochs,
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        precision=config.precision,  # type: ignore[arg-type]
        gradient_clip_val=config.clip,
        logger=[CSVLogger(run / "logs", name="csv"), TensorBoardLogger(run / "logs", name="tensorboard", version="")],
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        enable_progress_bar=progress,
        enable_model_summary=False,
        log_every_n_steps=50,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module shares the samples out itself
        default_root_dir=run,
    )
    if is_main_process():  # not before now: what cannot start leaves nothing behind
        run.mkdir(parents=True, exist_ok=True)
        write_text(run / "data.json", json.dumps(facts, indent=1))
        write_text(run / "config.yaml", yaml.safe_dump(_plain(config), sort_keys=False))
    if trainer.is_global_zero:
        what = "no transformer (control)" if config.transformer == "none" else f"{config.transformer} transformer"
        seen, held = len(data.train_data()), len(data.val_data() or ())
        print(
            f"{config.recipe}: {config.network}, {what}, {parameters:,} parameters; {seen:,} images to train on, {held:,} to validate, seed {config.seed}"
        )
    try:
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:  # Lightning's answer to Ctrl-C
        if trainer.interrupted:
            raise Interrupted(str(run)) from error
        raise
    if trainer.interrupted:
        raise Interrupted(str(run))
    test = trainer.test(task, datamodule=data, verbose=False)[0]
    if trainer.is_global_zero:
        _finish(run, config, task, trainer, log, parameters, test)


def _finish(
    run: Path,
    config: TrainConfig,
    task: Classification,
    trainer: Trainer,
    log: EpochLog,
    parameters: int,
    test: Mapping[str, float],
) -> None:
    weights = {name: tensor.contiguous().cpu() for name, tensor in task.model.state_dict().items()}
    write_bytes(run / "model.safetensors", serialize(weights))
    last = Run(run).metrics()[-1]
    result = {
        "recipe": config.recipe,
        "network": config.network,
        "transformer": config.transformer,
        "seed": config.seed,
        "parameters": parameters,
        "epochs": trainer.current_epoch,
        "test_accuracy": test["test_accuracy"],
        "test_loss": test["test_loss"],
        "val_accuracy": last.get("val_accuracy"),
        "train_accuracy": last.get("train_accuracy"),
        "train_seconds": round(log.seconds, 1),
        "cpu_seconds": round(log.cpu_seconds, 1),  # of this process: what it would take on a machine of its own
        "threads": torch.get_num_threads(),
        "command": "stn " + shlex.join(sys.argv[1:])
        if Path(sys.argv[0]).name == "stn"
        else f"stn train --config {run / 'config.yaml'}",
        "versions": versions(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_text(run / "result.json", json.dumps(result, indent=1))


def versions() -> dict[str, str]:
    """What a run was made with."""
    return {
        "stn": stn.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


class Run:
    """A run's folder, read when asked.

    Attributes:
        config, result: settings, and what it reached (empty for an unfinished run).
        model: the network with its final weights (an unfinished run: of the last epoch), in eval mode.
        data: the data set, set up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)

    @cached_property
    def result(self) -> dict[str, Any]:
        file = self.path / "result.json"
        return _read_json(file) if file.exists() else {}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """class_names, input_shape, mean and std of its data."""
        file = self.path / "data.json"
        if not file.exists():
            raise RunError(f"{self.path}: expected data.json; the run stopped before it began")
        return _read_json(file)

    @cached_property
    def model(self) -> TransformerClassifier:
        channels, height, width = self.facts["input_shape"]
        model = make_model(self.config, (channels, height, width), len(self.facts["class_names"]))
        load_weights(model, self.path)
        return model.eval()

    @cached_property
    def data(self) -> ImageDataModule:
        data = make_data(self.config)
        data.prepare_data()
        data.setup("fit")
        return data

    def metrics(self) -> list[dict[str, float]]:
        """One record for each epoch, of all resumed parts: epoch (from 1), train_loss, val_accuracy, ..."""
        merged: dict[int, dict[str, float]] = {}
        files = (self.path / "logs" / "csv").glob("version_*/metrics.csv")
        for file in sorted(files, key=lambda f: int(f.parent.name.removeprefix("version_"))):
            with file.open(newline="") as rows:
                part: dict[int, dict[str, float]] = {}
                for row in csv.DictReader(rows):
                    values = {k: float(v) for k, v in row.items() if k and v not in (None, "")}
                    if "test_accuracy" not in values and "epoch" in values:
                        part.setdefault(int(values["epoch"]) + 1, {}).update(values)
            # An epoch that was begun before a stop and done again after it counts as done again.
            merged = {e: m for e, m in merged.items() if e < min(part, default=0) or not part} | part
        return [{**m, "epoch": e} for e, m in sorted(merged.items()) if "train_loss" in m]

    def filmstrip(self) -> tuple[Tensor, Tensor, np.ndarray] | None:
        """Images (N, C, H, W), their theta (E, N, P) and the epochs (E,) it was kept after; None for a control."""
        file = self.path / "filmstrip.npz"
        if not file.exists():
            return None
        with np.load(file) as kept:
            return torch.from_numpy(kept["images"]), torch.from_numpy(kept["theta"]), kept["epochs"]


def load_run(path: str | Path) -> Run:
    """A run by its folder.

    Raises:
        RunError: where there is none, or it is damaged.
    """
    return Run(Path(path))


def read_config(path: Path) -> TrainConfig:
    """The settings of a run."""
    file = path / "config.yaml"
    if not file.exists():
        raise RunError(f"{path}: expected the folder of a run, with config.yaml in it; `stn train` makes one")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        values["image_size"] = tuple(values["image_size"])
        return TrainConfig(**values)
    except (yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise RunError(f"{file}: not the settings of a run ({error})") from error


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A Lightning checkpoint, read without executing anything in it."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        content["state_dict"], content["epoch"]
    except OSError:
        raise
    except Exception as error:  # torch raises half a dozen types for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{file}: damaged, or not a checkpoint of this program ({reason})") from error
    return dict(content)


def load_weights(model: TransformerClassifier, run: Path) -> None:
    """Put the weights of a run into `model`: model.safetensors, or checkpoints/last.ckpt of an unfinished run."""
    file = run / "model.safetensors"
    if file.exists():
        try:
            state = load_file(file)
        except SafetensorError as error:
            raise RunError(f"{file}: damaged, or not a safetensors file ({error})") from error
    else:
        file = run / "checkpoints" / "last.ckpt"
        if not file.exists():
            raise RunError(
                f"{run}: expected model.safetensors or checkpoints/last.ckpt; the run has not finished an epoch"
            )
        state = {k.removeprefix("model."): v for k, v in read_checkpoint(file)["state_dict"].items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(f"{file}: holds the weights of another network than config.yaml says ({error})") from error


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Loss and accuracy of a run's weights on its test set."""
    loss = correct = count = 0.0
    for images, labels in run.data.test_dataloader():
        logits = run.model(images)
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += float((logits.argmax(1) == labels).sum())
        count += len(labels)
    return {"test_loss": loss / count, "test_accuracy": correct / count, "images": count}


def _plain(config: TrainConfig) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return dict(content)
    except (ValueError, TypeError) as error:
        raise RunError(f"{file}: damaged ({error})") from error
