"""Saves a run and restores it, so that no crash loses it.

A checkpoint is a folder `checkpoints/step_00001234` of `.safetensors` files
and a `manifest.json` with the size and SHA-256 of each. The manifest is
written last and renamed into place: a folder that has one is complete, and
later damage to its files is noticed when they are read. The state is a
dictionary of NumPy arrays. Nothing here needs TensorFlow.
"""

import contextlib
import hashlib
import json
import numbers
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Mapping
from concurrent import futures
from typing import Any, TextIO

import numpy as np

from keras_mixer.run import files

_MANIFEST = "manifest.json"
_FORMAT = 1
_FOLDER = re.compile(r"step_(\d+)")

State = dict[str, np.ndarray]


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, of another model, or not writable."""


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(
    folder: pathlib.Path,
    step: int,
    parts: Mapping[str, State],
    best: Mapping[str, Any] | None,
) -> None:
    """Writes a checkpoint, which counts as one once it has a manifest."""
    from safetensors import numpy as safetensors_numpy

    # A killed run leaves a folder without a manifest.
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


def _read(folder: pathlib.Path, part: str | None = None) -> dict[str, State]:
    """Reads one verified file of a checkpoint, or all of them."""
    from safetensors import numpy as safetensors_numpy

    state = {}
    try:
        written = files.read_json(folder / _MANIFEST)["files"]
        for name in written if part is None else [f"{part}.safetensors"]:
            expected, path = written[name], folder / name
            size = path.stat().st_size
            if size != expected["bytes"] or _sha256(path) != expected["sha256"]:
                raise CheckpointError(
                    f"{path} is damaged: it has changed since it was written "
                    f"({size:,} bytes now, {expected['bytes']:,} then)"
                )
            state[path.stem] = dict(safetensors_numpy.load_file(path))
    except CheckpointError:
        raise
    except Exception as error:  # JSON, the file system, safetensors' own
        reason = str(error).strip().partition("\n")[0][:200]
        raise CheckpointError(
            f"{folder} is damaged ({type(error).__name__}: {reason})"
        ) from error
    return state


def _steps(root: pathlib.Path) -> dict[int, pathlib.Path]:
    """Returns the checkpoints that were written to the end, oldest first."""
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


def _read_newest(
    steps: dict[int, pathlib.Path], part: str | None, report: TextIO
) -> tuple[int, dict[str, State]] | None:
    """Reads the newest checkpoint that is not damaged, or one part of it.

    Each damaged one gets a line in `report`. Returns None if there is none.

    Raises:
      CheckpointError: There are checkpoints, but none can be read.
    """
    problems = []
    for step in reversed(steps):
        try:
            return step, _read(steps[step], part)
        except CheckpointError as error:
            print(f"Not used: {error}", file=report, flush=True)
            problems.append(str(error))
    if problems:
        raise CheckpointError(
            "No checkpoint can be read: " + "; ".join(problems)
        )
    return None


def check_which(which: Any) -> None:
    """Raises CheckpointError unless it is "latest", "best" or a step."""
    is_step = isinstance(which, numbers.Integral)
    is_step = is_step and not isinstance(which, bool) and which >= 0
    if not is_step and which not in ("latest", "best"):
        raise CheckpointError(
            "A checkpoint is 'latest', 'best' or the number of a step. "
            f"Received: {which!r}"
        )


def read_part(
    workdir: str | os.PathLike[str], part: str, which: str | int = "latest"
) -> tuple[int, State]:
    """Reads one part ("model") of a run's checkpoint.

    `which` is "latest" (of those that are whole), "best" (on the validation
    split), or a step. Returns the step and the arrays.

    Raises:
      CheckpointError: There is none, or it is damaged.
    """
    check_which(which)
    root = pathlib.Path(workdir) / "checkpoints"
    steps = _steps(root)
    if which == "latest" and (found := _read_newest(steps, part, sys.stderr)):
        return found[0], found[1][part]
    if not steps:
        raise CheckpointError(
            f"{workdir} has no checkpoint yet. Train it, or go on training: "
            f"train.py --config={pathlib.Path(workdir) / 'config.json'} "
            f"--workdir={workdir}"
        )
    if which == "best":
        best = _read_best(root)
        if best is None:
            raise CheckpointError(
                f"{workdir} has no best checkpoint: the run has no validation "
                "split (data.val_split), or was not evaluated on it yet, or "
                "best.json is damaged. Take the latest, or a step."
            )
        which = best["step"]
    step = int(which)
    if step not in steps:
        raise CheckpointError(
            f"{workdir} has no checkpoint of step {step}. Steps: "
            + ", ".join(map(str, steps))
        )
    return step, _read(steps[step], part)[part]


def _read_best(root: pathlib.Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        best = dict(json.loads((root / "best.json").read_text()))
        return {**best, "step": int(best["step"])}
    return None


class Checkpoints:
    """The checkpoints of one run, written by a thread.

    `save` returns once it has the arrays. It waits for the previous save first
    and raises its failure, if any. Call `wait` at the end of the run, or before
    leaving it.

    Args:
      workdir: Its folder `checkpoints` holds them.
      keep: How many of the newest are kept, besides the best.
      writes: Whether this process writes (of several workers, the chief).

    Attributes:
      best: What `save` was told of the best checkpoint so far, and its step.
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
        # The interpreter waits for its thread before it exits.
        self._writer = futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: futures.Future[None] | None = None
        self._last: int | None = None
        self.best: dict[str, Any] | None = None

    @property
    def latest(self) -> str | None:
        """Path of the newest checkpoint, saved or being saved; or None."""
        steps = self.steps if self._last is None else [self._last]
        return str(self._path(steps[-1])) if steps else None

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
        """Begins to write the state after an update.

        `parts` are the arrays by file name (without suffix); they must not
        change afterwards. `best` is what best.json says of the best checkpoint
        so far besides its step, if this is it.

        Raises:
          CheckpointError: The previous one could not be written.
        """
        self.wait()
        self._last = step
        if best is not None:
            self.best = {"step": step, **best}
        if self._writes:
            self._saving = self._writer.submit(
                self._write_and_prune, step, parts
            )

    def _write_and_prune(self, step: int, parts: Mapping[str, State]) -> None:
        """Writes a checkpoint, then best.json, then removes old checkpoints.

        `best` does not change until the next `save`, which waits for this one.
        """
        try:
            _write(self._path(step), step, parts, self.best)
            if self.best is not None:
                files.write_json(self._root / "best.json", self.best)
            self._prune()
        except Exception as error:
            if not (self._path(step) / _MANIFEST).exists():
                shutil.rmtree(self._path(step), ignore_errors=True)
            self._last = None
            raise CheckpointError(
                f"Cannot write the checkpoint {self._path(step)}: {error}. "
                f"The last good one: {self.latest or 'none'}. Make room, or "
                "make the folder writable, and give the same command again."
            ) from error

    def wait(self) -> None:
        """Waits for the checkpoint being written; raises its failure."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def raise_failure(self) -> None:
        """Raises the failure of the checkpoint being written, if it is known.

        It does not wait.
        """
        if self._saving is not None and self._saving.done():
            self.wait()

    def _prune(self) -> None:
        """Removes old checkpoints, and what killed runs left half-written."""
        kept = set(self.steps[-self._keep :])
        if self.best is not None:
            kept.add(int(self.best["step"]))
        for path in self._root.iterdir():
            match = _FOLDER.fullmatch(path.name)
            if match and int(match[1]) not in kept:
                # Without a manifest it no longer counts, even if the process
                # is killed while it removes the rest.
                with contextlib.suppress(OSError):
                    (path / _MANIFEST).unlink()
                shutil.rmtree(path, ignore_errors=True)

    def restore(self) -> tuple[int, dict[str, State]] | None:
        """Reads the newest checkpoint that is whole: its step and parts.

        Damaged ones are reported, and renamed so that they no longer count.
        Returns None if there is no checkpoint.

        Raises:
          CheckpointError: There are checkpoints, but none can be read.
        """
        steps = _steps(self._root)
        try:
            found = _read_newest(steps, None, sys.stdout)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. The run is not started over without a word. To "
                "start over, give another --workdir."
            ) from error
        if found is None:
            return None
        self._last = found[0]
        for step, folder in steps.items():
            if step > self._last and self._writes:
                target = folder.with_name(f"damaged_{folder.name}")
                shutil.rmtree(target, ignore_errors=True)
                with contextlib.suppress(OSError):
                    os.replace(folder, target)
        self._restore_best(steps[self._last], set(steps))
        return found

    def _restore_best(self, folder: pathlib.Path, steps: set[int]) -> None:
        """Goes back to the best of the steps up to a checkpoint.

        best.json may name a later one, or an earlier one if the run was killed
        before it was written. The manifest has the right one.
        """
        best = json.loads((folder / _MANIFEST).read_text()).get("best")
        self.best = best if best and int(best["step"]) in steps else None
        if self._writes and self.best != _read_best(self._root):
            if self.best is None:
                (self._root / "best.json").unlink(missing_ok=True)
            else:
                files.write_json(self._root / "best.json", self.best)
