"""A run as one file for where there is no `stn`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

import stn.export

from .run.folder import Run, load_run_or_pretrained

FORMATS = ("onnx", "pt2")


class Deployed(nn.Module):
    """The network of a run as it is called elsewhere: images (B, C, H, W) in [0, 1] to the probabilities (B, classes), and to
    what the transformer made of the images (B, C, Ho, Wo), in [0, 1] as well; a control has the probabilities alone."""

    mean: Tensor
    std: Tensor

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model = run.classifier
        for name, values in (("mean", run.facts.mean), ("std", run.facts.std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1))
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits, warp = self.model.look((image - self.mean) / self.std)
        probabilities = logits.softmax(1)
        return (probabilities,) if warp is None else (probabilities, warp.output * self.std + self.mean)


def export(run: str | Path, to: str, out: str | Path | None = None, *, trust: bool = False) -> tuple[Path, float]:
    """Write the network of a run, which takes images in [0, 1] and gives probabilities and what its transformer made of them.

    The names of the classes, the shape of an image and the names of the outputs are in the file's metadata.

    Args:
        to: "onnx" or "pt2".
        out: the file; RUN/model.onnx or RUN/model.pt2 unless given.
        trust: import the code that the run's settings name.

    Returns:
        The file, and the largest difference from the run's network that was found in it.

    Raises:
        ValueError: as `stn.export.onnx` and `stn.export.pt2`.
    """
    if to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(FORMATS)}, got {to!r}")
    loaded = load_run_or_pretrained(run, trust=trust)
    model, facts = Deployed(loaded), loaded.facts
    if out is None:
        loaded.path.mkdir(parents=True, exist_ok=True)
    file = Path(out) if out is not None else loaded.path / f"model.{to}"
    names = ["probabilities", "rectified"][: 1 if loaded.classifier.transformer is None else 2]
    metadata = {name: dataclasses.asdict(facts)[name] for name in ("class_names", "input_shape")} | {"outputs": names}
    example = torch.rand(2, *facts.input_shape, generator=torch.Generator().manual_seed(0))
    if to == "onnx":
        return file, stn.export.onnx(model, file, example, output_names=names, metadata=metadata)
    return file, stn.export.pt2(model, file, example, metadata=metadata)
