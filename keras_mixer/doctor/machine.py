"""What this machine has, read with Python's own library alone."""

import configparser
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

from keras_mixer.engines import hosts
from keras_mixer.engines.gpus import Gpu, read_gpus

# The file that libtpu locks while a process has the chips.
TPU_LOCK = pathlib.Path("/tmp/libtpu_lockfile")

# Builds of TensorFlow. All of them write the same files.
BUILDS = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "tf-nightly")
# Variables by which Google's machines name a TPU.
TPU_VARIABLES = ("TPU_NAME", "COLAB_TPU_ADDR", *hosts.OWN_TPU_VARIABLES)

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the checks judge."""

    python: tuple[int, ...] = sys.version_info[:3]
    engine: str = "tensorflow"  # that is to train; see plan.py
    # Versions of the distributions, by normalised name.
    installed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    requirements: tuple[str, ...] = ()  # of keras_mixer, as in setup.cfg
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keras_json: str | None = None  # the backend in ~/.keras/keras.json
    tpu_files: tuple[str, ...] = ()  # device files of TPUs
    nvidia_files: tuple[str, ...] = ()  # device files of NVIDIA's driver
    gpus: tuple[str, ...] = ()  # name and memory of each, from nvidia-smi
    # Of those that CUDA_VISIBLE_DEVICES leaves, with compute capability.
    visible_gpus: tuple[Gpu, ...] = ()
    tpu_lock: str = "absent"  # what `lock_state` returns for TPU_LOCK
    cores: int = 1  # that this process may use
    memory: int | None = None  # bytes; None where the system does not tell
    free_memory: int | None = None  # bytes that are available; None as above
    free_disk: int = 0  # bytes that are free on the current folder's disk

    def builds(self) -> list[str]:
        """Returns the installed builds of TensorFlow: "tensorflow 2.21.0"."""
        have = self.installed
        return [f"{name} {have[name]}" for name in BUILDS if name in have]

    def has_tpu(self) -> bool:
        """Whether this machine has a TPU, or the environment names one."""
        # A GPU that is passed through also has a file of VFIO.
        files = [f for f in self.tpu_files if "accel" in f] or (
            self.tpu_files and not self.nvidia_files
        )
        return bool(files) or any(map(self.environment.get, TPU_VARIABLES))

    def has_gpu(self) -> bool:
        """Whether this machine has an NVIDIA GPU that is not hidden."""
        hidden = self.environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        return bool(self.nvidia_files or self.gpus) and not hidden

    def tpu_signs(self) -> str:
        """Returns the files and variables that speak of a TPU."""
        variables = filter(self.environment.get, TPU_VARIABLES)
        return ", ".join([*self.tpu_files, *variables])


def look() -> Machine:
    """Returns what this machine has."""
    memory = _meminfo()
    return Machine(
        python=sys.version_info[:3],
        installed=_installed(),
        requirements=_requirements(),
        environment=dict(os.environ),
        keras_json=_keras_json(),
        tpu_files=hosts.tpu_files(),
        # nvidia0, nvidia1, ..., nvidiactl
        nvidia_files=tuple(
            sorted(map(str, pathlib.Path("/dev").glob("nvidia[0-9c]*")))
        ),
        gpus=_gpus(),
        visible_gpus=read_gpus(),
        tpu_lock=lock_state(TPU_LOCK),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory=memory.get("MemTotal"),
        free_memory=memory.get("MemAvailable"),
        free_disk=shutil.disk_usage(".").free,
    )


def normalise(name: str) -> str:
    """Returns a distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers_of(version: str) -> tuple[int, ...]:
    """Returns the numbers that a version begins with: (2, 20) of "2.20rc1"."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()


def _installed() -> dict[str, str]:
    found: dict[str, str] = {}
    # Python imports the first of several distributions of one name.
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:
            found.setdefault(normalise(name), distribution.version)
    return found


def _requirements() -> tuple[str, ...]:
    """Returns what setup.cfg, or else the installed package, requires."""
    setup = configparser.ConfigParser()
    setup.read(_ROOT / "setup.cfg")
    if setup.get("metadata", "name", fallback="") == "keras-mixer":
        lines = setup["options"]["install_requires"].splitlines()
        return tuple(line for line in lines if line)
    try:
        return tuple(importlib.metadata.requires("keras-mixer") or ())
    except importlib.metadata.PackageNotFoundError:
        return ()


def _keras_json() -> str | None:
    home = pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras")
    try:
        text = (home.expanduser() / "keras.json").read_text()
        backend = json.loads(text).get("backend")
    except (OSError, ValueError, AttributeError, RuntimeError):
        return None
    return str(backend) if backend else None


def _gpus() -> tuple[str, ...]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total"]
    try:
        out = subprocess.run(
            [*command, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in out.splitlines() if line.strip())


def lock_state(path: pathlib.Path) -> str:
    """Returns "absent", "free", "held" by another process, or "forbidden".

    A forbidden file belongs to another user; libtpu could not open it either.
    """
    try:
        with path.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "free"
    except FileNotFoundError:
        return "absent"
    except PermissionError:
        return "forbidden"
    except OSError:
        return "held"


def _meminfo() -> dict[str, int]:
    try:
        text = pathlib.Path("/proc/meminfo").read_text()
    except OSError:
        return {}
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in found}
