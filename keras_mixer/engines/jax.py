"""The engine on JAX: one program over all devices of all hosts.

The state is on every device, and a batch is divided over them. `shard_map`
runs one replica's part on each device, with one sum over the devices. Automatic
partitioning of the same step gathered the whole batch on each of them.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keras_mixer.engines import distribute, parts as parts_lib, step as step_lib
from keras_mixer.engines.engine import (
    Batch,
    Engine,
    MakeBatches,
    TrainSteps,
)
from keras_mixer.engines.peers import Peers
from keras_mixer.run.config import Config

_AXIS = "batch"
_EVERYWHERE = PartitionSpec()
_DIVIDED = PartitionSpec(_AXIS)
# The host prepares the next batch while the devices compute. It is at most so
# many updates ahead, or the batches would fill the devices' memory.
_AHEAD = 2
_LARGE = 1_000_000  # parameters of a model, see `_cpu_options`

Arrays = list[Any]


class JaxEngine(Engine):
    """Trains with Keras' JAX backend.

    Attributes:
      mesh: All devices, those of a host next to one another.
    """

    name = "jax"

    def __init__(self, devices: Sequence[Any] | None = None):
        found = sorted(
            devices or jax.devices(), key=lambda d: (d.process_index, d.id)
        )
        self.mesh = Mesh(np.array(found), (_AXIS,))
        self.replicas = len(found)
        self.hosts = len({d.process_index for d in found})
        self.is_chief = jax.process_index() == 0
        self.is_tpu = found[0].platform == "tpu"
        self.is_gpu = found[0].platform == "gpu"
        mine = [
            i
            for i, d in enumerate(found)
            if d.process_index == jax.process_index()
        ]
        self._mine = range(mine[0], mine[-1] + 1)
        self._devices = found
        self._is_cpu = found[0].platform == "cpu"
        self._peers: Peers | None = None
        if jax.process_count() > 1:  # a topology's hosts are not there
            self._peers = Peers(
                jax.process_index(), self.hosts, _broadcast_first
            )

    def batches(self, make: MakeBatches) -> Iterator[Batch]:
        dataset = distribute.as_written(make)(self.replicas, self._mine)
        if self._is_cpu:
            dataset = distribute.without_autotuning(dataset)
        parts = dataset.as_numpy_iterator()
        while True:
            mine = [part for _, part in zip(self._mine, parts, strict=False)]
            if len(mine) < len(self._mine):
                return
            yield self._place(mine)

    def _place(self, parts: list[dict[str, np.ndarray]]) -> Batch:
        """Starts to copy this host's parts of a batch to its devices."""
        divided = NamedSharding(self.mesh, _DIVIDED)
        placed = {}
        for key, first in parts[0].items():
            arrays = [
                jax.device_put(part[key], self._devices[i])
                for i, part in zip(self._mine, parts, strict=True)
            ]
            shape = (len(first) * self.replicas, *first.shape[1:])
            placed[key] = jax.make_array_from_single_device_arrays(
                shape, divided, arrays
            )
        return placed

    def _replicated(self, variables: Sequence[Any]) -> Arrays:
        """Returns variables' values, which are on all devices from then on."""
        everywhere = NamedSharding(self.mesh, _EVERYWHERE)
        for variable in variables:
            value = variable.value
            if value.sharding != everywhere:
                # A copy: the step overwrites it.
                host = np.array(value)
                variable.assign(
                    jax.make_array_from_callback(
                        host.shape, everywhere, host.__getitem__
                    )
                )
        return [variable.value for variable in variables]

    def _on_replicas(
        self,
        function: Callable[..., Any],
        *,
        arrays: int,
        **options: Any,
    ) -> Any:
        """Compiles a function of arrays everywhere, and of a divided batch.

        The last argument is the batch. What is returned is everywhere.
        """
        return jax.jit(
            jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(*[_EVERYWHERE] * arrays, _DIVIDED),
                out_specs=_EVERYWHERE,
                check_vma=False,
            ),
            **options,
        )

    def make_update(
        self, model: keras.Model, optimizer: Any, config: Config
    ) -> Any:
        """Returns the compiled update of the weights.

        It maps (trainable variables, optimizer's variables, other variables,
        batch) to (trainable variables, optimizer's variables, loss, norm). The
        first two are donated: their memory is that of the result.
        """
        is_large = self._is_cpu and model.count_params() >= _LARGE
        return self._on_replicas(
            make_replica_step(model, optimizer, config, is_tpu=self.is_tpu),
            arrays=3,
            donate_argnums=(0, 1),
            compiler_options=_cpu_options() if is_large else None,
        )

    def make_train_steps(
        self, model: keras.Model, optimizer: Any, config: Config
    ) -> TrainSteps:
        update = self.make_update(model, optimizer, config)
        trainable = model.trainable_variables
        state = optimizer.variables

        def train_steps(
            batches: Any, count: int, stop: bool
        ) -> tuple[np.ndarray, np.ndarray, bool]:
            weights, memory = (
                self._replicated(trainable),
                self._replicated(state),
            )
            others = self._replicated(model.non_trainable_variables)
            losses: Arrays = []
            norms: Arrays = []
            try:
                for i in range(count):
                    batch = next(batches)
                    if i >= _AHEAD:
                        losses[i - _AHEAD].block_until_ready()
                    weights, memory, loss, norm = update(
                        weights, memory, others, batch
                    )
                    losses.append(loss)
                    norms.append(norm)
            finally:  # the variables' own arrays are gone with the first update
                for variable, value in zip(
                    [*trainable, *state], [*weights, *memory], strict=True
                ):
                    variable.assign(value)
            return (
                np.array(losses, np.float32),
                np.array(norms, np.float32),
                self.any_host(stop),
            )

        return train_steps

    def make_sums(
        self,
        model: keras.Model,
        function: Callable[[Batch], Any],
        *,
        size: int,
        xla: bool,
    ) -> Callable[[Any, int], np.ndarray]:
        del xla

        def sums_of(values: Arrays, batch: Batch) -> Any:
            with _with_values(model.variables, values):
                return jax.lax.psum(function(batch), _AXIS)

        compiled = self._on_replicas(sums_of, arrays=1)

        def sums(batches: Any, count: int) -> np.ndarray:
            values = self._replicated(model.variables)
            totals = np.zeros([size], np.float64)
            ahead: Arrays = []
            for _ in range(count):
                ahead.append(compiled(values, next(batches)))
                if len(ahead) > _AHEAD:
                    totals += np.asarray(ahead.pop(0))
            for last in ahead:
                totals += np.asarray(last)
            return totals

        return sums

    def make_rows(
        self,
        model: keras.Model,
        function: Callable[[Batch], Batch],
        *,
        xla: bool,
    ) -> Callable[[Any], dict[str, np.ndarray]]:
        del xla

        def rows_of(values: Arrays, batch: Batch) -> Batch:
            with _with_values(model.variables, values):
                found = function(batch)
            return jax.lax.all_gather(found, _AXIS, tiled=True)

        compiled = self._on_replicas(rows_of, arrays=1)

        def rows(batches: Any) -> dict[str, np.ndarray]:
            values = self._replicated(model.variables)
            return dict(jax.device_get(compiled(values, next(batches))))

        return rows

    def snapshot(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        # Copied now: the next update overwrites the arrays.
        values = jax.device_get([v.value for v in variables.values()])
        return {
            # TensorFlow counts updates in int64, which JAX does not have.
            name: np.array(x, np.int64 if x.dtype.kind == "i" else x.dtype)
            for name, x in zip(variables, values, strict=True)
        }

    def sum_over_hosts(self, value: float) -> float:
        if self.is_alone:
            return float(value)
        from jax.experimental import multihost_utils

        # JAX has no float64: the bits travel as two words.
        words = np.frombuffer(np.float64(value).tobytes(), np.uint32)
        every = np.asarray(multihost_utils.process_allgather(words))
        return float(every.astype(np.uint32).view(np.float64).sum())

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if self._peers is None:
                raise
            raise self._peers.failed(error) from error

    def part(self) -> None:
        super().part()
        if self._peers is not None:
            self._peers.part()

    def describe(self) -> str:
        noun = "replicas" if self.replicas > 1 else "replica"
        kind = self._devices[0].device_kind
        where = f", {self.hosts} hosts" if self.hosts > 1 else ""
        return f"JAX, {self.replicas} {noun} on {kind.upper()}{where}"


@functools.cache
def _cpu_options() -> dict[str, str] | None:
    """Returns XLA's options to train large models on CPUs, if it has them.

    YNNPACK trains S/32 a sixth faster than Eigen, XLA's default in jaxlib 0.10,
    and the digits' model a quarter slower. Its inference is slower, too: XLA
    gives it the numbers in GELU as tensors (docs/benchmarks.md).
    """
    options = {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"
    }
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(1.0)
    except jax.errors.JaxRuntimeError:  # no such option
        return None
    return options


def _broadcast_first(values: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    every = multihost_utils.process_allgather(values.astype(np.int32))
    return np.asarray(every)[0]


def make_replica_step(
    model: keras.Model, optimizer: Any, config: Config, *, is_tpu: bool
) -> Callable[..., tuple[Arrays, Arrays, Any, Any]]:
    """Returns one update, as a replica runs it inside of `shard_map`."""
    loss_of = step_lib.make_loss(model, config)

    def loss_of_weights(
        weights: Arrays, others: Arrays, batch: Batch, step: Any
    ) -> Any:
        variables = [
            *model.trainable_variables,
            *model.non_trainable_variables,
        ]
        with _with_values(variables, [*weights, *others]):
            return loss_of(batch, step)

    loss_and_gradients = jax.value_and_grad(loss_of_weights)
    places = [v.path for v in optimizer.variables]
    iterations = places.index(optimizer.iterations.path)

    def replica_step(
        weights: Arrays, memory: Arrays, others: Arrays, batch: Batch
    ) -> tuple[Arrays, Arrays, Any, Any]:
        batch = step_lib.split_partners(batch)
        parts = config.train.accumulate
        if is_tpu:
            parts = parts_lib.count_parts(model, len(batch["label"]), parts)
        compute = _in_parts(loss_and_gradients, parts)
        found = compute(weights, others, batch, memory[iterations])
        loss, gradients = jax.lax.psum(found, _AXIS)
        gradients, norm = step_lib.clip(gradients, config.optim.clip_norm)
        weights, memory = optimizer.stateless_apply(memory, gradients, weights)
        return weights, memory, loss, norm

    return replica_step


def _in_parts(function: Callable[..., Any], parts: int) -> Any:
    """Computes loss and gradients in parts, one after another, and sums them.

    Only the activations of one part are in memory at a time.
    """
    if parts == 1:
        return function

    def in_parts(
        weights: Arrays, others: Arrays, batch: Batch, step: Any
    ) -> tuple[Any, Arrays]:
        def add(sums: Any, part: Batch) -> tuple[Any, None]:
            # The TPU compiler would copy the images into another layout after
            # their conversion to float32.
            part = jax.lax.optimization_barrier(part)
            found = function(weights, others, part, step)
            return jax.tree.map(jax.numpy.add, sums, found), None

        zeros = jax.numpy.zeros([]), [jax.numpy.zeros_like(w) for w in weights]
        cut = step_lib.split_into_parts(batch, parts)
        return jax.lax.scan(add, zeros, cut)[0]

    return in_parts


def _with_values(variables: Sequence[Any], values: Arrays) -> Any:
    """Returns the context in which Keras' variables have these values."""
    return keras.StatelessScope(
        state_mapping=list(zip(variables, values, strict=True))
    )
