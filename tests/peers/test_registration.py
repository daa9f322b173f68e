"""voxelmorph's VecInt and libcpab's theta, from what their papers and programs compute, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import stn
from stn import compat

from . import agree


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("size", [(9, 12), (5, 6, 7)])
def test_vecint(size, steps):
    """Halve, then add to the field what it reads where it points to: in voxels, zeros outside, corners aligned."""
    d = len(size)
    velocity = torch.randn(2, d, *size, dtype=torch.float64, requires_grad=True)
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in size], indexing="ij")
    lattice = torch.stack(axes)[None]
    field = velocity / 2**steps
    for _ in range(steps):
        at = lattice + field
        at = torch.stack([2 * (at[:, i] / (n - 1) - 0.5) for i, n in enumerate(size)], -1).flip(-1)
        field = field + F.grid_sample(field, at, align_corners=True)
    agree(compat.vecint(velocity, steps).detach(), field.detach())
    weights = torch.randn_like(field)
    (wanted,) = torch.autograd.grad((field * weights).sum(), velocity, retain_graph=True)
    (got,) = torch.autograd.grad((compat.vecint(velocity, steps) * weights).sum(), velocity)
    agree(got, wanted, atol=1e-10)
    ours = stn.transforms.velocity.integrate_velocity(velocity.detach().movedim(1, -1), steps=steps)
    assert (ours.movedim(-1, 1) - field.detach()).abs().max() > 0.05  # the reason for a function of its own


def triangles(nx, ny):
    """libcpab's cells on [0, 1]: rectangle by rectangle, top, right, bottom, left; (cells, 3, 2) corners (x, y)."""
    cells = []
    for row in range(ny):
        for column in range(nx):
            x, y = np.array([column, column + 1]) / nx, np.array([row, row + 1]) / ny
            corners = [(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1])]
            centre = (x.mean(), y.mean())
            cells += [[corners[k], corners[(k + 1) % 4], centre] for k in range(4)]
    return np.array(cells)


def null_space(cells, zero_boundary):
    """What is continuous: cells agree at the vertices that they share; nothing flows through the border."""
    rows = []

    def value(cell, vertex, component):
        row = np.zeros((len(cells), 2, 3))
        row[cell, component] = (*vertex, 1)
        return row.ravel()

    for i, first in enumerate(cells):
        for vertex in first:
            for component in range(2):
                if zero_boundary and vertex[component] in (0, 1):
                    rows.append(value(i, vertex, component))
                for j in range(i):
                    if (np.abs(cells[j] - vertex).sum(1) < 1e-9).any():
                        rows.append(value(i, vertex, component) - value(j, vertex, component))
    _, singular, right = np.linalg.svd(np.array(rows))
    return right[(singular > 1e-9).sum() :].T


@pytest.mark.parametrize("zero_boundary", [False, True])
@pytest.mark.parametrize(("nx", "ny"), [(2, 2), (3, 2)])
def test_libcpab(nx, ny, zero_boundary):
    cells = triangles(nx, ny)
    basis = null_space(cells, zero_boundary)
    family = stn.CPAB((ny, nx), zero_boundary=zero_boundary)
    assert basis.shape[1] == family.num_params
    fields = (basis @ torch.randn(basis.shape[1], 2).double().numpy()).T.reshape(2, -1, 2, 3)
    theta = compat.cpab_theta(torch.from_numpy(fields), family)
    inside = np.einsum("pk,ckd->cpd", np.random.default_rng(0).dirichlet(np.ones(3), 5), cells)  # points of each cell
    wanted = 2 * (np.einsum("bcij,cpj->bcpi", fields[..., :2], inside) + fields[:, :, None, :, 2])
    points = torch.from_numpy(2 * inside - 1).reshape(1, -1, 2)
    agree(family.velocity(theta, points).reshape(wanted.shape), wanted)
    single = compat.cpab_theta(torch.from_numpy(fields).float(), family)
    assert single.dtype == torch.float32
    agree(single, theta, atol=1e-4)


def test_libcpab_refuses_what_it_cannot_be():
    family = stn.CPAB((2, 2))
    torn = torch.randn(1, 16, 2, 3, dtype=torch.float64)
    free = torch.from_numpy(null_space(triangles(2, 2), False)).sum(1).reshape(1, 16, 2, 3)
    inside = torch.from_numpy(null_space(triangles(2, 2), True)).sum(1).reshape(1, 16, 2, 3)
    compat.cpab_theta(inside, family)
    for bad in (torn, free, inside.flip(1), inside[0], inside[:, :4], inside.int(), None):
        with pytest.raises(ValueError, match=r"^cells: expected"):
            compat.cpab_theta(bad, family)
    with pytest.raises(ValueError, match=r"^transform: "):
        compat.cpab_theta(inside, stn.Affine())
    for bad in (torch.rand(1, 3, 4, 4), torch.rand(2, 4, 4), torch.ones(1, 2, 4, 4).int(), None):
        with pytest.raises(ValueError, match=r"^velocity: "):
            compat.vecint(bad)
    for bad in (-1, 1.5, 31, None):
        with pytest.raises(ValueError, match=r"^steps: "):
            compat.vecint(torch.rand(1, 2, 4, 4), bad)
