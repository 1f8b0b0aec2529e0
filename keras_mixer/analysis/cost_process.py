"""Measures memory and speed of one model in a process of its own.

cost.py runs it as `python -m keras_mixer.analysis.cost_process JSON`; it prints
JSON. It needs its own process because a peak never goes down again, and because
the memory that another model has left behind would count too.
"""

import json
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import tensorflow as tf

from keras_mixer.engines import distribute, step
from keras_mixer.run import config as config_lib
from keras_mixer.run.config import Config
from keras_mixer.training import assembly

_MIB = 2**20
_MIN_CALLS = 2  # that are timed
_CLASSES = 1000


def peak_bytes() -> int:
    """Returns the most memory that this process has had so far.

    VmHWM on Linux, because ru_maxrss begins there at the parent's value,
    whatever this process uses itself.
    """
    if sys.platform == "linux":
        status = pathlib.Path("/proc/self/status").read_text()
        found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _inference(config: Config, batch: int) -> Callable[[], Any]:
    """Returns the forward pass of a batch, as eval.py computes it."""
    model = assembly.build_mixer(config, _CLASSES)
    forward = step.maybe_compile(
        lambda image: model(image, training=False), config.train.xla
    )
    forward = tf.function(forward)
    size = config.model.side
    image = tf.random.stateless_uniform((batch, size, size, 3), (0, 0), -1, 1)
    return lambda: forward(image).numpy()


def _training(config: Config, batch: int) -> Callable[[], Any]:
    """Returns an update of the weights, as train.py computes it."""
    strategy = distribute.make_strategy("one_device")
    size = config.model.side
    with strategy.scope():
        model, optimizer, _ = assembly.build_training(config, _CLASSES)
    one = {
        "image": tf.zeros((batch, size, size, 3), tf.uint8),
        "label": tf.range(batch, dtype=tf.int64) % _CLASSES,
        "index": tf.range(batch, dtype=tf.int64),
    }
    iterator = distribute.distribute_batches(
        strategy, lambda _: tf.data.Dataset.from_tensors(one).repeat()
    )
    train = step.make_train_steps(model, optimizer, config, strategy)
    return lambda: [
        r.numpy() for r in train(iterator, tf.constant(1), tf.constant(False))
    ]


def measure(
    *,
    mode: str,
    variant: str,
    image_size: int,
    tokens_mlp_dim: int,
    batch: int,
    seconds: float,
    xla: bool,
) -> dict[str, Any]:
    """Measures a model in this process.

    `mode` is "training" (one update with AdamW, as the trainer makes it) or
    "inference". After the first one, the call on `batch` images is repeated for
    some `seconds`, at least twice.

    Returns:
      `peak_mib`: the largest resident set minus that before the model was
      built; `baseline_mib`: the latter, TensorFlow's own; `images_per_second`,
      the mean of `calls`; `compile_seconds` of the first call.
    """
    config = config_lib.override(
        Config(),
        [
            f"model.variant={variant}",
            f"model.image_size={image_size}",
            f"model.tokens_mlp_dim={tokens_mlp_dim}",
            f"train.batch_size={batch}",
            "train.steps=1000",
            f"train.xla={str(xla).lower()}",
        ],
    )
    tf.matmul(tf.ones((8, 8)), tf.ones((8, 8))).numpy()  # TensorFlow starts
    baseline = psutil.Process().memory_info().rss
    make = {"training": _training, "inference": _inference}[mode]
    call = make(config, batch)
    begun = time.perf_counter()
    call()
    compiled = time.perf_counter() - begun
    calls = 0
    begun = time.perf_counter()
    while calls < _MIN_CALLS or time.perf_counter() - begun < seconds:
        call()
        calls += 1
    spent = time.perf_counter() - begun
    return {
        "peak_mib": (peak_bytes() - baseline) / _MIB,
        "baseline_mib": baseline / _MIB,
        "images_per_second": calls * batch / spent,
        "calls": calls,
        "compile_seconds": compiled,
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))), flush=True)
