"""Thin plate splines, against SciPy and against the integral that they minimize."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from scipy.interpolate import RBFInterpolator

import stn
from stn.transforms.tps import ThinPlateSpline, thin_plate_spline, tps_grid

KERNEL = {2: "thin_plate_spline", 3: "linear"}


def scattered(k=9, d=2):
    return 2 * torch.rand(k, d, dtype=torch.float64) - 1


MAKE = {
    "lattice": ThinPlateSpline,
    "regularized": lambda: ThinPlateSpline(scattered(), regularization=0.3),
    "bounded": lambda: ThinPlateSpline.lattice(3, 4, max_offset=0.5),
    "two rows": lambda: ThinPlateSpline.two_rows(8),
    "three points": lambda: ThinPlateSpline(torch.tensor([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.0]])),
    "3D": lambda: ThinPlateSpline.lattice(2, 3, 2),
    "3D, scattered": lambda: ThinPlateSpline(scattered(8, 3), regularization=0.1),
}


@pytest.fixture(params=MAKE)
def transform(request):
    return MAKE[request.param]()


def some_theta(transform, batch=3, spread=0.1, dtype=torch.float64):
    return spread * torch.randn(batch, transform.num_params, dtype=dtype)


def some_points(batch=3, n=7, d=2):
    return 3 * torch.rand(batch, n, d, dtype=torch.float64) - 1.5


# The spline


@pytest.mark.parametrize("regularization", [0.0, 1e-3, 2.0])
@pytest.mark.parametrize("points", ["lattice", "scattered", "minimal", "rows"])
@pytest.mark.parametrize("d", [2, 3])
def test_agrees_with_scipy(d, points, regularization):
    if points == "rows":
        transform = ThinPlateSpline.two_rows(20, regularization=regularization)
    else:
        control = {
            "lattice": (4, 5) if d == 2 else (2, 3, 4),
            "scattered": scattered(30, d),
            "minimal": scattered(d + 1, d),
        }
        transform = ThinPlateSpline(control[points], regularization=regularization)
    d = transform.ndim
    theta, where = some_theta(transform, 2, 0.3), some_points(2, 40, d)
    control = transform.control_points
    where[:, :3] = control[:3]  # at r = 0 as well
    mapped = transform.map_points(theta, where)
    for shift, q, result in zip(theta.reshape(2, -1, d), where, mapped, strict=True):
        options = {"kernel": KERNEL[d], "degree": 1, "smoothing": regularization}
        wanted = RBFInterpolator(control.numpy(), (control + shift).numpy(), **options)(q.numpy())
        torch.testing.assert_close(result, torch.from_numpy(wanted), rtol=0, atol=1e-10)


def test_a_large_lattice_keeps_its_digits_in_float32():
    """Evaluated in float32, kernels times weights lose five of them here."""
    transform = ThinPlateSpline.lattice(20, 20)
    theta = some_theta(transform, 2, dtype=torch.float32)
    grid = transform.grid(theta, (9, 11))
    assert grid.dtype == torch.float32
    torch.testing.assert_close(grid.double(), transform.grid(theta.double(), (9, 11)), rtol=0, atol=3e-7)


def test_control_points_are_read_where_they_are_told():
    for name in ("lattice", "two rows", "3D", "three points"):
        transform = MAKE[name]()
        theta, control = some_theta(transform), transform.control_points
        mapped = transform.map_points(theta, control[None])
        torch.testing.assert_close(mapped, control + theta.reshape(3, *control.shape), rtol=0, atol=1e-12)
        assert torch.equal(transform.offsets(theta).flatten(1), theta)


def test_regularization_gives_way_to_the_affine_fit():
    control = scattered()
    values = control + 0.3 * torch.randn(9, 2, dtype=torch.float64)
    transform, theta = thin_plate_spline(values, control, regularization=1e9)
    plane = torch.cat([control, torch.ones(9, 1, dtype=torch.float64)], 1)
    fit = plane @ torch.linalg.lstsq(plane, values).solution
    torch.testing.assert_close(transform.map_points(theta, control[None])[0], fit, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_identity(transform, dtype, atol):
    identity = transform.identity()
    assert identity.shape == (transform.num_params,)
    assert identity.dtype == torch.float32
    points = some_points(2, d=transform.ndim).to(dtype)
    mapped = transform.map_points(identity.to(dtype).expand(2, -1), points)
    assert mapped.dtype == dtype
    torch.testing.assert_close(mapped, points, rtol=0, atol=atol)
    image = torch.rand(1, 2, *(3, 4, 6)[-transform.ndim :], dtype=dtype)
    warped = stn.warp(image, identity.to(dtype)[None], transform=transform)
    torch.testing.assert_close(warped, image, rtol=0, atol=10 * atol)


def test_affine_maps_are_affine(transform):
    if transform.max_offset is not None:
        with pytest.raises(ValueError, match="max_offset"):
            transform.from_matrix(2 * torch.eye(2, 3)[None])
        return
    d = transform.ndim
    matrix = torch.eye(d, d + 1, dtype=torch.float64) + 0.4 * torch.randn(3, d, d + 1, dtype=torch.float64)
    theta, points = transform.from_matrix(matrix), some_points(d=d)
    wanted = torch.einsum("bij,bnj->bni", matrix[:, :, :d], points) + matrix[:, None, :, d]
    torch.testing.assert_close(transform.map_points(theta, points), wanted, rtol=0, atol=1e-12)
    assert float(transform.bending_energy(theta).max()) < 1e-20
    assert transform.from_matrix(matrix.float()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"^matrix: "):
        transform.from_matrix(matrix[:, :, 1:])


def test_the_grid_is_the_mapped_lattice(transform):
    theta, size = some_theta(transform), (2, 4, 5)[-transform.ndim :]
    for align_corners in (False, True):
        axes = [stn.geometry.lattice(n, align_corners=align_corners, dtype=torch.float64) for n in size]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).reshape(1, -1, transform.ndim)
        grid = transform.grid(theta, size, stn.Frame(align_corners=align_corners))
        assert transform.grid(theta.float(), size, stn.Frame(align_corners=align_corners)).is_contiguous()
        mapped = transform.map_points(theta, points.expand(3, -1, -1))  # the other of the two products
        torch.testing.assert_close(grid.flatten(1, -2), mapped, rtol=0, atol=1e-12)
        if transform.max_offset is None:
            options = {"regularization": transform.regularization, "align_corners": align_corners}
            assert torch.equal(tps_grid(theta, transform.control_points, size, **options), grid)


# Bending energy


@pytest.mark.parametrize(("d", "n", "out", "rel"), [(2, 400, 6.0, 0.01), (3, 40, 4.0, 0.12)])
def test_bending_energy_is_the_integral(d, n, out, rel):
    """Summed over the plane and over space, with second derivatives by autograd. In 3D they have poles at the control
    points: the sum is 9 % off at 40 midpoints an axis, 3 % at 160."""
    control = torch.tensor([[-0.5, 0.1, 0.3], [0.4, 0.6, 0.2], [0.2, -0.7, 0.0], [0.9, 0.0, 0.4], [0, 0.2, -0.9]])
    control = control[:, :d].double()
    transform = ThinPlateSpline(control)
    theta = some_theta(transform, 1, 0.3)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * out - out  # midpoints of x = sinh(u): fine in the frame
    x, weight = u.sinh(), u.cosh() * 2 * out / n
    points = torch.cartesian_prod(*[x] * d)[None].requires_grad_()
    weight = torch.cartesian_prod(*[weight] * d).prod(-1)
    mapped = transform.map_points(theta, points)
    total = 0.0
    for axis in range(d):
        (first,) = torch.autograd.grad(mapped[..., axis].sum(), points, create_graph=True)
        for other in range(d):
            (second,) = torch.autograd.grad(first[..., other].sum(), points, retain_graph=True)
            total += float((second.square().sum(-1) * weight).sum())
    assert float(transform.bending_energy(theta)) == pytest.approx(total, rel=rel)


def test_the_spline_has_the_least_objective():
    """Squared distances plus regularization / (8 pi) times energy: the documented trade."""
    regularization, control = 0.2, scattered()
    exact, smooth = ThinPlateSpline(control), ThinPlateSpline(control, regularization=regularization)
    theta = some_theta(exact, 1, 0.5)

    def objective(values):  # an exact spline through `values` at the control points
        return (values - theta).square().sum() + regularization / (8 * math.pi) * exact.bending_energy(values).sum()

    best = (smooth.map_points(theta, control[None]) - control).flatten(1).requires_grad_()
    torch.testing.assert_close(exact.bending_energy(best), smooth.bending_energy(theta), rtol=1e-8, atol=0)
    (gradient,) = torch.autograd.grad(objective(best), best)
    assert float(gradient.abs().max()) < 1e-10
    assert float(objective(theta).detach()) > 1.01 * float(objective(best).detach())


def test_bending_energy_trains():
    transform = ThinPlateSpline.lattice(3, 3)
    theta = some_theta(transform, 2).requires_grad_()
    assert torch.autograd.gradcheck(transform.bending_energy, (theta,))
    assert transform.bending_energy(theta[:0]).shape == (0,)
    zero = torch.zeros(1, 18, requires_grad=True)
    transform.bending_energy(zero).sum().backward()
    assert not zero.grad.any()


# Correspondences


def test_from_correspondences():
    target, source = scattered(6), torch.stack([scattered(6), scattered(6)])
    transform, theta = thin_plate_spline(source, target)
    assert theta.shape == (2, 12)
    torch.testing.assert_close(transform.map_points(theta, target[None]), source, rtol=0, atol=1e-12)
    one, single = thin_plate_spline(source[0], target)
    assert torch.equal(single[0], theta[0])
    assert torch.equal(one.control_points, target)
    assert torch.autograd.gradcheck(lambda s: thin_plate_spline(s, target)[1], (source.requires_grad_(),))


def test_what_is_shown_at_the_source_appears_at_the_target():
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    source = torch.cat([corners, torch.tensor([[0.5, -0.25]])])
    target = torch.cat([corners, torch.tensor([[-0.25, 0.25]])])
    transform, theta = thin_plate_spline(source, target)
    x, y = torch.meshgrid(stn.geometry.lattice(33), stn.geometry.lattice(33), indexing="xy")
    image = torch.exp(-40 * ((x - 0.5) ** 2 + (y + 0.25) ** 2))[None, None]
    row, column = divmod(int(stn.warp(image, theta, transform=transform).argmax()), 33)
    assert abs(float(stn.geometry.lattice(33)[column]) + 0.25) < 0.04
    assert abs(float(stn.geometry.lattice(33)[row]) - 0.25) < 0.04


# Layouts


def test_lattices():
    points = ThinPlateSpline.lattice(2, 3).control_points
    assert points.tolist() == [[-1, -1], [0, -1], [1, -1], [-1, 1], [0, 1], [1, 1]]
    solid = ThinPlateSpline.lattice(2, 3, 4)
    assert solid.ndim == 3
    assert solid.control_points[:5].tolist() == [
        [-1, -1, -1],
        [-1 / 3, -1, -1],
        [1 / 3, -1, -1],
        [1, -1, -1],
        [-1, 0, -1],
    ]
    assert solid.control_points[-1].tolist() == [1, 1, 1]
    assert ThinPlateSpline().num_params == 32
    rows = ThinPlateSpline.two_rows(10, max_offset=1.0)
    assert rows.control_points.tolist() == [[x, y] for y in (-1, 1) for x in (-1, -0.5, 0, 0.5, 1)]
    assert repr(rows) == "ThinPlateSpline(10 points in 2D, max_offset=1)"


def test_bounds():
    transform = ThinPlateSpline.lattice(2, 2, max_offset=0.25)
    shift = transform.offsets(torch.tensor([[1e3, -1e3, 1e-3, 0, 0, 0, 0, 0]], dtype=torch.float64))[0]
    torch.testing.assert_close(shift[0], torch.tensor([0.25, -0.25], dtype=torch.float64))
    assert float(shift[1, 0]) == pytest.approx(1e-3, rel=1e-4)
    points = transform.control_points[None] + 0.2
    torch.testing.assert_close(
        transform.map_points(transform.from_points(points), transform.control_points[None]), points
    )
    with pytest.raises(ValueError, match=r"^max_offset: "):
        transform.from_points(points + 0.1)


# Gradients, types, precision


def test_gradients(transform):
    theta = some_theta(transform, 2).requires_grad_()
    points = some_points(2, 3, transform.ndim).requires_grad_()
    assert torch.autograd.gradcheck(transform.map_points, (theta, points))
    assert torch.autograd.gradgradcheck(transform.map_points, (theta, points))
    assert torch.autograd.gradcheck(lambda t: transform.grid(t, (2,) * transform.ndim), (theta,))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda t, p: transform.map_points(t[None], p[None])[0]))(theta, points)
    assert jacobian.shape == (2, 3, transform.ndim, transform.num_params)


def test_gradients_at_the_control_points_are_finite(transform):
    points = transform.control_points[None].clone().requires_grad_()
    theta = some_theta(transform, 1)
    (first,) = torch.autograd.grad(transform.map_points(theta, points).sum(), points, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), points)
    assert first.isfinite().all()
    assert second.isfinite().all()
    if transform.ndim == 2:  # smooth there: the limit from aside
        (near,) = torch.autograd.grad(transform.map_points(theta, points + 1e-9).sum(), points)
        torch.testing.assert_close(first, near, rtol=0, atol=1e-6)


def test_types_batches_and_what_is_not_finite(transform):
    d = transform.ndim
    theta, points, size = some_theta(transform), some_points(d=d), (2, 3, 4)[-d:]
    for batch in (0, 1):
        assert transform.grid(theta[:batch], size).shape == (batch, *size, d)
        assert transform.map_points(theta[:batch], points[:batch]).shape == (batch, 7, d)
    assert transform.map_points(theta, points[:, :0]).shape == (3, 0, d)
    clean = transform.grid(theta, size)
    theta[1, 0] = float("nan")
    grid = transform.grid(theta, size)
    assert grid[1].isnan().any()
    assert torch.equal(grid[[0, 2]], clean[[0, 2]])
    for value in (1e30, -1e30, float("inf")):
        huge = torch.full((1, transform.num_params), value, requires_grad=True)
        transform.grid(huge, size).nansum().backward()


@pytest.mark.parametrize("convert", ["half", "bfloat16", "float", "double"])
def test_conversions_leave_the_numbers_alone(convert):
    transform = ThinPlateSpline(scattered(12))
    theta = some_theta(transform, dtype=torch.float32).bfloat16()
    wanted = transform.grid(theta, (3, 4))
    assert wanted.dtype == torch.float32
    torch.testing.assert_close(wanted.double(), transform.grid(theta.double(), (3, 4)), rtol=0, atol=3e-7)
    inside = torch.nn.Sequential(transform)
    for moved in (getattr(inside, convert)()[0], copy.deepcopy(inside)[0], pickle.loads(pickle.dumps(inside))[0]):
        assert {b.dtype for b in moved.buffers()} == {torch.float64}
        assert torch.equal(moved.grid(theta, (3, 4)), wanted)
    assert {b.dtype for b in transform.to(torch.float16).buffers()} == {torch.float64}


def test_autocast_and_matmul_precision_change_nothing():
    transform = ThinPlateSpline.lattice(5, 5)
    theta = some_theta(transform, dtype=torch.float32)
    points = some_points().float()
    wanted = transform.grid(theta, (3, 4)), transform.map_points(theta, points), transform.bending_energy(theta)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            got = transform.grid(theta, (3, 4)), transform.map_points(theta, points), transform.bending_energy(theta)
    finally:
        torch.set_float32_matmul_precision(precision)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_state_dict_is_empty_and_strict(transform):
    assert not transform.state_dict()
    assert not list(transform.parameters())
    transform.load_state_dict(transform.state_dict(), strict=True)
    assert isinstance(transform, stn.AbstractTransform)


def test_made_under_the_meta_device_and_other_default_types():
    wanted = ThinPlateSpline().grid(torch.ones(1, 32), (2, 2))
    with torch.device("meta"):
        made = ThinPlateSpline()
    assert torch.equal(made.grid(torch.ones(1, 32), (2, 2)), wanted)
    torch.set_default_dtype(torch.float16)
    try:
        made = ThinPlateSpline()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(made.grid(torch.ones(1, 32), (2, 2)), wanted)
    with pytest.raises(ValueError, match=r"^theta: expected on the device of the transform \(meta\), got cpu"):
        made.to("meta").grid(torch.ones(1, 32), (2, 2))


@pytest.mark.parametrize("name", ["lattice", "3D, scattered"])
def test_compiles_without_a_break(name):
    transform = MAKE[name]()
    theta, size = some_theta(transform, dtype=torch.float32), (3, 4, 5)[-transform.ndim :]
    run = lambda t: transform.grid(t, size) + transform.bending_energy(t).sum()  # noqa: E731
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(theta), run(theta), rtol=0, atol=1e-6)


# Errors


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(2, 2), "at least 3 control points in 2D, got 2"),
        (torch.zeros(3, 3), "at least 4 control points in 3D, got 3"),
        (torch.zeros(4, 1), r"\(K, 2\) or \(K, 3\), got shape \(4, 1\)"),
        (torch.zeros(1, 4, 2), r"\(K, 2\) or \(K, 3\)"),
        (torch.zeros(4, 2).long(), "floating-point"),
        (torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 0]]), r"distinct .*points 1 and 3 are both \[1.0, 0.0\]"),
        (torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1e-9]]), "distinct"),
        (torch.zeros(4, 2), "distinct"),
        (torch.tensor([[0.0, 0], [1, 0.1], [2, 0.2], [3, 0.3]]), "not all on one line"),
        (torch.tensor([[0.0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1], [3, 2, 1]]), "not all in one plane"),
        (torch.tensor([[0.0, 0], [1, float("nan")], [0, 1], [1, 1]]), "finite control points"),
        (torch.tensor([[0.0, 0], [float("inf"), 0], [0, 1], [1, 1]]), "finite control points"),
    ],
)
def test_control_points_without_a_spline(points, message):
    with pytest.raises(ValueError, match=rf"^control_points: .*{message}"):
        ThinPlateSpline(points)
    with pytest.raises(ValueError, match=rf"^control_points: .*{message}"):
        tps_grid(torch.zeros(1, points.numel()), points, (2, 2))
    if "got shape (1, 4, 2)" not in message and points.ndim == 2:
        with pytest.raises(ValueError, match=rf"^target: .*{message}"):
            thin_plate_spline(torch.zeros(points.shape), points)


def test_wrong_arguments(transform):
    right, d = some_theta(transform), transform.ndim
    points = some_points(d=d)
    wide = torch.zeros(3, transform.num_params + 1)
    for theta in (wide, wide.long(), right[0], None, right.to(torch.complex64)):
        for call in (
            transform.bending_energy,
            lambda t: transform.map_points(t, points),
            lambda t: transform.grid(t, (2,) * d),
        ):
            with pytest.raises(ValueError, match=rf"^theta: .*{transform.num_params}"):
                call(theta)
    for bad in (points[..., :1], points[0], None, points[:2]):
        with pytest.raises(ValueError, match=r"^points: "):
            transform.map_points(right, bad)
    for bad in (points, None, points[0]):
        with pytest.raises(ValueError, match=r"^points: "):
            transform.from_points(bad)
    for size in ((4,), (-1,) * d, "45", None):
        with pytest.raises(ValueError, match=r"^size: "):
            transform.grid(right, size)
    with pytest.raises(ValueError, match="ThinPlateSpline has no inverse within its family"):
        transform.inverse(right)


def test_wrong_options():
    for lattice in ((4,), (1, 4), (2, 2, 2, 2), "44", None, (2.0, 2), (True, 3), 4):
        with pytest.raises(ValueError, match=r"^control_points: .*lattice"):
            ThinPlateSpline(lattice)
    for value in (-1.0, float("nan"), float("inf"), "1", None, True):
        with pytest.raises(ValueError, match=r"^regularization: "):
            ThinPlateSpline(regularization=value)
    for value in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match=r"^max_offset: "):
            ThinPlateSpline(max_offset=value)
    for points in (2, 5, 6.0, True):
        with pytest.raises(ValueError, match=r"^points: expected an even int"):
            ThinPlateSpline.two_rows(points)
    with pytest.raises(TypeError):
        ThinPlateSpline((2, 2), 0.1)
    target = scattered(5)
    for source in (target[:4], target[None, None], None, target.long(), target[:, :1], target.to("meta")):
        with pytest.raises(ValueError, match=r"^source: "):
            thin_plate_spline(source, target)
    with pytest.raises(ValueError, match=r"^target: .*one set for the batch"):
        thin_plate_spline(target[None], target[None])
    with pytest.raises(ValueError, match=r"^theta: "):
        tps_grid(None, target, (2, 2))


def test_cardinal_functions_are_enough_in_float32():
    """On 20 x 20 points kernels times coefficients lose five digits, cardinal functions times shifts none."""
    transform = stn.ThinPlateSpline((20, 20))
    theta = 0.05 * torch.randn(2, 800, generator=torch.Generator().manual_seed(0))
    exact = transform.grid(theta.double(), (32, 32))
    narrow = torch.einsum("nk,bkd->bnd", transform.basis((32, 32)).float(), transform.coefficients(theta))
    torch.testing.assert_close(narrow.double().reshape(exact.shape), exact, rtol=0, atol=5e-7)


def test_the_basis_of_another_device_is_in_the_type_of_theta():
    transform = stn.ThinPlateSpline((3, 3)).to("meta")
    for dtype in (torch.float32, torch.float64):
        coordinates = transform.coordinates(torch.zeros(1, 18, dtype=dtype, device="meta"), (4, 5))
        assert (coordinates.basis.dtype, coordinates.values.dtype) == (dtype, dtype)
    assert stn.ThinPlateSpline((3, 3)).coordinates(torch.zeros(1, 18), (4, 5)).basis.dtype == torch.float64
