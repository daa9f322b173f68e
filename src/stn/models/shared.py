"""A classifier that shares its first layers with the localizer."""

from __future__ import annotations

from torch import Tensor, nn

from .._checks import describe
from ..localization import SharedLocalizer
from ..placement import IterativeTransformer
from ..reading import PaddingMode
from ..transforms import TransformLike


class SharedClassifier(nn.Module):
    """A classifier that looks through its own first layers: they are the localizer's too, and the image is warped in
    front of them, again and again.

    Warping feature maps cannot undo what warps the image, but a localizer on the image alone sees little. So the
    localizer goes as deep as the features that it shares, and it is always the input that is warped.

    Args:
        features: the shared layers, image -> features. The same module for the localizer and the classifier.
        head: features -> theta; end it with `stn.identity_head`.
        classifier: features -> logits.
        transform: the family of warps; `stn.Affine()` unless given.
        iterations: how often the localizer looks and corrects; 1 to 4 in the source.
        padding_mode, theta_grad_scale: of the transformer.

    Shape: what `features` takes -> what `classifier` gives. The transformer is `.transformer`, an
    `IterativeTransformer`. Batch norm in the features counts every look in its statistics.

    Raises:
        ValueError: for bad arguments, or a head of the wrong output width.

    Example:
        >>> import torch
        >>> from stn import Rotation, identity_head
        >>> features = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(4))  # (B, 8, 6, 6)
        >>> head = nn.Sequential(nn.Flatten(), identity_head(8 * 6 * 6, Rotation()))
        >>> model = SharedClassifier(features, head, nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 6, 10)), Rotation())
        >>> model(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> model.transformer.warp(torch.randn(2, 1, 28, 28)).theta.shape
        torch.Size([2, 1])

    Source: Finnveden, Jansson and Lindeberg 2020.
    """

    def __init__(
        self,
        features: nn.Module,
        head: nn.Module,
        classifier: nn.Module,
        transform: TransformLike | None = None,
        *,
        iterations: int = 2,
        padding_mode: PaddingMode = "border",
        theta_grad_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(classifier, nn.Module):
            raise ValueError(f"classifier: expected a torch.nn.Module, got {describe(classifier)}")
        self.transformer = IterativeTransformer(
            SharedLocalizer(features, head),
            transform,
            iterations=iterations,
            padding_mode=padding_mode,
            theta_grad_scale=theta_grad_scale,
        )
        self.classifier = classifier

    @property
    def features(self) -> nn.Module:
        """The shared layers. They are registered once, in the localizer, so that each weight has one name."""
        localizer = self.transformer.localizers[0]
        assert isinstance(localizer, SharedLocalizer)
        return localizer.features

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(self.transformer(image)))
        return logits
