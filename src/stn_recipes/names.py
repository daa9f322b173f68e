"""What a run is made of, by name: ours, or yours by its import path, with options; and names that are nearly right.

A name stands alone, `similarity`, or with options in a mapping, `{"name": "similarity", "max_angle": 1.6}`. What is not
ours is named by where it is imported from, `package.module:name`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .data import HUB

# The settings that take a name with options. `timm:resnet18` and `hf:NAME` are no import paths, but timm's and Hugging Face's.
NAMED = ("transformer", "network", "dataset", "distortion", "augment")
TIMM = "timm:"
_ELSEWHERE = (TIMM, HUB)

IMPORT_PATH = r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*$"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def split(value: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name, and the options.

    >>> split({"name": "similarity", "max_angle": 1.6})
    ('similarity', {'max_angle': 1.6})
    """
    if isinstance(value, str):
        return value, {}
    return value["name"], {option: given for option, given in value.items() if option != "name"}


def label(value: str | Mapping[str, Any]) -> str:
    """A name with its options, in short, as tables and folders have it.

    >>> label({"name": "similarity", "max_angle": 1.6})
    'similarity max_angle=1.6'
    """
    name, options = split(value)
    said = (given if isinstance(given, str) else json.dumps(given) for given in options.values())
    return " ".join([name, *(f"{option}={text}" for option, text in zip(options, said, strict=True))])


def is_import_path(name: str) -> bool:
    """Whether a name is one of yours, `package.module:name`."""
    return re.fullmatch(IMPORT_PATH, name) is not None and not name.startswith(_ELSEWHERE)


def check_named(argument: str, value: Any, known: Iterable[str] = ()) -> None:
    """A name of ours (any, where `known` does not list them), an import path, or a mapping with one as its `name`.

    Nothing is imported.

    Raises:
        ValueError: for anything else, in the name of the argument.
    """
    if isinstance(value, Mapping) and not isinstance(value.get("name"), str):
        raise ValueError(f"{argument}: expected a mapping with a name, such as {{'name': 'similarity'}}, got {value!r}")
    if not isinstance(value, (str, Mapping)):
        raise ValueError(f"{argument}: expected a name, or a mapping with a name and options, got {value!r}")
    name, _ = split(value)
    names = list(known)
    if ":" in name and not name.startswith(_ELSEWHERE) and not is_import_path(name):
        raise ValueError(f"{argument}: expected an import path such as package.module:name, got {name!r}")
    if names and name not in names and not is_import_path(name) and not name.startswith(_ELSEWHERE):
        raise ValueError(
            f"{argument}: expected one of {', '.join(names)}, or yours as package.module:name, got {name!r}"
            f"{nearest(name, names)}"
        )


def import_paths(value: Any) -> Iterator[str]:
    """The import paths in the value of such a setting, or in several settings by name: whatever looks like one, so that
    none is imported unseen."""
    if isinstance(value, str) and is_import_path(value):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from import_paths(inner)


def imported(argument: str, path: str) -> Any:
    """What an import path names. The current folder is looked in as well, after all others.

    Its code runs: call this for a path that the user gave, or one of a run that they trust.

    Raises:
        ValueError: where the module cannot be imported or has no such name, in the name of the argument.
    """
    module, _, attribute = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{argument}: expected {path!r} to be importable, in an installed package or in this folder, got {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"{argument}: expected {part!r} in {module}, got a module without it{nearest(part, dir(found))}"
            )
        found = getattr(found, part)
    return found


def untrusted(run: Any, paths: Iterable[str]) -> str:
    """What to say of a run whose settings name code that nobody has said to trust."""
    return (
        f"{run}: its settings name code to import, {', '.join(paths)}; a run is read without executing anything, so "
        f"say --trust (trust=True in Python) if you trust whoever made it"
    )
