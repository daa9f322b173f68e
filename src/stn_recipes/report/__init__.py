"""A run as one page that opens anywhere: report.html, and its figures as PNG files.

Everything is inside the page: no network, no file beside it, and no script but the one that moves the sliders. What can be shared is shown: folders of this
machine are left out. A run that was interrupted gets a page of what there is.

A section of the page is one file in `sections`, its template in `templates`, and a line in `SECTIONS`.
"""

from .build import Report, build, write_report
from .sections import SECTIONS

__all__ = ["SECTIONS", "Report", "build", "write_report"]
