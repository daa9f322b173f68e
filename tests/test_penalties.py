"""Penalties on warps: values by hand, zero where nothing is wrong, and a gradient that puts things right."""

from __future__ import annotations

import math

import pytest
import torch

import stn
from stn import penalties
from stn.penalties import PENALTIES, Penalty, bending, fold, identity, out_of_frame, scale, smoothness

FAMILIES = {
    "affine": stn.Affine,
    "similarity": stn.Similarity,
    "projective": stn.Projective,
    "corners": stn.Corners,
    "tps": lambda: stn.ThinPlateSpline((3, 3)),
    "bspline": lambda: stn.BSpline((3, 3)),
    "displacement": lambda: stn.DisplacementField((4, 5)),
    "velocity": lambda: stn.VelocityField((4, 5), steps=3),
    "cpab": lambda: stn.CPAB((2, 2), zero_boundary=False, steps=3),
    "composed": lambda: stn.Similarity() @ stn.ThinPlateSpline((3, 3)),
    "projective 3D": lambda: stn.Projective(3),
    "tps 3D": lambda: stn.ThinPlateSpline((2, 2, 2)),
    "bspline 3D": lambda: stn.BSpline((2, 2, 2)),
    "displacement 3D": lambda: stn.DisplacementField((2, 3, 3)),
    "cpab 3D": lambda: stn.CPAB((1, 1, 2), zero_boundary=False, steps=2),
    "displacement 1D": lambda: stn.DisplacementField((5,)),
    "cpab 1D": lambda: stn.CPAB((4,)),
}
# Options with which every penalty is at work on a warp that does nothing bad.
AT_WORK = {"fold": {"margin": 2.0}, "out_of_frame": {}, "scale": {}, "smoothness": {"order": 2}}


def warped(theta, transform, size=None, align_corners=False):
    """The warp of images of `size` by theta, without the images."""
    size = size or (6, 7, 8)[-transform.ndim :]
    return stn.Warp(torch.zeros(len(theta), 1, *size), theta, transform, size, size, align_corners)


def affine(*rows):
    """Of matrices, written out."""
    return warped(torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 6), stn.Affine())


def affine_3d(matrix):
    theta = torch.eye(4, dtype=torch.float64)
    theta[:3] = torch.tensor(matrix, dtype=torch.float64)
    return warped(theta.flatten()[None, :-1], stn.Projective(3))


IDENTITY = (1, 0, 0, 0, 1, 0)
MIRROR = (-1, 0, 0, 0, 1, 0)


def moment(points, edges):
    """The mean of x^2 over the positions of a lattice, from their number."""
    x = [(2 * i + 1 - points) / (points - 1 if edges else points) for i in range(points)]
    return sum(v * v for v in x) / points


# Values by hand


def test_identity():
    assert identity(affine((1, 0, 0.3, 0, 1, -0.4))).item() == pytest.approx(0.25)
    # (x / 2, 0): half of x away
    assert identity(affine((1.5, 0, 0, 0, 1, 0)), points=5).item() == pytest.approx(0.25 * moment(5, False))
    assert moment(5, False) == pytest.approx(0.32)
    both = affine((1, 0, 0.3, 0, 1, -0.4), IDENTITY)
    assert identity(both).item() == pytest.approx(0.125)  # the mean over the batch
    assert identity(affine_3d([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 1]])).item() == pytest.approx(1.25)
    shifted = warped(torch.full((1, 32), 0.5), stn.ThinPlateSpline())
    assert identity(shifted).item() == pytest.approx(0.5)  # every family alike
    assert identity(warped(torch.full((1, 50), 0.5), stn.DisplacementField((5, 5)))).item() == pytest.approx(0.5)


