"""How to repeat the run."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...recipes import RECIPES
from ..study import Study
from .base import Part, Section


def _make(study: Study) -> Part:
    config, result = study.config, study.run.result
    usual = RECIPES.get(config.recipe)
    settings = []
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        changed = usual is not None and setting.name != "out" and value != getattr(usual, setting.name)
        settings.append((setting.name, study.shareable(_text(value)), changed))
    return Part(
        {
            "command": study.shareable(result.command if result else ""),
            "settings": settings,
            "placeholder": config.data_dir is not None,
            "versions": result.versions if result else {},
            "threads": result.threads if result else None,
        }
    )


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " × ".join(str(v) for v in value) if isinstance(value, tuple) else str(value)


REPEAT = Section("repeat", "How to repeat it", _make, tasks=("classify", "colocalize"))
