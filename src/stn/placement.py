"""Several transformers on one image: side by side, or one correcting the other. One behind another in a network needs
nothing of this: a `SpatialTransformer` is a layer and works on feature maps as on images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeGuard, Unpack

import torch
from torch import Tensor, nn

from ._checks import check_choice, check_count, describe
from .coordinates import Frame
from .transformer import AbstractTransformer, ReadOptions, Warp, check_localizer
from .transforms.config import TransformLike

Localizers = nn.Module | Sequence[nn.Module]
Combine = Literal["stack", "concat", "list"]
COMBINE = ("stack", "concat", "list")


class ParallelTransformers(AbstractTransformer):
    """Several transformers side by side: each reads the same image where it wants to look.

    Args:
        localizer: one network for all, image -> (B, count * num_params), one theta after another; or a sequence of
            networks, one for each, image -> (B, num_params).
        transform: the family of warps; `stn.Affine()` unless given.
        size: of each output ([D,] H, W); the input's own unless given.
        count: how many, with one localizer for all. A sequence says so itself.
        combine: "stack" (B, K, C, *size), "concat" (B, K * C, *size), one transformer's channels after another's, or
            "list", K tensors (B, C, *size).
        options: as for `SpatialTransformer`.

    Transformers that start equal get equal gradients from all that treats their outputs alike, and stay equal: let
    their heads start at different places (`start` of the localizers, `stn.window_starts`).

    Shape: (B, C, [D,] H, W) -> as `combine` says.

    Raises:
        ValueError: for bad arguments, or a localizer of the wrong output width (it says the right one).

    Example:
        >>> import stn
        >>> family = stn.Attention()
        >>> localizer = stn.ConvLocalizer(1, family, image_size=(28, 28), start=stn.window_starts(family, (1, 2)))
        >>> pair = ParallelTransformers(localizer, family, size=(14, 14), count=2)
        >>> pair(torch.randn(3, 1, 28, 28)).shape
        torch.Size([3, 2, 1, 14, 14])
        >>> [warp.theta.shape for warp in pair.warp(torch.randn(3, 1, 28, 28))]
        [torch.Size([3, 3]), torch.Size([3, 3])]

    Source: Jaderberg et al. 2015, section 3.4.
    """

    def __init__(
        self,
        localizer: Localizers,
        transform: TransformLike | None = None,
        size: tuple[int, ...] | None = None,
        *,
        count: int | None = None,
        combine: Combine = "stack",
        **options: Unpack[ReadOptions],
    ) -> None:
        super().__init__(transform, size, **options)
        self.localizers = nn.ModuleList(_listed(localizer))
        check_choice("combine", combine, COMBINE)
        self.count = _count("count", count, localizer)
        self.combine = combine

    def localization_networks(self) -> Iterable[nn.Module]:
        return self.localizers

    def theta(self, image: Tensor) -> Tensor:
        """What the localizers say of a batch of images: (B, K, num_params)."""
        each = self.count // len(self.localizers)
        thetas = [self._predict(localizer, image, each) for localizer in self.localizers]
        return torch.cat(thetas, dim=1).unflatten(1, (self.count, self.transform.num_params))

    def warp(self, image: Tensor) -> tuple[Warp, ...]:
        """The K warps, with theta and what it takes to map points."""
        return tuple(self._warp(image, theta, self.transform, self.size) for theta in self.theta(image).unbind(1))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        outputs = [warp.output for warp in self.warp(image)]
        if self.combine == "list":
            return outputs
        return torch.stack(outputs, dim=1) if self.combine == "stack" else torch.cat(outputs, dim=1)

    def extra_repr(self) -> str:
        return f"count={self.count}, combine={self.combine!r}, {super().extra_repr()}"


class IterativeTransformer(AbstractTransformer):
    """Looks, warps, looks again: each step sees the image as warped so far and says a correction.

    The corrections are composed, and it is always the original that is resampled, once: W_1 = w(theta_1) and
    W_k+1 = W_k o w(theta_k+1), with w the map from output to input. So a correction is a warp of the image that the
    localizer saw: without it, the images would be warped by theta_1, then by theta_2, and so on, with a blur and a
    lost border at each.

    Args:
        localizer: one network for all steps, image -> theta (B, num_params); or a sequence of networks, one a step.
        transform: the family of the corrections; `stn.Affine()` unless given.
        size: of the output ([D,] H, W); the input's own unless given. Between the steps the image keeps its own size.
        iterations: how many steps, with one localizer for all. A sequence says so itself.
        options: as for `SpatialTransformer`.

    The composed warp is of the same family, and its theta (B, num_params), where the family is closed under
    composition and has no bound that it could leave (`Affine()`, `Similarity()`, ...). Else `transform` is
    composed with itself, `w @ w @ ...`, and theta (B, k * num_params) is all the corrections, the first one first.

    Shape: (B, C, [D,] H, W) -> (B, C, *size).

    Raises:
        ValueError: for bad arguments, or a localizer of the wrong output width (it says the right one).

    Example:
        >>> import stn
        >>> localizer = stn.ConvLocalizer(1, stn.Similarity(), image_size=(28, 28))
        >>> transformer = IterativeTransformer(localizer, stn.Similarity(), iterations=3)
        >>> images = torch.randn(2, 1, 28, 28)
        >>> transformer(images).shape, transformer.warp(images).theta.shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2, 4]))
        >>> len(transformer.steps(images))
        3

    Source: Lin and Lucey 2017, Inverse Compositional Spatial Transformer Networks.
    """

    def __init__(
        self,
        localizer: Localizers,
        transform: TransformLike | None = None,
        size: tuple[int, ...] | None = None,
        *,
        iterations: int | None = None,
        **options: Unpack[ReadOptions],
    ) -> None:
        super().__init__(transform, size, **options)
        self.localizers = nn.ModuleList(_listed(localizer))
        self.iterations = _count("iterations", iterations, localizer)
        composed = [self.transform]
        for _ in range(self.iterations - 1):
            composed.append(self.transform if self.transform.closed else composed[-1] @ self.transform)
        self._composed = tuple(composed)  # not registered: they are all made of `transform`

    def localization_networks(self) -> Iterable[nn.Module]:
        return self.localizers

    def steps(self, image: Tensor) -> tuple[Warp, ...]:
        """The warp of the original after each step. The last is the result; those before have the image's own size."""
        warps: list[Warp] = []
        for k, composed in enumerate(self._composed):
            localizer = self.localizers[k if len(self.localizers) > 1 else 0]
            theta = self._predict(localizer, warps[-1].output if warps else image)
            if warps and composed is self.transform:
                frame = Frame(tuple(image.shape[2:]), self.reading.align_corners)
                theta = composed.compose(warps[-1].theta, theta, frame)
            elif warps:
                theta = torch.cat([warps[-1].theta, theta], dim=1)
            last = k == self.iterations - 1
            warps.append(self._warp(image, theta, composed, self.size if last else None))
        return tuple(warps)

    def warp(self, image: Tensor) -> Warp:
        """As `forward`, with the theta of all the steps together and what it takes to map points."""
        return self.steps(image)[-1]

    def forward(self, image: Tensor) -> Tensor:
        return self.warp(image).output

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}, {super().extra_repr()}"


def _is_one(localizer: Localizers) -> TypeGuard[nn.Module]:
    return isinstance(localizer, nn.Module) and not isinstance(localizer, nn.ModuleList)


def _listed(localizer: Localizers) -> list[nn.Module]:
    if _is_one(localizer):
        return [localizer]
    if isinstance(localizer, str) or not isinstance(localizer, (nn.ModuleList, Sequence)) or not len(localizer):
        raise ValueError(f"localizer: expected a torch.nn.Module, or a sequence of them, got {describe(localizer)}")
    return [check_localizer(each) for each in localizer]


def _count(argument: str, count: int | None, localizer: Localizers) -> int:
    """How many warps there are: given, or as many as localizers."""
    if _is_one(localizer):
        if count is None:
            raise ValueError(f"{argument}: expected a positive int with one localizer for all, got None")
        check_count(argument, count)
        return count
    several = len(_listed(localizer))
    if count not in (None, several):
        raise ValueError(f"{argument}: expected {several}, as there are localizers, or None, got {count!r}")
    return several
