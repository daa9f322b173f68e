"""A run as one page that opens anywhere: report.html, and its figures as PNG files.

Everything is inside the page: no script, no network, no file beside it. What can be shared is shown: folders of this
machine are left out. A run that was interrupted gets a page of what there is.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import io
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

import stn
from stn import viz
from stn.models import TransformerClassifier
from stn.transforms.affine import AbstractMatrixTransform

from .data.registry import DataError, get
from .files import atomic_path, write_text
from .recipes import RECIPES
from .run.folder import Run, RunError, load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES = 6  # images of each kind
FILM_COLUMNS = 9
ROBUSTNESS_PIXELS = 1000 * 32 * 32  # images times their area, at most
ROTATIONS = tuple(range(-90, 91, 15))  # degrees
SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6)
SHIFTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # of the width
PAGE_SIDE = 96  # pixels, of images in the page
FIGURES = (
    "curves", "before_after_best", "before_after_typical", "before_after_worst", "filmstrip", "theta", "confusion",
    "robustness",
)  # fmt: skip
DISTORTIONS = {
    "r": "rotated by up to 90°",
    "rts": "rotated, scaled and shifted",
    "p": "in perspective",
    "e": "elastically distorted",
    "t": "shifted",
    "tc": "shifted, among clutter",
}


@dataclass(frozen=True)
class Report:
    """The page, and its figures by name."""

    html: str
    figures: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a network made of the test images."""

    labels: Tensor  # (N,)
    predicted: Tensor  # (N,)
    confidence: Tensor  # (N,)
    theta: Tensor | None  # (N, P)

    @property
    def correct(self) -> Tensor:
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())


def write_report(run: Path, control: Path | None = None, *, data_dir: str | None = None) -> Path:
    """Write RUN/report.html and RUN/figures, and return the page.

    Args:
        run: folder of the run.
        control: folder of a run without a transformer to show beside it; RUN/control unless given, where that is a
            finished run.
        data_dir: where the data lies now, if not where the run had it.

    Raises:
        RunError: for a folder without a run, or a control on other images.
    """
    loaded = load_run(run)
    other = None
    if control is not None:
        other = load_run(control)
        if not other.result:
            raise RunError(f"control: expected a finished run, got {control}, which has no result.json")
    elif (Path(run) / "control" / "result.json").exists():
        other = load_run(Path(run) / "control")
    report = build(loaded, other, data_dir=data_dir)
    folder = loaded.path / "figures"
    folder.mkdir(exist_ok=True)
    for name in FIGURES:
        file = folder / f"{name}.png"
        if name not in report.figures:
            file.unlink(missing_ok=True)  # of an earlier report
            continue
        with atomic_path(file) as temporary:
            report.figures[name].savefig(temporary, format="png", dpi=150)
    page = loaded.path / "report.html"
    write_text(page, report.html)
    return page


@torch.no_grad()
def build(run: Run, control: Run | None = None, *, data_dir: str | None = None) -> Report:
    """The report of a run, in memory."""
    if control is not None:
        _check_control(run, control)
    metrics = run.metrics()
    context: dict[str, Any] = {"notes": [], **_about(run, control, metrics)}
    figures: dict[str, Figure] = {}
    if metrics:
        other = control.metrics() if control is not None else None
        names = (_name(run), "control")
        figures["curves"] = viz.curves(metrics, other, panels=("loss", "accuracy", "lr"), names=names)
        context["curves"] = [
            _svg(viz.curves(metrics, other, panels=[panel], names=names), f"{title}, epoch by epoch")
            for panel, title in viz.PANELS.items()
            if panel != "lr" or any("lr" in record for record in metrics)
        ]
        context["log"] = _log(metrics)
    if data_dir is not None:  # not before now: the page says what the run was told
        run.config.data_dir = data_dir
    model = _attempt(run, context, "its weights cannot be read", lambda: run.model)
    if model is not None:
        film = run.filmstrip()
        if film is not None and model.transformer is not None:
            context["film"], figures["filmstrip"] = _film(run, model.transformer, *film)
        data = _attempt(run, context, "its data set cannot be read", lambda: run.data.test_data())
        if data is not None:
            _measure(run, control, model, data, context, figures)
    context["headline"] = _headline(run, control, context)
    return Report(_template().render(context), figures)


def _check_control(run: Run, control: Run) -> None:
    for fact in ("class_names", "input_shape"):
        mine, theirs = getattr(run.facts, fact), getattr(control.facts, fact)
        if mine != theirs:
            raise RunError(
                f"control: expected a run on the same images, got {control.path} with {fact} {theirs}, not {mine}"
            )


