"""The frame, and the roads into it from every peer: against torch, SciPy and the oracle."""

from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

import stn
from stn import conventions as frame

SIZES = {2: ((7, 10), (5, 6)), 3: ((4, 6, 5), (3, 5, 7))}
# SciPy's words for the paddings; its reflections are two modes where torch's depend on align_corners
SCIPY_MODES = {
    "constant": "grid-constant",
    "border": "nearest",
    "circular": "grid-wrap",
    ("reflection", False): "reflect",
    ("reflection", True): "mirror",
}


def random_matrix(d, batch=3, spread=0.4):
    """Pixel maps near the identity, (B, d, d+1), with shifts of a few pixels."""
    linear = torch.eye(d, dtype=torch.float64) + spread * torch.randn(batch, d, d, dtype=torch.float64)
    return torch.cat([linear, 2 * torch.randn(batch, d, 1, dtype=torch.float64)], dim=2)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 257])
def test_lattice(n, align_corners):
    points = frame.lattice(n, align_corners=align_corners)
    assert points.shape == (n,)
    assert points.dtype == torch.float32
    assert torch.equal(points, -points.flip(0))
    wanted = [oracle.normalize(k, n, align_corners) for k in range(n)]
    torch.testing.assert_close(points.double(), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=6e-8)
    assert torch.equal(points, frame.lattice(n, align_corners=align_corners, dtype=torch.float64).float())
    if n > 1:
        assert float(points[-1]) == (1.0 if align_corners else pytest.approx(1 - 1 / n))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(4, 9), (3, 5, 2)])
def test_pixels_and_normalized_coordinates(size, align_corners):
    points = 10 * torch.randn(5, 6, len(size), dtype=torch.float64)
    normalized = frame.pixel_to_normalized(points, size, align_corners=align_corners)
    for axis, n in enumerate(reversed(size)):
        wanted = [oracle.normalize(float(p), n, align_corners) for p in points[..., axis].flatten()]
        torch.testing.assert_close(normalized[..., axis].flatten(), torch.tensor(wanted, dtype=torch.float64))
    back = frame.normalized_to_pixel(normalized, size, align_corners=align_corners)
    torch.testing.assert_close(back, points, rtol=0, atol=1e-12)


def test_the_frame_in_words():
    """-1 and 1 are the outer edges of the border pixels, or their centres; x runs along the last axis."""
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    assert frame.normalized_to_pixel(corners, (4, 8)).tolist() == [[-0.5, -0.5], [7.5, 3.5]]
    assert frame.normalized_to_pixel(corners, (4, 8), align_corners=True).tolist() == [[0.0, 0.0], [7.0, 3.0]]
    assert frame.extent((4, 8)) == (4.0, 2.0)
    assert frame.extent((4, 8), align_corners=True) == (3.5, 1.5)


def test_an_axis_of_one_pixel_lies_at_zero():
    assert frame.pixel_to_normalized(torch.tensor([[0.0, 1.0]]), (3, 1), align_corners=True).tolist() == [[0.0, 0.0]]
    assert frame.normalized_to_pixel(torch.tensor([[0.5, 0.0]]), (3, 1), align_corners=True).tolist() == [[0.0, 1.0]]


OPTIONS = list(itertools.product(("pull", "push"), ("xy", "ij"), (False, True), (2, 3)))


@pytest.mark.parametrize(("direction", "order", "align_corners", "d"), OPTIONS)
def test_round_trip(direction, order, align_corners, d):
    in_size, out_size = SIZES[d]
    options = {"direction": direction, "order": order, "align_corners": align_corners}
    matrix = random_matrix(d)
    theta = frame.theta_from_pixel(matrix, in_size, out_size, **options)
    back = frame.theta_to_pixel(theta, in_size, out_size, **options)
    torch.testing.assert_close(back, matrix, rtol=1e-10, atol=1e-10)
    single = frame.theta_from_pixel(matrix.float(), in_size, out_size, **options)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), theta, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("direction", "order", "align_corners", "d"), OPTIONS)
