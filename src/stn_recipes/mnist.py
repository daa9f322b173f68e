"""MNIST as it is, with the network of the PyTorch tutorial.

stn train mnist --data_dir DATA
"""

from .config import TrainConfig

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
