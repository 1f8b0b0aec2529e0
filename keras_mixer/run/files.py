"""Small files of a run, read and written without any library."""

import csv
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from keras_mixer.run.fields import ConfigError

OTHER_MODEL = "other_model.json"  # of a run whose model is no Mixer
SAVED_MODEL = "saved_model.pb"  # of a version of an export
REPOSITORY_WEIGHTS = "model.safetensors"  # of a folder made for the Hub
# Names of the files that make a workdir.
_OF_A_RUN = (
    *("config.json", "classes.json", "metrics.jsonl", "result.json"),
    OTHER_MODEL,
)
_NUMBER = int | float
# As the Hub allows them; a revision may be a branch with slashes.
_HUB_ADDRESS = re.compile(
    r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII
)
_OF_RESULT: dict[str, Any] = {
    "step": int,
    "split": str,
    "accuracy": _NUMBER,
    "seconds": _NUMBER,
}


class WorkdirError(ValueError):
    """The workdir holds another run, or cannot be used."""


def sync(path: pathlib.Path) -> None:
    """Waits until a file or folder is on the disk, not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expand(path: str | os.PathLike[str]) -> str:
    """Returns a path in which a leading ~ is a home folder.

    Raises:
      ConfigError: There is no such user.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if expanded.startswith("~"):
        raise ConfigError(
            f"There is no user {expanded.partition('/')[0][1:]!r}. A folder "
            f"of this name is written ./{expanded}"
        )
    return expanded


def check_target(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Returns the path of a file or folder that can be written.

    The folders that lead to it may be missing. `name` is that of the flag.

    Raises:
      ConfigError: A file or a dead link is in the way, or writing is not
        permitted.
    """
    target = there = pathlib.Path(expand(path))
    while not os.path.lexists(there):
        there = there.parent
    if there != target and not there.is_dir():
        raise ConfigError(f"{name}={path}: {there} is not a folder.")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"{name}={path}: {there} cannot be written.")
    return target


def check_file(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Returns the path of a file as `check_target` does.

    Raises:
      ConfigError: It is a folder, belongs to a run, or cannot be written.
    """
    file = check_target(path, name)
    if file.is_dir():
        raise ConfigError(f"{name} must be a file: {path} is a folder")
    is_workdir = (file.parent / "config.json").exists()
    if is_workdir and file.name in _OF_A_RUN:
        raise ConfigError(
            f"{name}={path} is a file of the run in {file.parent}, and would "
            "be overwritten. Choose another name."
        )
    return file


def find_version(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a version of an export: the folder itself, or its newest one.

    Raises:
      ConfigError: It is neither a version nor a folder of versions.
    """
    folder = pathlib.Path(expand(path))
    if (folder / SAVED_MODEL).is_file():
        return folder
    versions = [
        p for p in folder.glob("*/") if p.name.isdecimal() and p.name.isascii()
    ]
    if not versions:
        raise ConfigError(
            f"{path} is no export: it has neither {SAVED_MODEL} nor numbered "
            "versions. Give the --output of an export, or a version in it."
        )
    newest = max(versions, key=lambda p: int(p.name))
    if not (newest / SAVED_MODEL).is_file():
        raise ConfigError(f"{newest} is no export: it has no {SAVED_MODEL}.")
    return newest


def require_photos(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Returns the paths of photos and folders, with a leading ~ expanded.

    Raises:
      ConfigError: There are none, or one is neither a file nor a folder.
    """
    found = [expand(path) for path in paths]
    for path in found:
        if not os.path.isfile(path) and not os.path.isdir(path):
            raise ConfigError(f"There is no photo or folder {path}")
    if not found:
        raise ConfigError(
            "Photos are missing: give files, and folders of them, for example "
            "photos/cat.jpg"
        )
    return found


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file that is there whole, and on the disk, or not at all.

    The folders that lead to it are made.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    sync(temporary)
    os.replace(temporary, target)
    sync(target.parent)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
      OSError: It cannot be read.
      WorkdirError: It is no JSON; the error names the file, line and column.
    """
    try:
        return json.loads(pathlib.Path(path).read_text())
    except json.JSONDecodeError as error:
        raise WorkdirError(
            f"Cannot read {path}: line {error.lineno}, column {error.colno}: "
            f"{error.msg}"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise WorkdirError(f"Cannot read {path}: {error}") from error


def read_result(
    workdir: pathlib.Path, fields: Sequence[str] = tuple(_OF_RESULT)
) -> dict[str, Any] | None:
    """Returns what result.json holds, None of a run that is not finished.

    `fields` are those that are needed.

    Raises:
      OSError: It cannot be read.
      WorkdirError: It is damaged, or lacks a field.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    result = read_json(path)
    if not isinstance(result, dict) or not all(
        isinstance(result.get(key), _OF_RESULT[key]) for key in fields
    ):
        raise WorkdirError(
            f"Cannot read {path}: it must hold {', '.join(fields)} of a "
            "finished run"
        )
    return result


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a line per row, whose keys are the columns; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_other_model(workdir: pathlib.Path) -> str | None:
    """Returns what made the model of a run that is no Mixer, None if it is one.

    `trainer.fit` writes it where it is given a `build_model`.

    Raises:
      WorkdirError: The file that says it is damaged.
    """
    try:
        text = (workdir / OTHER_MODEL).read_text()
        return str(json.loads(text)["build_model"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkdirError(
            f"Cannot read {workdir / OTHER_MODEL} "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error


def is_repository(folder: pathlib.Path) -> bool:
    """Whether a folder is laid out as a repository of the Hugging Face Hub."""
    return (folder / REPOSITORY_WEIGHTS).is_file()


def is_hub(weights: Any) -> bool:
    """Whether `weights` is an address of the Hugging Face Hub."""
    return isinstance(weights, str) and weights.startswith("hf:")


def parse_hub(address: str) -> tuple[str, str | None]:
    """Returns the repository of an address of the Hub, and its revision.

    Raises:
      ValueError: It is not hf:owner/name or hf:owner/name@revision.
    """
    found = _HUB_ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(
            "Weights of the Hugging Face Hub are named hf:owner/name, or "
            f"hf:owner/name@revision. Received: {address!r}"
        )
    return found[1], found[2]


def is_path(weights: Any) -> bool:
    """Whether `weights` names a file, a workdir or a repository of the Hub.

    A name without these is that of a release. ValueError if it is neither.
    """
    if isinstance(weights, os.PathLike):
        return True
    if not isinstance(weights, str):
        raise ValueError(
            f"weights must be a name, a path or None. Received: {weights!r}"
        )
    if is_hub(weights):
        parse_hub(weights)
        return True
    path = pathlib.Path(weights)
    return (
        path.suffix in (".npz", ".safetensors", ".h5")
        or len(path.parts) > 1
        or (path / "config.json").exists()
    )
