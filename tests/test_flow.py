"""Displacement and velocity fields on a lattice, against SciPy's interpolation and a flow integrated directly."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

import stn
from stn.transforms.base import AbstractTransform
from stn.transforms.flow import DisplacementField, displacement_grid, sample_field
from stn.transforms.velocity import VelocityField, integrate_velocity

FAMILIES = [
    DisplacementField((5,)), DisplacementField((4, 3)), DisplacementField((2, 3, 4), max_offset=0.4),
    DisplacementField((1, 3)), VelocityField((6,)), VelocityField((4, 5)), VelocityField((2, 3, 4), steps=3),
]  # fmt: skip
ATOL = 1e-13


def random_theta(family, batch=2, spread=0.3):
    return spread * torch.randn(batch, family.num_params, dtype=torch.float64)


def some_points(d, n=9, batch=2, reach=1.0):
    return reach * (2 * torch.rand(batch, n, d, dtype=torch.float64) - 1)


def lattice_points(size, align_corners=True):
    axes = [stn.geometry.lattice(n, align_corners=align_corners, dtype=torch.float64) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)


# Both families


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_identity_is_exact(family):
    identity = family.identity()
    assert identity.shape == (family.num_params,) == (family.ndim * math.prod(family.size),)
    points = some_points(family.ndim, reach=1.5).float()
    assert torch.equal(family.map_points(identity.expand(2, -1), points), points)
    size = (3, 5, 4)[: family.ndim]
    grid = family.grid(identity[None].double(), size)
    assert torch.equal(grid[0], lattice_points(size, align_corners=False))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_the_grid_is_the_mapped_lattice(family, align_corners):
    theta, size = random_theta(family), (6, 5, 7)[: family.ndim]
    grid = family.grid(theta, size, stn.Frame(align_corners=align_corners))
    assert grid.shape == (2, *size, family.ndim)
    slowly = AbstractTransform.coordinates(family, theta, size, stn.Frame(align_corners=align_corners)).values
    torch.testing.assert_close(grid, slowly, rtol=0, atol=ATOL)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_batches_and_types(family):
    theta, points = random_theta(family), some_points(family.ndim)
    assert family.map_points(theta[:0], points[:0]).shape == (0, 9, family.ndim)
    assert family.map_points(theta, points[:, :0]).shape == (2, 0, family.ndim)
    size = (2, 3, 4)[: family.ndim]
    assert family.grid(theta[:0], size).shape == (0, *size, family.ndim)
    mapped = family.map_points(theta, points)
    torch.testing.assert_close(family.map_points(theta[1:], points[1:])[0], mapped[1], rtol=0, atol=ATOL)
    shared = family.map_points(theta, points[:1])
    torch.testing.assert_close(shared[1:], family.map_points(theta[1:], points[:1]), rtol=0, atol=ATOL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = family.map_points(theta.float(), points.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), mapped, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [DisplacementField, VelocityField])
def test_gradients(make):
    for size in ((3,), (2, 3), (2, 2, 2)):
        family = make(size)
        theta, points = random_theta(family, 1).requires_grad_(), some_points(len(size), 2, 1).requires_grad_()
        assert torch.autograd.gradcheck(family.map_points, (theta, points))
        assert torch.autograd.gradcheck(lambda t: family.grid(t, (2, 3, 2)[: family.ndim]), (theta,))


@pytest.mark.parametrize("make", [DisplacementField, VelocityField])
def test_wrong_arguments(make):
    for size in ((), (0, 3), "34", None, (3, 4, 5, 6), (2.0, 3)):
        with pytest.raises(ValueError, match=r"^size: "):
            make(size)
    with pytest.raises(ValueError, match=r"theta: expected \(B, 24\)"):
        make((3, 4)).grid(torch.zeros(1, 12), (4, 4))
    with pytest.raises(ValueError, match=r"^points: "):
        make((3, 4)).map_points(torch.zeros(1, 24), torch.zeros(1, 2, 3))
    with pytest.raises(TypeError):
        make((3, 4), 7)


# Displacement fields


@pytest.mark.parametrize("size", [(4, 3), (2, 5, 3), (6,)])
def test_is_linear_interpolation(size):
    d = len(size)
    field, points = torch.randn(2, *size, d, dtype=torch.float64), some_points(d, reach=1.5)
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64).numpy() for n in size]
    for one, there, got in zip(field, points, sample_field(field, points), strict=True):
        wanted = RegularGridInterpolator(axes, one.numpy())(there.clamp(-1, 1).flip(-1).numpy())
        torch.testing.assert_close(got, torch.from_numpy(wanted), rtol=0, atol=ATOL)


def test_theta_is_the_displacement_point_by_point():
    family = DisplacementField((2, 3))
    theta = torch.arange(12.0)[None]
    assert family.field(theta)[0, 1, 2].tolist() == [10, 11]
    grid = family.grid(theta, (2, 3), stn.Frame(align_corners=True))
    assert torch.equal(grid[0], lattice_points((2, 3)).float() + theta.reshape(2, 3, 2))
    corner = family.map_points(theta, torch.tensor([[[1.0, 1.0], [-1.0, 1.0]]]))
    assert corner.tolist() == [[[11, 12], [5, 8]]]


def test_a_linear_field_is_the_same_at_any_resolution():
    linear = torch.randn(2, 2, dtype=torch.float64)
    for size in ((2, 2), (3, 5), (8, 4)):
        field = (lattice_points(size) @ linear)[None]
        wanted = lattice_points((7, 6), align_corners=False)
        torch.testing.assert_close(displacement_grid(field, (7, 6))[0], wanted + wanted @ linear, rtol=0, atol=1e-14)


def test_bound():
    family = DisplacementField((2, 2), max_offset=0.1)
    moved = family.map_points(torch.full((1, 8), -1e6), torch.zeros(1, 1, 2))
    torch.testing.assert_close(moved, torch.full((1, 1, 2), -0.1))
    small = torch.full((1, 8), 1e-4)
    torch.testing.assert_close(family.displacement(small), small.reshape(1, 2, 2, 2))
    with pytest.raises(ValueError, match=r"^max_offset: "):
        DisplacementField((2, 2), max_offset=0.0)
    with pytest.raises(ValueError, match="no inverse within its family"):
        family.inverse(torch.zeros(1, 8))


def test_wrong_fields():
    for bad in (
        torch.zeros(1, 3, 4, 3),
        torch.zeros(4, 2),
        torch.zeros(1, 3, 4, 2).int(),
        torch.zeros(1, 0, 4, 2),
        None,
    ):
        with pytest.raises(ValueError, match=r"^displacement: "):
            displacement_grid(bad, (4, 4))
        with pytest.raises(ValueError, match=r"^velocity: "):
            integrate_velocity(bad)


# Velocity fields


def swirl(points):
    x, y = points.unbind(-1)
    return 0.35 * torch.stack(
        [(math.pi * y).sin() * (math.pi / 2 * x).cos(), (0.7 * math.pi * x).cos() * (math.pi / 2 * y).cos()], dim=-1
    )


def follow(velocity, points, steps=50):
    for _ in range(steps):
        k1 = velocity(points)
        k2 = velocity(points + k1 / (2 * steps))
        k3 = velocity(points + k2 / (2 * steps))
        k4 = velocity(points + k3 / steps)
        points = points + (k1 + 2 * k2 + 2 * k3 + k4) / (6 * steps)
    return points


@pytest.mark.parametrize(
    ("n", "there_and_back", "flow"), [(17, 1.1e-2, 2.5e-2), (33, 3.5e-3, 8e-3), (65, 8.5e-4, 1.7e-3)]
)
def test_inverse_and_flow_of_a_smooth_field(n, there_and_back, flow):
    """The bounds that the docstring states."""
    family = VelocityField((n, n))
    theta = swirl(lattice_points((n, n))).reshape(1, -1)
    points = 0.99 * lattice_points((21, 21), align_corners=False).reshape(1, -1, 2)
    there = family.map_points(theta, points)
    assert float((there - points).abs().max()) > 0.3
    assert torch.equal(family.inverse(theta), -theta)
    assert float((family.map_points(family.inverse(theta), there) - points).abs().max()) < there_and_back
    assert float((there - follow(swirl, points)).abs().max()) < flow


def test_the_short_step_is_of_second_order():
    """A linear field that points inwards stays one under composition, so the short step is the only error."""
    linear = torch.tensor([[-0.5, -0.3], [0.3, -0.4]], dtype=torch.float64)
    points = lattice_points((3, 4))
    wanted = points @ (torch.linalg.matrix_exp(linear) - torch.eye(2, dtype=torch.float64)).T
    error = [
        float((integrate_velocity((points @ linear.T)[None], steps=n)[0] - wanted).abs().max()) for n in (3, 4, 5, 7)
    ]
    assert 3.8 < error[0] / error[1] < 4.2
    assert 3.8 < error[1] / error[2] < 4.2
    assert error[3] < 2e-6


def test_a_constant_velocity_is_a_translation():
    for size in ((4,), (3, 4), (2, 3, 2)):
        d = len(size)
        velocity = torch.randn(d, dtype=torch.float64)
        points = some_points(d, reach=2.0)
        theta = velocity.repeat(2, math.prod(size))
        torch.testing.assert_close(VelocityField(size).map_points(theta, points), points + velocity, rtol=0, atol=ATOL)


def test_does_not_fold_where_the_same_displacement_does():
    theta = 2.0 * swirl(lattice_points((33, 33))).reshape(1, -1)
    size = (65, 65)

    def areas(grid):
        along_x, along_y = grid[:, :-1].diff(dim=2), grid[:, :, :-1].diff(dim=1)
        return along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]

    flow = areas(VelocityField((33, 33)).grid(theta, size, stn.Frame(align_corners=True)))
    fold = areas(DisplacementField((33, 33)).grid(theta, size, stn.Frame(align_corners=True)))
    assert float(flow.min()) > 0
    assert float(fold.min()) < 0


def test_steps():
    theta = random_theta(VelocityField((4, 4)), spread=0.1)
    points = some_points(2)
    many = VelocityField((4, 4), steps=10).map_points(theta, points)
    error = [float((VelocityField((4, 4), steps=s).map_points(theta, points) - many).abs().max()) for s in (0, 7)]
    assert error[1] < 1e-4 < error[0]
    for steps in (-1, 1.0, None, True):
        with pytest.raises(ValueError, match=r"^steps: "):
            VelocityField((4, 4), steps=steps)
        with pytest.raises(ValueError, match=r"^steps: "):
            integrate_velocity(torch.zeros(1, 4, 4, 2), steps=steps)
