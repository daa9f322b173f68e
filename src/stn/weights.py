"""Weights in a file: safetensors, which holds numbers and nothing that runs, with a digest by which damage is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ._checks import describe


def serialize_weights(weights: Mapping[str, Tensor]) -> bytes:
    """Weights by name as the content of a file; those that share memory are written twice."""
    apart = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }
    content = save(apart, metadata={"format": "pt", "digest": _digest(apart)})
    # The library writes the metadata in another order each time, and equal weights are to be equal files.
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(length) + content[8 + length :]


def read_weights(file: Path) -> dict[str, Tensor]:
    """The weights of a file.

    Raises:
        ValueError: for a file that is damaged or of another kind, by its name.
    """
    try:
        with safe_open(file, framework="pt") as content:
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a mapping
            digest = (content.metadata() or {}).get("digest")
    except (SafetensorError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: damaged, or not a safetensors file ({error})") from error
    if digest is not None and digest != _digest(weights):
        raise ValueError(f"{file}: damaged, the weights are not those that were written")
    return weights


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`, bare or under `state_dict` or `model`: numbers alone, nothing is executed.

    Raises:
        ValueError: for a file that is damaged, of another kind, or holds more than numbers, by its name.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises half a dozen types for damaged files
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise ValueError(f"{file}: damaged, or no state dict that can be read with weights_only ({reason})") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file}: expected a state dict, tensors by name, got {describe(content)}")
    return {str(name): value for name, value in content.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Put weights that were read from `file` into a model.

    Raises:
        ValueError: where a name or a shape is not the model's, in the name of the file.
    """
    have, want = ({name: tuple(value.shape) for name, value in of.items()} for of in (weights, model.state_dict()))
    wrong = [name for name in {**want, **have} if have.get(name) != want.get(name)]
    if wrong:
        raise ValueError(
            f"{file}: holds the weights of another network than the settings say: {len(wrong)} tensors differ, first "
            f"{wrong[0]} with shape {have.get(wrong[0])}, not {want.get(wrong[0])}"
        )
    model.load_state_dict(dict(weights))


def _digest(weights: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
