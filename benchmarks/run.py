"""Our warps against torch and whatever else is installed, side by side in one process.

    python -m benchmarks.run [--quick] [--threads N] [--seconds S] [--json FILE] [--docs docs/benchmarks.md]

Before a case is timed its result is compared with torch's and the kernels' gradients with the reference; a wrong one
stops the run. Rounds are interleaved, in alternating order, after a warm-up; the ratio is that of the best times.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stn
from stn.ops import use_backend

from .cases import CASES, QUICK, Case, Warp, build

STEPS = ("forward", "to theta", "to theta and image")
MARKERS = "<!-- benchmarks.run: begin -->", "<!-- benchmarks.run: end -->"


def check_kernels() -> None:
    """The first kernel against the reference, on every kind of case, forward and both gradients."""
    for shape, mode, padding_mode in (
        ((2, 3, 20, 33), "bilinear", "zeros"), ((2, 1, 40, 41), "bicubic", "border"), ((1, 17, 12, 9), "bilinear", "zeros"),
        ((1, 2, 6, 20, 21), "bilinear", "reflection"),
    ):  # fmt: skip
        image = torch.rand(shape)
        d = len(shape) - 2
        theta = torch.eye(d, d + 1).repeat(shape[0], 1, 1) + 0.1 * torch.randn(shape[0], d, d + 1)
        results = []
        for backend in (None, "reference"):
            dtype = torch.float32 if backend is None else torch.float64
            inputs = [t.to(dtype, copy=True).requires_grad_() for t in (image, theta)]
            if backend is None:
                out = stn.warp(*inputs, mode=mode, padding_mode=padding_mode)  # type: ignore[arg-type]
            else:
                with use_backend(backend):
                    out = stn.warp(*inputs, mode=mode, padding_mode=padding_mode)  # type: ignore[arg-type]
            results.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
        for ours, truth in zip(*results, strict=True):
            torch.testing.assert_close(ours.double(), truth, rtol=1e-3, atol=1e-3)


def steps(image: Tensor, theta: Tensor, warp: Warp, cotangent: Tensor) -> list[Callable[[], object]]:
    def forward() -> object:
        with torch.no_grad():
            return warp(image, theta)

    def backward(with_image: bool) -> object:
        i, t = image.detach().requires_grad_(with_image), theta.detach().requires_grad_()
        warp(i, t).backward(cotangent)
        return i, t

    return [forward, lambda: backward(False), lambda: backward(True)]


def measure(rivals: dict[str, Callable[[], object]], seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds, best and median, of functions run in turns."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for run in rivals.values():
        run()
    begun, order = time.perf_counter(), list(rivals.items())
    while len(times[order[0][0]]) < 5 or (time.perf_counter() - begun < seconds and len(times[order[0][0]]) < 1000):
        for name, run in order:
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
        order.reverse()
    return {name: {"best": min(t), "median": statistics.median(t)} for name, t in times.items()}


def peers(case: Case, image: Tensor, theta: Tensor) -> dict[str, Callable[[], object]]:
    """Forward only, those that are installed and have the case; each is given its images in its own layout."""
    found: dict[str, Callable[[], object]] = {}
    if case.kind != "affine" or case.dtype != torch.float32 or case.mode != "bilinear" or len(case.shape) != 4:
        return found
    batch, channels, height, width = case.shape
    pixel = stn.conventions.theta_to_pixel(theta, (height, width), case.out).numpy()
    if channels in (1, 3):
        try:
            cv2 = importlib.import_module("cv2")
            images = [np.ascontiguousarray(i) for i in image.permute(0, 2, 3, 1).numpy()]
            cv2.setNumThreads(torch.get_num_threads())
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            found["OpenCV"] = lambda: [
                cv2.warpAffine(i, m, case.out[::-1], flags=flags) for i, m in zip(images, pixel, strict=True)
            ]
        except ImportError:
            pass
    try:
        kornia = importlib.import_module("kornia.geometry.transform")
        push = stn.conventions.theta_to_pixel(stn.geometry.invert_matrix(theta), case.out, (height, width))
        found["kornia"] = lambda: kornia.warp_affine(image, push, case.out, align_corners=False)
    except ImportError:
        pass
    if image.numel() < 1_000_000:
        try:
            ndimage = importlib.import_module("scipy.ndimage")
            arrays, flips = image.numpy(), [np.flip(m[:, :2]) for m in pixel]
            offsets = [m[::-1, 2] for m in pixel]
            found["SciPy"] = lambda: [
                ndimage.affine_transform(arrays[b, c], flips[b], offsets[b], case.out, order=1)
                for b in range(batch)
                for c in range(channels)
            ]
        except ImportError:
            pass
    try:
        jax = importlib.import_module("jax")
        scipy = importlib.import_module("jax.scipy.ndimage")
        y, x = np.mgrid[: case.out[0], : case.out[1]].astype(np.float32)
        points = np.stack([x, y, np.ones_like(x)])
        read = jax.vmap(jax.vmap(lambda i, p: scipy.map_coordinates(i, [p[1], p[0]], order=1), (0, None)))
        run = jax.jit(lambda i, m: read(i, jax.numpy.einsum("bij,jhw->bihw", m, points)))
        there, matrix = jax.numpy.asarray(image.numpy()), jax.numpy.asarray(pixel)
        found["JAX"] = lambda: run(there, matrix).block_until_ready()
    except ImportError:
        pass
    return found


def peak(run: Callable[[], object]) -> float:
    """MiB of this process that `run` needs at its peak, above what it had before; NaN where the system does not say."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not reset.exists():
        return float("nan")

    def kilobytes(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    ctypes.CDLL(None).malloc_trim(0)  # what was freed, but kept, would hide what is taken
    reset.write_text("5")  # the peak starts anew
    before = kilobytes("VmRSS")
    kept = run()
    most = kilobytes("VmHWM") - before
    del kept
    return most / 1024


def run_case(case: Case, seconds: float, compiled: bool) -> dict[str, Any]:
    image, theta, ours, torchs = build(case)
    with torch.no_grad():
        a, b = ours(image, theta), torchs(image.float(), theta)
    error = float((a.float() - b).abs().max())
    if not error < (2e-2 if case.dtype == torch.bfloat16 else 5e-3):
        raise SystemExit(f"{case.name}: differs from torch by {error:.2g}; nothing is timed")
    cotangent = torch.randn(a.shape, generator=torch.Generator().manual_seed(2)).to(a.dtype)
    if case.channels_last:
        cotangent = cotangent.contiguous(memory_format=torch.channels_last)
    row: dict[str, Any] = {"case": case.name, "bars": case.bars, "error": error, "steps": {}}
    rivals = {"stn": steps(image, theta, ours, cotangent), "torch": steps(image, theta, torchs, cotangent)}
    if compiled:
        rivals["torch.compile"] = steps(image, theta, torch.compile(torchs), cotangent)
    target = torch.empty_like(a)
    for k, step in enumerate(STEPS):
        runs = {name: calls[k] for name, calls in rivals.items()}
        if k == 0:
            runs |= {"copy": lambda: target.copy_(cotangent), **peers(case, image, theta)}
        row["steps"][step] = measure(runs, seconds)
        row["steps"][step]["peak MiB"] = {name: peak(runs[name]) for name in ("stn", "torch")}
    return row


def table(result: dict[str, Any]) -> str:
    """Ratios to torch, best against best; bold where the bar is missed, which is a loss."""
    lines = [
        "| image -> out | forward | to theta | to theta and image | ms, torch -> stn | stn forward / copy | peak MiB, torch -> stn (forward / to theta / to both) | faster than stn, forward |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["cases"]:
        ratios, times, memory = [], [], []
        for step, bar in zip(STEPS, row["bars"], strict=True):
            best = {name: t["best"] for name, t in row["steps"][step].items() if name != "peak MiB"}
            ratio = best["torch"] / best["stn"]
            ratios.append(f"{ratio:.1f}" if ratio >= bar else f"**{ratio:.1f}** (bar {bar:g})")
            times.append(f"{best['torch']:.3g} -> {best['stn']:.3g}")
            memory.append("{torch:.0f} -> {stn:.0f}".format(**row["steps"][step]["peak MiB"]))
        forward = {n: t["best"] for n, t in row["steps"]["forward"].items() if n != "peak MiB"}
        faster = [
            f"{n} {forward['stn'] / t:.1f}x"
            for n, t in forward.items()
            if n not in ("stn", "copy") and t < forward["stn"]
        ]
        lines.append(
            f"| {row['case']} | {' | '.join(ratios)} | {' / '.join(times)} | {forward['stn'] / forward['copy']:.1f} | {' / '.join(memory)} | {', '.join(faster) or 'none'} |"
        )
    machine = result["machine"]
    seen = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += [
        "",
        f"Ratio to torch eager, best of interleaved rounds; bold: below the bar. {machine['processor']}, {machine['threads']} threads, "
        f"backend `{machine['backend']}`, load {machine['load']:.1f} at the start; {seen}.",
    ]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    names = {
        "python": None,
        "torch": "torch",
        "numpy": "numpy",
        "kornia": "kornia",
        "OpenCV": "opencv-python-headless",
        "SciPy": "scipy",
        "JAX": "jax",
    }
    found = {}
    for name, package in names.items():
        try:
            found[name] = platform.python_version() if package is None else importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four small cases, short rounds")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, help="for each step of a case (1, or 0.2 with --quick)")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, help="write the table between the markers of this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    seconds = arguments.seconds or (0.2 if arguments.quick else 1.0)
    try:
        check_kernels()
    except AssertionError as error:
        raise SystemExit(f"a kernel is wrong, nothing is timed: {error}") from error
    load = float(Path("/proc/loadavg").read_text().split()[0]) if Path("/proc/loadavg").exists() else float("nan")
    result: dict[str, Any] = {
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "backend": stn.ops.which_backend(2),
            "load": load,
        },
        "versions": versions(),
        "cases": [],
    }
    for case in CASES:
        if (arguments.quick and case.name not in QUICK) or (arguments.only and arguments.only not in case.name):
            continue
        row = run_case(case, seconds, arguments.compiled)
        result["cases"].append(row)
        print(f"{case.name:30s}", *(f"{row['steps'][s]['torch']['best'] / row['steps'][s]['stn']['best']:5.2f} (bar {b:g})" for s, b in zip(STEPS, case.bars, strict=True)), flush=True)  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.docs:
        text = arguments.docs.read_text()
        begin, end = (text.index(m) for m in MARKERS)
        arguments.docs.write_text(text[: begin + len(MARKERS[0])] + "\n" + table(result) + "\n" + text[end:])
    else:
        sys.stdout.write(table(result) + "\n")


if __name__ == "__main__":
    main()
