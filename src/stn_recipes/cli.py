"""The `stn` command.

Exit codes: 0 done, 1 it could not be done (the message says why), 2 the command line was not understood,
130 interrupted.

Nothing here loads torch or Lightning before the command line is understood: `--help`, `--version` and mistakes are
answered at once. What a command needs is imported where it runs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shlex
import sys
import warnings
from argparse import ArgumentTypeError, HelpFormatter
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from .config import OF_THE_CLASSIFIER, TrainConfig
from .names import NAMED, import_paths, label, nearest, untrusted
from .recipes import RECIPES, recipe

if TYPE_CHECKING:
    from .run.folder import Run


class Command(NamedTuple):
    """A word after `stn`."""

    help: str
    options: Callable[[_Parser, Sequence[str]], None]  # adds its options to the parser of this command line
    run: Callable[[Namespace], None]


_OPTION = re.compile(r"--[a-z][a-z_.-]*")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping",
    "NoneType": "null",
}


class _Parser(ArgumentParser):
    """Options are written with hyphens, and what is nearly right is answered with what is."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._negative_number_matcher = re.compile(r"-[\d.]")  # a value, such as that of --shift -10,5

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        return _OPTION.sub(lambda m: m[0].replace("_", "-"), super().format_help(formatter))

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        parser: Any = getattr(self, "_chosen", self)
        known = [option.replace("_", "-") for action in parser._actions for option in action.option_strings]
        print(f"stn: error: {_plainly(message, known)}\nSee `stn --help` or `stn COMMAND --help`.", file=sys.stderr)
        raise SystemExit(2)


def _plainly(message: str, known: Sequence[str]) -> str:
    """A parser's message without the words of a programmer."""
    message = re.sub(r'Parser key "(\w+)":\s+', lambda m: f"--{m[1].replace('_', '-')}: ", message)
    commands = "|".join(COMMANDS)
    message = re.sub(rf"\b(?:{commands})\.(\w+)", r"\1", message)
    message = _OPTION.sub(lambda m: m[0].replace("_", "-"), message)
    one = re.search(r"Expected an? (.*?)\. Got value: (.*)", message, re.DOTALL)
    any_of = re.search(r"Does not validate .*?Subtypes: \[(.*?)\]\n.*Given value: (.*)", message, re.DOTALL)
    if refused := any_of or one:
        types, value = refused.groups()
        choices = re.findall(r"'(\w+)'", re.sub("<.*?>", "", types))
        own = ", or yours as package.module:name" if "ImportPath" in types else ""
        expected = [f"one of {', '.join(choices)}{own}"] if choices else []
        expected += [_TYPES.get(name, name) for name in re.findall(r"<class '(\w+)'>", types)]
        return f"{message[: refused.start()]}expected {' or '.join(expected)}, got {value!r}{nearest(value, choices)}"
    if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        return message + nearest(choice[1], re.findall(r"'([^']*)'", choice[2]))
    if unknown := re.search(r"unrecognized arguments: (--[a-z-]+)", message):
        return message + nearest(unknown[1], known).replace("'", "")
    if setting := re.search(r"does not accept option '(\w+)'", message):
        return message + nearest(setting[1], [option.strip("-").replace("-", "_") for option in known])
    return message


