"""Numbered versions in a folder that a server watches.

TensorFlow Serving takes every subfolder whose name is a number for a version.
A version is therefore written into a hidden folder beside them, synced to the
disk, and renamed when it is complete: it is there whole, or not at all. A
killed export leaves its hidden folder, which the next export removes.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator

from keras_mixer.export.errors import ExportError
from keras_mixer.run import files, suggest

_DRAFT = ".exporting-"


def check_output(output: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of the versions, before anything is written.

    Raises:
      ExportError: Versions cannot be written there.
    """
    suggest.check_path("output", output)
    if re.match(r"[a-z][a-z0-9+.-]*://", str(output)):
        raise ExportError(
            f"The output must be a local folder. Received: {output}. A bucket "
            "cannot rename a version into place: export to a local folder and "
            "copy the version."
        )
    output = pathlib.Path(files.expand(output))
    there = output
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ExportError(
            f"The output must be a folder, and {there} is a file."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ExportError(f"Cannot write to {there}: permission denied")
    return output


@contextlib.contextmanager
def draft(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a hidden folder for a version that is being written.

    The folder is removed at the end, unless `publish` has renamed it.

    Raises:
      ExportError: It cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output)
        folder, lock = _make_draft(output)
    except OSError as error:
        raise ExportError(
            f"Cannot write to {output}: {error.strerror}"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make_draft(output: pathlib.Path) -> tuple[pathlib.Path, int]:
    """Makes a folder that is locked as long as this process lives.

    Until it is locked, another export may remove it as a leftover; then this
    one makes another.
    """
    while True:
        # tempfile would make one that a server of another user cannot read.
        folder = output / f"{_DRAFT}{secrets.token_hex(8)}"
        folder.mkdir()
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # the file system has no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def _remove_leftovers(output: pathlib.Path) -> None:
    """Removes what killed exports have left, where possible."""
    for folder in output.glob(f"{_DRAFT}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                # This fails while the export that made it is alive, and where
                # the file system has no locks.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def publish(folder: pathlib.Path) -> pathlib.Path:
    """Renames a draft to the next number; returns its path.

    No number is used twice while the highest version is there. Exports that
    end at the same time each get a number of their own.
    """
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            files.sync(pathlib.Path(path, name))
        files.sync(pathlib.Path(path))
    output = folder.parent
    while True:
        numbers = [int(p.name) for p in output.iterdir() if p.name.isdecimal()]
        target = output / str(max(numbers, default=0) + 1)
        try:
            os.rename(folder, target)  # fails if it would replace a version
        except OSError:
            if not target.exists():
                raise
            continue
        files.sync(output)
        return target
