import pathlib

import pytest

from keras_mixer.run import (
    config as config_lib,
    recipes,
    workdir as workdir_lib,
)


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
    ours = config_lib.override(recipes.digits(), ["optim.lr=0.5"])
    config_lib.save(recipes.digits(), tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}')
    with pytest.raises(
        workdir_lib.WorkdirError,
        match=rf"optim.lr: 0.003 -> 0.5. To train on.*init.weights={tmp_path} ",
    ):
        workdir_lib.read_result(tmp_path, ours, ())


def test_the_memory_of_an_update_may_change(tmp_path):
    """Another machine may have less, and the result is the same."""
    theirs = recipes.get_recipe("digits")
    config_lib.save(theirs, tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    ours = config_lib.override(
        theirs, ["model.remat=block", "train.accumulate=4"]
    )
    assert workdir_lib.read_result(tmp_path, ours, ()) is None
