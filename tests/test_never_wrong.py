"""What once crashed, or gave numbers that were wrong without a word. A right result or a `ValueError`; never anything else."""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import io
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from test_transforms import FAMILIES, near_identity
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import stn
from stn.ops import backends, use_backend, which_backend

BACKENDS = [name for name, state in backends().items() if state == "available"]
PADDINGS = ("zeros", "border", "reflection", "circular", "constant")
THETA = torch.tensor([[[0.9, 0.2, 0.05], [-0.1, 1.1, -0.03]]])
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def some_image(batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 2, 6, 7, dtype=dtype)


def supported(
    backend: str,
    ndim: int = 2,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Skips a case that a backend says it lacks."""
    with use_backend(backend):
        try:
            which_backend(ndim, mode, padding_mode, dtype=dtype)
        except ValueError as error:
            pytest.skip(str(error))


# 1. Tensors without memory of their own


def _report(function: Callable[[], str], pipe: object) -> None:
    faulthandler.disable()  # the parent says what happened, in one line
    torch.set_num_threads(1)
    try:
        pipe.send(function())  # type: ignore[attr-defined]
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")  # type: ignore[attr-defined]


def in_a_child(function: Callable[[], str]) -> str:
    """What a function returns, or `Type: message` of what it raises, or the signal that killed its process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(function, sender), daemon=True)
    child.start()
    sender.close()
    try:
        answer = str(receiver.recv()) if receiver.poll(60) else "hangs"
    except EOFError:
        answer = ""
    if answer == "hangs":
        child.kill()
    child.join()
    return answer or f"killed by {signal.Signals(-child.exitcode).name}"  # type: ignore[operator]


def two(tensor: Tensor) -> Tensor:
    return TwoTensor(tensor.clone(), tensor.clone())


def fake(tensor: Tensor) -> Tensor:
    return FakeTensorMode(allow_non_fake_inputs=True).from_tensor(tensor)


def freed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


fake(torch.zeros(1)).add(1)  # loads here, once, what every child would load for itself
EMPTY_HANDED = {"wrapper subclass": two, "fake outside of its mode": fake, "freed storage": freed}
KINDS = ("affine", "grid", "projective", "basis")


