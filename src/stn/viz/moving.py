"""A batch of images that moves under families of warps, as GIF or MP4."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._checks import describe
from .._files import atomic_path
from ..sampling import warp
from ..transformer import Warp
from ..transforms import Affine, Rotation, ThinPlateSpline, convert
from ..transforms.base import AbstractTransform
from .frames import frame_margin, frame_outlines
from .style import FRAME, INK, check_positive, to_pixels

if TYPE_CHECKING:
    from PIL import Image

GAP = 6  # pixels between the pictures
LABEL = 14  # pixels, of the line above a family
PAGE = (255, 255, 255)


def animate(
    file: str | Path,
    images: Tensor,  # (N, C, H, W)
    families: Mapping[str, AbstractTransform] | None = None,
    thetas: Mapping[str, Tensor] | None = None,
    *,
    frames: int = 48,
    seconds: float = 4.0,
    side: int = 88,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Path:
    """Write a moving picture of a batch under families of warps: where each reads, and what it makes of it.

    For each family there are two rows: the images with the frame that is read (pull), the dot its corner that becomes the
    top left, and below them the output. Families whose warp is an affine matrix and that can turn go once round; any other bends
    there and back, by a theta that the name of the family alone decides. The picture has no end.

    Args:
        file: NAME.gif, or NAME.mp4 (`pip install spatial-transformers[video]`).
        images: (N, C, H, W) with 1 to 3 channels, N at least 1.
        families: by the name that is written above them; `Affine` and `ThinPlateSpline` unless given.
        thetas: motions of your own, (frames, num_params) for the families that they name.
        frames: pictures in a round.
        seconds: that a round takes.
        side: of each image in pixels, the longer one.
        mean, std: of the normalization that is undone first.

    Returns:
        The file, written whole or not at all; the same bytes for the same arguments.

    Raises:
        ValueError: for images that are none, another file type, families of other than 2D images, or a motion of another
            shape.
        ImportError: for what is not installed, by name.

    Example:
        >>> import stn
        >>> animate("turning.gif", torch.rand(3, 1, 16, 16), {"affine": stn.Affine()}, frames=4).name
        'turning.gif'
    """
    file = Path(file)
    if file.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"file: expected a name that ends with .gif or .mp4, got {str(file)!r}")
    shown = torch.from_numpy(to_pixels("images", images, mean, std)).permute(0, 3, 1, 2)
    frames, side = check_positive("frames", frames), check_positive("side", side)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise ValueError(f"seconds: expected a number above 0, got {describe(seconds)}")
    if families is None:
        families = {"affine": Affine(), "thin plate spline": ThinPlateSpline((4, 4))}
    motions = _motions(families, thetas or {}, frames, (shown.shape[2], shown.shape[3]))
    write = _write_gif if file.suffix.lower() == ".gif" else _writer_mp4()
    pictures = _pictures(shown, families, motions, frames, side)
    with atomic_path(file) as temporary:
        write(temporary, pictures, frames / seconds)
    return file


def _motions(
    families: Mapping[str, AbstractTransform], given: Mapping[str, Tensor], frames: int, size: tuple[int, int]
) -> dict[str, Tensor]:
    """The theta (frames, num_params) of each family."""
    if not families:
        raise ValueError("families: expected at least one, got none")
    if unknown := given.keys() - families.keys():
        raise ValueError(f"thetas: expected the names of families, {', '.join(families)}, got {sorted(unknown)}")
    motions = {}
    for name, family in families.items():
        if not isinstance(family, AbstractTransform) or family.ndim != 2:
            raise ValueError(f"families: expected transforms of 2D images such as stn.Affine(), got {describe(family)}")
        theta = given.get(name)
        if theta is None:
            theta = _motion(name, family, frames, size)
        elif not isinstance(theta, Tensor) or tuple(theta.shape) != (frames, family.num_params):
            raise ValueError(f"thetas: expected ({frames}, {family.num_params}) for {name!r}, got {describe(theta)}")
        motions[name] = theta.detach().cpu().float()
    return motions


def _motion(name: str, family: AbstractTransform, frames: int, size: tuple[int, int]) -> Tensor:
    phase = torch.arange(frames)[:, None] * (2 * math.pi / frames)
    if family.kind == "affine":
        try:
            # Rotation takes at most half a turn to either side.
            return convert(torch.remainder(phase + math.pi, 2 * math.pi) - math.pi, Rotation(), family, image_size=size)
        except ValueError:
            pass  # it cannot turn, or not so far
    generator = torch.Generator().manual_seed(sum(name.encode()))
    one, other = 0.16 * torch.randn(2, family.num_params, generator=generator)
    return family.identity() + phase.sin() * one + (2 * phase).sin() * other


def _pictures(
    images: Tensor,
    families: Mapping[str, AbstractTransform],
    motions: Mapping[str, Tensor],
    frames: int,
    side: int,
) -> list[Image.Image]:
    from PIL import Image, ImageDraw

    size = (images.shape[2], images.shape[3])
    warps = {}
    for name, family in families.items():
        moved = []
        for theta in motions[name]:
            thetas = theta.expand(len(images), -1)
            output = warp(images, thetas, transform=family)
            moved.append(Warp(output, thetas, family, size, size, False))
        warps[name] = moved
    # All images of a family are read in the same place.
    outlines = {name: torch.cat([frame_outlines(one)[:1] for one in moved]) for name, moved in warps.items()}
    margin = max(frame_margin(outline, size) for outline in outlines.values())
    zoom = side / max(size)
    height, width = (round(n * zoom) for n in size)
    top, left = round(margin * height), round(margin * width)
    cell_height, cell_width = height + 2 * top, width + 2 * left
    block = LABEL + cell_height + height + 3 * GAP
    canvas = [len(images) * (cell_width + GAP) + GAP, len(families) * block + GAP]
    canvas = [n + n % 2 for n in canvas]  # as MP4 wants it

    def enlarged(pixels: Tensor) -> Image.Image:
        array = pixels.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")
        return picture.resize((width, height), Image.Resampling.NEAREST)

    inputs = [enlarged(image) for image in images]
    pictures = []
    for n in range(frames):
        page = Image.new("RGB", (canvas[0], canvas[1]), PAGE)
        draw = ImageDraw.Draw(page)
        for row, (name, moved) in enumerate(warps.items()):
            y = row * block + GAP
            draw.text((GAP + left, y), name, fill=INK)
            y += LABEL
            path = ((outlines[name][n] + 0.5) * zoom).tolist()
            for i, before in enumerate(inputs):
                x = GAP + i * (cell_width + GAP)
                cell = Image.new("RGB", (cell_width, cell_height), PAGE)
                cell.paste(before, (left, top))
                line = [(a + left, b + top) for a, b in path]
                pen = ImageDraw.Draw(cell)
                pen.line(line, fill=FRAME, width=2, joint="curve")
                a, b = line[0]
                pen.ellipse((a - 4, b - 4, a + 4, b + 4), fill=FRAME)
                page.paste(cell, (x, y))
                page.paste(enlarged(moved[n].output[i]), (x + left, y + cell_height + GAP))
        pictures.append(page)
    return pictures


def _write_gif(file: Path, pictures: Sequence[Image.Image], rate: float) -> None:
    from PIL import Image

    # One palette for all, from the first and the middle: without it colours flicker.
    both = Image.new("RGB", (pictures[0].width, 2 * pictures[0].height))
    both.paste(pictures[0], (0, 0))
    both.paste(pictures[len(pictures) // 2], (0, pictures[0].height))
    palette = both.quantize(32, method=Image.Quantize.MEDIANCUT)
    colors = np.array(palette.getpalette()).reshape(-1, 3)
    colors[colors.min(1) > 235] = PAGE  # white stays white
    palette.putpalette(colors.flatten().tolist())
    first, *rest = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    duration = max(20, round(1000 / rate))
    first.save(file, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)


def _writer_mp4() -> Callable[[Path, Sequence[Image.Image], float], None]:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ImportError("MP4 needs imageio-ffmpeg: pip install 'spatial-transformers[video]'") from error

    def write(file: Path, pictures: Sequence[Image.Image], rate: float) -> None:
        writer = imageio_ffmpeg.write_frames(
            str(file), pictures[0].size, fps=rate, macro_block_size=2, ffmpeg_log_level="error"
        )
        writer.send(None)
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture))
        writer.close()

    return write
