"""Published test errors, in percent, to stand beside ours."""

from __future__ import annotations

from typing import NamedTuple

from ..config import TrainConfig
from ..names import label


class Published(NamedTuple):
    """A number of the literature."""

    error: float  # percent
    what: str  # the network, and whose


_SETS = ("mnist_r", "mnist_rts", "mnist_p", "mnist_e")

# Jaderberg et al., "Spatial Transformer Networks", NIPS 2015, arXiv 1506.02025: table 1, means of three seeds, networks of
# about 400k parameters; translated and cluttered digits and the addition of digits are in its appendix A.
_TABLE_1 = {
    ("ST-CNN", "affine"): (0.7, 0.5, 0.8, 1.2),
    ("ST-CNN", "projective"): (0.8, 0.6, 0.8, 1.3),
    ("ST-CNN", "tps"): (0.7, 0.5, 0.8, 1.1),
    ("CNN", "none"): (1.2, 0.8, 1.5, 1.4),
    ("ST-FCN", "affine"): (1.2, 0.8, 1.5, 2.7),
    ("ST-FCN", "projective"): (1.3, 0.9, 1.4, 2.6),
    ("ST-FCN", "tps"): (1.1, 0.8, 1.4, 2.4),
    ("FCN", "none"): (2.1, 5.2, 3.1, 3.2),
}
_OTHERS = {
    ("mnist_tc", "ST-CNN", "affine"): 1.7,
    ("mnist_tc", "CNN", "none"): 3.5,
    ("mnist_tc", "ST-FCN", "affine"): 2.0,
    ("mnist_tc", "FCN", "none"): 13.2,
    ("mnist_addition", "2x ST-FCN", "affine"): 9.0,
    ("mnist_addition", "2x ST-FCN", "projective"): 5.9,
    ("mnist_addition", "2x ST-FCN", "tps"): 5.8,
    ("mnist_addition", "CNN", "none"): 14.7,
}
_JADERBERG = {
    **{(name, net, family): error for (net, family), errors in _TABLE_1.items() for name, error in zip(_SETS, errors)},  # noqa: B905
    **_OTHERS,
}


def published(config: TrainConfig) -> Published | None:
    """What the paper reports for the recipe and the family of a run: of its ST-CNN or CNN, beside networks that are fully
    connected of its ST-FCN or FCN; None where it reports nothing.

    >>> from stn_recipes.recipes import recipe
    >>> published(recipe("mnist_r"))
    Published(error=0.7, what='ST-CNN, Jaderberg et al. 2015')
    """
    for (name, network, family), error in _JADERBERG.items():
        if (name, family) == (config.recipe, config.transformer) and (
            network.endswith("FCN") == label(config.network).endswith("fcn") or name == "mnist_addition"
        ):
            return Published(error, f"{network}, Jaderberg et al. 2015")
    return None
