"""The frame, and the roads into it from every peer: against the oracle. The peers themselves are in `peers`."""

from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stn
from stn import conventions as frame

SIZES = {1: ((9,), (6,)), 2: ((7, 10), (5, 6)), 3: ((4, 6, 5), (3, 5, 7))}


def random_matrix(d, batch=3, spread=0.25, projective=False):
    """Pixel maps near the identity, (B, d, d+1) or (B, d+1, d+1), with shifts of a few pixels."""
    linear = torch.eye(d, dtype=torch.float64) + spread * torch.randn(batch, d, d, dtype=torch.float64)
    matrix = torch.cat([linear, 2 * torch.randn(batch, d, 1, dtype=torch.float64)], dim=2)
    if not projective:
        return matrix
    last = torch.cat([0.02 * torch.randn(batch, 1, d), torch.full((batch, 1, 1), 0.9)], dim=2)
    return torch.cat([matrix, last.double()], dim=1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 257])
def test_lattice(n, align_corners):
    points = stn.geometry.lattice(n, align_corners=align_corners)
    assert points.shape == (n,)
    assert points.dtype == torch.float32
    assert torch.equal(points, -points.flip(0))
    wanted = [oracle.normalize(k, n, align_corners) for k in range(n)]
    torch.testing.assert_close(points.double(), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=6e-8)
    assert torch.equal(points, stn.geometry.lattice(n, align_corners=align_corners, dtype=torch.float64).float())
    if n > 1:
        assert float(points[-1]) == (1.0 if align_corners else pytest.approx(1 - 1 / n))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(5,), (4, 9), (3, 5, 2)])
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
    assert stn.geometry.extent((4, 8)) == (4.0, 2.0)
    assert stn.geometry.extent((4, 8), align_corners=True) == (3.5, 1.5)


def test_an_axis_of_one_pixel_lies_at_zero():
    assert frame.pixel_to_normalized(torch.tensor([[0.0, 1.0]]), (3, 1), align_corners=True).tolist() == [[0.0, 0.0]]
    assert frame.normalized_to_pixel(torch.tensor([[0.5, 0.0]]), (3, 1), align_corners=True).tolist() == [[0.0, 1.0]]


OPTIONS = list(itertools.product(("pull", "push"), ("xy", "ij"), (False, True), (1, 2, 3)))


@pytest.mark.parametrize("projective", [False, True], ids=["affine", "projective"])
@pytest.mark.parametrize(("direction", "order", "align_corners", "d"), OPTIONS)
def test_round_trip(direction, order, align_corners, d, projective):
    in_size, out_size = SIZES[d]
    options = {"direction": direction, "order": order, "align_corners": align_corners}
    matrix = random_matrix(d, projective=projective)
    theta = frame.theta_from_pixel(matrix, in_size, out_size, **options)
    assert theta.shape == matrix.shape
    back = frame.theta_to_pixel(theta, in_size, out_size, **options)
    torch.testing.assert_close(back, matrix, rtol=1e-10, atol=1e-10)
    single = frame.theta_from_pixel(matrix.float(), in_size, out_size, **options)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), theta, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("projective", [False, True], ids=["affine", "projective"])
