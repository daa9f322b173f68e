"""The documentation site: its notebooks run, its links lead somewhere, and it is built without a warning."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def cells(notebook: Path, kind: str) -> list[str]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    """Its cells from top to bottom, in a process of their own: a notebook may register families and set seeds."""
    script = tmp_path / f"{notebook.stem}.py"
    script.write_text("\n".join(cells(notebook, "code")), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    if notebook.stem == "tutorial":
        reached = float(re.search(r"test accuracy ([\d.]+)%", done.stdout)[1])  # type: ignore[index]
        assert reached > 50  # chance is 10


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_is_of_no_machine(notebook: Path) -> None:
    outputs = [
        output
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    assert [output for output in outputs if output.get("name") == "stderr" or output["output_type"] == "error"] == []
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= (2 if notebook.stem == "tutorial" else 0)
    text = "".join(str(output.get("text", "")) for output in outputs)
    assert not re.search(r"(^|[\s'\"])/\w+/", text)


def test_there_are_a_tutorial_and_three_how_tos() -> None:
    assert {notebook.stem for notebook in NOTEBOOKS} == {"tutorial", "own-data", "own-network", "own-family"}


def test_blocks_of_the_how_tos_run() -> None:
    for page in (DOCS / "index.md", DOCS / "volumes.md"):
        names: dict[str, object] = {}
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        assert blocks
        for block in blocks:
            exec(compile(block, page.name, "exec"), names)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(text: str, folder: Path, page: Path | None = None) -> list[str]:
    """The links of a text to files and headings that are not there; those to other places are not asked."""
    found = []
    for link in LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else (page or folder / "notebook")
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken(page.read_text(encoding="utf-8"), page.parent, page) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(notebook: Path) -> None:
    assert broken("\n".join(cells(notebook, "markdown")), notebook.parent) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One two\n[a](page.md#one-two) [b](page.md#three) [c](gone.md) [d](https://x.y) `[e](f)` [g](#one-two)"
    )
    assert broken(page.read_text(), tmp_path, page) == ["page.md#three", "gone.md"]


def test_every_page_is_in_the_navigation() -> None:
    """So says the strict build, too, where MkDocs is installed."""
    named = set(re.findall(r": ([\w/-]+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    there = {path.relative_to(DOCS).as_posix() for path in [*DOCS.rglob("*.md"), *NOTEBOOKS]}
    assert named - there == {"contributing.md", "changelog.md", "examples.md"}  # from elsewhere, by docs/hooks.py
    assert there - named == set()


@pytest.mark.skipif(
    util.find_spec("mkdocs") is None, reason="MkDocs (extra [docs]) is not installed; `make docs` builds the site"
)
def test_the_site_is_built_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "turning.gif").is_file()
    assert "SpatialTransformer" in (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
