"""Cubic B-spline free-form deformation, against SciPy's splines and the facts of the basis."""

from __future__ import annotations

import pytest
import torch
from scipy.interpolate import NdBSpline

import stn
from stn.transforms.base import AbstractTransform
from stn.transforms.bspline import BSpline, bspline_bending_energy, bspline_displacement, bspline_grid

FAMILIES = [BSpline((3, 4)), BSpline((2, 3), levels=3, max_offset=0.5), BSpline((2, 3, 2), levels=2)]


def random_theta(family, batch=2, spread=0.3):
    return spread * torch.randn(batch, family.num_params, dtype=torch.float64)


def some_points(d, n=9, batch=2, reach=1.0):
    return reach * (2 * torch.rand(batch, n, d, dtype=torch.float64) - 1)


def knots(n):
    """Of the spline with n + 3 coefficients on [-1, 1]."""
    return -1 + (2 / n) * torch.arange(-3, n + 4, dtype=torch.float64)


def control_points(shape):
    """Where the coefficients (h, w[, ...]) belong, (*shape, d)."""
    axes = [-1 + (torch.arange(n, dtype=torch.float64) - 1) * 2 / (n - 3) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)


def by_scipy(coefficients, points, nu=None):
    """One spline (*shape, d) at points (N, d), or its derivative of the orders nu, (x, y[, z])."""
    spline = NdBSpline(tuple(knots(n - 3).numpy() for n in coefficients.shape[:-1]), coefficients.numpy(), 3)
    order = None if nu is None else tuple(reversed(nu))
    return torch.from_numpy(spline(points.flip(-1).numpy(), nu=order))


