"""Random combinations of everything that a warp can be asked, against `truth.py`.

A case is one combination of options on one backend: output, and the gradients that it asks for. It follows from
(seed, number) alone, and a failure prints it as lines of Python with every number in them.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stn
from stn.ops import backends, use_backend, which_backend

from . import truth as T

# Gradients of coordinates are not compared within so many pixels of a kink of the linear kernel. With 0 the truth at a
# pixel is the central difference.
KINK = 1e-3
# Where an expectation does not hold. A backend that is mended leaves the set.
EXCEPTIONS: dict[str, set[str]] = {
    # A position that is not finite passes no gradient, neither to the image nor to itself.
    "no gradient from nowhere": set(),
    # Negative and conjugate views are read as what they stand for.
    "lazy views": set(),
    # A pixel that no output pixel shows does not reach it, even if it is NaN: torch's own kernel clips a position beyond
    # the border and then reads the next pixel, too, times zero.
    "poison stays": {"aten"},
    # Half-way between two pixels the even one is read, beyond the border too: torch reflects first and rounds then.
    "reflected ties": {"aten"},
}

KINDS = ("affine", "projective", "basis", "grid")
MODES = ("bilinear", "bilinear", "bicubic", "nearest", "integer")
PADDINGS = ("zeros", "border", "reflection", "circular", "constant")
DTYPES = (torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (
    "contiguous", "contiguous", "contiguous", "channels last", "transposed", "sliced", "offset", "expanded", "negative", "conjugate",
)  # fmt: skip
FLAVOURS = (("plain", 0.80), ("exact", 0.08), ("nowhere", 0.04), ("far", 0.03), ("poisoned", 0.03), ("scaled", 0.02))
CONTROL = {2: ((2, 2), (2, 3), (3, 3)), 3: ((2, 2, 2), (2, 2, 3))}

# What is left of a sum of products of order 1, relative to the sum of their magnitudes, at positions within 20 pixels.
SUMS = {torch.float64: 2e-12, torch.float32: 1e-4}
# Rounding of the result, relative to itself.
ROUNDING = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-10}
TINY = {torch.float64: 1e-300, torch.float32: 1e-36, torch.bfloat16: 1e-36, torch.float16: 2e-7}


@dataclass
class Combination:
    """The options of one case, the tensors it reads, and what must come out."""

    flavour: str
    image: Tensor
    coords: Tensor
    upstream: Tensor
    kind: str
    size: tuple[int, ...]
    options: dict[str, Any]
    control: tuple[int, ...]
    for_image: bool
    for_coords: bool
    problem: T.Problem = field(repr=False)
    # Filled by `_upstream`: which points are compared, and how far their positions may be off.
    truth: T.Truth = field(init=False, repr=False)
    error: np.ndarray = field(init=False, repr=False)  # (B, N, 1), in pixels
    finite: np.ndarray = field(init=False, repr=False)  # (B, N), their positions
    compared: np.ndarray = field(init=False, repr=False)  # (B, N)
    poison: np.ndarray = field(init=False, repr=False)  # (B, C, N): must show what is not finite
    clean: np.ndarray = field(init=False, repr=False)  # (B, N): cannot

    @property
    def d(self) -> int:
        return self.image.ndim - 2

    def needs(self) -> list[str]:
        """The expectations that the whole case stands on."""
        ties = self.flavour == "exact" and self.options["mode"] == "nearest" and not self.options["align_corners"]
        return [
            name
            for name, asked in (
                ("lazy views", self.image.is_neg() or self.coords.is_neg() or self.upstream.is_neg()),
                ("poison stays", self.flavour == "poisoned"),
                ("reflected ties", ties and self.options["padding_mode"] == "reflection"),
            )
            if asked
        ]

    def run(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        image = self.image.detach().requires_grad_(self.for_image)
        coords = self.coords.detach().requires_grad_(self.for_coords)
        if self.kind == "grid":
            out = stn.sample(image, coords, **self.options)
        else:
            transform = spline(self.control) if self.kind == "basis" else None
            out = stn.warp(image, coords, self.size, transform=transform, **self.options)
        wanted = [t for t, asked in ((image, self.for_image), (coords, self.for_coords)) if asked]
        grads = list(torch.autograd.grad(out, wanted, self.upstream)) if wanted else []
        of_image = grads.pop(0) if self.for_image else None
        return out.detach(), of_image, grads.pop(0) if self.for_coords else None


@functools.cache
def spline(control: tuple[int, ...]) -> stn.ThinPlateSpline:
    return stn.ThinPlateSpline(control)


@functools.cache
def supported(backend: str, d: int, mode: str, padding_mode: str) -> bool:
    with use_backend(backend):
        try:
            which_backend(d, mode, padding_mode)  # type: ignore[arg-type]
        except ValueError:
            return False
    return True


def available() -> list[str]:
    return [name for name, state in backends().items() if state == "available"]


# Making a case


def arrange(tensor: Tensor, layout: str, poison: float = math.nan) -> Tensor:
    """The same numbers in another memory layout, with poison around them where there is room."""
    n = tensor.ndim
    if layout == "channels last":
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        large = torch.full([2 * k + 1 for k in tensor.shape], poison, dtype=tensor.dtype)
        view = large[tuple(slice(1, None, 2) for _ in range(n))]
        view.copy_(tensor)
        return view
    if layout == "offset":
        large = torch.full([k + 2 for k in tensor.shape], poison, dtype=tensor.dtype)
        view = large[tuple(slice(1, -1) for _ in range(n))]
        view.copy_(tensor)
        return view
    if layout == "negative":
        return torch._neg_view(-tensor)
    if layout == "conjugate":
        if tensor.dtype not in (torch.float32, torch.float64):
            return tensor.contiguous()
        return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    return tensor.contiguous()


def combination(seed: int, number: int) -> Combination:
    rng = np.random.default_rng((seed, number))
    flavour = str(rng.choice([f for f, _ in FLAVOURS], p=[p for _, p in FLAVOURS]))
    d = int(rng.choice([1, 2, 2, 2, 3]))
    kind = KINDS[rng.integers(4)]
    mode, padding_mode = MODES[rng.integers(5)], PADDINGS[rng.integers(5)]
    align_corners = bool(rng.integers(2))
    dtype = DTYPES[rng.integers(5)]
    if kind == "basis" and d == 1:
        kind = "affine"
    if flavour == "exact":
        kind = ("grid", "affine")[rng.integers(2)]
    if flavour in ("nowhere", "far") and kind in ("basis", "projective"):
        kind = "grid"
    if flavour == "scaled" and dtype not in (torch.float32, torch.float64):
        dtype = torch.float32
    real = torch.float64 if dtype == torch.float64 else torch.float32

    in_size, size = _sizes(rng, d, flavour, align_corners, large=mode != "bicubic" or d < 3)
    batch, channels = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3, 4, 5, 8, 16, 17]))
    if math.prod(in_size) > 500:
        channels = min(channels, 4)
    broadcast = rng.integers(6)
    image_batch, coords_batch = (1 if broadcast == 0 else batch), (1 if broadcast == 1 else batch)

    image_layout, coords_layout = LAYOUTS[rng.integers(10)], LAYOUTS[rng.integers(10)]
    pixels = rng.standard_normal((image_batch, channels, *in_size))
    if image_layout == "expanded":
        pixels = np.broadcast_to(pixels[..., :1], pixels.shape) if rng.integers(2) else pixels[:, :1] + 0 * pixels
        pixels = pixels.copy()
    scale = 1.0
    if flavour == "scaled":
        scale = float(rng.choice([1e30, 1e-30, 1e-38] if dtype == torch.float32 else [1e30, 1e-300, 1e200]))
        pixels = pixels * scale
    image = torch.from_numpy(pixels).to(dtype)
    if flavour == "poisoned":
        for _ in range(3):
            place = tuple(rng.integers(n) for n in image.shape)
            image[place] = float(rng.choice([np.nan, np.inf, -np.inf]))
    fill = scale * rng.standard_normal(channels if rng.integers(2) else 1)
    coords_ = _coordinates(rng, kind, flavour, coords_batch, d, in_size, size, align_corners)
    control: tuple[int, ...] = ()
    if kind == "basis":
        control = CONTROL[d][rng.integers(len(CONTROL[d]))]
        coords_ = 0.4 * rng.standard_normal((coords_batch, math.prod(control) * d))
    coords = torch.from_numpy(coords_).to(torch.float64 if rng.integers(5) == 0 else real)
    if kind != "grid" and rng.integers(10) == 0 and flavour not in ("far", "scaled"):
        coords = coords.to(torch.bfloat16)

    image, coords = _place(image, image_layout), _place(coords, coords_layout)
    options: dict[str, Any] = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    if padding_mode == "constant":
        options["fill"] = float(fill[0]) if len(fill) == 1 else torch.from_numpy(fill).to(real)
    exact_fill = np.zeros(channels)
    if padding_mode == "constant":
        exact_fill += torch.as_tensor(options["fill"], dtype=real).double().numpy()

    problem = T.Problem(
        np.broadcast_to(image.resolve_neg().double().numpy(), (batch, channels, *in_size)),
        np.broadcast_to(coords.resolve_neg().to(real).double().numpy(), (batch, *coords.shape[1:])),
        kind, size, mode, padding_mode, exact_fill, align_corners, control,
    )  # fmt: skip
    asked = rng.integers(10)
    for_image, for_coords = asked not in (0, 1), asked not in (0, 2)
    upstream = torch.from_numpy(rng.standard_normal((batch, channels, *size))).to(dtype)
    layout = ("contiguous", "contiguous", "channels last", "transposed", "sliced", "negative", "scalar")[
        rng.integers(7)
    ]
    made = Combination(
        flavour, image, coords, upstream, kind, size, options, control, for_image, for_coords, problem
    )  # fmt: skip
    made.upstream = _upstream(made, upstream, layout, real)
    return made


def _sizes(
    rng: np.random.Generator, d: int, flavour: str, align_corners: bool, large: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if flavour == "exact":  # normalized coordinates of these sizes have no rounding
        choice = (2, 3, 5, 9) if align_corners else (1, 2, 4, 8)
        return tuple(int(n) for n in rng.choice(choice, d)), tuple(int(n) for n in rng.choice(choice, d))
    if large and rng.integers(60) == 0:
        most = (200, 70, 16)[d - 1]
        return tuple(int(n) for n in rng.integers(1, most, d)), tuple(int(n) for n in rng.integers(1, most, d))
    top = (10, 10, 6)[d - 1]
    return tuple(int(n) for n in rng.integers(1, top, d)), tuple(int(n) for n in rng.integers(1, top - 1, d))


def _coordinates(
    rng: np.random.Generator, kind: str, flavour: str, batch: int, d: int,
    in_size: tuple[int, ...], size: tuple[int, ...], align_corners: bool,
) -> np.ndarray:  # fmt: skip
    if flavour == "exact":
        if kind == "affine":
            matrix = np.zeros((batch, d, d + 1))
            for b in range(batch):
                matrix[b, np.arange(d), rng.permutation(d)] = rng.choice([1, -1, 0.5, 2, 1], d)
                matrix[b, :, d] = rng.choice([0, 0, 0.5, -1, 1, 0.25], d)
            return matrix
        grid = np.empty((batch, *size, d))
        for axis, n in enumerate(in_size):  # pixels, halves between them, borders and what lies beyond
            p = rng.integers(-6, 2 * n + 6, (batch, *size)) / 2
            grid[..., d - 1 - axis] = 2 * p / max(n - 1, 1) - 1 if align_corners else (2 * p + 1) / n - 1
        return grid
    if kind == "grid":
        grid = rng.uniform(-1.7, 1.7, (batch, *size, d))
        if flavour == "nowhere":
            _strike(rng, grid, [np.nan, np.inf, -np.inf], 3)
        elif flavour == "far":
            _strike(rng, grid, [1e3, -1e3, 1e10, -1e10, 1e30, -1e30, 3e38, -3e38, 1e-40], 4)
        return grid
    n = d if kind == "affine" else d + 1
    matrix = np.eye(n, d + 1) + 0.35 * rng.standard_normal((batch, n, d + 1))
    if kind == "projective":
        matrix[:, -1, :-1] = rng.uniform(-0.6 / d, 0.6 / d, (batch, d))
        matrix[:, -1, -1] = 1
        matrix *= rng.choice([1, -1, 0.5, -3], (batch, 1, 1))
    elif flavour == "nowhere":
        _strike(rng, matrix, [np.nan, np.inf, -np.inf], 1)
    elif flavour == "far":
        _strike(rng, matrix, [1e3, -1e3, 1e10, -1e10, 1e30, -1e30, 1e-40], 1)
    elif rng.integers(10) == 0:
        matrix[:, :, :d] *= rng.choice([0, 1e-3, 3])  # collapsed, nearly so, and far out
    return matrix


def _strike(rng: np.random.Generator, values: np.ndarray, with_: list[float], times: int) -> None:
    for _ in range(times):
        values[tuple(rng.integers(n) for n in values.shape)] = rng.choice(with_)


def _place(tensor: Tensor, layout: str) -> Tensor:
    if layout != "expanded":
        return arrange(tensor, layout)
    for axis in range(tensor.ndim - 1, 0, -1):  # an axis along which nothing changes, without memory
        first = tensor.narrow(axis, 0, 1)
        if tensor.shape[axis] > 1 and torch.equal(first.expand_as(tensor), tensor):
            return first.clone().expand_as(tensor)
    return tensor.contiguous()


def _upstream(made: Combination, upstream: Tensor, layout: str, real: torch.dtype) -> Tensor:
    """The gradient that comes in: zero where the answer is not defined to the digits that are compared."""
    found = made.problem.forward()
    made.truth = found
    error = position_error(made, real)
    made.error = error
    finite = np.isfinite(found.position).all(-1)
    mode = made.options["mode"]
    kinks = found.position + (0.5 if mode in ("nearest", "integer") else 0.0)
    with np.errstate(invalid="ignore"):
        distance = np.abs(kinks - np.rint(kinks))
    exact = made.flavour == "exact"
    jumps = np.zeros_like(finite) if exact or mode not in ("nearest", "integer") else (distance <= error).any(-1)
    made.compared = finite & ~jumps & (error[..., 0] < 0.05)
    if made.options["padding_mode"] in ("circular", "reflection"):  # by any number of periods, up to what an int holds
        made.compared &= (np.abs(found.position) < 1e8).all(-1)
    made.finite = finite
    defined = made.compared.copy()
    if made.for_coords and mode == "bilinear":
        near = KINK if exact else np.maximum(error, KINK)
        defined &= ~(distance <= near).any(-1)
    if made.flavour == "poisoned":
        made.poison, made.clean = _poisoned(made)
        if made.for_coords:
            defined &= made.clean
    mask = torch.from_numpy(defined).reshape(defined.shape[0], 1, *made.size)
    if layout == "scalar" and defined.all():
        return upstream.flatten()[:1].reshape([1] * upstream.ndim).expand_as(upstream)
    return arrange(torch.where(mask, upstream, 0), "contiguous" if layout == "scalar" else layout)


def position_error(made: Combination, real: torch.dtype) -> np.ndarray:
    """How far, in pixels, the working type may be off at each point, (B, N, 1)."""
    p = made.problem
    eps = 2.0**-52 if real == torch.float64 else 2.0**-23
    half = max(p.in_size) / 2
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(np.nan_to_num(made.truth.position, nan=0)).max(-1) + half
        if p.kind in ("affine", "projective"):
            terms = half * np.abs(np.nan_to_num(p.coords, nan=0, posinf=0, neginf=0)).sum((1, 2))[:, None]
            if p.kind == "projective":
                terms = terms * (1 + size / half) / np.abs(p.denominator[..., 0])
            size = size + terms
        return (16 * eps * size)[..., None]


def _poisoned(made: Combination) -> tuple[np.ndarray, np.ndarray]:
    """Points that must show a pixel that is not finite, and points that cannot: (B, C, N) and (B, N)."""
    p, found = made.problem, made.truth
    bad = ~np.isfinite(p.value)  # (B, N, K, C)
    bad &= (found.reads >= 0)[..., None]
    must = (bad & (np.abs(found.weight) > 1e-3)[..., None]).any(2).transpose(0, 2, 1)
    # One more pixel all around: rounding may look there, with a weight of nearly nothing.
    everywhere = ~np.isfinite(p.image).all(1, keepdims=True)
    shadow = np.zeros_like(p.image[:, :1]) + everywhere
    grown = T.Problem(
        shadow, p.coords, p.kind, p.size, "bicubic", p.padding_mode, np.zeros(1), p.align_corners, p.control
    )  # fmt: skip
    grown.forward()
    return must, ~((grown.value != 0) & grown.inside[..., None]).any((2, 3))


# Checking it


def check(made: Combination, backend: str) -> str | None:
    """What is wrong with a case on a backend, or None."""
    if any(backend in EXCEPTIONS[name] for name in made.needs()):
        return None
    nowhere = not made.finite.all()
    for_image, for_coords = made.for_image, made.for_coords
    if nowhere and backend in EXCEPTIONS["no gradient from nowhere"]:
        made.for_image = made.for_coords = False
    try:
        with use_backend(backend):
            out, of_image, of_coords = made.run()
        return _compare(made, out, of_image, of_coords)
    except Exception:
        return traceback.format_exc()
    finally:
        made.for_image, made.for_coords = for_image, for_coords


def _compare(made: Combination, out: Tensor, of_image: Tensor | None, of_coords: Tensor | None) -> str | None:
    found, p = made.truth, made.problem
    dtype = made.image.dtype
    real = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (*p.image.shape[:2], *made.size)
    if tuple(out.shape) != shape or out.dtype != dtype:
        return f"output: expected {shape}, {dtype}, got {tuple(out.shape)}, {out.dtype}"
    # One pixel of error in position times the largest step between pixels, and the sums themselves.
    loose = SUMS[real] + made.error * 4 * p.d
    ours = out.resolve_neg().double().numpy().reshape(found.out.shape)
    finite = made.finite[:, None] & np.ones_like(ours, dtype=bool)
    if not np.isnan(ours[~finite]).all():
        return _say("output: expected NaN where a position is not finite", ours, found.out, ~finite & ~np.isnan(ours))
    compared = made.compared[:, None] & finite
    if made.flavour == "poisoned":
        wrong = made.poison & finite & compared & np.isfinite(ours)
        if wrong.any():
            return _say("output: expected what is not finite in the image", ours, found.out, wrong)
        compared = compared & made.clean[:, None]
    else:
        most = np.maximum(np.abs(p.image).max(initial=0), np.abs(p.fill).max(initial=0))
        with np.errstate(invalid="ignore"):
            wrong = finite & ~(np.abs(ours) <= most * 1.01 * (2 if made.options["mode"] == "bicubic" else 1) ** p.d)
        if wrong.any():
            return _say("output: expected values within those of the image", ours, found.out, wrong)
        most_ = np.abs(p.image).reshape(len(p.image), p.image.shape[1], -1).max(-1)[..., None]
    if made.flavour == "poisoned":
        most_ = np.abs(np.where(np.isfinite(p.image), p.image, 0)).max()
    most_ = np.maximum(most_, np.abs(p.fill).max(initial=0))
    tolerance = loose.transpose(0, 2, 1) * np.maximum(most_, found.touched if made.flavour != "poisoned" else 0)
    message = _differ("output", ours, found.out, tolerance, dtype, compared)
    if message or (of_image is None and of_coords is None):
        return message
    g = made.upstream.resolve_neg().double().numpy().reshape(found.out.shape)
    if made.flavour == "poisoned":
        p.value = np.where(np.isfinite(p.value), p.value, 0)
    image, coords, image_size, coords_size = p.backward(g)
    worst = float(np.where(made.compared, loose[..., 0], 0).max(initial=SUMS[real]))
    unit = np.abs(g).max(initial=0)
    if of_image is not None:
        if of_image.shape != made.image.shape or of_image.dtype != dtype:
            return f"gradient of the image: expected {tuple(made.image.shape)}, got {tuple(of_image.shape)}, {of_image.dtype}"
        rounded = 0.0
        if made.image.shape[0] != len(image):  # autograd sums what has been rounded
            image, image_size = image.sum(0, keepdims=True), image_size.sum(0, keepdims=True)
            rounded = 2 * ROUNDING[dtype]
        tolerance = 2 * worst * max(image_size.max(initial=0), unit) + rounded * image_size
        ours = of_image.resolve_neg().double().numpy()
        if message := _differ("gradient of the image", ours, image, tolerance, dtype):
            return message
    if of_coords is not None and made.flavour == "poisoned" and made.kind != "grid":
        return None  # the sum over all points takes in what is poisoned: zero times NaN
    if of_coords is not None:
        if of_coords.shape != made.coords.shape or of_coords.dtype != made.coords.dtype:
            return f"gradient of the coordinates: expected {tuple(made.coords.shape)}, got {tuple(of_coords.shape)}, {of_coords.dtype}"
        rounded = 0.0
        if made.coords.shape[0] != len(coords):
            coords, coords_size = coords.sum(0, keepdims=True), coords_size.sum(0, keepdims=True)
            rounded = 2 * ROUNDING[made.coords.dtype]
        # Weights that should be nothing are off by their rounding.
        nothing = 1e-2 * unit * np.abs(np.where(np.isfinite(p.image), p.image, 0)).max(initial=0) * max(p.in_size)
        tolerance = 4 * worst * max(coords_size.max(initial=0), nothing) + rounded * coords_size
        ours = of_coords.resolve_neg().double().numpy()
        clean: Any = True
        if made.flavour == "poisoned":
            clean = made.clean.reshape(len(made.clean), *made.size, 1)
            clean = clean if len(clean) == len(ours) else clean.all(0, keepdims=True)
        if made.options["mode"] in ("nearest", "integer") and (clean & (ours != 0)).any():
            return "gradient of the coordinates: expected zeros for the nearest pixel"
        return _differ("gradient of the coordinates", ours, coords, tolerance, made.coords.dtype, clean)
    return None


def _differ(
    what: str, ours: np.ndarray, truth: np.ndarray, tolerance: np.ndarray, dtype: torch.dtype, compared: Any = True
) -> str | None:
    with np.errstate(invalid="ignore", over="ignore"):
        allowed = tolerance + ROUNDING[dtype] * np.abs(truth) + TINY[dtype]
        wrong = compared & ~(np.abs(ours - truth) <= allowed)
    return _say(what, ours, truth, wrong) if wrong.any() else None


def _say(what: str, ours: np.ndarray, truth: np.ndarray, wrong: np.ndarray) -> str:
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.where(wrong, np.nan_to_num(np.abs(ours - truth), nan=np.inf), -1)
    place = np.unravel_index(distance.argmax(), distance.shape)
    at = tuple(int(k) for k in place)
    return (
        f"{what}: at {at} expected {truth[place]:.9g}, got {ours[place]:.9g}; {int(wrong.sum())} of {wrong.size} wrong"
    )


# Saying how to see it


def reproducer(made: Combination, backend: str, seed: int, number: int, message: str) -> str:
    """Lines of Python that show a failure, with every number in them where they are not too many."""
    lines = [f"# {line}" for line in message.strip().splitlines()]
    lines.append(f"# {made.flavour}; again: python -m tests.torture fuzz --seed {seed} --only {number}")
    lines += ["import torch, stn", "nan, inf = float('nan'), float('inf')"]
    for name in ("image", "coords", "upstream"):
        lines.append(f"{name} = {_literal(getattr(made, name))}")
    options = {k: _Literal(v) if isinstance(v, Tensor) else v for k, v in made.options.items()}
    arguments = ", ".join(f"{k}={v!r}" for k, v in options.items())
    for name, asked in (("image", made.for_image), ("coords", made.for_coords)):
        if asked:
            lines.append(f"{name}.requires_grad_()")
    lines.append(f"with stn.ops.use_backend({backend!r}):")
    if made.kind == "grid":
        lines.append(f"    out = stn.sample(image, coords, {arguments})")
    else:
        family = f"transform=stn.ThinPlateSpline({made.control}), " if made.kind == "basis" else ""
        lines.append(f"    out = stn.warp(image, coords, {made.size}, {family}{arguments})")
    if made.for_image or made.for_coords:
        lines.append("    out.backward(upstream)")
    gradients = [name for name, asked in (("image", made.for_image), ("coords", made.for_coords)) if asked]
    lines.append(f"print(out{''.join(f', {name}.grad' for name in gradients)})")
    return "\n".join(lines)


class _Literal:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __repr__(self) -> str:
        return _literal(self.tensor)


def _literal(tensor: Tensor) -> str:
    """A tensor as Python, in its own memory layout."""
    if tensor.numel() > 2000:
        return f"...  # {tuple(tensor.shape)}, {tensor.dtype}, strides {tensor.stride()}: too many to print"
    if tensor.is_neg():
        inner = f"torch.tensor({(-tensor).resolve_neg().tolist()}, dtype={tensor.dtype})"
        return f"torch._neg_view({inner})"
    stored = f"torch.tensor({tensor.tolist()}, dtype={tensor.dtype})"
    if tensor.is_contiguous() and tensor.storage_offset() == 0:
        return stored
    room = tensor.untyped_storage().nbytes() // tensor.element_size()
    if room < tensor.numel():  # an axis along which one number stands for all
        whole = torch.as_strided(tensor.detach(), (room,), (1,), 0)
        stored = f"torch.tensor({whole.tolist()}, dtype={tensor.dtype})"
        return f"{stored}.as_strided({tuple(tensor.shape)}, {tensor.stride()}, {tensor.storage_offset()})"
    room_ = f"torch.full(({room},), nan, dtype={tensor.dtype})"
    return f"{room_}.as_strided({tuple(tensor.shape)}, {tensor.stride()}, {tensor.storage_offset()}).copy_({stored})"


# The campaign


@np.errstate(invalid="ignore", over="ignore")
def campaign(
    seed: int, first: int, cases: int, only: list[str] | None = None, stop_after: int = 20
) -> tuple[int, int, list[str]]:
    """Runs numbers from `first` on until there were so many cases; how many there were, the next number, failures."""
    torch.set_num_threads(1)
    names = only or available()
    done, number, failures = 0, first, []
    while done < cases and len(failures) < stop_after:
        made = combination(seed, number)
        for backend in names:
            if not supported(backend, made.d, made.options["mode"], made.options["padding_mode"]):
                continue
            done += 1
            message = check(made, backend)
            if message is not None:
                failures.append(reproducer(made, backend, seed, number, message))
        number += 1
    return done, number, failures


def _worker(arguments: tuple[int, int, int, list[str] | None]) -> tuple[int, int, list[str]]:
    return campaign(*arguments)


def main(seed: int, cases: int, workers: int, backend: list[str] | None = None) -> int:
    """The whole campaign, over processes; the number of failures."""
    parts = 50 * workers
    jobs = [(seed, part << 24, math.ceil(cases / parts), backend) for part in range(parts)]  # numbers that never meet
    start, done, failed = time.perf_counter(), 0, 0
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for count, _, failures in pool.imap_unordered(_worker, jobs):
            done, failed = done + count, failed + len(failures)
            print(*failures, sep="\n\n", end="\n\n" if failures else "", flush=True)
            print(f"fuzz: {done:,} cases, {failed} failures, {time.perf_counter() - start:.0f} s", flush=True)
            if failed >= 100:
                print("fuzz: stopped, there are enough")
                break
    return failed
