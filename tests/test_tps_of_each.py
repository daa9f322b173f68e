"""Thin plate splines whose control points differ from image to image."""

from __future__ import annotations

import math

import pytest
import torch

from stn.transforms import tps_grid


def some(d, batch=3, k=9):
    lattice = torch.cartesian_prod(*[torch.linspace(-0.9, 0.9, 3 if d == 2 else 2, dtype=torch.float64)] * d)
    points = lattice + 0.1 * torch.randn(batch, *lattice.shape, dtype=torch.float64)
    return points, 0.2 * torch.randn(batch, lattice.numel(), dtype=torch.float64)


@pytest.mark.parametrize("regularization", [0.0, 0.3])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("d", [2, 3])
def test_each_as_alone(d, align_corners, regularization):
    points, theta = some(d)
    options = {"regularization": regularization, "align_corners": align_corners}
    size = (4, 5, 6)[:d]
    wanted = torch.cat([tps_grid(t[None], p, size, **options) for t, p in zip(theta, points, strict=True)])
    torch.testing.assert_close(tps_grid(theta, points, size, **options), wanted, rtol=0, atol=1e-10)
    got = tps_grid(theta.float(), points, size, **options)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted.float(), rtol=0, atol=1e-5)
    # a batch of one on either side
    torch.testing.assert_close(
        tps_grid(theta, points[:1], size, **options)[1:2],
        tps_grid(theta[1:2], points[0], size, **options),
        rtol=0,
        atol=1e-10,
    )
    torch.testing.assert_close(
        tps_grid(theta[:1], points, size, **options)[1:2],
        tps_grid(theta[:1], points[1], size, **options),
        rtol=0,
        atol=1e-10,
    )
    assert tps_grid(theta, points, (0, *size[1:]), **options).shape == (3, 0, *size[1:], d)


@pytest.mark.parametrize("d", [2, 3])
def test_gradients_reach_both(d):
    points, theta = some(d, batch=2)
    torch.autograd.gradcheck(
        lambda t, p: tps_grid(t, p, (2, 3, 2)[:d]), (theta.requires_grad_(), points.requires_grad_()), atol=1e-6
    )


def test_what_is_refused():
    points, theta = some(2)
    for bad in (points[:2], points[..., :1], points[:, :2], points.int(), points.repeat(1, 2, 1),
                points * torch.tensor([1.0, 0.0]), points * math.nan):  # fmt: skip
        with pytest.raises(ValueError, match=r"^(control_points|theta): "):
            tps_grid(theta, bad, (3, 3))
    twice = points.clone()
    twice[1, 3] = twice[1, 4]
    with pytest.raises(ValueError, match=r"^control_points: expected distinct .* of index 1"):
        tps_grid(theta, twice, (3, 3))
    for bad in (theta[:, :4], theta[0], theta.int(), None):
        with pytest.raises(ValueError, match=r"^theta: "):
            tps_grid(bad, points, (3, 3))
    with pytest.raises(ValueError, match=r"^size: "):
        tps_grid(theta, points, (3,))
    with pytest.raises(ValueError, match=r"^regularization: "):
        tps_grid(theta, points, (3, 3), regularization=-1)
