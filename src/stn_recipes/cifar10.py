"""CIFAR-10 with the two small networks of public spatial-transformer code.

stn train cifar10_small --data_dir DATA
stn train cifar10_large --data_dir DATA
"""

from .config import TrainConfig

RECIPES = {
    "cifar10_small": TrainConfig(
        recipe="cifar10_small", dataset="cifar10", network="cifar10_small", augment="flip_shift"
    ),
    "cifar10_large": TrainConfig(
        recipe="cifar10_large", dataset="cifar10", network="cifar10_large", augment="flip_shift"
    ),
}
