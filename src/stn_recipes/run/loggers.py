"""Where the curves of a training go: metrics.csv always, and Lightning's loggers by their names."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from ..config import TrainConfig

# TensorBoard's own switch for doing without TensorFlow, which it imports, for seconds, wherever it is installed.
sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))


def make_loggers(run: Path, config: TrainConfig) -> list[Logger]:
    """Those of the run's settings; the first writes metrics.csv, which the report and `stn table` read.

    Raises:
        ValueError: for a logger whose package is not installed, with what to install.
    """
    names = [config.logger] if isinstance(config.logger, str) else config.logger
    return [CSVLogger(run / "logs", name="csv"), *(_make(name, run) for name in names if name != "csv")]


def _make(name: str, run: Path) -> Logger:
    try:
        if name == "tensorboard":
            return TensorBoardLogger(run / "logs", name="tensorboard", version="")
        if name == "wandb":
            return WandbLogger(name=run.name, project="stn", save_dir=run / "logs")
        return MLFlowLogger(experiment_name="stn", run_name=run.name, save_dir=str(run / "logs" / "mlflow"))
    except ModuleNotFoundError as error:
        raise ValueError(f"logger: expected {name} to be installed: pip install {name} ({error})") from error


def say_settings(loggers: Iterable[Logger], config: TrainConfig) -> None:
    """Tell the loggers that show them what the run's settings are."""
    for logger in loggers:
        if isinstance(logger, (WandbLogger, MLFlowLogger)):
            if logger.save_dir is not None:
                Path(logger.save_dir).mkdir(parents=True, exist_ok=True)
            logger.log_hyperparams(config.as_plain())
