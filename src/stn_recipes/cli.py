"""The `stn` command.

Exit codes: 0 done, 1 it could not be done (the message says why), 2 the command line was not understood,
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import re
import sys
import warnings
from argparse import HelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

import stn

from .config import TrainConfig
from .recipes import RECIPES, recipe

if TYPE_CHECKING:
    from .run.folder import Run

# What a resumed run may change without changing its result.
RESUMABLE = ("data_dir", "num_workers", "progress", "threads", "accelerator", "devices", "num_nodes", "strategy")


_OPTION = re.compile(r"--[a-z][a-z_-]*")


class _Parser(ArgumentParser):
    """Options are written with hyphens, and one that does not exist is answered with the nearest that does."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        return _OPTION.sub(lambda m: m[0].replace("_", "-"), super().format_help(formatter))

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        parser: Any = getattr(self, "_chosen", self)
        known = [option for action in parser._actions for option in action.option_strings]
        for word in message.replace("=", " ").split():
            if word.startswith("--") and word not in known:
                close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
                message += f"; did you mean {close[0]}?" if close else ""
                break
        message = _OPTION.sub(lambda m: m[0].replace("_", "-"), message)
        print(f"stn: error: {message}\nSee `stn --help` or `stn COMMAND --help`.", file=sys.stderr)
        raise SystemExit(2)


def _build(argv: Sequence[str]) -> _Parser:
    parser = _Parser(
        prog="stn",
        description="Spatial transformers: train networks that learn where to look, and see what they learned.",
        version=stn.__version__,
    )
    commands = parser.add_subcommands(dest="command", required=True, metavar="COMMAND", title="commands")
    chosen: dict[str, _Parser] = {}

    def command(name: str, help: str) -> _Parser:
        sub = _Parser(description=help)
        commands.add_subcommand(name, sub, help=help)
        chosen[name] = sub
        return sub

    defaults = dataclasses.asdict(_peek(argv))
    train = command("train", "Train a recipe, measure it on its test set and write its report.")
    train.add_argument("recipe", nargs="?", default=defaults.pop("recipe"), help=f"one of {', '.join(RECIPES)}")
    train.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; options given after it win")
    train.add_argument(
        "--resume", type=str | None, default=None, metavar="RUN", help="go on with a run that was stopped"
    )
    train.add_class_arguments(TrainConfig, skip={"recipe", "control", "progress"}, as_group=False)
    yes_no = ActionYesNo(no_prefix="no_")
    train.add_argument(
        "--control", action=yes_no, default=False, help="train the equal-parameter control too, into RUN/control"
    )
    train.add_argument("--progress", action=yes_no, default=True, help="show a progress bar")
    train.set_defaults(defaults)

    evaluate = command("evaluate", "Measure a run on its test set once more.")
    evaluate.add_argument("run", help="folder of the run")
    evaluate.add_argument("--data_dir", type=str | None, default=None, help="where the data lies now")
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")

    predict = command("predict", "Classify images with a run, and save what its transformer made of them.")
    predict.add_argument("run", help="folder of the run")
    predict.add_argument("image", nargs="+", help="image files")
    predict.add_argument(
        "--out", type=str | None, default=None, help="folder for the rectified images; RUN/predictions if not given"
    )
    predict.add_argument(
        "--on_bad_image", choices=["stop", "skip"], default="stop", help="what to do about an unreadable image"
    )
    predict.add_argument("--json", action="store_true", help="print the predictions as JSON")

    report = command("report", "Write report.html and the figures of a run.")
    report.add_argument("run", help="folder of the run")
    report.add_argument(
        "--control",
        type=str | None,
        default=None,
        help="run without a transformer to show beside it; RUN/control if not given",
    )
    report.add_argument("--data_dir", type=str | None, default=None, help="where the data lies now")

    compare = command("compare", "Put runs side by side.")
    compare.add_argument("runs", nargs="+", help="folders of runs")
    compare.add_argument("--json", action="store_true", help="print the table as JSON")

    recipes = command("recipes", "List the recipes, or show the settings of one as YAML.")
    recipes.add_argument("name", nargs="?", default=None, help="recipe")

    models = command("models", "List the networks, or show the layers of one.")
    models.add_argument("name", nargs="?", default=None, help="network")
    models.add_argument("--transformer", default="affine", help="family of warps, or none for the control")

    warp = command("warp", "Rotate, scale and shift an image: the classic sanity check.")
    warp.add_argument("image", help="image file")
    warp.add_argument("--out", required=True, help="image file to write")
    warp.add_argument("--rotate", type=float, default=0.0, help="degrees, counterclockwise")
    warp.add_argument("--scale", type=float, default=1.0, help="of the content; below 1 is smaller")
    warp.add_argument(
        "--shift",
        type=tuple[float, float],
        default=(0.0, 0.0),
        help="of the content, right and down, in pixels: [x, y]",
    )
    warp.add_argument("--mode", choices=list(stn.reading.MODES), default="bilinear", help="interpolation")
    warp.add_argument(
        "--padding_mode",
        choices=[m for m in stn.reading.PADDING_MODES if m != "constant"],
        default="zeros",
        help="what lies outside the image",
    )

    command("info", "Versions, kernels and threads.")
    name = next((word for word in argv if word in chosen), None)
    parser._chosen = chosen[name] if name else parser  # type: ignore[attr-defined]
    return parser


