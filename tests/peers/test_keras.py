"""Keras 3 on torch: output -> input pixels, output of the input's size, the fill blended per tap as ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stn
from stn import conventions as frame

from . import agree, normal, pixel_map, warped

SIZE = (7, 10)
MODES = {
    "constant": {"padding_mode": "constant", "fill": 0.7},
    "nearest": {"padding_mode": "border"},
    "reflect": {"padding_mode": "reflection"},
    "wrap": {"padding_mode": "circular"},
}


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))  # importing writes a file there
        keras = pytest.importorskip("keras", minversion="3.0", reason="Keras 3 is not installed")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras was loaded before, with another backend")
    return keras


def numbers(function, image, *arguments, **options):
    """The function on one grey image. It overwrites its arguments, so they are copies."""
    arguments = [torch.tensor(a)[None] for a in arguments]
    return function(torch.tensor(image)[None, None], *arguments, data_format="channels_first", **options)[0, 0]


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("mode", MODES)
def test_affine_transform(keras, mode, interpolation):
    image, matrix = normal(*SIZE), pixel_map(2)
    eight = np.append(matrix.ravel(), [0, 0])
    options = {"interpolation": interpolation, "fill_mode": mode, "fill_value": 0.7}
    wanted = numbers(keras.ops.image.affine_transform, image, eight, **options)
    agree(warped(image, eight[:6].reshape(2, 3), SIZE, mode=interpolation, **MODES[mode]), wanted)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_perspective_transform(keras, interpolation):
    """Where the end points are the image's corners, the start points are those of `Corners`."""
    if not hasattr(keras.ops.image, "perspective_transform"):
        pytest.skip("this Keras has no perspective_transform")
    image, family = normal(*SIZE), stn.Corners()
    shift = 0.25 * torch.randn(1, 8, dtype=torch.float64)
    start = frame.normalized_to_pixel(family.corners(shift), SIZE)[0].numpy()
    end = frame.normalized_to_pixel(family.corners(0 * shift), SIZE)[0].numpy()
    wanted = numbers(
        keras.ops.image.perspective_transform, image, start, end, interpolation=interpolation, fill_value=0.7
    )
    out = stn.warp(
        torch.from_numpy(image)[None, None],
        shift,
        transform=family,
        mode=interpolation,
        padding_mode="constant",
        fill=0.7,
    )
    agree(out[0, 0], wanted, atol=1e-5)  # it solves for its matrix in float32
