"""The sections of the page, from top to bottom: one, one file, its template beside it in `templates`, and one line here."""

from .base import Part, Section
from .cases import CASES
from .classes import CLASSES
from .confusion import CONFUSION
from .film import FILM
from .found import FOUND
from .headline import HEADLINE
from .poses import POSES
from .repeat import REPEAT
from .robustness import ROBUSTNESS
from .theta import THETA
from .training import TRAINING
from .turn import TURN

SECTIONS: tuple[Section, ...] = (
    HEADLINE,
    FOUND,
    POSES,
    CASES,
    TURN,
    FILM,
    TRAINING,
    ROBUSTNESS,
    THETA,
    CLASSES,
    CONFUSION,
    REPEAT,
)

__all__ = ["SECTIONS", "Part", "Section"]
