"""How long one image takes, in eager mode, compiled, by AOTInductor, as a portable program and in ONNX Runtime:

    python -m benchmarks.latency [--threads 1] [--rounds 200]

The roads take turns, call by call, so that what else the machine does is everybody's; the figure is the median.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import stn
import stn.export
from stn import models


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """By name, a network and one image for it."""
    torch.manual_seed(0)
    tutorial = models.create("mnist_tutorial", transform="affine").eval()
    spline = models.create("cifar10_small", transform="tps").eval()
    transform = stn.Affine()
    localizer = stn.ConvLocalizer(3, transform, image_size=(224, 224))
    alone = stn.SpatialTransformer(localizer, transform).eval()
    shapes = [models.NETWORKS[name].in_shape for name in ("mnist_tutorial", "cifar10_small")]
    return {
        "mnist_tutorial, affine": (tutorial, torch.rand(1, *shapes[0])),
        "cifar10_small, tps": (spline, torch.rand(1, *shapes[1])),
        "affine transformer, 224 x 224": (alone, torch.rand(1, 3, 224, 224)),
    }


def roads(model: nn.Module, image: Tensor, folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """Every way to run a network on an image, compiled and warm."""
    import onnxruntime

    program = stn.export.program(model, image)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "compiled.pt2"))
    ahead, portable = torch._inductor.aoti_load_package(package), program.module()
    compiled = torch.compile(model)
    stn.export.onnx(model, folder / "network.onnx", image)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "network.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    found: dict[str, Callable[[], object]] = {
        "eager": lambda: model(image),
        "eager, portable program": lambda: portable(image),
        "torch.compile": lambda: compiled(image),
        "AOTInductor": lambda: ahead(image),
        "ONNX Runtime": lambda: session.run(None, feed),
    }
    for run in found.values():
        for _ in range(5):
            run()
    return found


def measure(found: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of each road, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, run in found.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the latency of one image on every road.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    heads: list[str] = []
    for name, (model, image) in networks().items():
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            measured = measure(roads(model, image, Path(folder), arguments.threads), arguments.rounds)
        if not heads:
            heads = list(measured)
            print("| one image, ms | " + " | ".join(heads) + " |\n|---|" + "--:|" * len(heads))
        print(f"| {name} | " + " | ".join(f"{measured[head]:.2f}" for head in heads) + " |", flush=True)


if __name__ == "__main__":
    main()
