"""Every network by name, and what builds it or its control."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from .._checks import check_choice, check_count, check_flag, check_number, check_size, describe
from ..localization import shape_out
from ..reading import PADDING_MODES, PaddingMode
from ..transformer import SpatialTransformer
from ..transforms import AbstractTransform, Affine
from ..transforms.config import TransformLike, check_transform
from . import addition, any_size, paper, signs, tutorial
from .base import Network, Shape, TransformerClassifier, check_shape
from .foreign import features_before, is_foreign, record

NETWORKS: dict[str, Network] = {
    name: network for group in (tutorial, paper, any_size, signs, addition) for name, network in group.NETWORKS.items()
}


def names() -> list[str]:
    """The names that `create` knows."""
    return list(NETWORKS)


def create(
    name: str | Mapping[str, Any],
    *,
    transform: TransformLike | None = "affine",
    in_shape: Shape | None = None,
    num_classes: int = 10,
    dropout: float | None = None,
    padding_mode: PaddingMode = "border",
    theta_grad_scale: float = 1.0,
    size: int | tuple[int, int] | None = None,
    pool: int = 1,
    widen: bool = True,
    antialias: bool = False,
    gradient: Literal["exact", "linearized"] = "exact",
    feed_theta: bool = False,
    pretrained: bool = False,
) -> TransformerClassifier:
    """A network of the literature, with random weights and its transformer at the identity; or one that has been trained.

    Args:
        name: one of `names()`; with `pretrained`, one of `pretrained_names()`. `timm:resnet18` is timm's (extra
            `[timm]`), a name in `stn.models.OWN` a user's own. Those take options in a mapping with the name, such as
            `{"name": "timm:resnet18", "at": "layer2"}`: `at` puts the transformer before the layer of this name, where it
            warps features; the others go to what makes the network.
        transform: the family of warps, its name or its configuration; None or "none" gives the equal-parameter control,
            the same kind of classifier widened until it has at least as many parameters as with the affine transformer.
            The control of a network that is not ours is that network.
        in_shape: (C, H, W) of the images, the data set's unless given; a network that is not ours has no other.
        num_classes: how many logits come out.
        dropout: probability, the network's own unless given.
        padding_mode, theta_grad_scale: of the transformer.
        size: of the transformer's output, height and width or one number for both; the image's own unless given. A smaller
            one makes a smaller classifier that sees the part it reads; a control sees the whole image.
        pool: the transformer's output is average-pooled by this factor before the classifier (the paper's 2 for RTS
            and TC); a control sees the whole image.
        widen: False leaves a control as wide as the classifier behind the transformer, with fewer parameters: it
            tells what the transformer brings from what its parameters bring.
        antialias, gradient: of the transformer, as for `SpatialTransformer`.
        feed_theta: the classifier's last layer sees theta beside the hidden features. A control has no theta; it is
            widened for the parameters that this takes.
        pretrained: the network of that recipe with the weights that come with the package, a `LabelledClassifier` in
            eval mode: `normalize` its images, `class_names` says what the logits stand for. Its settings are those it
            was trained with, so it takes no other argument. Needs safetensors.

    Raises:
        ValueError: for an unknown name or transform, an image too small for the layers, or an argument beside
            `pretrained`.

    Example:
        >>> model = create("cifar10_small")
        >>> sum(p.numel() for p in model.parameters())
        39884
    """
    check_flag("pretrained", pretrained)
    if pretrained:
        given = {argument: value for argument, value in locals().items() if argument not in ("name", "pretrained")}
        for argument, parameter in inspect.signature(create).parameters.items():
            if argument in given and given[argument] != parameter.default:
                raise ValueError(f"{argument}: expected none beside pretrained, got {describe(given[argument])}")
        from .pretrained import load

        return load(str(name))
    network, at = _network(name, dropout)
    if network.fixed and in_shape is None:
        raise ValueError(f"in_shape: expected (C, H, W) for a network that is not ours, {name!r}, got None")
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    check_flag("feed_theta", feed_theta)
    shape = network.in_shape if in_shape is None else check_shape(in_shape)
    for argument, value in (("num_classes", num_classes), ("pool", pool)):
        check_count(argument, value)
    out = None if size is None else check_size((size, size) if isinstance(size, int) else size, 2)
    height, width = out or shape[1:]
    seen_by_classifier = (shape[0], height // pool, width // pool)
    probability = network.dropout if dropout is None else dropout
    check_number("dropout", probability, "a probability in [0, 1)", lambda v: 0 <= v < 1)
    family = None if transform is None or transform == "none" else check_transform(transform)

    of_transformer: dict[str, Any] = {
        "padding_mode": padding_mode, "antialias": antialias, "gradient": gradient, "theta_grad_scale": theta_grad_scale
    }  # fmt: skip

    def build(transform: AbstractTransform, width: int) -> TransformerClassifier:
        def before(seen: Shape, size: tuple[int, ...] | None = None) -> SpatialTransformer:
            return SpatialTransformer(network.localizer(seen, transform), transform, size, **of_transformer)

        transformer, *others = (before(shape, out) for _ in range(network.transformers))
        seen = (network.transformers * shape[0], *seen_by_classifier[1:])
        classifier = network.classifier(seen, num_classes, width, probability)
        if network.depths:
            classifier = _with_transformers(classifier, seen, network.depths, before)
        return TransformerClassifier(transformer, classifier, pool, others, feed_theta=feed_theta)

    def build_control(width: int) -> TransformerClassifier:
        return TransformerClassifier(None, network.control(shape, num_classes, width, probability))

    if network.fixed:
        options = {"size": out, "pool": pool, "feed_theta": feed_theta, **of_transformer}
        return _foreign(network, family, shape, seen_by_classifier, at, num_classes, **options)
    if network.only_control:
        return build_control(_widest(build_control, network.budget))
    width = network.width or _widest(lambda w: build(Affine(), w), network.budget)
    if family is not None:
        return build(family, width)
    if not widen:
        return TransformerClassifier(None, network.classifier(shape, num_classes, width, probability))
    target = _count(lambda: build(Affine(), width))
    return build_control(_widest(build_control, target - 1) + 1)


def _with_transformers(
    classifier: nn.Module, in_shape: Shape, depths: tuple[int, ...], before: Callable[[Shape], SpatialTransformer]
) -> nn.Sequential:
    """The layers of a classifier, with a transformer before each of those that `depths` names."""
    assert isinstance(classifier, nn.Sequential)
    layers: list[nn.Module] = []
    for place, layer in enumerate(classifier):
        if place in depths:
            channels, height, width = shape_out(classifier[:place], in_shape)
            layers.append(before((channels, height, width)))
        layers.append(layer)
    return nn.Sequential(*layers)


def _network(name: Any, dropout: float | None) -> tuple[Network, str | None]:
    """The record of a network, and the layer that its transformer goes before."""
    options = {}
    if isinstance(name, Mapping):
        options = {option: value for option, value in name.items() if option != "name"}
        name = name.get("name")
    if not isinstance(name, str):
        raise ValueError(f"name: expected a name, or a mapping with a name and options, got {describe(name)}")
    if not is_foreign(name):
        check_choice("name", name, NETWORKS)
        if options:
            raise ValueError(f"name: expected no options of {name!r}, got {', '.join(map(str, options))}")
        return NETWORKS[name], None
    at = options.pop("at", None)
    return record(name, options if dropout is None else {**options, "dropout": dropout}), at


def _foreign(
    network: Network, family: AbstractTransform | None, shape: Shape, warped: Shape, at: str | None, classes: int, *,
    size: tuple[int, ...] | None, pool: int, feed_theta: bool, **options: Any,
) -> TransformerClassifier:  # fmt: skip
    """A network that is not ours, with a transformer in front of it or before one of its layers; alone without a family."""
    if family is None:
        return TransformerClassifier(None, network.classifier(shape, classes, 1, 0.0))
    if at is not None and size is not None:
        raise ValueError(f"size: expected None before a layer, which takes features of their own size, got {size}")
    classifier = network.classifier(warped, classes, 1, 0.0)
    seen = shape if at is None else features_before(classifier, at, shape)
    transformer = SpatialTransformer(network.localizer(seen, family), family, size, **options)
    return TransformerClassifier(transformer, classifier, pool, at=at, feed_theta=feed_theta)


def _widest(build: Callable[[int], nn.Module], within: int) -> int:
    """The largest width whose network stays within so many parameters."""
    low, high = 1, 2
    while _count(lambda: build(high)) <= within:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _count(lambda: build(middle)) <= within else (low, middle)
    return low


def _count(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())
