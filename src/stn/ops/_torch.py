"""Every name of torch's that is not public, and what replaces it when it goes. All of them were there in torch 2.11 to 2.13."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Whether `torch.func` is at work (vmap, grad, jvp, ...). Without it: `torch._C._functorch.maybe_current_level()`.
transforming = torch._C._are_functorch_transforms_active

# How many modes see each call (FakeTensorMode, make_fx, ...). Without it: `torch.utils._python_dispatch` has the stack.
modes = torch._C._len_torch_dispatch_stack

# Whether `torch.jit.trace` is at work. Without it: `torch.jit.is_tracing()`, which calls it, and costs more.
tracing = torch._C._get_tracing_state

# Whether a tensor belongs to a transform of `torch.func`. Without it: `torch.func.debug_unwrap(t) is not t`.
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


_F = TypeVar("_F", bound=Callable[..., object])


def constant_when_compiled(function: _F) -> _F:
    """Compilers take what the function returns as a constant and do not look into it.

    It is `torch.compiler.assume_constant_result`, which imports the compiler at once, and that takes seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def plain_apply(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """`function.apply` without what it looks for at every call: a `setup_context`, transforms of `torch.func`, tensors that
    one of these has left behind. Without it: `function.apply`.
    """
    apply: Callable[..., Tensor] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def in_forward_mode() -> bool:
    """Whether tangents are carried along, by `torch.func.jvp` or by `forward_ad.dual_level`.

    Without the counter: unpack every argument by `forward_ad.unpack_dual`, which costs more than a small warp.
    """
    return forward_ad._current_level >= 0


def is_in_memory(tensor: Tensor) -> bool:
    """Whether the numbers lie where the data pointer says: not those that are negated only when somebody looks, zeros
    without any memory, the slices that `is_grads_batched` passes through a backward, or tensors that wrap others.

    Without the pointer of the slices, which raises: `torch._C._functorch.is_legacy_batchedtensor`.
    """
    try:
        return tensor.data_ptr() != 0 and not tensor.is_neg()
    except RuntimeError:
        return False


def materialized(tensor: Tensor) -> Tensor:
    """The same numbers in memory, where they can be had. Without the second question: a data pointer of 0."""
    return tensor.clone() if tensor.is_neg() or tensor._is_zerotensor() else tensor
