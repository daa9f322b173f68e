"""Finds what a set of images has in common, without labels: the same digit at a random place of each.

Co-localization by a triplet loss (Jaderberg et al. 2015): a transformer crops each image, and any two crops, as an
encoder sees them, should be closer to each other than either is to a crop at a random place, by a margin of 1. The
encoder is the last three layers of a small network that was taught to tell the *other* nine digits apart and is left as
it is: it has never seen the digit to be found. The loss alone moves the crops, on the very images that are measured.

Three things make it work. The window starts as large as the image and shrinks to a digit's size: crops of a digit's
size from the start all flee to where there is nothing, which also looks alike. The crops at random places are of a
digit's size from the start: as large as the window, five digits of ten were fled. And the localizer places the window
at the centre of mass of a heat map: with fully connected layers on top, the crops agree on a place beside the digit.

    python examples/colocalize.py [--digits 0 1 2] [--clutter 16] [--steps 150] [--figure crops.png]

Measured on 100 images of each digit, seed 0, 7 s a digit on one thread; the share of crops with an intersection over
union of more than 0.5 with the digit's box: 4 % before (a window in the middle), 100 % after for each of the ten
digits, as in the paper. With clutter the paper has 75 to 94 %: here `--clutter 4` and `--clutter 8` give 100 % (digits
0, 3, 8), but with the paper's 16 pieces it fails for every digit, with 2 to 4 %.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stn
from stn_recipes.data.distortions import RandomPlacement, draw
from stn_recipes.data.registry import ImageData, load

SIDE, DIGIT = 84, 28
CROP = (14, 14)  # of what the encoder sees
UNIT = 20.0  # about how far encodings of two digits of one class are apart: what the margin is measured in
FAMILY = stn.Attention()
FRAME = torch.tensor([[[-1.0, -1.0, 1.0, 1.0]]])  # of a crop


class Window(nn.Module):
    """A localizer of square windows, `window` times the image's side but for a tenth; without training, the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.window = DIGIT / SIDE
        self.features = nn.Sequential(
            nn.AvgPool2d(4),
            *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU()),
            *(nn.Conv2d(16, 16, 5, padding=2), nn.ReLU()),
        )
        self.heat, self.size = nn.Conv2d(16, 1, 1), nn.Linear(16, 1)
        for parameter in (*self.heat.parameters(), *self.size.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        heat = self.heat(features).flatten(1).softmax(1).unflatten(1, features.shape[2:])
        axis = stn.geometry.lattice(heat.shape[-1])
        scale = math.log(self.window) + math.log(1.1) * self.size(features.mean((2, 3))).tanh()
        return torch.cat([scale, (heat.sum(1) @ axis)[:, None], (heat.sum(2) @ axis)[:, None]], dim=1)


class Encoder(nn.Module):
    """A network that tells digits apart, and shows what its last three layers see, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        )
        hidden = nn.Sequential(nn.Linear(32 * 3 * 3, 64), nn.ReLU())
        self.layers = nn.ModuleList([convolutions, hidden, nn.Linear(64, 10)])

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (B, 1, *CROP) to the encoding (B, 362) and the logits (B, 10)."""
        seen = [crops]
        for layer in self.layers:
            seen.append(layer(seen[-1]))
        return torch.cat(seen[1:], dim=1) / UNIT, seen[-1]


def train_encoder(digits: ImageData, steps: int = 200) -> Encoder:
    """On digits as large as the crop to a third of it, a little out of the middle."""
    encoder = Encoder()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    for _ in range(steps):
        which = torch.randint(len(digits), (64,))
        theta = torch.tensor([0.4, 0.0, 0.0]) + torch.tensor([0.5, 0.1, 0.1]) * (2 * torch.rand(64, 3) - 1)
        images = stn.warp(digits.images[which].float() / 255, theta, CROP, transform=FAMILY)
        optimizer.zero_grad()
        F.cross_entropy(encoder(images)[1], digits.labels[which]).backward()
        optimizer.step()
    return encoder.eval().requires_grad_(False)


def place(digits: Tensor, clutter: int, source: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Digits (B, 1, DIGIT, DIGIT) at random places of images (B, 1, SIDE, SIDE), with pieces of the images `source` all
    over, both of bytes; and the digits' boxes (B, 4), normalized."""
    placed = RandomPlacement("tc", patches=clutter, canvas=SIDE / DIGIT)
    random = draw(len(digits), placed.num_random, seed=seed, stream=0, epoch=0)
    images = placed(digits.float() / 255, random, source=source)
    corners = torch.from_numpy(np.floor(random[:, 1::-1] * (SIDE - DIGIT + 1))).float()  # (x, y); y is drawn first
    outer = torch.stack([corners, corners + DIGIT], dim=1) - 0.5  # edges, not centres
    return images, stn.conventions.pixel_to_normalized(outer, (SIDE, SIDE)).flatten(1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (B,) of upright boxes (B, 4)."""
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    either = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    return both / either


def triplet_loss(found: Tensor, random: Tensor) -> Tensor:
    """For each two of the crops found, encoded as (B, E), against one at a random place of the first's image (B, E)."""
    apart = torch.cdist(found, found).square()
    hinge = F.relu(apart - (found - random).square().sum(1, keepdim=True) + 1)
    return hinge[~torch.eye(len(found), dtype=torch.bool)].mean()


def colocalize(transformer: stn.SpatialTransformer, images: Tensor, encoder: Encoder, steps: int) -> None:
    """Trains the transformer on the images, all at once."""
    optimizer = torch.optim.Adam(transformer.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        transformer.localizer.window = (DIGIT / SIDE) ** min(1.0, (step + 1) / (0.6 * steps))
        warp = transformer.warp(images)
        shifts = (2 * torch.rand(len(images), 2) - 1) * (1 - DIGIT / SIDE)
        elsewhere = torch.cat([torch.full((len(images), 1), math.log(DIGIT / SIDE)), shifts], dim=1)
        random = stn.warp(images, elsewhere, CROP, transform=FAMILY)
        optimizer.zero_grad()
        triplet_loss(encoder(warp.output)[0], encoder(random)[0]).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def share_found(transformer: stn.SpatialTransformer, images: Tensor, boxes: Tensor) -> tuple[float, Tensor]:
    """The share of images whose crop overlaps the digit's box by more than a half, and all the crops' boxes (B, 4)."""
    crops = transformer.warp(images).map_boxes(FRAME)[:, 0]
    return float((overlap(crops, boxes) > 0.5).float().mean()), crops


def main(argv: list[str] | None = None) -> dict[int, tuple[float, float]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--digits", type=int, nargs="+", default=list(range(10)), choices=range(10))
    parser.add_argument("--count", type=int, default=100, help="images of each digit, at least 2")
    parser.add_argument("--clutter", type=int, default=0, help="pieces of 6 x 6 pixels in each image; the paper's 16")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--figure", type=Path, help="writes images of the last digit, with its box and the crop's")
    options = parser.parse_args(argv)
    if options.count < 2 or min(options.steps, options.threads) < 1 or min(options.clutter, options.seed) < 0:
        parser.error("--steps, --threads: expected at least 1; --count: at least 2; --clutter, --seed: at least 0")
    if options.figure and not (options.figure.suffix == ".png" and options.figure.parent.is_dir()):
        parser.error(f"--figure: expected a .png in a folder that exists, got {options.figure}")
    torch.set_num_threads(options.threads)
    data, _ = load("digits")
    measured = {}
    for digit in options.digits:
        torch.manual_seed(options.seed)
        others = data.take((data.labels != digit).numpy().nonzero()[0])
        encoder = train_encoder(others)
        digits = data.images[data.labels == digit][: options.count]
        images, boxes = place(digits, options.clutter, others.images, options.seed)
        transformer = stn.SpatialTransformer(Window(), FAMILY, CROP, padding_mode="zeros")
        before, _ = share_found(transformer, images, boxes)
        colocalize(transformer, images, encoder, options.steps)
        after, crops = share_found(transformer, images, boxes)
        measured[digit] = before, after
        print(f"digit {digit}: found in {before:.0%} of {len(images)} images before, in {after:.0%} after")
    if options.figure:
        save_figure(options.figure, images, boxes, crops)
    return measured


def save_figure(path: Path, images: Tensor, *boxes: Tensor) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    outer = [stn.conventions.normalized_to_pixel(each.unflatten(1, (2, 2)), (SIDE, SIDE)) for each in boxes]
    for k, panel in enumerate(figure.subplots(2, 5).flat):
        panel.set_axis_off()
        if k < len(images):
            panel.imshow(images[k, 0].numpy(), cmap="gray")
        for corners, colour in zip(outer, ("tab:green", "tab:red"), strict=True):
            if k < len(images):
                (x0, y0), (x1, y1) = corners[k].tolist()
                panel.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
