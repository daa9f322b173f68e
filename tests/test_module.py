"""The layer: the transformer, its localizers, its learning rate, and what it says of itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import stn


class Fixed(nn.Module):
    """A localizer that says the same of every image."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=torch.float32))

    def forward(self, image):
        return self.theta.expand(image.shape[0], -1)


class Seeing(nn.Module):
    """A localizer that looks: its theta moves with the image's mean."""

    def __init__(self, transform):
        super().__init__()
        self.scale = nn.Parameter(torch.full((transform.num_params,), 0.1))
        self.register_buffer("identity", transform.identity())

    def forward(self, image):
        return self.identity + self.scale * image.flatten(1).mean(1, keepdim=True)


def conv_transformer(transform=None, channels=1, size=(28, 28), **options):
    transform = transform or stn.Affine()
    return stn.SpatialTransformer(stn.ConvLocalizer(channels, transform, image_size=size), transform, **options)


# SpatialTransformer


def test_it_starts_as_the_identity():
    image = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(conv_transformer()(image), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [
    {}, {"size": (5, 6)}, {"mode": "nearest"}, {"mode": "bicubic", "padding_mode": "zeros"}, {"align_corners": True},
    {"padding_mode": "constant", "fill": 0.5}, {"padding_mode": "circular", "size": (4, 4), "align_corners": True},
])  # fmt: skip
@pytest.mark.parametrize("transform", [stn.Affine(), stn.Similarity(max_angle=1.0), stn.Rotation() @ stn.Translation()])
def test_it_is_warp_with_the_localizers_theta(transform, options):
    """Every option arrives."""
    transformer = stn.SpatialTransformer(Seeing(transform), transform, **options)
    image = torch.randn(3, 2, 9, 7)
    theta = transformer.theta(image)
    wanted = stn.warp(image, theta, transform=transform, **{"padding_mode": "border", **options})
    out = transformer(image)
    assert torch.equal(out, wanted)
    assert out.shape == (3, 2, *options.get("size", (9, 7)))
    assert len({tuple(row) for row in theta.tolist()}) == 3


def test_the_padding_is_border_unless_given():
    away = Fixed([1.0, 0, 5.0, 0, 1, 0])
    assert stn.SpatialTransformer(away)(torch.ones(1, 1, 4, 4)).min() == 1
    assert stn.SpatialTransformer(away, padding_mode="zeros")(torch.ones(1, 1, 4, 4)).max() == 0


def test_warp_returns_what_it_takes_to_map_points():
    transform = stn.Similarity()
    transformer = stn.SpatialTransformer(Seeing(transform), transform, size=(10, 12), align_corners=True)
    image = torch.rand(2, 1, 8, 15)
    warp = transformer.warp(image)
    assert torch.equal(warp.output, transformer(image))
    assert torch.equal(warp.theta, transformer.theta(image))
    assert (warp.image_size, warp.size) == ((8, 15), (10, 12))
    assert warp.grid().shape == (2, 10, 12, 2)
    read = stn.sample(image, warp.grid(), padding_mode="border", align_corners=True)
    torch.testing.assert_close(read, warp.output, rtol=0, atol=1e-6)
    corner = warp.map_points(torch.tensor([[[-1.0, -1.0]]]))
    torch.testing.assert_close(corner[:, 0], warp.grid()[:, 0, 0])


def test_the_outline_is_the_sampled_frame_in_pixels():
    image = torch.rand(1, 1, 6, 8)
    crop = stn.SpatialTransformer(Fixed([[math.log(0.5), math.log(0.5), 0.0, 0.0]]), stn.Crop())
    corners = crop.warp(image).outline()[0].tolist()
    assert corners == [[1.5, 1.0], [5.5, 1.0], [5.5, 4.0], [1.5, 4.0], [1.5, 1.0]]
    more = crop.warp(image).outline(per_side=3)
    assert more.shape == (1, 13, 2)
    assert torch.equal(more[:, 0], more[:, -1])
    turned = stn.SpatialTransformer(Fixed([[0.3]]), stn.Rotation()).warp(image).outline()[0]
    sides = (turned[1:] - turned[:-1]).norm(dim=-1)
    torch.testing.assert_close(sides, torch.tensor([8.0, 6.0, 8.0, 6.0]))
    with pytest.raises(ValueError, match="per_side"):
        crop.warp(image).outline(per_side=0)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 3.0])
