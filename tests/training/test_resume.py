"""A run that is killed goes on; a workdir belongs to one run."""

import functools
import json
import shutil

import pytest

from keras_mixer.run import (
    checkpoint,
    config as config_lib,
    files,
    progress,
    workdir as workdir_lib,
)
from keras_mixer.training import loop as trainer
from tests.conftest import make_engine
from tests.training.common import RANDOM, assert_same_weights, lines_of, small


class Killed(Exception):
    pass


def drawn(xla):
    """Everything random is on: order, crops, stochastic depth, dropout."""
    return small(*RANDOM, f"train.xla={xla}", "optim.mu_dtype=bfloat16")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Trains `drawn(xla)` to the end, once for each."""

    @functools.cache
    def train(xla):
        workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
        engine = make_engine(1)
        trainer.fit(drawn(xla), workdir=workdir, engine=engine)
        return workdir

    return train


@pytest.mark.parametrize(
    ("killed_at", "xla"),
    [
        pytest.param(4, False, marks=pytest.mark.slow),
        (8, False),
        pytest.param(12, False, marks=pytest.mark.slow),
        pytest.param(8, True, marks=pytest.mark.slow),
    ],
)
def test_resumed_equals_uninterrupted(
    uninterrupted, tmp_path, engine_of, monkeypatch, killed_at, xla, capsys
):
    config = drawn(xla)
    whole, parts = uninterrupted(xla), tmp_path / "parts"

    original = progress.Progress.train

    def kill(self, step, **metrics):
        original(self, step, **metrics)
        if step == killed_at:
            raise Killed

    monkeypatch.setattr(progress.Progress, "train", kill)
    with pytest.raises(Killed):
        trainer.fit(config, workdir=parts, engine=engine_of(1))
    monkeypatch.setattr(progress.Progress, "train", original)
    assert not (parts / "result.json").exists()
    capsys.readouterr()
    trainer.fit(config, workdir=parts, engine=engine_of(1))
    resumed = "Going on from step" in capsys.readouterr().out
    assert resumed == (killed_at > 4)  # the first checkpoint comes after step 4
    assert_same_weights(whole, parts, rtol=0, atol=0)
    assert lines_of(whole) == lines_of(parts)


@pytest.mark.slow
def test_stopped_before_the_result_was_written(
    finished, tmp_path, engine_of, monkeypatch
):
    original = files.write_json

    def kill(path, content):
        if path.name == "result.json":
            raise Killed
        original(path, content)

    monkeypatch.setattr(files, "write_json", kill)
    parts = tmp_path / "parts"
    with pytest.raises(Killed):
        trainer.fit(small(), workdir=parts, engine=engine_of(1))
    monkeypatch.setattr(files, "write_json", original)
    result = trainer.fit(small(), workdir=parts, engine=engine_of(1))
    for key in ("step", "split", "accuracy", "loss", "count"):
        assert result[key] == finished.result[key]
    assert lines_of(finished.workdir) == lines_of(parts)


def test_a_workdir_belongs_to_one_run(finished, tmp_path, engine_of):
    engine = engine_of(1)
    shutil.copytree(finished.workdir, tmp_path / "run")
    with pytest.raises(
        workdir_lib.WorkdirError, match=r"optim.lr: 0.003 -> 0.5"
    ):
        trainer.fit(
            small("optim.lr=0.5"), workdir=tmp_path / "run", engine=engine
        )
    with pytest.raises(workdir_lib.WorkdirError, match="holds no run"):
        trainer.fit(small(), workdir=tmp_path, engine=engine)
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(workdir_lib.WorkdirError, match="Cannot (read|wr)"):
            trainer.fit(small(), workdir=workdir, engine=engine)
    # The same names of classes in another order are another run.
    classes = tmp_path / "run" / "classes.json"
    classes.write_text(json.dumps(list("1023456789")))
    with pytest.raises(workdir_lib.WorkdirError, match="names of the classes"):
        trainer.fit(small(), workdir=tmp_path / "run", engine=engine)


def test_a_workdir_in_which_nothing_happened_is_free(tmp_path, engine_of):
    """A run that failed before its first step does not block the next."""
    (tmp_path / "config.json.tmp").write_text("{")  # killed while writing
    assert workdir_lib.read_result(tmp_path, small(), ()) is None
    config_lib.save(small("optim.lr=0.5"), tmp_path / "config.json")
    result = trainer.fit(small(), workdir=tmp_path, engine=engine_of(1))
    assert result["step"] == 12
    assert config_lib.load(tmp_path / "config.json").optim.lr == 0.003


def test_a_run_without_a_line_yet_is_not_taken_over(
    tmp_path, engine_of, monkeypatch
):
    """It has a checkpoint, and nothing in metrics.jsonl."""
    config = small("train.log_every=100", "train.eval_every=null")
    original = checkpoint.Checkpoints.save

    def kill(self, step, parts, **options):
        original(self, step, parts, **options)
        raise Killed

    monkeypatch.setattr(checkpoint.Checkpoints, "save", kill)
    with pytest.raises(Killed):
        trainer.fit(config, workdir=tmp_path, engine=engine_of(1))
    monkeypatch.undo()
    assert checkpoint.Checkpoints(tmp_path).steps == [4]
    with pytest.raises(workdir_lib.WorkdirError, match="optim.lr: 0.003"):
        trainer.fit(
            config_lib.override(config, ["optim.lr=0.5"]),
            workdir=tmp_path,
            engine=engine_of(1),
        )


@pytest.mark.slow
def test_a_longer_run_goes_on(tmp_path, engine_of):
    """The weights are those of a run that was so long from the start."""
    constant = (*RANDOM, "optim.schedule=constant")
    config, engine = small(*constant), engine_of(1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer.fit(config, workdir=whole, engine=engine)
    half = small(*constant, "train.steps=6")
    assert trainer.fit(half, workdir=parts, engine=engine)["step"] == 6
    assert trainer.fit(config, workdir=parts, engine=engine)["step"] == 12
    assert_same_weights(whole, parts, rtol=0, atol=0)
    steps = {
        kind: [x["step"] for x in lines_of(parts) if x["kind"] == kind]
        for kind in ("train", "eval")
    }
    assert steps == {"train": [4, 6, 8, 12], "eval": [6, 12]}
    assert workdir_lib.read_config(parts).train.steps == 12
    assert files.read_result(parts)["step"] == 12
