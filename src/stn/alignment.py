"""Joint alignment: many images, or series, or volumes, brought onto each other, with no template and no regularizer.

The obvious loss, the variance within a class, is least where nothing is left to differ: shrink every image out of sight, or
zoom into one flat spot, and it is 0. That is why alignment has needed a regularizer, whose weight is different for every data
set. `inverse_consistency` asks another question: take the mean of the aligned images back by the inverse of each warp; how far
is it from the image that was given? An image that was squeezed away cannot be had back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._checks import check_flag, check_image, check_number, coordinate_dtype, describe
from .geometry import lattice_points
from .sampling import sample
from .transformer import Warp
from .transforms.inversion import solve

_EDGE = 1e-5  # by which a point may lie outside of the frame from rounding alone
_NOWHERE = 1e4  # for points that the output does not show


class ClassMeans(NamedTuple):
    """The mean of the aligned images of each class; see `class_means`."""

    labels: Tensor  # (K,), ascending
    mean: Tensor  # (K, C, *size)
    shown: Tensor  # (K, 1, *size), by how many images of the class


def class_means(warp: Warp, labels: Tensor | None = None) -> ClassMeans:
    """The mean of the aligned images of each class, at each pixel over the images that show it.

    What an image shows beyond its own edges is padding and does not count. Where no image of the class shows a pixel,
    the mean is that of their padding.

    Args:
        warp: `transformer.warp(image)`.
        labels: (B,), integers, the class of each image; all of one class unless given.

    Raises:
        ValueError: for anything but a warp, and labels of another shape or type.

    Example:
        >>> import stn
        >>> image, theta = torch.tensor([[[1.0, 2.0, 3.0]], [[5.0, 6.0, 7.0]]]), torch.tensor([[0.0], [2 / 3]])
        >>> transformer = stn.SpatialTransformer(torch.nn.Identity(), stn.Translation(1))
        >>> class_means(transformer.warp(image, theta))[1:]  # the second is moved by a pixel
        (tensor([[[3.5000, 4.5000, 3.0000]]]), tensor([[[2., 2., 1.]]]))
    """
    names, index = _check(warp, labels)
    total, count = _sums(warp, index, len(names))
    members = torch.bincount(index, minlength=len(names)).reshape(-1, *[1] * (count.ndim - 1))
    padding = _sum(warp.output.to(total.dtype), index, len(names)) / members
    return ClassMeans(names, torch.where(count > 0, total / count.clamp_min(1), padding), count)


def inverse_consistency(
    warp: Warp,
    image: Tensor,  # (B, C, [[D,] H,] W)
    labels: Tensor | None = None,  # (B,)
    *,
    quorum: float = 0.5,
    detach_mean: bool = False,
) -> Tensor:
    """How far the mean of the aligned images, taken back by the inverse of each warp, is from the images: the
    inverse-consistency averaging error, a loss for joint alignment that needs no regularizer.

    For image i of class k, at each of its pixels q: the mean of the aligned images of k that show the point of the output where i
    shows q, less i at q, squared. The mean over pixels, channels and images. For the identity that is the variance of the
    images within their class (with n - 1), and this is what the trivial solutions cost, too:

    - Warps that show nothing (shrunk out of sight, zoomed into a flat spot), or all the same, predict at each pixel the same value
      for every image of the class. The best such value is the plain mean, which the identity predicts.
    - A pixel that left the frame of the output, or whose point is shown by no more than `quorum` of the class, is predicted
      by the plain mean as well, so hiding it gains nothing.
    - Images that drift apart, each into a corner of its own, would be predicted by themselves. From m images that show a
      point the squared error is taken times m / (m - 1), as for a variance, and from one alone nothing is predicted.

    An image that is alone in its class costs 0 and does not count.

    The inverse is that of `warp.unmap_points`, by numbers where the family has none in closed form. Pixels that a warp never
    reads count as hidden; where it folds, one of its layers is taken. The gradient can be taken once.

    Args:
        warp: `transformer.warp(image)`, read with the padding "border" or "reflection": zeros and constants are blended into the
            outermost half of a pixel, which counts. What is read beyond does not, whatever the padding.
        image: what was warped.
        labels: integers, the class of each image; all of one class unless given.
        quorum: the part of a class, from 0 to below 1, of which more must show a point for the mean to count there.
        detach_mean: the mean is taken as a fixed template, with no gradient through it: theta is learned by
            the inverse warp alone.

    Returns:
        A scalar, 0 for an empty batch. In float32, or float64 if the image is.

    Raises:
        ValueError: for anything but a warp and the image that it is of, labels of another shape or type, options out of
            range, and a homography without an inverse.

    Example:
        >>> import stn
        >>> image = torch.tensor([[[0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0]]])
        >>> transformer = stn.SpatialTransformer(torch.nn.Identity(), stn.Translation(1))
        >>> identity, aligned = torch.zeros(2, 1), torch.tensor([[0.0], [0.5]])
        >>> tuple(inverse_consistency(transformer.warp(image, theta), image) for theta in (identity, aligned))
        (tensor(0.2500), tensor(0.))

    Source: Shapira Weber and Freifeld 2023 (RF-DTAN), Barel et al. 2024 (SpaceJAM); `quorum` and the factor are our own.
    """
    names, index = _check(warp, labels)
    _check_original(warp, image)
    check_number("quorum", quorum, "a number from 0 to below 1", lambda v: 0 <= v < 1)
    check_flag("detach_mean", detach_mean)
    kind = coordinate_dtype(image, warp.output)
    image = image.to(kind)
    members = torch.bincount(index, minlength=len(names)).to(kind)
    n = members[index].reshape(-1, *[1] * (image.ndim - 1))
    total, count = _sums(warp, index, len(names))
    found = _points_of_output(warp)
    inside = (found.detach().abs() <= 1 + _EDGE).all(-1)[:, None]
    sums = torch.cat([total, count], dim=1)[index]
    sums = sample(
        sums.detach() if detach_mean else sums, found, padding_mode="border", align_corners=warp.align_corners
    )
    predicted, m = sums[:, :-1] / sums[:, -1:].clamp_min(1), sums[:, -1:]
    seen = inside & (m > quorum * n) & (m >= 2)

    plain = _sum(image, index, len(names)) / members.reshape(-1, *[1] * (image.ndim - 1))
    error = torch.where(
        seen,
        (predicted - image).square() * (m / (m - 1).clamp_min(1)),
        (plain[index] - image).square() * (n / (n - 1).clamp_min(1)),
    )
    several = (members[index] > 1).sum()  # the error of an image alone in its class is 0
    return error.flatten(1).mean(1).sum() / several.clamp_min(1)


def class_distances(
    warp: Warp,
    image: Tensor,  # (B, C, [[D,] H,] W)
    means: ClassMeans,
) -> Tensor:
    """How far each image is from the mean of each class, taken back into its own frame: (B, K) mean squared differences.

    The nearest class is found where nothing was stretched, and no label is needed. In training, with the means of the batch,
    what is nearer to another class can be pushed away from it.

    Args:
        warp: `transformer.warp(image)`.
        image: what was warped.
        means: `class_means` of a batch with labels, such as the training set; of the same channels and the size of the output.

    Returns:
        (B, K), the classes in the order of `means.labels`. Beyond the frame of the output the mean goes on as at its border.
        The gradient can be taken once.

    Raises:
        ValueError: as `inverse_consistency`, and for means of another shape.

    Example:
        >>> import stn
        >>> image = torch.tensor([[[0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0]]])
        >>> warp = stn.SpatialTransformer(torch.nn.Identity(), stn.Translation(1)).warp(image, torch.zeros(2, 1))
        >>> class_distances(warp, image, class_means(warp, torch.tensor([4, 7])))
        tensor([[0.0000, 0.5000],
                [0.5000, 0.0000]])

    Source: the triplet loss of Shapira Weber and Freifeld 2023 compares these.
    """
    _check(warp, None)
    _check_original(warp, image)
    wanted = (*warp.output.shape[1:2], *warp.size)
    if not isinstance(means, ClassMeans) or tuple(means.mean.shape[1:]) != wanted:
        what = tuple(means.mean.shape) if isinstance(means, ClassMeans) else describe(means)
        raise ValueError(f"means: expected what `class_means` gives for images (K, {str(wanted)[1:]}, got {what}")
    image = image.to(coordinate_dtype(image, warp.output))
    found = _points_of_output(warp)
    each = means.mean.to(image.dtype).flatten(0, 1)[None].expand(len(image), -1, *[-1] * len(warp.size))
    back = sample(each, found, padding_mode="border", align_corners=warp.align_corners)
    back = back.unflatten(1, means.mean.shape[:2])
    return (back - image[:, None]).square().flatten(2).mean(2)


def within_class_variance(warp: Warp, labels: Tensor | None = None, *, quorum: float = 0.5) -> Tensor:
    """The variance of the aligned images within their class, at each pixel over those that show it (with m - 1): what is
    looked at before and after an alignment. As a loss it is best served by images that show nothing; see
    `inverse_consistency`.

    Args:
        warp: `transformer.warp(image)`.
        labels: (B,), integers; all of one class unless given.
        quorum: pixels count that more than this part of the class shows, and at least two images.

    Returns:
        A scalar: the mean over the pixels that count, channels and classes; NaN where no pixel does.

    Raises:
        ValueError: as `class_means`, and for a quorum out of range.

    Example:
        >>> import stn
        >>> image = torch.tensor([[[0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0]]])
        >>> transformer = stn.SpatialTransformer(torch.nn.Identity(), stn.Translation(1))
        >>> theta = torch.zeros(2, 1), torch.tensor([[0.0], [0.5]])
        >>> tuple(within_class_variance(transformer.warp(image, t)) for t in theta)
        (tensor(0.2500), tensor(0.))
    """
    names, index = _check(warp, labels)
    check_number("quorum", quorum, "a number from 0 to below 1", lambda v: 0 <= v < 1)
    total, count = _sums(warp, index, len(names))
    mean, shown, output = total / count.clamp_min(1), warp.mask(), warp.output.to(total.dtype)
    squares = _sum(torch.where(shown, (output - mean[index]).square(), 0.0), index, len(names))
    members = torch.bincount(index, minlength=len(names)).reshape(-1, *[1] * (count.ndim - 1))
    counts = ((count > quorum * members) & (count >= 2)).expand_as(squares)
    return (squares / (count - 1).clamp_min(1))[counts].mean()


def _points_of_output(warp: Warp) -> Tensor:
    """Where each pixel of the image appears in the output, (B, *image_size, d); far outside where it does not.

    The gradient is that of an implicit function, through one `map_points`, and can be taken once: `unmap_points`, whose
    gradient can be taken twice, costs up to ten times as much.
    """
    lattice = lattice_points(warp.theta.to(coordinate_dtype(warp.theta)), warp.image_size, warp.align_corners)
    with torch.no_grad():
        found = warp.unmap_points(lattice, missing="nan")
        missing = found.isnan().any(-1, keepdim=True)
        found = torch.where(missing, _NOWHERE, found)
    if torch.is_grad_enabled() and warp.theta.requires_grad:
        with torch.no_grad():
            slopes = warp.transform.jacobian(warp.theta, found, warp.frame)
        found = _Implicit.apply(warp.transform.map_points(warp.theta, found, warp.frame), found, slopes)
    return found.reshape(-1, *warp.image_size, len(warp.size))


class _Implicit(torch.autograd.Function):
    """The points that are mapped to given ones, as a function of the map: found changes by - slopes^-1 of what mapped does."""

    @staticmethod
    def forward(ctx: Any, mapped: Tensor, found: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return found.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        # None where the map has no slope: it turns round there, or the point is behind a horizon.
        return -solve(slopes.mT, grad).nan_to_num(0.0, 0.0, 0.0), None, None


def _sums(warp: Warp, index: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The sum (K, C, *size) of the aligned images over those that show a pixel, and their number (K, 1, *size)."""
    output, shown = warp.output.to(coordinate_dtype(warp.output)), warp.mask()
    return _sum(torch.where(shown, output, 0.0), index, classes), _sum(shown.to(output.dtype), index, classes)


