"""Linearized multi-sampling: the values of `sample`, the slope of a plane, and a wider basin."""

from __future__ import annotations

import math

import pytest
import torch

import stn
from stn.geometry import lattice
from stn.linearized import _adjugate, _slope, linearized_sample, linearized_warp
from stn.ops import linearized, native, use_backend
from stn.reading import check_reading
from stn.sampling import fit_fill

SIZES = {1: (9,), 2: (8, 9), 3: (5, 6, 7)}
TURN = torch.tensor([[[0.8, -0.3, 0.1], [0.2, 0.9, -0.1]]])


def ramp(slopes, size, align_corners=False):
    """A linear image (1, 1, *size): its derivative by x, y[, z] is `slopes`."""
    axes = [lattice(n, align_corners=align_corners, dtype=torch.float64) for n in size]
    points = torch.meshgrid(*axes, indexing="ij")[::-1]
    return sum(s * p for s, p in zip(slopes, points, strict=True))[None, None]


def positions(d, out, batch=1, reach=0.3):
    return (reach * (2 * torch.rand(batch, *out, d, dtype=torch.float64) - 1)).requires_grad_()


@pytest.mark.parametrize("options", [
    {}, {"mode": "nearest"}, {"mode": "bicubic"}, {"padding_mode": "border"}, {"padding_mode": "circular"},
    {"padding_mode": "constant", "fill": 0.5}, {"align_corners": True},
])  # fmt: skip
def test_the_value_and_the_gradient_to_the_image_are_those_of_sample(options):
    image = torch.randn(2, 3, 8, 9, requires_grad=True)
    grid = (2.4 * torch.rand(2, 5, 4, 2) - 1.2).requires_grad_()
    out, wanted = linearized_sample(image, grid, **options), stn.sample(image, grid, **options)
    assert torch.equal(out, wanted)
    weight = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((o * weight).sum(), image)[0] for o in (out, wanted))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_slope_of_a_linear_image_is_exact(d, align_corners):
    """Each channel has its own; weights tell output pixels and batch elements apart. The ridge takes 1e-4 of it."""
    size, slopes = tuple(9 * n for n in SIZES[d]), torch.tensor([[2.0, -3.0, 5.0], [-1.0, 0.5, 4.0]])[:, :d]
    image = torch.cat([ramp(s.tolist(), size, align_corners) for s in slopes], dim=1).expand(2, -1, *size[:])
    grid = positions(d, (4, 3, 2)[:d], batch=2)
    out = linearized_sample(image, grid, samples=40, align_corners=align_corners)
    weight = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * weight).sum(), grid)
    wanted = (weight[..., None] * slopes.double().reshape(1, 2, *[1] * d, d)).sum(1)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=3e-3)


