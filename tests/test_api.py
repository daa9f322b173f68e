"""The public edge: which names there are, how they are called, what they refuse, and what an import pulls in."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

import stn
from stn import compat, conventions

PUBLIC = {
    "AbstractTransform", "Affine", "Attention", "Compose", "ConvLocalizer", "Crop", "Diagnosis", "FCLocalizer", "Rigid",
    "Rotation", "Similarity", "SpatialTransformer", "Translation", "Warp", "compat", "conventions",
    "diagnose", "identity_head", "models", "ops", "parameter_groups", "sample",
    "spatial_transformer_network", "transforms", "warp",
    "BSpline", "CPAB", "Corners", "DisplacementField", "IterativeTransformer", "ParallelTransformers", "Polar", "Projective",
    "RecurrentLocalizer", "SharedLocalizer", "ThinPlateSpline", "VelocityField", "convert", "kernels", "linearized_sample",
    "linearized_warp", "penalties", "register", "Registration", "splat", "splat_count", "testing", "thin_plate_spline", "valid_mask", "window_starts",
}  # fmt: skip

IMAGE = torch.rand(2, 3, 5, 6)
VOLUME = torch.rand(2, 3, 4, 5, 6)
THETA = torch.eye(2, 3).repeat(2, 1, 1)
GRID = torch.zeros(2, 4, 4, 2)
NOT_IMAGES = (
    IMAGE[0, 0], IMAGE[None, None], IMAGE.int(), IMAGE.bool(), IMAGE.to(torch.complex64), IMAGE[:, :, :0], IMAGE[..., :0],
    None, IMAGE.numpy(), [[1.0]], 3,
)  # fmt: skip
NOT_SIZES = ((4,), (4, 4, 4), (-1, 4), (2.0, 4), (True, 4), "44", 4, ("4", 4), (None, 4), torch.ones(2))


def refuses(argument, call, *nots):
    """`call(bad)` is a ValueError that begins with the argument's name, for each of `nots`."""
    for bad in nots:
        with pytest.raises(ValueError, match=rf"^{argument}: "):
            call(bad)


# Names and signatures


def test_the_public_names():
    """A new name is added here on purpose; a lost one breaks somebody."""
    assert set(stn.__all__) >= PUBLIC
    assert len(set(stn.__all__)) == len(stn.__all__)
    assert all(hasattr(stn, name) for name in stn.__all__)
    listed = {name for name in dir(stn) if not name.startswith("_") and not inspect.ismodule(getattr(stn, name))}
    assert listed <= set(stn.__all__)


POSITIONAL = {
    stn.sample: ["image", "grid"],
    stn.warp: ["image", "theta", "size"],
    stn.transforms.affine_grid: ["theta", "size"],
    stn.spatial_transformer_network: ["input_fmap", "theta", "out_dims"],
    compat.spatial_transformer_network: ["input_fmap", "theta", "out_dims"],
    compat.vecint: ["velocity", "steps"],
    compat.cpab_theta: ["cells", "transform"],
    stn.SpatialTransformer: ["localizer", "transform", "size"],
    stn.ParallelTransformers: ["localizer", "transform", "size"],
    stn.IterativeTransformer: ["localizer", "transform", "size"],
    stn.RecurrentLocalizer: ["encoder", "in_features", "transform"],
    stn.SharedLocalizer: ["features", "head"],
    stn.window_starts: ["transform", "lattice"],
    stn.linearized_sample: ["image", "grid"],
    stn.linearized_warp: ["image", "theta", "size"],
    stn.valid_mask: ["grid"],
    stn.splat: ["values", "grid", "size"],
    stn.splat_count: ["grid", "size"],
    stn.convert: ["theta", "source", "target"],
    stn.transforms.projective_grid: ["theta", "size"],
    stn.transforms.tps_grid: ["theta", "control_points", "size"],
    stn.thin_plate_spline: ["source", "target"],
    stn.Projective: ["ndim"], stn.Corners: [], stn.ThinPlateSpline: ["control_points"], stn.BSpline: ["lattice"],
    stn.DisplacementField: ["size"], stn.VelocityField: ["size"], stn.CPAB: ["tessellation"], stn.Polar: [],
    stn.kernels.Kernel: ["function", "radius", "normalize", "prefilter"], stn.kernels.cubic: ["a"],
    stn.kernels.lanczos: ["radius"], stn.kernels.bspline: ["order"],
    stn.penalties.Penalty: [],
    stn.ConvLocalizer: ["in_channels", "transform"],
    stn.FCLocalizer: ["in_features", "transform"],
    stn.identity_head: ["in_features", "transform"],
    stn.parameter_groups: ["model"],
    stn.diagnose: ["image", "warp"],
    stn.register: ["fixed", "moving", "transform"],
    stn.models.create: ["name"],
    stn.transforms.by_name: ["name"],
    stn.testing.check_transform: ["transform"],
    stn.Affine: ["ndim"], stn.Similarity: ["ndim"], stn.Rigid: ["ndim"], stn.Attention: ["ndim"],
    stn.Crop: ["ndim"], stn.Translation: ["ndim"], stn.Rotation: ["ndim"],
    stn.Compose: ["outer", "inner"],
    stn.geometry.extent: ["size"],
    stn.geometry.lattice: ["n"],
    conventions.pixel_to_normalized: ["points", "size"],
    conventions.normalized_to_pixel: ["points", "size"],
    conventions.theta_from_pixel: ["matrix", "in_size", "out_size"],
    conventions.theta_to_pixel: ["theta", "in_size", "out_size"],
    conventions.world_to_normalized: ["points", "world", "size"],
    conventions.normalized_to_world: ["points", "world", "size"],
    conventions.theta_from_world: ["matrix", "in_world", "in_size", "out_world", "out_size"],
    conventions.theta_to_world: ["theta", "in_world", "in_size", "out_world", "out_size"],
    conventions.spacing_of: ["world"],
    conventions.change_align_corners: ["theta", "in_size", "out_size"],
    stn.geometry.invert_matrix: ["matrix"],
    stn.geometry.compose_matrices: ["a", "b"],
}  # fmt: skip


