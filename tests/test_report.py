import base64
import html.parser
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from PIL import Image

import stn
from stn_recipes import report
from stn_recipes.config import TrainConfig
from stn_recipes.report.control import check_control
from stn_recipes.report.sections import cases, film, headline, robustness, theta, turn
from stn_recipes.report.study import Study
from stn_recipes.run.folder import RunError, by_class, load_run, mean_over_classes, write_config, write_record
from stn_recipes.run.train import evaluate, train

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images], width = document.documentElement.clientWidth;
  const inside = (node) => node.closest(".scroll, pre, svg") !== null;
  parent.document.documentElement.dataset.probe = JSON.stringify({
    width, images: images.length, broken: images.filter((image) => !image.naturalWidth).length,
    unseen: images.filter((image) => !image.getBoundingClientRect().width).length,
    scroll: document.documentElement.scrollWidth,
    wide: [...document.body.querySelectorAll("*")].filter((node) => !inside(node) &&
      node.getBoundingClientRect().right > width + 0.5).map((node) => node.outerHTML.slice(0, 120)),
    loaded: performance.getEntriesByType("resource").map((entry) => entry.name)
      .filter((name) => !name.startsWith("data:")),
    page: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector(".chart text")).fill,
  });
});
</script>"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with its control, hardly trained: there are errors to show."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = TrainConfig(
        distortion="r", epochs=2, batch_size=32, limit_train=256, lr=0.05, out=str(folder), control=True, progress=False
    )
    train(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustness, "ROTATIONS", (-90, 0, 90))
        patch.setattr(robustness, "SCALES", (0.6, 1.0, 1.6))
        report.write_report(folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(trained, tmp_path / "tiny")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(robustness, "ROTATIONS", (0, 90))
    monkeypatch.setattr(robustness, "SCALES", (1.0,))
    monkeypatch.setattr(robustness, "SHIFTS", (0.0,))
    monkeypatch.setattr(cases, "COUNT", 2)
    monkeypatch.setattr(film, "COLUMNS", 2)
    monkeypatch.setattr(turn, "ROTATIONS", (0, 90))
    monkeypatch.setattr(turn, "SCALES", (1.0,))
    monkeypatch.setattr(turn, "SHIFTS", (0.0,))


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words, self.styles = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "xlink:href", "data", "action", "poster")]

    def handle_data(self, data):
        (self.styles if self.tags and self.tags[-1] == "style" else self.words).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page_of(folder):
    return Page((folder / "report.html").read_text())


def test_the_page_stands_alone(trained):
    text = (trained / "report.html").read_text()
    page = Page(text)
    assert len(text) < 1.5e6
    assert page.tags.count("script") == 2  # the sliders, and what they show
    assert page.links
    assert [link for link in page.links if not link.startswith(("data:", "#"))] == []
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    targets = set(re.findall(r' id="([^"]+)"', text))
    assert {link[1:] for link in page.links if link.startswith("#")} <= targets
    assert len(re.findall(r' id="', text)) == len(targets)  # none twice


def test_every_image_in_the_page_decodes(trained):
    uris = [link for link in page_of(trained).links if link.startswith("data:image")]
    assert len(uris) > 50
    for uri in uris:
        picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert picture.convert("RGB").size == (28, 28)


def test_the_page_says_what_was_reached_and_how_to_repeat_it(trained):
    result, control = (json.loads((f / "result.json").read_text()) for f in (trained, trained / "control"))
    text = page_of(trained).text
    for of in (result, control):
        assert f"{100 * of['test_accuracy']:.2f}%" in text
        assert f"{of['parameters']:,}" in text
    gain = 100 * (result["test_accuracy"] - control["test_accuracy"])
    assert f"{gain:+.2f}".replace("-", "−") in text or abs(gain) < 0.005
    for version in result["versions"].values():
        assert version in text
    assert "tiny/config.yaml" in text
    assert "limit_train 256" in text
    assert "changed since" not in text
    assert "not finished" not in text