def test_theta_grad_scale_scales_the_gradient_and_nothing_else(scale):
    results = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        transformer = stn.SpatialTransformer(Seeing(stn.Affine()), theta_grad_scale=factor)
        image = torch.randn(2, 1, 6, 6, requires_grad=True)
        out = transformer(image)
        out.square().sum().backward()
        results.append((out, transformer.localizer.scale.grad))
    (plain, grad), (scaled, scaled_grad) = results
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-6)
    assert float(grad.abs().max()) > 0
    torch.testing.assert_close(scaled_grad, scale * grad, rtol=1e-5, atol=1e-6)


def test_theta_grad_scale_is_on_theta_of_warp_too():
    transformer = stn.SpatialTransformer(Seeing(stn.Affine()), theta_grad_scale=0.5)
    image = torch.rand(2, 1, 6, 6)
    (half,) = torch.autograd.grad(transformer.warp(image).theta.sum(), transformer.localizer.scale)
    (whole,) = torch.autograd.grad(transformer.localizer(image).sum(), transformer.localizer.scale)
    torch.testing.assert_close(half, 0.5 * whole)


@pytest.mark.parametrize(
    "output", [torch.zeros(2, 5), torch.zeros(2, 6, 1), torch.zeros(1, 6), None, (torch.zeros(2, 6),)]
)
def test_a_localizer_of_the_wrong_width_is_told_the_right_one(output):
    class Wrong(nn.Module):
        def forward(self, image):
            return output

    with pytest.raises(ValueError, match=r"^localizer: .*\(2, 6\) for Affine, got "):
        stn.SpatialTransformer(Wrong())(torch.rand(2, 1, 4, 4))


def test_a_state_dict_loads_strictly():
    first, second = conv_transformer(stn.Similarity()), conv_transformer(stn.Similarity())
    nn.init.normal_(first.localizer.head[-1].weight, std=0.1)
    second.load_state_dict(first.state_dict(), strict=True)
    image = torch.rand(2, 1, 28, 28)
    assert torch.equal(first(image), second(image))
    assert all(key.startswith("localizer.") for key in first.state_dict())


def test_it_learns_a_shift():
    """Gradient descent through the warp finds the dot; the first steps begin at the identity."""
    rows, columns = torch.arange(16.0)[:, None], torch.arange(16.0)
    blob = lambda x, y: torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)[None, None]  # noqa: E731
    localizer = Fixed([0.0, 0.0])
    transformer = stn.SpatialTransformer(localizer, stn.Translation())
    optimizer = torch.optim.Adam(transformer.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        (transformer(blob(10, 6)) - blob(8, 7)).square().mean().backward()
        optimizer.step()
    # the output at (8, 7) is to be read two pixels to the right and one up
    torch.testing.assert_close(localizer.theta.detach(), torch.tensor([2 / 8, -1 / 8]), rtol=0, atol=0.02)


def test_it_works_under_autocast_and_in_half_precision():
    transformer, image = conv_transformer(), torch.rand(2, 1, 28, 28)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = transformer(image)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, image, rtol=0, atol=1e-5)
    half = conv_transformer().bfloat16()(image.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, image.bfloat16())


def test_it_takes_an_empty_batch():
    assert conv_transformer()(torch.rand(0, 1, 28, 28)).shape == (0, 1, 28, 28)


