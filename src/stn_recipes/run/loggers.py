"""Where the curves of a training go: metrics.csv always, and Lightning's loggers by their names."""

from __future__ import annotations

import sys
import types
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from ..config import TrainConfig

# TensorBoard's own switch for doing without TensorFlow, which it imports, for seconds, wherever it is installed.
sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))

_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}


def make_loggers(run: Path, config: TrainConfig) -> list[Logger]:
    """Those of the run's settings; the first writes metrics.csv, which the report and `stn table` read.

    Raises:
        ValueError: for a logger whose package is not installed, with what to install.
    """
    names = [config.logger] if isinstance(config.logger, str) else config.logger
    return [CSVLogger(run / "logs", name="csv"), *(_make(name, run, config) for name in names if name != "csv")]


def _make(name: str, run: Path, config: TrainConfig) -> Logger:
    try:
        if name == "tensorboard":
            return TensorBoardLogger(run / "logs", name="tensorboard", version="")
        logger: Logger
        if name == "wandb":
            logger = WandbLogger(name=run.name, project="stn", save_dir=run / "logs")
        else:
            logger = MLFlowLogger(experiment_name="stn", run_name=run.name, save_dir=str(run / "logs" / "mlflow"))
    except ModuleNotFoundError as error:
        raise ValueError(f"logger: expected {name} to be installed; pip install {_PACKAGES[name]} ({error})") from error
    logger.log_hyperparams(config.as_plain())
    return logger
