"""The weights that come with the package, from finished runs.

    python -m benchmarks.weights runs/campaign --data-dir DATA

Of each recipe's runs with a transformer below the folder, the one with the least validation error; the test set has no
say. Its weights are rounded to half precision, and those are measured: on the test set, and on scikit-learn's digits
under the same distortion, which a test can repeat anywhere. What is there already for a recipe is replaced.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from stn.models.pretrained import FOLDER
from stn.weights import serialize_weights
from stn_recipes.config import RESUMABLE, TrainConfig
from stn_recipes.files import write_bytes, write_text
from stn_recipes.publish import card, classifier, command
from stn_recipes.run.folder import Result, Run, load_run

LARGEST = 2 << 20  # bytes, of all weights together
APART = (*RESUMABLE, "out", "init_from", "schedule_start")  # of the settings: they make no other network


def best_runs(runs: Iterable[Run]) -> dict[str, Run]:
    """The run with the least validation error, of each recipe."""
    best: dict[str, tuple[float, Run]] = {}
    for run in runs:
        assert run.result is not None
        accuracy = run.result.val_accuracy
        if run.config.family == "none" or accuracy is None:
            continue
        if accuracy > best.get(run.config.recipe, (-1.0,))[0]:
            best[run.config.recipe] = accuracy, run
    return {name: run for name, (_, run) in best.items()}


def control_of(run: Run, runs: Iterable[Run]) -> Result | None:
    """What the same recipe without a transformer reached with the same settings."""
    wanted = _settings(dataclasses.replace(run.config, transformer="none"))
    return next((other.result for other in runs if _settings(other.config) == wanted), None)


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in config.as_plain().items() if name not in APART}


@torch.no_grad()
def mistakes(run: Run, **settings: Any) -> tuple[int, list[int]]:
    """How many test images there are under these settings, and the places of those that the run gets wrong."""
    data = dataclasses.replace(run.config, **settings).make_data()
    data.prepare_data()
    pairs = [(run.model(images).argmax(1), labels) for images, labels in data.loader(data.test_data())]
    right = torch.cat([best == labels for best, labels in pairs])
    return len(right), (~right).nonzero().flatten().tolist()


def ship(run: Run, control: Result | None, data_dir: str) -> None:
    """Write the folder of a recipe."""
    assert run.result is not None
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in run.model.state_dict().items()
    }
    run.model.load_state_dict(half)  # as float32, with the values that will be read back
    images, wrong = mistakes(run, data_dir=None if run.config.dataset == "digits" else data_dir)
    digits = None
    if run.facts.input_shape[0] == 1:
        digits_images, digits_wrong = mistakes(run, dataset="digits", data_dir=None)
        digits = {"images": digits_images, "wrong": len(digits_wrong)}
    config = dataclasses.replace(run.config, data_dir=None if run.config.data_dir is None else "DATA")
    weights = serialize_weights(half)
    record = {
        "transformer": config.family,
        "command": command(config, control=False),
        "settings": _settings(run.config),
        "val_error": round(100 * (1 - (run.result.val_accuracy or 0.0)), 4),
        "images": images,
        "wrong": wrong,
        "digits": digits,
        "parameters": run.result.parameters,
        "minutes": round(run.result.train_seconds / 60, 1),
        "versions": run.result.versions,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    measured = dataclasses.replace(run.result, test_accuracy=1 - len(wrong) / images)
    folder = FOLDER / config.recipe
    folder.mkdir(exist_ok=True)
    write_bytes(folder / "model.safetensors", weights)
    write_text(folder / "config.json", json.dumps(classifier(run).settings, indent=1) + "\n")
    write_text(folder / "record.json", json.dumps(record) + "\n")
    run.result = measured
    write_text(folder / "README.md", str(card(run, control=control, license="mit")))
    print(f"{config.recipe}: {run.path.name}, {100 * len(wrong) / images:.2f} % of the test set wrong")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of finished runs")
    parser.add_argument("--data-dir", required=True, help="folder of the official files")
    a = parser.parse_args()
    runs = [load_run(file.parent) for file in sorted(a.runs.rglob("result.json"))]
    for run in best_runs(runs).values():
        ship(run, control_of(run, runs), a.data_dir)
    total = sum(file.stat().st_size for file in FOLDER.glob("*/model.safetensors"))
    if total > LARGEST:
        raise SystemExit(f"{FOLDER}: {total:,} bytes of weights, expected at most {LARGEST:,}")


if __name__ == "__main__":
    main()
