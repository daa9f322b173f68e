"""Every recipe by name: settings with a paper, a command, a cost and a measured result."""

from __future__ import annotations

import dataclasses

from ..config import TrainConfig
from ..names import nearest
from . import cifar10, digits, images, mnist, mnist_distorted

RECIPES: dict[str, TrainConfig] = {
    **digits.RECIPES,
    **cifar10.RECIPES,
    **mnist.RECIPES,
    **mnist_distorted.RECIPES,
    **images.RECIPES,
}


def recipe(name: str) -> TrainConfig:
    """A copy of the settings of a recipe. Raises ValueError for an unknown name, with the nearest one."""
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}{nearest(name, RECIPES)}")
    return dataclasses.replace(RECIPES[name])
