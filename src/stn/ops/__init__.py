"""The only folder that knows devices: one op, its backends, and who runs."""

from .dispatch import backends, use_backend, which_backend
from .selfcheck import check

__all__ = ["backends", "check", "use_backend", "which_backend"]
