"""Networks that are not ours: timm's by name, and those of a user, each as a record that `create` builds from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import describe, nearest_name
from ..localization import ConvLocalizer
from ..transforms import AbstractTransform
from .base import Network, Shape

TIMM = "timm:"
# Networks of a user's own by name: (in_shape=(C, H, W), num_classes=N, **options) -> a module, images to logits.
OWN: dict[str, Callable[..., nn.Module]] = {}

_LOCALIZER_SIDE = 28  # pixels of the shorter side that the localizer looks at, about
# Of timm.create_model, what is said otherwise here, and what reads files or the network when a network is made again.
_SAID = {
    "num_classes": "the data set", "in_chans": "the images", "pretrained": "--weights FILE", "checkpoint_path": "--weights FILE",
    "pretrained_cfg": "--weights FILE", "pretrained_cfg_overlay": "--weights FILE", "cache_dir": "--weights FILE",
}  # fmt: skip


def is_foreign(name: str) -> bool:
    """Whether a name is one of timm's or of `OWN`."""
    return name.startswith(TIMM) or name in OWN


def record(name: str, options: Mapping[str, Any]) -> Network:
    """How a network that is not ours is built, with its options. It has one width: its control is the network itself."""
    make = _of_timm(name.removeprefix(TIMM)) if name.startswith(TIMM) else OWN[name]

    def classifier(shape: Shape, classes: int, width: int, dropout: float) -> nn.Module:
        return _made(name, make, {"in_shape": shape, "num_classes": classes, **options})

    return Network(
        f"{name}, as it is", (1, 1, 1), dropout=0.0, classifier=classifier, control=classifier, localizer=localizer,
        width=1, parameters=None, fixed=True,
    )  # fmt: skip


def localizer(shape: Shape, transform: AbstractTransform) -> nn.Module:
    """What finds theta in images or features of any size: two convolutions on a short side of about 28 pixels."""
    return ConvLocalizer(
        shape[0], transform, image_size=shape[1:], channels=(16, 32), kernel_sizes=(5, 5), hidden=(48,), batch_norm=True,
        same_padding=True, downsample=max(1, min(shape[1:]) // _LOCALIZER_SIDE),
    )  # fmt: skip


def _made(name: str, make: Callable[..., Any], options: dict[str, Any]) -> nn.Module:
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise ValueError(
            f"name: {name} cannot be called with {', '.join(options)}: {error}; expected in_shape, num_classes and "
            f"whatever options it is given"
        ) from None
    module = make(**options)
    if not isinstance(module, nn.Module):
        raise ValueError(f"name: expected of {name} a torch.nn.Module, got {describe(module)}")
    shape, classes = options["in_shape"], options["num_classes"]
    training = module.training
    try:
        with torch.no_grad():
            logits = module.eval()(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"in_shape: {name} cannot take images of the shape {shape} ({reason})") from error
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        raise ValueError(f"name: expected of {name} logits (B, {classes}), got {describe(logits)}")
    return module.train(training)


def _of_timm(name: str) -> Callable[..., nn.Module]:
    try:
        import timm
    except (ImportError, RuntimeError, OSError) as error:  # of timm, or of torchvision, which it imports
        raise ValueError(
            f"name: expected timm, which cannot be imported ({error}); pip install 'spatial-transformers[timm]', with the "
            f"torchvision that is built for this torch"
        ) from error
    if not timm.is_model(name):
        raise ValueError(
            f"name: expected a network that timm.list_models() lists, got {name!r}{nearest_name(name, timm.list_models())}"
        )

    def make(*, in_shape: Shape, num_classes: int, dropout: float | None = None, **options: Any) -> nn.Module:
        for option, instead in _SAID.items():
            if option in options:
                raise ValueError(f"name: expected no option {option!r} of {TIMM}{name}, which {instead} says")
        if dropout is not None:
            options["drop_rate"] = dropout
        try:
            made: nn.Module = timm.create_model(
                name, pretrained=False, num_classes=num_classes, in_chans=in_shape[0], **options
            )
        except (TypeError, RuntimeError, AssertionError) as error:
            raise ValueError(f"name: {TIMM}{name} cannot be made with {describe(options)}: {error}") from error
        return made

    return make


def features_before(network: nn.Module, at: str, shape: Shape) -> Shape:
    """The shape (C, H, W) of the features that the layer of this name takes, for images of `shape`.

    Raises:
        ValueError: for a name that no layer has, and for a layer that is not called once with a feature map.
    """
    layer, seen = layer_of(network, at), []
    with torch.no_grad(), layer.register_forward_pre_hook(lambda _, args: seen.append(args)):
        training = network.training
        network.eval()(torch.zeros(1, *shape))
        network.train(training)
    if len(seen) != 1 or not seen[0] or not isinstance(seen[0][0], Tensor) or seen[0][0].ndim != 4:
        got = f"one that is called {len(seen)} times" if len(seen) != 1 else describe(seen[0][0] if seen[0] else None)
        raise ValueError(f"at: expected a layer that takes feature maps (B, C, H, W), once, got {at!r}, {got}")
    _, channels, height, width = seen[0][0].shape
    return channels, height, width


def layer_of(network: nn.Module, name: str) -> nn.Module:
    """The layer of this name. Raises ValueError for an unknown one, with the nearest."""
    layers = dict(network.named_modules())
    if not name or name not in layers:
        first = [known for known, _ in network.named_children()]
        raise ValueError(
            f"at: expected the name of a layer, such as {', '.join(first)}, got {name!r}{nearest_name(name, layers)}"
        )
    return layers[name]