def test_it_compiles_and_exports():
    transformer = conv_transformer(stn.Similarity(max_angle=1.0), size=(28, 28))
    nn.init.normal_(transformer.localizer.head[-1].weight, std=0.1)
    image = torch.rand(3, 1, 28, 28)
    wanted = transformer(image)
    compiled = torch.compile(transformer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), wanted, rtol=0, atol=1e-6)
    program = torch.export.export(transformer, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(image[:2]), wanted[:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("argument", "options"), [
    ("transform", {"transform": "afine"}), ("size", {"size": (0, 4)}), ("size", {"size": (4, 4, 4)}),
    ("mode", {"mode": "linear"}), ("padding_mode", {"padding_mode": "zero"}), ("align_corners", {"align_corners": 1}),
    ("theta_grad_scale", {"theta_grad_scale": -0.1}), ("theta_grad_scale", {"theta_grad_scale": float("nan")}),
    ("theta_grad_scale", {"theta_grad_scale": "small"}),
])  # fmt: skip
def test_bad_arguments(argument, options):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        stn.SpatialTransformer(Fixed([1.0, 0, 0, 0, 1, 0]), **options)


def test_a_localizer_is_a_module():
    with pytest.raises(ValueError, match=r"^localizer: "):
        stn.SpatialTransformer(lambda image: image)


def test_bad_images():
    transformer = conv_transformer()
    for image in (torch.zeros(1, 28, 28), torch.zeros(1, 1, 28, 28).int(), torch.zeros(1, 1, 0, 28), None):
        with pytest.raises(ValueError, match=r"^image: "):
            transformer(image)
    with pytest.raises(ValueError, match=r"^fill: "):
        stn.SpatialTransformer(Fixed([1.0, 0, 0, 0, 1, 0]), fill=1.0)(torch.rand(1, 1, 4, 4))


# Localizers


@pytest.mark.parametrize("transform", [make() for make in stn.transforms.TRANSFORMS.values()], ids=repr)
def test_an_identity_head_says_identity(transform):
    head = stn.identity_head(7, transform)
    assert torch.equal(head(torch.randn(3, 7)), transform.identity().expand(3, -1))
    assert head.weight.requires_grad
    assert head.bias.requires_grad


@pytest.mark.parametrize("options", [
    {}, {"batch_norm": True}, {"same_padding": True}, {"last_pool": False}, {"downsample": 2, "kernel_sizes": (3, 3)},
    {"channels": (4,), "kernel_sizes": (3,), "hidden": ()}, {"hidden": (8, 9)},
])  # fmt: skip
@pytest.mark.parametrize("fixed", [True, False])
def test_conv_localizer(options, fixed):
    transform = stn.Similarity()
    localizer = stn.ConvLocalizer(2, transform, image_size=(28, 30) if fixed else None, **options)
    out = localizer(torch.randn(3, 2, 28, 30))
    assert torch.equal(out, transform.identity().expand(3, -1))
    nn.init.normal_(localizer.head[-1].weight)
    images = torch.randn(3, 2, 28, 30)
    assert len({tuple(row) for row in localizer(images).tolist()}) == 3
    localizer(images).sum().backward()
    assert all(p.grad is not None for p in localizer.parameters())
    if not fixed:
        assert localizer(torch.randn(1, 2, 40, 33)).shape == (1, 4)
    convolutions = [m for m in localizer.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == len(options.get("channels", (8, 10)))
    assert len([m for m in localizer.modules() if isinstance(m, nn.BatchNorm2d)]) == (
        len(convolutions) if options.get("batch_norm") else 0
    )


def test_building_a_localizer_counts_nothing_in_its_statistics():
    localizer = stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28), batch_norm=True)
    norms = [m for m in localizer.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(m.num_batches_tracked) == 0 for m in norms)
    assert all(m.training for m in localizer.modules())


def test_fc_localizer():
    localizer = stn.FCLocalizer(2 * 5 * 4, stn.Rigid(), hidden=(8,))
    assert torch.equal(localizer(torch.randn(3, 2, 5, 4)), torch.zeros(3, 3))
    assert localizer(torch.randn(0, 2, 5, 4)).shape == (0, 3)
    for batch in (0, 2):
        with pytest.raises(ValueError, match=r"^image: expected 40 numbers"):
            localizer(torch.randn(batch, 2, 5, 5))


