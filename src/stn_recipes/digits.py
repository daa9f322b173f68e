"""scikit-learn's handwritten digits, rotated by up to 90 degrees: real images, shipped with scikit-learn, no download.

stn train digits --control
"""

from .config import TrainConfig

RECIPES = {
    "digits": TrainConfig(
        recipe="digits",
        dataset="digits",
        distortion="r",
        network="compact",
        epochs=20,
        batch_size=64,
        val_fraction=0.15,
    )
}