def read(kind: str) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """A function of image and coordinates, and coordinates for it."""
    if kind == "grid":
        return stn.sample, stn.transforms.affine_grid(THETA, (4, 5))
    if kind == "affine":
        return lambda image, theta: stn.warp(image, theta, (4, 5)), THETA
    if kind == "projective":
        matrix = torch.cat([THETA, torch.tensor([[[0.1, 0.05, 1.0]]])], 1)
        return lambda image, theta: stn.warp(image, theta, (4, 5)), matrix
    spline = stn.ThinPlateSpline((2, 3))
    return lambda image, theta: stn.warp(image, theta, (4, 5), transform=spline), 0.1 * torch.ones(1, 12)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("which", ["image", "coordinates", "both", "saved image", "saved coordinates", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", EMPTY_HANDED)
def test_a_tensor_without_memory_is_read_right_or_refused(what: str, kind: str, which: str) -> None:
    make = EMPTY_HANDED[what]
    # A matrix is signed and the coefficients of a spline are summed by torch, before they reach a backend.
    by_torch = kind in ("projective", "basis") and which in ("coordinates", "both", "saved coordinates")
    if what == "freed storage" and (which_backend(2) != "cpu" or by_torch):
        pytest.skip("torch itself reads freed storage")
    if (
        what == "freed storage"
        and kind in ("projective", "basis")
        and which not in ("image", "saved image", "gradient")
    ):
        pytest.skip(
            "torch's own functions read the coordinates before the op does, and what they make of them is saved"
        )
    function, coords = read(kind)
    image = some_image()
    truth = function(image, coords)

    def run() -> str:
        a, b = image.clone(), coords.clone()
        if which in ("image", "both"):
            a = make(a)
        if which in ("coordinates", "both"):
            b = make(b)
        if which in ("image", "coordinates", "both"):
            out = function(a, b)
        elif which == "gradient":
            out = function(a.requires_grad_(), b.requires_grad_())
            grads = torch.autograd.grad(out, (a, b), make(torch.ones(out.shape)))
            return "right" if [g.shape for g in grads] == [a.shape, b.shape] else "wrong gradients"
        elif what == "freed storage":
            out = function(a.requires_grad_(), b.requires_grad_())
            (a if which == "saved image" else b).untyped_storage().resize_(0)
            out.sum().backward()
            return "read what is not there"
        else:
            kept = {"saved image": image, "saved coordinates": coords}[which]
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t: t, lambda t: make(t) if t.shape == kept.shape else t
            ):
                out = function(a.requires_grad_(), b.requires_grad_())
            grads = torch.autograd.grad(out.sum(), (a, b))
            return "right" if [g.shape for g in grads] == [a.shape, b.shape] else "wrong gradients"
        if type(out).__name__ == "FakeTensor":
            return "right" if out.shape == truth.shape and out.dtype == truth.dtype else f"wrong: {out}"
        if isinstance(out, TwoTensor):
            out = out.a
        return "right" if torch.allclose(out, truth, atol=1e-5) else f"wrong: {out}"

    answer = in_a_child(run)
    # A fake tensor among real ones is refused by torch itself, in words of its own.
    fine = (
        ("right", "ValueError: ")
        if what != "fake outside of its mode"
        else ("right", "ValueError: ", "AssertionErr", "RuntimeErr")
    )
    assert answer.startswith(fine), answer


class Tagged(Tensor):
    """A tensor with something to say about itself, as MONAI's MetaTensor."""

    tag: str

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = super().__torch_function__(func, types, args, kwargs or {})
        tags = [a.tag for a in args if isinstance(a, Tagged) and hasattr(a, "tag")]
        if isinstance(out, Tagged) and tags:
            out.tag = tags[0]
        return out


@every_backend
@pytest.mark.parametrize("function", ["warp", "sample"])
def test_what_a_subclass_says_about_itself_survives(function: str, backend: str) -> None:
    image = some_image().as_subclass(Tagged)
    image.tag = "from the scanner"
    coords = THETA if function == "warp" else stn.transforms.affine_grid(THETA, (4, 5))
    with use_backend(backend):
        out = getattr(stn, function)(image, coords)
        plain = getattr(stn, function)(image.as_subclass(Tensor), coords)
    assert isinstance(out, Tagged)
    assert out.tag == "from the scanner"
    assert torch.equal(out.as_subclass(Tensor), plain)


# 2. and 14. Tracers


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_jit_trace_is_right_or_refused(kind: str, backend: str) -> None:
    function, coords = read(kind)
    for requires_grad in (False, True):
        image, other = some_image().requires_grad_(requires_grad), some_image()
        with use_backend(backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                traced = torch.jit.trace(function, (image, coords), check_trace=False)
            except ValueError:
                continue
            shifted = coords + 0.05
            for _ in range(3):  # uninitialised memory is right by chance once
                torch.full((2, 1, 2, 4, 5), 1e30)
                torch.testing.assert_close(traced(other, shifted), function(other, shifted))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_old_onnx_exporter_is_refused(kind: str) -> None:
    """It once wrote the result for its example as a constant, in a network without inputs."""
    function, coords = read(kind)

    class Module(torch.nn.Module):
        def forward(self, image: Tensor, coords: Tensor) -> Tensor:
            return function(image, coords)

    with pytest.raises(ValueError, match=r"(?i)onnx|trac"):
        torch.onnx.export(Module(), (some_image(), coords), io.BytesIO(), dynamo=False)


# 4. Threads


def _at_once(functions: list[Callable[[], None]], *, every_line: bool = False) -> None:
    """All in threads; what one raises is raised here. With `every_line` they change at every line of the library."""
    errors: list[BaseException] = []
    ours = str(Path(stn.__file__).parent)

    def trace(frame: FrameType, event: str, _: object) -> object:
        if event == "line":
            time.sleep(0)
        return trace if frame.f_code.co_filename.startswith(ours) else None

    def guarded(function: Callable[[], None]) -> None:
        if every_line:
            sys.settrace(trace)
        try:
            function()
        except BaseException as error:
            errors.append(error)
        finally:
            sys.settrace(None)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


CACHING = ("tps", "tps, 3D", "bspline", "cpab", "velocity", "displacement", "composed, a chain")


@pytest.mark.parametrize("family", CACHING)
def test_threads_that_warp_to_different_sizes(family: str) -> None:
    transform = FAMILIES[family]()
    image = torch.randn(1, 1, *(6, 7, 5)[: transform.ndim])
    theta = near_identity(transform, batch=1, spread=0.05, dtype=torch.float32)
    sizes = [tuple(n + 3 * k for n in (3, 4, 2)[: transform.ndim]) for k in range(8)]
    truth = [stn.warp(image, theta, size, transform=FAMILIES[family]()) for size in sizes]
    rounds = 20 if family.startswith("tps") else 2

    def run() -> str:
        wrong = 0

        def work(k: int) -> None:
            nonlocal wrong
            for _ in range(rounds):
                out = stn.warp(image, theta, sizes[k], transform=transform)
                if out.shape != truth[k].shape or not torch.equal(out, truth[k]):
                    wrong += 1

        _at_once([lambda k=k: work(k) for k in range(8)], every_line=True)
        return f"{wrong} of {8 * rounds} wrong"

    assert in_a_child(run).startswith("0 of")


def test_use_backend_in_two_threads_whose_blocks_end_crosswise() -> None:
    before = which_backend(2)
    a_is_in, b_is_in, a_is_out = threading.Event(), threading.Event(), threading.Event()
    seen = {}

    def a() -> None:
        with use_backend("reference"):
            a_is_in.set()
            b_is_in.wait(10)
            seen["a"] = which_backend(2)
        a_is_out.set()

    def b() -> None:
        a_is_in.wait(10)
        with use_backend("aten"):
            b_is_in.set()
            a_is_out.wait(10)
            seen["b"] = which_backend(2)

    _at_once([a, b])
    assert seen == {"a": "reference", "b": "aten"}
    assert which_backend(2) == before
    with use_backend("reference"):
        assert which_backend(2) == "reference"
    assert which_backend(2) == before


# 5. Lazy views


def negative(tensor: Tensor) -> Tensor:
    """The same numbers, stored with the other sign."""
    lazy = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert lazy.is_neg()
    return lazy


@every_backend
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_negative_bit_is_read(kind: str, mode: str, backend: str) -> None:
    supported(backend, 2, mode)
    function, coords = read(kind)
    image = some_image(dtype=torch.float64)
    coords = coords.double()
    weights = torch.randn(1, 2, 4, 5, dtype=torch.float64)

    def results(image: Tensor, coords: Tensor, weights: Tensor) -> list[Tensor]:
        image, coords = image.requires_grad_(), coords.requires_grad_()
        out = function(image, coords)
        return [out.detach(), *torch.autograd.grad(out, (image, coords), weights)]

    with use_backend(backend):
        truth = results(image.clone(), coords.clone(), weights)
        for k in range(3):
            inputs = [negative(t) if i == k else t.clone() for i, t in enumerate((image, coords, weights))]
            for ours, theirs in zip(results(*inputs), truth, strict=True):
                torch.testing.assert_close(ours, theirs)
        fill = torch.tensor([0.5, -2.0], dtype=torch.float64)
        far = torch.full((1, 1, 1, 2), 9.0, dtype=torch.float64)
        out = stn.sample(image, far, padding_mode="constant", fill=negative(fill))
        torch.testing.assert_close(out.flatten(), fill)


@every_backend
@pytest.mark.parametrize("which", ["image", "gradient"])
def test_a_tensor_of_lazy_zeros_is_read(which: str, backend: str) -> None:
    """Zeros that torch's forward mode hands out, without memory."""

    def run() -> str:
        with use_backend(backend):
            if which == "image":
                outputs: tuple[Tensor, ...] = (stn.warp(torch._efficientzerotensor((1, 2, 6, 7)), THETA),)
            else:
                image, theta = some_image().requires_grad_(), THETA.clone().requires_grad_()
                out = stn.warp(image, theta)
                outputs = torch.autograd.grad(out, (image, theta), torch._efficientzerotensor(out.shape))
        return "right" if all(not bool(o.any()) for o in outputs) else "wrong"

    answer = in_a_child(run)
    assert answer == "right" or (which == "image" and answer.startswith("ValueError: image"))


# 6. What is kept from one call to the next is good for any other


def _in_inference_mode(call: Callable[[], Tensor]) -> None:
    with torch.inference_mode():
        call()


def _in_fake_mode(call: Callable[[], Tensor]) -> None:
    # torch has no fake of everything; what matters is what is left behind.
    with FakeTensorMode(allow_non_fake_inputs=True), contextlib.suppress(Exception):
        call()


def _in_vmap(call: Callable[[], Tensor]) -> None:
    torch.func.vmap(lambda _: 0 * call().sum())(torch.zeros(2))


def _in_a_gradient(call: Callable[[], Tensor]) -> None:
    torch.func.grad(lambda x: x * call().sum())(torch.zeros(()))


FIRST_USES = {
    "inference_mode": _in_inference_mode,
    "fake": _in_fake_mode,
    "vmap": _in_vmap,
    "grad": _in_a_gradient,
}


@every_family
@pytest.mark.parametrize("first", FIRST_USES)
def test_a_transform_first_used_elsewhere_can_be_trained(first: str, family: str) -> None:
    transform, fresh = FAMILIES[family](), FAMILIES[family]()
    theta = near_identity(transform, batch=2, spread=0.05, dtype=torch.float32)
    size = (5, 4, 3)[: transform.ndim]
    image = torch.randn(2, 1, *size)

    def trained(transform: stn.AbstractTransform) -> tuple[Tensor, ...]:
        leaf = theta.clone().requires_grad_()
        out = stn.warp(image, leaf, size, transform=transform)
        return (out.detach(), *torch.autograd.grad(out.square().sum(), leaf))

    def run() -> str:
        FIRST_USES[first](lambda: stn.warp(image, theta, size, transform=transform))
        pairs = zip(trained(transform), trained(fresh), strict=True)
        return "right" if all(type(a) is Tensor and torch.equal(a, b) for a, b in pairs) else "wrong"

    assert in_a_child(run) == "right"


# 10. NaN stays where it is


@every_backend
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_nan_pixel_does_not_reach_what_lies_far_outside(d: int, mode: str, backend: str) -> None:
    image = torch.tensor([math.nan, 1.0, 2.0]).reshape(1, 1, *[1] * (d - 1), 3)
    position = torch.zeros(1, *[1] * d, d)
    for x, padding_mode, fill, wanted in (
        (9.0, "constant", 7.0, 7.0), (-9.0, "constant", 7.0, 7.0), (9.0, "zeros", 0.0, 0.0), (-9.0, "zeros", 0.0, 0.0),
        (9.0, "border", 0.0, 2.0),
    ):  # fmt: skip
        supported(backend, d, mode, padding_mode)
        position[..., 0] = x
        for align_corners in (False, True):
            with use_backend(backend):
                out = stn.sample(
                    image, position, mode=mode, padding_mode=padding_mode, fill=fill, align_corners=align_corners  # type: ignore[arg-type]
                )  # fmt: skip
            assert out.item() == wanted, (x, padding_mode, align_corners)


# 11. Modules as torch's users treat them


def round_trips() -> dict[str, Callable[[torch.nn.Module], torch.nn.Module]]:
    def saved(module: torch.nn.Module) -> torch.nn.Module:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        loaded: torch.nn.Module = torch.load(file, weights_only=False)
        return loaded

    return {
        "deepcopy": copy.deepcopy,
        "copy": copy.copy,
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),  # type: ignore[no-any-return]
        "torch.save": saved,
        "to": lambda module: copy.deepcopy(module).to("cpu"),
        "half and back": lambda module: copy.deepcopy(module).half().float(),
        "double": lambda module: copy.deepcopy(module).double(),
        "share_memory": lambda module: copy.deepcopy(module).share_memory(),
    }


@every_family
@pytest.mark.parametrize("trip", round_trips())
def test_a_family_comes_back_as_it_was(trip: str, family: str) -> None:
    transform = FAMILIES[family]()
    theta = near_identity(transform, batch=2, spread=0.05)
    size = (5, 4, 3)[: transform.ndim]
    truth = transform.grid(theta, size)  # also fills what it keeps
    back = round_trips()[trip](transform)
    assert torch.equal(back.grid(theta, size), truth)
    assert repr(back) == repr(transform)
    assert back.state_dict().keys() == transform.state_dict().keys()
    fresh = FAMILIES[family]()
    fresh.load_state_dict(back.state_dict())
    assert torch.equal(fresh.grid(theta, size), truth)


@every_family
def test_a_half_family_maps_half_theta(family: str) -> None:
    """Coordinates are float32 at the least, whatever a module is told."""
    transform = FAMILIES[family]()
    theta = near_identity(transform, batch=2, spread=0.05, dtype=torch.float32).half()
    size = (5, 4, 3)[: transform.ndim]
    grid = transform.half().grid(theta, size)
    assert grid.dtype == torch.float32
    assert torch.equal(grid, FAMILIES[family]().grid(theta.float(), size))


@every_family
def test_a_family_on_the_meta_device(family: str) -> None:
    fresh = FAMILIES[family]()
    with torch.device("meta"):
        transform = FAMILIES[family]().to("meta")  # what it is configured by is made on the CPU, and stays there
        theta = torch.empty(2, transform.num_params)
        size = (5, 4, 3)[: transform.ndim]
        grid = transform.grid(theta, size)
        assert grid.device.type == "meta"
        assert grid.shape == (2, *size, transform.ndim)
        image = torch.empty(2, 3, *size)
        assert stn.warp(image, theta, size, transform=transform).shape == (2, 3, *size)
    assert transform.num_params == fresh.num_params
    assert transform.state_dict().keys() == fresh.state_dict().keys()
    # What is built there and then brought to life is right, or says why not.
    real = near_identity(fresh, batch=2, spread=0.05, dtype=torch.float32)
    try:
        alive = transform.to_empty(device="cpu")
        alive.load_state_dict(fresh.state_dict())
        ours = alive.grid(real, size)
    except (ValueError, RuntimeError, NotImplementedError):
        return
    assert torch.equal(ours, fresh.grid(real, size))


@every_family
def test_a_family_moved_to_the_meta_device(family: str) -> None:
    transform = FAMILIES[family]()
    size = (5, 4, 3)[: transform.ndim]
    transform.grid(near_identity(transform, batch=2, dtype=torch.float32), size)  # fills what it keeps
    transform = transform.to("meta")
    grid = transform.grid(torch.empty(2, transform.num_params, device="meta"), size)
    assert grid.device.type == "meta"


def networks() -> dict[str, Callable[[], torch.nn.Module]]:
    spline, affine, cpab = stn.ThinPlateSpline((2, 2)), stn.Affine(), stn.CPAB((2, 2))
    one = {"image_size": (28, 28)}
    return {
        "SpatialTransformer": lambda: stn.SpatialTransformer(stn.ConvLocalizer(1, spline, **one), spline, size=(8, 8)),  # type: ignore[arg-type]
        "ParallelTransformers": lambda: stn.ParallelTransformers(
            stn.ConvLocalizer(1, spline, start=torch.zeros(2, 8), **one), spline, size=(8, 8), count=2  # type: ignore[arg-type]
        ),
        "IterativeTransformer": lambda: stn.IterativeTransformer(
            stn.ConvLocalizer(1, affine, **one), affine, size=(8, 8), iterations=2  # type: ignore[arg-type]
        ),
        "FCLocalizer": lambda: stn.SpatialTransformer(stn.FCLocalizer(28 * 28, cpab), cpab),
        "classifier": lambda: stn.models.create("mnist_tutorial", transform="tps"),
    }  # fmt: skip


@pytest.mark.parametrize("name", networks())
def test_a_network_comes_back_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    module = networks()[name]().eval()
    for parameter in module.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    image = torch.randn(2, 1, 28, 28)

    def run(module: torch.nn.Module) -> Tensor:
        with torch.no_grad():
            return module(image)  # type: ignore[no-any-return]

    truth = run(module)
    for trip, make in round_trips().items():
        if trip in ("half and back", "double"):
            continue  # parameters do lose digits
        assert torch.equal(run(make(module)), truth), trip
    with torch.device("meta"):
        empty = networks()[name]()
    assert empty.state_dict().keys() == module.state_dict().keys()
    half = copy.deepcopy(module).half()
    with torch.no_grad():
        out = half(image.half())
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), truth, rtol=0.1, atol=0.1)
    other = networks()[name]().eval()
    other.load_state_dict(module.state_dict())
    assert torch.equal(run(other), truth)


