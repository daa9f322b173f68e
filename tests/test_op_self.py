"""What torch asks of its own operators, asked of every backend through the public calls: registration, batched gradients,
forward mode, functorch, export and compilation. The truth is differences of the forward pass, never another derivative."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import stn
from stn.ops import backends, use_backend, which_backend

BACKENDS = [name for name, state in backends().items() if state == "available"]
KINDS = ("affine", "projective", "basis", "grid")
# Each kind meets bilinear and bicubic, and each padding two of the kinds. The first four are what compilers get.
CASES = [
    ("affine", "bilinear", "zeros", 2), ("projective", "bilinear", "border", 2), ("basis", "bilinear", "constant", 2),
    ("grid", "bilinear", "circular", 2), ("affine", "bicubic", "border", 2), ("projective", "bicubic", "circular", 2),
    ("basis", "bicubic", "reflection", 2), ("grid", "bicubic", "zeros", 2), ("grid", "nearest", "zeros", 2),
    ("affine", "bilinear", "reflection", 3), ("grid", "bicubic", "constant", 1),
]  # fmt: skip
STEP = 1e-4  # of differences: halfway between rounding, 1e-16 / STEP^2, and the terms left out, STEP^2
FIRST, SECOND = 1e-7, 1e-5  # what is left of the first and the second derivative by differences
FILL = 0.7


def product() -> Iterator[Any]:
    for backend, case in itertools.product(BACKENDS, CASES):
        yield pytest.param(backend, *case, id="-".join(map(str, (backend, *case))))


every_case = pytest.mark.parametrize(("backend", "kind", "mode", "padding_mode", "d"), list(product()))
some_cases = pytest.mark.parametrize(
    ("backend", "kind", "mode", "padding_mode", "d"), [case for case in product() if case.values[1:] in CASES[:4]]
)


@pytest.fixture(autouse=True)
def _on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of this file runs on the backend it names."""
    wanted = getattr(request.node, "callspec", None)
    if wanted is None:
        yield
        return
    case = wanted.params
    with use_backend(case["backend"]):
        try:
            which_backend(case.get("d", 2), case.get("mode", "bilinear"), case.get("padding_mode", "zeros"))
        except ValueError as error:
            pytest.skip(str(error))
        yield


class Case:
    """A warp as a function of image and coordinates, at coordinates that lie on no kink."""

    def __init__(self, kind: str, mode: str, padding_mode: str, d: int, batch: int = 1, channels: int = 1) -> None:
        self.kind, self.d, self.align_corners = kind, d, kind in ("grid", "basis")
        in_size, self.size = ((4,), (4, 3), (2, 2, 3))[d - 1], ((3,), (2, 3), (2, 1, 2))[d - 1]
        fill = {"fill": FILL} if padding_mode == "constant" else {}
        self.options: dict[str, Any] = {
            "mode": mode, "padding_mode": padding_mode, "align_corners": self.align_corners, **fill
        }  # fmt: skip
        self.transform = stn.ThinPlateSpline((2,) * d) if kind == "basis" else None
        self.image = torch.randn(batch, channels, *in_size, dtype=torch.float64)
        for seed in range(1000):
            torch.manual_seed(seed)
            self.coords = self._coordinates(batch)
            if self._distance_from_kinks() > 0.03:
                return
        raise AssertionError("no coordinates without a kink were found")

    def _coordinates(self, batch: int) -> Tensor:
        d, real = self.d, torch.float64
        if self.kind == "grid":
            return 1.4 * (2 * torch.rand(batch, *self.size, d, dtype=real) - 1)
        if self.kind == "basis":
            return 0.2 * torch.randn(batch, 2**d * d, dtype=real)
        n = d if self.kind == "affine" else d + 1
        matrix = torch.eye(n, d + 1, dtype=real) + 0.25 * torch.randn(batch, n, d + 1, dtype=real)
        if self.kind == "projective":
            matrix[:, -1, -1] = 1.0
        return matrix

    def _distance_from_kinks(self) -> float:
        in_size = self.image.shape[2:]
        pixels = stn.conventions.normalized_to_pixel(
            self.grid(self.coords).flatten(1, -2), in_size, align_corners=self.align_corners
        )
        if self.options["mode"] == "nearest":
            pixels = pixels + 0.5
        distance = (pixels - pixels.round()).abs().min()
        return float(distance) if bool((pixels.abs() < 20).all()) else 0.0

    def grid(self, coords: Tensor) -> Tensor:
        if self.kind == "grid":
            return coords
        if self.transform is not None:
            return self.transform.grid(coords, self.size, stn.Frame(align_corners=self.align_corners))
        make = stn.transforms.affine_grid if self.kind == "affine" else stn.transforms.projective_grid
        return make(coords, self.size, align_corners=self.align_corners)

    def __call__(self, image: Tensor, coords: Tensor) -> Tensor:
        if self.kind == "grid":
            return stn.sample(image, coords, **self.options)
        return stn.warp(image, coords, self.size, transform=self.transform, **self.options)

    # As a function of one vector, all that has derivatives in a row

    def vector(self) -> Tensor:
        return torch.cat([self.image.flatten(), self.coords.flatten()])

    def of_vector(self, v: Tensor) -> Tensor:
        image, coords = v.split([self.image.numel(), self.coords.numel()])
        return self(image.reshape(self.image.shape), coords.reshape(self.coords.shape)).flatten()

    def weights(self) -> Tensor:
        return torch.linspace(-1, 2, math.prod(self.size) * len(self.image) * self.image.shape[1], dtype=torch.float64)

    def scalar(self, v: Tensor) -> Tensor:
        return self.of_vector(v) @ self.weights()


