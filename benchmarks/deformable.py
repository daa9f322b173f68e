"""`stn.deformable_sample` beside the plain PyTorch form of the same layer, side by side in one process.

    python -m benchmarks.deformable [--threads N] [--seconds S]

The plain form is what programs run where the CUDA extension of Deformable DETR is not compiled: `grid_sample` on each map, all
that was read stacked, weighted and summed. Results and gradients are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import stn

Sizes = list[tuple[int, int]]
# Batch, heads, channels of a head, queries, points, maps: an encoder layer of Deformable DETR (every position of the maps is a
# query) on an image of 256x336, a decoder layer on one of 800x1066, and a small call.
CASES: dict[str, tuple[int, int, int, int, int, Sizes]] = {
    "encoder, 1 x 8 x 32, 1,805 queries": (1, 8, 32, 1805, 4, [(32, 42), (16, 21), (8, 11), (4, 6), (1, 13)]),
    "decoder, 2 x 8 x 32, 300 queries": (2, 8, 32, 300, 4, [(100, 134), (50, 67), (25, 34), (13, 17)]),
    "small, 1 x 4 x 16, 20 queries": (1, 4, 16, 20, 4, [(16, 16), (8, 8)]),
}


def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    read = []
    for level, maps in enumerate(value.split([math.prod(size) for size in sizes], 1)):
        image = maps.flatten(2).transpose(1, 2).reshape(batch * heads, channels, *sizes[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        read.append(F.grid_sample(image, grid, padding_mode="zeros", align_corners=False))
    shares = weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(sizes) * points)
    total = (torch.stack(read, -2).flatten(-2) * shares).sum(-1)
    return total.view(batch, heads * channels, queries).transpose(1, 2)


def once(call: Callable[..., Tensor], inputs: tuple[Tensor, ...], sizes: Sizes, backward: bool) -> list[Tensor]:
    value, locations, weights = inputs
    if not backward:
        with torch.no_grad():
            return [call(value, sizes, locations, weights)]
    out = call(value, sizes, locations, weights)
    return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]


def ratio(inputs: tuple[Tensor, ...], sizes: Sizes, backward: bool, seconds: float) -> tuple[float, float]:
    """The plain form's best time in ms and over ours, in processor time; rounds alternate."""
    best = [math.inf, math.inf]
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or math.inf in best:
        for place, call in enumerate((plain, stn.deformable_sample)):
            begin = time.process_time()
            once(call, inputs, sizes, backward)
            best[place] = min(best[place], time.process_time() - begin)
    return 1e3 * best[0], best[0] / best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print("| call | plain form, forward / with gradients | faster by |\n|---|---|---|")
    for name, (batch, heads, channels, queries, points, sizes) in CASES.items():
        positions = sum(math.prod(size) for size in sizes)
        locations = torch.rand(batch, queries, heads, len(sizes), points, 2)
        weights = torch.rand(batch, queries, heads, len(sizes) * points).softmax(-1).view(locations.shape[:-1])
        inputs = (torch.randn(batch, positions, heads, channels), locations, weights)
        inputs = tuple(one.requires_grad_() for one in inputs)
        exact = tuple(
            one.detach().double().requires_grad_() for one in inputs
        )  # where no rounding crosses a pixel's centre
        both = (once(call, exact, sizes, True) for call in (plain, stn.deformable_sample))
        for theirs, ours in zip(*both, strict=True):
            torch.testing.assert_close(ours, theirs)
        found = [ratio(inputs, sizes, backward, arguments.seconds) for backward in (False, True)]
        times, ratios = (" / ".join(f"{pair[part]:.2f}" for pair in found) for part in (0, 1))
        print(f"| {name} | {times} ms | {ratios} |")


if __name__ == "__main__":
    main()
