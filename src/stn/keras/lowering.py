"""torch programs on `keras.ops`: exported once, read op by op.

`lower` takes a function of torch tensors and gives one of Keras tensors. torch runs once, on examples, and writes its
program down (`torch.export`, core ATen); each op has a counterpart in `ATEN`. After that no torch is involved, so the
compilers, gradients and vmap of the other framework see ops of their own. What depends on no input is worked out by
torch, once, and is a constant.

Interpolation stays one op: what torch calls `grid_sampler` is `portable.read`, with the derivatives of this library.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from keras import ops
from torch import Tensor

from ..ops.dispatch import use_backend
from ..reading import Reading
from . import portable
from .backends import Array, convert, elementary, take_along, type_name, without_triton

_LARGEST_CONSTANT = 2**16  # numbers; larger ones stay a program, that compilers have no arrays in their code
_KERNELS = ("bilinear", "nearest", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")
_END = 2**62  # of a slice that has none


def lower(
    function: Callable[..., Tensor],
    *examples: Tensor,  # the first axis of each is the batch, of any size
    ndim: int = 2,
    kinks: bool = False,
) -> Callable[..., Array]:
    """A function of torch tensors as one of Keras tensors of the same types.

    Args:
        function: of tensors (B, ...) alone, to one.
        examples: what to call it with, once, with the same batch for all.
        ndim: of the fields and images that it reads.
        kinks: no op that reads is kept: gathers alone, which have every derivative, the first of them on a pixel's centre
            the mean of both sides. Where the framework is to differentiate what is a derivative already.

    Raises:
        NotImplementedError: for an op that has no counterpart here yet.
    """
    batch = torch.export.Dim("batch", min=1)
    reader = "reference" if ndim == 1 or kinks else "aten"  # torch's own has no 1D
    if kinks:
        examples = tuple(example.detach().requires_grad_() for example in examples)
    with use_backend(reader), torch.set_grad_enabled(kinks), without_triton():
        program = torch.export.export(
            _Program(function), examples, dynamic_shapes=(tuple({0: batch} for _ in examples),)
        )
        table = torch.export.default_decompositions()
        table.pop(torch.ops.aten.detach.default)  # by which it is a name for the same tensor, with its gradient
        program = program.run_decompositions(table)
    stored = {**program.state_dict, **program.constants}
    kinds = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    inputs, constants, steps, result = [], {}, [], None
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if kinds[node.name] in stored:
                constants[node] = stored[kinds[node.name]].detach()
            else:
                inputs.append(node)
        elif node.op == "output":
            result = node.args[0][0]
        elif (
            node.op == "call_function" and "_assert" not in str(node.target) and "sym_constrain" not in str(node.target)
        ):
            known = all(other in constants for other in node.all_input_nodes)
            if known and str(node.target).startswith("aten."):
                value = node.target(*_read(node.args, constants), **_read(node.kwargs, constants))
                if isinstance(value, Tensor) and value.numel() <= _LARGEST_CONSTANT:
                    constants[node] = value
                    continue
            steps.append((node, _counterpart(node.target), node.args, node.kwargs))
    used = {other for node, *_ in steps for other in node.all_input_nodes} | {result}
    arrays = {node: value.numpy() for node, value in constants.items() if node in used}

    def run(*tensors: Array) -> Array:
        values: dict[Any, Any] = {node: convert(array) for node, array in arrays.items()}
        values.update(zip(inputs, tensors, strict=True))
        for node, counterpart, args, kwargs in steps:
            values[node] = counterpart(*_read(args, values), **_read(kwargs, values))
        return values[result]

    run.steps = len(steps)  # type: ignore[attr-defined]
    return run


class _Program(torch.nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def _read(argument: Any, values: dict[Any, Any]) -> Any:
    if isinstance(argument, torch.fx.Node):
        return values[argument]
    if isinstance(argument, (list, tuple)):
        return type(argument)(_read(a, values) for a in argument)
    if isinstance(argument, dict):
        return {key: _read(value, values) for key, value in argument.items()}
    return argument


def _counterpart(target: Any) -> Callable[..., Any]:
    if target.__module__ == "_operator":  # sums and products of sizes
        return target
    name = str(target).split(".")[1]
    if name not in ATEN:
        raise NotImplementedError(f"{target}: no counterpart in keras.ops yet")
    return ATEN[name]


# The ops


_TYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.int64: "int32",
    torch.int32: "int32",
    torch.uint8: "int32",
    torch.bool: "bool",
}


def _type(dtype: torch.dtype) -> str:
    return type_name(_TYPES[dtype])


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def call(a: Any, b: Any, alpha: float = 1) -> Any:
        a, b = _promoted(a, b)
        return function(a, b if alpha == 1 else b * alpha)

    return call


def _promoted(*values: Any) -> tuple[Any, ...]:
    """Of one floating-point type, the widest of the tensors among them: TensorFlow mixes none."""
    types = {type_name(value.dtype) for value in values if hasattr(value, "dtype")}
    floats = types & {"float32", "float64"}
    if not floats:
        return values
    wanted = "float64" if "float64" in floats else "float32"
    return tuple(
        convert(value, wanted)
        if not hasattr(value, "dtype") or type_name(value.dtype) in ("float32", "int32")
        else value
        for value in values
    )


def _divide(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    assert rounding_mode is None
    a, b = _promoted(a, b)
    return a / b


def _where(condition: Array, a: Any, b: Any) -> Array:
    return ops.where(condition, *_promoted(a, b))


def _clamp(x: Array, low: Any = None, high: Any = None) -> Array:
    """With the derivative 1 on the bounds themselves, as in torch; `maximum` has none or a half."""
    if low is not None:
        x = ops.where(x < low, convert(low, type_name(x.dtype)), x)
    return x if high is None else ops.where(x > high, convert(high, type_name(x.dtype)), x)


def _slice(x: Array, dim: int = 0, start: int | None = 0, end: int | None = None, step: int = 1) -> Array:
    index = [slice(None)] * len(x.shape)
    index[dim] = slice(start or 0, None if end is None or end >= _END else end, step)
    return x[tuple(index)]


def _select(x: Array, dim: int, index: int) -> Array:
    where: list[Any] = [slice(None)] * len(x.shape)
    where[dim] = index
    return x[tuple(where)]


def _shape(x: Array) -> list[Any]:
    return list(ops.shape(x))


def _expand(x: Array, size: Sequence[Any], **_: Any) -> Array:
    new = len(size) - len(x.shape)
    x = ops.reshape(x, (*[1] * new, *_shape(x))) if new else x
    # Not `broadcast_to`: XLA has no gradient of TensorFlow's in a loop.
    grows = [
        have == 1 and not (isinstance(want, int) and want in (1, -1)) for have, want in zip(x.shape, size, strict=True)
    ]
    times = [want if grow else 1 for grow, want in zip(grows, size, strict=True)]
    return ops.tile(x, times) if any(grows) else x


def _view(x: Array, size: Sequence[Any]) -> Array:
    return ops.reshape(x, tuple(size))


def _split(x: Array, sizes: Sequence[int], dim: int = 0) -> list[Array]:
    ends = np.cumsum([0, *sizes]).tolist()
    return [_slice(x, dim, start, end) for start, end in itertools.pairwise(ends)]


def _squeeze(x: Array, dims: Any = None) -> Array:
    return ops.squeeze(x, tuple(dims) if isinstance(dims, (tuple, list)) else dims)


def _pad(x: Array, pad: Sequence[int], value: float = 0.0) -> Array:
    pairs = [(pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)]
    widths = [(0, 0)] * (len(x.shape) - len(pairs)) + pairs[::-1]
    if any(n < 0 for pair in widths for n in pair):
        x = x[tuple(slice(max(-a, 0), -max(-b, 0) or None) for a, b in widths)]
        widths = [(max(a, 0), max(b, 0)) for a, b in widths]
    return ops.pad(x, widths, constant_values=value)


def _norm(x: Array, order: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
    """Its derivative at 0 is 0."""
    assert order == 2
    square = ops.sum(x * x, None if dim is None else tuple(dim), keepdims=keepdim)
    none = square == 0
    return ops.where(none, ops.zeros_like(square), elementary.sqrt(ops.where(none, ops.ones_like(square), square)))


def _searchsorted(marks: Array, values: Array, right: bool = False, side: str | None = None, **_: Any) -> Array:
    before = (
        marks[..., None, :] <= values[..., None]
        if right or side == "right"
        else marks[..., None, :] < values[..., None]
    )
    return ops.sum(ops.cast(before, "int32"), -1)


def _full(size: Sequence[Any], value: Any, dtype: torch.dtype | None = None, **_: Any) -> Array:
    kind = "bool" if isinstance(value, bool) else "float32" if dtype is None else _type(dtype)
    return ops.broadcast_to(convert(value, kind), tuple(size))


def _full_like(x: Array, value: Any, dtype: torch.dtype | None = None, **_: Any) -> Array:
    return ops.broadcast_to(convert(value, type_name(x.dtype) if dtype is None else _type(dtype)), _shape(x))


def _arange(start: int, end: int, step: int = 1, dtype: torch.dtype | None = None, **_: Any) -> Array:
    return convert(np.arange(start, end, step), "int32" if dtype is None else _type(dtype))


def _cast(x: Array, dtype: torch.dtype | None = None, **_: Any) -> Array:
    return x if dtype is None else ops.cast(x, _type(dtype))


def _signbit(x: Array) -> Array:
    return x < 0  # -0.0 is no other zero here


def _fmod(x: Array, n: Any) -> Array:
    return ops.sign(x) * ops.mod(ops.abs(x), n)


def _floor(x: Array) -> Array:
    """Keras' own makes float32 of float64 on JAX."""
    return ops.where(ops.isfinite(x), x - ops.mod(x, 1), x)


