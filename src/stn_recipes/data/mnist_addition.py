"""The sum of two digits of MNIST, which are the two channels of an image (Jaderberg et al. 2015, appendix A.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from . import mnist
from .registry import AbstractDataSet, ImageData, Source
from .streams import generator


@dataclass(frozen=True)
class Sums(AbstractDataSet):
    """Each digit with a partner of the same set, always the same one; the class is their sum."""

    name: str
    digits: AbstractDataSet
    background: Literal["zeros", "border"] = "zeros"

    def download(self) -> None:
        self.digits.download()

    def read(self, source: Source, *, train: bool) -> ImageData:
        found = self.digits.read(source, train=train)
        partners = found.take(generator(0, "pairs", int(train)).permutation(len(found)))
        assert isinstance(found.images, torch.Tensor)
        assert isinstance(partners.images, torch.Tensor)
        sums = tuple(str(total) for total in range(2 * len(found.class_names) - 1))
        return ImageData(torch.cat([found.images, partners.images], 1), found.labels + partners.labels, sums)


DATA = Sums("mnist_addition", mnist.DATA)