@pytest.mark.parametrize("function", POSITIONAL, ids=lambda f: f.__name__)
def test_options_are_keyword_only(function):
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert positional == POSITIONAL[function]
    assert not [p.name for p in parameters if p.kind == p.VAR_POSITIONAL]


@pytest.mark.parametrize("function", [
    stn.sample, stn.warp, stn.transforms.affine_grid, stn.spatial_transformer_network, stn.transformer.AbstractTransformer,
    conventions.theta_from_pixel, stn.geometry.lattice, stn.geometry.extent,
])  # fmt: skip
def test_align_corners_is_false_everywhere(function):
    assert inspect.signature(function).parameters["align_corners"].default is False


def test_importing_needs_torch_and_numpy_alone():
    """What `import stn` adds to what `import torch, numpy` has loaded is the package and the standard library."""
    script = """
import sys
import numpy, torch
before = set(sys.modules)
import stn
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names) - {"stn", "torch", "numpy"}))
print(*sorted({"lightning", "matplotlib", "scipy", "torchvision", "PIL", "sklearn", "stn_recipes"} & set(sys.modules)))
print(sorted(name for name in sys.modules if name.startswith("stn.keras") or name == "stn.viz"))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["", "", "[]"]


def test_importing_leaves_no_trace():
    script = """
import torch
threads, dtype, state = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
import stn
assert (threads, dtype) == (torch.get_num_threads(), torch.get_default_dtype())
assert torch.equal(state, torch.get_rng_state())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# What is refused


def test_sample():
    refuses("image", lambda bad: stn.sample(bad, GRID), *NOT_IMAGES)
    refuses(
        "grid", lambda bad: stn.sample(IMAGE, bad),
        GRID[0], GRID[..., :1], GRID.long(), torch.zeros(3, 4, 4, 2), torch.zeros(2, 3, 4, 4, 3), None, 1.0,
        GRID.numpy(), GRID.to("meta"), torch.zeros(2, 4, 4, 3),
    )  # fmt: skip
    refuses("grid", lambda bad: stn.sample(VOLUME, bad), GRID, torch.zeros(2, 4, 4, 4, 2))


def test_warp():
    refuses("image", lambda bad: stn.warp(bad, THETA), *NOT_IMAGES)
    refuses("size", lambda bad: stn.warp(IMAGE, THETA, bad), *NOT_SIZES)
    refuses(
        "theta", lambda bad: stn.warp(IMAGE, bad),
        THETA[0], THETA[:, :1], THETA.long(), torch.eye(2, 3).repeat(3, 1, 1), torch.eye(3, 4)[None], None, "affine",
        THETA.reshape(2, 6), THETA.to("meta"), THETA.numpy(), THETA.to(torch.complex64), torch.eye(4)[None],
    )  # fmt: skip
    refuses("theta", lambda bad: stn.warp(VOLUME, bad), THETA, torch.eye(3, 4))
    flat = THETA.reshape(2, 6)
    refuses("theta", lambda bad: stn.warp(IMAGE, bad, transform=stn.Affine()), THETA, flat[:, :5], flat.int(), None)
    refuses("theta", lambda bad: stn.warp(IMAGE, bad, transform=stn.Affine()), flat.repeat(2, 1), flat.to("meta"))
    refuses("transform", lambda bad: stn.warp(IMAGE, flat, transform=bad), "affine", stn.Affine, 3)
    refuses("transform", lambda bad: stn.warp(VOLUME, flat, transform=bad), stn.Affine(), stn.Rotation() @ stn.Affine())
    with pytest.raises(ValueError, match=r"transform=, stn\.Affine\(\)"):
        stn.warp(IMAGE, flat)  # the message says what was probably meant


