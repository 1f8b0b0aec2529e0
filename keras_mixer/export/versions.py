"""Numbered versions in a folder that a server watches.

TensorFlow Serving takes every subfolder whose name is a number for a version.
So a version is written into a hidden folder beside them, synced to the disk,
and renamed when it is complete: it is there whole, or not at all. What a
killed export leaves is a hidden folder, which the next export removes.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator

from keras_mixer.export.classifier import ExportError

_NUMBER = re.compile(r"\d+")
_DRAFT = ".exporting-"


def check_output(output: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of the versions, before anything is written.

    Raises:
      ExportError: Versions cannot be written there.
    """
    if re.match(r"[a-z][a-z0-9+.-]*://", str(output)):
        raise ExportError(
            f"The output must be a local folder. Received: {output}. A bucket "
            "cannot rename a version into place: export to a local folder and "
            "copy the version."
        )
    output = pathlib.Path(output).expanduser()
    there = output
    while not there.exists() and there != there.parent:
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

    It is removed at the end, unless `publish` has renamed it.

    Raises:
      ExportError: It cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output)
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

    Until it is locked another export may take it for a leftover.
    """
    while True:
        # Not tempfile's: a server of another user must be able to read it.
        folder = output / f"{_DRAFT}{secrets.token_hex(8)}"
        folder.mkdir()
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def remove_leftovers(output: pathlib.Path) -> None:
    """Removes what killed exports have left; it is no error if that fails."""
    for folder in output.glob(f"{_DRAFT}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                # Fails while the export that made it is alive, and where the
                # file system has no locks.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def publish(folder: pathlib.Path) -> pathlib.Path:
    """Renames a draft to the next number; returns its path.

    Numbers are not used twice while the highest is there; of two exports that
    end at the same time each gets one of its own.
    """
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(os.path.join(path, name))
        _sync(path)
    while True:
        target = folder.parent / str(next_number(folder.parent))
        try:
            # A folder replaces no folder that has anything in it.
            os.rename(folder, target)
        except OSError:
            if not target.exists():
                raise
            continue
        _sync(folder.parent)
        return target


def next_number(output: pathlib.Path) -> int:
    """Returns the number of the next version, 1 for the first."""
    numbers = [
        int(path.name)
        for path in output.iterdir()
        if _NUMBER.fullmatch(path.name)
    ]
    return max(numbers, default=0) + 1


def _sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file or folder is on the disk, not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
