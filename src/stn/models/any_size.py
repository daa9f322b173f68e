"""A small network for images of any size, ours."""

from __future__ import annotations

from torch import nn

from ..localization import ConvLocalizer, features_out
from .base import Network, Shape


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


NETWORKS = {
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