@pytest.mark.parametrize("call", [
    lambda **options: stn.sample(IMAGE, GRID, **options),
    lambda **options: stn.warp(IMAGE, THETA, **options),
    lambda **options: stn.warp(IMAGE, torch.zeros(2, 1), transform=stn.Rotation(), **options),
], ids=["sample", "warp", "family"])  # fmt: skip
def test_options(call):
    refuses("mode", lambda bad: call(mode=bad), "linear", "BILINEAR", None, 0)
    refuses("padding_mode", lambda bad: call(padding_mode=bad), "zero", None, True)
    refuses("align_corners", lambda bad: call(align_corners=bad), None, 1, "no")
    for given, nearest in (("bilinera", "bilinear"), ("cubic", "bicubic"), ("nearset", "nearest")):
        with pytest.raises(ValueError, match=f"mode: .*got '{given}'; did you mean '{nearest}'"):
            call(mode=given)
    for given, nearest in (("reflect", "reflection"), ("boarder", "border"), ("zero", "zeros"), ("circle", "circular")):
        with pytest.raises(ValueError, match=f"padding_mode: .*did you mean '{nearest}'"):
            call(padding_mode=given)
    refuses("fill", lambda bad: call(fill=bad), 1.0, [0.0], torch.zeros(3), None)  # with padding_mode="zeros"
    refuses(
        "fill", lambda bad: call(padding_mode="constant", fill=bad),
        (1.0, 2.0), torch.zeros(4), None, "black", [], 1j, torch.zeros(3, dtype=torch.complex64), torch.zeros(3).to("meta"),
    )  # fmt: skip


def test_affine_grid():
    refuses(
        "theta",
        lambda bad: stn.transforms.affine_grid(bad, (4, 4)),
        THETA[0],
        THETA.int(),
        None,
        torch.zeros(2, 6),
        torch.eye(3),
    )
    refuses("size", lambda bad: stn.transforms.affine_grid(THETA, bad), *NOT_SIZES)
    refuses("size", lambda bad: stn.transforms.affine_grid(torch.eye(3, 4)[None], bad), (4, 4))


def test_spatial_transformer_network():
    image, theta = torch.rand(2, 5, 6, 3), torch.zeros(2, 6)
    for function in (stn.spatial_transformer_network, compat.spatial_transformer_network):
        refuses(
            "input_fmap",
            lambda bad, f=function: f(bad, theta),
            image[0],
            image.int(),
            image[:, :0],
            None,
            image.numpy(),
        )
        refuses(
            "theta", lambda bad, f=function: f(image, bad), theta[:, :5], theta[0], theta.int(), None, torch.zeros(3, 6),
            theta.to("meta"), theta.reshape(2, 2, 3),
        )  # fmt: skip
    refuses("size", lambda bad: stn.spatial_transformer_network(image, theta, bad), (-1, 4), 4, (4, 4, 4))
    refuses("out_dims", lambda bad: compat.spatial_transformer_network(image, theta, bad), (0, 4), 4, (4, 4, 4))


def test_compat_parts():
    theta, image, x = torch.zeros(2, 6), torch.rand(2, 5, 6, 3), torch.zeros(2, 4, 4)
    refuses("theta", lambda bad: compat.affine_grid_generator(4, 4, bad), theta[0], theta[:, :5], theta.int(), None)
    refuses(r"\(height, width\)", lambda bad: compat.affine_grid_generator(bad, 4, theta), 0, -1, "4", None, 2.0)
    refuses("img", lambda bad: compat.bilinear_sampler(bad, x, x), image[0], image.int(), None, image[:, :0])
    refuses("x", lambda bad: compat.bilinear_sampler(image, bad, x), x[0], x[:1], x.int(), None, x.to("meta"))
    refuses("y", lambda bad: compat.bilinear_sampler(image, x, bad), x[0], x[:1], x[:, :2], x.int(), None, x.to("meta"))


