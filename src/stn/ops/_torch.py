"""Every name of torch's that is not public, but for the mark in `stn._tracing`, and what replaces it when it goes. All of them were
there in torch 2.11 to 2.13."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

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

# torch's own kernels of grid_sampler_2d, grid_sampler_3d and their backwards, below the dispatcher, as libstdc++ names them.
# Without them: override.cpp has nothing to fall back on, and `stn.accelerate` says so; three of the four are there as
# `aoti_torch_cpu_grid_sampler_3d`, ..., whose errors have lost their words.
GRID_SAMPLERS = [
    "_ZN2at3cpu15grid_sampler_2dERKNS_6TensorES3_llb",
    "_ZN2at3cpu15grid_sampler_3dERKNS_6TensorES3_llb",
    "_ZN2at3cpu24grid_sampler_2d_backwardERKNS_6TensorES3_S3_llbSt5arrayIbLm2EE",
    "_ZN2at3cpu24grid_sampler_3d_backwardERKNS_6TensorES3_S3_llbSt5arrayIbLm2EE",
]

# The file that they are in, and the C functions for extensions. Without it: /proc/self/maps.
LIBRARY = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")


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


def warn_of_overrides() -> None:
    """torch warns of the first kernel in a process that takes another's place, and never again. From C++ it does that on
    the error output; here, of an op that nobody calls, it can be had and dropped.

    Without `_scoped_library`: a `Library` whose `_destroy` is called.
    """
    with warnings.catch_warnings(), torch.library._scoped_library("aten", "IMPL") as library:
        warnings.simplefilter("ignore")
        library.impl("_grid_sampler_2d_cpu_fallback", lambda *_: None, "CompositeExplicitAutograd", allow_override=True)