def first_differences(function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """The Jacobian, by central differences of the forward pass."""
    with torch.no_grad():
        steps = STEP / 10 * torch.eye(len(v), dtype=v.dtype)
        return torch.stack([(function(v + s) - function(v - s)) / (2 * s.sum()) for s in steps], -1)


def second_differences(function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """The Hessian of a scalar function, by central differences of the forward pass."""
    n, h = len(v), STEP
    with torch.no_grad():
        steps = h * torch.eye(n, dtype=v.dtype)
        out = v.new_zeros(n, n)
        for i in range(n):
            for j in range(i, n):
                a, b = steps[i], steps[j]
                total = function(v + a + b) - function(v + a - b) - function(v - a + b) + function(v - a - b)
                out[i, j] = out[j, i] = total / (4 * h * h)
    return out


def close(ours: Tensor, truth: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(
        ours.detach(), truth, rtol=tolerance, atol=tolerance * max(1.0, float(truth.abs().max()))
    )


# torch.library


class Recorder(TorchDispatchMode):
    """Every call of an op of ours, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "stn":
            self.calls.append((func, args, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


@some_cases
def test_every_registered_op_passes_opcheck(backend, kind, mode, padding_mode, d):
    case = Case(kind, mode, padding_mode, d, batch=2, channels=2)
    image, coords = (t.float().requires_grad_() for t in (case.image, case.coords))
    with Recorder() as recorder:
        out = case(image, coords)
        torch.autograd.grad(out, (image, coords), torch.ones_like(out))
    if backend in ("cpu", "triton"):
        assert len(recorder.calls) >= 2, "forward and backward are registered ops, or this test sees nothing"
    elif not recorder.calls:
        pytest.skip(f"{backend} runs on torch's own ops")
    for number, (function, args, kwargs) in enumerate(recorder.calls):
        args = [
            a.detach().clone(memory_format=torch.preserve_format).requires_grad_(number == 0 and a.is_floating_point())
            if isinstance(a, Tensor) else a
            for a in args
        ]  # fmt: skip
        torch.library.opcheck(function, tuple(args), kwargs)


# torch.autograd


@every_case
def test_gradcheck_batched_and_forward(backend, kind, mode, padding_mode, d):
    case = Case(kind, mode, padding_mode, d)
    inputs = case.image.requires_grad_(), case.coords.requires_grad_()
    options = {"check_batched_grad": True, "check_forward_ad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(case, inputs, **options)


@some_cases
def test_gradgradcheck(backend, kind, mode, padding_mode, d):
    case = Case(kind, mode, padding_mode, d)
    inputs = case.image.requires_grad_(), case.coords.requires_grad_()
    assert torch.autograd.gradgradcheck(
        case, inputs, check_batched_grad=True, check_fwd_over_rev=True, check_rev_over_rev=True
    )


@every_case
def test_batched_gradients(backend, kind, mode, padding_mode, d):
    """`is_grads_batched`, and the Jacobian and Hessian of torch.autograd.functional, one by one and vectorized."""
    case = Case(kind, mode, padding_mode, d)
    v = case.vector().requires_grad_()
    truth = first_differences(case.of_vector, v)
    out = case.of_vector(v)
    many = torch.eye(len(out), dtype=out.dtype)
    close(torch.autograd.grad(out, v, many, is_grads_batched=True)[0], truth, FIRST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jacobian = torch.autograd.functional.jacobian
        close(jacobian(case.of_vector, v), truth, FIRST)
        close(jacobian(case.of_vector, v, vectorize=True), truth, FIRST)
        close(jacobian(case.of_vector, v, vectorize=True, strategy="forward-mode"), truth, FIRST)
        second = second_differences(case.scalar, v)
        of_scalar = torch.autograd.functional.hessian
        close(of_scalar(case.scalar, v), second, SECOND)
        close(of_scalar(case.scalar, v, vectorize=True), second, SECOND)
        close(of_scalar(case.scalar, v, vectorize=True, outer_jacobian_strategy="forward-mode"), second, SECOND)


@every_case
def test_dual_numbers(backend, kind, mode, padding_mode, d):
    case = Case(kind, mode, padding_mode, d)
    v = case.vector()
    tangent = torch.randn_like(v)
    truth = first_differences(case.of_vector, v) @ tangent
    with forward_ad.dual_level():
        out = case.of_vector(forward_ad.make_dual(v, tangent))
        close(forward_ad.unpack_dual(out).tangent, truth, FIRST)
        # Forward over reverse.
        leaf = forward_ad.make_dual(v.clone().requires_grad_(), tangent)
        gradient = torch.autograd.grad(case.scalar(leaf), leaf, create_graph=True)[0]
        pushed = forward_ad.unpack_dual(gradient).tangent
    close(pushed, second_differences(case.scalar, v) @ tangent, SECOND)


# torch.func


@every_case
def test_first_derivatives(backend, kind, mode, padding_mode, d):
    case = Case(kind, mode, padding_mode, d)
    v = case.vector()
    tangent, cotangent = torch.randn_like(v), case.weights()
    truth = first_differences(case.of_vector, v)
    out, pushed = jvp(case.of_vector, (v,), (tangent,))
    close(out, case.of_vector(v), 1e-12)
    close(pushed, truth @ tangent, FIRST)
    close(vjp(case.of_vector, v)[1](cotangent)[0], cotangent @ truth, FIRST)
    close(grad(case.scalar)(v), cotangent @ truth, FIRST)
    close(jacrev(case.of_vector)(v), truth, FIRST)
    close(jacrev(case.of_vector, chunk_size=2)(v), truth, FIRST)
    close(jacfwd(case.of_vector)(v), truth, FIRST)


@some_cases
def test_linearize(backend, kind, mode, padding_mode, d):
    case = Case(kind, mode, padding_mode, d)
    v = case.vector()
    tangent = torch.randn_like(v)
    truth = first_differences(case.of_vector, v)
    out, push = linearize(case.of_vector, v)
    close(out, case.of_vector(v), 1e-12)
    close(push(tangent), truth @ tangent, FIRST)
    close(vmap(push, out_dims=1)(torch.eye(len(v), dtype=v.dtype)), truth, FIRST)


@every_case
def test_second_derivatives(backend, kind, mode, padding_mode, d):
    case = Case(kind, mode, padding_mode, d)
    v = case.vector()
    truth = second_differences(case.scalar, v)
    for name, twice in {
        "hessian": hessian(case.scalar),
        "jacfwd(jacfwd)": jacfwd(jacfwd(case.scalar)),
        "jacrev(jacrev)": jacrev(jacrev(case.scalar)),
        "jacrev(jacfwd)": jacrev(jacfwd(case.scalar)),
        "jacfwd(grad)": jacfwd(grad(case.scalar)),
    }.items():
        try:
            close(twice(v), truth, SECOND)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
    a, b = torch.randn_like(v), torch.randn_like(v)

    def along(x: Tensor) -> Tensor:
        return jvp(case.scalar, (x,), (a,))[1]

    close(jvp(along, (v,), (b,))[1], a @ truth @ b, SECOND)
    close(vjp(along, v)[1](torch.ones((), dtype=v.dtype))[0], truth @ a, SECOND)
    close(jvp(lambda x: vjp(case.scalar, x)[1](x.new_ones(()))[0], (v,), (b,))[1], truth @ b, SECOND)


@every_case
def test_vmap(backend, kind, mode, padding_mode, d):
    case = Case(kind, mode, padding_mode, d)
    images, coords = (torch.stack([t, 0.9 * t, 1.1 * t]) for t in (case.image, case.coords))

    def loop(images: Any, coords: Any) -> Tensor:
        return torch.stack([case(i, c) for i, c in zip(images, coords, strict=True)])

    close(vmap(case)(images, coords), loop(images, coords), 1e-12)
    close(vmap(case, in_dims=(None, 0))(case.image, coords), loop([case.image] * 3, coords), 1e-12)
    close(vmap(case, in_dims=(0, None))(images, case.coords), loop(images, [case.coords] * 3), 1e-12)
    close(vmap(case, in_dims=(-1, 1))(images.movedim(0, -1), coords.movedim(0, 1)), loop(images, coords), 1e-12)
    close(vmap(case, out_dims=-1)(images, coords), loop(images, coords).movedim(0, -1), 1e-12)
    nested = vmap(vmap(case, in_dims=(None, 0)), in_dims=(0, None))(images, coords)
    close(nested, torch.stack([loop([i] * 3, coords) for i in images]), 1e-12)
    # Gradients for each sample, inside and outside.
    weights = case.weights()
    close(
        vmap(grad(lambda c, i: case(i, c).flatten() @ weights))(coords, images),
        torch.stack(
            [grad(lambda c, i=i: case(i, c).flatten() @ weights)(c) for i, c in zip(images, coords, strict=True)]
        ),
        1e-10,
    )
    leaf = coords.clone().requires_grad_()
    inside = torch.autograd.grad(vmap(case)(images, leaf).square().sum(), leaf)[0]
    outside = torch.autograd.grad(loop(images, leaf).square().sum(), leaf)[0]
    close(inside, outside, 1e-10)


@every_case
def test_vmap_over_the_fill(backend, kind, mode, padding_mode, d):
    if padding_mode != "constant":
        pytest.skip("only constant padding has a fill")
    case = Case(kind, mode, padding_mode, d)
    fills = torch.tensor([0.1, -3.0], dtype=torch.float64)

    def filled(fill: Tensor) -> Tensor:
        case.options["fill"] = fill
        return case(case.image, case.coords)

    close(vmap(filled)(fills), torch.stack([filled(fill) for fill in fills]), 1e-12)
    close(jacfwd(filled)(fills[0]), (filled(fills[0] + 0.5) - filled(fills[0] - 0.5)), 1e-10)
    close(jacrev(filled)(fills[0]), (filled(fills[0] + 0.5) - filled(fills[0] - 0.5)), 1e-10)


# Tracers and compilers


class Module(torch.nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, image: Tensor, coords: Tensor) -> Tensor:
        return self.case(image, coords)


@some_cases
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_export(backend, kind, mode, padding_mode, d, dynamic):
    case = Case(kind, mode, padding_mode, d, batch=2, channels=2)
    batch = {0: torch.export.Dim("batch", min=1, max=64)} if dynamic else None
    program = torch.export.export(
        Module(case), (case.image, case.coords), dynamic_shapes={"image": batch, "coords": batch}
    )
    image, coords = 2 * case.image, 0.9 * case.coords
    if dynamic:
        image, coords = (torch.cat([t, 0.5 * t, t[:1]]) for t in (image, coords))
    close(program.module()(image, coords), case(image, coords), 1e-12)


@some_cases
def test_compile_in_one_graph(backend, kind, mode, padding_mode, d):
    case = Case(kind, mode, padding_mode, d, batch=2, channels=2)
    torch._dynamo.reset()
    compiled = torch.compile(case.__call__, fullgraph=True, backend="aot_eager")
    for scale in (1.0, 0.9):
        results = []
        for function in (case, compiled):
            inputs = (scale * case.image).requires_grad_(), (scale * case.coords).requires_grad_()
            out = function(*inputs)
            results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
        for ours, truth in zip(*reversed(results), strict=True):
            close(ours, truth.detach(), 1e-12)
            assert ours.stride() == truth.stride()


@some_cases
def test_compiled_transforms(backend, kind, mode, padding_mode, d):
    """A transform inside of a compiled function."""
    case = Case(kind, mode, padding_mode, d)
    v = case.vector()
    for function, point in (
        (grad(case.scalar), v),
        (vmap(case.scalar), torch.stack([v, 0.9 * v])),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, function=function: function(x), fullgraph=True, backend="aot_eager")
        close(compiled(point), function(point), 1e-12)


@pytest.mark.slow
@some_cases
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_with_inductor(backend, kind, mode, padding_mode, d, dynamic):
    case = Case(kind, mode, padding_mode, d, batch=2, channels=2)
    torch._dynamo.reset()
    compiled = torch.compile(case.__call__, fullgraph=True, dynamic=dynamic)
    results = []
    for function in (case, compiled):
        inputs = case.image.clone().requires_grad_(), case.coords.clone().requires_grad_()
        out = function(*inputs)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for ours, truth in zip(*reversed(results), strict=True):
        close(ours, truth.detach(), 1e-12)
