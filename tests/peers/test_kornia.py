"""kornia: matrices from source to destination *pixels*; `align_corners=True` by default, which matters to its
reflections alone."""

from __future__ import annotations

import pytest
import torch

import stn
from stn import conventions as frame

from . import ATOL, pixel_map

kornia = pytest.importorskip("kornia.geometry.transform", reason="kornia is not installed")

IN, OUT = (7, 10), (6, 8)
PADDINGS = ["zeros", "border", "reflection", "fill"]


def some_images(size):
    return torch.randn(2, 3, *size, dtype=torch.float64)


def some_maps(d, *, projective=False):
    return torch.stack([torch.from_numpy(pixel_map(d, projective=projective)) for _ in range(2)])


def close(got, wanted):
    assert float(wanted.std()) > 0.1, "nothing is shown"
    torch.testing.assert_close(got, wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("name", ["warp_affine", "warp_perspective"])
def test_warps(name, padding_mode, mode, align_corners):
    image, matrix = some_images(IN), some_maps(2, projective=name == "warp_perspective")
    fill = torch.tensor([0.7, -0.2, 0.1], dtype=torch.float64)
    wanted = getattr(kornia, name)(image, matrix, OUT, mode, padding_mode, align_corners, fill)
    theta = frame.theta_from_pixel(matrix, IN, OUT, direction="push", align_corners=align_corners)
    padding = {"padding_mode": "constant", "fill": fill} if padding_mode == "fill" else {"padding_mode": padding_mode}
    close(stn.warp(image, theta, OUT, mode=mode, align_corners=align_corners, **padding), wanted)


@pytest.mark.parametrize("name", ["warp_affine", "warp_perspective"])
def test_its_default_is_ours_in_pixels(name):
    """The two defaults of `align_corners` differ, the pictures do not, but for reflections."""
    image, matrix = some_images(IN), some_maps(2, projective=name == "warp_perspective")
    theta = frame.theta_from_pixel(matrix, IN, OUT, direction="push")
    for padding_mode in ("zeros", "border"):
        wanted = getattr(kornia, name)(image, matrix, OUT, padding_mode=padding_mode)
        close(stn.warp(image, theta, OUT, padding_mode=padding_mode), wanted)
    mirrored = getattr(kornia, name)(image, matrix, OUT, padding_mode="reflection")
    assert float((stn.warp(image, theta, OUT, padding_mode="reflection") - mirrored).abs().max()) > 0.1


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_warp_affine3d(padding_mode):
    in_size, out_size = (4, 6, 5), (3, 5, 7)
    image, matrix = some_images(in_size), some_maps(3)
    wanted = kornia.warp_affine3d(image, matrix, out_size, padding_mode=padding_mode)
    theta = frame.theta_from_pixel(matrix, in_size, out_size, direction="push", align_corners=True)
    close(stn.warp(image, theta, out_size, padding_mode=padding_mode, align_corners=True), wanted)


def test_remap():
    """With `align_corners=True`: without, it scales positions as with, and samples as without."""
    image = some_images(IN)
    points = 14 * torch.rand(2, *OUT, 2, dtype=torch.float64) - 2
    wanted = kornia.remap(image, points[..., 0], points[..., 1], padding_mode="border", align_corners=True)
    close(stn.sample(image, frame.pixel_to_normalized(points, IN), padding_mode="border"), wanted)


@pytest.mark.parametrize("align_corners", [False, True])
def test_get_perspective_transform(align_corners):
    """Four points that go to the output's corners: `Corners`, by another road."""
    family = stn.Corners()
    shift = 0.3 * torch.randn(4, 8, dtype=torch.float64)
    shown = frame.normalized_to_pixel(family.corners(shift), IN, align_corners=align_corners)
    unmoved = family.corners(torch.zeros_like(shift))
    corners = frame.normalized_to_pixel(unmoved, OUT, align_corners=align_corners)
    matrix = kornia.get_perspective_transform(shown, corners)
    theta = frame.theta_from_pixel(matrix, IN, OUT, direction="push", align_corners=align_corners)
    wanted = theta / theta[:, 2:, 2:]
    torch.testing.assert_close(family.matrix(shift), wanted, rtol=1e-9, atol=1e-9)  # it solves eight equations
    torch.testing.assert_close(family.from_matrix(theta), shift, rtol=1e-9, atol=1e-9)
