"""Data sets as uint8 tensors, distorted on the fly, in batches that depend on (seed, epoch, sample) alone.

A data set is one file here, which says its classes, its background, its files and how to read them, and one name in
`DATASETS`. Nothing keeps a random state: the order of an epoch, the split and the distortion of a sample are functions
of the seed, so runs repeat exactly at any number of workers or ranks, and a resumed run sees what an uninterrupted one
would have seen.
"""

DATASETS = (
    "digits",
    "mnist",
    "mnist_addition",
    "fashion_mnist",
    "cifar10",
    "images",
)  # the files of this folder that hold one
DISTORTIONS = ("r", "rts", "p", "e", "t", "tc", "t84", "tc84", "rts_each")  # those of `distortions` that are a task
