import os
import subprocess
import sys
import types
import urllib.error

import pytest
import tensorflow as tf

from keras_mixer.engines import distribute
from keras_mixer.engines.tensorflow import TensorFlowEngine
from tests.conftest import ROOT


def test_auto_takes_all_virtual_devices():
    strategy = distribute.make_strategy("auto")
    assert strategy.num_replicas_in_sync == 4
    assert (
        distribute.describe(strategy) == "MirroredStrategy, 4 replicas on CPU"
    )


def test_one_device():
    strategy = distribute.make_strategy("one_device")
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert (
        distribute.describe(strategy) == "OneDeviceStrategy, 1 replica on CPU"
    )


def test_unknown_strategies_are_refused():
    with pytest.raises(distribute.EngineError, match=r"'tpus'.*auto, one"):
        distribute.make_strategy("tpus")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "finds no other host. Set TF_CONFIG"),
        ({"TF_CONFIG": "{"}, "Cannot read the environment variable TF_CONFIG"),
        ({"TF_CONFIG": "[]"}, "Cannot read the environment variable TF_CONFIG"),
        ({"TF_CONFIG": '{"cluster": 3}'}, "Cannot read the environment"),
    ],
)
def test_a_cluster_that_cannot_be_found(monkeypatch, environment, message):
    for name in ("TF_CONFIG", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(distribute.EngineError, match=message):
        distribute.make_strategy("multi_worker")


ALONE = '{"cluster": {"worker": ["host0:1"]}, "task": {"index": 0}}'


@pytest.mark.parametrize(
    ("strategy", "devices", "environment", "message"),
    [
        ("mirrored", ["/cpu:0"], {}, "sees none, only one CPU. Leave out"),
        ("mirrored", ["/gpu:0"], {}, None),
        ("multi_worker", [], {"TF_CONFIG": ALONE}, "finds one worker alone"),
    ],
)
def test_a_strategy_gets_what_its_name_says(
    monkeypatch, capsys, strategy, devices, environment, message
):
    """Or says so, or is refused."""
    monkeypatch.setattr(
        tf.config,
        "list_logical_devices",
        lambda kind: [
            types.SimpleNamespace(name=x) for x in devices if kind.lower() in x
        ],
    )
    monkeypatch.setattr(distribute, "mirror", lambda devices: "mirrored")
    monkeypatch.setattr(distribute, "nvidia_files", lambda: ())
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if message:
        with pytest.raises(distribute.EngineError, match=message):
            distribute.make_strategy(strategy)
    else:
        assert distribute.make_strategy(strategy) == "mirrored"
        assert "finds one GPU, and trains as" in capsys.readouterr().out


def test_a_gpu_that_tensorflow_does_not_see_is_named(monkeypatch, capsys):
    monkeypatch.setattr(distribute, "nvidia_files", lambda: ("/dev/nvidia0",))
    for hidden in ("-1", "0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        distribute.make_strategy("one_device")
        told = "sees no GPU (there is /dev/nvidia0)" in capsys.readouterr().out
        assert told == (hidden == "0")


@pytest.fixture
def tpu_calls(monkeypatch):
    """Records what is asked of TensorFlow's TPU functions, in order."""
    for name in ("TPU_NAME", "COLAB_TPU_ADDR", "TF_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    calls = []

    def record(name):
        def call(*args, **kwargs):
            calls.append((name, *args, *kwargs.values()))
            return f"the {name}"

        return call

    for module, name in (
        (tf.distribute.cluster_resolver, "TPUClusterResolver"),
        (tf.config, "experimental_connect_to_cluster"),
        (tf.tpu.experimental, "initialize_tpu_system"),
        (tf.distribute, "TPUStrategy"),
    ):
        monkeypatch.setattr(module, name, record(name))
    return calls


LOCAL_TPU = [
    ("TPUClusterResolver", "local"),
    ("initialize_tpu_system", "the TPUClusterResolver"),
    ("TPUStrategy", "the TPUClusterResolver"),
]


def slice_of(name):
    """The calls for the TensorFlow servers of a TPU's machines."""
    connect = ("experimental_connect_to_cluster", "the TPUClusterResolver")
    return [("TPUClusterResolver", name), connect, *LOCAL_TPU[1:]]


@pytest.mark.parametrize(
    ("strategy", "tpu", "environment", "calls"),
    [
        ("tpu", None, {}, LOCAL_TPU),
        ("tpu", "local", {"TPU_NAME": "pod"}, LOCAL_TPU),
        ("tpu", None, {"TPU_NAME": "local"}, LOCAL_TPU),
        ("auto", None, {"TPU_NAME": "local"}, LOCAL_TPU),
        ("auto", "local", {}, LOCAL_TPU),
        ("auto", "pod", {}, slice_of("pod")),
        ("tpu", None, {"TPU_NAME": "pod"}, slice_of("pod")),
        ("auto", "grpc://a:1,b:1", {}, slice_of("grpc://a:1,b:1")),
        (
            "auto",
            None,
            {"COLAB_TPU_ADDR": "10.0.0.2:8470"},
            slice_of("grpc://10.0.0.2:8470"),
        ),
    ],
)
def test_tpus(monkeypatch, tpu_calls, strategy, tpu, environment, calls):
    """A slice is connected to before it is initialised; own chips are not."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = distribute.make_strategy(strategy, tpu=tpu)
    assert made == "the TPUStrategy"
    assert tpu_calls == calls


@pytest.mark.parametrize(
    ("kinds", "files", "reason"),
    [
        (["TPU", "TPU", "TPU_SYSTEM"], [], "TensorFlow sees 2 TPU devices"),
        (["TPU_SYSTEM"], ["/dev/vfio/0"], "there is /dev/vfio/0"),
        (["TPU_SYSTEM"], [], None),  # the build for TPUs on a CPU
        ([], ["/dev/accel0"], None),  # another build on a TPU VM
    ],
)
def test_auto_takes_a_tpu_that_is_here(
    monkeypatch, tpu_calls, kinds, files, reason
):
    """On a TPU VM nothing else names it. Virtual devices rehearse on CPUs."""
    real = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: (
            [k for k in kinds if k == kind]
            if kind and kind.startswith("TPU")
            else real(kind)
        ),
    )
    monkeypatch.setattr(distribute, "tpu_files", lambda: tuple(files))
    chosen = distribute.choose_strategy()
    assert distribute.choose_strategy(cpu=True).name == "mirrored"
    if reason is None:
        assert chosen.name == "mirrored"
    else:
        assert chosen == ("tpu", reason)
        distribute.make_strategy()
        assert tpu_calls == LOCAL_TPU


def test_the_machines_of_a_slice_by_address():
    """TensorFlow's own resolver, without asking Google for a name."""
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
        tpu="grpc://10.0.0.1:8470,10.0.0.2:8470"
    )
    assert resolver.cluster_spec().as_dict() == {
        "worker": ["10.0.0.1:8470", "10.0.0.2:8470"]
    }
    assert resolver.master() == "grpc://10.0.0.1:8470"


def test_what_speaks_for_a_strategy(monkeypatch):
    for name in ("TPU_NAME", "COLAB_TPU_ADDR", "TF_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    choose = distribute.choose_strategy
    assert choose() == ("mirrored", "there are 4 CPUs")
    assert choose("one_device").name == "one_device"
    assert choose(tpu="pod") == ("tpu", "--tpu=pod names one")
    monkeypatch.setenv(
        "TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1", "c:1"]}}'
    )
    assert choose() == ("multi_worker", "TF_CONFIG names 3 workers")
    monkeypatch.setenv("TPU_NAME", "pod")
    assert choose() == ("tpu", "the environment names one (pod)")


