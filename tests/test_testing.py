"""`stn.testing.check_transform`: a family that breaks a promise is found, by the name of the promise."""

from __future__ import annotations

import pytest
import torch

import stn
from stn.testing import TRANSFORM_CHECKS, check_transform
from stn.transforms import TRANSFORMS


class Spiral(stn.AbstractTransform):
    """A family as a user writes it: a turn that fades with the distance from the centre."""

    def __init__(self, turns: float = 1.0) -> None:
        super().__init__()
        self.turns = turns

    @property
    def num_params(self):
        return 1

    def identity(self):
        return torch.zeros(1)

    def map_points(self, theta, points, frame=stn.coordinates.SQUARE):
        theta = self.check_theta(theta)
        points = self.check_points(theta, points)
        angle = self.turns * theta[:, None] * (-points.square().sum(-1, keepdim=True)).exp()
        x, y = points.split(1, -1)
        return torch.cat([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1)

    def inverse(self, theta, frame=stn.coordinates.SQUARE):
        return -self.check_theta(theta)

    def compose(self, a, b, frame=stn.coordinates.SQUARE):
        return self.check_theta(a) + self.check_theta(b)


def test_a_family_as_a_user_writes_it_passes():
    random = torch.get_rng_state()
    check_transform(Spiral(turns=1.5), tolerance=1e-12)
    assert torch.equal(torch.get_rng_state(), random)
    assert "check_transform" not in TRANSFORMS


SHARED = torch.zeros(1)

# What is broken, the check that finds it, and what that says.
BROKEN = {
    "an identity that turns": ("identity", "to be the points", {"identity": lambda self: torch.full((1,), 0.1)}),
    "an identity of another width": ("identity", r"of shape \(num_params,\)", {"identity": lambda self: torch.zeros(2)}),
    "an identity in float64": ("identity", "in float32", {"identity": lambda self: torch.zeros(1).double()}),
    "a number without effect": (
        "parameters", "every number of theta to move some point",
        {"num_params": property(lambda self: 2), "identity": lambda self: torch.zeros(2), "map_points": lambda self, t, p, f=None: Spiral.map_points(Spiral(), self.check_theta(t)[:, :1], self.check_points(t, p))},
    ),
    "a grid beside the points": ("grid", "the grid to be the mapped pixel centres", {"grid": lambda self, *a: Spiral.grid(self, *a) + 0.01}),
    "a lattice that ignores align_corners": (
        "grid", "with align_corners=True",
        {"_lattice": lambda self, theta, size, align_corners: Spiral._lattice(self, theta, size, False)},
    ),
    "a grid of another size": ("grid", "a grid of shape", {"grid": lambda self, theta, size, frame=None: Spiral.grid(self, theta, size[::-1])}),
    "coordinates beside the grid": (
        "warp", "warp to read the image at the grid",
        {"grid": lambda self, *a: Spiral.grid(self, *a) + (0.01 if a[1] == (4, 5) else 0.0)},
    ),
    "points beside the pixels": (
        "pixels", "to appear there",
        {"coordinates": lambda self, t, size, f=stn.coordinates.SQUARE: Spiral.coordinates(self, -t, size, f)},
    ),
    "an inverse that is none": ("inverse", "the inverse to bring mapped points back", {"inverse": lambda self, t, f=None: -0.9 * t}),
    "a matrix that is another": (
        "matrix", "to be the same affine warp",
        {"kind": "affine", "matrix": lambda self, t, f=None: torch.eye(2, 3, dtype=t.dtype).expand(len(t), -1, -1)},
    ),
    "a Jacobian of another map": ("jacobian", "to be", {"jacobian": lambda self, *a: 1.1 * Spiral.jacobian(self, *a)}),
    "points not brought back": ("points", "unmap_points to bring mapped points back", {"unmap_points": lambda self, t, p, *a, **k: p}),
    "a fold at the identity": ("points", "no fold", {"folds": lambda self, t, *a: torch.ones(len(t), dtype=torch.bool)}),
    "boxes too small": ("boxes", "mapped boxes to hold", {"map_boxes": lambda self, t, b, *a: 0.5 * Spiral.map_boxes(self, t, b, *a)}),
    "a composition in the wrong sense": ("compose", r"compose\(a, b\) to map", {"compose": lambda self, a, b, f=None: a - b}),
    "a gradient that is cut": (
        "gradients", "expected first derivatives",
        {"map_points": lambda self, t, p, f=None: Spiral.map_points(self, self.check_theta(t).detach() + 0 * self.check_theta(t), p)},
    ),
    "half precision": (
        "types", "never half precision",
        {"map_points": lambda self, t, p, f=None: Spiral.map_points(self, t, p).to(t.dtype)},
    ),
    "a batch of one": ("empty", "expected", {"map_points": lambda self, t, p, f=None: Spiral.map_points(self, t, p) if len(t) else Spiral.map_points(self, torch.zeros(1, 1), torch.zeros(1, 1, 2))}),
    "a mean over the batch": (
        "batch", "to be mapped alone as among others",
        {"map_points": lambda self, t, p, f=None: Spiral.map_points(self, self.check_theta(t) - self.check_theta(t).mean(0), p)},
    ),
    "a NaN for all": (
        "not finite", "to leave the other images alone",
        {"map_points": lambda self, t, p, f=None: Spiral.map_points(self, self.check_theta(t) + 0 * self.check_theta(t).sum(), p)},
    ),
    "a NaN that is hidden": ("not finite", "NaN in theta to show", {"check_theta": lambda self, t: Spiral.check_theta(self, t).nan_to_num()}),
    "an error for huge numbers": ("huge", "expected no error", {"check_theta": lambda self, t: Spiral.check_theta(self, t) if not t.abs().max() > 1e20 else 1 / 0}),
    "theta changed in place": ("arguments left alone", "theta to be left alone", {"check_theta": lambda self, t: Spiral.check_theta(self, t).mul_(0.5)}),
    "an identity that is shared": ("arguments left alone", r"identity\(\) to be a tensor of its own", {"identity": lambda self: SHARED}),
    "no check of theta": (
        "wrong arguments", "expected a ValueError.* for theta",
        {"check_theta": lambda self, t: t.double(), "check_points": lambda self, t, p: p},
    ),
    "no check of points": ("wrong arguments", "expected a ValueError.* for points", {"check_points": lambda self, t, p: p.to(t.dtype)}),
    "a name too many": ("module", "1 param_names, got 2", {"param_names": property(lambda self: ("turn", "scale"))}),
    "an option that is not kept": (
        "config", "does not keep its option",
        {"__init__": lambda self, turn=1.0: Spiral.__init__(self, turn)},
    ),
    "an option that is doubled": ("config", "to come back", {"__init__": lambda self, turns=1.0: Spiral.__init__(self, 2 * turns)}),
    "points in the type of theta as it came": (
        "types", "theta in torch.bfloat16 to map as in float64",
        {"map_points": lambda self, t, p, f=None: Spiral.map_points(self, self.check_theta(t), p.to(t.dtype))},
    ),
    "a break of the graph": (
        "compile", "expected torch.compile without a break",
        {"map_points": lambda self, t, p, f=None: torch._dynamo.graph_break() or Spiral.map_points(self, t, p)},
    ),
    "a batch that is built in": (
        "export", "expected",
        {"map_points": lambda self, t, p, f=None: Spiral.map_points(self, t + torch.zeros([int(n) for n in t.shape]), p)},
    ),
    "a thread in it": ("pickle", "expected a family that can be pickled", {"__init__": lambda self, turns=1.0: Spiral.__init__(self) or setattr(self, "kept", lambda: 0)}),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_found_by_name(what, monkeypatch):
    check, said, members = BROKEN[what]
    broken = type("Broken", (Spiral,), {**members, "__module__": __name__, "__qualname__": "Broken"})
    monkeypatch.setitem(globals(), "Broken", broken)  # where a pickle finds it
    with pytest.raises(AssertionError, match=rf"^Broken, {check}: .*{said}"):
        check_transform(broken(), tolerance=1e-12, only=check)
    with pytest.raises(AssertionError, match=r"^Broken, "):  # that, or one before it
        check_transform(broken(), tolerance=1e-12)


def test_every_check_has_something_that_it_finds():
    # matmul is of AbstractTransform's own making, which a family has no part in
    assert {check for check, _, _ in BROKEN.values()} == set(TRANSFORM_CHECKS) - {"matmul"}


def test_bad_arguments():
    for arguments, said in (
        ((stn.Rotation,), "transform: expected an instance"),
        (("rotation",), "transform: expected an instance"),
    ):
        with pytest.raises(ValueError, match=said):
            check_transform(*arguments)
    for options, said in (
        ({"identity": 1}, "identity: "), ({"second_derivatives": None}, "second_derivatives: "), ({"effect": -1}, "effect: "),
        ({"spread": "far"}, "spread: "), ({"tolerance": float("inf")}, "tolerance: "), ({"only": "inverses"}, "did you mean 'inverse'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            check_transform(stn.Rotation(), **options)
