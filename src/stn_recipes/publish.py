"""A run for others to use: weights, settings and a card, in a folder or a repository of the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

import stn.hub

from .config import FLAGS, TrainConfig
from .files import write_text
from .names import import_paths, label, split
from .recipes import RECIPES
from .report.build import distorted
from .report.control import check_control
from .run.folder import Result, Run, RunError, load_run


def publish(
    run: str | Path,
    *,
    out: str | Path | None = None,
    repo: str | None = None,
    private: bool = False,
    license: str | None = None,
) -> str:
    """Publish a finished run: `model.safetensors`, `config.json` and `README.md`, the card.

    Nothing else of the run leaves: no data, no path of this machine. `stn.hub.Classifier.from_pretrained` reads it.

    Args:
        run: its folder. The control in RUN/control, where there is one, is told beside it.
        out: folder to write to.
        repo: USER/NAME on the Hub; it is made if it is not there. The token is that of `hf auth login`, or `HF_TOKEN`.
        private: whether a new repository is.
        license: of the weights, as the Hub knows it, such as "mit".

    Returns:
        The URL of the commit, or the folder.

    Raises:
        RunError: for a run that is not finished.
        ValueError: for neither a folder nor a repository.
    """
    if out is None and repo is None:
        raise ValueError("out: expected a folder, or --repo USER/NAME, got neither")
    loaded = load_run(Path(run))
    if loaded.result is None:
        raise RunError(f"{run}: expected a finished run, which has result.json")
    for setting in ("network", "transformer"):
        for path in import_paths(getattr(loaded.config, setting)):
            raise RunError(
                f"{run}: expected a {setting} that others have, too, got {path}; `stn export` writes one file"
            )
    network, text = classifier(loaded), str(card(loaded, repo=repo, license=license))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary if out is None else out)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / stn.hub.CARD, text)  # before the rest: a card that is there is kept
        network.save_pretrained(folder)
        return str(folder) if repo is None else _uploaded(folder, repo, private)


def _uploaded(folder: Path, repo: str, private: bool) -> str:
    api = HfApi()
    try:
        repo_id = api.create_repo(repo, private=private, exist_ok=True).repo_id
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=list(stn.hub.FILES), commit_message="A run of stn"
        )
    except Exception as error:  # of the transport, too, whose classes change with the library
        raise ValueError(f"repo: {repo} was not written ({str(error).splitlines()[0]})") from error


def classifier(run: Run) -> stn.hub.Classifier:
    """The network of a run, with what has to be known of its data."""
    facts, config, model = run.facts, run.config, run.classifier
    if config.learn == "poses":
        raise RunError(
            f"{run.path}: expected a run that learned from labels; the Hub has no recipe for a classifier behind poses, see stn export"
        )
    network = stn.hub.Classifier(
        config.network,
        in_shape=list(facts.input_shape),
        num_classes=len(facts.class_names),
        class_names=list(facts.class_names),
        mean=list(facts.mean),
        std=list(facts.std),
        **config.network_options(),
    )
    network.load_state_dict(model.state_dict())
    return network.eval()


def card(run: Run, *, control: Result | None = None, repo: str | None = None, license: str | None = None) -> ModelCard:
    """The model card of a finished run: what it is, what it reached beside its control, and how to repeat it.

    Args:
        control: what the control reached, of the run in RUN/control unless given.
    """
    result, config = run.result, run.config
    assert result is not None
    control = control or _control(run)
    what = "your own images" if config.dataset == "images" else config.shareable(label(config.dataset))
    what += f", {distorted(config.distortion)}" if config.distortion is not None else ""
    title = repo.partition("/")[2] or repo if repo else f"{config.recipe}-{config.family}"
    data = ModelCardData(
        license=license,
        library_name="spatial-transformers",
        pipeline_tag="image-classification",
        tags=["spatial-transformer", config.family] if config.family != "none" else ["spatial-transformer"],
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=split(config.dataset)[0],
                dataset_name=what,
                metric_type="accuracy",
                metric_value=result.test_accuracy,
                dataset_split="test",
            )
        ],
    )
    transformer = run.model.transformer
    values: dict[str, Any] = {
        "title": title,
        "repo": repo or "FOLDER",
        "what": what,
        "config": config,
        "augmented": None if config.augment is None else label(config.augment),
        "facts": run.facts,
        "family": None if transformer is None else json.dumps(transformer.transform.config()),
        "rows": [("transformer" if transformer else "no transformer", result)]
        + ([("control", control)] if control else []),
        "result": result,
        "command": command(config, control=control is not None),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stn_recipes", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    text = environment.get_template("card.md.j2").render(values)
    return ModelCard(f"---\n{data}\n---\n\n{text}")


def command(config: TrainConfig, *, control: bool) -> str:
    """The command that trains what `config` says, anywhere: without the folders of this machine."""
    usual, words = RECIPES[config.recipe], ["stn", "train", config.recipe]
    here = {"recipe", "data_dir", "init_from", "schedule_start", "out", "control", "progress", "weights", "logger"}
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        if setting.name in FLAGS:
            words += [f"--{setting.name}"] if value else []
        elif setting.name not in here and value != getattr(usual, setting.name):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words += [
                f"--{setting.name.replace('_', '-')}",
                config.shareable(text if isinstance(text, str) else json.dumps(text)),
            ]
    words += ["--data-dir", "DATA"] if config.data_dir is not None else []
    words += ["--weights", "FILE"] if config.weights is not None else []
    return shlex.join(words + (["--control"] if control else []))


def _control(run: Run) -> Result | None:
    """What the control in the folder of a run reached, None where there is none that is finished."""
    if not (run.path / "control" / "result.json").exists():
        return None
    control = load_run(run.path / "control")
    check_control(run, control)
    return control.result
