"""Transformers side by side, one after another, and on shared layers; localizers for all of them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import stn
from stn.localization import RecurrentLocalizer, SharedLocalizer, window_starts
from stn.models import SharedClassifier
from stn.placement import IterativeTransformer, ParallelTransformers


class Fixed(nn.Module):
    """A localizer that says the same of every image."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=torch.float32).flatten())

    def forward(self, image):
        return self.theta.expand(image.shape[0], -1)


class Seeing(nn.Module):
    """A localizer that looks: its theta moves with the image's mean, and with what is where."""

    def __init__(self, transform, count=1, scale=0.1):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-scale, scale, count * transform.num_params))
        self.register_buffer("identity", transform.identity().repeat(count))

    def forward(self, image):
        ramp = torch.linspace(0, 1, image[0].numel(), dtype=image.dtype).reshape(image.shape[1:])
        return self.identity + self.scale * (image * (1 + ramp)).flatten(1).mean(1, keepdim=True)


class Spy(nn.Module):
    """A localizer that keeps what it was shown."""

    def __init__(self, localizer):
        super().__init__()
        self.localizer, self.seen = localizer, []

    def forward(self, image):
        self.seen.append(image)
        return self.localizer(image)


def smooth(batch=1, size=(32, 40)):
    """Smooth images, dark towards the border, so that warping them twice costs little."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    phase = torch.arange(batch).reshape(-1, 1, 1)
    image = (torch.cos(3 * x + phase) + torch.sin(4 * y + 1)) * torch.exp(-6 * (x**2 + y**2))
    return image[:, None]


def volume(batch=2):
    return torch.rand(batch, 1, 6, 7, 8)


def affine_3d():
    return stn.Affine(ndim=3)


POINTS = torch.tensor([[[-0.8, 0.1], [0.3, -0.6], [0.0, 0.0], [0.9, 0.9]]])
TURN, SHIFT = [0.7, 0.0, 0.0, 0.0], [0.0, 0.0, 0.4, -0.2]  # of stn.Similarity: they do not commute


# IterativeTransformer

# Closed families stay what they are; bounded ones and all others are chained.
CLOSED = [stn.Affine(), stn.Similarity(), stn.Rigid(), stn.Attention(), stn.Crop(log_scale=False), stn.Translation()]
CHAINED = [
    stn.Similarity(max_angle=1.0), stn.Affine(max_delta=0.5), stn.Projective(), stn.Corners(),
    stn.ThinPlateSpline((3, 3)), stn.VelocityField((4, 4)), stn.Rotation() @ stn.Translation(),
]  # fmt: skip


def sequence_of_points(transform, thetas, points, frame):
    """The map p -> w_1(w_2(...(p))), one after another."""
    for theta in reversed(thetas):
        points = transform.map_points(theta, points.expand(theta.shape[0], -1, -1), frame)
    return points


def test_a_correction_is_a_warp_of_what_the_localizer_saw():
    """First the turn, then the shift of the turned image; the other order is something else."""
    family, image = stn.Similarity(), smooth(size=(48, 60))
    transformer = IterativeTransformer([Fixed(TURN), Fixed(SHIFT)], family)
    turn, shift = torch.tensor([TURN]), torch.tensor([SHIFT])
    options = {"transform": family, "padding_mode": "border"}
    twice = stn.warp(stn.warp(image, turn, **options), shift, **options)
    other = stn.warp(stn.warp(image, shift, **options), turn, **options)
    out = transformer(image).detach()
    assert float((out - twice).abs().max()) < 0.02
    assert float((out - other).abs().max()) > 0.2
    wanted = sequence_of_points(family, [turn, shift], POINTS, stn.Frame((48, 60)))
    torch.testing.assert_close(transformer.warp(image).map_points(POINTS), wanted)


def test_a_localizer_that_measures_corrects_what_it_measured():
    """Whatever the first step did, a second one that shifts by the centre of mass that it sees brings it to the
    centre."""

    class Centre(nn.Module):
        def forward(self, image):
            y, x = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in image.shape[2:])
            mass = image.sum((1, 2, 3))
            moments = [(image * x).sum((1, 2, 3)) / mass, (image * y[:, None]).sum((1, 2, 3)) / mass]
            return torch.stack([torch.zeros_like(mass), torch.zeros_like(mass), *moments], dim=1)

    y, x = torch.meshgrid(torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 33), indexing="ij")
    image = torch.exp(-40 * ((x - 0.4) ** 2 + (y + 0.2) ** 2))[None, None]
    for first in ([1.2, 0.3, 0.1, 0.0], [-0.6, 0.1, 0.1, 0.1]):
        out = IterativeTransformer([Fixed(first), Centre()], stn.Similarity(), padding_mode="zeros")(image)
        torch.testing.assert_close(Centre()(out), torch.zeros(1, 4), rtol=0, atol=0.01)


@pytest.mark.parametrize("transform", CLOSED + CHAINED, ids=repr)
@pytest.mark.parametrize("align_corners", [False, True])
def test_every_family_iterates(transform, align_corners):
    """What the localizer sees, where it is read, and the contract of `Warp`, on a frame that is not square."""
    spies = [Spy(Seeing(transform, scale=0.05 * k)) for k in (1, 2, 3)]
    transformer = IterativeTransformer(spies, transform, (5, 6), align_corners=align_corners)
    image = smooth(2, (8, 15)) + torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1)
    steps = transformer.steps(image)
    thetas = [spy.localizer(spy.seen[0]) for spy in spies]
    assert torch.equal(spies[0].seen[0], image)
    frame = stn.Frame((8, 15), align_corners)
    for k, step in enumerate(steps, start=1):
        wanted = sequence_of_points(transform, thetas[:k], POINTS, frame)
        torch.testing.assert_close(step.map_points(POINTS), wanted, rtol=0, atol=1e-5)
        read = stn.sample(image, step.grid(), padding_mode="border", align_corners=align_corners)
        torch.testing.assert_close(step.output, read, rtol=0, atol=1e-5)
        assert step.theta.shape == (2, step.transform.num_params)
        assert (step.image_size, step.size) == ((8, 15), (8, 15) if k < 3 else (5, 6))
        assert (step.transform is transform) == (k == 1 or transform in CLOSED)
        if k < 3:
            assert torch.equal(spies[k].seen[0], step.output)
    assert torch.equal(transformer(image), steps[-1].output)
    assert torch.equal(transformer.warp(image).theta, steps[-1].theta)
    assert transformer.warp(image).outline().shape == (2, 5, 2)


def test_a_chain_lists_the_corrections():
    family = stn.Similarity(max_angle=2.0)
    warp = IterativeTransformer([Fixed(TURN), Fixed(SHIFT)], family).warp(smooth())
    assert torch.equal(warp.theta, torch.tensor([TURN + SHIFT]))


def test_the_original_is_resampled_once():
    """Out of the frame and back: warping the warped image would have lost the border, and blurred."""
    image = torch.rand(1, 1, 12, 12)
    away, back = Fixed([0.9, 0.31]), Fixed([-0.9, -0.31])
    transformer = IterativeTransformer([away, back], stn.Translation(), padding_mode="zeros")
    torch.testing.assert_close(transformer(image), image, rtol=0, atol=1e-5)
    turns = IterativeTransformer(Fixed([math.pi / 6]), stn.Rotation(), iterations=12, padding_mode="zeros")
    torch.testing.assert_close(turns(image), image, rtol=0, atol=1e-4)


def test_a_bound_holds_for_each_step():
    """The whole may go further; nothing fails in the middle of training."""
    bounded = stn.Rotation(max_angle=1.0)
    transformer = IterativeTransformer(Fixed([50.0]), bounded, iterations=3)
    free = IterativeTransformer(Fixed([1.0]), stn.Rotation(), iterations=3)
    image = smooth()
    torch.testing.assert_close(transformer(image), free(image), rtol=0, atol=1e-5)


def test_a_recurrent_localizer_sees_the_images_get_better():
    """With one localizer for all, k iterations begin as k - 1 do."""
    image, localizer = smooth(2), Seeing(stn.Similarity())
    three = IterativeTransformer(localizer, stn.Similarity(), iterations=3).steps(image)
    for k in (1, 2):
        shorter = IterativeTransformer(localizer, stn.Similarity(), iterations=k)
        assert torch.equal(shorter(image), three[k - 1].output)
    one = stn.SpatialTransformer(localizer, stn.Similarity())
    assert torch.equal(one(image), three[0].output)
    assert not torch.equal(three[1].output, three[2].output)


@pytest.mark.parametrize("transform", [stn.Affine(), stn.Similarity(max_angle=1.0), stn.ThinPlateSpline((3, 3))])
def test_gradients_flow_through_every_step(transform):
    localizers = [stn.ConvLocalizer(1, transform, image_size=(28, 28)) for _ in range(3)]
    for localizer in localizers:
        nn.init.normal_(localizer.head[-1].weight, std=0.05)
    transformer = IterativeTransformer(localizers, transform)
    image = torch.rand(2, 1, 28, 28, requires_grad=True)
    transformer(image).square().sum().backward()
    for p in [*transformer.parameters(), image]:
        assert p.grad.isfinite().all()
    for localizer in localizers:
        assert float(localizer.head[-1].bias.grad.abs().max()) > 0
        assert float(localizer.features[0].weight.grad.abs().max()) > 0


def test_the_gradient_of_the_composition_is_right():
    """Against finite differences, through both steps: the second looks at what the first made."""
    torch.manual_seed(3)
    family = stn.Similarity()
    localizers = [Seeing(family, scale=s).double() for s in (0.2, 0.3)]
    transformer = IterativeTransformer(localizers, family, (3, 4))
    image = torch.rand(2, 1, 5, 6, dtype=torch.float64)
    names = [name for name, _ in transformer.named_parameters()]

    def run(*values):
        return torch.func.functional_call(transformer, dict(zip(names, values, strict=True)), (image,))

    assert torch.autograd.gradcheck(run, tuple(transformer.parameters()))


def test_each_iteration_learns_to_come_closer():
    """Two blobs turned by up to 86 degrees, brought upright by three looks of one localizer."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    upright = torch.exp(-8 * (x**2 + (y + 0.4) ** 2)) + 0.5 * torch.exp(-20 * ((x - 0.5) ** 2 + (y - 0.3) ** 2))
    angles = torch.linspace(-1.5, 1.5, 16)[:, None]
    images = stn.warp(upright.expand(16, 1, -1, -1), angles, transform=stn.Rotation())
    options = {"channels": (4,), "kernel_sizes": (5,), "hidden": (16,)}
    localizer = stn.ConvLocalizer(1, stn.Rotation(), image_size=(16, 16), **options)
    transformer = IterativeTransformer(localizer, stn.Rotation(), iterations=3)
    optimizer = torch.optim.Adam(transformer.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        (transformer(images) - upright).square().mean().backward()
        optimizer.step()
    # radians; the mean is 0.8 before the first look
    errors = [float((step.theta + angles).detach().abs().mean()) for step in transformer.steps(images)]
    assert errors[0] < 0.4
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.03


# ParallelTransformers


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("options", [
    {}, {"size": (5, 6)}, {"mode": "nearest"}, {"padding_mode": "zeros"}, {"align_corners": True},
    {"padding_mode": "constant", "fill": 0.5},
])  # fmt: skip
def test_each_is_a_transformer_of_its_own(shared, options):
    family = stn.Similarity()
    alone = [Seeing(family, scale=s) for s in (0.1, 0.5, 0.9)]
    if shared:
        localizer = Seeing(family, count=3)
        localizer.scale.data = torch.cat([each.scale.data for each in alone])
        parallel = ParallelTransformers(localizer, family, count=3, **options)
    else:
        parallel = ParallelTransformers(alone, family, **options)
    image = torch.randn(2, 2, 9, 7)
    outputs = [stn.SpatialTransformer(each, family, **options)(image) for each in alone]
    assert torch.equal(parallel(image), torch.stack(outputs, dim=1))
    assert parallel.theta(image).shape == (2, 3, 4)
    warps = parallel.warp(image)
    assert [warp.theta.shape for warp in warps] == [(2, 4)] * 3
    for warp, wanted in zip(warps, outputs, strict=True):
        assert torch.equal(warp.output, wanted)
        assert warp.grid().shape == (*wanted[:, 0].shape, 2)
        assert (warp.image_size, warp.align_corners) == ((9, 7), options.get("align_corners", False))


def test_outputs_are_combined_as_wanted():
    family, image = stn.Translation(), torch.rand(2, 3, 6, 8)
    localizers = [Fixed([0.0, 0.0]), Fixed([0.25, 0.0])]
    stack = ParallelTransformers(localizers, family)(image)
    concat = ParallelTransformers(localizers, family, combine="concat")(image)
    listed = ParallelTransformers(localizers, family, combine="list")(image)
    assert stack.shape == (2, 2, 3, 6, 8)
    assert concat.shape == (2, 6, 6, 8)
    assert isinstance(listed, list)
    torch.testing.assert_close(listed[0], image, rtol=0, atol=1e-6)
    torch.testing.assert_close(listed[1][..., :-1], image[..., 1:], rtol=0, atol=1e-6)
    for k in (0, 1):
        assert torch.equal(stack[:, k], listed[k])
        assert torch.equal(concat[:, 3 * k : 3 * k + 3], listed[k])


def blob(x, y, n=24):
    rows, columns = torch.meshgrid(torch.arange(n) + 0.5, torch.arange(n) + 0.5, indexing="ij")
    return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 12)[None, None]