# 12. Refusals


@every_family
def test_a_point_that_is_not_finite_has_no_inverse(family: str) -> None:
    transform = FAMILIES[family]()
    theta = near_identity(transform, batch=1, spread=0.0)
    for bad in (math.nan, math.inf):
        points = torch.zeros(1, 1, transform.ndim, dtype=torch.float64)
        points[0, 0, 0] = bad
        with pytest.raises(ValueError, match="points"):
            transform.unmap_points(theta, points)
    points = 0.1 * torch.ones(1, 4, transform.ndim, dtype=torch.float64)
    points[0, :3, -1] = torch.tensor([math.nan, math.inf, -math.inf])
    found = transform.unmap_points(theta, points, missing="nan")
    assert found.isnan().any(-1).tolist() == [[True, True, True, False]]


FLOAT8 = [getattr(torch, name) for name in dir(torch) if name.startswith("float8_") and "e8m0" not in name]


@every_backend
@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_float8_images_are_read_right_or_refused(dtype: torch.dtype, backend: str) -> None:
    image = some_image().to(dtype)
    with use_backend(backend):
        for function, coords in ((stn.warp, THETA), (stn.sample, stn.transforms.affine_grid(THETA, (4, 5)))):
            try:
                out = function(image, coords)  # type: ignore[operator]
            except ValueError as error:
                refusal = str(error)
                assert refusal.startswith(("image: expected", "backend: expected")), refusal
                continue
            assert out.dtype == dtype
            assert torch.equal(out.float(), function(image.float(), coords).to(dtype).float())  # type: ignore[operator]


