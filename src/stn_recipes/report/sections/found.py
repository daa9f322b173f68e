"""What images have in common: the windows that were found on them."""

from __future__ import annotations

import dataclasses

from stn import viz
from stn.models import Colocalizer

from ...run.colocalize import frames, overlap
from ..markup import points, uri, view
from ..study import Study, statistics
from .base import Part, Section
from .headline import duration, interval

COUNT = 24  # images


def _make(study: Study) -> Part | None:
    model, data, facts = study.model, study.data, study.run.facts
    if not isinstance(model, Colocalizer) or data is None:
        return None
    images, boxes = data[list(range(len(data)))]
    warp = model.transformer.warp(images)
    overlaps = overlap(frames(model, images), boxes)
    share = float((overlaps > 0.5).double().mean())
    worst = overlaps.argsort(stable=True)[: COUNT // 2].tolist()  # missed ones, if there are any
    shown = worst + [i for i in range(len(data)) if i not in worst][: COUNT - len(worst)]
    mean, std = statistics(study.run)
    outlines = viz.frame_outlines(warp)
    margin = viz.frame_margin(outlines, warp.image_size)
    before, after = images * std + mean, warp.output * std + mean
    cases = [
        {
            "before": uri(before[i]),
            "after": uri(after[i]),
            "outline": points(outlines[i]),
            "corner": outlines[i][0].tolist(),
            "moving": None,
            "overlap": float(overlaps[i]),
        }
        for i in shown
    ]
    figure = viz.before_after(
        images[shown],
        dataclasses.replace(warp, output=warp.output[shown], theta=warp.theta[shown]),
        [f"{one['overlap']:.2f}" for one in cases],
        mean=facts.mean,
        std=facts.std,
    )
    height, width = warp.image_size
    result = study.run.result
    values = {
        "share": share,
        "interval": interval(share, len(data)),
        "images": len(data),
        "missed": int((overlaps <= 0.5).sum()),
        "overlap": float(overlaps.mean()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "time": duration(result.train_seconds) if result else None,
        "cases": cases,
        "margin": margin,
        "view": view(height, width, margin),
        "aspect": f"{width} / {height}",
    }
    return Part(values, {"found": figure})


FOUND = Section("found", "Found", _make, figures=("found",), tasks=("colocalize",))
