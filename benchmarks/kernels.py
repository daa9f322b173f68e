"""Splines, Lanczos' and Keys' kernels against SciPy and torch-interpol, side by side in one process.

    python -m benchmarks.kernels [--threads N] [--seconds S] [--only NAME] [--docs docs/benchmarks.md]

The image is turned, scaled and moved. SciPy reads each plane of it, forward alone; torch-interpol (`pip install
torch-interpol`) the same coordinates as a grid, made anew each time, with both gradients. Before a case is timed its values
are compared with SciPy's away from the border, and with torch-interpol's. Ratios are those of the best times of rounds
that take turns, with one thread of the processor's time.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stn

from .cases import thetas
from .run import processor

MARKERS = "<!-- benchmarks.kernels: begin -->", "<!-- benchmarks.kernels: end -->"
SHAPES = {
    "8,3,256,256 -> 128,128": ((8, 3, 256, 256), (128, 128)),
    "8,3,224,224": ((8, 3, 224, 224), (224, 224)),
    "64,1,28,28": ((64, 1, 28, 28), (28, 28)),
    "1,3,1080,1920": ((1, 3, 1080, 1920), (1080, 1920)),
    "1,2,64,64,64": ((1, 2, 64, 64, 64), (64, 64, 64)),
}
MODES = {
    "bspline2": 2,
    "bspline3": 3,
    "bspline4": 4,
    "bspline5": 5,
    "lanczos3": 0,
    "cubic(-0.5)": 0,
    "integer": 0,
}  # the order of the spline, which the peers have
LARGE, FEW = ("1,3,1080,1920", "1,2,64,64,64"), ("bspline3", "lanczos3")  # torch-interpol takes seconds there


def measure(rivals: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Milliseconds, the best of functions run in turns; with one thread those of the processor, which others do not prolong."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(rivals, float("inf"))
    begun, rounds = time.perf_counter(), 0
    while rounds < 4 or (time.perf_counter() - begun < seconds and rounds < 1000):
        for name, run in rivals.items():
            repeats = 1 if best[name] > 2 else 10  # the clock counts in steps
            start = clock()
            for _ in range(repeats):
                run()
            best[name] = min(best[name], 1e3 * (clock() - start) / repeats)
        rounds += 1
    return best


def scipy(image: Tensor, theta: Tensor, size: tuple[int, ...], order: int) -> Callable[[], list[np.ndarray]]:
    ndimage = importlib.import_module("scipy.ndimage")
    pixel = stn.conventions.theta_to_pixel(theta, tuple(image.shape[2:]), size).double().numpy()
    planes, d = image.numpy(), len(size)
    flips, offsets = [np.flip(m[:, :d]) for m in pixel], [m[::-1, d] for m in pixel]
    return lambda: [
        ndimage.affine_transform(plane, flips[b], offsets[b], size, order=order)
        for b, planes_of_one in enumerate(planes)
        for plane in planes_of_one
    ]


def interpol(size: tuple[int, ...], order: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    try:
        module: Any = importlib.import_module("interpol")
    except ImportError:
        return None

    def warp(image: Tensor, theta: Tensor) -> Tensor:
        grid = stn.transforms.affine_grid(theta, size)
        voxels = stn.conventions.normalized_to_pixel(grid, tuple(image.shape[2:])).flip(-1)
        out: Tensor = module.grid_pull(
            image, voxels, interpolation=order, bound="dct2", extrapolate=True, prefilter=True
        )
        return out

    return warp


def both(warp: Callable[[Tensor, Tensor], Tensor], image: Tensor, theta: Tensor, cotangent: Tensor) -> object:
    i, t = image.detach().requires_grad_(), theta.detach().requires_grad_()
    return torch.autograd.grad(warp(i, t), (i, t), cotangent)


def run_case(shape: tuple[int, ...], size: tuple[int, ...], name: str, seconds: float) -> dict[str, float]:
    """Milliseconds of everybody, by whom and what; "linear" is our linear warp."""
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    theta, order = thetas(shape[0], len(size)), MODES[name]
    mode: Any = stn.kernels.cubic(-0.5) if name.startswith("cubic") else name
    cotangent = torch.randn(*shape[:2], *size, generator=torch.Generator().manual_seed(2))

    def ours(i: Tensor, t: Tensor) -> Tensor:
        return stn.warp(i, t, size, mode=mode, padding_mode="reflection")

    def linear(i: Tensor, t: Tensor) -> Tensor:
        return stn.warp(i, t, size, padding_mode="reflection")

    forward: dict[str, Callable[[], object]] = {
        "stn": lambda: ours(image, theta),
        "linear": lambda: linear(image, theta),
    }
    backward: dict[str, Callable[[], object]] = {
        "stn": lambda: both(ours, image, theta, cotangent),
        "linear": lambda: both(linear, image, theta, cotangent),
    }
    if order:
        out, planes = ours(image, theta), scipy(image, theta, size, order)
        middle = (Ellipsis, *[slice(n // 3, 2 * n // 3) for n in size])
        off = np.abs(np.stack(planes()).reshape(out.shape)[middle] - out.numpy()[middle]).max()
        if not off < 1e-3:
            raise SystemExit(f"{name}: differs from SciPy by {off:.2g}; nothing is timed")
        forward["SciPy"] = planes
        peer = interpol(size, order)
        if peer is not None:
            off = float((peer(image, theta) - out).abs().max())
            if not off < 1e-2:
                raise SystemExit(f"{name}: differs from torch-interpol by {off:.2g}; nothing is timed")
            forward["torch-interpol"] = lambda: peer(image, theta)
            backward["torch-interpol"] = lambda: both(peer, image, theta, cotangent)
    with torch.no_grad():
        times = {f"{who}, forward": t for who, t in measure(forward, seconds).items()}
    return times | {f"{who}, both": t for who, t in measure(backward, seconds).items()}


def row(case: str, name: str, times: dict[str, float]) -> str:
    def ratio(who: str, step: str) -> str:
        other = times.get(f"{who}, {step}")
        return "-" if other is None else f"{other / times[f'stn, {step}']:.1f}"

    ours = f"{times['stn, forward']:.3g} / {times['stn, both']:.3g}"
    linear = " / ".join(f"{times[f'stn, {step}'] / times[f'linear, {step}']:.1f}" for step in ("forward", "both"))
    peers = (ratio("SciPy", "forward"), ratio("torch-interpol", "forward"), ratio("torch-interpol", "both"))
    return f"| {case} | {name} | {ours} | {linear} | {' | '.join(peers)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each step of a case")
    parser.add_argument("--only", help="kernels whose name contains this")
    parser.add_argument("--docs", type=Path, help="write the table between the markers of this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = [
        "| image -> out | kernel | ms, forward / with both gradients | over linear | SciPy / stn, forward | torch-interpol / stn, forward | with both gradients |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, (shape, size) in SHAPES.items():
        for name in MODES:
            if (name in FEW or case not in LARGE) and (arguments.only is None or arguments.only in name):
                lines.append(row(case, name, run_case(shape, size, name, arguments.seconds)))
                print(lines[-1], flush=True)
    seen = []
    for package in ("torch", "scipy", "torch-interpol"):
        try:
            seen.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            seen.append(f"no {package}")
    threads = f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''} (SciPy has one)"
    lines += ["", f"{processor()}, {threads}; {', '.join(seen)}."]
    if arguments.docs:
        text = arguments.docs.read_text()
        begin, end = (text.index(m) for m in MARKERS)
        arguments.docs.write_text(text[: begin + len(MARKERS[0])] + "\n" + "\n".join(lines) + "\n" + text[end:])
    else:
        sys.stdout.write("\n".join(lines[-2:]) + "\n")


if __name__ == "__main__":
    main()