# 13. Sizes


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_of_no_points_is_empty(kind: str, backend: str) -> None:
    transform = stn.ThinPlateSpline((2, 3)) if kind == "basis" else None
    coords = read(kind)[1]
    for size in ((0, 5), (4, 0), (0, 0)):
        image = some_image().requires_grad_()
        leaf = torch.zeros(1, *size, 2).requires_grad_() if kind == "grid" else coords.clone().requires_grad_()
        with use_backend(backend):
            out = stn.sample(image, leaf) if kind == "grid" else stn.warp(image, leaf, size, transform=transform)
            assert out.shape == (1, 2, *size)
            grads = torch.autograd.grad(out.sum(), (image, leaf))
        assert [g.shape for g in grads] == [image.shape, leaf.shape]
        assert all(not bool(g.any()) for g in grads)


@every_backend
@pytest.mark.parametrize("d", [1, 2, 3])
def test_an_output_of_no_points_in_every_dimension(d: int, backend: str) -> None:
    supported(backend, d)
    with use_backend(backend):
        out = stn.sample(torch.zeros(2, 3, *[4] * d), torch.zeros(2, *[0] * d, d))
        assert out.shape == (2, 3, *[0] * d)
        assert stn.warp(torch.zeros(2, 3, *[4] * d), torch.eye(d, d + 1)[None], (0,) * d).shape == out.shape


