"""Makes the JAX engine: devices, hosts, and TensorFlow beside it."""

import os
from collections.abc import Mapping

import jax
import tensorflow as tf

from keras_mixer.engines import compiled, hosts
from keras_mixer.engines.hosts import EngineError
from keras_mixer.engines.jax import JaxEngine

# A host that is silent for so long is lost. A closed connection is noticed at
# once.
_HEARTBEAT_SECONDS = 30
# Programs that took less to compile are not kept.
_WORTH_KEEPING_SECONDS = 0.3


def make_jax_engine(
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
    keep_compiled_programs()
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


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs on disk, for the next process.

    In the folder of JAX_COMPILATION_CACHE_DIR, or else in the user's cache
    folder, if that can be written. JAX_ENABLE_COMPILATION_CACHE=0 switches it
    off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = compiled.writable_folder("jax")
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update(
            "jax_persistent_cache_min_compile_time_secs",
            _WORTH_KEEPING_SECONDS,
        )


def split_cpu(count: int) -> None:
    """Splits the CPU into virtual devices, to rehearse several replicas.

    Raises:
      EngineError: JAX has initialised its devices already.
    """
    hosts.check_virtual_devices(count)
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

    See `make_jax_engine`. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
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
    return bool(hosts.tpu_files()) and not hosts.notebook_service(environment)
