"""The fields of a run's config: frozen dataclasses that check themselves.

Each field has its line of `--help` and, if it is a number, the range that it
must lie in. `config.py` reads, changes, resolves and saves them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple


class ConfigError(ValueError):
    """A field is unknown, has the wrong type, or has a value not allowed."""


class _Range(NamedTuple):
    """The finite numbers that a field allows, and their name in errors."""

    name: str
    holds: Callable[[float], bool]


_COUNT = _Range("positive, up to 2**31 - 1", lambda x: 1 <= x < 2**31)
_FEW = _Range("from 1 to 1000", lambda x: 1 <= x <= 1000)
_ABOVE_0 = _Range("a positive number", lambda x: x > 0)
_FROM_0 = _Range("at least 0 and finite", lambda x: x >= 0)
_BELOW_1 = _Range("in [0, 1)", lambda x: 0 <= x < 1)
_SHARE = _Range("from 0 to 1", lambda x: 0 <= x <= 1)
_FINITE = _Range("finite", lambda x: True)
_SEED = _Range("an integer from 0 to 2**31 - 1", lambda x: 0 <= x < 2**31)


def _doc(default: Any, text: str, allowed: _Range | None = None) -> Any:
    """A dataclass field with its line of `--help` and its range."""
    metadata = {"help": text, "range": allowed}
    return dataclasses.field(default=default, metadata=metadata)


def _resolved(value: int | None, field: str) -> int:
    """Returns a value that a resolved config has; ConfigError without it."""
    if value is None:
        raise ConfigError(f"{field} is null: the config is not resolved yet.")
    return value


@dataclasses.dataclass(frozen=True)
class _Section:
    """A section of the config, such as `train`, with checked numbers."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        for field in dataclasses.fields(self):
            value, allowed = getattr(self, field.name), field.metadata["range"]
            if value is None or allowed is None:
                continue
            if not (-math.inf < value < math.inf and allowed.holds(value)):
                raise ConfigError(
                    f"{section}.{field.name} must be {allowed.name}. "
                    f"Received: {value!r}"
                )


