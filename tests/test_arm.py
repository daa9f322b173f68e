"""The native kernels on ARM: cross-compiled, and run in an emulator against the reference. Debian and Ubuntu have both:
`apt-get install g++-aarch64-linux-gnu qemu-user`."""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stn
from stn.ops import use_backend

CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LIBRARIES = "/usr/aarch64-linux-gnu"
HERE = Path(__file__).parent
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8]  # as csrc/api.h numbers them
WHAT = ("value", "coordinates", "image")
KINDS = {"affine": 0, "projective": 1, "grid": 3}
MODES, PADDINGS = ("nearest", "bilinear", "bicubic"), ("zeros", "border", "reflection", "circular", "constant")
# Of the largest of 1 and the values.
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-11, torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.uint8: 1.0}

pytestmark = [
    pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")
    for name in (CROSS, EMULATOR, "cmake", "ninja")
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arm")
    configure = [
        "cmake", "-G", "Ninja", "-S", HERE.parent / "src/stn/ops/csrc", "-B", folder, f"-DSTN_PROGRAM={HERE / 'replay.cpp'}",
        "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={CROSS}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return folder / "_native"


@dataclass(frozen=True)
class Case:
    kind: str
    d: int
    dtype: torch.dtype
    mode: str
    padding: str
    align: bool
    last: bool = False

    @property
    def working(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def problem(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """An image, coordinates and the gradient of the output, of numbers that their types have; and the fill."""
        random = torch.Generator().manual_seed(0)
        size, out = ((7, 9), (5, 19)) if self.d == 2 else ((4, 5, 6), (3, 4, 5))
        image = torch.randn(2, 3, *size, generator=random, dtype=torch.float64)
        image = ((image + 4) * 30).clamp(0, 255) if self.dtype == torch.uint8 else image
        values = torch.eye(self.d, self.d + 1, dtype=torch.float64).expand(2, -1, -1)
        values = values + 0.3 * torch.randn(values.shape, generator=random, dtype=torch.float64)
        if self.kind == "projective":
            last = torch.tensor([*(0.2, -0.1, 0.1)[: self.d], 1.0], dtype=torch.float64)
            values = torch.cat([values, last.expand(2, 1, -1)], 1)
        elif self.kind == "grid":
            values = 3 * torch.rand(2, *out, self.d, generator=random, dtype=torch.float64) - 1.5
        grad = torch.randn(2, 3, *out, generator=random, dtype=torch.float64)
        rounded = image.to(self.dtype), values.to(self.working), grad.to(self.dtype)
        return *rounded, torch.tensor([0.5, -1.0, 2.0], dtype=self.working)

    def wanted(self) -> list[Tensor]:
        image, values, grad, fill = self.problem()
        image, values = image.double().requires_grad_(), values.double().requires_grad_()
        options = {"mode": self.mode, "padding_mode": self.padding, "align_corners": self.align}
        options |= {"fill": fill.double()} if self.padding == "constant" else {}
        with use_backend("reference"):
            read = stn.sample(image, values, **options) if self.kind == "grid" else stn.warp(image, values, grad.shape[2:], **options)  # fmt: skip
        wanted = torch.autograd.grad(read, (values, image), grad.double(), materialize_grads=True, allow_unused=True)
        return [read.detach(), *wanted]

    def calls(self) -> Iterator[tuple[int, bytes, torch.dtype, tuple[int, ...]]]:
        """What is asked for, as csrc/api.h numbers it; the case as the program reads it; type and shape of the result."""
        image, values, grad, fill = self.problem()
        turn = (lambda t: t.movedim(1, -1)) if self.last else (lambda t: t)
        image, grad = turn(image), turn(grad)
        background = [fill] if self.padding == "constant" else []
        asked = [(0, [image, values, *background], grad)]
        if self.dtype != torch.uint8:
            asked += [(1, [image, values, grad, *background], values)] if self.mode != "nearest" else []
            asked += [(2, [values, grad], image.to(self.working))]
        for what, given, like in asked:
            numbers = [
                what,
                KINDS[self.kind],
                MODES.index(self.mode),
                PADDINGS.index(self.padding),
                self.align,
                self.last,
                1,
            ]
            numbers.append(len(given))
            for array in (*given, like):
                numbers += [TYPES.index(array.dtype), array.ndim, *array.shape]
            content = struct.pack(f"{len(numbers)}q", *numbers)
            content += b"".join(bytes(array.contiguous().view(torch.uint8).flatten().tolist()) for array in given)
            yield what, content, like.dtype, tuple(like.shape)


def cases() -> list[Case]:
    product = list(itertools.product(MODES, PADDINGS, (False, True)))
    found = [
        Case(kind, 2, dtype, *rest, last=bool(number % 2))
        for kind, dtype in (("affine", torch.float32), ("projective", torch.float64), ("grid", torch.float32))
        for number, rest in enumerate(product)
    ]
    found += [Case(kind, 3, torch.float32, mode, padding, False) for kind in KINDS for mode, padding in zip(MODES * 2, PADDINGS, strict=False)]  # fmt: skip
    return found + [
        Case("affine", 2, dtype, mode, "border", False, last)
        for dtype in (torch.bfloat16, torch.float16, torch.uint8)
        for mode, last in (("bilinear", False), ("bicubic", True), ("nearest", False))
    ]


def test_every_case_equals_the_reference(program: Path) -> None:
    every = [(case, call) for case in cases() for call in case.calls()]
    content = b"".join(call[1] for _, call in every)
    done = subprocess.run([EMULATOR, "-L", LIBRARIES, program], input=content, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    assert len(every) > 200
    wanted = {case: case.wanted() for case in cases()}
    place = 0
    for case, (what, _, dtype, shape) in every:
        bytes_of = torch.Size(shape).numel() * dtype.itemsize
        got = torch.frombuffer(bytearray(done.stdout[place : place + bytes_of]), dtype=dtype).view(shape).double()
        place += bytes_of
        other = wanted[case][what]
        got = got.movedim(-1, 1) if case.last and what != 1 else got
        difference = (got - other).abs().max() / max(
            1.0, float(other.abs().max()) if case.dtype != torch.uint8 else 1.0
        )
        assert difference <= TOLERANCE[case.dtype], (WHAT[what], case)
    assert place == len(done.stdout)
