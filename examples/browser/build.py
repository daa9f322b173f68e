"""A run of digits in the browser: one page that holds the network, ONNX Runtime for WebAssembly and some images of the test set.

    stn train digits --out RUN
    python examples/browser/build.py RUN --out digits.html      # needs npm, and the extra [export]

Open the page as a file: nothing is loaded from elsewhere. npm fetches `onnxruntime-web` once, into ~/.cache/stn; the page is some 20 MB,
nearly all of it ONNX Runtime. `tests/test_browser.py` opens it in Chromium and compares its numbers with those of torch.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import torch

from stn_recipes.export import export
from stn_recipes.files import write_text
from stn_recipes.run.folder import load_run

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
LIBRARY, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
CACHE = Path.home() / ".cache" / "stn"


def fetch(cache: Path) -> Path:
    """The folder of ONNX Runtime's files, which npm fetches where they are not there."""
    folder = cache / f"{PACKAGE}-{VERSION}"
    if all((folder / name).exists() for name in (LIBRARY, WASM)):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"npm: expected on the PATH, to fetch {PACKAGE}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        command = [npm, "pack", "--silent", "--pack-destination", temporary, f"{PACKAGE}@{VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise ValueError(f"npm: expected to fetch {PACKAGE}@{VERSION}, got {done.stderr.strip()[-300:]}")
        unpacked = Path(temporary) / "unpacked"
        unpacked.mkdir()
        with tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
            for name in (LIBRARY, WASM):
                content = archive.extractfile(f"package/dist/{name}")
                assert content is not None
                (unpacked / name).write_bytes(content.read())
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)
    return folder


def samples(run: Path, count: int) -> torch.Tensor:
    """The first images of the run's test set, as bytes (N, H, W)."""
    loaded = load_run(run)
    if loaded.facts.input_shape[0] != 1:
        raise ValueError(f"run: expected one of images with one channel, got {loaded.facts.input_shape[0]}")
    data = loaded.data.test_data()
    images = data.__getitems__(list(range(count)))[0]
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (loaded.facts.mean, loaded.facts.std))
    return ((images * std + mean).clamp(0, 1) * 255).round().byte()[:, 0]


def build(run: Path, out: Path, cache: Path = CACHE, count: int = 20) -> None:
    """Write the page of a run."""
    runtime = fetch(cache)

    def text(content: bytes) -> str:
        return base64.b64encode(content).decode()

    with tempfile.TemporaryDirectory() as temporary:
        network, _ = export(run, "onnx", Path(temporary) / "network.onnx")
        settings = {
            "library": text((runtime / LIBRARY).read_bytes()),
            "wasm": text((runtime / WASM).read_bytes()),
            "network": text(network.read_bytes()),
            "samples": [text(image.numpy().tobytes()) for image in samples(run, count)],
            "size": load_run(run).facts.input_shape[1:],
            "classes": load_run(run).facts.class_names,
        }
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    content = json.dumps(settings).replace("</", "<\\/")  # a class may be called anything
    write_text(out, page.replace("/*SETTINGS*/null", content))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a page that runs the network of a run in the browser.")
    parser.add_argument("run", type=Path, help="folder of a run of digits")
    parser.add_argument("--out", type=Path, default=Path("build/digits.html"), help="the page")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    build(arguments.run, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
