"""Spatial transformers for Keras 3: TensorFlow, JAX and torch behind one layer. Needs the extra `[keras]`.

The families are those of `stn.transforms`, with the same theta and the same numbers; images are (B, H, W, C) or
(B, C, H, W), as `keras.config.image_data_format()` or `data_format` says.
"""

from .functional import sample, spatial_transformer_network, warp
from .layers import SpatialTransformer, identity_head
from .penalties import penalty

__all__ = ["SpatialTransformer", "identity_head", "penalty", "sample", "spatial_transformer_network", "warp"]
