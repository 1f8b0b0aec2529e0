import pathlib

import pytest

from keras_mixer.run import (
    config as config_lib,
    files,
    recipes,
    workdir as workdir_lib,
)


def a_run(steps, *overrides):
    """Returns the config of a run of so many steps, resolved."""
    overrides = [f"train.steps={steps}", "optim.warmup_steps=2", *overrides]
    config = config_lib.override(recipes.digits(), overrides)
    return config_lib.resolve(config, num_examples=1000)


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_a_bucket_is_no_workdir(kind):
    """pathlib would make a local folder named gs: of it."""
    with pytest.raises(
        workdir_lib.WorkdirError, match=r"Filestore.*gcloud.*gs:/.*bucket/run"
    ):
        workdir_lib.as_path(kind("gs://bucket/run"))


def test_a_workdir_may_be_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = workdir_lib.as_path("~/runs/a")
    assert path == pathlib.Path("/home/me/runs/a")


@pytest.mark.parametrize("text", ["runs/a", "/tmp/a:b", "c", "./gs:/a"])
def test_other_names_are_folders(text):
    assert workdir_lib.as_path(text) == pathlib.Path(text)


def test_a_changed_run_says_how_to_go_on(tmp_path):
    config_lib.save(a_run(100), tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}')
    with pytest.raises(
        workdir_lib.WorkdirError,
        match=rf"optim.lr: 0.003 -> 0.5. To train on.*init.weights={tmp_path} ",
    ):
        workdir_lib.read_result(tmp_path, a_run(100, "optim.lr=0.5"), ())


@pytest.fixture
def finished(tmp_path):
    """Returns a function that writes the workdir of a run, and reads it."""

    def write(steps, *overrides):
        config_lib.save(a_run(steps, *overrides), tmp_path / "config.json")
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}')
        result = {"step": steps, "split": "test", "accuracy": 1, "seconds": 1}
        files.write_json(tmp_path / "result.json", result)
        return tmp_path

    return write


@pytest.mark.parametrize(
    "schedule",
    [
        ["optim.schedule=constant"],
        ["optim.schedule=constant", "train.log_every=null"],
        ["optim.schedule=linear", "optim.end_lr_factor=1"],
    ],
)
def test_a_run_whose_rates_stay_can_be_made_longer(finished, schedule):
    workdir = finished(100, *schedule)
    same, longer, shorter = (
        a_run(steps, *schedule) for steps in (100, 200, 50)
    )
    assert workdir_lib.read_result(workdir, same, ())["step"] == 100
    assert workdir_lib.read_result(workdir, longer, ()) is None
    with pytest.raises(workdir_lib.WorkdirError, match="A shorter run"):
        workdir_lib.read_result(workdir, shorter, ())
    faster = config_lib.override(longer, ["optim.lr=1"])
    with pytest.raises(workdir_lib.WorkdirError, match=r"0.003 -> 1.0\."):
        workdir_lib.read_result(workdir, faster, ())
    with workdir_lib.claim(workdir, longer, ("a", "b")):
        assert workdir_lib.read_config(workdir) == longer
        assert not (workdir / "result.json").exists()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_ends_says_why_a_run_cannot_be_made_longer(
    finished, schedule
):
    workdir = finished(100, f"optim.schedule={schedule}")
    longer = a_run(200, f"optim.schedule={schedule}")
    with pytest.raises(workdir_lib.WorkdirError) as caught:
        workdir_lib.read_result(workdir, longer, ())
    for part in (
        "train.steps: 100 -> 200",
        f"With optim.schedule={schedule} the learning rates",
        "(1) train it from the start in a new --workdir",
        f"(2) train on from its weights: init.weights={workdir}",
    ):
        assert part in str(caught.value)


def test_the_memory_of_an_update_may_change(tmp_path):
    """Another machine may have less, and the result is the same."""
    config_lib.save(a_run(100), tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    ours = a_run(100, "model.remat=block", "train.accumulate=4")
    assert workdir_lib.read_result(tmp_path, ours, ()) is None