def test_parallel_transformers_that_start_apart_find_two_things():
    """Each wants a blob in the middle of its window. From different places they find both; from one they stay equal."""
    family = stn.Attention()
    image, wanted = blob(7, 14) + blob(18, 9), blob(6, 6, 12)
    found = []
    for start in (window_starts(family, (1, 2)), window_starts(family, (1, 1)).repeat(2, 1)):
        pair = ParallelTransformers([Fixed(row) for row in start], family, (12, 12))
        optimizer = torch.optim.Adam(pair.parameters(), lr=0.03)
        for _ in range(60):
            optimizer.zero_grad()
            (pair(image) - wanted[:, None]).square().mean().backward()
            optimizer.step()
        found.append(pair.theta(image)[0, :, 1:].detach())
    # in normalized units the blobs lie at (7, 14) / 12 - 1 and (18, 9) / 12 - 1
    torch.testing.assert_close(found[0], torch.tensor([[-5.0, 2.0], [6.0, -3.0]]) / 12, rtol=0, atol=0.03)
    assert torch.equal(found[1][0], found[1][1])


def test_gradients_reach_shared_and_separate_localizers():
    family = stn.Attention()
    for make in (
        lambda: stn.ConvLocalizer(1, family, image_size=(28, 28), start=window_starts(family, (2, 2))),
        lambda: [stn.ConvLocalizer(1, family, image_size=(28, 28), start=s) for s in window_starts(family, (2, 2))],
    ):
        localizer = make()
        parallel = ParallelTransformers(localizer, family, (14, 14), count=4, combine="concat")
        image = torch.rand(2, 1, 28, 28, requires_grad=True)
        out = parallel(image)
        for k, (y, x) in enumerate([(0, 0), (0, 14), (14, 0), (14, 14)]):
            torch.testing.assert_close(out[:, k], image[:, 0, y : y + 14, x : x + 14], rtol=0, atol=1e-5)
        out.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parallel.parameters())
        heads = [m for m in parallel.modules() if isinstance(m, nn.Linear) and m.out_features % 3 == 0]
        assert all(bool((head.bias.grad != 0).all()) for head in heads)
        assert float(image.grad.abs().max()) > 0


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_theta_grad_scale(scale):
    image = torch.randn(2, 1, 6, 6)
    for make in (
        lambda **options: ParallelTransformers(Seeing(stn.Affine(), 2), count=2, **options),
        lambda **options: IterativeTransformer(Seeing(stn.Affine()), iterations=1, **options),
    ):
        plain, scaled = make(), make(theta_grad_scale=scale)
        outs = [transformer(image) for transformer in (plain, scaled)]
        torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-6)
        for out in outs:
            out.square().sum().backward()
        (grad,), (scaled_grad,) = ([p.grad for p in transformer.parameters()] for transformer in (plain, scaled))
        assert float(grad.abs().max()) > 0
        torch.testing.assert_close(scaled_grad, scale * grad, rtol=1e-5, atol=1e-6)


