"""train.py and eval.py as a user runs them."""

import configparser
import json
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

from keras_mixer import weights as weights_lib
from keras_mixer.programs import train as train_program
from keras_mixer.run import config as config_lib, recipes
from keras_mixer.training import assembly, loop
from tests.conftest import ROOT

MODEL = (
    "model.num_blocks=1",
    "model.hidden_dim=16",
    "model.tokens_mlp_dim=8",
    "model.channels_mlp_dim=16",
)
SMALL = (
    *MODEL,
    "data.train_split=train[:200]",
    "data.eval_split=test[:70]",
    "model.stoch_depth=0",
    "train.batch_size=24",
    "train.steps=12",
    "train.steps_per_call=3",
    "train.log_every=4",
    "train.eval_every=6",
    "train.checkpoint_every=4",
    "train.xla=false",
    "optim.warmup_steps=2",
)


def run_process(*command, cwd=ROOT, fails=False):
    process = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"},
    )
    assert (process.returncode != 0) == fails, process.stderr[-3000:]
    return process


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Workdir of a run of 12 steps on two virtual devices."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ("--workdir=run", "--virtual_devices=2", *SMALL)
    out = run_process(ROOT / "train.py", *arguments, cwd=folder).stdout
    assert "MirroredStrategy, 2 replicas on CPU" in out
    result = json.loads((folder / "run" / "result.json").read_text())
    assert f"accuracy at step 12: {result['accuracy']:.4f}" in out
    assert sorted(p.name for p in folder.iterdir()) == ["run"]
    return folder / "run"


def losses_of(workdir):
    lines = map(
        json.loads, (workdir / "metrics.jsonl").read_text().splitlines()
    )
    return [
        (x["kind"], x["step"], pytest.approx(x["loss"], 1e-4)) for x in lines
    ]


def test_train_again(trained, run_here):
    again = run_here("train.py", f"--workdir={trained}", *SMALL).stdout
    assert "is finished" in again


@pytest.mark.slow
def test_train_again_from_the_file(trained, run_here, tmp_path):
    run_here(
        "train.py",
        f"--config={trained / 'config.json'}",
        f"--workdir={tmp_path / 'second'}",
        "--strategy=one_device",
    )
    assert losses_of(tmp_path / "second") == losses_of(trained)


def test_evaluate(trained, run_here, tmp_path):
    file = tmp_path / "new" / "scores.json"
    out = run_here(
        "eval.py",
        f"--workdir={trained}",
        "--task=classification",
        f"--output={file}",
        "--strategy=one_device",
        "train.batch_size=99",
        "data.eval_split=train",
    ).stdout
    scores = json.loads(out)
    assert scores == json.loads(file.read_text())
    assert scores["count"] == 1437
    assert scores["checkpoint"] == "latest"
    assert scores["step"] == 12
    assert scores["workdir"] == str(pathlib.Path(trained).absolute())
    assert scores["source"] == f"{trained} (step 12)"
    assert scores["split"] == "train"
    assert "digits train[:200], on which the model was" in scores["warning"]
    process = run_here(
        "eval.py",
        f"--workdir={trained}",
        "model.precision=bfloat16",
        fails=True,
    )
    assert "cannot be changed for an evaluation" in process.stderr


