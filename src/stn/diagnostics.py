"""Is the transformer still looking at the image? The usual failures, by name, while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import check_image, describe
from .coordinates import Frame
from .transformer import Warp

OUT_OF_FRAME = 0.75  # share of positions outside the image above which nothing much is seen
SCALE_RANGE = (0.05, 5.0)  # sides of the sampled frame, relative to the image
CONTRAST = 0.05  # of the output, relative to the image


@dataclass(frozen=True)
class Diagnosis:
    """Figures of one batch, and what is wrong in words (empty: nothing)."""

    scale: float  # median side of the sampled frame; 1 is the whole image, above 1 zooms out
    out_of_frame: float  # share of the sampled positions that lie outside the image
    contrast: float  # median ratio of the output's standard deviation to the image's
    spread: float  # standard deviation of theta over the batch, root mean square over its entries
    problems: tuple[str, ...]


@torch.no_grad()
def diagnose(image: Tensor, warp: Warp) -> Diagnosis:
    """Look at what a transformer did to a batch, and name a collapse.

    Args:
        image: (B, C, H, W), what went in; B at least 1.
        warp: `transformer.warp(image)`, what came out.

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
    grid = warp.transform.grid(theta, (9,) * len(warp.size), Frame(warp.image_size, align_corners=True)).float()
    sides = [
        (grid.select(axis + 1, -1) - grid.select(axis + 1, 0)).norm(dim=-1).flatten(1).mean(1) / 2
        for axis in range(len(warp.size))
    ]
    scale = float(torch.stack(sides).log().mean(0).exp().median())
    out_of_frame = float((grid.abs() > 1).any(-1).float().mean())
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
