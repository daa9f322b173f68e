"""A network for traffic signs, ours: one transformer on the image, or a second one at depth."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..localization import ConvLocalizer, features_out
from ..transforms import AbstractTransform
from .base import Network, Shape

HIDDEN = 128
DEPTH = 7  # of the second transformer: the layer of `signs` that it stands before, on the first feature maps at half resolution


def signs(in_shape: Shape, classes: int, *, width: int, dropout: float) -> nn.Sequential:
    """Six 3x3 convolutions with batch norm on images whose light and contrast are made equal, then two fully connected
    layers; `width` in percent of the default."""
    channels = [max(1, round(c * width / 100)) for c in (16, 32, 48, 64, 96, 128)]
    layers: list[nn.Module] = [nn.GroupNorm(1, in_shape[0], affine=False)]  # dark signs are as bright as the others
    for i, (before, out) in enumerate(zip([in_shape[0], *channels], channels, strict=False)):
        layers += [nn.Conv2d(before, out, 3, 2 if i == 1 else 1, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if i in (2, 4) else []
    features = nn.Sequential(*layers, nn.Flatten())
    hidden = max(1, round(HIDDEN * width / 100))
    last = (nn.Linear(features_out(features, in_shape), hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU())
    return nn.Sequential(*features, nn.Dropout(dropout), *last, nn.Dropout(dropout), nn.Linear(hidden, classes))


def _localizer(shape: Shape, transform: AbstractTransform) -> nn.Module:
    channels, *sides = shape
    return nn.Sequential(
        nn.GroupNorm(1, channels, affine=False),
        ConvLocalizer(
            channels, transform, image_size=(sides[0], sides[1]), channels=(24, 32), kernel_sizes=(5, 5), hidden=(64,), batch_norm=True,
            same_padding=True, downsample=max(1, min(sides) // 16),
        ),
    )  # fmt: skip


_ONE = Network(
    "traffic signs and other photographs from 24x24: six convolutions with batch norm",
    (3, 40, 40),
    dropout=0.3,
    classifier=lambda shape, classes, width, p: signs(shape, classes, width=width, dropout=p),
    control=lambda shape, classes, width, p: signs(shape, classes, width=width, dropout=p),
    localizer=_localizer,
    width=100,
    parameters=None,
)

NETWORKS = {
    "signs": _ONE,
    "signs_deep": replace(_ONE, summary="the same with a second transformer, on its feature maps", depths=(DEPTH,)),
}
