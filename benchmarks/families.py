"""CPAB, whose pixels go from cell to cell each on a path of its own, beside an affine warp of the same images.

    python -m benchmarks.families [--rounds N]

Forward, and with the gradient of theta, lattice and reading included, on one thread. Times are the processor's, the least of
interleaved rounds, so that what else runs counts less. Exact paths are compared with many steps before they are timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import stn

from .run import steps

# The image, a family, and the spread of its theta.
CASES = (
    ((8, 3, 128, 128), stn.CPAB((3, 3)), 0.45),
    ((8, 3, 128, 128), stn.CPAB((3, 3)), 1.0),
    ((8, 3, 128, 128), stn.CPAB((4, 4)), 0.45),
    ((8, 3, 128, 128), stn.CPAB((4, 4), zero_boundary=False), 0.45),
    ((2, 1, 64, 64, 64), stn.CPAB((2, 2, 2)), 0.45),
)


def best(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Milliseconds of processor time of each, the least of rounds in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for each, call in zip(times, calls, strict=True):
            begun = time.process_time()
            call()
            each.append(1e3 * (time.process_time() - begun))
    return [min(each[1:]) for each in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| image | family | theta | forward, ms | / affine | to theta, ms | / affine |\n|---|---|---|---|---|---|---|"
    )
    for shape, family, spread in CASES:
        torch.manual_seed(0)
        image, cotangent = torch.rand(shape), torch.randn(shape)
        calls = []
        for transform, scale in ((stn.Affine(len(shape) - 2), 0.05), (family, spread)):
            theta = transform.identity() + scale * torch.randn(shape[0], transform.num_params)
            calls.append(steps(image, theta, lambda i, t, f=transform: stn.warp(i, t, transform=f), cotangent))
        few, many = theta[:1], stn.CPAB(family.tessellation, zero_boundary=family.zero_boundary, steps=100)
        size = tuple(12 for _ in shape[2:])
        torch.testing.assert_close(family.grid(few, size), many.grid(few, size), rtol=0, atol=1e-3)
        row = f"| {','.join(map(str, shape))} | {family} | {spread} |"
        for step in range(2):
            theirs, ours = best([each[step] for each in calls], arguments.rounds)
            row += f" {ours:.2f} | {ours / theirs:.1f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