def test_conventions():
    points, matrix = torch.zeros(3, 2), torch.eye(2, 3)[None]
    for function in (conventions.pixel_to_normalized, conventions.normalized_to_pixel):
        refuses("points", lambda bad, f=function: f(bad, (4, 4)), points[:, :1], points.int(), None, [0.0, 0.0])
        refuses("size", lambda bad, f=function: f(points, bad), (0, 4), 4, "44", (4.0, 4))
        refuses("points", lambda bad, f=function: f(bad, (4,)), points)
    refuses("size", stn.geometry.extent, (), (0, 4), (4, 4, 4, 4), 4, None)
    refuses("n", stn.geometry.lattice, -1, 2.0, "4", None, True)
    not_matrices = (matrix[0], matrix.int(), None, torch.zeros(1, 6), torch.zeros(1, 4, 5))
    for function, argument in ((conventions.theta_from_pixel, "matrix"), (conventions.theta_to_pixel, "theta")):
        refuses(argument, lambda bad, f=function: f(bad, (4, 4), (4, 4)), *not_matrices)
        refuses("in_size", lambda bad, f=function: f(matrix, bad, (4, 4)), (4, 4, 4), (0, 4), 4)
        refuses("out_size", lambda bad, f=function: f(matrix, (4, 4), bad), (4, 4, 4), (0, 4), 4)
        refuses("direction", lambda bad, f=function: f(matrix, (4, 4), (4, 4), direction=bad), "forward", None)
        refuses("order", lambda bad, f=function: f(matrix, (4, 4), (4, 4), order=bad), "yx", None)
    refuses("theta", lambda bad: conventions.change_align_corners(bad, (4, 4), (4, 4), to=True), *not_matrices)
    refuses("matrix", stn.geometry.invert_matrix, *not_matrices)
    refuses("a", lambda bad: stn.geometry.compose_matrices(bad, matrix), *not_matrices)
    refuses("b", lambda bad: stn.geometry.compose_matrices(matrix, bad), *not_matrices, torch.zeros(1, 3, 4))
    two = matrix.repeat(2, 1, 1)
    refuses("b", lambda bad: stn.geometry.compose_matrices(two, bad), matrix.repeat(3, 1, 1), two.to("meta"))


def test_valid_mask():
    refuses("grid", stn.valid_mask, GRID[0, 0], GRID[..., :1], GRID.long(), None, torch.zeros(2, 4, 4, 3))
    grid = torch.tensor([[[-1.0], [1.0], [1.01], [float("nan")]]])
    assert stn.valid_mask(grid).tolist() == [[[True, True, False, False]]]


def test_antialias():
    refuses("antialias", lambda bad: stn.warp(IMAGE, THETA, antialias=bad), 1, None, "yes")
    localizer = stn.FCLocalizer(90, stn.Affine())
    refuses("antialias", lambda bad: stn.SpatialTransformer(localizer, antialias=bad), 1, None)
    refuses("gradient", lambda bad: stn.SpatialTransformer(localizer, gradient=bad), "linear", None)
    refuses("gradient", lambda bad: stn.SpatialTransformer(localizer, gradient=bad, antialias=True), "linearized")
    signal = torch.rand(2, 3, 30)
    refuses("image", lambda bad: stn.SpatialTransformer(localizer)(bad), signal, VOLUME)
    with pytest.raises(ValueError, match=r"theta: .*a picture needs its batch"):
        stn.warp(IMAGE[0], THETA)


def test_backends():
    refuses("name", lambda bad: stn.ops.use_backend(bad).__enter__(), "refrence", None, 3)
    with pytest.raises(ValueError, match="did you mean 'reference'"):
        stn.ops.use_backend("refrence").__enter__()
    assert list(stn.ops.backends())[-1] == "reference"
    assert all(isinstance(state, str) and state for state in stn.ops.backends().values())


def test_refusing_leaves_the_arguments_and_the_state_alone():
    before = stn.ops.which_backend(2)
    image = IMAGE.clone()
    refuses("mode", lambda bad: stn.warp(image, THETA, mode=bad), "linear")
    assert torch.equal(image, IMAGE)
    assert stn.ops.which_backend(2) == before


def test_on_the_meta_device_shapes_come_out():
    """Everything on one device is served, even where there are no numbers."""
    image, theta = IMAGE.to("meta"), THETA.to("meta")
    assert stn.warp(image, theta, (7, 8), padding_mode="circular").shape == (2, 3, 7, 8)
    assert stn.warp(image, theta, (7, 8)).device.type == "meta"
    assert stn.sample(image, GRID.to("meta")).shape == (2, 3, 4, 4)
