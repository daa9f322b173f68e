"""What may stand beside a run as its control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..run.folder import Run, RunError

COMPARABLE = 0.95  # share of the run's parameters that a control has at least


def check_control(run: Run, control: Run) -> None:
    """Refuse what is no control of a run: a network without a transformer, measured on the same test images.

    A control has as many parameters as the run, but for one that says `widen: false`: that is the run's own classifier.

    Raises:
        RunError: that says what was expected, and what came.
    """

    def expect(what: str, same: bool, got: Any) -> None:
        if not same:
            raise RunError(f"control: expected {what}, got {control.path}, {got}")

    mine, theirs = run.config, control.config
    if mine.transformer == "none":
        raise RunError(f"control: expected none for {run.path}, which has no transformer itself, got {control.path}")
    expect(
        "a run without a transformer (--transformer none)",
        theirs.transformer == "none",
        f"which has transformer {theirs.transformer!r}",
    )
    for setting in ("dataset", "distortion", "fit"):
        wanted, came = getattr(mine, setting), getattr(theirs, setting)
        expect(f"a run with the same {setting}, {wanted or 'none'}", wanted == came, f"which has {came or 'none'}")
    for fact in ("class_names", "input_shape"):
        wanted, came = getattr(run.facts, fact), getattr(control.facts, fact)
        expect("a run on the same images", wanted == came, f"with {fact} {came}, not {wanted}")
    if mine.distortion is not None:
        expect(
            f"a run on the same test set, whose distortions are drawn by seed {mine.seed}",
            mine.seed == theirs.seed,
            f"with seed {theirs.seed}",
        )
    if mine.dataset == "images":
        # Data may move between the two; images with the same statistics are the same.
        same_images = (run.facts.mean, run.facts.std) == (control.facts.mean, control.facts.std)
        expect(
            f"a run on the same folder of images, {mine.data_dir}",
            same_images or _folder(mine.data_dir) == _folder(theirs.data_dir),
            f"which has {theirs.data_dir}",
        )
    wanted, came = _parameters(run), _parameters(control)
    expect(
        f"a run with at least about as many parameters, {wanted:,}",
        came >= COMPARABLE * wanted or (not theirs.widens and theirs.network == mine.network),
        f"which has {came:,}",
    )


def _folder(path: str | None) -> Path | None:
    return None if path is None else Path(path).expanduser().resolve()


def _parameters(run: Run) -> int:
    if run.result:
        return run.result.parameters
    run.check_trust()
    model = run.config.make_model(run.facts.input_shape, len(run.facts.class_names))
    return sum(p.numel() for p in model.parameters())
