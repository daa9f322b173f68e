"""Multi-scale deformable attention's read: the plain form's value and three gradients, on the native road and the others."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stn
import stn.export
from stn.ops import native, use_backend

SIZES = [(5, 7), (3, 4), (1, 1), (2, 1)]
needs_native = pytest.mark.skipif(native.refuses("cpu") is not None, reason="no native backend")


def inputs(
    dtype: torch.dtype = torch.float64,
    sizes: list[tuple[int, ...]] = SIZES,
    heads: int = 3,
    channels: int = 5,
    ndim: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Some positions lie beyond the border, some far beyond."""
    random = torch.Generator().manual_seed(0)
    positions = sum(math.prod(size) for size in sizes)
    value = torch.randn(2, positions, heads, channels, generator=random, dtype=torch.float64)
    locations = torch.rand(2, 6, heads, len(sizes), 4, ndim, generator=random, dtype=torch.float64) * 1.6 - 0.3
    locations[0, 0, 0, 0, 0] = 50.0
    weights = torch.rand(2, 6, heads, len(sizes), 4, generator=random, dtype=torch.float64)
    return tuple(tensor.to(dtype).requires_grad_() for tensor in (value, locations, weights))  # type: ignore[return-value]


def plain(value: Tensor, sizes: list[tuple[int, ...]], locations: Tensor, weights: Tensor) -> Tensor:
    """The plain PyTorch form: torch's own sampler, one query, head, map and point after the other in the sum."""
    batch, _, heads, channels = value.shape
    total = value.new_zeros(batch, locations.shape[1], heads, channels)
    first = 0
    for level, size in enumerate(sizes):
        maps = value[:, first : first + math.prod(size)]
        first += math.prod(size)
        for head in range(heads):
            image = maps[:, :, head].transpose(1, 2).unflatten(2, size)
            grid = 2 * locations[:, :, head, level] - 1  # (B, Q, points, d)
            if len(size) == 3:
                grid = grid[:, :, :, None]
            seen = F.grid_sample(image, grid, align_corners=False).reshape(*image.shape[:2], *grid.shape[1:3])
            total[:, :, head] += torch.einsum("bcqp,bqp->bqc", seen, weights[:, :, head, level])
    return total.flatten(2)


