"""Distorted MNIST: the paper's R, RTS, P, E and TC (Jaderberg et al. 2015, table 1).

stn train mnist_r --data_dir DATA
"""

from dataclasses import replace

from .config import TrainConfig

_R = TrainConfig(
    recipe="mnist_r",
    dataset="mnist",
    distortion="r",
    network="compact",
    epochs=50,
    batch_size=128,
    lr=0.1,
    weight_decay=5e-4,
    localizer_lr_scale=0.2,
)

RECIPES = {
    "mnist_r": _R,
    "mnist_rts": replace(_R, recipe="mnist_rts", distortion="rts"),
    "mnist_p": replace(_R, recipe="mnist_p", distortion="p"),
    "mnist_e": replace(_R, recipe="mnist_e", distortion="e"),
    "mnist_tc": replace(_R, recipe="mnist_tc", distortion="tc"),
}
