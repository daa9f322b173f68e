"""The page of `stn demo`: what it shows is what the networks make of the image."""

from __future__ import annotations

import http.server
import json
import queue
import shutil
import subprocess
import threading

import pytest
import torch
from PIL import Image, ImageDraw

from stn_recipes import cli, demo
from stn_recipes.config import TrainConfig
from stn_recipes.predict import read_image
from stn_recipes.publish import publish
from stn_recipes.run.folder import load_run
from stn_recipes.run.train import train

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return train(
        TrainConfig(
            distortion="r",
            epochs=2,
            batch_size=32,
            limit_train=256,
            lr=0.05,
            out=str(folder),
            control=True,
            progress=False,
        )
    )


@pytest.fixture(scope="module")
def digit():
    """A seven, dark on white, as it is drawn."""
    image = Image.new("RGB", (280, 280), "white")
    ImageDraw.Draw(image).line([(70, 60), (210, 60), (130, 230)], fill="black", width=28, joint="curve")
    return image


def test_it_reads_what_the_network_reads(run, digit, tmp_path):
    reader, control = demo.readers(run)
    digit.save(tmp_path / "digit.png")
    seen = demo.look(reader, control, digit)
    loaded = load_run(run)
    channels, height, width = loaded.facts.input_shape
    image = read_image(tmp_path / "digit.png", channels, (height, width))
    mean, std = (torch.tensor(of).reshape(1, -1, 1, 1) for of in (loaded.facts.mean, loaded.facts.std))
    with torch.no_grad():
        wanted = loaded.model((image - mean) / std)[0].softmax(0)
        other = load_run(run / "control")
        others = other.model((image - mean) / std)[0].softmax(0)
    assert list(seen.read) == list(loaded.facts.class_names)
    assert list(seen.read.values()) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert list(seen.control.values()) == pytest.approx(others.tolist(), abs=1e-5)
    assert max(seen.after.size) == demo.SIDE < max(seen.before.size)  # room for the frame
    frame = [color for _, color in seen.before.getcolors(1 << 20) if color == (255, 166, 26)]
    assert frame


def test_sliders_move_what_comes_in(run, digit):
    reader, _ = demo.readers(run)
    plain, turned, shifted = (
        demo.look(reader, None, digit, **motion).read for motion in ({}, {"rotation": 90}, {"shift": 0.2})
    )
    by_hand = demo.look(reader, None, digit.rotate(90, fillcolor="black")).read
    assert list(turned.values()) == pytest.approx(list(by_hand.values()), abs=1e-4)  # Pillow turns counterclockwise
    assert plain != turned
    assert plain != shifted


def test_a_drawing_is_light_on_black_for_gray_images_and_nothing_is_nothing(digit):
    strokes = digit.convert("RGBA")
    gray, colour = demo.drawn({"composite": strokes}, 1), demo.drawn({"composite": strokes}, 3)
    assert (gray.mode, gray.getpixel((0, 0)), gray.getpixel((140, 60))) == ("L", 0, 255)
    assert (colour.getpixel((0, 0)), colour.getpixel((140, 60))) == ((255, 255, 255), (0, 0, 0))
    assert demo.drawn(None, 1) is None
    assert demo.drawn({"composite": Image.new("RGBA", (9, 9))}, 1) is None


def test_a_published_network_is_shown_too(run, digit, tmp_path):
    published = publish(run, out=tmp_path / "published")
    reader, control = demo.readers(published)
    assert control is None
    assert demo.look(reader, None, digit).read == pytest.approx(
        demo.look(demo.readers(run)[0], None, digit).read, abs=1e-5
    )


