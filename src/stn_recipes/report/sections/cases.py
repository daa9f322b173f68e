"""Test images, before and after: the surest, the typical and the surest errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stn import viz

from ..markup import confidence, points, uri, view
from ..study import Outcome, Study, statistics
from .base import Part, Section

COUNT = 6  # images of each kind


def _make(study: Study) -> Part | None:
    outcome, model = study.outcome, study.model
    if outcome is None or model is None:
        return None
    facts = study.run.facts
    names = facts.class_names
    chosen = choose(outcome)
    every = sorted({index for indices in chosen.values() for index in indices})
    images = torch.cat([batch for batch, _ in study.batches(every)])
    row = {index: i for i, index in enumerate(every)}
    warp = model.warp(images)
    mean, std = statistics(study.run)
    before = images * std + mean
    after = None if warp is None else warp.output * std + mean
    outlines = None if warp is None else viz.frame_outlines(warp)
    margin = 0.0 if warp is None or outlines is None else viz.frame_margin(outlines, warp.image_size)

    def case(index: int) -> dict[str, Any]:
        i = row[index]
        return {
            "before": uri(before[i]),
            "after": None if after is None else uri(after[i]),
            "outline": None if outlines is None else points(outlines[i]),
            "corner": None if outlines is None else outlines[i][0].tolist(),
            "moving": None,
            "truth": names[int(outcome.labels[index])],
            **_said(outcome, index, names),
            "control": None if study.control_outcome is None else _said(study.control_outcome, index, names),
        }

    groups = {name: [case(index) for index in indices] for name, indices in chosen.items()}
    figures = {}
    for name, indices in chosen.items():
        if warp is not None and indices:
            rows = [row[index] for index in indices]
            part = dataclasses.replace(warp, output=warp.output[rows], theta=warp.theta[rows])
            figures[f"before_after_{name}"] = viz.before_after(
                images[rows], part, [_caption(one) for one in groups[name]],
                mean=facts.mean, std=facts.std, columns=COUNT,
            )  # fmt: skip
    height, width = images.shape[2:]
    values = {
        "groups": groups,
        "transformed": warp is not None,
        "median": float(outcome.confidence.median()),
        "margin": margin,
        "view": view(height, width, margin),
        "aspect": f"{width} / {height}",
        "out_aspect": "1 / 1" if after is None else f"{after.shape[3]} / {after.shape[2]}",
    }
    return Part(values, figures)


def choose(outcome: Outcome) -> dict[str, list[int]]:
    """The test images that are shown, by kind."""
    median = float(outcome.confidence.median())
    right, wrong = outcome.correct, ~outcome.correct
    orders = {
        "best": outcome.confidence.masked_fill(wrong, -1).argsort(descending=True, stable=True)[: int(right.sum())],
        "typical": (outcome.confidence - median).abs().argsort(stable=True),
        "worst": outcome.confidence.masked_fill(right, -1).argsort(descending=True, stable=True)[: int(wrong.sum())],
    }
    return {name: _spread(order.tolist(), outcome.labels.tolist()) for name, order in orders.items()}


def _spread(order: Sequence[int], labels: Sequence[int]) -> list[int]:
    """The first COUNT images, of different classes as long as there are any near."""
    taken: list[int] = []
    seen: set[int] = set()
    for index in order[: 10 * COUNT]:
        if labels[index] not in seen:
            seen.add(labels[index])
            taken.append(index)
    taken += [index for index in order[:COUNT] if index not in taken]
    return sorted(taken[:COUNT], key=list(order).index)


def _said(outcome: Outcome, index: int, names: Sequence[str]) -> dict[str, Any]:
    return {
        "predicted": names[int(outcome.predicted[index])],
        "confidence": float(outcome.confidence[index]),
        "correct": bool(outcome.correct[index]),
    }


def _caption(case: Mapping[str, Any]) -> str:
    text = case["predicted"] if case["correct"] else f"{case['predicted']}, not {case['truth']}"
    return f"{text}\n{confidence(case['confidence'])}"


CASES = Section(
    "cases", "Test images", _make, figures=("before_after_best", "before_after_typical", "before_after_worst")
)