def test_the_page_tells_every_class_the_worst_first(trained, run, quick):
    loaded = load_run(trained)
    found, control = evaluate(loaded), evaluate(load_run(trained / "control"))
    assert loaded.result.classes == {name: asdict(one) for name, one in found.classes.items()}
    rows = re.search(r'<section id="classes">.*?</section>', (trained / "report.html").read_text(), re.DOTALL)[0]
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr><td>.*?</tr>", rows, re.DOTALL)]
    assert {row[0] for row in cells} == set("0123456789")
    for name, images, accuracy, _, others in cells:
        assert int(images) == found.classes[name].images
        assert accuracy == f"{100 * found.classes[name].accuracy:.2f}%"
        assert others == f"{100 * control.classes[name].accuracy:.2f}%"
    shares = [found.classes[row[0]].accuracy for row in cells]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    mean = sum(shares) / 10
    assert found.class_mean == pytest.approx(mean)
    assert f"it is {100 * mean:.2f}% ({100 * control.class_mean:.2f}% of the control)" in rows
    # Classes without a test image, and a run that was balanced.
    classes = by_class(torch.tensor([0, 0, 2]), torch.tensor([True, False, True]), ["a", "b", "c"])
    assert [one.accuracy for one in classes.values()] == [0.5, None, 1.0]
    assert mean_over_classes(classes) == 0.75
    write_config(run, replace(load_run(run).config, balance=True))
    report.write_report(run)
    assert "as many images of each class" in page_of(run).text
    assert "as many images of each class" not in page_of(trained).text


def test_the_log_has_every_epoch(trained):
    last = load_run(trained).metrics()[-1]
    text = page_of(trained).text
    assert "Log of 2 epochs" in text
    assert f"2 {last['train_loss']:.4f} {last['train_accuracy']:.2%} {last['val_loss']:.4f}" in text


def test_what_older_runs_counted_on_the_border_is_not_shown(run, quick):
    assert "contrast" in page_of(run).text
    assert " out of frame " in page_of(run).text
    for file in run.glob("logs/csv/*/metrics.csv"):
        file.write_text(file.read_text().replace("transformer_outside", "transformer_out_of_frame"))
    write_record(run / "result.json", replace(load_run(run).result, metrics_digest=None))
    text = page_of(report.write_report(run).parent).text
    assert "contrast" in text
    assert " out of frame " not in text


def test_figures_are_written_as_files(trained):
    found = {file.stem: Image.open(file) for file in (trained / "figures").iterdir()}
    sections = [section for section in report.SECTIONS if "classify" in section.tasks]
    assert set(found) == {name for section in sections for name in section.figures}
    for picture in found.values():
        assert min(picture.size) > 200
        assert picture.getpixel((0, 0))[3] == 0


def test_no_folder_of_the_machine_is_passed_on(run, tmp_path, quick):
    loaded = load_run(run)
    write_config(run, replace(loaded.config, data_dir=str(tmp_path / "secret")))
    command = f"stn train digits --data-dir {tmp_path / 'secret'} --out {run}"
    write_record(run / "result.json", replace(loaded.result, command=command))
    text = report.write_report(run).read_text()
    assert str(tmp_path) not in text
    assert "stn train digits --data-dir DATA --out tiny" in text


def test_class_names_are_text_and_nothing_else(trained, quick):
    loaded = load_run(trained)
    loaded.facts = replace(loaded.facts, class_names=tuple(f"<script>alert({n})</script>&" for n in range(10)))
    text = report.build(loaded).html
    page = Page(text)
    assert page.tags.count("script") == text.count("<script") == 2
    assert "<script>alert(3)</script>&" in page.text


def test_a_control_has_a_page_without_a_transformer(run, quick):
    page = page_of(report.write_report(run / "control").parent)
    assert "control without a transformer" in page.text
    assert "see the images as they are" in page.text or "sees the images as they are" in page.text
    assert "polygon" not in page.tags
    names = {file.stem for file in (run / "control" / "figures").iterdir()}
    assert names == {"curves", "confusion", "robustness"}


def test_figures_of_an_earlier_report_do_not_stay(run, quick):
    (run / "control" / "figures").mkdir()
    stale, foreign = (run / "control" / "figures" / name for name in ("theta.png", "mine.png"))
    stale.touch()
    foreign.touch()
    report.write_report(run / "control")
    assert not stale.exists()
    assert foreign.exists()


