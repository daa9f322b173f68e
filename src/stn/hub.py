"""The Hugging Face Hub: networks that are saved to a folder or a repository, and come back from it.

Nothing else here needs `huggingface_hub`: pip install 'spatial-transformers[hub]'. A folder holds `model.safetensors`,
`config.json` (the arguments of the constructor) and `README.md`, the model card. Loading executes nothing in it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import nn

try:
    from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
    from huggingface_hub.errors import HFValidationError
except ImportError as missing:
    raise ImportError("stn.hub needs huggingface_hub: pip install 'spatial-transformers[hub]'") from missing

from . import __version__
from ._checks import describe, nearest_name
from .models import LabelledClassifier
from .transforms import AbstractTransform, from_config
from .weights import load_weights, read_weights, serialize_weights

FILES = WEIGHTS, CARD, CONFIG = "model.safetensors", "README.md", "config.json"
_TRANSFORM = "stn.transform"  # the key of a transform's configuration among other arguments

_CARD = """---
{{ card_data }}
---

# {{ name }}

A network with a spatial transformer: it learns where to look. Made with `stn` {{ version }} (`pip install
'spatial-transformers[hub]'`), {{ parameters }} parameters.
{% for family in families %}
- warps of the family `{{ family }}`
{%- endfor %}

```python
from {{ module }} import {{ name }}

model = {{ name }}.from_pretrained("USER/NAME")  # this repository, or a folder with its files
```
"""


def _kept(transform: AbstractTransform) -> dict[str, Any]:
    return {_TRANSFORM: transform.config()}


def _meant(value: Any) -> Any:
    """An argument as it was given."""
    return from_config(value[_TRANSFORM]) if isinstance(value, dict) and list(value) == [_TRANSFORM] else value


class HubMixin(
    PyTorchModelHubMixin,
    library_name="spatial-transformers",
    tags=["spatial-transformer"],
    model_card_template=_CARD,
):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a module of your own that has transforms.

    As Hugging Face's `PyTorchModelHubMixin`, whose arguments these methods take, but for what follows. The arguments of
    the constructor are kept in `config.json`: numbers, text, lists and transforms, by their `config()`. Weights are
    safetensors with a digest. Nothing is left at random in silence: a constructor's argument that cannot be kept, a
    missing or damaged file, a tensor too many, too few or of another shape are refused. No pickle is read.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import stn
        >>> class Reader(nn.Module, HubMixin):
        ...     def __init__(self, transform: stn.AbstractTransform, classes: int = 10) -> None:
        ...         super().__init__()
        ...         localizer = stn.ConvLocalizer(1, transform, image_size=(28, 28))
        ...         self.transformer = stn.SpatialTransformer(localizer, transform)
        ...         self.classifier = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
        ...         self.classifier(torch.zeros(1, 1, 28, 28))
        ...
        ...     def forward(self, image: torch.Tensor) -> torch.Tensor:
        ...         return self.classifier(self.transformer(image))
        >>> reader = Reader(stn.Similarity(max_angle=1.0)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = reader.save_pretrained(folder)
        ...     back = Reader.from_pretrained(folder)
        >>> back.transformer.transform
        Similarity(max_angle=1)
        >>> images = torch.rand(2, 1, 28, 28)
        >>> torch.equal(back(images), reader(images))
        True
    """

    _unkept: list[str]  # arguments of the constructor that no file can say

    def __init_subclass__(cls, *, coders: dict[type, Any] | None = None, **options: Any) -> None:
        # Read back in `_from_pretrained`: the mixin decodes by an annotation, which may be text or missing.
        ours: dict[type, Any] = {AbstractTransform: (_kept, lambda value: value)}
        super().__init_subclass__(coders=ours | (coders or {}), **options)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        instance: Self = super().__new__(cls, *args, **options)
        given = {**dict(zip(list(cls._hub_mixin_init_parameters)[1:], args, strict=False)), **options}
        instance._unkept = [name for name, value in given.items() if not cls._is_jsonable(value)]
        instance._hub_mixin_config = instance._hub_mixin_config or {}
        return instance

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write `model.safetensors`, `config.json` and, where there is none yet, `README.md` into a folder.

        Raises:
            ValueError: where an argument of the constructor cannot be kept.
        """
        if self._unkept and config is None:
            raise ValueError(
                f"{CONFIG}: cannot hold the argument {self._unkept[0]!r} of {type(self).__name__}; expected numbers, "
                f"text, lists and transforms: make modules in the constructor, from those"
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
            super().save_pretrained(temporary, config=config, model_card_kwargs=model_card_kwargs)
            for name in FILES:
                if name != CARD or not (folder / CARD).exists():
                    Path(temporary, name).replace(folder / name)
        if push_to_hub:
            return self.push_to_hub(
                repo_id or folder.name, config=config, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs
            )
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        (save_directory / WEIGHTS).write_bytes(serialize_weights(self.state_dict()))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """A network from a folder, or from a repository of the Hub, in eval mode.

        Args:
            pretrained_model_name_or_path: the folder, or the repository USER/NAME. Both files come from one commit.
            force_download, token, cache_dir, local_files_only, revision: as for `huggingface_hub.snapshot_download`.
            model_kwargs: arguments of the constructor, in place of those in `config.json`.

        Raises:
            ValueError: for a folder that is damaged or of another model, in the name of the file.
            OSError: what `huggingface_hub` raises where the repository cannot be read.
        """
        folder = str(pretrained_model_name_or_path)
        if not os.path.isdir(folder):
            try:
                folder = snapshot_download(
                    folder,
                    allow_patterns=[WEIGHTS, CONFIG],
                    force_download=force_download,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    revision=revision,
                )
            except HFValidationError:
                raise ValueError(
                    f"pretrained_model_name_or_path: expected a folder that is there, or USER/NAME, got {folder!r}"
                ) from None
        cls._check_config(Path(folder, CONFIG), model_kwargs)
        return super().from_pretrained(folder, **model_kwargs)

    @classmethod
    def _check_config(cls, file: Path, given: Mapping[str, Any]) -> None:
        """Refuse what the mixin would leave out or fall over."""
        try:
            config = json.loads(_existing(file, cls).read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError(f"expected arguments by their names, got {describe(config)}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: damaged ({error})") from error
        parameters = dict(list(cls._hub_mixin_init_parameters.items())[1:])
        if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            return
        for name in config:
            if name not in parameters:
                raise ValueError(
                    f"{file}: of another model; {cls.__name__} has no argument {name!r}{nearest_name(name, parameters)}"
                )
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in {**config, **given}:
                raise ValueError(f"{file}: lacks the argument {name!r} of {cls.__name__}")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        weights, config = _existing(Path(model_id, WEIGHTS), cls), Path(model_id, CONFIG)
        for transport in ("revision", "cache_dir", "force_download", "local_files_only", "token"):
            options.pop(transport, None)
        try:
            model = cls(**{name: _meant(value) for name, value in options.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{config}: no {cls.__name__} can be made of it ({error})") from error
        assert isinstance(model, nn.Module)
        load_weights(model, read_weights(weights), weights)
        model.eval()
        return model

    def generate_model_card(self, *args: Any, **options: Any) -> ModelCard:
        assert isinstance(self, nn.Module)
        transforms = [part for part in self.modules() if isinstance(part, AbstractTransform)]
        said: dict[str, Any] = {
            "name": type(self).__name__,
            "module": type(self).__module__,
            "version": __version__,
            "parameters": f"{sum(p.numel() for p in self.parameters()):,}",
            "families": list(dict.fromkeys(map(repr, transforms))),
        }
        return super().generate_model_card(*args, **said | options)


class Classifier(LabelledClassifier, HubMixin, pipeline_tag="image-classification"):
    """A network of `stn.models` that is saved, published and loaded: `stn publish` makes one of a run.

    Arguments, shape and errors are those of `stn.models.LabelledClassifier`.

    Example:
        >>> import torch
        >>> classifier = Classifier("compact", transform={"name": "similarity", "max_angle": 1.0}, num_classes=10)
        >>> images = torch.rand(2, 1, 28, 28)
        >>> classifier(classifier.normalize(images)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        network: str | Mapping[str, Any] = "compact",
        *,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, class_names=class_names, mean=mean, std=std, **options)
        self._hub_mixin_config = self.settings


def _existing(file: Path, kind: type) -> Path:
    if not file.is_file():
        raise ValueError(f"{file}: missing; expected what {kind.__name__}.save_pretrained writes")
    return file
