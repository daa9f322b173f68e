"""Seeing what a transformer does: pictures before and after, filmstrips, grids, curves.

Every function returns a matplotlib `Figure` that belongs to nobody: no pyplot, no window, no global state. A notebook
shows it when it is the last line of a cell, `figure.savefig("name.png")` writes it anywhere. Backgrounds are
transparent and the ink is of a middle tone, so a picture reads on a light page and on a dark one. matplotlib is
imported at the first call (`pip install spatial-transformers[viz]`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._checks import check_choice, check_size, describe
from .conventions import normalized_to_pixel
from .coordinates import Frame
from .transformer import Warp
from .transforms.affine import AbstractConstrained, Affine
from .transforms.base import AbstractTransform, Compose
from .transforms.polar import Polar
from .transforms.projective import Corners

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

PANELS = {"loss": "loss", "accuracy": "accuracy", "lr": "learning rate"}
MAX_HISTOGRAMS = 24
MAX_CELLS = 40  # classes up to which a confusion matrix is drawn cell by cell
MAX_COUNTS = 15  # and up to which the counts are written in


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
        >>> transformer = stn.SpatialTransformer(stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28)))
        >>> images = torch.rand(3, 1, 28, 28)
        >>> figure = before_after(images, transformer.warp(images), ["a", "b", "c"])
        >>> len(figure.axes)
        6
    """
    before = _pixels("images", images, mean, std)
    if not isinstance(warp, Warp):
        raise ValueError(f"warp: expected what transformer.warp(images) returns, got {describe(warp)}")
    if warp.output.shape[0] != len(before):
        raise ValueError(f"warp: expected that of these {len(before)} images, got one of {warp.output.shape[0]}")
    after = _pixels("warp.output", warp.output, mean, std)
    captions = _titles(titles, len(before))
    outlines = frame_outlines(warp)
    margin = frame_margin(outlines, warp.image_size)
    columns = min(_positive("columns", columns), len(before))
    rows = math.ceil(len(before) / columns)
    figure, axes = _figure(1.15 * columns, 2.45 * rows, 2 * rows, columns)
    for place in axes.flat:
        place.set_axis_off()
    for i, image in enumerate(before):
        row, column = 2 * (i // columns), i % columns
        _draw_image(axes[row, column], image, margin)
        _draw_outline(axes[row, column], outlines[i])
        axes[row, column].set_title(captions[i], fontsize=8.5, color=INK)
        _draw_image(axes[row + 1, column], after[i], margin)
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
    figure, axes = _figure(0.95 * len(strips), frames.shape[1] + 0.3, frames.shape[1], len(strips))
    for column, (title, images) in enumerate(strips):
        axes[0, column].set_title(title, fontsize=8.5, color=INK)
        pixels = _pixels("inputs" if title == "input" else "frames", images, mean, std)
        for row, image in enumerate(pixels):
            axes[row, column].set_axis_off()
            _draw_image(axes[row, column], image)
    return figure


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
    axes = "xyz"[: transform.ndim]
    if isinstance(transform, Affine):
        return [name for to in axes for name in (*(f"{to} from {of}" for of in axes), f"shift {to}")]
    if isinstance(transform, Corners):
        corners = ("top left", "top right", "bottom right", "bottom left")
        return [f"{corner} {axis}" for corner in corners for axis in axes]
    if isinstance(transform, Polar):
        return ["origin x", "origin y"]
    if isinstance(transform, Compose):
        parts = {"outer": transform.outer, "inner": transform.inner}
        return [f"{part} {name}" for part, member in parts.items() for name in theta_names(member)]
    if isinstance(transform, AbstractConstrained):
        turns, scales, shifts = transform.widths
        turn = (
            ["angle"]
            if turns == 1
            else [f"turn {axis}" for axis in axes]
            if turns == 3
            else [f"turn {i}" for i in range(turns)]
        )
        scale = "log scale" if transform.log_scale else "scale"
        return (
            turn
            + ([scale] if scales == 1 else [f"{scale} {axis}" for axis in axes[:scales]])
            + [f"shift {axis}" for axis in axes[:shifts]]
        )
    return [f"theta {i}" for i in range(transform.num_params)]


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
    columns = min(_positive("columns", columns), len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = _figure(3.0 * columns, 1.9 * rows, rows, columns)
    for place in axes.flat[len(shown) :]:
        place.remove()
    for place, i in zip(axes.flat, shown, strict=False):
        column, rest = values[:, i].numpy(), float(identity[i])
        low, high = min(column.min(), rest), max(column.max(), rest)
        pad = 0.05 * (high - low) or 0.1
        place.hist(column, bins=32, range=(low - pad, high + pad), color=FIRST)
        place.axvline(rest, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        place.set_title(names[i], fontsize=8.5, color=INK)
        _style(place)
        place.set_yticks([])
        place.grid(False)
        place.spines["bottom"].set_visible(True)
        place.locator_params(axis="x", nbins=4)
    return figure


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
    figure, axes = _figure(3.5 * len(panels), 2.4, 1, len(panels))
    runs = [(metrics, FIRST, names[0])] + ([(control, SECOND, names[1])] if control else [])
    for place, panel in zip(axes.flat, panels, strict=True):
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
                place.plot(x, y, color=color, linewidth=1.6, label=label, marker=marker, markersize=3, **style)
                drawn.append(y[np.isfinite(y)])
        _style(place)
        place.set_title(PANELS[panel], fontsize=9.5, color=INK, loc="left")
        place.set_xlabel("epoch", fontsize=8.5, color=INK)
        place.xaxis.get_major_locator().set_params(integer=True)
        if not drawn:
            continue
        every = np.concatenate(drawn)
        if panel == "loss" and every.min() > 0 and every.max() > 20 * every.min():
            place.set_yscale("log")
            place.tick_params(which="minor", length=0)
            place.yaxis.set_minor_formatter("")
        if panel == "accuracy":
            place.yaxis.set_major_formatter(_percent)
        if len(place.lines) > 1:
            _legend(place)
    return figure


def confusion(matrix: Tensor | np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix: a row for each true class, a column for each predicted one.

    Colours are shares of the row: the diagonal in blue, errors in red and on a steeper scale, so that rare ones show.

    Args:
        matrix: (K, K) counts, K at least 1.
        class_names: K of them.

    Raises:
        ValueError: for another shape, negative counts, or another number of names.

    Example:
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
    figure, axes = _figure(max(side, 2.6), max(side, 2.6))
    place = axes[0, 0]
    edges = np.arange(k + 1) - 0.5
    if k <= MAX_CELLS:
        place.pcolormesh(edges, edges, colors, linewidth=0)
        place.set_xticks(range(k), class_names, rotation=0 if max(map(len, class_names)) < 3 else 90)
        place.set_yticks(range(k), class_names)
    else:
        place.imshow(colors, interpolation="nearest")
        place.set_xticks([])
        place.set_yticks([])
    place.set_xlim(-0.5, k - 0.5)
    place.set_ylim(k - 0.5, -0.5)
    place.set_aspect("equal")
    if k <= MAX_COUNTS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = FIRST if row == column else WRONG
            color = ON_COLOR if colors[row, column, 3] > 0.5 else color
            place.text(column, row, f"{counts[row, column]:g}", ha="center", va="center", fontsize=7, color=color)
    _style(place)
    place.grid(False)
    place.set_xlabel("predicted", fontsize=8.5, color=INK)
    place.set_ylabel("true", fontsize=8.5, color=INK)
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
    figure, axes = _figure(3.5 * len(sweeps), 2.4, 1, len(sweeps))
    for place, (title, (positions, series)) in zip(axes.flat, sweeps.items(), strict=True):
        for (name, accuracies), color in zip(series.items(), (FIRST, SECOND, INK, WRONG), strict=False):
            if len(accuracies) != len(positions):
                raise ValueError(
                    f"sweeps: expected {len(positions)} accuracies of {name!r} over {title!r}, got {len(accuracies)}"
                )
            place.plot(positions, accuracies, color=color, linewidth=1.6, marker="o", markersize=2.5, label=name)
        _style(place)
        place.set_xlabel(title, fontsize=8.5, color=INK)
        place.set_xticks(positions[:: math.ceil(len(positions) / 7)])
        place.yaxis.set_major_formatter(_percent)
        every = [value for accuracies in series.values() for value in accuracies] or [0.0, 1.0]
        place.set_ylim(max(min(every) - 0.05, -0.01), min(max(every) + 0.05, 1.01))
        if len(series) > 1:
            _legend(place)
    return figure


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
        pictures = _pixels("images", images, mean, std)
        if pictures.shape[:3] != (len(theta), *size):
            raise ValueError(f"images: expected ({len(theta)}, C, {size[0]}, {size[1]}), got {describe(images)}")
    steps, along = torch.linspace(-1, 1, lines), torch.linspace(-1, 1, 65)
    fixed, running = torch.meshgrid(steps, along, indexing="ij")
    points = torch.cat([torch.stack([running, fixed], -1), torch.stack([fixed, running], -1)]).reshape(1, -1, 2)
    mapped = transform.map_points(theta, points.expand(len(theta), -1, -1).to(theta.dtype), Frame(size, align_corners))
    paths = normalized_to_pixel(mapped, size, align_corners=align_corners).reshape(len(theta), 2 * lines, 65, 2).numpy()
    margin = frame_margin(torch.from_numpy(paths).flatten(1, 2), size)
    columns = min(_positive("columns", columns), len(theta))
    rows = math.ceil(len(theta) / columns)
    figure, axes = _figure(1.9 * columns, 1.9 * rows, rows, columns)
    for place in axes.flat:
        place.set_axis_off()
    for i, place in zip(range(len(theta)), axes.flat, strict=False):
        if pictures is not None:
            _draw_image(place, pictures[i], margin)
        else:
            _frame_limits(place, size, margin)
        h, w = size
        place.plot([-0.5, w - 0.5, w - 0.5, -0.5, -0.5], [-0.5, -0.5, h - 0.5, h - 0.5, -0.5], color=INK, linewidth=0.8)
        for n, path in enumerate(paths[i]):
            outer = n % lines in (0, lines - 1)
            color = FRAME if pictures is not None else FIRST
            place.plot(path[:, 0], path[:, 1], color=color, linewidth=1.4 if outer else 0.7, alpha=1 if outer else 0.8)
    return figure


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
    places = (outlines + 0.5) / sides  # the image is [0, 1]
    beyond = torch.maximum(-places, places - 1).nan_to_num(nan=0.0, posinf=most, neginf=0.0)
    needed = float(beyond.max()) if len(beyond) else 0.0
    return min(max(needed + 0.02, 0.02), most)


def _series(panel: str) -> list[tuple[str, str, bool]]:
    """key, name in the legend, dashed."""
    if panel == "lr":
        return [("lr", "", False)]
    return [(f"train_{panel}", "training", True), (f"val_{panel}", "validation", False)]


def _pixels(argument: str, images: Any, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Images (N, C, H, W) as (N, H, W, C) in [0, 1]."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{argument}: expected (N, C, H, W) with 1 or 3 channels, N at least 1, got {describe(images)}"
        )
    for name, value in (("mean", mean), ("std", std)):
        if len(value) not in (1, images.shape[1]):
            raise ValueError(f"{name}: expected one number or {images.shape[1]}, one for each channel, got {value!r}")
    shown = images.detach().cpu().float() * torch.tensor(std).reshape(1, -1, 1, 1)
    shown = shown + torch.tensor(mean).reshape(1, -1, 1, 1)
    pixels: np.ndarray = shown.nan_to_num(0.0).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pixels


def _titles(titles: Sequence[str] | None, count: int) -> list[str]:
    if titles is None:
        return [""] * count
    if isinstance(titles, str) or len(titles) != count:
        raise ValueError(f"titles: expected {count}, one for each image, got {titles!r}")
    return list(titles)


def _positive(argument: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{argument}: expected a positive int, got {describe(value)}")
    return value


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


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ImportError("stn.viz needs matplotlib: pip install 'spatial-transformers[viz]'") from error
    figure = _figure_class()(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    axes: np.ndarray = figure.subplots(rows, columns, squeeze=False)
    for place in axes.flat:
        place.set_facecolor("none")
    return figure, axes


def _style(place: Axes) -> None:
    for side in ("top", "right", "left", "bottom"):
        place.spines[side].set_visible(False)
        place.spines[side].set_color(INK)
    place.tick_params(length=0, labelsize=8, labelcolor=INK)
    place.set_axisbelow(True)
    place.grid(True, color=INK, alpha=0.22, linewidth=0.6)


def _legend(place: Axes) -> None:
    legend = place.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.8)
    legend.set_in_layout(False)


def _percent(value: float, _position: int | None = None) -> str:
    return f"{100 * value:.4g}%"


def _draw_image(place: Axes, image: np.ndarray, margin: float = 0.0) -> None:
    gray = image.shape[2] == 1
    place.imshow(image[..., 0] if gray else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _frame_limits(place, image.shape[:2], margin)


def _frame_limits(place: Axes, size: tuple[int, ...], margin: float) -> None:
    h, w = size
    place.set_xlim(-0.5 - margin * w, w - 0.5 + margin * w)
    place.set_ylim(h - 0.5 + margin * h, -0.5 - margin * h)
    place.set_aspect("equal")


def _draw_outline(place: Axes, outline: Tensor) -> None:
    x, y = outline.unbind(1)
    place.plot(x.numpy(), y.numpy(), color="black", linewidth=2.2, alpha=0.35, solid_joinstyle="round")
    place.plot(x.numpy(), y.numpy(), color=FRAME, linewidth=1.3, solid_joinstyle="round")
    place.plot(x[:1].numpy(), y[:1].numpy(), "o", color=FRAME, markersize=3.5)
