"""A classifier that is not touched, behind a transformer that learns poses."""

from __future__ import annotations

from torch import nn

from ..localization import features_out
from ..pose import PoseLocalizer
from ..reading import PaddingMode
from ..transformer import SpatialTransformer
from ..transforms.config import TransformLike
from .base import Shape, TransformerClassifier, check_shape

_SIDE = 32  # pixels of the shorter side that the localizer looks at, about


def behind_pose(
    classifier: nn.Module,
    transform: TransformLike,
    in_shape: Shape,
    *,
    anchors: int = 16,
    padding_mode: PaddingMode = "border",
) -> TransformerClassifier:
    """A trained classifier behind a transformer whose `stn.PoseLocalizer` is yet to learn: four convolutions on a short side of about 32
    pixels.

    Args:
        classifier: images (B, *in_shape) -> logits. It is taken as it is.
        transform: a family with bounds: how far the images may be off.
        in_shape: (C, H, W).
        anchors: of the localizer.
        padding_mode: of the transformer.

    Raises:
        ValueError: for a family without bounds, or images too small for the layers.

    Example:
        >>> model = behind_pose(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "rotation", (1, 28, 28))
        >>> model.transformer.localizer.count
        1
    """
    channels, *size = check_shape(in_shape)
    down = max(1, min(size) // _SIDE)
    layers: list[nn.Module] = [nn.AvgPool2d(down)] if down > 1 else []
    for out, kernel, pool in ((16, 5, True), (32, 5, True), (64, 3, False), (64, 3, False)):
        layers += [nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if pool else []
        channels = out
    seen = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
    hidden = 128
    features = nn.Sequential(*seen, nn.Linear(features_out(seen, in_shape), hidden), nn.ReLU())
    localizer = PoseLocalizer(features, hidden, transform, anchors=anchors)
    return TransformerClassifier(
        SpatialTransformer(localizer, localizer.transform, padding_mode=padding_mode), classifier
    )
