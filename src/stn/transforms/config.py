"""A transform from its name or its configuration. Neither imports or runs anything: a name is looked up in `TRANSFORMS`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from .._checks import check_choice, describe, nearest_name
from .base import AbstractTransform, named_families

TransformLike = AbstractTransform | str | Mapping[str, Any]  # a transform, its name, or its configuration


def by_name(name: str, **options: Any) -> AbstractTransform:
    """A transform by its name in lower case, for command lines.

    Raises:
        ValueError: as `from_config`.

    Example:
        >>> by_name("similarity", max_angle=1.5)
        Similarity(max_angle=1.5)
    """
    return from_config({"name": name, **options})


def from_config(config: str | Mapping[str, Any]) -> AbstractTransform:
    """A transform from its configuration: the same grid for the same theta, to the bit.

    Args:
        config: a name in `TRANSFORMS` with options of the family's constructor, as `transform.config()` gives it: a
            mapping such as JSON and YAML hold, or the name alone. An option that is a mapping itself is the
            configuration of a transform: `{"name": "compose", "outer": {...}, "inner": {...}}`. Options that are not
            given have their defaults.

    Raises:
        ValueError: for unknown names and options (with the nearest ones), and what the family itself refuses.

    Example:
        >>> from_config({"name": "similarity", "max_angle": 1.5})
        Similarity(max_angle=1.5)
        >>> from stn import ThinPlateSpline
        >>> from_config(ThinPlateSpline.two_rows(6).config())
        ThinPlateSpline(6 points in 2D)
    """
    try:
        return _made({"name": config} if isinstance(config, str) else config)
    except RecursionError:
        raise ValueError("config: expected a transform, got one that is nested without end") from None


def check_transform(transform: Any) -> AbstractTransform:
    """The argument `transform` of whatever is built for a family: a transform, its name or its configuration."""
    if isinstance(transform, AbstractTransform):
        return transform
    if not isinstance(transform, (str, Mapping)):
        raise ValueError(
            f"transform: expected a transform such as stn.Affine(), its name or its configuration, got "
            f"{describe(transform)}"
        )
    try:
        return from_config(transform)
    except ValueError as error:
        raise ValueError(f"transform: {error}") from None


def _made(config: Any) -> AbstractTransform:
    if not isinstance(config, Mapping):
        raise ValueError(f"config: expected a mapping such as {{'name': 'affine'}}, or a name, got {describe(config)}")
    families = named_families()
    if not isinstance(config.get("name"), str):
        raise ValueError(f"name: expected one of {', '.join(families)}, in a mapping, got {describe(config)}")
    name, options = config["name"], {key: value for key, value in config.items() if key != "name"}
    check_choice("name", name, families)
    signature = inspect.signature(families[name])
    for option, value in options.items():
        if option not in signature.parameters:
            known = list(signature.parameters)
            raise ValueError(
                f"options: {name!r} has no option {option!r}, but {', '.join(known)}{nearest_name(str(option), known)}"
            )
        if isinstance(value, Mapping):
            try:
                options[option] = _made(value)
            except ValueError as error:
                raise ValueError(f"{option}: {error}") from None
    try:
        signature.bind(**options)
    except TypeError as error:  # a required one is missing
        raise ValueError(f"options: {name!r} is {error}") from None
    return families[name](**options)
