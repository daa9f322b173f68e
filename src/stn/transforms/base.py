"""What every family of warps has in common."""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_float_tensor, check_size, coordinate_dtype, describe
from ..coordinates import SQUARE, Coordinates, Frame, Kind, check_frame, map_points, positions
from ..geometry import bounding_boxes, compose_matrices, determinants, lattice_points, linearized, linearized_once
from ..ops import _torch
from .inversion import in_pieces, step, unmapped


class AbstractTransform(nn.Module, ABC):
    """A family of warps: theta (B, num_params) -> where each output point is read in the input (pull).

    A member defines `num_params`, `identity` and `map_points`; the rest follows. Options are fixed at construction;
    theta is data. What a member may know of the image that is read is in its `Frame`.

    What a family can do besides is said here, so that nobody has to try: `kind`, `closed`, `matrix`, `inverse`,
    `compose`, `bending_energy`.
    """

    ndim: int = 2
    _constants: dict[str, Tensor]  # by the name of the buffer, on the CPU
    kind: Kind = "grid"  # of its `coordinates`: "affine", "projective" or "two-sided" where a warp is a matrix

    def __init__(self) -> None:
        super().__init__()
        self._constants = {}

    @property
    @abstractmethod
    def num_params(self) -> int:
        """The width of theta."""

    @property
    def param_names(self) -> tuple[str, ...]:
        """What the numbers of theta are, in order, for pictures and tables."""
        return tuple(f"theta {i}" for i in range(self.num_params))

    @abstractmethod
    def identity(self) -> Tensor:
        """The theta (num_params,) of the warp that changes nothing."""

    @abstractmethod
    def map_points(
        self,
        theta: Tensor,  # (B, num_params)
        points: Tensor,  # (B, N, d)
        frame: Frame = SQUARE,
    ) -> Tensor:
        """Output points (B, N, d), normalized (x, y), to the input points (B, N, d) that are read for them."""

    @property
    def closed(self) -> bool:
        """Whether `compose` always gives a member. A bound can be left; a homography's horizon can reach the centre of the
        frame; training must not stop there."""
        return False

    def coordinates(
        self,
        theta: Tensor,  # (B, num_params)
        size: tuple[int, ...],
        frame: Frame = SQUARE,
    ) -> Coordinates:
        """Where the pixels of an output of `size` are read, in the shortest form that the family has.

        Raises:
            ValueError: for a theta of another shape or type. The size and the frame are taken as they are.
        """
        theta = self.check_theta(theta)
        mapped = self.map_points(theta, self._lattice(theta, size, frame.align_corners), frame)
        return Coordinates("grid", size, mapped.reshape(theta.shape[0], *size, self.ndim))

    def grid(
        self,
        theta: Tensor,  # (B, num_params)
        size: tuple[int, ...],
        frame: Frame = SQUARE,
    ) -> Tensor:
        """The sampling positions (B, *size, d) for an output of `size`; the image has that size too, unless `frame` says
        another."""
        size, frame = self._check_size(size, frame)
        return positions(self.coordinates(theta, size, frame), frame.align_corners, coordinate_dtype(theta))

    def jacobian(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The derivative of `map_points` at output points (B, N, d): (B, N, d, d), one row an input coordinate."""
        theta = self.check_theta(theta)
        points = self.check_points(theta, points).expand(theta.shape[0], -1, -1)
        return self._linearize(theta, points, frame)[1]

    def _linearize(self, theta: Tensor, points: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """`map_points` and `jacobian` of checked points (B, N, d); a family that can do better than by vector-Jacobian
        products says so here."""
        watched = torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.compiler.is_compiling()
        watched = watched or _torch.transforming() or _torch.in_forward_mode()
        return (linearized if watched else linearized_once)(lambda p: self.map_points(theta, p, frame), points)

    def matrix(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        """theta as affine maps (B, d, d+1) or projective ones (B, d+1, d+1), where `kind` says that it is one.

        Raises:
            ValueError: for families whose warps are no matrices.
        """
        raise ValueError(f"transform: the warps of {type(self).__name__} are no matrices")

    def from_matrix(self, matrix: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta (B, num_params) of maps that belong to the family, affine (B, d, d+1) or projective (B, d+1, d+1).

        Raises:
            ValueError: for maps outside the family or its bounds, and for families that are not found by a matrix.
        """
        raise ValueError(f"transform: {type(self).__name__} has no theta for a matrix")

    def spread(self, unit: Tensor) -> Tensor:
        """The theta (B, num_params) of numbers (B, num_params) from 0 to 1, which spread evenly over all that the bounds allow: for
        starts of a search, and warps at random. 1/2 is the identity; a turn without a bound goes once round.

        Raises:
            ValueError: for a family without bounds, or of which only some are told, and for numbers outside.

        Example:
            >>> import stn
            >>> stn.Translation(max_shift=0.5).spread(torch.tensor([[0.5, 0.9]]))
            tensor([[0.0000, 0.5482]])
        """
        raise ValueError(f"transform: {type(self).__name__} has no bounds to spread theta over")

    def check_unit(self, unit: Tensor) -> Tensor:
        """Numbers (B, num_params) from 0 to 1, in float32 or float64, or a ValueError."""
        check_float_tensor("unit", unit, f"numbers (B, {self.num_params}) from 0 to 1")
        if unit.ndim != 2 or unit.shape[1] != self.num_params or not bool(((unit >= 0) & (unit <= 1)).all()):
            raise ValueError(f"unit: expected numbers (B, {self.num_params}) from 0 to 1, got {describe(unit)}")
        return unit.to(coordinate_dtype(unit))

    def fit(self, displacement: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The theta (B, num_params) that moves points as `displacement` says, (N, d) -> (B, N, d), wherever the family is
        free to: what is exact, `stn.convert` finds out. None for families that are not found so."""
        return None

    def bending_energy(self, theta: Tensor) -> Tensor | None:
        """How much each warp bends, (B,), in closed form; None for families that have none."""
        return None

    def determinant(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The determinant of `jacobian`, (B, N): how much of the input an output point stands for. Negative where the
        warp mirrors, 0 where it collapses."""
        return determinants(self.jacobian(theta, points, frame))

    def folds(self, theta: Tensor, size: tuple[int, ...], frame: Frame = SQUARE) -> Tensor:
        """Whether each warp folds over or collapses on the pixel centres of `size`: (B,), true where the Jacobian
        determinant vanishes or has both signs. A mirror image does not fold."""
        theta = self.check_theta(theta)
        size, frame = self._check_size(size, frame)
        points = self._lattice(theta, size, frame.align_corners)
        with torch.no_grad():
            sign = in_pieces(lambda p: self.determinant(theta, p, frame).sign(), points)
        return ~((sign > 0).all(1) | (sign < 0).all(1))

    def unmap_points(
        self,
        theta: Tensor,  # (B, num_params)
        points: Tensor,  # (B, N, d)
        frame: Frame = SQUARE,
        *,
        tolerance: float = 1e-4,
        missing: Literal["raise", "nan"] = "raise",
    ) -> Tensor:
        """Input points (B, N, d) to the output points where they appear: the inverse of `map_points`, by Newton's method.

        Args:
            tolerance: the largest distance, in normalized units, that is left between `map_points` of the result and
                `points`.
            missing: what becomes of points for which it is not reached, because the warp folds there or never reads
                them: "raise", or "nan" in their place.

        Raises:
            ValueError: for such points, unless `missing="nan"`.
        """
        check_choice("missing", missing, ("raise", "nan"))
        theta = self.check_theta(theta)
        target = self.check_points(theta, points).expand(theta.shape[0], -1, -1)

        def linearize(points: Tensor) -> tuple[Tensor, Tensor]:
            return self._linearize(theta, points, frame)

        with torch.no_grad():
            found, missed = unmapped(linearize, target, tolerance)
        if torch.is_grad_enabled() and linearize(target[:, :1])[0].requires_grad:
            for _ in range(2):  # which brings the first and the second derivative
                found = step(linearize, found, target)
        if missing == "nan":
            return torch.where((missed <= tolerance)[..., None], found, torch.nan)
        if bool((~(missed <= tolerance)).any()):
            image, point = (~(missed <= tolerance)).nonzero()[0].tolist()
            raise ValueError(
                f"points: expected points that the warp reaches, but point {point} of image {image} is missed by "
                f"{float(missed[image, point]):.2g}: the warp folds or does not read there"
            )
        return found

    def map_boxes(
        self,
        theta: Tensor,  # (B, num_params)
        boxes: Tensor,  # (B, N, 2 d)
        frame: Frame = SQUARE,
    ) -> Tensor:
        """Upright boxes (x0, y0[, z0], x1, y1[, z1]) of the output to the upright boxes (B, N, 2 d) in the input that
        hold what they show: the bounds of a lattice of 9 points an axis in each box."""
        theta = self.check_theta(theta)
        points = self._points_in(theta, boxes)
        mapped = self.map_points(theta, points.flatten(1, 2), frame)
        return bounding_boxes(mapped.unflatten(1, points.shape[1:3]))

    def unmap_boxes(
        self,
        theta: Tensor,  # (B, num_params)
        boxes: Tensor,  # (B, N, 2 d)
        frame: Frame = SQUARE,
    ) -> Tensor:
        """Upright boxes of the input to the upright boxes (B, N, 2 d) of the output in which they appear, as
        `map_boxes`. Raises ValueError where `unmap_points` does."""
        theta = self.check_theta(theta)
        points = self._points_in(theta, boxes)
        found = self.unmap_points(theta, points.flatten(1, 2), frame)
        return bounding_boxes(found.unflatten(1, points.shape[1:3]))

    def _points_in(self, theta: Tensor, boxes: Tensor) -> Tensor:
        """A lattice of 9 points an axis in each box, (B, N, 9^d, d)."""
        d = self.ndim
        if not isinstance(boxes, Tensor) or boxes.ndim != 3 or boxes.shape[-1] != 2 * d:
            raise ValueError(f"boxes: expected (B, N, {2 * d}), got {describe(boxes)}")
        t = torch.linspace(0, 1, 9, dtype=theta.dtype, device=theta.device)
        inside = torch.stack(torch.meshgrid([t] * d, indexing="ij"), -1).reshape(-1, d)
        low, high = boxes[:, :, None, :d].to(theta.dtype), boxes[:, :, None, d:].to(theta.dtype)
        return low + (high - low) * inside

    def inverse(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta of the inverse warp, in the same family."""
        raise ValueError(f"transform: {type(self).__name__} has no inverse within its family")

    def compose(self, a: Tensor, b: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The theta of p -> a(b(p)), in the same family."""
        raise ValueError(f"transform: {type(self).__name__} is not closed under composition; `a @ b` composes any two")

    def inverted(self, theta: Tensor, frame: Frame = SQUARE) -> tuple[AbstractTransform, Tensor]:
        """The inverse warp, as a family and its theta: the family itself, but for compositions, whose order turns round.

        Raises:
            ValueError: as `inverse`.
        """
        return self, self.inverse(theta, frame)

    def config(self) -> dict[str, Any]:
        """What `stn.transforms.from_config` makes this family from again: its name in `TRANSFORMS`, and the options of
        its constructor by their own names. Numbers, text and lists alone, as JSON and YAML can say them.

        Every option is an attribute of the same name. All are said, those at their defaults too, so that a file
        still means the same where a default has changed.

        Raises:
            ValueError: for a class without a name, and for an option that no attribute keeps or no file can say.

        Example:
            >>> from stn import Translation
            >>> Translation(max_shift=0.5).config()
            {'name': 'translation', 'ndim': 2, 'max_shift': 0.5}
        """
        kind = type(self)
        name = next((name for name, family in named_families().items() if family is kind), None)
        if name is None:
            raise ValueError(
                f"config: {kind.__name__} has no name; give it one: stn.transforms.TRANSFORMS['...'] = {kind.__name__}"
            )
        config: dict[str, Any] = {"name": name}
        for option in inspect.signature(kind).parameters:
            try:
                value = self._constants[option] if option in self._constants else getattr(self, option)
            except AttributeError:
                raise ValueError(
                    f"config: {kind.__name__} does not keep its option {option!r}; expected an attribute of that name"
                ) from None
            config[option] = _plain(value, f"{kind.__name__}.{option}")
        return config

    def forward(self, theta: Tensor, size: tuple[int, ...]) -> Tensor:
        """`grid(theta, size)`."""
        return self.grid(theta, size)

    def __matmul__(self, other: AbstractTransform) -> AbstractTransform:
        return Compose(self, other)

    def _register_constants(self, device: torch.device | None = None, **constants: Tensor) -> None:
        """Buffers that follow the module to a device and never to another type: the numbers are those of the
        configuration, made under `constants()`, and not part of the state_dict."""
        for name, constant in constants.items():
            self._constants[name] = constant
            self.register_buffer(name, constant.to(device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, constant in self._constants.items():  # also after `to_empty`, which leaves any numbers
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = constant.to(moved.device)
        return self

    def _lattice(self, theta: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
        """The pixel centres of an output, (B, N, d)."""
        return lattice_points(theta, size, align_corners).expand(theta.shape[0], -1, -1)

    def _check_size(self, size: tuple[int, ...], frame: Frame) -> tuple[tuple[int, ...], Frame]:
        """The size of an output, and the frame: that of an image of the same size unless it says another."""
        size, frame = check_size(size, self.ndim, least=0), check_frame(frame, self.ndim)
        image_size = frame.image_size or tuple(max(n, 1) for n in size)
        return size, frame._replace(image_size=image_size)

    def check_theta(self, theta: Tensor) -> Tensor:
        """theta as float32 or float64 (B, num_params), or a ValueError that says the right width."""
        name = type(self).__name__
        check_float_tensor("theta", theta, f"(B, {self.num_params}) parameters of {name}")
        if theta.ndim != 2 or theta.shape[1] != self.num_params:
            raise ValueError(
                f"theta: expected (B, {self.num_params}) parameters of {name}, got shape {tuple(theta.shape)}"
            )
        return theta.to(coordinate_dtype(theta))

    def check_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """points as (B, N, d) in theta's type, or a ValueError."""
        check_float_tensor("points", points, f"points (B, N, {self.ndim})")
        if points.ndim != 3 or points.shape[2] != self.ndim or points.shape[0] not in (1, theta.shape[0]):
            raise ValueError(f"points: expected ({theta.shape[0]}, N, {self.ndim}), got shape {tuple(points.shape)}")
        if points.device != theta.device:
            raise ValueError(f"points: expected on the device of theta ({theta.device}), got {points.device}")
        return points.to(theta.dtype)


class Compose(AbstractTransform):
    """`outer @ inner`: the map p -> outer(inner(p)); theta is outer's followed by inner's.

    As warps of an image: first by `outer`, then by `inner`, without the resampling in between. Matrices are multiplied,
    other families follow one another.

    Example:
        >>> from stn import Rotation, Translation
        >>> both = Rotation() @ Translation()
        >>> both.num_params, both.map_points(torch.tensor([[0.0, 0.5, 0.0]]), torch.zeros(1, 1, 2))
        (3, tensor([[[0.5000, 0.0000]]]))
    """

    def __init__(self, outer: AbstractTransform, inner: AbstractTransform) -> None:
        super().__init__()
        for argument, value in (("outer", outer), ("inner", inner)):
            if not isinstance(value, AbstractTransform):
                raise ValueError(f"{argument}: expected a transform, got {value!r}")
        if outer.ndim != inner.ndim:
            raise ValueError(f"inner: expected {outer.ndim}D as outer, got {inner.ndim}D")
        self.ndim = outer.ndim
        self.outer, self.inner = outer, inner

    @property
    def num_params(self) -> int:
        return self.outer.num_params + self.inner.num_params

    @property
    def param_names(self) -> tuple[str, ...]:
        parts = {"outer": self.outer, "inner": self.inner}
        return tuple(f"{part} {name}" for part, family in parts.items() for name in family.param_names)

    def identity(self) -> Tensor:
        return torch.cat([self.outer.identity(), self.inner.identity()])

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """theta (B, num_params) as outer's and inner's."""
        outer, inner = self.check_theta(theta).split([self.outer.num_params, self.inner.num_params], dim=1)
        return outer, inner

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """A matrix where both are, for they are multiplied; else positions."""
        kinds = {self.outer.kind, self.inner.kind}
        if kinds == {"affine"}:
            return "affine"
        # A homography that shows both sides of its horizon and one that does not are no third one.
        return (
            "projective"
            if kinds <= {"affine", "projective"}
            else "two-sided"
            if kinds <= {"affine", "two-sided"}
            else "grid"
        )

    def matrix(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        """The product of the two matrices. Raises ValueError where one of the two is no matrix family."""
        outer, inner = self.split(theta)
        return compose_matrices(self.outer.matrix(outer, frame), self.inner.matrix(inner, frame))

    def coordinates(self, theta: Tensor, size: tuple[int, ...], frame: Frame = SQUARE) -> Coordinates:
        if self.kind != "grid":
            return Coordinates(self.kind, size, self.matrix(theta, frame))
        outer, inner = self.split(theta)
        points = positions(self.inner.coordinates(inner, size, frame), frame.align_corners, inner.dtype)
        mapped = self.outer.map_points(outer, points.flatten(1, -2), frame)
        return Coordinates("grid", size, mapped.reshape(theta.shape[0], *size, self.ndim))

    def map_points(self, theta: Tensor, points: Tensor, frame: Frame = SQUARE) -> Tensor:
        theta = self.check_theta(theta)
        if self.kind != "grid":
            points = self.check_points(theta, points)
            return map_points(Coordinates(self.kind, (), self.matrix(theta, frame)), points)
        outer, inner = self.split(theta)
        return self.outer.map_points(outer, self.inner.map_points(inner, points, frame), frame)

    def unmap_points(
        self,
        theta: Tensor,  # (B, num_params)
        points: Tensor,  # (B, N, d)
        frame: Frame = SQUARE,
        *,
        tolerance: float = 1e-4,
        missing: Literal["raise", "nan"] = "raise",
    ) -> Tensor:
        """Input points (B, N, d) to the output points where they appear: taken back by `outer`, then by `inner`. Where that misses
        by more than `tolerance` it is Newton's method for both at once."""
        check_choice("missing", missing, ("raise", "nan"))
        outer, inner = self.split(theta)
        target = self.check_points(outer, points).expand(outer.shape[0], -1, -1)
        between = self.outer.unmap_points(outer, target, frame, tolerance=tolerance, missing="nan")
        found = self.inner.unmap_points(inner, between, frame, tolerance=tolerance, missing="nan")
        with torch.no_grad():
            missed = (self.map_points(theta, found, frame) - target).norm(dim=-1)
        if bool((missed <= tolerance).all()):
            return found
        return super().unmap_points(theta, points, frame, tolerance=tolerance, missing=missing)

    def inverse(self, theta: Tensor, frame: Frame = SQUARE) -> Tensor:
        """Raises ValueError: the order turns round, so the inverse is another family. See `inverted`."""
        raise ValueError(
            "transform: the inverse of a composition is another family; `inverted(theta)` gives it with its theta"
        )

    def inverted(self, theta: Tensor, frame: Frame = SQUARE) -> tuple[AbstractTransform, Tensor]:
        """The inverse warp: the inverse of `inner` @ the inverse of `outer`, and its theta.

        Raises:
            ValueError: where one of the two has no inverse.
        """
        outer, inner = self.split(theta)
        a, theta_a = self.outer.inverted(outer, frame)
        b, theta_b = self.inner.inverted(inner, frame)
        return Compose(b, a), torch.cat([theta_b, theta_a], dim=1)


# Every family by name; `transforms/__init__.py` fills it. A family of your own is known to configurations, and to
# whatever takes a name, once it is here: `TRANSFORMS["swirl"] = Swirl`.
TRANSFORMS: dict[str, type[AbstractTransform]] = {}


def named_families() -> dict[str, type[AbstractTransform]]:
    """`TRANSFORMS`, and compositions, which are made of them."""
    return {**TRANSFORMS, "compose": Compose}


def _plain(value: Any, where: str) -> Any:
    """The value of an option as JSON and YAML can say it."""
    if isinstance(value, AbstractTransform):
        return value.config()
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (tuple, list)):
        return [_plain(each, where) for each in value]
    for kind in (bool, int, float, str):  # NumPy's float64 is a float, and YAML has no word for it
        if isinstance(value, kind):
            return kind(value)
    if value is not None:
        raise ValueError(f"config: expected numbers, text, lists or a transform in {where}, got {describe(value)}")
    return None


@contextlib.contextmanager
def constants() -> Iterator[None]:
    """Where a family makes what it is configured by: on the CPU, also where modules are made on the meta device, and fit
    for training, also where it is first used in inference mode."""
    with torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
        yield


def exact(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where autocast does not run products in half precision, which would tear a field or move it by whole pixels."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
