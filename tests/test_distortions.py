import math

import numpy as np
import pytest
import torch

import stn
from stn_recipes.data import distortions
from stn_recipes.data.distortions import NAMES, draw, get

SIZES = {"r": 28, "rts": 42, "p": 42, "e": 28, "t": 60, "tc": 60, "t84": 84, "tc84": 84, "affine": 28, "flip_shift": 28}


def table(name, count, epoch=0):
    return draw(count, get(name).num_random, seed=3, stream=0, epoch=epoch)


def blob(x, y, size=28, sigma=2.0):
    """A Gaussian blob at a pixel position, (1, 1, size, size)."""
    line = torch.arange(size, dtype=torch.float64) + 0.5
    image = torch.exp(-((line - x) ** 2 + (line[:, None] - y) ** 2) / (2 * sigma**2))
    return image[None, None].float()


def centroid(images):
    """(B, 2): x, y in pixels from the top left edge."""
    mass = images.double().sum((1, 2, 3))
    x = (images.double().sum((1, 2)) * (torch.arange(images.shape[3]) + 0.5)).sum(1) / mass
    y = (images.double().sum((1, 3)) * (torch.arange(images.shape[2]) + 0.5)).sum(1) / mass
    return torch.stack([x, y], dim=1).numpy()


def digits(count=64, size=28):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def source(count=64, size=28):
    return (digits(count, size) * 255).to(torch.uint8)


def test_names_and_sizes():
    assert {*SIZES, "rts_each"} == set(NAMES)  # which wants two channels: test_addition.py
    for name, side in SIZES.items():
        distortion = get(name)
        out = distortion(digits(5), table(name, 5), source=source())
        assert out.shape == (5, 1, side, side), name
        assert out.dtype == torch.float32
        assert distortion.output_size((28, 28)) == (side, side)


@pytest.mark.parametrize("name", SIZES)
def test_other_sizes_channels_and_empty_batches(name):
    distortion = get(name)
    images = torch.rand(3, 3, 33, 21)
    out = distortion(images, table(name, 3), source=(images * 255).to(torch.uint8))
    ratio = SIZES[name] / 28
    assert out.shape == (3, 3, math.floor(33 * ratio + 0.5), math.floor(21 * ratio + 0.5))
    assert torch.isfinite(out).all()
    empty = distortion(images[:0], table(name, 0), source=(images * 255).to(torch.uint8))
    assert empty.shape == (0, *out.shape[1:])


@pytest.mark.parametrize("name", SIZES)
def test_a_sample_does_not_depend_on_its_batch(name):
    distortion, images, random, index = get(name), digits(64), table(name, 64), torch.arange(64)
    whole = distortion(images, random, source=source(), index=index)
    for size in (1, 5, 37):
        parts = [slice(start, start + size) for start in range(0, 64, size)]
        pieces = [distortion(images[p], random[p], source=source(), index=index[p]) for p in parts]
        assert torch.equal(torch.cat(pieces), whole), size
    other = distortion(images, table(name, 64, epoch=1), source=source(), index=index)
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("name", SIZES)
def test_the_input_is_left_alone(name):
    images, random = digits(4), table(name, 4)
    before = images.clone(), random.copy()
    get(name)(images, random, source=source())
    assert torch.equal(images, before[0])
    np.testing.assert_array_equal(random, before[1])


def test_draw_is_a_function_of_seed_stream_and_epoch():
    def one(seed=1, stream=2, epoch=3):
        return draw(4, 2, seed=seed, stream=stream, epoch=epoch)

    np.testing.assert_array_equal(one(), one())
    for other in (one(seed=2), one(stream=1), one(epoch=4)):
        assert not np.array_equal(one(), other)
    np.testing.assert_array_equal(draw(9, 2, seed=1, stream=2, epoch=3)[:4], one())


