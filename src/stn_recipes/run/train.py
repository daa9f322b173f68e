"""Training, resuming and measuring."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.nn import functional as F

import stn
from stn.models import Colocalizer, TransformerClassifier

from ..config import RESUMABLE, TrainConfig
from ..data.module import ImageDataModule
from ..data.registry import DataError
from ..names import label
from ..progress import track
from .callbacks import Averaging, EpochLog, EpochSeed, Watch, WholeCheckpoints
from .colocalize import Colocalization, Starts
from .folder import (
    ClassMeasured,
    DamagedError,
    Facts,
    Mistakes,
    Result,
    Run,
    RunError,
    by_class,
    digest_of_files,
    load_weights,
    mean_over_classes,
    metrics_files,
    read_checkpoint,
    read_config,
    versions,
    write_config,
    write_record,
    write_weights,
)
from .loggers import make_loggers, say_settings
from .pieces import freeze_classifier, load_classifier, load_classifier_of
from .poses import Poses, robustness
from .precision import choose
from .task import AbstractTask


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a run was made; says what to do about it. The last finished epoch is on disk."""


def is_main_process() -> bool:
    """False in the further processes of a distributed run."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def leave_group() -> None:
    """The end of a distributed run in each of its processes: one that ends with the threads of its group still running may abort, and Lightning
    then ends the others as well."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Classification(AbstractTask[TransformerClassifier]):
    """Cross-entropy on a classifier."""

    def __init__(self, model: TransformerClassifier, config: TrainConfig) -> None:
        super().__init__(model, config)
        self.penalty = config.penalty()
        if config.freeze:
            freeze_classifier(model)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.config.freeze:  # its batch norm keeps its statistics, and nothing is dropped
            freeze_classifier(self.model)
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, stn.Warp | None]:
        return self.model.look(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._measure("train", batch, label_smoothing=self.config.label_smoothing, mixup=self.config.mixup)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure("test", batch)

    def _measure(
        self, stage: str, batch: tuple[Tensor, Tensor], *, label_smoothing: float = 0.0, mixup: float = 0.0
    ) -> Tensor:
        images, labels = batch
        share, others = 1.0, torch.arange(len(labels), device=labels.device)
        if mixup:
            drawn = float(torch.distributions.Beta(mixup, mixup).sample())
            share, others = max(drawn, 1 - drawn), torch.randperm(len(labels)).to(labels.device)
            images = share * images + (1 - share) * images[others]
        logits, warp = self.look(images)
        loss = share * F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        if mixup:
            loss = loss + (1 - share) * F.cross_entropy(logits, labels[others], label_smoothing=label_smoothing)
        self.keep(stage, loss.detach(), logits.argmax(1) == labels)
        if stage == "train" and self.penalty is not None and warp is not None:
            loss = loss + self.penalty(warp)
        return loss


def train(config: TrainConfig) -> Path:
    """Train what `config` says, from the start, and return the folder of the run.

    Raises:
        RunError: where the folder already holds a run.
        Interrupted: on Ctrl-C; `resume` goes on from the last finished epoch.
    """
    config = dataclasses.replace(config, schedule_start=0)
    run = _run_folder(config)
    if config.learn == "poses" and config.weights is None and config.init_from is None:
        raise ValueError(
            "learn: expected the classifier that poses are learned for, by --init-from or --weights, got neither"
        )
    if config.control and config.freeze:
        raise ValueError("control: expected none beside a frozen classifier, which is its own control; see --init-from")
    if config.control and config.weights is not None and config.widens:
        raise ValueError("control: expected --widen false with --weights, which are of the classifier's own width")
    if config.control and config.transformer == "none":
        raise ValueError("control: expected a transformer to compare with, got transformer='none'")
    if config.control and config.init_from is not None:
        read_config(Path(config.init_from, "control"))  # a control starts from a control
    if is_main_process() and (run / "config.yaml").exists():
        raise RunError(f"{run} already holds a run: continue it with --resume {run}, or name another folder with --out")
    _fit(run, config, checkpoint=None)
    if config.control:
        _train_control(run, config, trust=True)  # it is what `config` says
    return run


def _run_folder(config: TrainConfig) -> Path:
    """`config.out`, or the first free name under runs/; the further processes of a distributed run are told by the first."""
    if config.out is not None:
        return Path(config.out)
    if not is_main_process():
        return Path(os.environ["STN_RUN_FOLDER"])
    name = f"{config.recipe}-{config.family}-s{config.seed}"
    folders = (Path("runs", name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    run = next(folder for folder in folders if not folder.exists())
    os.environ["STN_RUN_FOLDER"] = str(run)
    return run


def resume(run: Path, *, overrides: Mapping[str, Any] | None = None, trust: bool = False) -> Path:
    """Go on with a run from its last finished epoch, to the same weights as if it had never stopped.

    Args:
        overrides: settings that do not change the result, such as `data_dir` or `progress`; `control`, to train one
            now; and more `epochs` for a finished run: it is extended, from the weights and the optimizer's state that
            it ended with. The schedule of the learning rate begins anew and takes the new epochs; only with
            schedule="constant" is that the same as one long run.
        trust: import the code that the run's settings name.

    Raises:
        ValueError: for other settings than the run's own.
        RunError: for a folder that is no run, or damaged checkpoints.
        Interrupted: on Ctrl-C.
    """
    Run(run, trust=trust).check_trust()
    config = read_config(run)
    changed = {name: value for name, value in (overrides or {}).items() if value != getattr(config, name)}
    finished = Run(run).result
    if finished is not None and config.starts > 1 and "epochs" in changed:
        raise ValueError(
            f"epochs: expected {config.epochs}, as the run has it, got {changed['epochs']}: a run that may start again is not "
            "extended"
        )
    if finished is not None and changed.get("epochs", 0) > finished.epochs:
        config = _extended(run, config, finished.epochs, changed.pop("epochs"))
        finished = None
    for name, value in changed.items():
        if name not in RESUMABLE:
            raise ValueError(_not_resumable(run, name, getattr(config, name), value))
    config = dataclasses.replace(config, **changed)
    if finished is None:
        _fit(run, config, _checkpoint(run))
    if config.control:
        _train_control(run, config, trust=trust)
    return run


def _extended(run: Path, config: TrainConfig, done: int, epochs: int) -> TrainConfig:
    if is_main_process():
        what = f"{run}: from {done} to {epochs} epochs"
        if config.schedule == "constant" and not config.warmup:
            print(f"{what}; the learning rate is constant, so this is the same as one run of {epochs}")
        else:
            print(
                f"{what}; the {config.schedule} schedule begins anew at epoch {done + 1}, so this is not the same as one "
                f"run of {epochs}"
            )
    return dataclasses.replace(config, epochs=epochs, schedule_start=done)


def _not_resumable(run: Path, name: str, own: Any, value: Any) -> str:
    message = f"{name}: expected {own!r}, as the run has it, got {value!r}. "
    if name == "epochs":
        return message + "A finished run can be extended to more epochs; finish it first, without this option."
    return message + (
        "A resumed run ends at the weights of one that never stopped; for other settings, start a new run from its "
        f"weights: stn train --init-from {shlex.quote(str(run))}"
    )


def _checkpoint(run: Path) -> Path | None:
    """The checkpoint to go on from, None where no epoch was finished: the last, or the best where that is damaged."""
    last, best = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    if not last.exists():
        return None
    try:
        read_checkpoint(last)
        return last
    except DamagedError as error:
        if not best.exists():
            raise
        try:
            done = read_checkpoint(best)["epoch"] + 1
        except RunError as other:
            raise RunError(f"{error}; {other}") from other
        if is_main_process():
            print(f"warning: {error}; going on from {best}, which is of epoch {done}", file=sys.stderr)
        return best


def _train_control(run: Path, config: TrainConfig, *, trust: bool) -> None:
    folder = run / "control"
    if is_main_process():
        what = "at least as many parameters" if config.widens else "the network as it is"
        print(f"\nThe control without a transformer, {what}: {folder}")
    try:
        if (folder / "config.yaml").exists():
            same = {name: getattr(config, name) for name in RESUMABLE if name != "control"}
            resume(folder, overrides=same, trust=trust)
            if read_config(folder).epochs < config.epochs:  # the run was extended
                resume(folder, overrides={**same, "epochs": config.epochs}, trust=trust)
        else:
            init_from = None if config.init_from is None else str(Path(config.init_from, "control"))
            train(dataclasses.replace(config, transformer="none", control=False, out=str(folder), init_from=init_from))
    except KeyboardInterrupt:
        raise _interrupted(run) from None  # which goes on with the control


def _interrupted(run: Path) -> Interrupted:
    return Interrupted(f"stopped; go on with: stn train --resume {shlex.quote(str(run))}")


def _fit(run: Path, config: TrainConfig, checkpoint: Path | None) -> None:
    config = dataclasses.replace(config, precision=choose(config.precision, config.accelerator))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = config.make_data()
    data.prepare_data()
    data.setup("fit")
    model = config.make_model(data.input_shape, data.num_classes)
    task: AbstractTask[Any]
    if isinstance(model, Colocalizer):
        task = Colocalization(model, config)
    else:
        task = (Poses if config.learn == "poses" else Classification)(model, config)
    if checkpoint is None and config.init_from is not None:
        if isinstance(task, Poses):
            load_classifier_of(task.model, Path(config.init_from))
        else:
            load_weights(task.model, Path(config.init_from))
    if checkpoint is None and config.weights is not None:
        assert isinstance(model, TransformerClassifier)
        load_classifier(model, Path(config.weights), freeze=config.freeze or config.learn == "poses")
    log = EpochLog()
    lock = FileLock(run / "train.lock")
    try:
        trainer = _trainer(run, config, log, "val_accuracy" if data.val_data() else "train_accuracy")
        if is_main_process():  # not before now: what cannot start leaves nothing behind
            run.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
            _begin(run, config, data, task)
            say_settings(trainer.loggers, config)
        try:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if trainer.interrupted:
                raise KeyboardInterrupt
            test = trainer.test(task, datamodule=data, verbose=False)[0]
            wrong = tuple(sorted(int(place) for place in task.mistakes.compute().tolist() if place >= 0))
            if trainer.is_global_zero:
                write_record(run / "mistakes.json", Mistakes(images=len(data.test_data()), wrong=wrong))
                classes = None if isinstance(task, Colocalization) else _by_class(data, wrong)
                robust = robustness(task, data) if isinstance(task, Poses) else None
                _finish(run, config, task, trainer, log, test, classes, robust)
        except DataError as error:  # a file that could be read when it began
            raise DataError(
                f"{error}. When it can be read again, go on with: stn train --resume {shlex.quote(str(run))}"
            ) from error
        except KeyboardInterrupt:
            raise _interrupted(run) from None
        except SystemExit:  # Lightning's answer to Ctrl-C
            if trainer.interrupted:
                raise _interrupted(run) from None
            raise
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except Timeout:
        raise RunError(f"{run}: another process is training this run") from None
    finally:
        lock.release()


def _trainer(run: Path, config: TrainConfig, log: EpochLog, monitor: str) -> Trainer:
    options: dict[str, Any] = {
        "dirpath": run / "checkpoints", "enable_version_counter": False, "save_on_train_epoch_end": True
    }  # fmt: skip
    averaging = None if config.ema is None else Averaging(config.ema)
    callbacks: list[Callback] = [
        EpochSeed(),
        *([] if averaging is None else [averaging]),
        log,
        Watch(run / "filmstrip.npz", averaging),
        *([] if config.starts == 1 else [Starts(config)]),
        ModelCheckpoint(filename="best", monitor=monitor, mode="max", save_top_k=1, **options),
    ]
    if config.early_stop is not None:
        callbacks.append(EarlyStopping(monitor, mode="max", patience=config.early_stop, check_on_train_epoch_end=True))
    # Last, so that it holds the state of all the others.
    callbacks.append(ModelCheckpoint(filename="last", monitor=None, save_top_k=1, **options))
    progress = config.progress and sys.stderr.isatty()
    if progress:
        callbacks.append(TQDMProgressBar(leave=False))
    return Trainer(
        max_epochs=config.epochs * config.starts,
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        precision=config.precision,  # type: ignore[arg-type]
        gradient_clip_val=config.clip,
        logger=make_loggers(run, config),
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        enable_progress_bar=progress,
        enable_model_summary=False,
        log_every_n_steps=50,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module shares the samples out itself
        default_root_dir=run,
    )


def _begin(run: Path, config: TrainConfig, data: ImageDataModule, task: AbstractTask[Any]) -> None:
    for name in (
        "result.json",
        "mistakes.json",
        "model.safetensors",
    ):  # of a run that is extended; the checkpoint has it all
        (run / name).unlink(missing_ok=True)
    write_record(run / "data.json", Facts.of(data))
    write_config(run, config)
    what = "no transformer (control)" if config.transformer == "none" else f"{config.family} transformer"
    seen, held = len(data.train_data()), len(data.val_data() or ())
    print(
        f"{config.recipe}: {label(config.network)}, {what}, {_size(task):,} parameters; {seen:,} images to train on, "
        f"{held:,} to validate, seed {config.seed}"
    )
    if config.init_from is not None:
        print(f"Starts from the weights of {config.init_from}; optimizer, epochs and schedule begin anew.")


def _by_class(data: ImageDataModule, wrong: Sequence[int]) -> dict[str, dict[str, Any]]:
    labels = data.test_data().targets
    correct = torch.ones(len(labels), dtype=torch.bool)
    correct[list(wrong)] = False
    return {name: dataclasses.asdict(one) for name, one in by_class(labels, correct, data.class_names).items()}


def _size(task: AbstractTask[Any]) -> int:
    return sum(p.numel() for p in task.model.parameters())


def _finish(
    run: Path,
    config: TrainConfig,
    task: AbstractTask[Any],
    trainer: Trainer,
    log: EpochLog,
    test: Mapping[str, float],
    classes: dict[str, dict[str, Any]] | None,
    robust: dict[str, dict[str, float]] | None,
) -> None:
    write_weights(run / "model.safetensors", task.model.state_dict())
    last = Run(run).metrics()[-1]
    result = Result(
        recipe=config.recipe,
        network=label(config.network),
        transformer=config.family,
        seed=config.seed,
        parameters=_size(task),
        epochs=trainer.current_epoch,
        test_accuracy=test["test_accuracy"],
        test_loss=test["test_loss"],
        val_accuracy=last.get("val_accuracy"),
        train_accuracy=last.get("train_accuracy"),
        train_seconds=round(log.seconds, 1),
        classes=classes,
        robust=robust,
        cpu_seconds=round(log.cpu_seconds, 1),
        threads=torch.get_num_threads(),
        command="stn " + shlex.join(sys.argv[1:])
        if Path(sys.argv[0]).name == "stn"
        else f"stn train --config {run / 'config.yaml'}",
        versions=versions(),
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        metrics_digest=digest_of_files(metrics_files(run)),
    )
    write_record(run / "result.json", result)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What the weights of a run do on images."""

    what: str  # which images
    test_loss: float
    test_accuracy: float
    images: int
    class_mean: float  # accuracy, each class that has images counting alike
    classes: dict[str, ClassMeasured]  # by name, those without an image too


@torch.no_grad()
def evaluate(run: Run, data_dir: str | Path | None = None) -> Measured:
    """Loss and accuracy of a run's weights on its test set, or on other images.

    Args:
        data_dir: where the data of the run lies now. For a run on your own images it may be another folder of class
            folders: everything in it is measured (where it has `train` and `test`, the latter), the classes go by their
            names, and some of them may be missing. The folder that the run was trained on, moved, is known by its mean
            and standard deviation; there it is the test set that is measured.

    Raises:
        DataError: for data that is missing or damaged, a class that the network does not know.
        RunError: for a run that does not classify.
    """
    model = run.classifier
    if data_dir is not None:
        run.config.data_dir = str(data_dir)
    if data_dir is None or not run.data.dataset.own_images or _is_the_data_of(run):
        what, dataset = "test set", run.data.test_data()
    else:
        what, dataset = f"everything in {data_dir}", run.data.everything(run.facts.mean, run.facts.std)
    loss, truth, right = 0.0, [], []
    loader = run.data.loader(dataset)
    for images, labels in track(loader, "Measuring", len(loader), shown=run.data.progress):
        logits = model(images)
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        truth.append(labels)
        right.append(logits.argmax(1) == labels)
    correct = torch.cat(right)
    classes = by_class(torch.cat(truth), correct, run.facts.class_names)
    return Measured(
        what=what,
        test_loss=loss / len(correct),
        test_accuracy=int(correct.sum()) / len(correct),
        images=len(correct),
        class_mean=mean_over_classes(classes),
        classes=classes,
    )


def _is_the_data_of(run: Run) -> bool:
    try:
        run.data.setup("fit")
    except ValueError:  # too few images to split, or some that cannot be read
        return False
    pairs = ((run.data.mean, run.facts.mean), (run.data.std, run.facts.std))
    return all(math.isclose(a, b, abs_tol=1e-5) for mine, its in pairs for a, b in zip(mine, its, strict=True))
