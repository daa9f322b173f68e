"""What a network with a transformer can be put through: `python -m tests.support` measures it and writes docs/support.md.

Each family is a row, each treatment a column. A treatment works where its values are those of the plain network, on other inputs than it
saw before and, where it says so, for another batch. Where it raises, the reason is in the page. Values that are off are an error.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import pickle
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import stn
import stn.export
from stn.transforms import TRANSFORMS

PAGE = Path(__file__).parents[1] / "docs" / "support.md"
SIZES = {1: (16,), 2: (10, 12), 3: (5, 6, 7)}
LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

FAMILIES: dict[str, Callable[[], stn.AbstractTransform]] = dict(TRANSFORMS) | {
    "cpab": lambda: stn.CPAB((2, 2), steps=2),  # the ten steps that it has are as much longer to compile
    "affine, 1D": lambda: stn.Affine(1),
    "displacement, 1D": lambda: stn.DisplacementField((4,)),
    "velocity, 1D": lambda: stn.VelocityField((4,)),
    "cpab, 1D": lambda: stn.CPAB((4,)),
    "affine, 3D": lambda: stn.Affine(3),
    "similarity, 3D": lambda: stn.Similarity(3),
    "rotation, 3D, 6d": lambda: stn.Rotation(3, rotation="6d"),
    "projective, 3D": lambda: stn.Projective(3),
    "tps, 3D": lambda: stn.ThinPlateSpline((2, 2, 2)),
    "bspline, 3D": lambda: stn.BSpline((2, 2, 2)),
    "displacement, 3D": lambda: stn.DisplacementField((2, 2, 2)),
    "velocity, 3D": lambda: stn.VelocityField((2, 2, 2)),
    "composed": lambda: stn.ThinPlateSpline((3, 3)) @ stn.Similarity(),
}
WORKS = "works"


def network(transform: stn.AbstractTransform) -> nn.Module:
    """A transformer and a layer behind it, with weights that warp."""
    torch.manual_seed(0)
    size = SIZES[transform.ndim]
    localizer = stn.FCLocalizer(torch.Size(size).numel(), transform, hidden=(6,))
    layer = LAYERS[transform.ndim](1, 2, 3)
    model = nn.Sequential(stn.SpatialTransformer(localizer, transform), layer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model.eval()


def images(model: nn.Module, batch: int, seed: int) -> Tensor:
    d = model[0].transform.ndim
    dtype = next(model.parameters()).dtype
    return torch.rand(batch, 1, *SIZES[d], generator=torch.Generator().manual_seed(seed)).to(dtype)


def agree(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    assert got.shape == want.shape, f"shape {tuple(got.shape)} in place of {tuple(want.shape)}"
    off = float((got.double() - want.double()).abs().max())
    assert off <= tolerance * max(1.0, float(want.abs().max())), f"off by {off:.1e}"


# The treatments. Each takes the network, and asserts that the values are right.


def runs(treated: Callable[[Tensor], Tensor], model: nn.Module, *batches: int, tolerance: float = 1e-5) -> None:
    for batch in batches or (3, 5):
        other = images(model, batch, 7)
        with torch.no_grad():
            agree(treated(other), model(other), tolerance)


def deepcopy(model: nn.Module) -> None:
    runs(copy.deepcopy(model), model)


def pickled(model: nn.Module) -> None:
    runs(pickle.loads(pickle.dumps(model)), model)


def state_dict(model: nn.Module) -> None:
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(model.state_dict())
    runs(fresh, model)


def data_parallel(model: nn.Module) -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            other = copy.deepcopy(model)
            parallel = nn.parallel.DistributedDataParallel(other)
            runs(parallel, model)
            for net in (parallel, model):
                net(images(model, 3, 7)).square().sum().backward()
            for a, b in zip(other.parameters(), model.parameters(), strict=True):
                agree(a.grad, b.grad)
        finally:
            torch.distributed.destroy_process_group()
            model.zero_grad()


def autocast(model: nn.Module) -> None:
    """The layers in bfloat16; the image is read where theta says, and theta is as exact as its features."""
    with torch.autocast("cpu", torch.bfloat16):
        assert model[0].theta(images(model, 3, 7)).dtype == torch.float32
    with torch.no_grad():
        plain = model(images(model, 3, 7))
        with torch.autocast("cpu", torch.bfloat16):
            agree(model(images(model, 3, 7)), plain, 0.05)


def compiled(model: nn.Module) -> None:
    torch.compiler.reset()
    treated = torch.compile(model, fullgraph=True, dynamic=True)
    treated(images(model, 3, 1))
    runs(treated, model)


def exported(model: nn.Module) -> None:
    batch = torch.export.Dim("batch")
    runs(torch.export.export(model, (images(model, 3, 1),), dynamic_shapes=({0: batch},)).module(), model, 1, 3, 5)


def portable(model: nn.Module) -> None:
    program = stn.export.program(model, images(model, 3, 1))
    assert not any("stn" in str(node.target) for node in program.graph.nodes)
    runs(program.module(), model, 1, 3, 5)


def traced(model: nn.Module) -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, images(model, 3, 1), check_trace=False), file)
    file.seek(0)
    runs(torch.jit.load(file), model)


def scripted(model: nn.Module) -> None:
    runs(torch.jit.script(model), model)


def symbolic(model: nn.Module) -> None:
    runs(torch.fx.symbolic_trace(model), model)


def static_quantization(model: nn.Module) -> None:
    """The layer behind the transformer in 8 bits: the same numbers as of the layer alone."""
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    def quantized(net: nn.Module, example: Tensor) -> nn.Module:
        mapping = get_default_qconfig_mapping("fbgemm")
        prepared = quantize_fx.prepare_fx(copy.deepcopy(net), mapping, (example,))
        prepared(example)
        done: nn.Module = quantize_fx.convert_fx(prepared)
        return done

    with torch.no_grad():
        example = images(model, 3, 1)
        treated = quantized(model, example)
        layer = quantized(nn.Sequential(nn.Identity(), model[1]), model[0](example))
        for batch in (3, 5):
            other = images(model, batch, 7)
            agree(treated(other), layer(model[0](other)))


def dynamic_quantization(model: nn.Module) -> None:
    from torch.ao.quantization import quantize_dynamic

    treated = quantize_dynamic(model, {nn.Linear})
    assert any(isinstance(layer, torch.ao.nn.quantized.dynamic.Linear) for layer in treated.modules())
    runs(treated, model, tolerance=0.05)


def onnx_dynamo(model: nn.Module) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stn.export.onnx(model, f"{folder}/a.onnx", images(model, 3, 1))


def onnx_torchscript(model: nn.Module) -> None:
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(model, (images(model, 3, 1),), file, dynamo=False, opset_version=20)
    session = onnxruntime.InferenceSession(file.getvalue())
    name = session.get_inputs()[0].name
    runs(lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0]), model, 3)


def mapped(model: nn.Module) -> None:
    runs(torch.func.vmap(lambda image: model(image[None])[0]), model)


def _difference(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    step = 1e-6
    return (function(x + step * v) - function(x - step * v)) / (2 * step)


def forward_mode(model: nn.Module) -> None:
    model = copy.deepcopy(model).double()
    x, v = images(model, 3, 7), images(model, 3, 8) - 0.5
    agree(torch.func.jvp(model, (x,), (v,))[1].detach(), _difference(model, x, v).detach(), 1e-5)


def double_backward(model: nn.Module) -> None:
    model = copy.deepcopy(model).double()
    v = images(model, 3, 8) - 0.5

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x).square().sum(), x)[0]

    x = images(model, 3, 7).requires_grad_()
    first = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad((first * v).sum(), x)[0]
    agree(second, _difference(gradient, x.detach(), v), 1e-4)


TREATMENTS: dict[str, Callable[[nn.Module], None]] = {
    "deepcopy": deepcopy,
    "pickle": pickled,
    "state_dict": state_dict,
    "DDP": data_parallel,
    "autocast": autocast,
    "compile": compiled,
    "export": exported,
    "stn.export": portable,
    "ONNX": onnx_dynamo,
    "ONNX, TorchScript": onnx_torchscript,
    "jit.trace": traced,
    "jit.script": scripted,
    "FX": symbolic,
    "static quantization": static_quantization,
    "dynamic quantization": dynamic_quantization,
    "vmap": mapped,
    "jvp": forward_mode,
    "double backward": double_backward,
}


def measure(family: str, treatment: str) -> str:
    """ "works", or the reason why it refuses.

    Raises:
        AssertionError: where it gives other values.
    """
    model = network(FAMILIES[family]())
    with _quietly():
        try:
            TREATMENTS[treatment](model)
        except AssertionError as error:
            raise AssertionError(f"{family}, {treatment}: {error}") from error
        except Exception as error:
            said = " ".join(str(error).split()).partition(" Set TORCHDYNAMO")[0]
            return re.sub(r"\bs\d+\b", "s", f"{type(error).__name__}: {said}")  # a compiler's numbers of its symbols
    return WORKS


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# The page

HEAD = """# What it can be put through