def angles(before, after, centre_before=14.0, centre_after=14.0):
    """Counter-clockwise as seen, in degrees."""

    def angle(p, centre):
        return np.degrees(np.arctan2(-(p[:, 1] - centre), p[:, 0] - centre))

    return (angle(after, centre_after) - angle(before, centre_before) + 180) % 360 - 180


def test_r_rotates_within_90_degrees_counter_clockwise():
    random = np.zeros((5, 4))
    random[:, 0] = [0.0, 0.25, 0.5, 0.75, 1 - 1e-12]
    marker = blob(20, 14).expand(5, -1, -1, -1)
    found = angles(centroid(marker), centroid(get("r")(marker, random)))
    np.testing.assert_allclose(found, [-90, -45, 0, 45, 90], atol=0.3)
    many = angles(centroid(blob(20, 14)), centroid(get("r")(blob(20, 14).expand(500, -1, -1, -1), table("r", 500))))
    assert many.min() < -85
    assert many.max() > 85
    assert abs(many.mean()) < 6
    assert abs(many.std() - 180 / math.sqrt(12)) < 4


def test_r_in_the_middle_of_its_range_is_the_identity():
    images = digits(2)
    torch.testing.assert_close(get("r")(images, np.full((2, 4), 0.5)), images, atol=1e-5, rtol=0)


def test_rotation_keeps_right_angles_on_oblong_images():
    theta = get("r").theta(np.array([[0.75, 0, 0, 0]]), (20, 40))[0]
    pixels = np.diag([20.0, 10.0]) @ theta[:, :2] @ np.diag([1 / 20, 1 / 10])
    np.testing.assert_allclose(pixels @ pixels.T, np.eye(2), atol=1e-12)


def test_rts_scales_rotates_and_stays_inside():
    distortion, random = get("rts"), table("rts", 2000)
    theta = distortion.theta(random, (28, 28))
    linear = np.linalg.inv(theta[:, :, :2] * 28 / 42)
    scale = np.sqrt(np.linalg.det(linear))
    angle = np.degrees(np.arctan2(linear[:, 0, 1], linear[:, 0, 0]))
    assert 0.7 <= scale.min() < 0.71
    assert 1.19 < scale.max() <= 1.2
    assert -45 <= angle.min() < -44
    assert 44 < angle.max() <= 45
    # the same from pictures: where the middle of the image goes
    place = centroid(distortion(blob(14, 14).expand(2000, -1, -1, -1), random)) - 21
    reach = (42 - 28 * scale) / 2
    assert (np.abs(place) <= reach[:, None] + 0.05).all()
    assert (np.abs(place) > 0.9 * reach[:, None]).mean() > 0.05
    centre = np.linalg.solve(theta[:, :, :2], -theta[:, :, 2:])[..., 0] * 21
    np.testing.assert_allclose(place, centre, atol=0.05)
    mass = distortion(blob(14, 14).expand(2000, -1, -1, -1), random).double().sum((1, 2, 3)).numpy()
    np.testing.assert_allclose(mass, scale**2 * blob(14, 14).double().sum().item(), rtol=0.03)


def test_affine_is_gentle():
    theta = get("affine").theta(table("affine", 2000), (28, 28))
    scale = 1 / np.sqrt(np.linalg.det(theta[:, :, :2]))
    angle = np.degrees(np.arctan2(theta[:, 1, 0], theta[:, 0, 0]))
    shift = np.linalg.solve(theta[:, :, :2], -theta[:, :, 2:])[..., 0] * 14
    assert 0.9 <= scale.min() < 0.905
    assert 1.095 < scale.max() <= 1.1
    assert 9.9 < np.abs(angle).max() <= 10
    assert 1.95 < np.abs(shift).max() <= 2 + 1e-9


