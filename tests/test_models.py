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
        # compact widens all its layers at once, by whole channels: a coarser step
        most = 1.03 if name == "compact" else 1.02
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
    assert (model.transformer.padding_mode, model.transformer.theta_grad_scale) == ("zeros", 0.5)
    seen = []
    model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model(torch.rand(1, 1, 42, 42))
    assert seen == [(1, 1, 21, 21)]
    quiet = models.create("cifar10_small", dropout=0.0)
    assert all(m.p == 0 for m in quiet.modules() if isinstance(m, (torch.nn.Dropout, torch.nn.Dropout2d)))
    assert any(m.p == 0.5 for m in models.create("cifar10_small").modules() if isinstance(m, torch.nn.Dropout))


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
    ("name", {"transform": "afine"}),
    ("transform", {"transform": 3}),
    ("in_shape", {"in_shape": (28, 28)}), ("in_shape", {"in_shape": (1, 0, 28)}), ("in_shape", {"in_shape": 28}),
    ("num_classes", {"num_classes": 0}), ("num_classes", {"num_classes": 2.5}),
    ("dropout", {"dropout": 1.0}), ("dropout", {"dropout": "much"}), ("dropout", {"dropout": float("nan")}),
    ("padding_mode", {"padding_mode": "zero"}),
    ("theta_grad_scale", {"theta_grad_scale": -1.0}),
    ("pool", {"pool": 0}),
    ("image size", {"in_shape": (1, 9, 9)}),
])  # fmt: skip
def test_bad_arguments(argument, options):
    options = {"name": "mnist_tutorial", **options}
    with pytest.raises(ValueError, match=f"^{argument}: "):
        models.create(options.pop("name"), **options)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cifar10_small'"):
        models.create("cifar_small")
