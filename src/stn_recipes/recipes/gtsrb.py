"""Traffic signs, tilted, small, dark and off the middle as they are on the road: one transformer on the image, or a second on
feature maps.

    stn train gtsrb --data-dir DATA --control
    stn train gtsrb_two --data-dir DATA
"""

from dataclasses import replace

from ..config import TrainConfig

_ONE = TrainConfig(
    recipe="gtsrb",
    dataset="gtsrb",
    network="signs",
    augment="affine",
    epochs=12,
    batch_size=128,
    lr=0.1,
    weight_decay=5e-4,
)

RECIPES = {"gtsrb": _ONE, "gtsrb_two": replace(_ONE, recipe="gtsrb_two", network="signs_deep")}
