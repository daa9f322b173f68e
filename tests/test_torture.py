"""Samples of the campaigns in `torture`, and that each of them can fail."""

from __future__ import annotations

import contextlib
import io
import itertools

import numpy as np
import oracle
import pytest
import torch
from torture import fuzz, kill
from torture import truth as T

import stn

# The truth of the fuzz


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", oracle.PADDING_MODES)
@pytest.mark.parametrize("mode", oracle.MODES)
def test_the_truth_is_the_oracle(mode, padding_mode, align_corners):
    rng = np.random.default_rng(0)
    for in_size in ((1,), (4,), (1, 3), (4, 5), (2, 1, 3)):
        image = rng.standard_normal((2, 2, *in_size))
        size = (3, 2, 2)[: len(in_size)]
        fill = np.array([0.5, -2.0]) if padding_mode == "constant" else np.zeros(2)
        grid = rng.uniform(-2.5, 2.5, (2, *size, len(in_size)))
        grid[0, ..., 0] = np.linspace(-1.5, 1.5, size[-1])  # ties and pixels too
        theta = np.eye(len(in_size), len(in_size) + 1) + 0.5 * rng.standard_normal((2, len(in_size), len(in_size) + 1))
        for kind, coords in (("grid", grid), ("affine", theta)):
            found = T.Problem(image, coords, kind, size, mode, padding_mode, fill, align_corners).forward().out
            where = coords if kind == "grid" else oracle.affine_grid(theta, size, align_corners)
            wanted = oracle.sample(image, where, mode, padding_mode, align_corners, fill)
            np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-12)


@pytest.mark.parametrize("kind", fuzz.KINDS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_gradients_of_the_truth_are_differences(mode, kind):
    rng = np.random.default_rng(1)
    for padding_mode, align_corners in itertools.product(oracle.PADDING_MODES, (False, True)):
        image, size, control = rng.standard_normal((2, 2, 4, 3)), (2, 3), (2, 2)
        coords = {
            "affine": np.eye(2, 3) + 0.4 * rng.standard_normal((2, 2, 3)),
            "projective": np.eye(3) + 0.1 * rng.standard_normal((2, 3, 3)),
            "basis": 0.3 * rng.standard_normal((2, 8)),
            "grid": rng.uniform(-1.4, 1.4, (2, 2, 3, 2)),
        }[kind]
        g = rng.standard_normal((2, 2, 6))
        rest = (kind, size, mode, padding_mode, np.array([0.3, -1.0]), align_corners, control)

        def loss(image, coords, rest=rest, g=g):
            return (T.Problem(image, coords, *rest).forward().out * g).sum()

        problem = T.Problem(image, coords, *rest)
        problem.forward()
        of_image, of_coords, *_ = problem.backward(g)
        for values, gradient, function in (
            (image, of_image, lambda v, c=coords: loss(v, c)),
            (coords, of_coords, lambda v, i=image: loss(i, v)),
        ):
            for place in np.ndindex(values.shape):
                step = np.zeros_like(values)
                step[place] = 1e-6
                difference = (function(values + step) - function(values - step)) / 2e-6
                assert gradient[place] == pytest.approx(difference, abs=1e-7)


# Fuzz


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_sample_of_the_fuzz():
    cases, _, failures = fuzz.campaign(seed=0, first=0, cases=3000)
    assert not failures, failures[0]
    assert cases >= 3000


@pytest.mark.parametrize("fault", ["output", "image", "coords"])
def test_the_fuzz_sees_a_small_fault_and_says_how_to_see_it(fault, monkeypatch):
    real = stn.warp

    class Bent(torch.autograd.Function):
        """The identity; 0.1 % of the largest number is added to one number, or to one gradient."""

        @staticmethod
        def forward(ctx, x, ahead):
            return x + 1e-3 * x.abs().max() * (torch.arange(x.numel()) == 0).reshape(x.shape) if ahead else x.clone()

        @staticmethod
        def backward(ctx, g):
            return g + 1e-2 * g.abs().max() * (torch.arange(g.numel()) == 0).reshape(g.shape), None

    def bent(image, theta, *args, **options):
        if fault == "output":
            out = real(image, theta, *args, **options)
            return out + 3e-3 * out.detach().nan_to_num(0, 0, 0).abs().max() if out.dtype == torch.float32 else out
        if fault == "image" and image.requires_grad:
            image = Bent.apply(image, False)
        if fault == "coords" and theta.requires_grad:
            theta = Bent.apply(theta, False)
        return real(image, theta, *args, **options)

    monkeypatch.setattr(stn, "warp", bent)
    _, _, failures = fuzz.campaign(seed=0, first=0, cases=1000, only=["reference"], stop_after=3)
    assert len(failures) == 3
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(failures[0], {})
    assert "tensor" in shown.getvalue()


# Kill -9


@pytest.mark.slow
def test_a_few_kills():
    assert kill.campaign(times=4, seed=0, say=lambda _: None) == []


def test_what_is_half_written_is_seen(tmp_path):
    (tmp_path / "whole.json").write_text("{}")
    (tmp_path / "cut.json").write_text('{"a": ')
    (tmp_path / "cut.html").write_text("<html>")
    (tmp_path / "cut.npz").write_bytes(b"PK")
    (tmp_path / ".cut.json").write_text("{")  # a temporary file, of which nobody reads
    assert [line.split(":")[0].rsplit("/")[-1] for line in kill.half_written(tmp_path)] == [
        "cut.html",
        "cut.json",
        "cut.npz",
    ]
