"""SciPy's `ndimage` and its integrator. Its splines are compared in `test_tps.py`, its lattices in `test_flow.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stn
from stn import conventions as frame

from . import agree, normal, pixel_map, uniform, warped

ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed")
integrate = pytest.importorskip("scipy.integrate", reason="SciPy is not installed")
interpolate = pytest.importorskip("scipy.interpolate", reason="SciPy is not installed")

SIZES = {2: ((7, 10), (5, 6)), 3: ((4, 6, 5), (3, 5, 7))}
MODES = {  # theirs -> ours; its two reflections are ours with and without align_corners
    "grid-constant": {"padding_mode": "constant", "fill": 0.7},
    "nearest": {"padding_mode": "border"},
    "reflect": {"padding_mode": "reflection"},
    "mirror": {"padding_mode": "reflection", "align_corners": True},
    "grid-wrap": {"padding_mode": "circular"},
}
ORDERS = {0: "nearest", 1: "bilinear"}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("d", [2, 3])
def test_affine_transform(d, mode, order):
    in_size, out_size = SIZES[d]
    image, matrix = normal(*in_size), pixel_map(d)
    options = {"output_shape": out_size, "order": order, "mode": mode, "cval": 0.7}
    wanted = ndimage.affine_transform(image, matrix[:, :d], matrix[:, d], **options)
    agree(warped(image, matrix, out_size, order="ij", mode=ORDERS[order], **MODES[mode]), wanted)
    # homogeneous coordinates, as it takes them too
    square = np.vstack([matrix, np.eye(d + 1)[d]])
    agree(
        warped(image, square, out_size, order="ij", mode=ORDERS[order], **MODES[mode]),
        ndimage.affine_transform(image, square, **options),
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("d", [2, 3])
def test_map_coordinates(d, mode, order):
    """Positions as array indices, stacked first."""
    in_size, out_size = SIZES[d]
    image = normal(*in_size)
    indices = uniform(-0.4, 1.3, (d, *out_size)) * np.reshape(in_size, (d, *[1] * d))
    wanted = ndimage.map_coordinates(image, indices, order=order, mode=mode, cval=0.7)
    options = MODES[mode]
    align_corners = options.get("align_corners", False)
    points = torch.from_numpy(indices).movedim(0, -1).flip(-1)
    grid = frame.pixel_to_normalized(points, in_size, align_corners=align_corners)[None]
    out = stn.sample(torch.from_numpy(image)[None, None], grid, mode=ORDERS[order], **options)
    agree(out[0, 0], wanted)


def test_a_channel_axis():
    """dm_pix works on (row, column, channel) with SciPy's convention: the rows and columns of the rest are a theta."""
    image, matrix = normal(7, 10, 3), pixel_map(2)
    whole = np.eye(3, 4)
    whole[np.ix_([0, 1], [0, 1, 3])] = matrix
    wanted = ndimage.affine_transform(image, whole[:, :3], whole[:, 3], order=1, mode="nearest")
    for channel in range(3):
        out = warped(image[..., channel], matrix, (7, 10), order="ij", padding_mode="border")
        agree(out, wanted[..., channel])


def flow(velocity, points):
    """Points (N, d) after following a velocity for one unit of time, each a problem of its own for the step control."""
    solve = lambda p: integrate.solve_ivp(  # noqa: E731
        lambda _, q: velocity(q[None])[0], (0, 1), p, method="RK45", rtol=1e-10, atol=1e-12
    )
    return np.stack([solve(p).y[:, -1] for p in points])


@pytest.mark.parametrize("zero_boundary", [False, True])
def test_cpab_in_1d(zero_boundary):
    """The closed form against steps through a velocity that NumPy interpolates, constant beyond the frame as ours."""
    family = stn.CPAB((5,), zero_boundary=zero_boundary)
    theta = torch.randn(1, family.num_params, dtype=torch.float64)
    nodes = family.vertex_velocities(theta)[0, :, 0].numpy()
    points = uniform(-1.1, 1.1, (12, 1))
    wanted = flow(lambda p: np.interp(p, np.linspace(-1, 1, 6), nodes), points)
    assert np.abs(wanted - points).max() > 0.1
    # RK45 loses some of its order where a path crosses a node
    agree(family.map_points(theta, torch.from_numpy(points)[None])[0], wanted, atol=1e-8)


def test_cpab_in_2d():
    """One rectangle: its corners and its centre have a single triangulation, the cells."""
    family = stn.CPAB((1, 1), steps=200)
    theta = torch.tensor([[1.0, -0.7]], dtype=torch.float64)
    vertices = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1], [0, 0]], dtype=float)
    velocity = interpolate.LinearNDInterpolator(vertices, family.vertex_velocities(theta)[0].numpy())
    points = uniform(-0.9, 0.9, (10, 2))
    torch.testing.assert_close(
        family.velocity(theta, torch.from_numpy(points)[None])[0],
        torch.from_numpy(velocity(points)),
        rtol=0,
        atol=1e-12,
    )
    wanted = flow(velocity, points)
    assert np.abs(wanted - points).max() > 0.1
    # ours takes 200 fixed steps, of second order across a diagonal
    agree(family.map_points(theta, torch.from_numpy(points)[None])[0], wanted, atol=1e-5)


def test_velocity_field():
    """Scaling and squaring against the flow of the very field that its lattice holds."""
    n = 33
    axis = np.linspace(-1, 1, n)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    field = 0.35 * np.stack([np.sin(np.pi * y) * np.cos(np.pi / 2 * x), np.cos(2 * x) * np.cos(np.pi / 2 * y)], -1)
    velocity = interpolate.RegularGridInterpolator((axis, axis), field)
    points = uniform(-0.8, 0.8, (10, 2))
    wanted = flow(lambda p: velocity(np.clip(p[:, ::-1], -1, 1)), points)
    assert np.abs(wanted - points).max() > 0.2
    mapped = stn.VelocityField((n, n)).map_points(
        torch.from_numpy(field).reshape(1, -1), torch.from_numpy(points)[None]
    )
    # its maps are brought back to the lattice at every squaring: the docstring's error at this resolution
    agree(mapped[0], wanted, atol=8e-3)


@pytest.mark.parametrize("n", [3, 10, 641, 3001])
def test_ties_of_map_coordinates(n):
    """Array indices as they are: halfway between two pixels SciPy goes upwards, as "integer"."""
    row, indices = normal(n).astype(np.float32), (np.arange(n - 1) + 0.5).astype(np.float32)
    for order, mode in {0: "integer", 1: "bilinear"}.items():
        wanted = ndimage.map_coordinates(row, indices[None], order=order, mode="nearest")
        options = {"mode": mode, "padding_mode": "border", "units": "pixel", "order": "ij"}
        out = stn.sample(torch.from_numpy(row)[None, None], torch.from_numpy(indices)[None, :, None], **options)
        agree(out[0, 0], wanted, atol=1e-6 * order)
