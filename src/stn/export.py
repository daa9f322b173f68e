"""Networks for where there is no `stn`, and no Python: ONNX, and programs of `torch.export`.

`torch.onnx.export(model, ..., dynamo=True)` works as it is. What is here checks the result besides, writes a file that is whole or not
there, and makes programs that hold torch's own operations alone, for `torch.export.save` and AOTInductor.

ONNX needs the extra: `pip install "spatial-transformers[export]"`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ._checks import check_number, describe
from ._files import atomic_path
from ._tracing import exporting
from .deformable import by_level
from .ops import autograd, dispatch, flow

OPSETS = (18, 19, 20, 21, 22, 23)
Example = Tensor | Sequence[Tensor]


def program(model: nn.Module | ExportedProgram, example: Example | None = None) -> ExportedProgram:
    """The network as a program of torch's own operations, for any batch: it saves, loads and compiles without `stn`.

    Where `torch.export.export` alone keeps the registered op of the native code, which is faster and has gradients, this has
    `grid_sample`, or gathers where that cannot do it.

    Args:
        model: in eval mode; or a program that is exported already, which keeps the shapes that it was exported for.
        example: the inputs of a call, a tensor or a sequence of them, the batch first; of any batch.

    Raises:
        ValueError: for a model in training mode, and for an example that is missing or not of tensors with one batch.

    Example:
        >>> import stn
        >>> transformer = stn.SpatialTransformer(stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28))).eval()
        >>> exported = program(transformer, torch.rand(2, 1, 28, 28))
        >>> exported.module()(torch.rand(5, 1, 28, 28)).shape
        torch.Size([5, 1, 28, 28])
    """
    if isinstance(model, ExportedProgram):
        return model.run_decompositions(decompositions())
    # An axis of one is taken for one that is always one.
    inputs = tuple(torch.cat([each, each]) for each in _check(model, example))
    with exporting(), torch.no_grad():
        return torch.export.export(model, inputs, dynamic_shapes=_open(inputs))


def _open(inputs: Sequence[Any]) -> tuple[dict[int, Any], ...]:
    batch = Dim("batch")
    return tuple({0: batch} for _ in inputs)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What the registered ops of `stn` are in torch's own operations, for `ExportedProgram.run_decompositions`.

    Example:
        >>> import stn
        >>> exported = torch.export.export(stn.SpatialTransformer(stn.FCLocalizer(64, stn.Affine())), (torch.rand(2, 1, 8, 8),))
        >>> exported = exported.run_decompositions(decompositions())
        >>> any("stn" in str(node.target) for node in exported.graph.nodes)
        False
    """

    def portable(image: Tensor, values: Tensor, basis: Tensor | None, fill: Tensor | None, *how: Any) -> Tensor:
        with exporting():
            return dispatch.warp(image, *autograd.records(values, basis, fill, *how))

    def map_by_map(value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
        with exporting():
            return by_level(list(zip(sizes[::2], sizes[1::2], strict=True)), value, locations, weights)

    def step_by_step(velocity: Tensor, steps: int) -> Tensor:
        with exporting():
            return flow.integrate(velocity, steps)

    return dict.fromkeys(autograd.operators(), portable) | {
        torch.ops.stn.deformable.default: map_by_map,
        torch.ops.stn.integrate_velocity.default: step_by_step,
    }


def pt2(
    model: nn.Module | ExportedProgram,
    file: str | os.PathLike[str],
    example: Example | None = None,
    *,
    tolerance: float = 1e-4,
    metadata: Mapping[str, Any] | None = None,
) -> float:
    """Write `program(model, example)` to a `.pt2` file, which `torch.export.load` reads where there is no `stn`.

    The file is loaded again and compared with the model, at batches of other sizes than the example's and other contents.

    Args:
        model, example: as for `program`.
        file: with the suffix .pt2. It is whole or not there.
        tolerance: of the largest difference, as a part of the largest number of each output where that is above 1.
        metadata: what goes into the file beside the network, as JSON in an extra file "metadata".

    Returns:
        The largest difference.

    Raises:
        ValueError: for bad arguments, and where the program differs from the model by more than the tolerance; nothing is left
            behind then.

    Example:
        >>> import stn, tempfile
        >>> transformer = stn.SpatialTransformer(stn.ConvLocalizer(1, stn.Affine(), image_size=(28, 28))).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pt2(transformer, folder + "/transformer.pt2", torch.rand(2, 1, 28, 28)) < 1e-5
        True
    """
    path = _check_file(file, ".pt2", tolerance)
    exported = program(model, example)
    extra = {} if metadata is None else {"metadata": json.dumps(dict(metadata))}
    with atomic_path(path) as temporary:
        torch.export.save(exported, temporary, extra_files=extra)
        loaded = torch.export.load(temporary).module()
        return _compare(model, exported, example, lambda *inputs: loaded(*inputs), tolerance)


def onnx(
    model: nn.Module | ExportedProgram,
    file: str | os.PathLike[str],
    example: Example | None = None,
    *,
    opset: int = 20,
    tolerance: float = 1e-4,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> float:
    """Write a network to an `.onnx` file for any batch, and compare what ONNX Runtime makes of it.

    The inputs are named as those of the model's `forward`. The comparison is with the model, at batches of other sizes than the
    example's and other contents.

    Args:
        model, example: as for `program`.
        file: with the suffix .onnx. It is whole or not there.
        opset: 18 to 23. GridSample is the standard's for volumes from 20 on; ONNX Runtime has it at 18 as well.
        tolerance: of the largest difference, as a part of the largest number of each output where that is above 1.
        output_names: one for each output.
        metadata: what goes into the file beside the network, as JSON values of its `metadata_props`.

    Returns:
        The largest difference.

    Raises:
        ValueError: for bad arguments, where onnx, onnxscript or onnxruntime is missing, and where the network in ONNX Runtime differs
            from the model by more than the tolerance; nothing is left behind then.
    """
    path = _check_file(file, ".onnx", tolerance)
    check_number("opset", opset, f"one of {', '.join(map(str, OPSETS))}", lambda v: v in OPSETS)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f'{name}: expected to be installed; pip install "spatial-transformers[export]"')
    import onnxruntime

    exported = program(model, example)
    with _quietly():
        made = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=opset,
            output_names=output_names,
            dynamic_shapes=None if exported is model else _open(exported.example_inputs[0]),  # for the name "batch"
            verbose=False,
        )
    assert made is not None
    for key, value in (metadata or {}).items():
        made.model.metadata_props[key] = json.dumps(value)
    with atomic_path(path) as temporary:
        made.save(temporary, external_data=False)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]

        def run(*inputs: Tensor) -> list[Tensor]:
            feed = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
            return [torch.from_numpy(each) for each in session.run(None, feed)]

        return _compare(model, exported, example, run, tolerance)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter's log of its steps and its remarks about torchvision are not the user's business."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check_file(file: Any, suffix: str, tolerance: Any) -> Path:
    if not isinstance(file, (str, os.PathLike)) or Path(file).suffix != suffix:
        raise ValueError(f"file: expected a path that ends with {suffix}, got {describe(file)}")
    check_number("tolerance", tolerance, "a number of at least 0", lambda v: v >= 0)
    return Path(file)


