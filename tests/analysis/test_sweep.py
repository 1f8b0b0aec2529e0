"""Sweeps: resumed after an interruption, with models other than Mixers."""

import functools
import shutil
from typing import NamedTuple

import keras
import pytest

from keras_mixer import weights as weights_lib
from keras_mixer.analysis import arguments, permutation, scale, sweep
from keras_mixer.run import checkpoint, config as config_lib, files
from keras_mixer.run.config import ConfigError
from keras_mixer.run.workdir import WorkdirError, claim
from keras_mixer.training import assembly, loop as trainer
from tests.conftest import make_engine
from tests.training.common import small

SHORT = ("train.steps=4", "train.log_every=2", "train.eval_every=4")


def build_tiny(config, classes):
    """A model that is no Mixer, and compiles faster than the ResNet."""
    side = config.model.side
    inputs = keras.Input((side, side, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, name="conv")(inputs)
    x = keras.layers.GroupNormalization(2, name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = keras.layers.Dense(classes, name="head")(x)
    return keras.Model(inputs, x)


class Swept(NamedTuple):
    """A sweep that was interrupted after its first run, and resumed."""

    workdir: object
    trials: list
    rows: list
    said: list  # one line by the first call, the rest by the second
    untouched: bool  # the first run's result, by the second call


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A Mixer on half of the data, and another model on permuted patches."""
    workdir = tmp_path_factory.mktemp("sweep")
    engine = make_engine(1)
    config = small(*SHORT, "train.checkpoint_every=2")
    trials = scale.plan(config, widths=(1,), fractions=(0.5,), seeds=(0,))
    study = permutation.plan(config, models=("resnet",), seeds=(4,))
    trials += [
        trial._replace(build_model=build_tiny)
        for trial in study
        if trial.facts["input"] == "patches"
    ]
    said = []

    def say(line):
        if line.startswith("  "):  # a step of a run, where training is slow
            return
        said.append(line)
        if len(said) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run_all(trials, workdir, engine, say=say)
    result = workdir / trials[0].name / "result.json"
    before = result.stat().st_mtime_ns
    rows = sweep.run_all(trials, workdir, engine, say=say)
    untouched = result.stat().st_mtime_ns == before
    return Swept(workdir, trials, rows, said, untouched)


def test_a_sweep_goes_on_after_an_interruption(swept, engine_of):
    mixer, other = "width1_data0.5_0", "resnet_patches_4"
    assert swept.untouched
    first, finished, second = swept.said
    assert first.startswith(f"{mixer} (1 of 2): test[:70] accuracy 0.")
    assert ", ETA " in first
    assert finished == "1 of 2 runs are finished."
    assert second.startswith(f"{other} (2 of 2)")
    assert "ETA" not in second
    log = (swept.workdir / f"{other}.log").read_text()
    assert "step 4/4" in log
    again = sweep.run_all(swept.trials, swept.workdir, engine_of(1), say=print)
    assert again == swept.rows
    # A row: the facts of the trial, its name, its result.
    rows = {row["name"]: row for row in swept.rows}
    assert list(rows) == [mixer, other]
    assert list(rows[other])[:4] == ["model", "input", "seed", "name"]
    assert (rows[mixer]["fraction"], rows[mixer]["examples"]) == (0.5, 100)
    assert rows[mixer]["count"] == 70


def test_another_config_in_the_same_place_is_an_error(swept, engine_of):
    trial = swept.trials[0]
    config = config_lib.override(trial.config, ["optim.lr=0.5"])
    with pytest.raises(WorkdirError, match=r"optim\.lr"):
        sweep.run_all(
            [trial._replace(config=config)],
            swept.workdir,
            engine_of(1),
            say=print,
        )


def test_another_model_is_resumed(swept, tmp_path, engine_of, capsys):
    trial, workdir = swept.trials[1], tmp_path / "half"
    shutil.copytree(swept.workdir / trial.name, workdir)
    (workdir / "result.json").unlink()
    _, names = checkpoint.read_part(workdir, "model", "latest")
    assert "conv/kernel" in names
    shutil.rmtree(max((workdir / "checkpoints").iterdir()))
    again = trainer.fit(
        trial.config,
        workdir=workdir,
        engine=engine_of(1),
        build_model=build_tiny,
    )
    assert "Going on from step 2" in capsys.readouterr().out
    assert again["loss"] == pytest.approx(swept.rows[1]["loss"], rel=1e-6)


def test_the_workdirs_of_mixers_and_other_models(swept, engine_of):
    mixer, other = swept.trials
    workdirs = [swept.workdir / trial.name for trial in swept.trials]
    made_by = [files.read_other_model(workdir) for workdir in workdirs]
    assert made_by == [None, "tests.analysis.test_sweep.build_tiny"]
    with pytest.raises(weights_lib.WeightsError, match=r"\.build_tiny, which"):
        assembly.load_trained(workdirs[1])
    with pytest.raises(WorkdirError, match=r"build_tiny -> a Mixer"):
        trainer.fit(other.config, workdir=workdirs[1], engine=engine_of(1))
    with pytest.raises(WorkdirError, match=r"a Mixer -> .*build_tiny"):
        trainer.fit(
            mixer.config,
            workdir=workdirs[0],
            engine=engine_of(1),
            build_model=build_tiny,
        )


def test_a_run_that_has_not_begun_may_become_another(tmp_path):
    config = small()
    with claim(tmp_path, config, ("a",), "a.b"):
        assert files.read_other_model(tmp_path) == "a.b"
    with claim(tmp_path, config, ("a",), None):
        assert files.read_other_model(tmp_path) is None


def test_models_that_the_step_cannot_train(tmp_path, engine_of):
    def build(config, classes):
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.BatchNormalization()(inputs)
        x = keras.layers.Flatten()(x)
        return keras.Model(inputs, keras.layers.Dense(classes)(x))

    with pytest.raises(ValueError, match="GroupNormalization"):
        trainer.fit(
            small(),
            workdir=tmp_path / "a",
            engine=engine_of(1),
            build_model=build,
        )
    with pytest.raises(ConfigError, match="must be a function"):
        trainer.fit(
            small(),
            workdir=tmp_path / "a",
            engine=engine_of(1),
            build_model=functools.partial(build),
        )
    with pytest.raises(ConfigError, match=r"init\.weights"):
        trainer.fit(
            small("init.weights=a.npz"),
            workdir=tmp_path / "b",
            engine=engine_of(1),
            build_model=build,
        )


def test_lists_and_folders(tmp_path):
    assert arguments.parse_list("1, 2", int, "--seeds", "numbers") == (1, 2)
    for text in ("", "1,1", "a"):
        with pytest.raises(ConfigError, match="--seeds takes numbers"):
            arguments.parse_list(text, int, "--seeds", "numbers")
    with pytest.raises(ConfigError, match="--workdir"):
        arguments.check_workdir(None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="workdir of a run"):
        arguments.check_workdir(str(tmp_path))
    assert sweep.spread([0.5]) == "0.5000"
    assert sweep.spread([0.4, 0.6]) == "0.5000 ± 0.1414"