# Both


def both(transform=None, count=2, size=(28, 28), **options):
    family = transform or stn.Similarity()
    start = family.identity().expand(count, -1)
    wide = stn.ConvLocalizer(1, family, image_size=size, start=start)
    narrow = stn.ConvLocalizer(1, family, image_size=size)
    for localizer in (wide, narrow):
        nn.init.normal_(localizer.head[-1].weight, std=0.1)
    return [
        ParallelTransformers(wide, family, count=count, **options),
        IterativeTransformer(narrow, family, iterations=count, **options),
    ]


@pytest.mark.parametrize("batch", [0, 1])
def test_empty_and_single_batches(batch):
    parallel, iterative = both()
    image = torch.rand(batch, 1, 28, 28)
    assert parallel(image).shape == (batch, 2, 1, 28, 28)
    assert iterative(image).shape == (batch, 1, 28, 28)
    assert iterative.warp(image).map_points(POINTS).shape == (batch, 4, 2)


def compiles(module, image):
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), module(image), rtol=0, atol=1e-5)


def test_iterations_compile():
    compiles(both()[1], torch.rand(2, 1, 28, 28))


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda: both(stn.Similarity(max_angle=1.0))[1], lambda: both(stn.ThinPlateSpline((3, 3)))[1], lambda: both()[0],
    lambda: glimpses(), lambda: shared(),
], ids=["bounded", "spline", "parallel", "glimpses", "shared"])  # fmt: skip
def test_they_compile_and_export(make):
    module, image = make(), torch.rand(3, 1, 28, 28)
    compiles(module, image)
    program = torch.export.export(module, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(image[:2]), module(image[:2]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("transform", [stn.Similarity(), stn.ThinPlateSpline((3, 3))])
def test_a_state_dict_loads_strictly(transform):
    image = torch.rand(2, 1, 28, 28)
    for first, second in zip(both(transform), both(transform), strict=True):
        assert not torch.equal(first(image), second(image))
        second.load_state_dict(first.state_dict(), strict=True)
        assert torch.equal(first(image), second(image))
        assert all(key.startswith("localizers.0.") for key in first.state_dict())
        clone = copy.deepcopy(first)
        assert torch.equal(clone(image), first(image))
        nn.init.zeros_(clone.localizers[0].head[-1].weight)
        assert not torch.equal(clone(image), first(image))


def test_autocast_keeps_theta_in_full_precision():
    image = torch.rand(2, 1, 28, 28)
    for module in both():
        nn.init.zeros_(module.localizers[0].head[-1].weight)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(image)
        assert out.dtype == torch.float32
        wanted = image if out.ndim == 4 else image[:, None].expand_as(out)
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("make", "wanted"), [
    (lambda wrong: ParallelTransformers(wrong, count=3), r"\(2, 18\) for 3 times Affine"),
    (lambda wrong: ParallelTransformers([Fixed([1.0, 0, 0, 0, 1, 0]), wrong]), r"\(2, 6\) for Affine"),
    (lambda wrong: IterativeTransformer(wrong, iterations=2), r"\(2, 6\) for Affine"),
    (lambda wrong: IterativeTransformer([Fixed([1.0, 0, 0, 0, 1, 0]), wrong]), r"\(2, 6\) for Affine"),
    (lambda wrong: stn.SpatialTransformer(wrong), r"\(2, 6\) for Affine"),
])  # fmt: skip
@pytest.mark.parametrize("output", [torch.zeros(2, 5), torch.zeros(2, 6, 1), torch.zeros(1, 6), None])
def test_a_localizer_of_the_wrong_width_is_told_the_right_one(make, wanted, output):
    class Wrong(nn.Module):
        def forward(self, image):
            return output

    with pytest.raises(ValueError, match=rf"^localizer: .*{wanted}, got "):
        make(Wrong())(torch.rand(2, 1, 4, 4))


@pytest.mark.parametrize("make", [
    lambda **options: ParallelTransformers(Fixed([0.0] * 12), **{"count": 2, **options}),
    lambda **options: IterativeTransformer(Fixed([0.0] * 6), **{"iterations": 2, **options}),
])  # fmt: skip
@pytest.mark.parametrize(("argument", "options"), [
    ("transform", {"transform": "afine"}), ("size", {"size": (0, 4)}), ("size", {"size": (4, 4, 4)}),
    ("mode", {"mode": "linear"}), ("padding_mode", {"padding_mode": "zero"}), ("align_corners", {"align_corners": 1}),
    ("theta_grad_scale", {"theta_grad_scale": -0.1}),
])  # fmt: skip
def test_bad_options(make, argument, options):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        make(**options)


@pytest.mark.parametrize(("argument", "make"), [
    ("localizer", lambda: ParallelTransformers(lambda image: image, count=2)),
    ("localizer", lambda: ParallelTransformers([])),
    ("localizer", lambda: IterativeTransformer(nn.ModuleList())),
    ("localizer", lambda: IterativeTransformer("conv", iterations=2)),
    ("localizer", lambda: IterativeTransformer([Fixed([0.0]), "conv"])),
    ("count", lambda: ParallelTransformers(Fixed([0.0]))),
    ("count", lambda: ParallelTransformers(Fixed([0.0]), count=0)),
    ("count", lambda: ParallelTransformers([Fixed([0.0])], count=2)),
    ("combine", lambda: ParallelTransformers(Fixed([0.0]), count=1, combine="sum")),
    ("iterations", lambda: IterativeTransformer(Fixed([0.0]))),
    ("iterations", lambda: IterativeTransformer(Fixed([0.0]), iterations=1.5)),
    ("iterations", lambda: IterativeTransformer(nn.ModuleList([Fixed([0.0])] * 2), iterations=3)),
])  # fmt: skip
def test_bad_arguments(argument, make):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        make()


def test_bad_images():
    for module in both():
        for image in (
            torch.zeros(1, 28, 28),
            volume(),
            torch.zeros(1, 1, 28, 28).int(),
            torch.zeros(1, 1, 0, 28),
            None,
        ):
            with pytest.raises(ValueError, match=r"^image: "):
                module(image)
    for module in (
        ParallelTransformers(Fixed([0.0] * 6), count=1),
        IterativeTransformer(Fixed([0.0] * 6), iterations=1),
    ):
        for image in (torch.zeros(1, 28, 28), volume()):
            with pytest.raises(ValueError, match=r"^image: expected one in 2D, as Affine"):
                module(image)


# Heads and starting places


def test_a_head_starts_where_it_is_told_to():
    family = stn.Similarity()
    one, several = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.arange(8.0).reshape(2, 4)
    assert torch.equal(stn.identity_head(5, family, start=one)(torch.randn(3, 5)), one.expand(3, -1))
    assert torch.equal(stn.identity_head(5, family, start=several)(torch.randn(3, 5)), several.flatten().expand(3, -1))
    image = torch.randn(3, 2, 12, 12)
    conv = stn.ConvLocalizer(2, family, image_size=None, channels=(4,), kernel_sizes=(3,), start=several)
    assert torch.equal(conv(image), several.flatten().expand(3, -1))
    assert torch.equal(stn.FCLocalizer(288, family, start=one)(image), one.expand(3, -1))
    assert torch.equal(one, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    for bad in (torch.zeros(3), torch.zeros(2, 2, 4), torch.zeros(0, 4), torch.zeros(4).int(), [0.0] * 4, 1.0):
        with pytest.raises(ValueError, match=r"^start: expected \(4,\) or \(K, 4\) parameters of Similarity"):
            stn.identity_head(5, family, start=bad)


@pytest.mark.parametrize("transform", [
    stn.Affine(), stn.Similarity(), stn.Attention(log_scale=False), stn.Crop(max_scale=3.0, max_shift=1.0),
    stn.Projective(), stn.Corners(), stn.ThinPlateSpline((3, 3)),
], ids=repr)  # fmt: skip
def test_windows_tile_the_frame(transform):
    starts = window_starts(transform, (2, 3), scale=0.4)
    assert starts.shape == (6, transform.num_params)
    boxes = transform.map_boxes(starts, torch.tensor([[[-1.0, -1.0, 1.0, 1.0]]]).expand(6, -1, -1))[:, 0]
    x, y = torch.tensor([-0.6, 0.0, 0.6]).repeat(2), torch.tensor([-0.6, 0.6]).repeat_interleave(3)
    torch.testing.assert_close(boxes, torch.stack([x - 0.4, y - 0.4, x + 0.4, y + 0.4], dim=1), rtol=0, atol=1e-5)


def test_windows_in_a_volume_and_a_signal():
    centres = window_starts(stn.Attention(ndim=3), (1, 2, 2), scale=0.25)[:, 1:].tolist()
    assert centres == [[-0.75, -0.75, 0], [0.75, -0.75, 0], [-0.75, 0.75, 0], [0.75, 0.75, 0]]
    assert window_starts(stn.Affine(ndim=1), (3,)).tolist() == [[0.5, -0.5], [0.5, 0.0], [0.5, 0.5]]


@pytest.mark.parametrize(("argument", "make"), [
    ("transform", lambda: window_starts(stn.Rotation(), (1, 2))),
    ("transform", lambda: window_starts(stn.Translation(), (1, 2))),
    ("transform", lambda: window_starts(stn.VelocityField((4, 4)), (1, 2))),
    ("transform", lambda: window_starts(stn.Attention(max_scale=1.5), (1, 2))),
    ("transform", lambda: window_starts("afine", (1, 2))),
    ("lattice", lambda: window_starts(stn.Affine(), (2,))),
    ("lattice", lambda: window_starts(stn.Affine(), (0, 2))),
    ("scale", lambda: window_starts(stn.Affine(), (1, 2), scale=0.0)),
    ("scale", lambda: window_starts(stn.Affine(), (1, 2), scale=1.5)),
])  # fmt: skip
def test_windows_that_cannot_be(argument, make):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        make()


# Recurrent glimpses


def glimpses(steps=3, **options):
    encoder = nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten())
    localizer = RecurrentLocalizer(encoder, 4 * 6 * 6, stn.Attention(), steps=steps, hidden=8, **options)
    return ParallelTransformers(localizer, stn.Attention(), (14, 14), count=steps)


def test_glimpses_start_where_they_are_told_to_and_learn_to_differ():
    start = torch.tensor([math.log(0.5), 0.25, 0.0])
    model, image = glimpses(start=start), torch.rand(2, 1, 28, 28)
    assert torch.equal(model.theta(image), start.expand(2, 3, 3))
    out = model(image)
    assert out.shape == (2, 3, 1, 14, 14)
    (out - torch.rand_like(out)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    nn.init.normal_(model.localizers[0].head.weight)
    theta = model.theta(image)
    assert len({tuple(row) for row in theta.flatten(0, 1).tolist()}) == 6
    for warp, row in zip(model.warp(image), theta.unbind(1), strict=True):
        assert torch.equal(warp.theta, row)
        wanted = stn.warp(image, row, (14, 14), transform=stn.Attention(), padding_mode="border")
        assert torch.equal(warp.output, wanted)  # each of the original image
    model(image).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters())


def test_later_glimpses_follow_from_earlier_ones():
    """The state goes on from step to step, and the encoder looks once."""
    long, short, image = glimpses(3), glimpses(2), torch.rand(2, 1, 28, 28)
    nn.init.normal_(long.localizers[0].head.weight)
    short.load_state_dict(long.state_dict(), strict=True)
    assert torch.equal(long.theta(image)[:, :2], short.theta(image))
    looks = []
    long.localizers[0].encoder.register_forward_hook(lambda *_: looks.append(1))
    long(image)
    assert len(looks) == 1
    localizer = long.localizers[0]
    features = localizer.encoder(image)
    state = localizer.cell(features, localizer.cell(features))
    torch.testing.assert_close(long.theta(image)[:, 1], localizer.head(state))


def test_glimpses_take_an_empty_batch():
    assert glimpses()(torch.rand(0, 1, 28, 28)).shape == (0, 3, 1, 14, 14)


@pytest.mark.parametrize(("argument", "make"), [
    ("encoder", lambda: RecurrentLocalizer(lambda image: image, 4, stn.Affine(), steps=2)),
    ("in_features", lambda: RecurrentLocalizer(nn.Flatten(), 0, stn.Affine(), steps=2)),
    ("steps", lambda: RecurrentLocalizer(nn.Flatten(), 4, stn.Affine(), steps=0)),
    ("hidden", lambda: RecurrentLocalizer(nn.Flatten(), 4, stn.Affine(), steps=2, hidden="8")),
    ("transform", lambda: RecurrentLocalizer(nn.Flatten(), 4, "afine", steps=2)),
    ("start", lambda: RecurrentLocalizer(nn.Flatten(), 4, stn.Affine(), steps=2, start=torch.zeros(2, 6))),
    (r"encoder: expected an output of shape \(2, 5\)", lambda: RecurrentLocalizer(
        nn.Flatten(), 5, stn.Affine(), steps=2)(torch.rand(2, 1, 2, 2))),
    (r"localizer: .*\(2, 18\) for 3 times Affine", lambda: ParallelTransformers(
        RecurrentLocalizer(nn.Flatten(), 4, stn.Affine(), steps=2), count=3)(torch.rand(2, 1, 2, 2))),
    ("features", lambda: SharedLocalizer("conv", nn.Flatten())),
    ("head", lambda: SharedLocalizer(nn.Flatten(), None)),
])  # fmt: skip
def test_bad_localizers(argument, make):
    with pytest.raises(ValueError, match=f"^{argument}"):
        make()


# Any localizer


def test_a_pretrained_backbone_as_localizer():
    """Frozen features under a head of one's own: the head alone learns."""
    backbone = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    backbone.requires_grad_(False)
    image = torch.rand(2, 1, 20, 22)
    for make, width in (
        (lambda localizer: stn.SpatialTransformer(localizer, stn.Rigid()), 1),
        (lambda localizer: ParallelTransformers(localizer, stn.Rigid(), count=2, combine="concat"), 2),
        (lambda localizer: IterativeTransformer(localizer, stn.Rigid(), iterations=2), 1),
    ):
        head = stn.identity_head(24, stn.Rigid(), start=torch.zeros(width, 3))
        transformer = make(nn.Sequential(backbone, head))
        out = transformer(image)
        torch.testing.assert_close(out, image.repeat(1, width, 1, 1), rtol=0, atol=1e-5)
        (out - torch.rand_like(out)).square().sum().backward()
        assert float(head.weight.grad.abs().max()) > 0
        assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize("make", [
    lambda family: stn.ConvLocalizer(1, family, image_size=(6, 7, 8), channels=(4,), kernel_sizes=(3,)),
    lambda family: stn.ConvLocalizer(
        1, family, image_size=None, channels=(4, 4), kernel_sizes=(3, 3), batch_norm=True, same_padding=True, downsample=2,
        last_pool=False),
    lambda family: stn.FCLocalizer(6 * 7 * 8, family, hidden=(8,)),
])  # fmt: skip
@pytest.mark.parametrize("family", [affine_3d(), stn.Projective(3), stn.ThinPlateSpline((2, 2, 2))], ids=repr)
def test_a_volume(make, family):
    localizer, image = make(family), volume()
    assert torch.equal(localizer(image), family.identity().expand(2, -1))
    transformer = stn.SpatialTransformer(localizer, family)
    torch.testing.assert_close(transformer(image), image, rtol=0, atol=1e-4)
    (transformer(image) - 0.5).square().sum().backward()
    head = next(m for m in reversed(list(localizer.modules())) if isinstance(m, nn.Linear))
    assert float(head.weight.grad.abs().max()) > 0
    assert IterativeTransformer(localizer, family, (3, 4, 5), iterations=2)(image).shape == (2, 1, 3, 4, 5)
    assert ParallelTransformers([localizer] * 2, family, combine="concat")(image).shape == (2, 2, 6, 7, 8)


def test_a_volume_is_corrected_step_by_step():
    family = stn.Similarity(ndim=3)
    thetas = [
        torch.tensor([[0.3, -0.2, 0.5, 0.1, 0.2, 0.0, -0.1]]),
        torch.tensor([[-0.4, 0.6, 0.2, 0.0, 0.0, 0.3, 0.1]]),
    ]
    warp = IterativeTransformer([Fixed(theta) for theta in thetas], family).warp(volume(1))
    assert warp.transform is family
    points = torch.rand(1, 9, 3) * 2 - 1
    wanted = sequence_of_points(family, thetas, points, stn.Frame((6, 7, 8)))
    torch.testing.assert_close(warp.map_points(points), wanted, rtol=0, atol=1e-5)
    localizer = stn.FCLocalizer(6 * 7 * 8, family, hidden=(8,))  # at the identity the gradient is finite
    IterativeTransformer(localizer, family, iterations=3)(volume()).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in localizer.parameters())


