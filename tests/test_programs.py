"""train.py and eval.py as a user runs them."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys

import pytest

from keras_mixer import config as config_lib, recipes
from tests.conftest import ROOT
from tests.test_trainer import SMALL, assert_same_lines, lines_of


def run(*command, cwd=ROOT, fails=False):
    process = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"},
    )
    assert (process.returncode != 0) == fails, process.stderr[-3000:]
    return process


def test_train_again_from_the_file_and_evaluate(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    program = ROOT / "train.py"
    out = run(
        program,
        f"--workdir={first}",
        "--virtual_devices=2",
        *SMALL,
        cwd=tmp_path,
    ).stdout
    assert "MirroredStrategy, 2 replicas on CPU" in out
    result = json.loads((first / "result.json").read_text())
    assert f"accuracy at step 12: {result['accuracy']:.4f}" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first"]

    again = run(program, f"--workdir={first}", *SMALL, cwd=tmp_path).stdout
    assert "is finished" in again

    run(
        program,
        f"--config={first / 'config.json'}",
        f"--workdir={second}",
        cwd=tmp_path,
    )
    assert_same_lines(lines_of(first), lines_of(second), rel=1e-4)

    out = run(
        ROOT / "eval.py",
        f"--workdir={first}",
        "--task=classification",
        f"--output={tmp_path / 'scores.json'}",
        "train.batch_size=9",
        "data.eval_split=train",
        cwd=tmp_path,
    ).stdout
    process = run(
        ROOT / "eval.py",
        f"--workdir={first}",
        "model.precision=bfloat16",
        cwd=tmp_path,
        fails=True,
    )
    assert "cannot be changed for an evaluation" in process.stderr
    scores = json.loads(out)
    assert scores == json.loads((tmp_path / "scores.json").read_text())
    assert scores["count"] == 1437
    assert scores["checkpoint"] == "latest"
    assert scores["split"] == "train"


def test_no_arguments_train_the_default(tmp_path):
    """Only as far as the first lines: the whole run is the README's."""
    with subprocess.Popen(
        [sys.executable, ROOT / "train.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
    ) as process:
        for line in process.stdout:
            if line.startswith("step "):
                break
        process.kill()
    assert re.match(r"step 100/2,245  loss \d", line)
    config = config_lib.load(tmp_path / "runs" / "digits" / "config.json")
    assert config.recipe == recipes.DEFAULT_RECIPE == "digits"


def test_installed_programs_are_the_same():
    scripts = importlib.metadata.entry_points(group="console_scripts")
    ours = {
        s.name: s.value for s in scripts if s.name.startswith("keras-mixer")
    }
    if not ours:
        pytest.skip("keras_mixer is not installed, only imported")
    assert ours == {
        "keras-mixer-train": "keras_mixer.train:run",
        "keras-mixer-eval": "keras_mixer.eval:run",
    }
    for script in scripts:
        if script.name in ours:
            assert callable(script.load())


def test_help_teaches():
    text = run("train.py", "--help", fails=True).stdout  # absl exits with 1
    for name in recipes.RECIPES:
        assert name in text
    for part in ("optim.lr=0.001", "--workdir", "--virtual_devices", "digits"):
        assert part in text
    text = run("eval.py", "--help", fails=True).stdout
    for part in ("--workdir", "data.eval_split=train", "classification"):
        assert part in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("train.py", "optim.lrr=1"), "Did you mean 'optim.lr'"),
        (("train.py", "--recipe=digit"), "Did you mean 'digits'"),
        (("train.py", "--config=nothing.json"), "no config file nothing.json"),
        (("train.py", "--strategy=gpus"), "one_device"),
        (("train.py", "recipe=digits"), "--recipe="),
        (("train.py", "--worddir=x"), "Unknown command line flag 'worddir'"),
        (("eval.py", "--workdir=/nowhere"), "/nowhere is not the workdir"),
        (("eval.py",), "workdir"),
        (
            ("eval.py", "--workdir=/nowhere", "--checkpoint=last"),
            "latest, best or a step. Received: 'last'",
        ),
    ],
)
def test_errors_are_one_line(command, message, tmp_path):
    name, *rest = command
    process = run(ROOT / name, *rest, cwd=tmp_path, fails=True)
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    lines = [
        line
        for line in process.stderr.strip().splitlines()
        if not re.match(r"[IWE]\d{4} |WARNING: All log", line)  # TensorFlow's
    ]
    assert len(lines) <= 2, process.stderr
    assert list(tmp_path.iterdir()) == []
