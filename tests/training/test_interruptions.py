"""Runs that are killed, stopped or lose a worker, as processes of train.py.

The engine is that of KERAS_BACKEND.

The oracle is always the uninterrupted run: same weights, same metrics.jsonl.
"""

import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from typing import ClassVar

import keras
import numpy as np
import pytest

from keras_mixer.run import checkpoint, config as config_lib, recipes
from keras_mixer.training import loop as trainer, preemption
from tests.conftest import ROOT, make_engine
from tests.training.common import (
    RANDOM,
    SMALL,
    assert_same_lines,
    assert_same_weights,
    lines_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.jax]

PATIENCE = 240  # seconds
JAX = os.environ["KERAS_BACKEND"] == "jax"
# Of the rows that TensorFlow runs, JAX runs some: it is the same loop.
not_with_jax = pytest.mark.skipif(JAX, reason="runs with TensorFlow alone")


def overrides(*changes):
    names = {c.split("=")[0] for c in (*RANDOM, *changes)}
    kept = [o for o in SMALL if o.split("=")[0] not in names]
    replaced = {c.split("=")[0] for c in changes}
    drawn = [r for r in RANDOM if r.split("=")[0] not in replaced]
    return [*kept, *drawn, *changes]


class Run:
    """A process of train.py, and what it has printed so far."""

    started: ClassVar[list["Run"]] = []  # by the test that runs

    def __init__(self, workdir, *arguments, output, environment=None):
        self.output = output
        self.workdir = workdir
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    ROOT / "train.py",
                    f"--workdir={workdir}",
                    *arguments,
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "XLA_FLAGS": "", **(environment or {})},
            )
        Run.started.append(self)

    def text(self):
        return self.output.read_text()

    def wait_for(self, *texts):
        """Returns when one of the texts was printed, or the process ended."""
        self._wait_until(lambda: any(t in self.text() for t in texts))

    def wait_for_checkpoint(self):
        """Returns when a checkpoint is whole: a thread writes it."""
        checkpoints = checkpoint.Checkpoints(self.workdir)
        self._wait_until(lambda: checkpoints.steps)

    def _wait_until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None:
                return
            assert time.monotonic() < deadline, self.text()[-2000:]
            time.sleep(0.02)

    def end(self):
        try:
            return self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(self.text()[-3000:]) from None