def test_p_moves_the_corners_by_5_pixels_and_reads_them_at_home():
    distortion, random = get("p"), table("p", 4000)
    moved = distortion.corners(random)
    home = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]])
    offsets = (moved - home) * 21
    assert abs(offsets.mean()) < 0.1
    assert abs(offsets.std() - 5) < 0.1
    theta = distortion.theta(random, (28, 28))
    points = np.concatenate([moved, np.ones((4000, 4, 1))], axis=2) @ theta.transpose(0, 2, 1)
    points = points[..., :2] / points[..., 2:]
    scale = 0.75 + 0.25 * random[:, 0]
    np.testing.assert_allclose(points, home * (1.5 / scale)[:, None, None], atol=1e-6)


def test_p_picture_agrees_with_its_corners():
    random = table("p", 200)
    random[:, 0] = 1.0  # no scaling: the image fills the middle 28 pixels of the canvas
    distortion = get("p")
    moved = distortion.corners(random)
    theta = distortion.theta(random, (28, 28))
    out = centroid(distortion(blob(9, 17, sigma=1).expand(200, -1, -1, -1), random))
    push = np.linalg.inv(theta)
    expected = push @ np.array([9 / 14 - 1, 17 / 14 - 1, 1])
    expected = (expected[:, :2] / expected[:, 2:] + 1) * 21
    mild = np.abs(moved - [[-1, -1], [1, -1], [-1, 1], [1, 1]]).max((1, 2)) < 0.4
    assert mild.sum() > 50
    np.testing.assert_allclose(out[mild], expected[mild], atol=0.6)


def test_p_shows_nothing_from_behind_the_horizon():
    # an extreme draw: part of the canvas lies behind, and without care the image would appear there a second time
    low, middle, high = 1e-9, 0.5, 1 - 1e-9
    random = np.array([[middle, high, high, low, middle, middle, high, low, middle]])
    out = get("p")(torch.ones(1, 1, 28, 28), random)[0, 0]
    theta = get("p").theta(random, (28, 28))[0]
    line = (2 * np.arange(42) + 1) / 42 - 1
    x, y, w = (row[0] * line + row[1] * line[:, None] + row[2] for row in theta)
    ghost = torch.from_numpy((w < 0) & (np.abs(x / w) < 0.9) & (np.abs(y / w) < 0.9))
    assert ghost.sum() > 40
    assert (out[ghost] == 0).all()


def test_e_without_offsets_is_a_pure_scale():
    random = np.full((3, 33), 0.5)
    random[:, 0] = [0.0, 0.5, 1.0]
    grid = get("e").grid(random, (28, 28)).numpy()
    line = (2 * np.arange(28) + 1) / 28 - 1
    for row, scale in zip(grid, [0.75, 0.875, 1.0], strict=True):
        np.testing.assert_allclose(row[..., 0], np.tile(line / scale, (28, 1)), atol=1e-6)
        np.testing.assert_allclose(row[..., 1], np.tile(line[:, None] / scale, (1, 28)), atol=1e-6)