def test_theta_from_pixel_says_the_same_of_a_point(direction, order, align_corners, d):
    """Followed through pixels by hand: an output pixel, the peer's matrix, an input pixel."""
    in_size, out_size = SIZES[d]
    options = {"direction": direction, "order": order, "align_corners": align_corners}
    matrix = random_matrix(d, batch=1)
    theta = frame.theta_from_pixel(matrix, in_size, out_size, **options)[0].numpy()
    m = np.vstack([matrix[0].numpy(), np.eye(d + 1)[-1]])
    if direction == "push":
        m = np.linalg.inv(m)
    for pixel in ([0.0] * d, [1.0, 2.0, 0.5][:d]):  # (x, y[, z]) of the output
        wanted = (m @ [*pixel[::-1], 1.0])[:d][::-1] if order == "ij" else (m @ [*pixel, 1.0])[:d]
        normalized = [oracle.normalize(p, n, align_corners) for p, n in zip(pixel, reversed(out_size), strict=True)]
        mapped = theta @ [*normalized, 1.0]
        got = [oracle.unnormalize(v, n, align_corners) for v, n in zip(mapped, reversed(in_size), strict=True)]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["constant", "border", "circular", "reflection"])
def test_warp_agrees_with_scipy(padding_mode, align_corners, d):
    """`ndimage.affine_transform`: (row, column), output -> input, pixels; another convention altogether."""
    in_size, out_size = SIZES[d]
    image = np.random.default_rng(0).standard_normal(in_size)
    matrix = random_matrix(d, batch=1)
    mode = SCIPY_MODES.get(padding_mode) or SCIPY_MODES[padding_mode, align_corners]
    fill = 0.7 if padding_mode == "constant" else 0.0
    wanted = ndimage.affine_transform(
        image, matrix[0, :, :d].numpy(), matrix[0, :, d].numpy(), output_shape=out_size, order=1, mode=mode, cval=fill
    )
    theta = frame.theta_from_pixel(matrix, in_size, out_size, order="ij", align_corners=align_corners)
    out = stn.warp(
        torch.from_numpy(image)[None, None], theta, out_size,
        padding_mode=padding_mode, fill=fill, align_corners=align_corners,
    )  # fmt: skip
    assert wanted.std() > 0.1
    np.testing.assert_allclose(out[0, 0].numpy(), wanted, rtol=0, atol=1e-10)


