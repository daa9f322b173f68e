"""Volumes in physical space: true turns of voxels that are no cubes, world coordinates, inverses of large warps."""

from __future__ import annotations

import math

import pytest
import torch

import stn
from stn import conventions

SIZE, SPACING = (10, 15, 20), (1.0, 1.5, 3.0)
TURNING = {
    "rotation": lambda **o: stn.Rotation(3, **o),
    "rotation, 6d": lambda **o: stn.Rotation(3, rotation="6d", **o),
    "rigid": lambda **o: stn.Rigid(3, **o),
    "similarity": lambda **o: stn.Similarity(3, **o),
    "rotation, 2D": lambda **o: stn.Rotation(**o),
    "rigid, 2D": lambda **o: stn.Rigid(**o),
    "similarity, 2D": lambda **o: stn.Similarity(**o),
}


def told(name):
    """A family without spacing, one with, and the frames that make both true."""
    d = 2 if "2D" in name else 3
    return TURNING[name](), TURNING[name](spacing=SPACING[:d]), SIZE[-d:], SPACING[:d]


def random_theta(family, generator=None):
    return family.identity().double() + 0.4 * torch.randn(3, family.num_params, dtype=torch.float64)


def in_mm(points, size, spacing, align_corners):
    half = stn.geometry.extent(size, align_corners=align_corners)
    return points * torch.tensor(half, dtype=torch.float64) * torch.tensor(spacing, dtype=torch.float64)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", TURNING)
def test_a_turn_is_one_in_millimetres(name, align_corners):
    """Distances keep their ratio, whether the family or the image says the spacing; without it they do not."""
    plain, own, size, spacing = told(name)
    theta = random_theta(plain)
    points = 2 * torch.rand(3, 40, len(size), dtype=torch.float64) - 1
    before = torch.cdist(*[in_mm(points, size, spacing, align_corners)] * 2)
    pairs = before > 0.1

    def spread(family, frame):
        mapped = in_mm(family.map_points(theta, points, frame), size, spacing, align_corners)
        ratio = torch.where(pairs, torch.cdist(mapped, mapped) / before, torch.nan).flatten(1)
        return max(float((r[~r.isnan()].max() / r[~r.isnan()].min()) - 1) for r in ratio)

    assert spread(own, stn.Frame(size, align_corners)) < 1e-7
    assert spread(plain, stn.Frame(size, align_corners, spacing)) < 1e-7
    assert spread(plain, stn.Frame(size, align_corners)) > 0.01


@pytest.mark.parametrize("name", TURNING)
def test_what_a_family_says_of_its_warps_holds_with_spacing(name):
    _, family, size, spacing = told(name)
    a, b = random_theta(family) / 2, random_theta(family) / 2
    if family.widths[0] == 6:
        a, b = a + family.identity() / 2, b + family.identity() / 2
    frame = stn.Frame(size)
    points = 2 * torch.rand(3, 9, len(size), dtype=torch.float64) - 1
    mapped = family.map_points(a, family.map_points(b, points, frame), frame)
    torch.testing.assert_close(family.map_points(family.compose(a, b, frame), points, frame), mapped)
    both = family @ family
    torch.testing.assert_close(both.map_points(torch.cat([a, b], 1), points, frame), mapped)
    torch.testing.assert_close(
        family.map_points(family.inverse(a, frame), family.map_points(a, points, frame), frame), points
    )
    torch.testing.assert_close(family.unmap_points(a, family.map_points(a, points, frame), frame), points)
    again = family.from_matrix(family.matrix(a, frame), frame)
    torch.testing.assert_close(family.map_points(again, points, frame), family.map_points(a, points, frame))
    affine = stn.convert(a, family, stn.Affine(len(size)), image_size=size)
    torch.testing.assert_close(stn.Affine(len(size)).map_points(affine, points), family.map_points(a, points, frame))
    plain = TURNING[name]()
    same = stn.convert(affine, stn.Affine(len(size)), plain, image_size=size, spacing=spacing)
    torch.testing.assert_close(
        plain.map_points(same, points, stn.Frame(size, False, spacing)), plain_map(a, points, name)
    )
    boxes = torch.tensor([[[-0.5] * len(size) + [0.25] * len(size)]], dtype=torch.float64).expand(3, -1, -1)
    corners = family.map_boxes(a, boxes, frame)
    assert bool((corners[..., : len(size)] <= corners[..., len(size) :]).all())