Every family, in a network with a layer behind the transformer, and what may be done with such a network. Made by
`python -m tests.support`, which compares the values with those of the plain network, on other images than the treatment saw and for other
batches; `tests/test_support.py` measures a sample of it again at every run of the tests, and all of it with `--slow`.

+ works: the same values. A number: refused, for the reason below the table. Nothing gives other values in
silence.

"""
TAIL = """
What the columns do: `DDP` compares gradients as well. `autocast` is bfloat16 on the CPU, where theta stays float32. `compile` is
`torch.compile(fullgraph=True, dynamic=True)`. `export` is `torch.export.export` with an open batch, which keeps the registered op of the
native code; `stn.export` has torch's own operations alone. `ONNX` is the exporter with `dynamo=True`, compared in ONNX Runtime; `ONNX,
TorchScript` the one with `dynamo=False`. `jit.trace` is saved and loaded again. `FX` takes a transformer as one step, so that static
quantization leaves its localizer and its positions alone; dynamic quantization takes the linear layers of the localizer but for the last,
which says theta. `vmap` is of single images; `jvp` and double backward are compared with differences in float64. `cpab` integrates in 2 steps
here, in place of 10, to compile sooner.
"""


def write(measured: dict[tuple[str, str], str]) -> str:
    reasons = list(dict.fromkeys(state for state in measured.values() if state != WORKS))
    lines = ["| family | " + " | ".join(TREATMENTS) + " |", "|---|" + ":-:|" * len(TREATMENTS)]
    for family in FAMILIES:
        states = [measured[family, treatment] for treatment in TREATMENTS]
        marks = ["+" if state == WORKS else f"{reasons.index(state) + 1}" for state in states]
        lines.append(f"| {family} | " + " | ".join(marks) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n" + TAIL


@functools.cache
def committed() -> dict[tuple[str, str], str]:
    """What the page says."""
    text = PAGE.read_text(encoding="utf-8").splitlines()
    reasons = {number: reason for number, dot, reason in (line.partition(". ") for line in text) if number.isdigit()}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text if line.startswith("| ")]
    head, *rows = rows
    said = {}
    for family, *marks in rows:
        for treatment, mark in zip(head[1:], marks, strict=True):
            said[family, treatment] = WORKS if mark == "+" else reasons[mark]
    return said


def main() -> None:
    torch.set_num_threads(1)
    measured, wrong = {}, []
    for family in FAMILIES:
        for treatment in TREATMENTS:
            try:
                measured[family, treatment] = measure(family, treatment)
            except AssertionError as error:
                wrong.append(str(error))
        print(family, file=sys.stderr, flush=True)
    if wrong:
        raise SystemExit("\n".join(wrong))
    PAGE.write_text(write(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