SIGNALS = [lambda: stn.Affine(ndim=1), lambda: stn.CPAB((4,))]


@pytest.mark.parametrize("make", SIGNALS, ids=["Affine", "CPAB"])
def test_a_signal(make):
    family, signal = make(), torch.rand(2, 3, 40)
    for size in ((40,), None):
        localizer = stn.ConvLocalizer(3, family, image_size=size, batch_norm=size is None, downsample=1 if size else 2)
        assert torch.equal(localizer(signal), family.identity().expand(2, -1))
    transformer = stn.SpatialTransformer(localizer, family)
    torch.testing.assert_close(transformer(signal), signal, rtol=0, atol=1e-4)
    (transformer(signal) - 0.5).square().sum().backward()
    assert float(localizer.head[-1].weight.grad.abs().max()) > 0
    assert stn.FCLocalizer(120, family)(signal).shape == (2, family.num_params)
    iterative = IterativeTransformer(localizer, family, (20,), iterations=2)
    assert iterative(signal).shape == (2, 3, 20)
    assert iterative.warp(signal).grid().shape == (2, 20, 1)
    assert ParallelTransformers([localizer] * 2, family)(signal).shape == (2, 2, 3, 40)


def test_conv_localizers_refuse_other_images():
    fixed = stn.ConvLocalizer(2, stn.Affine(), image_size=(28, 28))
    loose = stn.ConvLocalizer(2, stn.Affine(), image_size=None)
    for image in (torch.zeros(1, 1, 28, 28), torch.zeros(2, 28, 28), torch.zeros(1, 2, 28, 28, 28), None):
        for localizer in (fixed, loose):
            with pytest.raises(ValueError, match=r"^image: expected"):
                localizer(image)
    with pytest.raises(ValueError, match=r"^image: expected \(B, 2, 28, 28\), got shape \(1, 2, 28, 30\)"):
        fixed(torch.zeros(1, 2, 28, 30))
    for size in ((28,), (8, 28, 28), 28):
        with pytest.raises(ValueError, match=r"^image_size: "):
            stn.ConvLocalizer(1, stn.Affine(), image_size=size)


