"""What is taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stn import viz

from ..markup import svg
from ..study import Study
from .base import Part, Section


def _make(study: Study) -> Part | None:
    outcome = study.outcome
    if outcome is None:
        return None
    names = study.run.facts.class_names
    matrix = torch.zeros(len(names), len(names), dtype=torch.int64)
    matrix.index_put_((outcome.labels, outcome.predicted), torch.tensor(1), accumulate=True)
    chart = svg(viz.confusion(matrix, names), "confusion matrix of the test images")
    return Part({"svg": chart, "pairs": _pairs(matrix, names)}, {"confusion": viz.confusion(matrix, names)})


def _pairs(matrix: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent errors."""
    errors = matrix.clone().fill_diagonal_(0)
    top = errors.flatten().argsort(descending=True, stable=True)[:6].tolist()
    return [
        {"true": names[t], "predicted": names[p], "count": int(errors[t, p]), "of": int(matrix[t].sum())}
        for t, p in (divmod(cell, len(names)) for cell in top)
        if errors[t, p]
    ]


CONFUSION = Section("confusion", "Confusions", _make, figures=("confusion",))