def test_the_warps_are_those_of_the_library():
    """Each is a member of a family of `stn`: what is random is its theta."""
    size, count = (28, 20), 50
    random = table("rts", count)
    distortion = get("rts")
    out = distortion.output_size(size)
    theta = distortion.theta(random, size)
    scale = torch.from_numpy(0.7 + 0.5 * random[:, 1])
    content = torch.stack([torch.from_numpy(np.deg2rad(90 * random[:, 0] - 45)), -scale.log(), 0 * scale, 0 * scale], 1)
    middle = torch.from_numpy(np.linalg.solve(theta[:, :, :2], -theta[:, :, 2:])[:, None, :, 0])  # of the output
    frame = stn.Crop().matrix(torch.tensor([[math.log(out[1] / 20), math.log(out[0] / 28), 0, 0]]).double())
    expected = stn.Similarity().matrix(content, stn.Frame(size))[:, :, :2] @ frame[:, :, :2]
    np.testing.assert_allclose(theta[:, :, :2], expected, atol=1e-12)
    reach = torch.stack([(out[1] - 20 * scale).clamp(min=0), (out[0] - 28 * scale).clamp(min=0)], 1)
    shift = (2 * torch.from_numpy(random[:, 2:]) - 1) * reach / torch.tensor([out[1], out[0]])
    np.testing.assert_allclose(middle[:, 0], shift, atol=1e-12)

    distortion, random = get("p"), table("p", count)
    home = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).double()  # as the family goes round
    moved = torch.from_numpy(distortion.corners(random))[:, [0, 1, 3, 2]]
    pull = torch.linalg.inv(stn.Corners().matrix((moved - home).flatten(1)))
    zoom = torch.from_numpy(0.75 + 0.25 * random[:, 0])
    out = distortion.output_size(size)
    pull = torch.stack(
        [pull[:, 0] * (out[1] / 20 / zoom)[:, None], pull[:, 1] * (out[0] / 28 / zoom)[:, None], pull[:, 2]], 1
    )
    np.testing.assert_allclose(distortion.theta(random, size), pull / pull[:, 2:, 2:], rtol=1e-9, atol=1e-9)

    grid = get("e").grid(table("e", count), size)
    spline = stn.ThinPlateSpline.lattice(4, 4)
    normal = torch.special.ndtri(torch.from_numpy(table("e", count)[:, 1:]))
    points = spline.control_points + 2 * 1.5 / 28 * normal.reshape(-1, 16, 2)
    zoom = torch.from_numpy(0.75 + 0.25 * table("e", count)[:, 0])[:, None, None, None]
    expected = spline.grid(spline.from_points(points), size) / zoom
    torch.testing.assert_close(grid, expected.float(), atol=1e-6, rtol=0)


def test_e_is_the_thin_plate_spline_through_its_lattice():
    from scipy.interpolate import RBFInterpolator

    random = table("e", 300)
    offsets = 2 * 1.5 / 28 * torch.special.ndtri(torch.from_numpy(random[:, 1:])).numpy().reshape(-1, 16, 2)
    assert abs(offsets.std() * 14 - 1.5) < 0.05
    grid = get("e").grid(random, (28, 20)).numpy()
    lattice = np.array([[x, y] for y in np.linspace(-1, 1, 4) for x in np.linspace(-1, 1, 4)])
    pixels = np.array([[(2 * x + 1) / 20 - 1, (2 * y + 1) / 28 - 1] for y in range(28) for x in range(20)])
    for sample in range(5):
        spline = RBFInterpolator(lattice, offsets[sample], kernel="thin_plate_spline", degree=1)
        expected = (pixels + spline(pixels)) / (0.75 + 0.25 * random[sample, 0])
        np.testing.assert_allclose(grid[sample].reshape(-1, 2), expected, atol=1e-6)


def test_t_keeps_the_image_exactly_and_goes_everywhere():
    images, random = digits(3000, 6), table("t", 3000)
    out = get("t")(images, random)
    assert out.shape[2:] == (13, 13)
    corners = {}
    for top in range(8):
        for left in range(8):
            same = (out[:, :, top : top + 6, left : left + 6] == images).flatten(1).all(1)
            corners[top, left] = int(same.sum())
    assert sum(corners.values()) == 3000
    assert min(corners.values()) > 20
    torch.testing.assert_close(out.sum((1, 2, 3)), images.sum((1, 2, 3)))
    assert ((out != 0).sum((1, 2, 3)) == (images != 0).sum((1, 2, 3))).all()


def test_tc_adds_clutter_from_other_images():
    count = 40
    images = torch.zeros(count, 1, 28, 28)
    images[:, :, 8:20, 8:20] = 1.0
    # image k of the source is all k + 1: a piece names the image it was cut from
    marked = (torch.arange(count, dtype=torch.uint8) + 1)[:, None, None, None].expand(-1, 1, 28, 28).contiguous()
    random = table("tc", count)
    index = torch.arange(count)
    plain = get("t")(images, random[:, :2])
    out = get("tc")(images, random, source=marked, index=index)
    assert (out >= plain).all()
    assert out.max() == 1.0, "clutter on the digit does not add up"
    clutter = torch.where(plain == 0, out, 0.0)
    pixels = (clutter > 0).sum((1, 2, 3))
    assert (pixels <= 6 * 36).all()
    assert pixels.float().mean() > 140
    who = (clutter * 255).round().long().flatten(1)
    for place in range(count):
        origin = set(who[place].tolist()) - {0}
        assert len(origin) >= 2
        assert place + 1 not in origin, "cut from itself"


