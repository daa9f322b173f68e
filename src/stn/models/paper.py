"""The networks for distorted MNIST in Jaderberg et al. 2015, appendix A, and its plain ones."""

from __future__ import annotations

from torch import nn

from ..localization import ConvLocalizer, FCLocalizer, features_out
from ..transforms import AbstractTransform
from .base import Network, Shape

PAPER_PARAMETERS = 400_000  # "about 400k" for every one of them


def paper_cnn(in_shape: Shape, classes: int, filters: int) -> nn.Module:
    """conv 9x9, max-pool, conv 7x7, max-pool, fully connected; unpadded (Jaderberg et al. 2015, appendix A)."""
    # ceil_mode: on 21x21 (the 42x42 sets after pooling) flooring would leave less than the second kernel.
    features = [
        *(nn.Conv2d(in_shape[0], filters, 9), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
        *(nn.Conv2d(filters, filters, 7), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
        nn.Flatten(),
    ]
    return nn.Sequential(*features, nn.Linear(features_out(nn.Sequential(*features), in_shape), classes))


def paper_fcn(in_shape: Shape, classes: int, units: int) -> nn.Module:
    """Two hidden fully connected layers."""
    width = in_shape[0] * in_shape[1] * in_shape[2]
    layers = [nn.Linear(width, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def _paper_network(summary: str, *, convolutional: bool, only_control: bool = False) -> Network:
    def classifier(shape: Shape, classes: int, width: int, dropout: float) -> nn.Module:
        return paper_cnn(shape, classes, width) if convolutional else paper_fcn(shape, classes, width)

    def localizer(shape: Shape, transform: AbstractTransform) -> nn.Module:
        if not convolutional:
            return FCLocalizer(shape[0] * shape[1] * shape[2], transform, hidden=(32, 32, 32))
        options = {"channels": (20, 20), "kernel_sizes": (5, 5), "hidden": (20,), "downsample": 2}
        return ConvLocalizer(shape[0], transform, image_size=shape[1:], last_pool=False, **options)  # type: ignore[arg-type]

    return Network(
        summary,
        (1, 28, 28),
        dropout=0.0,
        classifier=classifier,
        control=classifier,
        localizer=localizer,
        width=None,
        parameters=None,
        budget=PAPER_PARAMETERS,
        only_control=only_control,
    )


NETWORKS = {
    "st_cnn": _paper_network("distorted MNIST, the paper's ST-CNN, about 400k parameters", convolutional=True),
    "st_fcn": _paper_network("distorted MNIST, the paper's ST-FCN, about 400k parameters", convolutional=False),
    "cnn": _paper_network("distorted MNIST, the paper's plain CNN", convolutional=True, only_control=True),
    "fcn": _paper_network("distorted MNIST, the paper's plain FCN", convolutional=False, only_control=True),
}
