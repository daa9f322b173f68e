"""Antialiased reads beside plain ones of the same images: what they cost, and how far they are from the average over each pixel.

    python -m benchmarks.antialias [--rounds N] [--errors]

Costs: forward, with the gradient of theta, and with those of theta and image, on one thread; a rotation by 0.1 radians, and
none. Times are the processor's, the least of interleaved rounds, so that what else runs counts less. Errors (`--errors`):
root mean square differences from the mean over 16 x 16 points of each pixel's parallelogram, of an image of square pixels and
of one that is interpolated, as shares of that mean's own; noise, a zone plate, a photograph.
"""

from __future__ import annotations

import argparse
import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

import stn

from .families import best
from .run import steps

# The image, the output's size, pixels of the image for one of the output, the angle.
CASES = (
    ((8, 3, 256, 256), (128, 128), 2.0, 0.1),
    ((8, 3, 256, 256), (128, 128), 2.0, 0.0),
    ((8, 3, 256, 256), (128, 128), 1.0, 0.1),
    ((8, 3, 256, 256), (128, 128), 2.5, 0.1),
    ((8, 3, 256, 256), (128, 128), 4.0, 0.1),
    ((8, 3, 512, 512), (64, 64), 8.0, 0.1),
    ((64, 1, 56, 56), (28, 28), 2.0, 0.1),
    ((8, 64, 56, 56), (28, 28), 2.0, 0.1),
    ((1, 3, 1080, 1920), (540, 960), 2.0, 0.1),
)
# Pixels of the image along the axes of the output, and the angle.
FOOTPRINTS = (
    (1.5, 1.5, 0.4), (2, 2, 0.4), (3, 3, 0.3), (4, 4, 0.0), (5, 5, 0.3), (8, 8, 0.3), (16, 16, 0.4), (8, 1, 0.4), (12, 3, 0.3),
)  # fmt: skip


def turned(x: float, y: float, angle: float) -> Tensor:
    """The map by a zoom of x and y, then a turn; steps of the output in its columns."""
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    return turn * torch.tensor([x, y], dtype=torch.float64)


def costs(rounds: int) -> None:
    print("| image -> output | scale | angle | plain, ms | antialiased / plain |\n|---|---|---|---|---|")
    for shape, size, scale, angle in CASES:
        torch.manual_seed(0)
        image, cotangent = torch.rand(shape), torch.randn(*shape[:2], *size)
        pixels = turned(scale, scale, angle) * torch.tensor(size[::-1]) / torch.tensor(shape[:1:-1])[:, None]
        theta = torch.cat([pixels, torch.full((2, 1), 0.013)], 1).float().expand(shape[0], 2, 3).clone()
        calls = []
        for antialias in (False, True):

            def run(i: Tensor, t: Tensor, a: bool = antialias, s: tuple[int, int] = size) -> Tensor:
                return stn.warp(i, t, s, antialias=a)

            calls.append(steps(image, theta, run, cotangent))
        pairs = [best([plain, smooth], rounds) for plain, smooth in zip(*calls, strict=True)]
        ratios = " / ".join(f"{smooth / plain:.1f}" for plain, smooth in pairs)
        print(f"| {shape} -> {size} | {scale} | {angle} | {pairs[0][0]:.2f} | {ratios} |", flush=True)


def errors(size: int = 384, small: int = 24, points: int = 16) -> None:
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    torch.manual_seed(0)
    images = {"noise": torch.randn(1, 1, size, size, dtype=torch.float64)}
    images["zone plate"] = torch.cos(math.pi * (at[:, None].square() + at.square()) / size)[None, None]
    try:
        from sklearn.datasets import load_sample_image

        photo = torch.from_numpy(load_sample_image("china.jpg") / 255.0).movedim(-1, 0)[None]
        images["photograph"] = photo[:, 1:2, 8 : 8 + size, 20 : 20 + size]
    except ImportError:
        print("without the photograph, which scikit-learn has")
    print("| scale | angle | image | plain: square pixels, interpolated | antialiased: both |\n|---|---|---|---|---|")
    pixel = torch.arange(small, dtype=torch.float64) + 0.5 - small / 2
    within = (torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5
    fine = (pixel[:, None] + within).flatten()
    for x, y, angle in FOOTPRINTS:
        map_ = turned(x, y, angle)
        lattice = torch.stack(torch.meshgrid(fine, fine, indexing="ij")[::-1], -1)
        grid = ((lattice @ map_.T + 0.137) * 2 / size)[None]
        theta = torch.cat([map_ * small / size, torch.full((2, 1), 0.137 * 2 / size, dtype=torch.float64)], 1)[None]
        for name, image in images.items():
            modes: tuple[Literal["nearest", "bilinear"], ...] = ("nearest", "bilinear")
            means = [F.avg_pool2d(stn.sample(image, grid, mode=m, padding_mode="reflection"), points) for m in modes]
            row = f"| {x} x {y} | {angle} | {name} |"
            for antialias in (False, True):
                out = stn.warp(image, theta, (small, small), antialias=antialias, padding_mode="reflection")
                off = [float((out - mean).norm() / (mean - mean.mean()).norm()) for mean in means]
                row += f" {off[0]:.2f}, {off[1]:.2f} |"
            print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--errors", action="store_true", help="how far off, instead of what it costs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.errors:
        errors()
    else:
        costs(arguments.rounds)


if __name__ == "__main__":
    main()
