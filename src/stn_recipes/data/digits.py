"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, enlarged to 28x28; they need no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from .registry import AbstractDataSet, ImageData, Source
from .streams import stratified


@dataclass(frozen=True)
class Digits(AbstractDataSet):
    name: str = "digits"
    class_names: tuple[str, ...] = tuple("0123456789")
    background: Literal["zeros", "border"] = "zeros"

    def download(self) -> None:
        pass

    def read(self, source: Source, *, train: bool) -> ImageData:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        small = torch.from_numpy(bunch.images)[:, None] * (255 / 16)
        large = F.interpolate(small, size=(28, 28), mode="bicubic", align_corners=False)
        images, labels = large.round().clamp(0, 255).to(torch.uint8), torch.from_numpy(bunch.target.astype(np.int64))
        train_places, test_places = stratified(bunch.target, 0.2, seed=0)
        return ImageData(images, labels, self.class_names).take(train_places if train else test_places)


DATA = Digits()
