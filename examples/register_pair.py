"""Registers a pair of pictures: finds the homography between a photo and its warped self, by gradient descent on theta.

There is no network: theta itself is what is learned. Descent alone stops at the next texture edge, so it goes from
coarse to fine (Lucas and Kanade 1981; as a transformer: Lin and Lucey 2017). Theta are the four corners that are read
(`stn.Corners`): eight numbers of one scale, unlike the entries of a matrix.

    python examples/register_pair.py [PHOTO] [--seeds 5] [--shift 0.2] [--levels 4] [--figure pair.png]

Measured on a photo of 160 x 240 pixels, the worst of the four corners, seeds 0 to 4, noise of 0.02 (two seconds a pair
on one thread): 13 to 28 pixels off before, 0.015 to 0.05 after. Without the pyramid the same work (`--levels 1 --steps
80`) ends 1.9 to 12 pixels off; three times as much (`--steps 240`) arrives at 0.006 to 0.02 as well. The pair is as kind
as can be: one photo, read twice, with the same light.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

import stn

CORNERS = stn.Corners()
CROP = 0.25 * torch.tensor([[1.0, 1.0, -1.0, 1.0, -1.0, -1.0, 1.0, -1.0]])  # reads the middle three quarters


def load_photo(path: Path | None, longest: int = 240) -> Tensor:
    """The photo (1, 3, H, W) in [0, 1], brought down to sides that are multiples of 16; scikit-learn's unless given."""
    if path is None:
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image("china.jpg")
    else:
        pixels = np.asarray(Image.open(path).convert("RGB"))
    photo = torch.tensor(pixels).permute(2, 0, 1)[None] / 255
    scale = longest / max(photo.shape[2:])
    size = tuple(max(16, round(scale * n / 16) * 16) for n in photo.shape[2:])
    return stn.warp(photo, torch.eye(2, 3)[None], size, padding_mode="border", antialias=True)


def make_pair(photo: Tensor, shift: float, noise: float) -> tuple[Tensor, Tensor]:
    """The photo as seen from elsewhere, and the theta that is to be found: `CROP`, each corner moved by up to
    `shift` of half the photo along each axis."""
    theta = CROP + shift * (2 * torch.rand(1, 8) - 1)
    target = stn.warp(photo, theta, transform=CORNERS)
    return target + noise * torch.randn_like(target), theta


def register(
    photo: Tensor, target: Tensor, start: Tensor, *, levels: int = 4, steps: int = 60, linearized: bool = False
) -> Tensor:
    """The theta (1, 8) at which the photo looks like the target: `steps` of Adam on each level of a pyramid."""
    theta = start.clone().requires_grad_()
    warp = stn.linearized_warp if linearized else stn.warp
    for level in reversed(range(levels)):
        small, goal = (F.avg_pool2d(image, 2**level) for image in (photo, target))
        optimizer = torch.optim.Adam([theta], lr=1.0 / max(small.shape[2:]))  # half a pixel a step
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(warp(small, theta, transform=CORNERS, padding_mode="border"), goal).backward()
            optimizer.step()
            schedule.step()
    return theta.detach()


def corner_error(theta: Tensor, truth: Tensor, size: tuple[int, ...]) -> float:
    """The distance of the worst corner from where it should be, in pixels of the photo."""
    pixels = (CORNERS.corners(theta) - CORNERS.corners(truth)) * torch.tensor([size[1], size[0]]) / 2
    return float(pixels.norm(dim=-1).max())


def main(argv: list[str] | None = None) -> list[tuple[float, float]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photo", type=Path, nargs="?", help="an image file; scikit-learn's china.jpg unless given")
    parser.add_argument("--shift", type=float, default=0.2, help="of the corners, at most, in halves of the photo")
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--levels", type=int, default=4, help="of the pyramid, 1 to 5; 1 is the photo as it is")
    parser.add_argument("--steps", type=int, default=60, help="on each level")
    parser.add_argument("--linearized", action="store_true", help="the gradient that sees further")
    parser.add_argument("--seeds", type=int, default=5, help="how many pairs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--figure", type=Path, help="writes the first pair, before and after")
    options = parser.parse_args(argv)
    if min(options.steps, options.seeds, options.threads) < 1 or not 1 <= options.levels <= 5:
        parser.error("--steps, --seeds and --threads: expected at least 1; --levels: 1 to 5")
    if not 0 <= options.shift < 0.25 or not 0 <= options.noise < 1:
        parser.error("--shift: expected a number in [0, 0.25), so that the pair overlaps; --noise: in [0, 1)")
    if options.figure and not (options.figure.suffix == ".png" and options.figure.parent.is_dir()):
        parser.error(f"--figure: expected a .png in a folder that exists, got {options.figure}")
    torch.set_num_threads(options.threads)
    try:
        photo = load_photo(options.photo)
    except (OSError, UnidentifiedImageError) as error:
        parser.error(f"photo: expected an image file, got {options.photo} ({error})")
    size = tuple(photo.shape[2:])
    print(f"photo {size[0]} x {size[1]}; corner error in pixels, worst corner")
    errors = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        target, truth = make_pair(photo, options.shift, options.noise)
        found = register(photo, target, CROP, levels=options.levels, steps=options.steps, linearized=options.linearized)
        errors.append((corner_error(CROP, truth, size), corner_error(found, truth, size)))
        print(f"seed {seed}: before {errors[-1][0]:6.2f}, after {errors[-1][1]:6.3f}")
        if options.figure and seed == 0:
            save_figure(options.figure, photo, target, found)
    return errors


def save_figure(path: Path, photo: Tensor, target: Tensor, found: Tensor) -> None:
    """Where the target lies in the photo; and the two on top of each other, before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3), layout="constrained")
    before, after = ((stn.warp(photo, theta, transform=CORNERS) - target).abs() for theta in (CROP, found))
    pictures = {"photo": photo, "target": target, "difference before": before, "difference after": after}
    for place, (title, image) in zip(figure.subplots(1, 4), pictures.items(), strict=True):
        place.imshow(image[0].permute(1, 2, 0).clamp(0, 1).numpy())
        place.set_title(title)
        place.set_axis_off()
    corners = stn.conventions.normalized_to_pixel(CORNERS.corners(found), tuple(photo.shape[2:]))[0]
    figure.axes[0].plot(*corners[[0, 1, 2, 3, 0]].T.numpy(), color="tab:orange")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