@every_family
def test_a_grid_of_no_points(family: str) -> None:
    transform = FAMILIES[family]()
    theta = near_identity(transform, batch=2, spread=0.01)
    assert transform.grid(theta, (0,) * transform.ndim).shape == (2, *[0] * transform.ndim, transform.ndim)


INTEGERS = {
    "numpy.int64": np.int64,
    "numpy.uint8": np.uint8,
    "0-dim tensor": torch.tensor,
    "0-dim array": np.array,
}


@pytest.mark.parametrize("name", INTEGERS)
def test_a_size_is_what_python_takes_for_an_index(name: str) -> None:
    make = INTEGERS[name]
    size = (make(4), make(5))
    image = some_image()
    wanted = stn.warp(image, THETA, (4, 5))
    assert torch.equal(stn.warp(image, THETA, size), wanted)
    assert torch.equal(stn.transforms.affine_grid(THETA, size), stn.transforms.affine_grid(THETA, (4, 5)))
    for transform in (stn.Affine(), stn.ThinPlateSpline((2, 2)), stn.CPAB((2, 2))):
        theta = transform.identity()[None]
        assert torch.equal(transform.grid(theta, size), transform.grid(theta, (4, 5)))
    layers = {"channels": (4,), "kernel_sizes": (3,)}
    localizer = stn.ConvLocalizer(2, stn.Affine(), image_size=(make(6), make(7)), **layers)  # type: ignore[arg-type]
    transformer = stn.SpatialTransformer(localizer, size=size)
    assert transformer(image).shape[2:] == (4, 5)
    assert transformer.size == (4, 5)
    assert all(type(n) is int for n in transformer.size)
    assert stn.ThinPlateSpline((make(2), make(3))).num_params == 12
    assert stn.DisplacementField((make(2), make(3))).num_params == 12


