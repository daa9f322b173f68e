"""Turning, scaling and shifting what is in an image, for whoever looks at it."""

from __future__ import annotations

import torch
from torch import Tensor

import stn


def moved_theta(rotation: Tensor, scale: Tensor, shift: Tensor, size: tuple[int, int]) -> Tensor:
    """Affine theta (N, 2, 3) that turns the content about its centre, scales it, then shifts it.

    Args:
        rotation: (N,) degrees, counterclockwise.
        scale: (N,) of the content; below 1 is smaller.
        shift: (N, 2) to the right and down, in shares of the width and the height.
        size: (H, W) of the images.
    """
    nothing = torch.zeros_like(scale)
    turn = stn.Similarity().matrix(
        torch.stack([rotation.deg2rad(), -scale.log(), nothing, nothing], 1), stn.Frame(size)
    )
    back = torch.eye(2, 3).to(shift).repeat(len(shift), 1, 1)  # pull: an output pixel is shifted back first
    back[:, :, 2] = -2 * shift
    return stn.geometry.compose_matrices(turn, back)
