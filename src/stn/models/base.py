"""What the networks have in common: the classifier behind a transformer, and the record of how one is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_flag, describe
from ..transformer import SpatialTransformer, Warp
from ..transforms import AbstractTransform

Shape = tuple[int, int, int]  # (C, H, W)


class TransformerClassifier(nn.Module):
    """A transformer (None in a control), an average pool of its output, and the classifier that sees the result.

    Args:
        transformer: None for a control.
        classifier: image -> logits.
        pool: factor of the average pool.
        others: transformers beside the first, whose outputs the classifier sees behind its output, in channels.
        at: the name of a layer of the classifier that the transformer goes before, in place of in front of the classifier:
            it warps the features that this layer takes.
        feed_theta: the classifier's last layer sees theta beside the hidden features, so that what was undone is not
            lost. The classifier is then an `nn.Sequential` that ends with an `nn.Linear`, which is replaced by a wider
            one.

    Shape: (B, C, H, W) -> (B, classes).

    Raises:
        ValueError: for bad arguments.
    """

    classifier: nn.Module

    def __init__(
        self,
        transformer: SpatialTransformer | None,
        classifier: nn.Module,
        pool: int = 1,
        others: Sequence[SpatialTransformer] = (),
        *,
        at: str | None = None,
        feed_theta: bool = False,
    ) -> None:
        super().__init__()
        if at is not None and (transformer is None or others or pool != 1 or feed_theta):
            raise ValueError(
                f"at: expected None but for one transformer, with pool=1 and feed_theta=False, got {describe(at)}"
            )
        if others and transformer is None:
            raise ValueError(f"others: expected none without a transformer, got {len(others)}")
        check_flag("feed_theta", feed_theta)
        if feed_theta:
            if transformer is None:
                raise ValueError("feed_theta: expected False without a transformer, got True")
            params = sum(one.transform.num_params for one in (transformer, *others))
            classifier = _FedClassifier(classifier, params)
        self.feed_theta = feed_theta
        self.transformer = transformer
        self.others = nn.ModuleList(others)
        self.pool = nn.AvgPool2d(pool) if pool > 1 else nn.Identity()
        self.classifier = classifier
        self.at = at
        self._before: _Before | None = None
        if at is not None:
            assert transformer is not None
            self._before = _Before(transformer)
            classifier.get_submodule(at).register_forward_pre_hook(self._before)

    def forward(self, image: Tensor) -> Tensor:
        if self.at is not None:
            logits: Tensor = self.classifier(image)
            return logits
        return self.look(image)[0]

    def warp(self, image: Tensor) -> Warp | None:
        """What the transformer (the first of several) does to the image; None in a control. Of one at depth what it does
        to the features, done to the image."""
        if self.transformer is None:
            return None
        return self.look(image)[1] if self.at is not None else self.transformer.warp(image)

    def look(self, image: Tensor) -> tuple[Tensor, Warp | None]:
        """The logits, and what the transformer (the first of several) did to the image; None in a control."""
        if self.transformer is None:
            return self.classifier(self.pool(image)), None
        if self._before is not None:
            self._before.theta = []
            logits, (theta,) = self.classifier(image), self._before.theta
            self._before.theta = None
            return logits, self.transformer.warp(image, theta)
        warps: list[Warp] = [self.transformer.warp(image), *(one.warp(image) for one in self.others)]  # type: ignore[operator]
        output, theta = warps[0].output, warps[0].theta
        if self.others:
            output, theta = torch.cat([w.output for w in warps], 1), torch.cat([w.theta for w in warps], 1)
        return self.classifier(self.pool(output), *([theta] if self.feed_theta else [])), warps[0]


class _Before:
    """The hook by which a transformer warps what a layer takes. No module: the transformer is registered elsewhere."""

    def __init__(self, transformer: SpatialTransformer) -> None:
        self.transformer = transformer
        self.theta: list[Tensor] | None = None  # what it said, where somebody wants to know

    def __call__(self, layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        features, *others = arguments
        warp = self.transformer.warp(features)
        if self.theta is not None:
            self.theta.append(warp.theta)
        return warp.output, *others


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


@dataclass(frozen=True)
class Network:
    """How a named network is built. `width` is the one number that a control widens."""

    summary: str
    in_shape: Shape
    dropout: float
    classifier: Callable[[Shape, int, int, float], nn.Module]  # in_shape, classes, width, dropout
    control: Callable[[Shape, int, int, float], nn.Module]
    localizer: Callable[[Shape, AbstractTransform], nn.Module]
    width: int | None  # None: the widest that stays within `budget`
    parameters: int | None  # as published for the default input and 10 classes
    budget: int = 0  # parameters
    only_control: bool = False
    transformers: int = 1  # side by side; the classifier's in_shape has the channels of them all
    depths: tuple[int, ...] = ()  # of the layers of the classifier that a further transformer stands before
    fixed: bool = False  # it has one width, and its control is the network without the transformer


def check_shape(in_shape: Shape) -> Shape:
    if (
        not isinstance(in_shape, Sequence)
        or len(in_shape) != 3
        or not all(isinstance(n, int) and n > 0 for n in in_shape)
    ):
        raise ValueError(f"in_shape: expected (C, H, W), got {in_shape!r}")
    return in_shape[0], in_shape[1], in_shape[2]
