"""Interpolation kernels beyond torch's own three, for `mode=`.

By name: "integer", "lanczos3", "bspline2" to "bspline5". With parameters: `cubic(a)`, `lanczos(radius)`,
`bspline(order)`. Or any function of the distance, as a `Kernel`: equation 3 of Jaderberg et al. 2015,

    V(x) = sum over pixels m of U[m] k(x - m),

a product over the axes of the image. With 3 to 6 taps on an axis those with a name or parameters have fast code on the
CPU, and on GPUs in 2D and 3D; a function of your own runs on the reference kernel. All of them in any dimension, with
every derivative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._checks import check_flag, check_number, describe

_NEGLIGIBLE = 1e-13  # of a prefilter's impulse response: the rest is cut off


@dataclass(frozen=True)
class Kernel:
    """An interpolation kernel for `mode=`: k(x - m) is the weight of pixel m at position x.

    Args:
        function: the kernel, elementwise, on signed distances x - m in pixels. Where it is not differentiable, neither
            is the warp.
        radius: it is taken as 0 beyond -radius <= x - m < radius. A multiple of 1/2, at least 1/2.
        normalize: divide the weights of each axis by their sum, for kernels whose sums vary (Lanczos).
        prefilter: turn the image into the coefficients with which the kernel interpolates it, first: the kernel has to
            be a symmetric one whose integer samples can be inverted, such as a B-spline.

    Raises:
        ValueError: for a function that cannot be called, any other radius, flags that are none, and for `prefilter` of
            a kernel without an inverse.

    Example:
        >>> import stn
        >>> tent = Kernel(lambda t: 1 - t.abs(), radius=1)
        >>> image, grid = torch.rand(1, 1, 4, 4), 2 * torch.rand(1, 3, 3, 2) - 1
        >>> torch.allclose(stn.sample(image, grid, mode=tent), stn.sample(image, grid), atol=1e-6)
        True

    Source: Jaderberg et al. 2015, equation 3.
    """

    function: Callable[[Tensor], Tensor]
    radius: float
    normalize: bool = False
    prefilter: bool = False
    # The filter that turns an image into the kernel's coefficients, from its centre on to one side. Numbers, computed
    # once: compilers and inference mode take them as they are.
    response: tuple[float, ...] = field(init=False, repr=False, compare=False, default=())
    # What one of this module's functions made, as that is called; None for any other. Fast code knows kernels by it.
    name: str | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"function: expected a function of distances, got {describe(self.function)}")
        check_number(
            "radius", self.radius, "a multiple of 1/2, from 1/2 to 64", lambda r: 0.5 <= r <= 64 and (2 * r) % 1 == 0
        )
        check_flag("normalize", self.normalize)
        check_flag("prefilter", self.prefilter)
        if self.prefilter:
            object.__setattr__(self, "response", _inverse_response(self))

    @staticmethod
    def named(name: str) -> Kernel:
        """The kernel of that `name`."""
        function, _, argument = name.removesuffix(")").partition("(")
        if function == "integer":
            return NAMED[function]
        return (
            cubic(float(argument))
            if function == "cubic"
            else {"lanczos": lanczos, "bspline": bspline}[function](int(argument))
        )

    def taps(self, position: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The pixels that a position in pixels reads along one axis, with their weights."""
        first = (position.detach() - self.radius).floor() + 1
        index = first.nan_to_num(0.0).long()
        distances = [position - (first + k) for k in range(round(2 * self.radius))]
        weights = [self.function(t) + 0 * t for t in distances]  # NaN where the position is
        if self.normalize:
            total = torch.stack(weights).sum(0)
            weights = [weight / total for weight in weights]
        return [(index + k, weight) for k, weight in enumerate(weights)]


def cubic(a: float = -0.5) -> Kernel:
    """Keys' cubic kernel: A = -0.5 reproduces quadratics, -0.75 is what "bicubic" has, -1 sharpens.

    Example:
        >>> cubic(-0.5).function(torch.tensor([0.0, 0.5, 1.5]))
        tensor([ 1.0000,  0.5625, -0.0625])

    Source: Keys 1981.
    """
    check_number("a", a, "a finite number", math.isfinite)
    return _as(f"cubic({float(a)!r})", Kernel(functools.partial(_cubic, a=float(a)), radius=2))


