import pytest

from keras_mixer.run import config as config_lib, files


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
