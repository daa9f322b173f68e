"""Samples of the campaigns in `torture`, and that each of them can fail."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import pickle
import struct
import sys

import numpy as np
import oracle
import pytest
import torch
from torture import disk, flips, fuzz, kill, memory
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


# Byte flips


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    return flips.a_run(tmp_path_factory.mktemp("flips") / "run")


@pytest.mark.parametrize("name", flips.READERS)
def test_a_flipped_bit_in_a_run_is_refused_or_harmless(small_run, name, monkeypatch):
    monkeypatch.setattr(flips, "EVERY_BYTE", 0)
    (outcome,) = flips.flip_run(small_run, [name], some=60, seed=0)
    assert not outcome.faults, f"{outcome}; {outcome.faults[0]}"


def test_flips_are_told_apart(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"guarded")

    def read():
        content = file.read_bytes()
        if content[1:2] != b"u":
            raise ValueError(f"{file}: damaged")
        if content[2:3] != b"a":
            raise ValueError("damaged")
        if content[3:4] != b"r":
            raise KeyError("r")
        return content[4:]

    outcome = flips.flip_file(file, read, some=7, seed=0)
    assert outcome.counts == {
        "harmless": 1,
        "refused": 1,
        "refused without the file's name (ValueError)": 1,
        "an error of another kind (KeyError)": 1,
        "accepted with another result": 3,
    }
    assert len(outcome.faults) == 5
    assert file.read_bytes() == b"guarded"


MNIST = {  # name -> official md5, number of axes
    "train-images-idx3-ubyte.gz": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", 3),
    "train-labels-idx1-ubyte.gz": ("d53e105ee54ea40749a09fcbcd1e9432", 1),
    "t10k-images-idx3-ubyte.gz": ("9fb629c4189551a2d022fa330f9573f3", 3),
    "t10k-labels-idx1-ubyte.gz": ("ec29112dd5afa0611ce80d1b7f02629c", 1),
}
CIFAR = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}


def _made_official(monkeypatch, made):
    """The checksums of files that a test has made, reported as the official ones."""
    official = {hashlib.md5(content).hexdigest(): md5 for content, md5 in made}

    def file_hash(path, alg):
        with open(path, "rb") as file:
            found = hashlib.md5(file.read()).hexdigest()
        return official.get(found, found)

    monkeypatch.setattr("pooch.file_hash", file_hash)


def test_a_flipped_bit_in_mnist_is_refused(tmp_path, monkeypatch):
    from stn_recipes.data.registry import load

    rng, made = np.random.default_rng(0), []
    for name, (md5, axes) in MNIST.items():
        shape = (20, 28, 28)[:axes]
        numbers = rng.integers(0, 10, shape, dtype=np.uint8).tobytes()
        made.append((gzip.compress(struct.pack(">HBB", 0, 8, axes) + struct.pack(f">{axes}I", *shape) + numbers), md5))
        (tmp_path / name).write_bytes(made[-1][0])
    _made_official(monkeypatch, made)

    def read():
        train, test = load("mnist", tmp_path)
        return [train.images, train.labels, test.images, test.labels]

    for name in MNIST:
        outcome = flips.flip_file(tmp_path / name, read, some=40, seed=0)
        assert set(outcome.counts) == {"refused"}, outcome


def test_a_flipped_bit_in_cifar_is_refused(tmp_path, monkeypatch):
    from stn_recipes.data.registry import load

    rng, made = np.random.default_rng(0), []
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name, md5 in CIFAR.items():
        batch = {"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": [0, 1]}
        content = {"label_names": list("abcdefghij")} if name == "batches.meta" else batch
        made.append((pickle.dumps(content, protocol=4), md5))
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(made[-1][0])
    _made_official(monkeypatch, made)

    def read():
        train, test = load("cifar10", tmp_path)
        return [train.images, train.labels, test.images, test.labels]

    for name in ("data_batch_2", "test_batch", "batches.meta"):
        outcome = flips.flip_file(tmp_path / "cifar-10-batches-py" / name, read, some=40, seed=0)
        assert set(outcome.counts) == {"refused"}, outcome


# A full disk


@pytest.mark.slow
@pytest.mark.skipif(disk.refused() is not None, reason=str(disk.refused()))
def test_a_few_full_disks():
    assert disk.campaign(times=3, seed=0, say=lambda _: None) == []


# Memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
@pytest.mark.parametrize("backend", [None, *fuzz.available()])
def test_small_warps_keep_no_memory(backend):
    assert memory.in_a_child(memory.growth_over_calls, 2000, backend) < memory.SLACK


@linux
def test_memory_that_is_kept_is_seen(monkeypatch):
    kept = []
    real = stn.warp

    def leaking(image, *args, **options):
        kept.append(bytearray(b"x" * 4096))
        return real(image, *args, **options)

    monkeypatch.setattr(stn, "warp", leaking)
    assert memory.in_a_child(memory.growth_over_calls, 2000, "reference") > memory.SLACK


@linux
@pytest.mark.slow
def test_epochs_keep_no_memory():
    assert memory.in_a_child(memory.growth_over_epochs, 12) < memory.SLACK_OF_EPOCHS


@linux
@pytest.mark.parametrize("what", ["output", "gradient"])
@pytest.mark.parametrize("backend", fuzz.available())
def test_an_allocation_that_fails_raises_and_leaves_nothing_behind(backend, what):
    said = memory.in_a_child(memory.failed_allocation, backend, what)
    assert said.startswith("raised: ")
    assert "alloc" in said
