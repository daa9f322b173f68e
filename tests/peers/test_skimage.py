"""scikit-image: `warp` takes the map from output to input pixels, as ours, in (x, y)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import stn
from stn import conventions as frame

from . import ATOL, agree, normal, pixel_map, uniform, warped

transform = pytest.importorskip("skimage.transform", reason="scikit-image is not installed")

IN, OUT = (7, 10), (6, 8)
ORDERS = {0: "nearest", 1: "bilinear"}
MODES = {
    "constant": {"padding_mode": "constant", "fill": 0.7},
    "edge": {"padding_mode": "border"},
    "symmetric": {"padding_mode": "reflection"},
    "reflect": {"padding_mode": "reflection", "align_corners": True},
    "wrap": {"padding_mode": "circular"},
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["affine", "projective"])
def test_warp(family, mode, order):
    image, matrix = normal(*IN), pixel_map(2, projective=True)
    if family == "affine":
        matrix[2] = [0, 0, 1]
    make = transform.AffineTransform if family == "affine" else transform.ProjectiveTransform
    options = {"output_shape": OUT, "order": order, "mode": mode, "cval": 0.7, "clip": False, "preserve_range": True}
    wanted = transform.warp(image, make(matrix), **options)
    agree(warped(image, make(matrix).params, OUT, mode=ORDERS[order], **MODES[mode]), wanted)
    # the way it is mostly written, with the map from input to output
    wanted = transform.warp(image, make(matrix).inverse, **options)
    agree(warped(image, matrix, OUT, direction="push", mode=ORDERS[order], **MODES[mode]), wanted)


@pytest.mark.parametrize("align_corners", [False, True])
def test_similarity(align_corners):
    """Its numbers turn about pixel 0, ours about the centres; the matrix is the same."""
    angle, scale, shift = 0.4, 1.3, np.array([0.2, -0.1])
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = np.array([(IN[1] - 1) / 2, (IN[0] - 1) / 2])
    pixels = shift * stn.geometry.extent(IN, align_corners=align_corners)
    peer = transform.SimilarityTransform(scale=scale, rotation=angle, translation=centre + pixels - turn @ centre)
    theta = torch.tensor([[angle, math.log(scale), *shift]], dtype=torch.float64)
    ours = stn.Similarity().matrix(theta, stn.Frame(IN, align_corners))
    matrix = torch.from_numpy(peer.params[None, :2].copy())
    converted = frame.theta_from_pixel(matrix, IN, IN, align_corners=align_corners)
    torch.testing.assert_close(converted, ours, rtol=0, atol=ATOL)


@pytest.mark.parametrize("mode", MODES)
def test_rotate(mode):
    """A picture turned counterclockwise: `Rotation`, in degrees, on an image that is not square."""
    image = normal(*IN)
    wanted = transform.rotate(image, 25, order=1, mode=mode, cval=0.7, clip=False, preserve_range=True)
    theta = torch.deg2rad(torch.tensor([[25.0]], dtype=torch.float64))
    out = stn.warp(torch.from_numpy(image)[None, None], theta, transform=stn.Rotation(), **MODES[mode])
    agree(out[0, 0], wanted)


def lattice_points(size):
    y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    return np.stack([x, y], -1).reshape(-1, 2)


def piecewise(points, moved):
    peer = transform.PiecewiseAffineTransform.from_estimate(points, moved)
    assert peer
    return peer


def test_piecewise_affine_and_displacement_field():
    """Affine in triangles there, bilinear in rectangles here: the same on the lattice's lines, and for an affine map
    everywhere."""
    family, nodes = stn.DisplacementField((4, 5)), lattice_points((4, 5))
    shifts = 0.2 * normal(*nodes.shape)
    theta = torch.from_numpy(shifts).reshape(1, -1)
    along, x, y = uniform(-0.999, 0.999, 20), np.linspace(-1, 1, 5), np.linspace(-1, 1, 4)
    # inner lines alone: at the border a rounding falls out of the triangles
    on_lines = [np.stack([along, np.resize(y[1:-1], 20)], 1), np.stack([np.resize(x[1:-1], 20), along], 1)]
    points = np.concatenate(on_lines)
    agree(family.map_points(theta, torch.from_numpy(points)[None])[0], piecewise(nodes, nodes + shifts)(points))

    linear = np.array([[1.1, 0.3], [-0.2, 0.9]])
    theta = torch.from_numpy(nodes @ linear.T - nodes).reshape(1, -1)
    points = uniform(-0.999, 0.999, (40, 2))
    agree(family.map_points(theta, torch.from_numpy(points)[None])[0], piecewise(nodes, nodes @ linear.T)(points))


def test_piecewise_affine_and_cpab_velocities():
    """The corners and the centre of one rectangle have a single triangulation, which is CPAB's."""
    family = stn.CPAB((1, 1), zero_boundary=False)
    theta = torch.randn(1, family.num_params, dtype=torch.float64)
    vertices = np.concatenate([lattice_points((2, 2)), [[0.0, 0.0]]])
    peer = piecewise(vertices, vertices + family.vertex_velocities(theta)[0].numpy())
    points = uniform(-0.99, 0.99, (40, 2))
    agree(points + family.velocity(theta, torch.from_numpy(points)[None])[0].numpy(), peer(points))
