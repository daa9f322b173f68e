"""Fields natively: displacements brought to the output inside the warp, and velocities followed, against the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import stn
import stn.export
from stn.coordinates import Coordinates, positions
from stn.ops import dispatch, flow, native, use_backend
from stn.reading import check_reading
from stn.sampling import fit_fill

needs_native = pytest.mark.skipif(native.refuses("cpu") is not None, reason="no native backend")


def pulled(call: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """The result, and the gradients of a sum that weighs it unevenly."""
    out = call(*tensors)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out).cos()
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance, atol=tolerance * max(1.0, float(theirs.detach().abs().max()))
        )


# Displacements that the warp reads as it goes

# The image, the field's lattice, the output: coarse, as fine as the output, finer, of one point, so narrow that a chunk has many
# rows; small images that are copied with their padding, larger ones, many channels, which is one road of the kernels each.
CASES = [
    ((2, 1, 9, 11), (4, 5), (12, 13)), ((2, 3, 40, 50), (3, 2), (60, 290)), ((2, 3, 40, 50), (31, 64), (31, 64)),
    ((1, 2, 300, 200), (8, 6), (210, 333)), ((1, 1, 30, 30), (1, 1), (20, 20)), ((1, 1, 30, 30), (70, 600), (20, 3)),
    ((1, 2, 30, 30), (5, 900), (4, 2)), ((9, 16, 12, 14), (3, 9), (20, 18)), ((2, 40, 60, 62), (6, 7), (70, 66)), ((1, 1, 200, 260), (190, 1), (150, 180)),
    ((2, 2, 6, 7, 8), (3, 4, 2), (9, 8, 10)), ((1, 1, 20, 22, 24), (20, 22, 24), (20, 22, 24)), ((1, 1, 9, 9, 9), (40, 2, 3), (30, 20, 21)),
    ((2, 2, 17), (5,), (300,)), ((3, 1, 9), (1,), (4,)), ((1, 2, 30, 30), (9, 64), (25, 20)),  # and three columns a pixel
]  # fmt: skip


def case(image: tuple[int, ...], res: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    d = len(res)
    tensors = torch.randn(image, generator=random), 0.4 * torch.randn(image[0], *res, d, generator=random)
    return tuple(tensor.double().requires_grad_() for tensor in tensors)  # type: ignore[return-value]


def read(size: tuple[int, ...], image: Tensor, field: Tensor, **how: object) -> Tensor:
    options = {"mode": "bilinear", "padding_mode": "zeros", "fill": 0.0, "align_corners": False, **how}
    reading = fit_fill(check_reading(*options.values()), image)  # type: ignore[arg-type]
    return dispatch.warp(image, Coordinates("field", size, field), reading)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("image", "res", "size"), CASES, ids=str)
def test_a_warp_by_a_field(
    image: tuple[int, ...], res: tuple[int, ...], size: tuple[int, ...], align_corners: bool
) -> None:
    tensors, call = case(image, res), partial(read, size, align_corners=align_corners)
    with use_backend("reference"):
        expected = pulled(call, *tensors)
    close(pulled(call, *tensors), expected)
    single = [tensor.detach().float() for tensor in tensors]
    torch.testing.assert_close(call(*single).double(), expected[0].detach(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("mode", ["nearest", "bicubic", "bspline3"])
@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
def test_however_the_image_is_read(mode: str, padding_mode: str) -> None:
    for image, res, size in ((CASES[1]), (CASES[10])):
        if len(size) == 3 and mode == "bicubic":
            continue
        kernel = stn.kernels.bspline(3) if mode == "bspline3" else mode
        tensors, call = case(image, res), partial(read, size, mode=kernel, padding_mode=padding_mode)
        with use_backend("reference"):
            expected = pulled(call, *tensors)
        close(pulled(call, *tensors), expected)


def test_channels_last_and_half_precision() -> None:
    image, field = case((2, 16, 20, 22), (5, 6))
    with use_backend("reference"):
        expected = read((24, 25), image, field).detach()
    last = image.detach().float().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(read((24, 25), last, field.detach().float()).double(), expected, rtol=0, atol=1e-3)
    half = read((24, 25), image.detach().bfloat16(), field.detach().float())
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=0.05)


def test_an_exact_field_of_a_few_numbers() -> None:
    """A shift by one pixel to the left of the field, by three to the right."""
    image = torch.arange(8.0).expand(1, 1, 2, 8)
    field = torch.tensor([[1.0, 0.0], [3.0, 0.0]]).mul(torch.tensor([2 / 7, 1.0])).expand(1, 2, 2, 2).contiguous()
    found = read((2, 8), image, field, align_corners=True, padding_mode="border")
    torch.testing.assert_close(found[0, 0, 0], (torch.arange(8.0) * (9 / 7) + 1).clamp(max=7), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_where_a_field_is_not_finite(bad: float) -> None:
    image, field = case((1, 2, 40, 50), (5, 6))
    with torch.no_grad():
        field[0, 2, 3, 0] = bad
    with use_backend("reference"):
        expected = pulled(lambda i, f: read((33, 34), i, f).nan_to_num(), image, field)
    found = pulled(lambda i, f: read((33, 34), i, f).nan_to_num(), image, field)
    close([found[0], found[1], found[2].nan_to_num()], [expected[0], expected[1], expected[2].nan_to_num()])
    with use_backend("reference"):
        lost = read((33, 34), image, field).isnan()
    assert 0 < lost.sum() < lost.numel()
    assert torch.equal(read((33, 34), image, field).isnan(), lost)


@needs_native
def test_the_warp_takes_the_field_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    run = native.cpu._native.run
    monkeypatch.setattr(native.cpu._native, "run", lambda *what, **how: given.append(what) or run(*what, **how))
    for family in (stn.DisplacementField((4, 5)), stn.VelocityField((4, 5))):
        theta = (0.1 * torch.randn(2, family.num_params)).requires_grad_()
        stn.warp(torch.rand(2, 1, 30, 40), theta, transform=family).sum().backward()
        assert theta.grad is not None
    kinds = [what[3] for what in given]
    assert kinds == [native.cpu._COORDINATES["field"]] * 4
    assert all(tuple(what[7].shape) == (2, 4, 5, 2) for what in given)


@needs_native
@pytest.mark.parametrize(("image", "res", "size"), [CASES[3], CASES[9], CASES[11]], ids=str)
def test_as_many_threads_as_one_likes(image: tuple[int, ...], res: tuple[int, ...], size: tuple[int, ...]) -> None:
    tensors = [tensor.detach().float().requires_grad_() for tensor in case(image, res)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = pulled(partial(read, size), *tensors)
        torch.set_num_threads(3)
        assert all(map(torch.equal, pulled(partial(read, size), *tensors), alone))
    finally:
        torch.set_num_threads(threads)


@needs_native
def test_the_kernels_refuse_other_fields() -> None:
    image, values = torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 3, 2)
    numbers = native.cpu._native
    for field, complaint in (
        (values[..., :1], "coords: expected shape"), (values.double(), "coords: expected float32"),
        (values[0], "coords: expected 4 axes"), (values.transpose(1, 2).expand(1, 3, 3, 2)[:, :, ::2], "contiguous"), (values[:, :0], "at least one"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=complaint):
            numbers.run(
                numbers.FORWARD, 1, 0, numbers.COORDINATES["field"], False, 1, image, field, None, None, image, image
            )


def test_coordinates_say_where() -> None:
    field = case((2, 1, 4, 4), (3, 4))[1]
    grid = positions(Coordinates("field", (6, 7), field), True)
    assert torch.equal(grid, stn.transforms.displacement_grid(field, (6, 7), align_corners=True))
    family = stn.DisplacementField((3, 4))
    assert torch.equal(family.grid(field.flatten(1), (6, 7), stn.Frame(align_corners=True)), grid)


# Velocities

SIZES = [(6,), (4, 5), (1, 7), (9, 1), (1, 1), (3, 4, 5), (2, 1, 6), (140, 150), (400, 90), (33, 35, 31), (60, 300, 1)]


def velocity(size: tuple[int, ...], spread: float = 0.3, batch: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(sum(size))
    return (spread * torch.randn(batch, *size, len(size), generator=random, dtype=torch.float64)).requires_grad_()


def truth(field: Tensor, steps: int) -> Tensor:
    return flow._step_by_step(field, steps)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_following_a_velocity(size: tuple[int, ...]) -> None:
    for spread, steps in ((0.3, 4), (0.02, 2), (3.0, 1), (0.5, 0)) if math.prod(size) < 1000 else ((0.2, 2),):
        tensors = velocity(size, spread)
        with use_backend("reference"):
            expected = pulled(partial(truth, steps=steps), tensors)
        found = pulled(partial(flow.integrate, steps=steps), tensors)
        close(found, expected)
        single = flow.integrate(tensors.detach().float(), steps)
        torch.testing.assert_close(single.double(), expected[0].detach(), rtol=0, atol=1e-3 * spread)


@pytest.mark.parametrize("size", [(7,), (5, 6), (4, 5, 6), (3, 1, 4)], ids=str)
def test_on_the_points_of_the_lattice_the_slope_is_the_mean(size: tuple[int, ...]) -> None:
    """Vectors that lead to a point of the lattice, to the border's, to beyond: in every step, for the first goes half the way."""
    for whole in (1, 2, 40):
        tensors = velocity(size)
        half = torch.tensor([max(n - 1, 1) / 2 for n in reversed(size)], dtype=torch.float64)
        with torch.no_grad():
            tensors.copy_((tensors * 10).round().clamp(-2, 2) * whole / half)
            tensors[:, 0] = 0
        for steps in (0, 1):
            with use_backend("reference"):
                expected = pulled(partial(truth, steps=steps), tensors)
            close(pulled(partial(flow.integrate, steps=steps), tensors), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e32])
