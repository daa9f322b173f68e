"""MNIST: 60,000 and 10,000 handwritten digits of 28x28 pixels (LeCun et al. 1998)."""

from .official import IdxDataSet, Origin

DATA = IdxDataSet(
    name="mnist",
    class_names=tuple("0123456789"),
    background="zeros",
    origin=Origin("mnist", "https://ossci-datasets.s3.amazonaws.com/mnist/", ("mnist", "MNIST/raw", "")),
    files={
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
