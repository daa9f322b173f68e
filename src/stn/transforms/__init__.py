"""Families of warps: theta -> where to read. One family, one file."""

from .affine import Affine, Attention, Crop, Rigid, Rotation, Similarity, Translation, affine_grid
from .base import TRANSFORMS, AbstractTransform, Compose
from .bspline import BSpline, bspline_grid
from .config import TransformLike as TransformLike
from .config import by_name, from_config
from .convert import convert
from .cpab import CPAB
from .flow import DisplacementField, displacement_grid
from .polar import Polar
from .projective import Corners, Projective, projective_grid
from .tps import ThinPlateSpline, thin_plate_spline, tps_grid
from .velocity import VelocityField

# Every family by name; without options each is one in 2D.
TRANSFORMS |= {
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
    "from_config",
    "projective_grid",
    "thin_plate_spline",
    "tps_grid",
]
