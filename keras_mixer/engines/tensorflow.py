"""The engine on TensorFlow: a `tf.distribute` strategy."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mixer.engines import distribute, step as step_lib
from keras_mixer.engines.engine import (
    Batch,
    Engine,
    MakeBatches,
    TrainSteps,
)
from keras_mixer.engines.hosts import WorkerLostError, lost_worker
from keras_mixer.run.config import Config

# (part of a batch, step) -> its share of the mean loss and of its gradients.
GradientFn = Callable[[Batch, tf.Tensor], tuple[tf.Tensor, list[tf.Tensor]]]

_TASK = re.compile(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)")


class TensorFlowEngine(Engine):
    """Trains with Keras' TensorFlow backend on the devices of a strategy.

    Attributes:
      strategy: See `distribute.make_strategy`.
    """

    name = "tensorflow"

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        self.hosts = distribute.num_workers(strategy)
        self.is_chief = distribute.is_chief(strategy)
        self.is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        devices = strategy.extended.worker_devices
        self.is_gpu = any("GPU" in device.upper() for device in devices)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self.strategy.scope()

    def batches(self, make: MakeBatches) -> Any:
        make = distribute.as_written(make)

        def of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
            replicas = context.num_replicas_in_sync
            local = replicas // context.num_input_pipelines
            first = context.input_pipeline_id * local
            return make(replicas, range(first, first + local))

        return distribute.distribute_batches(self.strategy, of_host)

    def make_train_steps(
        self, model: keras.Model, optimizer: Any, config: Config
    ) -> TrainSteps:
        traced = self.trace_train_steps(model, optimizer, config)

        def train_steps(
            batches: Any, count: int, stop: bool
        ) -> tuple[np.ndarray, np.ndarray, bool]:
            losses, norms, stops = traced(
                batches, tf.constant(count), tf.constant(stop)
            )
            return losses.numpy(), norms.numpy(), bool(stops.numpy())

        return train_steps

    def trace_train_steps(
        self, model: keras.Model, optimizer: Any, config: Config
    ) -> Any:
        """Returns the traced function that makes several updates."""
        strategy = self.strategy
        # A TPU compiles the whole update, whatever train.xla says.
        xla = config.train.xla and not self.is_tpu
        replica_step = make_replica_step(model, optimizer, config, xla=xla)
        # XLA refuses the collective of several CPUs or GPUs. With one replica
        # there is none, and the whole update is compiled.
        step_fn = self._compile(replica_step, xla)

        @tf.function
        def train_steps(
            iterator: Any, count: tf.Tensor, stop: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            losses = tf.TensorArray(tf.float32, size=count)
            norms = tf.TensorArray(tf.float32, size=count)
            for i in tf.range(count):
                loss, norm = strategy.run(step_fn, args=(next(iterator),))
                loss = strategy.reduce("SUM", loss, axis=None)
                losses = losses.write(i, loss)
                # The same number on every replica: the norm of the sum.
                norm = strategy.reduce("MEAN", norm, axis=None)
                norms = norms.write(i, norm)
            stops = strategy.run(lambda: tf.cast(stop, tf.float32))
            stops = strategy.reduce("SUM", stops, axis=None)
            return losses.stack(), norms.stack(), stops

        return train_steps

    def _compile(
        self, function: Callable[..., Any], xla: bool
    ) -> Callable[..., Any]:
        """Compiles what a replica does with XLA, if there is one replica."""
        # On several CPUs XLA looks for the second replica's weights on the
        # first.
        return maybe_compile(function, xla and self.replicas == 1)

    def make_sums(
        self,
        model: keras.Model,
        function: Callable[[Batch], Any],
        *,
        size: int,
        xla: bool,
    ) -> Callable[[Any, int], np.ndarray]:
        del model  # `function` reads its variables
        strategy = self.strategy
        replica_fn = self._compile(function, xla)

        @tf.function
        def traced(iterator: Any, count: tf.Tensor) -> tf.Tensor:
            totals = tf.zeros([size], tf.float64)
            for _ in tf.range(count):
                sums = strategy.run(replica_fn, args=(next(iterator),))
                # The counts of a batch are exact in float32, below 2**24.
                sums = strategy.reduce("SUM", sums, axis=None)
                totals += tf.cast(sums, tf.float64)
            return totals

        return lambda batches, count: traced(
            batches, tf.constant(count)
        ).numpy()

    def make_rows(
        self,
        model: keras.Model,
        function: Callable[[Batch], Batch],
        *,
        xla: bool,
    ) -> Callable[[Any], dict[str, np.ndarray]]:
        del model  # `function` reads its variables
        strategy = self.strategy
        replica_fn = self._compile(function, xla)

        def rows_of_next(iterator: Any) -> Batch:
            found = strategy.run(replica_fn, args=(next(iterator),))
            return {
                key: strategy.gather(value, axis=0)
                for key, value in found.items()
            }

        # A partial is new to TensorFlow each time. Without it, the first calls
        # of several such functions look like one function that is traced again
        # and again, and TensorFlow warns.
        traced = tf.function(functools.partial(rows_of_next), autograph=False)
        return lambda batches: {
            key: value.numpy() for key, value in traced(batches).items()
        }

    def snapshot(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        # TensorFlow copies a tensor when it next changes the variable.
        return {name: _value(v) for name, v in variables.items()}

    def sum_over_hosts(self, value: float) -> float:
        total = distribute.sum_over_replicas(self.strategy, value)
        return total / (self.replicas / self.hosts)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """See `Engine.watch`.

        TensorFlow's coordination service notices a closed connection at once,
        and a silent host after some missed heartbeats. It then ends the
        collectives of all other workers.
        """
        try:
            yield
        except tf.errors.OpError as error:
            message = str(error)
            lost = "Collective ops is aborted" in message or isinstance(
                error, tf.errors.UnavailableError
            )
            if self.is_alone or not lost:
                raise
            raise _lost_worker(self.strategy, message) from error

    def describe(self) -> str:
        return distribute.describe(self.strategy)


def maybe_compile(
    function: Callable[..., Any], xla: bool
) -> Callable[..., Any]:
    """Compiles a function with XLA if `xla` and this TensorFlow has XLA."""
    function = distribute.as_written(function)
    if not (xla and distribute.compiles()):
        return function
    return tf.function(function, jit_compile=True)


def make_gradients(model: keras.Model, config: Config) -> GradientFn:
    """Returns the forward and backward pass of what `split_partners` makes."""
    loss_of = step_lib.make_loss(model, config)

    def loss_and_gradients(
        batch: Batch, step: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss = loss_of(batch, step)
        return loss, tape.gradient(loss, model.trainable_variables)

    return loss_and_gradients


def accumulated(
    function: GradientFn, parts: int, variables: list[Any]
) -> GradientFn:
    """Computes loss and gradients in parts, one after another, and sums them.

    Only the activations of one part are in memory at a time.
    """
    if parts == 1:
        return function

    def in_parts(
        batch: Batch, step: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        cut = step_lib.split_into_parts(batch, parts)
        sums = [tf.zeros(v.shape, tf.float32) for v in variables]
        total = tf.zeros([], tf.float32)

        def add(i: tf.Tensor, total: tf.Tensor, sums: Any) -> Any:
            loss, gradients = function({k: x[i] for k, x in cut.items()}, step)
            sums = [a + b for a, b in zip(sums, gradients, strict=True)]
            return i + 1, total + loss, sums

        _, total, sums = tf.while_loop(
            lambda i, *_: i < parts,
            add,
            (tf.constant(0), total, sums),
            parallel_iterations=1,
        )
        return total, sums

    return in_parts


def apply_gradients(
    gradients: list[tf.Tensor],
    variables: list[Any],
    optimizer: Any,
    *,
    clip_norm: float | None,
) -> tf.Tensor:
    """Updates the variables by the gradients of all replicas, summed once.

    Returns:
      The norm of the sum, before clipping.
    """
    context = tf.distribute.get_replica_context()
    gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    gradients, norm = step_lib.clip(gradients, clip_norm)
    optimizer.apply(gradients, variables)
    return norm


def make_replica_step(
    model: keras.Model, optimizer: Any, config: Config, *, xla: bool
) -> Callable[[Batch], tuple[tf.Tensor, tf.Tensor]]:
    """Returns one update, as a replica runs it.

    Its argument is the replica's part of a batch from `data.train_batches`. It
    returns the part's share of the loss and the norm of the summed gradients.
    `xla` compiles the forward and backward pass on their own.
    """
    gradient_fn = accumulated(
        maybe_compile(make_gradients(model, config), xla),
        config.train.accumulate,
        model.trainable_variables,
    )

    def replica_step(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        step = tf.convert_to_tensor(optimizer.iterations)
        loss, gradients = gradient_fn(step_lib.split_partners(batch), step)
        norm = apply_gradients(
            gradients,
            model.trainable_variables,
            optimizer,
            clip_norm=config.optim.clip_norm,
        )
        return loss, norm

    return replica_step


def _value(variable: Any) -> Any:
    """Returns a variable's value, which later updates leave as it is."""
    value = getattr(variable, "value", variable)
    components = getattr(value, "values", None)  # one of them per replica
    return (components[0] if components else value).read_value()


def _lost_worker(
    strategy: tf.distribute.Strategy, message: str
) -> WorkerLostError:
    """Returns the error that names the workers of a failed collective."""
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict()
    own = (resolver.task_type, resolver.task_id)
    named = sorted(
        {(kind, int(task)) for kind, task in _TASK.findall(message)} - {own}
    )
    who = ", ".join(
        f"{kind} {task} ({cluster[kind][task]})"
        for kind, task in named
        if task < len(cluster.get(kind, []))
    )
    return lost_worker(who or "Another worker", f"{own[0]} {own[1]}")