def _power(x: Array, exponent: Any) -> Array:
    if isinstance(exponent, (int, float)) and exponent == int(exponent) and 1 <= exponent <= 8:
        return math.prod([x] * (int(exponent) - 1), start=x)
    return ops.power(x, exponent)


def _sum(x: Array, dims: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return ops.sum(x, tuple(dims) if dims else None, keepdims=keepdim)


def _mean(x: Array, dims: Sequence[int], keepdim: bool = False, **_: Any) -> Array:
    """Keras' own makes float32 of float64 on JAX."""
    return _sum(x, dims, keepdim) / math.prod(x.shape[dim] for dim in dims)


def _grid_sampler(image: Array, grid: Array, kernel: int, padding: int, align_corners: bool) -> Array:
    reading = Reading(_KERNELS[kernel], _PADDINGS[padding], None, align_corners)
    d = grid.shape[-1]
    last = ops.transpose(image, (0, *range(2, d + 2), 1))
    return ops.transpose(portable.read(last, grid, reading), (0, d + 1, *range(1, d + 1)))


def _same(x: Array, *_: Any, **__: Any) -> Array:
    return x


ATEN: dict[str, Callable[..., Any]] = {
    "_to_copy": _cast,
    "abs": ops.abs,
    "add": _binary(operator.add),
    "alias": _same,
    "amax": lambda x, dims=(), keepdim=False: ops.max(x, tuple(dims) or None, keepdims=keepdim),
    "amin": lambda x, dims=(), keepdim=False: ops.min(x, tuple(dims) or None, keepdims=keepdim),
    "any": lambda x, dim=None, keepdim=False: ops.any(x, dim, keepdims=keepdim),
    "arange": _arange,
    "bitwise_and": ops.logical_and,
    "bitwise_not": ops.logical_not,
    "bitwise_or": ops.logical_or,
    "bmm": lambda a, b: portable.product("bij,bjk->bik", a, b),
    "cat": lambda tensors, dim=0: ops.concatenate(list(tensors), dim),
    "ceil": lambda x: -_floor(-x),
    "clamp": _clamp,
    "clone": _same,
    "constant_pad_nd": _pad,
    "copysign": lambda a, b: ops.where(b < 0, -ops.abs(a), ops.abs(a)),
    "cos": elementary.cos,
    "cumsum": lambda x, dim, **_: ops.cumsum(x, dim),
    "detach": ops.stop_gradient,
    "div": _divide,
    "eq": _binary(operator.eq),
    "exp": elementary.exp,
    "expand": _expand,
    "expm1": elementary.expm1,
    "floor": _floor,
    "fmod": _fmod,
    "full": _full,
    "full_like": _full_like,
    "gather": take_along,
    "ge": _binary(operator.ge),
    "grid_sampler_2d": _grid_sampler,
    "grid_sampler_3d": _grid_sampler,
    "gt": _binary(operator.gt),
    "index_select": lambda x, dim, index: ops.take(x, index, axis=dim),
    "isinf": ops.isinf,
    "isnan": ops.isnan,
    "le": _binary(operator.le),
    "linalg_vector_norm": _norm,
    "log": elementary.log,
    "log1p": elementary.log1p,
    "logical_and": ops.logical_and,
    "logical_not": ops.logical_not,
    "logical_or": ops.logical_or,
    "lt": _binary(operator.lt),
    "log2": lambda x: elementary.log(x) / math.log(2),
    "maximum": _binary(ops.maximum),
    "mean": _mean,
    "minimum": _binary(ops.minimum),
    "mm": lambda a, b: portable.product("ij,jk->ik", a, b),
    "mul": _binary(operator.mul),
    "ne": _binary(operator.ne),
    "neg": operator.neg,
    "permute": lambda x, dims: ops.transpose(x, tuple(dims)),
    "pow": _power,
    "reciprocal": lambda x: 1 / x,
    "relu": lambda x: ops.where(x > 0, x, ops.zeros_like(x)),
    "remainder": ops.mod,
    "round": ops.round,
    "scalar_tensor": lambda value, dtype=torch.float32, **_: convert(value, _type(dtype)),
    "searchsorted": _searchsorted,
    "select": _select,
    "sign": ops.sign,
    "signbit": _signbit,
    "sin": elementary.sin,
    "slice": _slice,
    "split_with_sizes": _split,
    "sqrt": elementary.sqrt,
    "squeeze": _squeeze,
    "sub": _binary(operator.sub),
    "sum": _sum,
    "sym_size": lambda x, dim: _shape(x)[dim],
    "tanh": elementary.tanh,
    "unsqueeze": lambda x, dim: ops.expand_dims(x, dim),
    "view": _view,
    "where": _where,
}
