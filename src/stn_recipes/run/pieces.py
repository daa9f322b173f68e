"""The classifier behind a transformer on its own: weights from elsewhere, and frozen."""

from __future__ import annotations

from pathlib import Path

from stn import weights
from stn.models import TransformerClassifier

from .folder import RunError, load_weights, read_config


def freeze_classifier(model: TransformerClassifier) -> None:
    """Leave the transformer alone to be trained: no gradient for the classifier, and no statistics of its batch norm."""
    model.classifier.eval().requires_grad_(False)


def load_classifier(model: TransformerClassifier, file: Path, *, freeze: bool = False) -> None:
    """Put the weights of a file into the classifier: safetensors, or a state dict, which is read without executing anything.

    Where the file is of a network of timm with another number of classes, the layer that says the logits stays as it is,
    and a line says so.

    Raises:
        ValueError: where a name or a shape is not the classifier's, in the name of the file; and for a last layer that
            would be left random under `freeze`.
    """
    state = weights.read_weights(file) if file.suffix == ".safetensors" else weights.read_state_dict(file)
    last = (getattr(model.classifier, "pretrained_cfg", None) or {}).get("classifier")
    own = model.classifier.state_dict()
    other = [
        name for name in own
        if isinstance(last, str) and name.startswith(f"{last}.") and name in state and state[name].shape[1:] == own[name].shape[1:]
        and state[name].shape != own[name].shape
    ]  # fmt: skip
    if other and freeze:
        raise ValueError(
            f"{file}: expected weights for {own[other[0]].shape[0]} classes under freeze, got {other[0]} for "
            f"{state[other[0]].shape[0]}: the layer that says the logits would stay random"
        )
    if other:
        print(f"{file}: of {state[other[0]].shape[0]} classes, not {own[other[0]].shape[0]}: {last} starts at random.")
    weights.load_weights(model.classifier, state | {name: own[name] for name in other}, file)


def load_classifier_of(model: TransformerClassifier, run: Path) -> None:
    """Put the classifier of a run without a transformer into the model; of a run that learned poses, its localizer too.

    Raises:
        RunError: for a run with a transformer that learned something else, and for other networks.
    """
    of = read_config(run)
    if of.learn == "poses":
        load_weights(model, run)
        return
    if of.transformer != "none":
        raise RunError(
            f"init_from: expected a run without a transformer, got {run}, which has {of.family}; --control trains one beside it"
        )
    bare = TransformerClassifier(None, model.classifier)
    load_weights(bare, run)
