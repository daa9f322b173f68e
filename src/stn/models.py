"""The networks of the literature, by name, each with an equal-parameter control that has no transformer.

A control is the same kind of classifier, widened until it has at least as many parameters as the network with its
transformer: what the transformer is worth can only be told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ._checks import check_choice, check_count, check_flag, check_number, describe
from .localization import ConvLocalizer, FCLocalizer, SharedLocalizer, check_widths, features_out
from .placement import IterativeTransformer
from .reading import PADDING_MODES, PaddingMode
from .transformer import SpatialTransformer, Warp
from .transforms import AbstractTransform, Affine, by_name

Shape = tuple[int, int, int]  # (C, H, W)
Transformers = Literal["multi", "single", "none"]
TRANSFORMERS = ("multi", "single", "none")
PAPER_PARAMETERS = 400_000  # "about 400k" for every network on distorted MNIST in Jaderberg et al. 2015


class TransformerClassifier(nn.Module):
    """A transformer (None in a control), an average pool of its output, and the classifier that sees the result.

    Args:
        transformer: None for a control.
        classifier: image -> logits.
        pool: factor of the average pool.
        feed_theta: the classifier's last layer sees theta beside the hidden features, so that what was undone is not
            lost. The classifier is then an `nn.Sequential` that ends with an `nn.Linear`, which is replaced by a wider
            one.

    Shape: (B, C, H, W) -> (B, classes).

    Raises:
        ValueError: for bad arguments.
    """

    def __init__(
        self,
        transformer: SpatialTransformer | None,
        classifier: nn.Module,
        pool: int = 1,
        *,
        feed_theta: bool = False,
    ) -> None:
        super().__init__()
        check_flag("feed_theta", feed_theta)
        if feed_theta:
            if transformer is None:
                raise ValueError("feed_theta: expected False without a transformer, got True")
            classifier = _FedClassifier(classifier, transformer.transform.num_params)
        self.transformer = transformer
        self.pool = nn.AvgPool2d(pool) if pool > 1 else nn.Identity()
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        return self.look(image)[0]

    def look(self, image: Tensor) -> tuple[Tensor, Warp | None]:
        """The logits, and what the transformer did to the image (None in a control)."""
        if self.transformer is None:
            return self.classifier(self.pool(image)), None
        warp = self.transformer.warp(image)
        theta = [warp.theta] if isinstance(self.classifier, _FedClassifier) else []
        return self.classifier(self.pool(warp.output), *theta), warp


class _FedClassifier(nn.Module):
    """A classifier whose last layer sees theta beside the hidden features."""

    def __init__(self, classifier: nn.Module, num_params: int) -> None:
        super().__init__()
        last = classifier[-1] if isinstance(classifier, nn.Sequential) and len(classifier) else None
        if not isinstance(classifier, nn.Sequential) or not isinstance(last, nn.Linear):
            raise ValueError(
                f"classifier: expected an nn.Sequential that ends with an nn.Linear, to feed theta to, got "
                f"{type(classifier).__name__}"
            )
        self.features = classifier[:-1]
        self.last = nn.Linear(last.in_features + num_params, last.out_features)

    def forward(self, image: Tensor, theta: Tensor) -> Tensor:
        features = self.features(image)
        logits: Tensor = self.last(torch.cat([features, theta.to(features.dtype)], dim=1))
        return logits


class SharedClassifier(nn.Module):
    """A classifier that looks through its own first layers: they are the localizer's too, and the image is warped in
    front of them, again and again.

    Warping feature maps cannot undo what warps the image, but a localizer on the image alone sees little. So the
    localizer goes as deep as the features that it shares, and it is always the input that is warped.

    Args:
        features: the shared layers, image -> features. The same module for the localizer and the classifier.
        head: features -> theta; end it with `stn.identity_head`.
        classifier: features -> logits.
        transform: the family of warps; `stn.Affine()` unless given.
        iterations: how often the localizer looks and corrects; 1 to 4 in the source.
        padding_mode, theta_grad_scale: of the transformer.

    Shape: what `features` takes -> what `classifier` gives. The transformer is `.transformer`, an
    `IterativeTransformer`. Batch norm in the features counts every look in its statistics.

    Raises:
        ValueError: for bad arguments, or a head of the wrong output width.

    Example:
        >>> from stn import Rotation, identity_head, parameter_groups
        >>> features = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(4))  # (B, 8, 6, 6)
        >>> head = nn.Sequential(nn.Flatten(), identity_head(8 * 6 * 6, Rotation()))
        >>> model = SharedClassifier(features, head, nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 6, 10)), Rotation())
        >>> model(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> model.transformer.warp(torch.randn(2, 1, 28, 28)).theta.shape
        torch.Size([2, 1])

    Source: Finnveden, Jansson and Lindeberg 2020.
    """

    def __init__(
        self,
        features: nn.Module,
        head: nn.Module,
        classifier: nn.Module,
        transform: AbstractTransform | None = None,
        *,
        iterations: int = 2,
        padding_mode: PaddingMode = "border",
        theta_grad_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(classifier, nn.Module):
            raise ValueError(f"classifier: expected a torch.nn.Module, got {describe(classifier)}")
        self.transformer = IterativeTransformer(
            SharedLocalizer(features, head),
            transform,
            iterations=iterations,
            padding_mode=padding_mode,
            theta_grad_scale=theta_grad_scale,
        )
        self.classifier = classifier

    @property
    def features(self) -> nn.Module:
        """The shared layers. They are registered once, in the localizer, so that each weight has one name."""
        localizer = self.transformer.localizers[0]
        assert isinstance(localizer, SharedLocalizer)
        return localizer.features

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(self.transformer(image)))
        return logits


class SequenceClassifier(nn.Module):
    """Reads several digits at once: layers, with transformers among them, and one set of logits a digit.

    Shape: (B, C, H, W) -> (B, digits, classes).
    """

    def __init__(self, features: nn.Sequential, in_features: int, digits: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.digits, self.classes = digits, classes
        self.head = nn.Linear(in_features, digits * classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(image))
        return logits.unflatten(1, (self.digits, self.classes))

    def warps(self, image: Tensor) -> tuple[Warp, ...]:
        """What each transformer did, in order of depth: to the image the first, to feature maps the others."""
        warps = []
        for layer in self.features:
            if isinstance(layer, SpatialTransformer):
                warps.append(layer.warp(image))
                image = warps[-1].output
            else:
                image = layer(image)
        return tuple(warps)


def svhn(
    transformers: Transformers = "multi",
    *,
    in_shape: Shape = (3, 64, 64),
    digits: int = 5,
    num_classes: int = 11,
    channels: Sequence[int] = (48, 64, 128, 160, 192, 192, 192, 192),
    hidden: Sequence[int] = (3072, 3072, 3072),
    dropout: float = 0.5,
    padding_mode: PaddingMode = "border",
    theta_grad_scale: float = 1.0,
) -> SequenceClassifier:
    """The paper's network for house numbers: 5x5 convolutions, with affine transformers at increasing depth.

    A max-pool follows the first, third, fifth and seventh convolution; dropout, every layer but the first.

    Args:
        transformers: "multi", one before each of the first four convolutions, on feature maps but for the first, each
            with a localizer of two fully connected layers of 32; "single", one before them all, with a convolutional
            localizer; "none", the control.
        in_shape: (C, H, W) of the images.
        digits, num_classes: how many digits, and logits for each: "no digit" is a class, too.
        channels, hidden: widths of the convolutions and of the fully connected layers.
        dropout: probability.
        padding_mode, theta_grad_scale: of the transformers.

    Raises:
        ValueError: for bad arguments, or an image too small for the pools.

    Example:
        >>> model = svhn(in_shape=(3, 32, 32), channels=(8, 8, 8, 8), hidden=(32,))
        >>> images = torch.randn(2, 3, 32, 32)
        >>> model(images).shape
        torch.Size([2, 5, 11])
        >>> [tuple(warp.output.shape[1:]) for warp in model.warps(images)]
        [(3, 32, 32), (8, 16, 16), (8, 16, 16), (8, 8, 8)]

    Source: Jaderberg et al. 2015, section 4.2.
    """
    check_choice("transformers", transformers, TRANSFORMERS)
    c, h, w = _check_shape(in_shape)
    for argument, count in (("digits", digits), ("num_classes", num_classes)):
        check_count(argument, count)
    for argument, widths in (("channels", channels), ("hidden", hidden)):
        check_widths(argument, widths)
    check_number("dropout", dropout, "a probability in [0, 1)", lambda v: 0 <= v < 1)
    pools = (len(channels) + 1) // 2
    if min(h, w) < 2**pools:
        raise ValueError(f"in_shape: expected at least {2**pools} pixels a side for {pools} pools, got {in_shape!r}")

    def transformer() -> SpatialTransformer:
        localizer = (
            FCLocalizer(c * h * w, Affine(), hidden=(32, 32))
            if transformers == "multi"
            else ConvLocalizer(
                c, Affine(), image_size=(h, w), channels=(32, 32), kernel_sizes=(5, 5), hidden=(32, 32),
                same_padding=True, last_pool=False,
            )
        )  # fmt: skip
        return SpatialTransformer(localizer, Affine(), padding_mode=padding_mode, theta_grad_scale=theta_grad_scale)

    layers: list[nn.Module] = []
    for i, out in enumerate(channels):
        if i < {"none": 0, "single": 1, "multi": 4}[transformers]:
            layers.append(transformer())
        layers += [nn.Conv2d(c, out, 5, padding=2), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if i else []
        c = out
        if i % 2 == 0:
            layers.append(nn.MaxPool2d(2))
            h, w = h // 2, w // 2
    layers.append(nn.Flatten())
    width = c * h * w
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
        width = units
    return SequenceClassifier(nn.Sequential(*layers), width, digits, num_classes)


def lenet(in_shape: Shape, classes: int, *, maps: tuple[int, int], hidden: int, dropout: float) -> nn.Module:
    """(conv 5x5, max-pool, ReLU) twice, channel dropout after the second convolution, one hidden layer, dropout."""
    features = [
        *(nn.Conv2d(in_shape[0], maps[0], 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(maps[0], maps[1], 5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU()),
        nn.Flatten(),
    ]
    width = features_out(nn.Sequential(*features), in_shape)
    return nn.Sequential(
        *features, nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
    )


def paper_cnn(in_shape: Shape, classes: int, filters: int) -> nn.Module:
    """conv 9x9, max-pool, conv 7x7, max-pool, fully connected; unpadded (Jaderberg et al. 2015, appendix A)."""
    # ceil_mode: on 21x21 (the 42x42 sets after pooling) flooring would leave less than the second kernel.
    features = [
        *(nn.Conv2d(in_shape[0], filters, 9), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
        *(nn.Conv2d(filters, filters, 7), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
        nn.Flatten(),
    ]
    return nn.Sequential(*features, nn.Linear(features_out(nn.Sequential(*features), in_shape), classes))


def paper_fcn(in_shape: Shape, classes: int, units: int) -> nn.Module:
    """Two hidden fully connected layers."""
    width = in_shape[0] * in_shape[1] * in_shape[2]
    layers = [nn.Linear(width, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def compact(in_shape: Shape, classes: int, *, width: int, dropout: float) -> nn.Module:
    """Five convolutions with batch norm, the first 5x5 with stride 2, then 3x3; `width` in percent of the default."""
    channels = [max(1, round(c * width / 100)) for c in (24, 32, 32, 64, 64)]
    layers: list[nn.Module] = []
    for i, (before, out) in enumerate(zip([in_shape[0], *channels], channels, strict=False)):
        kernel, stride = (5, 2) if i == 0 else (3, 1)
        layers.append(nn.Conv2d(before, out, kernel, stride, padding=kernel // 2, bias=False))
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if i in (2, 4) else []
        layers += [nn.BatchNorm2d(out), nn.ReLU()]
    features = nn.Sequential(*layers, nn.Flatten())
    return nn.Sequential(*features, nn.Dropout(dropout), nn.Linear(features_out(features, in_shape), classes))


@dataclass(frozen=True)
class Network:
    """How a named network is built. `width` is the one number that a control widens."""

    summary: str
    in_shape: Shape
    dropout: float
    classifier: Callable[[Shape, int, int, float], nn.Module]  # in_shape, classes, width, dropout
    control: Callable[[Shape, int, int, float], nn.Module]
    localizer: Callable[[Shape, AbstractTransform], nn.Module]
    width: int | None  # None: the widest that stays within PAPER_PARAMETERS
    parameters: int | None  # as published for the default input and 10 classes
    only_control: bool = False


def _lenet_network(
    summary: str, in_shape: Shape, parameters: int | None, *,
    maps: tuple[int, int], hidden: int, control_maps: tuple[int, int], channels: tuple[int, int], localizer_hidden: int,
) -> Network:  # fmt: skip
    return Network(
        summary,
        in_shape,
        dropout=0.5,
        classifier=lambda shape, classes, width, p: lenet(shape, classes, maps=maps, hidden=width, dropout=p),
        control=lambda shape, classes, width, p: lenet(shape, classes, maps=control_maps, hidden=width, dropout=p),
        localizer=lambda shape, transform: ConvLocalizer(
            shape[0], transform, image_size=shape[1:], channels=channels, hidden=(localizer_hidden,)
        ),
        width=hidden,
        parameters=parameters,
    )


def _paper_network(summary: str, *, convolutional: bool, only_control: bool = False) -> Network:
    def classifier(shape: Shape, classes: int, width: int, dropout: float) -> nn.Module:
        return paper_cnn(shape, classes, width) if convolutional else paper_fcn(shape, classes, width)

    def localizer(shape: Shape, transform: AbstractTransform) -> nn.Module:
        if not convolutional:
            return FCLocalizer(shape[0] * shape[1] * shape[2], transform, hidden=(32, 32, 32))
        options = {"channels": (20, 20), "kernel_sizes": (5, 5), "hidden": (20,), "downsample": 2}
        return ConvLocalizer(shape[0], transform, image_size=shape[1:], last_pool=False, **options)  # type: ignore[arg-type]

    return Network(summary, (1, 28, 28), 0.0, classifier, classifier, localizer, None, None, only_control)


NETWORKS: dict[str, Network] = {
    "cifar10_small": _lenet_network(
        "CIFAR-10, 39,884 parameters: the tutorial's network on colour images",
        (3, 32, 32),
        39_884,
        maps=(10, 20), hidden=50, control_maps=(10, 22), channels=(8, 10), localizer_hidden=32,
    ),
    "cifar10_large": _lenet_network(
        "CIFAR-10, 1,585,008 parameters",
        (3, 32, 32),
        1_585_008,
        maps=(16, 32), hidden=1024, control_maps=(32, 64), channels=(64, 128), localizer_hidden=256,
    ),
    "mnist_tutorial": _lenet_network(
        "MNIST, the network of the PyTorch tutorial",
        (1, 28, 28),
        27_360,
        maps=(10, 20), hidden=50, control_maps=(10, 24), channels=(8, 10), localizer_hidden=32,
    ),
    "st_cnn": _paper_network("distorted MNIST, the paper's ST-CNN, about 400k parameters", convolutional=True),
    "st_fcn": _paper_network("distorted MNIST, the paper's ST-FCN, about 400k parameters", convolutional=False),
    "cnn": _paper_network("distorted MNIST, the paper's plain CNN", convolutional=True, only_control=True),
    "fcn": _paper_network("distorted MNIST, the paper's plain FCN", convolutional=False, only_control=True),
    "compact": Network(
        "images of any size from 16x16: five convolutions with batch norm",
        (1, 28, 28),
        dropout=0.2,
        classifier=lambda shape, classes, width, p: compact(shape, classes, width=width, dropout=p),
        control=lambda shape, classes, width, p: compact(shape, classes, width=width, dropout=p),
        localizer=lambda shape, transform: ConvLocalizer(
            shape[0], transform, image_size=shape[1:], channels=(16, 32), kernel_sizes=(5, 5), hidden=(48,),
            batch_norm=True, same_padding=True, downsample=max(1, min(shape[1:]) // 14),
        ),
        width=100,
        parameters=None,
    ),
}  # fmt: skip


def names() -> list[str]:
    """The names that `create` knows."""
    return list(NETWORKS)


def create(
    name: str,
    *,
    transform: str | AbstractTransform | None = "affine",
    in_shape: Shape | None = None,
    num_classes: int = 10,
    dropout: float | None = None,
    padding_mode: PaddingMode = "border",
    theta_grad_scale: float = 1.0,
    pool: int = 1,
    widen: bool = True,
    antialias: bool = False,
    gradient: Literal["exact", "linearized"] = "exact",
    feed_theta: bool = False,
) -> TransformerClassifier:
    """A network of the literature, with random weights and its transformer at the identity.

    Args:
        name: one of `names()`.
        transform: the family of warps, or its name; None or "none" gives the equal-parameter control, the same kind
            of classifier widened until it has at least as many parameters as with the affine transformer.
        in_shape: (C, H, W) of the images, the data set's unless given.
        num_classes: how many logits come out.
        dropout: probability, the network's own unless given.
        padding_mode, theta_grad_scale: of the transformer.
        pool: the transformer's output is average-pooled by this factor before the classifier (the paper's 2 for RTS
            and TC); a control sees the whole image.
        widen: False leaves a control as wide as the classifier behind the transformer, with fewer parameters: it
            tells what the transformer brings from what its parameters bring.
        antialias, gradient: of the transformer, as for `SpatialTransformer`.
        feed_theta: the classifier's last layer sees theta beside the hidden features. A control has no theta; it is
            widened for the parameters that this takes.

    Raises:
        ValueError: for an unknown name or transform, or an image too small for the layers.

    Example:
        >>> model = create("cifar10_small")
        >>> sum(p.numel() for p in model.parameters())
        39884
    """
    check_choice("name", name, NETWORKS)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    check_flag("feed_theta", feed_theta)
    network = NETWORKS[name]
    shape = network.in_shape if in_shape is None else _check_shape(in_shape)
    for argument, value in (("num_classes", num_classes), ("pool", pool)):
        check_count(argument, value)
    probability = network.dropout if dropout is None else dropout
    check_number("dropout", probability, "a probability in [0, 1)", lambda v: 0 <= v < 1)
    if isinstance(transform, str):
        transform = None if transform == "none" else by_name(transform)

    def build(transform: AbstractTransform, width: int) -> TransformerClassifier:
        transformer = SpatialTransformer(
            network.localizer(shape, transform), transform, padding_mode=padding_mode, antialias=antialias,
            gradient=gradient, theta_grad_scale=theta_grad_scale,
        )  # fmt: skip
        seen = (shape[0], shape[1] // pool, shape[2] // pool)
        classifier = network.classifier(seen, num_classes, width, probability)
        return TransformerClassifier(transformer, classifier, pool, feed_theta=feed_theta)

    def build_control(width: int) -> TransformerClassifier:
        return TransformerClassifier(None, network.control(shape, num_classes, width, probability))

    def widest(build_at: Callable[[int], nn.Module], within: int) -> int:
        low, high = 1, 2
        while _count(lambda: build_at(high)) <= within:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _count(lambda: build_at(middle)) <= within else (low, middle)
        return low

    if network.only_control:
        return build_control(widest(build_control, PAPER_PARAMETERS))
    width = network.width or widest(lambda w: build(Affine(), w), PAPER_PARAMETERS)
    if transform is not None:
        return build(transform, width)
    if not widen:
        return TransformerClassifier(None, network.classifier(shape, num_classes, width, probability))
    target = _count(lambda: build(Affine(), width))
    return build_control(widest(build_control, target - 1) + 1)


def _count(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


def _check_shape(in_shape: Shape) -> Shape:
    if (
        not isinstance(in_shape, Sequence)
        or len(in_shape) != 3
        or not all(isinstance(n, int) and n > 0 for n in in_shape)
    ):
        raise ValueError(f"in_shape: expected (C, H, W), got {in_shape!r}")
    return in_shape[0], in_shape[1], in_shape[2]
