"""What a run is: one flat, typed record that the command line and YAML files override."""

import dataclasses
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from .data import AUGMENTATIONS, DATASETS, DISTORTIONS, HUB
from .names import NAMED, TIMM, check_named, import_paths, imported, is_import_path, label, split
from .sizes import bytes_of

# Nothing here loads torch before a network or a data set is built: the command line reads settings without it. For that
# the annotations are types and not text, too: jsonargparse runs the imports below to make sense of text.
if TYPE_CHECKING:
    from stn.models import Colocalizer, TransformerClassifier
    from stn.penalties import Penalty
    from stn.transforms import AbstractTransform

    from .data.module import ImageDataModule

    DataSet = str
    Distortion = str
    Augmentation = str
    Family = str
else:
    from jsonargparse.typing import restricted_string_type

    from .names import IMPORT_PATH

    ImportPath = restricted_string_type("ImportPath", IMPORT_PATH, docstring="package.module:name")
    DataSet = Literal[DATASETS] | restricted_string_type("HuggingFace", f"^{HUB}.+$") | ImportPath
    Distortion = Literal[DISTORTIONS] | ImportPath
    Augmentation = Literal[AUGMENTATIONS] | ImportPath

# What a resumed run may change without changing its result.
RESUMABLE = (
    "control", "data_dir", "memory_limit", "num_workers", "progress", "threads", "accelerator", "devices", "num_nodes", "strategy",
    "logger",
)  # fmt: skip

# What a run that learns poses has of the run that its classifier is from.
OF_THE_CLASSIFIER = (
    "dataset", "data_dir", "image_column", "label_column", "distortion", "image_size", "fit", "on_bad_image", "memory_limit",
    "val_fraction", "limit_train", "network", "widen", "dropout", "seed",
)  # fmt: skip

FLAGS = ("quick", "freeze")  # settings that are given on the command line or not, without a value

Logger = Literal["csv", "tensorboard", "wandb", "mlflow"]
Transformer = Literal[
    "affine", "similarity", "rigid", "attention", "crop", "translation", "rotation", "projective", "corners", "tps",
    "bspline", "displacement", "velocity", "cpab", "polar", "none",
]  # fmt: skip
if not TYPE_CHECKING:
    Family = Transformer | ImportPath


