"""Localization networks: image -> theta. Every head starts at the family's identity, or where it is told to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._checks import check_count, check_float_tensor, check_number, check_size, describe
from ._tracing import as_one_step, is_symbolic
from .transformer import AbstractTransformer
from .transforms.base import AbstractTransform, exact
from .transforms.config import TransformLike, check_transform


class _Head(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        with exact(input.device):
            return nn.functional.linear(input.to(self.weight.dtype), self.weight, self.bias)


def identity_head(in_features: int, transform: TransformLike, *, start: Tensor | None = None) -> nn.Linear:
    """The last layer of a localization network: zero weights, and the transform's identity as bias.

    So every network starts with the warp that changes nothing, whatever its input. The layer is an `nn.Linear` that
    stays in float32 under autocast: half precision would round theta to half a pixel on an image of 256.

    Args:
        in_features: width of the features before it.
        transform: the family whose theta it predicts.
        start: another theta to start at, (num_params,); or several, (K, num_params), for a network that predicts
            K * num_params numbers, such as the one of `stn.ParallelTransformers`.

    Raises:
        ValueError: for anything else.

    Example:
        >>> from stn import Affine
        >>> identity_head(32, Affine())(torch.randn(1, 32))
        tensor([[1., 0., 0., 0., 1., 0.]], grad_fn=<AddmmBackward0>)

    Source: Jaderberg et al. 2015, appendix A.
    """
    transform = check_transform(transform)
    if not isinstance(in_features, int) or in_features < 1:
        raise ValueError(f"in_features: expected a positive int, got {describe(in_features)}")
    bias = transform.identity() if start is None else _check_start(start, transform)
    head = _Head(in_features, bias.numel())
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(bias.flatten())
    return head


def _check_start(start: Tensor, transform: AbstractTransform) -> Tensor:
    width = transform.num_params
    expected = f"({width},) or (K, {width}) parameters of {type(transform).__name__}"
    check_float_tensor("start", start, expected)
    if start.ndim not in (1, 2) or start.shape[-1] != width or not start.numel():
        raise ValueError(f"start: expected {expected}, got shape {tuple(start.shape)}")
    return start.detach()


def window_starts(transform: TransformLike, lattice: Sequence[int], *, scale: float = 0.5) -> Tensor:
    """Theta for windows spread over the frame, as starting places of parallel transformers, which stay equal if they
    start equal.

    The windows lie on a lattice whose outer ones touch the edges of the frame; along an axis with a single window it
    is in the middle. They come row by row.

    Args:
        transform: a family that can scale and shift.
        lattice: how many windows along each axis, ([D,] rows, columns).
        scale: side of a window, relative to the frame, in (0, 1].

    Returns:
        (K, num_params), K the number of windows: `start` of `identity_head`, row k that of the k-th localizer.

    Raises:
        ValueError: for a family that cannot scale and shift, or a bound of the family that is exceeded.

    Example:
        >>> from stn import Attention
        >>> window_starts(Attention(log_scale=False), (1, 2))
        tensor([[ 0.5000, -0.5000,  0.0000],
                [ 0.5000,  0.5000,  0.0000]])
    """
    transform = check_transform(transform)
    lattice = check_size(lattice, transform.ndim, "lattice")
    check_number("scale", scale, "a number in (0, 1]", lambda v: 0 < v <= 1)
    centres = [(1 - scale) * (torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1)) for n in lattice]
    shifts = torch.stack(torch.meshgrid(*centres, indexing="ij")[::-1], dim=-1).reshape(-1, transform.ndim, 1)
    linear = scale * torch.eye(transform.ndim).expand(len(shifts), -1, -1)
    try:
        return transform.from_matrix(torch.cat([linear, shifts], dim=-1))
    except ValueError as error:
        raise ValueError(
            f"transform: expected a family that reaches windows of scale {scale:g}, got {transform} ({error})"
        ) from error


class _Layers(NamedTuple):
    """The layers of one dimension."""

    convolution: type[nn.Module]
    max_pool: type[nn.Module]
    average_pool: type[nn.Module]
    average: type[nn.Module]
    batch_norm: type[nn.Module]


_LAYERS = {
    1: _Layers(nn.Conv1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.BatchNorm1d),
    2: _Layers(nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d),
    3: _Layers(nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.BatchNorm3d),
}


class ConvLocalizer(nn.Module):
    """A small convolutional localization network: (convolution, 2x max-pool, ReLU) per entry of `channels`, then
    fully connected layers and an identity head. For signals, images and volumes.

    Args:
        in_channels: C of the images.
        transform: the family whose theta it predicts.
        image_size: ([D,] H, W) of the images, (W,) in 1D, fixed; None averages the last feature map, and takes images
            of any size.
        channels, kernel_sizes: one convolution each, without padding of the borders unless `same_padding`.
        hidden: widths of the fully connected layers before the head.
        batch_norm: after each convolution.
        last_pool: False leaves out the pool after the last convolution.
        downsample: the images are average-pooled by this factor first.
        start: where the head starts, as for `identity_head`; the family's identity unless given.

    Convolutions and pools are 1D, 2D or 3D, as the transform is.

    Shape: (B, C, [D,] H, W) -> (B, transform.num_params); times K for K starts.

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
        transform: TransformLike,
        *,
        image_size: tuple[int, ...] | None,
        channels: Sequence[int] = (8, 10),
        kernel_sizes: Sequence[int] = (7, 5),
        hidden: Sequence[int] = (32,),
        batch_norm: bool = False,
        same_padding: bool = False,
        last_pool: bool = True,
        downsample: int = 1,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        transform = check_transform(transform)
        for argument, value in (("channels", channels), ("kernel_sizes", kernel_sizes), ("hidden", hidden)):
            check_widths(argument, value)
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f"in_channels: expected a positive int, got {describe(in_channels)}")
        if len(channels) != len(kernel_sizes) or not channels:
            raise ValueError(
                f"kernel_sizes: expected one for each of the {len(channels)} channels, got {tuple(kernel_sizes)}"
            )
        if not isinstance(downsample, int) or downsample < 1:
            raise ValueError(f"downsample: expected a positive int, got {describe(downsample)}")
        of = _LAYERS[transform.ndim]
        layers: list[nn.Module] = [of.average_pool(downsample)] if downsample > 1 else []
        width = in_channels
        for i, (out, kernel) in enumerate(zip(channels, kernel_sizes, strict=True)):
            padding = kernel // 2 if same_padding else 0
            layers.append(of.convolution(width, out, kernel, padding=padding, bias=not batch_norm))
            layers += [of.max_pool(2)] if last_pool or i < len(channels) - 1 else []
            layers += [of.batch_norm(out)] if batch_norm else []
            layers.append(nn.ReLU())
            width = out
        layers += [of.average(1)] if image_size is None else []
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.in_channels, self.ndim = in_channels, transform.ndim
        self.image_size = None if image_size is None else check_size(image_size, self.ndim, "image_size")
        if self.image_size is not None:
            width = features_out(self.features, (in_channels, *self.image_size))
        head: list[nn.Module] = []
        for units in hidden:
            head += [nn.Linear(width, units), nn.ReLU()]
            width = units
        self.head = nn.Sequential(*head, identity_head(width, transform, start=start))

    def forward(self, image: Tensor) -> Tensor:
        if is_symbolic(image):
            return as_one_step(self, image)
        size = tuple(image.shape[2:]) if isinstance(image, Tensor) else ()
        if len(size) != self.ndim or image.shape[1] != self.in_channels or self.image_size not in (None, size):
            sizes = ", ".join(map(str, self.image_size or ("any",) * self.ndim))
            came = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else describe(image)
            raise ValueError(f"image: expected (B, {self.in_channels}, {sizes}), got {came}")
        theta: Tensor = self.head(self.features(image))
        return theta


