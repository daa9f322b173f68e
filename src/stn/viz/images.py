"""Images before and after a transformer, and over the epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .._checks import describe
from ..transformer import Warp
from .frames import frame_margin, frame_outlines
from .style import INK, check_positive, draw_image, draw_outline, new_figure, to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def before_after(
    images: Tensor,  # (N, C, H, W)
    warp: Warp,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 8,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Figure:
    """Draw images with the frame that a transformer samples, and under each what it makes of it.

    The dot marks the corner of the frame that becomes the top left of the output.

    Args:
        images: (N, C, H, W) with 1 or 3 channels, N at least 1.
        warp: `transformer.warp(images)`.
        titles: one for each image.
        columns: images side by side.
        mean, std: of the normalization that is undone first, one number or one for each channel; what then lies
            outside [0, 1] is clipped.

    Raises:
        ValueError: for wrong shapes, another batch's warp, or another number of titles.

    Example:
        >>> import stn
        >>> import torch
        >>> transformer = stn.SpatialTransformer(stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28)))
        >>> images = torch.rand(3, 1, 28, 28)
        >>> figure = before_after(images, transformer.warp(images), ["a", "b", "c"])
        >>> len(figure.axes)
        6
    """
    before = to_pixels("images", images, mean, std)
    if not isinstance(warp, Warp):
        raise ValueError(f"warp: expected what transformer.warp(images) returns, got {describe(warp)}")
    if warp.output.shape[0] != len(before):
        raise ValueError(f"warp: expected that of these {len(before)} images, got one of {warp.output.shape[0]}")
    after = to_pixels("warp.output", warp.output, mean, std)
    captions = _titles(titles, len(before))
    outlines = frame_outlines(warp)
    margin = frame_margin(outlines, warp.image_size)
    columns = min(check_positive("columns", columns), len(before))
    rows = math.ceil(len(before) / columns)
    figure, axes = new_figure(1.15 * columns, 2.45 * rows, 2 * rows, columns)
    for ax in axes.flat:
        ax.set_axis_off()
    for i, image in enumerate(before):
        row, column = 2 * (i // columns), i % columns
        draw_image(axes[row, column], image, margin)
        draw_outline(axes[row, column], outlines[i])
        axes[row, column].set_title(captions[i], fontsize=8.5, color=INK)
        draw_image(axes[row + 1, column], after[i], margin)
    return figure


def filmstrip(
    frames: Tensor,  # (E, N, C, H, W)
    epochs: Sequence[int],
    inputs: Tensor | None = None,  # (N, C, H, W)
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Figure:
    """Draw the same images after several epochs: a row for each image, a column for each epoch.

    Args:
        frames: (E, N, C, H, W), what the transformer made of the N images after E epochs.
        epochs: their numbers, one for each of the E.
        inputs: (N, C, H, W), what went in, drawn as the first column.
        mean, std: of the normalization that is undone first.

    Raises:
        ValueError: for wrong shapes or another number of epochs.

    Example:
        >>> import torch
        >>> figure = filmstrip(torch.rand(4, 2, 1, 28, 28), [0, 1, 5, 20])
        >>> len(figure.axes)
        8
    """
    if not isinstance(frames, Tensor) or frames.ndim != 5 or 0 in frames.shape:
        raise ValueError(f"frames: expected (E, N, C, H, W), none of them 0, got {describe(frames)}")
    if len(epochs) != len(frames):
        raise ValueError(f"epochs: expected {len(frames)}, one for each of the frames, got {len(epochs)}")
    strips = [(f"epoch {epoch}" if epoch else "start", f) for epoch, f in zip(epochs, frames, strict=True)]
    if inputs is not None:
        if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[0] != frames.shape[1]:
            raise ValueError(f"inputs: expected ({frames.shape[1]}, C, H, W) as in frames, got {describe(inputs)}")
        strips.insert(0, ("input", inputs))
    figure, axes = new_figure(0.95 * len(strips), frames.shape[1] + 0.3, frames.shape[1], len(strips))
    for column, (title, images) in enumerate(strips):
        axes[0, column].set_title(title, fontsize=8.5, color=INK)
        pixels = to_pixels("inputs" if title == "input" else "frames", images, mean, std)
        for row, image in enumerate(pixels):
            axes[row, column].set_axis_off()
            draw_image(axes[row, column], image)
    return figure


def _titles(titles: Sequence[str] | None, count: int) -> list[str]:
    if titles is None:
        return [""] * count
    if isinstance(titles, str) or len(titles) != count:
        raise ValueError(f"titles: expected {count}, one for each image, got {titles!r}")
    return list(titles)
