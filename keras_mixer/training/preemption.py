"""Signals that ask a run to save and stop."""

import contextlib
import contextvars
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from keras_mixer.engines.hosts import EXIT_CODE as EXIT_CODE

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE = 1.0  # seconds in which Python may hear of a signal
_owns_process = contextvars.ContextVar("owns_process", default=False)


@contextlib.contextmanager
def owning_process() -> Iterator[None]:
    """Lets `Signals` end the process: of a program, not of a notebook."""
    token = _owns_process.set(True)
    try:
        yield
    finally:
        _owns_process.reset(token)


class Signals:
    """Notes SIGTERM and SIGINT while it is open; a second one ends at once.

    Cloud machines send SIGTERM before they are taken away, and SLURM before the
    time is up (`--signal=TERM@120`). Python handles signals in its main thread
    only; in another thread this notes nothing.

    Attributes:
      came: Whether a signal has come.
      saves: Whether there is something to save. Before, while the first step
        is compiled, SIGINT is a KeyboardInterrupt. Python raises it when the
        compiler returns; a program ends after a second.
    """

    def __init__(self) -> None:
        self.came = False
        self.saves = False
        self._before: dict[int, Any] = {}
        self._heard = False  # by Python
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._note)
            if _owns_process.get():
                self._listen()
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore()
        if self._pipe is not None:
            before, write = self._pipe
            signal.set_wakeup_fd(before)
            os.close(write)  # which ends the thread

    def _listen(self) -> None:
        """Starts a thread that C tells of signals before Python hears."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._pipe = before, write
        threading.Thread(target=self._wait, args=[read], daemon=True).start()

    def _wait(self, read: int) -> None:
        """Ends the process for a SIGINT that Python does not hear of."""
        while number := os.read(read, 1):
            if number[0] != signal.SIGINT:
                continue
            time.sleep(_PATIENCE)
            if not (self._heard or self.saves):
                os.write(2, b"\nInterrupted by Ctrl-C.\n")
                os._exit(128 + signal.SIGINT)
        os.close(read)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._heard = True
        self._restore()
        if number == signal.SIGINT and not self.saves:
            raise KeyboardInterrupt
        self.came = True
        name = signal.Signals(number).name
        # Not print: the signal may have come in the middle of one.
        os.write(
            2,
            f"\n{name}: the run saves and stops after this call of the device. "
            "A second signal stops it at once, without saving.\n".encode(),
        )