@pytest.mark.parametrize("bad", [4.0, np.float32(4), torch.tensor(4.0), True, "4", None, -1, np.int64(-1)])
def test_a_size_that_is_no_index_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="size"):
        stn.warp(some_image(), THETA, (bad, 5))  # type: ignore[arg-type]


# 19. What is probably a mistake


@pytest.mark.parametrize("family", [stn.Similarity, stn.Rigid, stn.Rotation])
def test_a_bound_in_degrees_is_refused(family: type) -> None:
    with pytest.raises(ValueError, match=r"max_angle: .*radian"):
        family(max_angle=90)
    assert family(max_angle=math.pi).num_params  # half a turn, and a whole one, are angles
    assert family(max_angle=2 * math.pi).num_params


@pytest.mark.parametrize("family", ["affine", "similarity", "tps", "corners", "cpab"])
def test_points_in_pixels_do_not_pass_without_a_word(family: str) -> None:
    transform = FAMILIES[family]()
    theta = near_identity(transform, batch=1, spread=0.0)
    warp = stn.Warp(torch.zeros(1, 1, 4, 4), theta, transform, (200, 200), (4, 4), False)
    points = torch.tensor([[[100.0, 60.0], [12.0, 50.0]]], dtype=torch.float64)
    for call in (warp.map_points, lambda p: warp.map_boxes(p.flatten(1)[None])):
        with pytest.warns(UserWarning, match=r"points: .*normalized"):
            call(points)