def test_velocities_that_are_not_finite_or_too_large(bad: float) -> None:
    tensors = velocity((4, 5))
    with torch.no_grad():
        tensors[0, 1, 2, 0] = bad
    with use_backend("reference"):
        expected = pulled(partial(truth, steps=3), tensors)
    found = pulled(partial(flow.integrate, steps=3), tensors)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)


@needs_native
def test_it_runs_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = native.cpu._native.follow
    monkeypatch.setattr(native.cpu._native, "follow", lambda *given: calls.append(run(*given)) or calls[-1])
    pulled(partial(stn.transforms.velocity.integrate_velocity, steps=3), velocity((4, 5)))
    pulled(partial(stn.transforms.velocity.integrate_velocity, steps=3), velocity((5,)))
    assert calls == [True] * 4


@needs_native
@pytest.mark.parametrize("size", [(140, 150), (33, 35, 31), (9, 8)], ids=str)
def test_following_on_as_many_threads_as_one_likes(size: tuple[int, ...]) -> None:
    tensors = velocity(size, batch=3).detach().float().requires_grad_()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = pulled(partial(flow.integrate, steps=3), tensors)
        torch.set_num_threads(3)
        assert all(map(torch.equal, pulled(partial(flow.integrate, steps=3), tensors), alone))
    finally:
        torch.set_num_threads(threads)


