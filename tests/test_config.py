"""A family from its configuration: `transform.config()` there, `stn.transforms.from_config` back."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch
import yaml
from test_transforms import FAMILIES
from torch import Tensor, nn

import stn
from stn.transforms import TRANSFORMS, from_config

# Each with options off their defaults; the contract test adds those at theirs.
CONFIGURED = {
    "affine, fixed": lambda: stn.Affine(fixed=[[1, None, 0.25], [0, 1, None]]),
    "affine, 1D": lambda: stn.Affine(1, max_delta=0.5),
    "similarity, options": lambda: stn.Similarity(max_angle=1.0, max_scale=2, max_shift=0.5),
    "similarity, scale": lambda: stn.Similarity(log_scale=False),
    "rigid, options": lambda: stn.Rigid(max_angle=0.5, max_shift=0.2),
    "rigid, 6d": lambda: stn.Rigid(3, rotation="6d"),
    "similarity, spacing": lambda: stn.Similarity(3, spacing=(1, 1, 3)),
    "rigid, spacing": lambda: stn.Rigid(spacing=(1, 0.5)),
    "rotation, spacing": lambda: stn.Rotation(3, spacing=(1, 1, 3)),
    "polar, spacing": lambda: stn.Polar(spacing=(1, 2)),
    "attention, options": lambda: stn.Attention(max_scale=2.0, max_shift=0.5),
    "attention, scale": lambda: stn.Attention(1, log_scale=False),
    "crop, options": lambda: stn.Crop(max_scale=3.0, max_shift=0.5),
    "crop, scale": lambda: stn.Crop(log_scale=False),
    "translation, options": lambda: stn.Translation(max_shift=0.5),
    "projective, shown": lambda: stn.Projective(max_delta=0.5, behind="shown"),
    "corners, bounded": lambda: stn.Corners(max_shift=0.3),
    "tps, options": lambda: stn.ThinPlateSpline((3, 5), regularization=0.1, max_offset=0.2, theta_is="points"),
    "tps, two rows": lambda: stn.ThinPlateSpline.two_rows(8),
    "tps, own points": lambda: stn.ThinPlateSpline(torch.rand(9, 2, dtype=torch.float64), regularization=0.1),
    "tps, own points in 3D": lambda: stn.ThinPlateSpline(torch.rand(9, 3)),
    "bspline, options": lambda: stn.BSpline((3, 2), levels=2, max_offset=0.3),
    "displacement, options": lambda: stn.DisplacementField((5, 3), max_offset=0.1),
    "velocity, options": lambda: stn.VelocityField((3, 5), steps=3),
    "cpab, options": lambda: stn.CPAB((2, 3), zero_boundary=False, volume_preserving=True, steps=4),
    "polar, options": lambda: stn.Polar(log=True, min_radius=0.1, max_radius=0.8),
    "composed of compositions": lambda: stn.Rigid(max_angle=1.0) @ (stn.Crop() @ stn.ThinPlateSpline((2, 3))),
}
ALL = {**FAMILIES, **CONFIGURED}
SIZE = {1: (7,), 2: (5, 7), 3: (3, 4, 5)}


@pytest.mark.parametrize("written", [json, yaml], ids=["json", "yaml"])
@pytest.mark.parametrize("family", ALL)
def test_a_family_comes_back_from_a_file(family, written):
    transform = ALL[family]()
    config = transform.config()
    text = json.dumps(config, allow_nan=False) if written is json else yaml.safe_dump(config)
    back = from_config(json.loads(text) if written is json else yaml.safe_load(text))
    assert back.config() == config
    assert type(back) is type(transform)
    assert repr(back) == repr(transform)
    theta = transform.identity() + 0.2 * torch.randn(2, transform.num_params)
    size = SIZE[transform.ndim]
    frame = stn.Frame(tuple(n + 1 for n in size))
    torch.testing.assert_close(back.grid(theta, size, frame), transform.grid(theta, size, frame), rtol=0, atol=0)


def test_every_option_of_every_family_is_tried_off_its_default():
    transforms = [make() for make in ALL.values()]
    tried = {(type(transform), name) for transform in transforms for name in off_default(transform)}
    for family in {*TRANSFORMS.values()}:
        for option in inspect.signature(family).parameters:
            assert (family, option) in tried, (family.__name__, option)


def off_default(transform):
    """The options of a transform whose values are not the defaults."""
    defaults = {p.name: p.default for p in inspect.signature(type(transform)).parameters.values()}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    return [name for name, value in transform.config().items() if name != "name" and value != plain[name]]


def test_a_spline_keeps_its_lattice_and_other_points_to_the_last_digit():
    assert stn.ThinPlateSpline((3, 4)).config()["control_points"] == [3, 4]
    assert stn.ThinPlateSpline.lattice(2, 3, 4).config()["control_points"] == [2, 3, 4]
    points = torch.rand(7, 2)
    kept = stn.ThinPlateSpline(points).config()["control_points"]
    assert kept == points.tolist()
    assert torch.equal(stn.ThinPlateSpline(kept).control_points, points.double())
    assert stn.ThinPlateSpline(points).to("meta").config()["control_points"] == points.tolist()


def test_the_configuration_is_plain_and_a_copy():
    class Number(float):
        """What NumPy's float64 is to Python."""

    transform = stn.Similarity(max_angle=Number(1.5))
    assert type(transform.config()["max_angle"]) is float
    transform.config()["max_angle"] = 2.0
    assert transform.config()["max_angle"] == 1.5
    assert copy.deepcopy(transform).half().config() == transform.config()


