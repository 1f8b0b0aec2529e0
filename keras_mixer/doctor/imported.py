"""Checks of what TensorFlow said in a process of its own."""

from collections.abc import Callable
from typing import Any

from keras_mixer.doctor.checks import (
    Finding,
    check_jax,
    check_libtpu,
    check_tensorflow,
    error,
    ok,
)
from keras_mixer.doctor.machine import TPU_LOCK, Machine
from keras_mixer.doctor.probe import Answer


def check_import(machine: Machine, answer: Answer) -> Finding:
    if answer.ended is None:
        return ok(f"TensorFlow {answer.said['tensorflow']} imports")
    other = machine.environment.get("TPU_LIBRARY_PATH")
    builds = machine.builds()
    libtpu = other or machine.installed.get("libtpu")
    culprits = [*([f"libtpu {libtpu}"] if libtpu else []), *builds]
    names = " ".join(f"'{build.replace(' ', '==')}'" for build in builds)
    ways_out = (
        "unset TPU_LIBRARY_PATH" if other else "",
        check_tensorflow(machine).way_out,
        check_libtpu(machine).way_out,
        f"pip install --force-reinstall --no-deps {names}",
    )
    return error(
        f"import tensorflow {answer.ended}: "
        f"{' with '.join(culprits) or 'not installed'}{answer.last_words()}",
        next(filter(None, ways_out)),
    )


def check_reduction(machine: Machine, answer: Answer) -> Finding:
    """`engines/optim.py` clips gradients inside a private method of Keras.

    The JAX engine does without it.
    """
    keras = answer.said.get("keras")
    if keras is None:
        return error(
            f"import keras failed: {answer.said.get('keras_error')}",
            check_jax(machine).way_out
            or "pip install --force-reinstall 'keras>=3.13,<4'",
        )
    if machine.engine == "jax":
        return ok(f"Keras {keras} imports with the backend jax")
    if answer.said.get("reduces_gradients"):
        return ok(f"Keras {keras} has the method that clips gradients")
    return error(
        f"Keras {keras} with the backend {answer.said.get('backend')} has no "
        "Optimizer._all_reduce_sum_gradients, which keras_mixer needs to clip "
        "gradients",
        "export KERAS_BACKEND=tensorflow; pip install 'keras>=3.13,<3.16'",
    )


def check_gpus(machine: Machine, answer: Answer) -> Finding:
    if machine.engine == "jax":
        return ok("the JAX engine hides the GPUs from TensorFlow")
    seen = answer.kinds().count("GPU")
    if seen:
        return ok(f"TensorFlow sees {seen} GPUs")
    if not (machine.nvidia_files or machine.gpus):
        return ok("no NVIDIA GPU here")
    hidden = machine.environment.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        return ok(f"CUDA_VISIBLE_DEVICES={hidden} hides the GPUs")
    what = ", ".join(machine.gpus or machine.nvidia_files)
    return error(
        f"TensorFlow sees no GPU; this machine has {what}",
        "pip install 'tensorflow[and-cuda]>=2.20,<2.22' (to use the CPU "
        "instead: export CUDA_VISIBLE_DEVICES=-1)",
    )


def check_tpus(machine: Machine, answer: Answer) -> Finding:
    if machine.engine == "jax":
        return ok("the JAX engine does not use TensorFlow's devices")
    seen = answer.kinds().count("TPU")
    if seen:
        return ok(f"TensorFlow sees {seen} TPU devices")
    if not machine.tpu_files or "tensorflow-tpu" not in machine.installed:
        return ok("no TPU for TensorFlow to see")
    if "TPU_SYSTEM" in answer.kinds():
        return ok(
            "TensorFlow has the TPU's library; the step shows if it works"
        )
    if machine.environment.get("TPU_LOAD_LIBRARY") == "0":
        return ok("TPU_LOAD_LIBRARY=0 leaves the TPU to TensorFlow's servers")
    return error(
        f"TensorFlow sees no TPU; this machine has "
        f"{', '.join(machine.tpu_files)}{answer.last_words()}",
        f"`sudo lsof -w {machine.tpu_files[0]}` names a process that has it; "
        f"if there is none: sudo rm {TPU_LOCK}",
    )


CHECKS: tuple[Callable[[Machine, Answer], Finding], ...] = (
    check_import,
    check_reduction,
    check_gpus,
    check_tpus,
)


def judge_step(answer: Answer) -> list[Finding]:
    """Returns a finding for each precision in which steps were trained."""
    failed = answer.said.get("error") or (
        answer.ended and f"the process {answer.ended}{answer.last_words()}"
    )
    if failed:
        return [
            error(
                f"no step could be trained: {failed}",
                "mend the errors above first; if there are none, the message "
                "says what is missing",
            )
        ]
    return [_judge_precision(step) for step in answer.said["steps"]]


def _judge_precision(step: dict[str, Any]) -> Finding:
    text = (
        f"{step['precision']}: loss {step['losses'][0]:.3f}, "
        f"{step['first_seconds']:.1f} s to compile and train one step, "
        f"then {step['step_seconds'] * 1e3:.1f} ms a step"
    )
    if not step["xla"]:
        text += ", without XLA, which this TensorFlow does not have for CPUs"
    if step["finite"]:
        return ok(text)
    return error(
        f"{text}; losses {step['losses']} and gradient norms "
        f"{step['gradient_norms']} are not all finite",
        "pip install --force-reinstall with the versions of setup.cfg "
        "(on a TPU: requirements-tpu.txt)",
    )
