"""Tables of runs: the figures by hand, never an average over different settings, and the page in a browser."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import binomtest
from test_report import PROBE, browser, chromium
from test_sweep import done

from stn_recipes.cli import main
from stn_recipes.recipes import PRESETS, RECIPES, recipe
from stn_recipes.recipes.published import published
from stn_recipes.report.table import as_csv, as_markdown, as_text, details, matrix, notes, read_table
from stn_recipes.report.table_page import build_page
from stn_recipes.run.folder import RunError, load_run, write_config
from stn_recipes.run.train import train

R = recipe("mnist_r")

# Of 1000 test images, by seed.
WRONG = {
    "affine": {0: (1, 2, 3), 1: (4, 5), 2: (6, 7, 8, 9)},
    "none": {0: (1, 2, 10, 11, 12, 13), 1: (4, 20, 21, 22, 23, 24), 2: (30, 31, 32, 33, 34, 35, 36)},
}


def make(folder: Path) -> Path:
    for family, seeds in WRONG.items():
        for seed, wrong in seeds.items():
            done(folder / f"{family}-s{seed}", replace(R, transformer=family, seed=seed), wrong, images=1000)  # type: ignore[arg-type]
    return folder


def test_the_figures(tmp_path: Path) -> None:
    table = read_table(make(tmp_path))
    affine, none = table.cells
    assert (affine.row, affine.column, none.column) == (("mnist_r",), ("affine",), ("none",))
    errors = [0.3, 0.2, 0.4]
    assert affine.errors == pytest.approx(errors)
    assert affine.mean == pytest.approx(0.3)
    assert affine.deviation == pytest.approx(statistics.stdev(errors))
    assert affine.control is none
    # By hand: seed 0 wins 10 to 13 and loses 3, seed 1 wins 20 to 24 and loses 5, seed 2 wins 7 and loses 4.
    assert (affine.paired.wins, affine.paired.losses) == (4 + 5 + 7, 1 + 1 + 4)
    assert affine.paired.chance == pytest.approx(binomtest(16, 22).pvalue)
    assert none.control is none.paired is None
    assert (affine.parameters, affine.minutes, affine.published.error) == (1000, 1.0, 0.7)
    assert matrix(table) == [["recipe", "affine", "none"], ["mnist_r", "0.30 ± 0.10", "0.63 ± 0.06"]]
    assert matrix(table, paper=True)[1] == ["mnist_r", "0.30 ± 0.10 (0.7)", "0.63 ± 0.06 (1.2)"]


def test_only_seeds_that_both_have_are_paired(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "none-s1" / "mistakes.json").unlink()  # of a version that did not keep them
    (tmp_path / "none-s2" / "result.json").unlink()  # unfinished
    table = read_table(tmp_path)
    affine, none = table.cells
    assert (affine.paired.wins, affine.paired.losses) == (4, 1)
    assert none.errors == pytest.approx([0.6, 0.6])  # of which one is what result.json says
    assert none.unfinished == 1
    assert "1 run not finished: none-s2." in notes(table)


def test_runs_of_different_settings_are_rows_of_their_own(tmp_path: Path) -> None:
    make(tmp_path)
    for seed in (0, 1):
        done(tmp_path / f"short-s{seed}", replace(R, seed=seed, epochs=5), (1, 2, 3, 4, 5), images=1000)
    done(tmp_path / "short-s0" / "control", replace(R, epochs=5, transformer="none"), (1,), images=1000)
    table = read_table(tmp_path)
    assert table.rows == ("recipe", "epochs")
    assert matrix(table) == [
        ["recipe epochs", "affine", "none"],
        ["mnist_r, 5", "0.50 ± 0.00", "0.10"],
        ["mnist_r, 50", "0.30 ± 0.10", "0.63 ± 0.06"],
    ]
    short = table.cells[0]
    assert short.control is table.cells[1]  # of as many epochs
    assert (short.paired.wins, short.paired.losses) == (0, 4)
    assert table.configurations == 4
    assert short.tried == 2  # whatever the family
    assert "4 configurations tried" in " ".join(notes(table))
    with pytest.raises(ValueError, match=r"those of mnist_r, affine differ in epochs; add it: --rows recipe,epochs"):
        read_table(tmp_path, rows=["recipe"])
    turned = read_table(tmp_path, rows=["transformer"], columns=["recipe", "epochs"])
    assert matrix(turned)[1:] == [["affine", "0.50 ± 0.00", "0.30 ± 0.10"], ["none", "0.10", "0.63 ± 0.06"]]
    assert [cell.control is not None for cell in turned.cells] == [True, True, False, False]


def test_families_with_options(tmp_path: Path) -> None:
    for angle in (0.5, 1.0):
        bounded = {"name": "similarity", "max_angle": angle}
        done(tmp_path / f"{angle}", replace(R, transformer=bounded), (1,))
    done(tmp_path / "none", replace(R, transformer="none"), (1, 2))
    table = read_table(tmp_path)
    assert [cell.control is not None for cell in table.cells] == [True, True, False]  # the control is the last
    assert matrix(table)[0][1:] == ["similarity max_angle=0.5", "similarity max_angle=1.0", "none"]


def test_what_does_not_change_a_result_makes_no_row(tmp_path: Path) -> None:
    for seed, workers in ((0, 0), (1, 2)):
        done(tmp_path / f"s{seed}", replace(R, seed=seed, num_workers=workers, threads=1, data_dir=f"{seed}"), (1,))
    assert len(read_table(tmp_path).cells) == 1


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    for rows, columns, said in (
        (["recip"], ["transformer"], "rows: expected settings, any of recipe, .* got 'recip'"),
        (["recipe"], ["seed"], "columns: expected settings, .* got 'seed'"),
        (["recipe"], ["recipe"], "columns: expected other settings than the rows, got recipe"),
    ):
        with pytest.raises(ValueError, match=said):
            read_table(tmp_path, rows, columns)
    with pytest.raises(RunError, match="expected finished runs, found 0 unfinished ones"):
        read_table(tmp_path)
    with pytest.raises(RunError, match="expected a folder of runs"):
        read_table(tmp_path / "nowhere")
    (tmp_path / "begun").mkdir()
    write_config(tmp_path / "begun", R)
    with pytest.raises(RunError, match="found 1 unfinished"):
        read_table(tmp_path)


def test_text_markdown_and_csv(tmp_path: Path) -> None:
    table = read_table(make(tmp_path))
    text = as_text(table, paper=True)
    assert re.search(r"mnist_r +0\.30 ± 0\.10 \(0\.7\) +0\.63 ± 0\.06 \(1\.2\)", text)
    assert re.search(
        r"mnist_r +affine +3 +0\.30 +0\.10 +0\.63 +0\.7 +16 +6 +p = 0\.052 +0\.30 +1,000 +1\.0 +1 +0\n", text
    )
    assert "ST-CNN, Jaderberg et al. 2015" in text
    markdown = as_markdown(table)
    first = markdown.splitlines()[:3]
    assert first == ["| recipe | affine | none |", "| --- | ---: | ---: |", "| mnist_r | 0.30 ± 0.10 | 0.63 ± 0.06 |"]
    assert "| mnist_r | none | 3 | 0.63 | 0.06 | - | 1.2 | - | - | - |" in markdown
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [float(row["error %"]) for row in rows] == pytest.approx([0.3, 19 / 30])
    assert float(rows[0]["by chance"]) == pytest.approx(binomtest(16, 22).pvalue)
    assert rows[1]["control %"] == rows[1]["by chance"] == ""
    assert list(rows[0]) == list(details(table)[0])


def test_published_figures() -> None:
    wanted = {
        ("mnist_e", "tps"): 1.1,
        ("mnist_p", "none"): 1.5,
        ("mnist_tc", "affine"): 1.7,
        ("mnist_rts", "projective"): 0.6,
    }
    for (name, family), error in wanted.items():
        assert published(replace(recipe(name), transformer=family)).error == error  # type: ignore[arg-type]
    fully = replace(PRESETS["paper"]["mnist_e"], network="st_fcn", transformer="tps")
    assert published(fully) == (2.4, "ST-FCN, Jaderberg et al. 2015")
    assert published(recipe("digits")) is published(replace(R, transformer="cpab")) is None
    assert {"mnist_r", "mnist_tc"} <= set(RECIPES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs on digits with their weights, and one that is unfinished."""
    folder = tmp_path_factory.mktemp("sweep") / "of digits"
    config = replace(recipe("digits"), network="mnist_tutorial", epochs=1, limit_train=200, threads=1)
    for family in ("affine", "none"):
        train(replace(config, transformer=family, out=str(folder / family)))  # type: ignore[arg-type]
    (folder / "begun").mkdir()
    write_config(folder / "begun", replace(config, transformer="rotation"))
    return folder


