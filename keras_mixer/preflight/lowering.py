"""The trainer's own step, as a program that a compiler can read."""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import math
import multiprocessing
import re
from typing import Any

import tensorflow as tf

from keras_mixer import data, models
from keras_mixer.engines import step as step_lib
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
    """One update of one replica, ready to be compiled."""

    text: str  # the HLO module, before any optimisation
    parameters: int  # number of the weights that are trained
    weights_bytes: int  # of all weights
    optimizer_bytes: int
    gradient_bytes: int  # what the replicas sum


def _bytes_of(variables: Any) -> int:
    return int(
        sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)
    )


def lower_train_step(subject: Subject, *, size: int) -> Step:
    """Lowers one update of one replica of `size` examples.

    It is the function that the trainer gives to each replica: mixup, forward
    and backward pass, clipping, optimizer. The sum over the replicas is the
    sum over one.
    """
    config = subject.config
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model, optimizer, _ = assembly.build_training(
            config, subject.num_classes
        )
    spec = data.train_batch_spec(
        config.augment.policy,
        size=size,
        image_size=config.model.side,
        num_classes=subject.num_classes,
        mixup=config.mixup,
    )
    # xla=False: `program` compiles all of the step already.
    replica_step = step_lib.make_replica_step(
        model, optimizer, config, xla=False
    )

    @tf.function(jit_compile=True)
    def program(*values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return replica_step(dict(zip(spec, values, strict=True)))

    text = program.experimental_get_compiler_ir(*spec.values())(stage="hlo")
    trained = model.trainable_variables
    return Step(
        text=text,
        parameters=sum(math.prod(v.shape) for v in trained),
        weights_bytes=_bytes_of(model.weights),
        optimizer_bytes=_bytes_of(optimizer.variables),
        gradient_bytes=_bytes_of(trained),
    )


def lower_apart(subject: Subject, *, size: int) -> Step:
    """Calls `lower_train_step` in a process of its own.

    The end of the process frees the weights and the optimizer, 5 GB for H/14,
    which TensorFlow would keep while the next batch is tried.

    Raises:
      ConfigError: The process was killed, for example for lack of memory.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            return pool.submit(lower_train_step, subject, size=size).result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise ConfigError(
            "The process that traces the step was killed. Make sure that "
            "about 16 bytes of memory are free per parameter of the model."
        ) from error
