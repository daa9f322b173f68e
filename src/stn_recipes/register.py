"""Two files in, one brought onto the other: `stn register`."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors.torch import save as serialize
from torch import Tensor

import stn
from stn import viz, volumes
from stn.coordinates import MATRICES

from .files import write_bytes
from .predict import read_image, write_image

TransformName = Literal["corners", "rigid", "similarity", "affine", "bspline", "velocity"]


class _File(NamedTuple):
    """An image, and where it lies if it is a volume."""

    image: Tensor  # (1, C, [D,] H, W)
    world: Tensor | None  # (4, 4)


class Registered(NamedTuple):
    """What was found, and what was written."""

    found: stn.Registration
    files: list[Path]


def register_files(
    fixed: str | Path,
    moving: str | Path,
    out: str | Path,
    *,
    transform: TransformName = "affine",
    similarity: Literal["mse", "ncc", "mi"] = "ncc",
    control_points: int = 6,
    smoothness: float = 1e-4,
    levels: int | None = None,
    steps: int = 200,
    theta: str | Path | None = None,
    picture: str | Path | None = None,
    points: str | Path | None = None,
    labels: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Registered:
    """Bring the image of one file onto that of another, and write it, what was found, and what is carried along.

    "bspline" and "velocity" follow an affine registration. Volumes (.nii, .nii.gz) start as they lie in the world.

    Args:
        control_points: along each axis, of "bspline" and "velocity".
        theta: .safetensors or .npz with theta, the matrices, and for what bends the positions that are read (`grid`).
        picture: before and after; OUT.before_after.png unless given.
        points: CSV, one point of `moving` a line: x,y in pixels, or x,y,z in millimetres; written as OUT.points.csv, as
            they lie in `fixed`; nan where it does not show them.
        labels: a mask on the lattice of `moving`, read by nearest; written as OUT.labels, on that of `fixed`.

    Returns:
        What was found: whether it converged, too. The files are written in any case.

    Raises:
        ValueError: for files that are no images or do not fit together, by name. OSError: for those that are not there.
    """
    out = Path(out)
    pair = _read_pair(fixed, moving)
    (a, a_world), (b, b_world) = pair
    d = a.ndim - 2
    _check_out("out", out, volumes.is_volume(out) if d == 3 else out.suffix.lower() in Image.registered_extensions(), d)
    stem = out.name[: -len("".join(out.suffixes[-2:]))] if out.name.lower().endswith(".nii.gz") else out.stem
    picture = Path(picture) if picture is not None else out.with_name(f"{stem}.before_after.png")
    _check_out("picture", picture, picture.suffix.lower() in (".png", ".jpg", ".pdf", ".svg"), 2)
    if theta is not None:
        _check_out("theta", Path(theta), Path(theta).suffix in (".safetensors", ".npz"), 0)
    carried = None if points is None else _read_points(Path(points), d)
    mask = None if labels is None else _read_labels(Path(labels), tuple(b.shape[2:]))

    options: dict[str, Any] = {"similarity": similarity, "levels": levels, "steps": steps, "smoothness": smoothness}
    options |= {"fixed_world": a_world, "moving_world": b_world}
    bends = transform in ("bspline", "velocity")
    family = _family("affine" if bends else transform, d, a_world, control_points)
    found = stn.register(a, b, family, **options)
    say(f"{'affine' if bends else transform}: loss {found.before:.4f} -> {found.after:.4f}, {found.steps} steps")
    if bends:
        found = stn.register(a, b, _family(transform, d, a_world, control_points), initial=found, **options)
        say(f"{transform}: loss {found.before:.4f} -> {found.after:.4f}, {found.steps} steps")

    warped = found.warp(b)
    files = [out, picture]
    if d == 3:
        volumes.save(out, warped, a_world)
    else:
        write_image(out, warped)
    _write_picture(picture, a, found.unwarped(b), warped, found)
    if theta is not None:
        write_bytes(Path(theta), _content(Path(theta), found, a_world, b_world))
        files.append(Path(theta))
    if carried is not None:
        files.append(out.with_name(f"{stem}.points.csv"))
        write_bytes(files[-1], _carry_points(carried, found, a_world, b_world).encode())
    if mask is not None:
        files.append(out.with_name(f"{stem}.labels{'.png' if d == 2 else '.nii.gz'}"))
        _carry_labels(files[-1], mask, found, a_world)
    return Registered(found, files)


def _family(name: str, d: int, world: Tensor | None, control_points: int) -> stn.AbstractTransform:
    if name == "corners":
        if d != 2:
            raise ValueError(
                "transform: expected rigid, similarity, affine, bspline or velocity for volumes, got 'corners'"
            )
        return stn.Corners()
    if name == "bspline":
        return stn.BSpline((control_points,) * d)
    if name == "velocity":
        return stn.VelocityField((control_points,) * d)
    if name == "affine":
        return stn.Affine(d)
    spacing = None if world is None else stn.conventions.spacing_of(world)
    return stn.Rigid(d, spacing=spacing) if name == "rigid" else stn.Similarity(d, spacing=spacing)


def _read_pair(fixed: str | Path, moving: str | Path) -> tuple[_File, _File]:
    kinds = [volumes.is_volume(path) for path in (fixed, moving)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"moving: expected a {'volume (.nii, .nii.gz)' if kinds[0] else 'photo'} as fixed, got {moving}"
        )
    if not kinds[0]:
        return _File(read_image(fixed), None), _File(read_image(moving), None)
    a, b = volumes.load(fixed), volumes.load(moving)
    return _File(a.data.float(), a.world), _File(b.data.float(), b.world)


def _check_out(argument: str, path: Path, known: bool, d: int) -> None:
    wanted = {
        3: "a file named .nii or .nii.gz",
        2: "an image file such as .png",
        0: "a file named .safetensors or .npz",
    }
    if not known:
        raise ValueError(f"{argument}: expected {wanted[d]}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"{argument}: expected a folder that exists, got {path.parent}")


def _read_points(path: Path, d: int) -> Tensor:
    """(N, d), the lines of a CSV file; a first line of words is left out."""
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [[part.strip() for part in line.split(",")] for line in lines]
    if rows and not _are_numbers(rows[0]):
        rows = rows[1:]
    wrong = [n for n, row in enumerate(rows) if len(row) != d or not _are_numbers(row)]
    if wrong or not rows:
        what = f"{rows[wrong[0]]} as point {wrong[0] + 1}" if wrong else "none"
        raise ValueError(f"points: expected lines of {d} finite numbers with commas in {path}, got {what}")
    return torch.tensor([[float(part) for part in row] for row in rows], dtype=torch.float64)


def _are_numbers(row: list[str]) -> bool:
    try:
        return all(math.isfinite(float(part)) for part in row)
    except ValueError:
        return False


class _Labels(NamedTuple):
    values: Tensor  # (1, C, *size), integers
    palette: list[int] | None


def _read_labels(path: Path, size: tuple[int, ...]) -> _Labels:
    palette = None
    if len(size) == 3:
        values = volumes.load(path).data
    else:
        try:
            with Image.open(path) as image:
                palette = image.getpalette() if image.mode == "P" else None
                array = np.asarray(image)
        except (UnidentifiedImageError, SyntaxError) as error:
            raise ValueError(f"labels: {path}: not a readable image ({error})") from error
        array = array if array.ndim == 3 else array[..., None]
        wide = array.astype(np.int32) if array.dtype not in (np.uint8, np.bool_) else array
        values = torch.from_numpy(wide.copy()).permute(2, 0, 1)[None]
    if tuple(values.shape[2:]) != size:
        raise ValueError(f"labels: expected the size of moving, {size}, got {tuple(values.shape[2:])} in {path}")
    return _Labels(values, palette)


def _carry_labels(path: Path, labels: _Labels, found: stn.Registration, world: Tensor | None) -> None:
    carried = found.warp(labels.values, mode="nearest")
    if world is not None:
        volumes.save(path, carried, world)
        return
    pixels = carried[0].permute(1, 2, 0).numpy()
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    image = Image.fromarray(pixels.astype(np.uint16) if pixels.dtype == np.int32 else pixels)
    if labels.palette is not None:
        image.putpalette(labels.palette)
    file = io.BytesIO()
    image.save(file, format="PNG")
    write_bytes(path, file.getvalue())


def _carry_points(points: Tensor, found: stn.Registration, a_world: Tensor | None, b_world: Tensor | None) -> str:
    c = stn.conventions
    if b_world is None:
        normalized = c.pixel_to_normalized(points, found.moving_size)
    else:
        normalized = c.world_to_normalized(points, b_world, found.moving_size)
    there = found.unmap_points(normalized[None].to(found.theta), missing="nan")[0].double()
    if a_world is None:
        shown = c.normalized_to_pixel(there, found.fixed_size)
    else:
        shown = c.normalized_to_world(there, a_world, found.fixed_size)
    lines = [",".join(f"{value:.4f}" for value in point) for point in shown.tolist()]
    return "\n".join([",".join("xyz"[: points.shape[1]]), *lines]) + "\n"


def _content(path: Path, found: stn.Registration, a_world: Tensor | None, b_world: Tensor | None) -> bytes:
    tensors = {"theta": found.theta, "outer": found.outer}
    if found.transform.kind in MATRICES:
        tensors["matrix"] = found.matrix()
    else:
        lattice = stn.geometry.lattice_points(found.theta, found.fixed_size, False)
        tensors["grid"] = found.map_points(lattice).reshape(*found.fixed_size, -1)
    if a_world is not None and b_world is not None:
        tensors |= {"fixed_world": a_world, "moving_world": b_world}
        if "matrix" in tensors:
            sizes = b_world, found.moving_size, a_world, found.fixed_size
            tensors["world_matrix"] = stn.conventions.theta_to_world(tensors["matrix"].double(), *sizes)
    facts = {"transform": json.dumps(found.transform.config()), "fixed_size": json.dumps(found.fixed_size)}
    facts["moving_size"] = json.dumps(found.moving_size)
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        return serialize(tensors, metadata=facts)
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()} | facts
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _write_picture(path: Path, fixed: Tensor, before: Tensor, after: Tensor, found: stn.Registration) -> None:
    if fixed.ndim == 5:
        shown = torch.cat([image.mean(1, keepdim=True) for image in (fixed, before, after)])
        figure = viz.slices(shown, ["fixed", "moving, before", "moving, after"], spacing=found.spacing)
    else:
        figure = viz.registration(fixed, before, after)
    file = io.BytesIO()
    figure.savefig(file, format=path.suffix[1:].lower(), dpi=110, facecolor="white")
    write_bytes(path, file.getvalue())
