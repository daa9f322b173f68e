"""What a network makes of test images: its confusions, and how much it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .style import FIRST, INK, ON_COLOR, SECOND, WRONG, add_legend, new_figure, percent, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CELLS = 40  # classes up to which a confusion matrix is drawn cell by cell
MAX_COUNTS = 15  # and up to which the counts are written in


def confusion(matrix: Tensor | np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix: a row for each true class, a column for each predicted one.

    Colours are shares of the row: the diagonal in blue, errors in red and on a steeper scale, so that rare ones show.

    Args:
        matrix: (K, K) counts, K at least 1.
        class_names: K of them.

    Raises:
        ValueError: for another shape, negative counts, or another number of names.

    Example:
        >>> import torch
        >>> figure = confusion(torch.tensor([[9, 1], [0, 10]]), ["cat", "dog"])
        >>> figure.axes[0].get_xlabel()
        'predicted'
    """
    from matplotlib.colors import to_rgb

    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size or (counts < 0).any():
        raise ValueError(f"matrix: expected (K, K) counts of at least 0, got shape {counts.shape}")
    k = len(counts)
    if len(class_names) != k:
        raise ValueError(f"class_names: expected {k}, one for each row of the matrix, got {len(class_names)}")
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    colors = np.empty((k, k, 4))
    colors[:] = (*to_rgb(WRONG), 0.0)
    colors[..., 3] = np.sqrt(share)
    diagonal = np.arange(k)
    colors[diagonal, diagonal] = [(*to_rgb(FIRST), 0.9 * value) for value in share[diagonal, diagonal]]
    side = min(0.36 * k + 1.2, 7.0)
    figure, axes = new_figure(max(side, 2.6), max(side, 2.6))
    ax = axes[0, 0]
    edges = np.arange(k + 1) - 0.5
    if k <= MAX_CELLS:
        ax.pcolormesh(edges, edges, colors, linewidth=0)
        ax.set_xticks(range(k), class_names, rotation=0 if max(map(len, class_names)) < 3 else 90)
        ax.set_yticks(range(k), class_names)
    else:
        ax.imshow(colors, interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
    ax.set_xlim(-0.5, k - 0.5)
    ax.set_ylim(k - 0.5, -0.5)
    ax.set_aspect("equal")
    if k <= MAX_COUNTS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = FIRST if row == column else WRONG
            color = ON_COLOR if colors[row, column, 3] > 0.5 else color
            ax.text(column, row, f"{counts[row, column]:g}", ha="center", va="center", fontsize=7, color=color)
    style_axes(ax)
    ax.grid(False)
    ax.set_xlabel("predicted", fontsize=8.5, color=INK)
    ax.set_ylabel("true", fontsize=8.5, color=INK)
    return figure


def robustness(sweeps: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[float]]]]) -> Figure:
    """Draw accuracy against how far images are rotated, scaled or shifted, a panel for each.

    Args:
        sweeps: name of the panel -> (positions, {name of the network: accuracies at them}); the first network is drawn
            in blue, the second in orange.

    Raises:
        ValueError: for no sweep, or other numbers of accuracies than of positions.

    Example:
        >>> figure = robustness({"rotation (degrees)": ([-90, 0, 90], {"transformer": [0.9, 0.95, 0.9]})})
        >>> figure.axes[0].get_xlabel()
        'rotation (degrees)'
    """
    if not sweeps:
        raise ValueError("sweeps: expected at least one, got none")
    figure, axes = new_figure(3.5 * len(sweeps), 2.4, 1, len(sweeps))
    for ax, (title, (positions, series)) in zip(axes.flat, sweeps.items(), strict=True):
        for (name, accuracies), color in zip(series.items(), (FIRST, SECOND, INK, WRONG), strict=False):
            if len(accuracies) != len(positions):
                raise ValueError(
                    f"sweeps: expected {len(positions)} accuracies of {name!r} over {title!r}, got {len(accuracies)}"
                )
            ax.plot(positions, accuracies, color=color, linewidth=1.6, marker="o", markersize=2.5, label=name)
        style_axes(ax)
        ax.set_xlabel(title, fontsize=8.5, color=INK)
        ax.set_xticks(positions[:: math.ceil(len(positions) / 7)])
        ax.yaxis.set_major_formatter(percent)
        every = [value for accuracies in series.values() for value in accuracies] or [0.0, 1.0]
        ax.set_ylim(max(min(every) - 0.05, -0.01), min(max(every) + 0.05, 1.01))
        if len(series) > 1:
            add_legend(ax)
    return figure
