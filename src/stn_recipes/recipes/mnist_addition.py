"""The sum of two digits of MNIST in two channels, each turned, scaled and placed on its own: which transformer is for which
digit, nobody says (Jaderberg et al. 2015, appendix A.2).

    stn train mnist_addition --data-dir DATA --precision auto --threads 1 --control

MEASURED
"""

from ..config import TrainConfig

RECIPES = {
    "mnist_addition": TrainConfig(
        recipe="mnist_addition",
        dataset="mnist_addition",
        distortion="rts_each",
        network="two_st_fcn",
        padding_mode="zeros",
        pool=2,
        grow=28,
        epochs=40,
        batch_size=128,
        optimizer="adamw",
        lr=2e-3,
        localizer_lr_scale=1.0,
    )
}
