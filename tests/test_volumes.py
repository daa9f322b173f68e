"""Volumes in physical space: true turns of voxels that are no cubes, world coordinates, inverses of large warps."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import stn
import stn.viz
import stn.volumes
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


# Inverses of many points


SMOOTH = {
    "affine": lambda d: stn.Affine(d),
    "rigid": lambda d: stn.Rigid(d, spacing=SPACING[:d]),
    "projective": lambda d: stn.Projective(d),
    "tps": lambda d: stn.ThinPlateSpline((3,) * d),
    "bspline": lambda d: stn.BSpline((4,) * d, levels=2),
    "displacement": lambda d: stn.DisplacementField((5,) * d),
    "velocity": lambda d: stn.VelocityField((5,) * d),
    "cpab": lambda d: stn.CPAB((2,) * d),
    "composed": lambda d: stn.Similarity(d) @ stn.BSpline((4,) * d),
}


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", SMOOTH)
def test_many_points_are_found_as_few_are(name, d):
    """Those of a whole lattice, which start from a common inverse and go in pieces, and a few of them alone."""
    family = SMOOTH[name](d)
    theta = family.identity().double() + 0.03 * torch.randn(2, family.num_params, dtype=torch.float64)
    size = (80, 110) if d == 2 else (20, 21, 22)
    frame = stn.Frame(size)
    points = stn.geometry.lattice_points(theta, size, False)
    found = family.unmap_points(theta, points, frame, missing="nan")
    reached = ~found.isnan().any(-1)
    assert reached.double().mean() > 0.98  # the border's derivative has a jump, and homographies have a horizon
    back = family.map_points(theta, found, frame)
    torch.testing.assert_close(back[reached], points.expand(2, -1, -1)[reached], atol=1e-4, rtol=0)
    few = points[:, ::97]
    alone = family.unmap_points(theta, few, frame, missing="nan")
    both = reached[:, ::97] & ~alone.isnan().any(-1)
    torch.testing.assert_close(found[:, ::97][both], alone[both], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", SMOOTH)
def test_a_warp_and_its_derivative_are_one_whether_they_are_watched_or_not(name):
    family = SMOOTH[name](3)
    theta = family.identity().double() + 0.05 * torch.randn(2, family.num_params, dtype=torch.float64)
    points = 2.2 * torch.rand(2, 30, 3, dtype=torch.float64) - 1.1
    frame = stn.Frame(SIZE)
    mapped, wanted = stn.geometry.linearized(lambda p: family.map_points(theta, p, frame), points)
    for watched in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with watched:
            values, derivative = family._linearize(theta, points, frame)
            torch.testing.assert_close(values, mapped)
            torch.testing.assert_close(derivative, wanted)


@pytest.mark.parametrize("name", ["rigid", "bspline", "tps"])
def test_the_inverse_has_first_and_second_derivatives(name):
    family = SMOOTH[name](2)
    theta = (family.identity().double() + 0.05 * torch.randn(1, family.num_params)).double()[:, :18]
    pad = family.identity().double()[None, 18:]
    points = torch.rand(1, 3, 2, dtype=torch.float64) - 0.5

    def inverse(theta, points):
        return family.unmap_points(torch.cat([theta, pad], 1), points, stn.Frame((10, 15)), tolerance=1e-9)

    inputs = theta.requires_grad_(), points.requires_grad_()
    assert torch.autograd.gradcheck(inverse, inputs)
    assert torch.autograd.gradgradcheck(inverse, inputs)


def test_folds_of_a_large_warp_are_those_of_its_parts():
    """One voxel that folds is found in whatever piece it lies; a mirror image does not fold."""
    family = stn.DisplacementField((2, 2, 24))
    theta = family.identity().expand(3, -1).clone()
    theta.reshape(3, 2, 2, 24, 3)[1, :, :, 20, 0] = 0.3  # overtakes its neighbour at x = 0.74
    theta.reshape(3, 2, 2, 24, 3)[2, ..., 0] = -2 * torch.linspace(-1, 1, 24)
    assert family.folds(theta, (30, 31, 32)).tolist() == [False, True, False]
    theta.requires_grad_()
    assert family.folds(theta, (30, 31, 32)).tolist() == [False, True, False]


def test_points_that_no_warp_reads_are_missing_among_many():
    """A stretched image: what lies outside of its crop along x is read nowhere by a field that ends there."""
    family = stn.BSpline((4, 4))
    theta = 0.6 * torch.randn(1, family.num_params)  # folds all over
    points = stn.geometry.lattice_points(theta, (100, 100), False)
    found = family.unmap_points(theta, points, missing="nan")
    kept = ~found.isnan().any(-1)
    assert 0 < kept.sum() <= kept.numel()
    torch.testing.assert_close(family.map_points(theta, found[kept][None]), points[kept][None], atol=1.1e-4, rtol=0)
    flat = stn.Affine().from_matrix(torch.tensor([[[1.0, 0, 0], [0, 0, 0]]]))
    assert bool(stn.Affine().unmap_points(flat, points, missing="nan").isnan().any())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_labels_of_any_integer_type_come_and_go_through_a_bent_volume(dtype):
    size = (24, 26, 28)
    z, y, x = torch.meshgrid(*[stn.geometry.lattice(n) for n in size], indexing="ij")
    ball = (x.square() + y.square() + z.square()).sqrt() < 0.6
    labels = (ball if dtype == torch.bool else ball * 100)[None, None].to(dtype)
    family = stn.BSpline((4, 4, 4))
    theta = 0.06 * torch.randn(1, family.num_params)
    warped = stn.warp(labels, theta, transform=family, mode="nearest")
    assert warped.dtype == dtype
    back = stn.Warp(warped, theta, family, size, size, False).unwarp(warped)
    assert back.dtype == dtype
    assert set(back.unique().tolist()) <= set(labels.unique().tolist())
    kept = (back == labels).double().mean()
    assert kept > 0.98
    assert (warped == labels).double().mean() < kept


@pytest.mark.slow
def test_a_large_volume_needs_little_memory():
    """What `unwarp` and `folds` of a B-spline take at 96^3 beyond their results, in a process of their own."""
    program = """
