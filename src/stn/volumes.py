"""Volumes as files: NIfTI by nibabel (the extra `[volumes]`), with where they lie in the world.

nibabel indexes its arrays (x, y, z); tensors here are (1, C, D, H, W), so that (x, y, z) is the order of coordinates, and
nibabel's `affine` maps their voxel coordinates (x, y, z) to millimetres as it is.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._checks import describe
from ._files import atomic_path
from .conventions import check_world, spacing_of

_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Volume:
    """A volume and where it lies."""

    data: Tensor  # (1, C, D, H, W)
    world: Tensor  # (4, 4), voxel (x, y, z) to millimetres

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.data.shape[2:])

    @property
    def spacing(self) -> tuple[float, ...]:
        """The sides of a voxel in millimetres, (x, y, z)."""
        return spacing_of(self.world)


def is_volume(path: Path | str) -> bool:
    """Whether a file's name is that of a NIfTI volume."""
    return str(path).lower().endswith(_SUFFIXES)


def load(path: Path | str) -> Volume:
    """Read a NIfTI file. Integers, such as labels, keep their type where the file does not scale them; all else is float32.

    A fourth axis of the file are channels.

    Raises:
        ValueError: for files that are no volume of one or several channels of real numbers, and where nibabel is missing.
        OSError: for files that are not there.
    """
    nib, path = _nibabel(), Path(path)
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    try:
        image: Any = nib.load(path)
        stored = np.asanyarray(image.dataobj)
    except (nib.filebasedimages.ImageFileError, ValueError, OSError, EOFError) as error:
        raise ValueError(f"path: expected a NIfTI file, got {path} ({error})") from None
    if not isinstance(image, nib.Nifti1Image):
        raise ValueError(f"path: expected a NIfTI file, got {path}, a {type(image).__name__}")
    while stored.ndim > 4 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim not in (3, 4) or 0 in stored.shape or stored.dtype.kind not in "iufb":
        raise ValueError(
            f"path: expected a volume of real numbers in three dimensions, with channels as a fourth, got {path}, "
            f"{describe(stored)}"
        )
    array = np.ascontiguousarray(stored.T)  # ([C,] D, H, W)
    tensor = torch.from_numpy(_known(array))
    return Volume((tensor if stored.ndim == 4 else tensor[None])[None], check_world("path", image.affine, 3))


def save(path: Path | str, data: Tensor, world: Any) -> None:
    """Write a volume (1, C, D, H, W) as a NIfTI file, .nii or .nii.gz, in millimetres; integers as they are.

    Raises:
        ValueError: for another suffix, shape or type, for a matrix that is none, and where nibabel is missing.

    Example:
        >>> import tempfile
        >>> labels = torch.arange(24).reshape(1, 1, 2, 3, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/labels.nii.gz", labels, torch.diag(torch.tensor([1.0, 1, 3, 1])))
        ...     back = load(f"{folder}/labels.nii.gz")
        >>> torch.equal(back.data, labels), back.spacing
        (True, (1.0, 1.0, 3.0))
    """
    nib, path = _nibabel(), Path(path)
    if not is_volume(path):
        raise ValueError(f"path: expected a file named .nii or .nii.gz, got {path}")
    if not isinstance(data, Tensor) or data.ndim != 5 or data.shape[0] != 1 or data.is_complex() or 0 in data.shape:
        raise ValueError(f"data: expected one volume (1, C, D, H, W), got {describe(data)}")
    tensor = data[0].detach().cpu()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    array = tensor.to(torch.uint8).numpy() if tensor.dtype == torch.bool else tensor.numpy()
    array = array[0].T if array.shape[0] == 1 else array.T
    image = nib.Nifti1Image(array, check_world("world", world, 3).numpy(), dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _known(array: np.ndarray) -> np.ndarray:
    """In a type that torch reads with: unsigned integers in the next wider one, other floats in float32."""
    wider = {"u2": np.int32, "u4": np.int64, "u8": np.int64}
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    if kind in wider:
        return array.astype(wider[kind])
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="))


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise ValueError("volumes: nibabel is missing; pip install 'spatial-transformers[volumes]'") from error
    return nibabel
