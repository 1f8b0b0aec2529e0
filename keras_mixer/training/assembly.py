"""A config's model, schedule and optimizer; models of runs and releases."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import psutil

from keras_mixer import data, models, weights as weights_lib
from keras_mixer.engines import optim
from keras_mixer.engines.engine import Engine
from keras_mixer.run import checkpoint, config as config_lib, files
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.run.fields import ModelConfig
from keras_mixer.run.files import WorkdirError
from keras_mixer.run.workdir import read_classes, read_config

# Keras' dtype policy of each model.precision.
_POLICIES = {
    "auto": "float32",
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
}
# (config, classes) -> a model of images in [-1, 1] that returns logits.
BuildModel = Callable[[Config, int], keras.Model]


def dimensions(config: ModelConfig) -> models.Variant:
    """Returns the variant with the dimensions that the config sets.

    Raises:
      ConfigError: The variant is custom, and a dimension is missing.
    """
    fields = [field.name for field in dataclasses.fields(models.Variant)]
    chosen = {
        name: getattr(config, name)
        for name in fields
        if getattr(config, name) is not None
    }
    if config.variant != "custom":
        return dataclasses.replace(models.get_variant(config.variant), **chosen)
    missing = [name for name in fields if name not in chosen]
    if missing:
        raise ConfigError(
            "model.variant=custom needs all five dimensions; missing: "
            + ", ".join(f"model.{name}" for name in missing)
        )
    return models.Variant(**chosen)


def resolve_model(
    config: Config, initial: weights_lib.Parameters | None
) -> Config:
    """Fills in what follows from the initial weights.

    The expansion to a larger image (paper, App. C) sets tokens_mlp_dim, and
    timm's weights set the exact GELU. A run is read back with these.

    Raises:
      ValueError: The weights cannot be fitted to the image size.
    """
    if initial is None:
        return config
    dims = dimensions(config.model)
    rows = config.model.side // dims.patch_size
    fitted = models.fit_variant(
        dims, initial, (rows, rows), config.init.resize_tokens
    )
    model = dataclasses.replace(
        config.model, gelu="exact" if initial.exact_gelu else "tanh"
    )
    if fitted != dims:
        model = dataclasses.replace(model, tokens_mlp_dim=fitted.tokens_mlp_dim)
    return dataclasses.replace(config, model=model)


def check_memory(config: ModelConfig) -> None:
    """Raises ConfigError if the weights alone take all memory.

    The config has an image size.
    """
    dims = dimensions(config)
    tokens = dims.num_tokens(config.side, config.side)
    block = 2 * tokens * dims.tokens_mlp_dim
    block += 2 * dims.hidden_dim * dims.channels_mlp_dim
    stem = 3 * dims.patch_size**2 * dims.hidden_dim
    needed = 4 * (stem + dims.num_blocks * block)  # float32
    memory = psutil.virtual_memory().total
    if needed > memory:
        raise ConfigError(
            f"The weights take {needed / 1e9:,.0f} GB, and this machine has "
            f"{memory / 1e9:,.0f} GB. Make the model smaller: "
            f"model.image_size={config.side}, "
            + ", ".join(
                f"model.{name}={x}"
                for name, x in dataclasses.asdict(dims).items()
            )
        )


def build_mixer(
    config: Config,
    num_classes: int,
    *,
    initial: weights_lib.Parameters | None = None,
) -> keras.Model:
    """Builds the model of a resolved config; it returns logits.

    Args:
      config: The resolved config. Without a run model.precision may still be
        auto; the model then computes in float32.
      num_classes: Width of the head.
      initial: Weights to start from; random by default.

    Raises:
      ValueError: The image size does not fit the patches, or a dimension is
        missing.
    """
    options = config.model
    dims = dimensions(options)
    last = config.train.last_blocks
    if last is not None and last > dims.num_blocks:
        raise ConfigError(
            f"train.last_blocks must be at most {dims.num_blocks}, the blocks "
            f"of the model. Received: {last}"
        )
    model = models.Mixer(
        dims,
        input_shape=(options.side, options.side, 3),
        weights=initial,
        head=config.init.head,
        resize_tokens=config.init.resize_tokens,
        classes=num_classes,
        classifier_activation=None,
        dropout=options.dropout,
        stoch_depth=options.stoch_depth,
        stoch_depth_rescale=options.stoch_depth_rescale,
        gelu_approximate=options.gelu == "tanh",
        head_bias_init=config.train.head_bias_init,
        remat=options.remat,
        dtype=_POLICIES[options.precision],
    )
    if last is not None:
        trained = {"head", *(["pre_head_layer_norm"] if last else [])}
        first = dims.num_blocks - last
        trained |= {f"MixerBlock_{i}" for i in range(first, dims.num_blocks)}
        for layer in model.layers:
            layer.trainable = layer.name in trained
    return model


def _require_trainable_alone(model: keras.Model) -> None:
    """Raises ValueError for a model with state that the step cannot keep.

    The step changes what has a gradient, and nothing else: the moving means of
    BatchNormalization would be assigned inside of the compiled step, by every
    replica on its own.
    """
    others = [v.path for v in model.non_trainable_variables]
    if others:
        raise ValueError(
            f"{model.name!r} has variables that are not trained by gradients, "
            f"and that the training step does not keep: {others[0]} and "
            f"{len(others) - 1} others. Moving means and the seeds of Dropout "
            "are such: take GroupNormalization or LayerNormalization in place "
            "of BatchNormalization, and no Dropout."
        )


class Training(NamedTuple):
    """A model, its optimizer, and the learning rate of each step."""

    model: keras.Model
    optimizer: Any
    schedule: optim.WarmupDecay


def build_training(
    config: Config,
    num_classes: int,
    *,
    initial: weights_lib.Parameters | None = None,
    build_model: BuildModel | None = None,
) -> Training:
    """Builds all that an update of the weights needs.

    Args:
      config: The resolved config.
      num_classes: Width of the head.
      initial: Weights to start from; random by default.
      build_model: Makes another model than a Mixer.
    """
    rank = config.train.lora_rank
    if build_model is None:
        model = build_mixer(config, num_classes, initial=initial)
        if rank is not None:
            models.enable_lora(model, rank)
    else:
        if rank is not None:
            raise ConfigError(
                "train.lora_rank is for Mixers, not for build_model. "
                f"Received: {rank}"
            )
        model = build_model(config, num_classes)
        weights_lib.require_model(model)
        _require_trainable_alone(model)
    schedule = optim.make_schedule(
        config.optim, total_steps=config.train.total_steps
    )
    optimizer = optim.make_optimizer(
        config.optim, schedule=schedule, variables=model.trainable_variables
    )
    return Training(model, optimizer, schedule)


def train_batches(
    config: Config,
    split: data.Split,
    engine: Engine,
    *,
    policy: data.TrainPolicy | None = None,
    start_step: int = 0,
    broken: data.BrokenImages | None = None,
) -> Any:
    """Returns an iterator over batches, for `Engine.make_train_steps`.

    Each host makes the batches of its own replicas, from `start_step` on.
    Without `broken` the first broken image is an error.
    """

    def batches(replicas: int, mine: range) -> Any:
        return data.train_batches(
            split,
            batch_size=config.train.batch_size,
            image_size=config.model.side,
            policy=policy or config.augment.policy,
            seed=config.train.seed,
            start_step=start_step,
            num_shards=replicas,
            shards=mine,
            shuffle_buffer=config.data.shuffle_buffer,
            cache=config.data.cache,
            mixup=config.mixup,
            broken=broken,
        )

    return engine.batches(batches)


def assign(
    variables: Mapping[str, Any], values: Mapping[str, np.ndarray], source: str
) -> None:
    """Sets variables from a checkpoint, each once, after all were checked.

    Raises:
      CheckpointError: Names or shapes differ. Nothing has been set.
    """
    differ = sorted(set(variables) ^ set(values)) or [
        f"{name} {values[name].shape} for {tuple(variable.shape)}"
        for name, variable in variables.items()
        if values[name].shape != tuple(variable.shape)
    ]
    if differ:
        raise checkpoint.CheckpointError(
            f"The checkpoint of {source} is of another model or optimizer: "
            f"{', '.join(differ[:5])}"
        )
    for name, variable in variables.items():
        variable.assign(values[name])


class Trained(NamedTuple):
    """A model (images in [-1, 1] to logits) and what is known about it.

    `class_names` is None if only their number is known, `step` if no run
    trained it. `source` names the workdir and the step, or the file. Weights
    without a head (`has_head`) give one logit, which is 0.
    """

    model: keras.Model
    config: Config
    class_names: tuple[str, ...] | None
    source: str
    step: int | None = None
    has_head: bool = True


def load_trained(
    workdir: str | os.PathLike[str], which: str | int = "latest"
) -> Trained:
    """Loads what a run trained.

    Args:
      workdir: Folder of the run.
      which: "latest", "best" (on its validation split), or a step.

    Raises:
      WorkdirError: The folder is not a workdir.
      WeightsError: It has no such checkpoint, or one that cannot be read.
    """
    config = read_config(workdir)
    workdir = pathlib.Path(files.expand(workdir))
    class_names = read_classes(workdir / "classes.json")
    found = weights_lib.read_workdir(
        workdir, which, exact_gelu=config.model.gelu == "exact"
    )
    model = build_mixer(config, len(class_names))
    weights_lib.load(model, found)
    return Trained(model, config, class_names, found.source, found.step)


def default_eval_policy(side: int) -> str:
    """Returns the preprocessing where nothing says one: 8/7 of the side."""
    return f"resize_small({round(side * 8 / 7)})|central_crop"


def with_eval_policy(
    config: Config,
    preprocessing: weights_lib.Preprocessing | None,
    overrides: Sequence[str],
) -> Config:
    """Returns the config with the preprocessing for weights without a run.

    It is that of their source, if it is known, and otherwise resizes to 8/7 of
    the model's side. `overrides`, which the config contains, may set another.
    """
    if any(text.startswith("augment.") for text in overrides):
        return config
    side = config.model.side
    policy = preprocessing.eval_policy(side) if preprocessing else None
    policy = policy or default_eval_policy(side)
    return config_lib.override(config, [f"augment.eval_policy={policy}"])


def load_weights(
    weights: str, config: Config, overrides: Sequence[str] = ()
) -> Trained:
    """Loads released weights, those of the Hub, or a file.

    What follows from the weights is filled in in the config, their image size
    too if the config has none; for `overrides` see `with_eval_policy`.

    Raises:
      ValueError: There are no such weights, or they do not fit.
    """
    folder = pathlib.Path(files.expand(weights))
    is_folder = weights_lib.is_path(weights) and folder.is_dir()
    if is_folder and not files.is_repository(folder):
        raise WorkdirError(
            f"{weights} is a folder. If it is the workdir of a run, give "
            f"--workdir={weights} in place of --weights and --model."
        )
    found = weights_lib.get(weights, config.model.variant)
    if config.model.image_size is None:
        patch = config.model.patch_size or found.patch_size
        side = int(weights_lib.square_grid(found)[0] * patch)
        config = config_lib.override(config, [f"model.image_size={side}"])
    if found.num_classes is None:
        config = config_lib.override(config, ["init.head=fresh"])
    config = with_eval_policy(config, found.preprocessing, overrides)
    config = resolve_model(config, found)
    model = build_mixer(config, found.num_classes or 1, initial=found)
    has_head = found.num_classes is not None
    return Trained(
        model, config, found.class_names, found.source, has_head=has_head
    )
