"""CPAB, against its published definition written out again, and flows that have a closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import stn
from stn._tracing import exporting
from stn.ops import cpab as closed_form
from stn.ops import cpu, native, use_backend
from stn.tessellation import mesh
from stn.transforms import cpab
from stn.transforms.base import AbstractTransform
from stn.transforms.cpab import CPAB, cpab_basis, cpab_flow_1d, cpab_velocity

TESSELLATIONS = [(1,), (5,), (1, 1), (2, 3), (1, 1, 1), (1, 2, 2)]
FAMILIES = [CPAB((4,)), CPAB((3,), zero_boundary=False), CPAB((2, 3)), CPAB((1, 2, 2), zero_boundary=False)]


def random_theta(family, batch=2, spread=1.0):
    return spread * torch.randn(batch, family.num_params, dtype=torch.float64)


def some_points(d, n=50, batch=2, reach=1.0):
    return reach * (2 * torch.rand(batch, n, d, dtype=torch.float64) - 1)


def theta_of(family, field):
    """The coefficients of a field (cells, d, d+1) in the space of the family; the basis is orthonormal."""
    basis = cpab_basis(
        family.tessellation, zero_boundary=family.zero_boundary, volume_preserving=family.volume_preserving
    )
    theta = basis.flatten(1) @ field.expand(basis.shape[1:]).flatten()
    torch.testing.assert_close(family.coefficients(theta[None])[0], field.expand(basis.shape[1:]), rtol=0, atol=1e-12)
    return theta[None]


def numerically(family, theta, points, steps=400):
    """The flow by many small steps of the velocity."""
    velocity = lambda p: family.velocity(theta, p) / steps  # noqa: E731
    for _ in range(steps):
        points = cpab._runge_kutta(velocity, points)
    return points


def cells_by_definition(tessellation):
    """The vertices of each cell, (cells, d+1, d) in (x, y[, z]), written out from the words of `cpab_basis`."""
    axes = [np.linspace(-1, 1, n + 1) for n in tessellation]
    cells = []
    for place in itertools.product(*[range(n) for n in tessellation]):
        corner = lambda *step: [axes[k][place[k] + step[k]] for k in reversed(range(len(step)))]  # noqa: E731
        if len(tessellation) == 1:
            cells.append([corner(0), corner(1)])
        elif len(tessellation) == 2:
            ul, ur, lr, ll = corner(0, 0), corner(0, 1), corner(1, 1), corner(1, 0)
            centre = np.mean([ul, lr], axis=0).tolist()
            cells += [[centre, ul, ur], [centre, ur, lr], [centre, lr, ll], [centre, ll, ul]]
        else:
            # The even corners of the whole lattice span the inner tetrahedron, each odd one sits on one of its faces.
            steps = list(itertools.product((0, 1), repeat=3))
            even = [s for s in steps if (sum(s) + sum(place)) % 2 == 0]
            cells.append([corner(*s) for s in even])
            for odd in [s for s in steps if s not in even]:
                near = [s for s in even if sum(a != b for a, b in zip(s, odd, strict=True)) == 1]
                cells.append([corner(*s) for s in (odd, *near)])
    return np.array(cells)


def constraints_by_definition(tessellation, zero_boundary, volume_preserving):
    """Freifeld et al.'s L, whose null space is the space of fields: a row for each constraint on vec(A_1, A_2, ...)."""
    cells = cells_by_definition(tessellation)
    count, d = len(cells), len(tessellation)
    rows = []

    def row(*entries):
        rows.append(np.zeros((count, d, d + 1)))
        for cell, component, vertex, sign in entries:
            rows[-1][cell, component] += sign * np.append(vertex, 1)

    for (i, a), (j, b) in itertools.combinations(enumerate(cells), 2):
        for vertex in a:
            if (np.abs(b - vertex).max(axis=1) < 1e-9).any():
                for component in range(d):
                    row((i, component, vertex, 1), (j, component, vertex, -1))
    for i, a in enumerate(cells):
        for vertex, component in itertools.product(a, range(d)):
            if zero_boundary and abs(vertex[component]) == 1:
                row((i, component, vertex, 1))
        if volume_preserving:
            rows.append(np.zeros((count, d, d + 1)))
            rows[-1][i, range(d), range(d)] = 1
    return np.array(rows).reshape(len(rows), count * d * (d + 1))


# The space


