"""A run that one engine began goes on with the other."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from keras_mixer.run import checkpoint
from tests.conftest import ROOT
from tests.training.common import RANDOM, SMALL, assert_same_weights, lines_of

pytest.importorskip("jax")
if os.environ["KERAS_BACKEND"] == "jax":
    pytest.skip("has processes of both engines", allow_module_level=True)

pytestmark = pytest.mark.slow

CHANGED = (
    "train.steps=40",
    "train.log_every=5",
    "train.eval_every=20",
    "train.checkpoint_every=10",
    "optim.lr=1e-3",
)


def train(engine, workdir, *arguments, program="train.py"):
    changed = {text.split("=")[0] for text in (*RANDOM, *CHANGED)}
    kept = [text for text in SMALL if text.split("=")[0] not in changed]
    environment = {**os.environ, "XLA_FLAGS": ""}
    del environment["KERAS_BACKEND"]  # --engine decides
    return subprocess.run(
        [
            *(sys.executable, ROOT / program, *arguments),
            *(f"--engine={engine}", f"--workdir={workdir}"),
            *(*kept, *RANDOM, *CHANGED),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=workdir.parent,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the workdir of a run of each engine that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    for engine in ("tensorflow", "jax"):
        run = train(engine, folder / engine)
        assert run.returncode == 0, run.stdout
        assert f"Engine: {engine} (--engine={engine} asks for it)" in run.stdout
    return folder


def numbers_of(workdir, key):
    return [x[key] for x in lines_of(workdir) if x["kind"] == "train"]


def assert_same_run(ours, theirs):
    assert_same_weights(ours, theirs, rtol=1e-5, atol=1e-5)
    assert numbers_of(ours, "step") == list(range(5, 45, 5))
    assert numbers_of(theirs, "step") == list(range(5, 45, 5))
    for key in ("loss", "grad_norm", "lr"):
        np.testing.assert_allclose(
            numbers_of(ours, key), numbers_of(theirs, key), rtol=1e-5
        )
    results = [
        json.loads((w / "result.json").read_text()) for w in (ours, theirs)
    ]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)
    assert results[0]["count"] == results[1]["count"] == 70


@pytest.mark.parametrize(
    ("first", "second"),
    [("tensorflow", "jax"), ("jax", "tensorflow")],
)
def test_a_killed_run_goes_on_with_the_other_engine(
    whole, tmp_path, first, second
):
    """It ends where the uninterrupted runs of both engines end."""
    workdir = tmp_path / "both"
    killer = "tests/training/killed_at.py"
    run = train(first, workdir, "33", program=killer)
    assert run.returncode == -signal.SIGKILL, run.stdout
    # The last one may not have been written before.
    newest = checkpoint.Checkpoints(workdir).steps[-1]
    assert newest in (20, 30)
    run = train(second, workdir)
    assert run.returncode == 0, run.stdout
    assert f"Going on from step {newest}" in run.stdout
    for engine in ("tensorflow", "jax"):
        assert_same_run(whole / engine, workdir)


def test_checkpoints_of_both_engines_have_the_same_arrays(whole):
    found = [
        checkpoint.Checkpoints(whole / engine).restore()
        for engine in ("tensorflow", "jax")
    ]
    (step, ours), (other_step, theirs) = found
    assert step == other_step == 40
    for part in ("model", "optimizer"):
        assert list(ours[part]) == list(theirs[part])
        for name, value in ours[part].items():
            assert value.dtype == theirs[part][name].dtype, name
            assert value.shape == theirs[part][name].shape, name
