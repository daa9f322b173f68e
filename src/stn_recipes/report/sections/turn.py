"""Test images under sliders: a lattice of further warps, looked at by the networks in advance."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import stn
from stn import viz

from ...data.registry import get
from ...motion import moved_theta
from ..markup import view
from ..study import Network, Study, statistics
from .base import Part, Section
from .cases import choose

ROTATIONS = tuple(range(-90, 91, 10))  # degrees, counterclockwise
SCALES = (0.6, 0.8, 1.0, 1.2, 1.4)
SHIFTS = (-0.2, -0.1, 0.0, 0.1, 0.2)  # of the width, to the right
COUNT = 4  # images
SIDE = 40  # pixels of a picture, at most
BUDGET = 1_500_000  # bytes of all pictures as they stand in the page, at most
QUALITIES = (80, 60, 40, 20, 5)  # of WebP; the first that keeps the budget
BENT = 4  # points of each side of a frame that is not straight


def _make(study: Study) -> Part | None:
    outcome, model = study.outcome, study.model
    if outcome is None or model is None:
        return None
    chosen = choose(outcome)["typical"][:COUNT]
    images, labels = next(study.batches(chosen, COUNT))
    shots = [look(study, images[i : i + 1]) for i in range(len(images))]
    names = study.run.facts.class_names
    height, width = images.shape[2:]
    outlines = [shot["outlines"] for shot in shots if shot["outlines"] is not None]
    margin = viz.frame_margin(torch.cat(outlines), (height, width)) if outlines else 0.0
    befores, afters = pictures([shot["before"] for shot in shots], [shot["after"] for shot in shots])
    cards = [
        {
            "truth": int(label),
            "before": before,
            "after": after,
            # Tenths of a pixel: closer than the line that is drawn.
            "outlines": None
            if shot["outlines"] is None
            else shot["outlines"].flatten(1).mul(10).round().int().tolist(),
            "said": shot["said"],
        }
        for label, before, after, shot in zip(labels, befores, afters, shots, strict=True)
    ]
    values = {
        "data": {"rotations": ROTATIONS, "scales": SCALES, "shifts": SHIFTS, "names": names, "cards": cards},
        "sliders": [
            ("rotation", "Rotation", ROTATIONS, 0),
            ("scale", "Scale", SCALES, 1.0),
            ("shift", "Shift", SHIFTS, 0.0),
        ],
        "count": len(cards),
        "control": study.control is not None,
        "transformed": bool(outlines),
        "margin": margin,
        "view": view(height, width, margin),
        "aspect": f"{width} / {height}",
        "out_aspect": "1 / 1" if shots[0]["after"] is None else "{3} / {2}".format(*shots[0]["after"].shape),
    }
    return Part(values)


def warps() -> Iterator[tuple[float, float, float]]:
    """Rotation, scale and shift of the lattice; the script counts in the same order."""
    return itertools.product(ROTATIONS, SCALES, SHIFTS)


def moved(image: Tensor, padding: str) -> Tensor:
    """An image (1, C, H, W) under each of the warps: turned and scaled about its centre, then shifted."""
    rotation, scale, shift = torch.tensor(list(warps()), dtype=torch.float32).T
    shifts = torch.stack([shift, torch.zeros_like(shift)], 1)
    theta = moved_theta(rotation, scale, shifts, (image.shape[2], image.shape[3]))
    return stn.warp(image.expand(len(theta), -1, -1, -1), theta, padding_mode=padding)  # type: ignore[arg-type]


def look(study: Study, image: Tensor) -> dict[str, Any]:
    """What the networks make of an image under each of the warps."""
    mean, std = statistics(study.run)
    before = moved(image * std + mean, get(study.config.dataset).background)
    normalized = (before - mean) / std
    model = study.networks[0].model
    found: dict[str, Any] = {"before": before, "after": None, "outlines": None}
    warp = model.warp(normalized)
    if warp is not None:
        found["after"] = warp.output * std + mean
        found["outlines"] = warp.outline(1 if warp.transform.kind == "affine" else BENT).float()[:, :-1]
    # Of each network the classes, and their confidence in thousandths, rounded down: nothing is quite sure.
    found["said"] = [_said(network, normalized) for network in study.networks]
    return found


def _said(network: Network, images: Tensor) -> list[list[int]]:
    top = [network.model(network.normalize(part)).float().softmax(1).max(1) for part in images.split(250)]
    sure = torch.cat([part.values for part in top]).nan_to_num(0.0)
    return [torch.cat([part.indices for part in top]).tolist(), sure.mul(1000).floor().int().tolist()]


def pictures(
    befores: list[Tensor], afters: list[Tensor | None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any] | None]]:
    """Each batch as one sheet in WebP, of the quality at which all together keep the budget."""
    sheets = [[None if batch is None else _sheet(batch) for batch in batches] for batches in (befores, afters)]
    done: Any = None
    for quality in QUALITIES:
        done = [[None if sheet is None else _webp(*sheet, quality) for sheet in row] for row in sheets]
        if sum(len(one["uri"]) for row in done for one in row if one is not None) <= BUDGET:
            break
    return done[0], done[1]


def _sheet(images: Tensor) -> tuple[Image.Image, tuple[int, int]]:
    """Images (N, C, H, W) in rows, one for each rotation, and their width and height."""
    if images.shape[1] == 2:  # red and green
        images = torch.cat([images, torch.zeros_like(images[:, :1])], 1)
    longest = max(images.shape[2:])
    if longest > SIDE:
        size = tuple(max(1, round(n * SIDE / longest)) for n in images.shape[2:])
        images = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    pixels = images.nan_to_num(0.0).clamp(0, 1).mul(255).round().byte().movedim(1, 3).numpy()
    n, h, w, c = pixels.shape
    columns = math.ceil(n / len(ROTATIONS))
    grid = pixels.reshape(-1, columns, h, w, c).transpose(0, 2, 1, 3, 4).reshape(-1, columns * w, c)
    return Image.fromarray(np.repeat(grid, 3, 2) if c == 1 else grid), (w, h)


def _webp(sheet: Image.Image, size: tuple[int, int], quality: int) -> dict[str, Any]:
    file = io.BytesIO()
    sheet.save(file, format="WEBP", quality=quality, method=4)
    return {"uri": f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", "size": size}


TURN = Section("turn", "Turn it yourself", _make)
