import pytest

from keras_mixer import data, weights
from keras_mixer.run import (
    config as config_lib,
    files,
    workdir as workdir_lib,
)


def test_a_damaged_file_is_named_with_its_line_and_column(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{\n  "optim": {"lr": 1,,}\n}')
    place = "config.json: line 2, column 21: "
    with pytest.raises(files.WorkdirError, match=place):
        files.read_json(path)
    with pytest.raises(
        config_lib.ConfigError, match=r"json: line 2, column \d+"
    ):
        config_lib.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(files.WorkdirError, match="Cannot read .*config.json"):
        files.read_json(path)


def test_the_newest_version_is_that_of_the_largest_number(tmp_path):
    for name in ("9", "10", "old", "²"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    assert files.find_version(tmp_path) == tmp_path / "10"
    assert files.find_version(tmp_path / "9") == tmp_path / "9"
    assert files.find_version(f"{tmp_path}/old") == tmp_path / "old"


def test_a_leading_tilde_is_a_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert files.expand("~/a~") == "/home/me/a~"
    assert files.expand("./~no-one/a") == "./~no-one/a"


@pytest.mark.parametrize(
    "call",
    [
        files.expand,
        workdir_lib.as_path,
        workdir_lib.read_config,
        config_lib.load,
        weights.read,
        lambda path: files.check_file(path, "--output"),
        lambda path: data.open_split(f"folder:{path}", "train"),
        lambda path: data.open_split("cifar10", "train", path),
    ],
)
def test_a_user_who_does_not_exist_is_named(call):
    with pytest.raises(ValueError, match=r"no user 'no-one'.* \./~no-one/x"):
        call("~no-one/x.npz")