def test_an_interrupted_run_shows_what_there_is(run, quick):
    shutil.rmtree(run / "control")
    (run / "result.json").unlink()
    (run / "model.safetensors").unlink()
    text = page_of(report.write_report(run).parent).text
    assert "not finished" in text
    assert "after epoch 2 of 2" in text
    assert "of the last checkpoint" in text
    assert "Surest and wrong" in text
    shutil.rmtree(run / "checkpoints")
    text = page_of(report.write_report(run).parent).text
    assert "its weights cannot be read" in text
    assert "Log of 2 epochs" in text
    assert "Surest and wrong" not in text
    shutil.rmtree(run / "logs")
    assert "before the end of its first epoch" in page_of(report.write_report(run).parent).text


def test_an_unfinished_control_is_not_compared_with(run, quick):
    (run / "control" / "result.json").unlink()
    assert "Test accuracy, control" not in page_of(report.write_report(run).parent).text
    with pytest.raises(RunError, match="control: expected a finished run"):
        report.write_report(run, run / "control")


def test_a_control_on_other_images_is_refused(run):
    write_record(run / "control" / "data.json", replace(load_run(run / "control").facts, input_shape=(1, 42, 42)))
    with pytest.raises(RunError, match="control: expected a run on the same images"):
        report.write_report(run)


