"""A trained network made robust from outside: before it looks, the pose is searched in which it knows the image best.

Nothing in the network changes. Its energy, `-logsumexp(logits)`, is low for images such as it was trained on, so of all warps of
an image by a family the one with the lowest energy is its canonical pose (Kaba et al. 2023; with frozen networks Schmidt and Stober
2024, Singhal et al. 2025). A gate leaves an image alone whose energy as it came is not clearly beaten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from ._checks import check_choice, check_count, check_float_tensor, check_number, coordinate_dtype, describe
from ._tracing import as_one_step, is_symbolic
from .pose import half_range, spread_evenly
from .transformer import AbstractTransformer, ReadOptions, Warp, check_localizer
from .transforms.base import AbstractTransform
from .transforms.config import TransformLike, check_transform

Score = Callable[
    [Tensor, Tensor], Tensor
]  # the network's output and the images (B, C, ...) that it saw -> (B,), lower is better


_NEAR = 0.05  # of the bounds
_AFTER_GAIN, _AFTER_NONE = 0.75, 0.5  # what becomes of the radius of the tries; measured: docs/robustify.md


@dataclass(frozen=True, kw_only=True)
class Canonical(Warp):
    """What was found for a batch: the warp into the canonical pose, the identity where the gate left an image alone."""

    score: Tensor  # (B,), of the pose that was found, whether or not the gate let it through
    upright: Tensor  # (B,), of the image as it came
    moved: Tensor  # (B,), bool: whether the gate let it through

    @property
    def gain(self) -> Tensor:
        """By how much the score as it came is beaten, (B,), 0 or more: what the gate's margin is held against."""
        return (self.upright - self.score).float()


def energy(logits: Tensor, image: Tensor) -> Tensor:
    """The free energy of a classifier's logits (B, classes): -logsumexp, (B,). Low where it knows what it sees.

    Source: Liu et al. 2020, Energy-based Out-of-distribution Detection.
    """
    return -logits.logsumexp(1)


def entropy(logits: Tensor, image: Tensor) -> Tensor:
    """The entropy of the probabilities of logits (B, classes), in nats, (B,). Low where a classifier is sure."""
    likely = logits.log_softmax(1)
    return -(likely.exp() * likely).sum(1)


SCORES: dict[str, Score] = {"energy": energy, "entropy": entropy}


def canonicalize(
    network: nn.Module,
    transform: TransformLike = "rotation",
    *,
    starts: int | Tensor = 16,
    keep: int = 1,
    steps: int = 4,
    tries: int = 1,
    score: Literal["energy", "entropy"] | Score = "energy",
    margin: float = 0.0,
    localizer: nn.Module | None = None,
    max_batch: int = 256,
    seed: int = 0,
    **options: Unpack[ReadOptions],
) -> Canonicalizer:
    """A trained network behind a search for the pose in which it knows an image best.

    The image as it came, `starts` warps spread over the family's bounds and what a `localizer` says are looked at; the best `keep`
    of them are refined in `steps` rounds of tries at both sides, closer at each. All of it goes by the network's own score, without labels
    and without a gradient, and takes `Canonicalizer.passes` forward passes.

    Args:
        network: any trained module, image (B, C, [D,] H, W) -> output (B, ...). It is put into eval mode and stays there; nothing else
            of it changes.
        transform: the family of warps, its name or its configuration. It says how far is searched: `stn.Rotation()` once
            round, others within their bounds, which have to be told.
        starts: how many warps to begin with, or their theta (K, num_params); 0 where a localizer says where to begin.
        keep: how many of them are refined.
        steps: rounds of refinement; 0 for none.
        tries: directions that each round tries, forth and back, drawn once for all images.
        score: "energy" or "entropy", of the logits; or `(output, image) -> (B,)`, lower is better, such as a distance of features
            to those of the training images.
        margin: the gate: what the score as it came has to be beaten by. `calibrate` finds it.
        localizer: image -> theta (B, K * num_params), one or several guesses each, such as `stn.PoseLocalizer`.
        max_batch: how many warped images are held at a time.
        seed: of the starts and the directions: equal calls give equal results.
        options: how images are read, as of `stn.SpatialTransformer`.

    Raises:
        ValueError: for options out of range, a family without bounds, and where there is nothing to look at.

    Example:
        >>> import stn
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> robust = canonicalize(network, "rotation", starts=8)
        >>> robust.passes
        17
        >>> robust(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Source: Singhal et al. 2025, Test-Time Canonicalization by Foundation Models for Robust Perception; the gate and the bounded
    families are ours.
    """
    return Canonicalizer(
        network, transform, starts=starts, keep=keep, steps=steps, tries=tries, score=score, margin=margin, localizer=localizer,
        max_batch=max_batch, seed=seed, **options,
    )  # fmt: skip


