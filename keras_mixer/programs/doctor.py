"""Reports what is wrong with this machine, and the command that fixes it.

The program behind `python -m keras_mixer.doctor`. It imports only the standard
library and modules of this package that do the same, because anything else may
be missing or broken.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import keras_mixer
from keras_mixer.doctor import (
    checks,
    imported,
    machine as machine_lib,
    plan as plan_lib,
    probe,
)
from keras_mixer.doctor.checks import Finding
from keras_mixer.engines import choice, hosts
from keras_mixer.run import files

_DESCRIPTION = """Says what kind of machine this is, which engine works here and
what to type, looks for combinations that are known not to work, and trains a
step of a tiny Mixer with that engine, on the strategy that train.py would take.
The exit status is 0 if a run can start here and 1 if not; warnings do not
count."""

_SHOWN = (
    *("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "libtpu", "keras"),
    *("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "numpy"),
    *("tensorflow-datasets", "keras-cv", "tensorboard"),
)

# docs/benchmarks.md, "Both engines on a CPU".
_XLA_OF_TENSORFLOW = (
    "it is the default: on a CPU an update takes less time and memory with it "
    "(train.xla=false: off)"
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the other programs do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def _path(text: str) -> str:
    """Reads a path, in which a leading ~ is a home folder."""
    if not text:
        raise argparse.ArgumentTypeError("a path is missing after the =")
    try:
        return files.expand(text)
    except ValueError as error:  # argparse would not show it
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    """Reads a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(
            f"must be a number of seconds above 0. Received: {text!r}"
        )
    return number


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the flags; ends the program if they cannot be used."""
    parser = _Parser(
        prog="python -m keras_mixer.doctor", description=_DESCRIPTION
    )
    parser.add_argument(
        "--engine",
        default="auto",
        choices=choice.ENGINES,
        help="as in train.py",
    )
    parser.add_argument(
        "--strategy",
        default="auto",
        choices=hosts.STRATEGIES,
        help="as in train.py",
    )
    parser.add_argument(
        "--virtual_devices",
        type=int,
        metavar="N",
        help="split the CPU into so many devices",
    )
    parser.add_argument(
        "--tpu",
        metavar="NAME",
        help="local, or the name or grpc:// addresses of a TPU",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=_path,
        help="write the findings there, too",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=600,
        metavar="SECONDS",
        help="how long the step may take, compiling and waiting for other "
        "hosts included (600)",
    )
    flags = parser.parse_args(arguments)
    try:
        if flags.virtual_devices is not None:
            hosts.check_virtual_devices(flags.virtual_devices)
        if flags.engine != "jax":
            hosts.check_device_flags(
                flags.strategy, flags.tpu, flags.virtual_devices
            )
        if flags.json is not None:
            files.check_file(flags.json, "--json")
    except ValueError as error:
        parser.error(str(error))
    return flags


def say(name: str, finding: Finding) -> None:
    print(f"  {finding.level:<8} {name:<15} {finding.text}")
    if finding.way_out:
        print(f"  {'':<8} {'':<15} way out: {finding.way_out}", flush=True)


def versions_of(machine: machine_lib.Machine) -> dict[str, str]:
    """Returns the versions that matter."""
    return {
        "python": ".".join(map(str, machine.python)),
        "keras_mixer": keras_mixer.__version__,
        **{n: machine.installed[n] for n in _SHOWN if n in machine.installed},
    }


def say_machine(machine: machine_lib.Machine) -> None:
    """Prints what is installed and what there is to compute with."""
    print("Versions")
    for name, version in versions_of(machine).items():
        print(f"  {name:<24} {version}")
    print("Machine")
    memory = "memory unknown"
    if machine.memory and machine.free_memory:
        memory = (
            f"{machine.memory / 2**30:.1f} GiB of memory, "
            f"{machine.free_memory / 2**30:.1f} GiB free"
        )
    print(f"  {machine.cores} CPU cores, {memory}")
    for text in (*machine.gpus, *machine.tpu_files):
        print(f"  {text}")


def say_plan(plan: plan_lib.Plan) -> None:
    """Prints what to type on this machine."""
    print("How to train here")
    print(f"  {'kind of machine':<15} {plan.kind}")
    print(f"  {'engine':<15} {plan.engine}, because {plan.reason}")
    precision, reason = plan.precision
    print(f"  {'precision':<15} model.precision={precision}, because {reason}")
    xla = "JAX always compiles" if plan.engine == "jax" else _XLA_OF_TENSORFLOW
    print(f"  {'XLA':<15} on, because {xla}")
    if plan.install:
        print(f"  {'install':<15} {plan.install}")
    print(f"  {'train':<15} {plan.command}", flush=True)


def flags_of_tensorflow(flags: argparse.Namespace) -> list[str]:
    """Returns the flags that only the TensorFlow engine has."""
    given = [] if flags.strategy == "auto" else [f"--strategy={flags.strategy}"]
    return [*given, *([f"--tpu={flags.tpu}"] if flags.tpu else [])]


def additional_variables(
    machine: machine_lib.Machine, plan: plan_lib.Plan, virtual: bool
) -> dict[str, str]:
    """Returns the variables that the doctor's processes get in addition."""
    before = dict(machine.environment)
    if not machine.has_tpu():  # see checks.check_build_for_tpus
        before["TPU_SKIP_MDS_QUERY"] = "1"
    after = dict(before)
    engine = choice.Choice(plan.engine, plan.reason)
    choice.use_engine(engine, after, virtual=virtual)
    return {k: v for k, v in after.items() if machine.environment.get(k) != v}


