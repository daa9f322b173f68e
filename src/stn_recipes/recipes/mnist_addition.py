"""The sum of two digits of MNIST in two channels, each turned, scaled and placed on its own: which transformer is for which
digit, nobody says (Jaderberg et al. 2015, appendix A.2).

    stn train mnist_addition --data-dir DATA --precision auto --threads 1 --control

The distortions grow over the first 28 of 40 epochs; without that the networks stay near chance for long. No figure of the
whole recipe yet. A trial on 30,000 pairs with `--epochs 10 --grow 7` ended at 35.8 % test error (7 minutes on a busy core,
affine, seed 0), one with `--epochs 8 --grow 0` at 79.9 %. Published: 2xST-FCN 9.0 (affine), 5.9 (projective), 5.8 (TPS),
CNN 14.7.
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
