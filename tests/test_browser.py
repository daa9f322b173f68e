"""The page that runs an exported network in the browser: its numbers are torch's."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from stn_recipes.config import TrainConfig
from stn_recipes.export import Deployed
from stn_recipes.run.folder import load_run
from stn_recipes.run.train import train

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)

FILE = Path(__file__).parents[1] / "examples" / "browser" / "build.py"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--timeout=60000", "--dump-dom",
)  # fmt: skip

spec = importlib.util.spec_from_file_location("build", FILE)
assert spec is not None
assert spec.loader is not None
page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_the_page_computes_what_torch_computes(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    try:
        page.fetch(page.CACHE)
    except (ValueError, OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"onnxruntime-web cannot be had: {error}")
    settings = TrainConfig(epochs=1, batch_size=32, limit_train=256, lr=0.01, progress=False, out=str(tmp_path / "run"))
    run = train(settings)
    file = tmp_path / "digits.html"
    page.build(run, file, count=6)
    found = None
    for seconds in (30, 120, 480):  # of the page's own clock, which runs ahead while WebAssembly is compiled
        profile = tmp_path / f"profile{seconds}"
        command = [CHROMIUM, *FLAGS, f"--virtual-time-budget={1000 * seconds}", f"--user-data-dir={profile}"]
        done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
        failed = re.search(r'data-failed="([^"]*)"', done.stdout)
        assert failed is None, html.unescape(failed[1])
        found = re.search(r'data-measured="([^"]*)"', done.stdout)
        if found is not None:
            break
    assert found is not None
    got = torch.tensor(json.loads(html.unescape(found[1]))["probabilities"])
    with torch.no_grad():
        want = Deployed(load_run(run))(page.samples(run, 6)[:, None] / 255)[0]
    assert want.std(0).max() > 1e-4  # the images are told apart
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_without_npm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^npm: expected on the PATH"):
        page.fetch(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_page_is_one_of_images_with_one_channel(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the folder of a run"):
        page.samples(tmp_path, 3)
