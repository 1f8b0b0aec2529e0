"""train.py and eval.py as a user runs them."""

import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from keras_mixer import weights as weights_lib
from keras_mixer.run import (
    config as config_lib,
    recipes,
)
from keras_mixer.training import assembly
from tests.conftest import ROOT
from tests.training.test_loop import SMALL, assert_same_lines, lines_of

SMALL_MODEL = [text for text in SMALL if text.startswith("model.")]


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
    assert scores["step"] == 12
    assert scores["workdir"] == str(pathlib.Path(first).absolute())
    assert scores["source"] == f"{first} (step 12)"
    assert scores["split"] == "train"

    # Several data sets in one call; features; tables go to stderr.
    process = run(
        ROOT / "eval.py",
        f"--workdir={first}",
        "--data=digits@test[:50],digits@test[50:]",
        "--virtual_devices=2",
        cwd=tmp_path,
    )
    first_part, second_part = json.loads(process.stdout)["results"]
    assert (first_part["count"], second_part["count"]) == (50, 310)
    whole = json.loads(
        run(
            ROOT / "eval.py",
            f"--workdir={first}",
            "data.eval_split=test",
            f"--per_class={tmp_path / 'classes.csv'}",
            f"--confusion={tmp_path / 'confusion.png'}",
            cwd=tmp_path,
        ).stdout
    )
    right = sum(x["count"] * x["accuracy"] for x in (first_part, second_part))
    assert whole["accuracy"] == pytest.approx(right / 360)
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 11
    assert (tmp_path / "confusion.png").stat().st_size > 5000
    process = run(
        ROOT / "eval.py",
        f"--workdir={first}",
        "--task=fewshot",
        "--data=digits",
        "fewshot.shots=1,5",
        "fewshot.seeds=2",
        cwd=tmp_path,
    )
    results = json.loads(process.stdout)["results"]
    assert [(x["shots"], len(x["accuracies"])) for x in results] == [
        (1, 2),
        (5, 2),
    ]
    assert f"{results[1]['accuracy']:.4f} ± " in process.stderr

    # The same weights as a file of no run.
    model, _, _ = assembly.load_model(first)
    weights_lib.save_npz(model, tmp_path / "mine.npz")
    scores = json.loads(
        run(
            ROOT / "eval.py",
            f"--weights={tmp_path / 'mine.npz'}",
            "--model=custom",
            *SMALL_MODEL,
            "model.patch_size=2",
            "model.image_size=8",
            "augment.eval_policy=resize",
            "--data=digits@test",
            cwd=tmp_path,
        ).stdout
    )
    for key in ("accuracy", "top5_accuracy", "count"):
        assert scores[key] == whole[key], key
    assert scores["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert "reported" not in scores


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
        "keras-mixer-train": "keras_mixer.programs.train:run",
        "keras-mixer-eval": "keras_mixer.programs.eval:run",
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
    for part in (
        "--workdir",
        "data.eval_split=train",
        "--task: <classification|fewshot>",
        "fewshot.l2_reg=1024",
        "uc_merced@train[:1000]@train[1000:]",
        "imagenet2012_real@validation",
    ):
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
        (("eval.py", "--weights=x.npz"), "--model go together"),
        (("eval.py", "--workdir=a", "--model=B/16"), "--model go together"),
        (
            ("eval.py", "--weights=imagenet2k", "--model=B/16"),
            "Did you mean 'imagenet21k'",
        ),
        (
            ("eval.py", "--weights=/no.npz", "--model=B/16"),
            "no file of weights /no.npz",
        ),
        (
            ("eval.py", "--weights=gsam", "--model=B/15"),
            "not for B/15",
        ),
        (
            ("eval.py", "--workdir=a", "--confusion=c.jpg"),
            "must end in .png, .svg or .pdf. Received: c.jpg",
        ),
        (("eval.py", "--workdir=a", "--output=."), "must be a file: . is a"),
        (
            ("eval.py", "--workdir=a", "--task=fewshot", "--per_class=c.csv"),
            "go with --task=classification",
        ),
        (("eval.py", "--task=few-shot"), "<classification|fewshot>"),
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


def test_what_does_not_fit_a_run(tmp_path):
    """Of a run that exists: its checkpoints, its classes, its splits."""
    workdir = tmp_path / "run"
    run(ROOT / "train.py", f"--workdir={workdir}", *SMALL, cwd=tmp_path)
    weights_lib.save_npz(assembly.load_model(workdir)[0], tmp_path / "mine.npz")
    images = tmp_path / "photos" / "train"
    for name in "ab":
        (images / name).mkdir(parents=True)
        (images / name / "x.jpg").write_bytes(b"never read")
    for arguments, message in (
        (["--checkpoint=5"], "no checkpoint of step 5"),
        (["--data=digits@test[:0]"], "has no examples"),
        (
            [f"--data=folder:{tmp_path / 'photos'}@train"],
            "has 2 classes, and {workdir} (step 12) has a head of 10",
        ),
        (["data.classes=9,8,7,6,5,4,3,2,1,0"], "class 0 is '9', not '0'"),
    ):
        process = run(
            ROOT / "eval.py",
            f"--workdir={workdir}",
            *arguments,
            cwd=tmp_path,
            fails=True,
        )
        message = message.format(workdir=workdir)
        assert message in process.stderr, process.stderr[-1000:]
        assert "Traceback" not in process.stderr
    process = run(
        ROOT / "eval.py",
        f"--weights={workdir}",
        "--model=S/16",
        cwd=tmp_path,
        fails=True,
    )
    assert f"give --workdir={workdir}" in process.stderr
    shutil.rmtree(workdir / "checkpoints")
    process = run(
        ROOT / "eval.py", f"--workdir={workdir}", cwd=tmp_path, fails=True
    )
    assert "no checkpoint" in process.stderr
