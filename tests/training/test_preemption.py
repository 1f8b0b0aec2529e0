import signal

import pytest

from keras_mixer.training import preemption


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
