"""Saves and restores what a run is, so that no crash can cost it.

A checkpoint is a folder `checkpoints/step_00001234` of `.safetensors` files
and a `manifest.json` with the size and SHA-256 of each. The manifest is
written last, and by way of a temporary name: a folder that has one is whole,
and whatever happens to its files later is noticed when they are read. The
state is a dictionary of NumPy arrays; nothing here needs TensorFlow.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras_mixer.run import files

_MANIFEST = "manifest.json"
_FORMAT = 1
_FOLDER = re.compile(r"step_(\d+)")
_CHUNK = 1 << 22  # bytes that are hashed at once

State = dict[str, np.ndarray]


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, of another model, or not writable."""


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _write(
    folder: pathlib.Path,
    step: int,
    parts: Mapping[str, State],
    best: Mapping[str, Any] | None,
) -> None:
    """Writes a whole checkpoint; until the manifest it counts as none."""
    from safetensors import numpy as safetensors_numpy

    # A folder without a manifest is what a killed run left.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written = {}
    for part, arrays in parts.items():
        path = folder / f"{part}.safetensors"
        contiguous = {k: np.asarray(v, order="C") for k, v in arrays.items()}
        safetensors_numpy.save_file(contiguous, path)
        files.sync(path)
        written[path.name] = {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
    manifest = {
        "format": _FORMAT,
        "step": step,
        "files": written,
        "best": dict(best) if best else None,
    }
    files.sync(folder)
    files.write_json(folder / _MANIFEST, manifest)


@contextlib.contextmanager
def _names_the_damage(folder: pathlib.Path) -> Iterator[None]:
    """Turns whatever reading raises into a CheckpointError that says where."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # JSON, the file system, safetensors' own
        reason = str(error).strip().partition("\n")[0][:200]
        raise CheckpointError(
            f"{folder} is damaged ({type(error).__name__}: {reason})"
        ) from error


def _read(folder: pathlib.Path, part: str | None = None) -> dict[str, State]:
    """Reads one verified file of a checkpoint, or all of them.

    Raises:
      CheckpointError: A file is missing, or is not what was written.
    """
    from safetensors import numpy as safetensors_numpy

    with _names_the_damage(folder):
        manifest = json.loads((folder / _MANIFEST).read_text())["files"]
        names = list(manifest) if part is None else [f"{part}.safetensors"]
        state = {}
        for name in names:
            expected, path = manifest[name], folder / name
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise CheckpointError(
                    f"{path} is damaged: it has {size:,} bytes in place of "
                    f"{expected['bytes']:,}"
                )
            if _sha256(path) != expected["sha256"]:
                raise CheckpointError(
                    f"{path} is damaged: it has changed since it was written"
                )
            state[path.stem] = dict(safetensors_numpy.load_file(path))
    return state


def _steps(root: pathlib.Path) -> dict[int, pathlib.Path]:
    """Returns the checkpoints that were written to the end, oldest first.

    Raises:
      CheckpointError: The folder cannot be read.
    """
    try:
        found = {
            int(match[1]): path
            for path in root.iterdir()
            if (match := _FOLDER.fullmatch(path.name))
            and (path / _MANIFEST).exists()
        }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CheckpointError(f"Cannot read {root}: {error}") from error
    return dict(sorted(found.items()))


def read_part(
    workdir: str | os.PathLike[str], part: str, which: str | int = "latest"
) -> tuple[int, State]:
    """Reads one part ("model") of a run's checkpoint.

    Args:
      workdir: Folder of the run.
      part: Name that it was saved under.
      which: "latest" (that is whole), "best" (on the validation split), or a
        step.

    Returns:
      The step and the arrays.

    Raises:
      CheckpointError: There is none, or it is damaged.
    """
    root = pathlib.Path(workdir) / "checkpoints"
    steps = _steps(root)
    if not steps:
        raise CheckpointError(
            f"{workdir} has no checkpoint yet. Train it, or go on training: "
            f"train.py --config={pathlib.Path(workdir) / 'config.json'} "
            f"--workdir={workdir}"
        )
    if which == "latest":
        problems = []
        for step in reversed(steps):
            try:
                return step, _read(steps[step], part)[part]
            except CheckpointError as error:
                print(f"Not used: {error}", file=sys.stderr, flush=True)
                problems.append(str(error))
        raise CheckpointError(
            "No checkpoint can be read: " + "; ".join(problems)
        )
    if which == "best":
        best = _read_best(root)
        if best is None:
            raise CheckpointError(
                f"{workdir} has no best checkpoint: the run has no validation "
                "split (data.val_split), or was not evaluated on it yet. Take "
                "the latest, or a step."
            )
        which = int(best["step"])
    if which not in steps:
        raise CheckpointError(
            f"{workdir} has no checkpoint of step {which}. Steps: "
            + ", ".join(map(str, steps))
        )
    return int(which), _read(steps[int(which)], part)[part]


def _read_best(root: pathlib.Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((root / "best.json").read_text()))
    return None


class Checkpoints:
    """The checkpoints of one run, written by a thread.

    `save` returns as soon as it has the arrays; the previous save must have
    ended, and its failure, if any, is raised then. `wait` at the end of the
    run, or before leaving it.

    Args:
      workdir: They lie in its folder `checkpoints`.
      keep: How many of the newest are kept, besides the best.
      writes: Whether this process writes (of several workers, the chief).
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int = 2,
        writes: bool = True,
    ):
        self._root = pathlib.Path(workdir) / "checkpoints"
        self._keep = keep
        self._writes = writes
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._last: int | None = None
        self._best: dict[str, Any] | None = None

    @property
    def latest(self) -> str | None:
        """Path of the newest checkpoint, saved or being saved; or None."""
        step = (
            self._last
            if self._last is not None
            else max(self.steps, default=None)
        )
        return None if step is None else str(self._path(step))

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints that are on the disk, oldest first."""
        return list(_steps(self._root))

    def _path(self, step: int) -> pathlib.Path:
        return self._root / f"step_{step:08d}"

    def save(
        self,
        step: int,
        parts: Mapping[str, State],
        *,
        best: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins to write a checkpoint.

        Args:
          step: The update after which the state was taken.
          parts: File name (without suffix) to arrays; not changed afterwards.
          best: If this is the best checkpoint so far, what best.json says of
            it besides the step.

        Raises:
          CheckpointError: The previous one could not be written.
        """
        self.wait()
        self._last = step
        if best is not None:
            self._best = {"step": step, **best}
        current = self._best
        if not self._writes:
            return

        def write() -> None:
            try:
                _write(self._path(step), step, parts, current)
                if current is not None:
                    files.write_json(self._root / "best.json", current)
                self._prune(current)
            except Exception as error:  # re-raised by wait
                self._error = error

        # Not a daemon: the interpreter waits for it.
        self._thread = threading.Thread(target=write, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits for the checkpoint that is being written.

        Raises:
          CheckpointError: It could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            failed, self._last = self._last, None
            assert failed is not None
            if not (self._path(failed) / _MANIFEST).exists():
                shutil.rmtree(self._path(failed), ignore_errors=True)
            good = self.latest or "none"
            raise CheckpointError(
                f"Cannot write the checkpoint {self._path(failed)}: {error}. "
                f"The last good one: {good}. Make room, or make "
                "the folder writable, and give the same command again."
            ) from error

    @property
    def best(self) -> dict[str, Any] | None:
        """What was said of the best checkpoint up to here; None at first."""
        return self._best

    def _prune(self, best: Mapping[str, Any] | None) -> None:
        """Removes old checkpoints, and what killed runs left half-written."""
        steps = list(_steps(self._root))
        kept = set(steps[-self._keep :])
        if best is not None:
            kept.add(int(best["step"]))
        for path in self._root.iterdir():
            match = _FOLDER.fullmatch(path.name)
            if match and int(match[1]) not in kept:
                # Without its manifest it is none, whatever comes next.
                with contextlib.suppress(OSError):
                    (path / _MANIFEST).unlink()
                shutil.rmtree(path, ignore_errors=True)

    def restore(self) -> tuple[int, dict[str, State]] | None:
        """Reads the newest checkpoint that is whole.

        A damaged one is reported, and set aside under another name.

        Returns:
          Its step and parts; None if there is no checkpoint.

        Raises:
          CheckpointError: There are checkpoints, but none can be read.
        """
        steps = _steps(self._root)
        problems = []
        for step in reversed(steps):
            try:
                state = _read(steps[step])
            except CheckpointError as error:
                print(f"Not used: {error}", flush=True)
                problems.append(str(error))
                continue
            for damaged in [s for s in steps if s > step]:
                self._set_aside(steps[damaged])
            self._last = step
            self._restore_best(steps[step], set(steps))
            return step, state
        if problems:
            raise CheckpointError(
                "No checkpoint can be read, and the run is not started over "
                f"without a word: {'; '.join(problems)}. To start over, give "
                "another --workdir."
            )
        return None

    def _restore_best(self, folder: pathlib.Path, steps: set[int]) -> None:
        """Goes back to the best of the steps up to a checkpoint.

        best.json may be of a later one, or of an earlier one if the run was
        killed before it was written; the manifest knows.
        """
        best = json.loads((folder / _MANIFEST).read_text()).get("best")
        known = best if best and int(best["step"]) in steps else None
        self._best = known
        if self._writes and known != _read_best(self._root):
            if known is None:
                (self._root / "best.json").unlink(missing_ok=True)
            else:
                files.write_json(self._root / "best.json", known)

    def _set_aside(self, folder: pathlib.Path) -> None:
        if self._writes:
            target = folder.with_name(f"damaged_{folder.name}")
            shutil.rmtree(target, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.replace(folder, target)
