"""What was logged, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import check_choice
from .style import FIRST, INK, SECOND, add_legend, new_figure, percent, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {"loss": "loss", "accuracy": "accuracy", "lr": "learning rate"}


def curves(
    metrics: Sequence[Mapping[str, float | None]],
    control: Sequence[Mapping[str, float | None]] | None = None,
    *,
    panels: Sequence[str] = ("loss", "accuracy"),
    names: tuple[str, str] = ("transformer", "control"),
) -> Figure:
    """Draw what was logged, epoch by epoch: dashed on the training images, solid on the validation images.

    Args:
        metrics: one record for each epoch, with `epoch` and any of `train_loss`, `val_loss`, `train_accuracy`,
            `val_accuracy` (shares of 1) and `lr`; missing and None leave a gap.
        control: the same of a second run.
        panels: of loss, accuracy and lr.
        names: of the two runs, for the legend.

    Raises:
        ValueError: for no record, a record without an epoch, or an unknown panel.

    Example:
        >>> log = [{"epoch": e, "train_loss": 1 / e, "val_loss": 1.1 / e} for e in range(1, 10)]
        >>> len(curves(log, panels=["loss"]).axes)
        1
    """
    if not metrics or not all("epoch" in record for record in [*metrics, *(control or ())]):
        raise ValueError(f"metrics: expected at least one record, each with an epoch, got {list(metrics)[:1]!r}")
    if not panels:
        raise ValueError("panels: expected at least one of loss, accuracy, lr, got none")
    figure, axes = new_figure(3.5 * len(panels), 2.4, 1, len(panels))
    runs = [(metrics, FIRST, names[0])] + ([(control, SECOND, names[1])] if control else [])
    for ax, panel in zip(axes.flat, panels, strict=True):
        check_choice("panels", panel, PANELS)
        drawn = []
        for log, color, name in runs:
            for key, part, dashes in _series(panel):
                points = [(r["epoch"], r.get(key)) for r in log]
                if color == SECOND and panel == "lr" and points == [(r["epoch"], r.get(key)) for r in metrics]:
                    continue  # one schedule for both
                y = np.array([np.nan if v is None else v for _, v in points], dtype=float)
                if not np.isfinite(y).any():
                    continue
                label = ", ".join(text for text in (name if len(runs) > 1 else "", part) if text)
                style: dict[str, Any] = {"linestyle": (0, (3, 1.5)), "alpha": 0.75} if dashes else {}
                marker = "o" if len(points) < 3 else ""
                x = [e for e, _ in points]
                ax.plot(x, y, color=color, linewidth=1.6, label=label, marker=marker, markersize=3, **style)
                drawn.append(y[np.isfinite(y)])
        style_axes(ax)
        ax.set_title(PANELS[panel], fontsize=9.5, color=INK, loc="left")
        ax.set_xlabel("epoch", fontsize=8.5, color=INK)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if not drawn:
            continue
        every = np.concatenate(drawn)
        if panel == "loss" and every.min() > 0 and every.max() > 20 * every.min():
            ax.set_yscale("log")
            ax.tick_params(which="minor", length=0)
            ax.yaxis.set_minor_formatter("")
        if panel == "accuracy":
            ax.yaxis.set_major_formatter(percent)
        if len(ax.lines) > 1:
            add_legend(ax)
    return figure


def _series(panel: str) -> list[tuple[str, str, bool]]:
    """key, name in the legend, dashed."""
    if panel == "lr":
        return [("lr", "", False)]
    return [(f"train_{panel}", "training", True), (f"val_{panel}", "validation", False)]
