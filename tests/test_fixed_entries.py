"""Affine maps some of whose entries are fixed."""

from __future__ import annotations

import itertools

import pytest
import torch

import stn

SHEAR = [[1, None, 0], [0, 1, 0]]
SONNET = [[None, 0, 0], [0, None, None]]  # zeros that are constraints, which Sonnet drops


@pytest.mark.parametrize("mask", list(itertools.product([True, False], repeat=6))[:-1])
def test_every_pattern(mask):
    """Each set of free entries but none, with 0 and numbers that are not 0 among the fixed ones."""
    numbers = [0.0, 0.5, -2.0, 0.0, 1.0, 3.0]
    entries = [None if free else n for free, n in zip(mask, numbers, strict=True)]
    family = stn.Affine(fixed=[entries[:3], entries[3:]])
    theta = torch.randn(2, sum(mask), dtype=torch.float64, requires_grad=True)
    matrix = family.matrix(theta)
    flat, column = matrix.flatten(1), 0
    for i, entry in enumerate(entries):
        if entry is None:
            assert torch.equal(flat[:, i], theta[:, column])
            column += 1
        else:
            assert (flat[:, i] == entry).all()
    assert family.num_params == len(family.param_names) == len(family.identity()) == column
    torch.testing.assert_close(family.from_matrix(matrix), theta)
    (grad,) = torch.autograd.grad(matrix.sum(), theta)
    assert (grad == 1).all()
    torch.testing.assert_close(family.grid(theta, (3, 4)), stn.Affine().grid(flat, (3, 4)), rtol=0, atol=0)


@pytest.mark.parametrize("d", [1, 3])
def test_other_dimensions(d):
    fixed = [[0 if i != j else None for j in range(d + 1)] for i in range(d)]
    scales = stn.Affine(d, fixed=fixed)
    assert scales.num_params == d
    matrix = scales.matrix(torch.full((1, d), 2.0))[0]
    assert torch.equal(matrix, 2 * torch.eye(d, d + 1))


def test_names_identity_and_repr():
    family = stn.Affine(fixed=SONNET)
    assert family.param_names == ("x from x", "y from y", "shift y")
    assert family.identity().tolist() == [1.0, 1.0, 0.0]
    assert repr(family) == "Affine(fixed=[[None, 0, 0], [0, None, None]])"
    assert not family.closed
    assert stn.Affine().closed


def test_what_leaves_the_family_is_refused():
    family = stn.Affine(fixed=SHEAR, max_delta=2.0)
    theta = torch.tensor([[0.5]])
    torch.testing.assert_close(family.inverse(theta), -theta)
    torch.testing.assert_close(family.matrix(family.compose(theta, theta))[0, 0, 1], 2 * family.matrix(theta)[0, 0, 1])
    with pytest.raises(ValueError, match=r"matrix: expected maps with 0 in row 0, column 2.*got 0.25 at index 1"):
        family.from_matrix(torch.tensor([[[1.0, 0.1, 0.0], [0, 1, 0]], [[1.0, 0.1, 0.25], [0, 1, 0]]]))
    with pytest.raises(ValueError, match=r"^(matrix|target): "):
        stn.convert(torch.tensor([[0.3]]), stn.Rotation(), family)


def test_warps_trains_and_is_built_by_name():
    family = stn.transforms.by_name("affine", fixed=SHEAR)
    image = torch.rand(2, 1, 9, 8)
    network = stn.SpatialTransformer(stn.FCLocalizer(72, family), family)
    torch.testing.assert_close(network(image), image, rtol=0, atol=1e-5)
    theta = torch.tensor([[0.3], [-0.2]])
    wanted = stn.warp(image, family.matrix(theta))
    torch.testing.assert_close(stn.warp(image, theta, transform=family), wanted)
    run = torch.compile(lambda t: stn.warp(image, t, transform=family), fullgraph=True, backend="eager")
    torch.testing.assert_close(run(theta), wanted)


def test_what_is_refused():
    numbers = [[1, 0, 0], [0, 1, 0]]
    for bad in ("no", 3, numbers, [[None] * 3], [[None] * 2] * 2, [[None] * 3, 5], [[None, True, 0], [0, 0, 0]],
                [[None, float("nan"), 0], [0, 0, 0]], [[None, "0", 0], [0, 0, 0]]):  # fmt: skip
        with pytest.raises(ValueError, match=r"^fixed: expected "):
            stn.Affine(fixed=bad)
