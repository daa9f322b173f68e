"""A network together with what has to be known of the data that it was trained on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_image, describe
from .base import TransformerClassifier
from .registry import NETWORKS, create


class LabelledClassifier(TransformerClassifier):
    """A network of `stn.models` with the names of its classes and the normalization of its images.

    Args:
        network: as `name` of `stn.models.create`.
        class_names: what the logits stand for, in order.
        mean, std: of the channels of the images that it was trained on, for `normalize`; 0 and 1 unless given.
        options: as for `stn.models.create`.

    Attributes:
        class_names: as given.
        settings: every argument, those at their defaults too, as JSON can hold them.

    Shape: (B, C, H, W) -> (B, num_classes).

    Raises:
        ValueError: for bad arguments.

    Example:
        >>> classifier = LabelledClassifier("compact", num_classes=10, mean=[0.13], std=[0.31])
        >>> images = torch.rand(2, 1, 28, 28)
        >>> classifier(classifier.normalize(images)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        network: str | Mapping[str, Any] = "compact",
        *,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        parameters = [p for p in inspect.signature(create).parameters.values() if p.name not in ("name", "pretrained")]
        for option in options:
            check_choice("options", option, [p.name for p in parameters])
        made = create(network, **options)
        nn.Module.__init__(self)
        vars(self).update(vars(made))  # its parts and settings, whichever they are

        settings = {p.name: p.default for p in parameters} | options
        settings["transform"] = None if made.transformer is None else made.transformer.transform.config()
        channels, *_ = settings["in_shape"] or NETWORKS[str(network)].in_shape
        if class_names is not None and len(class_names) != settings["num_classes"]:
            raise ValueError(f"class_names: expected {settings['num_classes']}, as num_classes, got {len(class_names)}")
        self.class_names = None if class_names is None else tuple(class_names)
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", _of_channels("mean", mean, 0.0, channels), persistent=False)
        self.register_buffer("_std", _of_channels("std", std, 1.0, channels), persistent=False)
        if bool((self._std <= 0).any()):
            raise ValueError(f"std: expected numbers above 0, got {describe(std)}")
        # All of it, those at their defaults too: a file still means the same where a default has changed.
        data = {"class_names": class_names, "mean": mean, "std": std}
        self.settings: dict[str, Any] = {"network": network, **settings, **data}

    def normalize(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] as the network was trained on them."""
        check_image(images, "images")
        if images.shape[1] != self._mean.shape[1]:
            raise ValueError(f"images: expected {self._mean.shape[1]} channels, got shape {tuple(images.shape)}")
        return (images - self._mean) / self._std


def _of_channels(argument: str, values: Sequence[float] | None, default: float, channels: int) -> Tensor:
    numbers = [default] * channels if values is None else list(values)
    if len(numbers) != channels or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise ValueError(f"{argument}: expected {channels} finite numbers, one a channel, got {describe(values)}")
    return torch.tensor(numbers, dtype=torch.float32).reshape(1, -1, 1, 1)
