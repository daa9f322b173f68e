"""Every name of torch's that is not public, and what replaces it when it goes. All of them were there in torch 2.11 to 2.13."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Whether `torch.func` is at work (vmap, grad, jvp, ...). Without it: `torch._C._functorch.maybe_current_level()`.
transforming = torch._C._are_functorch_transforms_active

# How many modes see each call (FakeTensorMode, make_fx, ...). Without it: `torch.utils._python_dispatch` has the stack.
modes = torch._C._len_torch_dispatch_stack

# Whether a tensor belongs to a transform of `torch.func`. Without it: `torch.func.debug_unwrap(t) is not t`.
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def in_forward_mode() -> bool:
    """Whether tangents are carried along, by `torch.func.jvp` or by `forward_ad.dual_level`.

    Without the counter: unpack every argument by `forward_ad.unpack_dual`, which costs more than a small warp.
    """
    return forward_ad._current_level >= 0


def materialized(tensor: Tensor) -> Tensor:
    """The same numbers in memory: views that are negated or zero only when somebody looks (`conj().imag`, tangents).

    Without the second: `torch.zeros_like` for tensors whose data pointer is 0.
    """
    if tensor.is_neg() or tensor._is_zerotensor():
        return tensor.clone()
    return tensor


def has_memory(tensor: Tensor) -> bool:
    """False for the slices that `is_grads_batched` passes through a backward, and for tensors that wrap others."""
    try:
        return tensor.data_ptr() != 0 or not tensor.numel()
    except RuntimeError:
        return False
