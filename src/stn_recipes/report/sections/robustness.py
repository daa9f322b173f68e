"""How far the test images may be warped further."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

import stn
from stn import viz

from ...data.registry import get
from ..markup import svg
from ..study import Study, statistics
from .base import Part, Section

ROTATIONS = tuple(range(-90, 91, 15))  # degrees
SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6)
SHIFTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # of the width
MAX_PIXELS = 1000 * 32 * 32  # images times their area, at most

Sweeps = dict[str, tuple[Sequence[float], dict[str, list[float]]]]  # title -> positions, accuracies of each network


def _make(study: Study) -> Part | None:
    if not study.networks:
        return None
    sweeps, count = sweep(study)
    charts = [svg(viz.robustness({title: one}), f"test accuracy against {title}") for title, one in sweeps.items()]
    background = "black" if get(study.config.dataset).background == "zeros" else "continued from the border"
    values = {"svgs": charts, "images": count, "background": background, "control": study.control is not None}
    return Part(values, {"robustness": viz.robustness(sweeps)})


def sweep(study: Study) -> tuple[Sweeps, int]:
    """Accuracy under a further warp of the test images, and how many of them were used."""
    assert study.data is not None
    _, height, width = study.run.facts.input_shape
    total = len(study.data)
    count = min(total, 1000, max(200, MAX_PIXELS // (height * width)))
    # Spread over the set: folders of images come class by class.
    batches = list(study.batches(torch.linspace(0, total - 1, count).round().long().tolist(), 250))
    mean, std = statistics(study.run)
    padding = get(study.config.dataset).background
    family = stn.Similarity()

    def accuracies(degrees: float = 0.0, scale: float = 1.0, shift: float = 0.0) -> list[float]:
        correct = [0] * len(study.networks)
        for images, labels in batches:
            if (degrees, scale, shift) != (0.0, 1.0, 0.0):
                # Shifts go to eight sides in turn.
                towards = torch.arange(len(images)) * (math.pi / 4)
                theta = torch.empty(len(images), 4)
                theta[:, 0], theta[:, 1] = math.radians(degrees), -math.log(scale)
                theta[:, 2], theta[:, 3] = 2 * shift * towards.cos(), 2 * shift * towards.sin() * width / height
                images = (stn.warp(images * std + mean, theta, transform=family, padding_mode=padding) - mean) / std
            for i, network in enumerate(study.networks):
                correct[i] += int((network.model(network.normalize(images)).argmax(1) == labels).sum())
        return [value / count for value in correct]

    sweeps = {
        "rotation (degrees, counterclockwise)": (ROTATIONS, [accuracies(degrees=v) for v in ROTATIONS]),
        "scale": (SCALES, [accuracies(scale=v) for v in SCALES]),
        "shift (share of the width)": (SHIFTS, [accuracies(shift=v) for v in SHIFTS]),
    }
    names = [network.name for network in study.networks]
    return {
        title: (positions, dict(zip(names, map(list, zip(*values, strict=True)), strict=True)))
        for title, (positions, values) in sweeps.items()
    }, count


ROBUSTNESS = Section("robustness", "Robustness", _make, figures=("robustness",))
