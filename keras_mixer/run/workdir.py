"""What a run is on disk: its config, its classes, its result."""

import contextlib
import fcntl
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, TextIO

from keras_mixer.run import checkpoint, config as config_lib, files, suggest
from keras_mixer.run.config import Config
from keras_mixer.run.files import WorkdirError

# What may change without another run: the data set may lie elsewhere on another
# machine, the error about broken images says to change their limit, and the one
# about shared images to allow them, few-shot accuracy is measured beside the
# training, and how much memory an update takes does not change its result.
_MAY_CHANGE = (
    "data.data_dir:",
    "data.max_broken:",
    "data.allow_overlap:",
    "fewshot.",
    "model.remat:",
    "train.accumulate:",
)
# What follows from the length of a run.
_OF_LENGTH = ("train.steps:", "train.log_every:")


def as_path(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of a run.

    Raises:
      WorkdirError: It lies in a bucket, where nothing can be locked or renamed.
    """
    suggest.check_path("workdir", workdir)
    # pathlib turns gs://bucket into gs:/bucket, which would be a local folder.
    if re.match(r"[a-z][a-z0-9]+:/", os.fspath(workdir)):
        raise WorkdirError(
            "A workdir must be a folder of a file system, because checkpoints "
            "are renamed and locked in it. Train into one on this machine's "
            "disk, or on a disk that all hosts share (NFS, Filestore), and "
            f"copy it: gcloud storage cp -r. Received: {os.fspath(workdir)}"
        )
    return pathlib.Path(files.expand(workdir))


def read_result(
    workdir: pathlib.Path,
    config: Config,
    class_names: tuple[str, ...],
    other_model: str | None = None,
) -> dict[str, Any] | None:
    """Returns the result of a finished run, None if it is not finished.

    The config is resolved, `class_names` are in the order of the labels, and
    `other_model` names what makes the model if it is no Mixer. A run that is
    longer than before is not finished, if its learning rates so far stay.

    Raises:
      WorkdirError: The workdir holds something other than this run, or cannot
        be read.
    """
    try:
        if not (workdir / "config.json").exists():
            left = workdir.iterdir() if workdir.exists() else []
            if any(p.suffix != ".tmp" and p.name != "lock" for p in left):
                raise WorkdirError(
                    f"{workdir} is not empty and holds no run (no "
                    "config.json). Give a --workdir that is new or empty."
                )
            return None
        changes = _changes(workdir, config, class_names, other_model)
        if changes and _has_begun(workdir):
            raise WorkdirError(_explain(workdir, config, changes))
        result = files.read_result(workdir)
        longer = result and result["step"] < config.train.total_steps
        return None if longer else result
    except OSError as error:
        raise WorkdirError(
            f"Cannot read the workdir {workdir}: {error.strerror}"
        ) from error


def read_begun(workdir: pathlib.Path) -> Config | None:
    """Reads the config of a run that has begun; None if there is none.

    Raises:
      ConfigError: It is damaged.
      WorkdirError: The workdir cannot be read.
    """
    path = workdir / "config.json"
    try:
        begun = path.exists() and _has_begun(workdir)
    except OSError as error:
        raise WorkdirError(
            f"Cannot read the workdir {workdir}: {error.strerror}"
        ) from error
    return config_lib.load(path) if begun else None


def _explain(workdir: pathlib.Path, config: Config, changes: list[str]) -> str:
    """Says why a run cannot go on with another config, and what can be done."""
    if all(line.startswith(_OF_LENGTH) for line in changes):
        why = "A shorter run is another one."
        if not config.optim.can_go_on:
            why = (
                f"With optim.schedule={config.optim.schedule} the learning "
                "rates of its steps would have been others; with "
                "optim.schedule=constant a run can be made longer."
            )
        return (
            f"{workdir} holds a run of another length (there -> here): "
            f"{'; '.join(changes)}. {why} Ways out: (1) train it from the "
            "start in a new --workdir; (2) train on from its weights: "
            f"init.weights={workdir} with a new --workdir."
        )
    return (
        f"{workdir} holds a run of another config. Give this run a --workdir "
        f"of its own. What differs (there -> here): {'; '.join(changes)}. To "
        "train on from its weights with these settings: "
        f"init.weights={workdir} with a new --workdir."
    )


def _has_begun(workdir: pathlib.Path) -> bool:
    metrics = workdir / "metrics.jsonl"
    return (metrics.exists() and metrics.stat().st_size > 0) or bool(
        checkpoint.Checkpoints(workdir).steps
    )


def _changes(
    workdir: pathlib.Path,
    config: Config,
    class_names: tuple[str, ...],
    other_model: str | None,
) -> list[str]:
    """Lists what differs between the run in `workdir` and this one."""
    theirs = config_lib.load(workdir / "config.json")
    may_change: tuple[str, ...] = _MAY_CHANGE
    longer = (theirs.train.steps or math.inf) < config.train.total_steps
    if longer and config.optim.can_go_on:
        may_change += _OF_LENGTH
    changes = [
        line
        for line in config_lib.differences(config, theirs)
        if not line.startswith(may_change)
    ]
    classes = workdir / "classes.json"
    if classes.exists() and read_classes(classes) != class_names:
        different = suggest.difference(class_names, read_classes(classes))
        changes.append(f"the names of the classes (classes.json): {different}")
    made_by = files.read_other_model(workdir)
    if made_by != other_model:
        changes.append(
            f"the model: {made_by or 'a Mixer'} -> {other_model or 'a Mixer'}"
        )
    return changes


def read_config(workdir: str | os.PathLike[str]) -> Config:
    """Reads the config of a run.

    Raises:
      ConfigError: It is damaged.
      WorkdirError: The folder is not a workdir.
    """
    suggest.check_path("workdir", workdir)
    folder = pathlib.Path(files.expand(workdir))
    for name in ("config.json", "classes.json"):
        if not (folder / name).exists():
            raise WorkdirError(
                f"{folder} is not the workdir of a run: it has no {name}."
            )
    return config_lib.load(folder / "config.json")


def read_classes(path: pathlib.Path) -> tuple[str, ...]:
    """Reads classes.json: the names in the order of the labels."""
    names = files.read_json(path)
    is_list = isinstance(names, list) and len(names) > 0
    if not is_list or not all(isinstance(name, str) for name in names):
        raise WorkdirError(f"Cannot read {path}: it must hold a list of names")
    return tuple(names)


@contextlib.contextmanager
def claim(
    workdir: pathlib.Path,
    config: Config,
    class_names: tuple[str, ...],
    other_model: str | None = None,
) -> Iterator[None]:
    """Writes what the run is into its workdir, and keeps others out.

    The arguments are those of `read_result`.

    Raises:
      WorkdirError: It cannot be written, or another process trains in it.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((workdir / "lock").open("w"))
            _lock(lock, workdir)
            # Of a run that was shorter; what it holds is no longer true.
            (workdir / "result.json").unlink(missing_ok=True)
            config_lib.save(config, workdir / "config.json")
            files.write_json(workdir / "classes.json", list(class_names))
            other = workdir / files.OTHER_MODEL
            if other_model is not None:
                files.write_json(other, {"build_model": other_model})
            else:  # of a run that has not begun
                other.unlink(missing_ok=True)
        except OSError as error:
            raise WorkdirError(
                f"Cannot write to the workdir {workdir}: {error.strerror}"
            ) from error
        yield


def _lock(file: TextIO, workdir: pathlib.Path) -> None:
    """Locks a file until it is closed, or raises WorkdirError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise WorkdirError(
            f"Another process trains in {workdir}. Wait for it or stop it, or "
            "give this run a --workdir of its own."
        ) from error
    except OSError:  # a file system without locks
        pass
