"""Which engine trains, TensorFlow or JAX, and why.

Keras reads its backend when it is imported. Therefore nothing here imports
Keras, JAX or TensorFlow, and programs call `use_engine` before anything does.
"""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import NamedTuple

from keras_mixer.engines import compiled, hosts
from keras_mixer.engines.hosts import EngineError
from keras_mixer.run import files, suggest

ENGINES = ("auto", "tensorflow", "jax")


class Choice(NamedTuple):
    """The name of an engine or strategy, never "auto", and the reason."""

    name: str
    reason: str


def is_installed(module: str) -> bool:
    """Whether a module could be imported."""
    return importlib.util.find_spec(module) is not None


def configured_backend(environment: Mapping[str, str]) -> tuple[str, str]:
    """Returns Keras' backend and what chose it; both "" if nothing did.

    Keras reads KERAS_BACKEND, then its file keras.json. It writes "tensorflow"
    into a new file, whatever it runs on, so there this is no choice.

    Raises:
      EngineError: The file is damaged.
    """
    if backend := environment.get("KERAS_BACKEND"):
        return backend, "KERAS_BACKEND"
    home = environment.get("KERAS_HOME")
    folder = pathlib.Path(home) if home else pathlib.Path.home() / ".keras"
    try:
        found = files.read_json(folder / "keras.json")["backend"]
    except (OSError, KeyError):
        return "", ""
    except (files.WorkdirError, TypeError) as error:
        raise EngineError(
            f"{error}. Keras reads its settings from {folder / 'keras.json'}: "
            "mend or remove it, or set KERAS_BACKEND."
        ) from error
    if found == "tensorflow":
        return "", ""
    return str(found), str(folder / "keras.json")


def choose_engine(
    asked: str,
    environment: Mapping[str, str],
    *,
    flags: Sequence[str] = (),
    tpus: Sequence[str] | None = None,
    installed: Callable[[str], bool] = is_installed,
) -> Choice:
    """Returns the engine that trains.

    "auto" is "tensorflow" if a flag asks for what only TensorFlow has; else
    the backend that Keras is set to; else "jax" if there is a TPU and JAX is
    installed; else "tensorflow".

    Args:
      asked: One of `ENGINES`.
      environment: For KERAS_BACKEND.
      flags: Flags of the TensorFlow engine that were given ("--tpu=local").
      tpus: Device files of TPU chips; by default those of this machine.
      installed: Whether a module is installed.

    Raises:
      EngineError: `asked` is unknown, contradicts KERAS_BACKEND or a flag, or
        is not installed.
    """
    suggest.check_choice("engine", asked, ENGINES)
    backend, source = configured_backend(environment)
    tpus = hosts.tpu_files() if tpus is None else tpus
    if not tpus and hosts.announces_tpu(environment):
        tpus = ("the environment says so",)
    if asked != "auto":
        chosen = Choice(asked, f"--engine={asked} asks for it")
        if source == "KERAS_BACKEND" and backend != asked:
            raise EngineError(
                f"--engine={asked} contradicts KERAS_BACKEND={backend}. Unset "
                "KERAS_BACKEND, or leave out --engine."
            )
    elif flags:
        chosen = Choice("tensorflow", f"{flags[0]} belongs to it")
    elif backend:
        if backend not in ENGINES:
            raise EngineError(
                "Training needs Keras' backend tensorflow or jax. Received: "
                f"{backend!r} (from {source}). Give --engine=tensorflow or "
                "--engine=jax, and unset KERAS_BACKEND."
            )
        chosen = Choice(backend, f"{source} says so")
    elif tpus and installed("jax"):
        chosen = Choice("jax", f"there is a TPU ({', '.join(tpus)})")
    elif tpus:
        chosen = Choice("tensorflow", "there is a TPU, but JAX is missing")
    else:
        chosen = Choice("tensorflow", "there is no TPU")
    if chosen.name == "jax" and flags:
        raise EngineError(
            f"{flags[0]} belongs to --engine=tensorflow. The JAX engine takes "
            "all devices of all hosts; leave the flag out."
        )
    if chosen.name == "jax" and not installed("jax"):
        raise EngineError(
            f"The engine is jax ({chosen.reason}), and JAX is not installed. "
            "Install it: pip install 'jax[tpu]' on a TPU, 'jax[cuda12]' on an "
            "NVIDIA GPU, jax on a CPU."
        )
    return chosen


def use_engine(
    chosen: Choice,
    environment: MutableMapping[str, str] = os.environ,
    *,
    virtual: bool = False,
) -> None:
    """Sets Keras' backend, and what the engine needs, in the environment.

    `virtual`: the CPU is to be split into virtual devices.

    Raises:
      EngineError: Keras was imported with another backend.
    """
    keras = sys.modules.get("keras")
    if keras is not None and keras.backend.backend() != chosen.name:
        raise EngineError(
            f"Keras runs on {keras.backend.backend()!r} in this process, and "
            f"the engine is {chosen.name}. Set KERAS_BACKEND={chosen.name} "
            "before Keras is imported."
        )
    environment["KERAS_BACKEND"] = chosen.name
    if chosen.name == "tensorflow":
        compiled.keep_tensorflow_programs(environment)
    # JAX tries each platform that is installed. libtpu without a TPU takes
    # minutes to give up.
    has_no_accelerator = not (
        hosts.tpu_files()
        or hosts.nvidia_files()
        or hosts.announces_tpu(environment)
    )
    if chosen.name == "jax" and (virtual or has_no_accelerator):
        environment.setdefault("JAX_PLATFORMS", "cpu")