@pytest.mark.parametrize(("argument", "make"), [
    ("kernel_sizes", lambda: stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28), kernel_sizes=(7,))),
    ("channels", lambda: stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28), channels=8)),
    ("hidden", lambda: stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28), hidden=(0,))),
    ("downsample", lambda: stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28), downsample=0)),
    ("in_channels", lambda: stn.ConvLocalizer("1", stn.Affine(), image_size=(28, 28))),
    ("in_channels", lambda: stn.ConvLocalizer(0, stn.Affine(), image_size=(28, 28))),
    ("image_size", lambda: stn.ConvLocalizer(1, stn.Affine(), image_size=(28,))),
    ("image_size", lambda: stn.ConvLocalizer(1, stn.Affine(), image_size=28)),
    ("image size", lambda: stn.ConvLocalizer(1, stn.Affine(), image_size=(9, 9))),
    ("transform", lambda: stn.ConvLocalizer(1, "afine", image_size=(28, 28))),
    ("transform", lambda: stn.identity_head(4, stn.Affine)),
    ("in_features", lambda: stn.identity_head(0, stn.Affine())),
    ("in_features", lambda: stn.FCLocalizer(0, stn.Affine())),
    ("hidden", lambda: stn.FCLocalizer(4, stn.Affine(), hidden=3)),
])  # fmt: skip
def test_bad_localizers(argument, make):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        make()


# parameter_groups


def test_parameter_groups():
    model = nn.Sequential(conv_transformer(), nn.Flatten(), nn.Linear(784, 10))
    groups = stn.parameter_groups(model, lr=0.5, localizer_lr_scale=0.01, weight_decay=0.1)
    assert [group["lr"] for group in groups] == [0.5, 0.005]
    assert all(group["weight_decay"] == 0.1 for group in groups)
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in model[0].localizer.parameters()}
    together = [id(p) for group in groups for p in group["params"]]
    assert sorted(together) == sorted(id(p) for p in model.parameters())  # each of them once
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(stn.parameter_groups(model, lr=0.1, localizer_lr_scale=0.0))
    model(torch.rand(2, 1, 28, 28)).square().sum().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [False] * 8 + [True] * 2  # a scale of 0 freezes the localizer


def test_parameter_groups_shares_and_nests():
    shared = stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28))
    model = nn.ModuleDict(
        {"a": stn.SpatialTransformer(shared), "b": stn.SpatialTransformer(shared), "c": nn.Linear(2, 2)}
    )
    groups = stn.parameter_groups(nn.Sequential(model), lr=1.0)
    assert [len(group["params"]) for group in groups] == [2, 8]
    assert groups[1]["lr"] == pytest.approx(0.1)


def test_parameter_groups_without_a_localizer():
    (group,) = stn.parameter_groups(nn.Linear(2, 2), lr=0.3)
    assert (group["lr"], len(group["params"])) == (0.3, 2)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "0.1", None])
def test_bad_rates(value):
    with pytest.raises(ValueError, match=r"^lr: "):
        stn.parameter_groups(nn.Linear(2, 2), lr=value)
    with pytest.raises(ValueError, match=r"^localizer_lr_scale: "):
        stn.parameter_groups(nn.Linear(2, 2), lr=1.0, localizer_lr_scale=value)
    with pytest.raises(ValueError, match=r"^model: "):
        stn.parameter_groups([nn.Linear(2, 2)], lr=1.0)


# diagnose


def diagnosis(theta, transform=None, image=None, **options):
    image = torch.rand(4, 1, 20, 20) if image is None else image
    transformer = stn.SpatialTransformer(Fixed(theta), transform, **options)
    return stn.diagnose(image, transformer.warp(image))


def test_a_healthy_transformer():
    result = diagnosis([1.0, 0, 0, 0, 1, 0])
    assert result.problems == ()
    assert result.scale == pytest.approx(1.0)
    assert result.out_of_frame == 0.0
    assert result.contrast == pytest.approx(1.0, abs=1e-4)
    assert result.spread == 0.0


