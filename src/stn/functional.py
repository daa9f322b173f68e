"""The pure functions, for `import stn.functional as SF`."""

from .module import spatial_transformer_network
from .sampling import sample, warp
from .transforms.affine import affine_grid

__all__ = ["affine_grid", "sample", "spatial_transformer_network", "warp"]
