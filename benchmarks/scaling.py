"""How the time of a warp grows with the image, the batch, the channels, the threads and the control points.

    python -m benchmarks.scaling [--seconds S] [--json FILE] [--docs docs/benchmarks.md]

Ours, torch's and a copy of the output into memory that is there take turns in one process, forward alone; best times.
With `--docs` the curves go to figures/scaling.png beside the page, and what they say between its markers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from stn.viz import FIRST, INK, SECOND
from stn.viz.style import new_figure, style_axes

from .cases import Case, build
from .run import measure, processor, versions

MARKERS = "<!-- benchmarks.scaling: begin -->", "<!-- benchmarks.scaling: end -->"
COLORS = {"stn": FIRST, "torch": SECOND, "copy": INK}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Cases of which one number grows."""

    name: str  # of the number
    cases: dict[int, Case]
    threads: bool = False  # the number is that of threads


def curves(threads: int) -> list[Curve]:
    photos = Case("", (64, 3, 224, 224))
    return [
        Curve("side in pixels (1 image, 3 channels)", {n: Case("", (1, 3, n, n)) for n in (16, 32, 64, 128, 256, 512, 1024, 2048)}),
        Curve("images (3 channels, 64 x 64)", {n: Case("", (n, 3, 64, 64)) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)}),
        Curve("channels (1 image, 128 x 128)", {n: Case("", (1, n, 128, 128)) for n in (1, 2, 3, 4, 8, 16, 32, 64, 128, 256)}),
        Curve("control points (8 images, 3 channels, 128 x 128)", {n * n: Case("", (8, 3, 128, 128), kind="tps", points=n) for n in (2, 3, 4, 5, 7, 10, 14, 20)}),
        Curve("threads (64 images, 3 channels, 224 x 224)", dict.fromkeys(range(1, threads + 1), photos), threads=True),
    ]  # fmt: skip


def measured(curve: Curve, seconds: float) -> dict[int, dict[str, float]]:
    """Best milliseconds by the number that grows, and by who warps."""
    found = {}
    for n, case in curve.cases.items():
        if curve.threads:
            torch.set_num_threads(n)
        with torch.no_grad():
            image, theta, ours, torchs = build(case)
            out = ours(image, theta)
            error = float((out - torchs(image, theta)).abs().max())
            if not error < 5e-3:
                raise SystemExit(f"{curve.name}, {n}: differs from torch by {error:.2g}; nothing is timed")
            into = torch.empty_like(out)
            times = measure(
                {"stn": lambda: ours(image, theta), "torch": lambda: torchs(image, theta), "copy": lambda: into.copy_(out)},
                seconds,
            )  # fmt: skip
        found[n] = {name: time["best"] for name, time in times.items()}
        print(f"{curve.name}, {n}:", *(f"{name} {time:.4g} ms" for name, time in found[n].items()), flush=True)
    return found


def growth(times: dict[int, dict[str, float]], name: str) -> float:
    """The exponent of the growth between the last number and the first that is at most a quarter of it."""
    last = max(times)
    first = max((n for n in times if 4 * n <= last), default=min(times))
    return math.log(times[last][name] / times[first][name]) / math.log(last / first)


def picture(found: dict[str, dict[int, dict[str, float]]], file: Path) -> None:
    figure, axes = new_figure(3.2 * len(found), 3.0, 1, len(found))
    for ax, (name, times) in zip(axes[0], found.items(), strict=True):
        for who, color in COLORS.items():
            ax.loglog(list(times), [time[who] for time in times.values()], "o-", color=color, label=who, markersize=3)
        style_axes(ax)
        title, _, what = name.partition(" (")
        ax.set_xlabel(f"{title}\n({what}", color=INK)
        ax.tick_params(colors=INK, which="both")
        if len(times) < 5:
            ax.set_xticks(list(times), [str(n) for n in times])
            ax.minorticks_off()
    axes[0, 0].set_ylabel("milliseconds", color=INK)
    axes[0, 0].legend(frameon=False, labelcolor=INK)
    part = file.with_suffix(".part")
    figure.savefig(part, format="png", dpi=100)
    part.replace(file)


def table(result: dict[str, Any]) -> str:
    lines = ["| what grows | from -> to | stn, ms | torch, ms | copy, ms | exponent at the end, stn / torch |", "|---|---|---|---|---|---|"]  # fmt: skip
    for name, times in result["curves"].items():
        ends = min(times), max(times)
        cells = [" -> ".join(f"{times[n][who]:.3g}" for n in ends) for who in COLORS]
        exponents = " / ".join(f"{growth(times, who):.2f}" for who in ("stn", "torch"))
        lines.append(f"| {name} | {ends[0]} -> {ends[1]} | {' | '.join(cells)} | {exponents} |")
    seen = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([*lines, "", f"{result['processor']}, {result['threads']} threads but for the last row; {seen}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="up to so many")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each point of a curve")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, help="write the table between the markers of this file, and the picture")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {curve.name: measured(curve, arguments.seconds) for curve in curves(arguments.threads)}
    result = {"processor": processor(), "threads": arguments.threads, "versions": versions(), "curves": found}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.docs:
        text = arguments.docs.read_text()
        begin, end = (text.index(mark) for mark in MARKERS)
        picture(found, arguments.docs.parent / "figures" / "scaling.png")
        arguments.docs.write_text(text[: begin + len(MARKERS[0])] + "\n" + table(result) + "\n" + text[end:])
    else:
        print(table(result))


if __name__ == "__main__":
    main()
