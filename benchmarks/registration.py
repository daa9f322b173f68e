"""Registration beside SimpleITK and kornia's ImageRegistrator, on the same pairs in one process.

    python -m benchmarks.registration [--threads N] [--seeds 0,1,2] [--only CASE] [--json FILE]

Pairs are made, so that the truth is known: a photograph (scikit-learn's, 160 x 240) seen from elsewhere with noise of 0.02, by
an affine map and by a homography; and two phantoms of a head (`examples/register_volume.py`, 1 x 1 x 3 mm and 2 mm), turned by 15
degrees and shifted. The error is the mean distance, over points all over the middle of the fixed image, between where they
are read and where they should be: in pixels of the photograph, in millimetres of the scanner. Each program starts as the images lie
and is set up as its documentation does: SimpleITK by correlation, every pixel, regular steps with scales from physical shift, a
pyramid of 8, 4, 2, 1; kornia with its homography, its default loss and as many levels as there are 16 pixels for, at three
learning rates, of which the best is shown.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stn
from stn import conventions

from .run import processor, versions

Found = Callable[[Tensor], Tensor]  # points (1, N, d) of the fixed image -> of the moving one, in pixels or millimetres
EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def photo_pair(kind: str, seed: int) -> tuple[Tensor, Tensor, Found]:
    photo = example("register_pair").load_photo(None)
    torch.manual_seed(seed)
    size = tuple(photo.shape[2:])
    if kind == "affine":
        theta = torch.eye(2, 3)[None] + 0.12 * (2 * torch.rand(1, 2, 3) - 1)
    else:
        theta = stn.Corners().matrix(0.18 * (2 * torch.rand(1, 8) - 1))
    fixed = stn.warp(photo, theta, padding_mode="border")
    pixel = conventions.theta_to_pixel(theta.double(), size, size)
    return fixed + 0.02 * torch.randn_like(fixed), photo, lambda points: mapped(pixel, points)


def mapped(matrix: Tensor, points: Tensor) -> Tensor:
    if matrix.shape[1] < matrix.shape[2]:
        return stn.geometry.map_affine(matrix, points)
    return stn.geometry.map_projective(matrix, points)


def ours(fixed: Tensor, moving: Tensor, family: Any, worlds: dict[str, Tensor]) -> Found:
    found = stn.register(fixed, moving, family, **worlds)
    if worlds:
        sizes = worlds["moving_world"], found.moving_size, worlds["fixed_world"], found.fixed_size
        matrix = conventions.theta_to_world(found.matrix().double(), *sizes)
    else:
        matrix = conventions.theta_to_pixel(found.matrix().double(), found.moving_size, found.fixed_size)
    return lambda points: mapped(matrix, points)


def simple_itk(fixed: Tensor, moving: Tensor, rigid: bool, worlds: dict[str, Tensor]) -> Found:
    sitk = importlib.import_module("SimpleITK")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())

    def image(tensor: Tensor, world: Tensor | None) -> Any:
        made = sitk.GetImageFromArray(tensor[0].mean(0).numpy())
        if world is not None:
            made.SetSpacing(conventions.spacing_of(world))
            made.SetOrigin(world[:3, 3].tolist())
        return made

    a, b = image(fixed, worlds.get("fixed_world")), image(moving, worlds.get("moving_world"))
    d = a.GetDimension()
    start: Any = (sitk.Euler3DTransform() if d == 3 else sitk.Euler2DTransform()) if rigid else sitk.AffineTransform(d)
    middle = [(n - 1) / 2 for n in a.GetSize()]
    start.SetCenter(a.TransformContinuousIndexToPhysicalPoint(middle))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200, 0.5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([8, 4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4, 2, 1, 0])
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(a, b)

    def find(points: Tensor) -> Tensor:
        return torch.tensor([[found.TransformPoint(p) for p in points[0].tolist()]], dtype=torch.float64)

    return find


def kornia(fixed: Tensor, moving: Tensor, rate: float) -> Found:
    geometry = importlib.import_module("kornia.geometry")
    levels = 1 + max(0, round(math.log2(max(fixed.shape[2:]) / 16)))
    registrator = geometry.ImageRegistrator("homography", pyramid_levels=levels, lr=rate)
    matrix = registrator.register(moving, fixed).detach().double()  # fixed -> moving, -1 and 1 on the pixels' centres
    pixel = conventions.theta_to_pixel(
        stn.geometry.as_projective(matrix), tuple(moving.shape[2:]), tuple(fixed.shape[2:]), align_corners=True
    )
    return lambda points: mapped(pixel, points)


def cases(name: str, seed: int) -> tuple[dict[str, Callable[[], Found]], Found, Tensor, str]:
    """The programs for a pair, the truth, the points at which they are compared, and the unit."""
    if name == "volume":
        scans = example("register_volume")
        torch.manual_seed(seed)
        fixed, _, moving, _ = scans.make_pair(15.0, 0.0, 0.02)
        truth = true_turn(scans, 15.0)
        worlds = {"fixed_world": fixed.world, "moving_world": moving.world}
        points = (60 * torch.rand(1, 200, 3, dtype=torch.float64)) - 30
        family = stn.Rigid(3, spacing=fixed.spacing)
        programs: dict[str, Callable[[], Found]] = {
            "stn": lambda: ours(fixed.data, moving.data, family, worlds),
            "SimpleITK": lambda: simple_itk(fixed.data, moving.data, True, worlds),
        }
        return programs, truth, points, "mm"
    fixed, moving, truth = photo_pair(name, seed)
    h, w = fixed.shape[2:]
    points = (0.15 + 0.7 * torch.rand(1, 200, 2, dtype=torch.float64)) * torch.tensor([w, h], dtype=torch.float64)
    programs = {"stn": lambda: ours(fixed, moving, "affine" if name == "affine" else "corners", {})}
    if name == "affine":
        programs["SimpleITK"] = lambda: simple_itk(fixed, moving, False, {})
    for rate in (1e-3, 3e-3, 1e-2):
        programs[f"kornia, lr {rate:g}"] = lambda rate=rate: kornia(fixed, moving, rate)
    return programs, truth, points, "px"


def true_turn(scans: Any, turn: float) -> Found:
    """Where a point of the first scanner lies in the second: what `make_pair` undoes."""
    angle = math.radians(turn) * torch.nn.functional.normalize(torch.tensor([[0.3, 0.2, 1.0]]), dim=1)
    rotation = stn.Rotation(3).matrix(angle)[0, :, :3].double()
    shift, offset = torch.tensor([4.0, -3, 2]).double(), torch.tensor([20.0, -10, 5]).double()
    return lambda points: points @ rotation + shift + offset


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", choices=["affine", "homography", "volume"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads; {versions()}")
    stn.register(*torch.rand(2, 1, 1, 16, 16), "translation", steps=2)  # what is loaded at the first call
    rows: list[dict[str, Any]] = []
    for name in ("affine", "homography", "volume"):
        if options.only not in (None, name):
            continue
        for seed in map(int, options.seeds.split(",")):
            programs, truth, points, unit = cases(name, seed)
            wanted = truth(points)
            before = float((points - wanted).norm(dim=-1).mean())
            for program, run in programs.items():
                start = time.perf_counter()
                found = run()
                seconds = time.perf_counter() - start
                error = float((found(points) - wanted).norm(dim=-1).mean())
                rows.append(
                    {
                        "case": name,
                        "seed": seed,
                        "program": program,
                        "error": error,
                        "before": before,
                        "seconds": seconds,
                    }
                )
                print(f"{name} {seed} {program:16} {before:8.2f} -> {error:8.3f} {unit}, {seconds:6.1f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main()
