"""Checks of what is installed. Each function returns one finding.

No check needs TensorFlow. "Measured" in a comment means that it was tried for
this project.
"""

import dataclasses
import functools
from collections.abc import Callable

from keras_mixer.doctor import packages
from keras_mixer.doctor.machine import TPU_LOCK, Machine, numbers_of
from keras_mixer.doctor.packages import TENSORFLOW_CPU, TPU_INSTALL
from keras_mixer.engines import gpus, hosts

# Measured with tensorflow-tpu 2.20.0: libtpu 0.0.20, 0.0.30 and 0.0.31 import;
# 0.0.32, 0.0.36 and 0.0.52 abort. 0.0.20 was released together with 2.20.
_GOOD_LIBTPU = "0.0.20"
_FIRST_LIBTPU = (0, 0, 14)
_FIRST_BAD_LIBTPU = (0, 0, 32)

# Colab's and Kaggle's images have 3.13.2.
_FIRST_KERAS = (3, 13)
GOOD_KERAS = "pip install 'keras>=3.13,<4'"

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
    jax = machine.engine == "jax"
    if not builds and jax:
        return error(
            "TensorFlow, which reads the data, is not installed",
            f"pip install '{TENSORFLOW_CPU}'",
        )
    if not builds:
        return error(
            "TensorFlow is not installed",
            f"pip install -e . (on a TPU: {TPU_INSTALL})",
        )
    if len(builds) == 1:
        return ok(builds[0])
    names = " ".join(build.split()[0] for build in builds)
    if jax:
        install = f"pip install '{TENSORFLOW_CPU}'"
    elif "tensorflow-tpu" in machine.installed:
        install = TPU_INSTALL
    else:
        install = "pip install -e ."
    return error(
        f"{' and '.join(builds)} have overwritten each other's files",
        f"pip uninstall -y {names} && {install}",
    )


def check_libtpu(machine: Machine) -> Finding:
    libtpu = machine.installed.get("libtpu")
    if "tensorflow-tpu" not in machine.installed:
        return _check_libtpu_of_jax(machine)
    build = f"tensorflow-tpu {machine.installed['tensorflow-tpu']}"
    jax = machine.engine == "jax"
    mend = f"pip install libtpu=={_GOOD_LIBTPU}"
    if jax:  # which needs the libtpu that it has
        mend = (
            f"pip uninstall -y tensorflow-tpu && pip install '{TENSORFLOW_CPU}'"
        )
    if libtpu and numbers_of(libtpu) >= _FIRST_BAD_LIBTPU:
        return error(
            f"libtpu {libtpu} makes `import tensorflow` of {build} abort", mend
        )
    if jax:
        return ok(f"{build} only reads the data")
    if libtpu is None:
        return error(f"{build} is installed without libtpu", mend)
    if numbers_of(libtpu) < _FIRST_LIBTPU:
        return error(
            f"{build} needs libtpu 0.0.14 or newer; {libtpu} is installed", mend
        )
    return ok(f"{build} with libtpu {libtpu}")


def _check_libtpu_of_jax(machine: Machine) -> Finding:
    libtpu = machine.installed.get("libtpu")
    if libtpu is None or machine.has_tpu() or machine.engine != "jax":
        return ok(f"libtpu {libtpu or 'not needed'}, no tensorflow-tpu")
    if platforms := machine.environment.get("JAX_PLATFORMS"):
        return ok(f"libtpu {libtpu}; JAX_PLATFORMS={platforms}")
    if not machine.has_gpu():
        return ok(f"libtpu {libtpu}, which the JAX engine ignores on CPUs")
    return warning(
        f"libtpu {libtpu} is installed, and this machine has no TPU; JAX may "
        "look for one for minutes",
        "export JAX_PLATFORMS=cuda,cpu, or: pip uninstall -y libtpu",
    )


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
    signs = machine.tpu_signs()
    if machine.engine == "jax":
        return ok(f"a TPU ({signs}), which JAX drives")
    if for_tpus:
        return ok(f"a TPU ({signs}) and the build for it")
    return error(
        f"this machine has a TPU ({signs}), and "
        f"{' and '.join(machine.builds()) or 'no TensorFlow'} cannot use it",
        "train with --engine=jax; or, for TensorFlow: pip uninstall -y "
        f"tensorflow tensorflow-cpu && {TPU_INSTALL}",
    )


