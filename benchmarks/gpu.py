"""Whether the backends of a GPU are right, and how fast they are: one command of about ten minutes, one file to send.

    python -m benchmarks.gpu [--json FILE] [--seconds S] [--cases N] [--device cuda]

First N small random cases are compared with the reference, values and both gradients; a wrong one stops the run. Then every
case of `benchmarks.cases` is timed beside torch's own operations, and beside the time that its bytes take: the image read
once and the output written once at the speed of a copy of the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

import stn
from stn.ops import check, which_backend

from .cases import CASES, Case, build
from .run import STEPS, processor, steps, versions

BARS = (2.0, 3.0, 2.0)  # wanted ratios to torch: forward, to theta, to theta and image
FLOOR = 1.3  # wanted of the forward pass of 64,3,224,224: its time over that of its bytes


def best(run: Callable[[], object], seconds: float) -> float:
    """Milliseconds; the timer waits for the device."""
    return 1e3 * min(Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=seconds).times)


def run_case(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    image, theta, ours, torchs = build(case, device)
    with torch.no_grad():
        a, b = ours(image, theta), torchs(image.float(), theta)
    error = float((a.float() - b).abs().max())
    if not error < (2e-2 if case.dtype == torch.bfloat16 else 5e-3):
        raise SystemExit(f"{case.name}: differs from torch by {error:.2g}; nothing is timed")
    cotangent = torch.randn(a.shape, generator=torch.Generator().manual_seed(2)).to(a)
    rivals = {"stn": steps(image, theta, ours, cotangent), "torch": steps(image, theta, torchs, cotangent)}
    row: dict[str, Any] = {"case": case.name, "error": error, "steps": {}}
    for k, step in enumerate(STEPS):
        row["steps"][step] = {name: best(runs[k], seconds) for name, runs in rivals.items()}
    copy = best(lambda: a.copy_(cotangent), seconds)
    row["bytes"] = copy * (image.nbytes + a.nbytes) / (2 * a.nbytes)
    return row


def said(row: dict[str, Any]) -> str:
    """One line of it; ! where a bar is missed."""
    ratios = [times["torch"] / times["stn"] for times in row["steps"].values()]
    words = [f"{ratio:5.2f}{' ' if ratio >= bar else '!'}" for ratio, bar in zip(ratios, BARS, strict=True)]
    over = row["steps"]["forward"]["stn"] / row["bytes"]
    missed = "!" if row["case"] == "64,3,224,224" and over > FLOOR else ""
    return f"{row['case']:30s} {' '.join(words)}  forward {over:.2f}{missed} times its bytes"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each step of a case and each rival")
    parser.add_argument("--cases", type=int, default=1000, help="small ones, compared with the reference")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--device", default="cuda", help="cpu, to try the command")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU that this torch can use")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{card}; float32 by {which_backend(2, device=device)}")
    checked = check(arguments.cases)
    for name, found in checked.items():
        print(f"{name}: {found.cases} cases, {len(found.wrong)} wrong, off by {found.largest:.1e} at most")
    wrong = [f"{name}: {case}" for name, found in checked.items() for case in found.wrong]
    result = {"device": card, "versions": versions(), "stn": stn.__version__, "wrong": wrong}
    result["cases"] = cases = []
    if not wrong:
        for case in CASES:
            if arguments.only is None or arguments.only in case.name:
                row = run_case(case, device, arguments.seconds)
                cases.append(row)
                print(said(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if wrong:
        sys.exit("\n".join(["a backend is wrong, nothing is timed:", *wrong]))


if __name__ == "__main__":
    main()
