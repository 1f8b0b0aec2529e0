"""The JAX engine's devices, hosts and watch over other hosts."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("jax")


def run_python(code, **environment):
    """Runs code in a process of its own, with Keras on JAX."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            **environment,
        },
    )


def test_tensorflow_sees_no_accelerator_and_the_cpu_is_split():
    """Otherwise TensorFlow would take all memory of a GPU."""
    code = """
import tensorflow as tf
hidden = []
original = tf.config.set_visible_devices
tf.config.set_visible_devices = lambda devices, kind: (
    hidden.append((list(devices), kind)), original(devices, kind))
from keras_mixer.engines import make
engine = make.make_engine("jax", virtual_devices=3)
print(hidden, [d.device_type for d in tf.config.get_visible_devices()])
print(engine.replicas, engine.hosts, engine.is_chief, engine.describe())
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "[([], 'GPU'), ([], 'TPU')] ['CPU']",
        "3 1 True JAX, 3 replicas on CPU",
    ]


def test_an_update_in_parts_has_no_convolution():
    """As in `test_step.py`."""
    code = """
import keras_mixer
from keras_mixer.engines import make
from keras_mixer.training import assembly
from tests.training.common import small
engine = make.make_engine("jax")
config = small("train.accumulate=2", "model.image_size=8")
model, optimizer, _ = assembly.build_training(config, 10)
update = engine.make_update(model, optimizer, config)
import numpy as np
batch = {
    "image": np.zeros([4, 8, 8, 3], np.uint8),
    "label": np.zeros([4], np.int32),
    "index": np.arange(4, dtype=np.int32),
}
values = [
    [v.value for v in variables]
    for variables in (
        model.trainable_variables,
        optimizer.variables,
        model.non_trainable_variables,
    )
]
text = update.lower(*values, batch).compile().as_text()
print("while(" in text, "convolution(" in text)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True False"


@pytest.mark.slow
def test_compiled_programs_are_kept(tmp_path):
    """The second process reads what the first one compiled."""
    code = """
import os
import jax
import jax.monitoring
from keras_mixer.engines import jax_machine
cache = os.environ["XDG_CACHE_HOME"]
os.environ["XDG_CACHE_HOME"] = jax_machine.__file__
jax_machine.keep_compiled_programs()
assert jax.config.jax_compilation_cache_dir is None, "it cannot be written"
os.environ["XDG_CACHE_HOME"] = cache
jax_machine.keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
jax.jit(lambda x: x + 1)(1.0)
print(*(x.rsplit("/")[-1] for x in found if x.endswith(("_hits", "_misses"))))
"""
    for answer in ("cache_misses", "cache_hits"):
        done = run_python(code, XDG_CACHE_HOME=str(tmp_path))
        assert done.stdout.split() == [answer], done.stderr
    assert list((tmp_path / "keras_mixer" / "jax").glob("*/jit*"))


def test_what_cannot_be_made():
    """All in one process: each would import TensorFlow, Keras and JAX."""
    code = """
import os
import tensorflow as tf
from keras_mixer.engines.hosts import EngineError
from keras_mixer.engines.make import make_engine

def told(**options):
    try:
        make_engine("jax", **options)
    except EngineError as error:
        print(error)

told(virtual_devices=0)
told(coordinator="localhost:1")
told(num_hosts=2, host=0)
os.environ["JAX_NUM_PROCESSES"] = "two"
told()

def refuse(*_):
    raise RuntimeError("Visible devices cannot be modified")

tf.config.set_visible_devices = refuse
told()
"""
    done = run_python(code)
    found = done.stdout.splitlines()
    for line, expected in zip(
        found,
        (
            "virtual_devices must be positive. Received: 0",
            "--coordinator, --num_hosts, --host; --num_hosts is missing",
            "--coordinator is missing",
            "JAX_NUM_PROCESSES replaces --num_hosts and must be a number",
            "holds the memory of the GPU. Start a new process",
        ),
        strict=True,
    ):
        assert expected in line, done.stderr


WATCHED = """
import os, sys, time
import numpy as np
from keras_mixer.engines import peers
index, path = int(sys.argv[1]), sys.argv[2]
def broadcast(values):  # by a file, in place of JAX
    if index == 0:
        np.save(path + ".part.npy", values)
        os.rename(path + ".part.npy", path)
    while not os.path.exists(path):
        time.sleep(0.01)
    return np.load(path)
watch = peers.Peers(index, 3, broadcast)
print("joined", flush=True)
sys.stdin.readline()
if sys.argv[3] == "parts":
    watch.part()
"""


def start(tmp_path, how):
    return [
        subprocess.Popen(
            [sys.executable, "-c", WATCHED, str(i), tmp_path / "a.npy", how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(3)
    ]


def joined(processes):
    for process in processes:
        assert process.stdout.readline() == "joined\n"


@pytest.mark.parametrize("victim", [0, 2])
def test_a_host_that_ends_is_named_by_the_others(tmp_path, victim):
    processes = start(tmp_path, "fails")
    joined(processes)
    processes[victim].send_signal(signal.SIGKILL)
    for i, process in enumerate(processes):
        code = process.wait(timeout=60)  # its stdin stays open
        error = process.communicate()[1]
        if i != victim:
            assert code == 75, error
            assert f"worker {victim} (" in error
            assert f"so worker {i} stops too" in error
            assert "Start all workers again" in error


def test_hosts_that_part_end_one_by_one(tmp_path):
    processes = start(tmp_path, "parts")
    joined(processes)
    for process in processes:
        _, error = process.communicate("\n", timeout=60)
        assert process.returncode == 0, error
        assert error == ""


def test_a_host_that_fails_ends_with_its_own_status(tmp_path):
    processes = start(tmp_path, "fails")
    joined(processes)
    _, error = processes[1].communicate("\n", timeout=60)
    assert processes[1].returncode == 1, error
    for i in (0, 2):
        code = processes[i].wait(timeout=60)  # its stdin stays open
        error = processes[i].communicate()[1]
        assert code == 75, error
        assert "worker 1 (" in error
