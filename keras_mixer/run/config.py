"""What a run is: frozen dataclasses, read, typed and saved by OmegaConf.

A recipe (recipes.py) returns a `Config`; overrides such as `optim.lr=3e-3`
change single fields; `resolve` turns epochs into steps once the size of the
data set is known. The resolved config lies in the workdir as `config.json`
and can be run again from there.
"""

import dataclasses
import math
import os
import pathlib
import typing
from collections.abc import Sequence
from typing import Any, Literal

import omegaconf
import yaml
from omegaconf import OmegaConf

from keras_mixer.run import files


class ConfigError(ValueError):
    """A field is unknown, of the wrong type, or has a value not allowed."""


def _require(condition: bool, field: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{field} must be {allowed}. Received: {value!r}")


def _require_at_least(
    section: Any, name: str, bounds: dict[str, float]
) -> None:
    for field, low in bounds.items():
        value = getattr(section, field)
        if value is not None and not (math.isfinite(value) and value >= low):
            kind = "positive" if low == 1 else f"at least {low}"
            raise ConfigError(
                f"{name}.{field} must be {kind}. Received: {value!r}"
            )


def _resolved(value: int | None, field: str) -> int:
    """Returns a value that a resolved config has.

    Raises:
      ConfigError: The config has not been resolved.
    """
    if value is None:
        raise ConfigError(f"{field} is null: the config is not resolved yet.")
    return value


def _doc(default: Any, text: str) -> Any:
    """A dataclass field with its line of `--help`."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images."""

    name: str = _doc(
        "digits",
        "digits (bundled), a TFDS name (cifar10, imagenet2012:5.1.0), or "
        "folder:/path with one folder per class",
    )
    data_dir: str | None = _doc(None, "where TFDS looks for the data set")
    train_split: str = _doc("train", "TFDS split expression, train[:99%]")
    eval_split: str = _doc("test", "split of the accuracy that is reported")
    val_split: str | None = _doc(
        None, "split that chooses the best checkpoint, train[99%:]; null: none"
    )
    classes: str | None = _doc(
        None, "only these, names with commas between them; null: all"
    )
    shuffle_buffer: int | None = _doc(
        None,
        "encoded records in the shuffle buffer of TFRecords, whose files are "
        "shuffled, too (folders are shuffled whole); null: 1 GiB of them",
    )
    cache: bool = _doc(
        False,
        "keep all encoded images in memory, on every host; they are read "
        "before the first batch",
    )
    max_broken: float = _doc(
        0.01,
        "share of a split's images that may be broken: they are dropped and "
        "named; above it the run stops",
    )

    def __post_init__(self) -> None:
        if self.shuffle_buffer is not None:
            _require_at_least(self, "data", {"shuffle_buffer": 1})
        _require(
            0 <= self.max_broken <= 1,
            "data.max_broken",
            self.max_broken,
            "from 0 to 1",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which Mixer. A dimension that is set replaces the variant's own."""

    variant: str = _doc("S/16", "S/32 ... H/14, or custom: give all five below")
    patch_size: int | None = _doc(None, "pixels per patch side")
    num_blocks: int | None = _doc(None, "Mixer layers")
    hidden_dim: int | None = _doc(None, "channels per token (C)")
    tokens_mlp_dim: int | None = _doc(None, "token-mixing width (D_S)")
    channels_mlp_dim: int | None = _doc(None, "channel-mixing width (D_C)")
    image_size: int | None = _doc(
        None, "side of the square images; by default the data set's own"
    )
    stoch_depth: float = _doc(0.0, "drop probability of the last block")
    stoch_depth_rescale: bool = _doc(
        False, "divide kept branches by the probability of keeping them"
    )
    dropout: float = _doc(0.0, "dropout rate inside the MLPs")
    gelu: Literal["tanh", "exact"] = _doc("tanh", "GELU, tanh or exact")
    precision: Literal["float32", "bfloat16"] = _doc(
        "float32",
        "of the computation; weights, optimizer and logits stay float32",
    )
    remat: Literal["none", "tokens", "block"] = _doc(
        "none",
        "what the backward pass computes again: the tokens branch (2 % more "
        "arithmetic) or the whole block (a third more), for less memory",
    )

    def __post_init__(self) -> None:
        positive = [
            "patch_size",
            "num_blocks",
            "hidden_dim",
            "tokens_mlp_dim",
            "channels_mlp_dim",
            "image_size",
        ]
        _require_at_least(self, "model", dict.fromkeys(positive, 1))
        for field in ("stoch_depth", "dropout"):
            rate = getattr(self, field)
            _require(0 <= rate < 1, f"model.{field}", rate, "in [0, 1)")
        if self.remat != "none" and self.dropout:
            raise ConfigError(
                "model.remat does not go with dropout, which would draw other "
                "masks in the backward pass. Received: model.dropout="
                f"{self.dropout}, model.remat={self.remat}. For dropout set "
                "model.remat=none"
            )

    @property
    def side(self) -> int:
        """`image_size` of a config that has one.

        Raises:
          ConfigError: It is null.
        """
        return _resolved(self.image_size, "model.image_size")


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Which weights the training starts from."""

    weights: str | None = _doc(
        None,
        "imagenet1k, imagenet21k, sam, gsam; a .npz or timm .safetensors; "
        "the workdir of a run; null: random",
    )
    head: Literal["keep", "fresh"] = _doc(
        "keep", "their head (as many classes), or a fresh one that is zero"
    )
    resize_tokens: Literal["expand", "resample"] = _doc(
        "expand", "to another image size: multiples, exactly; or resample"
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What happens to an image on its way to the model."""

    policy: str = _doc(
        "resize",
        "training: steps joined by |, for example pad_crop(4)|flip or "
        "inception_crop|flip|randaugment(2, 15); or layers of keras-cv, "
        "flip|keras_cv.RandAugment(magnitude=0.5)|keras_cv.CutMix(alpha=1.0)",
    )
    eval_policy: str = _doc(
        "resize", "evaluation, for example resize_small(256)|central_crop"
    )


@dataclasses.dataclass(frozen=True)
class MixupConfig:
    """Mixing pairs of training examples (Zhang 2018; paper, Table 4)."""

    p: float = _doc(0.0, "the examples' share is drawn from Beta(p, p); 0: off")
    per_example: bool = _doc(
        False, "a share for each example, in place of one for the batch"
    )

    def __post_init__(self) -> None:
        _require(
            0 <= self.p < math.inf, "mixup.p", self.p, "at least 0 and finite"
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how often, on how many examples at once."""

    batch_size: int = _doc(4096, "examples per update, over all devices")
    accumulate: int = _doc(
        1, "parts in which each device computes its share of a batch"
    )
    steps: int | None = _doc(None, "updates; or give train.epochs")
    epochs: float | None = _doc(None, "passes over the training split")
    seed: int = _doc(0, "of weights, order and augmentation")
    loss: Literal["softmax", "sigmoid"] = _doc("softmax", "cross-entropy")
    label_smoothing: float = _doc(0.0, "share spread over all classes")
    head_bias_init: float = _doc(0.0, "start of the head's bias")
    last_blocks: int | None = _doc(
        None, "train the head (0), or also so many last blocks; null: all"
    )
    steps_per_call: int = _doc(10, "updates per call of the device function")
    xla: bool = _doc(True, "compile forward and backward pass with XLA")
    log_every: int = _doc(50, "steps between training lines")
    eval_every: int | None = _doc(
        None, "steps between evaluations; the end is always evaluated"
    )
    eval_every_epochs: float | None = _doc(None, "the same in epochs")
    checkpoint_every: int | None = _doc(
        None, "steps between checkpoints; the end is always saved"
    )
    checkpoint_every_epochs: float | None = _doc(None, "the same in epochs")
    keep_checkpoints: int = _doc(2, "newest checkpoints that are kept")

    def __post_init__(self) -> None:
        positive = [
            "batch_size",
            "accumulate",
            "steps",
            "steps_per_call",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
        ]
        _require_at_least(self, "train", dict.fromkeys(positive, 1))
        _require_at_least(self, "train", {"last_blocks": 0})
        for field in ("epochs", "eval_every_epochs", "checkpoint_every_epochs"):
            value = getattr(self, field)
            _require(
                value is None or 0 < value < math.inf,
                f"train.{field}",
                value,
                "a positive number",
            )
        _require(
            0 <= self.label_smoothing < 1,
            "train.label_smoothing",
            self.label_smoothing,
            "in [0, 1)",
        )
        _require(
            math.isfinite(self.head_bias_init),
            "train.head_bias_init",
            self.head_bias_init,
            "finite",
        )
        _require(
            0 <= self.seed < 2**31,
            "train.seed",
            self.seed,
            "an integer from 0 to 2**31 - 1",
        )

    @property
    def total_steps(self) -> int:
        """`steps` of a resolved config.

        Raises:
          ConfigError: It is null.
        """
        return _resolved(self.steps, "train.steps")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule (paper, App. B and Table 4)."""

    name: Literal["adamw", "sgd"] = _doc("adamw", "adamw or sgd")
    lr: float = _doc(1e-3, "peak learning rate")
    weight_decay: float = _doc(
        0.1, "decoupled, times the learning rate, on kernels alone"
    )
    b1: float = _doc(0.9, "Adam's decay of the mean")
    b2: float = _doc(0.999, "Adam's decay of the square")
    eps: float = _doc(1e-8, "Adam's epsilon")
    momentum: float = _doc(0.9, "SGD's momentum")
    mu_dtype: Literal["float32", "bfloat16"] = _doc(
        "float32",
        "of Adam's mean or SGD's momentum; Adam's square stays float32",
    )
    schedule: Literal["linear", "cosine", "constant"] = _doc(
        "linear", "decay after the warm-up"
    )
    warmup_steps: int | None = _doc(
        None, "linear warm-up; at most a tenth of a run as short as it"
    )
    warmup_epochs: float | None = _doc(None, "the same in epochs")
    end_lr_factor: float = _doc(1e-5, "share of lr at the end (linear)")
    clip_norm: float | None = _doc(
        1.0, "global gradient norm, over all devices; null: no clipping"
    )

    def __post_init__(self) -> None:
        _require_at_least(
            self,
            "optim",
            {"lr": 0, "weight_decay": 0, "warmup_steps": 0, "end_lr_factor": 0},
        )
        for field in ("b1", "b2", "momentum"):
            value = getattr(self, field)
            _require(0 <= value < 1, f"optim.{field}", value, "in [0, 1)")
        for field in ("eps", "clip_norm"):
            value = getattr(self, field)
            _require(
                value is None or 0 < value < math.inf,
                f"optim.{field}",
                value,
                "a positive number",
            )
        epochs = self.warmup_epochs
        _require(
            epochs is None or 0 <= epochs < math.inf,
            "optim.warmup_epochs",
            epochs,
            "at least 0",
        )


def _numbers(text: str, kind: type, field: str, allowed: str) -> tuple:
    """Reads numbers above 0 with commas between them."""
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    _require(
        bool(numbers)
        and all(0 < number < math.inf for number in numbers)
        and len(set(numbers)) == len(numbers),
        field,
        text,
        allowed,
    )
    return numbers


@dataclasses.dataclass(frozen=True)
class FewshotConfig:
    """Few-shot accuracy of the frozen features (paper, sect. 3)."""

    data: str | None = _doc(
        None,
        "data sets with commas between them, NAME or NAME@TRAIN@TEST; "
        "reference: the authors' six; imagenet: ImageNet as they split it; "
        "null: eval.py takes the run's own, and training measures nothing",
    )
    classes: str | None = _doc(
        None, "only these, names with commas between them; null: all"
    )
    shots: str = _doc("1,5,10,25", "examples per class, several with commas")
    seeds: int = _doc(3, "support sets, drawn with the seeds 0, 1 ...")
    l2_reg: str = _doc("1024", "regularisation, several with commas")
    policy: str | None = _doc(
        None,
        "preprocessing; null: both sides to 8/7 of the model's, then the "
        "centre (256 and 224), but nothing for images of the model's size",
    )
    every: int | None = _doc(
        None, "steps between evaluations; the end is always evaluated"
    )
    every_epochs: float | None = _doc(None, "the same in epochs")

    def __post_init__(self) -> None:
        _require_at_least(self, "fewshot", {"seeds": 1, "every": 1})
        _require(
            self.every_epochs is None or 0 < self.every_epochs < math.inf,
            "fewshot.every_epochs",
            self.every_epochs,
            "a positive number",
        )
        _ = self.shot_numbers, self.l2_regs
        if self.data is None and (self.every or self.every_epochs):
            raise ConfigError(
                "fewshot.every measures on fewshot.data, which is not given: "
                "fewshot.data=cifar10, for example. Received: fewshot.every="
                f"{self.every}, fewshot.every_epochs={self.every_epochs}"
            )

    @property
    def shot_numbers(self) -> tuple[int, ...]:
        """The numbers in `shots`."""
        allowed = "positive whole numbers, each once, such as 1,5,10,25"
        return _numbers(self.shots, int, "fewshot.shots", allowed)

    @property
    def l2_regs(self) -> tuple[float, ...]:
        """The numbers in `l2_reg`."""
        allowed = "positive numbers, each once, such as 64,1024"
        return _numbers(self.l2_reg, float, "fewshot.l2_reg", allowed)


# The durations that may be given in steps or in epochs.
_DURATIONS = (
    ("train", "steps", "epochs"),
    ("train", "eval_every", "eval_every_epochs"),
    ("train", "checkpoint_every", "checkpoint_every_epochs"),
    ("optim", "warmup_steps", "warmup_epochs"),
    ("fewshot", "every", "every_epochs"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run; a recipe makes one."""

    recipe: str = ""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    mixup: MixupConfig = dataclasses.field(default_factory=MixupConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    fewshot: FewshotConfig = dataclasses.field(default_factory=FewshotConfig)

    def __post_init__(self) -> None:
        for section, steps, epochs in _DURATIONS:
            values = getattr(self, section)
            if None not in (getattr(values, steps), getattr(values, epochs)):
                raise ConfigError(
                    f"Give {section}.{steps} or {section}.{epochs}, not both. "
                    f"Received: {getattr(values, steps)} and "
                    f"{getattr(values, epochs)}. To replace a recipe's, set "
                    "the other to null."
                )


# name -> the section's dataclass
_SECTIONS: dict[str, Any] = {
    field.name: field.default_factory
    for field in dataclasses.fields(Config)
    if field.name != "recipe"
}


# Flags of the programs, for those who forget the dashes.
_FLAGS = (
    "recipe",
    "config",
    "workdir",
    "strategy",
    "tpu",
    "virtual_devices",
    "task",
    "checkpoint",
    "weights",
)


def _field_names(section: str = "") -> list[str]:
    """Returns "section.field" of a section, or the names of all sections."""
    if not section:
        return list(_SECTIONS)
    return [
        f"{section}.{f.name}" for f in dataclasses.fields(_SECTIONS[section])
    ]


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Returns `config` with fields replaced, `section.field=value` each.

    Setting a duration in steps unsets the recipe's in epochs, and the other
    way round.

    Raises:
      ConfigError: A field is unknown (the nearest is named), or a value has
        the wrong type or is not allowed.
    """
    changes = OmegaConf.create()
    given = {text.partition("=")[0] for text in overrides}
    try:
        for text in overrides:
            field, equals, value = text.partition("=")
            _check_override(text, field, equals)
            for section, steps, epochs in _DURATIONS:
                for ours, other in ((steps, epochs), (epochs, steps)):
                    other = f"{section}.{other}"
                    if field == f"{section}.{ours}" and other not in given:
                        OmegaConf.update(changes, other, None)
            OmegaConf.update(changes, field, _parse_value(field, value))
        merged = OmegaConf.merge(OmegaConf.structured(config), changes)
        return typing.cast(Config, OmegaConf.to_object(merged))
    except omegaconf.errors.OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error


def _check_override(text: str, field: str, equals: str) -> None:
    """Raises ConfigError for what is no override of a section's field."""
    name = field.removeprefix("--")
    if name in _FLAGS:
        raise ConfigError(
            f"{name} is a flag, written with two dashes and before a value: "
            f"--{name}=..."
        )
    if not equals or not field.strip():
        raise ConfigError(
            f"Cannot read {text!r}: an override is section.field=value, "
            "for example optim.lr=3e-3"
        )
    if field in _SECTIONS:
        raise ConfigError(
            f"{field} is a section. Set one of its fields: "
            + ", ".join(_field_names(field))
        )


def _parse_value(field: str, text: str) -> Any:
    """Reads a value as YAML, but leaves the text of text fields as it is."""
    section, _, name = field.partition(".")
    for known in dataclasses.fields(_SECTIONS.get(section, Config)):
        if known.name == name and known.type in (str, str | None):
            return None if text == "null" else text
    try:
        return OmegaConf.select(OmegaConf.from_dotlist([f"v={text}"]), "v")
    except yaml.YAMLError as error:
        raise ConfigError(f"{field}: cannot read {text!r}") from error


def _explain(error: omegaconf.errors.OmegaConfBaseException) -> str:
    """Rewrites an OmegaConf error for people who have not read its manual."""
    message = str(error).splitlines()[0]
    full_key = str(getattr(error, "full_key", "") or "")
    if not isinstance(error, omegaconf.errors.ConfigKeyError):
        return f"{full_key}: {message}" if full_key else message
    section = full_key.rpartition(".")[0]
    if section not in _SECTIONS:
        section = ""
    prefix = f"{section}." if section else ""
    hint = message.partition("Did you mean: ")[2].strip("'?")
    return (
        f"Unknown field {full_key!r}."
        + (f" Did you mean {prefix + hint!r}?" if hint else "")
        + f" Fields: {', '.join(_field_names(section))}"
    )


def resolve(config: Config, *, num_examples: int) -> Config:
    """Returns `config` with every duration in steps.

    A warm-up that is as long as the run is cut to a tenth of it, so that a
    recipe can be tried for a few steps.

    Args:
      config: A config with durations in steps or epochs.
      num_examples: Examples in the training split: an epoch is
        `num_examples / train.batch_size` steps.

    Raises:
      ConfigError: The run has no length.
    """
    if config.train.steps is None and config.train.epochs is None:
        raise ConfigError("Give the length of the run: train.epochs=<number>")
    epoch = num_examples / config.train.batch_size
    sections = {
        name: dataclasses.asdict(getattr(config, name))
        for name in ("train", "optim", "fewshot")
    }
    for section, steps, epochs in _DURATIONS:
        values = sections[section]
        if values[epochs] is not None:
            values[steps] = round(values[epochs] * epoch)
            if section != "optim":
                values[steps] = max(values[steps], 1)
            values[epochs] = None
    train = TrainConfig(**sections["train"])
    optim = OptimConfig(**sections["optim"])
    fewshot = FewshotConfig(**sections["fewshot"])
    if (optim.warmup_steps or 0) >= train.total_steps:
        optim = dataclasses.replace(optim, warmup_steps=train.total_steps // 10)
    return dataclasses.replace(
        config, train=train, optim=optim, fewshot=fewshot
    )


def save(config: Config, path: str | os.PathLike[str]) -> None:
    """Writes `config` as JSON, for `load`."""
    files.write_json(path, dataclasses.asdict(config))


def load(path: str | os.PathLike[str]) -> Config:
    """Reads a config that `save` wrote (JSON) or a person did (YAML).

    Raises:
      ConfigError: The file is missing, cannot be parsed, or has a field or
        value that is not allowed.
    """
    try:
        loaded = OmegaConf.load(pathlib.Path(path))
        merged = OmegaConf.merge(OmegaConf.structured(Config()), loaded)
        return typing.cast(Config, OmegaConf.to_object(merged))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no config file {path}") from error
    except omegaconf.errors.OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"Cannot read {path}: {error}") from error


def differences(ours: Config, theirs: Config) -> list[str]:
    """Names the fields in which two configs differ, one line each."""
    lines = []
    for section, owner in _SECTIONS.items():
        for field in dataclasses.fields(owner):
            x = getattr(getattr(ours, section), field.name)
            y = getattr(getattr(theirs, section), field.name)
            if x != y:
                lines.append(f"{section}.{field.name}: {y!r} -> {x!r}")
    return lines


def describe(config: Config) -> str:
    """Returns `config` as YAML, for people."""
    return OmegaConf.to_yaml(OmegaConf.structured(config)).rstrip()


def field_help(*sections: str) -> str:
    """Returns a table of fields, their defaults and meanings; of all sections
    if none is named.
    """
    lines = []
    for section in sections or _SECTIONS:
        owner = _SECTIONS[section]
        lines.append(f"{section}: {owner.__doc__}")
        for field in dataclasses.fields(owner):
            default = "null" if field.default is None else field.default
            name = f"{section}.{field.name}={default}"
            lines.append(f"  {name:<36} {field.metadata['help']}")
    return "\n".join(lines)