@pytest.mark.parametrize("align_corners", [False, True])
def test_it_is_the_plane_of_least_squares(align_corners):
    """Against NumPy's, with the same random positions; the centre is one of the points."""
    image, grid = torch.randn(1, 2, 7, 8, dtype=torch.float64), positions(2, (3, 2))
    generator = torch.Generator().manual_seed(3)
    options = {"padding_mode": "border", "align_corners": align_corners}
    with use_backend("reference"):
        out = linearized_sample(image, grid, samples=5, spread=1.5, generator=generator, **options)
    grads = [torch.autograd.grad(out[:, c].sum(), grid, retain_graph=True)[0] for c in range(2)]
    generator.manual_seed(3)
    drawn = [torch.randn(2, 1, 3, 2, generator=generator, dtype=torch.float64) for _ in range(5)]
    moves = (
        torch.stack([*drawn, torch.zeros(2, 1, 3, 2)]).movedim(1, -1)
        * 1.5
        * torch.tensor([2 / (8 - align_corners), 2 / (7 - align_corners)])
    )
    values = torch.cat([stn.sample(image, (grid + move).detach(), **options) for move in moves])
    for i in range(3):
        for j in range(2):
            design = torch.cat([moves[:, 0, i, j], torch.ones(6, 1)], dim=1).double()
            for c in range(2):
                slope = torch.linalg.lstsq(design, values[:, c, i, j, None]).solution[:2, 0]
                torch.testing.assert_close(grads[c][0, i, j], slope, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_adjugate(d):
    a = torch.randn(6, d, d, dtype=torch.float64)
    m = a @ a.mT + torch.eye(d)
    wanted = torch.linalg.det(m)[:, None, None] * torch.linalg.inv(m)
    torch.testing.assert_close(_adjugate(m.movedim(0, -1)).movedim(-1, 0), wanted)


def test_samples_on_a_line_do_not_blow_up(monkeypatch):
    image, grid = torch.rand(1, 1, 8, 8), torch.zeros(1, 2, 2, 2, requires_grad=True)
    for u in (0.0, 1.0, 1e-3):  # all in one place, or so near that differences would be divided by nothing
        monkeypatch.setattr(torch, "randn", lambda *shape, **options: torch.full(shape, u))
        with use_backend("reference"):
            (gradient,) = torch.autograd.grad(linearized_sample(image, grid, spread=0.5).sum(), grid)
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 8 / 0.5 * 10


def test_spread_is_in_pixels_of_the_image():
    """An edge is seen from as far as the spread, and on a wider image from a smaller part of it."""
    grid = torch.zeros(1, 4, 4, 2, requires_grad=True)
    seen = {}
    for width in (16, 64):
        edge = (torch.arange(width) > width / 2 + 4).float().expand(1, 1, 4, width)  # 5 pixels to the right
        for spread in (0.5, 4.0):
            out = linearized_sample(edge, grid, spread=spread, samples=16, padding_mode="border")
            (gradient,) = torch.autograd.grad(out.sum(), grid)
            seen[width, spread] = gradient[..., 0].mean().item()
    assert seen[16, 0.5] == seen[64, 0.5] == 0
    assert seen[16, 4.0] > 0.3
    assert seen[64, 4.0] / seen[16, 4.0] == pytest.approx(4, rel=0.5)


def test_nearest_has_a_gradient():
    image = ramp((2.0, -3.0), (64, 64))
    grid = positions(2, (16, 16))
    (gradient,) = torch.autograd.grad(linearized_sample(image, grid, mode="nearest", spread=3.0).sum(), grid)
    torch.testing.assert_close(gradient.mean((0, 1, 2)), torch.tensor([2.0, -3.0]).double(), rtol=0.1, atol=0)


def test_random_numbers_are_drawn_only_for_a_gradient():
    image, grid = torch.rand(1, 1, 6, 6), torch.zeros(1, 2, 2, 2, requires_grad=True)
    before = torch.get_rng_state()
    linearized_sample(image, grid.detach())
    with torch.no_grad():
        linearized_sample(image, grid)
    linearized_sample(image, grid, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    linearized_sample(image, grid)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_generator_repeats():
    image, grid = torch.rand(1, 1, 6, 6), torch.zeros(1, 2, 2, 2, requires_grad=True)

    def gradient(seed):
        out = linearized_sample(image, grid, generator=torch.Generator().manual_seed(seed))
        return torch.autograd.grad(out.sum(), grid)[0]

    assert torch.equal(gradient(1), gradient(1))
    assert not torch.equal(gradient(1), gradient(2))


def test_a_batch_of_one_is_broadcast():
    image, grid = torch.rand(3, 2, 6, 6, requires_grad=True), torch.zeros(1, 2, 2, 2, requires_grad=True)
    out = linearized_sample(image, grid)
    assert torch.equal(out, stn.sample(image, grid))
    assert torch.autograd.grad(out.sum(), grid)[0].shape == grid.shape
    alike = linearized_sample(image[:1].expand(3, -1, -1, -1), grid)  # each with positions of its own
    first, second = (torch.autograd.grad(alike[i].sum(), grid, retain_graph=True)[0] for i in range(2))
    assert not torch.equal(first, second)
    one, many = image[:1].detach().requires_grad_(), torch.zeros(3, 2, 2, 2, requires_grad=True)
    out = linearized_sample(one, many)
    assert [g.shape for g in torch.autograd.grad(out.sum(), (one, many))] == [one.shape, many.shape]
    empty = linearized_sample(image[:0], grid)
    assert empty.shape == (0, 2, 2, 2)
    assert (torch.autograd.grad(empty.sum(), grid)[0] == 0).all()


def test_types_and_formats():
    image = torch.rand(2, 3, 6, 6).bfloat16().to(memory_format=torch.channels_last)
    grid = torch.zeros(2, 4, 4, 2, requires_grad=True)
    out = linearized_sample(image, grid)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(out.sum(), grid)
    assert gradient.dtype == torch.float32
    steep = (
        ramp((1.0, 0.0), (32, 32)).bfloat16() + 1
    )  # differences of values near 1, which bfloat16 has in steps of 1/128
    wide = linearized_sample(steep, grid, samples=40, spread=0.1)
    exact = linearized_sample(ramp((1.0, 0.0), (32, 32)).bfloat16().double() + 1, grid.double(), samples=40, spread=0.1)
    slopes = [torch.autograd.grad(o.sum(), grid)[0][..., 0] for o in (wide, exact)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0.02, atol=0.02)


def test_what_is_not_finite_stays_where_it_is():
    image = torch.rand(1, 1, 16, 16)
    image[0, 0, 0, 0] = math.inf
    grid = torch.tensor([[[[math.nan, 0.0], [0.0, math.inf], [0.5, 0.5], [-0.8, -0.8]]]], requires_grad=True)
    out = linearized_sample(image, grid)
    assert torch.equal(out.isnan(), torch.tensor([[[[True, True, False, False]]]]))  # though the slope of the last is
    assert torch.equal(out[..., 3], stn.sample(image, grid)[..., 3])
    (gradient,) = torch.autograd.grad(out[..., :3].nansum(), grid)
    assert (gradient[0, 0, :2] == 0).all()
    assert (gradient[0, 0, 2] != 0).all()


@pytest.mark.parametrize(("theta", "transform"), [
    (TURN, None), (torch.cat([TURN, torch.tensor([[[0.1, 0.0, 1.0]]])], dim=1), None),
    (torch.tensor([[0.3, 0.1, -0.1]]), stn.Rigid()), (0.05 * torch.ones(1, 32), stn.ThinPlateSpline()),
])  # fmt: skip
@pytest.mark.parametrize("align_corners", [False, True])
def test_warp(theta, transform, align_corners):
    """And its gradient is that of `linearized_sample` at the transform's grid."""
    image, size = torch.rand(1, 2, 12, 10), (6, 5)
    theta = theta.clone().requires_grad_()
    shared = {"padding_mode": "border", "align_corners": align_corners}
    options = {"samples": 4, "spread": 2.0, "mode": "bicubic", **shared}
    out = linearized_warp(
        image, theta, size, transform=transform, generator=torch.Generator().manual_seed(1), **options
    )
    torch.testing.assert_close(out, stn.warp(image, theta, size, transform=transform, mode="bicubic", **shared))
    if transform is None:
        grid = (stn.transforms.affine_grid if theta.shape[1] == 2 else stn.transforms.projective_grid)(
            theta, size, align_corners=align_corners
        )
    else:
        grid = transform.grid(theta, size, stn.Frame((12, 10), align_corners))
    wanted = linearized_sample(image, grid, generator=torch.Generator().manual_seed(1), **options)
    assert torch.equal(out, wanted)
    ours, theirs = (torch.autograd.grad(o.square().sum(), theta)[0] for o in (out, wanted))
    assert torch.equal(ours, theirs)


def disc(x, y, n=40):
    """Of radius 3, (1, 1, n, n)."""
    along = torch.arange(float(n))
    return (3.5 - ((along - x) ** 2 + (along[:, None] - y) ** 2).sqrt()).clamp(0, 1)[None, None]


@pytest.mark.parametrize(("shift", "ordinary", "linearized"), [(5.0, True, True), (10.0, False, True)])
def test_basin(shift, ordinary, linearized):
    """A disc is brought onto another. Where they do not overlap the ordinary gradient knows of no way."""
    n, dx, dy = 40, shift * math.cos(0.6), shift * math.sin(0.6)
    image, target = disc(19.5, 19.5), disc(19.5 - dx, 19.5 - dy)

    def error(read):
        theta = torch.zeros(1, 2, requires_grad=True)
        optimizer = torch.optim.Adam([theta], lr=0.3 * 2 / n)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
        for _ in range(150):
            optimizer.zero_grad()
            (read(image, theta, transform=stn.Translation()) - target).square().sum().backward()
            optimizer.step()
            schedule.step()
        return (theta.detach() * n / 2 - torch.tensor([dx, dy])).norm().item()

    assert (error(stn.warp) < 0.2) == ordinary
    assert (error(lambda *args, **options: linearized_warp(*args, spread=4.0, **options)) < 0.2) == linearized


def test_compile():
    image, theta = torch.rand(2, 1, 8, 8), torch.zeros(2, 2, requires_grad=True)

    def call(theta):
        return linearized_warp(image, theta, transform=stn.Translation(), samples=3)

    out = torch.compile(call, backend="aot_eager", fullgraph=True)(theta)
    torch.testing.assert_close(out, call(theta))
    assert (torch.autograd.grad(out.square().sum(), theta)[0] != 0).all()


def test_second_derivatives():
    """By the image they are there; by the grid the slope is a constant."""
    image, grid = torch.rand(1, 1, 6, 6, requires_grad=True), positions(2, (3, 3)).float().detach().requires_grad_()
    out = linearized_sample(image, grid)
    (first,) = torch.autograd.grad(out.square().sum(), grid, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), image)
    assert second.isfinite().all()
    assert (second != 0).any()


def test_bad_input():
    image, grid = torch.rand(1, 1, 6, 6), torch.zeros(1, 2, 2, 2)

    def refuses(argument, *nots, **fixed):
        for bad in nots:
            with pytest.raises(ValueError, match=rf"^{argument}: "):
                linearized_sample(image, grid, **{argument: bad, **fixed})

    refuses("samples", 0, 2, 3.0, True, "8", None)
    refuses("spread", 0, -1.0, math.inf, math.nan, "1", None)
    refuses("generator", 0, "torch")
    refuses("mode", "linear", None)
    refuses("padding_mode", "edge")
    refuses("fill", 1.0)
    refuses("align_corners", 1)
    for bad in (None, grid[0], grid.int(), grid[..., :1], torch.zeros(3, 2, 2, 2)[:0].expand(0, 2, 2, 2)[..., :1]):
        with pytest.raises(ValueError, match=r"^grid: "):
            linearized_sample(image, bad)
    with pytest.raises(ValueError, match=r"^image: "):
        linearized_sample(image[0, 0], grid)
    with pytest.raises(ValueError, match=r"^grid: expected a batch of 2"):
        linearized_sample(image.repeat(2, 1, 1, 1), grid.repeat(3, 1, 1, 1))
    with pytest.raises(ValueError, match=r"^theta: expected a batch of 2"):
        linearized_warp(image.repeat(2, 1, 1, 1), TURN.repeat(3, 1, 1))
    for bad in (torch.zeros(1, 6), torch.zeros(1, 2, 2), None):
        with pytest.raises(ValueError, match=r"^theta: "):
            linearized_warp(image, bad)
    for bad in ("affine", stn.DisplacementField((2, 2, 2))):
        with pytest.raises(ValueError, match=r"^transform: "):
            linearized_warp(image, torch.zeros(1, 24), transform=bad)
    with pytest.raises(ValueError, match=r"^size: "):
        linearized_warp(image, TURN, (4,))


# The native gradient

needs_native = pytest.mark.skipif(native.refuses("cpu") is not None, reason="no native backend")


@needs_native
@pytest.mark.parametrize("options", [
    {}, {"padding_mode": "border"}, {"padding_mode": "constant", "fill": torch.tensor([0.5, -1.0, 2.0, 0.25, 3.0])}, {"align_corners": True},
    {"padding_mode": "border", "align_corners": True},
])  # fmt: skip
@pytest.mark.parametrize(("size", "out"), [((9, 11), (13, 17)), ((8, 7), (1, 300)), ((1, 6), (4, 5)), ((5, 6, 7), (4, 5, 9)), ((1, 3, 1), (2, 3, 4))])  # fmt: skip
def test_natively_it_is_the_same_plane(size, out, options):
    """Against the torch code, with the numbers that were drawn; some positions lie far outside."""
    for samples, spread, channels in ((8, 2.0, 3), (9, 0.7, 5), (6, 20.0, 1)):
        image = torch.randn(2, channels, *size, dtype=torch.float64)
        grid = positions(len(size), out, batch=2, reach=1.6)
        with torch.no_grad():
            grid[0, 0] *= 50
        how = {"mode": "bilinear", "padding_mode": "zeros", "fill": 0.0, "align_corners": False, **options}
        if isinstance(how["fill"], torch.Tensor):
            how["fill"] = how["fill"][:channels].double()
        reading = fit_fill(check_reading(*how.values()), image)
        value = linearized_sample(image, grid, samples=samples, spread=spread, generator=torch.Generator().manual_seed(5), **how)  # fmt: skip
        weight = torch.randn_like(value)
        (found,) = torch.autograd.grad((value * weight).sum(), grid)
        drawn = linearized.noise(linearized.seed(torch.Generator().manual_seed(5)), samples, grid)
        slope = _slope(image, grid.detach(), samples, spread, drawn.__getitem__, reading)
        torch.testing.assert_close(found, (weight * slope).sum(2).movedim(0, -1), rtol=1e-9, atol=1e-9)
        single = linearized.gradient(weight.float(), image.float(), grid.float(), reading, samples, spread, 5)
        exact = linearized.gradient(weight, image, grid.detach(), reading, samples, spread, 5)
        torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-2 * float(exact.abs().max()) + 1e-7)


