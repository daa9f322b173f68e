"""The networks of the literature: their published sizes, their controls, their start at the identity."""

from __future__ import annotations

import pytest
import torch

import stn
from stn import models

PAPER_SHAPES = [((1, 28, 28), 1), ((1, 42, 42), 1), ((1, 42, 42), 2), ((1, 60, 60), 2)]
WITH_CONTROL = [name for name in models.names() if not models.NETWORKS[name].only_control]


def count(model):
    return sum(p.numel() for p in model.parameters())


def shape_of(name):
    return models.NETWORKS[name].in_shape


@pytest.mark.parametrize(
    ("name", "parameters"), [("cifar10_small", 39_884), ("cifar10_large", 1_585_008), ("mnist_tutorial", 27_360)]
)
def test_published_parameter_counts(name, parameters):
    assert count(models.create(name)) == parameters
    assert models.NETWORKS[name].parameters == parameters


@pytest.mark.parametrize("name", ["st_cnn", "st_fcn", "cnn", "fcn"])
@pytest.mark.parametrize(("in_shape", "pool"), PAPER_SHAPES)
def test_the_papers_networks_have_about_400k(name, in_shape, pool):
    parameters = count(models.create(name, in_shape=in_shape, pool=pool))
    assert 0.95 * 400_000 < parameters <= 400_000


@pytest.mark.parametrize("name", WITH_CONTROL)
def test_a_control_never_has_fewer_parameters(name):
    shapes = [((1, 28, 28), 1), ((3, 32, 32), 1), ((1, 42, 42), 1), ((1, 60, 60), 1)]
    for in_shape, pool in shapes + ([((1, 60, 60), 2)] if name.startswith("st_") else []):
        transformer = count(models.create(name, in_shape=in_shape, pool=pool))
        control = models.create(name, transform=None, in_shape=in_shape, pool=pool)
        assert control.transformer is None
        # these widen all their layers at once, by whole channels: a coarser step
        most = 1.03 if name in ("compact", "signs", "signs_deep") else 1.02
        assert transformer <= count(control) <= most * transformer, (in_shape, pool)


@pytest.mark.parametrize("name", ["cnn", "fcn"])
def test_the_papers_plain_networks_have_no_transformer(name):
    assert models.create(name).transformer is None
    assert not [m for m in models.create(name).modules() if isinstance(m, stn.SpatialTransformer)]


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("transform", ["affine", "none"])
def test_forward_and_backward(name, transform):
    model = models.create(name, transform=transform, num_classes=7)
    logits = model(torch.randn(2, *shape_of(name)))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("transform", list(stn.transforms.TRANSFORMS))
def test_every_network_starts_at_the_identity(transform):
    for name in WITH_CONTROL:
        model = models.create(name, transform=transform)
        image = torch.rand(2, *shape_of(name))
        theta = model.transformer.theta(image)
        assert torch.equal(theta, model.transformer.transform.identity().expand(2, -1))
        if transform != "polar":  # whose starting place is the middle, seen in other coordinates
            torch.testing.assert_close(model.transformer(image), image, rtol=0, atol=1e-5)


def test_the_transformer_learns_from_the_first_step():
    """The head's zero weights let no gradient through to the layers before it, but get one themselves."""
    model = models.create("mnist_tutorial", dropout=0.0)
    model(torch.randn(4, 1, 28, 28)).square().sum().backward()
    head = model.transformer.localizer.head[-1]
    assert float(head.weight.grad.abs().max()) > 0
    assert float(head.bias.grad.abs().max()) > 0


def test_options_arrive():
    model = models.create(
        "st_cnn",
        transform=stn.Similarity(max_angle=1.0),
        in_shape=(1, 42, 42),
        padding_mode="zeros",
        theta_grad_scale=0.5,
        pool=2,
    )
    assert model.transformer.transform.max_angle == 1.0
    assert (model.transformer.reading.padding, model.transformer.theta_grad_scale) == ("zeros", 0.5)
    seen = []
    model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model(torch.rand(1, 1, 42, 42))
    assert seen == [(1, 1, 21, 21)]
    quiet = models.create("cifar10_small", dropout=0.0)
    assert all(m.p == 0 for m in quiet.modules() if isinstance(m, (torch.nn.Dropout, torch.nn.Dropout2d)))
    assert any(m.p == 0.5 for m in models.create("cifar10_small").modules() if isinstance(m, torch.nn.Dropout))


def test_a_transformer_hands_on_another_size():
    """The classifier sees that, pooled where it is; a control, widened or not, sees the image."""
    options = {"in_shape": (1, 42, 44)}
    model = models.create("compact", size=(28, 24), pool=2, **options)
    seen = []
    model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    assert model.warp(torch.rand(2, 1, 42, 44)).output.shape == (2, 1, 28, 24)
    model(torch.rand(2, 1, 42, 44))
    assert seen == [(2, 1, 14, 12)]
    square, whole = models.create("compact", size=28, **options), models.create("compact", **options)
    assert square.warp(torch.rand(2, 1, 42, 44)).output.shape == (2, 1, 28, 28)
    assert count(square) < count(whole)
    assert whole.transformer.size is None  # the image's own
    for widen in (True, False):
        control = models.create("compact", transform=None, size=28, widen=widen, **options)
        assert control(torch.rand(2, 1, 42, 44)).shape == (2, 10)
    assert count(square) <= count(models.create("compact", transform=None, size=28, **options))