def test_derivatives_of_every_kind() -> None:
    field = velocity((3, 4), batch=1)
    call = partial(flow.integrate, steps=2)
    assert torch.autograd.gradcheck(call, field)
    assert torch.autograd.gradgradcheck(call, field)
    moved, along = torch.func.jvp(call, (field,), (torch.ones_like(field),))
    torch.testing.assert_close(along, (call(field + 1e-6) - moved) / 1e-6, rtol=1e-4, atol=1e-4)
    stacked = torch.stack([field, 0.5 * field]).detach()
    torch.testing.assert_close(torch.func.vmap(call)(stacked)[1], call(stacked[1]))
    each = torch.func.vmap(torch.func.grad(lambda v: call(v).square().sum()))(stacked)
    torch.testing.assert_close(each[1], torch.func.grad(lambda v: call(v).square().sum())(stacked[1]))


def test_memory_of_any_order_and_empty_batches() -> None:
    field = velocity((4, 5)).detach()
    turned = field.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(flow.integrate(turned, 3), flow.integrate(field, 3))
    assert torch.equal(flow.integrate(torch._neg_view(field), 3), flow.integrate(-field, 3))
    out = flow.integrate(field[:0].requires_grad_(), 3)
    out.sum().backward()
    assert out.shape == (0, 4, 5, 2)


@needs_native
def test_the_registered_operator() -> None:
    torch.library.opcheck(torch.ops.stn.integrate_velocity.default, (velocity((3, 4)), 2))
    torch.library.opcheck(torch.ops.stn.integrate_velocity.default, (velocity((2, 3, 4)).detach(), 1))
    how = (None, None, "field", [5, 6], "bilinear", "zeros", False)
    torch.library.opcheck(torch.ops.stn.warp_cpu.default, (*case((2, 3, 9, 11), (3, 4)), *how))


@needs_native
def test_the_kernel_refuses_what_does_not_fit() -> None:
    field = torch.zeros(1, 3, 4, 2)
    follow = native.cpu._native.follow
    for given, complaint in (
        ((field.half(), 1, field, None, 1), "float32 or float64"), ((field[..., :1].contiguous(), 1, field, None, 1), "velocity: expected"),
        ((field, 31, field, None, 1), "steps"), ((field, 1, field.double(), None, 1), "result"), ((field, 1, field, field[0], 1), "for_velocity"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=complaint):
            follow(*given)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.family = stn.VelocityField((4, 5), steps=3)

    def forward(self, image: Tensor, theta: Tensor) -> Tensor:
        return stn.warp(image, theta, transform=self.family)


@pytest.mark.parametrize("already", [False, True])
def test_an_exported_program_holds_standard_operators(already: bool) -> None:
    inputs = torch.rand(2, 1, 8, 9), 0.2 * torch.randn(2, 40)
    if already:
        exported = torch.export.export(Layer(), inputs)
        assert "stn.integrate_velocity" in str(exported.graph) or native.refuses("cpu")
        program = stn.export.program(exported)
    else:
        program = stn.export.program(Layer().eval(), inputs)
        inputs = tuple(torch.cat([tensor] * 2) for tensor in inputs)  # type: ignore[assignment] # another batch
    assert "stn" not in str(program.graph)
    torch.testing.assert_close(program.module()(*inputs), Layer()(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled() -> None:
    inputs = torch.rand(2, 1, 8, 9).requires_grad_(), (0.2 * torch.randn(2, 40)).requires_grad_()
    found = pulled(torch.compile(Layer(), fullgraph=True), *inputs)
    close(found, pulled(Layer(), *inputs), 1e-5)
