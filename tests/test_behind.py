"""Homographies that show what lies behind their horizon."""

from __future__ import annotations

import pytest
import torch

import stn
from stn.transforms import projective_grid

SHOWN = stn.Projective(behind="shown")
# denominator 0.25 + x: a horizon at x = -0.25, and the pixels of six columns lie on both sides of it
MATRIX = torch.tensor([[[0.3, 0.1, 0.0], [0.0, 0.5, 0.1], [1.0, 0.0, 0.25]]], dtype=torch.float64)


def by_hand(matrix, points):
    h = torch.nn.functional.pad(points, (0, 1), value=1.0) @ matrix.mT
    return h[..., :-1] / h[..., -1:]


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_division_everywhere(align_corners):
    size = (4, 6)
    points = stn.geometry.lattice_points(MATRIX, size, align_corners)
    wanted = by_hand(MATRIX, points)
    theta = SHOWN.from_matrix(MATRIX)
    frame = stn.Frame(size, align_corners)
    for grid in (
        projective_grid(MATRIX, size, align_corners=align_corners, behind="shown"),
        projective_grid(-3 * MATRIX, size, align_corners=align_corners, behind="shown"),
        SHOWN.grid(theta, size, frame),
    ):
        torch.testing.assert_close(grid.flatten(1, 2), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(SHOWN.map_points(theta, points), wanted, rtol=0, atol=1e-12)
    hidden = stn.Projective().grid(theta, size, frame).flatten(1, 2)
    behind = points[..., 0] < -0.25
    assert behind.any()
    assert (hidden[behind].abs() == 10000).all()
    torch.testing.assert_close(hidden[~behind], wanted[~behind])


@pytest.mark.parametrize("backend", ["reference", "aten", "cpu"])
@pytest.mark.parametrize("antialias", [False, True])
def test_warps(antialias, backend):
    if stn.ops.backends()[backend] != "available":
        pytest.skip(stn.ops.backends()[backend])
    theta = SHOWN.from_matrix(MATRIX)
    image = torch.rand(2, 2, 16, 20, dtype=torch.float64)
    with stn.ops.use_backend(backend):
        out = stn.warp(image, theta, (4, 6), transform=SHOWN, padding_mode="border", antialias=antialias)
    hidden = stn.warp(image, theta, (4, 6), transform=stn.Projective(), padding_mode="border", antialias=antialias)
    assert (out - hidden)[..., :2].abs().max() > 0.05
    torch.testing.assert_close(out[..., 3:], hidden[..., 3:], rtol=0, atol=1e-12)
    if not antialias:
        wanted = stn.sample(image, projective_grid(MATRIX, (4, 6), behind="shown"), padding_mode="border")
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)


def test_gradients_pass_behind():
    theta = SHOWN.from_matrix(MATRIX).requires_grad_()
    image = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda i, t: stn.warp(i, t, (3, 6), transform=SHOWN, padding_mode="border", mode="bicubic"), (image, theta)
    )
    behind = stn.warp(image, theta, (3, 6), transform=SHOWN, mode="bicubic", padding_mode="border")[..., :2].sum()
    assert torch.autograd.grad(behind, theta)[0].abs().max() > 0


def test_exactly_on_the_horizon_there_is_padding():
    matrix = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])  # denominator x, 0 in the middle
    out = stn.sample(torch.ones(1, 1, 3, 3), projective_grid(matrix, (1, 3), behind="shown"))
    assert out.isfinite().all()
    assert out[0, 0, 0, 1] == 0


def test_points_come_back_from_behind():
    theta = SHOWN.from_matrix(MATRIX)
    points = torch.tensor([[[-0.9, 0.3], [0.7, -0.2]]], dtype=torch.float64)
    torch.testing.assert_close(SHOWN.unmap_points(theta, SHOWN.map_points(theta, points)), points)
    inverse = SHOWN.inverse(theta)
    torch.testing.assert_close(SHOWN.map_points(inverse, SHOWN.map_points(theta, points)), points)
    both = SHOWN.compose(theta, theta)
    torch.testing.assert_close(SHOWN.map_points(both, points), by_hand(MATRIX, by_hand(MATRIX, points)))


def test_compositions_know_what_they_show():
    turned = SHOWN @ stn.Rotation()
    assert turned.kind == "two-sided"
    mixed = SHOWN @ stn.Projective()
    assert mixed.kind == "grid"
    theta = torch.cat([SHOWN.from_matrix(MATRIX), torch.full((1, 1), 0.3, dtype=torch.float64)], 1)
    points = torch.rand(1, 9, 2, dtype=torch.float64) * 2 - 1
    wanted = by_hand(MATRIX, stn.Rotation().map_points(theta[:, 8:], points))
    torch.testing.assert_close(turned.map_points(theta, points), wanted)
    grid = turned.grid(theta, (4, 5))
    lattice = stn.geometry.lattice_points(theta, (4, 5), False)
    torch.testing.assert_close(grid.flatten(1, 2), turned.map_points(theta, lattice, stn.Frame((4, 5))))


def test_converts_names_and_refuses():
    affine = torch.tensor([[1.1, 0.1, 0.0, 0.2, 0.9, 0.1]])
    theta = stn.convert(affine, stn.Affine(), SHOWN)
    torch.testing.assert_close(stn.convert(theta, SHOWN, stn.Affine()), affine)
    assert repr(SHOWN) == "Projective(behind='shown')"
    for bad in ("visible", None, True):
        for call in (
            lambda: stn.Projective(behind=bad),
            lambda: projective_grid(MATRIX, (2, 2), behind=bad),
        ):
            with pytest.raises(ValueError, match=r"^behind: "):
                call()
