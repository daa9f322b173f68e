"""The look that all figures share, and what draws an image in its axes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._checks import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Middle tones, legible on white and on black.
INK = "#7a828e"
FIRST = "#2f88c9"  # what is looked at: the transformer
SECOND = "#d97f2a"  # what it is compared with: the control
WRONG = "#d1495b"
ON_COLOR = "#fffffe"  # on the last three
FRAME = "#ffa61a"  # the sampled frame on an image


@cache
def _figure_class() -> type[Figure]:
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that notebooks show although pyplot does not know it."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=110)
            return file.getvalue()

    return NotebookFigure


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ImportError("stn.viz needs matplotlib: pip install 'spatial-transformers[viz]'") from error
    figure = _figure_class()(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    axes: np.ndarray = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_facecolor("none")
    return figure, axes


def style_axes(ax: Axes) -> None:
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(False)
        ax.spines[side].set_color(INK)
    ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    ax.set_axisbelow(True)
    ax.grid(True, color=INK, alpha=0.22, linewidth=0.6)


def add_legend(ax: Axes) -> None:
    legend = ax.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.8)
    legend.set_in_layout(False)


def percent(value: float, _position: int | None = None) -> str:
    return f"{100 * value:.4g}%"


def draw_image(ax: Axes, image: np.ndarray, margin: float = 0.0) -> None:
    gray = image.shape[2] == 1
    ax.imshow(image[..., 0] if gray else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    frame_limits(ax, image.shape[:2], margin)


def frame_limits(ax: Axes, size: tuple[int, ...], margin: float) -> None:
    h, w = size
    ax.set_xlim(-0.5 - margin * w, w - 0.5 + margin * w)
    ax.set_ylim(h - 0.5 + margin * h, -0.5 - margin * h)
    ax.set_aspect("equal")


def draw_outline(ax: Axes, outline: Tensor) -> None:
    x, y = outline.unbind(1)
    ax.plot(x.numpy(), y.numpy(), color="black", linewidth=2.2, alpha=0.35, solid_joinstyle="round")
    ax.plot(x.numpy(), y.numpy(), color=FRAME, linewidth=1.3, solid_joinstyle="round")
    ax.plot(x[:1].numpy(), y[:1].numpy(), "o", color=FRAME, markersize=3.5)


def to_pixels(argument: str, images: Any, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Images (N, C, H, W) as (N, H, W, 1 or 3) in [0, 1]; two channels are shown in red and green."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 2, 3) or 0 in images.shape:
        raise ValueError(
            f"{argument}: expected (N, C, H, W) with 1 to 3 channels, N at least 1, got {describe(images)}"
        )
    for name, value in (("mean", mean), ("std", std)):
        if len(value) not in (1, images.shape[1]):
            raise ValueError(f"{name}: expected one number or {images.shape[1]}, one for each channel, got {value!r}")
    shown = images.detach().cpu().float() * torch.tensor(std).reshape(1, -1, 1, 1)
    shown = shown + torch.tensor(mean).reshape(1, -1, 1, 1)
    if shown.shape[1] == 2:
        shown = torch.cat([shown, torch.zeros_like(shown[:, :1])], 1)
    pixels: np.ndarray = shown.nan_to_num(0.0).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pixels


def check_positive(argument: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{argument}: expected a positive int, got {describe(value)}")
    return value