def plain_map(theta, points, name):
    _, family, size, _ = told(name)
    return family.map_points(theta, points, stn.Frame(size))


def test_the_turn_is_that_of_a_matrix_in_millimetres():
    """Told by hand: Rodrigues' matrix about the middle of the volume, in the world, brought into the frame."""
    axis, angle = torch.tensor([2.0, -1, 2]) / 3, math.radians(30)
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = torch.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    world = torch.diag(torch.tensor([*SPACING, 1.0]))
    centre = conventions.normalized_to_world(torch.zeros(3), world, SIZE)
    matrix = torch.cat([turn, (centre - turn @ centre)[:, None]], 1)[None]
    theta = conventions.theta_from_world(matrix, world, SIZE, world, SIZE)
    family = stn.Rotation(3, spacing=SPACING)
    torch.testing.assert_close(family.matrix((axis * angle)[None], stn.Frame(SIZE)), theta, atol=1e-6, rtol=1e-6)
    image = torch.rand(1, 2, *SIZE)
    turned = stn.warp(image, (axis * angle)[None], transform=stn.Rotation(3), spacing=SPACING)
    torch.testing.assert_close(turned, stn.warp(image, theta), atol=1e-5, rtol=1e-5)


def test_every_way_of_reading_is_told_the_spacing():
    image, theta = torch.rand(2, 1, *SIZE), torch.tensor([[0.3, -0.2, 0.4]] * 2)
    family, own = stn.Rotation(3), stn.Rotation(3, spacing=SPACING)
    wanted = stn.warp(image, theta, transform=own)
    assert not torch.allclose(stn.warp(image, theta, transform=family), wanted, atol=0.01)
    assert torch.equal(stn.warp(image, theta, transform=family, spacing=SPACING), wanted)
    assert torch.equal(stn.warp(image, theta, transform=own, spacing=SPACING), wanted)
    linearized = stn.linearized_warp(image, theta, transform=family, spacing=SPACING)
    torch.testing.assert_close(linearized, wanted, atol=1e-4, rtol=1e-4)  # reads a grid
    options = {"antialias": True}
    averaged = stn.warp(image, theta, transform=family, spacing=SPACING, **options)
    assert torch.equal(averaged, stn.warp(image, theta, transform=own, **options))
    transformer = stn.SpatialTransformer(torch.nn.Identity(), family, padding_mode="zeros")
    warp = transformer.warp(image, theta, spacing=SPACING)
    assert torch.equal(warp.output, wanted)
    points = 2 * torch.rand(2, 5, 3) - 1
    torch.testing.assert_close(warp.map_points(points), own.map_points(theta, points, stn.Frame(SIZE)))
    torch.testing.assert_close(warp.unmap_points(warp.map_points(points)), points, atol=1e-4, rtol=1e-4)
    assert torch.equal(warp.grid(), own.grid(theta, SIZE))
    transformer = stn.SpatialTransformer(torch.nn.Identity(), own, padding_mode="zeros")
    assert torch.equal(transformer.warp(image, theta).output, wanted)


def test_circles_of_polar_are_circles_in_millimetres():
    points = torch.cat([torch.full((1, 8, 1), 0.2), torch.linspace(-1, 0.75, 8)[None, :, None]], -1)
    mapped = stn.Polar(spacing=(1, 3)).map_points(torch.zeros(1, 2), points, stn.Frame((20, 50)))
    radii = (mapped * torch.tensor([25.0, 30.0])).norm(dim=-1)
    torch.testing.assert_close(radii, torch.full((1, 8), 0.6 * 25))


def test_a_square_frame_takes_the_spacing_alone():
    mapped = stn.Rotation(spacing=(1, 2)).map_points(torch.tensor([[math.pi / 2]]), torch.tensor([[[1.0, 0.0]]]))
    torch.testing.assert_close(mapped, torch.tensor([[[0.0, 0.5]]]))