# Shared layers


def shared(iterations=2, transform=None, **options):
    family = transform or stn.Rotation()
    features = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(4))
    head = nn.Sequential(nn.Flatten(), stn.identity_head(4 * 6 * 6, family))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 10))
    return SharedClassifier(features, head, classifier, family, iterations=iterations, **options)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_the_localizer_shares_the_classifiers_first_layers(iterations):
    model, image = shared(iterations), torch.rand(2, 1, 28, 28)
    looks = []
    model.features.register_forward_hook(lambda *_: looks.append(1))
    logits = model(image)
    assert logits.shape == (2, 10)
    assert len(looks) == iterations + 1  # each look of the localizer, and the classifier's
    torch.testing.assert_close(logits, model.classifier(model.features(image)), rtol=0, atol=1e-4)  # starts at identity
    assert len(model.transformer.steps(image)) == iterations


def test_shared_layers_learn_from_both_sides():
    model, image = shared(), torch.rand(2, 1, 28, 28)
    nn.init.normal_(model.transformer.localizers[0].head[1].weight, std=0.02)
    weight = model.features[0].weight
    (from_classifier,) = torch.autograd.grad(
        model.classifier(model.features(model.transformer(image).detach())).square().sum(), weight
    )
    (from_both,) = torch.autograd.grad(model(image).square().sum(), weight)
    assert float((from_both - from_classifier).abs().max()) > 1e-3 * float(from_classifier.abs().max())
    assert float(from_classifier.abs().max()) > 0
    frozen = shared(theta_grad_scale=0.0)
    frozen.load_state_dict(model.state_dict(), strict=True)
    (grad,) = torch.autograd.grad(frozen(image).square().sum(), frozen.features[0].weight)
    torch.testing.assert_close(grad, from_classifier)


