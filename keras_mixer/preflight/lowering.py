"""The trainer's own step as a program that a compiler can read."""

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

# Training examples and classes of what recipes name, so that no data set has
# to be there. Sources: the catalogue of TensorFlow Datasets; image-net.org
# (ImageNet-21k, fall 2011); Sun et al. 2017, arXiv 1707.02968 (JFT-300M).
_KNOWN = {
    "digits": (1437, 10),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "imagenet2012": (1_281_167, 1000),
    "oxford_iiit_pet": (3680, 37),
    "oxford_flowers102": (1020, 102),
    "imagenet21k": (14_197_122, 21_841),
    "jft": (300_000_000, 18_291),
}
_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}


@dataclasses.dataclass(frozen=True)
class Run:
    """A resolved config, and what it was resolved with.

    Attributes:
      config: With durations in steps and the image size.
      num_classes: Width of the head.
      num_examples: Of the training split; None if nobody knows, and the
        length of the run is then unknown, too.
    """

    config: Config
    num_classes: int
    num_examples: int | None


def _examples_of(split: str, whole: int | None) -> int | None:
    """Returns how many examples a split expression takes of a whole split.

    None if that cannot be told from the expression.
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
) -> Run:
    """Resolves a config without its data set.

    Args:
      config: Of a recipe.
      classes: Width of the head; by default that of the data set.
      examples: Of the training split; by default those of the data set.

    Raises:
      ConfigError: The data set is none that is known here, and something has
        to be said about it.
      ValueError: There is no such variant.
    """
    if config.model.variant != "custom":
        models.get_variant(config.model.variant)
    name = config.data.name.partition(":")[0]
    if not name:
        name = "jft" if config.recipe.startswith("jft") else "imagenet21k"
    known_examples, known_classes = _KNOWN.get(name, (None, None))
    known_examples = _examples_of(config.data.train_split, known_examples)
    classes = classes or known_classes
    if classes is None:
        raise ConfigError(
            f"Preflight does not open data sets, and does not know "
            f"data.name={config.data.name}: --classes=<number>. Known: "
            f"{', '.join(_KNOWN)}"
        )
    examples = examples or known_examples
    length = config
    if examples is None and config.train.steps is None:
        # The length of the run changes nothing but its days.
        length = config_lib.override(config, ["train.steps=100000"])
    resolved = config_lib.resolve(length, num_examples=examples or 1)
    if resolved.model.image_size is None:
        side = _SIZES.get(name)
        if side is None:
            raise ConfigError(
                "Preflight does not open data sets: choose the side of the "
                "images, model.image_size=224"
            )
        resolved = config_lib.override(resolved, [f"model.image_size={side}"])
    unknown = length is not config
    return Run(resolved, classes, None if unknown else examples)


def split_batch(config: Config, devices: int) -> int:
    """Returns a device's part of the batch.

    Raises:
      ConfigError: It is no whole number, or does not divide into the parts of
        train.accumulate.
    """
    batch, parts = config.train.batch_size, config.train.accumulate
    if batch % (devices * parts):
        low = batch // (devices * parts) * devices * parts
        raise ConfigError(
            f"A batch of {batch} does not divide into {devices} devices"
            + (f" x {parts} parts (train.accumulate)" if parts > 1 else "")
            + f". Nearest: {low or devices * parts} and "
            f"{low + devices * parts}"
        )
    return batch // devices


@dataclasses.dataclass(frozen=True)
class Step:
    """One update of one replica, to be compiled.

    Attributes:
      text: The HLO module, before any optimisation.
      parameters: Weights that are trained.
      weights_bytes: Of all weights.
      optimizer_bytes: Of the optimizer's state.
      gradient_bytes: What the replicas sum.
    """

    text: str
    parameters: int
    weights_bytes: int
    optimizer_bytes: int
    gradient_bytes: int


def _bytes_of(variables: Any) -> int:
    return int(
        sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)
    )


def lower_train_step(run: Run, *, size: int) -> Step:
    """Lowers one update of one replica.

    It is the function that `trainer.fit` gives to each replica: mixup,
    forward and backward pass, clipping, optimizer. The sum over the replicas
    is that of one.

    Args:
      run: What to train.
      size: Examples of the replica.
    """
    config = run.config
    assert config.model.image_size is not None
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model, optimizer, _ = assembly.build_training(config, run.num_classes)
    spec = data.train_batch_spec(
        config.augment.policy,
        size=size,
        image_size=config.model.image_size,
        num_classes=run.num_classes,
        mixup=config.mixup,
    )
    # A TPU compiles all of it, so nothing inside asks for that once more.
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


def lower_apart(run: Run, *, size: int) -> Step:
    """Calls `lower_train_step` in a process of its own.

    It takes the weights and the optimizer along when it ends, 5 GB for H/14,
    which TensorFlow would keep while the next batch is tried.

    Raises:
      ConfigError: The process was killed, as for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            return pool.submit(lower_train_step, run, size=size).result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise ConfigError(
            "The process that traces the step was killed. It needs some 16 "
            "bytes for each parameter of the model; is there memory enough?"
        ) from error
