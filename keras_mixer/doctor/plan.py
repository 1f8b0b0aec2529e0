"""What kind of machine this is, which engine works there, what to type."""

import dataclasses
import os
from collections.abc import Sequence

from keras_mixer.doctor import packages
from keras_mixer.doctor.checks import Finding, error, ok, warning
from keras_mixer.doctor.machine import Machine
from keras_mixer.engines import choice, gpus, hosts, precision
from keras_mixer.engines.choice import Choice

SLICE = "host of a TPU slice"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to train on a machine."""

    kind: str  # "Colab TPU", "CUDA machine", ...; see `kind_of`
    engine: str  # "tensorflow" or "jax"
    reason: str
    install: str  # the command that installs what is missing; "" if nothing is
    command: str  # the command that trains
    precision: Choice  # the fastest model.precision of the machine
    finding: Finding  # on --engine, KERAS_BACKEND and what they choose


def kind_of(machine: Machine) -> str:
    """Returns a name for machines of this kind.

    It is "Colab" or "Kaggle" with "TPU", "GPU" or "CPU"; elsewhere "TPU VM",
    "host of a TPU slice", "CUDA machine" or "CPU".
    """
    place = hosts.notebook_service(machine.environment)
    if machine.has_tpu():
        if hosts.hosts_of_slice(machine.environment) > 1:
            return SLICE
        return f"{place} TPU" if place else "TPU VM"
    if machine.has_gpu():
        return f"{place} GPU" if place else "CUDA machine"
    return f"{place} CPU".strip()


def best_engine(machine: Machine) -> Choice:
    """Returns the engine that works on what this machine has."""
    have = machine.installed
    if machine.has_tpu():
        name = machine.environment.get("TPU_NAME", "local")
        if not machine.tpu_files and name != "local":
            return Choice(
                "tensorflow", f"TPU_NAME={name} names a TPU elsewhere"
            )
        if "tensorflow-tpu" in have and "jax" not in have:
            return Choice(
                "tensorflow", "tensorflow-tpu is installed, and JAX is not"
            )
        signs = ", ".join(machine.tpu_files) or machine.tpu_signs()
        return Choice("jax", f"there is a TPU ({signs})")
    if not machine.has_gpu():
        return Choice("tensorflow", "there is no TPU")
    version = packages.tensorflow_for_gpus(machine)
    troubles = gpus.check_gpus(
        machine.visible_gpus,
        engine="tensorflow",
        tensorflow_version=version,
        precision="float32",
    )
    if troubles:
        return Choice("jax", troubles[0].text)
    if version is None and packages.cuda_plugin(machine):
        return Choice("jax", "it has CUDA here, and TensorFlow has not")
    return Choice("tensorflow", "there is a GPU")


def make_plan(
    machine: Machine, asked: str = "auto", flags: Sequence[str] = ()
) -> Plan:
    """Returns the plan for a machine.

    The engine is the one that is asked for, by --engine, KERAS_BACKEND or a
    flag of TensorFlow's engine; otherwise the one that works.

    Args:
      machine: The machine.
      asked: One of `choice.ENGINES`.
      flags: As in `choice.choose_engine`.
    """
    best = best_engine(machine)
    free = (
        asked == "auto"
        and not flags
        and not machine.environment.get("KERAS_BACKEND")
        and machine.keras_json in (None, "tensorflow")
    )
    chosen, finding = _choose(machine, asked, flags)
    if chosen is None:
        chosen = best if asked == "auto" else Choice(asked, "it is asked for")
    elif free:
        if chosen.name == best.name:
            finding = ok(f"{best.name}: {best.reason}")
        else:
            finding = warning(
                f"train.py without --engine takes {chosen.name} "
                f"({chosen.reason}), and {best.name} works here: {best.reason}",
                f"--engine={best.name}",
            )
        chosen = best
    kind = kind_of(machine)
    machine = dataclasses.replace(machine, engine=chosen.name)
    install = packages.pip_install(machine)
    train = " ".join(["python train.py", f"--engine={chosen.name}", *flags])
    if kind == SLICE and chosen.name == "jax":
        train = _on_all_hosts(train)
        install = install and _on_all_hosts(install)
    fastest = precision.best_precision(
        is_tpu=machine.has_tpu(),
        gpus=machine.visible_gpus if machine.has_gpu() else None,
    )
    return Plan(kind, *chosen, install, train, fastest, finding)


def _on_all_hosts(command: str) -> str:
    return (
        "gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all "
        f'--command="cd keras_mixer && {command}"'
    )


def _choose(
    machine: Machine, asked: str, flags: Sequence[str]
) -> tuple[Choice | None, Finding]:
    """Asks what train.py asks; returns no choice if that is an error."""
    environment = dict(machine.environment)
    if machine.keras_json is None:
        environment["KERAS_HOME"] = os.devnull  # with no file in it
    backend = environment.get("KERAS_BACKEND")
    # check_jax reports that an engine which is named is missing.
    present = {*machine.installed, asked, backend, machine.keras_json}
    try:
        chosen = choice.choose_engine(
            asked,
            environment,
            flags=flags,
            tpus=machine.tpu_files,
            installed=lambda module: module in present,
        )
    except hosts.EngineError as wrong:
        if backend and backend != asked:
            way_out = "unset KERAS_BACKEND"
        elif flags:
            way_out = f"leave out {' '.join(flags)}"
        else:
            way_out = f"--engine={best_engine(machine).name}"
        return None, error(str(wrong), way_out)
    return chosen, ok(f"{chosen.name}: {chosen.reason}")
