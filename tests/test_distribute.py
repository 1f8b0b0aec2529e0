import os
import subprocess
import sys

import pytest
import tensorflow as tf

from keras_mixer import distribute
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
    with pytest.raises(distribute.DistributeError, match=r"'tpus'.*auto, one"):
        distribute.make_strategy("tpus")


def test_batches_must_divide(strategy_of):
    distribute.check_batch_size(12, strategy_of(4))
    with pytest.raises(distribute.DistributeError, match="nearest.* 12 and 16"):
        distribute.check_batch_size(13, strategy_of(4))
    with pytest.raises(distribute.DistributeError, match="nearest size is 4"):
        distribute.check_batch_size(3, strategy_of(4))


def test_batches_must_divide_into_parts(strategy_of):
    distribute.check_batch_size(24, strategy_of(4), 3)
    with pytest.raises(
        distribute.DistributeError, match="in 3 parts each.* 12 and 24"
    ):
        distribute.check_batch_size(20, strategy_of(4), 3)


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
    with pytest.raises(distribute.DistributeError, match=message):
        distribute.make_strategy("multi_worker")


def test_a_tpu_that_is_not_there(monkeypatch):
    for name in ("TPU_NAME", "COLAB_TPU_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(distribute.DistributeError, match="No TPU found.*local"):
        distribute.make_strategy("tpu")


def test_one_process_is_its_own_chief(strategy_of):
    for replicas in (1, 2):
        assert distribute.is_chief(strategy_of(replicas))
        total = distribute.sum_over_workers(strategy_of(replicas), 3)
        assert total == 3 * replicas


def test_other_errors_than_a_lost_worker_stay_what_they_are(strategy_of):
    error = tf.errors.UnavailableError(None, None, "no worker is meant")
    with (
        pytest.raises(tf.errors.UnavailableError),
        distribute.watch_workers(strategy_of(2)),
    ):
        raise error


def test_devices_are_split_before_they_are_used():
    tf.config.list_logical_devices()
    with pytest.raises(distribute.DistributeError, match="start a new one"):
        distribute.split_cpu(2)
    with pytest.raises(distribute.DistributeError, match="positive.*0"):
        distribute.split_cpu(0)


def test_freed_memory_is_kept():
    """A large buffer that was freed comes back without page faults.

    In a process of its own, because the setting is the process's.
    """
    code = """
import resource, sys
import numpy as np
from keras_mixer import distribute


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(2**24, np.float32)  # 64 MiB, 16384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
done = distribute.keep_freed_memory()
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
