"""Aligns a stack of images of one class jointly (congealing): no template, no labels, only that they should look alike.

Learned-Miller 2006, by gradient descent: a theta for each image, the loss the variance of each pixel over the stack. It
would be least for images that show nothing, so the mean of theta is held at the identity, and no image may stray far.

    python examples/align_stack.py [--digit 3] [--jitter 1.0] [--figure stack.png]

Measured (6 s on one thread), variance over the stack: 100 threes 0.0409 -> 0.0065 (as they were written, 0.0150), with
94 % of the ink still there; sevens without jitter (`--digit 7 --jitter 0`) 0.0180 -> 0.0081; eights (`--digit 8 --seed
1`) 0.0389 -> 0.0075. A part of the drop is that an image read twice is softer: half a pixel of shift alone takes the
threes as they were written from 0.0150 to 0.0128.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import stn

SIZE = (28, 28)
FAMILY = stn.Affine()


def load_stack(digit: int, count: int) -> Tensor:
    """Real handwritten digits of one class (count, 1, 28, 28) in [0, 1], with a margin."""
    digits = load_digits()
    images = torch.tensor(digits.images[digits.target == digit][:count]).float()[:, None] / 16
    enlarge = torch.tensor([[[1.4, 0.0, 0.0], [0.0, 1.4, 0.0]]])
    return stn.warp(images, enlarge, SIZE, mode="bicubic").clamp(0, 1)


def jitter(images: Tensor, amount: float) -> Tensor:
    """Each turned, scaled and shifted at random: at 1 by up to 20 degrees, 15 % and a tenth of the side."""
    bounds = amount * torch.tensor([math.radians(20), 0.15, 0.2, 0.2])
    theta = bounds * (2 * torch.rand(len(images), 4) - 1)
    return stn.warp(images, theta, transform=stn.Similarity())


def align(images: Tensor, steps: int, stray: float = 0.05) -> Tensor:
    """A theta for each image (B, 6), their mean the identity, that make the stack vary least."""
    shifts = torch.zeros(len(images), FAMILY.num_params, requires_grad=True)
    penalty = stn.penalties.Penalty(smoothness=stray)
    optimizer = torch.optim.Adam([shifts], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        theta = centred(shifts)
        blur = 5 if step < steps // 2 else 1  # coarse to fine
        soft = torch.nn.functional.avg_pool2d(images, blur, stride=1, padding=blur // 2)
        output = stn.warp(soft, theta, transform=FAMILY)
        warp = stn.Warp(output, theta, FAMILY, SIZE, SIZE, False)
        optimizer.zero_grad()
        (variance(output) / variance(soft) + penalty(warp)).backward()
        optimizer.step()
        schedule.step()
    return centred(shifts.detach())


def centred(shifts: Tensor) -> Tensor:
    return FAMILY.identity() + shifts - shifts.mean(0)


def variance(images: Tensor) -> Tensor:
    """Over the stack, mean over the pixels."""
    return images.var(0).mean()


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--digit", type=int, default=3, choices=range(10), help="the class")
    parser.add_argument("--count", type=int, default=100, help="images in the stack, at least 2")
    parser.add_argument("--jitter", type=float, default=1.0, help="0 for the digits as they were written")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--figure", type=Path, help="writes the mean image and some of the stack, before and after")
    options = parser.parse_args(argv)
    if options.count < 2 or min(options.steps, options.threads) < 1 or not 0 <= options.jitter <= 2:
        parser.error("--steps, --threads: expected at least 1; --count: at least 2; --jitter: 0 to 2")
    if options.figure and not (options.figure.suffix == ".png" and options.figure.parent.is_dir()):
        parser.error(f"--figure: expected a .png in a folder that exists, got {options.figure}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    written = load_stack(options.digit, options.count)
    images = jitter(written, options.jitter)
    theta = align(images, options.steps)
    aligned = stn.warp(images, theta, transform=FAMILY)
    measured = {
        "as written": float(variance(written)),
        "before": float(variance(images)),
        "after": float(variance(aligned)),
        "ink": float(aligned.mean() / images.mean()),
    }
    print(f"{len(images)} digits {options.digit}; variance over the stack:")
    print(
        f"as written {measured['as written']:.4f}, jittered {measured['before']:.4f}, aligned {measured['after']:.4f}"
    )
    print(f"ink kept {measured['ink']:.1%}")
    if options.figure:
        save_figure(options.figure, images, aligned)
    return measured


def save_figure(path: Path, images: Tensor, aligned: Tensor) -> None:
    """The mean image, and the first ones of the stack, before (above) and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    places = figure.subplots(2, 8)
    for row, title, stack in zip(places, ("before", "after"), (images, aligned), strict=True):
        row[0].set_title(f"mean {title}", fontsize=9)
        for place, image in zip(row, torch.cat([stack.mean(0, keepdim=True), stack[:7]]), strict=False):
            place.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
        for place in row:
            place.set_axis_off()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
