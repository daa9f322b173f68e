"""The same images after each epoch."""

from __future__ import annotations

import torch

from stn import viz

from ..markup import points, uri, view
from ..study import Study, statistics
from .base import Part, Section

COLUMNS = 9
LEADS = {
    "classify": "The same validation images, as the transformer handed them to the classifier after each epoch; at the start it "
    "changes nothing.",
    "colocalize": "The same images, as the transformer handed them to the encoder after each epoch; at the start its window is "
    "in the middle.",
}


def _make(study: Study) -> Part | None:
    kept = study.run.filmstrip()
    if kept is None or study.model is None or study.model.transformer is None:
        return None
    transformer, (images, thetas, epochs) = study.model.transformer, kept
    mean, std = statistics(study.run)
    last = len(epochs) - 1
    # Closer at the start, where most happens.
    columns = sorted({round(last * (i / (COLUMNS - 1)) ** 1.6) for i in range(COLUMNS)})
    height, width = images.shape[2:]
    warps = [transformer.warp(images, theta) for theta in thetas]
    outlines = torch.stack([viz.frame_outlines(warp) for warp in warps])  # (E, N, K, 2)
    margin = viz.frame_margin(outlines.flatten(0, 1), (height, width))
    rows = []
    for i, image in enumerate(images * std + mean):
        paths = [points(outlines[e, i]) for e in range(len(epochs))]
        rows.append(
            {
                "before": uri(image),
                "outline": paths[-1],
                "corner": outlines[-1, i, 0].tolist(),
                # The last stays for a while.
                "moving": ";".join(paths + paths[-1:] * max(2, len(paths) // 3)) if last else None,
                "frames": [uri((warps[e].output[i : i + 1] * std + mean)[0]) for e in columns],
            }
        )
    shown = [int(epochs[e]) for e in columns]
    frames = torch.stack([warps[e].output for e in columns])
    facts = study.run.facts
    figure = viz.filmstrip(frames, shown, images, mean=facts.mean, std=facts.std)
    values = {
        "lead": LEADS[study.config.task],
        "epochs": shown,
        "rows": rows,
        "margin": margin,
        "view": view(height, width, margin),
        "aspect": f"{width} / {height}",
        "out_aspect": f"{warps[0].size[1]} / {warps[0].size[0]}",
        "seconds": f"{min(max(0.3 * len(epochs), 3), 12):.1f}",
    }
    return Part(values, {"filmstrip": figure})


FILM = Section("film", "Over the epochs", _make, figures=("filmstrip",), tasks=("classify", "colocalize"))