def test_evaluate_parts_and_a_file_of_no_run(trained, run_here, tmp_path):
    # Several data sets in one call, on several devices; tables go to stderr.
    process = run_here(
        "eval.py",
        f"--workdir={trained}",
        "--data=digits@test[:50],digits@test[50:]",
        "--strategy=mirrored",
    )
    first_part, second_part = json.loads(process.stdout)["results"]
    assert (first_part["count"], second_part["count"]) == (50, 310)
    whole = json.loads(
        run_here(
            "eval.py",
            f"--workdir={trained}",
            "data.eval_split=test",
            "--per_class=classes.csv",
            "--confusion=confusion.png",
            "--strategy=one_device",
        ).stdout
    )
    right = sum(x["count"] * x["accuracy"] for x in (first_part, second_part))
    assert whole["accuracy"] == pytest.approx(right / 360)
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 11
    assert (tmp_path / "confusion.png").stat().st_size > 5000

    # The same weights as a file of no run.
    model = assembly.load_trained(trained).model
    weights_lib.save_npz(model, tmp_path / "mine.npz")
    scores = json.loads(
        run_here(
            "eval.py",
            "--weights=mine.npz",
            "--model=custom",
            *MODEL,
            "model.patch_size=2",
            "model.image_size=8",
            "augment.eval_policy=resize",
            "--strategy=one_device",
            "--data=digits@test",
        ).stdout
    )
    for key in ("accuracy", "top5_accuracy", "count"):
        assert scores[key] == whole[key], key
    assert scores["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert "reported" not in scores


def test_few_shot(trained, run_here):
    process = run_here(
        "eval.py",
        f"--workdir={trained}",
        "--task=fewshot",
        "--strategy=one_device",
        "--data=digits",
        "fewshot.shots=1,5",
        "fewshot.seeds=2",
    )
    results = json.loads(process.stdout)["results"]
    assert [(x["shots"], len(x["accuracies"])) for x in results] == [
        (1, 2),
        (5, 2),
    ]
    assert f"{results[1]['accuracy']:.4f} ± " in process.stderr


@pytest.fixture
def asked(monkeypatch):
    """What a program asks `fit` for, which trains nothing."""
    asked = {}

    def fit(config, **options):
        asked.update(options, config=config)
        return {"split": "test", "step": 2245, "accuracy": 0.98765}

    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(
        train_program,
        "_draw_curves",
        lambda workdir: asked.update(drawn=workdir),
    )
    return asked


def test_no_arguments_train_the_default(run_here, asked):
    out = run_here("train.py").stdout
    assert out.endswith("\ntest accuracy at step 2,245: 0.9877\n")
    assert out.startswith("Engine: tensorflow (")
    assert asked["config"] == recipes.digits()
    assert asked["config"].recipe == recipes.DEFAULT_RECIPE == "digits"
    assert asked["workdir"] == pathlib.Path("runs", "digits")
    assert asked["drawn"] == asked["workdir"]


def test_a_folder_trains_the_recipe_of_photos(run_here, asked):
    name = "data.name=folder:~/photos"
    done = run_here("train.py", name)
    assert asked["config"] == config_lib.override(recipes.photos(), [name])
    assert asked["workdir"] == pathlib.Path("runs", "photos")
    assert done.stderr.count("--recipe=photos model.image_size=64") == 1
    done = run_here("train.py", "--recipe=digits", name)
    assert asked["config"].recipe == "digits"
    assert "--recipe=photos" not in done.stderr


def test_a_config_file_in_place_of_a_recipe(trained, run_here, asked):
    file = trained / "config.json"
    run_here("train.py", f"--config={file}", "--workdir=b", "optim.lr=1")
    config = config_lib.load(file)
    assert config.train.steps == 12
    assert asked["config"] == config_lib.override(config, ["optim.lr=1"])
    assert asked["workdir"] == pathlib.Path("b")
    both = ("train.py", f"--config={file}", "--recipe=digits")
    assert "not both" in run_here(*both, fails=True).stderr


@pytest.mark.slow
def test_the_default_trains(tmp_path):
    """Only as far as the first lines: the whole run is the documentation's."""
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
    assert config.recipe == "digits"


def test_installed_programs_are_the_same():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    scripts = dict(line.split(" = ") for line in lines if line)
    names = (
        *("train", "eval", "predict", "export"),
        *("data", "preflight", "doctor", "analysis"),
    )
    assert scripts == {
        f"keras-mixer-{name}": f"keras_mixer.programs.{name}:run"
        for name in names
    }
    for script in scripts.values():
        assert callable(pkgutil.resolve_name(script))


def test_help_teaches():
    """And imports no large library, so that it answers at once."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "finally: print(*(m for m in ('keras', 'numpy', 'tensorflow') "
        "if m in sys.modules), file=sys.stderr)"
    )
    process = run_process("-c", code, fails=True)  # absl exits with 1
    assert process.stderr.strip() == ""
    for name in recipes.RECIPES:
        assert name in process.stdout
    for part in ("optim.lr=0.001", "--workdir", "--virtual_devices", "digits"):
        assert part in process.stdout


def test_help_of_eval_teaches(run_here):
    text = run_here("eval.py", "--help", fails=True).stdout
    for part in (
        "--workdir",
        "data.eval_split=train",
        "--task: <classification|fewshot>",
        "fewshot.l2_reg=1024",
        "uc_merced@train[:1000]@train[1000:]",
        "imagenet2012_real@validation",
    ):
        assert part in text


def test_a_process_ends_with_the_error():
    message = "Unknown command line flag 'worddir'"
    process = run_process("train.py", "--worddir=x", fails=True)
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: {message}")
    assert process.stdout == ""


def test_the_home_folder_in_a_path(run_here, monkeypatch, tmp_path):
    """No shell expands ~ after an =."""
    monkeypatch.setenv("HOME", str(tmp_path))
    stderr = run_here("train.py", "--config=~/no.json", fails=True).stderr
    assert f"no config file {tmp_path}/no.json" in stderr


def test_flags_after_overrides(run_here, asked):
    run_here("train.py", "optim.lr=1", "--workdir=a")
    assert asked["config"].optim.lr == 1
    assert asked["workdir"] == pathlib.Path("a")


def test_help_without_docstrings():
    process = subprocess.run(
        [sys.executable, "-OO", "train.py", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "cifar10_scratch" in process.stdout
    assert "optim.lr=0.001" in process.stdout
    assert process.stderr == ""


def test_help_that_is_cut_off():
    """`train.py --help | head -1` reports no broken pipe."""
    with subprocess.Popen(
        [sys.executable, "-u", "train.py", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 1)  # absl's, if all was written before


def test_ctrl_c_is_one_line(run_here, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_program.shared, "read_config", interrupt)
    stderr = run_here("train.py", fails=True).stderr
    assert stderr == "\nInterrupted by Ctrl-C.\n"
