"""Poses whose parameters are known: warps spread over a family's bounds, images warped by them, and a localizer that learns to
undo them. Nobody has to label anything."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._checks import check_count, check_image, check_number, describe
from ._tracing import as_one_step, is_symbolic
from .coordinates import MATRICES, Frame
from .geometry import invert_matrix, lattice_points
from .localization import identity_head
from .reading import PaddingMode
from .sampling import warp
from .transformer import Warp
from .transforms.base import AbstractTransform
from .transforms.config import TransformLike, check_transform

_OFFSETS = 0.1  # weight of how far the guess near the right anchor is off: more of it drowns which one is right


def spread_evenly(transform: TransformLike, count: int, *, seed: int = 0) -> Tensor:
    """`count` warps spread over the bounds of a family: theta (count, num_params).

    The first number of theta, which is the turn where there is one, goes in even steps, the others by a Sobol sequence: a Hammersley
    set, which leaves fewer gaps than a lattice or than chance.

    Raises:
        ValueError: for a family without bounds.

    Example:
        >>> import stn
        >>> spread_evenly(stn.Rotation(), 4).rad2deg().round().flatten().tolist()
        [-180.0, -90.0, 0.0, 90.0]
    """
    transform = check_transform(transform)
    check_count("count", count)
    first = ((torch.arange(count) + (count % 2 / 2 if _goes_round(transform) else 0.5)) / count)[:, None]
    if transform.num_params == 1:
        return transform.spread(first)
    others = torch.quasirandom.SobolEngine(transform.num_params - 1, scramble=True, seed=seed).draw(count)
    return transform.spread(torch.cat([first, others], dim=1))


def _goes_round(transform: AbstractTransform) -> bool:
    """Whether the first number of theta is a whole turn, whose ends are one."""
    ends = torch.full((2, transform.num_params), 0.5)
    ends[:, 0] = torch.tensor([0.0, 1.0])
    theta = transform.spread(ends)
    corners = lattice_points(theta, (2,) * transform.ndim, False).expand(2, -1, -1)
    low, high = transform.map_points(theta, corners)
    return torch.allclose(low, high, atol=1e-5)


def half_range(transform: AbstractTransform, places: Tensor) -> Tensor:
    """Half of the range that poses (K, num_params) are spread over, in each number of theta; of a single one that of the bounds."""
    return (places if len(places) > 1 else spread_evenly(transform, 64)).std(0) * 3**0.5


def pose_at_random(
    image: Tensor,
    transform: TransformLike,
    *,
    generator: torch.Generator | None = None,
    padding_mode: PaddingMode = "border",
) -> tuple[Tensor, Tensor]:
    """Images as if warped by chance, and the theta that brings them back.

    Pull: `stn.warp(posed, theta, transform=transform)` is the image again, but for what left the frame. theta is drawn evenly from the
    bounds of the family, and the image is read by its inverse.

    Args:
        image: (B, C, [D,] H, W).
        transform: a family with bounds whose warps have an inverse.
        generator: of the random numbers, on the CPU; torch's own unless given.
        padding_mode: what lies outside of the image, as for `stn.sample`.

    Returns:
        posed (B, C, [D,] H, W) and theta (B, num_params).

    Raises:
        ValueError: for a family without bounds, or images that are none.

    Example:
        >>> import stn
        >>> image = torch.rand(1, 1, 8, 8)
        >>> posed, theta = pose_at_random(image, stn.Rotation())
        >>> posed.shape, theta.shape
        (torch.Size([1, 1, 8, 8]), torch.Size([1, 1]))
    """
    transform = check_transform(transform)
    size = check_image(image)
    theta = transform.spread(torch.rand(len(image), transform.num_params, generator=generator)).to(image.device)
    frame = Frame(size)
    with torch.no_grad():
        if transform.kind in MATRICES:
            return warp(image, invert_matrix(transform.matrix(theta, frame)), padding_mode=padding_mode), theta
        back = Warp(image, theta, transform, size, size, False)
        return back.unwarp(image, mode="bilinear", padding_mode=padding_mode), theta


class PoseLocalizer(nn.Module):
    """A localizer that learns from warps it knows: which of several poses an image is in, and how far from there.

    A number cannot go round a circle: where a turn of 180 degrees meets one of -180, a plain localizer has to jump. This
    one says how likely each of `anchors` poses is, spread over the family's bounds, and a theta near each.

    Args:
        features: any module, image -> features (B, in_features).
        in_features: width of the features.
        transform: a family with bounds.
        anchors: how many poses, or their theta (K, num_params).
        count: how many guesses `forward` says, the most likely first.

    Shape: (B, C, [D,] H, W) -> (B, count * num_params): with `count=1` the localizer of a `stn.SpatialTransformer`, with more of
    `stn.canonicalize`, whose network then decides.

    Raises:
        ValueError: for bad arguments, a family without bounds, and features of another width (it says the right one).

    Example:
        >>> import stn
        >>> features = nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten())
        >>> localizer = PoseLocalizer(features, 4 * 6 * 6, stn.Rotation(), anchors=8)
        >>> losses = localizer.fit([torch.rand(16, 1, 28, 28) for _ in range(3)])
        >>> localizer(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 1])
    """

    anchors: Tensor
    unit: Tensor  # of the offsets from them

    def __init__(
        self,
        features: nn.Module,
        in_features: int,
        transform: TransformLike,
        *,
        anchors: int | Tensor = 16,
        count: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(features, nn.Module):
            raise ValueError(f"features: expected a torch.nn.Module, got {describe(features)}")
        check_count("in_features", in_features)
        check_count("count", count)
        self.transform = check_transform(transform)
        places = anchors if isinstance(anchors, Tensor) else spread_evenly(self.transform, anchors)
        if count > len(places):
            raise ValueError(f"count: expected at most {len(places)}, as there are anchors, got {count}")
        self.features, self.in_features, self.count = features, in_features, count
        self.register_buffer("anchors", places.detach().clone())
        self.register_buffer(
            "unit", half_range(self.transform, places) * len(places) ** (-1 / self.transform.num_params)
        )
        self.offset = identity_head(in_features, self.transform, start=torch.zeros_like(self.anchors))
        self.likely = nn.Linear(in_features, len(places))

    def forward(self, image: Tensor) -> Tensor:
        if is_symbolic(image):
            return as_one_step(self, image)
        theta, logits = self.guesses(image)
        order = logits.topk(self.count, dim=1).indices
        return theta.gather(1, order[..., None].expand(-1, -1, theta.shape[2])).flatten(1)

    def guesses(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """A theta near each of the anchors, (B, K, num_params), and how likely each is, as logits (B, K)."""
        features = self.features(image)
        wanted = (image.shape[0], self.in_features)
        if not isinstance(features, Tensor) or tuple(features.shape) != wanted:
            raise ValueError(f"features: expected an output of shape {wanted}, got {describe(features)}")
        offsets = self.offset(features).unflatten(1, self.anchors.shape)
        return self.anchors + self.unit * offsets, self.likely(features)

    def loss(self, posed: Tensor, theta: Tensor) -> Tensor:
        """How wrong it is about images (B, C, [D,] H, W) whose pose theta (B, num_params) is known: the cross-entropy of the nearest
        anchor, and a tenth of how far apart the two warps read, in the unit of the distance between anchors.

        Distances are the root mean square over a lattice of points, so numbers of different kinds need no weights.
        """
        guesses, logits = self.guesses(posed)
        frame = Frame(tuple(posed.shape[2:]))
        points = lattice_points(theta, (5,) * self.transform.ndim, False)
        true = self._mapped(theta, points, frame)  # (B, N, d)
        places = self._mapped(self.anchors.to(theta), points, frame)  # (K, N, d)
        apart = (true[:, None] - places).square().sum(-1).mean(-1)  # (B, K)
        nearest = apart.argmin(1)
        chosen = guesses[torch.arange(len(theta), device=theta.device), nearest]
        missed = (self._mapped(chosen, points, frame) - true).square().sum(-1).mean(-1)
        unit = apart.amin(1).mean().clamp_min(1e-6)
        return F.cross_entropy(logits, nearest) + _OFFSETS * (missed / unit).mean()

    def _mapped(self, theta: Tensor, points: Tensor, frame: Frame) -> Tensor:
        return self.transform.map_points(theta, points.expand(len(theta), -1, -1), frame)

    def fit(
        self, batches: Iterable[Tensor], *, lr: float = 3e-3, seed: int = 0, padding_mode: PaddingMode = "border"
    ) -> list[float]:
        """Learn from batches of upright images, each warped by chance within the family's bounds, by AdamW with a rate that falls to nothing.

        `stn train robustify` does the same with a validation set, checkpoints and a report.

        Args:
            batches: of images (B, C, [D,] H, W), as often as they are to be seen. Their number has to be known: a list or a
                `DataLoader`.
            lr: of the beginning.
            seed: of the warps.
            padding_mode: what lies outside of the images.

        Returns:
            The loss at each step.
        """
        check_number("lr", lr, "a positive number", lambda v: 0 < v < float("inf"))
        generator = torch.Generator().manual_seed(seed)
        steps = len(batches)  # type: ignore[arg-type]
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1))
        losses = []
        training = self.training
        self.train()
        for images in batches:
            loss = self.loss(*pose_at_random(images, self.transform, generator=generator, padding_mode=padding_mode))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        self.train(training)
        return losses

    def extra_repr(self) -> str:
        return f"anchors={len(self.anchors)}, count={self.count}"
