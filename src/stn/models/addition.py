"""The network for the addition of digits in Jaderberg et al. 2015: two transformers side by side."""

from __future__ import annotations

from torch import nn

from ..localization import ConvLocalizer
from .base import Network, Shape


def connected(in_shape: Shape, classes: int, units: int) -> nn.Module:
    """Two hidden fully connected layers with batch norm."""
    layers: list[nn.Module] = [nn.Flatten()]
    before = in_shape[0] * in_shape[1] * in_shape[2]
    for _ in range(2):
        layers += [nn.Linear(before, units, bias=False), nn.BatchNorm1d(units), nn.ReLU()]
        before = units
    return nn.Sequential(*layers, nn.Linear(before, classes))


NETWORKS = {
    "two_st_fcn": Network(
        "the sum of two digits: two transformers side by side, fully connected layers behind them",
        (2, 42, 42),
        dropout=0.0,
        classifier=lambda shape, classes, width, p: connected(shape, classes, width),
        control=lambda shape, classes, width, p: connected(shape, classes, width),
        localizer=lambda shape, transform: ConvLocalizer(
            shape[0], transform, image_size=shape[1:], channels=(16, 32), kernel_sizes=(5, 3), hidden=(32,),
            batch_norm=True, last_pool=False, downsample=max(1, min(shape[1:]) // 14),
        ),
        width=128,
        parameters=None,
        transformers=2,
    ),
}  # fmt: skip
