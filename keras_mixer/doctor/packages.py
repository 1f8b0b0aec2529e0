"""Which packages are missing here, and what pip should install."""

import re

from keras_mixer.doctor.machine import BUILDS, Machine, normalise, numbers_of

# Reads the data under JAX, and sees no accelerator. Of the versions that
# setup.cfg allows, 2.20 leaves alone what Colab and Kaggle have: it works with
# protobuf 5, and 2.21 needs 6.31.
TENSORFLOW_CPU = "tensorflow-cpu==2.20.0"
TPU_INSTALL = (
    "pip install -r requirements-tpu.txt && pip install --no-deps -e ."
)
_MISSING = "not installed"
_CUDA_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")


def unmet(machine: Machine) -> dict[str, str]:
    """Returns each requirement that is not met, and what is there instead.

    Raises:
      ImportError: The package `packaging` is missing.
    """
    from packaging.requirements import InvalidRequirement, Requirement

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
                else _MISSING
            )
    return wrong


def tensorflow_for_gpus(machine: Machine) -> str | None:
    """Returns the version of a TensorFlow that computes on GPUs."""
    have = machine.installed
    return have.get("tensorflow") or have.get("tf-nightly")


def cuda_plugin(machine: Machine) -> str | None:
    """Returns the distribution by which JAX computes on NVIDIA GPUs."""
    found = [name for name in _CUDA_PLUGINS if name in machine.installed]
    return found[0] if found else None


def jax_package(machine: Machine) -> str:
    """Returns JAX for this machine, as pip names it.

    An installed version stays, because images have others that belong to it.
    """
    version = machine.installed.get("jax")
    extra = ""
    if machine.has_tpu():
        extra = "[tpu]"
    elif machine.has_gpu():
        cuda13 = cuda_plugin(machine) == "jax-cuda13-plugin"
        extra = "[cuda13]" if cuda13 else "[cuda12]"
    return f"jax{extra}=={version}" if version else f"jax{extra}"


def jax_trouble(machine: Machine) -> str:
    """Returns why JAX cannot compute here, or "" if it can.

    The rules are those by which JAX refuses a jaxlib or ignores a plugin.
    """
    have = machine.installed
    jax, jaxlib = have.get("jax"), have.get("jaxlib")
    if jax is None:
        return "JAX is not installed"
    if jaxlib is None:
        return f"jax {jax} is installed without jaxlib"
    if not _belongs(jaxlib, jax):
        return f"jaxlib {jaxlib} does not belong to jax {jax}"
    if machine.has_tpu():
        missing = "libtpu" not in have and "TPU_LIBRARY_PATH" not in (
            machine.environment
        )
        return f"jax {jax} is installed without libtpu" if missing else ""
    if not machine.has_gpu():
        return ""
    plugin = cuda_plugin(machine)
    if plugin is None:
        return f"jax {jax} has no CUDA here and would train on the CPU"
    if not _belongs(have[plugin], jaxlib):
        return f"{plugin} {have[plugin]} does not belong to jaxlib {jaxlib}"
    return ""


def _belongs(part: str, whole: str) -> bool:
    """Whether a part is not newer than the whole, and of the same series."""
    of_part, of_whole = numbers_of(part), numbers_of(whole)
    return of_part <= of_whole and of_part[:2] == of_whole[:2]


def pip_install(machine: Machine) -> str:
    """Returns the command that installs what the engine lacks; "" if nothing.

    It removes nothing.
    """
    try:
        wrong = unmet(machine)
    except ImportError:
        return "pip install packaging"
    if not wrong and not (machine.engine == "jax" and jax_trouble(machine)):
        return ""
    if machine.engine == "tensorflow" and "tensorflow-tpu" in machine.installed:
        return TPU_INSTALL
    wanted = [_wanted(text, have, machine) for text, have in wrong.items()]
    if machine.engine == "jax" and jax_trouble(machine):
        wanted.append(jax_package(machine))
    return "pip install " + " ".join(f"'{package}'" for package in wanted)


def _wanted(requirement: str, have: str, machine: Machine) -> str:
    """Returns what to install for an unmet requirement."""
    name = re.split(r"[^\w.-]", requirement)[0]
    if normalise(name) != "tensorflow":
        return requirement
    # A second build would overwrite the files of the one that is there.
    build = have.split()[0]
    missing = have == _MISSING and machine.engine == "jax"
    if build == "tensorflow-cpu" or missing:
        return TENSORFLOW_CPU
    return f"{build}==2.20.0" if build == "tensorflow-tpu" else requirement