def _peek(argv: Sequence[str]) -> TrainConfig:
    """The settings of the recipe that the command line (or its YAML file) names: the defaults of `train`'s options."""
    words = list(argv[argv.index("train") + 1 :]) if "train" in argv else []
    name = words[0] if words and not words[0].startswith("-") else None
    for i, word in enumerate(words):
        if (word == "--config" and i + 1 < len(words)) or word.startswith("--config="):
            file = Path(word.partition("=")[2] or words[i + 1])
            try:
                content = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError, UnicodeDecodeError):
                continue  # the parser will say it
            if name is None and isinstance(content, dict):
                name = content.get("recipe")
    return recipe(name or "digits")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = [_with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    _quiet()
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from .run.train import Interrupted

    try:
        arguments = _build(argv).parse_args(argv)
        name = arguments.command
        globals()[f"_{name}"](arguments[name])
    except SystemExit as error:
        return int(error.code or 0) if isinstance(error.code, (int, type(None))) else 1
    except Interrupted as stop:
        print(f"\nstn: stopped; go on with: stn train --resume {stop}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nstn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, MisconfigurationException) as error:
        if os.environ.get("STN_DEBUG"):
            raise
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        print(f"stn: error: {text}", file=sys.stderr)
        return 1
    return 0


def _with_underscores(word: str) -> str:
    """`--data-dir=x-y` as the parser knows it: `--data_dir=x-y`."""
    option = _OPTION.match(word)
    return word if option is None else option[0].replace("-", "_").replace("__", "--", 1) + word[option.end() :]


def _quiet() -> None:
    """Lightning's remarks about the machine and its own products are not the user's business."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*isinstance.treespec.*",
        ".*smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _train(a: Namespace) -> None:
    from .report import write_report
    from .run import train
    from .run.folder import load_run

    if a.resume is not None:
        untouched = recipe("digits")
        given = {key: a[key] for key in RESUMABLE if a[key] != getattr(untouched, key)}
        run = train.resume(Path(a.resume), overrides=given)
    else:
        values = {field.name: a[field.name] for field in dataclasses.fields(TrainConfig)}
        run = train.train(TrainConfig(**values))
    if train.is_main_process():
        page = write_report(run)
        folders = [run, run / "control"] if (run / "control" / "result.json").exists() else [run]
        print()
        _print_table([load_run(folder) for folder in folders])
        print(f"Report: {page}")


def _evaluate(a: Namespace) -> None:
    from .run.folder import load_run
    from .run.train import evaluate

    run = load_run(a.run)
    if a.data_dir is not None:
        run.config.data_dir = a.data_dir
    measured = evaluate(run)
    if a.json:
        print(json.dumps(measured))
    else:
        print(
            f"{a.run}: test accuracy {measured['test_accuracy']:.2%}, loss {measured['test_loss']:.4f}, {measured['images']:.0f} images"
        )


def _predict(a: Namespace) -> None:
    from .predict import predict

    rows = predict(a.run, a.image, out=a.out, on_bad_image=a.on_bad_image)
    if a.json:
        print(json.dumps(rows))
        return
    table = Table("image", "class", "confidence", "rectified", box=None)
    for row in rows:
        table.add_row(row["image"], row["class"], f"{row['confidence']:.1%}", row["rectified"] or "(no transformer)")
    Console().print(table)


def _report(a: Namespace) -> None:
    from .report import write_report

    print(write_report(Path(a.run), None if a.control is None else Path(a.control), data_dir=a.data_dir))


def _compare(a: Namespace) -> None:
    from .run.folder import load_run

    runs = [load_run(folder) for folder in a.runs]
    if a.json:
        print(
            json.dumps(
                [{"run": str(run.path), **(dataclasses.asdict(run.result) if run.result else {})} for run in runs]
            )
        )
    else:
        _print_table(runs)


def _print_table(runs: Sequence[Run]) -> None:
    table = Table(box=None)
    table.add_column("run", overflow="fold")
    for column in ("transformer", "params", "seed", "epochs", "val", "test", "error", "min"):
        table.add_column(column, justify="left" if column == "transformer" else "right", no_wrap=True)
    for run in runs:
        r = run.result
        if r is None:
            table.add_row(
                str(run.path), run.config.transformer, "-", str(run.config.seed), "-", "-", "unfinished", "-", "-"
            )
            continue
        val = "-" if r.val_accuracy is None else f"{r.val_accuracy:.2%}"
        table.add_row(
            *(str(run.path), r.transformer, f"{r.parameters:,}", str(r.seed), str(r.epochs), val),
            *(f"{r.test_accuracy:.2%}", f"{1 - r.test_accuracy:.2%}", f"{r.train_seconds / 60:.1f}"),
        )
    Console().print(table)


def _recipes(a: Namespace) -> None:
    if a.name is not None:
        print(yaml.safe_dump(recipe(a.name).as_plain(), sort_keys=False), end="")
        return
    table = Table("recipe", "data", "distortion", "network", "transformer", "epochs", box=None)
    for name, c in RECIPES.items():
        table.add_row(name, c.dataset, c.distortion or "-", c.network, c.transformer, str(c.epochs))
    Console().print(table)


def _models(a: Namespace) -> None:
    import torchinfo

    if a.name is None:
        table = Table("network", "parameters", "control", "what it is", box=None)
        for name, network in stn.models.NETWORKS.items():
            counts = [
                sum(p.numel() for p in stn.models.create(name, transform=t).parameters()) for t in ("affine", None)
            ]
            table.add_row(name, f"{counts[0]:,}", f"{counts[1]:,}", network.summary)
        Console().print(table)
        return
    model = stn.models.create(a.name, transform=a.transformer)
    shape = stn.models.NETWORKS[a.name].in_shape
    print(
        torchinfo.summary(
            model, (1, *shape), verbose=0, depth=4, col_names=("kernel_size", "output_size", "num_params")
        )
    )


def _warp(a: Namespace) -> None:
    from .predict import warp_file

    warp_file(a.image, a.out, rotate=a.rotate, scale=a.scale, shift=a.shift, mode=a.mode, padding_mode=a.padding_mode)
    print(a.out)


def _info(a: Namespace) -> None:
    import torch

    from .run.folder import versions

    table = Table(show_header=False, box=None)
    for name, text in versions().items():
        table.add_row(name, text)
    for name, text in stn.ops.backends().items():
        table.add_row(f"kernel {name}", text)
    table.add_row(
        "threads", f"{torch.get_num_threads()} of torch, {torch.get_num_interop_threads()} between operations"
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that this torch can use"
    table.add_row("gpu", gpu)
    Console().print(table)
