"""Checks for a family of your own: the contract that every family of this package passes."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_choice, check_flag, check_number, describe
from .conventions import normalized_to_pixel, pixel_to_normalized
from .coordinates import Frame
from .geometry import lattice
from .sampling import sample, warp
from .transforms import TRANSFORMS, AbstractTransform, Affine, from_config
from .transforms.base import named_families

# Sizes of images and of outputs by dimension, none of them square.
_IMAGE = {1: (20,), 2: (20, 12), 3: (8, 7, 6)}
_OUT = {1: (5,), 2: (4, 5), 3: (3, 4, 5)}
_DOT = {1: ((45,), (20,), 0.15), 2: ((33, 45), (14, 20), 0.15), 3: ((17, 19, 21), (9, 8, 11), 0.08)}


@dataclass(frozen=True)
class _Case:
    """A family, and what is to be expected of it."""

    transform: AbstractTransform
    identity: bool
    effect: float
    spread: float
    tolerance: float
    second_derivatives: bool

    @property
    def ndim(self) -> int:
        return self.transform.ndim

    @property
    def image_size(self) -> tuple[int, ...]:
        return _IMAGE[self.ndim]

    @property
    def out_size(self) -> tuple[int, ...]:
        return _OUT[self.ndim]

    @property
    def frame(self) -> Frame:
        return Frame(self.image_size)

    def theta(self, batch: int = 3, spread: float = 0.3, dtype: torch.dtype = torch.float64) -> Tensor:
        """theta near the identity."""
        identity = self.transform.identity().to(dtype)
        return identity + spread * torch.randn(batch, self.transform.num_params, dtype=dtype)

    def points(self, batch: int = 3, count: int = 7) -> Tensor:
        return 2 * torch.rand(batch, count, self.ndim, dtype=torch.float64) - 1


def _expect(holds: Any, what: str, got: Any = None) -> None:
    if not bool(holds):
        raise AssertionError(f"expected {what}" + ("" if got is None else f", got {got}"))


def _close(got: Tensor, want: Tensor, what: str, atol: float, rtol: float = 0.0) -> None:
    """`what` says what `got` is to be."""
    _expect(got.shape == want.shape, f"{what}, of shape {tuple(want.shape)}", f"shape {tuple(got.shape)}")
    off = (got.double() - want.double()).abs()
    wrong = ~(off <= atol + rtol * want.double().abs())
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"expected {what}, within {atol:g}, got {float(got[place]):g} in place of {float(want[place]):g} at {place}; "
            f"{int(wrong.sum())} of {wrong.numel()} numbers are off"
        )


@contextmanager
def _refused(start: str, what: str) -> Iterator[None]:
    """A ValueError whose message begins with `start`."""
    try:
        yield
    except ValueError as error:
        _expect(str(error).startswith(start), f"a ValueError that begins with {start!r} for {what}", repr(str(error)))
    except Exception as error:
        raise AssertionError(f"expected a ValueError for {what}, got {error!r}") from error
    else:
        raise AssertionError(f"expected a ValueError for {what}, got none; check_theta and check_points give it")


def _identity(case: _Case) -> None:
    transform, identity = case.transform, case.transform.identity()
    wanted = (transform.num_params,)
    _expect(identity.shape == wanted, f"identity() of shape (num_params,), {wanted}", tuple(identity.shape))
    _expect(identity.dtype == torch.float32, "identity() in float32", identity.dtype)
    if not case.identity:
        return
    points = case.points()
    mapped = transform.map_points(identity.expand(3, -1), points, case.frame)
    _close(mapped, points.float(), "map_points(identity(), points) to be the points", 1e-7)
    image = torch.rand(3, 2, *case.image_size)
    for align_corners in (False, True):
        out = warp(image, identity[None], transform=transform, align_corners=align_corners)
        what = f"a warp by identity() to leave the image alone, with align_corners={align_corners}"
        _close(out, image, what, 1e-5)


def _parameters(case: _Case) -> None:
    points, identity = case.points(1, 400), case.transform.identity().double()
    jacobian = torch.autograd.functional.jacobian(lambda t: case.transform.map_points(t[None], points), identity)
    moved = jacobian.flatten(0, -2).abs().amax(0)
    still = int(moved.argmin())
    what = f"every number of theta to move some point by at least {case.effect:g} times its change at the identity"
    _expect((moved >= case.effect).all(), what, f"{float(moved[still]):.2g} for theta {still}")


def _grid(case: _Case) -> None:
    transform, theta, size = case.transform, case.theta(), case.out_size
    for align_corners in (False, True):
        axes = [lattice(n, align_corners=align_corners, dtype=torch.float64) for n in size]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).reshape(1, -1, case.ndim)
        seen = Frame(case.image_size, align_corners)
        grid = transform.grid(theta, size, seen)
        _expect(grid.shape == (3, *size, case.ndim), f"a grid of shape {(3, *size, case.ndim)}", tuple(grid.shape))
        mapped = transform.map_points(theta, points.expand(3, -1, -1), seen)
        _close(grid.reshape(3, -1, case.ndim), mapped, f"the grid to be the mapped pixel centres, with align_corners={align_corners}", 1e-13)  # fmt: skip
        _close(transform.map_points(theta, points, seen), mapped, "points (1, N, d) to be those of each image", 1e-13)
    grid = transform.grid(theta, size)
    _close(grid, transform.grid(theta, size, Frame(size)), "the image to have the output's size unless told", 1e-12)
    _close(grid, transform(theta, size), "transform(theta, size) to be grid(theta, size)", 1e-12)


def _warp(case: _Case) -> None:
    image, theta = torch.rand(3, 2, *case.image_size, dtype=torch.float64), case.theta()
    for align_corners in (False, True):
        grid = case.transform.grid(theta, case.out_size, Frame(case.image_size, align_corners))
        out = warp(image, theta, case.out_size, transform=case.transform, align_corners=align_corners)
        want = sample(image, grid, align_corners=align_corners)
        _close(out, want, f"warp to read the image at the grid, with align_corners={align_corners}", 1e-12)


def _pixels(case: _Case) -> None:
    """A dot is drawn where the warp says it will be read, and found at the output pixel it was read for."""
    size, at, spread = _DOT[case.ndim]
    theta = case.theta(1, spread)
    target = torch.tensor([[at[::-1]]], dtype=torch.float64)  # of the output, in pixels
    for align_corners in (False, True):
        normalized = pixel_to_normalized(target, size, align_corners=align_corners)
        there = case.transform.map_points(theta, normalized, Frame(size, align_corners))
        position = normalized_to_pixel(there, size, align_corners=align_corners)[0, 0]
        axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in size], indexing="ij")[::-1]
        dot = torch.exp(-(torch.stack(axes, -1) - position).square().sum(-1) / 8)[None, None]
        out = warp(dot, theta, transform=case.transform, align_corners=align_corners)[0, 0]
        found = tuple(int(n[0]) for n in torch.where(out == out.max()))
        what = f"what map_points says is read for the pixel {at} to appear there, with align_corners={align_corners}"
        _expect(found == at, what, found)


def _inverse(case: _Case) -> None:
    transform, theta, points = case.transform, case.theta(spread=case.spread), case.points()
    try:
        family, inverse = transform.inverted(theta, case.frame)
    except ValueError as error:
        _expect(
            "has no inverse within its family" in str(error), "an inverse, or the error of AbstractTransform", error
        )
        return
    there = transform.map_points(theta, points, case.frame)
    _expect((there - points).abs().max() > 10 * case.tolerance, "a warp that moves points, to be undone")
    back = family.map_points(inverse, there, case.frame)
    _close(back, points, "the inverse to bring mapped points back", case.tolerance)
    _, again = family.inverted(inverse, case.frame)
    _close(transform.map_points(again, points, case.frame), there, "the inverse of the inverse to be the warp", 1e-12)


def _matrix(case: _Case) -> None:
    transform, theta = case.transform, case.theta(spread=0.1)
    if transform.kind not in ("affine", "projective"):
        return
    image = torch.rand(3, 2, *case.image_size, dtype=torch.float64)
    out = warp(image, transform.matrix(theta, case.frame), case.out_size)
    want = warp(image, theta, case.out_size, transform=transform)
    _close(out, want, f"matrix(theta) to be the same {transform.kind} warp", 1e-12)


def _jacobian(case: _Case) -> None:
    transform, theta, points, eps = case.transform, case.theta(spread=0.1), 0.8 * case.points(), 1e-6
    jacobian = transform.jacobian(theta, points, case.frame)
    determinant = transform.determinant(theta, points, case.frame)
    _close(determinant, torch.linalg.det(jacobian), "determinant() to be that of jacobian()", 1e-12)
    for axis in range(case.ndim):
        step = eps * torch.eye(case.ndim, dtype=torch.float64)[axis]
        ahead, behind = (transform.map_points(theta, points + s * step, case.frame) for s in (1, -1))
        want = (ahead - behind) / (2 * eps)
        _close(jacobian[..., axis], want, f"jacobian() to be the difference quotient along axis {axis}", 1e-6)


def _points(case: _Case) -> None:
    transform, theta, points = case.transform, case.theta(spread=0.05), 0.8 * case.points()
    back = transform.unmap_points(theta, transform.map_points(theta, points, case.frame), case.frame)
    _close(back, points, "unmap_points to bring mapped points back", 1e-3)
    _expect(not transform.folds(theta, case.out_size, case.frame).any(), "no fold near the identity")


def _boxes(case: _Case) -> None:
    transform, theta, d = case.transform, case.theta(spread=0.1), case.ndim
    corners = 0.8 * case.points(3, 5), 0.8 * case.points(3, 5)
    boxes = torch.cat([torch.minimum(*corners), torch.maximum(*corners)], -1)
    mapped = transform.map_boxes(theta, boxes, case.frame)
    t = torch.rand(3, 5, d, dtype=torch.float64)
    inside = transform.map_points(theta, boxes[..., :d].lerp(boxes[..., d:], t), case.frame)
    within = (inside >= mapped[..., :d] - 0.02) & (inside <= mapped[..., d:] + 0.02)
    _expect(within.all(), "mapped boxes to hold what lies in the boxes")
    back = transform.unmap_boxes(theta, mapped, case.frame)
    around = (back[..., :d] <= boxes[..., :d] + 0.05) & (back[..., d:] >= boxes[..., d:] - 0.05)
    _expect(around.all(), "mapped boxes, brought back, to hold the boxes")
    if case.identity:
        upright = transform.identity().double().expand(3, -1)
        _close(transform.map_boxes(upright, boxes), boxes, "identity() to leave boxes alone", 1e-6)


def _compose(case: _Case) -> None:
    transform = case.transform
    if type(transform).compose is AbstractTransform.compose:
        return
    a, b, points = case.theta(spread=0.2), case.theta(spread=0.2), case.points()
    both = transform.map_points(transform.compose(a, b, case.frame), points, case.frame)
    want = transform.map_points(a, transform.map_points(b, points, case.frame), case.frame)
    _close(both, want, "compose(a, b) to map a point by b, then by a", 1e-12)


def _matmul(case: _Case) -> None:
    transform, other = case.transform, Affine(case.ndim)
    a, b, points = case.theta(), torch.randn(3, other.num_params, dtype=torch.float64), case.points()
    both = transform @ other
    width = transform.num_params + other.num_params
    _expect(both.num_params == width, f"a composition with {width} parameters", both.num_params)
    want = transform.map_points(a, other.map_points(b, points), case.frame)
    mapped = both.map_points(torch.cat([a, b], dim=1), points, case.frame)
    _close(mapped, want, "transform @ other to map by other, then by transform", 1e-9)


def _gradients(case: _Case) -> None:
    theta, points = case.theta(2).requires_grad_(), case.points(2, 3).requires_grad_()

    def run(theta: Tensor, points: Tensor) -> Tensor:
        return case.transform.map_points(theta, points, case.frame)

    checks: list[tuple[str, Callable[..., bool]]] = [("first", torch.autograd.gradcheck)]
    checks += [("second", torch.autograd.gradgradcheck)] if case.second_derivatives else []
    for which, check in checks:
        try:
            check(run, (theta, points))
        except (RuntimeError, NotImplementedError) as error:  # gradcheck's own kind of both
            reason = " ".join(str(error).split())[:200]
            raise AssertionError(
                f"expected {which} derivatives that are those of differences, got: {reason}"
            ) from error
    jacobian = torch.func.vmap(torch.func.jacrev(lambda t, p: run(t[None], p[None])[0]))(theta, points)
    wanted = (2, 3, case.ndim, case.transform.num_params)
    _expect(jacobian.shape == wanted, f"a Jacobian of shape {wanted} under vmap", tuple(jacobian.shape))


def _types(case: _Case) -> None:
    transform, theta, points = case.transform, case.theta(), case.points()
    _expect(transform.map_points(theta, points).dtype == torch.float64, "float64 for theta in float64")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rounded = theta.to(dtype)
        mapped = transform.map_points(rounded, points.float())
        _expect(mapped.dtype == torch.float32, f"float32, never half precision, for theta in {dtype}", mapped.dtype)
        exact = transform.map_points(rounded.double(), points.float().double())
        _close(mapped, exact, f"theta in {dtype} to map as in float64", 1e-5, rtol=1e-5)


def _empty(case: _Case) -> None:
    transform, theta, points, d = case.transform, case.theta(), case.points(), case.ndim
    for what, got, want in (
        ("no image", transform.map_points(theta[:0], points[:0]), (0, 7, d)),
        ("no image", transform.grid(theta[:0], case.out_size), (0, *case.out_size, d)),
        ("no point", transform.map_points(theta, points[:, :0]), (3, 0, d)),
    ):
        _expect(got.shape == want, f"shape {want} for {what}", tuple(got.shape))


def _batch(case: _Case) -> None:
    """What becomes of an image does not depend on those beside it."""
    theta, points = case.theta(5), case.points(5)
    together = case.transform.map_points(theta, points, case.frame)
    for i in range(5):
        alone = case.transform.map_points(theta[i : i + 1], points[i : i + 1], case.frame)
        _close(alone, together[i : i + 1], f"image {i} to be mapped alone as among others", 1e-12)


def _not_finite(case: _Case) -> None:
    """NaN gives NaN in its own image alone; nothing crashes, not even backward."""
    for value in (float("nan"), float("inf")):
        theta, image = case.theta(), torch.ones(3, 1, *case.out_size)
        clean = warp(image, theta, transform=case.transform, padding_mode="border")
        theta[1, 0] = value
        theta.requires_grad_()
        out = warp(image, theta, transform=case.transform, padding_mode="border")
        out.nansum().backward()
        _expect(torch.equal(out[[0, 2]], clean[[0, 2]]), f"{value} in one theta to leave the other images alone")
        if math.isnan(value):
            _expect(out[1].isnan().any(), "NaN in theta to show in its image")


def _huge(case: _Case) -> None:
    for value in (1e30, -1e30):
        theta = torch.full((1, case.transform.num_params), value, requires_grad=True)
        warp(torch.ones(1, 1, *case.out_size), theta, transform=case.transform).nansum().backward()


def _arguments_left_alone(case: _Case) -> None:
    transform, theta, points = case.transform, case.theta(), case.points()
    before = theta.clone(), points.clone(), transform.identity().clone()
    transform.map_points(theta, points).add_(1)
    transform.identity().add_(1)
    _expect(torch.equal(theta, before[0]), "theta to be left alone")
    _expect(torch.equal(points, before[1]), "points to be left alone")
    _expect(torch.equal(transform.identity(), before[2]), "identity() to be a tensor of its own at each call")


def _wrong_arguments(case: _Case) -> None:
    transform, size = case.transform, case.out_size
    right, points = case.theta(), case.points()
    wide = torch.zeros(3, transform.num_params + 1)
    calls: tuple[Callable[[Any], Any], ...] = (
        lambda t: transform.map_points(t, points),
        lambda t: transform.grid(t, size),
        lambda t: warp(torch.ones(3, 1, *size), t, transform=transform),
    )
    for call in calls:
        for theta in (wide, wide.long(), right[0], right[:, :0], None, [1.0], right.to(torch.complex64)):
            with _refused("theta: ", f"theta {describe(theta)}"):
                call(theta)
    bad: Any
    for bad in (points[..., 1:], points[0], points.int(), None, points.to("meta"), points[:2]):
        with _refused("points: ", f"points {describe(bad)}"):
            transform.map_points(right, bad)
    tail = size[1:]
    for bad in (
        (-1, *tail), (*size, 4), tail, (4.0, *tail), ("4", *tail), (None, *tail), "4567"[: case.ndim], None,
    ):  # fmt: skip
        with _refused("size: ", f"size {bad!r}"):
            transform.grid(right, bad)


def _module(case: _Case) -> None:
    transform = case.transform
    transform.load_state_dict(transform.state_dict(), strict=True)
    _expect(not list(transform.parameters()), "a family without weights; theta is data")
    _expect(1 <= transform.ndim <= 3, "ndim of 1, 2 or 3", transform.ndim)
    _expect(type(transform).__name__ in repr(transform), "the name of the class in its repr", repr(transform))
    names = transform.param_names
    _expect(len(names) == transform.num_params, f"{transform.num_params} param_names", len(names))
    theta, points = case.theta(), case.points()
    want = transform.map_points(theta, points)
    _close(copy.deepcopy(transform).map_points(theta, points), want, "a deep copy to be the same", 0.0)


def _config(case: _Case) -> None:
    transform = case.transform
    named = type(transform) in named_families().values()
    if not named:  # it has one for as long as this takes
        TRANSFORMS["check_transform"] = type(transform)
    try:
        config = transform.config()
        back = from_config(json.loads(json.dumps(config, allow_nan=False)))
        _expect(back.config() == config, f"the configuration {config} to come back", back.config())
    except ValueError as error:
        raise AssertionError(
            f"expected a configuration that JSON can say, and the family from it, got: {error}"
        ) from error
    finally:
        if not named:
            del TRANSFORMS["check_transform"]
    theta = case.theta(2, 0.2)
    got, want = (one.grid(theta, case.out_size, case.frame) for one in (back, transform))
    _close(got, want, "the family that config() says to have the same grid, to the bit", 0.0)


def _pickle(case: _Case) -> None:
    try:
        back = pickle.loads(pickle.dumps(case.transform))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if "<locals>" in type(case.transform).__qualname__ or type(case.transform).__module__ == "__main__":
            return  # a class of a function, or of a notebook, which no file can name
        raise AssertionError(f"expected a family that can be pickled, for workers, got: {error}") from error
    theta, points = case.theta(), case.points()
    want = case.transform.map_points(theta, points)
    _close(back.map_points(theta, points), want, "the family from a pickle to be the same", 0.0)


class _Warping(nn.Module):
    def __init__(self, case: _Case) -> None:
        super().__init__()
        self.transform, self.size = case.transform, case.out_size

    def forward(self, image: Tensor, theta: Tensor) -> Tensor:
        return warp(image, theta, self.size, transform=self.transform)


def _compile(case: _Case) -> None:
    model, image, theta = _Warping(case), torch.rand(3, 1, *case.image_size), case.theta(dtype=torch.float32)
    torch.compiler.reset()
    try:
        out = torch.compile(model, fullgraph=True, backend="eager")(image, theta)
    except Exception as error:  # of a dozen kinds
        raise AssertionError(f"expected torch.compile without a break, got: {str(error).splitlines()[0]}") from error
    _close(out, model(image, theta), "the compiled warp to be the same", 1e-6)


def _export(case: _Case) -> None:
    model, image, theta = _Warping(case), torch.rand(3, 1, *case.image_size), case.theta(dtype=torch.float32)
    batch = torch.export.Dim("batch")
    try:
        program = torch.export.export(model, (image, theta), dynamic_shapes=({0: batch}, {0: batch})).module()
    except Exception as error:  # of a dozen kinds
        raise AssertionError(f"expected torch.export of an open batch, got: {str(error).splitlines()[0]}") from error
    image, theta = torch.rand(5, 1, *case.image_size), case.theta(5, dtype=torch.float32)
    _close(program(image, theta), model(image, theta), "the exported warp to be the same for another batch", 1e-5)


# By name, in the order in which they are made.
TRANSFORM_CHECKS: dict[str, Callable[[_Case], None]] = {
    "identity": _identity,
    "parameters": _parameters,
    "grid": _grid,
    "warp": _warp,
    "pixels": _pixels,
    "points": _points,
    "boxes": _boxes,
    "jacobian": _jacobian,
    "gradients": _gradients,
    "matrix": _matrix,
    "inverse": _inverse,
    "compose": _compose,
    "matmul": _matmul,
    "types": _types,
    "empty": _empty,
    "batch": _batch,
    "not finite": _not_finite,
    "huge": _huge,
    "arguments left alone": _arguments_left_alone,
    "wrong arguments": _wrong_arguments,
    "module": _module,
    "config": _config,
    "pickle": _pickle,
    "compile": _compile,
    "export": _export,
}


def check_transform(
    transform: AbstractTransform,
    *,
    identity: bool = True,
    effect: float = 0.1,
    spread: float = 0.2,
    tolerance: float = 1e-6,
    second_derivatives: bool = True,
    only: str | None = None,
) -> None:
    """Check that a family keeps what `stn.AbstractTransform` promises: every family of this package passes the same.

    In order: the identity changes nothing; every number of theta moves something; grid, warp, points, boxes and pixels
    agree, on sizes that are not square, with either `align_corners`; Jacobian and gradients are those of differences;
    matrix, inverse and composition are right where the family claims them; types, empty batches, numbers that are not
    finite; one image does not depend on another; wrong arguments are refused; configuration, pickle, `torch.compile` and
    `torch.export` give the same family again. A few seconds. The random numbers are the same at each call, and the global
    ones are left alone.

    Args:
        transform: an instance of the family, with its options.
        identity: whether some theta changes nothing; False for a family without one, such as `stn.Polar`.
        effect: how far some point moves at the least, relative to a small change of each number of theta, at the identity;
            0 for a family with more numbers than degrees of freedom.
        spread: how far theta is from the identity, in standard deviations, where the inverse is checked.
        tolerance: what the inverse leaves of a point's shift there, in normalized units; a closed form leaves 1e-12.
        second_derivatives: whether they are checked, too.
        only: the name of one check in `TRANSFORM_CHECKS`, in place of all.

    Raises:
        AssertionError: for the first check that fails: the family, the check, what was expected and what came.
        ValueError: for bad arguments.

    Example:
        >>> import stn
        >>> stn.testing.check_transform(stn.Rotation(max_angle=1.0), only="inverse", tolerance=1e-12)
    """
    if not isinstance(transform, AbstractTransform):
        raise ValueError(f"transform: expected an instance of a family of warps, got {describe(transform)}")
    for argument, flag in (("identity", identity), ("second_derivatives", second_derivatives)):
        check_flag(argument, flag)
    for argument, value in (("effect", effect), ("spread", spread), ("tolerance", tolerance)):
        check_number(argument, value, "a finite number of at least 0", lambda v: 0 <= v < math.inf)
    if only is not None:
        check_choice("only", only, TRANSFORM_CHECKS)
    case = _Case(transform, identity, effect, spread, tolerance, second_derivatives)
    for name, check in TRANSFORM_CHECKS.items():
        if only not in (None, name):
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                check(case)
            except AssertionError as error:
                raise AssertionError(f"{type(transform).__name__}, {name}: {error}") from error
            except Exception as error:
                raise AssertionError(f"{type(transform).__name__}, {name}: expected no error, got {error!r}") from error