def features_out(features: nn.Module, in_shape: tuple[int, ...]) -> int:
    """The width of the flattened features of an image (C, [D,] H, W), or a ValueError if it is too small for the
    layers."""
    return shape_out(features, in_shape)[0]


def shape_out(features: nn.Module, in_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what the layers make of an image (C, [D,] H, W), or a ValueError if it is too small for them."""
    training = features.training
    try:
        # eval: batch norm would ask for more than one value per channel, and count the image in its statistics
        with torch.no_grad():
            return tuple(features.eval()(next(features.parameters()).new_zeros(1, *in_shape)).shape[1:])
    except RuntimeError as error:
        raise ValueError(
            f"image size: expected (C, [D,] H, W) large enough for the layers, got {in_shape} ({error})"
        ) from error
    finally:
        features.train(training)


class FCLocalizer(nn.Module):
    """A fully connected localization network, as in the paper's ST-FCN.

    Args:
        in_features: C*H*W of the images, C*D*H*W of volumes, C*W of signals.
        hidden: widths of the layers before the identity head.
        start: where the head starts, as for `identity_head`; the family's identity unless given.

    Shape: (B, C, [D,] H, W) with in_features numbers each -> (B, transform.num_params); times K for K starts.
    """

    def __init__(
        self,
        in_features: int,
        transform: TransformLike,
        *,
        hidden: Sequence[int] = (32, 32, 32),
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(in_features, int) or in_features < 1:
            raise ValueError(f"in_features: expected a positive int, got {describe(in_features)}")
        check_widths("hidden", hidden)
        self.in_features = in_features
        layers: list[nn.Module] = [nn.Flatten()]
        for units in hidden:
            layers += [nn.Linear(in_features, units), nn.ReLU()]
            in_features = units
        self.head = nn.Sequential(*layers, identity_head(in_features, transform, start=start))

    def forward(self, image: Tensor) -> Tensor:
        if is_symbolic(image):
            return as_one_step(self, image)
        if not isinstance(image, Tensor) or image.ndim < 2 or image.shape[1:].numel() != self.in_features:
            raise ValueError(f"image: expected {self.in_features} numbers each, got {describe(image)}")
        theta: Tensor = self.head(image)
        return theta


class RecurrentLocalizer(nn.Module):
    """Where to look, several times in a row: an encoder sees the image once, and a GRU cell that is fed with what it
    saw says one theta at each step. The localizer of `stn.ParallelTransformers` for recurrent glimpses, each of them
    read in the original image.

    Args:
        encoder: any module, image -> features (B, in_features).
        in_features: width of the encoder's output.
        transform: the family whose theta it predicts.
        steps: how many glimpses.
        hidden: width of the GRU's state.
        start: where every glimpse starts, (num_params,); the family's identity unless given.

    Shape: (B, C, [D,] H, W) -> (B, steps * transform.num_params), step by step.

    Raises:
        ValueError: for bad arguments, or an encoder of the wrong output width (it says the right one).

    Example:
        >>> import stn
        >>> encoder = nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten())
        >>> localizer = RecurrentLocalizer(encoder, 4 * 6 * 6, stn.Attention(), steps=3)
        >>> glimpses = stn.ParallelTransformers(localizer, stn.Attention(), size=(14, 14), count=3)
        >>> glimpses(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 3, 1, 14, 14])

    Source: Sønderby et al. 2015, Recurrent Spatial Transformer Networks.
    """

    def __init__(
        self,
        encoder: nn.Module,
        in_features: int,
        transform: TransformLike,
        *,
        steps: int,
        hidden: int = 64,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise ValueError(f"encoder: expected a torch.nn.Module, got {describe(encoder)}")
        for argument, value in (("in_features", in_features), ("steps", steps), ("hidden", hidden)):
            check_count(argument, value)
        transform = check_transform(transform)
        self.in_features, self.steps = in_features, steps
        self.encoder = encoder
        self.cell = nn.GRUCell(in_features, hidden)
        self.head = identity_head(hidden, transform, start=start)
        if self.head.out_features != transform.num_params:
            raise ValueError(f"start: expected ({transform.num_params},), one for every step, got {describe(start)}")

    def forward(self, image: Tensor) -> Tensor:
        if is_symbolic(image):
            return as_one_step(self, image)
        features = self.encoder(image)
        wanted = (image.shape[0], self.in_features)
        if not isinstance(features, Tensor) or tuple(features.shape) != wanted:
            raise ValueError(f"encoder: expected an output of shape {wanted}, got {describe(features)}")
        state = self.cell(features)
        thetas = [self.head(state)]
        for _ in range(self.steps - 1):
            state = self.cell(features, state)
            thetas.append(self.head(state))
        return torch.cat(thetas, dim=1)


class SharedLocalizer(nn.Module):
    """A localizer that has its first layers in common with the network behind the transformer.

    The layers are the network's: `parameter_groups` counts them with it, and only the head with the localizers.

    Args:
        features: the layers in common, image -> features.
        head: what the localizer has of its own, features -> theta; end it with `identity_head`.

    Example:
        >>> import stn
        >>> features = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        >>> localizer = SharedLocalizer(features, identity_head(16, stn.Affine()))
        >>> model = nn.Sequential(stn.SpatialTransformer(localizer), localizer.features, nn.Linear(16, 10))
        >>> [len(group["params"]) for group in parameter_groups(model, lr=0.1)]
        [4, 2]

    Source: Finnveden, Jansson and Lindeberg 2020.
    """

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        for argument, value in (("features", features), ("head", head)):
            if not isinstance(value, nn.Module):
                raise ValueError(f"{argument}: expected a torch.nn.Module, got {describe(value)}")
        self.features, self.head = features, head

    def forward(self, image: Tensor) -> Tensor:
        theta: Tensor = self.head(self.features(image))
        return theta


def check_widths(argument: str, widths: Any) -> None:
    if not isinstance(widths, Sequence) or not all(isinstance(n, int) and n > 0 for n in widths):
        raise ValueError(f"{argument}: expected a sequence of positive ints, got {describe(widths)}")


def parameter_groups(
    model: nn.Module, *, lr: float, localizer_lr_scale: float = 0.1, **options: Any
) -> list[dict[str, Any]]:
    """The parameters of `model` in two groups for an optimizer, the localizers' with a learning rate of their own.

    Gradients of theta are sums over whole images, so localizers want a smaller rate than the network behind them.
    A parameter that also occurs outside the localizers belongs to the network.

    Args:
        model: any module; the localizers are those of the transformers in it, whichever way they are placed.
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
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {describe(model)}")
    for argument, value in (("lr", lr), ("localizer_lr_scale", localizer_lr_scale)):
        check_number(argument, value, "a finite number of at least 0", lambda v: 0 <= v < float("inf"))
    transformers = [module for module in model.modules() if isinstance(module, AbstractTransformer)]
    localizers = {network for transformer in transformers for network in transformer.localization_networks()}
    network = {id(p) for m in _outside(model, localizers) for p in m.parameters(recurse=False)}
    network |= {id(p) for m in model.modules() if isinstance(m, SharedLocalizer) for p in m.features.parameters()}
    groups = [{"params": [p for p in model.parameters() if id(p) in network], "lr": lr, **options}]
    rest = [p for p in model.parameters() if id(p) not in network]
    if rest:
        groups.append({"params": rest, "lr": lr * localizer_lr_scale, **options})
    return groups


def _outside(module: nn.Module, localizers: set[nn.Module]) -> Iterator[nn.Module]:
    """`module` and what is in it, but for what is reached through a localizer alone."""
    if module not in localizers:
        yield module
        for child in module.children():
            yield from _outside(child, localizers)
