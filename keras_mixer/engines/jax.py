"""The engine on JAX: one program over all devices of all hosts.

The state is on every device, and a batch is divided over them. `shard_map`
runs one replica's part on each device, with one sum over the devices. Automatic
partitioning of the same step gathered the whole batch on each of them.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import keras
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keras_mixer.engines import distribute, gpus, hosts, step as step_lib
from keras_mixer.engines.engine import (
    Batch,
    Engine,
    MakeBatches,
    TrainSteps,
)
from keras_mixer.engines.hosts import EngineError
from keras_mixer.engines.peers import Peers
from keras_mixer.run.config import Config

_AXIS = "batch"
_EVERYWHERE = PartitionSpec()
_DIVIDED = PartitionSpec(_AXIS)
# The host prepares the next batch while the devices compute. It is at most so
# many updates ahead, or the batches would fill the devices' memory.
_AHEAD = 2
# A host that is silent for so long is lost. A closed connection is noticed at
# once.
_HEARTBEAT_SECONDS = 30

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
        mine = [
            i
            for i, d in enumerate(found)
            if d.process_index == jax.process_index()
        ]
        self._mine = range(mine[0], mine[-1] + 1)
        self._devices = found
        self._peers: Peers | None = None
        if self.hosts > 1:
            self._peers = Peers(
                jax.process_index(), self.hosts, _broadcast_first
            )

    def batches(self, make: MakeBatches) -> Iterator[Batch]:
        dataset = make(self.replicas, self._mine)
        if self._devices[0].platform == "cpu":
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
                        host.shape, everywhere, lambda index, x=host: x[index]
                    )
                )
        return [variable.value for variable in variables]

    def _on_replicas(
        self, function: Callable[..., Any], *, batches: int, **options: Any
    ) -> Any:
        """Compiles a function of arrays everywhere, and of a divided batch.

        The last argument is the batch. What is returned is everywhere.
        """
        return jax.jit(
            jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(*[_EVERYWHERE] * batches, _DIVIDED),
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
        return self._on_replicas(
            make_replica_step(model, optimizer, config),
            batches=3,
            donate_argnums=(0, 1),
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

        compiled = self._on_replicas(sums_of, batches=1)

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

        compiled = self._on_replicas(rows_of, batches=1)

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

    def check_precision(self, precision: str) -> None:
        if self._devices[0].platform == "gpu":
            gpus.refuse_bad_gpus(
                gpus.read_gpus(),
                engine=self.name,
                tensorflow_version=None,
                precision=precision,
            )

    def describe(self) -> str:
        noun = "replicas" if self.replicas > 1 else "replica"
        kind = self._devices[0].device_kind
        where = f", {self.hosts} hosts" if self.hosts > 1 else ""
        return f"JAX, {self.replicas} {noun} on {kind.upper()}{where}"


def _broadcast_first(values: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    every = multihost_utils.process_allgather(values.astype(np.int32))
    return np.asarray(every)[0]


def make_replica_step(
    model: keras.Model, optimizer: Any, config: Config
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

    loss_and_gradients = _accumulated(
        jax.value_and_grad(loss_of_weights), config.train.accumulate
    )
    places = [v.path for v in optimizer.variables]
    iterations = places.index(optimizer.iterations.path)

    def replica_step(
        weights: Arrays, memory: Arrays, others: Arrays, batch: Batch
    ) -> tuple[Arrays, Arrays, Any, Any]:
        batch = step_lib.split_partners(batch)
        found = loss_and_gradients(weights, others, batch, memory[iterations])
        loss, gradients = jax.lax.psum(found, _AXIS)
        gradients, norm = step_lib.clip(gradients, config.optim.clip_norm)
        weights, memory = optimizer.stateless_apply(memory, gradients, weights)
        return weights, memory, loss, norm

    return replica_step


def _accumulated(function: Callable[..., Any], parts: int) -> Any:
    """Computes loss and gradients in parts, one after another, and sums them.

    Only the activations of one part are in memory at a time.
    """
    if parts == 1:
        return function

    def in_parts(
        weights: Arrays, others: Arrays, batch: Batch, step: Any
    ) -> tuple[Any, Arrays]:
        def add(sums: Any, part: Batch) -> tuple[Any, None]:
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


def make_engine(
    *,
    one_device: bool = False,
    virtual_devices: int | None = None,
    coordinator: str | None = None,
    num_hosts: int | None = None,
    host: int | None = None,
) -> JaxEngine:
    """Returns the engine on all devices of all hosts.

    Args:
      one_device: Takes the first device alone.
      virtual_devices: Splits the CPU into so many devices.
      coordinator: Address "host:port" of the first host, if there are several;
        by default JAX_COORDINATOR_ADDRESS, or what Cloud TPU, SLURM or MPI
        say. Also `num_hosts` and the index `host` of this one.

    Raises:
      EngineError: The devices or the other hosts are not there.
    """
    hide_devices_from_tensorflow()
    if virtual_devices is not None:
        split_cpu(virtual_devices)
    join_hosts(coordinator, num_hosts, host)
    try:
        return JaxEngine(jax.devices()[:1] if one_device else None)
    except RuntimeError as error:
        raise EngineError(
            f"JAX finds no device: {str(error)[:300]}. "
            "python -m keras_mixer.doctor looks for what is missing."
        ) from error


def hide_devices_from_tensorflow() -> None:
    """Keeps TensorFlow on the CPU, where it only reads data.

    Otherwise it takes all memory of a GPU when it is first used.

    Raises:
      EngineError: TensorFlow has taken it already.
    """
    try:
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
    except RuntimeError as error:
        raise EngineError(
            "TensorFlow has been used in this process and holds the memory of "
            "the GPU. Start a new process for --engine=jax."
        ) from error


def split_cpu(count: int) -> None:
    """Splits the CPU into virtual devices, to rehearse several replicas.

    Raises:
      EngineError: JAX has initialised its devices already.
    """
    if count < 1:
        raise EngineError(
            f"virtual_devices must be positive. Received: {count}"
        )
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise EngineError(
            "The CPU can be split only before JAX is first used in a process; "
            "start a new one."
        ) from error


def join_hosts(
    coordinator: str | None, num_hosts: int | None, host: int | None
) -> None:
    """Joins the other hosts, if there are any.

    See `make_engine`. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID replace the arguments.

    Raises:
      EngineError: An argument is missing, or the hosts cannot be joined.
    """
    address = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _number("num_hosts", num_hosts, "JAX_NUM_PROCESSES")
    index = _number("host", host, "JAX_PROCESS_ID")
    given = {"--coordinator": address, "--num_hosts": count, "--host": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if not _names_hosts(os.environ):
            return
    elif missing:
        raise EngineError(
            f"Several hosts need {', '.join(given)}; {missing[0]} is missing. "
            "(Cloud TPU and SLURM need none of them.)"
        )
    if jax.distributed.is_initialized():
        return
    print(
        f"Host {index} of {count} waits for the others at {address}"
        if address
        else "Waiting for the other hosts, if there are any",
        flush=True,
    )
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise EngineError(
            f"Cannot join the hosts at {address or 'the names of the machine'}"
            f": {str(error)[:300]}"
        ) from error


def _number(name: str, value: int | None, variable: str) -> int | None:
    """Returns a flag's value, or that of an environment variable."""
    text = os.environ.get(variable)
    if value is not None or not text:
        return value
    if not text.isdecimal():
        raise EngineError(
            f"{variable} replaces --{name} and must be a number. Received: "
            f"{text!r}"
        )
    return int(text)


def _names_hosts(environment: Mapping[str, str]) -> bool:
    """Whether the machine itself can say which other hosts there are.

    A TPU VM asks Google's metadata. Colab and Kaggle have one host, and do not
    answer.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdecimal() and int(tasks) > 1:
        return True
    notebook = {"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"}
    return bool(hosts.tpu_files()) and not notebook & set(environment)
