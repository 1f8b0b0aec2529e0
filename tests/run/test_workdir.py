import pathlib

import pytest

from keras_mixer.run import workdir as workdir_lib


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
