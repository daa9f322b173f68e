"""From family to family: every pair that can say the same says it, every other is an error."""

from __future__ import annotations

import pytest
import torch

import stn
from stn.geometry import as_projective

SIZE = {1: (14,), 2: (12, 9), 3: (5, 7, 6)}


def theta_of(source, batch=3, spread=0.2):
    return source.identity().double() + spread * torch.randn(batch, source.num_params, dtype=torch.float64)


def assert_converts(source, target, theta=None, *, align_corners=False):
    """The same warp of an image, by positions and by pixels, on an image that is not square."""
    theta = theta_of(source) if theta is None else theta
    size = SIZE[source.ndim]
    options = {"image_size": size, "align_corners": align_corners}
    converted = stn.convert(theta, source, target, **options)
    assert converted.shape == (len(theta), target.num_params)
    assert converted.dtype == theta.dtype
    seen = stn.Frame(size, align_corners)
    wanted, got = source.grid(theta, size, seen), target.grid(converted, size, seen)
    assert (wanted - stn.Affine(source.ndim).grid(stn.Affine(source.ndim).identity()[None], size)).abs().max() > 0.05
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9 if theta.dtype == torch.float64 else 1e-4)
    image = torch.rand(len(theta), 2, *size, dtype=torch.float64)
    out, same = (
        stn.warp(image, t, transform=family, padding_mode="border", align_corners=align_corners)
        for t, family in ((theta, source), (converted, target))
    )
    torch.testing.assert_close(same, out, rtol=0, atol=1e-7 if theta.dtype == torch.float64 else 1e-2)
    return converted


# Each matrix family, and all those that hold it. Where the source has bounds the target has none.
HELD = {
    "Translation": ("Translation", "Rigid", "Attention", "Crop", "Similarity", "Affine"),
    "Rotation": ("Rotation", "Rigid", "Similarity", "Affine"),
    "Attention": ("Attention", "Crop", "Similarity", "Affine"),
    "Rigid": ("Rigid", "Similarity", "Affine"),
    "Crop": ("Crop", "Affine"),
    "Similarity": ("Similarity", "Affine"),
    "Affine": ("Affine",),
}
PAIRS = [
    (source, target, d)
    for source, targets in HELD.items() for target in targets for d in (1, 2, 3)
    if d > 1 or not {source, target} & {"Rotation", "Rigid", "Similarity"}
]  # fmt: skip


