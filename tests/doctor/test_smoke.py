"""The steps that the doctor trains."""

import pytest

from keras_mixer.doctor import smoke
from keras_mixer.engines import hosts
from keras_mixer.engines.choice import Choice
from keras_mixer.engines.engine import Engine
from keras_mixer.run import config, recipes


def test_a_step(monkeypatch):
    # One block compiles sooner; the slow test of the program has all four.
    shallow = config.override(recipes.digits(), ["model.num_blocks=1"])
    monkeypatch.setattr(recipes, "digits", lambda: shallow)
    said = smoke.main(
        engine="auto", strategy="one_device", virtual_devices=None, tpu=None
    )
    assert said["strategy"] == "one_device"
    assert said["reason"] == "--strategy=one_device asks for it"
    assert "1 replica" in said["description"]
    [step] = said["steps"]
    assert step["precision"] == "float32"
    # Before any update all classes are as likely: the loss is log(10),
    # whatever the labels' smoothing.
    assert step["losses"][0] == pytest.approx(2.302585, abs=1e-4)
    assert len(step["losses"]) == len(step["gradient_norms"]) == 6
    assert step["losses"][-1] != step["losses"][0]
    assert step["finite"]
    assert step["first_seconds"] > 0 and step["step_seconds"] > 0


def test_a_strategy_that_is_not_there(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(hosts.EngineError, match="finds no other host"):
        smoke.main(
            engine="auto",
            strategy="multi_worker",
            virtual_devices=None,
            tpu=None,
        )


def test_the_precision_of_auto_is_tried(monkeypatch):
    asked = []

    def train_steps(engine, precision):
        asked.append(precision)
        return {}

    monkeypatch.setattr(smoke, "train_steps", train_steps)
    best = Choice("bfloat16", "the test says so")
    monkeypatch.setattr(Engine, "best_precision", lambda engine: best)
    smoke.main(
        engine="auto", strategy="one_device", virtual_devices=None, tpu=None
    )
    assert asked == ["float32", "bfloat16"]