def test_scale():
    e = math.e
    assert scale(affine((e, 0, 0, 0, e, 0))).item() == pytest.approx(1)
    assert scale(affine((1 / e, 0, 0, 0, 1 / e, 0))).item() == pytest.approx(1)
    assert scale(affine((-e, 0, 0, 0, e, 0))).item() == pytest.approx(1)  # mirrored
    assert scale(affine((e**2, 0, 0, 0, 1, 0))).item() == pytest.approx(1)  # the mean of the axes
    assert scale(affine_3d([[e, 0, 0, 0], [0, e, 0, 0], [0, 0, e, 0]])).item() == pytest.approx(1)
    stretched = warped(torch.tensor([[-1.0, 1.0]]).double(), stn.DisplacementField((2,)))  # p -> 2 p
    assert scale(stretched).item() == pytest.approx(math.log(2) ** 2)
    out, at = affine((4, 0, 0, 0, 4, 0)), affine((2, 0, 0, 0, 2, 0))
    assert scale(out, high=2.0).item() == pytest.approx(math.log(2) ** 2)
    assert scale(out, low=8.0, high=16.0).item() == pytest.approx(math.log(2) ** 2)
    assert scale(at, low=0.5, high=2.5).item() == 0


def test_fold():
    assert fold(affine((0.5, 0, 0, 0, 0.5, 0)), margin=1.0).item() == pytest.approx(0.75)
    assert fold(affine((-0.5, 0, 0, 0, 0.5, 0)), margin=1.0).item() == pytest.approx(0.75)  # mirrored: the same
    assert fold(affine_3d([[0.5, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]), margin=1.0).item() == pytest.approx(0.5)
    assert fold(affine((0, 0, 0, 0, 0, 0)), margin=0.2).item() == pytest.approx(0.2)
    # Read at 0, 1, -1 (and 0) for -1, 0, 1: slopes 1 and -2, half of the cells each, on 4 cells
    theta = torch.tensor([[1.0, 1.0, -2.0]]).double()
    assert fold(warped(theta, stn.DisplacementField((3,))), margin=0.5, points=4).item() == pytest.approx(1.25)
    # mirrored, it is the steps forward that fold
    theta = torch.tensor([[1.0, -1.0, -1.0, -1.0, -1.0]]).double()  # slopes -3, 1, 1, 1
    assert fold(warped(theta, stn.DisplacementField((5,))), margin=0.0, points=4).item() == pytest.approx(3 / 4)
    theta = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.0]]).double()  # slopes -1, -1, -1, 3
    assert fold(warped(theta, stn.DisplacementField((5,))), margin=0.0, points=4).item() == pytest.approx(3 / 4)


def test_fold_is_zero_where_nothing_folds():
    """As `folds` has it, for warps of every family far from folding and for their mirror images."""
    for name, family in FAMILIES.items():
        transform = family()
        theta = transform.identity()[None] + 0.02 * torch.randn(2, transform.num_params)
        assert not transform.folds(theta, (9,) * transform.ndim).any(), name
        assert fold(warped(theta, transform)).item() == 0, name
    mirrored = warped(torch.tensor([[*MIRROR, *[0.05] * 18]]).float(), stn.Affine() @ stn.ThinPlateSpline((3, 3)))
    assert fold(mirrored).item() == 0


def test_smoothness():
    turned = affine((1.5, 0.25, 0.7, -0.5, 1, 0.1))  # linear part minus the identity: 0.5 0.25 / -0.5 0
    for points in (3, 9):
        assert smoothness(turned, points=points).item() == pytest.approx(0.5625)
        assert smoothness(turned, order=2, points=points).item() == pytest.approx(0, abs=1e-24)
    assert smoothness(affine((1, 0, 0.7, 0, 1, -0.1))).item() == pytest.approx(0, abs=1e-24)
    assert smoothness(affine_3d([[1, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 2, 0]])).item() == pytest.approx(1.25)
    # Displacement 0, 1, 0: slopes 1 and -1, and one second difference of -2
    tent = warped(torch.tensor([[0.0, 1.0, 0.0]]).double(), stn.DisplacementField((3,)))
    assert smoothness(tent, points=3).item() == pytest.approx(1)
    assert smoothness(tent, order=2, points=3).item() == pytest.approx(4)
    # x y along x: mixed second derivatives of 1, counted twice
    saddle = torch.tensor([[[1.0, 0], [0, 0], [-1, 0]], [[0, 0], [0, 0], [0, 0]], [[-1, 0], [0, 0], [1, 0]]])
    saddle = warped(saddle.double().reshape(1, -1), stn.DisplacementField((3, 3)))
    assert smoothness(saddle, order=2, points=3).item() == pytest.approx(2)
    assert smoothness(saddle, order=2, points=9).item() == pytest.approx(2, rel=0.2)  # but for the kinks