def _build(argv: Sequence[str]) -> _Parser:
    """The parser for a command line: every command by name, the options of the one that is there."""
    parser = _Parser(
        prog="stn",
        description="Spatial transformers: train networks that learn where to look, and see what they learned.",
        version=metadata.version("spatial-transformers"),
    )
    subcommands = parser.add_subcommands(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        sub = _Parser(description=command.help)
        if [name] == list(argv[:1]):
            command.options(sub, argv)
            parser._chosen = sub  # type: ignore[attr-defined]
        subcommands.add_subcommand(name, sub, help=command.help)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = [_with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    _quiet()
    try:
        argv = _folded(argv) if argv[:1] == ["train"] else _listed(argv) if argv[:1] == ["sweep"] else argv
        # Of `train`, what was given and no more: a resumed run has settings of its own.
        arguments = _build(argv).parse_args(argv, defaults=argv[:1] != ["train"])
        COMMANDS[arguments.command].run(arguments[arguments.command])
    except SystemExit as error:
        return int(error.code or 0) if isinstance(error.code, (int, type(None))) else 1
    except KeyboardInterrupt as stop:  # with what to do about it, if there is something
        print(f"\nstn: {stop}" if str(stop) else "\nstn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if os.environ.get("STN_DEBUG"):
            raise
        print(f"stn: error: {_said(error)}", file=sys.stderr)
        return 1
    return 0


def _said(error: ValueError | OSError) -> str:
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    # A file is written under a temporary name: .NAME.RANDOM.SUFFIX
    name = re.sub(r"(^|/)\.([^/]+)\.\w{8}(\.\w+)?$", r"\1\2", str(error.filename or ""))
    return f"{error.strerror}: {name}" if name else error.strerror


def _with_underscores(word: str) -> str:
    """`--data-dir=x-y` as the parser knows it: `--data_dir=x-y`."""
    option = _OPTION.match(word)
    return word if option is None else option[0].replace("-", "_").replace("__", "--", 1) + word[option.end() :]


def _options_of(argv: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The words without those that are options of a name, `--transformer.max_angle 1.6`, and those: by setting, in order."""
    words: list[str] = []
    found: dict[str, dict[str, str]] = {}
    rest = iter(argv)
    for word in rest:
        option, equals, value = word.partition("=")
        setting, dot, key = option.removeprefix("--").partition(".")
        if not (word.startswith("--") and dot and setting in NAMED):
            words.append(word)
            continue
        text = value if equals else next(rest, None)
        if not key or text is None:
            raise ValueError(f"{option}: expected a value, such as --transformer.max-angle 1.6, got none")
        found.setdefault(setting, {})[key] = text
    return words, found


def _folded(argv: Sequence[str]) -> list[str]:
    """The options of a name in one word with it, as the parser knows them: `--transformer similarity
    --transformer.max_angle 1.6` is `--transformer={"name": "similarity", "max_angle": 1.6}`. The name is that of the
    command line, of the YAML file or of what the settings start from, whichever is the last."""
    words, found = _options_of(argv)
    if not found:
        return words
    start = _defaults(*_named(words))
    for setting, given in found.items():
        value = _last(words, setting, getattr(start, setting))
        if not isinstance(value, (str, dict)):
            raise ValueError(f"{setting}: expected a name for the options {', '.join(given)}, got {value!r}")
        whole = _mapping(value)
        for key, text in given.items():
            *outer, last = key.split(".")
            into = whole
            for name in outer:
                into[name] = into = _mapping(into.get(name, {}))
            into[last] = yaml.safe_load(text)
        words.append(f"--{setting}={json.dumps(whole)}")
    return words


def _mapping(value: Any) -> dict[str, Any]:
    """A name as a mapping that its options go into."""
    return dict(value) if isinstance(value, dict) else {"name": value}


def _listed(argv: Sequence[str]) -> list[str]:
    """The options of names in a sweep, which are lists: `--transformer.max_angle` is an option of its own."""
    words, found = _options_of(argv)
    return words + [
        f"--{_SEVERAL.join([name, *key.split('.')])}={text}" for name, of in found.items() for key, text in of.items()
    ]


_SEVERAL = "__"  # between a setting and its option, in a sweep, where a dot would be a group of the parser's


def _last(words: Sequence[str], setting: str, start: Any) -> Any:
    """The value of a setting by the words of a command line and its YAML files, else `start`."""
    found = start
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        value = value if equals else (words[i + 1] if i + 1 < len(words) else "")
        if option == f"--{setting}":
            found = yaml.safe_load(value)
        elif option == "--config":
            found = (_yaml(value) or {}).get(setting, found)
    return found


def _quiet() -> None:
    """Lightning's remarks about the machine and its own products are not the user's business."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*isinstance.treespec.*",
        ".*smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*in eval mode at the start of training.*",  # a frozen classifier
    ):
        warnings.filterwarnings("ignore", message=message)


class _Pair:
    """The type of an option of two numbers: `32,48`, `[32, 48]`, and `32` for twice the same if it may stand alone."""

    def __init__(self, convert: Callable[[Any], float], expected: str, *, alone: bool) -> None:
        self.convert = convert
        self.expected = expected
        self.alone = alone

    def __call__(self, value: Any) -> tuple[float, float]:
        parts = value.strip("[]() ").replace(",", " ").split() if isinstance(value, str) else value
        try:
            numbers = [self.convert(part) for part in (parts if isinstance(parts, (list, tuple)) else [parts])]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) == 1 and self.alone:
            numbers *= 2
        if len(numbers) != 2:
            raise ArgumentTypeError(f"expected {self.expected}, got {value!r}")
        return numbers[0], numbers[1]

    def __repr__(self) -> str:
        return "two numbers"


# The commands


def _train_options(parser: _Parser, argv: Sequence[str]) -> None:
    name, run, preset = _named(argv)
    parser.add_argument("recipe", nargs="?", default=name, help=f"one of {', '.join(RECIPES)}; digits if not given")
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; options given after it win")
    parser.add_argument(
        "--resume",
        type=str | None,
        default=None,
        metavar="RUN",
        help="go on with a run that was stopped; with more --epochs, extend one that is finished",
    )
    apart = {"recipe", "image_size", "control", "progress", "quick", "freeze"}
    parser.add_class_arguments(TrainConfig, skip=apart, as_group=False)
    parser.add_argument(
        "--image_size",
        type=_Pair(int, "a height and a width in pixels, such as 64 or 48,64", alone=True),
        help="height and width that your own images are resized to: 64, or 48,64",
    )
    yes_no = ActionYesNo(no_prefix="no_")
    parser.add_argument(
        "--control", action=yes_no, default=False, help="train the equal-parameter control too, into RUN/control"
    )
    parser.add_argument(
        "--quick", action=yes_no, default=False,
        help="a try of seconds: at most 1,000 images to train on, 500 to validate and 500 to test, two epochs unless given, no report",
    )  # fmt: skip
    parser.add_argument("--freeze", action=yes_no, default=False, help="train the transformer alone")
    parser.add_argument("--progress", action=yes_no, default=True, help="show a progress bar")
    parser.add_argument(
        "--report", action=yes_no, default=True, help="write RUN/report.html at the end; not after --quick unless given"
    )
    _trust_option(parser)
    parser.set_defaults({**dataclasses.asdict(_defaults(name, run, preset)), "recipe": name})


def _trust_option(parser: _Parser) -> None:
    parser.add_argument(
        "--trust", action="store_true", help="import the code that a run names, such as package.module:name"
    )


def _named(argv: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """The recipe that the command line or its YAML file names, the run to start from, and the preset."""
    name = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else None
    run = preset = None
    for i, word in enumerate(argv):
        option, _, value = word.partition("=")
        value = value or (argv[i + 1] if i + 1 < len(argv) else "")
        if option == "--init_from":
            run = value
        if option == "--preset":
            preset = value
        if option == "--config":
            name = name or (_yaml(value) or {}).get("recipe")
    return name, run, preset


def _yaml(file: str) -> dict[str, Any] | None:
    """The settings in a YAML file, None where there are none; the parser says what is wrong with it."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return content if isinstance(content, dict) else None


def _defaults(name: str | None, run: str | None, preset: str | None) -> TrainConfig:
    """The settings that `train` starts from: those of a recipe, or of the run whose weights it starts from."""
    if name is None and run is not None:
        from .run.folder import read_config

        return dataclasses.replace(read_config(Path(run)), out=None, control=False, schedule_start=0)
    start = recipe(name or "digits", preset)
    if start.learn == "poses" and run is not None:  # of its classifier, on its data
        from .run.folder import read_config

        of_run = read_config(Path(run))
        return dataclasses.replace(start, **{name: getattr(of_run, name) for name in OF_THE_CLASSIFIER})
    return start


def _given(a: Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    given = {setting.name: a[setting.name] for setting in dataclasses.fields(TrainConfig) if setting.name in a}
    if given["recipe"] is None:
        del given["recipe"]
    return given


def config_of(words: Sequence[str]) -> TrainConfig:
    """The settings that are meant by the words after `stn train`.

    Raises:
        ValueError: for values that no run can have.
        SystemExit: for options that are not understood, which standard error says.
    """
    argv = _folded(["train", *map(_with_underscores, words)])
    return _config(_build(argv).parse_args(argv, defaults=False)["train"])


def _config(a: Namespace) -> TrainConfig:
    """The settings of a new run."""
    given, start = _given(a), _defaults(a.get("recipe"), a.get("init_from"), a.get("preset"))
    if given.get("quick"):
        given = {"epochs": min(2, start.epochs), "warmup": 0.0} | given
    config = dataclasses.replace(start, **given)
    theirs = [path for path in config.imports if path not in import_paths(given)]
    if theirs and not a.get("trust"):  # they are those of the run to start from
        raise ValueError(untrusted(a.init_from, theirs))
    return config


def _train(a: Namespace) -> None:
    given = _given(a)
    config = _config(a) if a.get("resume") is None else None

    from .run.folder import load_run, read_config

    if config is None:
        read_config(Path(a.resume))  # what is no run is said before Lightning loads

    from .run import train

    if config is None:
        run = train.resume(Path(a.resume), overrides=given, trust=a.get("trust", False))
    else:
        run = train.train(config)
    train.leave_group()
    if train.is_main_process():
        page = None
        try:
            if a.get("report", not given.get("quick")):
                from .report import write_report

                page = write_report(run, trust=True)  # it was trained, so its code was trusted
        except KeyboardInterrupt:
            raise train.Interrupted(f"trained; write the report with: stn report {shlex.quote(str(run))}") from None
        folders = [run, run / "control"] if (run / "control" / "result.json").exists() else [run]
        print()
        _print_runs([load_run(folder) for folder in folders])
        if page is not None:
            print(f"Report: {page}")


def _sweep_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("recipes", nargs="+", help=f"any of {', '.join(RECIPES)}")
    parser.add_argument("--out", required=True, help="folder of the runs, each in a folder of its own")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--jobs", type=int | None, default=None, help="runs at a time on this machine; 1 if not given")
    parser.add_argument(
        "--ray", type=str | None, default=None, metavar="ADDRESS", help="run on a Ray cluster; auto finds the nearest"
    )
    yes_no = ActionYesNo(no_prefix="no_")
    parser.add_argument("--report", action=yes_no, default=True, help="write the report of each run")
    parser.add_argument("--quick", action="store_true", help="as of stn train: a try of each run, without its report")
    parser.add_argument("--freeze", action="store_true", help="as of stn train")
    options = [
        word.partition("=")[0][2:] for word in argv if word.startswith("--") and _SEVERAL in word.partition("=")[0]
    ]
    for name in [*_swept(), *dict.fromkeys(options)]:
        parser.add_argument(
            f"--{name}", type=str | None, default=None, metavar="LIST", help="as of stn train, or several values"
        )
    parser.set_defaults({"threads": "1"})


def _swept() -> list[str]:
    """The options of `stn train` that a sweep takes lists of."""
    apart = ("recipe", "seed", "schedule_start", "out", "control", "progress", "quick", "freeze")
    return [setting.name for setting in dataclasses.fields(TrainConfig) if setting.name not in apart]


def _sweep(a: Namespace) -> None:
    options = {"transformer": a.transformer, "seed": a.seeds}
    options |= {name: a[name] for name in _swept() if name != "transformer"}
    options |= {name.replace(_SEVERAL, "."): a[name] for name in a.as_dict() if _SEVERAL in name}
    lists = {name: _list(text) for name, text in options.items() if text is not None}
    lists |= {name: ["true"] for name in ("quick", "freeze") if a[name]}

    if a.jobs is not None and a.jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {a.jobs}")
    if a.jobs is not None and a.ray is not None:
        raise ValueError(f"jobs: of this machine, not of a Ray cluster, which has its own; got {a.jobs} with --ray")

    from .run.sweep import Processes, Ray, product, sweep

    planned = product(a.recipes, lists, config_of)
    threads = max(run.config.threads or 1 for run in planned)
    engine = Processes(a.jobs or 1) if a.ray is None else Ray(a.ray, threads)
    sweep(planned, Path(a.out), engine, report=a.report and not a.quick)
    print(f"Table: stn table {shlex.quote(a.out)}")


def _list(text: str) -> list[str]:
    """The values of a list with commas between them; those inside brackets are of a value."""
    return [part.strip() for part in re.split(r",(?![^\[{(]*[\]})])", text)]


def _evaluate_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("run", help="folder of the run, or a name that `stn models --pretrained` lists")
    parser.add_argument(
        "--data_dir", type=str | None, default=None, help="where the data lies now, or other images of the same classes"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    _trust_option(parser)


def _evaluate(a: Namespace) -> None:
    from .run.folder import load_run_or_pretrained

    run = load_run_or_pretrained(a.run, trust=a.trust)

    from .run.train import evaluate

    measured = evaluate(run, a.data_dir)
    if a.json:
        print(json.dumps(dataclasses.asdict(measured)))
        return
    print(
        f"{a.run}, {measured.what}: accuracy {measured.test_accuracy:.2%}, mean over the classes "
        f"{measured.class_mean:.2%}, loss {measured.test_loss:.4f}, {measured.images:,} images"
    )
    width = max(map(len, measured.classes))
    for name, part in measured.classes.items():
        accuracy = "-" if part.accuracy is None else f"{part.accuracy:.2%}"
        print(f"  {name:<{width}} {accuracy:>8} of {part.images:,}")


def _predict_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("run", help="folder of the run, or a name that `stn models --pretrained` lists")
    parser.add_argument("image", nargs="+", help="image files, or folders of them")
    parser.add_argument(
        "--out", type=str | None, default=None, help="folder for the rectified images; RUN/predictions if not given"
    )
    parser.add_argument(
        "--on_bad_image", choices=["stop", "skip"], default="stop", help="what to do about an unreadable image"
    )
    parser.add_argument("--json", action="store_true", help="print the predictions as JSON")
    _trust_option(parser)


def _predict(a: Namespace) -> None:
    from .predict import predict

    rows = predict(a.run, a.image, out=a.out, on_bad_image=a.on_bad_image, trust=a.trust)
    if a.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['image']}: {row['class']}, {row['confidence']:.1%}")
        print(f"    {row['rectified'] or '(no transformer)'}")


def _export_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("run", help="folder of the run, or a name that `stn models --pretrained` lists")
    parser.add_argument(
        "--to",
        choices=["onnx", "pt2"],
        required=True,
        help="ONNX, or a program for torch.export.load that needs no stn",
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="file; RUN/model.onnx or RUN/model.pt2 if not given"
    )
    _trust_option(parser)


def _export(a: Namespace) -> None:
    from .run.folder import read_config

    read_config(Path(a.run))  # what is no run is said before the exporters load

    from .export import export

    file, difference = export(a.run, a.to, a.out, trust=a.trust)
    print(f"{file}: differs from the run by at most {difference:.1e}")


def _report_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("run", help="folder of the run")
    parser.add_argument(
        "--control",
        type=str | None,
        default=None,
        help="run without a transformer to show beside it; RUN/control if not given",
    )
    parser.add_argument("--data_dir", type=str | None, default=None, help="where the data lies now")
    _trust_option(parser)


def _report(a: Namespace) -> None:
    from .report import write_report

    control = None if a.control is None else Path(a.control)
    print(write_report(Path(a.run), control, data_dir=a.data_dir, trust=a.trust))


def _demo_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "run", nargs="?", default=None,
        help="folder of the run, or USER/NAME or folder of a published one; the newest in runs if not given",
    )  # fmt: skip
    parser.add_argument(
        "--control",
        type=str | None,
        default=None,
        help="run without a transformer to show beside it; RUN/control if not given",
    )
    parser.add_argument("--port", type=int | None, default=None, help="of the page; a free one from 7860 if not given")
    _trust_option(parser)


def _demo(a: Namespace) -> None:
    from .demo import serve

    serve(a.run, a.control, port=a.port, trust=a.trust)


def _compare_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def _compare(a: Namespace) -> None:
    from .run.folder import load_run

    runs = [load_run(folder) for folder in a.runs]
    if a.json:
        results = [dataclasses.asdict(run.result) if run.result else {} for run in runs]
        print(json.dumps([{"run": str(run.path), **result} for run, result in zip(runs, results, strict=True)]))
    else:
        _print_runs(runs)


def _table_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("folder", help="folder of runs, such as that of a sweep")
    parser.add_argument(
        "--rows", type=str | None, default=None, metavar="SETTINGS",
        help="that tell the rows apart, such as recipe,epochs; the recipe and whatever else differs if not given",
    )  # fmt: skip
    parser.add_argument(
        "--columns",
        default="transformer",
        metavar="SETTINGS",
        help="that tell the columns apart; transformer if not given",
    )
    parser.add_argument("--paper", action="store_true", help="the published figure beside ours")
    parser.add_argument("--data_dir", type=str | None, default=None, help="where the data lies now")
    _trust_option(parser)


def _table(a: Namespace) -> None:
    from .report.table import as_text, read_table
    from .report.table_page import write_table

    rows, columns = ([name.replace("-", "_") for name in _list(text or "") if name] for text in (a.rows, a.columns))
    table = read_table(Path(a.folder), rows, columns, trust=a.trust)
    print(as_text(table, paper=a.paper))
    print(
        f"Page: {write_table(table, Path(a.folder), paper=a.paper, data_dir=a.data_dir)}, beside table.md and table.csv"
    )


def _print_runs(runs: Sequence[Run]) -> None:
    """Runs side by side: each path on a line of its own, whole, and its figures below it."""
    row = "  {:<13}{:>12}{:>6}{:>8}{:>9}{:>11}{:>9}{:>8}"
    print(row.format("transformer", "params", "seed", "epochs", "val", "test", "error", "min"))
    for run in runs:
        print(run.path)
        result, config = run.result, run.config
        if result is None:
            print(row.format(config.family, "-", config.seed, "-", "-", "unfinished", "-", "-"))
            continue
        accuracies = (result.val_accuracy, result.test_accuracy, 1 - result.test_accuracy)
        shares = ("-" if share is None else f"{share:.2%}" for share in accuracies)
        minutes = f"{result.train_seconds / 60:.1f}"
        print(row.format(result.transformer, f"{result.parameters:,}", result.seed, result.epochs, *shares, minutes))


def _publish_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--out", type=str | None, default=None, help="folder to write to")
    parser.add_argument("--repo", type=str | None, default=None, metavar="USER/NAME", help="repository to write to")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--license", type=str | None, default=None, help="of the weights, as the Hub knows it, such as mit"
    )


def _publish(a: Namespace) -> None:
    try:
        from .publish import publish
    except ImportError as error:
        if error.name not in (None, "huggingface_hub"):
            raise
        raise ValueError("publish: huggingface_hub is missing; pip install 'spatial-transformers[hub]'") from error

    print(publish(a.run, out=a.out, repo=a.repo, private=a.private, license=a.license))


def _recipes_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("name", nargs="?", default=None, help="recipe")


def _recipes(a: Namespace) -> None:
    if a.name is not None:
        print(yaml.safe_dump(recipe(a.name).as_plain(), sort_keys=False), end="")
        return
    table = Table("recipe", "data", "distortion", "network", "transformer", "epochs", box=None)
    for name, c in RECIPES.items():
        data, distortion, network = (label(of or "-") for of in (c.dataset, c.distortion, c.network))
        table.add_row(name, data, distortion, network, c.family, str(c.epochs))
    Console().print(table)


def _models_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("name", nargs="?", default=None, help="network")
    parser.add_argument("--transformer", default="affine", help="family of warps, or none for the control")
    parser.add_argument("--pretrained", action="store_true", help="list the weights that come with the package")


def _models(a: Namespace) -> None:
    from stn import models

    if a.pretrained:
        from stn.models.pretrained import record

        table = Table("name", "network", "transformer", "test error", "trained by", box=None)
        for name in models.pretrained_names():
            said = record(name)
            error = f"{100 * len(said['wrong']) / said['images']:.2f} %"
            table.add_row(name, said["settings"]["network"], said["transformer"], error, said["command"])
        Console().print(table)
        return

    if a.name is None:
        table = Table("network", "parameters", "control", "what it is", box=None)
        for name, network in models.NETWORKS.items():
            counts = [sum(p.numel() for p in models.create(name, transform=t).parameters()) for t in ("affine", None)]
            table.add_row(name, f"{counts[0]:,}", f"{counts[1]:,}", network.summary)
        Console().print(table)
        return
    import torchinfo

    model = models.create(a.name, transform=a.transformer)
    shape = models.NETWORKS[a.name].in_shape
    print(
        torchinfo.summary(
            model, (1, *shape), verbose=0, depth=4, col_names=("kernel_size", "output_size", "num_params")
        )
    )


def _warp_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("image", help="image file")
    parser.add_argument("--out", required=True, help="image file to write")
    parser.add_argument("--rotate", type=float, default=0.0, help="degrees, counterclockwise")
    parser.add_argument("--scale", type=float, default=1.0, help="of the content; below 1 is smaller")
    parser.add_argument(
        "--shift",
        type=_Pair(float, "two numbers of pixels, such as 10,-5", alone=False),
        default=(0.0, 0.0),
        help="of the content, right and down, in pixels: 10,-5",
    )
    parser.add_argument("--mode", default="bilinear", help="interpolation: nearest, bilinear, bicubic, lanczos3, ...")
    parser.add_argument(
        "--padding_mode",
        choices=["zeros", "border", "reflection", "circular"],
        default="zeros",
        help="what lies outside the image",
    )


def _warp(a: Namespace) -> None:
    from .predict import warp_file

    warp_file(a.image, a.out, rotate=a.rotate, scale=a.scale, shift=a.shift, mode=a.mode, padding_mode=a.padding_mode)
    print(a.out)


def _register_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument("fixed", help="image file, or volume (.nii, .nii.gz)")
    parser.add_argument("moving", help="what is brought onto it, of the same kind")
    parser.add_argument("--out", required=True, help="file to write moving to, as fixed shows it")
    parser.add_argument(
        "--transform",
        choices=["corners", "rigid", "similarity", "affine", "bspline", "velocity"],
        default="affine",
        help="what may be done to it; bspline and velocity follow an affine one",
    )
    parser.add_argument(
        "--similarity",
        choices=["mse", "ncc", "mi"],
        default="ncc",
        help="squared difference, correlation, or mutual information (of two kinds of picture)",
    )
    parser.add_argument("--control_points", type=int, default=6, help="along each axis, of bspline and velocity")
    parser.add_argument("--smoothness", type=float, default=1e-4, help="weight of bending")
    parser.add_argument("--levels", type=int | None, default=None, help="from coarse to fine; by the size if not given")
    parser.add_argument("--steps", type=int, default=200, help="on each level, at most")
    parser.add_argument(
        "--theta", type=str | None, default=None, metavar="FILE", help="write what was found: .safetensors or .npz"
    )
    parser.add_argument(
        "--picture", type=str | None, default=None, metavar="FILE", help="before and after; beside --out if not given"
    )
    parser.add_argument(
        "--points", type=str | None, default=None, metavar="CSV",
        help="points of moving to carry along, x,y in pixels or x,y,z in millimetres a line",
    )  # fmt: skip
    parser.add_argument(
        "--labels", type=str | None, default=None, metavar="FILE", help="label mask of moving to carry along"
    )


def _register(a: Namespace) -> None:
    from .register import register_files

    given = {name: value for name, value in a.as_dict().items() if name not in ("fixed", "moving", "out", "config")}
    found, files = register_files(a.fixed, a.moving, a.out, **given, say=print)
    for file in files:
        print(file)
    if found.problem is not None:
        raise ValueError(f"did not converge: {found.problem}; the files show where it ended")


def _info_options(parser: _Parser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "--check", action="store_true", help="compare every backend with the reference on a hundred small cases"
    )


def _info(a: Namespace) -> None:
    import torch

    from stn.ops import backends, cpu

    from .run.folder import versions
    from .run.precision import cpu_has_bfloat16

    rows = dict(versions())
    for name, text in backends().items():
        rows[f"backend {name}"] = text
    rows |= _doors(a.check)
    rows["instruction set"] = cpu._native.instruction_set() if cpu._native else "none: torch's own operations run"
    rows["bfloat16"] = "in hardware, on this CPU" if cpu_has_bfloat16() else "not in this CPU; --precision 32-true"
    rows["threads"] = f"{torch.get_num_threads()} of torch, {torch.get_num_interop_threads()} between operations"
    rows["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that this torch can use"
    for name, text in rows.items():
        print(f"{name:<17} {text}")
    if a.check:
        _check_backends()


def _doors(load: bool) -> dict[str, str]:
    """Who else can use the native kernels, and the reasons why not. `load`: TensorFlow, which takes seconds."""
    import importlib.util

    import stn.tensorflow
    from stn.ops import override

    found = {"stn.accelerate": f"no: {override.unavailable()}" if override.unavailable() else "can be switched on"}
    if importlib.util.find_spec("jax") is None:
        reason: str | None = "jax is not installed"
    else:
        from stn.jax import native

        reason = native.unavailable()
    found["native in JAX"] = f"no: {reason}" if reason else "yes"
    reason = stn.tensorflow.unavailable() if load else stn.tensorflow.missing()
    found["native in TF"] = f"no: {reason}" if reason else "yes" if load else "yes; --check loads it"
    return found


def _check_backends() -> None:
    from stn.ops import check

    wrong = []
    for name, found in check().items():
        state = f"{len(found.wrong)} wrong" if found.wrong else "all right"
        print(
            f"{'check ' + name:<17} {found.cases} cases against the reference, {state}, off by {found.largest:.1e} at most"
        )
        wrong += [f"{name}: {case}" for case in found.wrong]
    if wrong:
        raise ValueError("\n".join(["backends: expected what the reference computes, got", *wrong]))


COMMANDS = {
    "train": Command("Train a recipe, measure it on its test set and write its report.", _train_options, _train),
    "sweep": Command(
        "Train every recipe with every combination of options; go on with what is not finished.", _sweep_options, _sweep
    ),
    "evaluate": Command("Measure a run on its test set once more.", _evaluate_options, _evaluate),
    "predict": Command(
        "Classify images with a run, and save what its transformer made of them.", _predict_options, _predict
    ),
    "export": Command("Write the network of a run as one file for where there is no stn.", _export_options, _export),
    "report": Command("Write report.html and the figures of a run.", _report_options, _report),
    "demo": Command("Serve a page to draw, drop and turn images, and see where a network looks.", _demo_options, _demo),
    "compare": Command("Put runs side by side.", _compare_options, _compare),
    "publish": Command(
        "Write the network of a run with its card to a folder, or to the Hugging Face Hub.", _publish_options, _publish
    ),
    "table": Command(
        "Runs as a table: mean and deviation over seeds beside controls and published figures.", _table_options, _table
    ),
    "recipes": Command("List the recipes, or show the settings of one as YAML.", _recipes_options, _recipes),
    "models": Command("List the networks, or show the layers of one.", _models_options, _models),
    "warp": Command("Rotate, scale and shift an image: the classic sanity check.", _warp_options, _warp),
    "register": Command(
        "Bring one photo or volume onto another, with its points and labels.", _register_options, _register
    ),
    "info": Command("Versions, backends, instruction set and threads.", _info_options, _info),
}
