"""The gradient of linear interpolation by the position where that lies on a pixel's centre: there the kernel has a kink, and
the derivative is the mean of both sides, not what rounding leaves. The truth is central differences of the forward pass in
float64, a quarter of a pixel to each side: within a pixel the value is linear in each coordinate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

import stn
from stn.ops import backends, cpu, reference, use_backend, which_backend

BACKENDS = [name for name, state in backends().items() if state == "available"]
STEP = 0.25  # pixels
# Of the largest entry: positions lie 1e-6 pixels beside the centres, where the slope across another axis is that much off.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
IN_SIZE = {1: (7,), 2: (5, 6), 3: (4, 3, 5)}
KINDS = ("identity", "flip", "shift", "grid", "spline")


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_backend(request.param):
        yield request.param


def skip_what_is_refused(d: int, padding_mode: str, dtype: torch.dtype = torch.float32) -> None:
    try:
        which_backend(d, "bilinear", padding_mode, dtype=dtype)
    except ValueError as error:
        pytest.skip(str(error))


def options(padding_mode: str, align_corners: bool) -> dict[str, Any]:
    fill = {"fill": 0.7} if padding_mode == "constant" else {}
    return {"padding_mode": padding_mode, "align_corners": align_corners, **fill}


def pixel(n: int, align_corners: bool) -> float:
    """A pixel in normalized coordinates."""
    return 2 / (n - 1) if align_corners else 2 / n


def theta_of(kind: str, in_size: tuple[int, ...], align_corners: bool) -> Tensor:
    """Float64 parameters that put every position on a pixel's centre, some beyond the border."""
    d = len(in_size)
    if kind == "spline":
        return torch.zeros(2, 2**d * d, dtype=torch.float64)
    theta = torch.eye(d, d + 1, dtype=torch.float64).repeat(2, 1, 1)
    for axis, n in enumerate(reversed(in_size)):
        if kind == "flip" and axis != 1:
            theta[1, axis, axis] = -1
        if kind == "shift":
            theta[0, axis, d] = pixel(n, align_corners)
            theta[1, axis, d] = -2 * pixel(n, align_corners)
    return theta


def grid_on_pixels(in_size: tuple[int, ...], align_corners: bool) -> Tensor:
    """Positions (2, *out, d) on pixel centres, from one pixel beyond the border to the other."""
    axes = [
        torch.tensor([oracle.normalize(k, n, align_corners) for k in range(-1, n + 1)], dtype=torch.float64)
        for n in in_size
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).repeat(2, *[1] * (len(in_size) + 1))


def warped(kind: str, image: Tensor, values: Tensor, how: dict[str, Any]) -> Tensor:
    if kind == "grid":
        return stn.sample(image, values, **how)
    transform = stn.ThinPlateSpline((2,) * (image.ndim - 2)) if kind == "spline" else None
    return stn.warp(image, values, transform=transform, **how)


def gradient(kind: str, image: Tensor, values: Tensor, how: dict[str, Any], upstream: Tensor) -> Tensor:
    values = values.detach().requires_grad_()
    (found,) = torch.autograd.grad(warped(kind, image, values, how), values, upstream)
    return found


def slopes_by_differences(image: Tensor, grid: Tensor, how: dict[str, Any], upstream: Tensor) -> Tensor:
    """The gradient of a grid, one axis after the other, by differences of forward passes."""
    found = torch.empty_like(grid)
    for axis, n in enumerate(reversed(image.shape[2:])):
        step = torch.zeros(grid.shape[-1], dtype=grid.dtype)
        step[axis] = STEP * pixel(n, how["align_corners"])
        with use_backend("reference"):
            change = stn.sample(image, grid + step, **how) - stn.sample(image, grid - step, **how)
        found[..., axis] = (upstream * change).sum(1) / (2 * step[axis])
    return found