def lanczos(radius: int = 3) -> Kernel:
    """The sinc function in a window of its own shape, of 2 * radius pixels; the weights are made to sum to 1.

    Example:
        >>> lanczos(3).radius
        3

    Source: Duchon 1979.
    """
    check_number("radius", radius, "an int from 1 to 8", lambda r: isinstance(r, int) and 1 <= r <= 8)
    kernel = Kernel(functools.partial(_lanczos, radius=radius), radius=radius, normalize=True)
    return _as(f"lanczos({radius})", kernel)


def bspline(order: int = 3) -> Kernel:
    """The B-spline of an order from 2 to 5, with its prefilter: the interpolating spline, `order` - 1 times
    differentiable. The same as `scipy.ndimage` of that order.

    Example:
        >>> bspline(3).function(torch.tensor([0.0, 1.0]))
        tensor([0.6667, 0.1667])

    Source: Unser, Aldroubi and Eden 1991; Thevenaz, Blu and Unser 2000.
    """
    check_number("order", order, "an int from 2 to 5", lambda n: isinstance(n, int) and 2 <= n <= 5)
    kernel = Kernel(functools.partial(_bspline, order=order), radius=(order + 1) / 2, prefilter=True)
    return _as(f"bspline({order})", kernel)


def _as(name: str, kernel: Kernel) -> Kernel:
    object.__setattr__(kernel, "name", name)
    return kernel


def _integer(t: Tensor) -> Tensor:
    return torch.ones_like(t)


def _distance(t: Tensor) -> Tensor:
    # Not abs(), whose slope at 0 is 0: the second derivative of a smooth kernel would vanish there.
    return torch.where(t < 0, -t, t)


def _sinc(t: Tensor) -> Tensor:
    # Not torch's, whose second derivative at 0 is NaN, and wrong in float32 around it.
    square = (math.pi * t).square()
    small = square < 0.25
    x = torch.where(small, torch.ones_like(t), math.pi * t)
    series = torch.ones_like(t)
    for k in range(7, 0, -1):
        series = 1 - square * series / (2 * k * (2 * k + 1))
    return torch.where(small, series, x.sin() / x)


def _cubic(t: Tensor, a: float) -> Tensor:
    t = _distance(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, 0 * t))


def _lanczos(t: Tensor, radius: int) -> Tensor:
    inside = _sinc(t) * _sinc(t / radius)
    return torch.where(t.abs() < radius, inside, 0 * t)


def _bspline(t: Tensor, order: int) -> Tensor:
    # Truncated powers, counted from the end of the support: there are few where the spline is small.
    u = (order + 1) / 2 - _distance(t)
    terms = [(-1) ** k * math.comb(order + 1, k) * (u - k).clamp_min(0.0) ** order for k in range((order + 1) // 2 + 1)]
    return torch.stack(terms).sum(0) / math.factorial(order)


def _inverse_response(kernel: Kernel) -> tuple[float, ...]:
    period = 512
    # On the CPU whatever the default device is.
    samples = torch.zeros(period, dtype=torch.float64, device="cpu")
    for index, weight in kernel.taps(torch.zeros((), dtype=torch.float64, device="cpu")):
        samples[int(index) % period] = weight.detach()
    spectrum = torch.fft.fft(samples)
    response = torch.fft.ifft(1 / spectrum.real).real[: period // 2]
    relevant = response.abs() > _NEGLIGIBLE * response.abs().max()
    symmetric = bool((spectrum.imag.abs() <= 1e-12 * spectrum.abs().max()).all())
    if not symmetric or not bool(response.isfinite().all()) or bool(relevant[-1]):
        raise ValueError(
            f"prefilter: expected False, or a symmetric kernel whose samples at the pixels can be inverted, got samples "
            f"{samples.roll(period // 2)[period // 2 - 2 : period // 2 + 3].tolist()} at -2 to 2"
        )
    return tuple(response[: int(relevant.nonzero().max()) + 1].tolist())


# What the named modes stand for, beyond torch's own.
NAMED = {"integer": _as("integer", Kernel(_integer, radius=0.5)), "lanczos3": lanczos(3)} | {
    f"bspline{order}": bspline(order) for order in (2, 3, 4, 5)
}
