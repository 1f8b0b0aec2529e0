"""The program as a user runs it; test_tpu.py lets it compile."""

import subprocess
import sys

import pytest

from keras_mixer.programs import preflight as program
from keras_mixer.run.config import ConfigError


def run(argument):
    done = subprocess.run(
        [sys.executable, "-m", "keras_mixer.preflight", argument],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1  # absl's also for --help
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_help():
    text = run("--help")
    assert "--topology" in text and "v5e" in text


def test_the_file_is_checked_before_anything_is_compiled(tmp_path):
    program._check_json(f"{tmp_path}/x.json")
    for path in ("/nowhere/x.json", str(tmp_path)):
        with pytest.raises(ConfigError, match=f"Received: {path}"):
            program._check_json(path)
