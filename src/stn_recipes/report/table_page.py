"""A table of runs as one page that opens anywhere, with a test image in each cell: before, the frame, after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stn
from stn import viz

from ..data.registry import DataError
from ..files import write_text
from ..run.folder import RunError
from .build import template
from .markup import points, uri, view
from .study import statistics
from .table import Cell, Table, as_csv, as_markdown, details, figure, notes, shown


def write_table(table: Table, folder: Path, *, paper: bool = False, data_dir: str | None = None) -> Path:
    """Write FOLDER/table.md, table.csv and table.html, and return the page."""
    write_text(folder / "table.md", as_markdown(table, paper=paper))
    write_text(folder / "table.csv", as_csv(table))
    page = folder / "table.html"
    write_text(page, build_page(table, title=folder.resolve().name, paper=paper, data_dir=data_dir))
    return page


@torch.no_grad()
def build_page(table: Table, *, title: str, paper: bool = False, data_dir: str | None = None) -> str:
    """The page, in memory. What cannot be shown is left out, and a note says why.

    Args:
        data_dir: where the data lies now, if not where the runs had it.
    """
    said = notes(table)
    rows = []
    for row in table.keys("row"):
        cells = [table.at(row, column) for column in table.keys("column")]
        pictures: dict[int, dict[str, Any]] = {}
        try:
            pictures = _pictures([cell for cell in cells if cell is not None], data_dir)
        except (RunError, DataError, OSError) as error:
            reason = str(error).splitlines()[0]
            said.append(f"No pictures of {', '.join(map(str, row))}: {reason.replace(data_dir or '', 'DATA')}")
        best = min((cell.mean for cell in cells if cell is not None), default=None)
        rows.append(
            {
                "name": ", ".join(map(str, row)),
                "cells": [
                    cell and {
                        "column": ", ".join(map(str, cell.column)),
                        "figure": figure(cell),
                        "best": cell.mean == best,
                        "published": cell.published.error if paper and cell.published else None,
                        "seeds": len(cell.runs),
                        "parameters": cell.parameters,
                        "minutes": cell.minutes,
                        "paired": cell.paired,
                        "picture": pictures.get(id(cell)),
                    }
                    for cell in cells
                ],
            }
        )  # fmt: skip
    lines = details(table)
    return template("table").render(
        title=title,
        columns=[", ".join(map(str, column)) for column in table.keys("column")],
        rows=rows,
        headings=list(lines[0]),
        lines=[shown(line) for line in lines],
        notes=said,
        stn_version=stn.__version__,
    )


def _pictures(cells: Sequence[Cell], data_dir: str | None) -> dict[int, dict[str, Any]]:
    """For each cell of a row what its first seed does to the same test image, one that all of them get right."""
    first = cells[0].runs[0]
    if data_dir is not None:
        first.config.data_dir = data_dir
    wrong = {place for cell in cells if (found := cell.runs[0].mistakes) for place in found.wrong}
    data = first.data.test_data()
    index = next((place for place in range(len(data)) if place not in wrong), 0)
    mean, std = statistics(first)
    image = data.__getitems__([index])[0] * std + mean
    return {id(cell): _picture(cell, image) for cell in cells}


def _picture(cell: Cell, image: Tensor) -> dict[str, Any]:
    run = cell.runs[0]
    mean, std = statistics(run)
    warp = run.model.warp((image - mean) / std)
    outlines = None if warp is None else viz.frame_outlines(warp)
    margin = 0.0 if warp is None or outlines is None else viz.frame_margin(outlines, warp.image_size)
    after = None if warp is None else warp.output * std + mean
    height, width = image.shape[2:]
    return {
        "before": uri(image[0]),
        "after": None if after is None else uri(after[0]),
        "outline": None if outlines is None else points(outlines[0]),
        "corner": None if outlines is None else outlines[0][0].tolist(),
        "moving": None,
        "margin": margin,
        "view": view(height, width, margin),
        "aspect": f"{width} / {height}",
        "out_aspect": "1 / 1" if after is None else f"{after.shape[3]} / {after.shape[2]}",
    }
