"""Signals that ask a run to save and stop."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from keras_mixer.engines.hosts import EXIT_CODE as EXIT_CODE

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Notes SIGTERM and SIGINT while it is open; a second one ends at once.

    Cloud machines send SIGTERM before they are taken away, and SLURM before the
    time is up (`--signal=TERM@120`). Python handles signals in its main thread
    only; in another thread this notes nothing.

    Attributes:
      came: Whether a signal has come.
      saves: Whether there is something to save. Before, while the first step
        is compiled, SIGINT is a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.came = False
        self.saves = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
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
