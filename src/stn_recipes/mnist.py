"""MNIST as it is, with the network of the PyTorch tutorial.

stn train mnist --data_dir DATA
"""

from .config import TrainConfig

RECIPES = {"mnist": TrainConfig(recipe="mnist", dataset="mnist", network="mnist_tutorial")}
