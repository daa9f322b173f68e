"""The networks of the literature, by name, each with an equal-parameter control that has no transformer.

A control is the same kind of classifier, widened until it has at least as many parameters as the network with its
transformer: what the transformer is worth can only be told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._checks import check_choice, check_number, describe
from .localization import ConvLocalizer, FCLocalizer, features_out
from .module import SpatialTransformer
from .sampling import PADDING_MODES, PaddingMode
from .transforms import AbstractTransform, Affine, by_name

Shape = tuple[int, int, int]  # (C, H, W)
PAPER_PARAMETERS = 400_000  # "about 400k" for every network on distorted MNIST in Jaderberg et al. 2015


class TransformerClassifier(nn.Module):
    """A transformer (None in a control), an average pool of its output, and the classifier that sees the result."""

    def __init__(self, transformer: SpatialTransformer | None, classifier: nn.Module, pool: int = 1) -> None:
        super().__init__()
        self.transformer = transformer
        self.pool = nn.AvgPool2d(pool) if pool > 1 else nn.Identity()
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        if self.transformer is not None:
            image = self.transformer(image)
        logits: Tensor = self.classifier(self.pool(image))
        return logits


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

    Raises:
        ValueError: for an unknown name or transform, or an image too small for the layers.

    Example:
        >>> model = create("cifar10_small")
        >>> sum(p.numel() for p in model.parameters())
        39884
    """
    check_choice("name", name, NETWORKS)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    network = NETWORKS[name]
    shape = network.in_shape if in_shape is None else _check_shape(in_shape)
    for argument, value in (("num_classes", num_classes), ("pool", pool)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument}: expected a positive int, got {describe(value)}")
    probability = network.dropout if dropout is None else dropout
    check_number("dropout", probability, "a probability in [0, 1)", lambda v: 0 <= v < 1)
    if isinstance(transform, str):
        transform = None if transform == "none" else by_name(transform)

    def build(transform: AbstractTransform, width: int) -> TransformerClassifier:
        transformer = SpatialTransformer(
            network.localizer(shape, transform), transform, padding_mode=padding_mode, theta_grad_scale=theta_grad_scale
        )
        seen = (shape[0], shape[1] // pool, shape[2] // pool)
        return TransformerClassifier(transformer, network.classifier(seen, num_classes, width, probability), pool)

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
