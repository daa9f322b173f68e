"""Adds two digits that lie in the two channels of an image, each turned, scaled and placed on its own.

One transformer can bring one of them upright, two in parallel both: each looks at the whole image and warps all of it,
and a classifier sees the two results (Jaderberg et al. 2015, on MNIST addition). Nobody says which transformer is for
which digit. Beside them networks without a transformer, widened to as many parameters: the same fully connected
classifier ("fcn"), and a convolutional one ("cnn"). All of them see the images at half the resolution, average-pooled.
The distortions grow from none to the full ones over the first 70 % of the training: without that no network tried here
left chance within 500 to 800 steps.

    python examples/add_digits.py [--networks 2xST fcn] [--steps 2000] [--data FOLDER] [--figure sums.png]

Measured on 2000 pairs of digits that no network was trained with (scikit-learn's 1438 for training, 359 for the test),
2000 steps, seed 0, about 275,000 parameters each; wrong sums at the end: 2xST 19.9 %, 1xST 62.3 %, cnn 72.8 %, fcn 83.4
%. About 40 s on one thread for 2xST; 2500 steps gave 16.5 %. The paper's figures, with MNIST and a far longer training,
are 9.0 (2xST-FCN), 22.6 (ST-FCN), 14.7 (CNN) and 47.7 (FCN): the order of 1xST and cnn is another there, and all are
lower.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stn
from stn_recipes.data.distortions import draw, get
from stn_recipes.data.registry import DataError, ImageData, load

SIDE, HALF = 42, 21  # of an image, and as the networks see it; the digits are of 28 x 28 before they are distorted
SUMS = 19
RTS = get("rts")  # up to 45 degrees, 0.7 to 1.2 times as large, anywhere
UPRIGHT = torch.tensor([0.5, 0.6, 0.5, 0.5], dtype=torch.float64)  # the random numbers that change nothing
NETWORKS = ("2xST", "1xST", "fcn", "cnn")


def make_pairs(
    digits: ImageData, count: int, *, seed: int, epoch: int = 0, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Images (count, 2, SIDE, SIDE) of two digits drawn at random, each distorted on its own, and their sums."""
    table = torch.from_numpy(draw(2 * count, 1 + RTS.num_random, seed=seed, stream=0, epoch=epoch))
    which = (table[:, 0] * len(digits)).long()
    images = RTS(digits.images[which].float() / 255, UPRIGHT + strength * (table[:, 1:] - UPRIGHT))
    return images.view(count, 2, SIDE, SIDE), digits.labels[which].view(count, 2).sum(1)


def transformed(count: int, width: int = 128) -> nn.Sequential:
    """`count` affine transformers side by side, each with a localizer of its own, and a classifier of all they show."""
    localizers = [
        stn.ConvLocalizer(
            2, stn.Affine(), image_size=(SIDE, SIDE), channels=(16, 32), kernel_sizes=(5, 3), hidden=(32,),
            batch_norm=True, last_pool=False, downsample=3,
        )
        for _ in range(count)
    ]  # fmt: skip
    parallel = stn.ParallelTransformers(localizers, combine="concat", padding_mode="zeros")
    return nn.Sequential(parallel, nn.AvgPool2d(2), connected(2 * count, width))


def connected(channels: int, width: int) -> nn.Sequential:
    """Two hidden layers with batch norm."""
    layers: list[nn.Module] = [nn.Flatten()]
    before = channels * HALF**2
    for _ in range(2):
        layers += [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(width, SUMS))


def convolutional(width: int) -> nn.Module:
    return stn.models.lenet((2, HALF, HALF), SUMS, maps=(32, 64), hidden=width, dropout=0.0)


def build(network: str) -> nn.Module:
    """A network by name, as wide as it takes to have the parameters of the one with two transformers."""
    makers: dict[str, Callable[[int], nn.Module]] = {
        "2xST": lambda width: transformed(2, width),
        "1xST": lambda width: transformed(1, width),
        "fcn": lambda width: nn.Sequential(nn.AvgPool2d(2), connected(2, width)),
        "cnn": lambda width: nn.Sequential(nn.AvgPool2d(2), convolutional(width)),
    }
    wanted = parameters(transformed(2))
    with torch.device("meta"):
        width = next(width for width in range(128, 2048) if parameters(makers[network](width)) >= wanted)
    return makers[network](width)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def train(model: nn.Module, digits: ImageData, steps: int, seed: int) -> nn.Module:
    """On new pairs and new distortions at each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        strength = min(1.0, step / (0.7 * steps))
        images, sums = make_pairs(digits, 64, seed=seed, epoch=1 + step, strength=strength)
        optimizer.zero_grad()
        F.cross_entropy(model(images), sums).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def error(model: nn.Module, images: Tensor, sums: Tensor) -> float:
    """The share of wrong sums."""
    return float((model(images).argmax(1) != sums).float().mean())


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--data", type=Path, help="a folder with MNIST's files; scikit-learn's digits unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--figure", type=Path, help="writes test images, and what the transformers make of them")
    options = parser.parse_args(argv)
    if min(options.steps, options.threads) < 1 or options.seed < 0:
        parser.error("--steps, --threads: expected at least 1; --seed: at least 0")
    if options.figure and not (options.figure.suffix == ".png" and options.figure.parent.is_dir()):
        parser.error(f"--figure: expected a .png in a folder that exists, got {options.figure}")
    try:
        digits, others = load("mnist", options.data) if options.data else load("digits")
    except DataError as wrong:
        parser.error(f"--data: {wrong}")
    torch.set_num_threads(options.threads)
    images, sums = make_pairs(others, 2000, seed=options.seed)
    measured = {}
    for network in options.networks:
        torch.manual_seed(options.seed)
        model = train(build(network), digits, options.steps, options.seed)
        measured[network] = error(model, images, sums)
        print(f"{network}: {parameters(model):,} parameters, {measured[network]:.1%} of the sums of new digits wrong")
        if options.figure and network.endswith("ST"):
            save_figure(options.figure.with_stem(f"{options.figure.stem}-{network}"), model[0], images[:8])
    return measured


def save_figure(path: Path, parallel: nn.Module, images: Tensor) -> None:
    """A column for each image: its two channels, then those of each transformer's output."""
    from matplotlib.figure import Figure

    with torch.no_grad():
        rows = torch.cat([images, parallel(images)], dim=1).transpose(0, 1)
    figure = Figure(figsize=(len(images), len(rows)), layout="constrained")
    for places, row in zip(figure.subplots(len(rows), len(images)), rows, strict=True):
        for place, image in zip(places, row, strict=True):
            place.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
            place.set_axis_off()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
