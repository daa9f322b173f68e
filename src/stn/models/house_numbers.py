"""The paper's network for house numbers: several digits at once, and transformers at increasing depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from .._checks import check_choice, check_count, check_number
from ..localization import ConvLocalizer, FCLocalizer, check_widths
from ..reading import PaddingMode
from ..transformer import SpatialTransformer, Warp
from ..transforms import Affine
from .base import Shape, check_shape

Transformers = Literal["multi", "single", "none"]
TRANSFORMERS = ("multi", "single", "none")


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
        >>> import torch
        >>> model = svhn(in_shape=(3, 32, 32), channels=(8, 8, 8, 8), hidden=(32,))
        >>> images = torch.randn(2, 3, 32, 32)
        >>> model(images).shape
        torch.Size([2, 5, 11])
        >>> [tuple(warp.output.shape[1:]) for warp in model.warps(images)]
        [(3, 32, 32), (8, 16, 16), (8, 16, 16), (8, 8, 8)]

    Source: Jaderberg et al. 2015, section 4.2.
    """
    check_choice("transformers", transformers, TRANSFORMERS)
    c, h, w = check_shape(in_shape)
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
