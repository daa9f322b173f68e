"""Spatial transformers: networks that learn where to look."""

from . import compat, conventions, functional, models, ops, transforms
from .diagnostics import Diagnosis, diagnose
from .localization import ConvLocalizer, FCLocalizer, identity_head, parameter_groups
from .module import SpatialTransformer, Warp, spatial_transformer_network
from .sampling import sample, warp
from .transforms import (
    AbstractTransform,
    Affine,
    Attention,
    Compose,
    Crop,
    Rigid,
    Rotation,
    Similarity,
    Translation,
    affine_grid,
)

__version__ = "0.1.0"

__all__ = [
    "AbstractTransform",
    "Affine",
    "Attention",
    "Compose",
    "ConvLocalizer",
    "Crop",
    "Diagnosis",
    "FCLocalizer",
    "Rigid",
    "Rotation",
    "Similarity",
    "SpatialTransformer",
    "Translation",
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
    "sample",
    "spatial_transformer_network",
    "transforms",
    "warp",
]