class Canonicalizer(AbstractTransformer):
    """What `stn.canonicalize` makes: the network's output for images brought into their canonical pose.

    `look(image)` also says what was found, a `Canonical`: a `stn.Warp` with the scores, and which images were moved.
    `margin` is a buffer, so it is saved with the weights.
    """

    margin: Tensor
    starts: Tensor
    reach: Tensor
    directions: Tensor

    def __init__(
        self,
        network: nn.Module,
        transform: TransformLike = "rotation",
        *,
        starts: int | Tensor = 16,
        keep: int = 1,
        steps: int = 4,
        tries: int = 1,
        score: Literal["energy", "entropy"] | Score = "energy",
        margin: float = 0.0,
        localizer: nn.Module | None = None,
        max_batch: int = 256,
        seed: int = 0,
        **options: Unpack[ReadOptions],
    ) -> None:
        super().__init__(check_transform(transform), None, **options)
        if not isinstance(network, nn.Module):
            raise ValueError(f"network: expected a torch.nn.Module, got {describe(network)}")
        for argument, value in (("keep", keep), ("tries", tries), ("max_batch", max_batch)):
            check_count(argument, value)
        check_number("steps", steps, "an int of at least 0", lambda n: isinstance(n, int) and n >= 0)
        check_number("seed", seed, "an int of at least 0", lambda n: isinstance(n, int) and n >= 0)
        check_number("margin", margin, "a finite number of at least 0", lambda v: 0 <= v < float("inf"))
        if not callable(score):
            check_choice("score", score, SCORES)
        self.network = network.eval()
        self.localizer = None if localizer is None else check_localizer(localizer)
        self.keep, self.steps, self.tries, self.max_batch, self.seed = keep, steps, tries, max_batch, seed
        self.score: Score = score if callable(score) else SCORES[score]
        places = _places(self.transform, starts, seed)
        if not len(places) and localizer is None:
            raise ValueError("starts: expected at least one without a localizer, got 0")
        self.register_buffer("starts", places)
        # How far the first round tries: half of the distance between neighbouring starts; nearer where a localizer has been.
        share = _NEAR if localizer is not None else len(places) ** (-1 / self.transform.num_params)
        self.register_buffer("reach", half_range(self.transform, places) * share if steps else places.new_zeros(1))
        self.register_buffer("margin", torch.tensor(float(margin)))
        self.register_buffer("directions", _directions(steps, tries, self.transform.num_params, seed), persistent=False)

    @property
    def passes(self) -> int:
        """How many forward passes of the network an image takes, but for guesses of a localizer: the image as it came, starts, refinement,
        and the result."""
        return 2 + len(self.starts) + self.steps * 2 * self.keep * self.tries

    def localization_networks(self) -> Iterable[nn.Module]:
        return [] if self.localizer is None else [self.localizer]

    def train(self, mode: bool = True) -> Canonicalizer:
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        return as_one_step(self, image) if is_symbolic(image) else self.look(image)[0]

    def look(self, image: Tensor) -> tuple[Tensor, Canonical]:
        """The network's output for the images in their canonical pose, and what was found."""
        found = self.warp(image)
        output: Tensor = self.network(found.output)
        return output, found

    @torch.no_grad()
    def warp(self, image: Tensor) -> Canonical:
        """The images in their canonical pose, as they came where the gate left them alone; no gradient passes the search."""
        self._check_image(image)
        theta, score, upright = self._search(image)
        moved = (upright - score).float() > self.margin
        theta = torch.where(moved[:, None], theta, self.transform.identity().to(theta))
        warp = self._warp(image, theta, self.transform, None)
        output = torch.where(moved.reshape(-1, *[1] * (image.ndim - 1)), warp.output, image)
        return Canonical(
            output, theta, self.transform, warp.image_size, warp.size, warp.align_corners, score=score, upright=upright, moved=moved
        )  # fmt: skip

    @torch.no_grad()
    def calibrate(
        self, images: Tensor | Iterable[Tensor], quantile: float = 0.995, *, by: Literal["class", "image"] = "class"
    ) -> float:
        """Set the gate's margin from upright images alone, without labels: the smallest at which this share of them is as good as left
        alone.

        Args:
            images: (B, C, [D,] H, W), or batches of them, such as the network was trained on but has not seen.
            quantile: the share, from 0 to 1.
            by: who counts as left alone: "class", whose largest output (of (B, classes)) stays where it is, moved or not; "image", who is
                not moved.

        Returns:
            The margin, the quantile of `Canonical.gain`, which counts as 0 for images that are as good as left alone.

        Raises:
            ValueError: for another quantile, no image, and by="class" with outputs of another shape.
        """
        check_number("quantile", quantile, "a number from 0 to 1", lambda q: 0 <= q <= 1)
        check_choice("by", by, ("class", "image"))
        kept, self.margin = self.margin, torch.zeros_like(self.margin)
        try:
            gains = [self._gain(batch, by) for batch in ([images] if isinstance(images, Tensor) else images)]
        finally:
            self.margin = kept
        gain = torch.cat(gains) if gains else torch.empty(0)
        if not len(gain):
            raise ValueError("images: expected at least one, got none")
        self.margin.fill_(float(torch.quantile(gain.double(), quantile, interpolation="higher")))
        return float(self.margin)

    def _gain(self, image: Tensor, by: str) -> Tensor:
        """What the score of each image would gain, (B,), 0 where that changes nothing of what counts."""
        found = self.warp(image)
        if by == "image":
            return found.gain
        before, after = self.network(image), self.network(found.output)
        if not isinstance(before, Tensor) or before.ndim != 2:
            raise ValueError(
                f"by: expected 'image' for a network whose outputs are not (B, classes), got {describe(before)}"
            )
        return found.gain * (before.argmax(1) != after.argmax(1))

    def _search(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The theta (B, num_params) of the lowest score, that score (B,), and that of the images as they came."""
        count = len(image)
        upright = self._scores(image, None)[:, 0]
        identity = self.transform.identity().to(self.starts).expand(count, 1, -1)
        thetas = [self.starts.expand(count, -1, -1)]
        if self.localizer is not None:
            thetas.append(self._guesses(image))
        theta = torch.cat(thetas, dim=1)
        theta, score = (
            torch.cat([identity, theta], dim=1),
            torch.cat([upright[:, None], self._scores(image, theta)], dim=1),
        )
        theta, score = _best(theta, score, self.keep)
        radius = self.reach.expand(count, 1, 1, -1)
        for directions in self.directions:  # (2 * tries, P)
            tried = (theta[:, :, None] + radius * directions).flatten(1, 2)
            before = score[:, 0]
            theta, score = torch.cat([theta, tried], 1), torch.cat([score, self._scores(image, tried)], 1)
            theta, score = _best(theta, score, self.keep)
            radius = radius * torch.where(score[:, 0] < before, _AFTER_GAIN, _AFTER_NONE).reshape(-1, 1, 1, 1)
        return theta[:, 0], score[:, 0], upright

    def _guesses(self, image: Tensor) -> Tensor:
        """What the localizer says, (B, K, num_params)."""
        assert self.localizer is not None
        said, width = self.localizer(image), self.transform.num_params
        if (
            not isinstance(said, Tensor)
            or said.ndim != 2
            or len(said) != len(image)
            or not said.shape[1]
            or said.shape[1] % width
        ):
            raise ValueError(
                f"localizer: expected an output of shape ({len(image)}, K * {width}), of one or more theta of "
                f"{type(self.transform).__name__}, got {describe(said)}"
            )
        return said.unflatten(1, (-1, width)).to(self.starts)

    def _scores(self, image: Tensor, theta: Tensor | None) -> Tensor:
        """The score of each image under each of its theta (B, K, num_params), (B, K), at most `max_batch` at a time; without theta of
        the image as it is, (B, 1)."""
        tries = 1 if theta is None else theta.shape[1]
        pairs = torch.arange(len(image) * tries, device=image.device)
        scores = []
        for part in pairs.split(self.max_batch):
            seen = image[part // tries]
            if theta is not None:
                seen = self._warp(seen, theta.flatten(0, 1)[part], self.transform, None).output
            score = self.score(self.network(seen), seen)
            if not isinstance(score, Tensor) or score.shape != part.shape:
                raise ValueError(f"score: expected ({len(part)},), a number for each image, got {describe(score)}")
            scores.append(score.to(coordinate_dtype(score)))
        # What is no number is no pose to prefer.
        return (
            torch.cat(scores).nan_to_num(nan=float("inf"), posinf=float("inf")).reshape(-1, tries)
            if scores
            else image.new_zeros(0, tries)
        )

    def extra_repr(self) -> str:
        shown = f"starts={len(self.starts)}, keep={self.keep}, steps={self.steps}, tries={self.tries}, margin={float(self.margin):g}"
        return f"{shown}, {super().extra_repr()}"


def _best(theta: Tensor, score: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The candidates with the lowest scores, the best first, of equal ones the earlier."""
    score, order = score.sort(dim=1, stable=True)
    return theta.gather(1, order[:, :keep, None].expand(-1, -1, theta.shape[2])), score[:, :keep]


def _places(transform: AbstractTransform, starts: int | Tensor, seed: int) -> Tensor:
    """The theta (K, num_params) of the starts."""
    if isinstance(starts, Tensor):
        check_float_tensor("starts", starts, f"(K, {transform.num_params}) parameters of {type(transform).__name__}")
        if starts.ndim != 2 or starts.shape[1] != transform.num_params or not bool(starts.isfinite().all()):
            raise ValueError(
                f"starts: expected finite (K, {transform.num_params}) parameters of {type(transform).__name__}, got {describe(starts)}"
            )
        return starts.detach().float()
    check_number(
        "starts", starts, "an int of at least 0, or theta (K, num_params)", lambda n: isinstance(n, int) and n >= 0
    )
    if not starts:
        return torch.empty(0, transform.num_params)
    places = spread_evenly(transform, starts, seed=seed)
    return places[(places - transform.identity()).abs().amax(1) > 1e-6]  # as it came it is looked at in any case


def _directions(steps: int, tries: int, width: int, seed: int) -> Tensor:
    """The directions of each round, forth and back: (steps, 2 * tries, width), each of a length of 1 for each number of theta that it
    moves, 1 in one dimension."""
    drawn = torch.randn(steps, tries, width, generator=torch.Generator().manual_seed(seed))
    drawn = drawn / drawn.norm(dim=2, keepdim=True) if width > 1 else torch.ones_like(drawn)
    return torch.cat([drawn, -drawn], dim=1)
