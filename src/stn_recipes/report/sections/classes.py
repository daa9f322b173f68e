"""What is right of each class."""

from __future__ import annotations

from typing import Any

from ...run.folder import by_class, mean_over_classes
from ..study import Study
from .base import Part, Section
from .headline import interval


def _make(study: Study) -> Part | None:
    outcome, control = study.outcome, study.control_outcome
    if outcome is None:
        return None
    names = study.run.facts.class_names
    found = by_class(outcome.labels, outcome.correct, names)
    others = None if control is None else by_class(control.labels, control.correct, names)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "images": one.images,
            "accuracy": one.accuracy,
            "interval": interval(one.accuracy, one.images),
            "control": None if others is None else others[name].accuracy,
        }
        for name, one in found.items()
        if one.accuracy is not None
    ]
    rows.sort(key=lambda row: row["accuracy"])
    values = {
        "rows": rows,
        "empty": [name for name, one in found.items() if one.accuracy is None],
        "mean": mean_over_classes(found),
        "control": None if others is None else mean_over_classes(others),
        "balance": study.config.balance,
    }
    return Part(values)


CLASSES = Section("classes", "Classes", _make)
