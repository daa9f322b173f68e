"""What the localizer predicts for the test images."""

from __future__ import annotations

import torch
from torch import Tensor

import stn
from stn import viz

from ..markup import svg
from ..study import Study
from .base import Part, Section


def _make(study: Study) -> Part | None:
    if study.outcome is None or study.outcome.theta is None or study.model is None or study.model.transformer is None:
        return None
    transformer, theta = study.model.transformer, study.outcome.theta
    transform = transformer.transform
    names, identity = viz.theta_names(transform), transform.identity()
    finite = theta[theta.isfinite().all(1)]
    shown = list(range(len(names)))
    if len(shown) > viz.MAX_HISTOGRAMS:
        shown = sorted(finite.std(0, correction=0).argsort(descending=True)[: viz.MAX_HISTOGRAMS].tolist())
    rows = []
    for i in shown:
        low, high = finite[:, i].quantile(torch.tensor([0.05, 0.95])).tolist()
        mean, spread = float(finite[:, i].mean()), float(finite[:, i].std(correction=0))
        rows.append([names[i], *(f"{v:.3f}" for v in (float(identity[i]), mean, spread, low, high))])
    _, height, width = study.run.facts.input_shape
    values = {
        "svgs": [svg(viz.theta_histograms(finite, transform, params=[i]), f"histogram of {names[i]}") for i in shown],
        "rows": rows,
        "all": len(names),
        "words": in_words(transformer, finite, (height, width)),
    }
    return Part(values, {"theta": viz.theta_histograms(theta, transform)})


def in_words(transformer: stn.SpatialTransformer, theta: Tensor, image_size: tuple[int, int]) -> dict[str, str] | None:
    """Turn and magnification of affine warps, in the terms of the picture."""
    if transformer.transform.kind != "affine":
        return None
    align_corners = transformer.reading.align_corners
    m = transformer.transform.matrix(theta, stn.Frame(image_size, align_corners))
    half = m.new_tensor(stn.geometry.extent(image_size, align_corners=align_corners))
    linear = m[:, :, :2] * half[:, None] / half
    turn = torch.atan2(linear[:, 1, 0] - linear[:, 0, 1], linear[:, 0, 0] + linear[:, 1, 1]).rad2deg()
    zoom = torch.linalg.det(linear.double()).abs().clamp_min(1e-12).rsqrt()
    at = torch.tensor([0.05, 0.95], dtype=torch.float64)
    return {
        "turn": _range(*turn.double().quantile(at).tolist(), digits=0, unit="°"),
        "zoom": _range(*zoom.quantile(at).tolist(), digits=2, unit=""),
    }


def _range(low: float, high: float, *, digits: int, unit: str) -> str:
    ends = [f"{round(value, digits) + 0.0:.{digits}f}{unit}".replace("-", "−") for value in (low, high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


THETA = Section("theta", "Theta", _make, figures=("theta",))
