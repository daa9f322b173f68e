"""OpenCV. Its bilinear weights for float64 come from a table of 32 steps a pixel (in 4.x for all types), so positions
on multiples of 1/32 agree to rounding, and others to what a 64th of a pixel makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stn
from stn import conventions as frame

from . import agree, normal, pixel_map, uniform, warped

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")

IN, OUT = (7, 10), (6, 8)
MODES = {cv2.INTER_LINEAR: "bilinear", cv2.INTER_NEAREST: "nearest"}
BORDERS = {
    cv2.BORDER_CONSTANT: {"padding_mode": "constant", "fill": 0.7},
    cv2.BORDER_REPLICATE: {"padding_mode": "border"},
    cv2.BORDER_REFLECT: {"padding_mode": "reflection"},
    cv2.BORDER_REFLECT_101: {"padding_mode": "reflection", "align_corners": True},
    cv2.BORDER_WRAP: {"padding_mode": "circular"},
}
# Even 32nds and an odd one: never halfway between two pixels, where `nearest` may go either way.
AFFINE = np.array([[36, -8, 49], [10, 26, -71]]) / 32
# Output -> input with denominators of 1 and 2, or of 1 and 4, at every pixel of a small output.
PERSPECTIVES = [
    ((6, 2), np.array([[96, 6, 34], [-4, 36, 18], [16, 0, 16]]) / 16),
    ((2, 8), np.array([[8, 12, 12], [2, 36, -4], [0, 24, 8]]) / 8),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("direction", ["pull", "push"])
def test_warp_affine(direction, border, mode):
    image = normal(*IN)
    matrix, flags = AFFINE, mode | cv2.WARP_INVERSE_MAP
    if direction == "push":
        matrix, flags = np.linalg.inv(np.vstack([AFFINE, [0, 0, 1]]))[:2], mode
    wanted = cv2.warpAffine(image, matrix, OUT[::-1], flags=flags, borderMode=border, borderValue=0.7)
    agree(warped(image, matrix, OUT, direction=direction, mode=MODES[mode], **BORDERS[border]), wanted)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("direction", ["pull", "push"])
@pytest.mark.parametrize("case", [0, 1])
def test_warp_perspective(case, direction, border):
    size, matrix = PERSPECTIVES[case]
    image, flags = normal(*IN), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if direction == "push":
        matrix, flags = np.linalg.inv(matrix), cv2.INTER_LINEAR
    wanted = cv2.warpPerspective(image, matrix, size[::-1], flags=flags, borderMode=border, borderValue=0.7)
    agree(warped(image, matrix, size, direction=direction, **BORDERS[border]), wanted)


@pytest.mark.parametrize("projective", [False, True], ids=["affine", "projective"])
@pytest.mark.parametrize("direction", ["pull", "push"])
def test_any_matrix(direction, projective):
    """On a ramp the value is the position, so the error is the table's: 1/64 on each axis, and the rounding before it."""
    x, y = np.meshgrid(np.arange(40.0), np.arange(30.0))
    image, matrix = x + 2 * y, pixel_map(2, projective=projective)
    matrix[:2, 2] += 9 if direction == "pull" else -9  # read inside the image
    warp = cv2.warpPerspective if projective else cv2.warpAffine
    flags = cv2.INTER_LINEAR | (cv2.WARP_INVERSE_MAP if direction == "pull" else 0)
    wanted = warp(image, matrix, OUT[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    agree(warped(image, matrix, OUT, direction=direction, padding_mode="border"), wanted, atol=(1 + 2) / 60)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("border", BORDERS)
def test_remap(border, mode):
    """Positions in pixels, x and y apart, in float32: 32nds are exact there, and odd ones are no ties."""
    image = normal(*IN)
    x, y = np.floor(uniform(-100, 250, (2, *OUT))) / 16 + 1 / 32
    wanted = cv2.remap(image, np.float32(x), np.float32(y), mode, borderMode=border, borderValue=0.7)
    options = BORDERS[border]
    points = torch.from_numpy(np.stack([x, y], -1))
    grid = frame.pixel_to_normalized(points, IN, align_corners=options.get("align_corners", False))[None]
    agree(stn.sample(torch.from_numpy(image)[None, None], grid, mode=MODES[mode], **options)[0, 0], wanted)


def test_get_perspective_transform():
    """Four points that go to the output's corners: `Corners`, by another road."""
    height, width = OUT
    shown = np.float32([[1.0, 0.5], [8.0, 0.25], [7.5, 6.0], [0.25, 5.0]])
    corners = np.float32([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
    matrix = torch.from_numpy(cv2.getPerspectiveTransform(shown, corners))[None]
    theta = frame.theta_from_pixel(matrix, IN, OUT, direction="push")
    family = stn.Corners()
    q = frame.pixel_to_normalized(torch.from_numpy(shown).double(), IN)
    shift = (q - family.corners(torch.zeros(1, 8).double())).flatten(1)
    torch.testing.assert_close(family.from_matrix(theta), shift, rtol=0, atol=1e-12)
    torch.testing.assert_close(theta / theta[:, 2:, 2:], family.matrix(shift), rtol=0, atol=1e-12)


def test_get_rotation_matrix():
    """A turn about the centre, counterclockwise on the screen: our angle, in degrees and pushed."""
    centre = ((IN[1] - 1) / 2, (IN[0] - 1) / 2)
    matrix = torch.from_numpy(cv2.getRotationMatrix2D(centre, 25.0, 1.0))[None]
    theta = frame.theta_from_pixel(matrix, IN, IN, direction="push")
    ours = stn.Rotation().matrix(torch.deg2rad(torch.tensor([[25.0]], dtype=torch.float64)), stn.Frame(IN))
    torch.testing.assert_close(theta, ours, rtol=0, atol=1e-12)


@pytest.mark.parametrize("direction", ["pull", "push"])
@pytest.mark.parametrize("border", BORDERS)
def test_what_lies_behind_the_horizon(border, direction):
    """A horizon between two columns of the output: OpenCV shows what lies behind it, and so does `behind="shown"`."""
    size, matrix = (4, 8), np.array([[64, 4, -96], [8, 48, -128], [16, 0, -40]]) / 16
    denominators = matrix[2, 0] * np.arange(size[1]) + matrix[2, 2]
    assert (denominators < 0).any()
    assert (denominators > 0).any()
    assert (denominators != 0).all()
    image, flags, given = normal(*IN), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, matrix
    if direction == "push":
        given, flags = np.linalg.inv(matrix), cv2.INTER_LINEAR
    wanted = cv2.warpPerspective(image, given, size[::-1], flags=flags, borderMode=border, borderValue=0.7)
    align_corners = BORDERS[border].get("align_corners", False)
    theta = frame.theta_from_pixel(
        torch.from_numpy(given)[None], IN, size, direction=direction, align_corners=align_corners
    )
    picture = torch.from_numpy(image)[None, None]
    # half a step of its table on each axis, times the steepest slope
    atol = (np.abs(np.diff(image)).max() + np.abs(np.diff(image, axis=0)).max()) / 64
    grid = stn.transforms.projective_grid(theta, size, align_corners=align_corners, behind="shown")
    agree(stn.sample(picture, grid, **BORDERS[border])[0, 0], wanted, atol=atol)
    family = stn.Projective(behind="shown")
    options = {"transform": family, **BORDERS[border]}
    out = stn.warp(picture, family.from_matrix(theta), size, **options)[0, 0]
    torch.testing.assert_close(out, stn.sample(picture, grid, **BORDERS[border])[0, 0], rtol=0, atol=1e-10)
