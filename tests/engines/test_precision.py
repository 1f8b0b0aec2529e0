"""What model.precision=auto means; tests/doctor/test_plan.py has machines."""

import pytest

from keras_mixer.engines import gpus, precision
from keras_mixer.engines.gpus import Gpu

A100, T4 = Gpu("A100", (8, 0)), Gpu("T4", (7, 5))


@pytest.mark.parametrize(
    ("is_tpu", "found", "fastest"),
    [
        (True, None, "bfloat16"),
        (False, None, "float32"),  # a CPU
        (False, (A100, A100), "bfloat16"),
        (False, (A100, T4), "float32"),
        (False, (Gpu("old driver"),), "float32"),
        (False, (), "float32"),  # no nvidia-smi
    ],
)
def test_bfloat16_where_all_chips_compute_in_it(is_tpu, found, fastest):
    chosen = precision.best_precision(is_tpu=is_tpu, gpus=found)
    assert chosen.name == fastest
    assert chosen.reason


@pytest.mark.parametrize(
    ("device", "fastest"),
    [("is_tpu", "bfloat16"), ("is_gpu", "bfloat16"), ("", "float32")],
)
def test_engines_ask_for_their_devices(engine_of, monkeypatch, device, fastest):
    engine = engine_of(1)
    monkeypatch.setattr(gpus, "read_gpus", lambda: (A100,))
    if device:
        monkeypatch.setattr(engine, device, True)
    assert engine.best_precision().name == fastest
