"""Every recipe by name: settings with a paper, a command, a cost and a measured result."""

from __future__ import annotations

import dataclasses
import importlib

from ..config import TrainConfig
from ..names import nearest

GROUPS = (
    "digits",
    "cifar10",
    "gtsrb",
    "mnist",
    "mnist_distorted",
    "mnist_addition",
    "colocalize",
    "robustify",
    "images",
)  # the files of this folder

RECIPES: dict[str, TrainConfig] = {}
PRESETS: dict[str, dict[str, TrainConfig]] = {"paper": {}}  # other settings of some recipes, by preset
for _group in GROUPS:
    _module = importlib.import_module(f"{__name__}.{_group}")
    RECIPES |= _module.RECIPES
    PRESETS["paper"] |= getattr(_module, "PAPER", {})


def recipe(name: str, preset: str | None = None) -> TrainConfig:
    """A copy of the settings of a recipe, its own or those of a preset.

    Raises:
        ValueError: for an unknown name, with the nearest one, or a preset that the recipe does not have.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}{nearest(name, RECIPES)}")
    if preset is None:
        return dataclasses.replace(RECIPES[name])
    if name not in PRESETS.get(preset, ()):
        having = ", ".join(PRESETS.get(preset, ())) or "no recipe"
        raise ValueError(f"preset: expected a recipe that has {preset!r}, which are {having}, got {name!r}")
    return dataclasses.replace(PRESETS[preset][name])
