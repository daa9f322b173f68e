"""The pure functions, for `import stn.functional as SF`."""

from .module import spatial_transformer_network
from .sampling import sample, warp
from .transforms.affine import affine_grid
from .transforms.projective import projective_grid
from .transforms.tps import tps_grid

__all__ = ["affine_grid", "projective_grid", "sample", "spatial_transformer_network", "tps_grid", "warp"]