def test_bending():
    """The family's own where it has one, and what the differences converge to where both are means over the frame."""
    for transform in (stn.ThinPlateSpline((3, 3)), stn.BSpline((3, 3))):
        theta = 0.1 * torch.randn(2, transform.num_params, dtype=torch.float64)
        wanted = transform.bending_energy(theta).mean()
        assert bending(warped(theta, transform)).item() == pytest.approx(wanted.item())
    assert bending(warped(theta, transform)).item() == pytest.approx(
        smoothness(warped(theta, transform), order=2, points=65).item(), rel=0.05
    )
    both = stn.Affine() @ stn.BSpline((3, 3))
    theta = torch.cat([torch.tensor([IDENTITY] * 2).double(), theta], dim=1)
    wanted = smoothness(warped(theta, both), order=2, points=17)
    assert bending(warped(theta, both), points=17).item() == pytest.approx(wanted.item())
    assert wanted > 0


def test_out_of_frame():
    # -1, 0, 1 along x is read at 1, 2, 3: 0, 1, 2 outside
    assert out_of_frame(affine((1, 0, 2, 0, 1, 0)), points=3).item() == pytest.approx(5 / 3)
    assert out_of_frame(affine((1, 0, 0, 0, 1, -2)), points=3).item() == pytest.approx(5 / 3)
    assert out_of_frame(affine((2, 0, 0, 0, 2, 0)), points=3).item() == pytest.approx(4 / 3)
    assert out_of_frame(affine((0.5, 0, 0.5, 0, 0.5, -0.5))).item() == 0
    assert out_of_frame(affine_3d([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2]]), points=3).item() == pytest.approx(5 / 3)


def test_true_to_the_aspect():
    """A turn on a wide image reaches out of it along the short axis: the size has to arrive."""
    turn = torch.tensor([[math.pi / 2]], dtype=torch.float64)
    wide = warped(turn, stn.Rotation(), size=(10, 20))
    positions = stn.Rotation().map_points(turn, torch.tensor([[[1.0, 0.0]]]).double(), stn.Frame((10, 20)))
    torch.testing.assert_close(positions, torch.tensor([[[0.0, 2.0]]]).double(), rtol=0, atol=1e-12)
    assert out_of_frame(wide, points=3).item() == pytest.approx(2 / 3)
    assert out_of_frame(warped(turn, stn.Rotation(), size=(10, 10)), points=3).item() == pytest.approx(0, abs=1e-24)
    corners = warped(turn, stn.Rotation(), size=(3, 5), align_corners=True)
    assert out_of_frame(corners, points=3).item() == pytest.approx(2 / 3)
    assert out_of_frame(warped(turn, stn.Rotation(), size=(3, 5)), points=3).item() == pytest.approx(2 / 3 * 4 / 9)
    polar = (warped(turn.new_zeros(1, 2), stn.Polar(), size=size) for size in ((10, 10), (10, 20)))
    square, wide = (scale(warp).item() for warp in polar)
    assert square != pytest.approx(wide)


# Every family


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_contract(family, name):
    """Zero and a finite gradient at the identity, the right gradient next to it, 0 for an empty batch."""
    transform, penalty = FAMILIES[family](), PENALTIES[name]
    start = transform.identity().double().expand(2, -1)
    theta = start.clone().requires_grad_()
    value = penalty(warped(theta, transform))
    assert value.shape == ()
    assert value.item() == pytest.approx(0, abs=1e-12)
    if value.requires_grad:
        assert torch.autograd.grad(value, theta)[0].isfinite().all()
    empty = penalty(warped(theta[:0], transform))
    assert empty.item() == 0
    theta = (start + 0.1 * torch.randn(start.shape, dtype=torch.float64)).requires_grad_()
    options = AT_WORK.get(name, {})
    assert torch.autograd.gradcheck(
        lambda t: penalty(warped(t, transform), points=4, **options), (theta,), fast_mode=True
    )


def test_the_gradient_check_has_something_to_check():
    for name, penalty in PENALTIES.items():
        theta = torch.zeros(1, 40, dtype=torch.float64).normal_(0, 0.1).requires_grad_()
        value = penalty(warped(theta, stn.DisplacementField((4, 5))), points=4, **AT_WORK.get(name, {}))
        assert (torch.autograd.grad(value, theta)[0] != 0).any(), name


