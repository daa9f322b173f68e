"""What distorts training images: ours beside kornia's and albumentations', on the same images in one process.

    pip install --no-deps kornia kornia_rs "albumentations==2.0.8" "albucore==0.0.24" opencv-python-headless
    python -m benchmarks.pipeline [--threads N] [--seconds S]

Each is given what it is made for: ours and kornia a batch of bytes (B, C, H, W) that becomes floats on the way,
albumentations one image (H, W, C) of bytes after the other, which become a batch of floats at the end. Random numbers
are drawn on the way as well. The distributions are alike, their draws are not, so images are compared by eye alone.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stn_recipes.data import distortions

from .run import measure, processor

CASES = ((128, 1, 28, 28), (128, 3, 32, 32), (32, 3, 224, 224))
Run = Callable[[], Tensor]


def ours(images: Tensor) -> dict[str, Run]:
    drawn = iter(range(1 << 30))

    def one(name: str, **options: object) -> Run:
        distortion = distortions.get(name, **options)

        def run() -> Tensor:
            random = distortions.draw(len(images), distortion.num_random, seed=0, stream=0, epoch=next(drawn))
            return distortion(images.float().div_(255), random)

        return run

    return {"affine": one("affine", padding_mode="border"), "projective": one("p", canvas=1.0), "elastic": one("e")}


def of_kornia(images: Tensor) -> dict[str, Run]:
    augmentation = importlib.import_module("kornia.augmentation")
    affine = augmentation.RandomAffine(10.0, (2 / 28, 2 / 28), (0.9, 1.1), p=1.0, padding_mode="border")
    projective = augmentation.RandomPerspective(0.5, p=1.0)
    elastic = augmentation.RandomElasticTransform(p=1.0)
    layers = {"affine": affine, "projective": projective, "elastic": elastic}
    return {name: lambda layer=layer: layer(images.float().div_(255)) for name, layer in layers.items()}


def of_albumentations(images: Tensor) -> dict[str, Run]:
    library = importlib.import_module("albumentations")
    importlib.import_module("cv2").setNumThreads(torch.get_num_threads())
    affine = library.Affine(
        (0.9, 1.1), {"x": (-2 / 28, 2 / 28), "y": (-2 / 28, 2 / 28)}, rotate=(-10, 10), p=1.0, border_mode=1
    )
    layers = {"affine": affine, "projective": library.Perspective(p=1.0), "elastic": library.ElasticTransform(p=1.0)}
    arrays = [np.ascontiguousarray(image) for image in images.permute(0, 2, 3, 1).numpy()]

    def run(layer: Callable[..., dict[str, np.ndarray]]) -> Tensor:
        batch = np.stack([layer(image=image)["image"] for image in arrays])
        return torch.from_numpy(batch).permute(0, 3, 1, 2).float().div_(255)

    return {name: lambda layer=layer: run(layer) for name, layer in layers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| images | distortion | stn, images per second | kornia | albumentations |\n|---|---|---|---|---|")
    for shape in CASES:
        images = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255).byte()
        found = {"stn": ours(images)}
        for name, make in (("kornia", of_kornia), ("albumentations", of_albumentations)):
            try:
                found[name] = make(images)
            except ImportError as error:
                print(f"{name} is left out: {error}")
        for distortion in found["stn"]:
            runs = {name: of[distortion] for name, of in found.items()}
            for name, run in runs.items():
                assert run().shape == shape, name
            rates = {name: 1e3 * shape[0] / time["best"] for name, time in measure(runs, arguments.seconds).items()}
            others = (f"{rates[n]:,.0f} ({rates['stn'] / rates[n]:.1f})" if n in rates else "-" for n in ("kornia", "albumentations"))  # fmt: skip
            print(
                f"| {','.join(map(str, shape))} | {distortion} | {rates['stn']:,.0f} | {' | '.join(others)} |",
                flush=True,
            )
    print(f"\nIn brackets: ours over theirs. {processor()}, {arguments.threads} threads, torch {torch.__version__}.")


if __name__ == "__main__":
    main()
