"""The PyTorch tutorial's network for MNIST, and the same on CIFAR-10 in two sizes."""

from __future__ import annotations

from torch import nn

from ..localization import ConvLocalizer, features_out
from .base import Network, Shape


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


NETWORKS = {
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
}  # fmt: skip
