"""Imports TensorFlow without what it says of itself, and without extras."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator

# TensorFlow 2.21 logs through absl, whose messages of the import ignore
# TF_CPP_MIN_LOG_LEVEL: information, and a line that announces it.
_CHATTER = re.compile(rb"I\d{4} |WARNING: All log messages before absl::")

# Keras and TensorFlow import these where they are installed, for wrappers,
# pictures and converters that no program here uses: seconds.
_EXTRAS = ("sklearn", "matplotlib", "jax")


def import_tensorflow() -> None:
    """Imports TensorFlow; of what it says, warnings and errors are shown.

    A child process reads stderr meanwhile, so that the last words of a process
    that dies of the import are shown, too. Call it before TensorFlow is
    imported: later there are threads, and it does nothing.
    """
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        _filter(read)
    os.close(read)
    stderr = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    try:
        with _without_extras():
            import tensorflow  # noqa: F401
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.waitpid(child, 0)


@contextlib.contextmanager
def _without_extras() -> Iterator[None]:
    """Within, the extras cannot be imported, as if they were not installed."""
    backend = os.environ.get("KERAS_BACKEND")
    hidden = [x for x in _EXTRAS if x not in (*sys.modules, backend)]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _filter(read: int) -> None:
    """Copies lines to stderr, without the chatter; ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers
    try:
        with os.fdopen(read, "rb") as lines:
            for line in lines:
                if not _CHATTER.match(line):
                    os.write(2, line)
    finally:
        os._exit(0)
