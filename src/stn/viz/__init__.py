"""Seeing what a transformer does: pictures before and after, filmstrips, grids, curves.

`animate` writes a moving picture. Every other function returns a matplotlib `Figure` that belongs to nobody: no pyplot, no window, no global state. A notebook
shows it when it is the last line of a cell, `figure.savefig("name.png")` writes it anywhere. Backgrounds are
transparent and the ink is of a middle tone, so a picture reads on a light page and on a dark one. matplotlib is
imported at the first call (`pip install spatial-transformers[viz]`).
"""

from .frames import frame_margin, frame_outlines, warped_grid
from .images import before_after, filmstrip
from .moving import animate
from .results import MAX_CELLS, MAX_COUNTS, confusion, robustness
from .style import FIRST, FRAME, INK, ON_COLOR, SECOND, WRONG
from .theta import MAX_HISTOGRAMS, theta_histograms, theta_names
from .training import PANELS, curves
from .volumes import registration, slices

__all__ = [
    "FIRST",
    "FRAME",
    "INK",
    "MAX_CELLS",
    "MAX_COUNTS",
    "MAX_HISTOGRAMS",
    "ON_COLOR",
    "PANELS",
    "SECOND",
    "WRONG",
    "animate",
    "before_after",
    "confusion",
    "curves",
    "filmstrip",
    "frame_margin",
    "frame_outlines",
    "registration",
    "robustness",
    "slices",
    "theta_histograms",
    "theta_names",
    "warped_grid",
]
