"""Networks elsewhere: ONNX Runtime, and programs that load without `stn`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_transforms import FAMILIES
from torch import Tensor, nn

import stn
import stn.export
from stn.ops import dispatch
from stn.reading import MODES, PADDING_MODES
from stn_recipes import cli
from stn_recipes.config import TrainConfig
from stn_recipes.export import Deployed
from stn_recipes.run.folder import load_run
from stn_recipes.run.train import train

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZES = {1: (24,), 2: (20, 24), 3: (8, 10, 12)}
OUT = {1: (15,), 2: (11, 13), 3: (5, 6, 7)}
QUICK = ("similarity", "projective, bounded", "tps", "cpab, 1D", "rotation, 3D")
# Rounding is all that is left: of a position to float32, times the slope of the image. Cubic weights are sums of larger terms.
TOLERANCE = {"nearest": 0.0, "integer": 0.0, "bicubic": 4e-6}


def smooth(batch: int, d: int, channels: int = 2) -> Tensor:
    """Images whose neighbouring pixels differ little, as those of cameras do."""
    coarse = torch.rand(batch, channels, *[4] * d)
    return nn.functional.interpolate(coarse, SIZES[d], mode=("linear", "bilinear", "trilinear")[d - 1])


class Warped(nn.Module):
    def __init__(self, transform: nn.Module, **options: object) -> None:
        super().__init__()
        self.transform = transform
        self.options = options

    def forward(self, image: Tensor, theta: Tensor) -> Tensor:
        return stn.warp(image, theta, OUT[image.ndim - 2], transform=self.transform, **self.options)


class Sampled(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, image: Tensor, grid: Tensor) -> Tensor:
        return stn.sample(image, grid, **self.options)


def small_network(transform: nn.Module | None = None, **options: object) -> nn.Module:
    transform = transform or stn.Affine()
    localizer = stn.ConvLocalizer(1, transform, image_size=(28, 28), channels=(4,), kernel_sizes=(5,), hidden=(8,))
    transformer = stn.SpatialTransformer(localizer, transform, (12, 12), **options)
    model = nn.Sequential(transformer, nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def kinds(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(file).graph.node]


# ONNX


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_in_onnx(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]()
    if isinstance(family, stn.CPAB) and family.ndim > 1:  # exact paths are native, those in steps are the same here
        family = stn.CPAB(family.tessellation, zero_boundary=family.zero_boundary, steps=10)
    theta = family.identity() + 0.1 * torch.randn(2, family.num_params)
    file = tmp_path / "warp.onnx"
    model = Warped(family, padding_mode="border").eval()  # zeros are an edge, where a position's rounding shows
    difference = stn.export.onnx(model, file, (smooth(2, family.ndim), theta))
    assert difference <= 1e-6
    assert ("GridSample" in kinds(file)) == (family.ndim > 1)
    assert {node.domain for node in onnx.load(file).graph.node} == {""}


def readings() -> list[object]:
    cases = []
    for d in (2, 3):
        for mode in MODES:
            for padding in PADDING_MODES:
                for align_corners in (False, True):
                    opset = 18 if align_corners else 20
                    case = (d, mode, padding, align_corners, opset)
                    native = mode in ("nearest", "bilinear") or (mode == "bicubic" and d == 2)
                    quick = (native and (d, padding) in ((2, "reflection"), (3, "border"))) or case[:3] == (
                        2,
                        "bicubic",
                        "zeros",
                    )
                    if native or (
                        padding == "border" and not align_corners and not (d == 3 and mode.startswith("bspl"))
                    ):
                        cases.append(case if quick else pytest.param(*case, marks=pytest.mark.slow))
    return cases


@pytest.mark.parametrize(("d", "mode", "padding", "align_corners", "opset"), readings())
def test_every_reading_in_onnx(
    d: int, mode: str, padding: str, align_corners: bool, opset: int, tmp_path: Path
) -> None:
    grid = 1.2 * torch.randn(2, *OUT[d], d)
    grid[0].view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    if padding != "reflection":  # far out it turns with the rounding of the position
        grid[1].view(-1)[:3] = torch.tensor([1e30, -1e9, 70_000.0])
    # Ties: halfway between pixels, and on their centres.
    upsampled = stn.Translation(d).grid(torch.zeros(1, d), OUT[d], stn.Frame(align_corners=align_corners))
    grid = torch.cat([grid, upsampled])
    options = {"mode": mode, "padding_mode": padding, "align_corners": align_corners}
    if padding == "constant":
        options["fill"] = (0.5, -0.25)
    file = tmp_path / "sample.onnx"
    tolerance = TOLERANCE.get(mode, 3e-6)
    stn.export.onnx(Sampled(**options).eval(), file, (smooth(3, d), grid), opset=opset, tolerance=tolerance)
    model = onnx.load(file)
    assert [each.version for each in model.opset_import if each.domain == ""] == [opset]
    case = dispatch.Case(d, stn.kernels.NAMED.get(mode, mode), padding, "cpu", torch.float32, portable=True)
    assert ("GridSample" in kinds(file)) == (dispatch._choose(case).NAME == "aten")


def test_the_exporter_of_torch_works_as_it_is(tmp_path: Path) -> None:
    model, image, batch = small_network(), torch.rand(3, 1, 28, 28), torch.export.Dim("batch")
    made = torch.onnx.export(model, (image,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = ort.InferenceSession(made.model_proto.SerializeToString())
    others = torch.rand(5, 1, 28, 28)
    out = session.run(None, {session.get_inputs()[0].name: others.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(out), model(others).detach(), rtol=1e-5, atol=1e-6)
    # And leaves no trace: outside of an export the native code runs on.
    assert (
        dispatch.which_backend(2) == dispatch._choose(dispatch.Case(2, "bilinear", "zeros", "cpu", torch.float32)).NAME
    )


@pytest.mark.parametrize(
    "options",
    [{"mode": "bicubic"}, {"gradient": "linearized"}, pytest.param({"antialias": True}, marks=pytest.mark.slow)],
)
def test_options_of_a_transformer_in_onnx(options: dict[str, object], tmp_path: Path) -> None:
    assert stn.export.onnx(small_network(**options), tmp_path / "a.onnx", torch.rand(1, 1, 28, 28)) < 4e-6


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["parallel", "iterative"])
def test_placements_in_onnx(placement: str, tmp_path: Path) -> None:
    family = stn.Similarity()
    localizers = [stn.FCLocalizer(64, family) for _ in range(2)]
    kind = stn.ParallelTransformers if placement == "parallel" else stn.IterativeTransformer
    assert stn.export.onnx(kind(localizers, family).eval(), tmp_path / "a.onnx", torch.rand(2, 1, 8, 8)) < 1e-5


# The file


def test_nothing_is_left_behind_where_the_result_is_off(tmp_path: Path) -> None:
    model, image = small_network(), torch.rand(1, 1, 28, 28)
    for write, name in ((stn.export.onnx, "a.onnx"), (stn.export.pt2, "a.pt2")):
        (tmp_path / name).write_text("before")

        class Restless(nn.Module):
            def forward(self, image: Tensor) -> Tensor:
                # A program takes what it sees in the export for a constant.
                return model(image) + (0 if torch.compiler.is_compiling() else 0.01)

        with pytest.raises(
            ValueError, match=r"^model: expected an exported network that differs by at most 1.0e-04, got 1"
        ):
            write(Restless().eval(), tmp_path / name, image)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.pt2"]
    assert (tmp_path / "a.pt2").read_text() == (tmp_path / "a.onnx").read_text() == "before"


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    model, image = small_network(), torch.rand(1, 1, 28, 28)
    cases = [
        (r"^model: expected one in eval mode", lambda: stn.export.program(small_network().train(), image)),
        (r"^model: expected a torch.nn.Module", lambda: stn.export.program(len, image)),
        (r"^example: expected the inputs", lambda: stn.export.program(model)),
        (r"^example: expected tensors with one batch", lambda: stn.export.program(model, (image, image[:0]))),
        (r"^file: expected a path that ends with .onnx", lambda: stn.export.onnx(model, tmp_path / "a.pt2", image)),
        (r"^file: expected a path that ends with .pt2", lambda: stn.export.pt2(model, 3, image)),
        (r"^tolerance: ", lambda: stn.export.pt2(model, tmp_path / "a.pt2", image, tolerance=-1)),
        (r"^opset: expected one of 18", lambda: stn.export.onnx(model, tmp_path / "a.onnx", image, opset=11)),
        (r"^antialias: ", lambda: stn.export.program(small_network(stn.Projective(), antialias=True), image)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


# Programs of torch


def elsewhere(code: str, *arguments: object) -> str:
    """What a process prints that never imports `stn`."""
    code = f"import sys, torch\n{code}\nassert not [name for name in sys.modules if name.split('.')[0] == 'stn']"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


RUN = """
image = torch.load(sys.argv[2])
torch.save(load(sys.argv[1])(image).detach(), sys.argv[3])
"""


@pytest.mark.parametrize("already", [False, True])
def test_a_program_loads_without_stn(tmp_path: Path, already: bool) -> None:
    model, file = small_network(stn.ThinPlateSpline((3, 3))), tmp_path / "a.pt2"
    image, batch = torch.rand(2, 1, 28, 28), torch.export.Dim("batch")
    if already:
        exported = torch.export.export(model, (image,), dynamic_shapes=({0: batch},))
        assert any("stn" in str(node.target) for node in exported.graph.nodes) == (dispatch.which_backend(2) == "cpu")
        assert stn.export.pt2(exported, file) < 1e-6
    else:
        assert stn.export.pt2(model, file, image) < 1e-6
    other = torch.rand(5, 1, 28, 28)
    torch.save(other, tmp_path / "in.pt")
    load = "load = lambda file: torch.export.load(file).module()"
    elsewhere(load + RUN, file, tmp_path / "in.pt", tmp_path / "out.pt")
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), model(other).detach(), rtol=1e-5, atol=1e-6)


def test_an_exported_program_becomes_onnx(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    exported = torch.export.export(small_network(), (torch.rand(2, 1, 28, 28),), dynamic_shapes=({0: batch},))
    assert stn.export.onnx(exported, tmp_path / "a.onnx") < 1e-6
    assert "GridSample" in kinds(tmp_path / "a.onnx")


@pytest.mark.slow
def test_aot_inductor_loads_without_stn(tmp_path: Path) -> None:
    model, other = small_network(), torch.rand(5, 1, 28, 28)
    exported = stn.export.program(model, torch.rand(2, 1, 28, 28))
    torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "a.pt2"))
    torch.save(other, tmp_path / "in.pt")
    load = "load = torch._inductor.aoti_load_package"
    elsewhere(load + RUN, tmp_path / "a.pt2", tmp_path / "in.pt", tmp_path / "out.pt")
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), model(other).detach(), rtol=1e-5, atol=1e-6)


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = TrainConfig(epochs=1, batch_size=32, limit_train=64, progress=False)
    return train(replace(settings, out=str(tmp_path_factory.mktemp("runs") / "run")))


def test_the_command_exports_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.rand(5, *load_run(run).facts.input_shape)
    with torch.no_grad():
        wanted = Deployed(load_run(run))(images)
    assert cli.main(["export", str(run), "--to", "onnx"]) == 0
    assert f"{run}/model.onnx: differs from the run by at most " in capsys.readouterr().out
    session = ort.InferenceSession(str(run / "model.onnx"))
    assert [each.name for each in session.get_inputs()] == ["image"]
    assert [each.name for each in session.get_outputs()] == ["probabilities", "rectified"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list("0123456789")
    for got, want in zip(session.run(None, {"image": images.numpy()}), wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-5, atol=1e-5)
    out = run / "other.pt2"
    assert cli.main(["export", str(run), "--to", "pt2", "--out", str(out)]) == 0
    extra = {"metadata": ""}
    loaded = torch.export.load(out, extra_files=extra).module()
    assert json.loads(extra["metadata"])["outputs"] == ["probabilities", "rectified"]
    for got, want in zip(loaded(images), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_command_refuses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(tmp_path), "--to", "onnx"]) == 1
    assert cli.main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "a.bin")]) == 1
    assert "file: expected a path that ends with .onnx" in capsys.readouterr().err
    assert cli.main(["export", str(run), "--to", "tflite"]) == 2
    assert list(tmp_path.iterdir()) == []
