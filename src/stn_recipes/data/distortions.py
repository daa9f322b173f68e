"""The distorted digits of the paper, and two training augmentations, drawn from a table of random numbers.

A distortion consumes `num_random` uniform numbers per image. The table of an epoch is
`numpy.random.default_rng((seed, stream, epoch)).random((N, num_random))` and row i belongs to sample i, so what
happens to a sample depends on (seed, stream, epoch, i) alone: not on the batch size, the number of workers or the
rank.

Every warp is a pull: it maps an output position to the input position that is read there, in normalized coordinates
(x, y), -1 and 1 being the outer edges of the border pixels (`align_corners=False`). What falls outside the input is
0, the digits' background. The maps are members of families of `stn` (the tests compare them), but they are worked out
here, one operation after the other: recorded results rest on the last bits of every image, and where matrices came from
`stn.Similarity`, one of 200 batches of 1000 images was another. The sampler is torch's for the same reason.

Source: Jaderberg et al., "Spatial Transformer Networks", NIPS 2015, arXiv 1506.02025, appendix A.1.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stn._checks import check_choice, describe

from ..names import imported, is_import_path, split

if TYPE_CHECKING:
    from .lazy import LazyImages

    Pixels = Tensor | LazyImages  # (N, C, H, W) uint8

__all__ = [
    "NAMES",
    "Distortion",
    "OwnDistortion",
    "RandomElastic",
    "RandomFlipShift",
    "RandomOfEach",
    "RandomPlacement",
    "RandomProjective",
    "RandomSimilarity",
    "draw",
    "get",
]

_DIGIT = 28  # the side in pixels that the paper's pixel quantities refer to
_HOME = np.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])  # corners of the canvas, row by row
_PADDING_MODES = ("zeros", "border", "reflection")


def draw(
    count: int,
    num_random: int,
    *,
    seed: int,
    stream: int,
    epoch: int,
) -> np.ndarray:  # (count, num_random) float64 in [0, 1)
    """The table of random numbers of one epoch of one set; row i belongs to sample i."""
    return np.random.default_rng((seed, stream, epoch)).random((count, num_random))


def draw_row(num_random: int, *, seed: int, stream: int, epoch: int, place: int, again: int = 0) -> np.ndarray:
    """One row of the table of an epoch, (num_random,); with `again` that of a further table, for an image met again in it."""
    bits = np.random.PCG64((seed, stream, epoch, again) if again else (seed, stream, epoch))
    return np.random.Generator(bits.advance(place * num_random)).random(num_random)


def _uniform(u: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * u


def _normal(u: np.ndarray) -> np.ndarray:
    # 0 would become -inf; 2^-54 is below the smallest non-zero draw
    return torch.special.ndtri(torch.from_numpy(u.clip(2.0**-54, 1 - 2.0**-53))).numpy()


def _integer(u: np.ndarray, count: np.ndarray | int) -> Tensor:
    # u * count may round up to count
    return torch.from_numpy(np.minimum(np.floor(u * count), np.asarray(count) - 1).astype(np.int64))


@lru_cache(maxsize=32)
def _centres(size: int) -> np.ndarray:  # (size,) float64
    """Normalized positions of the pixel centres of one axis."""
    return (2 * np.arange(size) + 1) / size - 1


def _plane(coefficients: np.ndarray, size: tuple[int, int]) -> Tensor:
    """a x + b y + c on the output lattice, for coefficients (B, 3): (B, H, W) float32.

    Elementwise on purpose: the result for one sample may not depend on the batch around it, as a matrix product's may.
    """
    a, b, c = coefficients[:, 0:1], coefficients[:, 1:2], coefficients[:, 2:3]
    row = torch.from_numpy((a * _centres(size[1])).astype(np.float32))
    column = torch.from_numpy((b * _centres(size[0]) + c).astype(np.float32))
    return column[:, :, None] + row[:, None, :]


def _read(images: Tensor, grid: Tensor, padding_mode: str = "zeros") -> Tensor:
    grid = grid.to(images.device, images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)


def _scaled(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    return math.floor(size[0] * ratio + 0.5), math.floor(size[1] * ratio + 0.5)


class Distortion(ABC):
    """Images and their rows of random numbers -> distorted images.

    `num_random` uniforms are used per image; `output_size((H, W))` is the size of the result; `needs_source` says
    whether the images of the whole set are needed (to cut clutter from them). `neutral` are the `num_random` numbers that
    only put the image into the middle, from where a distortion can grow; None where there are no such numbers.
    """

    name: str
    num_random: int
    needs_source: bool = False
    neutral: np.ndarray | None = None

    def output_size(
        self,
        size: tuple[int, int],  # (H, W) of the input
    ) -> tuple[int, int]:
        """Size (H, W) of the distorted image."""
        return size

    def __call__(
        self,
        images: Tensor,  # (B, C, H, W) floating point in [0, 1]
        random: np.ndarray | Tensor,  # (B, num_random) in [0, 1)
        *,
        source: Pixels | None = None,
        index: Tensor | np.ndarray | None = None,  # (B,)
    ) -> Tensor:  # (B, C, *output_size((H, W)))
        """Distort a batch; row i of `random` decides what happens to image i.

        `source` holds the images of the whole set and `index` the places of this batch in it, so that clutter is cut
        from other images; only "tc" looks at them, and without `index` an image may meet a piece of itself.

        Raises `ValueError` for images that are not a floating point batch, for a table of another shape and for a
        missing source.

        >>> images = torch.rand(8, 1, 28, 28)
        >>> rotate = get("r")
        >>> rotate(images, draw(8, rotate.num_random, seed=0, stream=0, epoch=0)).shape
        torch.Size([8, 1, 28, 28])
        """
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(
                f"images: expected floating point (B, C, H, W), got {images.dtype} of shape {tuple(images.shape)}"
            )
        table = np.ascontiguousarray(random.cpu().numpy() if isinstance(random, Tensor) else random, dtype=np.float64)
        if table.shape != (len(images), self.num_random):
            raise ValueError(
                f"random: expected shape {(len(images), self.num_random)} for {self.name!r}, got {table.shape}"
            )
        if self.needs_source:
            if source is None:
                raise ValueError(
                    f"source: {self.name!r} cuts clutter from other images, expected (N, C, H, W) uint8, got None"
                )
            if source.dtype != torch.uint8 or source.shape[1:] != images.shape[1:] or len(source) == 0:
                raise ValueError(
                    f"source: expected uint8 (N, {', '.join(map(str, images.shape[1:]))}) with N > 0, "
                    f"got {source.dtype} of shape {tuple(source.shape)}"
                )
            if index is not None and len(index) != len(images):
                raise ValueError(f"index: expected one place for each of the {len(images)} images, got {len(index)}")
        return self._apply(images, table, source, None if index is None else torch.as_tensor(index))

    @abstractmethod
    def _apply(self, images: Tensor, random: np.ndarray, source: Pixels | None, index: Tensor | None) -> Tensor: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class RandomSimilarity(Distortion):
    """Rotation, scale and shift about the centre: "r", "rts" and the augmentation "affine".

    A positive angle turns the picture counter-clockwise as seen. The canvas is `canvas` times the input. `shift` is
    the largest shift along each axis as a fraction of the input's size, or "inside": the centre is uniform over the
    places at which the scaled, unrotated image fits the canvas. Random numbers: angle, scale, x, y. Angles are true
    on non-square images too.
    """

    num_random = 4

    def __init__(
        self,
        name: str,
        *,
        degrees: float,
        scale: tuple[float, float] = (1.0, 1.0),
        shift: float | str = 0.0,
        canvas: float = 1.0,
        padding_mode: str = "zeros",
    ):
        self.name = name
        self.degrees = degrees
        self.scale = scale
        self.shift = shift
        self.canvas = canvas
        check_choice("padding_mode", padding_mode, _PADDING_MODES)
        self.padding_mode = padding_mode
        low, high = scale
        self.neutral = np.array([0.5, (1 - low) / (high - low) if low < high else 0.5, 0.5, 0.5])

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return _scaled(size, self.canvas)

    def theta(
        self,
        random: np.ndarray,  # (B, 4)
        size: tuple[int, int],  # (H, W) of the input
    ) -> np.ndarray:  # (B, 2, 3) float64
        """The matrices of the pull, normalized output -> normalized input."""
        height, width = size
        out_height, out_width = self.output_size(size)
        random = np.ascontiguousarray(random.T)
        angle = np.deg2rad(_uniform(random[0], -self.degrees, self.degrees))
        scale = _uniform(random[1], *self.scale)
        if self.shift == "inside":
            reach_x = np.maximum(out_width - scale * width, 0) / 2
            reach_y = np.maximum(out_height - scale * height, 0) / 2
        else:
            reach_x, reach_y = np.float64(self.shift) * width, np.float64(self.shift) * height
        shift_x, shift_y = (2 * random[2] - 1) * reach_x, (2 * random[3] - 1) * reach_y  # pixels
        cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
        # in pixels from the centres: input = rotation (output - shift) / scale
        rows = [
            [cosine * out_width / width, -sine * out_height / width, (sine * shift_y - cosine * shift_x) * 2 / width],
            [
                sine * out_width / height,
                cosine * out_height / height,
                (-sine * shift_x - cosine * shift_y) * 2 / height,
            ],
        ]
        return np.array(rows).transpose(2, 0, 1)

    def _apply(self, images: Tensor, random: np.ndarray, source: Pixels | None, index: Tensor | None) -> Tensor:
        size = (images.shape[2], images.shape[3])
        theta, out = self.theta(random, size), self.output_size(size)
        grid = torch.stack([_plane(theta[:, 0], out), _plane(theta[:, 1], out)], dim=-1)
        return _read(images, grid, self.padding_mode)


class RandomProjective(Distortion):
    """Scale by 0.75 to 1, then each corner of the canvas moved by N(0, 5 px) along x and y: "p".

    The 5 pixels belong to a canvas of 42 and grow with it. Random numbers: scale, then (x, y) of the corners top
    left, top right, bottom left, bottom right. What lies behind the horizon of an extreme draw is background.
    """

    num_random = 9

    def __init__(
        self,
        name: str = "p",
        *,
        scale: tuple[float, float] = (0.75, 1.0),
        sigma: float = 5 / 42,
        canvas: float = 1.5,
    ):
        self.name = name
        self.scale = scale
        self.sigma = sigma
        self.canvas = canvas
        self.neutral = np.array([(1 - scale[0]) / (scale[1] - scale[0]), *[0.5] * 8])

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return _scaled(size, self.canvas)

    def corners(
        self,
        random: np.ndarray,  # (B, 9)
    ) -> np.ndarray:  # (B, 4, 2) float64, normalized (x, y) in the output
        """Where the corners of the canvas go."""
        return _HOME + 2 * self.sigma * _normal(np.ascontiguousarray(random[:, 1:])).reshape(-1, 4, 2)

    def theta(
        self,
        random: np.ndarray,  # (B, 9)
        size: tuple[int, int],  # (H, W) of the input
    ) -> np.ndarray:  # (B, 3, 3) float64
        """The homographies of the pull, normalized output -> normalized input."""
        moved = self.corners(random)
        system = np.zeros((len(random), 4, 2, 8))
        system[:, :, 0, 0:2] = system[:, :, 1, 3:5] = moved
        system[:, :, 0, 2] = system[:, :, 1, 5] = 1
        system[:, :, :, 6:8] = -_HOME[:, :, None] * moved[:, :, None, :]
        target = np.broadcast_to(_HOME.reshape(8), (len(random), 8))
        solved = torch.linalg.solve(torch.from_numpy(system.reshape(-1, 8, 8)), torch.from_numpy(target.copy()))
        theta = np.concatenate([solved.numpy(), np.ones((len(random), 1))], axis=1).reshape(-1, 3, 3)
        scale = _uniform(random[:, 0], *self.scale)
        out_height, out_width = self.output_size(size)
        theta[:, 0] *= (out_width / size[1] / scale)[:, None]
        theta[:, 1] *= (out_height / size[0] / scale)[:, None]
        return theta

    def _apply(self, images: Tensor, random: np.ndarray, source: Pixels | None, index: Tensor | None) -> Tensor:
        size = (images.shape[2], images.shape[3])
        theta, out = self.theta(random, size), self.output_size(size)
        x, y, w = (_plane(theta[:, row], out) for row in range(3))
        w = torch.where(w > 1e-6, w, torch.nan).reciprocal_()
        grid = torch.stack([x * w, y * w], dim=-1).nan_to_num_(nan=-4.0)  # -4: outside
        return _read(images, grid)


def _bending(points: np.ndarray, centres: np.ndarray) -> np.ndarray:  # (N, K + 3)
    square = ((points[:, None] - centres[None]) ** 2).sum(-1)
    kernel = np.where(square > 0, square * np.log(np.maximum(square, 1e-300)), 0.0)
    return np.concatenate([kernel, np.ones((len(points), 1)), points], axis=1)


@lru_cache(maxsize=8)
def _spline(size: tuple[int, int], lattice: int) -> Tensor:
    """The bending-energy spline as a matrix, values on the lattice -> on the pixels: (H W, lattice^2) float64."""
    # stn.ThinPlateSpline agrees to 1e-15, but one position in ten million would be rounded to another float32.
    line = np.linspace(-1, 1, lattice)
    centres = np.stack(np.meshgrid(line, line, indexing="xy"), axis=-1).reshape(-1, 2)
    pixels = np.stack(np.meshgrid(_centres(size[1]), _centres(size[0]), indexing="xy"), axis=-1).reshape(-1, 2)
    count = len(centres)
    system = np.zeros((count + 3, count + 3))
    system[:count] = _bending(centres, centres)
    system[count:, :count] = system[:count, count:].T
    return torch.from_numpy(_bending(pixels, centres) @ np.linalg.inv(system)[:, :count])


class RandomElastic(Distortion):
    """Scale by 0.75 to 1, then a thin-plate spline through a 4x4 lattice moved by N(0, 1.5 px): "e".

    The lattice spans the image from edge to edge; the 1.5 pixels belong to an image of 28 and grow with it. A pull:
    the offset at a lattice point says where the output there reads. Random numbers: scale, then the offsets (x, y)
    row by row.
    """

    def __init__(
        self,
        name: str = "e",
        *,
        scale: tuple[float, float] = (0.75, 1.0),
        sigma: float = 1.5 / _DIGIT,
        lattice: int = 4,
    ):
        self.name = name
        self.scale = scale
        self.sigma = sigma
        self.lattice = lattice
        self.num_random = 1 + 2 * lattice**2
        self.neutral = np.array([(1 - scale[0]) / (scale[1] - scale[0]), *[0.5] * (2 * lattice**2)])

    def grid(
        self,
        random: np.ndarray,  # (B, 33)
        size: tuple[int, int],  # (H, W)
    ) -> Tensor:  # (B, H, W, 2) float32
        """Where each output pixel reads, normalized (x, y)."""
        offsets = 2 * self.sigma * _normal(np.ascontiguousarray(random[:, 1:])).reshape(-1, self.lattice**2, 2)
        field = (_spline(size, self.lattice) @ torch.from_numpy(offsets)).reshape(-1, *size, 2)
        field[..., 0] += torch.from_numpy(_centres(size[1]))
        field[..., 1] += torch.from_numpy(_centres(size[0]))[:, None]
        field /= torch.from_numpy(_uniform(random[:, 0], *self.scale))[:, None, None, None]
        return field.float()

    def _apply(self, images: Tensor, random: np.ndarray, source: Pixels | None, index: Tensor | None) -> Tensor:
        return _read(images, self.grid(random, (images.shape[2], images.shape[3])))


class RandomPlacement(Distortion):
    """The image at a random whole-pixel place on a larger canvas, with clutter: "t", "t84" (no clutter), "tc" and "tc84".

    Clutter is `patches` pieces of 6x6 pixels (of 28, growing with the image), each cut at a random place of a random
    other image of `source` and put at a random place of the canvas; where things overlap the brighter one wins, so no
    clutter erases the digit. Random numbers: y, x of the image, then for each piece: image, y, x of the cut, y, x of
    the place.
    """

    def __init__(self, name: str, *, patches: int = 0, patch: float = 6 / _DIGIT, canvas: float = 60 / _DIGIT):
        self.name = name
        self.patches = patches
        self.patch = patch
        self.canvas = canvas
        self.num_random = 2 + 5 * patches
        self.needs_source = patches > 0

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return _scaled(size, self.canvas)

    def corners(
        self,
        random: np.ndarray,  # (B, num_random)
        size: tuple[int, int],  # (H, W) of the input
    ) -> Tensor:  # (B, 2) int64
        """Row and column of the canvas at which the top left pixel of the image lies."""
        rows, columns = (out - side + 1 for out, side in zip(self.output_size(size), size, strict=True))
        return torch.stack([_integer(random[:, 0], rows), _integer(random[:, 1], columns)], dim=1)

    def boxes(
        self,
        random: np.ndarray,  # (B, num_random)
        size: tuple[int, int],  # (H, W) of the input
    ) -> Tensor:  # (B, 4) float32
        """Where the image lies on the canvas: its outer edges, left, top, right, bottom, normalized."""
        corners = self.corners(random, size).flip(1)  # (x, y)
        edges = torch.cat([corners, corners + torch.tensor(size[::-1])], dim=1)
        return 2 * edges / torch.tensor(self.output_size(size)[::-1]).repeat(2) - 1

    def _apply(self, images: Tensor, random: np.ndarray, source: Pixels | None, index: Tensor | None) -> Tensor:
        batch, channels, height, width = images.shape
        out_height, out_width = self.output_size((height, width))
        canvas = images.new_zeros(batch, channels, out_height * out_width)

        def window(top: Tensor, left: Tensor, size: tuple[int, int], row: int) -> Tensor:
            """Flat positions of windows with these corners: (*corners.shape, h * w)."""
            inner = torch.arange(size[0])[:, None] * row + torch.arange(size[1])
            return (top * row + left)[..., None] + inner.flatten()

        top, left = self.corners(random, (height, width)).T
        place = window(top, left, (height, width), out_width).to(images.device)
        canvas.scatter_(2, place[:, None].expand(-1, channels, -1), images.flatten(2))
        if self.patches and batch:
            assert source is not None
            size = (max(1, round(height * self.patch)), max(1, round(width * self.patch)))
            columns = random[:, 2:].reshape(batch, self.patches, 5)
            if index is None or len(source) == 1:
                who = _integer(columns[..., 0], len(source))
            else:
                who = (index.cpu()[:, None] + 1 + _integer(columns[..., 0], len(source) - 1)) % len(source)
            cut = window(
                _integer(columns[..., 1], height - size[0] + 1),
                _integer(columns[..., 2], width - size[1] + 1),
                size,
                width,
            )
            put = window(
                _integer(columns[..., 3], out_height - size[0] + 1),
                _integer(columns[..., 4], out_width - size[1] + 1),
                size,
                out_width,
            )
            cutters, which = who.unique(return_inverse=True)  # no others are read, where they lie on a disk
            flat = source[cutters].flatten(2)
            pieces = flat[
                which[..., None, None], torch.arange(channels)[:, None], cut[:, :, None]
            ]  # (B, patches, C, h w)
            pieces = pieces.transpose(1, 2).flatten(2).to(images.device, images.dtype) / 255
            put = put.flatten(1).to(images.device)[:, None].expand(-1, channels, -1)
            canvas.scatter_reduce_(2, put, pieces, "amax")
        return canvas.view(batch, channels, out_height, out_width)


class RandomFlipShift(Distortion):
    """Mirrored or not, and shifted by whole pixels, up to 4 px of 32 along each axis: "flip_shift".

    `padding_mode` says what comes in at the edge: "reflection" d c b | a b c d | c b a, "border" a a a | a b c d | d
    d d, "zeros" 0 0 0 | a b c d | 0 0 0. Random numbers: flip, y, x.
    """

    num_random = 3

    def __init__(
        self, name: str = "flip_shift", *, flip: bool = True, shift: float = 1 / 8, padding_mode: str = "reflection"
    ):
        self.name = name
        self.flip = flip
        self.shift = shift
        check_choice("padding_mode", padding_mode, _PADDING_MODES)
        self.padding_mode = padding_mode

    def _apply(self, images: Tensor, random: np.ndarray, source: Pixels | None, index: Tensor | None) -> Tensor:
        height, width = images.shape[2:]

        def lines(size: int, u: np.ndarray) -> tuple[Tensor, Tensor]:
            """Which line each output line reads, (B, size), and whether it is inside."""
            most = math.floor(size * self.shift + 0.5)
            line = torch.arange(size) + (_integer(u, 2 * most + 1) - most)[:, None]
            inside = (line >= 0) & (line < size)
            if self.padding_mode == "reflection":
                line = torch.where(line < 0, -line, line)
                line = torch.where(line > size - 1, 2 * (size - 1) - line, line)
            return line.clamp_(0, size - 1), inside

        rows, row_inside = lines(height, random[:, 1])
        columns, column_inside = lines(width, random[:, 2])
        if self.flip:
            mirrored = torch.from_numpy(random[:, 0] < 0.5)[:, None]
            columns = torch.where(mirrored, width - 1 - columns, columns)
        positions = (rows[:, :, None] * width + columns[:, None, :]).flatten(1).to(images.device)
        moved = images.flatten(2).gather(2, positions[:, None].expand(-1, images.shape[1], -1)).view_as(images)
        if self.padding_mode == "zeros":
            moved *= (row_inside[:, None, :, None] & column_inside[:, None, None, :]).to(images.device)
        return moved


class RandomOfEach(Distortion):
    """Each of two channels distorted on its own: "rts_each". Random numbers: those of one channel, then of the other."""

    def __init__(self, name: str, inner: Distortion, *, channels: int = 2):
        self.name = name
        self.inner = inner
        self.channels = channels
        self.num_random = channels * inner.num_random
        self.neutral = None if inner.neutral is None else np.tile(inner.neutral, channels)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.inner.output_size(size)

    def _apply(self, images: Tensor, random: np.ndarray, source: Pixels | None, index: Tensor | None) -> Tensor:
        if images.shape[1] != self.channels:
            raise ValueError(f"images: expected {self.channels} channels for {self.name!r}, got {images.shape[1]}")
        parts = zip(images.split(1, 1), np.split(random, self.channels, axis=1), strict=True)
        return torch.cat([self.inner(image, np.ascontiguousarray(part)) for image, part in parts], 1)


def _rts(name: str = "rts", **options: Any) -> Distortion:
    return RandomSimilarity(name, **{"degrees": 45.0, "scale": (0.7, 1.2), "shift": "inside", "canvas": 1.5, **options})


_MAKERS: dict[str, Callable[..., Distortion]] = {
    "r": partial(RandomSimilarity, "r", degrees=90.0),
    "rts": _rts,
    "rts_each": lambda **options: RandomOfEach("rts_each", _rts(**options)),
    "p": partial(RandomProjective, "p"),
    "e": partial(RandomElastic, "e"),
    "t": partial(RandomPlacement, "t"),
    "tc": partial(RandomPlacement, "tc", patches=6),
    "t84": partial(RandomPlacement, "t84", canvas=3.0),
    "tc84": partial(RandomPlacement, "tc84", patches=16, canvas=3.0),
    "affine": partial(RandomSimilarity, "affine", degrees=10.0, scale=(0.9, 1.1), shift=2 / _DIGIT),
    "flip_shift": partial(RandomFlipShift, "flip_shift"),
}
NAMES = tuple(_MAKERS)


class OwnDistortion(Distortion):
    """A function of a user's own: (images (B, C, H, W) in [0, 1], random (B, 16) in [0, 1), **options) -> images alike.

    What it does to an image is to depend on the image and its row of random numbers alone: then runs repeat.
    """

    num_random = 16

    def __init__(self, name: str, function: Callable[..., Any], **options: Any) -> None:
        self.name = name
        self.function = partial(function, **options)

    def _apply(self, images: Tensor, random: np.ndarray, source: Pixels | None, index: Tensor | None) -> Tensor:
        out = self.function(images, torch.from_numpy(random).float())
        if not isinstance(out, Tensor) or out.shape != images.shape or out.dtype != images.dtype:
            raise ValueError(
                f"distortion: expected of {self.name} {describe(images)} as it was given, got {describe(out)}; a "
                f"subclass of Distortion may change the size"
            )
        return out


def _own(path: str, options: dict[str, Any], argument: str) -> Distortion:
    found = imported(argument, path)
    try:
        if isinstance(found, Distortion) and not options:
            return found
        if isinstance(found, type) and issubclass(found, Distortion):
            return found(**options)
        if callable(found) and not isinstance(found, (type, Distortion)):
            inspect.signature(found).bind(None, None, **options)
            return OwnDistortion(path, found, **options)
    except TypeError as error:
        raise ValueError(f"{argument}: {path} cannot be called so: {error}") from error
    raise ValueError(
        f"{argument}: expected a function of images and random numbers, or a Distortion, got {path}, {found!r}"
    )


def get(name: str | Mapping[str, Any], *, argument: str = "distortion", **options: Any) -> Distortion:
    """A distortion or augmentation by name; or one of yours, `package.module:name`: a function as `OwnDistortion` takes
    it, or a `Distortion` or a subclass of it. A mapping with the name has options.

    | name | what | size of a 28x28 input |
    |---|---|---|
    | r | rotation within +-90 degrees | 28x28 |
    | rts | rotation within +-45 degrees, scale 0.7 to 1.2, random place | 42x42 |
    | rts_each | the same for each of two channels on its own | 42x42 |
    | p | scale 0.75 to 1, corners moved by N(0, 5 px) | 42x42 |
    | e | scale 0.75 to 1, 4x4 spline lattice moved by N(0, 1.5 px) | 28x28 |
    | t | random place | 60x60 |
    | tc | random place, six 6x6 pieces of other images | 60x60 |
    | t84 | random place | 84x84 |
    | tc84 | random place, sixteen 6x6 pieces of other images | 84x84 |
    | affine | rotation within +-10 degrees, scale 0.9 to 1.1, shift within 2 px | 28x28 |
    | flip_shift | mirrored or not, shift within 4 px of 32, whole pixels | 28x28 |

    Another input size scales canvas and pixel quantities alike. `options` go to the class, e.g. `padding_mode=`.
    Raises `ValueError` for an unknown name, and says which one is nearest, and for what `argument` names that is no such thing.

    >>> get("rts").output_size((28, 28))
    (42, 42)
    """
    name, said = split(name)
    options = said | options
    if is_import_path(name):
        return _own(name, options, argument)
    check_choice("name", name, NAMES)
    try:
        return _MAKERS[name](**options)
    except TypeError as error:
        raise ValueError(f"options of {name!r}: {error}") from error
