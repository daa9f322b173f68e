"""The networks of the literature, by name, each with an equal-parameter control that has no transformer.

A control is the same kind of classifier, widened until it has at least as many parameters as the network with its
transformer: what the transformer is worth can only be told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._checks import check_choice, describe
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


def compact(in_shape: Shape, classes: int, *, channels: Sequence[int], dropout: float) -> nn.Module:
    """(two 3x3 convolutions with batch norm, max-pool) per entry, averaged over the image: for images of any size."""
    layers: list[nn.Module] = []
    width = in_shape[0]
    for i, out in enumerate(channels):
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if i else []
        for _ in range(2):
            layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, classes))


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
        "images of any size from 16x16: 3x3 convolutions with batch norm, an affine transformer before them",
        (1, 28, 28),
        dropout=0.1,
        classifier=lambda shape, classes, width, p: compact(shape, classes, channels=(32, 64, width), dropout=p),
        control=lambda shape, classes, width, p: compact(shape, classes, channels=(32, 64, width), dropout=p),
        localizer=lambda shape, transform: ConvLocalizer(
            shape[0], transform, image_size=shape[1:], channels=(16, 32), kernel_sizes=(5, 5), hidden=(32,),
            batch_norm=True, same_padding=True, downsample=max(1, shape[1] // 28),
        ),
        width=64,
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
) -> TransformerClassifier:
    """A network of the literature, with random weights and its transformer at the identity.

    Args:
        name: one of `names()`.
        transform: the family of warps, or its name; None or "none" gives the equal-parameter control, the same kind
            of classifier widened until it has at least as many parameters as with the affine transformer.
        in_shape: (C, H, W) of the images, the data set's unless given.
        dropout: probability, the network's own unless given.
        padding_mode, theta_grad_scale: of the transformer.
        pool: the transformer's output is average-pooled by this factor before the classifier (the paper's 2 for RTS
            and TC); a control sees the whole image.

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
    if not 0 <= probability < 1:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout!r}")
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
    target = _count(lambda: build(Affine(), width))
    return build_control(widest(build_control, target - 1) + 1)


def _count(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


def _check_shape(in_shape: Shape) -> Shape:
    if len(in_shape) != 3 or not all(isinstance(n, int) and n > 0 for n in in_shape):
        raise ValueError(f"in_shape: expected (C, H, W), got {in_shape!r}")
    return in_shape
