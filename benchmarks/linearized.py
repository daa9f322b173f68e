"""Linearized multi-sampling beside a plain linear warp, forward and to theta.

    python -m benchmarks.linearized [--rounds N]

On one thread; times are the processor's, the least of interleaved rounds. By torch is what runs where no native code can: the same
call under `use_backend("aten")`, which reads by torch's own `grid_sample`.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import stn
from stn.ops import use_backend

from .cases import thetas
from .families import best
from .run import steps

# The image, the output's size, samples.
CASES = (
    ((8, 3, 256, 256), (128, 128), 8),
    ((8, 3, 128, 128), (128, 128), 8),
    ((8, 3, 128, 128), (128, 128), 32),
    ((64, 1, 28, 28), (28, 28), 8),
    ((8, 64, 56, 56), (56, 56), 8),
    ((2, 1, 64, 64, 64), (64, 64, 64), 8),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| image -> output | samples | warp, ms | linearized / warp | by torch / warp |\n|---|---|---|---|---|")
    for shape, size, samples in CASES:
        torch.manual_seed(0)
        image, theta, cotangent = torch.rand(shape), thetas(shape[0], len(size)), torch.randn(*shape[:2], *size)

        def linearized(image: Tensor, theta: Tensor, size=size, samples=samples) -> Tensor:  # type: ignore[no-untyped-def]
            return stn.linearized_warp(image, theta, size, samples=samples)

        def by_torch(image: Tensor, theta: Tensor, call=linearized) -> Tensor:  # type: ignore[no-untyped-def]
            with use_backend("aten"):
                return call(image, theta)  # type: ignore[no-any-return]

        rivals = (lambda i, t, size=size: stn.warp(i, t, size), linearized, by_torch)
        plain, ours, theirs = best([steps(image, theta, call, cotangent)[1] for call in rivals], arguments.rounds)
        name = f"{','.join(map(str, shape))} -> {','.join(map(str, size))}"
        print(f"| {name} | {samples} | {plain:.2f} | {ours / plain:.1f} | {theirs / plain:.1f} |", flush=True)


if __name__ == "__main__":
    main()