@pytest.mark.parametrize(("direction", "order", "align_corners", "d"), OPTIONS)
def test_theta_from_pixel_says_the_same_of_a_point(direction, order, align_corners, d, projective):
    """Followed through pixels by hand: an output pixel, the peer's matrix, an input pixel."""
    in_size, out_size = SIZES[d]
    options = {"direction": direction, "order": order, "align_corners": align_corners}
    matrix = random_matrix(d, batch=1, projective=projective)
    theta = frame.theta_from_pixel(matrix, in_size, out_size, **options)[0].numpy()
    m = matrix[0].numpy()
    if not projective:
        m, theta = (np.vstack([a, np.eye(d + 1)[-1]]) for a in (m, theta))
    if direction == "push":
        m = np.linalg.inv(m)

    def follow(a, point):
        h = a @ [*point, 1.0]
        return h[:d] / h[d]

    for pixel in ([0.0] * d, [1.0, 2.0, 0.5][:d]):  # (x, y[, z]) of the output
        wanted = follow(m, pixel[::-1])[::-1] if order == "ij" else follow(m, pixel)
        normalized = [oracle.normalize(p, n, align_corners) for p, n in zip(pixel, reversed(out_size), strict=True)]
        mapped = follow(theta, normalized)
        got = [oracle.unnormalize(v, n, align_corners) for v, n in zip(mapped, reversed(in_size), strict=True)]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_an_affine_map_is_a_projective_one(d, align_corners):
    """Whichever way it is written down, the numbers are the same; the identity is exact at every size."""
    matrix = random_matrix(d)
    square = torch.eye(d + 1, dtype=torch.float64).repeat(3, 1, 1)
    square[:, :d] = matrix
    for convert in (frame.theta_from_pixel, frame.theta_to_pixel):
        for direction in ("pull", "push"):
            options = {"direction": direction, "align_corners": align_corners}
            wanted, got = (convert(m, *SIZES[d], **options) for m in (matrix, square))
            torch.testing.assert_close(got[:, :d], wanted, rtol=0, atol=1e-12)
            torch.testing.assert_close(got[:, d:], square[:, d:], rtol=0, atol=1e-15)
    for n in range(2, 200):
        for eye in (torch.eye(d, d + 1)[None], torch.eye(d + 1)[None]):
            assert torch.equal(frame.theta_from_pixel(eye, (n,) * d, (n,) * d, align_corners=align_corners), eye)


def test_push_is_what_opencv_and_kornia_mean():
    """The matrix moves the content: a dot at (2, 1) goes to (5, 3)."""
    image = torch.zeros(1, 1, 6, 8)
    image[0, 0, 1, 2] = 1.0
    move = torch.tensor([[[1.0, 0.0, 3.0], [0.0, 1.0, 2.0]]])
    out = stn.warp(image, frame.theta_from_pixel(move, (6, 8), (6, 8), direction="push"))
    assert divmod(int(out.argmax()), 8) == (3, 5)
    out = stn.warp(image, frame.theta_from_pixel(move, (6, 8), (6, 8), direction="push", order="ij"))
    assert divmod(int(out.argmax()), 8) == (4, 4)


@pytest.mark.parametrize("to", [False, True])
@pytest.mark.parametrize("projective", [False, True], ids=["affine", "projective"])
@pytest.mark.parametrize("d", [2, 3])
def test_change_align_corners(d, projective, to):
    """The same pixels are read, in the other convention; and there and back is nothing."""
    in_size, out_size = SIZES[d]
    image = torch.randn(2, 2, *in_size, dtype=torch.float64)
    rows = d + 1 if projective else d
    theta = torch.eye(rows, d + 1, dtype=torch.float64) + 0.15 * torch.randn(2, rows, d + 1, dtype=torch.float64)
    changed = frame.change_align_corners(theta, in_size, out_size, to=to)
    assert float((changed - theta).abs().max()) > 1e-2
    before = stn.warp(image, theta, out_size, align_corners=not to)
    torch.testing.assert_close(stn.warp(image, changed, out_size, align_corners=to), before, rtol=0, atol=1e-12)
    back = frame.change_align_corners(changed, in_size, out_size, to=not to)
    torch.testing.assert_close(back, theta, rtol=0, atol=1e-12)


def test_change_align_corners_in_1d():
    """Either way pixels 0.5 and 1 of a row of two are read."""
    theta = torch.tensor([[[0.5, 0.25]]])
    assert frame.change_align_corners(theta, (2,), (2,), to=True).tolist() == [[[0.5, 0.5]]]