def test_shared_weights_have_one_name():
    first, second, image = shared(), shared(), torch.rand(2, 1, 28, 28)
    state = first.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state) == 6
    second.load_state_dict(state, strict=True)
    assert torch.equal(first(image), second(image))
    assert second.features is second.transformer.localizers[0].features
    clone = copy.deepcopy(first)
    assert clone.features is clone.transformer.localizers[0].features
    assert clone.features is not first.features
    assert first(image[:0]).shape == (0, 10)


def test_shared_classifier_refuses():
    with pytest.raises(ValueError, match=r"^classifier: "):
        SharedClassifier(nn.Flatten(), nn.Flatten(), None)
    with pytest.raises(ValueError, match=r"^iterations: "):
        shared(0)
    with pytest.raises(ValueError, match=r"^padding_mode: "):
        shared(padding_mode="zero")
    with pytest.raises(ValueError, match=r"^localizer: .*\(2, 6\) for Affine"):
        SharedClassifier(nn.Flatten(), nn.Linear(16, 5), nn.Linear(16, 2))(torch.rand(2, 1, 4, 4))


# parameter_groups


def names_of(model):
    """The names of the localizers' parameters, after checking that each parameter of the model is in one group."""
    groups = stn.parameter_groups(model, lr=1.0, localizer_lr_scale=0.5)
    together = [id(p) for group in groups for p in group["params"]]
    assert sorted(together) == sorted({id(p) for p in model.parameters()})
    slow = {id(p) for group in groups[1:] for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in slow}