def test_the_command_writes_all_of_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(runs)]) == 0
    said = capsys.readouterr().out
    assert as_text(read_table(runs)) in said
    assert f"Page: {runs / 'table.html'}" in said
    page = (runs / "table.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "of digits" in page
    assert "1 run not finished: begun." in page
    assert (runs / "table.md").read_text() == as_markdown(read_table(runs))
    assert (runs / "table.csv").read_text() == as_csv(read_table(runs))
    assert page.count("<img ") == 3  # before and after, and the control's only image
    assert page.count("<polygon") == 2
    assert main(["table", str(runs), "--rows", "nonsense"]) == 1
    assert "rows: expected settings" in capsys.readouterr().err


def test_the_picture_is_one_that_all_get_right(runs: Path) -> None:
    table = read_table(runs)
    wrong = {place for cell in table.cells for place in load_run(cell.runs[0].path).mistakes.wrong}
    data = table.cells[0].runs[0].data.test_data()
    first = next(place for place in range(len(data)) if place not in wrong)
    from stn_recipes.report.markup import uri
    from stn_recipes.report.study import statistics as normalized_by

    mean, std = normalized_by(table.cells[0].runs[0])
    assert uri((data.__getitems__([first])[0] * std + mean)[0]) in build_page(table, title="x")


def test_a_page_without_the_data_says_so(tmp_path: Path) -> None:
    make(tmp_path)
    page = build_page(read_table(tmp_path), title="x", paper=True, data_dir=str(tmp_path))
    assert "No pictures of mnist_r" in page
    assert str(tmp_path) not in page
    assert "published 0.7" in page
    assert "<img" not in page
    assert "16 : 6 against the control, p = 0.052" in page


@browser
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_a_browser_shows_all_of_it(runs: Path, tmp_path: Path, width: int, dark: bool) -> None:
    page = tmp_path / "page.html"
    text = build_page(read_table(runs), title="runs")
    probe = PROBE.replace('document.querySelector(".chart text")).fill', "document.body).color")
    inner = html.escape(text.replace("</body>", probe + "</body>"))
    page.write_text(f'<!doctype html><iframe width="{width}" height="1000" style="border:0" srcdoc="{inner}"></iframe>')
    dom = chromium(
        page, tmp_path / "profile", "--window-size=1400,1200",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=3000", "--dump-dom",
    )  # fmt: skip
    found = json.loads(html.unescape(re.search(r'data-probe="([^"]*)"', dom)[1]))  # type: ignore[index]
    assert found["width"] == width
    assert found["images"] == 3
    assert found["broken"] == found["unseen"] == 0
    assert found["scroll"] <= width
    assert found["wide"] == found["loaded"] == []
    page_light, ink_light = (sum(map(int, re.findall(r"\d+", found[name])[:3])) / 3 for name in ("page", "ink"))
    assert page_light < 60 < ink_light if dark else page_light > 200 > ink_light
