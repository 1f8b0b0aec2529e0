"""Checks of what is installed, each a function that returns one finding.

None of them needs TensorFlow. "Measured" in a comment: tried for this project.
"""

import dataclasses
from collections.abc import Callable

from keras_mixer.doctor.machine import (
    BUILDS,
    TPU_LOCK,
    TPU_VARIABLES,
    Machine,
    normalise,
)
from keras_mixer.engines import hosts

# Measured with tensorflow-tpu 2.20.0: 0.0.20, 0.0.30 and 0.0.31 import;
# 0.0.32, 0.0.36 and 0.0.52 abort. 0.0.20 is of the same season as 2.20.
GOOD_LIBTPU = "0.0.20"
_FIRST_BAD_LIBTPU = (0, 0, 32)

_TPU_INSTALL = (
    "pip install -r requirements-tpu.txt && pip install --no-deps -e ."
)
_LEAST_MEMORY = 2 * 2**30
_LEAST_DISK = 2 * 2**30


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
      level: "ok", "warning" or "error". One error makes a machine unhealthy.
      text: What is so.
      way_out: The command or setting that mends it; empty where all is well.
    """

    level: str
    text: str
    way_out: str = ""


def ok(text: str) -> Finding:
    return Finding("ok", text)


def check_python(machine: Machine) -> Finding:
    version = ".".join(map(str, machine.python))
    if (3, 11) <= machine.python < (3, 14):
        return ok(f"Python {version}")
    return Finding(
        "error",
        f"Python {version}; keras_mixer needs 3.11, 3.12 or 3.13",
        "python3.12 -m venv .venv && .venv/bin/pip install -e .",
    )


def check_tensorflow(machine: Machine) -> Finding:
    builds = machine.builds()
    if not builds:
        return Finding(
            "error",
            "TensorFlow is not installed",
            f"pip install -e . (on a TPU: {_TPU_INSTALL})",
        )
    if len(builds) == 1:
        return ok(builds[0])
    names = " ".join(build.split()[0] for build in builds)
    mend = (
        _TPU_INSTALL
        if "tensorflow-tpu" in machine.installed
        else "pip install -e ."
    )
    return Finding(
        "error",
        f"{' and '.join(builds)} have overwritten each other's files",
        f"pip uninstall -y {names} && {mend}",
    )


def check_libtpu(machine: Machine) -> Finding:
    version = machine.installed.get("libtpu")
    if "tensorflow-tpu" not in machine.installed:
        return ok(f"libtpu {version or 'not needed'}, no tensorflow-tpu")
    both = f"tensorflow-tpu {machine.installed['tensorflow-tpu']}"
    mend = f"pip install libtpu=={GOOD_LIBTPU}"
    if version is None:
        return Finding("error", f"{both} without libtpu", mend)
    numbers = machine.version("libtpu") or ()
    if numbers >= _FIRST_BAD_LIBTPU:
        return Finding(
            "error",
            f"libtpu {version} lets `import tensorflow` of {both} abort",
            mend,
        )
    if numbers < (0, 0, 14):
        return Finding("error", f"{both} needs libtpu 0.0.14 at least", mend)
    return ok(f"{both} with libtpu {version}")


def check_build_for_tpus(machine: Machine) -> Finding:
    if not machine.has_tpu():
        if (
            "tensorflow-tpu" not in machine.installed
            or machine.environment.get("TPU_LOAD_LIBRARY") == "0"
        ):
            return ok("no TPU here")
        # Measured with libtpu 0.0.20, in a cloud that is not Google's.
        return Finding(
            "warning",
            "without a TPU `import tensorflow` of tensorflow-tpu can ask for "
            "Google's metadata for minutes",
            "export TPU_LOAD_LIBRARY=0, or in another environment: "
            "pip install -e .",
        )
    signs = [*machine.tpu_files] + [
        name for name in TPU_VARIABLES if machine.environment.get(name)
    ]
    if "tensorflow-tpu" in machine.installed:
        return ok(f"a TPU ({', '.join(signs)}) and the build for it")
    return Finding(
        "error",
        f"this is a machine with a TPU ({', '.join(signs)}), and "
        f"{' and '.join(machine.builds()) or 'no TensorFlow'} cannot use it",
        f"pip uninstall -y tensorflow tensorflow-cpu && {_TPU_INSTALL}",
    )


def check_requirements(machine: Machine) -> Finding:
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return Finding(
            "error",
            "the package packaging, which Keras needs, is not installed",
            "pip install packaging",
        )
    wrong = []
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
        right = [
            n
            for n in found
            if wanted.specifier.contains(machine.installed[n], prereleases=True)
        ]
        if not right:
            have = (
                " ".join([*found[:1], machine.installed.get(found[0], "")])
                if found
                else "not installed"
            )
            wrong.append((str(wanted), have, found[0] if found else name))
    if not wrong:
        return ok(f"{len(machine.requirements)} requirements are met")
    tpu = "tensorflow-tpu" in machine.installed
    mend = " ".join(f"'{wanted}'" for wanted, _, _ in wrong)
    return Finding(
        "error",
        "not as keras_mixer needs it: "
        + ", ".join(f"{wanted} ({have})" for wanted, have, _ in wrong),
        _TPU_INSTALL if tpu else f"pip install {mend}",
    )


def check_keras(machine: Machine) -> Finding:
    keras = machine.version("keras")
    if keras is None:
        return Finding("error", "Keras is not installed", "pip install -e .")
    version = machine.installed["keras"]
    if keras < (3,):
        return Finding(
            "error",
            f"Keras {version} is of another kind than Keras 3",
            "pip install 'keras>=3.15,<4'",
        )
    core = machine.installed.get("keras-core")
    if core and "keras-cv" not in machine.installed:
        return Finding(
            "warning",
            f"keras-core {core}, the preview of Keras 3, which nothing needs",
            "pip uninstall -y keras-core",
        )
    return ok(
        f"Keras {version}"
        + (f"; keras-cv asks for keras-core {core}" if core else "")
    )


def check_backend(machine: Machine) -> Finding:
    named = machine.environment.get("KERAS_BACKEND")
    backend = named or machine.keras_json or "tensorflow"
    source = "KERAS_BACKEND" if named else "~/.keras/keras.json"
    if backend == "tensorflow":
        return ok("Keras' backend is tensorflow")
    return Finding(
        "error",
        f"{source} says {backend}: models work with it, training does not",
        "export KERAS_BACKEND=tensorflow",
    )


def check_legacy_keras(machine: Machine) -> Finding:
    value = machine.environment.get("TF_USE_LEGACY_KERAS", "")
    if value.lower() not in ("1", "true"):
        return ok("TF_USE_LEGACY_KERAS is not set")
    return Finding(
        "warning",
        f"TF_USE_LEGACY_KERAS={value}: tf.keras is Keras 2 (tf_keras "
        f"{machine.installed.get('tf-keras', 'is not installed')})",
        "unset TF_USE_LEGACY_KERAS",
    )


def check_tf_config(machine: Machine) -> Finding:
    try:
        cluster = hosts.cluster_of_tf_config(machine.environment)
    except hosts.DistributeError as error:
        return Finding("error", str(error), "unset TF_CONFIG, or correct it")
    count = sum(map(len, cluster.values()))
    if count < 2:
        return ok("TF_CONFIG names no other host")
    return ok(
        f"TF_CONFIG names {count} workers; the doctor has to run on all of "
        "them at the same time, because they wait for one another"
    )


def check_slice(machine: Machine) -> Finding:
    count = hosts.hosts_of_slice(machine.environment)
    if count == 1:
        return ok("no other machine of a TPU slice")
    tpu = hosts.tpu_of_environment(machine.environment)
    if (
        tpu not in (None, "local")
        and machine.environment.get("TPU_LOAD_LIBRARY") == "0"
    ):
        return ok(f"one of {count} machines of the TPU slice {tpu}")
    return Finding(
        "warning",
        f"this is one of {count} machines of a TPU slice, which one program "
        "drives through the TensorFlow servers of all of them; --tpu=local "
        "cannot",
        "on the first machine: export TPU_NAME=<its name> TPU_LOAD_LIBRARY=0 "
        "(README, TPUs)",
    )


def check_tpu_lock(machine: Machine) -> Finding:
    if machine.tpu_lock in ("absent", "free"):
        return ok("no other process has the TPU")
    if not machine.has_tpu():
        return ok(f"{TPU_LOCK} is held, and there is no TPU")
    if machine.tpu_lock == "forbidden":
        return Finding(
            "error",
            f"{TPU_LOCK} is another user's, and libtpu cannot open it",
            f"sudo rm {TPU_LOCK}",
        )
    file = machine.tpu_files[0] if machine.tpu_files else "/dev/accel0"
    return Finding(
        "error",
        "another process has the TPU",
        f"sudo lsof -w {file} names it: end it, or wait",
    )


def check_memory(machine: Machine) -> Finding:
    free = machine.free_memory
    if free is None:
        return ok("the system does not tell how much memory is free")
    if free >= _LEAST_MEMORY:
        return ok(f"{free / 2**30:.1f} GiB of memory are free")
    return Finding(
        "warning",
        f"only {free / 2**30:.1f} GiB of memory are free",
        "end other programs, or lower train.batch_size and data.shuffle_buffer",
    )


def check_disk(machine: Machine) -> Finding:
    free = machine.free_disk
    if free is None or free >= _LEAST_DISK:
        return ok(f"{(free or 0) / 2**30:.1f} GiB are free in this folder")
    return Finding(
        "warning",
        f"only {free / 2**30:.1f} GiB of disk are free in this folder",
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