def test_the_figures():
    transform = stn.Affine()
    image = torch.rand(4, 1, 20, 20) * torch.tensor([0.1, 1.0, 2.0, 3.0]).reshape(4, 1, 1, 1)
    warp = stn.SpatialTransformer(Seeing(transform)).warp(image)
    result = stn.diagnose(image, warp)
    wanted = warp.theta.detach().var(dim=0, correction=0).mean().sqrt()
    assert result.spread == pytest.approx(float(wanted), rel=1e-4)
    assert result.spread > 0.01
    assert diagnosis([2.0, 0, 0, 0, 2, 0]).scale == pytest.approx(2.0)
    assert diagnosis([2.0, 0, 0, 0, 0.5, 0]).scale == pytest.approx(1.0)
    assert diagnosis([1.0, 0, 1.0, 0, 1, 0]).out_of_frame == pytest.approx(1 / 2)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [None, (7, 9), (1, 1), (50, 45)])
def test_out_of_frame_is_counted_at_pixel_centres(size, align_corners):
    """The share of the output's pixels that are read beyond the image's border pixels, counted one by one."""
    options = {"size": size, "align_corners": align_corners}
    assert diagnosis([1.0001, 0, 0, 0, 1.0001, 0], **options).out_of_frame == 0.0
    theta = [1.313, 0.217, 0.053, -0.131, 1.219, -0.307]
    h, w = size or (20, 20)
    grid = stn.transforms.affine_grid(torch.tensor(theta).reshape(1, 2, 3), (h, w), align_corners=align_corners)
    pixels = stn.conventions.normalized_to_pixel(grid, (20, 20), align_corners=align_corners)
    outside = ((pixels < -0.5) | (pixels > 19.5)).any(-1).float().mean()
    tolerance = 1e-6 if max(h, w) <= 32 else 0.02  # larger outputs are looked at in 32 x 32 places
    assert diagnosis(theta, **options).out_of_frame == pytest.approx(float(outside), abs=tolerance)


def test_out_of_frame_of_signals_and_volumes():
    for transform, image in (
        (stn.Translation(1), torch.rand(4, 1, 40)),
        (stn.Translation(3), torch.rand(4, 1, 4, 8, 40)),
    ):
        shift = [1.0] + [0.0] * (transform.ndim - 1)
        assert diagnosis(shift, transform, image).out_of_frame == pytest.approx(0.5)
        assert diagnosis([0.0] * transform.ndim, transform, image).out_of_frame == 0.0


@pytest.mark.parametrize(("theta", "words"), [
    ([9.0, 0, 0, 0, 9, 0], {"exploding scale", "out of frame"}),
    ([0.01, 0, 0, 0, 0.01, 0], {"vanishing scale"}),
    ([1.0, 0, 4.0, 0, 1, 0], {"out of frame", "blank output"}),
    ([1.0, 0, float("nan"), 0, 1, 0], {"non-finite theta"}),
    ([1.0, 0, float("inf"), 0, 1, 0], {"non-finite theta"}),
])  # fmt: skip
def test_the_usual_collapses_have_names(theta, words):
    problems = diagnosis(theta, padding_mode="zeros").problems
    named = {problem.split(":")[0].split(" in ")[0] for problem in problems}
    assert words <= named
    assert named <= words | {"blank output"}


def test_non_finite_theta_is_counted_and_nothing_else_is_said():
    result = diagnosis([float("nan")] * 6)
    assert len(result.problems) == 1
    assert result.problems[0].startswith("non-finite theta in 4 of 4 images")
    assert math.isnan(result.scale)


def test_diagnose_rejects_another_batchs_warp():
    image = torch.rand(4, 1, 28, 28)
    warp = conv_transformer().warp(image)
    for bad in (image[:3], image[:0], image.int(), None):
        with pytest.raises(ValueError, match=r"^image: "):
            stn.diagnose(bad, warp)
    with pytest.raises(ValueError, match=r"^warp: "):
        stn.diagnose(image, image)


def test_diagnose_needs_no_gradient():
    image = torch.rand(2, 1, 28, 28)
    transformer = conv_transformer()
    warp = transformer.warp(image)
    stn.diagnose(image, warp)
    warp.output.sum().backward()
    assert transformer.localizer.head[-1].bias.grad is not None
