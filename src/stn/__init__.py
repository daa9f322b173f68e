"""Spatial transformers: networks that learn where to look."""

from . import compat, conventions, functional, models, ops, transforms
from .diagnostics import Diagnosis, diagnose
from .localization import ConvLocalizer, FCLocalizer, identity_head, parameter_groups
from .module import SpatialTransformer, Warp, spatial_transformer_network
from .sampling import sample, warp
from .transforms import (
    CPAB,
    AbstractTransform,
    Affine,
    Attention,
    BSpline,
    Compose,
    Corners,
    Crop,
    DisplacementField,
    Polar,
    Projective,
    Rigid,
    Rotation,
    Similarity,
    ThinPlateSpline,
    Translation,
    VelocityField,
    affine_grid,
    projective_grid,
    thin_plate_spline,
    tps_grid,
)

__version__ = "0.1.0"

__all__ = [
    "CPAB",
    "AbstractTransform",
    "Affine",
    "Attention",
    "BSpline",
    "Compose",
    "ConvLocalizer",
    "Corners",
    "Crop",
    "Diagnosis",
    "DisplacementField",
    "FCLocalizer",
    "Polar",
    "Projective",
    "Rigid",
    "Rotation",
    "Similarity",
    "SpatialTransformer",
    "ThinPlateSpline",
    "Translation",
    "VelocityField",
    "Warp",
    "affine_grid",
    "compat",
    "conventions",
    "diagnose",
    "functional",
    "identity_head",
    "models",
    "ops",
    "parameter_groups",
    "projective_grid",
    "sample",
    "spatial_transformer_network",
    "thin_plate_spline",
    "tps_grid",
    "transforms",
    "warp",
]