@pytest.mark.parametrize("volume_preserving", [False, True])
@pytest.mark.parametrize("zero_boundary", [False, True])
@pytest.mark.parametrize("tessellation", TESSELLATIONS)
def test_the_basis_spans_the_null_space_of_the_constraints(tessellation, zero_boundary, volume_preserving):
    constraints = constraints_by_definition(tessellation, zero_boundary, volume_preserving)
    dimensions = constraints.shape[1] - (np.linalg.matrix_rank(constraints) if len(constraints) else 0)
    options = {"zero_boundary": zero_boundary, "volume_preserving": volume_preserving}
    if dimensions == 0:
        with pytest.raises(ValueError, match=r"^tessellation: .*other than zero"):
            cpab_basis(tessellation, **options)
        return
    basis = cpab_basis(tessellation, **options)
    d, cells = len(tessellation), cells_by_definition(tessellation)
    assert basis.shape == (dimensions, len(cells), d, d + 1)
    assert CPAB(tessellation, **options).num_params == dimensions
    mine = torch.tensor([number_of_cell(tessellation, c) for c in cells.mean(axis=1)])
    assert sorted(mine.tolist()) == list(range(len(cells)))
    torch.testing.assert_close(
        torch.from_numpy(constraints) @ basis[:, mine].flatten(1).T,
        torch.zeros(len(constraints), dimensions, dtype=torch.float64), rtol=0, atol=1e-12,
    )  # fmt: skip
    torch.testing.assert_close(
        basis.flatten(1) @ basis.flatten(1).T, torch.eye(dimensions, dtype=torch.float64), rtol=0, atol=1e-12
    )


def number_of_cell(tessellation, point):
    return int(cpab._locate(torch.as_tensor(point)[None, None], tessellation))


def test_dimensions_as_published():
    for n in (1, 2, 7):
        assert CPAB((n,), zero_boundary=False).num_params == n + 1
        if n > 1:
            assert CPAB((n,)).num_params == n - 1
    assert CPAB((1,), zero_boundary=False, volume_preserving=True).num_params == 1  # translations
    for ny, nx in ((1, 1), (2, 3), (4, 4)):
        vertices = (ny + 1) * (nx + 1) + ny * nx
        assert CPAB((ny, nx), zero_boundary=False).num_params == 2 * vertices
        assert CPAB((ny, nx)).num_params == 2 * vertices - 2 * (ny + 1) - 2 * (nx + 1)
    assert CPAB((2, 3, 1), zero_boundary=False).num_params == 3 * 3 * 4 * 2


@pytest.mark.parametrize("tessellation", [(4,), (2, 3), (3, 1, 2)])
def test_every_point_is_found_in_its_cell(tessellation):
    cells = cells_by_definition(tessellation)
    d = len(tessellation)
    points = some_points(d, 300, 1)
    numbers = cpab._locate(points, tessellation)[0]
    order = {number_of_cell(tessellation, c): k for k, c in enumerate(cells.mean(axis=1))}
    corners = torch.from_numpy(cells)[[order[int(n)] for n in numbers]]  # (N, d+1, d)
    homogeneous = torch.cat([corners, torch.ones(*corners.shape[:2], 1, dtype=torch.float64)], dim=-1)
    there = torch.cat([points[0], torch.ones(points.shape[1], 1, dtype=torch.float64)], dim=-1)
    barycentric = torch.linalg.solve(homogeneous.mT, there)
    assert float(barycentric.min()) > -1e-12
    assert len(numbers.unique()) == len(cells)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_velocities_are_continuous(family):
    theta, points = random_theta(family), some_points(family.ndim, 2000, reach=1.2)
    nearby = points + 1e-7 * torch.randn_like(points)
    steepest = float(family.coefficients(theta)[..., :-1].abs().sum(-1).max())
    change = (family.velocity(theta, points) - family.velocity(theta, nearby)).abs().amax(-1)
    assert (change <= steepest * (points - nearby).abs().amax(-1) + 1e-12).all()
    edge = 1 - 2 * torch.rand(2, 500, family.ndim, dtype=torch.float64)
    edge[..., 0] = 2 / family.tessellation[-1] - 1  # on the faces between boxes
    left, right = edge.clone(), edge.clone()
    left[..., 0] -= 1e-9
    right[..., 0] += 1e-9
    jump = family.velocity(theta, left) - family.velocity(theta, right)
    assert float(jump.abs().max()) < 1e-7


def test_the_same_basis_every_time_and_one_vertex_each():
    first, second = CPAB((2, 3)), CPAB((2, 3))
    assert torch.equal(first.vertex_basis, second.vertex_basis)
    strongest = first.vertex_basis.flatten(1).abs().argmax(dim=1)
    assert len(strongest.unique()) == first.num_params
    assert (first.vertex_basis.flatten(1).gather(1, strongest[:, None]) > 0).all()


