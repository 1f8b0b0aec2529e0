"""python -m keras_mixer.analysis, from its command line."""

import os
import subprocess
import sys

from tests.analysis.test_compare import write_run
from tests.conftest import ROOT


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "keras_mixer.analysis", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MPLCONFIGDIR": os.environ.get("TMPDIR", "/tmp")},
    )


def test_the_program(tmp_path):
    a = write_run(tmp_path / "a", lr=0.001, accuracies=[0.1, 0.2])
    b = write_run(tmp_path / "b", lr=0.002, accuracies=[0.1, 0.3])
    output = tmp_path / "new" / "c.png"
    done = program("compare", a, b, f"--output={output}", "--names=one,two")
    assert done.returncode == 0, done.stderr
    assert "| optim.lr" in done.stdout
    for suffix in (".png", ".svg", ".csv", ".json"):
        assert output.with_suffix(suffix).exists(), suffix


def test_curves_are_drawn_into_the_workdir(tmp_path):
    workdir = write_run(tmp_path / "a", lr=0.001, accuracies=[0.1, 0.2])
    done = program("curves", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "accuracy on test" in done.stdout
    for name in ("curves.png", "curves.svg", "curves.csv"):
        assert (tmp_path / "a" / name).exists(), name