def check_jax(machine: Machine) -> Finding:
    """Whether JAX computes on what this machine has."""
    if machine.engine != "jax":
        return ok("the TensorFlow engine does not need JAX")
    if trouble := packages.jax_trouble(machine):
        return error(
            f"the engine is jax, and {trouble}",
            f"pip install '{packages.jax_package(machine)}'",
        )
    have = machine.installed
    platforms = machine.environment.get("JAX_PLATFORMS", "")
    wanted = "tpu" if machine.has_tpu() else "cuda" if machine.has_gpu() else ""
    if wanted and platforms and wanted not in platforms.replace("gpu", "cuda"):
        return warning(
            f"JAX_PLATFORMS={platforms} hides the {wanted.upper()} device",
            "unset JAX_PLATFORMS",
        )
    parts = filter(have.get, ("libtpu", packages.cuda_plugin(machine) or ""))
    names = ["jax", *(parts if wanted else ())]
    return ok(" with ".join(f"{name} {have[name]}" for name in names))


def check_requirements(machine: Machine) -> Finding:
    try:
        wrong = packages.unmet(machine)
    except ImportError:
        return error(
            "the package packaging, which Keras needs, is not installed",
            "pip install packaging",
        )
    if not wrong:
        return ok(f"{len(machine.requirements)} requirements are met")
    return error(
        "unmet requirements: "
        + ", ".join(f"{wanted} ({have})" for wanted, have in wrong.items()),
        packages.pip_install(machine),
    )


def check_keras(machine: Machine) -> Finding:
    version = machine.installed.get("keras")
    if version is None:
        return error("Keras is not installed", "pip install -e .")
    if numbers_of(version) < _FIRST_KERAS:
        return error(
            f"Keras {version} is installed; keras_mixer needs 3.13 or newer",
            GOOD_KERAS,
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
    if machine.engine == "jax":
        return ok(
            f"one of {count} machines of a TPU slice; start the doctor, like "
            "train.py, on all of them at the same time, because they wait for "
            "one another"
        )
    tpu = hosts.tpu_of_environment(machine.environment)
    served = machine.environment.get("TPU_LOAD_LIBRARY") == "0"
    if served and tpu not in (None, "local"):
        return ok(f"one of {count} machines of the TPU slice {tpu}")
    return warning(
        f"this is one of {count} machines of a TPU slice; one program drives "
        "all of them, through their TensorFlow servers, which --tpu=local "
        "cannot do",
        "train with --engine=jax on each machine; or, for TensorFlow on the "
        "first one: export TPU_NAME=<its name> TPU_LOAD_LIBRARY=0 "
        "(docs/tpus.md)",
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


def judge_gpus(machine: Machine) -> list[Finding]:
    """Returns findings on the compute capability of the GPUs."""
    found = machine.visible_gpus
    troubles = gpus.check_gpus(
        found,
        engine=machine.engine,
        tensorflow_version=packages.tensorflow_for_gpus(machine),
        precision="float32",  # auto takes bfloat16 only where it is fast
    )
    names = [f"{g.name}, driver {g.driver}" for g in found]
    return [Finding(*trouble) for trouble in troubles] or [
        ok(", ".join(dict.fromkeys(names)) or "no NVIDIA GPU is visible")
    ]


INSTALLATION: tuple[Callable[[Machine], Finding], ...] = (
    check_python,
    check_tensorflow,
    check_libtpu,
    check_build_for_tpus,
    check_jax,
    check_requirements,
    check_keras,
    check_legacy_keras,
    check_tf_config,
    check_slice,
    check_tpu_lock,
    check_memory,
    check_disk,
)


def name_of(check: Callable[..., Finding]) -> str:
    return check.__name__.removeprefix("check_").replace("_", " ")
