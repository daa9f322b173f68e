"""CIFAR-10 with the two small networks of public spatial-transformer code, 39,884 and 1,585,008 parameters.

    stn train cifar10_small --data-dir DATA --threads 1 --control
    stn train cifar10_large --data-dir DATA --threads 1 --control --precision bf16-mixed

Measured (docs/results.md): `cifar10_small` 74.5 and 74.7 % (two seeds; its control 75.7 and 75.8: the transformer does not
help here), 12 minutes on one core; `cifar10_large` 73.6 % (one seed; its control 78.5), 13 minutes on one core with bf16-mixed.
Public runs of these networks end at 56.9 to 61.9 % and at 65.7 %.
"""

from dataclasses import replace

from ..config import TrainConfig

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
