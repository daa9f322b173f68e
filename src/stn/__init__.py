"""Spatial transformers: networks that learn where to look."""

from . import alignment, compat, conventions, geometry, kernels, models, ops, penalties, testing, transforms
from .accelerate import accelerate
from .canonicalization import Canonical, Canonicalizer, canonicalize
from .channels_last import spatial_transformer_network
from .coordinates import Frame
from .deformable import deformable_sample
from .diagnostics import Diagnosis, diagnose
from .linearized import linearized_sample, linearized_warp
from .localization import (
    ConvLocalizer,
    FCLocalizer,
    RecurrentLocalizer,
    SharedLocalizer,
    identity_head,
    parameter_groups,
    window_starts,
)
from .placement import IterativeTransformer, ParallelTransformers
from .pose import PoseLocalizer, pose_at_random
from .registration import Registration, register
from .sampling import sample, valid_mask, warp
from .splatting import splat, splat_count
from .transformer import SpatialTransformer, Warp
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
    convert,
    thin_plate_spline,
)

__version__ = "0.1.0"

__all__ = [
    "CPAB",
    "AbstractTransform",
    "Affine",
    "Attention",
    "BSpline",
    "Canonical",
    "Canonicalizer",
    "Compose",
    "ConvLocalizer",
    "Corners",
    "Crop",
    "Diagnosis",
    "DisplacementField",
    "FCLocalizer",
    "Frame",
    "IterativeTransformer",
    "ParallelTransformers",
    "Polar",
    "PoseLocalizer",
    "Projective",
    "RecurrentLocalizer",
    "Registration",
    "Rigid",
    "Rotation",
    "SharedLocalizer",
    "Similarity",
    "SpatialTransformer",
    "ThinPlateSpline",
    "Translation",
    "VelocityField",
    "Warp",
    "accelerate",
    "alignment",
    "canonicalize",
    "compat",
    "conventions",
    "convert",
    "deformable_sample",
    "diagnose",
    "geometry",
    "identity_head",
    "kernels",
    "linearized_sample",
    "linearized_warp",
    "models",
    "ops",
    "parameter_groups",
    "penalties",
    "pose_at_random",
    "register",
    "sample",
    "spatial_transformer_network",
    "splat",
    "splat_count",
    "testing",
    "thin_plate_spline",
    "transforms",
    "valid_mask",
    "warp",
    "window_starts",
]
