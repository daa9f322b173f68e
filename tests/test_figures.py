"""The pages with pictures: their snippets run, their tables are right, and their pictures are drawn from them."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_docs import python_blocks

import stn

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "which-transform.md"
PAGES = [PAGE, DOCS / "antialiasing.md", DOCS / "benchmarks.md"]
FAMILIES = [
    name
    for name in stn.__all__
    if inspect.isclass(getattr(stn, name))
    and issubclass(getattr(stn, name), stn.AbstractTransform)
    and not inspect.isabstract(getattr(stn, name))
]


@pytest.fixture(scope="module")
def figures():
    """docs/figures.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["figures"]


@pytest.fixture(scope="module")
def cases(figures):
    return {case.title: case for case in figures.cases(PAGE)}


def rows(figures):
    """The cells of the table of families, by the title of the section that the row links to."""
    table = figures.between(PAGE.read_text(encoding="utf-8"), "families")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {re.match(r"\[(.+)\]", row[0])[1]: row for row in cells}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGBA"))


def colors(path):
    return len(np.unique(pixels(path).view(np.uint32)))


def test_every_family_has_a_section_that_shows_it(cases):
    assert {"Affine", "CPAB", "Polar"} <= set(FAMILIES)
    for name in FAMILIES:
        assert type(cases[name].family) is getattr(stn, name)


def test_no_warp_of_the_page_is_the_identity_and_all_stay_finite(cases):
    for case in cases.values():
        shown = stn.warp(case.image, case.theta, transform=case.family)
        assert shown.isfinite().all()
        assert case.theta.shape == (1, case.family.num_params)
        if not isinstance(case.family, stn.Polar):  # its identity is another warp
            assert (shown - case.image).abs().mean() > 0.01, case.title


def test_the_table_has_the_families_and_their_parameters(figures, cases):
    table = rows(figures)
    assert set(table) == {title for title, case in cases.items() if case.family.ndim == 2}
    for title, row in table.items():
        assert int(re.match(r"\d+", row[1])[0]) == cases[title].family.num_params, title


def test_the_table_has_the_dimensions(figures):
    def exists(name, d):
        lattice = (4,) * d
        family = getattr(stn, name)
        by_size = (stn.ThinPlateSpline, stn.BSpline, stn.DisplacementField, stn.VelocityField, stn.CPAB)
        try:
            return (family(lattice) if family in by_size else family(d)).ndim == d
        except ValueError:
            return False

    table = rows(figures)
    for name in set(FAMILIES) - {"Compose", "Corners", "Polar"}:  # composes any; the other two take no dimension
        assert table[name][2] == ", ".join(f"{d}D" for d in (1, 2, 3) if exists(name, d)), name


def test_the_table_says_which_have_an_inverse(figures, cases):
    for title, row in rows(figures).items():
        case = cases[title]
        try:
            theta = case.family.inverse(case.theta)
        except ValueError:
            assert "points" in row[3] or "inverted" in row[3], title
            continue
        assert "theta" in row[3], title
        points = torch.tensor([[[0.1, -0.2], [-0.3, 0.2]]])
        back = case.family.map_points(theta, case.family.map_points(case.theta, points))
        assert (back - points).abs().max() < (0.03 if "about" in row[3] else 1e-5), title


def test_the_table_says_which_do_not_fold(figures, cases):
    said = {title: row[6] for title, row in rows(figures).items()}
    for title, words in said.items():
        family, theta = cases[title].family, cases[title].theta
        if words == "no":
            theta = 0.4 * torch.randn(4, family.num_params)
        if words == "no" or words.startswith("smooth"):
            assert not family.folds(theta, (32, 48)).any(), title
        if words == "can":
            assert family.folds(0.4 * torch.randn(4, family.num_params), (32, 48)).any(), title
    assert list(said.values()).count("no") > 6


def test_the_table_says_which_are_closed_and_what_bounds_them(figures):
    for title, row in rows(figures).items():
        family = getattr(stn, title.partition(",")[0])
        if family is stn.Compose:
            continue
        assert (row[4] == "yes") == (family.compose is not stn.AbstractTransform.compose), title
        bounds = {name for name in inspect.signature(family).parameters if name.startswith("max_")} - {"max_radius"}
        assert set(re.findall(r"`(\w+)`", row[5])) == bounds, title


def test_every_cost_is_measured_and_counted_in_affine_ones(figures):
    costs = {title: float(row[-1]) for title, row in rows(figures).items()}
    assert costs["Affine"] == 1
    assert min(costs.values()) > 0


def test_costs_are_written_into_their_rows(figures):
    table = (
        "| family | x | cost |\n|---|---|---|\n| [A](#a) | 2 |  |\n| [A, b](#a-b) | 3 | 7.0 |\n| [C](#c) | 4 | 5.0 |"
    )
    filled = figures.with_costs(table, {"A": 1.0, "A, b": 2.26}).splitlines()
    assert filled[:2] == table.splitlines()[:2]
    assert filled[2:] == ["| [A](#a) | 2 | 1.0 |", "| [A, b](#a-b) | 3 | 2.3 |", "| [C](#c) | 4 | 5.0 |"]


