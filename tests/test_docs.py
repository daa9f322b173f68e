"""Documentation that runs: every example in every docstring, every Python block of the README, no name without words."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import stn

ROOT = Path(__file__).parents[1]
MODULES = ["stn", *(m.name for m in pkgutil.walk_packages(stn.__path__, "stn."))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# The functions whose examples are the package's own introduction; without them the collection below would be broken.
WITH_EXAMPLE = {
    "stn.sampling.sample", "stn.sampling.warp", "stn.transforms.affine.affine_grid", "stn.transformer.SpatialTransformer",
    "stn.models.registry.create", "stn.conventions.theta_from_pixel", "stn.compat.spatial_transformer_network",
}  # fmt: skip


def load(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"an extra is missing: {error}")


def examples(module):
    found = doctest.DocTestFinder(exclude_empty=True).find(module)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    report = []
    for test in examples(load(name)):
        torch.manual_seed(0)
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_the_examples_are_found():
    assert "stn.transforms.affine" in MODULES
    assert {test.name for name in MODULES for test in examples(load(name))} >= WITH_EXAMPLE


def python_blocks(path):
    return re.findall(r"^```python[^\n]*\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["volumes", "registration", "robustify"])
def test_pages_on_volumes(page):
    blocks = python_blocks(ROOT / "docs" / f"{page}.md")
    assert blocks
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page}.md, block {number}", "exec"), {"__name__": "page"})


def test_readme(tmp_path, monkeypatch):
    """Its blocks, each on its own, as a reader would paste it."""
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(python_blocks(ROOT / "README.md"), start=1):
        torch.manual_seed(0)
        exec(compile(block, f"README.md, block {number}", "exec"), {"__name__": "readme"})


def test_compatibility(tmp_path, monkeypatch):
    """The recipes for other programs run as they stand."""
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(ROOT / "docs" / "compatibility.md")
    assert len(blocks) >= 5
    for number, block in enumerate(blocks, start=1):
        torch.manual_seed(0)
        exec(compile(block, f"compatibility.md, block {number}", "exec"), {"__name__": "recipe"})


def test_python_blocks_are_told_from_others(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\na = 1\nb = 2\n```\ntext\n```sh\nls\n```\n```python title\nc\n```\n")
    assert python_blocks(page) == ["a = 1\nb = 2\n", "c\n"]


def public(module):
    """The public names of a module: those it lists, else those it defines."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
        ]  # fmt: skip
    return {name: getattr(module, name) for name in names}


PAGES = [
    "stn",
    "stn.geometry",
    "stn.kernels",
    "stn.linearized",
    "stn.penalties",
    "stn.placement",
    "stn.transforms",
    "stn.ops",
    "stn.conventions",
    "stn.compat",
    "stn.models",
    "stn.testing",
]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.rpartition(".")[2].startswith("_")])
def test_every_module_says_what_it_is(name):
    assert (load(name).__doc__ or "").strip()


@pytest.mark.parametrize("name", PAGES)
def test_every_public_name_has_a_docstring(name):
    names = public(load(name))
    assert names
    missing = []
    for label, value in names.items():
        if inspect.ismodule(value):
            continue
        if inspect.isclass(value) or callable(value):
            if not (value.__doc__ or "").strip() or value.__doc__.startswith(f"{label}("):  # a dataclass's own
                missing.append(label)
            members = inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else []
            for member, function in members:
                if (
                    function.__module__.startswith("stn")
                    and not member.startswith("_")
                    and not inspect.getdoc(function)
                ):
                    # a method of nn.Module or of a base class may carry the words
                    documented = any(inspect.getdoc(getattr(base, member, None)) for base in value.__mro__[1:])
                    missing += [] if documented else [f"{label}.{member}"]
        else:
            assert label == label.upper(), f"{label} is neither a callable nor a constant"
    assert not missing


@pytest.mark.parametrize("function", [
    stn.sample, stn.warp, stn.transforms.affine_grid, stn.spatial_transformer_network, stn.parameter_groups, stn.diagnose,
    stn.models.create, stn.SpatialTransformer, stn.ConvLocalizer, stn.conventions.theta_from_pixel, stn.testing.check_transform,
])  # fmt: skip
def test_every_option_is_described(function):
    """Each argument of the main calls occurs in its docstring, by name."""
    signature = inspect.signature(function)
    text = inspect.getdoc(function)
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    arguments = [p.name for p in signature.parameters.values() if p.kind in kinds]
    missing = [name for name in arguments if not re.search(rf"\b{name}\b", text)]
    # said once for the package ("as for `sample`", the frame) or in the text of the example
    assert set(missing) <= {"align_corners", "mode", "padding_mode", "size", "theta", "image"}, missing
