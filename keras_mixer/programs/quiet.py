"""Imports TensorFlow, and leaves out what it and libjpeg say of themselves."""

import atexit
import contextlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

# TensorFlow 2.21 logs through absl, whose messages of the import ignore
# TF_CPP_MIN_LOG_LEVEL: information, and a line that announces it. The last one
# is of the converter of int8 files.
_CHATTER = re.compile(
    rb"I\d{4} |WARNING: All log messages before absl::|fully_quantize: "
)
# libjpeg prints them for each damaged file and epoch, and names no file.
_OF_LIBJPEG = re.compile(
    rb"Corrupt JPEG data: |Premature end of JPEG file|Unsupported marker type "
    rb"|Invalid SOS parameters for sequential JPEG|Warning: unknown JFIF "
    rb"|Inconsistent progression sequence for |Invalid progressive parameters "
    rb"|Input file read error"
)
_NUMBER = re.compile(rb"0x[0-9a-f]+|\d+")
_PATIENCE = 0.1  # seconds for the rest of a line
_FAREWELL = 1.0  # seconds for the last lines

# Keras and TensorFlow import these where they are installed, for wrappers,
# pictures and converters that no program here uses: seconds.
_EXTRAS = ("sklearn", "matplotlib", "jax")


def import_tensorflow() -> None:
    """Imports TensorFlow; of what it says, warnings and errors are shown.

    A child process reads stderr until this process ends, so that the last words
    of a process that dies are shown, too. It passes on all but the lines above;
    of libjpeg's, the first of each kind. Call it before TensorFlow is imported:
    later there are threads, and it does nothing.
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
    atexit.register(_stop, child, stderr)
    with without_extras():
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def without_extras() -> Iterator[None]:
    """Within, the extras cannot be imported, as if they were not installed."""
    backend = os.environ.get("KERAS_BACKEND")
    hidden = [x for x in _EXTRAS if x not in (*sys.modules, backend)]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _stop(child: int, stderr: int) -> None:
    """Gives stderr back, after the last lines."""
    sys.stderr.flush()
    os.dup2(stderr, 2)
    end = time.monotonic() + _FAREWELL  # another process may hold the pipe
    while not os.waitpid(child, os.WNOHANG)[0] and time.monotonic() < end:
        time.sleep(0.005)


def _filter(read: int) -> NoReturn:
    """Copies lines to stderr until all writers are gone; ends this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent answers
    seen: set[bytes] = set()
    rest = b""
    try:
        while True:
            moves = b"\r" in rest  # a progress bar
            if moves or (rest and not _can_read(read, _PATIENCE)):
                _write(rest)
                rest = b""
            chunk = os.read(read, 2**16)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            _write(b"".join(_shown(line, seen) for line in lines))
        _write(rest)
    finally:
        os._exit(0)


def _can_read(read: int, seconds: float) -> bool:
    return bool(select.select([read], [], [], seconds)[0])


def _shown(line: bytes, seen: set[bytes]) -> bytes:
    """Returns what is shown of a line without its end; notes libjpeg's."""
    if _CHATTER.match(line) and os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
        return b""
    if _OF_LIBJPEG.match(line):
        kind = _NUMBER.sub(b"", line)
        if kind in seen:
            return b""
        seen.add(kind)
        line += b" (libjpeg; shown once)"
    return line + b"\n"


def _write(text: bytes) -> None:
    while text:
        try:
            text = text[os.write(2, text) :]
        except BlockingIOError:
            select.select([], [2], [])
