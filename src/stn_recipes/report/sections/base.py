"""What a section of the page is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Part:
    """What a section has to show."""

    values: dict[str, Any]  # of its template
    figures: dict[str, Figure] = field(default_factory=dict)  # to be kept as files, by name


@dataclass(frozen=True)
class Section:
    """A section of the page. Its template is `templates/NAME.html.j2`, which sees the values of the part alone."""

    name: str  # of the template, and the anchor
    title: str | None  # in the page's navigation; None: not there
    make: Callable[[Study], Part | None]  # None: there is nothing to show
    figures: tuple[str, ...] = ()  # the names of all that it may keep
    tasks: tuple[str, ...] = ("classify",)  # of the runs that it is about