# One dimension: closed forms


def test_one_cell_is_the_exponential():
    """dx/dt = a x + b from x0 is e^a x0 + b (e^a - 1) / a after one unit of time."""
    family = CPAB((1,), zero_boundary=False)
    points = torch.linspace(-0.3, 0.3, 7, dtype=torch.float64).reshape(1, 7, 1)
    for a, b in ((0.8, 0.1), (-2.0, 0.3), (1e-9, 0.5), (0.0, -0.4), (1e-3, 0.0)):
        theta = theta_of(family, torch.tensor([[a, b]], dtype=torch.float64))
        shift = b * math.expm1(a) / a if a else b
        wanted = math.exp(a) * points + shift
        assert float(wanted.abs().max()) < 1
        torch.testing.assert_close(family.map_points(theta, points), wanted, rtol=0, atol=1e-14)


def test_two_cells_worked_by_hand():
    """Velocity 1 + x/2 up to x = 0, then 1: from -1/2 the point is at 0 after 2 ln(4/3), and goes on at speed 1."""
    nodes = torch.tensor([[0.5, 1.0, 1.0]], dtype=torch.float64)
    points = torch.tensor([[[-0.5], [0.0], [-1.0], [-2.0]]], dtype=torch.float64)
    wanted = [1 - 2 * math.log(4 / 3), 1.0, -2 + math.exp(0.5), -1.5]  # the last: still in front of the frame
    assert cpab_flow_1d(nodes, points).flatten().tolist() == pytest.approx(wanted, abs=1e-15)
    # and back: the reverse flow of those
    back = cpab_flow_1d(-nodes, cpab_flow_1d(nodes, points))
    torch.testing.assert_close(back, points, rtol=0, atol=1e-15)
    # mirrored
    assert (-cpab_flow_1d(-nodes.flip(1), -points)).flatten().tolist() == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize(("spread", "tolerance"), [(0.5, 1e-7), (3.0, 1e-5), (10.0, 1e-3)])
@pytest.mark.parametrize("zero_boundary", [False, True])
def test_the_closed_form_is_the_flow(zero_boundary, spread, tolerance):
    family = CPAB((6,), zero_boundary=zero_boundary)
    theta, points = random_theta(family, 3, spread), some_points(1, 60, 3, reach=1.2)
    mapped = family.map_points(theta, points)
    assert float((mapped - points).abs().max()) > 0.1
    scale = float(mapped.abs().max())
    torch.testing.assert_close(mapped, numerically(family, theta, points), rtol=0, atol=tolerance * scale)
    back = family.map_points(family.inverse(theta), mapped)
    torch.testing.assert_close(back, points, rtol=0, atol=1e-8 if spread > 5 else 1e-12)
    half = family.map_points(theta / 2, family.map_points(theta / 2, points))
    torch.testing.assert_close(half, mapped, rtol=0, atol=1e-11 * scale)


def test_one_dimension_keeps_the_order_and_the_ends():
    family = CPAB((7,))
    points = torch.linspace(-1, 1, 301)[None, :, None]
    for spread in (1.0, 5.0, 30.0, 1000.0):
        mapped = family.map_points(random_theta(family, 4, spread).float(), points)[..., 0]
        assert mapped.isfinite().all()
        assert (mapped.diff(dim=1) > -1e-6).all()
        torch.testing.assert_close(mapped[:, [0, -1]], torch.tensor([[-1.0, 1.0]]).expand(4, 2), rtol=0, atol=1e-6)


def test_points_that_rest():
    nodes = torch.tensor([[0.0, 0.0, 5.0, 0.0, -1.0]], dtype=torch.float64)
    rest = torch.tensor([[[-1.0], [-0.7], [-0.5], [0.5]]], dtype=torch.float64)
    assert torch.equal(cpab_flow_1d(nodes, rest), rest)
    steep = torch.tensor([[-1e4, 1e4]])  # e^(1e4) is beyond all bounds
    assert cpab_flow_1d(steep, torch.zeros(1, 1, 1)).tolist() == [[[0.0]]]


# Two and three dimensions


