"""Your own images: a folder of class folders (or train/ and test/ folders of them).

stn train images --data_dir FOLDER
"""

from ..config import TrainConfig

RECIPES = {
    "images": TrainConfig(
        recipe="images", dataset="images", network="compact", augment="flip_shift", fit="crop", epochs=30, batch_size=32
    )
}
