"""The pictures of which-transform.md and antialiasing.md, and what is measured there.

    python docs/figures.py              # every picture, and the errors in antialiasing.md
    python docs/figures.py --measure    # and the cost of every family in which-transform.md, with one thread

A picture of a family shows the `family` and the `theta` of the snippet that stands beside it on the page: the page is
run from top to bottom, and each section's picture is drawn from what its snippet leaves behind. A new family is a new
section.
"""

from __future__ import annotations

import argparse
import io
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

import stn
from stn.conventions import normalized_to_pixel
from stn.viz import FIRST, FRAME, INK, SECOND, frame_margin, theta_names

DOCS = Path(__file__).parent
DPI = 100
LINES = 9  # of the grid, along the image's shorter side
SOLID = 192  # colours of a picture for what is opaque in it
IMAGES = {1: "signal", 2: "photo", 3: "volume"}


@dataclass
class Case:
    """A section of the page, after its snippet has run."""

    title: str
    picture: str
    family: stn.AbstractTransform
    theta: Tensor  # (1, num_params)
    image: Tensor  # (1, C, [[D,] H,] W)


def cases(page: Path) -> list[Case]:
    """Run the Python blocks of a page, one after the other; a case for each section with a picture."""
    names: dict[str, Any] = {}
    found = []
    for section in re.split(r"^#+ ", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        title = section.partition("\n")[0]
        for block in re.findall(r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE):
            exec(compile(block, f"{page.name}, {title}", "exec"), names)
        if picture := re.search(r"\(figures/([\w-]+)\.png\)", section):
            family = names["family"]
            found.append(Case(title, picture[1], family, names["theta"], names[IMAGES[family.ndim]]))
    return found


# A picture of a family


def draw(case: Case, height: int = 144) -> Figure:
    """The case in pixels of `height` for each part, theta at the right."""
    return {1: _draw_signal, 2: _draw_photo, 3: _draw_volume}[case.family.ndim](case, height)


def _draw_photo(case: Case, height: int) -> Figure:
    size = tuple(case.image.shape[2:])
    small = (height, round(height * size[1] / size[0]))
    figure, (reads, lines, photo) = _row([small[1]] * 3, height, ["where it is read", "a grid", "the photograph"], case)
    paths = _frame_lines(case, size)
    margin = frame_margin(torch.cat([torch.from_numpy(p) for p in paths])[None], size, most=0.25)
    h, w = size
    reads.imshow(_pixels(case.image), extent=(-0.5, w - 0.5, h - 0.5, -0.5), interpolation="antialiased")
    for number, path in enumerate(paths):
        ends = number in (0, len(paths) - 1) or number in _last_of_first(size)
        reads.plot(path[:, 0], path[:, 1], color=FRAME, linewidth=1.6 if ends else 0.7, alpha=1.0 if ends else 0.85)
    reads.set_xlim(-0.5 - margin * w, w - 0.5 + margin * w)
    reads.set_ylim(h - 0.5 + margin * h, -0.5 - margin * h)
    for place, image in ((lines, _checks(size)), (photo, F.pad(case.image, (0, 0, 0, 0, 0, 1), value=1.0))):
        place.imshow(_pixels(_warped(case, image, small)), interpolation="nearest")
    return figure


def _draw_signal(case: Case, height: int) -> Figure:
    width = round(1.5 * height)
    titles = ["where it is read", "the signal", "the signal, warped"]
    figure, (reads, before, after) = _row([height, width, width], height, titles, case)
    n = case.image.shape[2]
    t = torch.linspace(-1, 1, n)
    positions = case.family.map_points(case.theta, t.reshape(1, -1, 1)).flatten()
    reads.plot(t.numpy(), t.numpy(), color=INK, linewidth=0.7, linestyle=(0, (3, 2)))
    reads.plot(t.numpy(), positions.numpy(), color=FRAME, linewidth=1.6)
    reads.set(xlim=(-1, 1), ylim=(-1, 1))
    for place, signal, color in (
        (before, case.image, FIRST),
        (after, stn.warp(case.image, case.theta, transform=case.family), SECOND),
    ):
        place.plot(t.numpy(), signal.flatten().numpy(), color=color, linewidth=1.4)
        place.set(xlim=(-1, 1), ylim=(float(case.image.min()) - 0.1, float(case.image.max()) + 0.1))
    for place in (reads, before, after):
        place.axis("on")
        place.set(xticks=[-1, 0, 1], yticks=[])
        place.tick_params(length=0, labelsize=7, labelcolor=INK, pad=1)
        for label, side in zip(place.get_xticklabels(), ("left", "center", "right"), strict=True):
            label.set_horizontalalignment(side)
        for spine in place.spines.values():
            spine.set_color(INK)
            spine.set_linewidth(0.6)
    return figure


def _draw_volume(case: Case, height: int) -> Figure:
    depth = case.image.shape[2]
    slices = [depth // 3, depth // 2, 2 * depth // 3]
    at = [_number((2 * z + 1) / depth - 1) for z in slices]
    names = [f"{name}z = {z}" for name, z in zip(["before, ", "", "", "after, ", "", ""], at + at, strict=True)]
    figure, places = _row([round(0.75 * height)] * 6, round(0.75 * height), names, case)
    warped = stn.warp(case.image, case.theta, transform=case.family)
    for place, (volume, z) in zip(places, [(v, z) for v in (case.image, warped) for z in slices], strict=True):
        place.imshow(volume[0, 0, z].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    return figure


def _warped(case: Case, image: Tensor, size: tuple[int, ...]) -> Tensor:
    """RGBA (1, 4, H, W); where nothing is read it is transparent, and does not darken its neighbours."""
    color, cover = image[:, :3], image[:, 3:]
    premultiplied = torch.cat([color * cover, cover], dim=1)
    warped = stn.warp(premultiplied, case.theta, size, transform=case.family, antialias=True)
    return torch.cat([warped[:, :3] / warped[:, 3:].clamp_min(1e-3), warped[:, 3:]], dim=1)


def _checks(size: tuple[int, ...]) -> Tensor:
    """A grid as an image, RGBA: a line every cell, the axes in colour."""
    size = (3 * size[0], 3 * size[1])
    cell = size[0] / (LINES - 1)
    y, x = ((torch.arange(n) + 0.5 - n / 2) / cell for n in size)  # in cells from the centre
    near = 2.5 / cell
    lines = ((x - x.round()).abs() < near)[None, :] | ((y - y.round()).abs() < near)[:, None]
    checks = ((x.floor()[None, :] + y.floor()[:, None]) % 2).float()
    image = torch.zeros(1, 4, *size)
    image[:] = _rgb(INK)
    image[:, 3] = torch.where(lines, 1.0, 0.25 * checks)
    for color, where in (
        (FIRST, (y.abs() < 2 * near)[:, None].expand(*size)),
        (SECOND, (x.abs() < 2 * near)[None, :].expand(*size)),
    ):
        image = torch.where(where, _rgb(color), image)
    return image


def _rgb(color: str) -> Tensor:
    return torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] + [1.0]).reshape(1, 4, 1, 1)


def _counts(size: tuple[int, ...]) -> tuple[int, int]:
    """How many upright and how many level lines there are in the frame."""
    return round((LINES - 1) * size[1] / size[0]) + 1, LINES


def _last_of_first(size: tuple[int, ...]) -> tuple[int, int]:
    upright, _ = _counts(size)
    return upright - 1, upright


def _frame_lines(case: Case, size: tuple[int, ...]) -> list[np.ndarray]:
    """The straight lines of the output, upright ones first, as paths (N, 2) in pixels of the input."""
    along = torch.linspace(-1, 1, 129)
    upright, level = (torch.linspace(-1, 1, n) for n in _counts(size))
    lines = [torch.stack([at.expand(129), along], -1) for at in upright]
    lines += [torch.stack([along, at.expand(129)], -1) for at in level]
    points = case.family.map_points(case.theta, torch.stack(lines).reshape(1, -1, 2), stn.Frame(size))
    paths: np.ndarray = normalized_to_pixel(points, size).reshape(len(lines), 129, 2).numpy()
    return list(paths)


def _row(widths: list[int], height: int, titles: list[str], case: Case) -> tuple[Figure, list[Axes]]:
    """Axes side by side, in pixels, with theta in words at the right."""
    gap, top, bottom, text = 8, 18, 14 if case.family.ndim == 1 else 0, 150
    total, full = sum(widths) + gap * len(widths) + text, height + top + bottom
    figure = Figure(figsize=(total / DPI, full / DPI), dpi=DPI, facecolor="none")
    FigureCanvasAgg(figure)
    places, left = [], 0
    for width, title in zip(widths, titles, strict=True):
        place = figure.add_axes((left / total, bottom / full, width / total, height / full))
        place.set_facecolor("none")
        place.set_axis_off()
        place.set_title(title, fontsize=8, color=INK, pad=4)
        places.append(place)
        left += width + gap
    figure.text((left + 2) / total, (bottom + height) / full, _in_words(case), fontsize=8, color=INK, va="top")
    return figure, places


def _in_words(case: Case) -> str:
    """theta as text, abbreviated where it is long."""
    values = [_number(v) for v in case.theta[0].tolist()]
    names = theta_names(case.family)
    if len(values) <= 8 and not names[0].startswith("theta"):
        return "\n".join(f"{name}  {value}" for name, value in zip(names, values, strict=True))
    shown = values if len(values) <= 8 else [*values[:8], "…"]
    rows = ["   ".join(shown[i : i + 3]) for i in range(0, len(shown), 3)]
    return "\n".join([f"{len(values)} numbers", *rows])


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def _pixels(image: Tensor) -> np.ndarray:
    pixels: np.ndarray = image[0].clamp(0, 1).movedim(0, -1).numpy()
    return pixels


# Antialiasing


@dataclass
class Shrunk:
    """An image made smaller, three ways."""

    name: str
    image: Tensor  # (1, C, H, W)
    factor: tuple[int, int]

    def __post_init__(self) -> None:
        size = tuple(n // f for n, f in zip(self.image.shape[2:], self.factor, strict=True))
        identity = stn.Affine().identity().reshape(1, 2, 3)
        self.without = stn.warp(self.image, identity, size, padding_mode="border")
        self.with_it = stn.warp(self.image, identity, size, padding_mode="border", antialias=True)
        self.average = F.avg_pool2d(self.image, self.factor)

    def errors(self) -> tuple[float, float]:
        """Root mean square differences from the average, without and with antialiasing."""
        without, with_it = (float((i - self.average).square().mean().sqrt()) for i in (self.without, self.with_it))
        return without, with_it


def zone_plate(size: tuple[int, int]) -> Tensor:
    """cos(r^2), whose frequency along each axis grows from 0 in the middle to that of single pixels at the edge."""
    y, x = (torch.arange(n) + 0.5 - n / 2 for n in size)
    phase = torch.pi * (x.square()[None, :] / size[1] + y.square()[:, None] / size[0])
    return (0.5 + 0.5 * phase.cos())[None, None]


def shrunk() -> list[Shrunk]:
    photo = torch.from_numpy(load_sample_image("china.jpg") / 255.0).float().movedim(-1, 0)[None]
    return [
        Shrunk("zone plate, a quarter", zone_plate((416, 416)), (4, 4)),
        Shrunk("photograph, a quarter", photo[..., 8:424, 20:436], (4, 4)),
        Shrunk("zone plate, an eighth along x", zone_plate((208, 416)), (1, 8)),
        Shrunk("photograph, an eighth along x", photo[..., 100:308, 20:436], (1, 8)),
    ]


def draw_antialiasing(images: list[Shrunk], height: int = 208) -> Figure:
    """A row for each image: what goes in, without, with, and the average."""
    gap, top = 10, 20
    width, total = 4 * (height + gap), len(images) * (height + top)
    figure = Figure(figsize=(width / DPI, total / DPI), dpi=DPI, facecolor="none")
    FigureCanvasAgg(figure)
    for row, image in enumerate(images):
        without, with_it = image.errors()
        columns = [
            (image.image, "input"),
            (image.without, f"without: {without:.3f}"),
            (image.with_it, f"antialias=True: {with_it:.3f}"),
            (image.average, "average of the area"),
        ]
        for column, (shown, title) in enumerate(columns):
            bottom = total - (row + 1) * (height + top)
            place = figure.add_axes(
                (column * (height + gap) / width, bottom / total, height / width, height / total), frameon=False
            )
            smooth = "antialiased" if column == 0 else "nearest"
            place.imshow(_pixels(shown.expand(-1, 3, -1, -1)), interpolation=smooth, aspect="auto")
            place.set_axis_off()
            place.set_title(title, fontsize=8, color=INK, pad=3)
    return figure


def error_table(images: list[Shrunk]) -> str:
    rows = ["| image | without | with | ratio |", "|---|---|---|---|"]
    for image in images:
        without, with_it = image.errors()
        ratio = f"{without / with_it:.1f}" if with_it >= 5e-4 else "exact"
        rows.append(f"| {image.name} | {without:.3f} | {with_it:.3f} | {ratio} |")
    return "\n".join(rows)


# Cost


def measure(families: list[Case], rounds: int = 15) -> dict[str, float]:
    """The time of each 2D family against the first, forward and backward to theta: medians over interleaved rounds."""
    image = torch.rand(8, 3, 128, 128)
    flat = [case for case in families if case.family.ndim == 2]
    ratios: dict[str, list[float]] = {case.title: [] for case in flat}
    for number in range(rounds + 2):
        seconds = {}
        for case in flat:
            theta = case.theta.repeat(8, 1).requires_grad_()
            start = time.perf_counter()
            stn.warp(image, theta, transform=case.family).sum().backward()
            seconds[case.title] = time.perf_counter() - start
        if number >= 2:
            for title, taken in seconds.items():
                ratios[title].append(taken / seconds[flat[0].title])
    return {title: statistics.median(values) for title, values in ratios.items()}


def with_costs(table: str, costs: dict[str, float]) -> str:
    """The table with its last column filled in; a row is known by the title of the section that it links to."""

    def row(line: str) -> str:
        title = re.match(r"\| \[(.+?)\]", line)
        return re.sub(r"[^|]*\|$", f" {costs[title[1]]:.1f} |", line) if title and title[1] in costs else line

    return "\n".join(row(line) for line in table.splitlines())


# Files


def between(text: str, marker: str) -> str:
    """What stands between <!-- marker --> and <!-- /marker -->."""
    found = re.search(rf"<!-- {marker} -->\n(.*?)\n?<!-- /{marker} -->", text, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"marker: expected <!-- {marker} --> and <!-- /{marker} --> in the page, found none")
    return found[1]


def put_between(page: Path, marker: str, content: str) -> None:
    text = page.read_text(encoding="utf-8")
    old = between(text, marker)
    ends = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    write(page, text.replace(f"{ends[0]}{old}", f"{ends[0]}{content}" if old else f"{ends[0]}{content}\n").encode())


def write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def save(figure: Figure, path: Path) -> None:
    """As PNG of 256 colours, a third of the size; the same bytes for the same picture.

    Most colours go to what is opaque, the photographs; the rest to the soft edges of lines and text.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    rgba = Image.open(buffer).convert("RGBA")
    opaque = np.asarray(rgba)[..., 3] == 255
    rgb = Image.fromarray(np.where(opaque[..., None], np.asarray(rgba)[..., :3], 0))
    photo = rgb.quantize(SOLID, method=Image.Quantize.MEDIANCUT)
    edges = Image.fromarray(np.where(opaque[..., None], 0, np.asarray(rgba)))
    soft = edges.quantize(256 - SOLID, method=Image.Quantize.FASTOCTREE)
    colors = [
        np.array(photo.getpalette()[: 3 * SOLID]).reshape(-1, 3),
        np.array(soft.getpalette("RGBA")).reshape(-1, 4),
    ]
    palette = np.zeros((256, 4), np.uint8)
    palette[: len(colors[0])] = np.pad(colors[0], ((0, 0), (0, 1)), constant_values=255)
    palette[SOLID : SOLID + len(colors[1])] = colors[1]
    small = Image.fromarray(np.where(opaque, np.asarray(photo), np.asarray(soft) + SOLID).astype(np.uint8), "P")
    small.putpalette(palette[:, :3].tobytes())
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True, transparency=palette[:, 3].tobytes())
    write(path, buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the documentation.")
    parser.add_argument("--out", type=Path, default=DOCS / "figures", help="folder of the pictures")
    parser.add_argument("--measure", action="store_true", help="measure the cost of every family, too")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    families = cases(DOCS / "which-transform.md")
    for case in families:
        save(draw(case), arguments.out / f"{case.picture}.png")
    images = shrunk()
    save(draw_antialiasing(images[:2]), arguments.out / "antialiasing-zoom.png")
    save(draw_antialiasing(images[2:]), arguments.out / "antialiasing-squeeze.png")
    put_between(DOCS / "antialiasing.md", "errors", error_table(images))
    if arguments.measure:
        torch.set_num_threads(1)
        page = DOCS / "which-transform.md"
        table = between(page.read_text(encoding="utf-8"), "families")
        put_between(page, "families", with_costs(table, measure(families)))


if __name__ == "__main__":
    main()
