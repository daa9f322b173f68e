"""Trained text rectifiers, whose lattice and sampler follow different conventions and whose localizers predict absolute
points. Their programs are not needed: what they compute is written out from their formulas, in NumPy's float64, with
torch's `grid_sample` as their sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import stn

from . import agree

SIZE, IMAGE_SIZE, BATCH = (8, 25), (12, 40), 3
ATOL = 1e-11  # the weights come from a system of 23 equations, whose rounding depends on the processor's LAPACK


def spline(kernel, control, at, values):
    """Positions at `at` (N, 2) of the splines that take `control` (K, 2) to `values` (B, K, 2): the system as textbooks
    write it, with side conditions, solved whole."""
    k = len(control)
    distance = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)  # noqa: E731
    polynomials = np.hstack([np.ones((k, 1)), control])
    system = np.block([[kernel(distance(control, control)), polynomials], [polynomials.T, np.zeros((3, 3))]])
    basis = np.hstack([kernel(distance(at, control)), np.ones((len(at), 1)), at])
    return basis @ np.linalg.solve(system, np.concatenate([values, np.zeros((len(values), 3, 2))], axis=1))


def r2_log_r(r):
    return r**2 * np.log(np.where(r == 0, 1, r))


def two_rows(x, top, bottom):
    return np.concatenate([np.stack([x, np.full_like(x, y)], 1) for y in (top, bottom)])


@pytest.fixture
def image():
    return torch.randn(BATCH, 2, *IMAGE_SIZE, dtype=torch.float64)


def test_clovaai(image):
    """deep-text-recognition-benchmark: an output of half-pixel centres, a sampler with corners, 20 points on the edges of
    [-1, 1], and a border that goes on."""
    control = two_rows(np.linspace(-1, 1, 10), -1.0, 1.0)
    predicted = control + 0.1 * torch.randn(BATCH, 20, 2, dtype=torch.float64).numpy()
    height, width = SIZE
    x, y = np.meshgrid((np.arange(-width, width, 2) + 1) / width, (np.arange(-height, height, 2) + 1) / height)
    grid = spline(r2_log_r, control, np.stack([x, y], -1).reshape(-1, 2), predicted).reshape(BATCH, *SIZE, 2)
    wanted = F.grid_sample(image, torch.from_numpy(grid), padding_mode="border", align_corners=True)

    family = stn.ThinPlateSpline.two_rows(20, theta_is="points")
    theta = torch.from_numpy(predicted).flatten(1)
    options = {"transform": family, "padding_mode": "border", "align_corners": True}
    agree(stn.warp(image, theta, SIZE, lattice_align_corners=False, **options), wanted, ATOL)
    assert (stn.warp(image, theta, SIZE, **options) - wanted).abs().max() > 0.1  # with one convention it is not theirs


def test_aster(image):
    """ASTER: corners on the output, half-pixel centres in the sampler, points in [0, 1] with a margin of 0.05, and a grid that
    is clamped to the image."""
    control = two_rows(np.linspace(0.05, 0.95, 10), 0.05, 0.95)
    predicted = control + 0.05 * torch.randn(BATCH, 20, 2, dtype=torch.float64).numpy()
    height, width = SIZE
    x, y = np.meshgrid(np.arange(width) / (width - 1), np.arange(height) / (height - 1))
    source = spline(r2_log_r, control, np.stack([x, y], -1).reshape(-1, 2), predicted).reshape(BATCH, *SIZE, 2)
    assert ((source < 0) | (source > 1)).any()
    grid = 2 * source.clip(0, 1) - 1
    wanted = F.grid_sample(image, torch.from_numpy(grid), align_corners=False)

    family = stn.ThinPlateSpline(torch.from_numpy(2 * control - 1), theta_is="points")
    theta = torch.from_numpy(2 * predicted - 1).flatten(1)
    positions = family.grid(theta, SIZE, stn.Frame(IMAGE_SIZE, align_corners=True))
    agree(stn.sample(image, positions.clamp(-1, 1)), wanted, ATOL)
    # without the clamp, by one call: the same inside
    warped = stn.warp(image, theta, SIZE, transform=family, lattice_align_corners=True)
    inside = stn.valid_mask(positions).expand_as(wanted)
    agree(warped[inside], wanted[inside], ATOL)