@pytest.mark.parametrize(("steps", "tolerance"), [(20, 1e-7), (None, 1e-14)])
@pytest.mark.parametrize("tessellation", [(1, 1), (3, 2), (2, 1, 2)])
def test_an_affine_velocity_is_the_matrix_exponential(tessellation, steps, tolerance):
    d = len(tessellation)
    family = CPAB(tessellation, zero_boundary=False, steps=steps)
    field = 0.2 * torch.randn(d, d + 1, dtype=torch.float64)
    points = some_points(d, 40, 1, reach=0.25)
    exponential = torch.linalg.matrix_exp(torch.cat([field, torch.zeros(1, d + 1, dtype=torch.float64)]))
    wanted = points @ exponential[:d, :d].T + exponential[:d, d]
    assert float(wanted.abs().max()) < 1
    mapped = family.map_points(theta_of(family, field), points)
    torch.testing.assert_close(mapped, wanted, rtol=0, atol=tolerance)
    assert float((mapped - points).abs().max()) > 0.05


@pytest.mark.parametrize("zero_boundary", [False, True])
def test_integration_error_and_inverse_in_two_dimensions(zero_boundary):
    """The bounds that the docstring states."""
    family = CPAB((4, 4), zero_boundary=zero_boundary, steps=10)
    theta, points = random_theta(family, 4), some_points(2, 100, 4)
    mapped = family.map_points(theta, points)
    assert float((mapped - points).abs().max()) > 0.2
    exact = numerically(family, theta, points)
    assert float((mapped - exact).abs().max()) < 1e-3
    assert torch.equal(family.inverse(theta), -theta)
    assert float((family.map_points(-theta, mapped) - points).abs().max()) < 2e-4
    finer = CPAB((4, 4), zero_boundary=zero_boundary, steps=40)
    mapped = finer.map_points(theta, points)
    assert float((mapped - exact).abs().max()) < 1e-4
    assert float((finer.map_points(-theta, mapped) - points).abs().max()) < 5e-6


@pytest.mark.parametrize("tessellation", [(2, 3), (2, 2, 1)])
def test_zero_boundary_keeps_the_frame(tessellation):
    family = CPAB(tessellation)
    d = len(tessellation)
    theta, points = random_theta(family, 2, 2.0), some_points(d, 100, reach=3.0).clamp(-1, 1)
    mapped = family.map_points(theta, points)
    border = points.abs() == 1
    torch.testing.assert_close(mapped[border], points[border], rtol=0, atol=1e-12)
    assert float(mapped.abs().max()) < 1 + 1e-12
    assert float((mapped - points)[~border].abs().max()) > 0.1


@pytest.mark.parametrize(("tessellation", "zero_boundary"), [((4, 4), True), ((2, 2), False), ((2, 2, 2), False)])
def test_volumes_stay(tessellation, zero_boundary):
    family = CPAB(tessellation, zero_boundary=zero_boundary, volume_preserving=True, steps=20)
    free = CPAB(tessellation, zero_boundary=zero_boundary)
    assert family.num_params < free.num_params
    points = some_points(len(tessellation), 10, 1, reach=0.6)

    def determinants(transform):
        theta = random_theta(transform, 1, 0.6)
        single = lambda p: transform.map_points(theta, p[None, None])[0, 0]  # noqa: E731
        return torch.stack([torch.autograd.functional.jacobian(single, p).det() for p in points[0]])

    torch.testing.assert_close(determinants(family), torch.ones(10, dtype=torch.float64), rtol=0, atol=1e-2)
    assert float((determinants(free) - 1).abs().max()) > 0.05
    assert float(determinants(free).min()) > 0


# The closed form in two and three dimensions, which is native


needs_native = pytest.mark.skipif(native.refuses("cpu") is not None, reason="no native code here")
EXACT = [
    CPAB((2, 3)), CPAB((4, 4)), CPAB((3, 2), zero_boundary=False), CPAB((2, 2), volume_preserving=True),
    CPAB((2, 2, 1)), CPAB((1, 2, 2), zero_boundary=False), CPAB((2, 1, 2), zero_boundary=False, volume_preserving=True),
]  # fmt: skip


def with_steps(family, steps):
    options = {"zero_boundary": family.zero_boundary, "volume_preserving": family.volume_preserving}
    return CPAB(family.tessellation, **options, steps=steps)


def reach(family):
    """How far out points are taken: nothing is said to stay in the frame where its border is free."""
    return 1.0 if family.zero_boundary else 1.4


