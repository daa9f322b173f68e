"""How theta is distributed over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .._checks import describe
from ..transforms.base import AbstractTransform
from .style import FIRST, INK, check_positive, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_HISTOGRAMS = 24


def theta_names(transform: AbstractTransform) -> list[str]:
    """What the numbers of theta are, in order.

    Example:
        >>> import stn
        >>> theta_names(stn.Similarity())
        ['angle', 'log scale', 'shift x', 'shift y']
        >>> theta_names(stn.Affine())
        ['x from x', 'x from y', 'shift x', 'y from x', 'y from y', 'shift y']
    """
    if not isinstance(transform, AbstractTransform):
        raise ValueError(f"transform: expected a transform such as stn.Affine(), got {describe(transform)}")
    return list(transform.param_names)


def theta_histograms(
    theta: Tensor,  # (B, num_params)
    transform: AbstractTransform,
    *,
    params: Sequence[int] | None = None,
    columns: int = 3,
) -> Figure:
    """Draw how each parameter of theta is distributed over images; the dashed line is the identity.

    A line of bars on the identity alone means that the transformer does nothing; a single bar elsewhere, that it does
    the same to every image.

    Args:
        theta: (B, num_params), B at least 1; images with a theta that is not finite are left out.
        transform: the family.
        params: which to draw; all unless given, and of more than 24 those that vary most.
        columns: histograms side by side.

    Raises:
        ValueError: for a theta of another family, without a finite row, or a parameter that is not there.

    Example:
        >>> import stn
        >>> import torch
        >>> figure = theta_histograms(0.1 * torch.randn(100, 4), stn.Similarity())
        >>> [axes.get_title() for axes in figure.axes]
        ['angle', 'log scale', 'shift x', 'shift y']
    """
    names = theta_names(transform)
    values = transform.check_theta(theta).detach().cpu().double()
    values = values[values.isfinite().all(1)]
    if not len(values):
        raise ValueError(f"theta: expected at least one finite row, got {describe(theta)}")
    shown = list(range(len(names))) if params is None else list(params)
    if not shown or not all(0 <= i < len(names) for i in shown):
        raise ValueError(f"params: expected numbers from 0 to {len(names) - 1}, got {params!r}")
    if len(shown) > MAX_HISTOGRAMS and params is None:
        shown = sorted(values.std(0, correction=0).argsort(descending=True)[:MAX_HISTOGRAMS].tolist())
    identity = transform.identity().double()
    columns = min(check_positive("columns", columns), len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = new_figure(3.0 * columns, 1.9 * rows, rows, columns)
    for ax in axes.flat[len(shown) :]:
        ax.remove()
    for ax, i in zip(axes.flat, shown, strict=False):
        column, rest = values[:, i].numpy(), float(identity[i])
        low, high = min(column.min(), rest), max(column.max(), rest)
        pad = 0.05 * (high - low) or 0.1
        ax.hist(column, bins=32, range=(low - pad, high + pad), color=FIRST)
        ax.axvline(rest, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        ax.set_title(names[i], fontsize=8.5, color=INK)
        style_axes(ax)
        ax.set_yticks([])
        ax.grid(False)
        ax.spines["bottom"].set_visible(True)
        ax.locator_params(axis="x", nbins=4)
    return figure
