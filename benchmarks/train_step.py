"""A training step of our CIFAR-10 network beside the same network written by hand with torch's own two calls, and with
the layers of kornia and MONAI where they are installed.

    python -m benchmarks.train_step

They run in turn in one process, on the same images, from the same weights; printed are milliseconds and the ratio
pair by pair. Before anything is timed, all must give the same logits and gradients.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stn

Read = Callable[[Tensor, Tensor], Tensor]


def by_hand(image: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def readers() -> dict[str, Read]:
    """Torch's two calls, and the layers that are installed: `pip install --no-deps kornia kornia_rs monai`."""
    found: dict[str, Read] = {"by hand": by_hand}
    try:
        kornia = importlib.import_module("kornia.geometry.transform")

        def of_kornia(image: Tensor, theta: Tensor) -> Tensor:
            """Which takes what pushes pixels, between the corners' centres."""
            size = (image.shape[2], image.shape[3])
            push = stn.conventions.theta_to_pixel(stn.geometry.invert_matrix(theta), size, size)
            warped: Tensor = kornia.warp_affine(image, push, size, padding_mode="border", align_corners=True)
            return warped

        found["kornia"] = of_kornia
    except ImportError:
        pass
    try:
        layers = importlib.import_module("monai.networks.layers")
        layer = layers.AffineTransform(
            normalized=True, reverse_indexing=False, padding_mode="border", align_corners=False
        )
        found["MONAI"] = lambda image, theta: layer(image, theta)
    except ImportError:
        pass
    return found


class ByHand(nn.Module):
    """The network as one writes it from the tutorial, around the same layers."""

    def __init__(self, model: stn.models.TransformerClassifier, read: Read) -> None:
        super().__init__()
        assert model.transformer is not None
        self.features, self.head = model.transformer.localizer.features, model.transformer.localizer.head
        self.classifier, self.read = model.classifier, read

    def forward(self, image: Tensor) -> Tensor:
        theta = self.head(self.features(image)).view(-1, 2, 3)
        logits: Tensor = self.classifier(self.read(image, theta))
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
    models: dict[str, nn.Module] = {"stn": ours}
    models |= {name: ByHand(copy.deepcopy(ours), read) for name, read in readers().items()}
    images, labels = torch.randn(arguments.batch_size, 3, 32, 32), torch.randint(0, 10, (arguments.batch_size,))

    def step(model: nn.Module) -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(images.to(next(model.parameters()).dtype)), labels)
        loss.backward()
        return loss.detach()

    # In float64: behind float32's rounding of the positions a max-pool may pick another pixel.
    wanted, *others = (copy.deepcopy(model).double() for model in models.values())
    loss = step(wanted)
    for name, other in zip(list(models)[1:], others, strict=True):
        torch.testing.assert_close(loss, step(other), msg=name)
        for a, b in zip(gradients(wanted), gradients(other), strict=True):
            torch.testing.assert_close(a, b, msg=name)

    times: dict[str, list[float]] = {name: [] for name in models}
    turns = list(models.items())
    for i in range(arguments.steps + 5):
        for name, model in turns if i % 2 else turns[::-1]:
            start = time.perf_counter()
            step(model)
            if i >= 5:
                times[name].append(time.perf_counter() - start)
    print(
        f"{arguments.network}, batch {arguments.batch_size}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, seconds in times.items():
        pairs = statistics.median(a / b for a, b in zip(times["stn"], seconds, strict=True))
        print(
            f"{name:8s} best {1e3 * min(seconds):7.2f} ms   median {1e3 * statistics.median(seconds):7.2f} ms   stn / {name}: "
            f"best {min(times['stn']) / min(seconds):.3f}, median of pairs {pairs:.3f}"
        )


def gradients(model: nn.Module) -> list[Tensor]:
    # By shape and sum: the two models name and order the same parameters differently.
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return sorted(found, key=lambda g: (tuple(g.shape), float(g.double().sum())))


if __name__ == "__main__":
    main()
