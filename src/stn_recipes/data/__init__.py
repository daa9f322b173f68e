"""Data sets as uint8 tensors, distorted on the fly, in batches that depend on (seed, epoch, sample) alone.

A data set is one file here, which says its classes, its background, its files and how to read them, and one name in
`DATASETS`. Nothing keeps a random state: the order of an epoch, the split and the distortion of a sample are functions
of the seed, so runs repeat exactly at any number of workers or ranks, and a resumed run sees what an uninterrupted one
would have seen. What does not fit into memory is read when a batch asks for it, to the same bits (`lazy.py`).
"""

DATASETS = (
    "digits",
    "mnist",
    "mnist_addition",
    "fashion_mnist",
    "cifar10",
    "gtsrb",
    "images",
)  # the files of this folder that hold one
HUB = "hf:"  # what the name of a data set by Hugging Face begins with
DISTORTIONS = ("r", "rts", "p", "e", "t", "tc", "t84", "tc84", "rts_each")  # those of `distortions` that are a task
AUGMENTATIONS = ("flip_shift", "affine")  # and those that are for training alone