@pytest.mark.parametrize(
    "bad", [(1, 1), (1, 1, 0), (1, 1, -3), (1, 1, math.nan), (1, 1, math.inf), "113", 3, (1, 1, "x"), (1, 1, None)]
)
def test_a_spacing_that_is_none_is_refused(bad):
    image, theta = torch.rand(1, 1, *SIZE), torch.zeros(1, 3)
    calls = [
        lambda: stn.Rotation(3, spacing=bad),
        lambda: stn.warp(image, theta, transform=stn.Rotation(3), spacing=bad),
        lambda: stn.linearized_warp(image, theta, transform=stn.Rotation(3), spacing=bad),
        lambda: stn.SpatialTransformer(torch.nn.Identity(), stn.Rotation(3)).warp(image, theta, spacing=bad),
        lambda: stn.Rotation(3).matrix(theta, stn.Frame(SIZE, False, bad)),
        lambda: stn.convert(theta, stn.Rotation(3), stn.Affine(3), spacing=bad),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"^spacing: expected None or 3 positive numbers"):
            call()


def test_a_spacing_that_says_nothing_or_something_else_is_refused():
    image = torch.rand(1, 1, *SIZE)
    with pytest.raises(ValueError, match=r"^spacing: expected None with theta as matrices"):
        stn.warp(image, torch.eye(3, 4)[None], spacing=SPACING)
    with pytest.raises(ValueError, match=r"^spacing: expected \(1.0, 1.5, 3.0\), that of the family"):
        stn.warp(image, torch.zeros(1, 3), transform=stn.Rotation(3, spacing=SPACING), spacing=(1, 1, 1))


# World coordinates


def random_world():
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3] = q * torch.tensor([0.8, 1.0, 2.5], dtype=torch.float64)
    world[:3, 3] = 20 * torch.randn(3, dtype=torch.float64)
    return world


@pytest.mark.parametrize("align_corners", [False, True])
def test_world_coordinates_there_and_back(align_corners):
    world = random_world()
    options = {"align_corners": align_corners}
    pixels = torch.tensor([[0.0, 0, 0], [19, 14, 9], [3, 0, 7.5]], dtype=torch.float64)
    points = pixels @ world[:3, :3].T + world[:3, 3]
    normalized = conventions.world_to_normalized(points, world, SIZE, **options)
    torch.testing.assert_close(normalized, conventions.pixel_to_normalized(pixels, SIZE, **options))
    torch.testing.assert_close(conventions.normalized_to_world(normalized, world.numpy(), SIZE, **options), points)
    torch.testing.assert_close(
        torch.tensor(conventions.spacing_of(world)), torch.tensor([0.8, 1.0, 2.5]), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("direction", ["pull", "push"])
def test_a_map_of_the_world_moves_its_points(direction, align_corners):
    options = {"align_corners": align_corners}
    in_world, out_world, out_size = random_world(), random_world(), (7, 8, 9)
    matrix = torch.eye(3, 4, dtype=torch.float64) + 0.2 * torch.randn(2, 3, 4, dtype=torch.float64)
    theta = conventions.theta_from_world(matrix, in_world, SIZE, out_world, out_size, direction=direction, **options)
    points = 2 * torch.rand(2, 5, 3, dtype=torch.float64) - 1
    there = conventions.normalized_to_world(points, out_world, out_size, **options)
    here = conventions.normalized_to_world(stn.geometry.map_affine(theta, points), in_world, SIZE, **options)
    start, end = (there, here) if direction == "pull" else (here, there)
    torch.testing.assert_close(stn.geometry.map_affine(matrix, start), end)
    back = conventions.theta_to_world(theta, in_world, SIZE, out_world, out_size, direction=direction, **options)
    torch.testing.assert_close(back, matrix)


@pytest.mark.parametrize(
    "bad",
    [
        torch.eye(3), torch.eye(4)[:3], torch.zeros(4, 4), torch.full((4, 4), math.nan), torch.ones(4, 4), "world", None,
        torch.eye(4) * 2,
    ],
)  # fmt: skip
def test_a_matrix_that_is_no_world_is_refused(bad):
    calls = [
        lambda: conventions.world_to_normalized(torch.zeros(1, 3), bad, SIZE),
        lambda: conventions.normalized_to_world(torch.zeros(1, 3), bad, SIZE),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"^world: expected a pixel-to-world matrix \(4, 4\)"):
            call()
    for name, first, second in (("in_world", bad, torch.eye(4)), ("out_world", torch.eye(4), bad)):
        with pytest.raises(ValueError, match=rf"^{name}: expected a pixel-to-world matrix \(4, 4\)"):
            conventions.theta_from_world(torch.eye(3, 4)[None], first, SIZE, second, SIZE)
