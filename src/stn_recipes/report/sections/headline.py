"""What was reached, beside the control."""

from __future__ import annotations

from typing import Any

from scipy.stats import binomtest

from ...run.folder import Run
from ..study import Outcome, Study
from .base import Part, Section


def _make(study: Study) -> Part:
    run, outcome = _card(study.run, study.outcome), study.outcome
    control = None if study.control is None else _card(study.control, study.control_outcome)
    values: dict[str, Any] = {"run": run, "control": control, "points": None, "fewer": None, "paired": None}
    if control is not None and run["accuracy"] is not None:
        errors, others = 1 - run["accuracy"], 1 - control["accuracy"]
        values["points"] = 100 * (others - errors)
        values["fewer"] = 1 - errors / others if others > 0 else None
    if outcome is not None and study.control_outcome is not None:
        mine, theirs = outcome.correct, study.control_outcome.correct
        wins, losses = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
        values["paired"] = {"wins": wins, "losses": losses, "chance": sign_test(wins, losses)}
    values["without"] = None if study.control is None else _without(study.run, study.control)
    return Part({**values, "kind": study.kind, "finished": study.finished is not None})


def _without(run: Run, control: Run) -> str:
    """What the control is, in words."""
    if control.config.network != run.config.network:
        return f"the network {control.config.network} without one"
    return "the same kind of network without one" if control.config.widens else "the same classifier without one"


def _card(run: Run, outcome: Outcome | None) -> dict[str, Any]:
    result = run.result
    accuracy = result.test_accuracy if result else outcome.accuracy if outcome else None
    parameters = result.parameters if result else None
    if parameters is None and outcome is not None:
        parameters = sum(p.numel() for p in run.model.parameters())
    return {
        "accuracy": accuracy,
        "interval": interval(accuracy, len(outcome.labels)) if outcome and accuracy is not None else None,
        "images": len(outcome.labels) if outcome else None,
        "wrong": int((~outcome.correct).sum()) if outcome else None,
        "parameters": parameters,
        "time": duration(result.train_seconds) if result else None,
        "epochs": result.epochs if result else None,
    }


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of `count` trials, Wilson's."""
    found = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return found.low, found.high


def sign_test(wins: int, losses: int) -> float:
    """How likely a split at least so uneven is by chance alone, both sides counted."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


HEADLINE = Section("headline", None, _make)