INTEGER_IMAGES = {
    torch.uint8: [0, 1, 255],
    torch.int8: [-128, 127, 3],
    torch.int16: [-(2**15), 2**15 - 1, 257],
    torch.int32: [2**24 + 1, -(2**24) - 1, 2**31 - 1],
    torch.int64: [2**24 + 1, 2**53 + 1, 2**63 - 1],
}


@every_backend
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("dtype", INTEGER_IMAGES, ids=str)
def test_labels_of_any_integer_type_are_read_exactly(
    dtype: torch.dtype, padding_mode: str, d: int, backend: str
) -> None:
    supported(backend, d, "nearest", padding_mode, dtype)
    a, b, c = INTEGER_IMAGES[dtype]
    image = torch.tensor([a, b, c], dtype=dtype).reshape(1, 1, *[1] * (d - 1), 3)
    flip = torch.eye(d, d + 1)[None].clone()
    flip[0, 0, 0] = -1
    grid = torch.zeros(1, *[1] * (d - 1), 3, d)
    grid[..., 0] = torch.tensor([-4 / 3, -2 / 3, 4 / 3])  # one pixel before the first, the first, one beyond the last
    before, after, fill = {
        "zeros": (0, 0, 0), "constant": (b, b, b), "border": (a, c, 0), "reflection": (a, c, 0), "circular": (c, a, 0),
    }[padding_mode]  # fmt: skip
    # A fill beyond 2^53 comes as a tensor: no number of Python's but int has its digits, and none of torch's floats.
    options = {"mode": "nearest", "padding_mode": padding_mode}
    if padding_mode == "constant":
        options["fill"] = torch.tensor(fill, dtype=dtype)  # type: ignore[assignment]
    with use_backend(backend):
        turned = stn.warp(image, flip, **options)  # type: ignore[arg-type]
        read = stn.sample(image, grid, **options)  # type: ignore[arg-type]
    assert turned.dtype == read.dtype == dtype
    assert turned.flatten().tolist() == [c, b, a]
    assert read.flatten().tolist() == [before, a, after]


