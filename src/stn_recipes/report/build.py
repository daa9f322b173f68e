"""The page and its figures, from a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import torch
from markupsafe import Markup

import stn

from ..files import atomic_path, write_text
from ..names import label
from ..run.folder import Run, RunError, load_run
from .control import check_control
from .markup import confidence
from .sections import SECTIONS
from .study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTORTIONS = {
    "r": "rotated by up to 90°",
    "rts": "rotated, scaled and shifted",
    "rts_each": "each channel rotated, scaled and shifted on its own",
    "p": "in perspective",
    "e": "elastically distorted",
    "t": "shifted",
    "tc": "shifted, among clutter",
    "t84": "shifted on 84 pixels",
    "tc84": "shifted on 84 pixels, among clutter",
}


def distorted(name: str | Mapping[str, Any]) -> str:
    """What a distortion does, in words."""
    return DISTORTIONS[name] if isinstance(name, str) and name in DISTORTIONS else f"distorted by {label(name)}"


@dataclass(frozen=True)
class Report:
    """The page, and its figures by name."""

    html: str
    figures: dict[str, Figure] = field(default_factory=dict)


def write_report(run: Path, control: Path | None = None, *, data_dir: str | None = None, trust: bool = False) -> Path:
    """Write RUN/report.html and RUN/figures, and return the page.

    Args:
        run: folder of the run.
        control: folder of a run without a transformer to show beside it; RUN/control unless given, where that is a
            finished run.
        data_dir: where the data lies now, if not where the run had it.
        trust: import the code that the settings of the runs name; without it the page has what needs none.

    Raises:
        RunError: for a folder without a run.
        ValueError: for a control that is none of this run.
    """
    loaded = load_run(run, trust=trust)
    other = None
    if control is not None:
        other = load_run(control, trust=trust)
        if not other.result:
            raise RunError(f"control: expected a finished run, got {control}, which has no result.json")
    elif (Path(run) / "control" / "result.json").exists():
        other = load_run(Path(run) / "control", trust=trust)
    report = build(loaded, other, data_dir=data_dir)
    folder = loaded.path / "figures"
    folder.mkdir(exist_ok=True)
    for name in (name for section in SECTIONS for name in section.figures):
        file = folder / f"{name}.png"
        if name not in report.figures:
            file.unlink(missing_ok=True)  # of an earlier report
            continue
        with atomic_path(file) as temporary:
            report.figures[name].savefig(temporary, format="png", dpi=150)
    page = loaded.path / "report.html"
    write_text(page, report.html)
    return page


@torch.no_grad()
def build(run: Run, control: Run | None = None, *, data_dir: str | None = None) -> Report:
    """The report of a run, in memory. Raises ValueError for a control that is none of this run."""
    if control is not None:
        check_control(run, control)
    study = Study(run, control, data_dir=data_dir)
    figures: dict[str, Figure] = {}
    sections = []
    for section in SECTIONS:
        part = section.make(study) if study.config.task in section.tasks else None
        if part is not None:
            assert part.figures.keys() <= set(section.figures), section.name
            figures |= part.figures
            html = template(section.name).render(part.values)
            sections.append({"name": section.name, "title": section.title, "html": Markup(html)})
    return Report(template("page").render(_head(study), sections=sections, notes=study.notes), figures)


def _head(study: Study) -> dict[str, Any]:
    config, run = study.config, study.run
    what = f"{config.shareable(label(config.dataset))} images" if config.dataset != "images" else "your own images"
    what += f" of class {config.digit}" if config.digit is not None else ""
    what += f", {distorted(config.distortion)}" if config.distortion is not None else ""
    return {
        "recipe": config.recipe,
        "kind": study.kind,
        "what": what,
        "network": label(config.network),
        "seed": config.seed,
        "epochs": run.result.epochs if run.result else int(study.metrics[-1]["epoch"]) if study.metrics else 0,
        "of_epochs": config.epochs,
        "finished": study.finished and study.finished.strftime("%d %B %Y, %H:%M %Z"),
        "measured": study.model is not None and study.data is not None,
        "shape": " × ".join(str(n) for n in run.facts.input_shape) if (run.path / "data.json").exists() else None,
        "stn_version": stn.__version__,
    }


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stn_recipes", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value, digits=2: f"{100 * value:.{digits}f}%"
    environment.filters["confidence"] = confidence
    environment.filters["thousands"] = lambda value: f"{value:,}"
    return environment


def template(name: str) -> jinja2.Template:
    """`templates/NAME.html.j2`."""
    return _environment().get_template(f"{name}.html.j2")
