"""The only folder that knows devices: one op, its kernels, and who runs."""

from .warp import backends, use_backend, which_backend

__all__ = ["backends", "use_backend", "which_backend"]