def expected(kind: str, image: Tensor, values: Tensor, how: dict[str, Any], upstream: Tensor) -> Tensor:
    """The same pulled back to the parameters by the grid's own derivative, which has no kinks."""
    if kind == "grid":
        return slopes_by_differences(image, values, how, upstream)
    size, frame = tuple(image.shape[2:]), stn.Frame(tuple(image.shape[2:]), how["align_corners"])
    values = values.detach().requires_grad_()
    if kind == "spline":
        grid = stn.ThinPlateSpline((2,) * len(size)).grid(values, size, frame)
    else:
        grid = stn.Affine(ndim=len(size)).grid(values.flatten(1), size, frame)
    of_grid = slopes_by_differences(image, grid.detach(), how, upstream)
    (found,) = torch.autograd.grad(grid, values, of_grid)
    return found


def case(kind: str, d: int, how: dict[str, Any], channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    in_size = IN_SIZE[d]
    image = torch.randn(2, channels, *in_size, dtype=torch.float64).float().double()
    align_corners = how["align_corners"]
    values = grid_on_pixels(in_size, align_corners) if kind == "grid" else theta_of(kind, in_size, align_corners)
    out_size = values.shape[1:-1] if kind == "grid" else in_size
    return image, values, torch.randn(2, channels, *out_size, dtype=torch.float64).float().double()


def assert_close(found: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=TOLERANCE[dtype] * float(truth.abs().max()))


CASES = [
    pytest.param(kind, d, padding_mode, align_corners, id=f"{kind}-{d}D-{padding_mode}-{align_corners}")
    for kind, d, padding_mode, align_corners in itertools.product(
        KINDS, (1, 2, 3), ("zeros", "border", "reflection", "circular", "constant"), (False, True)
    )
    if (kind, d) != ("spline", 1)
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "d", "padding_mode", "align_corners"), CASES)
def test_on_pixel_centres_the_gradient_is_the_central_difference(kind, d, padding_mode, align_corners, dtype):
    skip_what_is_refused(d, padding_mode, dtype)
    how = options(padding_mode, align_corners)
    image, values, upstream = case(kind, d, how)
    found = gradient(kind, image.to(dtype), values.to(dtype), how, upstream.to(dtype))
    assert_close(found, expected(kind, image, values, how, upstream), dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("channels", [1, 4, 16, 33])
@pytest.mark.parametrize("size", [(9, 12), (40, 200)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_for_any_number_of_channels_and_layout(channels, layout, size, dtype):
    # 200 x 40: chunks that end within rows, and images of which no padded copy pays.
    how = options("border", True)
    image = torch.randn(1, channels, *size, dtype=torch.float64).float().double()
    upstream = torch.randn_like(image).float().double()
    theta = torch.eye(2, 3, dtype=torch.float64)[None]
    truth = expected("identity", image, theta, how, upstream)
    read = image.to(dtype)
    if layout == "channels last":
        read = read.contiguous(memory_format=torch.channels_last)
    assert_close(gradient("identity", read, theta.to(dtype), how, upstream.to(dtype)), truth, dtype)


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection", "constant"])
def test_at_the_border_padding_decides_what_lies_beyond(padding_mode):
    # At x = -1 of the row 4 6 8 whose corners are aligned: to 6 from 0, 4, 6 and 10, half of it.
    skip_what_is_refused(2, padding_mode)
    image = torch.tensor([[[[4.0, 6.0, 8.0]]]])
    grid = torch.tensor([[[[-1.0, 0.0]]]], requires_grad=True)
    fill = {"fill": 10.0} if padding_mode == "constant" else {}
    stn.sample(image, grid, padding_mode=padding_mode, align_corners=True, **fill).sum().backward()
    wanted = {"zeros": 3.0, "border": 1.0, "reflection": 0.0, "constant": -2.0}[padding_mode]
    assert grid.grad[0, 0, 0, 0] == wanted


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection", "circular", "constant"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_gradcheck_passes_on_pixel_centres(d, padding_mode):
    skip_what_is_refused(d, padding_mode, torch.float64)
    how = options(padding_mode, True)
    image, values, _ = case("grid", d, how, channels=1)
    grid = values[:1].requires_grad_()
    assert torch.autograd.gradcheck(lambda g: stn.sample(image[:1], g, **how), (grid,), atol=1e-6)


@pytest.mark.parametrize("beside", [0.0, 0.5, -0.5, 3.0, -3.0])
def test_what_rounding_moves_is_still_on_the_centre(beside):
    """To both sides of it, and no further."""
    n, dtype = 64, torch.float32
    image = torch.randn(1, 1, n, n)
    column = 20
    position = column + beside * reference.kink_width(dtype, n)
    grid = torch.tensor([[[[oracle.normalize(position, n, False), 0.013]]]], dtype=dtype, requires_grad=True)
    stn.sample(image, grid).sum().backward()
    grid64 = grid.detach().double()
    grid64[..., 0] = oracle.normalize(column, n, False)
    if abs(beside) > 1:
        grid64[..., 0] += math.copysign(STEP * pixel(n, False), beside)
        how = options("zeros", False)
        step = torch.tensor([0.1 * pixel(n, False), 0.0], dtype=torch.float64)
        with use_backend("reference"):
            change = stn.sample(image.double(), grid64 + step, **how) - stn.sample(image.double(), grid64 - step, **how)
        wanted = float(change) / (2 * float(step[0]))
    else:
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        wanted = float(slopes_by_differences(image.double(), grid64, options("zeros", False), one)[..., 0])
    assert abs(float(grid.grad[..., 0]) - wanted) < 1e-2 * abs(wanted)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_pixel_that_values_do_not_read_does_not_spoil_the_gradient(bad):
    """Of a centre pixel with weight 1 only the other side reads column 0: the slope is then that of this side."""
    image = torch.arange(12.0).square().reshape(1, 1, 3, 4).double()
    image[..., 0] = bad
    grid = torch.tensor([[[[oracle.normalize(1, 4, False), 0.0]]]], dtype=torch.float64, requires_grad=True)
    out = stn.sample(image, grid)
    out.sum().backward()
    assert out.isfinite().all()
    assert grid.grad.isfinite().all()
    assert math.isclose(float(grid.grad[..., 0]), float(image[0, 0, 1, 2] - image[0, 0, 1, 1]) * 2, rel_tol=1e-12)


def test_values_and_the_gradient_of_the_image_do_not_depend_on_whether_positions_have_one():
    skip_what_is_refused(2, "border")
    image = torch.randn(2, 3, 5, 6)
    image[0, 0, 2, 3] = math.nan
    image[1, 2, 0, 0] = math.inf
    theta = torch.eye(2, 3).repeat(2, 1, 1)
    results = []
    for wanted in (False, True):
        read, values = image.clone().requires_grad_(), theta.clone().requires_grad_(wanted)
        out = stn.warp(read, values, padding_mode="border")
        out.nan_to_num(0, 0, 0).sum().backward()
        results.append((out.detach(), read.grad))
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one.numpy().view(np.int32), other.numpy().view(np.int32))


def test_the_mixed_derivative_by_image_and_position_is_that_of_the_mean():
    """A penalty on the gradient by the position reaches the third pixel."""
    image = torch.randn(1, 1, 1, 5, dtype=torch.float64, requires_grad=True)
    grid = torch.tensor([[[[oracle.normalize(2, 5, False), 0.0]]]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(stn.sample(image, grid, padding_mode="border").sum(), grid, create_graph=True)
    (mixed,) = torch.autograd.grad(slope[..., 0].sum(), image)
    torch.testing.assert_close(mixed.flatten(), torch.tensor([0, -1.25, 0, 1.25, 0], dtype=torch.float64))


def test_bits_do_not_depend_on_the_number_of_threads():
    image, theta = torch.randn(4, 3, 64, 64), torch.eye(2, 3).repeat(4, 1, 1)
    upstream = torch.randn_like(image)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(gradient("identity", image, theta, options("zeros", False), upstream))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_all_backends_have_one_width():
    if cpu._native is None:
        pytest.skip(str(cpu._reason))
    assert cpu._native.KINK == reference.KINK