@needs_native
def test_what_is_drawn_natively():
    """Mean 0, variance 1, nearly normal, in opposite pairs; nothing else agrees."""
    grid = torch.zeros(3, 40, 50, 2, dtype=torch.float64)
    drawn = linearized.noise(7, 9, grid)
    assert torch.equal(drawn[:8:2], -drawn[1:8:2])
    numbers = drawn[::2].movedim(2, 0).flatten(1, 2).flatten(2)  # image by image, all pairs and axes
    assert float(numbers.mean((0, 2)).abs().max()) < 0.05
    assert float((numbers.var((0, 2)) - 1).abs().max()) < 0.05
    assert 2.5 < float((numbers**4).mean()) < 3  # a normal distribution's is 3, four uniform numbers' 2.7
    assert float(numbers.abs().max()) < 4
    together = torch.corrcoef(numbers.flatten(0, 1)) - torch.eye(3 * 10)
    assert float(together.abs().max()) < 0.1
    shifted = [(numbers[..., k:] * numbers[..., : 2000 - k]).mean() for k in (1, 2, 50, 128)]
    assert max(abs(float(s)) for s in shifted) < 0.03
    assert not torch.equal(drawn, linearized.noise(8, 9, grid))


@needs_native
def test_natively_as_many_threads_as_one_likes():
    image, grid = torch.randn(2, 5, 60, 70), positions(2, (80, 90), batch=2).float().detach()
    grad, reading = torch.randn(2, 5, 80, 90), check_reading("bilinear", "zeros", 0.0, False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = linearized.gradient(grad, image, grid, reading, 8, 2.0, 1)
        torch.set_num_threads(3)
        assert torch.equal(linearized.gradient(grad, image, grid, reading, 8, 2.0, 1), alone)
    finally:
        torch.set_num_threads(threads)


@needs_native
def test_the_kernel_refuses_what_does_not_fit():
    image, grid, grad = torch.zeros(1, 2, 4, 5), torch.zeros(1, 6, 2), torch.zeros(1, 2, 6)
    fine = [image, grid, grad, None, 0, False, 8, 2.0, 1, grid.clone(), 1]
    native.cpu._native.linearize(*fine)
    for place, bad, complaint in (
        (0, image.half(), "image"), (0, image[0], "image"), (1, grid.double(), "grid"), (1, grid[:, :, :1].contiguous(), "grid"), (2, grad[:, :1].contiguous(), "gradient"),
        (3, torch.zeros(3), "fill"), (4, 2, "padding"), (6, 2, "samples"), (7, math.inf, "spread"), (9, grid[:, :5].contiguous(), "result"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{complaint}"):
            native.cpu._native.linearize(*[bad if k == place else given for k, given in enumerate(fine)])
    with pytest.raises(ValueError, match=r"^result"):
        native.cpu._native.noise(torch.zeros(3, 4, 5), 1)