@given(entries=st.lists(st.floats(-2, 2), min_size=12, max_size=12))
def test_invert_and_compose(entries):
    a, b = torch.tensor(entries, dtype=torch.float64).reshape(2, 1, 2, 3) + 5 * torch.eye(2, 3, dtype=torch.float64)
    point = torch.tensor([0.3, -0.7, 1.0], dtype=torch.float64)

    def apply(m, p):
        return m[0] @ torch.cat([p[:2], p.new_ones(1)])

    torch.testing.assert_close(apply(stn.geometry.compose_matrices(a, b), point), apply(a, apply(b, point)))
    torch.testing.assert_close(apply(stn.geometry.invert_matrix(a), apply(a, point)), point[:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_invert_and_compose_in_other_dimensions(d):
    a, b = random_matrix(d, spread=0.2), random_matrix(d, spread=0.2)
    identity = torch.eye(d, d + 1, dtype=torch.float64).expand(3, -1, -1)
    torch.testing.assert_close(
        stn.geometry.compose_matrices(a, stn.geometry.invert_matrix(a)), identity, rtol=0, atol=1e-9
    )
    square = torch.eye(d + 1, dtype=torch.float64).repeat(2, 3, 1, 1)
    square[:, :, :d] = torch.stack([a, b])
    torch.testing.assert_close(stn.geometry.compose_matrices(a, b), (square[0] @ square[1])[:, :d], rtol=0, atol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_invert_and_compose_projective_maps(d):
    a, b = random_matrix(d, projective=True), random_matrix(d, projective=True)
    torch.testing.assert_close(stn.geometry.compose_matrices(a, b), a @ b, rtol=0, atol=1e-12)
    torch.testing.assert_close(stn.geometry.invert_matrix(a) @ a, torch.eye(d + 1).double().expand(3, -1, -1))
    affine = random_matrix(d)
    square = torch.eye(d + 1, dtype=torch.float64).repeat(3, 1, 1)
    square[:, :d] = affine
    torch.testing.assert_close(stn.geometry.compose_matrices(a, affine), a @ square, rtol=0, atol=1e-12)
    torch.testing.assert_close(stn.geometry.compose_matrices(affine, a), square @ a, rtol=0, atol=1e-12)
    assert stn.geometry.compose_matrices(a[:1], b).shape == (3, d + 1, d + 1)


def test_what_is_a_matrix():
    """Shape alone tells the families and the dimensions apart."""
    for d in (1, 2, 3):
        assert frame.check_matrix("m", torch.zeros(5, d, d + 1)) == d
        assert frame.check_matrix("m", torch.zeros(5, d + 1, d + 1), projective=True) == d
        with pytest.raises(ValueError, match=rf"^m: expected affine maps .* got shape \(5, {d + 1}, {d + 1}\)"):
            frame.check_matrix("m", torch.zeros(5, d + 1, d + 1))
    for bad in ((2, 3), (1, 1, 1), (1, 3, 2), (1, 1, 3), (1, 2, 4), (1, 4, 5), (1, 5, 5), (1, 0, 1), (1, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"^m: expected affine .* or projective maps"):
            frame.check_matrix("m", torch.zeros(bad), projective=True)
    for a, b in ((torch.eye(2, 3), torch.eye(2)), (torch.eye(3), torch.eye(3, 4)), (torch.eye(3), torch.eye(4))):
        with pytest.raises(ValueError, match=r"^b: expected maps in 2D as a"):
            stn.geometry.compose_matrices(a[None], b[None])


@pytest.mark.parametrize("projective", [False, True], ids=["affine", "projective"])
def test_matrix_algebra_is_differentiable_and_full_precision_under_autocast(projective):
    matrix = random_matrix(2, projective=projective).requires_grad_()
    assert torch.autograd.gradcheck(stn.geometry.invert_matrix, matrix)
    assert torch.autograd.gradcheck(lambda m: frame.theta_from_pixel(m, (4, 5), (3, 7), direction="push"), matrix)
    single = random_matrix(2, projective=projective).float()
    plain = stn.geometry.compose_matrices(single, single), stn.geometry.invert_matrix(single)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = stn.geometry.compose_matrices(single, single), stn.geometry.invert_matrix(single)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


@pytest.mark.parametrize("rows", [2, 3], ids=["affine", "projective"])
def test_a_singular_matrix_has_no_inverse(rows):
    matrix = torch.eye(rows, 3).repeat(3, 1, 1)
    matrix[1, 1] = matrix[1, 0]
    with pytest.raises(ValueError, match=r"matrix: .*singular.* at index 1"):
        stn.geometry.invert_matrix(matrix)
    with pytest.raises(ValueError, match="singular"):
        frame.theta_from_pixel(matrix, (4, 4), (4, 4), direction="push")
    assert frame.theta_from_pixel(matrix, (4, 4), (4, 4)).isfinite().all()


def test_an_output_axis_of_one_pixel_has_no_scale():
    with pytest.raises(ValueError, match="out_size"):
        frame.theta_to_pixel(torch.eye(2, 3)[None], (4, 4), (1, 4), align_corners=True)
    assert frame.theta_from_pixel(torch.eye(2, 3)[None], (1, 4), (1, 4), align_corners=True).isfinite().all()