def _sum(values: Tensor, index: Tensor, classes: int) -> Tensor:
    """The sum over the images of each class, (K, ...)."""
    return values.new_zeros(classes, *values.shape[1:]).index_add(0, index, values)


def _check(warp: Warp, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The classes, ascending (K,), and of each image the index of its class (B,)."""
    if not isinstance(warp, Warp):
        raise ValueError(f"warp: expected the result of `transformer.warp(image)`, got {describe(warp)}")
    batch, device = warp.output.shape[0], warp.output.device
    if labels is None:
        labels = torch.zeros(batch, dtype=torch.int64, device=device)
    if (
        not isinstance(labels, Tensor)
        or tuple(labels.shape) != (batch,)
        or labels.is_floating_point()
        or labels.is_complex()
    ):
        raise ValueError(f"labels: expected integers ({batch},), a class for each image, got {describe(labels)}")
    if labels.device != device:
        raise ValueError(f"labels: expected on the device of the warp ({device}), got {labels.device}")
    names, index = labels.unique(return_inverse=True)
    return names, index


def _check_original(warp: Warp, image: Tensor) -> None:
    check_image(image)
    wanted = (*warp.output.shape[:2], *warp.image_size)
    if tuple(image.shape) != wanted:
        raise ValueError(f"image: expected the image that was warped, {wanted}, got shape {tuple(image.shape)}")
    if image.device != warp.output.device:
        raise ValueError(f"image: expected on the device of the warp ({warp.output.device}), got {image.device}")
