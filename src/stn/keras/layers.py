"""The spatial transformer as a Keras layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from .._checks import check_choice, check_flag, check_size, describe
from ..penalties import Penalty
from ..reading import Mode, PaddingMode, check_reading
from ..transforms.config import TransformLike, check_transform
from .backends import Array
from .functional import warp
from .penalties import penalty


def identity_head(transform: TransformLike, **options: Any) -> keras.layers.Dense:
    """The last layer of a localizer: features -> theta, beginning with the warp that changes nothing.

    Zero weights, and the identity of the family as bias; float32 whatever the policy, for half precision cannot say where
    to read.

    Args:
        transform: a family, its name or its configuration.
        options: of `keras.layers.Dense`, such as `name`.

    Example:
        >>> import numpy as np, keras, stn.keras
        >>> head = stn.keras.identity_head("affine")
        >>> keras.ops.convert_to_numpy(head(np.ones((1, 5), "float32"))).tolist()
        [[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]]
    """
    family = check_transform(transform)
    bias = keras.initializers.Constant(family.identity().tolist())
    taken = {"kernel_initializer": "zeros", "bias_initializer": bias, "dtype": "float32"}
    return keras.layers.Dense(family.num_params, **(options | taken))


@keras.saving.register_keras_serializable("stn")
class SpatialTransformer(keras.layers.Layer):
    """Looks at an image, decides how to warp it, and warps it: `stn.SpatialTransformer` for Keras.

    Args:
        localizer: any layer or model, image -> theta (B, num_params). End it with `identity_head`.
        transform: the family of warps: one of `stn.transforms`, a composition, its name or its configuration.
        size: of the output, ([D,] H, W); the input's own unless given.
        mode, padding_mode, fill, antialias, align_corners, data_format: as for `stn.keras.warp`. The padding is "border"
            unless given: zeros paint black corners that a classifier learns.
        penalties: weights of `stn.penalties` by name, such as {"fold": 1.0, "scale": 0.1}, and with them the options of
            `stn.penalties.Penalty`. Their sum is added to the model's loss (`add_loss`); None for no penalty.

    Shape: (B, [D,] H, W, C) -> (B, *size, C), or channels first. The batch may be open, the size of the image not.

    Saved with a model (`.keras`) as its configuration, which is loaded without running anything.

    Raises:
        ValueError: for unknown options, an image whose size is not known, or a localizer of the wrong output width.

    Example:
        >>> import keras, stn.keras
        >>> localizer = keras.Sequential([keras.layers.Flatten(), stn.keras.identity_head("similarity")])
        >>> image = keras.Input((28, 28, 1))
        >>> stn.keras.SpatialTransformer(localizer, "similarity", size=(20, 20), data_format="channels_last")(image).shape
        (None, 20, 20, 1)

    Source: Jaderberg et al. 2015.
    """

    def __init__(
        self,
        localizer: keras.layers.Layer,
        transform: TransformLike = "affine",
        size: Sequence[int] | None = None,
        *,
        mode: Mode = "bilinear",
        padding_mode: PaddingMode = "border",
        fill: float | Sequence[float] = 0.0,
        antialias: bool = False,
        align_corners: bool = False,
        data_format: str | None = None,
        penalties: Mapping[str, float] | None = None,
        **options: Any,  # of every layer: name, dtype, trainable
    ) -> None:
        super().__init__(**options)
        if not isinstance(localizer, keras.layers.Layer):
            raise ValueError(f"localizer: expected a Keras layer or model, got {describe(localizer)}")
        check_reading(mode, padding_mode, fill, align_corners)
        if not isinstance(mode, str):
            raise ValueError(f"mode: expected a name, which a file can hold, got {describe(mode)}")
        check_flag("antialias", antialias)
        data_format = keras.config.image_data_format() if data_format is None else data_format
        check_choice("data_format", data_format, ("channels_last", "channels_first"))
        if penalties is not None:
            Penalty(**_check_mapping(penalties))
        self.penalties = None if penalties is None else dict(penalties)
        self.localizer = localizer
        self._family = (check_transform(transform),)  # a tuple, that no backend takes it for a layer of its own
        self.size = None if size is None else check_size(size, self._family[0].ndim)
        self.reading: dict[str, Any] = {
            "mode": mode,
            "padding_mode": padding_mode,
            "fill": fill,
            "antialias": antialias,
            "align_corners": align_corners,
            "data_format": data_format,
        }

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self._output_size(input_shape)
        if not self.localizer.built:
            self.localizer.build(input_shape)
        self._check_theta(self.localizer.compute_output_shape(input_shape))
        super().build(input_shape)

    def call(self, image: Array) -> Array:
        theta = self.theta(image)
        if self.penalties is not None:
            first = self.reading["data_format"] == "channels_first"
            image_size = tuple(image.shape[2:] if first else image.shape[1:-1])
            how: dict[str, Any] = {"align_corners": self.reading["align_corners"], **self.penalties}
            self.add_loss(penalty(theta, self._family[0], image_size, **how))
        return warp(image, theta, self.size, transform=self._family[0], **self.reading)

    def theta(self, image: Array) -> Array:
        """The localizer's parameters for a batch of images: (B, num_params)."""
        theta = self.localizer(image)
        self._check_theta(theta.shape)
        return theta

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        size = self._output_size(input_shape)
        if self.reading["data_format"] == "channels_first":
            return (input_shape[0], input_shape[1], *size)
        return (input_shape[0], *size, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "localizer": keras.saving.serialize_keras_object(self.localizer),
            "transform": self._family[0].config(),
            "size": self.size,
            "penalties": self.penalties,
            **self.reading,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpatialTransformer:
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("localizer")), **config)

    def _output_size(self, input_shape: tuple[int | None, ...]) -> tuple[int, ...]:
        d = self._family[0].ndim
        first = self.reading["data_format"] == "channels_first"
        image_size = tuple(input_shape[2:] if first else input_shape[1:-1])
        if len(input_shape) != d + 2 or None in image_size:
            name = type(self._family[0]).__name__
            raise ValueError(
                f"image: expected one in {d}D of known size, as {name}, {self.reading['data_format']}, got shape "
                f"{tuple(input_shape)}"
            )
        return self.size or image_size  # type: ignore[return-value]

    def _check_theta(self, shape: Any) -> None:
        family = self._family[0]
        if len(shape) != 2 or shape[1] != family.num_params:
            raise ValueError(
                f"localizer: expected an output of shape (B, {family.num_params}) for {type(family).__name__}, got "
                f"{tuple(shape)}"
            )


def _check_mapping(penalties: Any) -> dict[str, Any]:
    if not isinstance(penalties, Mapping):
        raise ValueError(f"penalties: expected weights by name, such as {{'fold': 1.0}}, got {describe(penalties)}")
    return dict(penalties)
