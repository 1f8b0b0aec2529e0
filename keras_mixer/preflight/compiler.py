"""The TPU compiler, on a machine without a TPU.

JAX's `jax.experimental.topologies` describes TPUs that are not there, and the
libtpu package has the compiler for them. What follows it is private to
jaxlib: the way from a TensorFlow program's HLO text to that compiler. All of
it is in this file, and tried with the versions below alone.
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

# What libtpu would ask of a machine with a TPU, or of the cloud's metadata.
_ENVIRONMENT = {
    "TPU_LOAD_LIBRARY": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}


class PreflightError(ValueError):
    """The TPU compiler is not here, or refuses the program."""


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """The compiler's answer to a program that does not fit.

    Attributes:
      used: Bytes of HBM that it would take; None if it did not say.
      capacity: Bytes that it may take.
      message: The compiler's own words.
    """

    used: int | None
    capacity: int | None
    message: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, of one device.

    Attributes:
      text: The scheduled HLO module.
      flops: As the compiler counts them.
      bytes_accessed: The same, of all memory, on the chip or not.
      argument_bytes: Weights, optimizer and a batch.
      output_bytes: What it returns beside what replaces an argument.
      temp_bytes: Activations, gradients and everything else, at the peak.
      code_bytes: The program itself.
    """

    text: str
    flops: float
    bytes_accessed: float
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    code_bytes: int

    @property
    def hbm_bytes(self) -> int:
        """What lies in HBM at the peak."""
        return (
            self.argument_bytes
            + self.output_bytes
            + self.temp_bytes
            + self.code_bytes
        )


def require() -> None:
    """Raises PreflightError if the compiler is not here, or another one."""
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
            "Preflight hands programs to the TPU compiler through private "
            f"parts of jaxlib {JAX_VERSION}, which belongs to libtpu "
            f"{LIBTPU_VERSION}. Installed: jax {found['jax']}, jaxlib "
            f"{found['jaxlib']}, libtpu {found['libtpu']}. In an environment "
            f"that is not the one for a TPU: {INSTALL}"
        )


def _import_jax() -> None:
    """Imports jax for compiling alone."""
    require()
    for name, value in _ENVIRONMENT.items():
        os.environ[name] = value
    import jax

    jax.config.update("jax_platforms", "cpu")


def get_device(topology: Topology) -> Any:
    """Returns one device of a topology, to compile for."""
    _import_jax()
    from jax.experimental import topologies

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

    # The way to StableHLO knows no copies; a reshape to the same shape is one.
    module = hlo.hlo_module_from_text(text.replace(" copy(", " reshape("))
    stable = _jax.mlir.hlo_to_stablehlo(module.as_serialized_hlo_module_proto())
    context = mlir.make_ir_context()
    with context:
        return ir.Module.parse(stable), context


# How the compiler says it, when it has tried and when it need not try.
_TOO_LARGE = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(
        r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
    ),
)


def _bytes_of(number: str, unit: str) -> int:
    return int(float(number) * 2 ** (10 * " KMGT".index(unit or " ")))


def read_out_of_memory(message: str) -> OutOfMemory | None:
    """Reads the compiler's error; None if it is about something else."""
    for pattern in _TOO_LARGE:
        found = pattern.search(message)
        if found:
            return OutOfMemory(
                _bytes_of(found[1], found[2]),
                _bytes_of(found[3], found[4]),
                message,
            )
    if "RESOURCE_EXHAUSTED" in message:
        return OutOfMemory(None, None, message)
    return None


def compile_hlo(text: str, topology: Topology) -> Program | OutOfMemory:
    """Compiles a program for one device of a TPU.

    Args:
      text: An HLO module, as TensorFlow prints it before optimisation.
      topology: The TPU.

    Raises:
      PreflightError: The compiler is not here, or refuses the program for
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
    """Reads the figures of what the compiler returned, or jax's `compile`."""
    costs = executable.cost_analysis()
    if hasattr(executable, "memory_analysis"):  # of jax itself
        memory, text = executable.memory_analysis(), executable.as_text()
    else:
        memory = executable.get_compiled_memory_stats()
        text = executable.hlo_modules()[0].to_string()
    return Program(
        text=text,
        flops=costs["flops"],
        bytes_accessed=costs["bytes accessed"],
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
    )
