"""Agreement with independent implementations, in float64. A peer that is not installed skips its file."""

from __future__ import annotations

import numpy as np
import torch

import stn
from stn import conventions as frame

ATOL = 1e-12  # both sides round positions of a few pixels, and sums of up to 64 products, in float64


def normal(*size):
    return torch.randn(size, dtype=torch.float64).numpy()


def uniform(low, high, size):
    return low + (high - low) * torch.rand(size, dtype=torch.float64).numpy()


def pixel_map(d, *, projective=False):
    """A map on pixel coordinates near the identity, (d, d+1) or (d+1, d+1). Random: no sample falls halfway
    between two pixels, where `nearest` may go either way."""
    matrix = np.eye(d, d + 1) + np.hstack([0.25 * normal(d, d), normal(d, 1)])
    last = [*(0.02 * normal(d)), 0.9]
    return np.vstack([matrix, last]) if projective else matrix


def warped(image, matrix, out_size, *, direction="pull", order="xy", align_corners=False, **options):
    """What this package makes of an array (*in_size) and a peer's pixel matrix: the one line that a user writes."""
    image, matrix = torch.as_tensor(image, dtype=torch.float64), torch.as_tensor(matrix, dtype=torch.float64)
    theta = frame.theta_from_pixel(
        matrix[None], tuple(image.shape), out_size, direction=direction, order=order, align_corners=align_corners
    )
    return stn.warp(image[None, None], theta, out_size, align_corners=align_corners, **options)[0, 0].numpy()


def agree(got, wanted, atol=ATOL):
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert wanted.std() > 0.1, "nothing is shown"
    np.testing.assert_allclose(got, wanted, rtol=0, atol=atol)