def test_push_is_what_opencv_and_kornia_mean():
    """The matrix moves the content: a dot at (2, 1) goes to (5, 3)."""
    image = torch.zeros(1, 1, 6, 8)
    image[0, 0, 1, 2] = 1.0
    move = torch.tensor([[[1.0, 0.0, 3.0], [0.0, 1.0, 2.0]]])
    out = stn.warp(image, frame.theta_from_pixel(move, (6, 8), (6, 8), direction="push"))
    assert divmod(int(out.argmax()), 8) == (3, 5)
    out = stn.warp(image, frame.theta_from_pixel(move, (6, 8), (6, 8), direction="push", order="ij"))
    assert divmod(int(out.argmax()), 8) == (4, 4)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_warp_agrees_with_torch(padding_mode, d, align_corners):
    in_size, out_size = SIZES[d]
    image = torch.randn(2, 3, *in_size, dtype=torch.float64)
    theta = torch.eye(d, d + 1, dtype=torch.float64) + 0.3 * torch.randn(2, d, d + 1, dtype=torch.float64)
    grid = F.affine_grid(theta, [2, 3, *out_size], align_corners=align_corners)
    torch.testing.assert_close(stn.affine_grid(theta, out_size, align_corners=align_corners), grid, rtol=0, atol=1e-14)
    wanted = F.grid_sample(image, grid, "bilinear", padding_mode, align_corners)
    for backend in stn.ops.backends():
        with stn.ops.use_backend(backend):
            opts = {"padding_mode": padding_mode, "align_corners": align_corners}
            torch.testing.assert_close(stn.warp(image, theta, out_size, **opts), wanted, rtol=0, atol=1e-12)
            torch.testing.assert_close(stn.sample(image, grid, **opts), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("to", [False, True])
@pytest.mark.parametrize("d", [2, 3])
def test_change_align_corners(d, to):
    """The same pixels are read, in the other convention; and there and back is nothing."""
    in_size, out_size = SIZES[d]
    image = torch.randn(2, 2, *in_size, dtype=torch.float64)
    theta = torch.eye(d, d + 1, dtype=torch.float64) + 0.3 * torch.randn(2, d, d + 1, dtype=torch.float64)
    changed = frame.change_align_corners(theta, in_size, out_size, to=to)
    assert float((changed - theta).abs().max()) > 1e-2
    before = stn.warp(image, theta, out_size, align_corners=not to)
    torch.testing.assert_close(stn.warp(image, changed, out_size, align_corners=to), before, rtol=0, atol=1e-12)
    back = frame.change_align_corners(changed, in_size, out_size, to=not to)
    torch.testing.assert_close(back, theta, rtol=0, atol=1e-12)


@given(entries=st.lists(st.floats(-2, 2), min_size=12, max_size=12))
def test_invert_and_compose(entries):
    a, b = torch.tensor(entries, dtype=torch.float64).reshape(2, 1, 2, 3) + 5 * torch.eye(2, 3, dtype=torch.float64)
    point = torch.tensor([0.3, -0.7, 1.0], dtype=torch.float64)

    def apply(m, p):
        return m[0] @ torch.cat([p[:2], p.new_ones(1)])

    torch.testing.assert_close(apply(frame.compose_matrices(a, b), point), apply(a, apply(b, point)))
    torch.testing.assert_close(apply(frame.invert_matrix(a), apply(a, point)), point[:2], rtol=1e-9, atol=1e-9)


def test_invert_and_compose_in_3d():
    a, b = random_matrix(3, spread=0.2), random_matrix(3, spread=0.2)
    identity = torch.eye(3, 4, dtype=torch.float64).expand(3, -1, -1)
    torch.testing.assert_close(frame.compose_matrices(a, frame.invert_matrix(a)), identity, rtol=0, atol=1e-9)
    square = torch.eye(4, dtype=torch.float64).repeat(2, 3, 1, 1)
    square[:, :, :3] = torch.stack([a, b])
    torch.testing.assert_close(frame.compose_matrices(a, b), (square[0] @ square[1])[:, :3], rtol=0, atol=1e-12)


def test_matrix_algebra_is_differentiable_and_full_precision_under_autocast():
    matrix = random_matrix(2).requires_grad_()
    assert torch.autograd.gradcheck(frame.invert_matrix, matrix)
    single = random_matrix(2).float()
    plain = frame.compose_matrices(single, single), frame.invert_matrix(single)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = frame.compose_matrices(single, single), frame.invert_matrix(single)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_a_singular_matrix_has_no_inverse():
    matrix = torch.eye(2, 3).repeat(3, 1, 1)
    matrix[1, 1] = matrix[1, 0]
    with pytest.raises(ValueError, match=r"matrix: .*singular.* at index 1"):
        frame.invert_matrix(matrix)
    with pytest.raises(ValueError, match="singular"):
        frame.theta_from_pixel(matrix, (4, 4), (4, 4), direction="push")
    assert frame.theta_from_pixel(matrix, (4, 4), (4, 4)).isfinite().all()


def test_an_output_axis_of_one_pixel_has_no_scale():
    with pytest.raises(ValueError, match="out_size"):
        frame.theta_to_pixel(torch.eye(2, 3)[None], (4, 4), (1, 4), align_corners=True)
    assert frame.theta_from_pixel(torch.eye(2, 3)[None], (1, 4), (1, 4), align_corners=True).isfinite().all()