def test_options_that_are_not_given_have_their_defaults():
    assert from_config("tps").config() == from_config({"name": "tps"}).config() == stn.ThinPlateSpline().config()
    config = {"name": "compose", "outer": {"name": "rotation"}, "inner": {"name": "translation", "max_shift": 0.5}}
    assert repr(from_config(config)) == repr(stn.Rotation() @ stn.Translation(max_shift=0.5))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "similarty"}, r"name: expected one of .*did you mean 'similarity'\?"),
        ("tsp", r"name: expected one of .*did you mean 'tps'\?"),
        ({"name": "similarity", "max_angel": 1.0}, r"options: 'similarity' has no option 'max_angel'.*did you mean 'max_angle'\?"),
        ({"name": "rotation", "max_scale": 2.0}, "options: 'rotation' has no option 'max_scale', but ndim, rotation, max_angle"),
        ({"name": "similarity", "max_angle": "1.0"}, r"max_angle: expected None or a finite number above 0, got '1.0' \(str\)"),
        ({"name": "similarity", "max_angle": True}, "max_angle: expected None or a finite number above 0, got True"),
        ({"name": "crop", "log_scale": "no"}, "log_scale: expected True or False, got 'no'"),
        ({"name": "tps", "control_points": "4x4"}, "control_points: expected points"),
        ({"name": "tps", "control_points": [[0, 0], [1, 0, 1], [0, 1]]}, "control_points: expected points"),
        ({"name": "tps", "control_points": [[0, 0], ["a", 0], [0, 1]]}, "control_points: expected points"),
        ({"name": "tps", "control_points": [[0, 0], [1, 1], [2, 2]]}, "control_points: expected .* not all on one line"),
        ({"name": "tps", "control_points": {"name": "tps"}}, "control_points: expected points"),
        ({"max_angle": 1.0}, "name: expected one of affine, "),
        ({"name": ["tps"]}, "name: expected one of affine, "),
        ({"name": "similarity", 3: 1.0}, "options: 'similarity' has no option 3"),
        ({"name": "compose", "outer": {"name": "tps"}}, "options: 'compose' is missing a required argument: 'inner'"),
        ({"name": "compose", "outer": {"name": "tps"}, "inner": {"name": "tsp"}}, "inner: name: expected one of"),
        ({"name": "compose", "outer": {"name": "tps"}, "inner": "tps"}, "inner: expected a transform, got 'tps'"),
        ([("name", "tps")], "config: expected a mapping such as"),
        (None, "config: expected a mapping such as"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(config, message):
    with pytest.raises(ValueError, match=message):
        from_config(config)


def test_a_configuration_that_holds_itself_is_refused():
    endless = yaml.safe_load("&a {name: compose, outer: *a, inner: {name: affine}}")
    with pytest.raises(ValueError, match="nested without end"):
        from_config(endless)


class Swirl(stn.AbstractTransform):
    """A family of a user's own, made of another."""

    def __init__(self, around: stn.AbstractTransform, *, strength: float = 1.0, kept: object = None) -> None:
        super().__init__()
        self.around, self.strength, self.kept = around, strength, kept

    @property
    def num_params(self) -> int:
        return self.around.num_params

    def identity(self) -> Tensor:
        return self.around.identity()

    def map_points(self, theta, points, frame=stn.coordinates.SQUARE):
        return points + self.strength * (self.around.map_points(theta, points, frame) - points)


def test_a_family_of_ones_own_has_the_name_it_is_given(monkeypatch):
    swirl = Swirl(stn.Rotation(max_angle=1.0), strength=0.5)
    with pytest.raises(ValueError, match=r"config: Swirl has no name; give it one: .*TRANSFORMS"):
        swirl.config()
    with pytest.raises(ValueError, match="name: expected one of"):
        from_config({"name": "tests.test_config.Swirl"})  # nothing is imported for the sake of a file
    monkeypatch.setitem(TRANSFORMS, "swirl", Swirl)
    config = (swirl @ stn.Affine()).config()
    assert config["outer"]["around"] == stn.Rotation(max_angle=1.0).config()
    back = from_config(json.loads(json.dumps(config)))
    theta = torch.randn(2, 7)
    assert torch.equal(back.grid(theta, (3, 4)), (swirl @ stn.Affine()).grid(theta, (3, 4)))
    with pytest.raises(ValueError, match=r"Swirl.kept, got .*\(object\)"):
        Swirl(stn.Affine(), kept=object()).config()
    del swirl.strength
    with pytest.raises(ValueError, match="does not keep its option 'strength'"):
        swirl.config()
    with pytest.raises(ValueError, match="config: Turned has no name"):  # another class than the one with the name
        type("Turned", (stn.Rotation,), {})().config()


CONFIG = {"name": "similarity", "max_angle": 0.5}


@pytest.mark.parametrize(
    "take",
    [
        lambda c: stn.SpatialTransformer(stn.ConvLocalizer(1, c, image_size=(28, 28)), c),
        lambda c: stn.SpatialTransformer(stn.FCLocalizer(784, c), c),
        lambda c: stn.ParallelTransformers([stn.FCLocalizer(784, c)], c),
        lambda c: stn.IterativeTransformer(stn.FCLocalizer(784, c), c, iterations=2),
        lambda c: stn.models.create("compact", transform=c).transformer,
        lambda c: stn.models.SharedClassifier(
            nn.Flatten(), stn.identity_head(784, c), nn.Linear(784, 10), c
        ).transformer,
    ],
)  # fmt: skip
def test_a_configuration_or_a_name_is_as_good_as_a_transform(take):
    assert take(CONFIG).transform.config() == stn.Similarity(max_angle=0.5).config()
    assert take("similarity").transform.config() == stn.Similarity().config()
    image = torch.rand(2, 1, 28, 28)
    take(CONFIG)(image)
    with pytest.raises(ValueError, match=r"transform: options: .*did you mean 'max_angle'"):
        take({"name": "similarity", "max_angel": 1.0})
    with pytest.raises(ValueError, match="transform: expected a transform such as"):
        take(3)


def test_localizers_take_a_configuration_too():
    localizer = stn.RecurrentLocalizer(nn.Flatten(), 784, CONFIG, steps=2)
    assert localizer(torch.rand(2, 1, 28, 28)).shape == (2, 8)
    assert stn.window_starts({"name": "attention"}, (1, 2)).shape == (2, 3)