def test_without_a_run_the_newest_is_taken_or_it_says_what_to_do(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^run: expected the folder of a run.*stn train digits"):
        demo.readers(None)
    shutil.copytree(run, tmp_path / "runs" / "mine")
    assert demo.readers(None)[0].name == "mine"


def test_without_gradio_it_says_what_to_install(run, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert cli.main(["demo", str(run)]) == 1
    assert "spatial-transformers[demo]" in capsys.readouterr().err


@pytest.fixture(scope="module")
def served(run):
    """The address of the page, with a script that a test puts in its head."""
    gradio = pytest.importorskip("gradio", reason="Gradio (extra [demo]) is not installed")
    assert gradio
    pages = []

    def serve(head=None):
        page = demo.page(*demo.readers(run))
        pages.append(page)
        options = demo.launch_options() | ({"head": head} if head else {})
        return page.launch(prevent_thread_lock=True, quiet=True, **options)[1]

    yield serve
    for page in pages:
        page.close()


def test_a_client_gets_pictures_and_readings(served, run, digit, tmp_path):
    client = pytest.importorskip("gradio_client")
    digit.save(tmp_path / "digit.png")
    file = client.handle_file(str(tmp_path / "digit.png"))
    before, after, read, control = client.Client(served(), verbose=False).predict(
        None, file, 30, 1.0, 0.0, api_name="/look"
    )
    seen = demo.look(*demo.readers(run), digit, 30)
    assert Image.open(before).size == seen.before.size
    assert Image.open(after).size == seen.after.size
    assert read["label"] == max(seen.read, key=seen.read.get)
    assert control["label"] == max(seen.control, key=seen.control.get)


MOVER = """<script>
const until = async (found) => { while (!found()) await new Promise((done) => setTimeout(done, 50)); return found(); };
const set = (input, value) => {
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, value);
  for (const name of ["input", "change", "pointerup"]) input.dispatchEvent(new Event(name, { bubbles: true }));
};
const state = () => ({
  ...Object.fromEntries(["read", "control"].map(  // without the seconds that are shown for a while
    (name) => [name, document.querySelector(`#${name}`)?.innerText.split("reads\\n")[1]])),
  pictures: [...document.images].map((image) => image.src).filter((source) => source.includes("/file=")),
});
(async () => {
  const upload = await until(() => {  // the tab is there before it answers, and twice: once to be measured
    [...document.querySelectorAll("button[role=tab]")].filter((b) => /Photograph/.test(b.textContent)).forEach((b) => b.click());
    return document.querySelector("#photo input[type=file]");
  });
  const canvas = Object.assign(document.createElement("canvas"), { width: 280, height: 280 });
  const pen = canvas.getContext("2d");
  pen.fillRect(0, 0, 280, 280);
  Object.assign(pen, { strokeStyle: "white", lineWidth: 28 });
  pen.beginPath(); pen.moveTo(70, 60); pen.lineTo(210, 60); pen.lineTo(130, 230); pen.stroke();
  const blob = await new Promise((done) => canvas.toBlob(done));
  const files = new DataTransfer();
  files.items.add(new File([blob], "seven.png", { type: "image/png" }));
  upload.files = files.files;
  upload.dispatchEvent(new Event("change", { bubbles: true }));
  await until(() => /%/.test(state().read) && /%/.test(state().control));
  const first = state();
  set(document.querySelector("#rotation input[type=number]"), 90);
  await until(() => state().read !== first.read && state().control !== first.control && /%/.test(state().control));
  await new Promise((done) => setTimeout(done, 500));
  await fetch("BACK", { method: "POST", mode: "no-cors", body: JSON.stringify([first, state()]) });
})();
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_in_a_browser_a_photograph_is_dropped_and_turned(served, run, tmp_path):
    answers = queue.Queue()

    class Back(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    back = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Back)
    threading.Thread(target=back.serve_forever, daemon=True).start()
    address = served(MOVER.replace("BACK", f"http://127.0.0.1:{back.server_port}/"))
    browser = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", address],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        first, turned = answers.get(timeout=150)
    finally:
        browser.terminate()
        browser.wait(30)
        back.shutdown()
    image = Image.new("L", (280, 280))
    ImageDraw.Draw(image).line([(70, 60), (210, 60), (130, 230)], fill=255, width=28, joint="curve")
    for seen, degrees in ((first, 0), (turned, 90)):
        wanted = demo.look(*demo.readers(run), image, degrees)
        for text, probabilities in ((seen["read"], wanted.read), (seen["control"], wanted.control)):
            best = max(probabilities, key=probabilities.get)
            shares = dict(zip((words := text.split()), words[1:], strict=False))
            assert float(shares[best].strip("%")) == pytest.approx(100 * probabilities[best], abs=8)  # strokes differ
    assert len(first["pictures"]) >= 2
    assert first["pictures"] != turned["pictures"]
