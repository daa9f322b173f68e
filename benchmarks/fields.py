"""Displacement and velocity fields beside an affine warp of the same images, and beside MONAI's and voxelmorph's layers.

    python -m benchmarks.fields [--rounds N] [--threads N]

Forward, and with the gradient of theta, integration, lattice and reading included; `steps` of scaling and squaring are 7 everywhere.
Fields and images are smooth: five random numbers along each axis, linear in between. Times are the processor's, the least of rounds in turns, in
one process. MONAI (`DVF2DDF`, `Warp`) and voxelmorph (`IntegrateVelocityField`, `SpatialTransformer`) are measured where they can be
imported; they have no lattice of their own, so that only dense fields compare. Before they are timed, their images are compared with
ours: they start with the velocity, not with the midpoint rule, so that they are near and not the same.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import stn

from .families import best
from .run import steps

# The image, and the field's lattice.
CASES = (
    ((8, 3, 128, 128), (17, 33)),
    ((8, 3, 256, 256), (8, 8)),
    ((8, 3, 256, 256), (64, 64)),
    ((8, 3, 256, 256), (256, 256)),
    ((2, 1, 128, 128, 128), (32, 32, 32)),
    ((2, 1, 128, 128, 128), (128, 128, 128)),
)
STEPS = 7
Layer = Callable[[Tensor, Tensor], Tensor]  # of the image and velocities (B, d, *size), in pixels, ordered as the axes


def smooth(batch: int, channels: int, size: tuple[int, ...]) -> Tensor:
    d = len(size)
    coarse = torch.randn(batch, channels, *[5] * d)
    return F.interpolate(coarse, size, mode="bilinear" if d == 2 else "trilinear", align_corners=True)


def peers() -> dict[str, Layer]:
    """The layers that can be imported here."""
    found: dict[str, Layer] = {}
    for backend in ("VXM_BACKEND", "NEURITE_BACKEND"):
        os.environ.setdefault(backend, "pytorch")
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.suppress(ImportError):
            blocks = importlib.import_module("monai.networks.blocks")
            follow, warp = blocks.DVF2DDF(STEPS, padding_mode="border"), blocks.Warp(padding_mode="zeros")
            found["MONAI"] = lambda image, velocity: warp(image, follow(velocity))
        with contextlib.suppress(ImportError):
            modules = importlib.import_module("voxelmorph.nn.modules")
            integrate, read = modules.IntegrateVelocityField(steps=STEPS), modules.SpatialTransformer()
            found["voxelmorph"] = lambda image, velocity: read(image, integrate(velocity))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    others = peers()
    print(
        f"| image | family | forward, ms | / affine | {' | '.join(f'{name} / ours' for name in others)} "
        f"| to theta, ms | / affine | {' | '.join(f'{name} / ours' for name in others)} |\n"
        f"|{'---|' * (6 + 2 * len(others))}"
    )
    for shape, size in CASES:
        torch.manual_seed(0)
        d, dense = len(size), size == shape[2:]
        image, cotangent = smooth(*shape[:2], shape[2:]), torch.randn(shape)
        velocity = 0.15 * smooth(shape[0], d, size).movedim(1, -1).contiguous()  # (B, *size, d), normalized
        matrix = stn.Affine(d).identity() + 0.05 * torch.randn(shape[0], stn.Affine(d).num_params)
        for family in (stn.DisplacementField(size), stn.VelocityField(size, steps=STEPS)):
            # As the peers', the borders of image and field are the centres of their border pixels.
            calls = [
                steps(image, theta, lambda i, t, f=f: stn.warp(i, t, transform=f, align_corners=True), cotangent)
                for theta, f in ((matrix, stn.Affine(d)), (velocity.flatten(1), family))
            ]
            if dense and isinstance(family, stn.VelocityField):
                half = torch.tensor([(n - 1) / 2 for n in size]).view(-1, *[1] * d)
                theirs = (velocity.flip(-1).movedim(-1, 1) * half).contiguous()
                ours = stn.warp(image, velocity.flatten(1), transform=family, align_corners=True)
                for name, layer in others.items():
                    off = (layer(image, theirs) - ours).abs().mean()
                    assert off < 0.1, f"{name}: expected nearly our image, off by {off:.3f} on the mean"
                    calls.append(steps(image, theirs, layer, cotangent))
            row = f"| {','.join(map(str, shape))} | {type(family).__name__}({size}) |"
            for step in range(2):
                affine, ours_ms, *rest = best([call[step] for call in calls], arguments.rounds)
                ratios = " | ".join(f"{ms / ours_ms:.1f}" for ms in rest) or " | ".join("" for _ in others)
                row += f" {ours_ms:.2f} | {ours_ms / affine:.2f} | {ratios} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
