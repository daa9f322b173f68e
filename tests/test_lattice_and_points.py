"""A lattice of its own for the output, and thin plate splines whose theta is the points."""

from __future__ import annotations

import pytest
import torch

import stn

FAMILIES = [None, stn.Affine(), stn.Projective(), stn.ThinPlateSpline((3, 3)), stn.DisplacementField((3, 3))]


@pytest.mark.parametrize("transform", FAMILIES, ids=str)
@pytest.mark.parametrize("sampler", [False, True])
def test_a_lattice_of_its_own(sampler, transform):
    image = torch.rand(2, 3, 9, 12, dtype=torch.float64)
    family = transform or stn.Affine()
    theta = family.identity().double() + 0.1 * torch.randn(2, family.num_params, dtype=torch.float64)
    given = theta.unflatten(1, (2, 3)) if transform is None else theta
    for lattice in (False, True):
        options = {"transform": transform, "align_corners": sampler, "lattice_align_corners": lattice}
        grid = family.grid(theta, (5, 7), stn.Frame((9, 12), lattice))
        wanted = stn.sample(image, grid, align_corners=sampler)
        torch.testing.assert_close(stn.warp(image, given, (5, 7), **options), wanted, rtol=0, atol=1e-12)
        small = stn.warp(image, given, (2, 2), antialias=True, **options)
        grid = family.grid(theta, (2, 2), stn.Frame((9, 12), lattice))
        assert (small - stn.sample(image, grid, align_corners=sampler)).abs().max() > 0.01
    plain = {"transform": transform, "align_corners": sampler}
    torch.testing.assert_close(
        stn.warp(image, given, (5, 7), lattice_align_corners=sampler, **plain), stn.warp(image, given, (5, 7), **plain)
    )


@pytest.mark.parametrize("lattice", [False, True])
@pytest.mark.parametrize("sampler", [False, True])
def test_antialiased_with_a_lattice_of_its_own(sampler, lattice):
    """Against the differences of the grid itself, which are exact for an affine map."""
    image = torch.rand(1, 1, 40, 30, dtype=torch.float64)
    theta = torch.eye(2, 3, dtype=torch.float64)[None]
    grid = stn.transforms.affine_grid(theta, (7, 5), align_corners=lattice)
    got = stn.warp(image, theta, (7, 5), antialias=True, align_corners=sampler, lattice_align_corners=lattice)
    torch.testing.assert_close(got, stn.sample(image, grid, antialias=True, align_corners=sampler), rtol=0, atol=1e-10)


def test_the_lattice_is_checked():
    with pytest.raises(ValueError, match=r"^lattice_align_corners: expected True or False"):
        stn.warp(torch.rand(1, 1, 4, 4), torch.eye(2, 3)[None], lattice_align_corners=1)


@pytest.mark.parametrize("max_offset", [None, 0.5])
@pytest.mark.parametrize("points", [(3, 4), (2, 2, 3), torch.rand(7, 2) * 1.6 - 0.8], ids=["2D", "3D", "free"])
def test_theta_is_points(points, max_offset):
    shifts = stn.ThinPlateSpline(points, max_offset=max_offset)
    family = stn.ThinPlateSpline(points, max_offset=max_offset, theta_is="points")
    d, control = shifts.ndim, shifts.control_points
    torch.testing.assert_close(family.identity(), control.flatten().float())
    theta = 0.2 * torch.randn(2, shifts.num_params, dtype=torch.float64)
    at = torch.rand(2, 5, d, dtype=torch.float64)
    wanted = shifts.map_points(theta, at)
    told = theta + control.flatten()
    torch.testing.assert_close(family.map_points(told, at), wanted, rtol=0, atol=1e-12)
    size = (3, 4, 5)[:d]
    torch.testing.assert_close(family.grid(told, size), shifts.grid(theta, size), rtol=0, atol=1e-12)
    torch.testing.assert_close(family.bending_energy(told), shifts.bending_energy(theta), rtol=0, atol=1e-9)
    assert family.map_points(told.float(), at).dtype == family.grid(told.float(), size).dtype == torch.float32
    assert family.bending_energy(told.float()).dtype == torch.float32
    # the points that are read come back as theta
    read = family.map_points(told, control[None].expand(2, -1, -1))
    torch.testing.assert_close(family.from_points(read), told, rtol=0, atol=1e-9)
    image = torch.rand(2, 1, *size)
    still = stn.warp(image, family.identity()[None], transform=family)
    torch.testing.assert_close(still, image, rtol=0, atol=1e-5)


def test_theta_is_points_converts_trains_and_shows():
    family = stn.ThinPlateSpline((3, 3), theta_is="points")
    turn = torch.tensor([[0.3]])
    theta = stn.convert(turn, stn.Rotation(), family)
    at = torch.rand(1, 4, 2)
    torch.testing.assert_close(family.map_points(theta, at), stn.Rotation().map_points(turn, at))
    assert "theta_is='points'" in repr(family)
    network = stn.SpatialTransformer(stn.FCLocalizer(64, family), family)
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(network(image), image, rtol=0, atol=1e-5)  # a new one changes nothing
    for bad in ("offsets", None):
        with pytest.raises(ValueError, match=r"^theta_is: "):
            stn.ThinPlateSpline(theta_is=bad)