def test_the_paper_cnn_on_the_small_pooled_images():
    """21x21 after pooling: flooring would leave less than the 7x7 kernel."""
    assert models.create("st_cnn", in_shape=(1, 42, 42), pool=2)(torch.rand(1, 1, 42, 42)).shape == (1, 10)


def test_compact_takes_many_sizes():
    for n in (16, 28, 64):
        assert models.create("compact", in_shape=(3, n, n))(torch.rand(2, 3, n, n)).shape == (2, 10)


@pytest.mark.parametrize("name", models.names())
def test_a_state_dict_loads_strictly(name):
    first, second = models.create(name), models.create(name)
    second.load_state_dict(first.state_dict(), strict=True)
    image = torch.rand(1, *shape_of(name))
    assert torch.equal(first.eval()(image), second.eval()(image))


def test_counting_leaves_the_random_numbers_alone():
    """Building for the count happens on no device: the same seed gives the same network, with or without a search."""
    torch.manual_seed(1)
    models.create("st_cnn")
    after = torch.rand(1)
    torch.manual_seed(1)
    models.create("st_cnn")
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize(("argument", "options"), [
    ("name", {"name": "cifar_small"}),
    ("transform", {"transform": "afine"}),
    ("transform", {"transform": 3}),
    ("in_shape", {"in_shape": (28, 28)}), ("in_shape", {"in_shape": (1, 0, 28)}), ("in_shape", {"in_shape": 28}),
    ("num_classes", {"num_classes": 0}), ("num_classes", {"num_classes": 2.5}),
    ("dropout", {"dropout": 1.0}), ("dropout", {"dropout": "much"}), ("dropout", {"dropout": float("nan")}),
    ("padding_mode", {"padding_mode": "zero"}),
    ("theta_grad_scale", {"theta_grad_scale": -1.0}),
    ("size", {"size": 0}), ("size", {"size": (28,)}), ("size", {"size": 14.5}), ("pool", {"pool": 0}),
    ("feed_theta", {"feed_theta": 1}),
    ("image size", {"in_shape": (1, 9, 9)}),
])  # fmt: skip
def test_bad_arguments(argument, options):
    options = {"name": "mnist_tutorial", **options}
    with pytest.raises(ValueError, match=f"^{argument}: "):
        models.create(options.pop("name"), **options)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cifar10_small'"):
        models.create("cifar_small")


# theta fed forward


@pytest.mark.parametrize("name", WITH_CONTROL)
def test_theta_is_fed_to_the_last_layer(name):
    model, plain = models.create(name, feed_theta=True, dropout=0.0).eval(), models.create(name, dropout=0.0).eval()
    image = torch.rand(2, *shape_of(name))
    if models.NETWORKS[name].width is not None:  # the others are as wide as 400k parameters allow
        assert count(model) == count(plain) + 6 * 10 * models.NETWORKS[name].transformers
    last = model.classifier.last
    logits = model(image)
    with torch.no_grad():
        fed = 6 * models.NETWORKS[name].transformers
        last.weight[:, -fed:] = 0
        without = model(image)
        last.weight[:, -fed:] = 1
    # all entries of the identity's theta sum to 2
    torch.testing.assert_close(model(image), without + fed // 3, rtol=0, atol=1e-4)
    assert logits.shape == (2, 10)


def test_fed_theta_is_the_transformers_and_carries_gradients():
    model = models.create("mnist_tutorial", feed_theta=True, transform="similarity", dropout=0.0)
    head = model.transformer.localizer.head[-1]
    torch.nn.init.normal_(head.weight, std=0.1)
    seen = []
    model.classifier.last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.rand(3, 1, 28, 28)
    model(image).sum().backward()
    assert torch.equal(seen[0][:, -4:], model.transformer.theta(image))
    assert torch.equal(seen[0][:, :-4], model.classifier.features(model.transformer(image)))
    assert head.weight.grad.isfinite().all()
    # in an image where there is nothing to see only the fed theta moves the logits
    head.bias.grad = None
    blank = torch.zeros(1, 1, 28, 28)
    model(blank).square().sum().backward()
    assert bool((head.bias.grad != 0).any())
    second = models.create("mnist_tutorial", feed_theta=True, transform="similarity", dropout=0.0)
    second.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(second(image), model(image))
    assert model(image[:0]).shape == (0, 10)
    half = model.bfloat16()
    assert half(image.bfloat16()).dtype == torch.bfloat16


def test_a_control_is_widened_for_the_fed_theta():
    fed = count(models.create("mnist_tutorial", feed_theta=True))
    control = models.create("mnist_tutorial", transform=None, feed_theta=True)
    assert control.transformer is None
    assert fed <= count(control) <= 1.02 * fed
    assert control(torch.rand(1, 1, 28, 28)).shape == (1, 10)


def test_feeding_theta_needs_a_transformer_and_a_last_layer():
    transformer = stn.SpatialTransformer(stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28)))
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3))
    assert models.TransformerClassifier(transformer, linear, feed_theta=True)(torch.rand(1, 1, 28, 28)).shape == (1, 3)
    for bad in (torch.nn.Linear(784, 3), torch.nn.Sequential(), torch.nn.Sequential(*linear, torch.nn.ReLU())):
        with pytest.raises(ValueError, match=r"^classifier: "):
            models.TransformerClassifier(transformer, bad, feed_theta=True)
    with pytest.raises(ValueError, match=r"^feed_theta: "):
        models.TransformerClassifier(None, linear, feed_theta=True)


