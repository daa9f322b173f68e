"""Networks that go to a folder or to the Hub, and come back; a server on this machine stands in for the Hub."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import pytest
import torch
from torch import Tensor, nn

import stn
from stn.weights import read_weights, serialize_weights
from stn_recipes import cli
from stn_recipes.recipes import recipe
from stn_recipes.run.folder import load_run
from stn_recipes.run.train import train

pytest.importorskip("huggingface_hub")
import stn.hub
from stn_recipes.publish import command, publish

FAMILY = {"name": "similarity", "max_angle": 0.5}


class Reader(nn.Module, stn.hub.HubMixin):
    """A module of a user's own; under this file's `annotations` the type of `transform` is text."""

    def __init__(self, transform: stn.AbstractTransform, classes: int = 10, localizer: nn.Module | None = None) -> None:
        super().__init__()
        localizer = localizer or stn.FCLocalizer(64, transform, hidden=(4,))
        self.transformer = stn.SpatialTransformer(localizer, transform)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
        self.tied = self.classifier[1]

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.transformer(image))


def stirred(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model.eval()


@pytest.mark.parametrize(
    "transform", [stn.Similarity(max_angle=1.0) @ stn.ThinPlateSpline((2, 3)), stn.ThinPlateSpline(torch.rand(5, 2))]
)
def test_a_module_of_ones_own_comes_back(tmp_path, transform):
    reader, image = stirred(Reader(transform, 3)), torch.rand(2, 1, 8, 8)
    reader.save_pretrained(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"transform": {"stn.transform": transform.config()}, "classes": 3, "localizer": None}
    back = Reader.from_pretrained(tmp_path)
    assert not back.training
    assert torch.equal(back(image), reader(image))
    assert back.transformer.transform.config() == transform.config()
    back.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config
    assert "Reader.from_pretrained" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["compact", "mnist_tutorial", "cnn"])
@pytest.mark.parametrize("transform", [FAMILY, "none"])
def test_a_network_by_name_comes_back_with_all_its_settings(tmp_path, name, transform):
    data = {"class_names": list("abc"), "mean": [0.5], "std": [0.25]}
    model = stirred(stn.hub.Classifier(name, transform=transform, num_classes=3, **data))
    model.save_pretrained(tmp_path)
    back = stn.hub.Classifier.from_pretrained(tmp_path)
    image = torch.rand(2, 1, 28, 28)
    assert torch.equal(back(back.normalize(image)), model((image - 0.5) / 0.25))
    assert back.class_names == ("a", "b", "c")
    assert isinstance(back, stn.models.TransformerClassifier)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {"dropout", "in_shape", "pool", "widen"} <= config.keys()
    if model.transformer is not None:
        assert config["transform"] == stn.Similarity(max_angle=0.5).config()


@pytest.fixture
def folder(tmp_path):
    stirred(Reader(stn.Affine(), 3)).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def other_weights(file):
    file.write_bytes(stn.hub.serialize_weights(Reader(stn.Affine(), 4).state_dict()))


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        ("config.json", lambda f: f.unlink(), "missing"),
        ("config.json", lambda f: f.write_text("{"), "damaged"),
        ("config.json", lambda f: f.write_text("[" * 100_000), "damaged"),
        ("config.json", lambda f: f.write_text("[1]"), "damaged .expected arguments"),
        ("config.json", lambda f: f.write_text('{"architectures": ["Bert"]}'), "of another model"),
        ("config.json", lambda f: f.write_text("{}"), "lacks the argument 'transform'"),
        ("config.json", lambda f: f.write_text('{"transform": {"stn.transform": {"name": "os.system"}}}'), "name: expected one of"),
        ("config.json", lambda f: f.write_text('{"transform": "affine", "classes": "many"}'), "no Reader can be made"),
        ("model.safetensors", lambda f: f.unlink(), "missing"),
        ("model.safetensors", lambda f: f.write_bytes(f.read_bytes()[:-8]), "damaged"),
        ("model.safetensors", lambda f: f.write_bytes(b"\x80\x04K\x01."), "damaged"),
        ("model.safetensors", flip, "damaged, the weights are not those"),
        ("model.safetensors", other_weights, "another network"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_folder_is_refused_by_the_name_of_the_file(folder, file, harm, message):
    harm(folder / file)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ValueError, match=rf"saved/{file}: .*{message}"):
        Reader.from_pretrained(folder)


def test_what_cannot_be_kept_is_refused_and_what_is_there_stays(folder):
    before = (folder / "config.json").read_text()
    with pytest.raises(ValueError, match=r"config.json: cannot hold the argument 'localizer' of Reader"):
        Reader(stn.Affine(), localizer=stn.FCLocalizer(64, stn.Affine())).save_pretrained(folder)
    assert (folder / "config.json").read_text() == before
    (folder / "README.md").write_text("mine")
    Reader(stn.Rotation()).save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    assert Reader.from_pretrained(folder).transformer.transform.config() == stn.Rotation().config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pol": 2}, r"options: .*did you mean 'pool'"),
        ({"network": "compactt"}, "name: .*did you mean 'compact'"),
        ({"class_names": ["a"]}, "class_names: expected 10"),
        ({"mean": [0.1, 0.2]}, "mean: expected 1 finite"),
        ({"std": [0.0]}, "std: expected numbers above 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        stn.hub.Classifier(**options)


def test_neither_a_folder_nor_a_repository():
    with pytest.raises(ValueError, match="expected a folder that is there, or USER/NAME"):
        Reader.from_pretrained("./no/such/folder")


def test_the_library_does_not_need_the_hub():
    code = "import sys; sys.modules['huggingface_hub'] = None; import stn\ntry:\n import stn.hub\nexcept ImportError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'spatial-transformers[hub]'" in done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("runs") / "run")
    small = replace(recipe("digits"), network="mnist_tutorial", epochs=1, limit_train=64, threads=1)
    return train(replace(small, transformer=FAMILY, control=True, out=out))


def test_a_run_is_published_with_a_card(run, tmp_path, capsys):
    assert cli.main(["publish", str(run), "--out", str(tmp_path / "out"), "--license", "mit"]) == 0
    loaded, back = load_run(run), stn.hub.Classifier.from_pretrained(tmp_path / "out")
    images = torch.rand(2, *loaded.facts.input_shape)
    assert torch.equal(back(images), loaded.model(images))
    assert back.class_names == loaded.facts.class_names
    card = (tmp_path / "out" / "README.md").read_text()
    control = load_run(run / "control").result
    said = [f"{100 * r.test_accuracy:.2f} %" for r in (loaded.result, control)]
    said += ["license: mit", f"{control.parameters:,}", "seed 0", torch.__version__, "rotated, scaled and shifted"]
    for fact in said:
        assert fact in card, fact
    assert str(run) not in card  # no folder of this machine
    assert cli.main(["publish", str(run)]) == 1
    assert "expected a folder, or --repo USER/NAME" in capsys.readouterr().err


def test_the_command_on_the_card_says_every_setting():
    config = replace(recipe("digits"), transformer=FAMILY, penalties={"fold": 1.0}, clip=None, antialias=True, lr=0.02)
    words = command(replace(config, image_size=(32, 48), data_dir="/home/me"), control=True)
    assert "/home/me" not in words
    parser = cli._build(argv := [cli._with_underscores(word) for word in shlex.split(words)[1:]])
    given = parser.parse_args(argv, defaults=False)["train"]
    names = ("transformer", "penalties", "clip", "antialias", "lr", "control")
    assert {n: given[n] for n in names} == {**{n: getattr(config, n) for n in names}, "control": True}
    assert given["image_size"] == (32, 48)


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as writing and reading a repository takes."""

    files: dict[str, bytes]
    asked: list[str]

    def answer(self, content=b"", status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), "X-Repo-Commit": "0" * 40, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        path, body = urlparse(self.path).path, self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(path)
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.answer({"error": "who?"}, 401)
        elif path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/me/reader"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"http://{self.headers['Host']}/me/reader/commit/1", "commitOid": "0" * 40})

    def do_GET(self):
        path = urlparse(self.path).path
        name = path.rpartition("/")[2]
        self.asked.append(path)
        if path.startswith("/api/models/me/reader/tree"):
            rows = [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in self.files.items()]
            self.answer(rows)
        elif path.startswith("/api/models/me/reader"):
            self.answer({"id": "me/reader", "sha": "0" * 40, "siblings": [], "tags": []})
        elif "/resolve/" in path and name in self.files:
            self.answer(self.files[name], ETag=f'"{_oid(self.files[name])}"')
        else:
            self.answer({"error": "not found"}, 404)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def _oid(content):
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub():
    handler = type("OneHub", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def with_hub(hub, home, *words, token="hf_test"):
    """A process whose Hub is the one on this machine."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    return subprocess.run([sys.executable, *words], env=clean | own, capture_output=True, text=True, timeout=120)


def test_a_run_goes_to_the_hub_and_is_read_from_it(run, hub, tmp_path):
    publishing = ["-m", "stn_recipes", "publish", str(run), "--repo", "me/reader"]
    done = with_hub(hub, tmp_path, *publishing)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(f"{hub.url}/me/reader")
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    reading = (
        "import stn.hub, torch; model = stn.hub.Classifier.from_pretrained('me/reader'); "
        "print(model(torch.ones(1, 1, 42, 42)).tolist()); model.push_to_hub('me/reader')"
    )
    done = with_hub(hub, tmp_path, "-c", reading)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(
            torch.tensor(json.loads(done.stdout.splitlines()[0])), load_run(run).model(torch.ones(1, 1, 42, 42))
        )
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:100]
    done = with_hub(hub, tmp_path / "anew", "-c", reading)
    assert "model.safetensors: damaged" in done.stderr
    done = with_hub(hub, tmp_path, *publishing, token="hf_wrong")
    assert done.returncode == 1
    assert "repo: me/reader was not written" in done.stderr
    assert "Traceback" not in done.stderr


def test_publish_asks_for_a_finished_run(run, tmp_path):
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(ValueError, match="expected a finished run"):
        publish(tmp_path, out=tmp_path / "out")


def test_equal_weights_are_equal_files(tmp_path):
    weights = {f"layer {n} \u00e4": torch.randn(n + 1, 3) for n in range(5)}
    files = {serialize_weights(dict(reversed(weights.items())) if n % 2 else weights) for n in range(40)}
    assert len(files) == 1
    (tmp_path / "model.safetensors").write_bytes(files.pop())
    back = read_weights(tmp_path / "model.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())
