import signal
import subprocess
import sys
import time

import pytest

from keras_mixer.training import preemption
from tests.conftest import ROOT


def test_ctrl_c_before_there_is_something_to_save():
    """While the first step is compiled: then it would be a long wait."""
    with preemption.Signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not signals.came
    with preemption.Signals() as signals:
        signals.saves = True
        signal.raise_signal(signal.SIGINT)
        assert signals.came


def test_ctrl_c_does_not_wait_for_the_compiler():
    """C code stands for it, in which Python's handlers do not run."""
    code = (
        "import hashlib, signal; from keras_mixer.training import preemption\n"
        "with preemption.owning_process(), preemption.Signals():\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # The process is in C by then, not between two lines.
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "\nInterrupted by Ctrl-C.\n")


def test_the_thread_ends_with_the_signals():
    before = signal.set_wakeup_fd(-1)
    with preemption.owning_process(), preemption.Signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signals.saves = True
    assert signal.set_wakeup_fd(before) == -1
