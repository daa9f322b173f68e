"""A hundred images of one class of digit, each at a random place of 84x84 pixels among 16 pieces of other digits: find the digit
without labels (Jaderberg et al. 2015, section 4.4 and appendix A.2).

    stn train colocalize --digit 3 --data-dir DATA                      # or --distortion t84: no clutter
    stn train colocalize --digit 3 --dataset digits                     # the embedded digits

Measured: with clutter 96 to 100 % of the images of each digit are found (three seeds), published 75 to 94 %; 14 to 20 s of one core, twice
that for the one set of thirty whose loss stayed above 1 and which was started again.
docs/colocalization.md has the table, how it is done and why other ways fail. The accuracy of such a run is the share of its
images that are found (intersection over union above 0.5), of the last epoch, on the images that it was trained on.
"""

from ..config import TrainConfig

RECIPES = {
    "colocalize": TrainConfig(
        recipe="colocalize",
        dataset="mnist",
        distortion="tc84",
        digit=0,
        limit_train=100,
        val_fraction=0.0,
        network="colocalizer",
        epochs=40,
        starts=4,
        batch_size=100,
        optimizer="adamw",
        lr=2e-3,
        schedule="constant",
        localizer_lr_scale=1.0,
    )
}
# Set afterwards: to check a mapping loads torch, which the command line does without until a network is built.
RECIPES["colocalize"].transformer = {"name": "affine", "fixed": [[1 / 3, 0, None], [0, 1 / 3, None]]}
