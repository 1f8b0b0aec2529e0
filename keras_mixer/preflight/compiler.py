"""The TPU compiler, on a machine without a TPU.

JAX's `jax.experimental.topologies` describes TPUs that are not there, and the
libtpu package has the compiler for them. The way from the HLO text of a
TensorFlow program to that compiler is private to jaxlib. All of it is in this
file, and was tried with the versions below only.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import re
from typing import Any

import numpy as np

from keras_mixer.preflight.chips import Topology

JAX_VERSION = "0.10.2"
LIBTPU_VERSION = "0.0.42"
INSTALL = "pip install 'keras-mixer[preflight]' (jax and libtpu)"

# What libtpu would otherwise read from a TPU or from the cloud's metadata.
_ENVIRONMENT = {
    "TPU_LOAD_LIBRARY": "1",
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
    """A compiled program for one device."""

    text: str  # the scheduled HLO module
    flops: float  # as the compiler counts them: the body of a loop once
    bytes_accessed: float  # likewise, of all memory, on the chip or not
    # Memory at the peak: weights, optimizer, a batch, results that do not
    # replace any of these, and the two below.
    hbm_bytes: int
    temp_bytes: int  # activations, gradients and everything else
    code_bytes: int  # the program itself


def require() -> None:
    """Raises PreflightError unless the compiler is installed as tried."""
    found = {}
    for package in ("jax", "jaxlib", "libtpu"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise PreflightError(
                f"Preflight needs the TPU compiler, and {package} is not "
                f"installed: {INSTALL}"
            ) from None
    if {found["jax"], found["jaxlib"]} != {JAX_VERSION} or not (
        found["libtpu"].startswith(LIBTPU_VERSION)
    ):
        raise PreflightError(
            "Preflight reaches the TPU compiler through private parts of "
            f"jaxlib {JAX_VERSION}, which belongs to libtpu {LIBTPU_VERSION}. "
            f"Installed: jax {found['jax']}, jaxlib {found['jaxlib']}, libtpu "
            f"{found['libtpu']}. In an environment that is not for a TPU: "
            f"{INSTALL}"
        )


def get_device(topology: Topology) -> Any:
    """Returns one device of a topology, to compile for."""
    require()
    os.environ.update(_ENVIRONMENT)
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
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
    except Exception as error:  # jaxlib's own classes
        raise PreflightError(
            f"The TPU compiler does not know {topology}: {str(error)[:300]}"
        ) from error
    return description.devices[0]


def _to_module(text: str) -> tuple[Any, Any]:
    """Turns HLO text into an MLIR module and its context."""
    from jax._src.interpreters import mlir
    from jaxlib import _jax
    from jaxlib.mlir import ir

    hlo = importlib.import_module("jaxlib._hlo")  # has no stubs

    # The conversion to StableHLO does not know `copy`; a reshape to the same
    # shape does the same.
    module = hlo.hlo_module_from_text(text.replace(" copy(", " reshape("))
    stable = _jax.mlir.hlo_to_stablehlo(module.as_serialized_hlo_module_proto())
    context = mlir.make_ir_context()
    with context:
        return ir.Module.parse(stable), context


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


def compile_hlo(text: str, topology: Topology) -> Program | OutOfMemory:
    """Compiles HLO that TensorFlow did not optimise for one device of a TPU.

    Raises:
      PreflightError: The compiler is not installed, or refuses the program for
        another reason than its size.
    """
    device = get_device(topology)
    from jaxlib import _jax, xla_client

    module, context = _to_module(text)
    options = xla_client.CompileOptions()
    options.num_replicas = 1
    options.num_partitions = 1
    options.device_assignment = xla_client.DeviceAssignment.create(
        np.array([[device.id]], np.int32)
    )
    try:
        with context:
            executable = device.client.compile(
                module,
                executable_devices=_jax.DeviceList((device,)),
                compile_options=options,
            )
    except Exception as error:  # jaxlib's own classes
        exhausted = read_out_of_memory(str(error))
        if exhausted:
            return exhausted
        raise PreflightError(
            f"The TPU compiler refuses this step: {str(error)[:1000]}"
        ) from error
    return read(executable)


def read(executable: Any) -> Program:
    """Reads the figures of an executable of the compiler, or of jax."""
    costs = executable.cost_analysis()
    if hasattr(executable, "memory_analysis"):  # jax's own class
        memory, text = executable.memory_analysis(), executable.as_text()
    else:
        memory = executable.get_compiled_memory_stats()
        text = executable.hlo_modules()[0].to_string()
    return Program(
        text=text,
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