@dataclasses.dataclass(frozen=True)
class DataConfig(_Section):
    """Which images."""

    name: str = _doc(
        "digits",
        "digits (bundled), a TFDS name (cifar10, imagenet2012:5.1.0), or "
        "folder:/path with one folder per class",
    )
    data_dir: str | None = _doc(None, "where TFDS looks for the data set")
    train_split: str = _doc("train", "TFDS split expression, train[:99%]")
    eval_split: str = _doc("test", "split of the accuracy that is reported")
    hold_out: float = _doc(
        0.0,
        "share of the images that is set apart, by file name, as the split "
        "test of a folder that has no folders for splits; 0: none",
        _BELOW_1,
    )
    allow_overlap: bool = _doc(
        False,
        "evaluate on images that are trained on, too; a warning then stands "
        "beside the accuracy",
    )
    val_split: str | None = _doc(
        None, "split that chooses the best checkpoint, train[99%:]; null: none"
    )
    classes: str | None = _doc(
        None,
        'only these, names with commas between them ("a,b" is one name); '
        "null: all",
    )
    shuffle_buffer: int | None = _doc(
        None,
        "encoded records in the shuffle buffer of TFRecords, whose files are "
        "shuffled, too (folders are shuffled whole); null: 1 GiB of them",
        _COUNT,
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
        _SHARE,
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Section):
    """Which Mixer. A dimension that is set replaces the variant's own."""

    variant: str = _doc("S/16", "S/32 ... H/14, or custom: give all five below")
    patch_size: int | None = _doc(None, "pixels per patch side", _COUNT)
    num_blocks: int | None = _doc(None, "Mixer layers", _FEW)
    hidden_dim: int | None = _doc(None, "channels per token (C)", _COUNT)
    tokens_mlp_dim: int | None = _doc(None, "token-mixing width (D_S)", _COUNT)
    channels_mlp_dim: int | None = _doc(
        None, "channel-mixing width (D_C)", _COUNT
    )
    image_size: int | None = _doc(
        None, "side of the square images; by default the data set's own", _COUNT
    )
    stoch_depth: float = _doc(
        0.0, "drop probability of the last block", _BELOW_1
    )
    stoch_depth_rescale: bool = _doc(
        False, "divide kept branches by the probability of keeping them"
    )
    dropout: float = _doc(0.0, "dropout rate inside the MLPs", _BELOW_1)
    gelu: Literal["tanh", "exact"] = _doc("tanh", "GELU, tanh or exact")
    precision: Literal["auto", "float32", "bfloat16"] = _doc(
        "auto",
        "auto trains in bfloat16 on TPUs and on GPUs from Ampere on, and in "
        "float32 elsewhere; weights and logits are float32",
    )
    remat: Literal["none", "tokens", "block"] = _doc(
        "none",
        "what the backward pass computes again: the tokens branch (2 % more "
        "arithmetic) or the whole block (a third more), for less memory",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remat != "none" and self.dropout:
            raise ConfigError(
                "model.remat does not go with dropout, which would draw other "
                "masks in the backward pass. Received: model.dropout="
                f"{self.dropout}, model.remat={self.remat}. For dropout set "
                "model.remat=none"
            )

    @property
    def side(self) -> int:
        """`image_size`; a ConfigError if it is null."""
        return _resolved(self.image_size, "model.image_size")


@dataclasses.dataclass(frozen=True)
class InitConfig(_Section):
    """Which weights the training starts from."""

    weights: str | None = _doc(
        None,
        "imagenet1k, imagenet21k, sam, gsam, miil_in21k, miil_in21k_ft_in1k; "
        "hf:owner/name[@revision] of the Hugging Face Hub; a .npz or timm "
        ".safetensors; "
        "the workdir of a run; null: random",
    )
    head: Literal["keep", "fresh"] = _doc(
        "keep", "their head (as many classes), or a fresh one that is zero"
    )
    resize_tokens: Literal["expand", "resample"] = _doc(
        "expand", "to another image size: multiples, exactly; or resample"
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig(_Section):
    """What happens to an image on its way to the model."""

    policy: str = _doc(
        "resize",
        "training: steps or layers of Keras and keras-cv joined by |, such as "
        "pad_crop(4)|flip, inception_crop|flip|randaugment(2, 15) or "
        "flip|keras_cv.RandAugment(magnitude=0.5)|keras_cv.CutMix(alpha=1.0)",
    )
    eval_policy: str = _doc(
        "resize",
        "evaluation, without random steps: resize_small(256)|central_crop",
    )


@dataclasses.dataclass(frozen=True)
class MixupConfig(_Section):
    """Mixing pairs of training examples (Zhang 2018; paper, Table 4)."""

    p: float = _doc(
        0.0, "the examples' share is drawn from Beta(p, p); 0: off", _FROM_0
    )
    per_example: bool = _doc(
        False, "a share for each example, in place of one for the batch"
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Section):
    """How long, how often, on how many examples at once."""

    batch_size: int = _doc(
        4096, "examples per update, over all devices", _COUNT
    )
    accumulate: int = _doc(
        1,
        "parts in which each device computes its share of a batch, for less "
        "memory; a TPU takes more, so that they stay in the chip",
        _COUNT,
    )
    steps: int | None = _doc(None, "updates; or give train.epochs", _COUNT)
    epochs: float | None = _doc(
        None, "passes over the training split", _ABOVE_0
    )
    seed: int = _doc(0, "of weights, order and augmentation", _SEED)
    loss: Literal["softmax", "sigmoid"] = _doc("softmax", "cross-entropy")
    label_smoothing: float = _doc(
        0.0, "share spread over all classes", _BELOW_1
    )
    head_bias_init: float = _doc(0.0, "start of the head's bias", _FINITE)
    last_blocks: int | None = _doc(
        None,
        "train the head (0), or also so many last blocks; null: all",
        _FROM_0,
    )
    lora_rank: int | None = _doc(
        None,
        "train the head, and LoRA of this rank in every block, of the weights "
        "that init.weights names; null: the kernels themselves",
        _COUNT,
    )
    steps_per_call: int = _doc(
        10, "updates per call of the device function", _COUNT
    )
    xla: bool = _doc(True, "compile forward and backward pass with XLA")
    log_every: int | None = _doc(
        50,
        "steps between training lines; null: a twentieth of the run, at most "
        "50",
        _COUNT,
    )
    eval_every: int | None = _doc(
        None, "steps between evaluations; the end is always evaluated", _COUNT
    )
    eval_every_epochs: float | None = _doc(None, "the same in epochs", _ABOVE_0)
    checkpoint_every: int | None = _doc(
        None, "steps between checkpoints; the end is always saved", _COUNT
    )
    checkpoint_every_epochs: float | None = _doc(
        None, "the same in epochs", _ABOVE_0
    )
    keep_checkpoints: int = _doc(2, "newest checkpoints that are kept", _COUNT)

    @property
    def total_steps(self) -> int:
        """`steps`; a ConfigError if the config is not resolved."""
        return _resolved(self.steps, "train.steps")


@dataclasses.dataclass(frozen=True)
class OptimConfig(_Section):
    """Optimizer and learning-rate schedule (paper, App. B and Table 4)."""

    name: Literal["adamw", "sgd"] = _doc("adamw", "adamw or sgd")
    lr: float = _doc(1e-3, "peak learning rate", _FROM_0)
    weight_decay: float = _doc(
        0.1, "decoupled, times the learning rate, on kernels alone", _FROM_0
    )
    b1: float = _doc(0.9, "Adam's decay of the mean", _BELOW_1)
    b2: float = _doc(0.999, "Adam's decay of the square", _BELOW_1)
    eps: float = _doc(1e-8, "Adam's epsilon", _ABOVE_0)
    momentum: float = _doc(0.9, "SGD's momentum", _BELOW_1)
    mu_dtype: Literal["float32", "bfloat16"] = _doc(
        "float32",
        "of Adam's mean or SGD's momentum; Adam's square stays float32",
    )
    schedule: Literal["linear", "cosine", "constant"] = _doc(
        "linear",
        "decay after the warm-up; with constant, a run can be made longer",
    )
    warmup_steps: int | None = _doc(
        None, "linear warm-up; at most a tenth of a run as short as it", _FROM_0
    )
    warmup_epochs: float | None = _doc(None, "the same in epochs", _FROM_0)
    end_lr_factor: float = _doc(
        1e-5, "share of lr at the end (linear)", _FROM_0
    )
    clip_norm: float | None = _doc(
        1.0,
        "global gradient norm, over all devices; null: no clipping",
        _ABOVE_0,
    )

    @property
    def can_go_on(self) -> bool:
        """Whether no learning rate depends on the length of the run."""
        never_ends = self.schedule == "linear" and self.end_lr_factor == 1
        return self.schedule == "constant" or never_ends


def _numbers(text: str, kind: type, field: str, allowed: str) -> tuple:
    """Reads positive numbers with commas between them, each once."""
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    positive = all(0 < number < math.inf for number in numbers)
    if not numbers or not positive or len(set(numbers)) < len(numbers):
        raise ConfigError(f"{field} must be {allowed}. Received: {text!r}")
    return numbers


@dataclasses.dataclass(frozen=True)
class FewshotConfig(_Section):
    """Few-shot accuracy of the frozen features (paper, sect. 3)."""

    data: str | None = _doc(
        None,
        "data sets with commas between them, NAME or NAME@TRAIN@TEST; "
        "reference: the authors' six; imagenet: ImageNet as they split it; "
        "null: eval.py takes the run's own, and training measures nothing",
    )
    classes: str | None = _doc(
        None,
        'only these, names with commas between them ("a,b" is one name); '
        "null: all",
    )
    shots: str = _doc("1,5,10,25", "examples per class, several with commas")
    seeds: int = _doc(3, "support sets, drawn with the seeds 0, 1 ...", _FEW)
    l2_reg: str = _doc("1024", "regularisation, several with commas")
    policy: str | None = _doc(
        None,
        "preprocessing; null: both sides to 8/7 of the model's, then the "
        "centre (256 and 224), but nothing for images of the model's size",
    )
    every: int | None = _doc(
        None, "steps between evaluations; the end is always evaluated", _COUNT
    )
    every_epochs: float | None = _doc(None, "the same in epochs", _ABOVE_0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.shot_numbers, self.l2_regs  # both raise if they cannot be read
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
DURATIONS = (
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
        if self.train.lora_rank is not None:
            self._check_lora()
        for section, steps, epochs in DURATIONS:
            values = getattr(self, section)
            if None not in (getattr(values, steps), getattr(values, epochs)):
                raise ConfigError(
                    f"Give {section}.{steps} or {section}.{epochs}, not both. "
                    f"Received: {getattr(values, steps)} and "
                    f"{getattr(values, epochs)}. To replace a recipe's, set "
                    "the other to null."
                )

    def _check_lora(self) -> None:
        """Raises ConfigError if the run cannot train LoRA alone."""
        rank = f"train.lora_rank={self.train.lora_rank}"
        if self.train.last_blocks is not None:
            raise ConfigError(
                "train.lora_rank and train.last_blocks both say what trains: "
                f"give one. Received: {rank}, train.last_blocks="
                f"{self.train.last_blocks}"
            )
        if self.init.weights is None:
            raise ConfigError(
                "train.lora_rank changes trained weights a little: name them, "
                f"init.weights=imagenet21k for example. Received: {rank}"
            )


# The sections by name.
SECTIONS: dict[str, Any] = {
    field.name: field.default_factory
    for field in dataclasses.fields(Config)
    if field.name != "recipe"
}
