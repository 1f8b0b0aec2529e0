"""Picks the `tf.distribute` strategy of a run, and says which it is."""

import ctypes
from collections.abc import Sequence

import tensorflow as tf

STRATEGIES = ("auto", "one_device", "mirrored")


# glibc's malloc.h: M_ARENA_MAX=1, M_MMAP_MAX=0, M_TRIM_THRESHOLD.
_MALLOC_OPTIONS = ((-8, 1), (-4, 0), (-1, 2**31 - 1))


class DistributeError(ValueError):
    """The machine or the batch does not fit the strategy that was asked for."""


def keep_freed_memory() -> bool:
    """Lets a process that computes on CPUs reuse the memory it has freed.

    By default glibc gives large buffers back to the system after every step
    and the system fills them with zeros for the next one, which cost a third
    of a small model's training time (145 000 page faults a second). To be
    called before TensorFlow is first used: later its threads have their own
    memory. With a GPU nothing is changed.

    Returns:
      Whether it was done; only glibc can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or tf.config.list_physical_devices("GPU"):
        return False
    return all(mallopt(*option) == 1 for option in _MALLOC_OPTIONS)


def split_cpu(count: int) -> None:
    """Makes `count` virtual devices of the CPU, to rehearse several replicas.

    Raises:
      DistributeError: TensorFlow has initialised its devices already.
    """
    if count < 1:
        raise DistributeError(
            f"virtual_devices must be positive. Received: {count}"
        )
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:
        raise DistributeError(
            "The CPU can be split only before TensorFlow is first used in a "
            "process; start a new one."
        ) from error


def mirror(devices: Sequence[str]) -> tf.distribute.MirroredStrategy:
    """Returns a strategy with one replica on each of `devices`."""
    if "CPU" not in devices[0].upper():
        return tf.distribute.MirroredStrategy(devices)
    # TensorFlow's collectives allow one set of CPUs per process only; sums on
    # one of them allow any number of strategies, as in the tests.
    return tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def make_strategy(
    name: str = "auto", *, cpu: bool = False
) -> tf.distribute.Strategy:
    """Returns a strategy over the devices of this machine.

    Args:
      name: "one_device": the first GPU, else the CPU. "mirrored": all GPUs,
        else all (virtual) CPUs. "auto": mirrored if there are several
        devices of the better kind, one_device otherwise.
      cpu: Leave GPUs alone (for virtual devices).

    Raises:
      DistributeError: `name` is unknown.
    """
    if name not in STRATEGIES:
        raise DistributeError(
            f"Unknown strategy {name!r}. Strategies: {', '.join(STRATEGIES)}"
        )
    devices = [
        device.name
        for device in (not cpu and tf.config.list_logical_devices("GPU"))
        or tf.config.list_logical_devices("CPU")
    ]
    if name == "auto":
        name = "mirrored" if len(devices) > 1 else "one_device"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    return mirror(devices)


def describe(strategy: tf.distribute.Strategy) -> str:
    """Returns for example "MirroredStrategy, 2 replicas on CPU"."""
    replicas = strategy.num_replicas_in_sync
    kind = strategy.extended.worker_devices[0].split("device:")[-1]
    return (
        f"{type(strategy).__name__}, {replicas} "
        f"replica{'s' if replicas > 1 else ''} on {kind.split(':')[0]}"
    )


def check_batch_size(batch_size: int, strategy: tf.distribute.Strategy) -> None:
    """Raises DistributeError unless every replica gets as many examples."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        low = batch_size // replicas * replicas
        sizes = [str(s) for s in (low, low + replicas) if s]
        raise DistributeError(
            f"train.batch_size={batch_size} does not divide over {replicas} "
            f"replicas; the nearest sizes are {' and '.join(sizes)}."
        )