@pytest.mark.parametrize("tessellation", [(1, 1), (2, 3), (1, 1, 1), (2, 1, 3)])
def test_the_mesh_covers_all_of_space_once(tessellation):
    found, d = mesh(tessellation), len(tessellation)
    points = np.random.default_rng(0).normal(size=(500, d)) * 1.2
    weights = np.einsum("cij,nj->nci", found.weights, np.c_[points, np.ones(500)])
    assert ((weights.min(-1) >= 0).sum(axis=1) == 1).all()
    finite = found.slots < found.vertices
    # A cell ends nowhere but infinitely far away: opposite of the one vertex of a corner.
    assert ((found.beyond < 0) == (finite & (finite.sum(axis=1) == 1)[:, None])).all()
    for cell, slot in zip(*np.nonzero(found.beyond >= 0), strict=True):
        other = found.beyond[cell, slot]
        assert cell in found.beyond[other]
        for k in range(d + 1):
            origin = found.order[cell, slot] >> 2 * k & 3
            assert origin == slot or found.slots[cell, origin] == found.slots[other, k]
    inside = len(cells_by_definition(tessellation))
    assert (found.order[:inside][found.beyond[:inside] < inside] == sum(k << 2 * k for k in range(d + 1))).all()


@needs_native
@pytest.mark.parametrize("spread", [0.7, pytest.param(3.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", EXACT, ids=repr)
def test_the_closed_form_solves_the_differential_equation(family, spread):
    """SciPy's solver at its limits, which kinks of the velocity set; it is nearer to the closed form than to any number of
    steps that somebody would take."""
    theta, points = random_theta(family, 1, spread), some_points(family.ndim, 2, 1, reach(family))
    field = family.coefficients(theta)

    def velocity(_, flat):
        at = torch.from_numpy(flat.copy()).reshape(1, -1, family.ndim)
        return cpab_velocity(field, at, family.tessellation).flatten().numpy()

    wanted = torch.empty_like(points)
    for n, point in enumerate(points[0].numpy()):
        solved = solve_ivp(velocity, (0, 1), point, method="DOP853", rtol=1e-11, atol=1e-13, max_step=0.05)
        wanted[0, n] = torch.from_numpy(solved.y[:, -1])
    mapped = family.map_points(theta, points)
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(mapped, wanted, rtol=0, atol=2e-7 * scale)
    stepped = with_steps(family, 40).map_points(theta, points)
    assert float((mapped - wanted).abs().max()) < float((stepped - wanted).abs().max())
    single = family.map_points(theta.float(), points.float())
    torch.testing.assert_close(single.double(), mapped, rtol=0, atol=4e-6 * scale)


@needs_native
@pytest.mark.parametrize("family", EXACT, ids=repr)
def test_the_closed_form_is_the_limit_of_many_steps(family):
    """Values to 1e-6. The gradient of a step is of first order alone where a path crosses a face."""
    theta, points = random_theta(family, 2).requires_grad_(), some_points(family.ndim, 100, 2, reach(family))
    points[:, :40] = points[:, :40].mul(4).round() / 4  # on vertices, edges and faces, and on the border
    points.requires_grad_()
    upstream = torch.randn_like(points)
    found, wanted = [
        [
            each.map_points(theta, points),
            *torch.autograd.grad(each.map_points(theta, points), (theta, points), upstream),
        ]
        for each in (family, with_steps(family, 500))
    ]
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=2e-3 * float(wanted[1].abs().max()))
    assert float((found[2] - wanted[2]).abs().median()) < 1e-3
    stepped = with_steps(family, 10).map_points(theta, points)
    assert not torch.allclose(stepped, found[0], rtol=0, atol=1e-6)  # what the first line can tell apart


@needs_native
@pytest.mark.parametrize("family", EXACT, ids=repr)
def test_gradients_of_the_closed_form(family):
    points = some_points(family.ndim, 6, 1, 1.3).requires_grad_()
    for spread in (0.0, 0.7, 3.0):
        theta = random_theta(family, 1, spread).requires_grad_()
        assert torch.autograd.gradcheck(family.map_points, (theta, points), atol=1e-6)
    upstream = torch.randn_like(points)
    exact = torch.autograd.grad(family.map_points(theta, points), (theta, points), upstream)
    single = family.map_points(theta.float(), points.float())
    for a, b in zip(torch.autograd.grad(single, (theta, points), upstream.float()), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * float(b.abs().max()))


@needs_native
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("family", EXACT, ids=repr)
def test_there_and_back_and_half_by_half(family, spread):
    theta, points = random_theta(family, 8, spread), some_points(family.ndim, 100, 8, reach(family))
    mapped = family.map_points(theta, points)
    scale = float(mapped.abs().max())
    assert float((family.map_points(-theta, mapped) - points).abs().max()) < 1e-9
    half = family.map_points(theta / 2, family.map_points(theta / 2, points))
    torch.testing.assert_close(half, mapped, rtol=0, atol=1e-11 * scale)


@needs_native
def test_a_rotation_goes_round_and_round():
    """One matrix in every cell: 30 turns through all of them, and points that pass through vertices and along faces."""
    family = CPAB((4, 4), zero_boundary=False)
    points = torch.tensor([[[0.5, 0.0], [0.25, 0.25], [0.0, 0.75], [0.1, 0.6], [0.0, 0.0]]], dtype=torch.float64)
    turn = 2 * math.pi * theta_of(family, torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(family.map_points(30 * turn, points), points, rtol=0, atol=1e-11)
    quarter = family.map_points(turn / 4, points)
    wanted = torch.stack([-points[..., 1], points[..., 0]], dim=-1)
    torch.testing.assert_close(quarter, wanted, rtol=0, atol=1e-13)


@needs_native
@pytest.mark.parametrize("family", EXACT[1::4], ids=repr)
def test_the_same_bits_for_any_threads_and_any_company(family):
    # From the velocities on: the products that make them of theta are torch's.
    velocities = family.vertex_velocities(random_theta(family, 3).float())
    points = some_points(family.ndim, 9000, 3, 1.2).float()
    upstream = torch.randn_like(points)

    def flow(velocities, points):
        return closed_form.flow(velocities, points, family.tessellation, None)

    def run(velocities, points, upstream):
        velocities, points = velocities.clone().requires_grad_(), points.clone().requires_grad_()
        mapped = flow(velocities, points)
        return [mapped.detach(), *torch.autograd.grad(mapped, (velocities, points), upstream)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(velocities, points, upstream)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(alone, run(velocities, points, upstream), strict=True))
    finally:
        torch.set_num_threads(before)
    last = run(velocities[2:], points[2:], upstream[2:])
    assert all(torch.equal(a[2:], b) for a, b in zip(alone, last, strict=True))
    strided = points.mT.contiguous().mT
    assert torch.equal(flow(velocities, strided), alone[0])
    shared = flow(velocities, points[:1].expand(3, -1, -1))
    assert torch.equal(shared[0], alone[0][0])
    for count in (1, 7, 17):  # what fills no vector
        torch.testing.assert_close(flow(velocities, points[:, :count]), alone[0][:, :count], rtol=0, atol=2e-6)


@needs_native
@pytest.mark.parametrize("family", EXACT[2::3], ids=repr)
def test_what_is_no_number_and_what_is_beyond_bounds(family):
    points = some_points(family.ndim, 60, 2, 1.5).float()
    for bad in (math.nan, math.inf, -math.inf):
        theta = random_theta(family).float()
        theta[0, 0] = bad
        mapped = family.map_points(theta.requires_grad_(), points)
        assert mapped[0].isnan().all()
        assert mapped[1].isfinite().all()
        mapped[1].sum().backward()
        assert theta.grad[1].isfinite().all()
    for spread in (30.0, 1e3, 1e5, 1e30):
        theta = random_theta(family, 2, spread).float().requires_grad_()
        mapped = family.map_points(theta, points)
        assert spread > 30 or mapped.isfinite().all()
        mapped.sum().backward()
    theta = random_theta(family, 1)
    far = torch.full((1, 4, family.ndim), 0.3, dtype=torch.float64)
    far[0, 0, 0], far[0, 1, 0], far[0, 2, 0], far[0, 3, -1] = math.nan, math.inf, -1e10, 1e300
    mapped, wanted = (f.map_points(theta, far) for f in (family, with_steps(family, 1000)))
    assert mapped[0, 0].isnan().all()
    torch.testing.assert_close(mapped, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)
    poisoned = far.requires_grad_()
    theta.requires_grad_()
    family.map_points(theta, poisoned)[:, 1:].sum().backward()
    assert theta.grad.isfinite().all()


@needs_native
def test_who_runs(monkeypatch):
    family, stepped = CPAB((2, 2)), CPAB((2, 2), steps=10)
    theta, points = random_theta(family), some_points(2)
    exact, wanted = family.map_points(theta, points), stepped.map_points(theta, points)
    assert not torch.equal(exact, wanted)
    with use_backend("cpu"):
        assert torch.equal(family.map_points(theta, points), exact)
    with use_backend("reference"):
        assert torch.equal(family.map_points(theta, points), wanted)
    with exporting():
        assert torch.equal(family.map_points(theta, points), wanted)
    assert torch.equal(torch.func.jvp(lambda t: family.map_points(t, points), (theta,), (theta,))[0], wanted)
    monkeypatch.setattr(cpu, "_reason", "not here")
    assert native.refuses("cpu") == "not here"
    assert torch.equal(family.map_points(theta, points), wanted)
    assert "CPU" in native.refuses("cuda")


@needs_native
@pytest.mark.parametrize("family", [EXACT[0], EXACT[5]], ids=repr)
def test_transforms_of_functions(family):
    theta, points = random_theta(family, 3), some_points(family.ndim, 5, 3)
    exact = family.map_points(theta, points)

    def single(theta, points):
        return family.map_points(theta[None], points[None])[0]

    torch.testing.assert_close(torch.func.vmap(single)(theta, points), exact, rtol=0, atol=1e-14)
    each = torch.func.vmap(single, (None, 0))(theta[0], points)
    torch.testing.assert_close(each[0], exact[0], rtol=0, atol=1e-14)
    upstream = torch.randn_like(exact)
    wanted = torch.autograd.grad(
        family.map_points(theta.requires_grad_(), points.requires_grad_()), (theta, points), upstream
    )
    found = torch.func.vjp(family.map_points, theta, points)[1](upstream)
    mapped = torch.func.vmap(lambda t, p, u: torch.func.vjp(single, t, p)[1](u))(theta, points, upstream)
    for a, b, c in zip(found, mapped, wanted, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=1e-13)
        torch.testing.assert_close(b, c, rtol=0, atol=1e-13)

    # Second derivatives are those of the steps.
    def squares(family, theta):
        (grad,) = torch.autograd.grad((family.map_points(theta, points) * upstream).sum(), theta, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), theta)[0]

    stepped = with_steps(family, 10)
    close = squares(family, theta) - squares(stepped, theta)
    assert float(close.abs().max()) < 0.05 * float(squares(stepped, theta).abs().max())
    # The derivative by points is that of the closed form.
    jacobian = family.jacobian(theta.detach(), points.detach())
    step = 1e-6
    for axis in range(family.ndim):
        shift = step * torch.eye(family.ndim, dtype=torch.float64)[axis]
        ahead, behind = (family.map_points(theta.detach(), points.detach() + s * shift) for s in (1, -1))
        torch.testing.assert_close(jacobian[..., axis], (ahead - behind) / (2 * step), rtol=0, atol=1e-6)


@needs_native
def test_the_registered_op_and_compilers():
    family = CPAB((2, 2), zero_boundary=False)
    theta, points = random_theta(family), some_points(2, 6, reach=1.2)
    velocities = family.vertex_velocities(theta).requires_grad_()
    torch.library.opcheck(torch.ops.stn.cpab_flow, (velocities, points.requires_grad_(), [2, 2]))
    compiled = torch.compile(lambda theta: family.grid(theta, (4, 5)), backend="aot_eager", fullgraph=True)
    found, wanted = [], []
    for run, results in ((compiled, found), (lambda theta: family.grid(theta, (4, 5)), wanted)):
        leaf = theta.detach().clone().requires_grad_()
        grid = run(leaf)
        grid.sin().sum().backward()
        results += [grid.detach(), leaf.grad]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@needs_native
def test_the_door_refuses_what_it_cannot_read():
    velocities, points = torch.zeros(1, 5, 2, dtype=torch.float64), torch.zeros(1, 3, 2)
    found = mesh((1, 1))
    arguments = [(1, 1), *found[:1], *found[2:], velocities, points, torch.empty(1, 3, 2), None, None, 1]
    cpu._native.follow(*arguments)
    for position, bad in [
        (0, (1, 1, 1, 1)), (0, (2, 1)), (0, (0, 1)), (1, found.generators[1:]), (2, found.slots[:-1]), (2, found.slots + 9),
        (3, found.beyond + 99), (4, found.order[1:]), (5, found.weights[:, :2]), (6, found.outside[:0]), (6, found.outside + 99),
        (7, velocities[:, :4]), (7, velocities[:0]), (8, points[:, :, :1]), (8, points[:, :0]), (9, torch.empty(1, 2, 2)),
        (9, torch.empty(1, 3, 2, dtype=torch.float64)), (9, torch.empty(1, 2, 3).mT), (10, torch.empty(1, 3, 2)),
    ]:  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            cpu._native.follow(*arguments[:position], bad, *arguments[position + 1 :])


# The contract


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_identity_is_exact_and_has_a_gradient(family):
    identity = family.identity()
    assert identity.shape == (family.num_params,)
    points = some_points(family.ndim, reach=1.2)
    assert torch.equal(family.map_points(identity.expand(2, -1), points.float()), points.float())
    # The derivative there is the velocity of each basis field.
    theta = torch.zeros(1, family.num_params, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda t: family.map_points(t, points[:1]), theta)[0, :, :, 0]
    units = torch.eye(family.num_params, dtype=torch.float64)
    wanted = family.velocity(units, points[:1]).permute(1, 2, 0)
    torch.testing.assert_close(jacobian, wanted, rtol=0, atol=1e-12)
    assert (jacobian.flatten(0, 1).abs().amax(0) > 1e-2).all()


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_gradients(family):
    points = some_points(family.ndim, 3, 1).requires_grad_()
    for spread in (0.0, 0.7):
        theta = random_theta(family, 1, spread).requires_grad_()
        assert torch.autograd.gradcheck(family.map_points, (theta, points))
    if family.ndim == 1:
        assert torch.autograd.gradgradcheck(family.map_points, (theta, points))
        assert torch.autograd.gradgradcheck(family.map_points, ((0 * theta.detach()).requires_grad_(), points))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_the_grid_is_the_mapped_lattice(family, align_corners):
    theta, size = random_theta(family), (3, 5, 4)[: family.ndim]
    grid = family.grid(theta, size, stn.Frame(align_corners=align_corners))
    assert grid.shape == (2, *size, family.ndim)
    assert torch.equal(
        grid, AbstractTransform.coordinates(family, theta, size, stn.Frame(align_corners=align_corners)).values
    )


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_batches_types_and_values_that_are_not_finite(family):
    theta, points = random_theta(family), some_points(family.ndim)
    mapped = family.map_points(theta, points)
    assert family.map_points(theta[:0], points[:0]).shape == (0, 50, family.ndim)
    assert family.map_points(theta, points[:, :0]).shape == (2, 0, family.ndim)
    torch.testing.assert_close(family.map_points(theta[1:], points[1:])[0], mapped[1])
    torch.testing.assert_close(family.map_points(theta, points[:1])[1:], family.map_points(theta[1:], points[:1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = family.map_points(theta.float(), points.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), mapped, rtol=0, atol=1e-5)
    theta[0, 0] = math.nan
    poisoned = family.map_points(theta.requires_grad_(), points)
    poisoned[1].sum().backward()
    torch.testing.assert_close(poisoned[1], mapped[1])
    assert poisoned[0].isnan().any()


def test_is_a_module_whose_basis_keeps_its_precision():
    family = CPAB((2, 2))
    assert not family.state_dict()
    assert not list(family.parameters())
    exact = family.vertex_basis.clone()
    assert torch.equal(family.half().double().vertex_basis, exact)
    assert family.to("meta").vertex_basis.is_meta


def test_velocity_beyond_the_frame_is_that_of_the_border():
    for family in FAMILIES:
        theta, points = random_theta(family), some_points(family.ndim, reach=2.0)
        field = family.coefficients(theta)
        wanted = cpab_velocity(field, points.clamp(-1, 1), family.tessellation)
        torch.testing.assert_close(family.velocity(theta, points), wanted, rtol=0, atol=0)


def test_wrong_arguments():
    for bad in ((), (0, 3), "34", None, 5, (3, 4, 5, 6), (2.0, 3)):
        with pytest.raises(ValueError, match=r"^tessellation: "):
            CPAB(bad)
    for steps in (0, 1.5, "10", True):
        with pytest.raises(ValueError, match=r"^steps: "):
            CPAB((2, 2), steps=steps)
    with pytest.raises(ValueError, match=r"^zero_boundary: "):
        CPAB((2, 2), zero_boundary=1)
    with pytest.raises(ValueError, match=r"^volume_preserving: "):
        cpab_basis((2, 2), volume_preserving=None)
    for empty in ({"tessellation": (1,)}, {"tessellation": (5,), "volume_preserving": True}):
        with pytest.raises(ValueError, match=r"^tessellation: .*other than zero"):
            CPAB(**empty)
    with pytest.raises(ValueError, match=r"theta: expected \(B, 3\)"):
        CPAB((4,)).map_points(torch.zeros(1, 4), torch.zeros(1, 2, 1))
    with pytest.raises(ValueError, match=r"^points: "):
        CPAB((4,)).map_points(torch.zeros(1, 3), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match=r"^coefficients: "):
        cpab_velocity(torch.zeros(1, 3, 1, 2), torch.zeros(1, 2, 1), (4,))
    with pytest.raises(ValueError, match=r"^nodes: "):
        cpab_flow_1d(torch.zeros(1, 1), torch.zeros(1, 2, 1))
    with pytest.raises(TypeError):
        CPAB((2, 2), True)