@pytest.mark.parametrize("shape", [(4, 4), (5, 7), (4, 6, 5)])
def test_is_the_spline_of_scipy(shape):
    d = len(shape)
    coefficients, points = torch.randn(2, *shape, d, dtype=torch.float64), some_points(d)
    wanted = torch.stack([by_scipy(c, p) for c, p in zip(coefficients, points, strict=True)])
    torch.testing.assert_close(bspline_displacement(coefficients, points), wanted, rtol=0, atol=1e-13)
    shared = bspline_displacement(coefficients, points[:1])
    torch.testing.assert_close(shared[1], by_scipy(coefficients[1], points[0]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_identity_is_exact(family):
    identity = family.identity()
    assert identity.shape == (family.num_params,)
    points = some_points(family.ndim).float()
    assert torch.equal(family.map_points(identity.expand(2, -1), points), points)
    size = (3, 5, 4)[: family.ndim]
    grid = family.grid(identity[None], size)
    axes = [stn.geometry.lattice(n) for n in size]
    assert torch.equal(grid[0], torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_the_grid_is_the_mapped_lattice(family, align_corners):
    theta, size = random_theta(family), (6, 5, 4)[: family.ndim]
    grid = family.grid(theta, size, stn.Frame(align_corners=align_corners))
    assert grid.shape == (2, *size, family.ndim)
    slowly = AbstractTransform.coordinates(family, theta, size, stn.Frame(align_corners=align_corners)).values
    torch.testing.assert_close(grid, slowly, rtol=0, atol=1e-13)
    assert torch.equal(grid, bspline_grid(family.coefficients(theta), size, align_corners=align_corners))


def test_theta_goes_point_by_point_row_after_row():
    family = BSpline((3, 4))
    assert family.num_params == 2 * 5 * 6
    theta = torch.arange(60.0)[None]
    assert family.coefficients(theta)[0, 1, 2].tolist() == [2 * (6 + 2), 2 * (6 + 2) + 1]
    moved = torch.zeros(1, 60)
    moved[0, 2 * (2 * 6 + 3)] = 1.0  # x of the point in row 1, column 2 of those on the frame: (x, y) = (1/3, 0)
    there = family.map_points(moved, torch.tensor([[[1 / 3, 0.0], [-1.0, -1.0]]]))
    torch.testing.assert_close(there, torch.tensor([[[1 / 3 + 4 / 9, 0.0], [-1.0, -1.0]]]))


@pytest.mark.parametrize("shape", [(4, 6), (5, 4, 4)])
def test_reproduces_translations_and_linear_maps(shape):
    d = len(shape)
    points = some_points(d, batch=1)
    linear, shift = torch.randn(d, d, dtype=torch.float64), torch.randn(d, dtype=torch.float64)
    coefficients = (control_points(shape) @ linear.T + shift)[None]
    torch.testing.assert_close(bspline_displacement(coefficients, points), points @ linear.T + shift)
    constant = shift.expand(1, *shape, d)
    torch.testing.assert_close(bspline_displacement(constant, points), shift.expand_as(points), rtol=0, atol=1e-14)


def test_is_twice_continuously_differentiable_and_no_more():
    family = BSpline((2, 5))
    theta = random_theta(family, batch=1)

    def run(x):
        return family.map_points(theta, torch.stack([x, torch.tensor(0.3).double()]).expand(1, 1, 2))[0, 0, 0]

    derivatives = [run]
    for _ in range(3):
        derivatives.append(torch.func.grad(derivatives[-1]))
    before, after = (torch.tensor(-0.5 + side * 1e-9, dtype=torch.float64) for side in (-1, 1))  # a knot
    jumps = [float((f(after) - f(before)).abs()) for f in derivatives]
    assert max(jumps[:3]) < 1e-6
    assert jumps[3] > 1e-2


def test_beyond_the_frame_the_border_goes_on():
    family = BSpline((3, 3))
    theta, points = random_theta(family), some_points(2, reach=3.0)
    moved = family.map_points(theta, points) - points
    inside = points.clamp(-1, 1)
    torch.testing.assert_close(moved, family.map_points(theta, inside) - inside, rtol=0, atol=1e-14)


@pytest.mark.parametrize("family", [BSpline((2, 3), levels=3), BSpline((2, 2, 3), levels=2)], ids=repr)
def test_levels_add(family):
    theta, points = random_theta(family), some_points(family.ndim)
    wanted, start = points, 0
    for level in range(family.levels):
        one = BSpline(tuple((n - 1) * 2**level + 1 for n in family.lattice))
        part = theta[:, start : start + one.num_params]
        wanted, start = wanted + one.map_points(part, points) - points, start + one.num_params
    assert start == family.num_params
    torch.testing.assert_close(family.map_points(theta, points), wanted, rtol=0, atol=1e-13)


def test_bending_energy_is_the_integral_of_the_second_derivatives():
    coefficients = torch.randn(1, 5, 6, 2, dtype=torch.float64)
    n = 240  # midpoints, so a dense sum converges with n^-2
    axis = stn.geometry.lattice(n, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    second = [by_scipy(coefficients[0], points, nu).square().sum(-1).mean() for nu in ((2, 0), (1, 1), (0, 2))]
    wanted = second[0] + 2 * second[1] + second[2]
    torch.testing.assert_close(bspline_bending_energy(coefficients)[0], wanted, rtol=1e-3, atol=0)


def test_bending_energy_of_known_fields():
    positions = control_points((4, 5, 6))
    x, y, z = positions.unbind(-1)
    zero = torch.zeros_like(x)
    fields = [(zero + 3, zero, zero), (2 * x - z, y, x), (x * z, zero, zero), (zero, y * y, zero), (x * x, zero, y * z)]
    energy = bspline_bending_energy(torch.stack([torch.stack(f, dim=-1) for f in fields]))
    torch.testing.assert_close(energy, torch.tensor([0, 0, 2, 4, 6.0]).double(), rtol=1e-10, atol=1e-10)
    family = BSpline((2, 3), levels=2)
    theta = random_theta(family)
    fine = BSpline((3, 5))
    wanted = fine.bending_energy(family.coefficients(theta).flatten(1))
    torch.testing.assert_close(family.bending_energy(theta), wanted)
    assert (wanted > 0.01).all()


def test_gradients():
    for family in (BSpline((2, 3)), BSpline((2, 2), levels=2, max_offset=0.4), BSpline((2, 2, 2))):
        theta, points = random_theta(family, 1).requires_grad_(), some_points(family.ndim, 2, 1).requires_grad_()
        assert torch.autograd.gradcheck(family.map_points, (theta, points))
        assert torch.autograd.gradcheck(family.bending_energy, (theta,))
        assert torch.autograd.gradcheck(lambda t: family.grid(t, (2, 3, 2)[: family.ndim]), (theta,))


def test_bound():
    family = BSpline((3, 3), levels=2, max_offset=0.1)
    far = torch.full((1, family.num_params), 1e6)
    moved = family.map_points(far, torch.zeros(1, 1, 2))
    torch.testing.assert_close(moved, torch.full((1, 1, 2), 0.2))
    small = 1e-4 * torch.ones(1, family.num_params)
    torch.testing.assert_close(family.coefficients(small), BSpline((3, 3), levels=2).coefficients(small))


def test_batches_types_and_autocast():
    family = BSpline((3, 4), levels=2)
    theta, points = random_theta(family), some_points(2)
    assert family.map_points(theta[:0], points[:0]).shape == (0, 9, 2)
    assert family.map_points(theta, points[:, :0]).shape == (2, 0, 2)
    assert family.grid(theta[:0], (3, 4)).shape == (0, 3, 4, 2)
    assert family.bending_energy(theta[:0]).shape == (0,)
    one = family.map_points(theta[1:], points[1:])
    torch.testing.assert_close(one[0], family.map_points(theta, points)[1])
    exact = family.grid(theta, (9, 11))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grid = family.grid(theta.float(), (9, 11))
        energy = family.bending_energy(theta.float())
    assert grid.dtype == torch.float32
    torch.testing.assert_close(grid.double(), exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(energy.double(), family.bending_energy(theta), rtol=1e-4, atol=0)


def test_wrong_arguments():
    for lattice in ((3,), (1, 3), (0, 3), "34", None, (3, 4, 5, 6), (2.0, 3)):
        with pytest.raises(ValueError, match=r"^lattice: "):
            BSpline(lattice)
    for levels in (0, 1.5, None, True):
        with pytest.raises(ValueError, match=r"^levels: "):
            BSpline((3, 3), levels=levels)
    with pytest.raises(ValueError, match=r"^max_offset: "):
        BSpline((3, 3), max_offset=-1.0)
    with pytest.raises(ValueError, match=r"theta: expected \(B, 50\)"):
        BSpline((3, 3)).grid(torch.zeros(1, 49), (4, 4))
    for call in (bspline_bending_energy, lambda c: bspline_grid(c, (4, 4))):
        for bad in (
            torch.zeros(1, 3, 4, 2),
            torch.zeros(1, 4, 4, 3),
            torch.zeros(4, 4, 2),
            torch.zeros(1, 4, 4, 2).int(),
        ):
            with pytest.raises(ValueError, match=r"^coefficients: "):
                call(bad)
    with pytest.raises(ValueError, match=r"^points: "):
        bspline_displacement(torch.zeros(1, 4, 4, 2), torch.zeros(2, 5, 2))
    with pytest.raises(ValueError, match="no inverse within its family"):
        BSpline((3, 3)).inverse(torch.zeros(1, 50))
    with pytest.raises(TypeError):
        BSpline((3, 3), 2)


def test_the_bending_energy_compiles() -> None:
    family = BSpline((3, 3))
    theta = torch.randn(2, family.num_params)
    torch.compiler.reset()
    compiled = torch.compile(family.bending_energy, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(theta), family.bending_energy(theta))