@dataclass(kw_only=True)
class TrainConfig:
    """Settings of one training run. A recipe is a set of defaults for them.

    Args:
        recipe: the recipe that the defaults came from.
        preset: the recipe's own settings, or paper, the protocol of its paper.
        dataset: digits, mnist, mnist_addition, fashion_mnist, cifar10, gtsrb, images (a folder of class folders), hf:NAME or
            hf:NAME:CONFIGURATION of Hugging Face; or yours, `package.module:name`.
        data_dir: where the official files lie, or the folder of images; downloaded to the cache if not given.
        image_column: of a data set by Hugging Face, where several could be meant.
        label_column: of a data set by Hugging Face, where several could be meant.
        distortion: the paper's: r, rts, p, e, t, tc, t84, tc84 (on 84 pixels in place of 60) or rts_each (each channel its own); fresh for every training sample, fixed for the test set; or yours, `package.module:name`.
        digit: find what the images of this class have in common, without labels, in place of classifying.
        augment: of the training images only: flip_shift or affine; or yours, `package.module:name`.
        grow: epochs over which the distortion of the training images grows, from none; 0 for all of it at once.
        image_size: height and width that images of any size are brought to, your own and those of Hugging Face.
        fit: how: stretch, or crop or pad (with black), which keep the aspect.
        on_bad_image: an unreadable image stops the run before it begins, or is named and skipped.
        memory_limit: images that take more, such as 2GiB, 500MB or 0, are read when they are needed, to the same result.
        val_fraction: share of the training set that is held out for validation.
        limit_train: train on the first so many images only (for a quick try).
        balance: an epoch has as many images of each class; those of small classes come again, those of large ones rest.
        quick: a try of seconds: at most 1,000 images to train on, 500 to validate and 500 to test; on the command line
            two epochs unless given, and no report.
        network: a name that `stn models` lists; colocalizer with a digit; `timm:NAME` of timm's; or yours,
            `package.module:name`.
        transformer: the family of warps, or none for the control; or yours, `package.module:name`. Its options by
            `--transformer.max-angle 1.6`, or as a mapping, '{"name": "similarity", "max_angle": 1.6}'; network, dataset,
            distortion and augment take options alike.
        learn: what the transformer learns from: labels, with the classifier; or poses, warps of the images whose parameters are known,
            in front of a classifier that is not touched (--init-from RUN, of a run without a transformer, or --weights FILE).
        weights: file with weights of the classifier to start from, safetensors or a state dict.
        freeze: train the transformer alone; the classifier keeps its weights and its batch norm's statistics.
        padding_mode: what the transformer sees outside the image.
        widen: false leaves a control as wide as the classifier behind the transformer, with fewer parameters.
        size: height and width of the transformer's output; those of the images if not given. A control sees the whole image.
        pool: average-pool the transformer's output by this factor.
        dropout: probability; the network's own if not given.
        theta_grad_scale: factor on the gradient that enters theta.
        antialias: average over what each output pixel stands for, where the transformer zooms out.
        gradient: of theta: exact, or linearized (multi-sampling, which sees further).
        feed_theta: the classifier's last layer sees theta, too.
        penalties: weights of stn.penalties in the loss by name, such as '{"fold": 1.0, "scale": 0.1}'.
        epochs: passes over the training set.
        starts: with a digit: train from up to so many random starts, until one ends with a low loss; the best is kept.
        batch_size: images per step and device.
        optimizer: sgd or adamw.
        momentum: of sgd, Nesterov's; 0 for none.
        lr: peak learning rate.
        schedule: onecycle (up, then down to nothing), cosine (down only), step (a tenth after each third) or constant.
        warmup: epochs of a rate that rises from nothing before the schedule; onecycle has its own.
        weight_decay: of weight matrices and kernels; biases and norms have none.
        localizer_lr_scale: the localizer's learning rate, relative to lr.
        clip: largest norm of the gradient; null for no clipping.
        label_smoothing: of the cross-entropy.
        mixup: train on mixtures of two images and their labels, in shares drawn from Beta(mixup, mixup); 0 for none.
        ema: average the weights over the steps, each with this decay, such as 0.999; the average is the result.
        early_stop: stop after so many epochs without a better validation accuracy.
        seed: of weights, order, distortions and splits.
        init_from: start from the weights of this run; the schedule, the optimizer and the epochs begin anew.
        schedule_start: epoch at which the schedule began anew, in a run that was extended.
        out: folder of the run; runs/RECIPE-TRANSFORMER-sSEED if not given.
        control: train the equal-parameter control too, into RUN/control; of a network that is not ours, the network alone.
        logger: where the curves go beside metrics.csv, by Lightning's names: tensorboard, wandb, mlflow, or csv for
            nowhere else; or a list of them.
        num_workers: processes that prepare batches; 0 prepares them in line. If not given, one for each core, up to 8,
            where images are read when they are needed, else 0.
        accelerator: Lightning's: auto, cpu, gpu, mps and so on.
        devices: Lightning's: how many, or which.
        num_nodes: Lightning's: machines.
        strategy: Lightning's: auto, ddp, fsdp and so on.
        precision: Lightning's: 32-true, bf16-mixed, 16-mixed and so on; auto is bf16-mixed where the hardware has it.
        channels_last: memory format of the network and its images; faster convolutions on most CPUs and GPUs.
        threads: of torch on the CPU; all cores if not given.
        progress: show a progress bar.
    """

    recipe: str = "digits"
    preset: Literal["paper"] | None = None
    dataset: DataSet | dict[str, Any] = "digits"
    data_dir: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    distortion: Distortion | dict[str, Any] | None = None
    digit: int | None = None
    augment: Augmentation | dict[str, Any] | None = None
    grow: int = 0
    image_size: tuple[int, int] = (64, 64)
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    on_bad_image: Literal["stop", "skip"] = "stop"
    memory_limit: str = "2GiB"
    val_fraction: float = 0.1
    limit_train: int | None = None
    balance: bool = False
    quick: bool = False
    network: str | dict[str, Any] = "compact"
    transformer: Family | dict[str, Any] = "affine"
    learn: Literal["labels", "poses"] = "labels"
    weights: str | None = None
    freeze: bool = False
    padding_mode: Literal["zeros", "border", "reflection", "circular"] = "border"
    size: int | None = None
    pool: int = 1
    widen: bool = True
    dropout: float | None = None
    theta_grad_scale: float = 1.0
    antialias: bool = False
    gradient: Literal["exact", "linearized"] = "exact"
    feed_theta: bool = False
    penalties: dict[str, float] = field(default_factory=dict)
    epochs: int = 20
    starts: int = 1
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    lr: float = 0.1
    schedule: Literal["onecycle", "cosine", "step", "constant"] = "onecycle"
    warmup: float = 0.0
    weight_decay: float = 0.0
    localizer_lr_scale: float = 0.1
    clip: float | None = 1.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float | None = None
    early_stop: int | None = None
    seed: int = 0
    init_from: str | None = None
    schedule_start: int = 0
    out: str | None = None
    control: bool = False
    logger: Logger | list[Logger] = "tensorboard"
    num_workers: int | None = None
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    channels_last: bool = True
    threads: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        at_least = {
            "epochs": 1,
            "starts": 1,
            "batch_size": 1,
            "pool": 1,
            "num_nodes": 1,
            "seed": 0,
            "lr": 0.0,
            "warmup": 0.0,
            "grow": 0,
            "mixup": 0.0,
            "schedule_start": 0,
        }
        at_least |= {"weight_decay": 0.0, "localizer_lr_scale": 0.0, "theta_grad_scale": 0.0}
        optional = {
            "limit_train": 1,
            "size": 1,
            "early_stop": 1,
            "threads": 1,
            "clip": 0.0,
            "dropout": 0.0,
            "digit": 0,
            "num_workers": 0,
        }
        for name, least in {**at_least, **optional}.items():
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not (isinstance(value, (int, float)) and least <= value < float("inf")):
                raise ValueError(f"{name}: expected a finite number of at least {least}, got {value!r}")
        for name in ("val_fraction", "label_smoothing", "momentum", "ema"):
            value = getattr(self, name)
            if not (name == "ema" and value is None) and not 0 <= value < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")
        bytes_of("memory_limit", self.memory_limit)
        if self.balance and self.digit is not None:
            raise ValueError("balance: expected false for co-localization, which has images of one class")
        if self.warmup and (self.schedule == "onecycle" or self.warmup >= self.epochs):
            most = "0 with schedule='onecycle'" if self.schedule == "onecycle" else f"less than {self.epochs} epochs"
            raise ValueError(f"warmup: expected {most}, got {self.warmup!r}")
        if (self.digit is not None) != (self.network == "colocalizer"):
            raise ValueError(f"network: expected colocalizer with a digit, and with nothing else, got {self.network!r}")
        if self.freeze and self.family == "none":
            raise ValueError("freeze: expected a transformer to train, got transformer='none'")
        if self.freeze and self.weights is None and self.init_from is None:
            raise ValueError("freeze: expected the classifier's weights, by --weights or --init-from, got neither")
        if self.learn == "poses" and (self.family == "none" or self.digit is not None or self.freeze or self.control):
            raise ValueError(
                "learn: expected labels for co-localization, without a transformer, and with --freeze or --control: a classifier that "
                "poses are learned for is frozen and its own control"
            )
        if self.digit is not None and (self.weights is not None or self.freeze):
            raise ValueError("weights: expected none for co-localization, which has no classifier")
        if self.digit is not None and self.control:
            raise ValueError("control: expected none for co-localization, which is nothing without its transformer")
        if self.starts > 1 and (self.digit is None or self.schedule != "constant" or self.warmup or self.ema):
            raise ValueError(
                "starts: expected 1 but for co-localization with a constant learning rate and no average of the weights, "
                f"got {self.starts}"
            )
        if self.penalties:
            self.penalty()  # refuses unknown names and weights below 0
        for setting in NAMED:
            if isinstance(getattr(self, setting), str):
                setattr(
                    self, setting, str(getattr(self, setting))
                )  # the parser's own kind of text, which YAML cannot say
        check_named("dataset", self.dataset, DATASETS)
        check_named("network", self.network)
        check_named("transformer", self.transformer, get_args(Transformer))
        if self.distortion is not None:
            check_named("distortion", self.distortion, DISTORTIONS)
        if self.augment is not None:
            check_named("augment", self.augment, AUGMENTATIONS)
        if self.family == "none" and not isinstance(self.transformer, str):
            raise ValueError(f"transformer: expected no options of none, got {label(self.transformer)}")
        if not isinstance(self.transformer, str) and not self.imports:
            self.make_family()  # refuses options that the family does not have
        if self.devices == 0:
            raise ValueError("devices: expected at least 1, got 0")

    @property
    def family(self) -> str:
        """The name of the family of warps without its options or where it is imported from, "none" for a control."""
        return split(self.transformer)[0].rpartition(":")[2]

    @property
    def widens(self) -> bool:
        """Whether a control of this network is widened to at least as many parameters; one that is not ours has one width."""
        name = split(self.network)[0]
        return self.widen and not (name.startswith(TIMM) or is_import_path(name))

    @property
    def imports(self) -> tuple[str, ...]:
        """The import paths among the settings: making the network or the data set runs their code."""
        return tuple(dict.fromkeys(import_paths({setting: getattr(self, setting) for setting in NAMED})))

    def shareable(self, text: str) -> str:
        """Without the folders of data on this machine, which are called DATA: for what is passed on."""
        name = split(self.dataset)[0]
        hub = name.removeprefix(HUB) if name.startswith(HUB) else ""
        for folder in (self.data_dir, hub if os.path.isabs(hub) or hub.startswith((".", "~")) else None):
            text = text.replace(folder, "DATA") if folder else text
        return text

    @property
    def task(self) -> Literal["classify", "colocalize"]:
        """What the network learns."""
        return "classify" if self.digit is None else "colocalize"

    def make_data(self, class_names: tuple[str, ...] | None = None) -> "ImageDataModule":
        """The data set that is meant; the labels of your own images by `class_names`, if given."""
        from .data.module import ImageDataModule
        from .data.registry import get

        options = self._options(ImageDataModule)
        if not get(self.dataset).any_size:
            del options["image_size"]
        return ImageDataModule(class_names=class_names, **options)

    def make_family(self) -> "AbstractTransform | None":
        """The family of warps that is meant, None for a control. One of your own is imported, and known by its path."""
        from stn.transforms import TRANSFORMS, AbstractTransform, from_config

        if self.family == "none":
            return None
        for path in import_paths(self.transformer):
            family = imported("transformer", path)
            if not (isinstance(family, type) and issubclass(family, AbstractTransform)) or inspect.isabstract(family):
                raise ValueError(
                    f"transformer: expected a family, a subclass of stn.AbstractTransform that can be made, got {path}, {family!r}"
                )
            TRANSFORMS[path] = family
        try:
            return from_config(self.transformer)
        except ValueError as error:
            raise ValueError(f"transformer: {error}") from None

    def make_model(
        self, in_shape: tuple[int, int, int], num_classes: int, *, start: int = 0
    ) -> "TransformerClassifier | Colocalizer":
        """The network that is meant, with the random weights of the seed; of co-localization those of a further start."""
        import torch

        from stn import models

        self.make_family()
        for path in import_paths(self.network):
            models.OWN[path] = imported("network", path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.digit is not None:
                for _ in range(start + 1):
                    model = models.Colocalizer(in_shape, self.transformer, padding_mode=self.padding_mode)
                return model
            known = models.create(self.network, in_shape=in_shape, num_classes=num_classes, **self.network_options())
            family = self.make_family()
            if self.learn == "labels" or family is None:
                return known
            return models.behind_pose(known.classifier, family, in_shape, padding_mode=self.padding_mode)

    def network_options(self) -> dict[str, Any]:
        """What `stn.models.create` is told beside the name, the size of the images and the number of classes."""
        from stn import models

        transform = "none" if self.learn == "poses" else self.transformer
        return {"transform": transform, **self._options(models.create)}

    def penalty(self) -> "Penalty | None":
        """The weighted sum that `penalties` names, or None."""
        from stn.penalties import Penalty

        weights: dict[str, Any] = dict(self.penalties)
        return Penalty(**weights) if weights else None

    def as_plain(self) -> dict[str, Any]:
        """Every setting, as YAML and JSON can say it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def _options(self, make: Callable[..., Any]) -> dict[str, Any]:
        """The settings that `make` has a keyword of the same name for."""
        names = {setting.name for setting in dataclasses.fields(self)}
        return {name: getattr(self, name) for name in inspect.signature(make).parameters if name in names}
