"""Families of warps: theta -> where to read. One family, one file."""

from __future__ import annotations

from typing import Any

from .._checks import check_choice
from .affine import Affine, Attention, Crop, Rigid, Rotation, Similarity, Translation, affine_grid
from .base import AbstractTransform, Compose
from .bspline import BSpline, bspline_grid
from .convert import convert
from .cpab import CPAB
from .flow import DisplacementField, displacement_grid
from .polar import Polar
from .projective import Corners, Projective, projective_grid
from .tps import ThinPlateSpline, thin_plate_spline, tps_grid
from .velocity import VelocityField

# Every family by name; without options each is one in 2D.
TRANSFORMS: dict[str, type[AbstractTransform]] = {
    "affine": Affine,
    "similarity": Similarity,
    "rigid": Rigid,
    "attention": Attention,
    "crop": Crop,
    "translation": Translation,
    "rotation": Rotation,
    "projective": Projective,
    "corners": Corners,
    "tps": ThinPlateSpline,
    "bspline": BSpline,
    "displacement": DisplacementField,
    "velocity": VelocityField,
    "cpab": CPAB,
    "polar": Polar,
}


def by_name(name: str, **options: Any) -> AbstractTransform:
    """A transform by its name in lower case, for command lines and configuration files.

    Raises:
        ValueError: for an unknown name (with the nearest one) or options that the family does not have.

    Example:
        >>> by_name("similarity", max_angle=1.5)
        Similarity(max_angle=1.5)
    """
    check_choice("name", name, TRANSFORMS)
    try:
        return TRANSFORMS[name](**options)
    except TypeError as error:
        raise ValueError(f"options: {error}") from error


__all__ = [
    "CPAB",
    "TRANSFORMS",
    "AbstractTransform",
    "Affine",
    "Attention",
    "BSpline",
    "Compose",
    "Corners",
    "Crop",
    "DisplacementField",
    "Polar",
    "Projective",
    "Rigid",
    "Rotation",
    "Similarity",
    "ThinPlateSpline",
    "Translation",
    "VelocityField",
    "affine_grid",
    "bspline_grid",
    "by_name",
    "convert",
    "displacement_grid",
    "projective_grid",
    "thin_plate_spline",
    "tps_grid",
]
