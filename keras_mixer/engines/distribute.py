"""Makes and describes `tf.distribute` strategies."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_mixer.engines.choice import Choice
from keras_mixer.engines.hosts import (
    STRATEGIES as STRATEGIES,
    TF_CONFIG_HELP,
    EngineError as EngineError,
    check_virtual_devices,
    cluster_of_tf_config,
    hosts_of_slice,
    nvidia_files,
    tpu_files,
    tpu_of_environment,
)


def split_cpu(count: int) -> None:
    """Splits the CPU into virtual devices, to rehearse several replicas.

    Raises:
      EngineError: TensorFlow has initialised its devices already.
    """
    check_virtual_devices(count)
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:
        raise EngineError(
            "The CPU can be split only before TensorFlow is first used in a "
            "process; start a new one."
        ) from error


def mirror(devices: Sequence[str]) -> tf.distribute.MirroredStrategy:
    """Returns a strategy with one replica on each of `devices`."""
    if "CPU" not in devices[0].upper():
        return tf.distribute.MirroredStrategy(devices)
    # TensorFlow's collectives allow one set of CPUs per process. Sums on one
    # CPU allow several strategies in a process, as in the tests.
    return tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def _make_multi_worker() -> tf.distribute.Strategy:
    """Joins the hosts that TF_CONFIG or SLURM names."""
    cluster = cluster_of_tf_config(os.environ)
    resolver: tf.distribute.cluster_resolver.ClusterResolver
    if cluster:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    elif "SLURM_PROCID" in os.environ:
        try:
            resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
            resolver.cluster_spec()
        except Exception as error:  # it calls scontrol and nvidia-smi
            raise EngineError(
                "TensorFlow cannot make a cluster of SLURM's variables "
                f"({type(error).__name__}: {str(error)[:200]}). Set TF_CONFIG "
                f"on every host instead. {TF_CONFIG_HELP}"
            ) from error
    else:
        raise EngineError(
            "--strategy=multi_worker finds no other host. Set TF_CONFIG on "
            f"every host ({TF_CONFIG_HELP}), or start with srun under SLURM."
        )
    addresses = resolver.cluster_spec().as_dict()
    others = sum(len(tasks) for tasks in addresses.values()) - 1
    if not others:
        raise EngineError(
            f"--strategy=multi_worker finds one worker alone: {addresses}. "
            "Leave out --strategy, which then takes all devices of this "
            f"machine, or name all hosts. {TF_CONFIG_HELP}"
        )
    print(
        f"Worker {resolver.task_id} of {others + 1} waits for the others: "
        f"{addresses}",
        flush=True,
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise EngineError(
            f"Cannot join the workers {addresses}: {str(error)[:300]}"
        ) from error


def _make_tpu(name: str) -> tf.distribute.Strategy:
    """Connects to a TPU.

    "local" are the chips of this machine (a TPU VM or Colab). Other names are
    of a TPU whose machines run TensorFlow's server, driven by this one program:
    its name, looked up through Google's API, or its addresses
    "grpc://host:port,host:port".
    """
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (
        ValueError,
        RuntimeError,
        NotImplementedError,
        OSError,  # the look-up of a name, outside of Google's cloud
        tf.errors.OpError,
    ) as error:
        raise EngineError(
            f"No TPU found (--tpu={name}): {str(error)[:200]}. On a TPU VM "
            "give --tpu=local, elsewhere and for a slice of several machines "
            f"(here: {hosts_of_slice(os.environ)}) its name or grpc:// "
            "addresses; TensorFlow must be the build for TPUs "
            "(requirements-tpu.txt). python -m keras_mixer.doctor looks for "
            "what is missing."
        ) from error


def choose_strategy(
    name: str = "auto", *, cpu: bool = False, tpu: str | None = None
) -> Choice:
    """Returns the strategy that `make_strategy` makes of these arguments.

    "auto" is "tpu" if `tpu` or the environment names one or TensorFlow sees
    one; else "multi_worker" if TF_CONFIG names several hosts; else "mirrored"
    if there are several GPUs, or several CPUs and no GPU; else "one_device".
    """
    if name not in STRATEGIES:
        raise EngineError(
            f"Unknown strategy {name!r}. Strategies: {', '.join(STRATEGIES)}"
        )
    if name != "auto":
        return Choice(name, f"--strategy={name} asks for it")
    if not cpu:
        if tpu:
            return Choice("tpu", f"--tpu={tpu} names one")
        if found := tpu_of_environment(os.environ):
            return Choice("tpu", f"the environment names one ({found})")
        # The environment of a TPU VM names no TPU. Only the build for TPUs
        # has these kinds of devices: the cores and the system that initialises
        # them. Whether the cores are listed before that was not tried.
        if cores := tf.config.list_physical_devices("TPU"):
            return Choice("tpu", f"TensorFlow sees {len(cores)} TPU devices")
        if tf.config.list_physical_devices("TPU_SYSTEM") and tpu_files():
            return Choice("tpu", f"there is {', '.join(tpu_files())}")
    workers = sum(map(len, cluster_of_tf_config(os.environ).values()))
    if workers > 1:
        return Choice("multi_worker", f"TF_CONFIG names {workers} workers")
    kind, devices = _devices(cpu)
    if len(devices) > 1:
        return Choice("mirrored", f"there are {len(devices)} {kind}s")
    return Choice("one_device", f"there is one {kind}")


def _devices(cpu: bool) -> tuple[str, list[str]]:
    """Returns the kind and the names of the GPUs, or else of the CPUs."""
    for kind in ("CPU",) if cpu else ("GPU", "CPU"):
        devices = tf.config.list_logical_devices(kind)
        if devices:
            break
    return kind, [device.name for device in devices]


def make_strategy(
    name: str = "auto", *, cpu: bool = False, tpu: str | None = None
) -> tf.distribute.Strategy:
    """Returns a strategy over the devices of this machine, or of several.

    Args:
      name: "one_device": the first GPU, else the CPU. "mirrored": all GPUs,
        else all (virtual) CPUs. "multi_worker": the hosts that TF_CONFIG or
        SLURM names. "tpu": see `tpu`. "auto": see `choose_strategy`.
      cpu: Whether to use the CPU even if there are GPUs (virtual devices).
      tpu: See `_make_tpu`. By default the TPU that the environment names
        (TPU_NAME), else "local".

    Raises:
      EngineError: `name` is unknown, or what it asks for is not there.
    """
    chosen = choose_strategy(name, cpu=cpu, tpu=tpu).name
    if chosen == "tpu":
        return _make_tpu(tpu or tpu_of_environment(os.environ) or "local")
    if chosen == "multi_worker":
        return _make_multi_worker()
    kind, devices = _devices(cpu)
    unseen = () if cpu or kind == "GPU" else nvidia_files()
    if chosen == "mirrored" and len(devices) == 1:
        if kind == "CPU":
            raise EngineError(
                "--strategy=mirrored trains on all GPUs, and TensorFlow sees "
                f"none{_listed(unseen)}, only one CPU. Leave out --strategy to "
                "train on the CPU, or rehearse several replicas on it: "
                "--virtual_devices=4. python -m keras_mixer.doctor says why a "
                "GPU is not seen."
            )
        print(
            "Warning: --strategy=mirrored finds one GPU, and trains as "
            "--strategy=one_device does.",
            flush=True,
        )
    elif unseen and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        print(
            f"Warning: TensorFlow sees no GPU{_listed(unseen)}, and computes "
            "on the CPU. python -m keras_mixer.doctor says why.",
            flush=True,
        )
    if chosen == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    return mirror(devices)


def _listed(files: Sequence[str]) -> str:
    """Returns " (there is /dev/nvidia0)", or "" without files."""
    return f" (there is {', '.join(files)})" if files else ""


def is_alone(strategy: tf.distribute.Strategy) -> bool:
    """Whether no other process takes part."""
    multi_worker = tf.distribute.MultiWorkerMirroredStrategy
    return not isinstance(strategy, multi_worker)


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes that take part."""
    if is_alone(strategy):
        return 1
    tasks = strategy.cluster_resolver.cluster_spec().as_dict().values()
    return sum(map(len, tasks))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes: the first of several workers, or alone."""
    if is_alone(strategy):
        return True
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().as_dict():
        return bool(resolver.task_type == "chief")
    return bool(resolver.task_id == 0)


@functools.cache
def compiles() -> bool:
    """Whether this TensorFlow has XLA for its default device.

    The build for TPUs (2.20) has no XLA for CPUs: "could not find registered
    transfer manager".
    """
    try:
        tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(1.0))
    except tf.errors.NotFoundError:
        return False
    return True


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that TensorFlow traces without AutoGraph.

    AutoGraph rewrites the source of every function that is called, which takes
    longer than to trace them. This package's branches and loops are ops.
    """
    return tf.autograph.experimental.do_not_convert(function)


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a pipeline without tf.data's autotuning, for runs on CPUs.

    Autotuning has a thread for each iterator. Freeing the iterator waits for
    that thread, with Python's lock held. The thread can miss its cancellation
    (TensorFlow 2.21 wakes it before it sets the flag) and then sleeps for up to
    a minute: one of five programs took minutes to end. Where CPUs compute there
    is little to tune: AUTOTUNE is then their number.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def distribute_batches(
    strategy: tf.distribute.Strategy,
    batches: Callable[[tf.distribute.InputContext], tf.data.Dataset],
) -> Any:
    """Returns an iterator over the batches of each replica.

    `batches` makes the input pipeline of a host, which serves its replicas in
    turn.
    """
    devices = strategy.extended.worker_devices
    if not all("CPU" in device.upper() for device in devices):
        return iter(strategy.distribute_datasets_from_function(batches))

    options = None
    if len(devices) > 1 and is_alone(strategy):
        # A pipeline for each replica, as if it were a host. That avoids
        # TensorFlow's iterator over several devices, which has such threads.
        options = tf.distribute.InputOptions(
            experimental_fetch_to_device=False,
            experimental_replication_mode=(
                tf.distribute.InputReplicationMode.PER_REPLICA
            ),
        )

    return iter(
        strategy.distribute_datasets_from_function(
            lambda context: without_autotuning(batches(context)), options
        )
    )


def sum_over_replicas(strategy: tf.distribute.Strategy, value: float) -> float:
    """Returns the sum over all replicas of the values of their processes.

    Every worker must call it; they wait for one another.
    """

    def total() -> tf.Tensor:
        given = strategy.run(lambda: tf.constant(value, tf.float64))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, given, axis=None)

    # The partial is a new function each time. Otherwise TensorFlow warns that
    # one function is traced again and again.
    return float(tf.function(functools.partial(total))())


def describe(strategy: tf.distribute.Strategy) -> str:
    """Returns for example "MirroredStrategy, 2 replicas on CPU"."""
    replicas = strategy.num_replicas_in_sync
    noun = "replicas" if replicas > 1 else "replica"
    kind = strategy.extended.worker_devices[0].split("device:")[-1]
    name = type(strategy).__name__
    if not is_alone(strategy):  # it calls itself by another name
        name = "MultiWorkerMirroredStrategy"
    return f"{name}, {replicas} {noun} on {kind.split(':')[0]}"
