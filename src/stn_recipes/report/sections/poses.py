"""What was gained in front of a classifier that was not touched."""

from __future__ import annotations

from ..study import Study
from .base import Part, Section

WAYS = {
    "as it is": "the classifier as it is",
    "localizer": "the localizer, which learned poses",
    "localizer, gate": "the localizer, where the classifier's energy gains clearly",
    "search": "search for the pose of the lowest energy",
    "search, gate": "search, where the energy gains clearly",
    "mean over copies": "mean over as many copies in poses spread evenly",
}


def _make(study: Study) -> Part | None:
    robust = study.run.result.robust if study.run.result else None
    if not robust:
        return None
    rows = [{"name": WAYS.get(name, name), **values} for name, values in robust.items()]
    return Part({"rows": rows, "family": study.config.family})


POSES = Section("poses", "Poses", _make)