def _attempt(run: Run, context: dict[str, Any], problem: str, read: Any) -> Any:
    """What `read` returns; None and a note where it is not there."""
    try:
        return read()
    except (RunError, DataError, OSError) as error:
        reason = _shareable(run, str(error).splitlines()[0])
        context["notes"].append(f"Parts of this page are missing, because {problem}: {reason}")
        return None


# What was run


def _name(run: Run) -> str:
    return "control" if run.config.transformer == "none" else "transformer"


def _about(run: Run, control: Run | None, metrics: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    config, result = run.config, run.result
    usual = RECIPES.get(config.recipe)
    settings = []
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        changed = usual is not None and setting.name != "out" and value != getattr(usual, setting.name)
        settings.append((setting.name, _shareable(run, _text(value)), changed))
    finished = result.finished if result else None
    what = f"{config.dataset} images" if config.dataset != "images" else "your own images"
    what += f", {DISTORTIONS[config.distortion]}" if config.distortion in DISTORTIONS else ""
    epochs = int(result.epochs if result else (metrics[-1]["epoch"] if metrics else 0))
    kind = "control without a transformer" if config.transformer == "none" else f"{config.transformer} transformer"
    return {
        "title": f"{config.recipe}, {kind}",
        "recipe": config.recipe,
        "kind": kind,
        "what": what,
        "network": config.network,
        "seed": config.seed,
        "epochs": epochs,
        "of_epochs": config.epochs,
        "finished": datetime.datetime.fromisoformat(finished).strftime("%d %B %Y, %H:%M %Z") if finished else None,
        "command": _shareable(run, result.command if result else ""),
        "settings": settings,
        "placeholder": config.data_dir is not None,
        "versions": result.versions if result else {},
        "threads": result.threads if result else None,
        "shape": " × ".join(str(n) for n in run.facts.input_shape) if (run.path / "data.json").exists() else None,
        "names": {"run": _name(run), "control": "control" if control is not None else None},
        "stn_version": stn.__version__,
    }


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " × ".join(str(v) for v in value) if isinstance(value, tuple) else str(value)


def _shareable(run: Run, text: str) -> str:
    """Without the folders of this machine: a report is passed on."""
    if run.config.data_dir:
        text = text.replace(str(run.config.data_dir), "DATA")
    if run.path.is_absolute():
        text = text.replace(f"{run.path.parent}/", "")
    return text


def _log(metrics: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    columns = {
        "train_loss": ("train loss", "{:.4f}"),
        "train_accuracy": ("train accuracy", "{:.2%}"),
        "val_loss": ("validation loss", "{:.4f}"),
        "val_accuracy": ("validation accuracy", "{:.2%}"),
        "lr": ("learning rate", "{:.2g}"),
        "transformer_scale": ("frame scale", "{:.2f}"),
        "transformer_out_of_frame": ("out of frame", "{:.1%}"),
        "transformer_contrast": ("contrast", "{:.2f}"),
    }
    shown = [key for key in columns if any(record.get(key) is not None for record in metrics)]
    scored = [record for record in metrics if record.get("val_accuracy") is not None]
    best = max(scored, key=lambda record: record["val_accuracy"])["epoch"] if scored else None
    rows = []
    for record in metrics:
        values = [record.get(key) for key in shown]
        cells = ["–" if v is None else columns[key][1].format(v) for key, v in zip(shown, values, strict=True)]
        rows.append({"epoch": int(record["epoch"]), "cells": cells, "best": record["epoch"] == best})
    return {
        "columns": [columns[key][0] for key in shown],
        "rows": rows,
        "best": None if best is None else int(best),
        "diagnosed": "transformer_scale" in shown,
    }


def _headline(run: Run, control: Run | None, context: Mapping[str, Any]) -> dict[str, Any]:
    measured: dict[str, Outcome] = context.get("outcomes", {})

    def card(of: Run | None, key: str) -> dict[str, Any] | None:
        if of is None:
            return None
        outcome = measured.get(key)
        result = of.result
        accuracy = result.test_accuracy if result else outcome.accuracy if outcome else None
        parameters = result.parameters if result else None
        if parameters is None and outcome is not None:
            parameters = sum(p.numel() for p in of.model.parameters())
        return {
            "accuracy": accuracy,
            "interval": _wilson(accuracy, len(outcome.labels)) if outcome and accuracy is not None else None,
            "images": len(outcome.labels) if outcome else None,
            "wrong": int((~outcome.correct).sum()) if outcome else None,
            "loss": result.test_loss if result else None,
            "parameters": parameters,
            "minutes": _duration(result.train_seconds if result else None),
            "epochs": result.epochs if result else None,
        }

    cards = {"run": card(run, "run"), "control": card(control, "control")}
    headline: dict[str, Any] = {**cards, "fewer": None, "paired": None}
    if cards["run"] and cards["control"] and cards["run"]["accuracy"] is not None:
        errors, others = (1 - c["accuracy"] for c in (cards["run"], cards["control"]))
        headline["points"] = 100 * (others - errors)
        headline["fewer"] = 1 - errors / others if others > 0 else None
    if "run" in measured and "control" in measured:
        mine, theirs = measured["run"].correct, measured["control"].correct
        wins, losses = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
        headline["paired"] = {"wins": wins, "losses": losses, "chance": _sign_test(wins, losses)}
    return headline


def _wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of `count` trials."""
    z = 1.96
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return tuple((centre + sign * half) / (1 + z * z / count) for sign in (-1, 1))  # type: ignore[return-value]


def _sign_test(wins: int, losses: int) -> float:
    """How likely a split at least so uneven is by chance alone, both sides counted."""
    n = wins + losses
    tail: int = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n)


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# What it does on test images


def _measure(
    run: Run,
    control: Run | None,
    model: TransformerClassifier,
    data: Any,
    context: dict[str, Any],
    figures: dict[str, Figure],
) -> None:
    renormalize = _renormalize(run, control)
    outcome = _outcome(model, data)
    outcomes = context["outcomes"] = {"run": outcome}
    if control is not None:
        outcomes["control"] = _outcome(control.model, data, renormalize)
    for name, of in (("run", run), ("control", control)):
        if of is None or of.result is None or of.config.seed != run.config.seed:
            continue
        reached, now = of.result.test_accuracy, outcomes[name].accuracy
        if abs(reached - now) > 1.5 / len(outcome.labels):
            context["notes"].append(
                f"{_name(of).capitalize()}: result.json says a test accuracy of {reached:.2%}, but measured for this "
                f"page it is {now:.2%}. The data or the program has changed since."
            )
    names = run.facts.class_names
    context["cases"] = _cases(run, model, data, outcomes, figures)
    matrix = torch.zeros(len(names), len(names), dtype=torch.int64)
    matrix.index_put_((outcome.labels, outcome.predicted), torch.tensor(1), accumulate=True)
    figures["confusion"] = viz.confusion(matrix, names)
    context["confusion"] = {
        "svg": _svg(viz.confusion(matrix, names), "confusion matrix of the test images"),
        "pairs": _confusions(matrix, names),
        "wrong": int((~outcome.correct).sum()),
        "images": len(outcome.labels),
    }
    if model.transformer is not None and outcome.theta is not None:
        figures["theta"] = viz.theta_histograms(outcome.theta, model.transformer.transform)
        context["theta"] = _theta(model.transformer, outcome.theta, run.facts.input_shape[1:])
    models = {_name(run): (model, None)}
    if control is not None:
        models["control"] = (control.model, renormalize)
    sweeps, count = _sweep(run, models, data)
    figures["robustness"] = viz.robustness(sweeps)
    context["robustness"] = {
        "svgs": [
            _svg(viz.robustness({title: sweep}), f"test accuracy against {title}") for title, sweep in sweeps.items()
        ],
        "images": count,
        "background": "black" if get(run.config.dataset).background == "zeros" else "continued from the border",
    }


def _statistics(run: Run) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (run.facts.mean, run.facts.std))
    return mean, std


def _renormalize(run: Run, control: Run | None) -> Any:
    """Images normalized for `run`, as `control` wants them."""
    if control is None:
        return None
    (mean, std), (other_mean, other_std) = _statistics(run), _statistics(control)
    return lambda images: (images * std + mean - other_mean) / other_std


def _batches(data: Any, places: Sequence[int] | None = None, size: int = 500) -> Any:
    places = range(len(data)) if places is None else places
    for start in range(0, len(places), size):
        yield data.__getitems__(list(places[start : start + size]))


def _outcome(model: TransformerClassifier, data: Any, renormalize: Any = None) -> Outcome:
    labels, predicted, confidence, theta = [], [], [], []
    for images, truth in _batches(data):
        if renormalize is not None:
            images = renormalize(images)
        logits, warp = model.look(images)
        if warp is not None:
            theta.append(warp.theta.float())
        top = logits.float().softmax(1).max(1)
        labels.append(truth)
        predicted.append(top.indices)
        confidence.append(top.values)
    return Outcome(torch.cat(labels), torch.cat(predicted), torch.cat(confidence), torch.cat(theta) if theta else None)


def _cases(
    run: Run,
    model: TransformerClassifier,
    data: Any,
    outcomes: Mapping[str, Outcome],
    figures: dict[str, Figure],
) -> dict[str, Any]:
    outcome = outcomes["run"]
    names = run.facts.class_names
    median = float(outcome.confidence.median())
    right, wrong = outcome.correct, ~outcome.correct
    groups = {
        "best": outcome.confidence.masked_fill(wrong, -1).argsort(descending=True, stable=True)[: int(right.sum())],
        "typical": (outcome.confidence - median).abs().argsort(stable=True),
        "worst": outcome.confidence.masked_fill(right, -1).argsort(descending=True, stable=True)[: int(wrong.sum())],
    }
    chosen = {name: _spread(places.tolist(), outcome.labels.tolist()) for name, places in groups.items()}
    every = sorted({place for places in chosen.values() for place in places})
    images = torch.cat([batch for batch, _ in _batches(data, every)])
    row = {place: i for i, place in enumerate(every)}
    warp = None if model.transformer is None else model.transformer.warp(images)
    mean, std = _statistics(run)
    before = images * std + mean
    after = None if warp is None else warp.output * std + mean
    outlines = None if warp is None else viz.frame_outlines(warp)
    margin = 0.0 if warp is None or outlines is None else viz.frame_margin(outlines, warp.image_size)

    def case(place: int) -> dict[str, Any]:
        i = row[place]
        truth, predicted = names[int(outcome.labels[place])], names[int(outcome.predicted[place])]
        other = None
        if "control" in outcomes:
            theirs = outcomes["control"]
            other = {
                "predicted": names[int(theirs.predicted[place])],
                "confidence": float(theirs.confidence[place]),
                "correct": bool(theirs.correct[place]),
            }
        return {
            "before": _uri(before[i]),
            "after": None if after is None else _uri(after[i]),
            "outline": None if outlines is None else _points(outlines[i]),
            "corner": None if outlines is None else outlines[i][0].tolist(),
            "moving": None,
            "truth": truth,
            "predicted": predicted,
            "confidence": float(outcome.confidence[place]),
            "correct": bool(outcome.correct[place]),
            "control": other,
        }

    for name, places in chosen.items():
        if warp is None or not places:
            continue
        rows = [row[place] for place in places]
        part = dataclasses.replace(warp, output=warp.output[rows], theta=warp.theta[rows])
        titles = [_caption(case(place)) for place in places]
        figures[f"before_after_{name}"] = viz.before_after(
            images[rows], part, titles, mean=run.facts.mean, std=run.facts.std, columns=CASES
        )
    height, width = images.shape[2:]
    return {
        "groups": {name: [case(place) for place in places] for name, places in chosen.items()},
        "median": median,
        "margin": margin,
        "view": _view(height, width, margin),
        "aspect": f"{width} / {height}",
        "out_aspect": "1 / 1" if after is None else f"{after.shape[3]} / {after.shape[2]}",
    }


def _spread(places: Sequence[int], labels: Sequence[int]) -> list[int]:
    """The first CASES of `places`, of different classes as long as there are any near."""
    taken: list[int] = []
    seen: set[int] = set()
    for place in places[: 10 * CASES]:
        if labels[place] not in seen:
            seen.add(labels[place])
            taken.append(place)
    taken += [place for place in places[:CASES] if place not in taken]
    return sorted(taken[:CASES], key=list(places).index)


def _caption(case: Mapping[str, Any]) -> str:
    text = case["predicted"] if case["correct"] else f"{case['predicted']}, not {case['truth']}"
    return f"{text}\n{_confidence(case['confidence'])}"


def _confidence(value: float) -> str:
    return "> 99.9%" if value > 0.999 else f"{value:.1%}"


def _confusions(matrix: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent errors."""
    errors = matrix.clone().fill_diagonal_(0)
    top = errors.flatten().argsort(descending=True, stable=True)[:6].tolist()
    pairs = [divmod(place, len(names)) for place in top]
    return [
        {"true": names[t], "predicted": names[p], "count": int(errors[t, p]), "of": int(matrix[t].sum())}
        for t, p in pairs
        if errors[t, p]
    ]


def _theta(transformer: stn.SpatialTransformer, theta: Tensor, image_size: tuple[int, int]) -> dict[str, Any]:
    transform = transformer.transform
    names, identity = viz.theta_names(transform), transform.identity()
    finite = theta[theta.isfinite().all(1)]
    shown = list(range(len(names)))
    if len(shown) > viz.MAX_HISTOGRAMS:
        shown = sorted(finite.std(0, correction=0).argsort(descending=True)[: viz.MAX_HISTOGRAMS].tolist())
    rows = []
    for i in shown:
        low, high = finite[:, i].quantile(torch.tensor([0.05, 0.95])).tolist()
        mean, spread = float(finite[:, i].mean()), float(finite[:, i].std(correction=0))
        rows.append([names[i], *(f"{v:.3f}" for v in (float(identity[i]), mean, spread, low, high))])
    return {
        "svgs": [_svg(viz.theta_histograms(finite, transform, params=[i]), f"histogram of {names[i]}") for i in shown],
        "rows": rows,
        "all": len(names),
        "words": _in_words(transformer, finite, image_size),
    }


def _in_words(transformer: stn.SpatialTransformer, theta: Tensor, image_size: tuple[int, int]) -> dict[str, str] | None:
    """Turn and magnification of affine warps, in the terms of the picture."""
    transform = transformer.transform
    if not isinstance(transform, AbstractMatrixTransform):
        return None
    m = transform.matrix(theta, stn.Frame(image_size, transformer.align_corners))
    half = m.new_tensor(stn.geometry.extent(image_size, align_corners=transformer.align_corners))
    linear = m[:, :, :2] * half[:, None] / half
    turn = torch.atan2(linear[:, 1, 0] - linear[:, 0, 1], linear[:, 0, 0] + linear[:, 1, 1]).rad2deg()
    zoom = torch.linalg.det(linear.double()).abs().clamp_min(1e-12).rsqrt()
    at = torch.tensor([0.05, 0.95], dtype=torch.float64)
    return {
        "turn": _range(*turn.double().quantile(at).tolist(), digits=0, unit="°"),
        "zoom": _range(*zoom.quantile(at).tolist(), digits=2, unit=""),
    }


def _range(low: float, high: float, *, digits: int, unit: str) -> str:
    ends = [f"{round(value, digits) + 0.0:.{digits}f}{unit}".replace("-", "−") for value in (low, high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _sweep(
    run: Run, models: Mapping[str, tuple[TransformerClassifier, Any]], data: Any
) -> tuple[dict[str, tuple[Sequence[float], dict[str, list[float]]]], int]:
    """Accuracy under a further warp of the test images, and how many of them were used."""
    _, height, width = run.facts.input_shape
    count = min(len(data), 1000, max(200, ROBUSTNESS_PIXELS // (height * width)))
    # Spread over the set: folders of images come class by class.
    places = torch.linspace(0, len(data) - 1, count).round().long().tolist()
    batches = list(_batches(data, places, 250))
    mean, std = _statistics(run)
    padding = get(run.config.dataset).background
    family = stn.Similarity()

    def accuracies(degrees: float = 0.0, scale: float = 1.0, shift: float = 0.0) -> list[float]:
        correct = dict.fromkeys(models, 0)
        for images, labels in batches:
            if (degrees, scale, shift) != (0.0, 1.0, 0.0):
                # Shifts go to eight sides in turn.
                towards = torch.arange(len(images)) * (math.pi / 4)
                theta = torch.empty(len(images), 4)
                theta[:, 0], theta[:, 1] = math.radians(degrees), -math.log(scale)
                theta[:, 2], theta[:, 3] = 2 * shift * towards.cos(), 2 * shift * towards.sin() * width / height
                images = (stn.warp(images * std + mean, theta, transform=family, padding_mode=padding) - mean) / std
            for name, (model, renormalize) in models.items():
                logits = model(images if renormalize is None else renormalize(images))
                correct[name] += int((logits.argmax(1) == labels).sum())
        return [value / count for value in correct.values()]

    sweeps = {
        "rotation (degrees, counterclockwise)": (ROTATIONS, [accuracies(degrees=v) for v in ROTATIONS]),
        "scale": (SCALES, [accuracies(scale=v) for v in SCALES]),
        "shift (share of the width)": (SHIFTS, [accuracies(shift=v) for v in SHIFTS]),
    }
    return {
        title: (positions, dict(zip(models, map(list, zip(*values, strict=True)), strict=True)))
        for title, (positions, values) in sweeps.items()
    }, count


def _film(
    run: Run, transformer: stn.SpatialTransformer, images: Tensor, theta: Tensor, epochs: np.ndarray
) -> tuple[dict[str, Any], Figure]:
    mean, std = _statistics(run)
    last = len(epochs) - 1
    # Closer at the start, where most happens.
    columns = sorted({round(last * (i / (FILM_COLUMNS - 1)) ** 1.6) for i in range(FILM_COLUMNS)})
    height, width = images.shape[2:]
    size = (height, width)
    warps = []
    for values in theta:
        output = stn.warp(
            images, values, transformer.size, transform=transformer.transform, mode=transformer.mode,
            padding_mode=transformer.padding_mode, fill=transformer.fill, align_corners=transformer.align_corners,
        )  # fmt: skip
        output_size = tuple(output.shape[2:])
        warps.append(stn.Warp(output, values, transformer.transform, size, output_size, transformer.align_corners))
    outlines = torch.stack([viz.frame_outlines(warp) for warp in warps])  # (E, N, K, 2)
    margin = viz.frame_margin(outlines.flatten(0, 1), size)
    rows = []
    for i, image in enumerate(images * std + mean):
        paths = [_points(outlines[e, i]) for e in range(len(epochs))]
        rows.append(
            {
                "before": _uri(image),
                "outline": paths[-1],
                "corner": outlines[-1, i, 0].tolist(),
                # The last stays for a while.
                "moving": ";".join(paths + paths[-1:] * max(2, len(paths) // 3)) if last else None,
                "frames": [_uri((warps[e].output[i : i + 1] * std + mean)[0]) for e in columns],
            }
        )
    shown = [int(epochs[e]) for e in columns]
    figure = viz.filmstrip(
        torch.stack([warps[e].output for e in columns]), shown, images, mean=run.facts.mean, std=run.facts.std
    )
    film = {
        "epochs": shown,
        "rows": rows,
        "margin": margin,
        "view": _view(height, width, margin),
        "aspect": f"{width} / {height}",
        "out_aspect": f"{warps[0].size[1]} / {warps[0].size[0]}",
        "seconds": f"{min(max(0.3 * len(epochs), 3), 12):.1f}",
    }
    return film, figure


# Into the page


def _points(outline: Tensor) -> str:
    """A closed polygon (N, 2) for SVG."""
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in outline[:-1].tolist())


def _view(height: int, width: int, margin: float) -> str:
    """The view box of an image with room around it, in its pixels: their centres are integers."""
    left, top = -0.5 - margin * width, -0.5 - margin * height
    return f"{left:.2f} {top:.2f} {width * (1 + 2 * margin):.2f} {height * (1 + 2 * margin):.2f}"


def _uri(image: Tensor) -> str:
    """An image (C, H, W) in [0, 1] as a data URI: small ones exactly, larger ones as JPEG of the size they are seen."""
    pixels = image.nan_to_num(0.0).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    exact = max(picture.size) <= 48 or (picture.mode == "L" and max(picture.size) <= PAGE_SIDE)
    if max(picture.size) > PAGE_SIDE:
        picture.thumbnail((PAGE_SIDE, PAGE_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if exact:
        picture.save(file, format="PNG", optimize=True)
    else:
        picture.save(file, format="JPEG", quality=88)
    return f"data:image/{'png' if exact else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


_COLORS = {
    viz.INK: "var(--ink)",
    viz.FIRST: "var(--first)",
    viz.SECOND: "var(--second)",
    viz.WRONG: "var(--wrong)",
    viz.ON_COLOR: "var(--on-color)",
}


def _svg(figure: Figure, label: str) -> Markup:
    """A figure as SVG in the page's own font and colours, which follow light and dark."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stn"}):
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    prefix = f"{zlib.crc32(label.encode()):08x}"
    for name in used:
        text = re.sub(rf'(id="|href="#|url\(#){re.escape(name)}(?=[")])', rf"\g<1>f{prefix}-{name}", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for color, variable in _COLORS.items():
        text = text.replace(color, variable)
    opening = re.search(r'viewBox="[^"]*"', text)
    assert opening is not None
    head = f'<svg class="chart" role="img" aria-label="{Markup.escape(label)}" {opening[0]}>'
    return Markup(head + text[text.index(">") + 1 :].rstrip())


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stn_recipes"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value, digits=2: f"{100 * value:.{digits}f}%"
    environment.filters["confidence"] = _confidence
    environment.filters["thousands"] = lambda value: f"{value:,}"
    return environment.get_template("report.html.j2")