def results(call: object, *tensors: Tensor) -> list[Tensor]:
    out = call(*tensors)  # type: ignore[operator]
    return [
        out,
        *torch.autograd.grad((out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum(), tensors),
    ]


@pytest.mark.parametrize("backend", [None, "reference", "aten"])
@pytest.mark.parametrize("channels", [1, 5, 32])
def test_the_plain_form_and_its_gradients(backend: str | None, channels: int) -> None:
    tensors = inputs(channels=channels)
    expected = results(lambda v, at, w: plain(v, SIZES, at, w), *tensors)
    if backend is None:
        found = results(lambda v, at, w: stn.deformable_sample(v, SIZES, at, w), *tensors)
    else:
        with use_backend(backend):
            found = results(lambda v, at, w: stn.deformable_sample(v, SIZES, at, w), *tensors)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_volumes() -> None:
    sizes = [(3, 4, 5), (1, 2, 2)]
    tensors = inputs(sizes=sizes, ndim=3)
    expected = results(lambda v, at, w: plain(v, sizes, at, w), *tensors)
    for ours, theirs in zip(
        results(lambda v, at, w: stn.deformable_sample(v, sizes, at, w), *tensors), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_signals() -> None:
    value = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(1, 4, 1, 1)
    locations = torch.tensor([0.25, 0.5]).view(1, 1, 1, 1, 2, 1)  # 0.5 and 1.5 pixels
    found = stn.deformable_sample(value, [(4,)], locations, torch.ones(1, 1, 1, 1, 2))
    torch.testing.assert_close(found, torch.tensor([[[1.0 + 3.0]]]))


@needs_native
def test_it_runs_natively_and_equals_the_reference_on_pixel_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    value, locations, weights = inputs()
    with torch.no_grad():  # on centres, at the border's, one pixel beyond it, halfway between
        for level, size in enumerate(SIZES):
            sides = torch.tensor(size[::-1])
            locations[:, :, :, level] = ((locations[:, :, :, level] * sides * 2).round().clamp(-1, 9) / 2) / sides
    with use_backend("reference"):
        expected = results(lambda v, at, w: stn.deformable_sample(v, SIZES, at, w), value, locations, weights)
    calls = []
    run = native.cpu._native.deform
    monkeypatch.setattr(native.cpu._native, "deform", lambda *given: calls.append(given) or run(*given))
    found = results(lambda v, at, w: stn.deformable_sample(v, SIZES, at, w), value, locations, weights)
    assert len(calls) == 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_what_is_not_finite_stays_where_it_is() -> None:
    value, locations, weights = inputs()
    bare = stn.deformable_sample(value, SIZES, locations, weights)
    with torch.no_grad():
        locations[1, 2, 0, 1, 3, 1] = math.nan
        locations[0, 3, 2, 0, 0, 0] = math.inf
    found = results(lambda v, at, w: stn.deformable_sample(v, SIZES, at, w), value, locations, weights)
    expected = bare.detach().unflatten(2, (3, 5)).clone()
    expected[1, 2, 0] = expected[0, 3, 2] = math.nan
    torch.testing.assert_close(found[0], expected.flatten(2), equal_nan=True)
    assert found[1].isfinite().all()
    assert (found[2][1, 2, 0, 1, 3] == 0).all()
    with torch.no_grad():
        value[0, 0, 0] = math.nan  # the corner of the first map, which few touch
        locations[:] = 0.5
    found = results(lambda v, at, w: stn.deformable_sample(v, SIZES, at, w), value, locations, weights)
    assert found[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types(dtype: torch.dtype) -> None:
    exact = inputs()
    value, _, weights = inputs(dtype)
    found = stn.deformable_sample(value, SIZES, exact[1].float(), weights)
    assert found.dtype == dtype
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 1e-1, torch.float32: 1e-5}[dtype]
    expected = plain(value.double(), SIZES, exact[1].float().double(), weights.double())
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    found.sum().backward()
    assert value.grad is not None
    assert value.grad.dtype == dtype


@needs_native
def test_the_same_bits_for_any_number_of_threads() -> None:
    value, locations, weights = (
        tensor.detach().repeat(2, *(1,) * (tensor.ndim - 1)).requires_grad_()
        for tensor in inputs(torch.float32, channels=64)
    )
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(lambda v, at, w: stn.deformable_sample(v, SIZES, at, w), value, locations, weights))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_higher_derivatives_tangents_and_vmap() -> None:
    sizes = [(2, 3), (1, 2)]
    value, locations, weights = inputs(sizes=sizes, heads=1, channels=2)
    small = (value[:1], locations[:1, :2], weights[:1, :2])
    small = tuple(tensor.detach().requires_grad_() for tensor in small)

    def call(v: Tensor, at: Tensor, w: Tensor) -> Tensor:
        return stn.deformable_sample(v, sizes, at, w)

    assert torch.autograd.gradcheck(call, small)
    assert torch.autograd.gradgradcheck(call, small)
    tangents = tuple(torch.ones_like(tensor) for tensor in small)
    _, along = torch.func.jvp(call, small, tangents)
    step = 1e-6
    moved = call(*(a + step * t for a, t in zip(small, tangents, strict=True)))
    torch.testing.assert_close(along, (moved - call(*small)) / step, rtol=1e-4, atol=1e-4)
    stacked = tuple(torch.stack([tensor, 0.9 * tensor]) for tensor in small)
    found = torch.func.vmap(call)(*stacked)
    torch.testing.assert_close(found[1], call(*(0.9 * tensor for tensor in small)))
    each = torch.func.vmap(torch.func.grad(lambda *t: call(*t).square().sum(), argnums=(0, 1, 2)))(*stacked)
    alone = torch.func.grad(lambda *t: call(*t).square().sum(), argnums=(0, 1, 2))(*(0.9 * tensor for tensor in small))
    for mapped, single in zip(each, alone, strict=True):
        torch.testing.assert_close(mapped[1], single)


class Layer(torch.nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return stn.deformable_sample(value, SIZES, locations, weights)


@pytest.mark.parametrize("already", [False, True])
def test_an_exported_program_holds_standard_operators(already: bool) -> None:
    tensors = tuple(tensor.detach() for tensor in inputs(torch.float32))
    if already:
        exported = torch.export.export(Layer(), tensors)
        assert "stn.deformable" in str(exported.graph) or native.refuses("cpu")
        program = stn.export.program(exported)
    else:
        program = stn.export.program(Layer().eval(), tensors)
        tensors = tuple(torch.cat([tensor] * 2) for tensor in tensors)  # another batch
    assert "stn" not in str(program.graph)
    torch.testing.assert_close(program.module()(*tensors), Layer()(*tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled() -> None:
    tensors = inputs(torch.float32)
    call = torch.compile(Layer(), fullgraph=True)
    for ours, theirs in zip(results(call, *tensors), results(Layer(), *tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@needs_native
def test_the_registered_operator() -> None:
    value, locations, weights = inputs()
    sizes = [side for size in SIZES for side in size]
    torch.library.opcheck(torch.ops.stn.deformable.default, (value, locations, weights, sizes))


@pytest.mark.parametrize("axis", ["batch", "queries", "channels"])
def test_of_nothing_comes_nothing(axis: str) -> None:
    value, locations, weights = (tensor.detach() for tensor in inputs())
    if axis == "batch":
        value, locations, weights = value[:0], locations[:0], weights[:0]
    elif axis == "queries":
        locations, weights = locations[:, :0], weights[:, :0]
    else:
        value = value[..., :0]
    tensors = tuple(tensor.requires_grad_() for tensor in (value, locations, weights))
    found = stn.deformable_sample(tensors[0], SIZES, tensors[1], tensors[2])
    assert found.shape == (value.shape[0], locations.shape[1], 3 * value.shape[3])
    found.sum().backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in tensors)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"value": torch.zeros(2, 50, 3)},
            r"value: expected flattened maps \(B, S, heads, C\), got shape \(2, 50, 3\)",
        ),
        ({"value": torch.zeros(2, 9, 3, 5)}, r"value: expected 50 positions for maps of .*, got 9"),
        (
            {"value": torch.zeros(2, 50, 3, 5, dtype=torch.int64)},
            "value: expected flattened maps .* of a floating-point type",
        ),
        ({"sizes": torch.tensor(SIZES)}, "sizes: expected a list of the size of each map, as ints"),
        ({"sizes": []}, "sizes: expected a list"),
        ({"sizes": [*SIZES[:3], (2,)]}, r"sizes\[3\]: expected"),
        (
            {"locations": torch.zeros(2, 6, 3, 4, 4)},
            r"locations: expected positions \(B, Q, heads, levels, points, d\)",
        ),
        ({"locations": torch.zeros(2, 6, 2, 4, 4, 2)}, r"locations: expected \(2, Q, 3, 4, points, 2\)"),
        ({"locations": torch.zeros(2, 6, 3, 3, 4, 2)}, r"locations: expected \(2, Q, 3, 4, points, 2\)"),
        ({"weights": torch.zeros(2, 6, 3, 4, 3)}, r"weights: expected shape \(2, 6, 3, 4, 4\), got \(2, 6, 3, 4, 3\)"),
        ({"weights": [1.0]}, "weights: expected weights"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], complaint: str) -> None:
    value, locations, weights = (tensor.detach().float() for tensor in inputs())
    given: dict[str, object] = {"value": value, "sizes": SIZES, "locations": locations, "weights": weights}
    with pytest.raises(ValueError, match=complaint):
        stn.deformable_sample(**{**given, **change})  # type: ignore[arg-type]