class Findings:
    """Collects findings and prints each."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Finding]] = []

    def add(self, name: str, *findings: Finding) -> None:
        for finding in findings:
            self.found.append((name, finding))
            say(name, finding)

    def count(self, level: str) -> int:
        return sum(finding.level == level for _, finding in self.found)


def train_step(
    flags: argparse.Namespace,
    plan: plan_lib.Plan,
    environment: dict[str, str],
    findings: Findings,
) -> dict[str, Any]:
    """Trains a step in a process of its own; returns what that says."""
    print("A step of training", flush=True)
    devices = {
        "engine": plan.engine,
        "strategy": flags.strategy,
        "virtual_devices": flags.virtual_devices,
        "tpu": flags.tpu,
    }
    trained = probe.ask_for_step(devices, flags.timeout, environment)
    if "description" in trained.said:
        said = trained.said
        reason = f", because {said['reason']}" if said["reason"] else ""
        print(f"  {said['description']}{reason}")
    findings.add("step", *imported.judge_step(trained))
    return trained.said


def examine(flags: argparse.Namespace) -> dict[str, Any]:
    """Checks and tries everything, and prints it; returns what --json gets."""
    machine = machine_lib.look()
    plan = plan_lib.make_plan(machine, flags.engine, flags_of_tensorflow(flags))
    machine = dataclasses.replace(machine, engine=plan.engine)
    findings = Findings()
    say_machine(machine)
    say_plan(plan)
    print("Installation", flush=True)
    findings.add("engine", plan.finding)
    for check in checks.INSTALLATION:
        findings.add(checks.name_of(check), check(machine))
    findings.add("capability", *checks.judge_gpus(machine))
    print("TensorFlow, imported by a process of its own", flush=True)
    environment = additional_variables(
        machine, plan, flags.virtual_devices is not None
    )
    answer = probe.ask_tensorflow(environment)
    for device in answer.said.get("devices", []):
        details = ", ".join(device["details"].values())
        print(f"  {device['name']} {details}".rstrip())
    for seen in imported.CHECKS:
        # Without an import the others have nothing to judge.
        if answer.ended is None or seen is imported.check_import:
            findings.add(checks.name_of(seen), seen(machine, answer))
    step: dict[str, Any] = {}
    if answer.ended is None:
        step = train_step(flags, plan, environment, findings)
    return {
        "healthy": not findings.count("error"),
        "errors": findings.count("error"),
        "warnings": findings.count("warning"),
        "kind": plan.kind,
        "engine": plan.engine,
        "reason": plan.reason,
        "precision": plan.precision.name,
        "install": plan.install,
        "command": plan.command,
        "versions": versions_of(machine),
        "devices": answer.said.get("devices", []),
        "cores": machine.cores,
        "memory": machine.memory,
        "free_memory": machine.free_memory,
        "step": step,
        "findings": [
            {"check": name, **dataclasses.asdict(finding)}
            for name, finding in findings.found
        ],
    }


def main(arguments: Sequence[str]) -> int:
    """Examines the machine; returns the exit status."""
    flags = parse(arguments)
    report = examine(flags)
    if flags.json:
        try:
            files.write_json(flags.json, report)
        except OSError as error:
            print(f"error: --json={flags.json}: {error.strerror}")
            return 1
    counts = ", ".join(
        f"{report[kind]} {kind if report[kind] != 1 else kind[:-1]}"
        for kind in ("errors", "warnings")
    )
    if report["healthy"]:
        print(f"Healthy: training can start here ({counts}).")
    else:
        print(f"Not healthy: {counts}.")
    return 0 if report["healthy"] else 1


def run() -> None:
    """Entry point."""
    sys.exit(main(sys.argv[1:]))