def test_a_tpu_that_is_not_there(monkeypatch):
    for name in ("TPU_NAME", "COLAB_TPU_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(distribute.EngineError, match="No TPU found.*local"):
        distribute.make_strategy("tpu")


def test_a_name_that_cannot_be_looked_up(monkeypatch):
    """Outside of Google's cloud the resolver raises urllib's error."""

    def resolver(tpu):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(
        tf.distribute.cluster_resolver, "TPUClusterResolver", resolver
    )
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(
        distribute.EngineError,
        match=r"--tpu=pod.*not known.*\(here: 2\).*requirements-tpu.*doctor",
    ):
        distribute.make_strategy("auto", tpu="pod")


def test_one_process_is_its_own_chief(strategy_of):
    for replicas in (1, 2):
        assert distribute.is_chief(strategy_of(replicas))
        assert distribute.num_workers(strategy_of(replicas)) == 1
        total = distribute.sum_over_replicas(strategy_of(replicas), 3)
        assert total == 3 * replicas


def test_other_errors_than_a_lost_worker_stay_what_they_are(strategy_of):
    error = tf.errors.UnavailableError(None, None, "no worker is meant")
    with (
        pytest.raises(tf.errors.UnavailableError),
        TensorFlowEngine(strategy_of(2)).watch(),
    ):
        raise error


def test_devices_are_split_before_they_are_used():
    tf.config.list_logical_devices()
    with pytest.raises(distribute.EngineError, match="start a new one"):
        distribute.split_cpu(2)
    with pytest.raises(distribute.EngineError, match="positive.*0"):
        distribute.split_cpu(0)


def test_freed_memory_is_kept():
    """A large buffer that was freed comes back without page faults.

    In a process of its own, because the setting is the process's.
    """
    code = """
import resource, sys
import numpy as np
from keras_mixer.engines import memory


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(2**24, np.float32)  # 64 MiB, 16384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
done = memory.keep_freed_memory()
faults()
print(done, before, faults())
"""
    done, before, after = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    ).stdout.split()[-3:]
    if done == "False":
        pytest.skip("needs glibc's mallopt")
    assert int(after) < int(before) / 4, (before, after)