def change(folder, **settings):
    """A run with other settings in its config.yaml."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **settings}))


@pytest.mark.parametrize(
    ("expected", "settings"),
    [
        (r"a run without a transformer .*which has transformer 'affine'", {"transformer": "affine"}),
        (r"a run with the same dataset, digits, .*which has mnist", {"dataset": "mnist"}),
        (r"a run with the same distortion, r, .*which has rts", {"distortion": "rts"}),
        (r"a run with the same distortion, r, .*which has none", {"distortion": None}),
        (r"a run on the same test set, whose distortions are drawn by seed 0, .*with seed 3", {"seed": 3}),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_what_is_no_control_is_refused(run, expected, settings, told):
    change(run / "control", **settings)
    before = (run / "report.html").read_text()
    with pytest.raises(ValueError, match=f"^control: expected {expected}"):
        report.write_report(run, run / "control" if told else None)
    assert (run / "report.html").read_text() == before


def test_a_control_with_fewer_parameters_is_refused_unless_it_says_so(trained):
    loaded, control = load_run(trained), load_run(trained / "control")
    control.result = replace(control.result, parameters=1000)
    with pytest.raises(
        ValueError, match=r"^control: expected a run with at least about as many parameters, .* has 1,000"
    ):
        check_control(loaded, control)
    control.config.widen = False
    check_control(loaded, control)
    control.config.network = "mnist_tutorial"
    with pytest.raises(ValueError, match=r"^control: expected a run with at least about"):
        check_control(loaded, control)
    control.result = replace(control.result, parameters=10 * loaded.result.parameters)
    check_control(loaded, control)


def test_a_control_of_another_kind_is_called_what_it_is(run, quick):
    change(run / "control", network="mnist_tutorial")
    loaded, control = load_run(run), load_run(run / "control")
    control.model = load_run(run).model  # whose weights it has is not the question
    text = Page(report.build(loaded, control).html).text
    assert "the network mnist_tutorial without one" in text
    assert "the same kind of network without one" in page_of(run).text


def test_a_control_has_no_control(run):
    with pytest.raises(ValueError, match=r"^control: expected none for .*which has no transformer itself"):
        report.write_report(run / "control", run / "control")


def test_a_control_on_another_folder_of_images_is_refused(trained, tmp_path):
    loaded, control = load_run(trained), load_run(trained / "control")
    for of in (loaded, control):
        of.config.dataset, of.config.data_dir = "images", str(tmp_path / "a")
    check_control(loaded, control)
    control.config.data_dir = str(tmp_path / "b" / ".." / "a")
    check_control(loaded, control)
    control.config.data_dir = str(tmp_path / "b")
    check_control(loaded, control)  # moved: of the same statistics
    control.facts = replace(control.facts, mean=(0.1,))
    with pytest.raises(
        ValueError, match=r"^control: expected a run on the same folder of images, .*a, .*which has .*b$"
    ):
        check_control(loaded, control)


def test_a_result_that_cannot_be_measured_again_is_pointed_out(run, quick):
    write_record(run / "result.json", replace(load_run(run).result, test_accuracy=0.9999))
    assert "changed since" in page_of(report.write_report(run).parent).text


def test_a_report_that_fails_leaves_the_old_one(run, quick, monkeypatch):
    before = (run / "report.html").read_text()
    monkeypatch.setattr(headline, "sign_test", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report(run)
    assert (run / "report.html").read_text() == before
    assert [file.name for file in run.iterdir() if file.name.startswith(".")] == []


def test_cases_are_the_surest_and_the_median(trained):
    study = Study(load_run(trained))
    with torch.no_grad():
        outcome = study.outcome
        groups = cases.CASES.make(study).values["groups"]
    assert [len(group) for group in groups.values()] == [cases.COUNT] * 3
    assert all(case["correct"] for case in groups["best"])
    assert not any(case["correct"] for case in groups["worst"])
    assert groups["best"][0]["confidence"] == pytest.approx(float(outcome.confidence[outcome.correct].max()))
    assert groups["worst"][0]["confidence"] == pytest.approx(float(outcome.confidence[~outcome.correct].max()))
    assert groups["typical"][0]["confidence"] == pytest.approx(float(outcome.confidence.median()))
    assert len({case["truth"] for case in groups["best"]}) > 1


def test_robustness_is_that_of_warped_test_images(trained, monkeypatch):
    # 1e-9 goes through the warp, 0 does not.
    monkeypatch.setattr(robustness, "ROTATIONS", (0, 1e-9, 90))
    monkeypatch.setattr(robustness, "SCALES", (1.0, 1 + 1e-9, 0.6))
    monkeypatch.setattr(robustness, "SHIFTS", (0.0, 1e-9, 0.3))
    loaded = load_run(trained)
    with torch.no_grad():
        sweeps, count = robustness.sweep(Study(loaded))
        images, labels = loaded.data.test_data().__getitems__(range(count))
        turned = (loaded.model(images.rot90(1, (2, 3))).argmax(1) == labels).float().mean()
    assert count == 359
    assert len(sweeps) == 3
    for _, accuracies in sweeps.values():
        none, hardly, much = accuracies["transformer"]
        assert none == hardly == pytest.approx(loaded.result.test_accuracy, abs=1e-6)
        assert much != none
    by_angle = next(iter(sweeps.values()))[1]["transformer"]
    assert by_angle[2] == pytest.approx(float(turned), abs=1e-6)  # torch.rot90 turns counterclockwise


def test_sliders_turn_scale_and_shift_what_is_seen():
    y, x = torch.meshgrid(*2 * [torch.arange(41.0) - 20], indexing="ij")
    image = (-((x - 5) ** 2 + y**2) / 3).exp()[None, None]  # a spot 5 to the right of the centre
    moved = turn.moved(image, "zeros")
    at = {warp: i for i, warp in enumerate(turn.warps())}
    assert len(moved) == len(at) == len(turn.ROTATIONS) * len(turn.SCALES) * len(turn.SHIFTS)
    torch.testing.assert_close(moved[at[0, 1.0, 0.0]], image[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[at[90, 1.0, 0.0]], image[0].rot90(1, (1, 2)), atol=1e-4, rtol=0)
    for (degrees, scale, shift), one in zip(at, moved, strict=True):
        weights, angle = one[0] / one.sum(), math.radians(degrees)
        centre = float((weights * x).sum()), float((weights * y).sum())
        expected = 5 * scale * math.cos(angle) + 41 * shift, -5 * scale * math.sin(angle)
        assert centre == pytest.approx(expected, abs=0.1)


def test_pictures_keep_their_budget(monkeypatch):
    noise = [torch.rand(19 * 25, 3, 64, 48, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    fine, _ = turn.pictures(noise, [None, None])
    size = sum(len(one["uri"]) for one in fine)
    monkeypatch.setattr(turn, "BUDGET", size - 1)
    coarse, after = turn.pictures(noise, [None, None])
    assert sum(len(one["uri"]) for one in coarse) < size
    assert after == [None, None]
    assert coarse[0]["size"] == (30, 40)
    assert Image.open(io.BytesIO(base64.b64decode(coarse[0]["uri"].partition(",")[2]))).size == (25 * 30, 19 * 40)


def test_data_that_moved_is_found_where_it_is_said_to_be(run, tmp_path, quick):
    for folder in (run, run / "control"):
        change(folder, dataset="mnist", data_dir=str(tmp_path / "old"))
    text = report.write_report(run, data_dir=str(tmp_path / "new")).read_text()
    assert "its data set cannot be read" in text
    assert "DATA" in text
    assert str(tmp_path) not in text
    assert "/new" not in text


def test_a_turn_is_counterclockwise_and_a_magnification_is_of_the_content():
    image = torch.zeros(1, 1, 21, 21)
    image[0, 0, 10, 18] = 1  # on the right
    transform = stn.Similarity()
    turn = torch.tensor([[math.pi / 2, -math.log(1.25), 0.0, 0.0]])
    turned = stn.warp(image, turn, transform=transform)[0, 0]
    row, column = divmod(int(turned.argmax()), 21)
    assert (row, column) == (0, 10)  # at the top, 10 pixels from the centre where it was 8
    transformer = stn.SpatialTransformer(torch.nn.Identity(), transform)
    assert theta.in_words(transformer, turn, (21, 21)) == {"turn": "90°", "zoom": "1.25"}
    both = torch.cat([turn, torch.zeros(1, 4)]).repeat_interleave(50, 0)
    assert theta.in_words(transformer, both, (21, 21)) == {"turn": "0° to 90°", "zoom": "1.00 to 1.25"}


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 5), (1, 9), (14, 3), (0, 20)])
def test_the_sign_test_counts_both_tails_of_a_fair_coin(wins, losses):
    n = wins + losses
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n)
    assert headline.sign_test(wins, losses) == pytest.approx(expected)


@pytest.mark.parametrize("wins", [0, 7, 351, 359])
def test_the_interval_is_wilsons(wins):
    share, n, z = wins / 359, 359, 1.959964
    centre, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    expected = [(centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert headline.interval(share, n) == pytest.approx(expected, abs=1e-6)


# In a browser

browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


def chromium(page, profile, *options):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    return done.stdout


@browser
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_a_browser_shows_all_of_it(trained, tmp_path, width, dark):
    page = tmp_path / "page.html"
    text = (trained / "report.html").read_text()
    text = text.replace("<details", "<details open")  # what is folded must fit too
    inner = html.escape(text.replace("</body>", PROBE + "</body>"))
    # In a frame: a window is at least 500 wide.
    page.write_text(f'<!doctype html><iframe width="{width}" height="1000" style="border:0" srcdoc="{inner}"></iframe>')
    dom = chromium(
        page, tmp_path / "profile", "--window-size=1400,1200",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=3000", "--dump-dom",
    )  # fmt: skip
    found = json.loads(html.unescape(re.search(r'data-probe="([^"]*)"', dom)[1]))
    assert found["width"] == width
    assert found["images"] == text.count("<img ") > 50
    assert found["broken"] == found["unseen"] == 0
    assert found["scroll"] <= width
    assert found["wide"] == []
    assert found["loaded"] == []
    page_light, ink_light = (sum(map(int, re.findall(r"\d+", found[name])[:3])) / 3 for name in ("page", "ink"))
    assert page_light < 60 < ink_light if dark else page_light > 200 > ink_light


@browser
def test_screenshots_follow_light_and_dark(trained, tmp_path):
    corners, contrasts = [], []
    for scheme in (0, 1):
        file = tmp_path / f"{scheme}.png"
        chromium(
            trained / "report.html", tmp_path / "profile", "--window-size=1000,1400", f"--screenshot={file}",
            f"--blink-settings=preferredColorScheme={scheme}",
        )  # fmt: skip
        picture = Image.open(file).convert("L")
        corners.append(picture.getpixel((5, 5)))
        low, high = picture.getextrema()
        contrasts.append(high - low)
    assert corners[0] < 60
    assert corners[1] > 200
    assert min(contrasts) > 180


MOVES = [(9, 2, 2), (18, 2, 2), (3, 4, 1), (12, 0, 4)]  # of the sliders; the first is where they start
MOVER = """<script>
addEventListener("load", async () => {
  while (document.getElementById("turn").dataset.ready === undefined) await new Promise((done) => setTimeout(done, 5));
  const sliders = ["rotation", "scale", "shift"].map((name) => document.getElementById(`turn-${name}`));
  const started = sliders.map((slider) => slider.value);
  const seen = () => [...document.querySelectorAll(".turned")].map((card) => ({
    said: [".said", ".other"].map((name) => card.querySelector(name).innerText),
    frame: card.querySelector("polygon.line").getAttribute("points"),
    pixels: [".before", ".after"].map((name) => {
      const canvas = card.querySelector(name), { width, height } = canvas;
      const copy = Object.assign(document.createElement("canvas"), { width, height });
      const context = copy.getContext("2d", { willReadFrequently: true });
      context.drawImage(canvas, 0, 0);
      return [...context.getImageData(0, 0, width, height).data].filter((_, i) => i % 4 === 0);
    }),
  }));
  const found = MOVES.map((move) => {
    sliders.forEach((slider, i) => { slider.value = move[i]; slider.dispatchEvent(new Event("input")); });
    return [sliders.map((slider) => slider.nextElementSibling.textContent), seen()];
  });
  document.getElementById("turn-back").click();
  document.documentElement.dataset.probe = JSON.stringify({
    found, started, back: sliders.map((slider) => slider.value), again: seen(),
  });
});
</script>"""


@browser
def test_moving_the_sliders_moves_the_frame_the_image_and_what_is_read(trained, tmp_path):
    page = tmp_path / "page.html"
    text = (trained / "report.html").read_text()
    page.write_text(text.replace("</body>", MOVER.replace("MOVES", json.dumps(MOVES)) + "</body>"))
    dom = chromium(page, tmp_path / "profile", "--virtual-time-budget=5000", "--dump-dom")
    probe = json.loads(html.unescape(re.search(r'data-probe="([^"]*)"', dom)[1]))
    assert probe["started"] == probe["back"] == [str(n) for n in MOVES[0]]
    assert probe["again"] == probe["found"][0][1]
    assert [words for words, _ in probe["found"]] == [
        ["0°", "× 1.0", "0% of width"],
        ["90°", "× 1.0", "0% of width"],
        ["−60°", "× 1.4", "−10% of width"],
        ["30°", "× 0.6", "20% of width"],
    ]
    study = Study(load_run(trained), load_run(trained / "control"))
    with torch.no_grad():
        indices = cases.choose(study.outcome)["typical"][: turn.COUNT]
        images, labels = next(study.batches(indices))
        ways = list(turn.warps())
        for move, (_, cards) in zip(MOVES, probe["found"], strict=True):
            way = turn.ROTATIONS[move[0]], turn.SCALES[move[1]], turn.SHIFTS[move[2]]
            assert len(cards) == len(images) == turn.COUNT
            for card, image, label in zip(cards, images, labels, strict=True):
                mean, std = (
                    torch.tensor(of).reshape(1, -1, 1, 1) for of in (study.run.facts.mean, study.run.facts.std)
                )
                before = turn.moved(image[None] * std + mean, "zeros")[ways.index(way)][None]
                logits, warp = study.model.look((before - mean) / std)
                for seen, expected in zip(card["pixels"], (before, warp.output * std + mean), strict=True):
                    assert (torch.tensor(seen) / 255 - expected.clamp(0, 1).flatten()).abs().mean() < 0.05
                frame = torch.tensor([float(n) for n in card["frame"].split()]).reshape(-1, 2)
                torch.testing.assert_close(frame, warp.outline(1)[0, :-1], atol=0.051, rtol=0)
                control = study.networks[1]
                other = control.model(control.normalize((before - mean) / std))
                for line, said in zip(card["said"], (logits, other), strict=True):
                    best = int(said.argmax())
                    assert line.removeprefix("control: ").startswith(str(best))
                    assert ("but is" in line or "wrong" in line) == (best != int(label))
    frames = [[card["frame"] for card in cards] for _, cards in probe["found"]]
    assert all(one != frames[0] for one in frames[1:])
