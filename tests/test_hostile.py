"""Files that mean harm, and files that are only odd: nothing in them is executed, and what is read is read right."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import resource
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torture.memory import in_a_child

from stn_recipes.cli import main
from stn_recipes.data.images import load_image_folder
from stn_recipes.data.registry import DataError, load
from stn_recipes.predict import predict, read_image, warp_file
from stn_recipes.recipes import recipe
from stn_recipes.report.build import write_report
from stn_recipes.run.folder import load_run, read_checkpoint
from stn_recipes.run.train import resume, train

GIB = 1 << 30


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = dataclasses.replace(
        recipe("digits"), network="mnist_tutorial", epochs=1, limit_train=100, batch_size=50, threads=1, progress=False
    )
    return train(dataclasses.replace(config, out=str(tmp_path_factory.mktemp("hostile") / "run")))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a run, to be spoiled."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


def everything_reads(run: Path) -> list[str]:
    """What each way of reading a run says; whatever is not refused by name is an error of the test."""
    said = []
    for read in (
        lambda: load_run(run).model,
        lambda: load_run(run).facts,
        lambda: load_run(run).result,
        lambda: load_run(run).metrics(),
        lambda: load_run(run).filmstrip(),
        lambda: write_report(run),
        lambda: resume(run),
    ):
        try:
            read()
        except (ValueError, OSError) as error:
            said.append(str(error))
    return said


# Checkpoints and what lies beside them


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/last.ckpt",
        "model.safetensors",
        "filmstrip.npz",
    ],
)
@pytest.mark.parametrize("how", ["pickle", "torch.save", "numpy"])
def test_a_pickle_bomb_is_not_executed(run: Path, tmp_path: Path, name: str, how: str) -> None:
    trace = tmp_path / "executed"
    content = io.BytesIO()
    if how == "pickle":
        pickle.dump({"state_dict": Bomb(trace), "epoch": 1}, content)
    elif how == "torch.save":
        torch.save({"state_dict": {"w": Bomb(trace)}, "epoch": 1}, content)
    else:
        array = np.empty(1, dtype=object)
        array[0] = Bomb(trace)
        np.savez(content, images=array, theta=array, epochs=array)
    (run / name).write_bytes(content.getvalue())
    (run / "result.json").unlink()  # so that it is resumed
    if name == "checkpoints/last.ckpt":
        (run / "model.safetensors").unlink()
    said = everything_reads(run)
    assert not trace.exists()
    assert any(Path(name).name in line for line in said), said


def test_a_pickle_bomb_behind_the_settings_of_a_real_checkpoint(run: Path, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    file = run / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    content["callbacks"] = {"Watch": Bomb(trace)}
    torch.save(content, file)
    (run / "result.json").unlink()
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        resume(run)
    assert not trace.exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [{trace}]",
        "recipe: !!python/object/apply:os.mkdir [{trace}]",
        "recipe: !!python/object/new:os.mkdir [{trace}]",
        "? !!python/object/apply:os.mkdir [{trace}]\n: 1",
    ],
)
def test_yaml_tags_are_not_executed(run: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "executed"
    (run / "config.yaml").write_text(text.format(trace=trace))
    said = everything_reads(run)
    assert said
    assert all("config.yaml" in line for line in said)
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "other")]) != 0
    assert "Traceback" not in capsys.readouterr().err
    assert not trace.exists()


def test_yaml_that_grows_without_end_is_not_followed(run: Path) -> None:
    """The billion laughs: references to references."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]
    (run / "config.yaml").write_text("\n".join(lines))

    def read() -> str:
        resource.setrlimit(resource.RLIMIT_AS, (6 * GIB, resource.getrlimit(resource.RLIMIT_AS)[1]))
        with pytest.raises(ValueError, match=r"config\.yaml"):
            load_run(run)
        return "refused"

    assert in_a_child(read) == "refused"


def _deflated_zeros(path: Path, names: list[str], size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(name, "w", force_zip64=True) as entry:
                if name.endswith(".npy"):
                    header = io.BytesIO()
                    np.lib.format.write_array_header_1_0(
                        header, {"descr": "|u1", "fortran_order": False, "shape": (size,)}
                    )
                    entry.write(header.getvalue())
                zeros = bytes(1 << 24)
                for _ in range(size >> 24):
                    entry.write(zeros)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["filmstrip.npz", "checkpoints/last.ckpt"],
)
def test_a_zip_bomb_is_refused_by_name(run: Path, name: str) -> None:
    """4 GiB in 4 MiB."""
    names = ["images.npy", "theta.npy", "epochs.npy"] if name.endswith("npz") else ["archive/data.pkl"]
    (run / name).unlink()
    _deflated_zeros(run / name, names[:1], 4 * GIB)
    assert (run / name).stat().st_size < 8 << 20
    for other in names[1:]:
        with zipfile.ZipFile(run / name, "a", zipfile.ZIP_DEFLATED) as archive:
            content = io.BytesIO()
            np.save(content, np.zeros(1))
            archive.writestr(other, content.getvalue())

    def read() -> str:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + GIB, resource.getrlimit(resource.RLIMIT_AS)[1]))
        try:
            if name.endswith("npz"):
                load_run(run).filmstrip()
            else:
                read_checkpoint(run / name)
        except ValueError as error:
            return str(error)
        return "accepted"

    assert Path(name).name in in_a_child(read)


