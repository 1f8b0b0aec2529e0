"""Checks of what is installed. Each function returns one finding.

No check needs TensorFlow. "Measured" in a comment means that it was tried for
this project.
"""

import dataclasses
import functools
from collections.abc import Callable

from keras_mixer.doctor.machine import (
    BUILDS,
    TPU_LOCK,
    TPU_VARIABLES,
    Machine,
    normalise,
    numbers_of,
)
from keras_mixer.engines import hosts

# Measured with tensorflow-tpu 2.20.0: libtpu 0.0.20, 0.0.30 and 0.0.31 import;
# 0.0.32, 0.0.36 and 0.0.52 abort. 0.0.20 was released together with 2.20.
_GOOD_LIBTPU = "0.0.20"
_FIRST_LIBTPU = (0, 0, 14)
_FIRST_BAD_LIBTPU = (0, 0, 32)

_TPU_INSTALL = (
    "pip install -r requirements-tpu.txt && pip install --no-deps -e ."
)
_LEAST_MEMORY = 2 * 2**30
_LEAST_DISK = 2 * 2**30


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found. One error makes a machine unhealthy."""

    level: str  # "ok", "warning" or "error"
    text: str
    way_out: str = ""  # the command or setting that mends it


ok = functools.partial(Finding, "ok")
warning = functools.partial(Finding, "warning")
error = functools.partial(Finding, "error")


def check_python(machine: Machine) -> Finding:
    version = ".".join(map(str, machine.python))
    if (3, 11) <= machine.python < (3, 14):
        return ok(f"Python {version}")
    return error(
        f"Python is {version}; keras_mixer needs 3.11, 3.12 or 3.13",
        "python3.12 -m venv .venv && .venv/bin/pip install -e .",
    )


def check_tensorflow(machine: Machine) -> Finding:
    builds = machine.builds()
    if not builds:
        return error(
            "TensorFlow is not installed",
            f"pip install -e . (on a TPU: {_TPU_INSTALL})",
        )
    if len(builds) == 1:
        return ok(builds[0])
    names = " ".join(build.split()[0] for build in builds)
    tpu = "tensorflow-tpu" in machine.installed
    return error(
        f"{' and '.join(builds)} have overwritten each other's files",
        f"pip uninstall -y {names} && "
        + (_TPU_INSTALL if tpu else "pip install -e ."),
    )


def check_libtpu(machine: Machine) -> Finding:
    libtpu = machine.installed.get("libtpu")
    if "tensorflow-tpu" not in machine.installed:
        return ok(f"libtpu {libtpu or 'not needed'}, no tensorflow-tpu")
    build = f"tensorflow-tpu {machine.installed['tensorflow-tpu']}"
    mend = f"pip install libtpu=={_GOOD_LIBTPU}"
    if libtpu is None:
        return error(f"{build} is installed without libtpu", mend)
    if numbers_of(libtpu) >= _FIRST_BAD_LIBTPU:
        return error(
            f"libtpu {libtpu} makes `import tensorflow` of {build} abort", mend
        )
    if numbers_of(libtpu) < _FIRST_LIBTPU:
        return error(
            f"{build} needs libtpu 0.0.14 or newer; {libtpu} is installed", mend
        )
    return ok(f"{build} with libtpu {libtpu}")


def check_build_for_tpus(machine: Machine) -> Finding:
    for_tpus = "tensorflow-tpu" in machine.installed
    if not machine.has_tpu():
        if not for_tpus or machine.environment.get("TPU_LOAD_LIBRARY") == "0":
            return ok("no TPU here")
        # Measured with libtpu 0.0.20, in a cloud that is not Google's.
        return warning(
            "this machine has no TPU; `import tensorflow` of tensorflow-tpu "
            "may ask for Google's metadata for minutes",
            "export TPU_LOAD_LIBRARY=0, or in another environment: "
            "pip install -e .",
        )
    variables = filter(machine.environment.get, TPU_VARIABLES)
    signs = ", ".join([*machine.tpu_files, *variables])
    if for_tpus:
        return ok(f"a TPU ({signs}) and the build for it")
    return error(
        f"this machine has a TPU ({signs}), and "
        f"{' and '.join(machine.builds()) or 'no TensorFlow'} cannot use it",
        f"pip uninstall -y tensorflow tensorflow-cpu && {_TPU_INSTALL}",
    )


def check_requirements(machine: Machine) -> Finding:
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return error(
            "the package packaging, which Keras needs, is not installed",
            "pip install packaging",
        )
    wrong: dict[str, str] = {}
    for text in machine.requirements:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        name = normalise(wanted.name)
        names = BUILDS if name == "tensorflow" else (name,)
        found = [n for n in names if n in machine.installed]
        if not any(
            wanted.specifier.contains(machine.installed[n], prereleases=True)
            for n in found
        ):
            wrong[str(wanted)] = (
                f"{found[0]} {machine.installed[found[0]]}"
                if found
                else "not installed"
            )
    if not wrong:
        return ok(f"{len(machine.requirements)} requirements are met")
    return error(
        "unmet requirements: "
        + ", ".join(f"{wanted} ({have})" for wanted, have in wrong.items()),
        _TPU_INSTALL
        if "tensorflow-tpu" in machine.installed
        else "pip install " + " ".join(f"'{wanted}'" for wanted in wrong),
    )


def check_keras(machine: Machine) -> Finding:
    version = machine.installed.get("keras")
    if version is None:
        return error("Keras is not installed", "pip install -e .")
    if numbers_of(version) < (3,):
        return error(
            f"Keras {version} is installed; keras_mixer needs Keras 3",
            "pip install 'keras>=3.15,<4'",
        )
    core = machine.installed.get("keras-core")
    if not core:
        return ok(f"Keras {version}")
    if "keras-cv" in machine.installed:
        return ok(f"Keras {version}; keras-cv asks for keras-core {core}")
    return warning(
        f"keras-core {core}, a preview of Keras 3, is installed; nothing "
        "needs it",
        "pip uninstall -y keras-core",
    )


def check_backend(machine: Machine) -> Finding:
    named = machine.environment.get("KERAS_BACKEND")
    backend = named or machine.keras_json or "tensorflow"
    if backend == "tensorflow":
        return ok("Keras' backend is tensorflow")
    source = "KERAS_BACKEND" if named else "~/.keras/keras.json"
    return error(
        f"{source} selects {backend}: models work with it, training does not",
        "export KERAS_BACKEND=tensorflow",
    )


def check_legacy_keras(machine: Machine) -> Finding:
    value = machine.environment.get("TF_USE_LEGACY_KERAS", "")
    if value.lower() not in ("1", "true"):
        return ok("TF_USE_LEGACY_KERAS is not set")
    return warning(
        f"TF_USE_LEGACY_KERAS={value} turns tf.keras into Keras 2 (tf_keras "
        f"{machine.installed.get('tf-keras', 'is not installed')})",
        "unset TF_USE_LEGACY_KERAS",
    )


def check_tf_config(machine: Machine) -> Finding:
    try:
        cluster = hosts.cluster_of_tf_config(machine.environment)
    except hosts.EngineError as unreadable:
        return error(str(unreadable), "unset TF_CONFIG, or correct it")
    count = sum(map(len, cluster.values()))
    if count < 2:
        return ok("TF_CONFIG names no other host")
    return ok(
        f"TF_CONFIG names {count} workers; run the doctor on all of them at "
        "the same time, because they wait for one another"
    )


def check_slice(machine: Machine) -> Finding:
    count = hosts.hosts_of_slice(machine.environment)
    if count == 1:
        return ok("no other machine of a TPU slice")
    tpu = hosts.tpu_of_environment(machine.environment)
    served = machine.environment.get("TPU_LOAD_LIBRARY") == "0"
    if served and tpu not in (None, "local"):
        return ok(f"one of {count} machines of the TPU slice {tpu}")
    return warning(
        f"this is one of {count} machines of a TPU slice; one program drives "
        "all of them, through their TensorFlow servers, which --tpu=local "
        "cannot do",
        "on the first machine: export TPU_NAME=<its name> TPU_LOAD_LIBRARY=0 "
        "(README, TPUs)",
    )


def check_tpu_lock(machine: Machine) -> Finding:
    if machine.tpu_lock in ("absent", "free"):
        return ok("no other process has the TPU")
    if not machine.has_tpu():
        return ok(f"{TPU_LOCK} is held, but there is no TPU")
    if machine.tpu_lock == "forbidden":
        return error(
            f"{TPU_LOCK} belongs to another user, so libtpu cannot open it",
            f"sudo rm {TPU_LOCK}",
        )
    file = machine.tpu_files[0] if machine.tpu_files else "/dev/accel0"
    return error(
        "another process has the TPU",
        f"`sudo lsof -w {file}` names it: end it, or wait",
    )


def check_memory(machine: Machine) -> Finding:
    free = machine.free_memory
    if free is None:
        return ok("the system does not tell how much memory is free")
    if free >= _LEAST_MEMORY:
        return ok(f"{free / 2**30:.1f} GiB of memory are free")
    return warning(
        f"only {free / 2**30:.1f} GiB of memory are free",
        "end other programs, or lower train.batch_size and data.shuffle_buffer",
    )


def check_disk(machine: Machine) -> Finding:
    free = f"{machine.free_disk / 2**30:.1f} GiB"
    if machine.free_disk >= _LEAST_DISK:
        return ok(f"{free} are free in this folder")
    return warning(
        f"only {free} of disk are free in this folder",
        "give --workdir on another disk, or lower train.keep_checkpoints",
    )


INSTALLATION: tuple[Callable[[Machine], Finding], ...] = (
    check_python,
    check_tensorflow,
    check_libtpu,
    check_build_for_tpus,
    check_requirements,
    check_keras,
    check_backend,
    check_legacy_keras,
    check_tf_config,
    check_slice,
    check_tpu_lock,
    check_memory,
    check_disk,
)


def name_of(check: Callable[..., Finding]) -> str:
    return check.__name__.removeprefix("check_").replace("_", " ")