@pytest.mark.parametrize(("penalty", "transform", "start", "lr"), [
    (identity, stn.Affine(), (0.2, 0.5, 1.0, -0.5, 0.3, -1.0), 0.3),
    (scale, stn.Affine(), (6.0, 0, 0, 0, 5.0, 0), 0.7),  # zoomed out until blank
    (scale, stn.Attention(), (3.0, 0, 0), 0.1),
    (scale, stn.Attention(), (-3.0, 0, 0), 0.1),
    (fold, stn.DisplacementField((3,)), (0.0, 1.5, -0.5), 0.1),  # reads back and forth
    (smoothness, stn.DisplacementField((3, 3)), (0.5, -0.5) * 4 + (0.3, 0.1) + (-0.5, 0.5) * 4, 0.1),
    (bending, stn.ThinPlateSpline((3, 3)), (0.5, -0.5) * 4 + (0.3, 0.1) + (-0.5, 0.5) * 4, 0.005),
    (bending, stn.DisplacementField((3, 3)), (0.5, -0.5) * 4 + (0.3, 0.1) + (-0.5, 0.5) * 4, 0.004),
    (out_of_frame, stn.Translation(), (2.5, -3.0), 0.3),
    (out_of_frame, stn.Projective(3), (2.0, 0, 0, 0, 0, 2.0, 0, 0, 0, 0, 2.0, 1.0, 0, 0, 0), 0.1),
])  # fmt: skip
def test_it_puts_things_right(penalty, transform, start, lr):
    """Plain gradient descent leaves a hundredth of it."""
    theta = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    first = penalty(warped(theta, transform)).item()
    optimizer = torch.optim.SGD([theta], lr=lr)
    for _ in range(100):
        optimizer.zero_grad()
        penalty(warped(theta, transform)).backward()
        optimizer.step()
    assert first > 0.1
    assert penalty(warped(theta, transform)).item() < 0.01 * first
    if penalty is fold:
        assert not transform.folds(theta, (32,)).any()


def test_a_collapsed_warp_has_a_finite_gradient():
    """No scale at all, and points behind the horizon."""
    horizon = torch.eye(3).flatten()[:-1]
    horizon[6] = 2.0
    for theta, transform in ((torch.zeros(6), stn.Affine()), (horizon, stn.Projective()), (torch.zeros(8), stn.Projective())):  # fmt: skip
        theta = theta[None].clone().requires_grad_()
        for name, penalty in PENALTIES.items():
            value = penalty(warped(theta, transform))
            assert value.isfinite(), name
            assert torch.autograd.grad(value, theta)[0].isfinite().all(), name


# The weighted sum


def bent(batch=2, dtype=torch.float32):
    transform = stn.ThinPlateSpline((3, 3))
    return warped(0.5 * torch.randn(batch, transform.num_params, dtype=dtype), transform)


def test_the_sum_is_weighted():
    warp, weights = bent(), {"identity": 0.5, "scale": 2.0, "fold": 3.0, "smoothness": 0.25, "bending": 0.1, "out_of_frame": 4.0}  # fmt: skip
    penalty = Penalty(points=5, low=0.9, high=1.1, margin=0.8, order=2, **weights)
    wanted = {
        "identity": identity(warp, points=5),
        "scale": scale(warp, low=0.9, high=1.1, points=5),
        "fold": fold(warp, margin=0.8, points=5),
        "smoothness": smoothness(warp, order=2, points=5),
        "bending": bending(warp, points=5),
        "out_of_frame": out_of_frame(warp, points=5),
    }
    terms = penalty.terms(warp)
    assert list(terms) == list(weights) == list(PENALTIES)
    for name, value in wanted.items():
        assert value > 0
        torch.testing.assert_close(terms[name], value)
    torch.testing.assert_close(penalty(warp), sum(weights[name] * wanted[name] for name in weights))
    assert repr(Penalty(fold=1.0, identity=0.1)) == "Penalty(fold=1, identity=0.1)"


def test_penalties_of_several_warps_add():
    warps, penalty = (bent(), bent(3), affine((2, 0, 0, 0, 2, 0))), Penalty(identity=0.1, scale=1.0)
    torch.testing.assert_close(penalty(warps).double(), sum(penalty(w).double() for w in warps))
    torch.testing.assert_close(penalty(w for w in warps), penalty(warps))
    torch.testing.assert_close(penalty.terms(warps)["scale"].double(), sum(scale(w).double() for w in warps))


def test_a_weight_of_zero_is_only_looked_at(monkeypatch):
    penalty, warp = Penalty(identity=1.0, scale=0), bent()
    monkeypatch.setitem(PENALTIES, "scale", lambda warp, **options: torch.tensor(math.inf))
    torch.testing.assert_close(penalty(warp), identity(warp))
    assert penalty.terms(warp)["scale"] == math.inf
    assert Penalty(identity=0)(warp) == 0


def test_a_penalty_trains():
    """Behind a transformer, from the loss to the localizer's weights."""
    transformer = stn.SpatialTransformer(stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28)))
    warp = transformer.warp(torch.rand(3, 1, 28, 28))
    penalty = Penalty(**dict.fromkeys(PENALTIES, 1.0))
    assert penalty(warp).item() == pytest.approx(0, abs=1e-10)
    *_, weight, bias = transformer.localizer.parameters()
    with torch.no_grad():
        bias.add_(0.5)
    penalty(transformer.warp(torch.rand(3, 1, 28, 28))).backward()
    assert (weight.grad != 0).any(1).all()


def test_autocast_and_modes():
    warp, penalty = bent(), Penalty(**dict.fromkeys(PENALTIES, 1.0))
    wanted = penalty(warp)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(penalty(warp), wanted)
    with torch.no_grad():
        assert torch.equal(penalty(warp), wanted)
    with torch.inference_mode():
        assert torch.equal(penalty(warp), wanted)
    half = warp.theta.half()
    assert torch.equal(penalty(warped(half, warp.transform)), penalty(warped(half.float(), warp.transform)))


@pytest.mark.parametrize(("transform", "names"), [
    (stn.Affine(), ("fold", "smoothness")),
    pytest.param(stn.DisplacementField((4, 5)), PENALTIES, marks=pytest.mark.slow),
])  # fmt: skip
def test_compile(transform, names):
    penalty = Penalty(margin=2.0, **dict.fromkeys(names, 1.0))
    theta = (transform.identity()[None] + 0.1 * torch.randn(2, transform.num_params)).requires_grad_()

    def call(theta):
        return penalty(warped(theta, transform))

    wanted, value = call(theta), torch.compile(call, backend="aot_eager", fullgraph=True)(theta)
    torch.testing.assert_close(value, wanted)
    (ours,), (theirs,) = (torch.autograd.grad(v, theta) for v in (value, wanted))
    torch.testing.assert_close(ours, theirs)


def test_bad_input():
    warp = bent()
    for name, penalty in PENALTIES.items():
        for bad in (None, warp.theta, (warp, warp)):
            with pytest.raises(ValueError, match=r"^warp: "):
                penalty(bad)
        for bad in (2, 0, -1, 3.0, True, "9", None):
            with pytest.raises(ValueError, match=r"^points: "):
                penalty(warp, points=bad)
            with pytest.raises(ValueError, match=r"^points: "):
                Penalty(points=bad, **{name: 1.0})
        for bad in (-1.0, math.nan, math.inf, "1", None, True):
            with pytest.raises(ValueError, match=rf"^{name}: "):
                Penalty(**{name: bad})
    nots = {
        (scale, "low"): (0.0, -1.0, math.nan, math.inf, "1"),
        (scale, "high"): (0.5, math.inf, math.nan, None),
        (fold, "margin"): (-0.1, math.inf, math.nan, "0"),
        (smoothness, "order"): (0, 3, 1.5, True, "1", 2.0),
    }
    for (penalty, argument), values in nots.items():
        for bad in values:
            with pytest.raises(ValueError, match=rf"^{argument}: "):
                penalty(warp, **{argument: bad})
            with pytest.raises(ValueError, match=rf"^{argument}: "):
                Penalty(identity=1.0, **{argument: bad})
    with pytest.raises(ValueError, match=r"^folds: .*did you mean 'fold'"):
        Penalty(folds=1.0)
    with pytest.raises(ValueError, match=r"^weights: "):
        Penalty()
    for bad in (None, 3, [], [warp, None], warp.theta):
        with pytest.raises(ValueError, match=r"^warp: "):
            Penalty(fold=1.0)(bad)
    assert all(getattr(penalties, name) is penalty for name, penalty in PENALTIES.items())
