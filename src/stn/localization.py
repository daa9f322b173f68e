"""Localization networks: image -> theta. Every head starts at the family's identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_image, check_number, check_size, describe
from .transforms.base import AbstractTransform


class _Head(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.to(self.weight.dtype), self.weight, self.bias)


def identity_head(in_features: int, transform: AbstractTransform) -> nn.Linear:
    """The last layer of a localization network: zero weights, and the transform's identity as bias.

    So every network starts with the warp that changes nothing, whatever its input. The layer is an `nn.Linear` that
    stays in float32 under autocast: half precision would round theta to half a pixel on an image of 256.

    Example:
        >>> from stn import Affine
        >>> identity_head(32, Affine())(torch.randn(1, 32))
        tensor([[1., 0., 0., 0., 1., 0.]], grad_fn=<AddmmBackward0>)

    Source: Jaderberg et al. 2015, appendix A.
    """
    if not isinstance(transform, AbstractTransform):
        raise ValueError(f"transform: expected a transform such as stn.Affine(), got {describe(transform)}")
    if not isinstance(in_features, int) or in_features < 1:
        raise ValueError(f"in_features: expected a positive int, got {describe(in_features)}")
    head = _Head(in_features, transform.num_params)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(transform.identity())
    return head


class ConvLocalizer(nn.Module):
    """A small convolutional localization network: (convolution, 2x max-pool, ReLU) per entry of `channels`, then
    fully connected layers and an identity head.

    Args:
        in_channels: C of the images.
        transform: the family whose theta it predicts.
        image_size: (H, W) of the images, fixed; None averages the last feature map, and takes images of any size.
        channels, kernel_sizes: one convolution each, without padding of the borders unless `same_padding`.
        hidden: widths of the fully connected layers before the head.
        batch_norm: after each convolution.
        last_pool: False leaves out the pool after the last convolution.
        downsample: the images are average-pooled by this factor first.

    Shape: (B, C, H, W) -> (B, transform.num_params).

    Raises:
        ValueError: where the image is too small for the layers.

    Example:
        >>> from stn import Affine
        >>> localizer = ConvLocalizer(3, Affine(), image_size=(32, 32))
        >>> sum(p.numel() for p in localizer.parameters())
        8544
    """

    def __init__(
        self,
        in_channels: int,
        transform: AbstractTransform,
        *,
        image_size: tuple[int, int] | None,
        channels: Sequence[int] = (8, 10),
        kernel_sizes: Sequence[int] = (7, 5),
        hidden: Sequence[int] = (32,),
        batch_norm: bool = False,
        same_padding: bool = False,
        last_pool: bool = True,
        downsample: int = 1,
    ) -> None:
        super().__init__()
        for argument, value in (("channels", channels), ("kernel_sizes", kernel_sizes), ("hidden", hidden)):
            _check_widths(argument, value)
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f"in_channels: expected a positive int, got {describe(in_channels)}")
        if len(channels) != len(kernel_sizes) or not channels:
            raise ValueError(
                f"kernel_sizes: expected one for each of the {len(channels)} channels, got {tuple(kernel_sizes)}"
            )
        if not isinstance(downsample, int) or downsample < 1:
            raise ValueError(f"downsample: expected a positive int, got {describe(downsample)}")
        layers: list[nn.Module] = [nn.AvgPool2d(downsample)] if downsample > 1 else []
        width = in_channels
        for i, (out, kernel) in enumerate(zip(channels, kernel_sizes, strict=True)):
            layers.append(
                nn.Conv2d(width, out, kernel, padding=kernel // 2 if same_padding else 0, bias=not batch_norm)
            )
            layers += [nn.MaxPool2d(2)] if last_pool or i < len(channels) - 1 else []
            layers += [nn.BatchNorm2d(out)] if batch_norm else []
            layers.append(nn.ReLU())
            width = out
        layers += [nn.AdaptiveAvgPool2d(1)] if image_size is None else []
        self.features = nn.Sequential(*layers, nn.Flatten())
        if image_size is not None:
            height, wide = check_size(image_size, 2, "image_size")
            width = features_out(self.features, (in_channels, height, wide))
        head: list[nn.Module] = []
        for units in hidden:
            head += [nn.Linear(width, units), nn.ReLU()]
            width = units
        self.head = nn.Sequential(*head, identity_head(width, transform))

    def forward(self, image: Tensor) -> Tensor:
        theta: Tensor = self.head(self.features(image))
        return theta


def features_out(features: nn.Module, in_shape: tuple[int, ...]) -> int:
    """The width of the flattened features of an image (C, H, W), or a ValueError if it is too small for the layers."""
    training = features.training
    try:
        # eval: batch norm would ask for more than one value per channel, and count the image in its statistics
        with torch.no_grad():
            return int(features.eval()(next(features.parameters()).new_zeros(1, *in_shape)).shape[1])
    except RuntimeError as error:
        raise ValueError(
            f"image size: expected (C, H, W) large enough for the layers, got {in_shape} ({error})"
        ) from error
    finally:
        features.train(training)


class FCLocalizer(nn.Module):
    """A fully connected localization network, as in the paper's ST-FCN.

    Args:
        in_features: C*H*W of the images.
        hidden: widths of the layers before the identity head.

    Shape: (B, C, H, W) with C*H*W = in_features -> (B, transform.num_params).
    """

    def __init__(self, in_features: int, transform: AbstractTransform, *, hidden: Sequence[int] = (32, 32, 32)) -> None:
        super().__init__()
        if not isinstance(in_features, int) or in_features < 1:
            raise ValueError(f"in_features: expected a positive int, got {describe(in_features)}")
        _check_widths("hidden", hidden)
        self.in_features = in_features
        layers: list[nn.Module] = [nn.Flatten()]
        for units in hidden:
            layers += [nn.Linear(in_features, units), nn.ReLU()]
            in_features = units
        self.head = nn.Sequential(*layers, identity_head(in_features, transform))

    def forward(self, image: Tensor) -> Tensor:
        check_image(image)
        if image.shape[1:].numel() != self.in_features:
            raise ValueError(f"image: expected {self.in_features} numbers each, got shape {tuple(image.shape)}")
        theta: Tensor = self.head(image)
        return theta


def _check_widths(argument: str, widths: Any) -> None:
    if not isinstance(widths, Sequence) or not all(isinstance(n, int) and n > 0 for n in widths):
        raise ValueError(f"{argument}: expected a sequence of positive ints, got {describe(widths)}")


def parameter_groups(
    model: nn.Module, *, lr: float, localizer_lr_scale: float = 0.1, **options: Any
) -> list[dict[str, Any]]:
    """The parameters of `model` in two groups for an optimizer, the localizers' with a learning rate of their own.

    Gradients of theta are sums over whole images, so localizers want a smaller rate than the network behind them.

    Args:
        model: any module; the localizers are those of the `SpatialTransformer`s in it.
        lr: of everything else. The localizers' is `lr * localizer_lr_scale`; 0 freezes them.
        options: more settings for both groups, such as `weight_decay`.

    Returns:
        A list for `torch.optim`; without a localizer it has one group.

    Raises:
        ValueError: for a negative or non-finite rate or scale.

    Example:
        >>> import stn
        >>> model = nn.Sequential(stn.SpatialTransformer(ConvLocalizer(1, stn.Affine(), image_size=(28, 28))), nn.Flatten(), nn.Linear(784, 10))
        >>> [(group["lr"], len(group["params"])) for group in parameter_groups(model, lr=0.5, localizer_lr_scale=0.1)]
        [(0.5, 2), (0.05, 8)]
    """
    from .module import SpatialTransformer

    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {describe(model)}")
    for argument, value in (("lr", lr), ("localizer_lr_scale", localizer_lr_scale)):
        check_number(argument, value, "a finite number of at least 0", lambda v: 0 <= v < float("inf"))
    localizers = {
        id(p): p for m in model.modules() if isinstance(m, SpatialTransformer) for p in m.localizer.parameters()
    }
    groups = [{"params": [p for p in model.parameters() if id(p) not in localizers], "lr": lr, **options}]
    if localizers:
        groups.append({"params": list(localizers.values()), "lr": lr * localizer_lr_scale, **options})
    return groups
