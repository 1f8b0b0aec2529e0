"""The TPU compiler, on a machine without a TPU.

JAX's `jax.experimental.topologies` describes TPUs that are not there, of any
number of hosts, and the libtpu package has the compiler for them.
"""

import dataclasses
import importlib.metadata
import os
import re
from typing import Any

from keras_mixer.preflight.chips import Topology

INSTALL = "pip install 'keras-mixer[preflight]' (jax and libtpu)"
# Measured: jax 0.7.2 with libtpu 0.0.21.1 compiles for a TPU that is not there
# and then crashes; jax 0.10.2 with libtpu 0.0.42.1 works.
_FIRST_JAX = (0, 10)

# libtpu would otherwise ask for Google's metadata, and JAX take the machine's
# chips.
_ENVIRONMENT = {
    "TPU_LOAD_LIBRARY": "1",  # 0 goes with TensorFlow on a pod
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}


class PreflightError(ValueError):
    """The TPU compiler is not installed, or refuses the program."""


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """The compiler's answer to a program that does not fit."""

    hbm_bytes: int | None  # what it needs; None if the compiler did not say


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, as it runs on each device."""

    text: str  # the scheduled HLO module
    flops: float  # as the compiler counts them: the body of a loop once
    bytes_accessed: float  # likewise, of all memory, on the chip or not
    # Memory at the peak: weights, optimizer, a batch, results that do not
    # replace any of these, and the two below.
    hbm_bytes: int
    temp_bytes: int  # activations, gradients and everything else
    code_bytes: int  # the program itself


def require() -> None:
    """Raises PreflightError unless the compiler is installed."""
    found = {}
    for package in ("jax", "jaxlib", "libtpu"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise PreflightError(
                f"Preflight needs the TPU compiler, and {package} is not "
                f"installed: {INSTALL}"
            ) from None
    if tuple(map(int, re.findall(r"\d+", found["jax"])[:2])) < _FIRST_JAX:
        raise PreflightError(
            f"Preflight needs jax {'.'.join(map(str, _FIRST_JAX))} or newer; "
            f"{found['jax']} is installed. In an environment of its own: "
            f"{INSTALL}"
        )


def get_devices(topology: Topology) -> list[Any]:
    """Returns the devices of a topology, to compile for.

    Raises:
      PreflightError: The compiler is not installed, or does not know it.
    """
    require()
    os.environ.update(_ENVIRONMENT)
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # if JAX was imported before
    bounds = [2, 2, 1]  # chips of a host
    for i, side in enumerate(topology.shape):
        if side % bounds[i]:
            bounds[i] = 1
    try:
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=str(topology),
            chips_per_host_bounds=tuple(bounds),
        )
    except jax.errors.JaxRuntimeError as error:
        raise PreflightError(
            f"The TPU compiler does not know {topology}: {str(error)[:300]}"
        ) from error
    return list(description.devices)


# The compiler's words after it has tried, and when it does not even try.
_TOO_LARGE = re.compile(
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"
    r"|\(([\d.]+)([KMGT]?)\) exceeds available HBM"
)


def read_out_of_memory(message: str) -> OutOfMemory | None:
    """Reads the compiler's error; None if it is about something else."""
    found = _TOO_LARGE.search(message)
    if found:
        number, unit = found[1] or found[3], found[2] or found[4] or " "
        return OutOfMemory(int(float(number) * 2 ** (10 * " KMGT".index(unit))))
    return OutOfMemory(None) if "RESOURCE_EXHAUSTED" in message else None


def compile_lowered(lowered: Any) -> Program | OutOfMemory:
    """Compiles what `jax.jit(...).lower(...)` returns.

    Raises:
      PreflightError: The compiler refuses the program for another reason than
        its size.
    """
    import jax

    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        exhausted = read_out_of_memory(str(error))
        if exhausted:
            return exhausted
        raise PreflightError(
            f"The TPU compiler refuses this step: {str(error)[:1000]}"
        ) from error
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return Program(
        text=compiled.as_text(),
        flops=costs["flops"],
        bytes_accessed=costs["bytes accessed"],
        hbm_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
    )
