"""What the site needs beside mkdocs.yml: the pages that lie elsewhere in the repository, and links to what is no page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Pages of the repository, by their place in the site.
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "examples.md": "examples/README.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for place, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=relinked(text, ROOT / source, place)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    if page.file.src_uri in PAGES or not page.file.src_uri.endswith(".md"):
        return markdown
    return relinked(markdown, ROOT / "docs" / page.file.src_uri, page.file.src_uri)


def relinked(text: str, source: Path, place: str) -> str:
    """Links to files of the repository as links of the site; a file that is no page keeps its words alone.

    What leads nowhere stays as it is: the strict build refuses it.
    """
    up = "../" * place.count("/")

    def link(match: re.Match[str]) -> str:
        words, path, anchor = match[1], match[2], match[3] or ""
        target = (source.parent / path).resolve()
        if not target.exists():
            return match[0]
        for page, file in PAGES.items():
            if target == ROOT / file:
                return f"[{words}]({up}{page}{anchor})"
        if target.is_relative_to(ROOT / "docs"):
            return f"[{words}]({up}{target.relative_to(ROOT / 'docs').as_posix()}{anchor})"
        return words

    return LINK.sub(link, text)
