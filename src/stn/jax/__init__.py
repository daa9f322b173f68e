"""Spatial transformers for JAX: the kernels of the native backend on the CPU, plain `jax.numpy` elsewhere. Needs JAX, and no
Keras.

Same coordinates, options and numbers as `stn.warp` and `stn.sample`; images are (B, C, H, W) as in the rest of the library,
or (B, H, W, C) with `data_format="channels_last"`.
"""

from .functional import read, sample, warp

__all__ = ["read", "sample", "warp"]