@pytest.fixture(autouse=True)
def no_process_is_left():
    """A test that fails leaves none to the tests after it."""
    yield
    while Run.started:
        process = Run.started.pop().process
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Trains to the end on one device of this process, once per arguments."""

    @functools.cache
    def train(*arguments):
        workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
        config = config_lib.override(recipes.digits(), arguments)
        trainer.fit(config, workdir=workdir, engine=make_engine(1))
        return workdir

    return train


def test_killed_at_random_moments(tmp_path):
    """kill -9 in training, saving, evaluating: ten times, with JAX five.

    What is killed is written once for both engines.
    """
    times = 5 if keras.backend.backend() == "jax" else 10
    arguments = overrides(
        "train.steps=2000",
        "train.log_every=70",
        "train.eval_every=300",
        "train.checkpoint_every=30",
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = Run(whole, *arguments, output=tmp_path / "whole.txt")
    assert run.end() == 0, run.text()
    rng = random.Random(0)
    kills = 0
    for attempt in range(times):
        run = Run(parts, *arguments, output=tmp_path / f"{attempt}.txt")
        # One of five while it starts, the others while it trains.
        if attempt in (1, 6):
            time.sleep(rng.uniform(0, 6))
        else:
            run.wait_for("\nstep ")
            time.sleep(rng.uniform(0, 0.8))
        run.process.send_signal(signal.SIGKILL)
        kills += run.end() == -signal.SIGKILL
    assert kills >= 0.6 * times, "the run should not have ended before"
    run = Run(parts, *arguments, output=tmp_path / "last.txt")
    assert run.end() == 0, run.text()
    assert "Going on from step" in run.text()
    assert_same_weights(whole, parts, rtol=0, atol=0)
    assert lines_of(whole) == lines_of(parts)
    result = [
        json.loads((w / "result.json").read_text()) for w in (whole, parts)
    ]
    for key in ("step", "split", "accuracy", "loss", "count"):
        assert result[0][key] == result[1][key]
    assert checkpoint.Checkpoints(parts).steps == [1980, 2000]


def test_a_signal_saves_and_stops(tmp_path, uninterrupted):
    arguments = overrides(
        "train.steps=800",
        "train.log_every=70",
        "train.eval_every=100",
        "train.checkpoint_every=5000",
    )
    whole, parts = uninterrupted(*arguments), tmp_path / "parts"
    run = Run(parts, *arguments, output=tmp_path / "first.txt")
    run.wait_for("step 140/")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == preemption.EXIT_CODE == 75, run.text()
    assert "Traceback" not in run.text()
    [step] = checkpoint.Checkpoints(parts).steps
    assert 140 <= step < 800
    assert f"saved as {parts}/checkpoints/step_{step:08d}" in run.text()
    run = Run(parts, *arguments, output=tmp_path / "second.txt")
    assert run.end() == 0, run.text()
    assert f"Going on from step {step:,}" in run.text()
    assert_same_weights(whole, parts, rtol=0, atol=0)
    assert lines_of(whole) == lines_of(parts)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start_workers(workdir, arguments, tmp_path, name, extra=((), ())):
    """Starts two processes: with TensorFlow of one device, with JAX of two."""
    count = len(extra)
    hosts = [f"localhost:{port}" for port in free_ports(count)]
    flags, tasks = [], []
    if JAX:
        flags = ["--virtual_devices=2", f"--coordinator={hosts[0]}"]
        flags.append(f"--num_hosts={count}")
    else:
        tasks = [
            {
                "cluster": {"worker": hosts},
                "task": {"type": "worker", "index": i},
            }
            for i in range(count)
        ]
    return [
        Run(
            workdir,
            *arguments,
            *extra[i],
            *flags,
            *([f"--host={i}"] if JAX else []),
            output=tmp_path / f"{name}_{i}.txt",
            environment={"TF_CONFIG": json.dumps(tasks[i])} if tasks else {},
        )
        for i in range(count)
    ]


NOTHING_RANDOM = (
    "augment.policy=resize",
    "mixup.p=0",
    "model.stoch_depth=0",
    "model.dropout=0",
)
SIGMOID = ("train.loss=sigmoid", "train.head_bias_init=-2")


# test_replicas.py has more of the options, between the replicas of a process.
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("optim.name=sgd", "train.accumulate=3", *SIGMOID),
        # Rounding decides where a gradient is next to 0, and Adam makes a
        # step of it: a smaller one than the recipe's stays below 1e-5.
        pytest.param(
            (
                "train.xla=true",
                "train.accumulate=3",
                "optim.lr=1e-3",
                *NOTHING_RANDOM,
            ),
            marks=not_with_jax,
        ),
    ],
    ids=[
        "adamw-softmax-1-random",
        "sgd-sigmoid-3-random",
        "adamw-softmax-3-plain-xla",
    ],
)
def test_two_workers_train_as_one(tmp_path, uninterrupted, changes):
    arguments = overrides(
        "train.steps=20", "optim.clip_norm=0.3", "train.batch_size=24", *changes
    )
    one, two = uninterrupted(*arguments), tmp_path / "two"
    workers = start_workers(two, arguments, tmp_path, "w")
    codes = [worker.end() for worker in workers]
    assert codes == [0, 0], workers[0].text()[-3000:]
    known = "JAX, 4 replicas on CPU, 2 hosts" if JAX else "2 replicas on CPU"
    assert known in workers[0].text()
    assert_same_weights(one, two, rtol=1e-5, atol=1e-5)
    assert_same_lines(lines_of(one), lines_of(two), rel=1e-4)


def test_two_workers_share_a_few_shot_evaluation(tmp_path, uninterrupted):
    """Each computes half of the features, and both get all of them."""
    arguments = overrides(
        "train.steps=4",
        "optim.lr=0",
        "train.batch_size=24",
        "fewshot.data=digits@train[:150]@test[:51]",
        "fewshot.shots=1,5",
        "fewshot.every=4",
    )
    one, two = uninterrupted(*arguments), tmp_path / "two"
    workers = start_workers(two, arguments, tmp_path, "w")
    codes = [worker.end() for worker in workers]
    assert codes == [0, 0], workers[0].text()[-3000:]
    found = [x for x in lines_of(two) if x["kind"] == "fewshot"]
    assert [(x["shots"], x["count"]) for x in found] == [(1, 51), (5, 51)]
    assert found[1]["accuracy"] > 0.3
    assert found == [x for x in lines_of(one) if x["kind"] == "fewshot"]


@pytest.mark.parametrize("victim", [1, 0])
def test_a_worker_is_killed(tmp_path, uninterrupted, victim):
    """The other one names it, and a restart of both goes on exactly."""
    arguments = overrides(
        "train.steps=300",
        "train.log_every=35",
        "train.eval_every=100",
        "train.checkpoint_every=50",
    )
    one, two = uninterrupted(*arguments), tmp_path / "two"
    workers = start_workers(two, arguments, tmp_path, "first")
    workers[0].wait_for("Compiling the training step")
    workers[0].wait_for(f"step {140 if victim else 70}/")
    workers[0].wait_for_checkpoint()
    time.sleep(random.Random(victim).uniform(0, 0.3))
    workers[victim].process.send_signal(signal.SIGKILL)
    assert workers[victim].end() == -signal.SIGKILL
    begun = time.monotonic()
    survivor = workers[1 - victim]
    assert survivor.end() == preemption.EXIT_CODE, survivor.text()[-3000:]
    assert time.monotonic() - begun < 90
    assert f"worker {victim} (" in survivor.text()
    assert "Start all workers again" in survivor.text()
    workers = start_workers(two, arguments, tmp_path, "last")
    for worker in workers:
        assert worker.end() == 0, worker.text()[-3000:]
        assert "Going on from step" in worker.text()
    assert_same_weights(one, two, rtol=1e-4, atol=1e-5)
    assert_same_lines(lines_of(one), lines_of(two), rel=1e-4)


def test_a_worker_that_cannot_start_is_named(tmp_path):
    """Its data are missing, as on one host of several."""
    arguments = overrides("train.steps=20")
    workers = start_workers(
        tmp_path / "run",
        arguments,
        tmp_path,
        "w",
        extra=[[], ["data.name=folder:/nowhere"]],
    )
    assert workers[1].end() == 1
    assert "There is no image folder /nowhere" in workers[1].text()
    assert workers[0].end() == preemption.EXIT_CODE, workers[0].text()[-2000:]
    assert "worker 1 (" in workers[0].text()


@not_with_jax
def test_workers_must_do_the_same(tmp_path):
    arguments = overrides("train.steps=20")
    workers = start_workers(
        tmp_path / "run",
        arguments,
        tmp_path,
        "w",
        extra=[[], ["optim.lr=0.1"]],
    )
    codes = {worker.end() for worker in workers}
    assert codes <= {1, preemption.EXIT_CODE}
    assert 1 in codes
    assert any("another config" in w.text() for w in workers)


def test_a_signal_to_one_worker_stops_both(tmp_path):
    arguments = overrides("train.steps=20000", "train.log_every=70")
    workers = start_workers(tmp_path / "run", arguments, tmp_path, "w")
    workers[0].wait_for("step 140/")
    workers[1].process.send_signal(signal.SIGTERM)
    for worker in workers:
        assert worker.end() == preemption.EXIT_CODE, worker.text()[-3000:]
        assert "saved as" in worker.text()
    assert checkpoint.Checkpoints(tmp_path / "run").steps


@not_with_jax
def test_another_process_in_the_workdir_is_refused(tmp_path):
    arguments = overrides("train.steps=20000")
    run = Run(tmp_path / "run", *arguments, output=tmp_path / "1.txt")
    run.wait_for("step 8/")
    other = Run(tmp_path / "run", *arguments, output=tmp_path / "2.txt")
    assert other.end() == 1
    assert "Another process trains in" in other.text()
    run.process.send_signal(signal.SIGKILL)
    run.end()


def test_going_on_with_more_replicas(tmp_path, uninterrupted):
    replicas = 4 if JAX else 2
    arguments = overrides(
        "train.steps=400",
        "train.log_every=10",
        "train.eval_every=200",
        "train.checkpoint_every=160",
    )
    whole, parts = uninterrupted(*arguments), tmp_path / "parts"
    run = Run(parts, *arguments, output=tmp_path / "first.txt")
    run.wait_for("step 100/")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == preemption.EXIT_CODE, run.text()
    run = Run(
        parts,
        *arguments,
        f"--virtual_devices={replicas}",
        output=tmp_path / "second.txt",
    )
    assert run.end() == 0, run.text()
    losses = [
        np.array([e["loss"] for e in lines_of(w) if e["kind"] == "train"])
        for w in (whole, parts)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert len(losses[0]) == 40