def test_names_that_climb_out_of_a_checkpoint_write_nothing(run: Path, tmp_path: Path) -> None:
    file = run / "checkpoints" / "last.ckpt"
    climbing = tmp_path / "climbing.ckpt"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(climbing, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry))
        new.writestr("../../../climbed", "x")
        new.writestr("last/../../../climbed", "x")
        new.writestr(str(tmp_path / "climbed"), "x")
    climbing.replace(file)
    (run / "result.json").unlink()
    (run / "model.safetensors").unlink()
    before = sorted(p for p in tmp_path.rglob("*climbed*"))
    everything_reads(run)
    assert sorted(p for p in tmp_path.rglob("*climbed*")) == before == []
    assert not (tmp_path.parent / "climbed").exists()


def test_weights_of_hostile_names_and_shapes_are_refused(run: Path) -> None:
    state = load_file(run / "model.safetensors")
    first = next(iter(state))
    for spoiled in (
        {**state, "../../evil": torch.zeros(1)},
        {**state, first: torch.zeros(3, 3)},
        {k: v for k, v in state.items() if k != first},
        {},
    ):
        save_file(spoiled, run / "model.safetensors")
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            _ = load_run(run).model
    # A header that claims more than there is.
    for length in (2**63, 2**31, 100_000_000):
        (run / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            _ = load_run(run).model


@pytest.mark.slow
def test_a_class_name_is_text_in_the_report(run: Path) -> None:
    facts = json.loads((run / "data.json").read_text())
    facts["class_names"][0] = "<script>alert(1)</script>"
    (run / "data.json").write_text(json.dumps(facts))
    try:
        page = write_report(run).read_text()
    except ValueError as error:
        assert "class_names" in str(error) or "data.json" in str(error)  # noqa: PT017 - refused is as good
        return
    assert "<script>alert" not in page


HUGE = '{"class_names": ["a"], "input_shape": [1, 1000000, 1000000], "mean": [0], "std": [1]}'
SOMETHING_ELSE = {
    "config.yaml": ("", "3", "[a]", "epochs: many", "epochs: 1\nimage_size: 3"),
    "data.json": ("null", "[]", "{}", '{"class_names": 3}', HUGE),
    "result.json": ("NaN", "\x00", "[]", "{}"),
    "model.safetensors": ("",),
    "filmstrip.npz": ("x", ""),
    "logs/csv/version_0/metrics.csv": ("epoch,train_loss\n0,many\n", "\x00\xff"),
}


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name, contents in SOMETHING_ELSE.items() for content in contents],
)
def test_a_file_of_something_else_is_refused_by_name(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)

    def read() -> None:
        loaded = load_run(run)
        _ = loaded.result, loaded.facts, loaded.metrics(), loaded.filmstrip(), loaded.model

    with pytest.raises(ValueError, match=Path(name).name):
        read()


# Data sets


def test_a_cifar_archive_is_read_in_memory_and_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, archive = tmp_path / "executed", tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in (
            ("../climbed", b"x"),
            ("/climbed", b"x"),
            *((f"cifar-10-batches-py/{n}", pickle.dumps({"data": Bomb(trace), "labels": [0]})) for n in (
                "data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta",
            )),
        ):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    # As if it were the official one.
    monkeypatch.setattr("pooch.file_hash", lambda *_, **__: "c58f30108f718f92721af3b95e74349a")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz"):
        load("cifar10", tmp_path)
    assert not trace.exists()
    assert not (tmp_path.parent / "climbed").exists()


# Images


