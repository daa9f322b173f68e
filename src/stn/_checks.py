"""Checks at the public edge. Below it, code trusts its arguments."""

from __future__ import annotations

import difflib
import operator
import reprlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def describe(value: Any) -> str:
    """What came, in the words of an error message: arrays by their shape, long values by their beginning."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)}, {value.dtype}"
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def nearest_name(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_choice(argument: str, value: Any, choices: Collection[str]) -> None:
    if value not in choices:
        names = list(choices)
        raise ValueError(
            f"{argument}: expected one of {', '.join(names)}, got {value!r}{nearest_name(str(value), names)}"
        )


def check_flag(argument: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{argument}: expected True or False, got {describe(value)}")


def check_count(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{argument}: expected a positive int, got {describe(value)}")


def check_number(argument: str, value: Any, expected: str, ok: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not ok(value):
        raise ValueError(f"{argument}: expected {expected}, got {describe(value)}")


def check_float_tensor(argument: str, value: Any, expected: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{argument}: expected {expected} as a torch.Tensor, got {describe(value)}")
    if not value.is_floating_point():
        raise ValueError(f"{argument}: expected {expected} of a floating-point type, got {value.dtype}")


def check_image(image: Any, argument: str = "image", least: int = 1) -> tuple[int, ...]:
    """(B, C, [[D,] H,] W), floating point, every spatial size at least `least`; returns these sizes."""
    check_float_tensor(argument, image, "images (B, C, [[D,] H,] W)")
    return _check_image_shape(image, argument, least)


def check_readable(image: Any, mode: Any, argument: str = "image") -> tuple[int, ...]:
    """As `check_image`, for what is read and not trained on: bytes too, and integers of any width where nothing is
    blended."""
    if not isinstance(image, Tensor) or not image.is_floating_point():
        if not isinstance(image, Tensor) or image.is_complex():
            check_float_tensor(argument, image, "images (B, C, [[D,] H,] W)")
        if image.dtype != torch.uint8 and mode != "nearest":
            raise ValueError(
                f"{argument}: expected images of a floating-point type or uint8 with mode={mode!r}, got {image.dtype}; "
                f"other integers, such as labels, are read with mode='nearest'"
            )
    return _check_image_shape(image, argument)


def _check_image_shape(image: Tensor, argument: str, least: int = 1) -> tuple[int, ...]:
    size = tuple(image.shape[2:])
    if not 1 <= len(size) <= 3:
        raise ValueError(
            f"{argument}: expected (B, C, W), (B, C, H, W) or (B, C, D, H, W), got shape {tuple(image.shape)}"
        )
    if min(size) < least:
        raise ValueError(f"{argument}: expected every spatial size to be at least 1, got shape {tuple(image.shape)}")
    return size


def check_size(size: Any, ndim: int | None = None, argument: str = "size", least: int = 1) -> tuple[int, ...]:
    """A size ([[D,] H,] W) as a tuple of ints of at least `least`; anything that is an index will do for one."""
    if type(size) is tuple and len(size) == ndim:  # as most are
        for n in size:
            if type(n) is not int or n < least:
                break
        else:
            return size
    count = f"{ndim} {{}}{'s' * (ndim > 1)}" if ndim else "1 to 3 {}s ([[D,] H,] W)"
    wanted = count.format("int" if least > 1 else "positive int" if least else "non-negative int")
    wanted += f" of at least {least}" if least > 1 else ""
    if isinstance(size, str) or not isinstance(size, Sequence):
        raise ValueError(f"{argument}: expected {wanted}, got {describe(size)}")
    if len(size) != ndim if ndim else len(size) not in (1, 2, 3):
        raise ValueError(f"{argument}: expected {wanted}, got {tuple(size)}")
    try:
        numbers: tuple[Any, ...] = tuple(
            n if type(n) is int or isinstance(n, torch.SymInt) else _index(n) for n in size
        )
    except TypeError:
        raise ValueError(f"{argument}: expected {wanted}, got {tuple(size)}") from None
    for n in numbers:
        if n < least:
            raise ValueError(f"{argument}: expected {wanted}, got {numbers}")
    return numbers


def _index(n: Any) -> int:
    """NumPy's integers and tensors of one integer are ints here; booleans are not."""
    if isinstance(n, bool) or getattr(n, "dtype", None) == torch.bool:
        raise TypeError
    return operator.index(n)


def check_spacing(spacing: Any, ndim: int, argument: str = "spacing") -> tuple[float, ...] | None:
    """The lengths of a pixel's sides along (x, y[, z]) as floats, or None where they are not told; else a ValueError."""
    if spacing is None:
        return None
    try:
        numbers = () if isinstance(spacing, (str, bytes)) else tuple(float(side) for side in spacing)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != ndim or not all(0 < side < float("inf") for side in numbers):
        raise ValueError(
            f"{argument}: expected None or {ndim} positive number{'s' * (ndim > 1)}, the length of a pixel's side along "
            f"{', '.join('xyz'[:ndim])}, got {describe(spacing)}"
        )
    return numbers


def check_batches(first: str, a: Tensor, second: str, b: Tensor) -> int:
    """The batch size that `a` and `b` share; a batch of 1 is broadcast."""
    if a.device != b.device:
        raise ValueError(f"{second}: expected on the device of {first} ({a.device}), got {b.device}")
    if a.shape[0] == b.shape[0] or b.shape[0] == 1:
        return a.shape[0]
    if a.shape[0] == 1:
        return b.shape[0]
    raise ValueError(f"{second}: expected a batch of {a.shape[0]} (as {first}) or 1, got {b.shape[0]}")


def check_bound(argument: str, value: float | None, above: float = 0.0) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and above < value < float("inf")):
        raise ValueError(f"{argument}: expected None or a finite number above {above:g}, got {describe(value)}")


def coordinate_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where any of the tensors is float64, else float32: coordinates are never half precision."""
    for tensor in tensors:  # every small warp comes by here: a loop, not a generator
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32
