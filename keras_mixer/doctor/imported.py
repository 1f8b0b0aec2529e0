"""Checks of what a process said that imported TensorFlow."""

from collections.abc import Callable

from keras_mixer.doctor.checks import (
    Finding,
    check_libtpu,
    check_tensorflow,
    ok,
)
from keras_mixer.doctor.machine import TPU_LOCK, Machine
from keras_mixer.doctor.probe import Answer


def check_import(machine: Machine, answer: Answer) -> Finding:
    if answer.ended is None:
        return ok(f"TensorFlow {answer.said['tensorflow']} imports")
    other = machine.environment.get("TPU_LIBRARY_PATH")
    libtpu = other or machine.installed.get("libtpu")
    culprit = " with ".join(
        [*([f"libtpu {libtpu}"] if libtpu else []), *machine.builds()]
    )
    known = [check_tensorflow(machine), check_libtpu(machine)]
    names = " ".join(f"'{x.replace(' ', '==')}'" for x in machine.builds())
    ways_out = [
        *(["unset TPU_LIBRARY_PATH"] if other else []),
        *(finding.way_out for finding in known if finding.way_out),
        f"pip install --force-reinstall --no-deps {names or '-e .'}",
    ]
    return Finding(
        "error",
        f"import tensorflow {answer.ended}: {culprit or 'not installed'}"
        + (f". Its last words: {answer.words}" if answer.words else ""),
        ways_out[0],
    )


def check_reduction(machine: Machine, answer: Answer) -> Finding:
    """`optim.py` clips gradients inside a private method of Keras."""
    keras = answer.said.get("keras")
    if keras is None:
        return Finding(
            "error",
            f"import keras failed: {answer.said.get('keras_error')}",
            "pip install --force-reinstall 'keras>=3.15,<4'",
        )
    if answer.said.get("reduces_gradients"):
        return ok(f"Keras {keras} reduces gradients where they are clipped")
    return Finding(
        "error",
        f"Keras {keras} with the backend {answer.said.get('backend')} has no "
        "Optimizer._all_reduce_sum_gradients, in which keras_mixer clips",
        "export KERAS_BACKEND=tensorflow; pip install 'keras>=3.15,<3.16'",
    )


def check_gpus(machine: Machine, answer: Answer) -> Finding:
    seen = answer.kinds().count("GPU")
    if seen:
        return ok(f"TensorFlow sees {seen} GPUs")
    if not (machine.nvidia_files or machine.gpus):
        return ok("no NVIDIA GPU here")
    hidden = machine.environment.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        return ok(f"CUDA_VISIBLE_DEVICES={hidden} hides the GPUs")
    what = ", ".join(machine.gpus or machine.nvidia_files)
    return Finding(
        "error",
        f"there is an NVIDIA GPU ({what}), and TensorFlow sees none",
        "pip install 'tensorflow[and-cuda]>=2.20,<2.22' (on the CPU on "
        "purpose: export CUDA_VISIBLE_DEVICES=-1)",
    )


def check_tpus(machine: Machine, answer: Answer) -> Finding:
    seen = answer.kinds().count("TPU")
    if seen:
        return ok(f"TensorFlow sees {seen} TPU devices")
    if not machine.tpu_files or "tensorflow-tpu" not in machine.installed:
        return ok("no TPU for TensorFlow to see")
    if "TPU_SYSTEM" in answer.kinds():
        return ok("TensorFlow has the TPU's library; a step shows the rest")
    if machine.environment.get("TPU_LOAD_LIBRARY") == "0":
        return ok("TPU_LOAD_LIBRARY=0 leaves the TPU to TensorFlow's servers")
    return Finding(
        "error",
        f"TensorFlow sees no TPU of {', '.join(machine.tpu_files)}"
        + (f". Its last words: {answer.words}" if answer.words else ""),
        f"sudo lsof -w {machine.tpu_files[0]} names a process that has it; "
        f"without one: sudo rm {TPU_LOCK}",
    )


CHECKS: tuple[Callable[[Machine, Answer], Finding], ...] = (
    check_import,
    check_reduction,
    check_gpus,
    check_tpus,
)