@pytest.mark.parametrize(("source", "target", "d"), PAIRS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_matrix_families_and_back(source, target, d, align_corners):
    source, target = getattr(stn, source)(d), getattr(stn, target)(d)
    theta = theta_of(source)
    converted = assert_converts(source, target, theta, align_corners=align_corners)
    options = {"image_size": SIZE[d], "align_corners": align_corners}
    back = stn.convert(converted, target, source, **options)
    torch.testing.assert_close(back, theta, rtol=0, atol=1e-9)


OPTIONS = [
    (stn.Similarity(max_angle=2.0, max_scale=4.0, max_shift=3.0), stn.Similarity()),
    (stn.Attention(log_scale=False), stn.Attention()),
    (stn.Crop(), stn.Crop(log_scale=False)),
    (stn.Affine(max_delta=1.5), stn.Affine()),
    (stn.Rotation(3), stn.Rotation(3, rotation="6d")),
    (stn.Similarity(3, rotation="6d"), stn.Similarity(3, max_angle=3.0)),
    (stn.Projective(max_delta=1.5), stn.Projective()),
    (stn.Corners(max_shift=1.0), stn.Corners()),
    (stn.ThinPlateSpline((3, 3), max_offset=1.0), stn.ThinPlateSpline((3, 3))),
    (stn.BSpline((3, 4), max_offset=1.0), stn.BSpline((3, 4))),
    (stn.DisplacementField((4, 5), max_offset=1.0), stn.DisplacementField((4, 5))),
]


@pytest.mark.parametrize(("one", "other"), OPTIONS, ids=lambda family: str(family).replace("\n", ""))
def test_options_of_one_family(one, other):
    for source, target in ((one, other), (other, one), (one, one)):
        assert_converts(source, target, theta_of(source, spread=0.1))


LATTICES = {
    1: [stn.DisplacementField((2,)), stn.DisplacementField((5,))],
    2: [
        stn.ThinPlateSpline((2, 2)), stn.ThinPlateSpline((3, 4)), stn.ThinPlateSpline.two_rows(8),
        stn.ThinPlateSpline(torch.tensor([[0.1, 0.2], [0.8, -0.5], [-0.9, 0.3]])),
        stn.ThinPlateSpline((3, 3), regularization=0.1), stn.ThinPlateSpline((3, 3), max_offset=4.0),
        stn.BSpline((2, 2)), stn.BSpline((4, 3), levels=2), stn.BSpline((3, 3), max_offset=4.0),
        stn.DisplacementField((2, 2)), stn.DisplacementField((5, 3)), stn.DisplacementField((3, 3), max_offset=4.0),
    ],
    3: [
        stn.ThinPlateSpline((2, 2, 2)), stn.BSpline((2, 3, 2)), stn.BSpline((2, 2, 2), levels=2),
        stn.DisplacementField((2, 3, 4)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("target", [t for d in LATTICES for t in LATTICES[d]], ids=lambda t: str(t))
@pytest.mark.parametrize("source", ["Affine", "Crop", "Similarity"])
def test_affine_maps_go_into_every_lattice(source, target):
    d = target.ndim
    if d == 1 and source == "Similarity":
        pytest.skip("there is none in 1D")
    assert_converts(getattr(stn, source)(d), target)


FINER = [
    (stn.DisplacementField((3,)), stn.DisplacementField((5,))),
    (stn.DisplacementField((3, 4)), stn.DisplacementField((5, 10))),
    (stn.DisplacementField((2, 3, 2)), stn.DisplacementField((3, 5, 4))),
    (stn.DisplacementField((1, 3)), stn.DisplacementField((2, 3))),
    (stn.ThinPlateSpline((3, 3)), stn.ThinPlateSpline((5, 5))),
    (stn.ThinPlateSpline((2, 2)), stn.ThinPlateSpline((4, 3))),
    (stn.ThinPlateSpline((2, 2, 2)), stn.ThinPlateSpline((3, 2, 2))),
    (stn.BSpline((3, 4)), stn.BSpline((5, 7))),
    (stn.BSpline((3, 4)), stn.BSpline((3, 4), levels=3)),
    (stn.BSpline((3, 4), levels=2), stn.BSpline((5, 7))),
    (stn.BSpline((2, 2, 2)), stn.BSpline((3, 4, 2))),
    (stn.VelocityField((3, 4)), stn.DisplacementField((3, 4))),
]


@pytest.mark.parametrize(("coarse", "fine"), FINER, ids=str)
def test_finer_lattices_hold_coarser_ones(coarse, fine):
    if isinstance(coarse, stn.ThinPlateSpline):
        # (4, 3) points hold the corners of (2, 2), (5, 5) every point of (3, 3)
        distance = torch.cdist(coarse.control_points, fine.control_points).amin(1)
        assert distance.max() < 1e-9
    assert_converts(coarse, fine, theta_of(coarse, spread=0.1))
    if fine.num_params > coarse.num_params:
        with pytest.raises(ValueError, match=r"^target: expected a family that can express"):
            stn.convert(theta_of(fine, spread=0.1), fine, coarse)


@pytest.mark.parametrize("size", [(2, 2), (9, 11), (40, 30)])
def test_splines_from_the_points_of_a_fine_lattice(size):
    """The system that gives a B-spline's coefficients stays well conditioned."""
    source = stn.BSpline(size)
    theta = theta_of(source, 1, 0.02 / size[0])
    back = stn.convert(theta, source, source)
    torch.testing.assert_close(back, theta, rtol=0, atol=1e-12)


def test_corners_and_projective_maps():
    corners, projective = stn.Corners(), stn.Projective()
    theta = theta_of(corners, 5, 0.15)
    converted = assert_converts(corners, projective, theta)
    torch.testing.assert_close(stn.convert(converted, projective, corners), theta, rtol=0, atol=1e-10)
    for source in (stn.Affine(), stn.Rotation(), stn.Crop()):
        for target in (corners, projective):
            assert_converts(source, target)
    assert_converts(stn.Affine(3), stn.Projective(3))
    assert_converts(stn.Projective(3), stn.Projective(3), theta_of(stn.Projective(3), spread=0.1))


@pytest.mark.parametrize("target", [stn.Affine(), stn.ThinPlateSpline((2, 3)), stn.BSpline((2, 3)),
                                    stn.DisplacementField((2, 2)), stn.Corners()], ids=str)  # fmt: skip
def test_projective_maps_that_are_affine(target):
    theta = stn.convert(theta_of(stn.Affine()), stn.Affine(), stn.Projective())
    assert_converts(stn.Projective(), target, theta)


def test_compositions():
    assert_converts(stn.Rigid() @ stn.Attention(), stn.Similarity())
    assert_converts(stn.Similarity() @ stn.Crop() @ stn.Rotation(), stn.Affine())
    assert_converts(stn.Projective() @ stn.Affine(), stn.Corners(), theta_of(stn.Projective() @ stn.Affine(), 3, 0.1))
    assert_converts(stn.Affine(1) @ stn.Crop(1), stn.DisplacementField((3,)))
    assert_converts(stn.Rotation(3) @ stn.Attention(3), stn.BSpline((2, 2, 2)))
    # a field over a translation of it is a field no more, but a translation of a field is
    assert_converts(stn.Translation() @ stn.DisplacementField((3, 4)), stn.DisplacementField((3, 4)))


def test_perspectives_that_cancel():
    """Their product is affine times a factor."""
    projective, affine = stn.Projective(), theta_of(stn.Affine()).reshape(-1, 2, 3)
    first = theta_of(projective, spread=0.1)
    second = projective.from_matrix(torch.linalg.inv(projective.matrix(first)) @ as_projective(affine))
    both = projective @ projective
    theta = torch.cat([first, second], dim=1)
    assert (both.matrix(theta)[:, 2, 2] - 1).abs().max() > 1e-3
    converted = assert_converts(both, stn.Affine(), theta)
    torch.testing.assert_close(converted, affine.flatten(1), rtol=0, atol=1e-10)


INEXACT = [
    (stn.Affine(), stn.Similarity()), (stn.Affine(), stn.Crop()), (stn.Affine(), stn.Rigid()),
    (stn.Similarity(), stn.Rigid()), (stn.Similarity(), stn.Attention()), (stn.Crop(), stn.Attention()),
    (stn.Crop(), stn.Similarity()), (stn.Rigid(), stn.Rotation()), (stn.Rigid(), stn.Translation()),
    (stn.Attention(), stn.Translation()), (stn.Affine(3), stn.Similarity(3)), (stn.Affine(1), stn.Translation(1)),
    (stn.Projective(), stn.Affine()), (stn.Projective(), stn.Similarity()), (stn.Corners(), stn.Affine()),
    (stn.Projective(), stn.ThinPlateSpline((4, 4))), (stn.Projective(), stn.DisplacementField((9, 9))),
    (stn.Projective(), stn.BSpline((5, 5))), (stn.ThinPlateSpline((3, 3)), stn.Affine()),
    (stn.ThinPlateSpline((3, 3)), stn.Projective()), (stn.ThinPlateSpline((3, 3)), stn.DisplacementField((9, 9))),
    (stn.ThinPlateSpline((3, 3)), stn.ThinPlateSpline((4, 4))), (stn.ThinPlateSpline((3, 3)), stn.BSpline((4, 4))),
    (stn.ThinPlateSpline((3, 3)), stn.ThinPlateSpline((3, 3), regularization=0.1)),
    (stn.BSpline((3, 3)), stn.BSpline((4, 4))), (stn.BSpline((3, 3)), stn.DisplacementField((9, 9))),
    (stn.DisplacementField((3, 3)), stn.DisplacementField((4, 4))), (stn.DisplacementField((3, 3)), stn.Affine()),
    (stn.DisplacementField((3, 3)), stn.BSpline((3, 3))), (stn.Polar(), stn.DisplacementField((9, 9))),
    (stn.VelocityField((3, 3)), stn.DisplacementField((4, 4))), (stn.Polar(), stn.Affine()),
    (stn.Affine(), stn.CPAB((2, 2))), (stn.Affine(), stn.VelocityField((3, 3))), (stn.Affine(), stn.Polar()),
    (stn.Affine(), stn.Rigid() @ stn.Rigid()),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), INEXACT, ids=lambda family: str(family).replace("\n", ""))
def test_what_the_target_cannot_say_is_an_error(source, target):
    with pytest.raises(ValueError, match=r"^(target|matrix): expected"):
        stn.convert(theta_of(source, spread=0.1), source, target, image_size=SIZE[source.ndim])


def test_the_error_says_which_of_the_batch():
    theta = theta_of(stn.DisplacementField((3, 3)))
    theta[:2] = stn.convert(theta_of(stn.Affine(), 2), stn.Affine(), stn.DisplacementField((3, 3)))
    with pytest.raises(ValueError, match="that at index 2 is not"):
        stn.convert(theta, stn.DisplacementField((3, 3)), stn.DisplacementField((2, 2)))


@pytest.mark.parametrize("n", [3, 13, 25, 101])
def test_agreement_on_the_lattice_alone_is_not_enough(n):
    """The source is 0 on every point of the target, and not between."""
    source, target = stn.DisplacementField((2 * n - 1,)), stn.DisplacementField((n,))
    theta = torch.zeros(1, 2 * n - 1)
    theta[0, n | 1] = 0.01  # a single point of the finer lattice
    with pytest.raises(ValueError, match="index 0 is not"):
        stn.convert(theta, source, target)


def test_a_mirror_image_is_no_similarity():
    mirror = torch.tensor([[-1.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    with pytest.raises(ValueError, match="matrix: expected maps of Similarity"):
        stn.convert(mirror, stn.Affine(), stn.Similarity())
    assert_converts(stn.Affine(), stn.Corners(), mirror)


BOUNDED = [
    stn.Translation(max_shift=0.5), stn.Rigid(max_shift=0.5), stn.Similarity(max_shift=0.5), stn.Crop(max_shift=0.5),
    stn.Affine(max_delta=0.5), stn.Projective(max_delta=0.5), stn.Corners(max_shift=0.5),
    stn.ThinPlateSpline((3, 3), max_offset=0.5), stn.BSpline((3, 3), max_offset=0.5),
    stn.DisplacementField((3, 3), max_offset=0.5),
]  # fmt: skip


@pytest.mark.parametrize("target", BOUNDED, ids=str)
def test_bounds(target):
    near, far = torch.tensor([[0.3, 0.2]]), torch.tensor([[0.1, 0.1], [0.1, -0.6]])
    assert_converts(stn.Translation(), target, near)
    with pytest.raises(ValueError, match=r"^max_(shift|delta|offset): .*exceeds the bound"):
        stn.convert(far, stn.Translation(), target)


@pytest.mark.parametrize(("source", "target", "d"), [p for p in PAIRS if p[2] > 1])
def test_single_precision_goes_both_ways(source, target, d):
    """A matrix rounded to float32 still counts as one of the narrower family."""
    source, target = getattr(stn, source)(d), getattr(stn, target)(d)
    theta = theta_of(source).float()
    converted = assert_converts(source, target, theta)
    back = stn.convert(converted, target, source, image_size=SIZE[d])
    torch.testing.assert_close(back, theta, rtol=0, atol=1e-5)


def test_the_aspect_of_the_image_matters():
    """A turn of a wide image is no turn of a square one."""
    matrix = stn.convert(torch.tensor([[0.5]]), stn.Rotation(), stn.Affine(), image_size=(10, 30))
    assert float(matrix[0, 1]) == pytest.approx(-(10 / 30) * 0.4794255, abs=1e-6)
    torch.testing.assert_close(
        stn.convert(matrix, stn.Affine(), stn.Rotation(), image_size=(10, 30)), torch.tensor([[0.5]])
    )
    with pytest.raises(ValueError, match="matrix: "):
        stn.convert(matrix, stn.Affine(), stn.Rotation())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_types(dtype):
    theta = theta_of(stn.Similarity()).to(dtype)
    for target in (stn.Affine(), stn.ThinPlateSpline((3, 3)), stn.BSpline((3, 3)), stn.DisplacementField((3, 3))):
        out = stn.convert(theta, stn.Similarity(), target)
        assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_empty_batches():
    for target in (stn.Affine(), stn.Corners(), stn.BSpline((3, 3)), stn.ThinPlateSpline((3, 3))):
        assert stn.convert(torch.zeros(0, 4), stn.Similarity(), target).shape == (0, target.num_params)


def test_gradients_pass():
    theta = theta_of(stn.Similarity(), 1).requires_grad_()
    for target in (stn.Affine(), stn.Corners(), stn.BSpline((3, 3)), stn.ThinPlateSpline((3, 3))):
        assert torch.autograd.gradcheck(lambda t: stn.convert(t, stn.Similarity(), target), (theta,))


@pytest.mark.parametrize(("arguments", "options", "message"), [
    ((None, stn.Affine(), stn.Affine()), {}, "theta: "),
    ((torch.zeros(2, 5), stn.Affine(), stn.Affine()), {}, r"theta: expected \(B, 6\)"),
    ((torch.zeros(2, 6, dtype=torch.int64), stn.Affine(), stn.Affine()), {}, "theta: "),
    ((torch.zeros(2, 6), "affine", stn.Affine()), {}, "source: expected a transform"),
    ((torch.zeros(2, 6), stn.Affine(), stn.Affine), {}, "target: expected a transform"),
    ((torch.zeros(2, 6), stn.Affine(), stn.Affine(3)), {}, "target: expected a family in 2D"),
    ((torch.zeros(2, 6), stn.Affine(), stn.Affine()), {"image_size": (3,)}, "image_size: expected 2"),
    ((torch.zeros(2, 6), stn.Affine(), stn.Affine()), {"image_size": "wide"}, "image_size: "),
    ((torch.zeros(2, 6), stn.Affine(), stn.Affine()), {"align_corners": 1}, "align_corners: "),
    ((torch.full((2, 6), torch.nan), stn.Affine(), stn.Affine()), {}, "target: .* index 0"),
])  # fmt: skip
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        stn.convert(*arguments, **options)
