"""The frame that a transformer samples, and the lines of a warped grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._checks import check_size, describe
from ..conventions import normalized_to_pixel
from ..coordinates import Frame
from ..transformer import Warp
from ..transforms.base import AbstractTransform
from .style import FIRST, FRAME, INK, check_positive, draw_image, frame_limits, new_figure, to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def frame_outlines(warp: Warp) -> Tensor:
    """The frame that each output is sampled from, closed polygons (B, N, 2) in pixels (x, y) of the input.

    Straight sides take a point each, bent ones 16.

    Example:
        >>> import stn
        >>> transformer = stn.SpatialTransformer(stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28)))
        >>> frame_outlines(transformer.warp(torch.rand(2, 1, 28, 28))).shape
        torch.Size([2, 5, 2])
    """
    straight = warp.transform.kind == "affine"
    return warp.outline(1 if straight else 16).detach().cpu().float()


def frame_margin(outlines: Tensor, image_size: tuple[int, ...], most: float = 0.3) -> float:
    """The room to leave around images, relative to their sides, for outlines (B, N, 2) to be seen; at most `most`."""
    sides = outlines.new_tensor(image_size[::-1])
    shares = (outlines + 0.5) / sides  # the image is [0, 1]
    beyond = torch.maximum(-shares, shares - 1).nan_to_num(nan=0.0, posinf=most, neginf=0.0)
    needed = float(beyond.max()) if len(beyond) else 0.0
    return min(max(needed + 0.02, 0.02), most)


def warped_grid(
    transform: AbstractTransform,
    theta: Tensor,  # (B, num_params)
    size: tuple[int, int],
    images: Tensor | None = None,  # (B, C, *size)
    *,
    lines: int = 9,
    columns: int = 6,
    align_corners: bool = False,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Figure:
    """Draw where the straight grid lines of the output lie in the input (pull), on the images if they are given.

    Args:
        transform: a family of warps of 2D images.
        theta: (B, num_params), B at least 1.
        size: (H, W) of the input.
        images: (B, C, H, W), drawn below the lines.
        lines: in each direction, at least 2.
        columns: warps side by side.
        align_corners: as for `stn.warp`.
        mean, std: of the normalization that is undone first.

    Raises:
        ValueError: for a wrong theta, size, number of lines or of images.

    Example:
        >>> import stn
        >>> figure = warped_grid(stn.Rotation(), torch.tensor([[0.5]]), (28, 28))
        >>> len(figure.axes[0].lines) > 18
        True
    """
    theta = transform.check_theta(theta).detach().cpu()
    size = check_size(size, 2)  # type: ignore[assignment]
    if transform.ndim != 2 or not len(theta):
        raise ValueError(f"theta: expected at least one warp of 2D images, got {describe(theta)} in {transform.ndim}D")
    if lines < 2:
        raise ValueError(f"lines: expected at least 2, got {lines!r}")
    pictures = None
    if images is not None:
        pictures = to_pixels("images", images, mean, std)
        if pictures.shape[:3] != (len(theta), *size):
            raise ValueError(f"images: expected ({len(theta)}, C, {size[0]}, {size[1]}), got {describe(images)}")
    steps, along = torch.linspace(-1, 1, lines), torch.linspace(-1, 1, 65)
    fixed, running = torch.meshgrid(steps, along, indexing="ij")
    points = torch.cat([torch.stack([running, fixed], -1), torch.stack([fixed, running], -1)]).reshape(1, -1, 2)
    mapped = transform.map_points(theta, points.expand(len(theta), -1, -1).to(theta.dtype), Frame(size, align_corners))
    paths = normalized_to_pixel(mapped, size, align_corners=align_corners).reshape(len(theta), 2 * lines, 65, 2).numpy()
    margin = frame_margin(torch.from_numpy(paths).flatten(1, 2), size)
    columns = min(check_positive("columns", columns), len(theta))
    rows = math.ceil(len(theta) / columns)
    figure, axes = new_figure(1.9 * columns, 1.9 * rows, rows, columns)
    for ax in axes.flat:
        ax.set_axis_off()
    for i, ax in zip(range(len(theta)), axes.flat, strict=False):
        if pictures is not None:
            draw_image(ax, pictures[i], margin)
        else:
            frame_limits(ax, size, margin)
        h, w = size
        ax.plot([-0.5, w - 0.5, w - 0.5, -0.5, -0.5], [-0.5, -0.5, h - 0.5, h - 0.5, -0.5], color=INK, linewidth=0.8)
        for n, path in enumerate(paths[i]):
            outer = n % lines in (0, lines - 1)
            color = FRAME if pictures is not None else FIRST
            ax.plot(path[:, 0], path[:, 1], color=color, linewidth=1.4 if outer else 0.7, alpha=1 if outer else 0.8)
    return figure
