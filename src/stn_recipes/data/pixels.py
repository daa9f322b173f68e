"""Image files as arrays of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np
from PIL import Image, ImageOps

Fit = Literal["stretch", "crop", "pad"]
FITS: tuple[Fit, ...] = get_args(Fit)


def decode(
    file: str | Path | IO[bytes],
    size: tuple[int, int] | None = None,  # (H, W)
    mode: str = "RGB",
    *,
    fit: Fit = "stretch",
) -> np.ndarray:  # (H, W[, 3]) uint8
    """An image file, upright (EXIF), converted to `mode`, brought to `size` if given, as `fitted` does.

    Gray becomes three equal channels, palettes their colours, CMYK and others RGB; transparency is dropped; of 16 bits
    the upper 8 are kept; of several frames or pages the first is read.

    Raises:
        ValueError: for pixels without a known range (32 bits, floating point). Pillow raises anything for damaged files.
    """
    with Image.open(file) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range; save it with 8 or 16 bits a channel")
    image = image.convert(mode)
    return np.asarray(image if size is None else fitted(image, size, fit))


def fitted(image: Image.Image, size: tuple[int, int], fit: Fit = "stretch") -> Image.Image:
    """An image brought to `size` (H, W), with antialiasing.

    Args:
        fit: "stretch" changes its aspect; "crop" keeps it, and cuts off what is too long on both sides alike; "pad" keeps
            it and all that is there, in the middle of black.
    """
    height, width = size
    if fit == "stretch":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    if fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    scale = min(width / image.width, height / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas
