"""Warps of uint8 images against OpenCV's own, side by side in one process.

    python -m benchmarks.uint8 [--threads N] [--seconds S] [--only NAME] [--json FILE]

OpenCV is given rows of interleaved channels and we the same memory, as channels-last and, copied once, plane by plane.
Where OpenCV interpolates it rounds positions to 1/32 of a pixel and weights to 15 bits; ours are float32 and exact up to
the last rounding. Before a case is timed the two are compared on a smooth image. Rounds are interleaved; the ratio is
that of the best times, above 1 where ours is faster.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stn
from stn.ops import cpu

from .run import measure, processor, versions

KINDS = ("affine", "projective", "grid")
MODES = ("nearest", "bilinear", "bicubic")
SIZES = ((28, 28), (224, 224), (480, 640), (1080, 1920))
CHANNELS = (1, 3, 4)


def warp(image: Tensor, coordinates: Tensor, kind: str, mode: str) -> Tensor:
    """(1, C, H, W) of uint8 to the same size, zeros beyond."""
    read = stn.sample if kind == "grid" else stn.warp
    return read(image, coordinates, mode=mode)  # type: ignore[arg-type]


def smooth(size: tuple[int, int], channels: int) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    waves = [127.5 + 100 * np.sin(x / 17 + c) * np.cos(y / 23 - c) for c in range(channels)]
    return np.stack(waves, -1).round().astype(np.uint8)


def rivals(size: tuple[int, int], channels: int, kind: str, mode: str) -> dict[str, Callable[[], Any]]:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(torch.get_num_threads())
    cos, sin = 0.9 * math.cos(0.3), 0.9 * math.sin(0.3)
    matrix = torch.tensor([[[cos, -sin, 0.02], [sin, cos, -0.03]]])
    if kind == "projective":
        matrix = torch.cat([matrix, torch.tensor([[[0.05, -0.04, 1.0]]])], 1)
    pixel = stn.conventions.theta_to_pixel(matrix, size, size)[0].numpy().astype(np.float64)
    height, width = size
    array = smooth(size, channels)
    flags = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[mode]
    last = torch.from_numpy(array)[None].movedim(-1, 1)
    coordinates = matrix
    if kind == "grid":
        y, x = np.mgrid[:height, :width].astype(np.float64)
        points = np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
        maps = (pixel @ points).reshape(2, height, width)
        map_x, map_y = (np.ascontiguousarray(m.astype(np.float32)) for m in maps)
        scale = np.array([2 / width, 2 / height])
        coordinates = torch.from_numpy((np.stack(maps, -1) * scale + scale / 2 - 1).astype(np.float32))[None]
        opencv: Callable[[], Any] = lambda: cv2.remap(array, map_x, map_y, flags)  # noqa: E731
    elif kind == "projective":
        opencv = lambda: cv2.warpPerspective(array, pixel, (width, height), flags=flags | cv2.WARP_INVERSE_MAP)  # noqa: E731
    else:
        opencv = lambda: cv2.warpAffine(array, pixel, (width, height), flags=flags | cv2.WARP_INVERSE_MAP)  # noqa: E731
    planes = last.contiguous()
    return {
        "OpenCV": opencv,
        "channels-last": lambda: warp(last, coordinates, kind, mode),
        "planes": lambda: warp(planes, coordinates, kind, mode),
    }


def check(runs: dict[str, Callable[[], Any]], channels: int, mode: str) -> float:
    """Largest difference of the two away from the border, in steps of 1/255."""
    theirs = runs["OpenCV"]().reshape(*runs["planes"]().shape[2:], channels).astype(int)
    worst = 0.0
    for name in ("channels-last", "planes"):
        ours = runs[name]()[0].movedim(0, -1).numpy().astype(int)
        inside = (ours > 0) & (theirs > 0)  # at the border the two blend into 0 at positions that differ by 1/32
        worst = max(worst, float(np.quantile(np.abs(ours - theirs)[inside], 0.99)))
    if worst > (8 if mode == "nearest" else 2):
        raise SystemExit(f"differs from OpenCV by {worst}; nothing is timed")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.3, help="for each case")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if cpu._reason is not None:
        raise SystemExit(f"the native backend is missing: {cpu._reason}")
    torch.set_num_threads(arguments.threads)
    rows = []
    print("OpenCV's time / ours, best against best")
    print(f"{'':36s} {'OpenCV ms':>10s} {'channels-last':>14s} {'planes':>8s}")
    for kind in KINDS:
        for mode in MODES:
            for size in SIZES:
                for channels in CHANNELS:
                    name = f"{kind}, {mode}, {size[0]}x{size[1]}x{channels}"
                    if arguments.only not in name:
                        continue
                    runs = rivals(size, channels, kind, mode)
                    error = check(runs, channels, mode)
                    times = {n: t["best"] for n, t in measure(runs, arguments.seconds).items()}
                    rows.append({"case": name, "error": error, "ms": times})
                    ratios = [times["OpenCV"] / times[n] for n in ("channels-last", "planes")]
                    print(f"{name:36s} {times['OpenCV']:10.3f} {ratios[0]:14.2f} {ratios[1]:8.2f}", flush=True)
    machine = {
        "processor": processor(),
        "threads": arguments.threads,
        "instruction set": cpu._native.instruction_set(),
    }
    print(f"{machine['processor']}, {arguments.threads} threads, {machine['instruction set']}")
    if arguments.json:
        text = json.dumps({"machine": machine, "versions": versions(), "cases": rows}, indent=1) + "\n"
        part = arguments.json.with_suffix(".part")
        part.write_text(text)
        part.replace(arguments.json)


if __name__ == "__main__":
    main()
