"""Where compiled programs are kept, for the next process.

Neither TensorFlow nor JAX is imported here: TensorFlow reads its flags from the
environment when it is imported.
"""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import time
from collections.abc import MutableMapping

from keras_mixer.engines import cpus

_MONTH = 30 * 24 * 3600.0
_LEAST_FREE = 2**28  # bytes: a program that cannot be written ends the run


def writable_folder(engine: str) -> pathlib.Path | None:
    """Returns the folder of programs; None if it cannot be written.

    It is `keras_mixer/ENGINE/CPU` in the user's cache folder ($XDG_CACHE_HOME
    or ~/.cache). Each kind of CPU has its own: machines may share a home, and
    neither engine tells their programs apart.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(
        os.path.expanduser(cache), "keras_mixer", engine, _kind_of_cpu()
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def keep_tensorflow_programs(environment: MutableMapping[str, str]) -> None:
    """Lets TensorFlow keep what XLA compiles for CPUs, by TF_XLA_FLAGS.

    Of each version of TensorFlow, for a month. Where the user has set
    TF_XLA_FLAGS, also to nothing, it stays as it is.
    """
    if "TF_XLA_FLAGS" in environment:
        return
    version = _tensorflow_version()
    folder = writable_folder(version) if version else None
    if folder is None or shutil.disk_usage(folder).free < _LEAST_FREE:
        return
    if any(x.isspace() for x in str(folder)):  # which would end the flag
        return
    _remove_stale(folder)
    environment["TF_XLA_FLAGS"] = (
        f"--tf_xla_persistent_cache_directory={folder} "
        "--tf_xla_persistent_cache_device_types=CPU"
    )


def _remove_stale(folder: pathlib.Path) -> None:
    """Removes old files, and those that a crash of the machine left empty."""
    for path in folder.iterdir():
        try:
            state = path.stat()
            if not state.st_size or time.time() - state.st_mtime > _MONTH:
                path.unlink()
        except OSError:  # another process was faster
            continue


def _tensorflow_version() -> str | None:
    """Returns package and version; None of a build with another name."""
    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-tpu"):
        try:
            return f"{name}-{importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _kind_of_cpu() -> str:
    """Returns a name for the CPU's instructions."""
    flags = sorted(cpus.read_flags())
    if not flags:  # not Linux
        return platform.machine()
    digest = hashlib.sha256("\n".join(flags).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"
