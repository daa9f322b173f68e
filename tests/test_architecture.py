"""The rooms and their doors: what may import what. `docs/architecture.md` has the picture."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"


def modules(package):
    """The name of each module of a package, and its syntax tree."""
    found = {}
    for file in sorted((SRC / package).rglob("*.py")):
        parts = file.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(file.read_text())
    return found


def imports(name, tree, known, *, is_package):
    """The modules of `known` that a module imports, wherever in it; for type checkers alone does not count."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            up = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                if target in known:
                    yield target
                elif base in known and base != name:
                    yield base


@pytest.mark.parametrize("package", ["stn", "stn_recipes"])
def test_no_module_imports_itself_by_a_detour(package):
    known = modules(package)
    packages = {name for name in known if any(other.startswith(f"{name}.") for other in known)}
    graph = {}
    for name, tree in known.items():
        # A package's own file collects names: what it imports from below is no detour of those below.
        seen = set(imports(name, tree, known, is_package=name in packages))
        graph[name] = {other for other in seen if not name.startswith(f"{other}.")}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(graph[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_the_library_knows_nothing_of_the_recipes():
    for name, tree in modules("stn").items():
        for node in ast.walk(tree):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not any(n.partition(".")[0] == "stn_recipes" for n in names), name


def test_names_that_are_private_to_torch_are_in_one_file():
    for name, tree in modules("stn").items():
        if name == "stn.ops._torch":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                assert not ast.unparse(node.value).startswith("torch"), f"{name}: {ast.unparse(node)}"
