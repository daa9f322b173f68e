"""Weights that come with the package: of each set the run with the least validation error, in half precision.

A folder for each: `model.safetensors`, `config.json` (the arguments of `LabelledClassifier`), `README.md` (the card) and
`record.json`: the settings of the run, its seed, the test images that these weights get wrong, a checksum. They are
written by `python -m benchmarks.weights`. `stn.hub.Classifier.from_pretrained` reads such a folder, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..._checks import check_choice
from ..labelled import LabelledClassifier

FOLDER = Path(__file__).parent


def pretrained_names() -> list[str]:
    """The names that `create(name, pretrained=True)` knows: recipes of `stn train`."""
    return sorted(file.parent.name for file in FOLDER.glob("*/config.json"))


def record(name: str) -> dict[str, Any]:
    """How the weights were made and what they reach."""
    check_choice("name", name, pretrained_names())
    content: dict[str, Any] = json.loads((FOLDER / name / "record.json").read_text(encoding="utf-8"))
    return content


def load(name: str) -> LabelledClassifier:
    """A network with its weights, in eval mode. See `stn.models.create`."""
    check_choice("name", name, pretrained_names())
    try:
        from ... import weights
    except ImportError as missing:
        raise ImportError("pretrained weights need safetensors: pip install safetensors") from missing
    folder = FOLDER / name
    model = LabelledClassifier(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    file = folder / "model.safetensors"
    weights.load_weights(model, weights.read_weights(file), file)
    return model.eval()
