"""The spatial transformer as a layer."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ._checks import (
    check_choice,
    check_flag,
    check_image,
    check_number,
    check_size,
    check_spacing,
    coordinate_dtype,
    describe,
)
from ._tracing import as_one_step, is_symbolic
from .conventions import normalized_to_pixel
from .coordinates import Frame
from .geometry import lattice_points
from .linearized import read_linearized
from .ops import _torch
from .reading import Fill, Mode, PaddingMode, check_reading
from .sampling import read_warp, sample, valid_mask
from .transforms.affine import Affine
from .transforms.base import AbstractTransform
from .transforms.config import TransformLike, check_transform

_FAR = 10.0  # a point beyond is more likely one in pixels
_NOWHERE = 1e4  # where points are sent that the output does not show


@dataclass(frozen=True)
class Warp:
    """What a transformer did to a batch: the output, and what it takes to carry points along."""

    output: Tensor  # (B, C, Ho, Wo)
    theta: Tensor  # (B, num_params)
    transform: AbstractTransform
    image_size: tuple[int, ...]
    size: tuple[int, ...]
    align_corners: bool
    spacing: tuple[float, ...] | None = None  # of the input's pixels, where the transform does not say it itself

    def grid(self) -> Tensor:
        """The sampling positions (B, *size, d), normalized (x, y)."""
        return self.transform.grid(self.theta, self.size, self.frame)

    def map_points(self, points: Tensor) -> Tensor:
        """Normalized points (B or 1, N, d) of the output, where they lie in the input."""
        return self.transform.map_points(self.theta, self._check(points), self.frame)

    def unmap_points(
        self, points: Tensor, *, tolerance: float = 1e-4, missing: Literal["raise", "nan"] = "raise"
    ) -> Tensor:
        """Normalized points (B or 1, N, d) of the input, where they appear in the output."""
        points = self._check(points)
        return self.transform.unmap_points(self.theta, points, self.frame, tolerance=tolerance, missing=missing)

    def map_boxes(self, boxes: Tensor) -> Tensor:
        """Upright boxes (B or 1, N, 2 d) of the output, the upright boxes of the input that hold them."""
        return self.transform.map_boxes(self.theta, self._check(boxes), self.frame)

    def unmap_boxes(self, boxes: Tensor) -> Tensor:
        """Upright boxes (B or 1, N, 2 d) of the input, the upright boxes of the output that hold them."""
        return self.transform.unmap_boxes(self.theta, self._check(boxes), self.frame)

    def mask(self) -> Tensor:
        """Where the output shows the image rather than padding: (B, 1, *size), as `stn.valid_mask`."""
        return valid_mask(self.grid())

    def unwarp(
        self, labels: Tensor, *, mode: Mode = "nearest", padding_mode: PaddingMode = "zeros", fill: Fill = 0.0
    ) -> Tensor:
        """What lies in the frame of the output, such as a label mask (B, C, *size), brought back into that of the input.

        Where no output pixel shows the input there is padding. By the numeric inverse: a warp that folds brings back
        one of its layers.

        Args:
            labels: (B, C, *size), any float type.
            mode, padding_mode, fill: as for `stn.sample`.

        Returns:
            (B, C, *image_size).
        """
        lattice = lattice_points(self.theta.to(coordinate_dtype(self.theta)), self.image_size, self.align_corners)
        found = self.unmap_points(lattice, missing="nan").reshape(-1, *self.image_size, len(self.size))
        return sample(
            labels,
            found.nan_to_num(_NOWHERE),
            mode=mode,
            padding_mode=padding_mode,
            fill=fill,
            align_corners=self.align_corners,
        )

    def _check(self, points: Tensor) -> Tensor:
        """Points or boxes for each image; pixels, which are taken for points far outside of the image, earn a warning."""
        known = points.device.type == "cpu" and not (torch.compiler.is_compiling() or _torch.transforming())
        if known and bool((points.abs() > _FAR).any()):
            warnings.warn(
                f"points: expected normalized coordinates, where the image lies within [-1, 1], got some beyond "
                f"{_FAR:g}; pixels are converted by stn.conventions.pixel_to_normalized",
                stacklevel=3,
            )
        return points.expand(self.theta.shape[0], -1, -1)

    @property
    def frame(self) -> Frame:
        """What the transform was told of the image."""
        return Frame(self.image_size, self.align_corners, self.spacing)

    def outline(self, per_side: int = 1) -> Tensor:
        """The frame of the output as a closed polygon in the input, (B, 4 * per_side + 1, 2) in pixels (x, y)."""
        if len(self.size) != 2:
            raise ValueError(f"outline: expected a transformer of 2D images, got size {self.size}")
        check_number("per_side", per_side, "a positive int", lambda v: isinstance(v, int) and v >= 1)
        t = torch.linspace(-1, 1, per_side + 1, dtype=self.theta.dtype, device=self.theta.device)[:-1]
        one = torch.ones_like(t)
        sides = [torch.stack(side, -1) for side in ((t, -one), (one, t), (-t, one), (-one, -t))]
        frame = torch.cat([*sides, sides[0][:1]])
        return normalized_to_pixel(self.map_points(frame[None]), self.image_size, align_corners=self.align_corners)


class ReadOptions(TypedDict, total=False):
    """How a transformer reads the image; see `SpatialTransformer`."""

    mode: Mode
    padding_mode: PaddingMode
    fill: Fill
    antialias: bool
    gradient: Literal["exact", "linearized"]
    align_corners: bool
    theta_grad_scale: float


class AbstractTransformer(nn.Module, ABC):
    """What all transformers have in common: the family of their warps, and how they read the image."""

    def __init__(
        self,
        transform: TransformLike | None,
        size: tuple[int, ...] | None,
        *,
        mode: Mode = "bilinear",
        padding_mode: PaddingMode = "border",
        fill: Fill = 0.0,
        antialias: bool = False,
        gradient: Literal["exact", "linearized"] = "exact",
        align_corners: bool = False,
        theta_grad_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.reading = check_reading(mode, padding_mode, fill, align_corners)
        check_flag("antialias", antialias)
        check_choice("gradient", gradient, ("exact", "linearized"))
        if antialias and gradient == "linearized":
            raise ValueError("gradient: expected 'exact' with antialias=True, which smooths the image instead")
        check_number(
            "theta_grad_scale", theta_grad_scale, "a finite number of at least 0", lambda v: 0 <= v < float("inf")
        )
        self.transform = Affine() if transform is None else check_transform(transform)
        self.size = None if size is None else check_size(size, self.transform.ndim)
        self.antialias = antialias
        self.gradient = gradient
        self.theta_grad_scale = theta_grad_scale

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """The warped image or images."""

    @abstractmethod
    def localization_networks(self) -> Iterable[nn.Module]:
        """The networks that say theta; `stn.parameter_groups` gives them a learning rate of their own."""

    def __prepare_scriptable__(self) -> nn.Module:
        # What torch.jit.script asks first; what it would say by itself is about a line of ours that it cannot read.
        raise ValueError(
            "script: expected torch.export, stn.export or torch.jit.trace for a model with a spatial transformer, which is no TorchScript, "
            "got torch.jit.script"
        )

    def _predict(self, localizer: nn.Module, image: Tensor, count: int = 1) -> Tensor:
        """What a localizer says, (B, count * num_params)."""
        self._check_image(image)
        theta = localizer(image)
        wanted = (image.shape[0], count * self.transform.num_params)
        if not isinstance(theta, Tensor) or tuple(theta.shape) != wanted:
            times = f"{count} times " if count > 1 else ""
            raise ValueError(
                f"localizer: expected an output of shape {wanted} for {times}{type(self.transform).__name__}, "
                f"got {describe(theta)}"
            )
        if self.theta_grad_scale != 1.0:
            theta = theta.detach() + self.theta_grad_scale * (theta - theta.detach())
        return theta

    def _check_image(self, image: Tensor) -> None:
        check_image(image)
        if image.ndim - 2 != self.transform.ndim:
            raise ValueError(
                f"image: expected one in {self.transform.ndim}D, as {type(self.transform).__name__}, got shape "
                f"{tuple(image.shape)}"
            )

    def _warp(
        self,
        image: Tensor,
        theta: Tensor,
        transform: AbstractTransform,
        size: tuple[int, ...] | None,
        spacing: tuple[float, ...] | None = None,
    ) -> Warp:
        image_size = tuple(image.shape[2:])
        size = size or image_size
        if self.gradient == "linearized" and self.training:
            output = read_linearized(image, theta, size, transform, self.reading, spacing=spacing)
        else:
            output = read_warp(image, theta, size, transform, self.reading, self.antialias, spacing=spacing)
        return Warp(output, theta, transform, image_size, size, self.reading.align_corners, spacing)

    def extra_repr(self) -> str:
        kernel, padding, _, align_corners = self.reading
        shown = [
            f"size={self.size!r}",
            f"mode={kernel!r}",
            f"padding_mode={padding!r}",
            f"align_corners={align_corners}",
        ]
        shown += ["antialias=True"] if self.antialias else []
        return ", ".join(shown + ([] if self.gradient == "exact" else [f"gradient={self.gradient!r}"]))


def check_localizer(localizer: Any) -> nn.Module:
    if not isinstance(localizer, nn.Module):
        raise ValueError(f"localizer: expected a torch.nn.Module, got {describe(localizer)}")
    return localizer


class SpatialTransformer(AbstractTransformer):
    """Looks at an image, decides how to warp it, and warps it.

    Args:
        localizer: any module, image -> theta (B, transform.num_params). End it with `stn.identity_head`, so that the
            network starts with the warp that changes nothing.
        transform: the family of warps, its name or its configuration; `stn.Affine()` unless given.
        size: of the output ([D,] H, W); the input's own unless given.
        mode, padding_mode, fill, align_corners: as for `stn.sample`. The padding is "border" unless given: zeros
            paint black corners that a classifier learns.
        antialias: as for `stn.warp`, for warps that zoom out.
        gradient: "exact", or "linearized": in training, theta's gradient by multi-sampling, which sees further; see
            `stn.linearized_warp`. The output is the same.
        theta_grad_scale: factor on the gradient that enters theta, for localizers that train too fast; forward is
            unchanged.

    Shape: (B, C, [D,] H, W) -> (B, C, *size).

    Raises:
        ValueError: for unknown options, or a localizer of the wrong output width (it says the right one).

    Example:
        >>> import stn
        >>> transformer = SpatialTransformer(stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28)))
        >>> transformer(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 1, 28, 28])

    Source: Jaderberg et al. 2015.
    """

    def __init__(
        self,
        localizer: nn.Module,
        transform: TransformLike | None = None,
        size: tuple[int, ...] | None = None,
        **options: Unpack[ReadOptions],
    ) -> None:
        super().__init__(transform, size, **options)
        self.localizer = check_localizer(localizer)

    def localization_networks(self) -> Iterable[nn.Module]:
        return [self.localizer]

    def theta(self, image: Tensor) -> Tensor:
        """The localizer's parameters for a batch of images: (B, num_params)."""
        return self._predict(self.localizer, image)

    def forward(self, image: Tensor) -> Tensor:
        return as_one_step(self, image) if is_symbolic(image) else self.warp(image).output

    def warp(self, image: Tensor, theta: Tensor | None = None, *, spacing: Sequence[float] | None = None) -> Warp:
        """As `forward`, with theta and what it takes to map points and draw the sampled frame.

        Args:
            image: (B, C, [D,] H, W).
            theta: (B, num_params) to read with, in place of what the localizer says.
            spacing: of the pixels of these images, (x, y[, z]), as for `stn.warp`; where all images have the same, it
                is an option of the transform, `stn.Rigid(3, spacing=(1, 1, 3))`.
        """
        sides = check_spacing(spacing, self.transform.ndim)
        if theta is None:
            theta = self.theta(image)
        else:
            self._check_image(image)
        return self._warp(image, theta, self.transform, self.size, sides)
