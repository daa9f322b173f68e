"""Parametrizations of rotations about the centre. Each turns numbers of theta into rotation matrices, and back.

A rotation is written in the space of the pixels, where the turns of the first kind go from x to y. Rotation vectors:
the axis times the angle in radians, right-handed about (x, y, z), so that an axis along z turns x to y as the angle of a
2D rotation does.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Rotations(Protocol):
    """Numbers (B, n) for rotations; n = 0 for families that do not turn."""

    n: int
    names: tuple[str, ...]

    def identity(self) -> list[float]: ...
    def matrix(self, turn: Tensor) -> Tensor: ...
    def from_matrix(self, rotation: Tensor) -> Tensor: ...
    def inverse(self, turn: Tensor) -> Tensor: ...
    def compose(self, a: Tensor, b: Tensor) -> Tensor: ...


class Angle:
    """In 2D: the angle in radians."""

    n = 1
    names: tuple[str, ...] = ("angle",)

    def identity(self) -> list[float]:
        return [0.0]

    def matrix(self, turn: Tensor) -> Tensor:
        cos, sin = turn.cos(), turn.sin()
        return torch.stack([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)], dim=1)

    def from_matrix(self, rotation: Tensor) -> Tensor:
        return torch.atan2(rotation[:, 1, 0] - rotation[:, 0, 1], rotation[:, 0, 0] + rotation[:, 1, 1])[:, None]

    def inverse(self, turn: Tensor) -> Tensor:
        return -turn

    def compose(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class AxisAngle:
    """In 3D: the axis times the angle, a vector whose length is at most pi where it comes from a matrix."""

    n = 3
    names: tuple[str, ...] = ("turn x", "turn y", "turn z")

    def identity(self) -> list[float]:
        return [0.0] * 3

    def matrix(self, turn: Tensor) -> Tensor:
        """Rodrigues' formula, with a series where the angle is small: every derivative is finite at no turn."""
        square = turn.square().sum(1)[:, None, None]
        series = square < 1e-3
        angle = torch.where(series, torch.ones_like(square), square).sqrt()
        half = torch.sin(angle / 2) / angle
        first = torch.where(series, 1 - square / 6 * (1 - square / 20 * (1 - square / 42)), angle.sin() / angle)
        second = torch.where(series, (1 - square / 12 * (1 - square / 30 * (1 - square / 56))) / 2, 2 * half * half)
        x, y, z = turn.unbind(1)
        nil = torch.zeros_like(x)
        cross = torch.stack([nil, -z, y, z, nil, -x, -y, x, nil], dim=1).reshape(-1, 3, 3)
        square_of_cross = turn[:, :, None] * turn[:, None, :] - square * torch.eye(
            3, dtype=turn.dtype, device=turn.device
        )
        return torch.eye(3, dtype=turn.dtype, device=turn.device) + first * cross + second * square_of_cross

    def from_matrix(self, rotation: Tensor) -> Tensor:
        """By the unit quaternion, so that half turns are as exact as small ones."""
        xx, yy, zz = rotation.diagonal(dim1=1, dim2=2).unbind(1)
        (xy, yx), (xz, zx), (yz, zy) = ((rotation[:, i, j], rotation[:, j, i]) for i, j in ((0, 1), (0, 2), (1, 2)))
        rows = [  # 4 q q^T of the quaternion q = (w, x, y, z)
            [1 + xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz],
        ]
        products = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
        largest = products.diagonal(dim1=1, dim2=2).argmax(1)
        quaternion = products.gather(1, largest[:, None, None].expand(-1, 1, 4))[:, 0]
        quaternion = quaternion / quaternion.norm(dim=1, keepdim=True)
        quaternion = torch.where(quaternion[:, :1] < 0, -quaternion, quaternion)
        real, vector = quaternion[:, :1], quaternion[:, 1:]
        square = vector.square().sum(1, keepdim=True)
        small = square < 1e-12
        length = torch.where(small, torch.ones_like(square), square).sqrt()
        return vector * torch.where(small, 2 / real.clamp_min(0.5), 2 * torch.atan2(length, real) / length)

    def inverse(self, turn: Tensor) -> Tensor:
        return -turn

    def compose(self, a: Tensor, b: Tensor) -> Tensor:
        return self.from_matrix(product(self.matrix(a), self.matrix(b)))


class SixD:
    """In 3D: two vectors that are made the first two columns by Gram and Schmidt. Continuous in the rotation, as no
    three or four numbers can be; any two vectors that are not parallel will do.

    Source: Zhou et al. 2019.
    """

    n = 6
    names: tuple[str, ...] = tuple(f"turn {i}" for i in range(6))

    def identity(self) -> list[float]:
        return [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]

    def matrix(self, turn: Tensor) -> Tensor:
        first = torch.nn.functional.normalize(turn[:, :3], dim=1)
        second = turn[:, 3:] - (first * turn[:, 3:]).sum(1, keepdim=True) * first
        second = torch.nn.functional.normalize(second, dim=1)
        return torch.stack([first, second, torch.linalg.cross(first, second)], dim=2)

    def from_matrix(self, rotation: Tensor) -> Tensor:
        return rotation[:, :, :2].transpose(1, 2).flatten(1)

    def inverse(self, turn: Tensor) -> Tensor:
        return self.from_matrix(self.matrix(turn).transpose(1, 2))

    def compose(self, a: Tensor, b: Tensor) -> Tensor:
        return self.from_matrix(product(self.matrix(a), self.matrix(b)))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of small matrices (B, n, n), by multiply and add: autocast would run matmul in half precision."""
    return (a[:, :, :, None] * b[:, None, :, :]).sum(2)
