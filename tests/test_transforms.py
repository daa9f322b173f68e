"""One contract that every family passes, then the facts of each."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stn
from stn import conventions as frame
from stn.transforms import TRANSFORMS, by_name

# Every family, free and bounded; a new one has to pass the contract, as it comes unless a line here says how.
FAMILIES = {
    "affine": stn.Affine,
    "affine, bounded": lambda: stn.Affine(max_delta=1.5),
    "similarity": stn.Similarity,
    "similarity, bounded": lambda: stn.Similarity(max_angle=2.0, max_scale=4.0, max_shift=3.0),
    "similarity, plain scale": lambda: stn.Similarity(log_scale=False),
    "rigid": stn.Rigid,
    "rigid, bounded": lambda: stn.Rigid(max_angle=2.0, max_shift=3.0),
    "attention": stn.Attention,
    "attention, bounded": lambda: stn.Attention(max_scale=4.0, max_shift=5.0),
    "attention, plain scale": lambda: stn.Attention(log_scale=False),
    "crop": stn.Crop,
    "crop, bounded": lambda: stn.Crop(max_scale=4.0, max_shift=5.0),
    "crop, plain scale": lambda: stn.Crop(log_scale=False),
    "translation": stn.Translation,
    "translation, bounded": lambda: stn.Translation(max_shift=2.0),
    "rotation": stn.Rotation,
    "rotation, bounded": lambda: stn.Rotation(max_angle=2.0),
    "projective": stn.Projective,
    "projective, bounded": lambda: stn.Projective(max_delta=1.5),
    "corners": stn.Corners,
    "corners, bounded": lambda: stn.Corners(max_shift=1.5),
    "tps": lambda: stn.ThinPlateSpline((3, 3)),
    "tps, two rows": lambda: stn.ThinPlateSpline.two_rows(8, max_offset=1.0),
    "tps, smoothed": lambda: stn.ThinPlateSpline((3, 4), regularization=0.1),
    "bspline": lambda: stn.BSpline((3, 3), levels=2),
    "displacement": lambda: stn.DisplacementField((4, 5)),
    "velocity": lambda: stn.VelocityField((5, 5)),
    "cpab": lambda: stn.CPAB((2, 2), zero_boundary=False),
    "polar": stn.Polar,
    "composed": lambda: stn.Similarity(max_scale=4.0) @ stn.Translation(),
    "composed twice": lambda: stn.Rotation() @ (stn.Crop() @ stn.Affine()),
    "composed, projective": lambda: stn.Projective() @ stn.Corners() @ stn.Rigid(),
    "composed, a chain": lambda: stn.ThinPlateSpline((3, 3)) @ stn.Similarity(),
    "affine, 1D": lambda: stn.Affine(1),
    "attention, 1D": lambda: stn.Attention(1, max_scale=4.0),
    "crop, 1D": lambda: stn.Crop(1),
    "translation, 1D": lambda: stn.Translation(1),
    "displacement, 1D": lambda: stn.DisplacementField((6,)),
    "velocity, 1D": lambda: stn.VelocityField((9,)),
    "cpab, 1D": lambda: stn.CPAB((5,), zero_boundary=False),
    "composed, 1D": lambda: stn.CPAB((3,), zero_boundary=False) @ stn.Affine(1),
    "affine, 3D": lambda: stn.Affine(3, max_delta=2.0),
    "similarity, 3D": lambda: stn.Similarity(3),
    "similarity, 3D, bounded": lambda: stn.Similarity(3, max_angle=2.0, max_scale=4.0, max_shift=3.0),
    "similarity, 3D, 6d": lambda: stn.Similarity(3, rotation="6d"),
    "rigid, 3D": lambda: stn.Rigid(3),
    "attention, 3D": lambda: stn.Attention(3),
    "crop, 3D": lambda: stn.Crop(3),
    "translation, 3D": lambda: stn.Translation(3),
    "rotation, 3D": lambda: stn.Rotation(3, max_angle=2.0),
    "rotation, 3D, 6d": lambda: stn.Rotation(3, rotation="6d"),
    "projective, 3D": lambda: stn.Projective(3),
    "tps, 3D": lambda: stn.ThinPlateSpline((2, 3, 2)),
    "bspline, 3D": lambda: stn.BSpline((2, 2, 2)),
    "displacement, 3D": lambda: stn.DisplacementField((3, 2, 3)),
    "velocity, 3D": lambda: stn.VelocityField((3, 3, 3)),
    "cpab, 3D": lambda: stn.CPAB((1, 1, 1), zero_boundary=False),
    "composed, 3D": lambda: stn.Rigid(3) @ stn.Crop(3),
}
FAMILIES = {name: family for name, family in TRANSFORMS.items() if name not in FAMILIES} | FAMILIES
WIDTHS = {
    "affine": 6,
    "similarity": 4,
    "rigid": 3,
    "attention": 3,
    "crop": 4,
    "translation": 2,
    "rotation": 1,
    "projective": 8,
    "corners": 8,
    "tps": 32,
}
# Families that integrate a velocity field numerically: how far theta goes in the test, and what inverse leaves there.
NUMERIC_INVERSE = {
    "velocity": (0.015, 2e-3),
    "velocity, 1D": (0.015, 2e-3),
    "velocity, 3D": (0.01, 1e-3),
    "cpab": (0.2, 1e-6),
    "cpab, 3D": (0.2, 1e-6),
}
# How much the position of some point changes, at the least, with each parameter. A corner point outside the frame of a
# B-spline weighs at most 1/36, and less at the next level; in 3D 1/216.
EFFECT = {"bspline": 0.005, "bspline, 3D": 0.001}
NON_SQUARE = (20, 12)  # H, W


def near_identity(transform, batch=3, spread=0.3, dtype=torch.float64):
    identity = transform.identity().to(dtype)
    return identity + spread * torch.randn(batch, transform.num_params, dtype=dtype)


def some_points(batch=3, n=7, d=2):
    return 2 * torch.rand(batch, n, d, dtype=torch.float64) - 1


def smooth(height, width):
    """A smooth image that fades to nothing at its borders, (1, 1, H, W)."""
    y, x = torch.meshgrid(*[stn.geometry.lattice(n, dtype=torch.float64) for n in (height, width)], indexing="ij")
    bumps = [(0.2, -0.1, 0.25), (-0.3, 0.2, 0.2), (0.1, 0.4, 0.15)]
    return sum(torch.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * s * s)) for a, b, s in bumps)[None, None]


def expected_of(family):
    """What is not as of the others."""
    spread, tolerance = NUMERIC_INVERSE.get(family, (0.2, 1e-12))
    return {
        "identity": family != "polar",
        "effect": 0.0 if "6d" in family else EFFECT.get(family, 0.1),
        "spread": spread,
        "tolerance": tolerance,
        "second_derivatives": family not in ("cpab", "cpab, 3D"),  # those of the exact flow are those of its steps
    }


@pytest.mark.parametrize("check", stn.testing.TRANSFORM_CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_contract(family, check):
    """What `stn.AbstractTransform` promises."""
    stn.testing.check_transform(FAMILIES[family](), only=check, **expected_of(family))


@pytest.mark.parametrize("cells", [(2, 2), (1, 1, 1)])
def test_second_derivatives_of_a_flow_in_steps(cells):
    stn.testing.check_transform(stn.CPAB(cells, zero_boundary=False, steps=10), only="gradients")


# The facts of each family


def test_the_contract_has_every_family():
    assert set(TRANSFORMS) <= {name.split(",")[0] for name in FAMILIES}
    concrete = {type(make()) for make in FAMILIES.values()}
    assert set(TRANSFORMS.values()) <= concrete


@pytest.mark.parametrize("name", TRANSFORMS)
def test_by_name(name):
    transform = by_name(name)
    assert type(transform) is TRANSFORMS[name]
    if name in WIDTHS:
        assert transform.num_params == WIDTHS[name]


def test_by_name_passes_options_on_and_says_what_is_wrong():
    assert by_name("similarity", max_angle=0.5).max_angle == 0.5
    with pytest.raises(ValueError, match=r"name: .*did you mean 'affine'"):
        by_name("affin")
    with pytest.raises(ValueError, match=r"options: .*max_angle"):
        by_name("affine", max_angle=1.0)
    with pytest.raises(ValueError, match="max_delta"):
        by_name("affine", max_delta=-1.0)


def test_affine_is_the_matrix_row_by_row():
    theta = torch.tensor([[1.0, 2, 3, 4, 5, 6]])
    assert stn.Affine().matrix(theta).tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert stn.Affine().map_points(theta, torch.tensor([[[10.0, 100.0]]])).tolist() == [[[213, 546]]]
    assert torch.equal(stn.Affine().from_matrix(stn.Affine().matrix(theta)), theta)


def test_affine_inverse_of_a_singular_matrix_raises():
    with pytest.raises(ValueError, match="singular"):
        stn.Affine().inverse(torch.tensor([[1.0, 2, 3, 2, 4, 6]]))
    with pytest.raises(ValueError, match="scale of 0"):
        stn.Crop(log_scale=False).inverse(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


def test_translation_moves_what_is_read():
    image = torch.arange(6.0).reshape(1, 1, 1, 6)
    out = stn.warp(image, torch.tensor([[2 / 6, 0.0]]), transform=stn.Translation())
    torch.testing.assert_close(out.flatten(), torch.tensor([1.0, 2, 3, 4, 5, 0]), rtol=0, atol=1e-5)


def test_scales_above_one_zoom_out():
    grid = stn.Attention().grid(torch.tensor([[math.log(2.0), 0.0, 0.0]]), (2, 2), stn.Frame(align_corners=True))
    assert grid.abs().tolist() == [[[[2.0] * 2] * 2] * 2]
    plain = stn.Attention(log_scale=False).grid(torch.tensor([[2.0, 0.0, 0.0]]), (2, 2), stn.Frame(align_corners=True))
    assert torch.equal(plain, grid)
    crop = stn.Crop().matrix(torch.tensor([[math.log(2.0), math.log(3.0), 0.1, 0.2]]))
    torch.testing.assert_close(crop, torch.tensor([[[2.0, 0, 0.1], [0, 3.0, 0.2]]]))


@pytest.mark.parametrize("family", [stn.Rotation, stn.Rigid, stn.Similarity])
def test_a_positive_angle_turns_the_content_counterclockwise(family):
    """And the sampled frame clockwise, as y points down: a dot on the right comes to the top."""
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 7] = 1.0
    theta = family().identity()[None].clone()
    theta[0, 0] = math.pi / 2
    out = stn.warp(image, theta, transform=family())
    assert divmod(int(out.argmax()), 9) == (1, 4)
    assert float(out.max()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("family", [stn.Rotation, stn.Rigid, stn.Similarity])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(10, 40), (40, 10), (7, 7)])
def test_rotations_are_true_on_images_that_are_not_square(family, align_corners, size):
    """Distances between pixels stay; normalized coordinates without the aspect would shear."""
    transform = family()
    theta = torch.zeros(4, transform.num_params, dtype=torch.float64)
    theta[:, 0] = torch.tensor([math.pi / 2, 0.3, -2.0, math.pi], dtype=torch.float64)
    points = some_points(4, 6)
    options = {"align_corners": align_corners}
    mapped = transform.map_points(theta, points, stn.Frame(size, align_corners))
    before, after = (frame.normalized_to_pixel(p, size, **options) for p in (points, mapped))
    torch.testing.assert_close(torch.cdist(after, after), torch.cdist(before, before), rtol=0, atol=1e-10)
    centre = torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2], dtype=torch.float64)
    quarter = torch.stack([-(before[0] - centre)[:, 1], (before[0] - centre)[:, 0]], dim=-1)
    torch.testing.assert_close(after[0] - centre, quarter, rtol=0, atol=1e-10)
    if size[0] != size[1]:
        sheared = frame.normalized_to_pixel(transform.map_points(theta, points), size, **options)
        assert float((torch.cdist(sheared, sheared) - torch.cdist(before, before)).abs().max()) > 1


def test_a_quarter_turn_of_a_non_square_image_keeps_its_pixels():
    image = torch.zeros(1, 1, 9, 21)
    image[0, 0, 4, 7:14] = torch.arange(1.0, 8.0)  # a bar along x
    out = stn.warp(image, torch.tensor([[math.pi / 2]]), transform=stn.Rotation())
    wanted = torch.zeros(1, 1, 9, 21)
    wanted[0, 0, 1:8, 10] = torch.arange(7.0, 0.0, -1)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-4)


def test_similarity_scales_both_axes_alike():
    transform = stn.Similarity()
    theta = torch.tensor([[0.7, math.log(1.7), 0.2, -0.1]], dtype=torch.float64)
    points = some_points(1)
    mapped = transform.map_points(theta, points, stn.Frame(NON_SQUARE))
    before, after = (frame.normalized_to_pixel(p, NON_SQUARE) for p in (points, mapped))
    torch.testing.assert_close(torch.cdist(after, after), 1.7 * torch.cdist(before, before), rtol=0, atol=1e-10)


def test_an_axis_of_one_pixel_does_not_turn():
    for size in ((1, 8), (8, 1), (1, 1)):
        matrix = stn.Rotation().matrix(torch.tensor([[0.3]]), stn.Frame(size, True))
        assert matrix.isfinite().all()
        assert stn.warp(torch.ones(1, 1, *size), torch.tensor([[0.3]]), transform=stn.Rotation()).isfinite().all()


BOUNDED = [
    (lambda: stn.Affine(max_delta=0.5), "max_delta"),
    (lambda: stn.Similarity(max_angle=0.6, max_scale=1.5, max_shift=0.4), "max_"),
    (lambda: stn.Rigid(max_angle=0.6, max_shift=0.4), "max_"),
    (lambda: stn.Attention(max_scale=1.5, max_shift=0.4), "max_"),
    (lambda: stn.Crop(max_scale=1.5, max_shift=0.4), "max_"),
    (lambda: stn.Translation(max_shift=0.4), "max_shift"),
    (lambda: stn.Rotation(max_angle=0.6), "max_angle"),
]


def decoded(transform, theta):
    """Everything that is bounded, as (value, bound) pairs."""
    if isinstance(transform, stn.Affine):
        return [(transform.matrix(theta) - torch.eye(2, 3), transform.max_delta)]
    angle, scale, shift = transform.decode(theta)
    pairs = [(angle, transform.max_angle), (scale.log(), transform.max_scale and math.log(transform.max_scale))]
    return [(value, bound) for value, bound in [*pairs, (shift, transform.max_shift)] if bound is not None]


@pytest.mark.parametrize("make", [make for make, _ in BOUNDED])
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6))
def test_bounds_are_never_exceeded(make, values):
    transform = make()
    theta = torch.tensor([values[: transform.num_params]])
    pairs = decoded(transform, theta)
    assert pairs
    for value, bound in pairs:
        assert float(value.abs().max()) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("make", [make for make, _ in BOUNDED])
def test_bounds_are_reached_from_both_sides(make):
    transform = make()
    for sign in (1.0, -1.0):
        for value, bound in decoded(transform, torch.full((1, transform.num_params), 100.0 * sign)):
            assert float((sign * value).max()) == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize("make", [make for make, _ in BOUNDED])
def test_a_bound_leaves_the_identity_and_the_slope_there(make):
    """tanh around the identity itself would move it: tanh(1) = 0.76."""
    bounded, free = make(), type(make())()
    assert torch.equal(bounded.identity(), free.identity())
    points, identity = some_points(1), free.identity().double()
    slopes = [
        torch.autograd.functional.jacobian(lambda t, f=family: f.map_points(t[None], points), identity)
        for family in (bounded, free)
    ]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("make", "argument"), BOUNDED)
def test_an_inverse_or_composition_out_of_bounds_raises(make, argument):
    transform = make()
    wide = transform.identity().double()[None] + 100.0
    with pytest.raises(ValueError, match=rf"^{argument}.*exceeds the bound"):
        transform.compose(wide, wide)
    if not isinstance(transform, stn.Affine):
        with pytest.raises(ValueError, match=rf"^{argument}.*exceeds the bound"):
            transform.inverse(wide)


def test_an_inverse_out_of_the_bound_raises_for_affine():
    narrow = stn.Affine(max_delta=0.5)
    theta = narrow.from_matrix(torch.tensor([[[0.6, 0, 0], [0, 1.0, 0]]]))  # inverse: 1.67
    with pytest.raises(ValueError, match="max_delta"):
        narrow.inverse(theta)
    with pytest.raises(ValueError, match="max_delta"):
        narrow.from_matrix(torch.tensor([[[2.0, 0, 0], [0, 1, 0]]]))
    matrix = torch.tensor([[[1.2, 0.3, -0.4], [0.1, 0.8, 0.2]]])
    torch.testing.assert_close(narrow.matrix(narrow.from_matrix(matrix)), matrix)


@pytest.mark.parametrize("family", [stn.Similarity, stn.Rigid, stn.Attention, stn.Crop, stn.Translation, stn.Rotation])
def test_encode_is_the_inverse_of_decode(family):
    transform = family()
    theta = near_identity(transform)
    torch.testing.assert_close(transform.encode(*transform.decode(theta)), theta, rtol=0, atol=1e-14)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan"), "1"])
def test_bad_bounds(bad):
    for make, argument in (
        (stn.Affine, "max_delta"), (stn.Similarity, "max_angle"), (stn.Rigid, "max_shift"),
        (stn.Attention, "max_scale"), (stn.Translation, "max_shift"), (stn.Rotation, "max_angle"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{argument}: "):
            make(**{argument: bad})
    with pytest.raises(ValueError, match="max_scale"):
        stn.Crop(max_scale=1.0)
    with pytest.raises(ValueError, match=r"max_scale: .*log_scale"):
        stn.Crop(max_scale=2.0, log_scale=False)


# Compositions


def test_compose_maps_through_the_inner_one_first():
    both = stn.Rotation() @ stn.Translation()
    theta = torch.tensor([[math.pi / 2, 0.5, 0.0]])
    mapped = both.map_points(theta, torch.zeros(1, 1, 2))  # to (0.5, 0), then turned onto y
    torch.testing.assert_close(mapped, torch.tensor([[[0.0, 0.5]]]), rtol=0, atol=1e-6)
    outer, inner = both.split(theta)
    assert (outer.shape, inner.shape) == ((1, 1), (1, 2))


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_compose_is_two_warps_with_one_resampling(size):
    """First by the outer one, then by the inner one."""
    outer, inner = stn.Similarity(), stn.Affine()
    a = torch.tensor([[0.4, 0.1, 0.1, -0.05]], dtype=torch.float64)
    b = torch.tensor([[0.9, 0.15, -0.1, 0.05, 1.1, 0.1]], dtype=torch.float64)
    image = smooth(*size)
    twice = stn.warp(stn.warp(image, a, transform=outer), b, transform=inner)
    once = stn.warp(image, torch.cat([a, b], dim=1), transform=outer @ inner)
    other_way = stn.warp(image, torch.cat([b, a], dim=1), transform=inner @ outer)
    torch.testing.assert_close(once, twice, rtol=0, atol=0.02)  # a blurred peak of height 1
    assert float((other_way - twice).abs().max()) > 0.1
    matrices = outer.matrix(a, stn.Frame(size)), inner.matrix(b)
    as_matrices = stn.warp(image, stn.geometry.compose_matrices(*matrices))
    torch.testing.assert_close(as_matrices, once, rtol=0, atol=1e-12)


def test_a_warp_and_its_inverse_give_the_image_back():
    transform = stn.Similarity()
    theta = torch.tensor([[0.5, 0.2, 0.1, -0.1]], dtype=torch.float64)
    image = smooth(96, 64)
    there = stn.warp(image, theta, transform=transform)
    back = stn.warp(there, transform.inverse(theta, stn.Frame((96, 64))), transform=transform)
    assert float((there - image).abs().max()) > 0.3
    torch.testing.assert_close(back, image, rtol=0, atol=0.02)


def test_compose_rejects_what_is_no_transform():
    with pytest.raises(ValueError, match=r"^inner: "):
        stn.Affine() @ 3
    with pytest.raises(ValueError, match=r"^outer: "):
        stn.Compose(None, stn.Affine())


def test_a_fold_is_seen_and_its_inverse_is_refused():
    tps = stn.ThinPlateSpline((3, 3))
    theta = tps.identity()[None].repeat(2, 1)
    theta[1, 8] = 1.7  # the centre point is read beyond its right neighbour
    assert tps.folds(theta, (15, 15)).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"^points: expected points that the warp reaches"):
        stn.Crop(log_scale=False).unmap_points(torch.zeros(1, 4), torch.full((1, 1, 2), 0.5))


def test_bad_boxes_are_refused():
    with pytest.raises(ValueError, match=r"^boxes: expected \(B, N, 4\)"):
        stn.Affine().map_boxes(stn.Affine().identity()[None], torch.zeros(1, 2, 2))