import resource, torch, stn
size, family = (96,) * 3, stn.BSpline((6, 6, 6))
theta = 0.05 * torch.randn(1, family.num_params)
warp = stn.Warp(torch.zeros(1, 1, *size), theta, family, size, size, False)
stn.Warp(torch.zeros(1, 1, 8, 8, 8), theta, family, (8, 8, 8), (8, 8, 8), False).unwarp(torch.zeros(1, 1, 8, 8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
warp.unwarp(torch.zeros(1, 1, *size))
family.folds(theta, size)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500  # MB; 3000 at once


# Files and pictures


def test_a_volume_comes_back_from_a_file_with_its_place(tmp_path):
    nib = pytest.importorskip("nibabel")
    world = random_world()
    for name in ("x.nii", "x.nii.gz"):
        for data in (torch.rand(1, 1, 3, 4, 5), torch.rand(1, 2, 3, 4, 5), torch.arange(60).reshape(1, 1, 3, 4, 5).short(),
                     torch.arange(60).reshape(1, 1, 3, 4, 5).byte(), torch.arange(60).reshape(1, 1, 3, 4, 5) * 2**40):  # fmt: skip
            stn.volumes.save(tmp_path / name, data, world)
            back = stn.volumes.load(tmp_path / name)
            assert back.data.dtype == data.dtype
            assert torch.equal(back.data, data)
            torch.testing.assert_close(back.world, world, atol=1e-5, rtol=1e-5)  # the header's are float32
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["x.nii", "x.nii.gz"]
    image = nib.load(tmp_path / "x.nii")
    assert image.shape == (5, 4, 3)  # indexed (x, y, z)
    assert image.header.get_xyzt_units()[0] == "mm"
    scaled = nib.Nifti1Image(np.arange(24, dtype=np.uint16).reshape(2, 3, 4), world.numpy())
    scaled.header.set_slope_inter(0.5, 1)
    nib.save(scaled, tmp_path / "scaled.nii")
    assert stn.volumes.load(tmp_path / "scaled.nii").data.dtype == torch.float32


def test_resampling_is_that_of_nibabel(tmp_path):
    """From one scanner's lattice to another's, as `nibabel.processing` (SciPy) has it, well inside."""
    nib = pytest.importorskip("nibabel")
    from nibabel.processing import resample_from_to

    data = torch.rand(1, 1, 12, 14, 16)
    world, other = torch.diag(torch.tensor([1.0, 1.2, 3.0, 1.0])), torch.diag(torch.tensor([1.3, 0.9, 2.0, 1.0]))
    other[:3, 3] = torch.tensor([1.0, 2, 3])
    size = (10, 11, 9)
    theta = conventions.theta_from_world(torch.eye(3, 4)[None], world, (12, 14, 16), other, size)
    image = nib.Nifti1Image(data[0, 0].numpy().T, world.numpy())
    wanted = resample_from_to(image, (size[::-1], other.numpy()), order=1).get_fdata().T
    ours = stn.warp(data, theta, size)[0, 0]
    torch.testing.assert_close(ours, torch.from_numpy(wanted).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("path", lambda folder: stn.volumes.save(folder / "x.img", torch.rand(1, 1, 2, 2, 2), torch.eye(4))),
        ("data", lambda folder: stn.volumes.save(folder / "x.nii", torch.rand(2, 1, 2, 2, 2), torch.eye(4))),
        ("world", lambda folder: stn.volumes.save(folder / "x.nii", torch.rand(1, 1, 2, 2, 2), torch.eye(3))),
        ("path", lambda folder: stn.volumes.load(folder / "text.nii")),
        ("path", lambda folder: stn.volumes.load(folder / "flat.nii")),
        ("volumes", lambda folder: stn.viz.slices(torch.rand(1, 8, 8))),
        ("labels", lambda folder: stn.viz.slices(torch.rand(1, 1, 8, 8, 8), labels=torch.zeros(1, 1, 8, 8, 7))),
        ("at", lambda folder: stn.viz.slices(torch.rand(1, 1, 8, 8, 8), at=(0, 0, 2))),
        ("titles", lambda folder: stn.viz.slices(torch.rand(1, 1, 8, 8, 8), ["a", "b"])),
        ("after", lambda folder: stn.viz.registration(*torch.rand(2, 1, 1, 8, 8), torch.rand(1, 1, 8, 9))),
    ],
)
def test_what_is_no_volume_is_refused(argument, call, tmp_path):
    nib = pytest.importorskip("nibabel")

    (tmp_path / "text.nii").write_text("no volume")
    nib.save(nib.Nifti1Image(np.zeros((4, 4), np.float32), np.eye(4)), tmp_path / "flat.nii")
    with pytest.raises(ValueError, match=rf"^{argument}: "):
        call(tmp_path)


def test_slices_go_through_the_point_and_keep_the_aspect():
    from stn import viz

    volume = torch.arange(4 * 5 * 6.0).reshape(1, 1, 4, 5, 6)
    labels = (volume > 50).int()
    figure = viz.slices(volume, ["a"], spacing=(1, 1, 3), at=(-1.0, 0.0, 0.9), labels=labels)
    shown = [ax.images[0].get_array() for ax in figure.axes]
    volume = volume[0, 0].numpy()
    for plane, wanted in zip(shown, (volume[3], volume[:, 2], volume[:, :, 0]), strict=True):
        np.testing.assert_array_equal(plane, wanted)
    assert [ax.get_aspect() for ax in figure.axes] == [1.0, 3.0, 3.0]
    assert figure.axes[0].collections  # the outline of the labels
