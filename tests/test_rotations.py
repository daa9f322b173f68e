"""Numbers for rotations, and back: the group, half turns, and derivatives where the angle vanishes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import stn
from stn.transforms.rotations import Angle, AxisAngle, SixD, product

KINDS = {"angle": Angle(), "axis-angle": AxisAngle(), "6d": SixD()}
every_kind = pytest.mark.parametrize("kind", KINDS)
LENGTHS = [0.0, 1e-12, 1e-7, 1e-6, 1e-3, 0.0316, 0.0317, 0.5, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-7, math.pi - 1e-10]


def directions(n=20, dtype=torch.float64):
    """Unit vectors, the axes among them."""
    return torch.nn.functional.normalize(torch.cat([torch.eye(3), -torch.eye(3), torch.randn(n, 3)]).to(dtype), dim=1)


def numbers(kind, batch=30, dtype=torch.float64):
    if kind == "angle":
        return 2 * math.pi * torch.rand(batch, 1, dtype=dtype) - math.pi
    return 1.5 * torch.randn(batch, KINDS[kind].n, dtype=dtype)


def assert_rotations(matrix, atol=1e-14):
    d = matrix.shape[1]
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(d).to(matrix).expand_as(matrix), rtol=0, atol=atol)
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones_like(matrix[:, 0, 0]), rtol=0, atol=atol)


@every_kind
def test_matrices_are_rotations(kind):
    assert_rotations(KINDS[kind].matrix(numbers(kind)))
    assert_rotations(KINDS[kind].matrix(numbers(kind, dtype=torch.float32)), atol=1e-6)


@every_kind
def test_the_identity(kind):
    rotations = KINDS[kind]
    identity = torch.tensor([rotations.identity()])
    assert identity.shape == (1, rotations.n)
    matrix = rotations.matrix(identity)
    assert torch.equal(matrix, torch.eye(matrix.shape[1])[None])
    assert torch.equal(rotations.from_matrix(matrix), identity)


@every_kind
def test_inverse_and_compose(kind):
    rotations, a, b = KINDS[kind], numbers(kind), numbers(kind)
    inverse = rotations.matrix(rotations.inverse(a))
    torch.testing.assert_close(inverse, rotations.matrix(a).mT, rtol=0, atol=1e-14)
    both = rotations.matrix(rotations.compose(a, b))
    torch.testing.assert_close(both, rotations.matrix(a) @ rotations.matrix(b), rtol=0, atol=1e-14)
    assert (both - rotations.matrix(b) @ rotations.matrix(a)).abs().max() > (0.1 if kind != "angle" else -1)
    torch.testing.assert_close(product(rotations.matrix(a), rotations.matrix(b)), both, rtol=0, atol=1e-14)


def test_angles_in_2d():
    angle = torch.tensor([[0.3], [-2.0], [math.pi / 2]], dtype=torch.float64)
    matrix = Angle().matrix(angle)
    assert matrix[0].tolist() == [[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]]
    torch.testing.assert_close(matrix[2] @ torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double())
    torch.testing.assert_close(Angle().from_matrix(matrix), angle, rtol=0, atol=1e-15)
    torch.testing.assert_close(Angle().from_matrix(2.5 * matrix), angle, rtol=0, atol=1e-15)


# Rotation vectors


@pytest.mark.parametrize("length", LENGTHS)
def test_rotation_vectors_come_back(length):
    vector = length * directions()
    matrix = AxisAngle().matrix(vector)
    assert_rotations(matrix)
    torch.testing.assert_close(AxisAngle().from_matrix(matrix), vector, rtol=1e-12, atol=3e-15)
    # in float32 an axis is good to a few roundings, wherever
    single = AxisAngle().from_matrix(AxisAngle().matrix(vector.float())).double()
    flipped = torch.where(((single - vector).norm(dim=1) > 1)[:, None], -single, single)  # at pi within float32
    torch.testing.assert_close(flipped, vector, rtol=1e-5, atol=1e-6)


def test_rotation_vectors_are_those_of_scipy():
    scipy = pytest.importorskip("scipy.spatial.transform", reason="SciPy is not installed")
    for length in LENGTHS:
        vector = length * directions()
        theirs = scipy.Rotation.from_rotvec(vector.numpy())
        wanted = torch.from_numpy(theirs.as_matrix())
        torch.testing.assert_close(AxisAngle().matrix(vector), wanted, rtol=0, atol=1e-14)
        back = torch.from_numpy(scipy.Rotation.from_matrix(wanted.numpy()).as_rotvec())
        torch.testing.assert_close(AxisAngle().from_matrix(wanted), back, rtol=1e-12, atol=1e-14)


def test_longer_vectors_come_back_shorter():
    """By whole turns: the matrix is the same, the vector no longer than pi."""
    vector = 6 * directions()
    matrix = AxisAngle().matrix(vector)
    back = AxisAngle().from_matrix(matrix)
    assert back.norm(dim=1).max() <= math.pi
    torch.testing.assert_close(AxisAngle().matrix(back), matrix, rtol=0, atol=1e-13)
    torch.testing.assert_close(back, vector * (1 - 2 * math.pi / 6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("signs", [(1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_turns_about_the_axes(signs, dtype):
    matrix = torch.diag(torch.tensor(signs, dtype=dtype))[None]
    vector = AxisAngle().from_matrix(matrix)
    wanted = math.pi * (torch.tensor([signs]) > 0).to(dtype)
    torch.testing.assert_close(vector.abs(), wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-15)


def test_half_turns_about_any_axis():
    axis = directions(50)
    matrix = 2 * axis[:, :, None] * axis[:, None, :] - torch.eye(3, dtype=torch.float64)
    vector = AxisAngle().from_matrix(matrix)
    torch.testing.assert_close(vector.norm(dim=1), torch.full((56,), math.pi, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        (vector * axis).sum(1).abs(), torch.full((56,), math.pi, dtype=torch.float64), rtol=0, atol=1e-13
    )


def test_an_axis_along_z_turns_as_in_2d():
    vector = torch.tensor([[0.0, 0.0, 0.7]], dtype=torch.float64)
    matrix = AxisAngle().matrix(vector)
    torch.testing.assert_close(matrix[:, :2, :2], Angle().matrix(vector[:, 2:]), rtol=0, atol=1e-15)
    flat = stn.Rotation().matrix(vector[:, 2:], stn.Frame((20, 12)))
    deep = stn.Rotation(3).matrix(vector, stn.Frame((5, 20, 12)))
    torch.testing.assert_close(deep[:, :2, :2], flat[:, :, :2], rtol=0, atol=1e-15)


@pytest.mark.parametrize("length", [0.0, 1e-8, 1e-3, 0.0316, 0.0317, 1.0, 3.0])
def test_derivatives_of_rotation_vectors(length):
    """At no turn and where the series ends."""
    vector = (length * directions(0)[3:5] + torch.tensor([0.0, 0.0, 0.1 * length]).double()).requires_grad_()
    assert gradcheck(AxisAngle().matrix, (vector,), atol=1e-8)
    assert gradgradcheck(AxisAngle().matrix, (vector,), atol=1e-7)
    assert gradcheck(lambda v: AxisAngle().from_matrix(AxisAngle().matrix(v)), (vector,), atol=1e-7)


def test_the_series_joins_the_formula():
    """To the last digits, derivatives too: each side of where one takes over."""
    near, far = (torch.tensor([[0.0, math.sqrt(1e-3) * (1 + e), 0.0]], dtype=torch.float64) for e in (-1e-9, 1e-9))
    for order in range(3):
        function = AxisAngle().matrix
        for _ in range(order):
            function = torch.func.jacrev(function)
        torch.testing.assert_close(function(near), function(far), rtol=0, atol=(1e-9, 1e-9, 1e-8)[order])


def test_second_derivatives_at_no_turn():
    """R = 1 + [v] + [v]^2 / 2 + ...: the curvature along x is -1 on y and z."""
    hessian = torch.func.jacfwd(torch.func.jacrev(AxisAngle().matrix))(torch.zeros(1, 3, dtype=torch.float64))
    along_x = hessian[0, :, :, 0, 0, 0, 0]
    torch.testing.assert_close(along_x, torch.diag(torch.tensor([0.0, -1.0, -1.0])).double(), rtol=0, atol=1e-15)


# Six numbers


def test_six_numbers_are_made_orthonormal():
    """The first vector keeps its direction, the second its side of it."""
    turn = numbers("6d")
    matrix = SixD().matrix(turn)
    torch.testing.assert_close(matrix[:, :, 0], torch.nn.functional.normalize(turn[:, :3], dim=1))
    assert ((matrix[:, :, 1] * turn[:, 3:]).sum(1) > 0).all()
    torch.testing.assert_close(torch.linalg.cross(matrix[:, :, 0], matrix[:, :, 1]), matrix[:, :, 2])
    q, r = torch.linalg.qr(turn.reshape(-1, 2, 3).mT)
    signed = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    torch.testing.assert_close(matrix[:, :, :2], signed, rtol=0, atol=1e-12)


def test_six_numbers_come_back_from_the_matrix():
    matrix = SixD().matrix(numbers("6d"))
    turn = SixD().from_matrix(matrix)
    assert torch.equal(turn[:, :3], matrix[:, :, 0])
    torch.testing.assert_close(SixD().matrix(turn), matrix, rtol=0, atol=1e-15)
    # half turns too, where rotation vectors jump
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()[None]
    torch.testing.assert_close(SixD().matrix(SixD().from_matrix(half)), half, rtol=0, atol=1e-15)


def test_derivatives_of_six_numbers():
    turn = torch.cat([torch.tensor([SixD().identity()]).double(), numbers("6d", 2)]).requires_grad_()
    assert gradcheck(SixD().matrix, (turn,))
    assert gradgradcheck(SixD().matrix, (turn,))
    assert gradcheck(SixD().inverse, (turn,))


# In the families


@pytest.mark.parametrize("rotation", ["axis-angle", "6d"])
@pytest.mark.parametrize("family", [stn.Rotation, stn.Rigid, stn.Similarity])
def test_families_carry_them_through_an_image_that_is_no_cube(family, rotation):
    transform = family(3, rotation=rotation)
    theta = transform.identity().double() + 0.5 * torch.randn(4, transform.num_params, dtype=torch.float64)
    seen = stn.Frame((8, 20, 12))
    matrix = transform.matrix(theta, seen)
    torch.testing.assert_close(transform.matrix(transform.from_matrix(matrix, seen), seen), matrix)
    pixels = matrix[:, :, :3] * torch.tensor([12.0, 20.0, 8.0])[:, None] / torch.tensor([12.0, 20.0, 8.0])
    scale = torch.linalg.det(pixels) ** (1 / 3)
    assert_rotations(pixels / scale[:, None, None], atol=1e-13)


def test_float32_loses_few_digits():
    vector = 3 * torch.rand(500, 3) - 1.5
    torch.testing.assert_close(
        AxisAngle().matrix(vector).double(), AxisAngle().matrix(vector.double()), rtol=0, atol=4e-7
    )
    back = AxisAngle().from_matrix(AxisAngle().matrix(vector))
    torch.testing.assert_close(back, vector, rtol=0, atol=3e-6)


@every_kind
def test_autocast_changes_nothing(kind):
    a, b = numbers(kind, dtype=torch.float32), numbers(kind, dtype=torch.float32)
    wanted = KINDS[kind].matrix(KINDS[kind].compose(a, b))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(KINDS[kind].matrix(KINDS[kind].compose(a, b)), wanted)


@every_kind
def test_empty_batches(kind):
    rotations = KINDS[kind]
    matrix = rotations.matrix(torch.zeros(0, rotations.n))
    assert rotations.from_matrix(matrix).shape == (0, rotations.n)
    assert rotations.compose(torch.zeros(0, rotations.n), torch.zeros(0, rotations.n)).shape == (0, rotations.n)