def _png_of(width: int, height: int) -> bytes:
    """A PNG that claims to be large, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def odd_images(folder: Path) -> dict[str, tuple[Path, np.ndarray]]:
    """Images that are unusual and whole, and what they show, (H, W, 3)."""
    ramp = np.zeros((6, 8, 3), np.uint8)
    ramp[..., 0] = np.arange(8) * 30
    ramp[..., 1] = np.arange(6)[:, None] * 40
    ramp[..., 2] = 90
    grey = ramp[..., 0]
    found: dict[str, tuple[Path, np.ndarray]] = {}

    def keep(name: str, image: Image.Image, truth: np.ndarray, **options: object) -> None:
        path = folder / name
        image.save(path, **options)
        found[name] = (path, truth)

    plain = Image.fromarray(ramp)
    keep("cmyk.tif", plain.convert("CMYK"), ramp)
    keep("sixteen.png", Image.fromarray(grey.astype(np.uint16) * 257), np.repeat(grey[..., None], 3, -1))
    keep("sixteen.tif", Image.fromarray(grey.astype(np.uint16) * 257), np.repeat(grey[..., None], 3, -1))
    palette = plain.quantize(48, dither=Image.Dither.NONE)
    keep("palette.png", palette, np.asarray(palette.convert("RGB")))
    keep(
        "one_bit.png",
        Image.fromarray(grey > 100),
        np.repeat(np.where(grey > 100, 255, 0).astype(np.uint8)[..., None], 3, -1),
    )
    keep("alpha.png", Image.fromarray(np.dstack([ramp, np.full((6, 8), 200, np.uint8)])), ramp)
    others = [Image.fromarray(255 - ramp) for _ in range(3)]
    keep("animated.png", plain, ramp, save_all=True, append_images=others)
    keep("animated.webp", plain, ramp, save_all=True, append_images=others, lossless=True)
    for orientation, turned in (
        (3, ramp[::-1, ::-1]), (6, np.rot90(ramp, -1)), (8, np.rot90(ramp)), (2, ramp[:, ::-1]),
    ):  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        keep(f"turned{orientation}.png", plain, turned, exif=exif)
    return found


def test_odd_images_are_read_right_by_predict(tmp_path: Path) -> None:
    for name, (path, truth) in odd_images(tmp_path).items():
        pixels = read_image(path)
        assert pixels.shape == (1, 3, *truth.shape[:2]), name
        wanted = torch.from_numpy(truth.copy()).permute(2, 0, 1)[None].float() / 255
        # CMYK goes there and back.
        torch.testing.assert_close(pixels, wanted, rtol=0, atol=2.5 / 255, msg=lambda m, name=name: f"{name}: {m}")


def test_odd_images_are_read_right_as_data(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    images = odd_images(tmp_path / "odd")
    for name, (path, truth) in images.items():
        folder = tmp_path / f"set {name}"
        for label in "ab":
            (folder / label).mkdir(parents=True)
            for k in range(2):
                (folder / label / f"{k}{path.suffix}").write_bytes(path.read_bytes())
        train, _ = load_image_folder(folder, truth.shape[:2])
        wanted = torch.from_numpy(truth.copy()).permute(2, 0, 1)
        difference = (train.images[0].int() - wanted.int()).abs().max()
        assert int(difference) <= 2, (name, int(difference))


def bad_images(folder: Path) -> list[Path]:
    ramp = Image.fromarray(np.arange(3 * 64 * 64, dtype=np.uint8).reshape(64, 64, 3))
    paths = []
    for name in ("cut.png", "cut.jpg", "cut.webp", "cut.tif", "cut.gif", "cut.bmp"):
        whole = io.BytesIO()
        ramp.save(whole, format={"jpg": "JPEG", "tif": "TIFF"}.get(name[4:], name[4:].upper()))
        (folder / name).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        paths.append(folder / name)
    (folder / "bomb.png").write_bytes(_png_of(60_000, 60_000))
    (folder / "small_bomb.png").write_bytes(_png_of(12_000, 12_000))  # above the limit, below twice the limit
    (folder / "no_pixels.png").write_bytes(_png_of(0, 10))
    (folder / "text.png").write_text("not an image")
    (folder / "empty.jpg").write_bytes(b"")
    return [
        *paths,
        *(folder / name for name in ("bomb.png", "small_bomb.png", "no_pixels.png", "text.png", "empty.jpg")),
    ]


@pytest.mark.filterwarnings("ignore")
def test_bad_images_are_refused_by_name(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    for path in bad_images(tmp_path / "bad"):
        with pytest.raises(ValueError, match=path.name):
            read_image(path)
        with pytest.raises(ValueError, match=path.name):
            predict(run, [str(path)])
        with pytest.raises(ValueError, match=path.name):
            warp_file(path, tmp_path / "out.png")
        assert main(["warp", str(path), "--out", str(tmp_path / "out.png")]) == 1
        said = capsys.readouterr().err
        assert path.name in said
        assert len(said.splitlines()) <= 2
        folder = tmp_path / f"set {path.name}"
        for label in "ab":
            (folder / label).mkdir(parents=True)
            for k in range(3):
                Image.new("RGB", (8, 8), (10 * k, 0, 0)).save(folder / label / f"{k}.png")
        (folder / "a" / path.name).write_bytes(path.read_bytes())
        (folder / "a" / f"z{path.name}").write_bytes(path.read_bytes())
        with pytest.raises(DataError, match=path.name):
            load_image_folder(folder, (8, 8))
        train, test = load_image_folder(folder, (8, 8), on_bad_image="skip")
        assert len(train) + len(test) == 6
    assert not (tmp_path / "out.png").exists()
