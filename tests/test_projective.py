"""Projective maps by their matrix and by their corners."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import stn
from stn.geometry import _BEHIND as _FAR
from stn.transforms.projective import Corners, Projective, projective_grid

FAMILIES = {
    "projective": Projective,
    "projective, bounded": lambda: Projective(max_delta=1.5),
    "projective, 3D": lambda: Projective(3),
    "corners": Corners,
    "corners, bounded": lambda: Corners(max_shift=1.0),
}
FRAME = torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]], dtype=torch.float64)


def near_identity(transform, batch=3, spread=0.1, dtype=torch.float64):
    return transform.identity().to(dtype) + spread * torch.randn(batch, transform.num_params, dtype=dtype)


def some_points(batch=3, n=7, d=2):
    return 2 * torch.rand(batch, n, d, dtype=torch.float64) - 1


@pytest.fixture(params=FAMILIES)
def transform(request):
    return FAMILIES[request.param]()


# The map


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(3, 5), (1, 4), (2, 3, 4)])
def test_the_grid_by_hand(size, align_corners):
    d = len(size)
    theta = torch.eye(d + 1, dtype=torch.float64) + 0.15 * torch.randn(2, d + 1, d + 1, dtype=torch.float64)
    grid = projective_grid(theta, size, align_corners=align_corners)
    assert grid.shape == (2, *size, d)
    assert grid.dtype == torch.float64
    for index in np.ndindex(2, *size):
        b, *pixel = index
        point = []
        for i, n in reversed(list(zip(pixel, size, strict=True))):  # x first
            point.append((0.0 if n == 1 else 2 * i / (n - 1) - 1) if align_corners else (2 * i + 1) / n - 1)
        h = theta[b].numpy() @ np.array([*point, 1.0])
        np.testing.assert_allclose(grid[index].numpy(), h[:-1] / h[-1], rtol=0, atol=1e-13)


def test_projective_is_the_matrix_row_by_row():
    theta = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8]])
    assert Projective().matrix(theta).tolist() == [[[1, 2, 3], [4, 5, 6], [7, 8, 1]]]
    assert Projective(3).matrix(torch.arange(15.0)[None]).flatten().tolist() == [*range(15), 1]
    # (1 10 + 2 1 + 3) / (7 10 + 8 1 + 1), ...
    mapped = Projective().map_points(theta, torch.tensor([[[10.0, 1.0]]]))
    torch.testing.assert_close(mapped, torch.tensor([[[15 / 79, 51 / 79]]]))


def test_the_grid_is_the_mapped_lattice(transform):
    theta, size = near_identity(transform), (2, 4, 5)[-transform.ndim :]
    for align_corners in (False, True):
        axes = [stn.geometry.lattice(n, align_corners=align_corners, dtype=torch.float64) for n in size]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).reshape(1, -1, transform.ndim)
        grid = transform.grid(theta, size, stn.Frame(align_corners=align_corners))
        torch.testing.assert_close(grid.flatten(1, -2), transform.map_points(theta, points), rtol=0, atol=1e-13)
        of_matrix = projective_grid(transform.matrix(theta), size, align_corners=align_corners)
        assert torch.equal(grid, of_matrix)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_identity(transform, dtype, atol):
    identity = transform.identity()
    assert identity.shape == (transform.num_params,)
    assert identity.dtype == torch.float32
    points = some_points(2, d=transform.ndim).to(dtype)
    mapped = transform.map_points(identity.to(dtype).expand(2, -1), points)
    assert mapped.dtype == dtype
    torch.testing.assert_close(mapped, points, rtol=0, atol=atol)
    eye = torch.eye(transform.ndim + 1, dtype=dtype)[None]
    assert torch.equal(transform.matrix(identity.to(dtype)[None]), eye)


@pytest.mark.parametrize("make", [Projective, Corners])
@pytest.mark.parametrize("align_corners", [False, True])
def test_an_affine_map_warps_as_it_does(make, align_corners):
    image = torch.rand(2, 3, 7, 9, dtype=torch.float64)
    affine = torch.eye(2, 3, dtype=torch.float64) + 0.2 * torch.randn(2, 2, 3, dtype=torch.float64)
    theta = make().from_matrix(affine)
    options = {"size": (6, 5), "align_corners": align_corners}
    wanted = stn.warp(image, affine, **options)
    torch.testing.assert_close(stn.warp(image, theta, transform=make(), **options), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(make().matrix(theta)[:, :2], affine, rtol=0, atol=1e-14)


def test_an_affine_map_in_3d():
    volume, affine = torch.rand(1, 1, 3, 4, 5), torch.eye(3, 4) + 0.1 * torch.randn(1, 3, 4)
    theta = Projective(3).from_matrix(affine)
    assert torch.equal(Projective(3).matrix(theta)[:, :3], affine)
    warped = stn.warp(volume, theta, transform=Projective(3))
    torch.testing.assert_close(warped, stn.warp(volume, affine), rtol=0, atol=1e-5)


def test_a_matrix_and_its_multiples_are_one_map():
    m = Projective().matrix(near_identity(Projective()))
    scale = torch.tensor([-2.0, 1e-6, 1e6], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(projective_grid(scale * m, (3, 4)), projective_grid(m, (3, 4)), rtol=1e-12, atol=0)
    for family in (Projective(), Corners()):
        torch.testing.assert_close(family.matrix(family.from_matrix(scale * m)), m, rtol=0, atol=1e-13)


# The horizon


def test_behind_the_horizon_is_far_outside():
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 2, 0]], dtype=torch.float64, requires_grad=True)  # horizon at x = -0.5
    x = torch.tensor([-1.0, -0.75, -0.5, -0.5 + 1e-6, -0.4, 0.0, 1.0], dtype=torch.float64)
    points = torch.stack([x, torch.full_like(x, -0.25)], -1)[None]
    mapped = Projective().map_points(theta, points)
    assert mapped[0, :4].abs().eq(_FAR).all()
    torch.testing.assert_close(mapped[0, 4:], points[0, 4:] / (1 + 2 * x[4:, None]), rtol=0, atol=1e-13)
    # a mirror image of the visible side appears in peers, here background
    image = torch.ones(1, 1, 1, 8, dtype=torch.float64)
    out = stn.warp(image, theta, transform=Projective(), padding_mode="constant", fill=7.0)
    assert out[0, 0, 0, :2].tolist() == [7.0, 7.0]
    assert float(out[0, 0, 0, 4:].detach().sub(1).abs().max()) < 1e-12
    (out.sum() + mapped.sum()).backward()
    assert theta.grad.isfinite().all()
    # no gradient from what is hidden
    theta.grad = None
    Projective().map_points(theta, points[:, :4]).sum().backward()
    assert not theta.grad.any()


def test_points_that_would_come_out_inside_from_behind_are_hidden():
    """Numerators of 0 with a negative denominator: the division alone reads the middle of the image."""
    theta = torch.tensor([[1.0, 0, 0.8, 0, 1, 0, 2, 0]])
    mapped = Projective().map_points(theta, torch.tensor([[[-0.8, 0.0]]]))
    assert mapped.abs().tolist() == [[[_FAR, _FAR]]]


def test_what_is_not_finite_stays_in_its_own_image():
    for family in FAMILIES.values():
        transform = family()
        theta = near_identity(transform)
        size = (2, 3, 4)[-transform.ndim :]
        clean = transform.grid(theta, size)
        theta[1, 0] = float("nan")
        grid = transform.grid(theta, size)
        assert grid[1].isnan().any()
        assert torch.equal(grid[[0, 2]], clean[[0, 2]])
        for value in (float("inf"), 1e30, -1e30):
            theta = torch.full((1, transform.num_params), value, requires_grad=True)
            transform.grid(theta, size).nansum().backward()


@pytest.mark.parametrize(
    ("transform", "bound"), [(Projective(max_delta=0.499), 0.499), (Projective(3, max_delta=0.333), 0.333)]
)
def test_a_small_bound_keeps_the_horizon_out(transform, bound):
    d = transform.ndim
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=d)), dtype=torch.float64)
    for sign in (1.0, -1.0):
        theta = torch.full((1, transform.num_params), 50.0 * sign, dtype=torch.float64)
        delta = transform.matrix(theta) - torch.eye(d + 1)
        assert float((sign * delta).max()) == pytest.approx(bound, rel=1e-6)
        assert transform.map_points(theta, corners[None]).abs().max() < _FAR


def test_corners_below_a_half_are_convex():
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=8)), dtype=torch.float64)
    transform = Corners(max_shift=0.4999)
    quads = transform.corners(1e3 * signs)
    assert float((quads - FRAME).abs().max()) == pytest.approx(0.4999)
    assert transform.map_points(1e3 * signs, FRAME).abs().max() < 2
    assert (Corners().map_points(0.51 * signs, FRAME).abs().amax((1, 2)) == _FAR).any()


# Corners


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 3e-6)])
def test_the_corners_go_where_they_are_told(dtype, atol):
    theta = near_identity(Corners(), 64, 0.2).to(dtype)
    wanted = FRAME.to(dtype) + theta.reshape(-1, 4, 2)
    mapped = Corners().map_points(theta, FRAME.to(dtype))
    torch.testing.assert_close(mapped, wanted, rtol=0, atol=100 * atol if dtype == torch.float64 else atol)
    assert torch.equal(Corners().corners(theta), wanted)


def test_corners_agree_with_the_linear_system():
    """The eight equations that everyone else solves."""
    theta = near_identity(Corners(), 5, 0.2)
    for quad, matrix in zip((FRAME + theta.reshape(-1, 4, 2)).numpy(), Corners().matrix(theta).numpy(), strict=True):
        rows, values = [], []
        for (x, y), (u, v) in zip(FRAME[0].numpy(), quad, strict=True):
            rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
            values += [u, v]
        wanted = np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)
        np.testing.assert_allclose(matrix, wanted, rtol=0, atol=1e-12)


def test_corners_may_mirror():
    flip = torch.tensor([[2.0, 0, -2, 0, -2, 0, 2, 0]])
    assert Corners().matrix(flip).tolist() == [[[-1, 0, 0], [0, 1, 0], [0, 0, 1]]]


def test_degenerate_quadrilaterals():
    line = torch.tensor([[0.0, 0, 0, 0, -1.0, -1.0, 0, 0]])  # bottom right onto the line through its neighbours
    uneven = torch.tensor([[0.3, 0.1, 0.1, 0.2, -1.05, -1.05, 0.17, 0.03]], dtype=torch.float64)
    uneven[0, 4:6] = 0.3 * (FRAME[0, 1] + uneven[0, 2:4]) + 0.7 * (FRAME[0, 3] + uneven[0, 6:8]) - FRAME[0, 2]
    for theta in (line, uneven):
        assert Corners().matrix(theta).isfinite().all()
        with pytest.raises(ValueError, match=r"theta: .*singular one at index 0"):
            Corners().inverse(theta)
    bow_tie = torch.tensor([[0.0, 0, 0, 0, -2, 0, 2, 0]])
    assert not Corners().matrix(bow_tie).isfinite().any()
    with pytest.raises(ValueError, match="singular"):
        Corners().inverse(bow_tie)


# Inverse, composition, gradients


def test_inverse(transform):
    theta, points = near_identity(transform), some_points(d=transform.ndim)
    there = transform.map_points(theta, points)
    assert float((there - points).abs().max()) > 0.02
    inverse = transform.inverse(theta)
    torch.testing.assert_close(transform.map_points(inverse, there), points, rtol=0, atol=1e-12)
    torch.testing.assert_close(transform.unmap_points(theta, there), points, rtol=0, atol=1e-12)


def test_compose(transform):
    a, b, points = near_identity(transform), near_identity(transform), some_points(d=transform.ndim)
    wanted = transform.map_points(a, transform.map_points(b, points))
    torch.testing.assert_close(transform.map_points(transform.compose(a, b), points), wanted, rtol=0, atol=1e-12)
    one = transform.compose(a, b[:1])
    assert torch.equal(one[0], transform.compose(a, b)[0])


def test_an_inverse_needs_a_regular_matrix_whatever_its_scale():
    singular = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 0], [1.0, 2, 3, 2, 4, 6, 0.1, 0.2]])
    with pytest.raises(ValueError, match=r"theta: .*singular one at index 1"):
        Projective().inverse(singular)
    with pytest.raises(ValueError, match="singular"):
        Projective().inverse(torch.full((1, 8), float("nan")))
    tiny = torch.tensor([[1e-9, 0, 0, 0, 1e-9, 0, 0, 0]])
    torch.testing.assert_close(Projective().inverse(tiny)[0, [0, 4]], torch.tensor([1e9, 1e9]))


def test_inverses_and_products_outside_the_family():
    # The input's centre is read from x = -2, behind the horizon at -1: the division alone would invert it wrongly.
    theta = torch.tensor([[1.0, 0, 2, 0, 1, 0, 1, 0]])
    with pytest.raises(ValueError, match=r"theta: .*horizon hides the centre at index 0"):
        Projective().inverse(theta)
    shift = torch.tensor([[1.0, 0, -2, 0, 1, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"b: .*horizon hides the centre"):
        Projective().compose(theta, shift)
    half = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1.5, 0, 1]])[None]
    with pytest.raises(ValueError, match=r"matrix: .*every corner of the frame"):
        Corners().from_matrix(half)
    with pytest.raises(ValueError, match=r"matrix: .*last entry is not 0, got 0 at index 0"):
        Projective().from_matrix(torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]]))
    with pytest.raises(ValueError, match="max_delta"):
        Projective(max_delta=0.1).from_matrix(half)
    with pytest.raises(ValueError, match="max_shift"):
        Corners(max_shift=0.1).from_matrix(torch.eye(2, 3)[None] * 0.5)
    with pytest.raises(ValueError, match=r"points: .*point 1 of image 0 lies behind the horizon"):
        Projective().unmap_points(theta, torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]))


def test_gradients(transform):
    theta = near_identity(transform, 2).requires_grad_()
    points = some_points(2, 3, transform.ndim).requires_grad_()
    assert torch.autograd.gradcheck(transform.map_points, (theta, points))
    assert torch.autograd.gradgradcheck(transform.map_points, (theta, points))
    assert torch.autograd.gradcheck(transform.inverse, (theta,))
    assert torch.autograd.gradcheck(lambda t: transform.grid(t, (2,) * transform.ndim), (theta,))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda t, p: transform.map_points(t[None], p[None])[0]))(theta, points)
    assert jacobian.shape == (2, 3, transform.ndim, transform.num_params)


def test_types_batches_and_autocast(transform):
    d = transform.ndim
    theta, points, size = near_identity(transform), some_points(d=transform.ndim), (2, 3, 4)[-d:]
    for batch in (0, 1):
        assert transform.grid(theta[:batch], size).shape == (batch, *size, d)
        assert transform.map_points(theta[:batch], points[:batch]).shape == (batch, 7, d)
    assert transform.map_points(theta, points[:, :0]).shape == (3, 0, d)
    rounded = theta.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mapped = transform.map_points(rounded, points.float())
        both = transform.compose(theta.float(), theta.float())
    assert mapped.dtype == torch.float32
    exact = transform.map_points(rounded.double(), points)
    torch.testing.assert_close(mapped.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both.double(), transform.compose(theta, theta), rtol=1e-5, atol=1e-5)


def test_is_a_module_without_weights(transform):
    transform.load_state_dict(transform.state_dict(), strict=True)
    assert not transform.state_dict()
    assert isinstance(transform, stn.AbstractTransform)
    assert repr(Projective(3, max_delta=0.5)) == "Projective(ndim=3, max_delta=0.5)"
    assert repr(Corners(max_shift=0.25)) == "Corners(max_shift=0.25)"


@pytest.mark.parametrize("make", [Projective, Corners])
def test_compiles_without_a_break(make):
    transform, theta = make(), near_identity(make(), dtype=torch.float32)
    run = lambda t: transform.grid(transform.compose(transform.inverse(t), t), (4, 5))  # noqa: E731
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(theta), run(theta), rtol=0, atol=1e-6)


def test_wrong_arguments(transform):
    right, points = near_identity(transform), some_points(d=transform.ndim)
    wide = torch.zeros(3, transform.num_params + 1)
    for theta in (wide, wide.long(), right[0], right[:, :0], None, right.to(torch.complex64)):
        for call in (transform.matrix, transform.inverse, lambda t: transform.map_points(t, points)):
            with pytest.raises(ValueError, match=rf"^theta: .*{transform.num_params}"):
                call(theta)
    for bad in (points[..., :1], points[0], None, points[:2]):
        with pytest.raises(ValueError, match=r"^points: "):
            transform.map_points(right, bad)
    for size in ((4,), (-1,) * transform.ndim, "45", None):
        with pytest.raises(ValueError, match=r"^size: "):
            transform.grid(right, size)
    for matrix in (torch.zeros(1, 2, 2), torch.zeros(1, 4, 3), torch.zeros(3, 3), None, torch.zeros(1, 5, 5)):
        with pytest.raises(ValueError, match=r"^matrix: "):
            transform.from_matrix(matrix)


def test_wrong_arguments_of_the_function_and_the_options():
    for theta in (torch.zeros(1, 2, 3), torch.zeros(3, 3), torch.zeros(1, 3, 3).long(), torch.zeros(1, 5, 5), None):
        with pytest.raises(ValueError, match=r"^theta: "):
            projective_grid(theta, (2, 2))
    with pytest.raises(ValueError, match=r"^size: "):
        projective_grid(torch.eye(3)[None], (2, 2, 2))
    for ndim in (1, 4, True, 2.0, "2"):
        with pytest.raises(ValueError, match=r"^ndim: expected 2 or 3"):
            Projective(ndim)
    for bound in (0, -1.0, float("inf"), "1"):
        with pytest.raises(ValueError, match=r"^max_delta: "):
            Projective(max_delta=bound)
        with pytest.raises(ValueError, match=r"^max_shift: "):
            Corners(max_shift=bound)
    with pytest.raises(TypeError):
        Projective(2, 0.5)
    with pytest.raises(TypeError):
        Corners(0.5)
