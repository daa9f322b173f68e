"""The only folder that knows devices: one op, its backends, and who runs."""

from .dispatch import backends, use_backend, which_backend

__all__ = ["backends", "use_backend", "which_backend"]
