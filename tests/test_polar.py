"""Polar and log-polar frames: turns and scales of the image as shifts of the output."""

from __future__ import annotations

import math

import pytest
import torch

import stn
from stn import conventions as frame
from stn.transforms.base import AbstractTransform
from stn.transforms.polar import Polar

FAMILIES = [Polar(), Polar(min_radius=0.1, max_radius=1.3), Polar(log=True), Polar(log=True, min_radius=0.2)]
SIZE = (241, 301)  # of the image: not square, and fine enough for the picture
OUT = (48, 32)  # angles, radii


def some_points(n=9, batch=2):
    return 2 * torch.rand(batch, n, 2, dtype=torch.float64) - 1


def picture(angle=0.0, scale=1.0, origin=(0.0, 0.0)):
    """A smooth image on SIZE, turned by `angle` from x to y and scaled about `origin`, (1, 1, H, W).

    Lengths in half the shorter side, as the radii of the transform.
    """
    y, x = torch.meshgrid(*[stn.geometry.lattice(n, dtype=torch.float64) for n in SIZE], indexing="ij")
    x, y = (x - origin[0]) * SIZE[1] / SIZE[0], y - origin[1]
    c, s = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = c * x + s * y, -s * x + c * y
    bumps = [(0.35, 0.0, 0.12), (-0.1, 0.3, 0.15), (-0.2, -0.3, 0.1), (0.1, -0.15, 0.1)]
    return sum(torch.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * r * r)) for a, b, r in bumps)[None, None]


def unrolled(image, family, origin=(0.0, 0.0)):
    return stn.warp(image, torch.tensor([origin], dtype=torch.float64), OUT, transform=family)


def test_by_hand():
    """The corners of the output's frame, on an image twice as wide as high."""
    theta = torch.tensor([[0.2, -0.1]], dtype=torch.float64)
    points = torch.tensor([[[1, -1], [1, -0.5], [1, 0], [1, 0.5], [0, -0.5], [-1, 0.3]]], dtype=torch.float64)
    wanted = torch.tensor(
        [[[0.2 + 0.5, -0.1], [0.2, 0.9], [0.2 - 0.5, -0.1], [0.2, -1.1], [0.2, 0.4], [0.2, -0.1]]], dtype=torch.float64
    )
    mapped = Polar().map_points(theta, points, stn.Frame((10, 20)))
    torch.testing.assert_close(mapped, wanted, rtol=0, atol=1e-15)
    log = Polar(log=True, min_radius=0.25).map_points(theta, points[:, 4:], stn.Frame((10, 20)))
    torch.testing.assert_close(log[0, 0], torch.tensor([0.2, -0.1 + 0.5], dtype=torch.float64))
    assert float(((log[0, 1] - theta[0]) * torch.tensor([2.0, 1.0])).norm()) == pytest.approx(0.25)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_identity_is_the_neutral_origin_and_no_identity(family):
    assert family.num_params == 2
    assert torch.equal(family.identity(), torch.zeros(2))
    points = some_points()
    theta = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    centred = family.map_points(torch.zeros(1, 2, dtype=torch.float64), points[:1], stn.Frame(SIZE))
    moved = family.map_points(theta, points[:1], stn.Frame(SIZE))
    torch.testing.assert_close(moved, centred + theta, rtol=0, atol=1e-15)
    assert float((centred - points[:1]).abs().max()) > 0.1


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_the_grid_is_the_mapped_lattice(family, align_corners):
    theta = 0.3 * torch.randn(2, 2, dtype=torch.float64)
    for image_size in (None, SIZE, (1, 7)):
        grid = family.grid(theta, (5, 4), stn.Frame(image_size, align_corners))
        seen = stn.Frame(image_size or (5, 4), align_corners)
        slowly = AbstractTransform.coordinates(family, theta, (5, 4), seen).values
        torch.testing.assert_close(grid, slowly, rtol=0, atol=1e-14)
        assert grid.shape == (2, 5, 4, 2)


