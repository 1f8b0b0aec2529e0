"""What is resolved and refused before a model is built."""

import keras
import pytest

from keras_mixer import data
from keras_mixer.analysis import resnet
from keras_mixer.engines import distribute
from keras_mixer.engines.choice import Choice
from keras_mixer.engines.hosts import EngineError
from keras_mixer.run import (
    config as config_lib,
    files,
    workdir as workdir_lib,
)
from keras_mixer.run.files import WorkdirError
from keras_mixer.training import assembly, loop as trainer
from keras_mixer.training.run import Run
from tests.training.common import small


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("model.image_size=9",), ValueError, "multiple of the patch size, 2"),
        (("train.batch_size=25",), distribute.EngineError, "24 and 26"),
        (("augment.policy=spin",), ValueError, "Unknown step 'spin'"),
        (("augment.eval_policy=spin",), ValueError, "Unknown step 'spin'"),
        (("augment.eval_policy=flip",), ValueError, "'flip' in the evaluation"),
        (
            ("fewshot.data=digits", "fewshot.policy=resize|pad_crop"),
            ValueError,
            "'pad_crop' in the evaluation policy",
        ),
        (("data.name=",), config_lib.ConfigError, "asks for a data set"),
        (
            ("data.eval_split=train[199:250]",),
            config_lib.ConfigError,
            r"eval_split shares images.*train\[199:250\] and train\[:200\].*"
            "allow_overlap=true",
        ),
        (
            ("fewshot.data=digits@test@train[:10]",),
            config_lib.ConfigError,
            r"test split digits train\[:10\] shares images with the run's",
        ),
        (("data.eval_split=dev",), data.DataError, "train, test"),
        (
            ("model.patch_size=null",),
            config_lib.ConfigError,
            "missing: model.patch_size",
        ),
        (("model.variant=B/15",), ValueError, "Unknown variant 'B/15'"),
        (("augment.policy=resize_small(9)",), ValueError, "End it with"),
    ],
)
def test_wrong_configs_leave_no_workdir(
    tmp_path, engine_of, overrides, error, message
):
    workdir = tmp_path / "run"
    with pytest.raises(error, match=message):
        trainer.fit(small(*overrides), workdir=workdir, engine=engine_of(2))
    assert not workdir.exists()


def test_another_backend_is_refused(tmp_path, engine_of, monkeypatch):
    engine = engine_of(1)
    other = {"tensorflow": "jax", "jax": "tensorflow"}[engine.name]
    monkeypatch.setattr(keras.backend, "backend", lambda: other)
    with pytest.raises(EngineError, match=f"runs on '{other}'.*KERAS_BACKEND"):
        trainer.fit(small(), workdir=tmp_path / "a", engine=engine)


def precision_of(workdir, engine, monkeypatch, fastest, *overrides, **others):
    """Trains 4 updates or more where a precision is the fastest."""
    choice = Choice(fastest, "the test says so")
    monkeypatch.setattr(type(engine), "best_precision", lambda self: choice)
    config = small("train.steps=4", *overrides)
    trainer.fit(config, workdir=workdir, engine=engine, **others)
    return workdir_lib.read_config(workdir).model.precision


def test_auto_takes_the_fastest_precision(
    tmp_path, engine_of, monkeypatch, capsys
):
    engine = engine_of(1)
    for fastest in ("float32", "bfloat16"):
        workdir = tmp_path / fastest
        found = precision_of(workdir, engine, monkeypatch, fastest)
        assert found == fastest
        half = fastest == "bfloat16"
        assert ("8 px, bfloat16; 200" in capsys.readouterr().out) == half
        block = assembly.load_trained(workdir).model.get_layer("MixerBlock_0")
        assert block.compute_dtype == fastest


def test_a_precision_that_is_asked_for_stays(tmp_path, engine_of, monkeypatch):
    asked = "model.precision=float32"
    found = precision_of(tmp_path, engine_of(1), monkeypatch, "bfloat16", asked)
    assert found == "float32"


def test_a_run_goes_on_in_its_precision(tmp_path, engine_of, monkeypatch):
    """As one that began on a TPU and goes on without one."""
    engine, longer = engine_of(1), ("optim.schedule=constant", "train.steps=8")
    for fastest, change in (("bfloat16", longer[:1]), ("float32", longer)):
        found = precision_of(tmp_path, engine, monkeypatch, fastest, *change)
        assert found == "bfloat16"
    assert files.read_result(tmp_path)["step"] == 8
    with pytest.raises(WorkdirError, match="'bfloat16' -> 'float32'"):
        precision_of(
            tmp_path,
            engine,
            monkeypatch,
            "float32",
            *longer,
            "model.precision=float32",
        )


def test_another_model_has_its_own_precision(tmp_path, engine_of, monkeypatch):
    found = precision_of(
        tmp_path,
        engine_of(1),
        monkeypatch,
        "bfloat16",
        build_model=resnet.build,
    )
    assert found == "auto"


def test_another_model_of_before_auto_goes_on(tmp_path, engine_of, monkeypatch):
    for change in ("model.precision=float32", "train.seed=0"):
        found = precision_of(
            tmp_path,
            engine_of(1),
            monkeypatch,
            "bfloat16",
            change,
            build_model=resnet.build,
        )
        assert found == "float32"


@pytest.mark.parametrize(
    ("step", "overrides", "count"),
    [
        (0, (), 5),  # the next checkpoint
        (5, (), 2),  # the next line
        (99, (), 1),  # the end
        (0, ("train.steps_per_call=3",), 3),
        (0, ("train.checkpoint_every=null",), 7),
        (0, ("train.steps=3",), 3),
    ],
)
def test_steps_until_something_is_due(
    tmp_path, engine_of, step, overrides, count
):
    config = small(
        "train.steps=100",
        "train.log_every=7",
        "train.eval_every=null",
        "train.checkpoint_every=5",
        "train.steps_per_call=50",
    )
    config = config_lib.override(config, overrides)
    run = Run.open(config, workdir=tmp_path / "r", engine=engine_of(1))
    assert run.steps_until_due(step) == count
