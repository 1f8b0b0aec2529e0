"""The trainer's own step, as a program that a compiler can read."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from keras_mixer import data, models
from keras_mixer.engines import choice, parts, precision
from keras_mixer.engines.jax import JaxEngine
from keras_mixer.run import config as config_lib
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.training import assembly

# Training examples, classes and side of the images (None: they differ) of the
# recipes' data sets, so that no data set has to be here. Sources: the catalogue
# of TensorFlow Datasets; image-net.org (ImageNet-21k, fall 2011); Sun et al.
# 2017, arXiv 1707.02968 (JFT-300M).
_KNOWN = {
    "digits": (1437, 10, 8),
    "cifar10": (50_000, 10, 32),
    "cifar100": (50_000, 100, 32),
    "imagenet2012": (1_281_167, 1000, None),
    "oxford_iiit_pet": (3680, 37, None),
    "oxford_flowers102": (1020, 102, None),
    "imagenet21k": (14_197_122, 21_841, None),
    "jft": (300_000_000, 18_291, None),
    "photos": (1000, 2, None),  # of yours: the least that a recipe can have
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What preflight examines: a config that was resolved without its data."""

    config: Config  # with durations in steps, and an image size
    num_classes: int
    # Of the training split; None if unknown, and with it the run's length.
    num_examples: int | None


def _examples_of(split: str, whole: int | None) -> int | None:
    """Returns how many examples of a whole split a split expression takes.

    None if the expression does not tell.
    """
    found = re.fullmatch(r"\w+(?:\[(\d+%?)?:(\d+%?)?\])?", split)
    if whole is None or found is None:
        return None
    ends = [
        round(whole * int(end[:-1]) / 100) if end.endswith("%") else int(end)
        for end in (found[1] or "0", found[2] or "100%")
    ]
    return max(min(ends[1], whole) - ends[0], 0)


def resolve(
    config: Config, *, classes: int | None, examples: int | None
) -> Subject:
    """Resolves a config without its data set.

    `classes`, the width of the head, and `examples`, the size of the training
    split, are by default those of the data set.

    Raises:
      ConfigError: The data set is unknown here, and `classes` or the image
        size is missing.
      ValueError: There is no such variant.
    """
    if config.model.variant != "custom":
        models.get_variant(config.model.variant)
    name = config.data.name.partition(":")[0]
    if not name:
        name = "jft" if config.recipe.startswith("jft") else "imagenet21k"
        if config.recipe.endswith("photos"):
            name = "photos"
    whole, known_classes, side = _KNOWN.get(name, (None, None, None))
    classes = classes or known_classes
    if classes is None:
        raise ConfigError(
            "Preflight does not open data sets, and does not know "
            f"data.name={config.data.name}: give --classes=<number>. Known: "
            f"{', '.join(_KNOWN)}"
        )
    examples = examples or _examples_of(config.data.train_split, whole)
    if examples is None and config.train.steps is None:
        # The length of the run changes nothing but the days that it takes.
        config = config_lib.override(config, ["train.steps=100000"])
    resolved = config_lib.resolve(config, num_examples=examples or 1)
    if resolved.model.image_size is None:
        if side is None:
            raise ConfigError(
                "Preflight does not open data sets: give the side of the "
                "images, model.image_size=224"
            )
        resolved = config_lib.override(resolved, [f"model.image_size={side}"])
    if resolved.model.precision == "auto":
        on_tpus = precision.best_precision(is_tpu=True, gpus=None).name
        resolved = config_lib.override(resolved, [f"model.precision={on_tpus}"])
    return Subject(resolved, classes, examples)


def split_batch(config: Config, devices: int) -> int:
    """Returns the number of examples of a batch that each device gets.

    Raises:
      ConfigError: The batch does not divide into the devices and, on each,
        into the parts of train.accumulate.
    """
    batch, parts = config.train.batch_size, config.train.accumulate
    unit = devices * parts
    if batch % unit:
        low = batch // unit * unit
        raise ConfigError(
            f"A batch of {batch} does not divide into {devices} devices"
            + (f" x {parts} parts (train.accumulate)" if parts > 1 else "")
            + f". Nearest: {low or unit} and {low + unit}"
        )
    return batch // devices


@dataclasses.dataclass(frozen=True)
class Step:
    """One update of the weights, ready to be compiled."""

    lowered: Any  # jax.stages.Lowered
    parameters: int  # number of the weights that are trained
    weights_bytes: int  # of all weights
    optimizer_bytes: int
    gradient_bytes: int  # what the replicas sum
    parts: int  # in which a device computes its share of a batch


def _bytes_of(variables: Sequence[Any]) -> int:
    return sum(
        math.prod(v.shape) * jnp.dtype(v.dtype).itemsize for v in variables
    )


def _build(subject: Subject) -> assembly.Training:
    """Builds model and optimizer without memory for the optimizer's state.

    The variables have a shape and no value.
    """
    built: list[assembly.Training] = []

    def build() -> None:
        built.append(
            assembly.build_training(subject.config, subject.num_classes)
        )

    jax.eval_shape(build)
    return built[0]


def lower_train_step(subject: Subject, devices: Sequence[Any]) -> Step:
    """Lowers the update that the JAX engine makes on these devices.

    No array is put on a device.

    Raises:
      ConfigError: The batch does not divide into the devices.
      EngineError: Keras runs on another backend than JAX.
    """
    choice.use_engine(choice.Choice("jax", "preflight"))
    config = subject.config
    engine = JaxEngine(devices)
    size = split_batch(config, engine.replicas)
    spec = data.train_batch_spec(
        config.augment.policy,
        size=size,
        image_size=config.model.side,
        num_classes=subject.num_classes,
        mixup=config.mixup,
    )
    everywhere = NamedSharding(engine.mesh, PartitionSpec())
    divided = NamedSharding(engine.mesh, PartitionSpec(*engine.mesh.axis_names))

    def state_of(variables: Sequence[Any]) -> list[Any]:
        return [
            jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=everywhere)
            for v in variables
        ]

    batch = {
        key: jax.ShapeDtypeStruct(
            (engine.replicas * part.shape[0], *part.shape[1:]),
            part.dtype.as_numpy_dtype,
            sharding=divided,
        )
        for key, part in spec.items()
    }
    model, optimizer, _ = _build(subject)
    trained = model.trainable_variables
    update = engine.make_update(model, optimizer, config)
    return Step(
        lowered=update.lower(
            state_of(trained),
            state_of(optimizer.variables),
            state_of(model.non_trainable_variables),
            batch,
        ),
        parameters=sum(math.prod(v.shape) for v in trained),
        weights_bytes=_bytes_of(model.weights),
        optimizer_bytes=_bytes_of(optimizer.variables),
        gradient_bytes=_bytes_of(trained),
        parts=parts.count_parts(model, size, config.train.accumulate),
    )
