"""A transformer that finds what images have in common, and the encoder that its crops are compared in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..transformer import SpatialTransformer, Warp
from ..transforms import AbstractTransform
from ..transforms.base import exact
from ..transforms.config import TransformLike, check_transform
from .base import Shape, check_shape

CROP = 14  # side in pixels of what the encoder sees of a window
STEP = 2  # between two windows of the lattice, in pixels of a crop
WIDTH = 64  # of an encoding


class Windows(NamedTuple):
    """All windows of the lattice, row by row: where the localizer looks, and what the encoder sees there."""

    heat: Tensor  # (B, N): logits of the places
    encodings: Tensor  # (B, N, WIDTH), of length 1


def _convolutions(channels: int, width: int) -> nn.Sequential:
    """A crop of CROP pixels to one pixel; a whole image to a map of all its windows, STEP pixels apart."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.MaxPool2d(STEP)),
        *(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, width, 4)),
    )


class HeatLocalizer(nn.Module):
    """Scores every window of a lattice; theta is their mean place (x, y), weighted by the softmax of the scores.

    Shape: (B, C, H, W) -> (B, 2).
    """

    places: Tensor  # (N, 2): centres (x, y) of the windows, normalized
    apart: Tensor  # (N, N) bool: which windows are at least 0.7 of their side from each other along an axis

    def __init__(self, channels: int, image_size: tuple[int, int], window: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(window // CROP)
        self.score = _convolutions(channels, 1)
        last = self.score[-1]
        assert isinstance(last, nn.Conv2d)
        with torch.no_grad():
            last.weight *= 0.1  # at the start all windows are about equally likely
        rows, columns = ((side // (window // CROP) - CROP) // STEP + 1 for side in image_size)
        first = -1 + torch.tensor([window / side for side in image_size[::-1]])
        stride = torch.tensor([2 * STEP * (window // CROP) / side for side in image_size[::-1]])
        lattice = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), dim=-1)
        self.register_buffer("places", first + stride * lattice.flatten(0, 1), persistent=False)
        far = (lattice.flatten(0, 1)[:, None] - lattice.flatten(0, 1)).abs().amax(2) * STEP >= 0.7 * CROP
        self.register_buffer("apart", far, persistent=False)

    def heat(self, images: Tensor) -> Tensor:
        """Scores (B, N) of the windows."""
        scores: Tensor = self.score(self.pool(images)).flatten(1)
        return scores

    def forward(self, images: Tensor) -> Tensor:
        with exact(images.device):
            return self.heat(images).float().softmax(1) @ self.places


class Colocalizer(nn.Module):
    """A transformer that crops one window of a fixed size from each image, and an encoder of what it crops.

    The encoder is a convolution without padding: run over the whole image it encodes every window of the lattice at
    once, as it would encode the transformer's crop at that place.

    Args:
        in_shape: (C, H, W) of the images.
        transform: a family whose theta is the centre (x, y) of a square window of a fixed size:
            `stn.Affine(fixed=[[w / W, 0, None], [0, w / H, None]])`, w a multiple of 14 pixels.
        padding_mode: of the transformer.

    Shape: (B, C, H, W) -> (B, 64), encodings of length 1.

    Raises:
        ValueError: for another family or shape.

    Example:
        >>> import stn
        >>> window = stn.Affine(fixed=[[1 / 3, 0, None], [0, 1 / 3, None]])
        >>> model = Colocalizer((1, 84, 84), window)
        >>> encoding, warp = model.look(torch.rand(5, 1, 84, 84))
        >>> encoding.shape, warp.output.shape, model.windows(torch.rand(5, 1, 84, 84)).heat.shape
        (torch.Size([5, 64]), torch.Size([5, 1, 14, 14]), torch.Size([5, 225]))
    """

    def __init__(self, in_shape: Shape, transform: TransformLike, *, padding_mode: str = "border") -> None:
        super().__init__()
        channels, *size = check_shape(in_shape)
        family = check_transform(transform)
        window = _window(family, (size[0], size[1]))
        localizer = HeatLocalizer(channels, (size[0], size[1]), window)
        self.transformer = SpatialTransformer(localizer, family, (CROP, CROP), padding_mode=padding_mode)  # type: ignore[arg-type]
        self.encoder = _convolutions(channels, WIDTH)

    @property
    def localizer(self) -> HeatLocalizer:
        localizer = self.transformer.localizer
        assert isinstance(localizer, HeatLocalizer)
        return localizer

    def encode(self, crops: Tensor) -> Tensor:
        """Crops (B, C, 14, 14) to encodings (B, 64)."""
        return F.normalize(self.encoder(crops).flatten(1), dim=1)

    def windows(self, images: Tensor) -> Windows:
        """Every window of the lattice, scored and encoded."""
        encodings = self.encoder(self.localizer.pool(images)).flatten(2).transpose(1, 2)
        return Windows(self.localizer.heat(images), F.normalize(encodings, dim=2))

    def forward(self, images: Tensor) -> Tensor:
        return self.look(images)[0]

    def warp(self, images: Tensor) -> Warp:
        """What the transformer does to the images."""
        warp: Warp = self.transformer.warp(images)
        return warp

    def look(self, images: Tensor) -> tuple[Tensor, Warp]:
        """The encodings of the transformer's crops, and what it did to the images."""
        warp = self.warp(images)
        return self.encode(warp.output), warp


def _window(transform: AbstractTransform, image_size: tuple[int, int]) -> int:
    """Side in pixels of the window that the family cuts."""
    match getattr(transform, "fixed", None):
        case ((float() | int() as across, 0, None), (0, float() | int() as down, None)):
            sides = (across * image_size[1], down * image_size[0])
        case _:
            sides = (0.0, 0.0)
    window = round(sides[0])
    if any(abs(side - window) > 1e-2 for side in sides) or window % CROP or not 0 < window <= min(image_size):
        height, width = image_size
        raise ValueError(
            f"transform: expected Affine(fixed=[[w / {width}, 0, None], [0, w / {height}, None]]) for a window of w pixels, "
            f"a multiple of {CROP} that fits the image, got {transform!r}"
        )
    if any(side % (window // CROP) for side in image_size):
        raise ValueError(f"in_shape: expected sides that are multiples of {window // CROP}, got {image_size}")
    return window
