"""What is measured: each case with our call, and the same by hand in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import stn
from stn._checks import coordinate_dtype


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, ...]  # (B, C, [D,] H, W)
    size: tuple[int, ...] | None = None  # of the output, the image's own unless given
    kind: str = "affine"  # projective, tps, grid
    mode: str = "bilinear"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    padding_mode: str = "zeros"
    points: int = 5  # control points a side, of a thin plate spline
    bars: tuple[float, float, float] = (1.0, 1.0, 1.0)  # wanted ratios to torch: forward, to theta, to theta and image

    @property
    def out(self) -> tuple[int, ...]:
        return self.size or self.shape[2:]


CASES = (
    Case("256,1,28,28", (256, 1, 28, 28), bars=(5.5, 4, 3.4)),
    Case("128,3,32,32", (128, 3, 32, 32), bars=(4.5, 3.5, 3.5)),
    Case("256,1,60,60 -> 28,28", (256, 1, 60, 60), (28, 28), bars=(5.5, 3.5, 3)),
    Case("64,3,224,224", (64, 3, 224, 224), bars=(6.5, 6, 6)),
    Case("16,64,56,56", (16, 64, 56, 56), bars=(5, 4, 5)),
    Case("8,256,28,28", (8, 256, 28, 28), bars=(7.5, 3.6, 4.5)),
    Case("1,3,1080,1920", (1, 3, 1080, 1920), bars=(8.5, 8, 7)),
    Case("32,3,448,448 -> 224,224", (32, 3, 448, 448), (224, 224), bars=(5, 4, 3.7)),
    Case("1,1,28,28", (1, 1, 28, 28), bars=(5, 2, 2)),
    Case("2,1,128,128,128", (2, 1, 128, 128, 128), bars=(10, 11, 5)),
    Case("TPS, 25 points, 64,3,224,224", (64, 3, 224, 224), kind="tps", bars=(4, 4.5, 4)),
    Case("cubic, 16,3,224,224", (16, 3, 224, 224), mode="bicubic", bars=(3, 3, 3)),
    Case("channels last, 16,64,56,56", (16, 64, 56, 56), channels_last=True, bars=(5.5, 7, 6)),
    Case("projective, 64,3,224,224", (64, 3, 224, 224), kind="projective", bars=(6, 5, 5)),
    Case("grid, 64,3,224,224", (64, 3, 224, 224), kind="grid", bars=(1.5, 1.5, 1.5)),
    Case("bf16, 64,3,224,224", (64, 3, 224, 224), dtype=torch.bfloat16, bars=(7, 5, 5)),
)
QUICK = ("256,1,28,28", "128,3,32,32", "16,64,56,56", "1,1,28,28")

Warp = Callable[[Tensor, Tensor], Tensor]


def thetas(batch: int, d: int) -> Tensor:
    """Rotations within 30 degrees and scales from 0.8 to 1.2, (B, d, d+1)."""
    generator = torch.Generator().manual_seed(0)
    angle = (2 * torch.rand(batch, generator=generator) - 1) * math.pi / 6
    scale = 0.8 + 0.4 * torch.rand(batch, generator=generator)
    matrix = torch.eye(d, d + 1).repeat(batch, 1, 1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = cos, -sin, sin, cos
    matrix[:, :, d] = 0.05 * (torch.rand(batch, d, generator=generator) - 0.5)
    return matrix


def build(case: Case, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Warp, Warp]:
    """image, theta (or grid), our warp, and torch's."""
    batch, size, d = case.shape[0], case.out, len(case.shape) - 2
    image = torch.rand(case.shape, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    if case.channels_last:
        image = image.contiguous(memory_format=torch.channels_last if d == 2 else torch.channels_last_3d)
    image, theta, mode = image.to(device), thetas(batch, d).to(device), case.mode
    shape = [batch, case.shape[1], *size]

    def read(image: Tensor, grid: Tensor) -> Tensor:
        # Half precision in float32: torch 2.13's own grid_sample writes outside of its memory beyond 32767 pixels.
        dtype = coordinate_dtype(image)
        out = F.grid_sample(image.to(dtype), grid.to(dtype), mode, case.padding_mode, align_corners=False)
        return out.to(image.dtype)

    def ours(image: Tensor, theta: Tensor) -> Tensor:
        return stn.warp(image, theta, size, mode=mode, padding_mode=case.padding_mode)  # type: ignore[arg-type]

    plain = F.affine_grid(torch.eye(d, d + 1)[None], [1, 1, *size], align_corners=False).reshape(-1, d).to(device)
    if case.kind == "affine":
        return image, theta, ours, lambda i, t: read(i, F.affine_grid(t, shape, align_corners=False))
    if case.kind == "projective":
        theta = torch.cat([theta, theta.new_tensor([0.05, 0.05, 1.0]).expand(batch, 1, 3)], dim=1)
        homogeneous = torch.cat([plain, torch.ones_like(plain[:, :1])], dim=1)

        def projective(image: Tensor, theta: Tensor) -> Tensor:
            mapped = homogeneous @ theta.transpose(1, 2)
            return read(image, (mapped[..., :2] / mapped[..., 2:]).reshape(batch, *size, 2))

        return image, theta, ours, projective
    if case.kind == "tps":
        transform = stn.transforms.ThinPlateSpline((case.points, case.points))
        theta = (0.05 * torch.randn(batch, transform.num_params, generator=torch.Generator().manual_seed(0))).to(device)
        product = transform.basis(size)[:, : case.points**2].float().to(device)  # what a careful user would keep

        def spline(image: Tensor, theta: Tensor) -> Tensor:
            return read(image, (plain + product @ theta.reshape(batch, -1, 2)).reshape(batch, *size, 2))

        return image, theta, lambda i, t: stn.warp(i, t, size, transform=transform), spline
    grid = F.affine_grid(theta, shape, align_corners=False)
    return image, grid, lambda i, g: stn.sample(i, g), read
