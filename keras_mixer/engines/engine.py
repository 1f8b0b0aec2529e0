"""What the loop, the evaluations and the analyses ask of an engine."""

import abc
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import psutil
import tensorflow as tf

from keras_mixer.engines import cpus, gpus, precision as precision_lib
from keras_mixer.engines.choice import Choice
from keras_mixer.engines.hosts import EngineError
from keras_mixer.run import suggest
from keras_mixer.run.config import Config

# Tensors by name, each with one row per example.
Batch = dict[str, Any]
# (batches, how many, whether this process wants to stop) -> losses and
# gradient norms, each float32 [how many], and whether any process wants to.
TrainSteps = Callable[[Any, int, bool], tuple[np.ndarray, np.ndarray, bool]]
# (replicas of all hosts, those of this host) -> its batches, one for each of
# its replicas in turn.
MakeBatches = Callable[[int, range], Any]


class Engine(abc.ABC):
    """Where the arithmetic happens: a backend of Keras on some devices.

    A replica is a device with a copy of the weights and a part of every batch.
    A host is a process with some of the replicas. What an engine computes does
    not depend on the number of either.

    Attributes:
      name: "tensorflow" or "jax".
      replicas: Of all hosts.
      hosts: Number of processes.
      is_chief: Whether this process writes files: the first host, or alone.
      is_tpu: Whether the replicas are TPU cores.
      is_gpu: Whether they are GPUs.
    """

    name: str
    replicas: int
    hosts: int
    is_chief: bool
    is_tpu: bool
    is_gpu: bool

    @property
    def is_alone(self) -> bool:
        """Whether no other process takes part."""
        return self.hosts == 1

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which models and optimizers are made."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def batches(self, make: MakeBatches) -> Any:
        """Returns an iterator over batches on the devices.

        `make` returns this host's input pipeline (tf.data).
        """

    @abc.abstractmethod
    def make_train_steps(
        self, model: keras.Model, optimizer: Any, config: Config
    ) -> TrainSteps:
        """Returns the function that makes several updates.

        Its batches are those of `data.train_batches`.
        """

    @abc.abstractmethod
    def make_sums(
        self,
        model: keras.Model,
        function: Callable[[Batch], Any],
        *,
        size: int,
        xla: bool,
    ) -> Callable[[Any, int], np.ndarray]:
        """Returns a function that adds up numbers over batches.

        Args:
          model: Whose weights `function` reads.
          function: Maps a replica's batch to float32 `[size]`. It is traced
            once.
          size: How many numbers.
          xla: Whether XLA may compile it; JAX always does.

        Returns:
          A function of (batches, how many) that returns the sums over all
          replicas and batches, float64
          `[size]`.
        """

    @abc.abstractmethod
    def make_rows(
        self,
        model: keras.Model,
        function: Callable[[Batch], Batch],
        *,
        xla: bool,
    ) -> Callable[[Any], dict[str, np.ndarray]]:
        """Returns a function that computes something of each example.

        `function` maps a replica's batch to tensors with one row per example,
        otherwise as in `make_sums`. The returned function takes the batches
        and returns the rows of the next one, of all replicas.
        """

    @abc.abstractmethod
    def snapshot(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of variables, which later updates do not change.

        It is fast: `np.asarray` of a value may wait for the device.
        """

    @abc.abstractmethod
    def sum_over_hosts(self, value: float) -> float:
        """Returns the sum of every host's value, in float64.

        Every host must call it; they wait for one another.
        """

    def any_host(self, value: bool) -> bool:
        """Whether the value of any host is true; every host must call it."""
        return value if self.is_alone else self.sum_over_hosts(value) > 0

    def part(self) -> None:
        """Waits for the other hosts, which may end from then on."""
        self.sum_over_hosts(0)

    @abc.abstractmethod
    def watch(self) -> contextlib.AbstractContextManager[None]:
        """Turns the failure of another host into a WorkerLostError."""

    def best_precision(self) -> Choice:
        """Returns what `model.precision=auto` means on the devices."""
        return precision_lib.best_precision(
            is_tpu=self.is_tpu,
            gpus=gpus.read_gpus() if self.is_gpu else None,
        )

    def check_precision(self, precision: str) -> None:
        """Prints if a precision is slow on the devices.

        Raises:
          EngineError: The engine is known to fail on them.
        """
        if self.is_gpu:
            gpus.refuse_bad_gpus(
                gpus.read_gpus(),
                engine=self.name,
                tensorflow_version=tf.__version__,
                precision=precision,
            )
        elif precision == "bfloat16" and not self.is_tpu:
            cpus.warn_of_bfloat16(cpus.read_flags())

    @abc.abstractmethod
    def describe(self) -> str:
        """Returns for example "JAX, 8 replicas on TPU v5 lite, 2 hosts"."""


def check_backend(engine: Engine) -> None:
    """Raises EngineError if Keras runs on another backend."""
    wanted = "an Engine, which engines.make.make_engine returns"
    suggest.check_type("engine", engine, Engine, wanted)
    backend = keras.backend.backend()
    if backend != engine.name:
        raise EngineError(
            f"The engine is {engine.name}, and Keras runs on {backend!r} (from "
            "KERAS_BACKEND or ~/.keras/keras.json). Set KERAS_BACKEND="
            f"{engine.name} before Keras is imported."
        )


def check_batch_size(
    batch_size: int, replicas: int, accumulate: int = 1
) -> None:
    """Raises EngineError unless all replicas get equal shares.

    Each replica computes its share of the global batch in `accumulate` parts.
    """
    unit = replicas * accumulate
    if batch_size % unit:
        low = batch_size // unit * unit
        sizes = [str(s) for s in (low, low + unit) if s]
        parts = f" in {accumulate} parts each" if accumulate > 1 else ""
        noun = "sizes are" if len(sizes) > 1 else "size is"
        raise EngineError(
            f"train.batch_size={batch_size} does not divide over {replicas} "
            f"replicas{parts}; the nearest {noun} {' and '.join(sizes)}."
        )


def check_batch_memory(
    batch_size: int, image_size: int, hosts: int, memory: int | None = None
) -> None:
    """Raises EngineError if the images of a batch alone take all memory.

    Args:
      batch_size: Images per update, over all hosts.
      image_size: Their side, in pixels.
      hosts: How many share the batch equally.
      memory: Bytes of this host; by default what it has.
    """
    if memory is None:
        memory = psutil.virtual_memory().total
    each = image_size**2 * 3 * 4  # float32
    needed, largest = batch_size * each // hosts, memory // each * hosts
    if needed > memory:
        way_out = f"Take a smaller one, far below {largest:,}."
        if not largest:
            way_out = "Take smaller images, model.image_size=224."
        raise EngineError(
            f"train.batch_size={batch_size}: its images of {image_size} pixels "
            f"take {needed / 1e9:,.0f} GB, and this machine has "
            f"{memory / 1e9:,.0f} GB. {way_out}"
        )