def test_tc_cuts_real_pieces():
    images, random = torch.zeros(1, 1, 28, 28), table("tc", 1)
    many = source(10)
    out = (get("tc")(images, random, source=many) * 255).round().to(torch.uint8)[0, 0]
    windows = many.unfold(2, 6, 1).unfold(3, 6, 1).reshape(-1, 36)
    found = 0
    for patch in range(6):
        y, x = (int(random[0, 2 + 5 * patch + column] * 55) for column in (3, 4))
        found += int((windows == out[y : y + 6, x : x + 6].reshape(36)).all(1).any())
    assert found >= 4  # the others are overlapped


def test_flip_shift_moves_whole_pixels():
    images = digits(1, 32)
    random = np.array([[0.0, 0.5, 0.5], [0.9, 0.5, 0.5], [0.9, 0.0, 0.5], [0.9, 0.5, 1 - 1e-12]])
    out = get("flip_shift", padding_mode="zeros")(images.expand(4, -1, -1, -1), random)
    assert torch.equal(out[0], images[0].flip(-1))
    assert torch.equal(out[1], images[0])
    assert torch.equal(out[2][:, 4:], images[0][:, :28])
    assert (out[2][:, :4] == 0).all()
    assert torch.equal(out[3][:, :, :28], images[0][:, :, 4:])
    assert (out[3][:, :, 28:] == 0).all()
    reflected = get("flip_shift")(images, random[2:3])[0]
    assert torch.equal(reflected[:, :4], images[0][:, 1:5].flip(1))
    border = get("flip_shift", padding_mode="border")(images, random[2:3])[0]
    assert torch.equal(border[:, :5], images[0][:, :1].expand(-1, 5, -1))
    tiny = get("flip_shift")(torch.rand(2, 1, 1, 1), random[:2])
    assert tiny.shape == (2, 1, 1, 1)


def test_extreme_numbers_stay_finite():
    for name in SIZES:
        distortion = get(name)
        for value in (0.0, np.nextafter(1, 0)):
            out = distortion(digits(2), np.full((2, distortion.num_random), value), source=source())
            assert torch.isfinite(out).all(), name


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"name: expected one of r, rts, .* got 'rst'; did you mean 'rts'"):
        get("rst")
    with pytest.raises(ValueError, match="padding_mode: expected one of zeros"):
        get("flip_shift", padding_mode="wrap")
    with pytest.raises(ValueError, match=r"options of 'r'.*colour"):
        get("r", colour=1)
    with pytest.raises(ValueError, match="images: expected floating point"):
        get("r")(source(2), table("r", 2))
    with pytest.raises(ValueError, match=r"random: expected shape \(2, 4\).*got \(3, 4\)"):
        get("r")(digits(2), table("r", 3))
    with pytest.raises(ValueError, match="source: 'tc' cuts clutter"):
        get("tc")(digits(2), table("tc", 2))
    with pytest.raises(ValueError, match="source: expected uint8"):
        get("tc")(digits(2), table("tc", 2), source=digits(2))
    with pytest.raises(ValueError, match="index: expected one place"):
        get("tc")(digits(2), table("tc", 2), source=source(), index=torch.arange(3))


def test_tensors_serve_as_tables():
    images, random = digits(4), table("rts", 4)
    assert torch.equal(get("rts")(images, torch.from_numpy(random)), get("rts")(images, random))


def test_abstract():
    with pytest.raises(TypeError):
        distortions.Distortion()
