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

_NVIDIA_FILES = ("nvidia[0-9]*", "nvidiactl")
# Where libtpu says that a process has the chips.
TPU_LOCK = pathlib.Path("/tmp/libtpu_lockfile")

# Builds of TensorFlow: each writes the same files.
BUILDS = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "tf-nightly")
# Variables by which Google's machines name a TPU.
TPU_VARIABLES = ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE")

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the checks judge.

    Attributes:
      python: Version.
      installed: Versions of the distributions, by normalised name.
      requirements: What keras_mixer asks for, as in setup.cfg.
      environment: Its variables.
      keras_json: The backend that ~/.keras/keras.json names, if it does.
      tpu_files: Device files of TPUs.
      nvidia_files: Device files of NVIDIA's driver.
      gpus: What nvidia-smi says of each GPU: name, memory.
      tpu_lock: "absent", "free", "held" or "forbidden".
      cores: CPU cores that this process may use.
      memory: Bytes of the machine's memory, and those available; None where
        the system does not tell.
      free_memory: The latter.
      free_disk: Bytes that are free in the current folder.
    """

    python: tuple[int, ...] = sys.version_info[:3]
    installed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keras_json: str | None = None
    tpu_files: tuple[str, ...] = ()
    nvidia_files: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    tpu_lock: str = "absent"
    cores: int = 1
    memory: int | None = None
    free_memory: int | None = None
    free_disk: int | None = None

    def version(self, name: str) -> tuple[int, ...] | None:
        """Returns the numbers of a distribution's version; None if absent."""
        text = self.installed.get(name)
        if text is None:
            return None
        release = re.match(r"\d+(\.\d+)*", text)
        return tuple(map(int, release[0].split("."))) if release else ()

    def builds(self) -> list[str]:
        """Returns the installed builds of TensorFlow, with versions."""
        return [
            f"{name} {self.installed[name]}"
            for name in BUILDS
            if name in self.installed
        ]

    def has_tpu(self) -> bool:
        """Whether there are chips of a TPU, or the environment names one."""
        # A GPU that is passed through has a file of VFIO's as well.
        files = [f for f in self.tpu_files if "accel" in f] or (
            self.tpu_files and not self.nvidia_files
        )
        return bool(files) or any(map(self.environment.get, TPU_VARIABLES))


def look(environment: Mapping[str, str] | None = None) -> Machine:
    """Returns what this machine has."""
    environment = dict(os.environ if environment is None else environment)
    memory = _meminfo()
    return Machine(
        python=sys.version_info[:3],
        installed=_installed(),
        requirements=_requirements(),
        environment=environment,
        keras_json=_keras_json(environment),
        tpu_files=hosts.tpu_files(),
        nvidia_files=_nvidia_files(),
        gpus=_gpus(),
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


def _installed() -> dict[str, str]:
    found: dict[str, str] = {}
    # Of several of one name the first is the one that is imported.
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(normalise(name), distribution.version)
    return found


def _requirements() -> tuple[str, ...]:
    """Returns what setup.cfg asks for, or an installation's own list."""
    setup = configparser.ConfigParser()
    setup.read(_ROOT / "setup.cfg")
    if setup.get("metadata", "name", fallback="") == "keras-mixer":
        lines = setup["options"]["install_requires"].splitlines()
        return tuple(line for line in lines if line)
    try:
        return tuple(importlib.metadata.requires("keras-mixer") or ())
    except importlib.metadata.PackageNotFoundError:
        return ()


def _keras_json(environment: Mapping[str, str]) -> str | None:
    home = environment.get("KERAS_HOME") or pathlib.Path("~/.keras")
    try:
        text = (pathlib.Path(home).expanduser() / "keras.json").read_text()
        backend = json.loads(text).get("backend")
    except (OSError, ValueError, AttributeError, RuntimeError):
        return None
    return str(backend) if backend else None


def _nvidia_files() -> tuple[str, ...]:
    found = [p for x in _NVIDIA_FILES for p in pathlib.Path("/dev").glob(x)]
    return tuple(sorted(map(str, found)))


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
    """Returns whether a process holds libtpu's lock.

    "absent", "free", "held", or "forbidden": another user's, which libtpu
    cannot open either.
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
