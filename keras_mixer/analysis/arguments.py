"""Arguments of the commands, checked before Keras is imported."""

import pathlib
from collections.abc import Callable
from typing import Any

from keras_mixer.run import files, workdir as workdir_lib
from keras_mixer.run.config import ConfigError


def parse_list(
    text: str, kind: Callable[[str], Any], flag: str, allowed: str
) -> tuple[Any, ...]:
    """Reads the comma-separated values of a flag.

    `kind` reads one value, or raises ValueError. The error says what is
    `allowed`.

    Raises:
      ConfigError: There is no value, or one is unreadable or repeated.
    """
    try:
        found = tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found):
        raise ConfigError(
            f"{flag} takes {allowed}, each once, with commas between them. "
            f"Received: {text!r}"
        )
    return found


def parse_positive_int(text: str) -> int:
    """Reads a whole number from 1 on; ValueError otherwise."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def check_workdir(path: str | None) -> pathlib.Path:
    """Returns the folder of a sweep, or raises ConfigError."""
    if not path:
        raise ConfigError(
            "Give --workdir: the folder of the runs, from which an "
            "interrupted sweep continues."
        )
    workdir = workdir_lib.as_path(path)
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={path} is not a folder.")
    if (workdir / "config.json").exists():
        raise ConfigError(
            f"--workdir={path} is the workdir of a run. The runs of a sweep "
            "get folders of their own inside its --workdir: give another one."
        )
    files.check_target(path, "--workdir")
    return workdir
