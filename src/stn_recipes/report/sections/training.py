"""Curves and log, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stn import viz

from ..markup import svg
from ..study import Study
from .base import Part, Section

# `transformer_out_of_frame` of older runs was counted on the border, where rounding decides: it is not shown.
COLUMNS = {
    "train_loss": ("train loss", "{:.4f}"),
    "train_accuracy": ("train accuracy", "{:.2%}"),
    "val_loss": ("validation loss", "{:.4f}"),
    "val_accuracy": ("validation accuracy", "{:.2%}"),
    "lr": ("learning rate", "{:.2g}"),
    "transformer_scale": ("frame scale", "{:.2f}"),
    "transformer_outside": ("out of frame", "{:.1%}"),
    "transformer_contrast": ("contrast", "{:.2f}"),
}


def _make(study: Study) -> Part | None:
    metrics = study.metrics
    if not metrics:
        return None
    other = None if study.control is None else study.control.metrics()
    charts = [
        svg(viz.curves(metrics, other, panels=[panel], names=study.names), f"{title}, epoch by epoch")
        for panel, title in viz.PANELS.items()
        if panel != "lr" or any("lr" in record for record in metrics)
    ]
    figure = viz.curves(metrics, other, panels=("loss", "accuracy", "lr"), names=study.names)
    return Part({"curves": charts, "log": _log(metrics), "control": other is not None}, {"curves": figure})


def _log(metrics: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    shown = [key for key in COLUMNS if any(record.get(key) is not None for record in metrics)]
    scored = [record for record in metrics if record.get("val_accuracy") is not None]
    best = max(scored, key=lambda record: record["val_accuracy"])["epoch"] if scored else None
    rows = []
    for record in metrics:
        values = [record.get(key) for key in shown]
        cells = ["–" if v is None else COLUMNS[key][1].format(v) for key, v in zip(shown, values, strict=True)]
        rows.append({"epoch": int(record["epoch"]), "cells": cells, "best": record["epoch"] == best})
    return {
        "columns": [COLUMNS[key][0] for key in shown],
        "rows": rows,
        "best": None if best is None else int(best),
        "diagnosed": "transformer_scale" in shown,
    }


TRAINING = Section("training", "Training", _make, figures=("curves",), tasks=("classify", "colocalize"))
