"""Reading an image at coordinates of any kind on `keras.ops`, in either layout."""

from __future__ import annotations

from keras import ops

from ..coordinates import Coordinates
from ..reading import Reading
from . import families, portable
from .backends import Array


def read(
    image: Array,  # (B, C, *in) or (B, *in, C)
    kind: str,  # "affine", "projective" or "grid"
    values: Array,  # of the same batch and type
    size: tuple[int, ...],
    reading: Reading,
    last: bool,
) -> Array:
    """(B, C, *size) or (B, *size, C)."""
    d = len(size)
    grid = families.positions(Coordinates(kind, size, values), reading.align_corners)  # type: ignore[arg-type]
    pixels = image if last else ops.transpose(image, (0, *range(2, d + 2), 1))
    out = portable.read(pixels, grid, reading)
    return out if last else ops.transpose(out, (0, d + 1, *range(1, d + 1)))