def _check(model: Any, example: Any) -> tuple[Tensor, ...]:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module or an ExportedProgram, got {describe(model)}")
    if model.training:
        raise ValueError("model: expected one in eval mode, got one in training; call model.eval()")
    inputs = (example,) if isinstance(example, Tensor) else example
    if not isinstance(inputs, Sequence) or not inputs or not all(isinstance(each, Tensor) for each in inputs):
        raise ValueError(
            f"example: expected the inputs of a call, a tensor or a sequence of them, got {describe(example)}"
        )
    if any(each.ndim == 0 or each.shape[0] != inputs[0].shape[0] or each.shape[0] == 0 for each in inputs):
        shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
        raise ValueError(f"example: expected tensors with one batch first, got shapes {shapes}")
    return tuple(each.detach() for each in inputs)


def _compare(
    model: nn.Module | ExportedProgram,
    exported: ExportedProgram,
    example: Example | None,
    run: Callable[..., Any],
    tolerance: float,
) -> float:
    """The largest difference between a network and what `run` makes of it, or a ValueError."""
    calls: Iterable[tuple[Any, ...]]
    wanted_of: nn.Module
    if isinstance(model, ExportedProgram):
        calls, wanted_of = [exported.example_inputs[0]], model.module()
    else:
        calls, wanted_of = _calls(_check(model, example)), model
    largest = 0.0
    for inputs in calls:
        with torch.no_grad():
            outputs = _listed(wanted_of(*inputs)), _listed(run(*inputs))
        for want, got in zip(*outputs, strict=True):
            if want.shape != got.shape or want.dtype != got.dtype:
                raise ValueError(f"model: expected {describe(want)} from the exported network, got {describe(got)}")
            equal = (want == got) | (want.isnan() & got.isnan())
            off = torch.where(equal, 0.0, (want.double() - got.double()).abs()).nan_to_num(torch.inf, torch.inf)
            difference = float(off.max()) if off.numel() else 0.0
            scale = max(1.0, float(want.double().nan_to_num(0, 0, 0).abs().max())) if want.numel() else 1.0
            if difference > tolerance * scale:
                raise ValueError(
                    f"model: expected an exported network that differs by at most {tolerance * scale:.1e}, got {difference:.1e}"
                )
            largest = max(largest, difference)
    return largest


def _calls(example: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """The example, and others like it at other batches: 1, and more than the example's."""
    yield example
    # Images in a mirror; the rows of other inputs stay what they are, in another order.
    others = [each.flip(-1) if each.ndim > 2 else each.roll(1, 0) for each in example]
    yield tuple(each[:1] for each in others)
    yield tuple(torch.cat([each, other, each])[1:] for each, other in zip(example, others, strict=True))


def _listed(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    return [outputs] if isinstance(outputs, Tensor) else [leaf for each in outputs for leaf in _listed(each)]
