"""NVIDIA GPUs on which an engine is known to fail or to be slow.

Nothing here imports TensorFlow or JAX: the doctor needs it where they cannot be
imported, and the fault below ends the process that runs into it.
"""

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from keras_mixer.engines.hosts import EngineError

Capability = tuple[int, int]  # compute capability: (8, 0) of an A100

# TensorFlow issues 111958 ("PTX version 8.5 does not support target 'sm_120'",
# also of a nightly build for 2.22) and 101746 (INVALID_PTX, 2.20). XLA writes
# the newest PTX of the CUDA that TensorFlow is built with: 8.5 of CUDA 12.5.
_FIRST_FAILING_GPU: Capability = (12, 0)
_LAST_FAILING_TENSORFLOW = (2, 21)
FIRST_WITH_BFLOAT16: Capability = (8, 0)

_JAX = "pip install 'jax[cuda12]', and train with --engine=jax"


class Gpu(NamedTuple):
    """One GPU, as nvidia-smi describes it."""

    name: str
    capability: Capability | None = None  # None if nvidia-smi does not know
    driver: str = ""


class Trouble(NamedTuple):
    """What is wrong with the GPUs."""

    level: str  # "warning" or "error"
    text: str
    way_out: str


def read_gpus(
    environment: Mapping[str, str] = os.environ,
) -> tuple[Gpu, ...]:
    """Returns the GPUs that this process may use, from nvidia-smi.

    There are none where nvidia-smi is missing, or too old to know the compute
    capability. CUDA_VISIBLE_DEVICES counts as CUDA reads it.
    """
    command = [
        "nvidia-smi",
        "--query-gpu=uuid,name,compute_cap,driver_version",
        "--format=csv,noheader",
    ]
    try:
        out = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [row.split(", ") for row in out.splitlines()]
    return _visible(
        {row[0]: _gpu(row) for row in rows if len(row) == 4}, environment
    )


def _gpu(row: Sequence[str]) -> Gpu:
    _, name, capability, driver = row
    numbers = re.fullmatch(r"(\d+)\.(\d+)", capability)
    return Gpu(
        name,
        (int(numbers[1]), int(numbers[2])) if numbers else None,
        driver.strip(),
    )


def _visible(
    gpus: Mapping[str, Gpu], environment: Mapping[str, str]
) -> tuple[Gpu, ...]:
    """Returns those of `gpus`, by UUID, that CUDA_VISIBLE_DEVICES names."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    everything = tuple(gpus.values())
    if named is None:
        return everything
    chosen: list[Gpu] = []
    for entry in map(str.strip, named.split(",")):
        if entry.isdigit() and int(entry) < len(gpus):
            by_bus = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
            if not by_bus and len({gpu.name for gpu in everything}) > 1:
                # CUDA numbers the fastest GPU 0, nvidia-smi the first one of
                # the bus.
                return everything
            chosen.append(everything[int(entry)])
        elif entry.startswith("GPU-"):
            chosen += [g for uuid, g in gpus.items() if uuid.startswith(entry)]
        elif entry.startswith("MIG-"):
            return everything
        else:  # CUDA ignores what follows an entry that names nothing
            break
    return tuple(chosen)


def check_gpus(
    gpus: Sequence[Gpu],
    *,
    engine: str,
    tensorflow_version: str | None,
    precision: str,
) -> list[Trouble]:
    """Returns what is wrong with training on these GPUs.

    Args:
      gpus: What `read_gpus` returns.
      engine: "tensorflow" or "jax".
      tensorflow_version: Of the installed build; None if there is none.
      precision: As in `model.precision`.
    """
    known = [(gpu.name, gpu.capability) for gpu in gpus if gpu.capability]
    failing = _names(known, lambda found: found >= _FIRST_FAILING_GPU)
    slow = _names(known, lambda found: found < FIRST_WITH_BFLOAT16)
    release = tuple(map(int, re.findall(r"\d+", tensorflow_version or "")[:2]))
    troubles = []
    if (
        failing
        and engine == "tensorflow"
        and release
        and release <= _LAST_FAILING_TENSORFLOW
    ):
        troubles.append(
            Trouble(
                "error",
                f"TensorFlow {tensorflow_version} cannot compile for {failing}:"
                " XLA of versions up to 2.21 fails with PTX 8.5 or INVALID_PTX "
                "from compute capability 12.0 on (tensorflow issue 111958)",
                f"{_JAX}. If there is another GPU: export "
                "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=<its number "
                "in nvidia-smi>",
            )
        )
    if slow and precision == "bfloat16":
        troubles.append(
            Trouble(
                "warning",
                f"{precision} is slow on {slow}: GPUs compute with it from "
                "compute capability 8.0 on",
                "model.precision=float32 in a new run",
            )
        )
    return troubles


def refuse_bad_gpus(
    gpus: Sequence[Gpu],
    *,
    engine: str,
    tensorflow_version: str | None,
    precision: str,
) -> None:
    """Prints the warnings of `check_gpus`; see there for the arguments.

    Raises:
      EngineError: The engine is known to fail on these GPUs.
    """
    for trouble in check_gpus(
        gpus,
        engine=engine,
        tensorflow_version=tensorflow_version,
        precision=precision,
    ):
        text = f"{trouble.text}. Way out: {trouble.way_out}"
        if trouble.level == "error":
            raise EngineError(text)
        print(f"Warning: {text}", flush=True)


def _names(
    gpus: Sequence[tuple[str, Capability]], chosen: Callable[[Capability], bool]
) -> str:
    """Returns "RTX 5090 (12.0), ..." of the chosen GPUs, each name once."""
    texts = [f"{n} ({c[0]}.{c[1]})" for n, c in gpus if chosen(c)]
    return ", ".join(dict.fromkeys(texts))
