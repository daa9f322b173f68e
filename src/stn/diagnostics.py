"""Is the transformer still looking at the image? The usual failures, by name, while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import check_image, describe
from .conventions import normalized_to_pixel
from .geometry import lattice
from .transformer import Warp

OUT_OF_FRAME = 0.75  # share of positions outside the image above which nothing much is seen
SCALE_RANGE = (0.05, 5.0)  # sides of the sampled frame, relative to the image
CONTRAST = 0.05  # of the output, relative to the image
MAX_POSITIONS = 1024  # of each output that are looked at


@dataclass(frozen=True)
class Diagnosis:
    """Figures of one batch, and what is wrong in words (empty: nothing)."""

    scale: float  # median side of the sampled frame; 1 is the whole image, above 1 zooms out
    out_of_frame: float  # share of the output's pixels that are read outside the image, beyond its border pixels
    contrast: float  # median ratio of the output's standard deviation to the image's
    spread: float  # standard deviation of theta over the batch, root mean square over its entries
    problems: tuple[str, ...]


@torch.no_grad()
def diagnose(image: Tensor, warp: Warp) -> Diagnosis:
    """Look at what a transformer did to a batch, and name a collapse.

    Args:
        image: (B, C, H, W), what went in; B at least 1.
        warp: `transformer.warp(image)`, what came out.

    What is read outside is counted at the centres of the output's pixels: all of them up to 32x32 (1024 in 1D, 10x10x10
    in 3D), as many evenly spread ones of larger outputs. The image ends at the outer edges of its border pixels,
    whatever `align_corners`.

    Returns:
        A `Diagnosis`. Its `problems` name non-finite theta, an exploding or vanishing scale, a gaze outside the
        frame, and a blank output.

    Raises:
        ValueError: for an empty batch or another batch's warp.

    Example:
        >>> import stn
        >>> transformer = stn.SpatialTransformer(stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28)))
        >>> image = torch.rand(4, 1, 28, 28)
        >>> diagnose(image, transformer.warp(image)).problems
        ()
    """
    check_image(image)
    if not isinstance(warp, Warp):
        raise ValueError(f"warp: expected the result of `transformer.warp(image)`, got {describe(warp)}")
    if not image.shape[0] or image.shape[0] != warp.output.shape[0]:
        raise ValueError(
            f"image: expected the batch of {warp.output.shape[0]} (at least 1) that was warped, got {image.shape[0]}"
        )
    theta = warp.theta.float()
    if not bool(theta.isfinite().all()):
        bad = int((~theta.isfinite().all(dim=1)).sum())
        message = (
            f"non-finite theta in {bad} of {len(theta)} images: lower the localizer's learning rate or clip gradients"
        )
        return Diagnosis(float("nan"), float("nan"), float("nan"), float("nan"), (message,))
    d = len(warp.size)
    frame = _mapped(warp, [torch.linspace(-1, 1, 9).to(theta)] * d)
    sides = [
        (frame.select(axis + 1, -1) - frame.select(axis + 1, 0)).norm(dim=-1).reshape(len(theta), -1).mean(1) / 2
        for axis in range(d)
    ]
    scale = float(torch.stack(sides).log().mean(0).exp().median())
    most = round(MAX_POSITIONS ** (1 / d))
    centres = [_spread(lattice(n, align_corners=warp.align_corners).to(theta), most) for n in warp.size]
    read = normalized_to_pixel(_mapped(warp, centres), warp.image_size, align_corners=warp.align_corners)
    last = read.new_tensor(warp.image_size[::-1]) - 1
    outside = ~((read >= -0.5) & (read <= last + 0.5)).all(-1)
    out_of_frame = float(outside.float().mean())
    contrasts = warp.output.float().flatten(1).std(dim=1) / image.float().flatten(1).std(dim=1).clamp_min(1e-12)
    contrast = float(contrasts.median())
    spread = float(theta.var(dim=0, correction=0).mean().sqrt())
    problems = []
    if scale > SCALE_RANGE[1]:
        problems.append(
            f"exploding scale: the sampled frame is {scale:.1f} times the image; bound the scale or lower the localizer's learning rate"
        )
    if scale < SCALE_RANGE[0]:
        problems.append(
            f"vanishing scale: the sampled frame is {scale:.3f} times the image; bound the scale or lower the localizer's learning rate"
        )
    if out_of_frame > OUT_OF_FRAME:
        problems.append(
            f"out of frame: {out_of_frame:.0%} of the sampled positions lie outside the image; bound the shift or penalize it"
        )
    if contrast < CONTRAST:
        problems.append(f"blank output: its contrast is {contrast:.1%} of the image's; the classifier sees nothing")
    return Diagnosis(scale, out_of_frame, contrast, spread, tuple(problems))


def _mapped(warp: Warp, axes: list[Tensor]) -> Tensor:
    """Where the lattice with these coordinates along each axis ([D,] H, W) is read: (B, *lattice, d)."""
    points = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)
    return warp.map_points(points.reshape(1, -1, len(axes))).float().unflatten(1, points.shape[:-1])


def _spread(line: Tensor, most: int) -> Tensor:
    """All of a line, or the middles of `most` equal parts of it."""
    n, count = len(line), min(len(line), most)
    return line[[(2 * i + 1) * n // (2 * count) for i in range(count)]]