@every_backend
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
def test_unwarp_carries_labels_of_any_integer_type(dtype: torch.dtype, backend: str) -> None:
    supported(backend, 2, "nearest", dtype=dtype)
    top = torch.iinfo(dtype).max
    labels = top - torch.arange(30, dtype=dtype).reshape(1, 1, 5, 6)
    family = stn.Affine()
    theta = family.identity()[None].clone()
    with use_backend(backend):
        warp = stn.Warp(torch.zeros(1, 1, 5, 6), theta, family, (5, 6), (5, 6), False)
        assert torch.equal(warp.unwarp(labels), labels)


@every_backend
def test_integers_that_nothing_can_blend_are_refused_by_name(backend: str) -> None:
    image = torch.ones(1, 1, 4, 4, dtype=torch.int64)
    for mode in ("bilinear", "bicubic", "lanczos3"):
        with use_backend(backend), pytest.raises(ValueError, match=r"image|mode"):
            stn.warp(image, torch.eye(2, 3)[None], mode=mode)  # type: ignore[arg-type]


# Bytes


@every_backend
def test_bytes_are_read_and_have_no_gradient(backend: str) -> None:
    supported(backend, 2, dtype=torch.uint8)
    image = torch.tensor([[[[0, 1, 254, 255]]]], dtype=torch.uint8)
    half = torch.tensor([[[1.0, 0.0, 0.25], [0.0, 1.0, 0.0]]])  # half a pixel to the right
    with use_backend(backend):
        assert stn.warp(image, half).flatten().tolist() == [
            0,
            128,
            254,
            128,
        ]  # 0.5, 127.5, 254.5, 127.5: halves to even
        for mode in ("bicubic", "nearest"):
            out = stn.warp(image, half, mode=mode)  # type: ignore[arg-type]
            assert out.dtype == torch.uint8
        with pytest.raises(ValueError, match=r"theta: expected one that needs no gradient"):
            stn.warp(image, half.requires_grad_())
        with torch.no_grad():
            assert stn.warp(image, half).shape == image.shape
        with pytest.raises(ValueError, match=r"antialias: "):
            stn.warp(image, half.detach(), antialias=True)


@every_backend
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_bytes_where_a_position_is_not_finite_are_zero(padding_mode: str, backend: str) -> None:
    supported(backend, 2, "bilinear", padding_mode, torch.uint8)
    image, grid = torch.full((1, 1, 3, 3), 200, dtype=torch.uint8), torch.zeros(1, 1, 3, 2)
    grid[0, 0, 1:, 0] = torch.tensor([math.nan, math.inf])
    fill = 7.0 if padding_mode == "constant" else 0.0
    with use_backend(backend):
        for mode in ("bilinear", "bicubic", "nearest"):
            out = stn.sample(image, grid, mode=mode, padding_mode=padding_mode, fill=fill)  # type: ignore[arg-type]
            assert out.flatten().tolist() == [200, 0, 0]
