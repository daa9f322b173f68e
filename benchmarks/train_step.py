"""A training step of our CIFAR-10 network beside the same network written by hand with torch's own two calls.

    python -m benchmarks.train_step

The two run in turn in one process, on the same images, from the same weights; printed are milliseconds and the ratio
pair by pair. Before anything is timed, both must give the same logits and gradients.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stn


class ByHand(nn.Module):
    """The network as one writes it from the tutorial, around the same layers."""

    def __init__(self, model: stn.models.TransformerClassifier) -> None:
        super().__init__()
        assert model.transformer is not None
        self.features, self.head = model.transformer.localizer.features, model.transformer.localizer.head
        self.classifier = model.classifier

    def forward(self, image: Tensor) -> Tensor:
        theta = self.head(self.features(image)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        logits: Tensor = self.classifier(F.grid_sample(image, grid, padding_mode="border", align_corners=False))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", default="cifar10_small", choices=["cifar10_small", "cifar10_large"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    ours = stn.models.create(arguments.network, dropout=0.0)
    assert ours.transformer is not None
    with torch.no_grad():  # off the identity, where each position lies on a kink and rounding picks the slope
        ours.transformer.localizer.head[-1].bias += 0.02 * torch.randn(6)
    hand = ByHand(copy.deepcopy(ours))
    images, labels = torch.randn(arguments.batch_size, 3, 32, 32), torch.randint(0, 10, (arguments.batch_size,))

    def step(model: nn.Module) -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(images.to(next(model.parameters()).dtype)), labels)
        loss.backward()
        return loss.detach()

    # In float64: behind float32's rounding of the positions a max-pool may pick another pixel.
    exact = [copy.deepcopy(model).double() for model in (ours, hand)]
    torch.testing.assert_close(step(exact[0]), step(exact[1]))
    for a, b in zip(gradients(exact[0]), gradients(exact[1]), strict=True):
        torch.testing.assert_close(a, b)

    times: dict[str, list[float]] = {"stn": [], "by hand": []}
    pairs: list[tuple[str, Callable[[], Tensor]]] = [("stn", lambda: step(ours)), ("by hand", lambda: step(hand))]
    for i in range(arguments.steps + 5):
        for name, run in pairs if i % 2 else pairs[::-1]:
            start = time.perf_counter()
            run()
            if i >= 5:
                times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        print(f"{name:8s} best {1e3 * min(seconds):7.2f} ms   median {1e3 * statistics.median(seconds):7.2f} ms")
    ratios = [a / b for a, b in zip(times["stn"], times["by hand"], strict=True)]
    best = min(times["stn"]) / min(times["by hand"])
    print(
        f"stn / by hand: best {best:.3f}, median of pairs {statistics.median(ratios):.3f} ({arguments.network}, batch {arguments.batch_size}, {torch.get_num_threads()} threads, torch {torch.__version__})"
    )


def gradients(model: nn.Module) -> list[Tensor]:
    # By shape and sum: the two models name and order the same parameters differently.
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return sorted(found, key=lambda g: (tuple(g.shape), float(g.double().sum())))


if __name__ == "__main__":
    main()
