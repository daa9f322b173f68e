"""Distorted MNIST: the paper's R, RTS, P, E and TC (Jaderberg et al. 2015, table 1).

    stn train mnist_r --data-dir DATA --precision bf16-mixed --control

Measured (docs/results.md): `mnist_r` ends at 0.51 % test error with the affine transformer and at 0.78 % without
(110k parameters each, seed 0; the paper: 0.7 and 1.2 with 400k). About 20 minutes on one core with bf16-mixed, 30 in
float32. The others use the same settings and have no measured figure yet.

`--preset paper` trains as the paper says (appendix A): the ST-CNN of 400k parameters (`--network st_fcn` for the other),
all 60,000 images, plain SGD on batches of 256 for 640 epochs, which are its 150k iterations, at a rate of 0.01 that falls
to a tenth after each 50k, no weight decay, no dropout, no clipping, one rate for everything. It names no momentum: here
it is 0. Not measured: an affine run on R takes 640 epochs.
"""

from dataclasses import replace

from ..config import TrainConfig

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

_PAPER = {
    "preset": "paper",
    "network": "st_cnn",
    "val_fraction": 0.0,
    "epochs": 640,
    "batch_size": 256,
    "lr": 0.01,
    "momentum": 0.0,
    "schedule": "step",
    "weight_decay": 0.0,
    "localizer_lr_scale": 1.0,
    "clip": None,
}

PAPER = {
    name: replace(config, **_PAPER, pool=2 if name in ("mnist_rts", "mnist_tc") else 1)  # type: ignore[arg-type]
    for name, config in RECIPES.items()
}
