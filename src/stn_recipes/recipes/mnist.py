"""MNIST as it is, with the network of the PyTorch tutorial.

    stn train mnist --data-dir DATA --threads 1 --control

Measured (docs/results.md): 99.52, 99.56 and 99.58 % (three seeds), its control 99.49 %; 5 minutes on one core. The best public mean
for this network is 99.05 %.
"""

from ..config import TrainConfig

RECIPES = {
    "mnist": TrainConfig(
        recipe="mnist",
        dataset="mnist",
        network="mnist_tutorial",
        augment="affine",
        dropout=0.0,
        epochs=20,
        batch_size=128,
        lr=0.05,
        weight_decay=1e-4,
        localizer_lr_scale=0.2,
        clip=2.0,
    )
}