# Transformers at increasing depth


SMALL = {"in_shape": (3, 32, 32), "channels": (8, 9, 10, 11, 12), "hidden": (16,), "digits": 3, "num_classes": 5}


@pytest.mark.parametrize(("transformers", "depths"), [("multi", 4), ("single", 1), ("none", 0)])
def test_svhn(transformers, depths):
    model = models.svhn(transformers, **SMALL).eval()
    image = torch.rand(2, 3, 32, 32)
    logits = model(image)
    assert logits.shape == (2, 3, 5)
    warps = model.warps(image)
    assert [tuple(warp.output.shape) for warp in warps] == [
        (2, 3, 32, 32), (2, 8, 16, 16), (2, 9, 16, 16), (2, 10, 8, 8),
    ][:depths]  # fmt: skip
    assert [m for m in model.modules() if isinstance(m, stn.SpatialTransformer)] == [
        layer for layer in model.features if isinstance(layer, stn.SpatialTransformer)
    ]
    assert all(torch.equal(warp.theta, stn.Affine().identity().expand(2, -1)) for warp in warps)
    # at the identity it is the network without transformers
    control = models.svhn("none", **SMALL).eval()
    control.head.load_state_dict(model.head.state_dict())
    plain = [layer for layer in model.features if not isinstance(layer, stn.SpatialTransformer)]
    control.features.load_state_dict(torch.nn.Sequential(*plain).state_dict(), strict=True)
    torch.testing.assert_close(logits, control(image), rtol=0, atol=1e-5)
    groups = stn.parameter_groups(model, lr=1.0)
    assert len(groups) == (2 if depths else 1)


def test_svhn_learns_at_every_depth():
    model = models.svhn(**SMALL, dropout=0.0)
    for module in model.modules():
        if isinstance(module, stn.FCLocalizer):
            torch.nn.init.normal_(module.head[-1].weight, std=0.01)
    image = torch.rand(2, 3, 32, 32)
    model(image).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    heads = [m.head[-1] for m in model.modules() if isinstance(m, stn.FCLocalizer)]
    assert len(heads) == 4
    assert all(float(head.weight.grad.abs().max()) > 0 for head in heads)
    second = models.svhn(**SMALL, dropout=0.0)
    second.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(second(image), model(image))
    assert model(image[:0]).shape == (0, 3, 5)
    outputs = []  # what each says that it did is what it did
    for module in model.features:
        if isinstance(module, stn.SpatialTransformer):
            module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(image)
    warps = model.warps(image)
    assert all(torch.equal(warp.output, output) for warp, output in zip(warps, outputs, strict=True))


def test_svhn_as_in_the_paper():
    """Eight convolutions, three hidden layers, and four localizers of two layers of 32."""
    with torch.device("meta"):
        multi, single, none = (models.svhn(transformers) for transformers in ("multi", "single", "none"))
    convolutions = [m.out_channels for m in none.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == [48, 64, 128, 160, 192, 192, 192, 192]
    assert [m.out_features for m in none.modules() if isinstance(m, torch.nn.Linear)] == [3072] * 3 + [55]
    sizes = (3 * 64 * 64, 48 * 32 * 32, 64 * 32 * 32, 128 * 16 * 16)
    localizers = sum(n * 32 + 32 + 32 * 32 + 32 + 32 * 6 + 6 for n in sizes)
    assert count(multi) == count(none) + localizers
    assert count(none) < count(single) < count(multi)


@pytest.mark.parametrize(("argument", "options"), [
    ("transformers", {"transformers": "many"}), ("in_shape", {"in_shape": (3, 64)}), ("in_shape", {"in_shape": (3, 7, 64)}),
    ("digits", {"digits": 0}), ("num_classes", {"num_classes": 1.5}), ("channels", {"channels": 8}),
    ("hidden", {"hidden": (0,)}), ("dropout", {"dropout": 1.0}), ("padding_mode", {"padding_mode": "zero"}),
])  # fmt: skip
def test_svhn_bad_arguments(argument, options):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        models.svhn(**{**SMALL, **options})
