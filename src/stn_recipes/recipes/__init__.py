"""Every recipe by name: settings with a paper, a command, a cost and a measured result."""

from __future__ import annotations

import dataclasses
import importlib

from ..config import TrainConfig
from ..names import nearest

GROUPS = ("digits", "cifar10", "mnist", "mnist_distorted", "images")  # the files of this folder

RECIPES: dict[str, TrainConfig] = {}
for _group in GROUPS:
    RECIPES |= importlib.import_module(f"{__name__}.{_group}").RECIPES


def recipe(name: str) -> TrainConfig:
    """A copy of the settings of a recipe. Raises ValueError for an unknown name, with the nearest one."""
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}{nearest(name, RECIPES)}")
    return dataclasses.replace(RECIPES[name])
