"""A classifier that is not touched, made robust: a transformer in front of it learns from warps whose parameters it knows.

    stn train mnist --transformer none --augment null --out runs/upright
    stn train robustify --init-from runs/upright
    stn train robustify --init-from runs/upright --transformer similarity --transformer.max-angle 0.8 --transformer.max-scale 1.4 --transformer.max-shift 0.2

The data, the network and the seed are those of the run, which has to be one without a transformer. After Kaba et al. 2023.
Measured: docs/robustify.md.
"""

from ..config import TrainConfig

RECIPES = {
    "robustify": TrainConfig(
        recipe="robustify",
        dataset="mnist",
        network="mnist_tutorial",
        learn="poses",
        transformer="rotation",
        optimizer="adamw",
        epochs=5,
        batch_size=128,
        lr=0.003,
        weight_decay=0.01,
        localizer_lr_scale=1.0,
    )
}
