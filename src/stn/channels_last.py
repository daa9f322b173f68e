"""The one call of the `stn` package for TensorFlow: channels-last images by affine parameters, of whatever framework's arrays."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import Tensor

from ._checks import check_image, describe
from .reading import Mode, PaddingMode
from .sampling import warp
from .transforms.affine import Affine


def spatial_transformer_network(
    input_fmap: Tensor,  # (B, H, W, C)
    theta: Tensor,  # (B, 6)
    out_dims: tuple[int, int] | None = None,
    *,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Warp channels-last images by affine parameters: the one call of the `stn` package for TensorFlow.

    Correct by default: the identity is the identity. `stn.compat.spatial_transformer_network` has the old package's
    exact numbers, for weights that were trained with it.

    Arrays of TensorFlow and JAX go to `stn.keras.spatial_transformer_network`, and come back as such.

    Args:
        input_fmap: (B, H, W, C), floating point.
        theta: (B, 6), the matrix (2, 3) row by row; pull, (x, y), normalized.
        out_dims: (H, W) of the output; the input's unless given.

    Returns:
        (B, *out_dims, C).

    Raises:
        ValueError: for wrong shapes and types, and for an array of another framework than Keras runs on.

    Example:
        >>> import torch
        >>> out = spatial_transformer_network(torch.ones(2, 8, 8, 3), torch.tensor([[1.0, 0, 0, 0, 1, 0]]), (4, 4))
        >>> out.shape
        torch.Size([2, 4, 4, 3])
    """
    framework = _FRAMEWORKS.get(type(input_fmap).__module__.partition(".")[0])
    if framework is not None:
        options: dict[str, Any] = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
        return _keras_on(framework).spatial_transformer_network(input_fmap, theta, out_dims, **options)
    check_image_last(input_fmap)
    image = input_fmap.movedim(-1, 1)
    out = warp(
        image, theta, out_dims, transform=Affine(), mode=mode, padding_mode=padding_mode, align_corners=align_corners
    )
    return out.movedim(1, -1)


_FRAMEWORKS = {"tensorflow": "tensorflow", "jax": "jax", "jaxlib": "jax"}  # by the package of an array's type


def _keras_on(framework: str) -> Any:
    """`stn.keras` on a framework. Keras takes its own when it is first imported, so it is told unless somebody did."""
    told = "keras" in sys.modules or "KERAS_BACKEND" in os.environ
    if not told:
        os.environ["KERAS_BACKEND"] = framework
    try:
        from . import keras
        from .keras.backends import BACKEND
    finally:
        if not told:
            del os.environ["KERAS_BACKEND"]
    if framework != BACKEND:
        raise ValueError(
            f"input_fmap: expected an array of {BACKEND}, on which Keras runs, got one of {framework}; set "
            f"KERAS_BACKEND={framework} before Keras is imported"
        )
    return keras


def check_image_last(image: Tensor, argument: str = "input_fmap") -> None:
    if not isinstance(image, Tensor) or image.ndim != 4:
        raise ValueError(f"{argument}: expected (B, H, W, C), got {describe(image)}")
    check_image(image.movedim(-1, 1), argument)
