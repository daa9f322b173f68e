"""Images in, classes and rectified images out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

import stn
from stn.reading import Mode, PaddingMode

from .data.images import image_files
from .data.lazy import NAMED
from .data.pixels import Fit, decode
from .files import atomic_path
from .motion import moved_theta
from .run.folder import load_run_or_pretrained


def read_image(
    path: str | Path, channels: int = 3, size: tuple[int, int] | None = None, *, fit: Fit = "stretch"
) -> Tensor:
    """An image file as (1, channels, H, W) in [0, 1], upright, brought to `size` (H, W) if given, as `fit` says.

    Raises:
        ValueError: for a file that is no readable image, by name. OSError: for a file that is not there.
    """
    try:
        image = torch.from_numpy(decode(path, size, "L" if channels == 1 else "RGB", fit=fit).copy()).float() / 255
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error
    return image[None, None] if channels == 1 else image.permute(2, 0, 1)[None]


def write_image(path: Path, image: Tensor) -> None:
    """(1, C, H, W) in [0, 1] as an image file, whole or not at all."""
    pixels = image[0].clamp(0, 1).mul(255).round().byte()
    picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path}: expected the name of an image file such as {path.stem}.png")
    with atomic_path(path) as temporary:
        picture.save(temporary)


def _files(images: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, images):
        inside = image_files(path) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"image: expected a folder with images, got {path}, which has none")
        files += inside
    return files


def _unreadable(first: Exception, rest: Sequence[Path], channels: int, total: int) -> Exception:
    """What to raise where an image cannot be read: all that cannot be, so that they are mended at once."""
    bad = [first]
    for file in rest:
        try:
            read_image(file, channels)
        except (ValueError, OSError) as error:
            bad.append(error)
    if len(bad) == 1:
        return first
    shown = "; ".join(map(str, bad[:NAMED])) + (f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else "")
    return ValueError(f"{shown} ({len(bad)} of {total}); --on-bad-image skip leaves them out")


@torch.no_grad()
def predict(
    run: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    on_bad_image: str = "stop",
    trust: bool = False,
) -> list[dict[str, Any]]:
    """Classify image files with a run, and save each as its transformer sees it.

    Images are brought to the run's input size as those that it was trained on, and normalized as in training; no data set
    is needed.

    Args:
        images: files, and folders whose images are meant, those of their sub-folders too.
        on_bad_image: "stop" or "skip".
        trust: import the code that the run's settings name.

    Returns:
        One record an image: image, class, confidence, rectified (a path, or None for a control).

    Raises:
        ValueError: for an empty folder, for images that cannot be read, by name.
    """
    loaded = load_run_or_pretrained(run, trust=trust)
    model = loaded.classifier
    channels, height, width = loaded.facts.input_shape
    if channels == 2:
        raise ValueError(f"run: expected one that was trained on images with 1 or 3 channels, got {run} with 2")
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (loaded.facts.mean, loaded.facts.std))
    folder = Path(out) if out is not None else loaded.path / "predictions"
    rows: list[dict[str, Any]] = []
    taken: set[Path] = set()
    files = _files(images)
    for place, file in enumerate(files):
        try:
            image = read_image(file, channels, (height, width), fit=loaded.config.fit)
        except (ValueError, OSError) as error:
            if on_bad_image == "stop":
                raise _unreadable(error, files[place + 1 :], channels, len(files)) from error
            warnings.warn(f"skipped: {error}")
            continue
        normalized = (image - mean) / std
        confidence, best = model(normalized).softmax(1).max(1)
        rectified: Path | None = None
        warp = model.warp(normalized)
        if warp is not None:
            folder.mkdir(parents=True, exist_ok=True)
            rectified = folder / f"{Path(file).stem}.rectified.png"
            for n in range(2, len(files) + 2):  # two files of one name from two folders
                if rectified not in taken:
                    break
                rectified = folder / f"{Path(file).stem}-{n}.rectified.png"
            taken.add(rectified)
            write_image(rectified, warp.output * std + mean)
        rows.append(
            {
                "image": str(file),
                "class": loaded.facts.class_names[int(best)],
                "confidence": float(confidence),
                "rectified": None if rectified is None else str(rectified),
            }
        )
    if not rows:
        raise ValueError("image: expected at least one readable image")
    return rows


def warp_file(
    image: str | Path,
    out: str | Path,
    *,
    rotate: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
) -> None:
    """Turn the content of an image file counterclockwise by `rotate` degrees about its centre, scale it, shift it.

    Args:
        scale: of the content; below 1 is smaller. shift: right and down, in pixels.
    """
    for argument, value, fine in (
        ("rotate", rotate, True),
        ("scale", scale, scale > 0),
        ("shift", max(shift, key=abs), True),
    ):
        if not (math.isfinite(value) and fine):
            raise ValueError(f"{argument}: expected a finite number{'' if fine else ' above 0'}, got {value}")
    pixels = read_image(image)
    height, width = pixels.shape[2:]
    share = torch.tensor([[shift[0] / width, shift[1] / height]])
    theta = moved_theta(torch.tensor([float(rotate)]), torch.tensor([float(scale)]), share, (height, width))
    write_image(Path(out), stn.warp(pixels, theta, mode=mode, padding_mode=padding_mode))
