"""Frozen networks behind a search for the pose that they know best."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import stn
from stn.pose import spread_evenly

SIZE = (24, 24)


def blobs(size=SIZE):
    """A pattern without any symmetry: three blobs of different weights."""
    y, x = torch.meshgrid(*(stn.geometry.lattice(n) for n in size), indexing="ij")
    spots = ((-0.4, -0.3, 1.0), (0.35, -0.1, 0.6), (0.0, 0.45, 0.3))
    return sum(w * (-((x - a) ** 2 + (y - b) ** 2) / 0.05).exp() for a, b, w in spots)[None, None]


class Knows(nn.Module):
    """Logits whose energy is lowest for the pattern that it knows; batch norm would notice training."""

    def __init__(self, pattern):
        super().__init__()
        self.register_buffer("pattern", pattern)
        self.norm = nn.BatchNorm2d(1, affine=False)
        self.weight = nn.Parameter(torch.tensor(1000.0))
        self.seen = []

    def forward(self, image):
        self.seen.append(len(image))
        near = -(self.norm(image) - self.pattern).square().mean((1, 2, 3))
        return torch.stack([self.weight * near, torch.full_like(near, -20.0)], 1)


@pytest.fixture
def network():
    return Knows(blobs())


FAMILIES = {
    "rotation": (stn.Rotation(), [[2.0], [-3.1], [0.6]], 0.01),
    "bounded rotation": (stn.Rotation(max_angle=1.0), [[0.5], [-0.7]], 0.01),
    "similarity": (
        stn.Similarity(max_angle=1.0, max_scale=1.5, max_shift=0.3),
        [[0.5, 0.15, 0.1, -0.1], [-0.4, -0.1, 0.0, 0.15]],
        0.05,
    ),
    "affine": (stn.Affine(max_delta=0.3), [[1.2, 0.2, 0.15, -0.2, 0.85, -0.15]], 0.1),
    "projective": (stn.Projective(max_delta=0.2), [[1.0, 0.1, 0.05, -0.1, 0.95, 0.0, 0.1, -0.05]], 0.1),
    "corners": (stn.Corners(max_shift=0.3), [[0.3, 0.2, -0.25, 0.15, 0.05, -0.1, 0.25, -0.25]], 0.1),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_known_warp_is_found(name, network):
    family, thetas, left = FAMILIES[name]
    theta = torch.tensor(thetas)
    frame = stn.Frame(SIZE)
    inverse = stn.geometry.invert_matrix(family.matrix(theta, frame))
    posed = stn.warp(blobs().expand(len(theta), -1, -1, -1), inverse)
    robust = stn.canonicalize(
        network, family, starts=32, keep=4, steps=24, tries=max(1, family.num_params), padding_mode="zeros"
    )
    output, found = robust.look(posed)
    assert found.moved.all()
    corners = torch.tensor([[[-0.4, -0.3], [0.35, -0.1], [0.0, 0.45]]]).expand(len(theta), -1, -1)
    off = (found.map_points(corners) - family.map_points(theta, corners, frame)).norm(dim=2).max()
    assert off < left
    assert (found.output - blobs()).square().mean() < 0.15 * (posed - blobs()).square().mean()
    torch.testing.assert_close(output, network(found.output))
    assert (found.score < found.upright).all()
    assert found.score.allclose(-output.logsumexp(1), atol=1e-4)


def test_the_network_is_untouched(network):
    before = copy.deepcopy(network.state_dict())
    images = torch.rand(5, 1, *SIZE)
    expected = copy.deepcopy(network).eval()(images)
    robust = stn.canonicalize(network, starts=4).train()
    robust(images)
    assert not network.training
    assert robust.training
    assert robust.network is network
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.weight.requires_grad
    assert network.weight.grad is None
    assert torch.equal(network(images), expected)


def test_the_gate_leaves_an_image_alone_bit_for_bit(network):
    upright, turned = blobs(), stn.warp(blobs(), torch.tensor([[1.2]]), transform=stn.Rotation())
    images = torch.cat([upright, turned])
    robust = stn.canonicalize(network, starts=8, margin=0.5, mode="bspline3")  # whose identity rounds
    output, found = robust.look(images)
    assert found.moved.tolist() == [False, True]
    assert torch.equal(found.output[0], images[0])
    assert torch.equal(found.theta[0], stn.Rotation().identity())
    assert found.gain[0] >= 0
    assert found.gain[1] > 0.5
    assert output.argmax(1).tolist() == [0, 0]
    robust.margin.fill_(1e6)
    assert torch.equal(robust(images), network(images))
    assert (robust.warp(images).theta == 0).all()


def test_of_equal_scores_the_image_as_it_came_is_taken():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(flat[1].weight)
    found = stn.canonicalize(flat, starts=4).warp(torch.rand(2, 1, 4, 4))
    assert not found.moved.any()
    assert (found.gain == 0).all()


def test_a_share_of_the_upright_images_is_left_alone():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 4))
    images = torch.rand(200, 1, 8, 8)
    robust = stn.canonicalize(network, starts=6, steps=1)
    for quantile in (0.5, 0.9, 1.0):
        margin = robust.calibrate(images, quantile, by="image")
        found = robust.warp(images)
        assert margin == float(robust.margin) > 0
        assert quantile <= 1 - found.moved.double().mean() <= quantile + 0.01
        margins = robust.calibrate([images[:50], images[50:]], quantile, by="image"), margin
        assert margins[0] == pytest.approx(margins[1], abs=1e-5)
    robust.calibrate(images[:50], 0.99, by="image")  # of 50, 49 are too few
    assert not robust.warp(images[:50]).moved.any()
    assert "margin" in robust.state_dict()


def test_a_share_of_the_upright_images_keeps_its_class():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 4))
    images = torch.rand(200, 1, 8, 8)
    robust = stn.canonicalize(network, starts=6, steps=1, margin=0.3)

    def kept():
        return float((robust(images).argmax(1) == network(images).argmax(1)).double().mean())

    robust.margin.fill_(0)
    free = kept()
    assert free < 0.9
    for quantile in (0.9, 0.95, 1.0):
        robust.calibrate(images, quantile)
        assert quantile <= kept() <= quantile + 0.01
        margin = float(robust.margin)
        assert margin < robust.calibrate(images, quantile, by="image") or quantile == 1.0
    assert robust.calibrate(images, free - 0.01) == 0


def test_a_calibration_that_fails_leaves_the_margin(network):
    robust = stn.canonicalize(nn.Identity(), score=lambda output, image: output.sum((1, 2, 3)), margin=0.3)
    with pytest.raises(ValueError, match="by: expected 'image'"):
        robust.calibrate(blobs())
    assert float(robust.margin) == pytest.approx(0.3)
    robust.calibrate(blobs(), by="image")


def test_the_scores_are_what_they_say():
    logits = torch.tensor([[1.0, 3.0, -2.0], [0.0, 0.0, 0.0]])
    image = torch.rand(2, 1, 4, 4)
    energy, entropy = (
        stn.canonicalize(nn.Flatten(), score=name).score(logits, image) for name in ("energy", "entropy")
    )
    torch.testing.assert_close(energy, -logits.exp().sum(1).log())
    p = logits.softmax(1)
    torch.testing.assert_close(entropy, -(p * p.log()).sum(1))


def test_pieces_do_not_change_the_result(network):
    images = torch.cat([stn.warp(blobs(), torch.tensor([[a]]), transform=stn.Rotation()) for a in (0.0, 0.4, 2.5)])
    options = {"starts": 9, "keep": 2, "steps": 3, "tries": 2, "seed": 3}
    family = stn.Similarity(max_angle=3.0, max_scale=1.2, max_shift=0.1)
    whole = stn.canonicalize(network, family, **options).warp(images)
    network.seen.clear()
    parts = stn.canonicalize(network, family, max_batch=4, **options).warp(images)
    assert max(network.seen) == 4
    torch.testing.assert_close(parts.theta, whole.theta)
    torch.testing.assert_close(parts.score, whole.score)
    alone = torch.cat([stn.canonicalize(network, family, **options).warp(image[None]).theta for image in images])
    torch.testing.assert_close(alone, whole.theta)


def test_the_seed_decides_and_the_global_numbers_are_left_alone(network):
    images = stn.warp(blobs(), torch.tensor([[0.9]]), transform=stn.Rotation())
    family = stn.Similarity(max_angle=2.0, max_scale=1.2, max_shift=0.2)
    state = torch.random.get_rng_state()
    a, b, c = (stn.canonicalize(network, family, starts=6, seed=s).warp(images).theta for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_as_many_passes_as_it_says(network):
    robust = stn.canonicalize(network, starts=8, keep=2, steps=3, tries=2)
    network.seen.clear()
    robust(blobs())
    assert sum(network.seen) == robust.passes == 1 + 7 + 3 * 2 * 2 * 2 + 1


def test_a_score_of_ones_own(network):
    turned = stn.warp(blobs(), torch.tensor([[0.8]]), transform=stn.Rotation())
    seen = []

    def far(output, image):
        seen.append((output.shape, image.shape))
        return (image - blobs()).square().mean((1, 2, 3))

    found = stn.canonicalize(network, starts=16, steps=6, score=far).warp(turned)
    assert float(found.theta) == pytest.approx(-0.8, abs=0.02)
    assert found.score < found.upright
    assert all(output[0] == image[0] for output, image in seen)


def test_what_is_no_number_is_never_preferred():
    class Breaks(nn.Module):
        def forward(self, image):
            corner = image[:, 0, 0, 0]
            return torch.stack([torch.where(corner > 0.5, 1.0, torch.nan), corner], 1)

    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 0, 0] = 1.0
    found = stn.canonicalize(Breaks(), starts=8).warp(image)
    assert found.score.isfinite().all()
    assert not found.moved.any()


def test_a_localizer_says_where_to_begin(network):
    turned = stn.warp(blobs(), torch.tensor([[0.8]]), transform=stn.Rotation())

    class Says(nn.Module):
        def forward(self, image):
            return torch.tensor([[2.0, -0.7, 1.0]]).expand(len(image), -1)

    robust = stn.canonicalize(network, starts=0, steps=0, localizer=Says())
    found = robust.warp(turned)
    assert float(found.theta) == pytest.approx(-0.7)
    assert list(robust.localization_networks()) == [robust.localizer]
    robust = stn.canonicalize(network, starts=0, steps=5, localizer=Says())
    assert float(robust.reach) == pytest.approx(0.05 * math.pi, rel=0.05)
    assert robust.warp(turned).score < found.score


def test_a_whole_turn_is_a_ring_and_a_bounded_one_is_not():
    ring = spread_evenly(stn.Rotation(), 8).flatten()
    assert ring.tolist() == pytest.approx([(k - 4) * math.pi / 4 for k in range(8)], abs=1e-6)
    for count in (1, 5, 6):
        turns = spread_evenly(stn.Rotation(max_angle=1.0), count)
        values = stn.Rotation(max_angle=1.0).decode(turns)[0].flatten()
        assert values.tolist() == pytest.approx([0.999 * (2 * (k + 0.5) / count - 1) for k in range(count)], abs=1e-5)


@pytest.mark.parametrize(
    "family",
    [
        stn.Rotation(max_angle=0.5),
        stn.Rotation(3),
        stn.Rigid(max_angle=1.0, max_shift=0.2),
        stn.Attention(max_scale=2.0, max_shift=0.3),
        stn.Crop(max_scale=2.0, max_shift=0.3),
        stn.Translation(1, max_shift=0.2),
        *(family for family, _, _ in FAMILIES.values()),
    ],
    ids=str,
)
def test_spread_fills_the_bounds_about_the_identity(family):
    half = torch.full((1, family.num_params), 0.5)
    torch.testing.assert_close(family.spread(half)[0], family.identity(), atol=1e-6, rtol=0)
    ends = family.spread(torch.tensor([[0.0], [1.0]]).repeat(1, family.num_params))
    assert ends.isfinite().all()
    torch.testing.assert_close(ends.mean(0), family.identity(), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="unit: expected numbers"):
        family.spread(half + 1)


def test_spread_is_even():
    family = stn.Similarity(max_angle=0.7, max_scale=1.5, max_shift=0.2)
    turn, scale, shift = family.decode(family.spread(torch.tensor([[0.0, 0.25, 1.0, 0.75]])))
    assert float(turn) == pytest.approx(-0.999 * 0.7, abs=1e-5)
    assert scale[0].tolist() == pytest.approx([1.5 ** (-0.999 / 2)] * 2, abs=1e-5)
    assert shift[0].tolist() == pytest.approx([0.999 * 0.2, 0.999 * 0.1], abs=1e-5)


def test_the_pose_that_is_drawn_is_the_one_that_brings_back():
    image = blobs((32, 20))
    for family in (
        stn.Similarity(max_angle=3.0, max_scale=1.2, max_shift=0.1),
        stn.Corners(max_shift=0.2),
        stn.Affine(max_delta=0.2),
    ):
        posed, theta = stn.pose_at_random(
            image.expand(6, -1, -1, -1), family, generator=torch.Generator().manual_seed(0), padding_mode="zeros"
        )
        back = stn.warp(posed, theta, transform=family)
        assert (back - image).square().mean() < 0.05 * (posed - image).square().mean()
        again, same = stn.pose_at_random(
            image.expand(6, -1, -1, -1), family, generator=torch.Generator().manual_seed(0), padding_mode="zeros"
        )
        assert torch.equal(again, posed)
        assert torch.equal(same, theta)


def toy_localizer(family, **options):
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 36, 32), nn.ReLU(),
    )  # fmt: skip
    return stn.PoseLocalizer(features, 32, family, **options)


def test_a_localizer_learns_warps_that_it_knows():
    family = stn.Rotation()
    localizer = toy_localizer(family, anchors=8)
    losses = localizer.fit([blobs().expand(32, -1, -1, -1)] * 120, lr=5e-3)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    posed, theta = stn.pose_at_random(
        blobs().expand(64, -1, -1, -1), family, generator=torch.Generator().manual_seed(9)
    )
    said = localizer(posed)
    off = (said - theta + math.pi).remainder(2 * math.pi) - math.pi
    assert off.abs().median() < 0.15
    straight = stn.SpatialTransformer(localizer, family)(posed)
    assert (straight - blobs()).square().mean() < 0.3 * (posed - blobs()).square().mean()


def test_the_guesses_come_with_the_most_likely_first():
    localizer = toy_localizer(stn.Rotation(), anchors=8, count=3)
    with torch.no_grad():
        localizer.likely.weight.zero_()
        localizer.likely.bias.copy_(torch.tensor([0.0, 5.0, 1.0, 9.0, 2.0, 0.0, 0.0, 0.0]))
    said = localizer(torch.rand(2, 1, *SIZE))
    assert said.shape == (2, 3)
    torch.testing.assert_close(said[0], spread_evenly(stn.Rotation(), 8)[[3, 1, 4]].flatten())


def test_the_loss_asks_the_nearest_anchor_across_the_seam():
    localizer = toy_localizer(stn.Rotation(), anchors=4)  # at -180, -90, 0, 90 degrees
    image = torch.rand(1, 1, *SIZE)
    loss = localizer.loss(image, torch.tensor([[math.radians(170.0)]]))
    loss.backward()
    touched = localizer.offset.bias.grad.abs() > 0
    assert touched.tolist() == [True, False, False, False]
    assert localizer.likely.bias.grad.argmin() == 0


def test_bad_arguments_are_refused(network):
    for options, message in (
        ({"transform": stn.Similarity()}, "transform: expected Similarity with max_scale"),
        ({"transform": stn.Affine()}, "transform: expected Affine with max_delta"),
        ({"transform": stn.Projective()}, "transform: expected Projective with max_delta"),
        ({"transform": stn.Corners()}, "transform: expected Corners with max_shift"),
        ({"transform": stn.ThinPlateSpline()}, "transform: ThinPlateSpline has no bounds"),
        ({"starts": 0}, "starts: expected at least one"),
        ({"starts": -1}, "starts: expected an int"),
        ({"starts": torch.zeros(3, 2)}, r"starts: expected finite \(K, 1\)"),
        ({"starts": torch.full((3, 1), math.nan)}, "starts: expected finite"),
        ({"keep": 0}, "keep: expected a positive int"),
        ({"tries": 0}, "tries: expected a positive int"),
        ({"steps": -1}, "steps: expected an int"),
        ({"max_batch": 0}, "max_batch: expected a positive int"),
        ({"seed": -1}, "seed: expected an int"),
        ({"margin": -0.1}, "margin: expected a finite number"),
        ({"margin": math.inf}, "margin: expected a finite number"),
        ({"score": "entropie"}, "score: expected one of energy, entropy"),
        ({"localizer": 3}, "localizer: expected a torch.nn.Module"),
        ({"mode": "cubic"}, "mode: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            stn.canonicalize(network, **options)
    with pytest.raises(ValueError, match="network: expected a"):
        stn.canonicalize(torch.relu)
    robust = stn.canonicalize(network)
    with pytest.raises(ValueError, match="image: expected one in 2D"):
        robust(torch.rand(1, 1, 8))
    with pytest.raises(ValueError, match="quantile: expected a number"):
        robust.calibrate(blobs(), 1.5)
    with pytest.raises(ValueError, match="by: expected one of class, image"):
        robust.calibrate(blobs(), by="top")
    with pytest.raises(ValueError, match="images: expected at least one"):
        robust.calibrate([])
    with pytest.raises(ValueError, match=r"score: expected \(1,\)"):
        stn.canonicalize(network, score=lambda output, image: output)(blobs())
    with pytest.raises(ValueError, match=r"localizer: expected an output of shape \(1, K \* 4\)"):
        stn.canonicalize(
            network,
            stn.Similarity(max_scale=2.0, max_shift=0.1),
            starts=0,
            localizer=nn.Sequential(nn.Flatten(), nn.Linear(576, 6)),
        )(blobs())
    with pytest.raises(ValueError, match="count: expected at most 4"):
        toy_localizer(stn.Rotation(), anchors=4, count=5)
    with pytest.raises(ValueError, match="features: expected an output of shape"):
        stn.PoseLocalizer(nn.Flatten(), 7, stn.Rotation())(torch.rand(1, 1, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).to(dtype)
    images = torch.rand(3, 1, 8, 8, dtype=dtype)
    output, found = stn.canonicalize(network, starts=4).look(images)
    assert output.dtype == found.output.dtype == dtype
    assert found.score.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_no_images(network):
    output, found = stn.canonicalize(network, starts=4).look(torch.empty(0, 1, *SIZE))
    assert output.shape == (0, 2)
    assert found.theta.shape == (0, 1)


def test_a_graph_has_it_as_one_step(network):
    robust = stn.canonicalize(network, starts=4)
    traced = torch.fx.symbolic_trace(nn.Sequential(robust))
    torch.testing.assert_close(traced(blobs()), robust(blobs()))