def test_costs_are_those_of_the_plane_against_the_first(figures, cases):
    some = [cases[title] for title in ("Translation", "Rotation", "Rotation in 3D")]
    costs = figures.measure(some, rounds=1)
    assert costs.keys() == {"Translation", "Rotation"}
    assert costs["Translation"] == 1


def test_what_is_put_between_marks_replaces_only_that(figures, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\n<!-- /x -->\nb\n")
    for content in ("one", "two\nthree"):
        figures.put_between(page, "x", content)
        assert page.read_text() == f"a\n<!-- x -->\n{content}\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="marker"):
        figures.put_between(page, "y", "")
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere_and_every_picture_is_shown(page):
    text = page.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (DOCS / target).is_file(), target


def test_every_committed_picture_is_shown_and_small():
    shown = {name for page in PAGES for name in re.findall(r"\(figures/(.+?)\)", page.read_text(encoding="utf-8"))}
    committed = {path.name: path for path in (DOCS / "figures").iterdir()}
    assert shown == set(committed)
    for path in committed.values():
        assert path.stat().st_size < 150_000, path
        assert colors(path) > 20, path


@pytest.mark.parametrize("title", ["Affine", "Polar", "CPAB in 1D", "Rotation in 3D"])
def test_a_picture_shows_something_and_comes_out_the_same(figures, cases, tmp_path, title):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    for path in (one, two):
        figures.save(figures.draw(cases[title], height=48), path)
    assert one.read_bytes() == two.read_bytes()
    assert (pixels(one)[..., 3] > 0).mean() > 0.1
    assert colors(one) > 20


def test_a_picture_shows_the_warp(figures, cases):
    """The lines on the photograph pass where the family reads, and the third part is the warped photograph."""
    case = cases["Translation"]
    figure = figures.draw(case, height=48)
    reads, _, photo = figure.axes
    h, w = case.image.shape[2:]
    bound = case.family.max_shift
    shift = bound * torch.tanh(case.theta[0] / bound) * torch.tensor([w, h]) / 2
    corner = reads.lines[0].get_xydata()[0]
    np.testing.assert_allclose(corner, shift - 0.5, atol=1e-3)
    shown = photo.images[0].get_array()
    expected = stn.warp(case.image, case.theta, shown.shape[:2], transform=case.family, antialias=True)
    inside = shown[..., 3] > 0.999
    assert 0.3 < inside.mean() < 0.9  # the rest lies outside the photograph
    np.testing.assert_allclose(shown[inside, :3], expected[0].movedim(0, -1).numpy()[inside], atol=2e-3)


def test_theta_in_words(figures, cases):
    assert figures._in_words(cases["Rigid"]).splitlines() == ["angle  −0.35", "shift x  −0.20", "shift y  0.00"]
    assert figures._in_words(cases["ThinPlateSpline"]).startswith("32 numbers\n")
    assert figures._in_words(cases["ThinPlateSpline"]).endswith("…")
    assert figures._number(-0.001) == "0.00"


def test_snippets_of_antialiasing_run():
    blocks = python_blocks(DOCS / "antialiasing.md")
    assert blocks
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["theta"].grad.abs().sum() > 0
    assert names["transformer"](names["photo"]).shape == (1, 3, 16, 24)


def test_a_zone_plate_reaches_the_finest_pattern_at_its_edge(figures):
    row = figures.zone_plate((64, 64))[0, 0, 32]
    flips = row.diff().sign().diff() != 0
    assert flips[-6:].all()  # up and down with every pixel
    assert not flips[32:38].any()


def test_the_errors_on_the_page_are_those_measured(figures):
    images = figures.shrunk()
    table = figures.between(PAGES[1].read_text(encoding="utf-8"), "errors")
    stated = re.findall(r"[\d.]+", table)
    measured = re.findall(r"[\d.]+", figures.error_table(images))
    assert len(stated) == 3 * len(images) - table.count("exact")
    assert table.count("exact") == 2  # an eighth along x is whole pixels, read without smaller copies
    np.testing.assert_allclose(np.array(stated, float), np.array(measured, float), atol=2e-3, rtol=0.04)
    for image in images[:2]:
        without, with_it = image.errors()
        assert with_it < without / 2
        assert image.without.shape == image.with_it.shape == image.average.shape


@pytest.mark.slow
def test_the_command_makes_every_picture_of_the_pages(figures, tmp_path, monkeypatch):
    for page in PAGES:
        (tmp_path / page.name).write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(figures, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["figures.py", "--out", str(tmp_path / "figures")])
    figures.main()
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    assert made == {path.name for path in (DOCS / "figures").iterdir()}
    assert (tmp_path / PAGE.name).read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
