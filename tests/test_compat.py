"""The seed package's numbers, against its formula in scalar loops; and the correct call, which differs."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch

import stn
from stn import compat

IDENTITY = torch.tensor([[1.0, 0, 0, 0, 1, 0]])


def random_case(size, out, batch=3, channels=2, spread=0.4):
    image = torch.randn(batch, *size, channels, dtype=torch.float64)
    return image, IDENTITY.double() + spread * torch.randn(batch, 6, dtype=torch.float64)


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (2, 3), (1, 4)])
@pytest.mark.parametrize("out", [None, (4, 9), (1, 1)])
def test_agrees_with_the_formula(size, out):
    image, theta = random_case(size, out)
    wanted = torch.from_numpy(oracle.seed_package(image.numpy(), theta.numpy(), out or size))
    result = compat.spatial_transformer_network(image, theta, out)
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-12)
    single = compat.spatial_transformer_network(image.float(), theta.float(), out)
    assert single.dtype == torch.float32
    # where a position lies on the cliff at the last row the two may stand on either side
    close = (single.double() - wanted).abs() < 1e-4
    assert float(close.double().mean()) > 0.98


def numpy_port(image, theta, out_dims):
    """The package's code, in its own order of operations, in float32."""
    batch, height, width, _ = image.shape
    x_t, y_t = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in reversed(out_dims)])
    grid = np.stack([x_t.ravel(), y_t.ravel(), np.ones(x_t.size, np.float32)])
    x, y = np.moveaxis((theta.reshape(batch, 2, 3) @ grid).reshape(batch, 2, *out_dims), 1, 0)
    x = 0.5 * ((x + 1.0) * np.float32(width - 1 - 1))
    y = 0.5 * ((y + 1.0) * np.float32(height - 1 - 1))
    x0, y0 = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    x0, x1 = np.clip(x0, 0, width - 1), np.clip(x0 + 1, 0, width - 1)
    y0, y1 = np.clip(y0, 0, height - 1), np.clip(y0 + 1, 0, height - 1)
    b = np.arange(batch)[:, None, None]
    corners = image[b, y0, x0], image[b, y1, x0], image[b, y0, x1], image[b, y1, x1]
    weights = (x1 - x) * (y1 - y), (x1 - x) * (y - y0), (x - x0) * (y1 - y), (x - x0) * (y - y0)
    return sum(w[..., None].astype(np.float32) * c for w, c in zip(weights, corners, strict=True))


def test_agrees_with_a_float32_port():
    rng = np.random.default_rng(1)
    image = rng.random((4, 9, 12, 3), dtype=np.float32)
    # a scale of 0.9 at most: away from the cliff at the last row
    theta = (np.array([0.6, 0.1, 0, -0.1, 0.6, 0]) + rng.uniform(-0.1, 0.1, (4, 6))).astype(np.float32)
    wanted = numpy_port(image, theta, (7, 8))
    result = compat.spatial_transformer_network(torch.from_numpy(image), torch.from_numpy(theta), (7, 8))
    np.testing.assert_allclose(result.numpy(), wanted, rtol=0, atol=2e-6)


def test_its_identity_is_not_the_identity_and_ours_is():
    row = torch.arange(5.0).expand(1, 5, 5)[..., None]
    assert compat.spatial_transformer_network(row, IDENTITY)[0, 0, :, 0].tolist() == [0, 0.75, 1.5, 2.25, 3]
    correct = stn.spatial_transformer_network(row, IDENTITY)
    torch.testing.assert_close(correct, row, rtol=0, atol=1e-6)


def test_the_last_row_and_column_come_out_as_zero():
    image = torch.ones(1, 6, 6, 1)
    zoom = torch.tensor([[1.25, 0, 0.0, 0, 1.25, 0]])  # 0.5 * (1.25 + 1) * 4 = 4.5 and -0.5: past the image's cliff
    out = compat.spatial_transformer_network(image, zoom)[0, :, :, 0]
    assert out[0].abs().max() == 0  # y = -0.5, outside
    assert out[3, 3] == 1
    shifted = compat.spatial_transformer_network(image, torch.tensor([[1.0, 0, 0.5, 0, 1, 0]]))
    assert shifted[0, 2, -1, 0] == 0  # x = 5 = W - 1: the last column itself, but zero
    assert shifted[0, 2, -2, 0] > 0.99


def test_gradients():
    image, theta = random_case((4, 5), None, batch=1, spread=0.1)
    theta = theta * 0.83
    inputs = image.requires_grad_(), theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda i, t: compat.spatial_transformer_network(i, t, (3, 2)), inputs)


def test_theta_that_is_not_finite_gives_nan():
    image = torch.ones(2, 5, 5, 1)
    for value in (float("nan"), float("inf")):
        theta = IDENTITY.repeat(2, 1)
        theta[0, 2] = value
        out = compat.spatial_transformer_network(image, theta)
        assert out[0].isnan().all()
        assert out[1].isfinite().all()


def test_half_precision_images_keep_float32_coordinates():
    image, theta = random_case((40, 30), None, batch=2)
    image, theta = image.bfloat16(), theta.float()
    out = compat.spatial_transformer_network(image, theta)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, compat.spatial_transformer_network(image.float(), theta).bfloat16())


def test_its_parts():
    grid = compat.affine_grid_generator(2, 3, IDENTITY)
    assert grid.shape == (1, 2, 2, 3)
    assert grid[0, 0].tolist() == [[-1, 0, 1], [-1, 0, 1]]
    assert grid[0, 1].tolist() == [[-1, -1, -1], [1, 1, 1]]
    image = torch.rand(1, 2, 3, 4)
    both = compat.bilinear_sampler(image, grid[:, 0], grid[:, 1])
    assert torch.equal(both, compat.spatial_transformer_network(image, IDENTITY))


def test_the_correct_call():
    """`stn.spatial_transformer_network` is `stn.warp` for channels-last images."""
    image, theta = random_case((6, 7), None)
    out = stn.spatial_transformer_network(
        image, theta, (4, 5), mode="bicubic", padding_mode="border", align_corners=True
    )
    wanted = stn.warp(
        image.movedim(-1, 1), theta.reshape(-1, 2, 3), (4, 5), mode="bicubic", padding_mode="border", align_corners=True
    )
    torch.testing.assert_close(out.movedim(-1, 1), wanted, rtol=0, atol=1e-14)
    old = compat.spatial_transformer_network(image, theta, (4, 5))
    assert float((out - old).abs().max()) > 0.1