def test_parameter_groups_find_every_placement():
    parallel, iterative = both()
    for module in (parallel, iterative, glimpses()):
        model = nn.Sequential(module, nn.Linear(28, 10))
        assert names_of(model) == {f"0.{name}" for name, _ in module.named_parameters()}
    separate = ParallelTransformers([stn.FCLocalizer(4, stn.Affine()) for _ in range(2)])
    assert len(names_of(nn.Sequential(separate))) == 16


def test_shared_parameters_belong_to_the_network():
    head = "transformer.localizers.0.head.1"
    assert names_of(shared()) == {f"{head}.weight", f"{head}.bias"}
    # Shared by hand: the same module in the localizer and outside, whichever comes first
    features = nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten())
    localizer = nn.Sequential(features, stn.identity_head(4 * 24 * 24, stn.Affine()))
    transformer = IterativeTransformer(localizer, iterations=2)
    for order in ((transformer, features), (features, transformer)):
        model = nn.Sequential(*order, nn.Linear(4 * 24 * 24, 10))
        assert {name.split(".", 1)[1] for name in names_of(model)} == {"localizers.0.1.weight", "localizers.0.1.bias"}
    # One tied parameter
    tied = nn.Linear(4 * 24 * 24, 3)
    tied.weight = nn.Parameter(torch.zeros(6, 4 * 24 * 24))
    localizer[1].weight = tied.weight
    assert names_of(nn.ModuleList([transformer, tied])) == {
        "0.localizers.0.0.0.weight", "0.localizers.0.0.0.bias", "0.localizers.0.1.bias",
    }  # fmt: skip
    # A localizer that is also listed elsewhere stays a localizer
    model = nn.ModuleDict({"loc": localizer, "st": stn.SpatialTransformer(localizer), "fc": nn.Linear(2, 2)})
    assert len(names_of(model)) == 4
