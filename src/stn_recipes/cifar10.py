"""CIFAR-10 with the two small networks of public spatial-transformer code.

stn train cifar10_small --data_dir DATA
stn train cifar10_large --data_dir DATA
"""

from dataclasses import replace

from .config import TrainConfig

_SMALL = TrainConfig(
    recipe="cifar10_small",
    dataset="cifar10",
    network="cifar10_small",
    augment="flip_shift",
    dropout=0.0,
    epochs=40,
    batch_size=128,
    lr=0.05,
    weight_decay=5e-4,
)

RECIPES = {
    "cifar10_small": _SMALL,
    "cifar10_large": replace(_SMALL, recipe="cifar10_large", network="cifar10_large", dropout=0.2, epochs=15),
}