@pytest.mark.parametrize("align_corners", [False, True])
def test_circles_are_circles_on_the_image(align_corners):
    for size in ((20, 50), (50, 20), (9, 9)):
        theta = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
        options = {"align_corners": align_corners}
        grid = Polar(max_radius=0.8).grid(theta, (12, 5), stn.Frame(size, align_corners))
        pixels = frame.normalized_to_pixel(grid, size, **options) - frame.normalized_to_pixel(theta, size, **options)
        radii = pixels.norm(dim=-1)[0]
        torch.testing.assert_close(radii, radii[:1].expand_as(radii), rtol=0, atol=1e-12)
        half = min(stn.geometry.extent(size, **options))
        wanted = 0.8 * half * (stn.geometry.lattice(5, dtype=torch.float64, **options) + 1) / 2
        torch.testing.assert_close(radii[0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("origin", [(0.0, 0.0), (0.2, -0.15)])
@pytest.mark.parametrize("family", [Polar(max_radius=0.8), Polar(log=True, max_radius=0.8)], ids=repr)
def test_a_turn_is_a_circular_shift_of_the_angles(family, origin):
    before = unrolled(picture(origin=origin), family, origin)
    for rows in (5, -11, 24):
        after = unrolled(picture(angle=2 * math.pi * rows / OUT[0], origin=origin), family, origin)
        torch.testing.assert_close(after, before.roll(rows, dims=2), rtol=0, atol=2e-3)
        assert float((after - before).abs().max()) > 0.3


def test_a_scale_is_a_shift_of_the_log_radius():
    family = Polar(log=True, min_radius=0.1, max_radius=0.9)
    before = unrolled(picture(), family)
    for columns in (3, -4):
        scale = 9 ** (columns / OUT[1])
        after = unrolled(picture(scale=scale), family)
        inner = slice(5, -5)  # what came in from beyond the radii is unknown
        torch.testing.assert_close(after[..., inner], before.roll(columns, dims=3)[..., inner], rtol=0, atol=2e-3)
        assert float((after - before)[..., inner].abs().max()) > 0.2
    plain = Polar(min_radius=0.1, max_radius=0.9)
    off = unrolled(picture(scale=1.3), plain) - unrolled(picture(), plain).roll(4, dims=3)
    assert float(off[..., 5:-5].abs().max()) > 0.1


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_to_polar_is_the_way_back(family):
    theta, points = 0.3 * torch.randn(2, 2, dtype=torch.float64), 0.99 * some_points()
    seen = stn.Frame(SIZE, align_corners=True)
    image_points = family.map_points(theta, points, seen)
    torch.testing.assert_close(family.to_polar(theta, image_points, seen), points, rtol=0, atol=1e-12)
    back = family.map_points(theta, family.to_polar(theta, points, seen), seen)
    torch.testing.assert_close(back, points, rtol=0, atol=1e-12)
    # the origin has no angle, and its derivative is not to poison those of the others
    points = torch.cat([points, theta[:, None]], dim=1)
    theta.requires_grad_()
    there = family.to_polar(theta, points, seen)
    there[:, :-1].sum().backward()
    assert theta.grad.isfinite().all()
    assert (there[:, -1, 1] == -1).all()


def test_dots_are_found_where_to_polar_says():
    family = Polar(max_radius=0.9)
    theta = torch.tensor([[0.1, -0.2]], dtype=torch.float64)
    at = torch.tensor([[[180.0, 130.0]]], dtype=torch.float64)
    rows, columns = torch.arange(float(SIZE[0]))[:, None], torch.arange(float(SIZE[1]))
    dot = torch.exp(-((columns - 180) ** 2 + (rows - 130) ** 2) / 64)[None, None].double()
    out = stn.warp(dot, theta, OUT, transform=family)
    there = family.to_polar(theta, frame.pixel_to_normalized(at, SIZE), stn.Frame(SIZE))
    x, y = frame.normalized_to_pixel(there, OUT).flatten().tolist()
    assert divmod(int(out.argmax()), OUT[1]) == (round(y), round(x))


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_gradients(family):
    theta, points = torch.randn(2, 2, dtype=torch.float64).requires_grad_(), some_points(3).requires_grad_()
    for call in (family.map_points, family.to_polar):
        assert torch.autograd.gradcheck(lambda t, p: call(t, p, stn.Frame(SIZE)), (theta, points))
    assert torch.autograd.gradcheck(lambda t: family.grid(t, (2, 3), stn.Frame(SIZE)), (theta,))


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_batches_and_types(family):
    theta, points = torch.randn(2, 2, dtype=torch.float64), some_points()
    assert family.map_points(theta[:0], points[:0]).shape == (0, 9, 2)
    assert family.grid(theta[:0], (3, 4)).shape == (0, 3, 4, 2)
    mapped = family.map_points(theta, points)
    torch.testing.assert_close(family.map_points(theta[1:], points[1:])[0], mapped[1])
    torch.testing.assert_close(family.map_points(theta, points[:1])[1:], family.map_points(theta[1:], points[:1]))
    single = family.map_points(theta.bfloat16(), points.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), family.map_points(theta.bfloat16().double(), points), rtol=0, atol=2e-6)
    image = torch.rand(1, 3, 9, 13)
    assert stn.warp(image, theta.float(), (8, 6), transform=family).shape == (2, 3, 8, 6)


def test_wrong_arguments():
    for options in ({"min_radius": 1.0}, {"min_radius": -0.1}, {"min_radius": "0"}, {"log": True, "min_radius": 0.0}):
        with pytest.raises(ValueError, match=r"^min_radius: "):
            Polar(**options)
    for radius in (0.0, -1, math.inf, None, True):
        with pytest.raises(ValueError, match=r"^max_radius: "):
            Polar(max_radius=radius)
    with pytest.raises(ValueError, match=r"^log: "):
        Polar(log=1)
    with pytest.raises(ValueError, match=r"theta: expected \(B, 2\)"):
        Polar().grid(torch.zeros(1, 3), (4, 4))
    with pytest.raises(ValueError, match=r"^image_size: "):
        Polar().map_points(torch.zeros(1, 2), torch.zeros(1, 1, 2), stn.Frame((4,)))
    with pytest.raises(ValueError, match="no inverse within its family"):
        Polar().inverse(torch.zeros(1, 2))
    with pytest.raises(TypeError):
        Polar(True)
    assert repr(Polar(log=True, max_radius=0.8)) == "Polar(log=True, max_radius=0.8)"
