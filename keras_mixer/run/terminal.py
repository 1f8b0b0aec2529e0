"""Lines for people: plain ones, and on a terminal one that moves."""

import contextlib
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import TextIO

_COLUMNS = 80
_CLEAR = "\r\033[K"  # to the start of the line, and erase it
_lock = threading.RLock()
_moving = False  # whether a line that moves stands on the terminal


def is_terminal() -> bool:
    """Whether a person watches stdout, not a file or a notebook."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, _COLUMNS)


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line, to stdout by default; a terminal gets it wrapped."""
    if is_terminal():
        text = "\n".join(
            textwrap.fill(
                line,
                _columns(),
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            for line in text.split("\n")
        )
    with _lock:
        clear()
        print(text, file=file or sys.stdout, flush=True)


def show(text: str) -> None:
    """Rewrites the line that moves; does nothing without a terminal."""
    global _moving
    if is_terminal():
        with _lock:
            sys.stdout.write(_CLEAR + text[: _columns() - 1])
            sys.stdout.flush()
            _moving = True


def clear() -> None:
    """Erases the line that moves, if there is one."""
    global _moving
    with _lock:
        if _moving:
            sys.stdout.write(_CLEAR)
            sys.stdout.flush()
            _moving = False


@contextlib.contextmanager
def waiting(text: str, *, tell: bool = False) -> Iterator[None]:
    """Counts the seconds of what runs inside, on the line that moves.

    Without a terminal nothing is shown, or `text` once if `tell` is true.
    """
    if not is_terminal():
        if tell:
            say(f"{text} ...")
        yield
        return
    begun, done = time.monotonic(), threading.Event()

    def count() -> None:
        while not done.is_set():
            show(f"{text} ... {time.monotonic() - begun:.0f}s")
            done.wait(1)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        clear()


def bar(share: float, width: int = 20) -> str:
    """Returns a bar of which a share, from 0 to 1, is filled."""
    filled = int(share * width)
    return f"[{'#' * filled}{'.' * (width - filled)}]"
