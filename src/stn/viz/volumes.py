"""Volumes, by three slices through a point; two images on top of each other, before and after a registration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._checks import check_spacing, describe
from ..conventions import normalized_to_pixel
from .images import _titles
from .style import FIRST, INK, SECOND, WRONG, draw_image, new_figure, to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def slices(
    volumes: Tensor,  # (N, 1, D, H, W)
    titles: Sequence[str] | None = None,
    *,
    spacing: Sequence[float] | None = None,
    at: Sequence[float] = (0.0, 0.0, 0.0),
    labels: Tensor | None = None,  # (N, 1, D, H, W)
) -> Figure:
    """Draw volumes, a row for each: the slices across z, y and x through a point, each as wide as it is long in space.

    Brightness goes from the 1st to the 99th percentile of each volume. x points right, y down, and z up where it is seen.

    Args:
        volumes: (N, 1, D, H, W), N at least 1.
        titles: one for each volume.
        spacing: the sides of a voxel along (x, y, z); all the same unless given.
        at: the point (x, y, z), normalized.
        labels: integers, 0 for none, whose outlines are drawn.

    Raises:
        ValueError: for wrong shapes, another number of titles, a point outside of the frame.

    Example:
        >>> import torch
        >>> figure = slices(torch.rand(2, 1, 8, 16, 16), ["fixed", "moving"], spacing=(1, 1, 3))
        >>> len(figure.axes)
        6
    """
    if not isinstance(volumes, Tensor) or volumes.ndim != 5 or volumes.shape[1] != 1 or 0 in volumes.shape:
        raise ValueError(f"volumes: expected (N, 1, D, H, W), none of them 0, got {describe(volumes)}")
    sides = check_spacing(spacing, 3) or (1.0, 1.0, 1.0)
    if labels is not None and (not isinstance(labels, Tensor) or labels.shape != volumes.shape):
        raise ValueError(f"labels: expected {tuple(volumes.shape)} as volumes, got {describe(labels)}")
    if isinstance(at, str) or len(at) != 3 or not all(-1 <= v <= 1 for v in at):
        raise ValueError(f"at: expected three numbers within [-1, 1], (x, y, z), got {at!r}")
    captions = _titles(titles, len(volumes))
    size = tuple(volumes.shape[2:])
    voxel = normalized_to_pixel(torch.tensor([float(v) for v in at]), size).round().long()
    index = [min(max(int(i), 0), n - 1) for i, n in zip(voxel.tolist(), reversed(size), strict=True)]
    figure, axes = new_figure(8.4, 2.8 * len(volumes), len(volumes), 3)
    for row, volume in enumerate(volumes.detach().cpu().float()[:, 0].nan_to_num(0.0).numpy()):
        low, high = np.percentile(volume, (1, 99))
        marks = None if labels is None else labels[row, 0].cpu().numpy()
        for column, (across, horizontal, vertical) in enumerate(((2, 0, 1), (1, 0, 2), (0, 1, 2))):
            ax = axes[row, column]
            ax.set_axis_off()
            options = {"origin": "upper" if vertical == 1 else "lower", "aspect": sides[vertical] / sides[horizontal]}
            ax.imshow(_plane(volume, across, index), cmap="gray", vmin=low, vmax=max(high, low + 1e-12), **options)
            if marks is not None:
                plane = _plane(marks, across, index)
                for n, label in enumerate(np.unique(plane[plane != 0])):
                    color = (FIRST, SECOND, WRONG)[n % 3]
                    if plane.shape[0] > 1 and plane.shape[1] > 1:
                        ax.contour(plane == label, levels=[0.5], colors=[color], linewidths=1.0)
            if not column:
                ax.set_title(captions[row], fontsize=9, color=INK, loc="left")
    return figure


def registration(
    fixed: Tensor,  # (1, C, H, W)
    before: Tensor,  # (1, C, H, W)
    after: Tensor,  # (1, C, H, W)
) -> Figure:
    """Draw an image, another on its lattice before and after it was brought onto it, and what they differ by.

    Raises:
        ValueError: for wrong or different shapes.

    Example:
        >>> import torch
        >>> figure = registration(*torch.rand(3, 1, 3, 16, 24))
        >>> len(figure.axes)
        6
    """
    pictures = {"fixed": fixed, "moving, before": before, "moving, after": after}
    pixels = {name: to_pixels(name.split(", ")[-1], image, (0.0,), (1.0,)) for name, image in pictures.items()}
    for name, image in pixels.items():
        if image.shape != pixels["fixed"].shape:
            raise ValueError(
                f"{name.split(', ')[-1]}: expected {tuple(fixed.shape)} as fixed, got {describe(pictures[name])}"
            )
    h, w = fixed.shape[2:]
    figure, axes = new_figure(9.0, 6.2 * h / w + 0.6, 2, 3)
    for column, (name, image) in enumerate(pixels.items()):
        draw_image(axes[0, column], image[0])
        axes[0, column].set_title(name, fontsize=9, color=INK)
        if column:
            draw_image(axes[1, column], abs(image[0] - pixels["fixed"][0]))
            axes[1, column].set_title(f"difference {name.split(', ')[1]}", fontsize=9, color=INK)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure


def _plane(volume: np.ndarray, across: int, index: Sequence[int]) -> np.ndarray:
    """The slice of a volume (D, H, W) across an axis of (x, y, z)."""
    return np.take(volume, index[across], axis=2 - across)
