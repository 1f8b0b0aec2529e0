"""Asks other processes, which may die of what they try.

Run as a program, this file imports TensorFlow and prints as JSON what it sees.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# Keeps TensorFlow's errors and drops its warnings.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2"}
_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a process said and how it ended."""

    said: dict[str, Any]  # the object in its last line of output; {} if none
    ended: str | None = None  # "aborts ..."; None if all went well
    words: str = ""  # the last lines that it wrote to stderr

    def kinds(self) -> list[str]:
        """Returns the kind of each device that TensorFlow sees."""
        return [device["kind"] for device in self.said.get("devices", [])]

    def last_words(self) -> str:
        """Returns the end of a message: what the process wrote to stderr."""
        return f". Its last words: {self.words}" if self.words else ""


def ask_tensorflow(environment: Mapping[str, str]) -> Answer:
    """Imports TensorFlow in a process with these additional variables."""
    # -P keeps this file's folder off the path.
    return ask([sys.executable, "-P", __file__], 300, environment)


def ask_for_step(
    devices: Mapping[str, Any], timeout: float, environment: Mapping[str, str]
) -> Answer:
    """Calls `smoke.main(**devices)` in a process of its own; see `ask`."""
    program = [sys.executable, "-m", "keras_mixer.doctor.smoke"]
    # The process finds this package from any folder.
    path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return ask(
        [*program, json.dumps(devices)],
        timeout,
        {**environment, "PYTHONPATH": os.pathsep.join(path)},
    )


def ask(
    command: list[str], timeout: float, environment: Mapping[str, str]
) -> Answer:
    """Runs a program that prints a JSON object in its last line.

    It may take `timeout` seconds, and has the variables of `environment` in
    addition to this process's own.
    """
    try:
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**_QUIET, **os.environ, **environment},
        )
    except subprocess.TimeoutExpired as late:
        words = (late.stderr or b"").decode("utf8", "replace")
        return Answer(
            {}, f"has not ended after {timeout:.0f} s", _last_lines(words)
        )
    try:
        said = json.loads(process.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        said = None
    if not isinstance(said, dict):
        said = {}
    silent = None if said else "says nothing"
    ended = _how_it_ended(process.returncode) or silent
    return Answer(said, ended, _last_lines(process.stderr))


def _how_it_ended(code: int) -> str | None:
    if code == 0:
        return None
    if code > 0:
        return f"fails (exit status {code})"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    verb = "aborts" if name == "SIGABRT" else "dies"
    return f"{verb} ({name})"


def _last_lines(text: str) -> str:
    """Returns the last two lines that are not empty, shortened."""
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(line[:300] for line in kept[-2:])


def see() -> dict[str, Any]:
    """Imports TensorFlow and Keras; returns their versions and devices."""
    import tensorflow as tf

    said: dict[str, Any] = {"tensorflow": tf.__version__, "devices": []}
    for device in tf.config.list_physical_devices():
        try:
            details = tf.config.experimental.get_device_details(device)
        except (ValueError, RuntimeError, tf.errors.OpError):
            details = {}
        said["devices"].append(
            {
                "kind": device.device_type,
                "name": device.name,
                "details": {k: str(v) for k, v in details.items()},
            }
        )
    try:
        import keras

        said["keras"] = keras.__version__
        said["backend"] = keras.backend.backend()
        said["reduces_gradients"] = hasattr(
            keras.optimizers.Optimizer, "_all_reduce_sum_gradients"
        )
    except Exception as error:  # a finding, whatever it is
        said["keras_error"] = f"{type(error).__name__}: {error}"
    return said


if __name__ == "__main__":
    print(json.dumps(see()))
