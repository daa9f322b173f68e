"""`stn.accelerate`: torch's time over ours, for calls of every size and for those of known programs.

    python -m benchmarks.accelerate [--threads N] [--seconds S] [--programs]

The two sides take turns in one process, and their best times count. Prints each ratio below 0.97 after a second look of ten
times the length, median and least of what runs natively and of what is left to torch; `--programs` the table of docs/accelerate.md instead.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

import stn

SIZES = {
    2: [(n, c, s) for n, c in ((1, 1), (1, 3), (1, 16), (8, 1), (8, 3), (64, 1)) for s in (1, 3, 8, 12, 16, 28, 64, 160)],
    3: [(n, c, s) for n, c in ((1, 1), (1, 3), (4, 2)) for s in (1, 3, 6, 10, 16, 32)],
}  # fmt: skip
MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection")
LARGEST = 400_000  # numbers of an image
LEAST = 0.97

Call = Callable[[], object]


def calls(image: torch.Tensor, grid: torch.Tensor, **options: object) -> dict[str, Call]:
    kept = image.clone().requires_grad_(), grid.clone().requires_grad_()
    one = torch.ones(*image.shape[:2], *grid.shape[1:-1], dtype=image.dtype)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return F.grid_sample(image, grid, **options)  # type: ignore[arg-type]

    def with_gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(F.grid_sample(*kept, **options), kept, one)  # type: ignore[arg-type]

    return {"forward": forward, "with gradients": with_gradients}


def ratio(call: Call, seconds: float) -> float:
    """Of torch's best time to ours."""
    begun = time.perf_counter()
    call()
    count = max(1, min(50, int(2e-4 / (time.perf_counter() - begun + 1e-9))))
    best = {"ours": float("inf"), "torch": float("inf")}
    while time.perf_counter() - begun < seconds or not all(map(_is_finite, best.values())):
        for who in best:
            acceleration = stn.accelerate() if who == "ours" else None
            for _ in range(4):
                start = time.perf_counter()
                for _ in range(count):
                    call()
                best[who] = min(best[who], time.perf_counter() - start)
            if acceleration is not None:
                acceleration.close()
    return best["torch"] / best["ours"]


def _is_finite(number: float) -> bool:
    return number < float("inf")


def cases() -> Iterator[tuple[str, Call]]:
    for d, mode, padding in itertools.product((2, 3), MODES, PADDINGS):
        for n, c, s in SIZES[d]:
            if (d == 3 and mode == "bicubic") or n * c * s**d > LARGEST:
                continue
            theta = torch.eye(d, d + 1)[None] + 0.1 * torch.randn(n, d, d + 1)
            grid = F.affine_grid(theta, [n, c, *[s] * d], align_corners=False)
            image = torch.randn(n, c, *[s] * d)
            for step, call in calls(image, grid, mode=mode, padding_mode=padding, align_corners=False).items():
                yield f"{n} x {c} x {'x'.join([str(s)] * d)} {mode} {padding}, {step}", call


def programs() -> dict[str, dict[str, Call]]:
    """Calls as known programs make them."""
    volume, velocity = torch.rand(1, 1, 96, 112, 96), torch.rand(1, 3, 48, 56, 48)
    around = F.affine_grid(torch.eye(3, 4)[None], list(volume.shape), align_corners=True)
    within = F.affine_grid(torch.eye(3, 4)[None], list(velocity.shape), align_corners=True)
    digits, theta = torch.rand(64, 1, 28, 28), torch.eye(2, 3)[None].repeat(64, 1, 1) * 0.9
    return {
        "PyTorch's STN tutorial, 64 x 1 x 28x28": calls(
            digits, F.affine_grid(theta, [64, 1, 28, 28], align_corners=False), align_corners=False
        ),
        "deformable attention, 8 x 32 x 100x134, 2000 x 4 points": calls(
            torch.rand(8, 32, 100, 134), torch.rand(8, 2000, 4, 2) * 2 - 1, align_corners=False
        ),
        "optical flow, features 2 x 64 x 55x128": calls(
            torch.rand(2, 64, 55, 128), torch.rand(2, 55, 128, 2) * 2 - 1, align_corners=True
        ),
        "RAFT's look-up, 512 x 1 x 24x32, 9 x 9 points": calls(
            torch.rand(512, 1, 24, 32), torch.rand(512, 9, 9, 2) * 2 - 1, align_corners=True
        ),
        "voxelmorph, 96x112x96": calls(volume, around + 0.02 * torch.randn_like(around), align_corners=True),
        "velocity field, 3 x 48x56x48": calls(velocity, within + 0.02 * torch.randn_like(within), align_corners=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.02, help="for each call")
    parser.add_argument("--programs", action="store_true", help="those of known programs, as a table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.programs:
        print("| call | forward | with gradients |\n|---|---|---|")
        for name, both in programs().items():
            print(f"| {name} | {' | '.join(f'{ratio(call, 50 * arguments.seconds):.2f}' for call in both.values())} |")
        return
    found = []
    for name, call in cases():
        once = ratio(call, arguments.seconds)
        if once < LEAST:
            once = ratio(call, 10 * arguments.seconds)
        with stn.accelerate() as acceleration:
            call()
        native = acceleration.calls.native > 0
        if once < LEAST:
            print(f"{once:.2f}  {name}{'' if native else ': torch, twice'}", flush=True)
        found.append((once, native))
    for who, wanted in (("run natively", True), ("are left to torch", False)):
        ratios = [ratio for ratio, native in found if native == wanted]
        print(f"{len(ratios)} calls {who}: median {statistics.median(ratios):.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
