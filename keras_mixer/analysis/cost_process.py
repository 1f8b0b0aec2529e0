"""Measures memory and speed of one model in a process of its own.

cost.py runs it as `python -m keras_mixer.analysis.cost_process JSON`; it prints
JSON. It needs its own process because a peak never goes down again, and because
the memory that another model has left behind would count too.
"""

import json
import os
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from keras_mixer.engines import choice
from keras_mixer.run import config as config_lib
from keras_mixer.run.config import Config

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


def _inference(engine: Any, config: Config, batch: int) -> Callable[[], Any]:
    """Returns the forward pass of a batch, as eval.py computes it."""
    from keras_mixer.training import assembly

    with engine.scope():
        model = assembly.build_mixer(config, _CLASSES)
    rows = engine.make_rows(
        model,
        lambda x: {"logits": model(x["image"], training=False)},
        xla=config.train.xla,
    )
    size = config.model.side
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)
    batches = _repeat(engine, {"image": image})
    return lambda: rows(batches)


def _training(engine: Any, config: Config, batch: int) -> Callable[[], Any]:
    """Returns an update of the weights, as train.py computes it."""
    from keras_mixer.training import assembly

    size = config.model.side
    with engine.scope():
        model, optimizer, _ = assembly.build_training(config, _CLASSES)
    batches = _repeat(
        engine,
        {
            "image": np.zeros((batch, size, size, 3), np.uint8),
            "label": np.arange(batch) % _CLASSES,
            "index": np.arange(batch),
        },
    )
    train = engine.make_train_steps(model, optimizer, config)
    return lambda: train(batches, 1, False)


def _repeat(engine: Any, batch: dict[str, np.ndarray]) -> Any:
    """Returns an iterator that yields one batch again and again."""
    import tensorflow as tf

    return engine.batches(
        lambda *_: tf.data.Dataset.from_tensors(batch).repeat()
    )


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
      built; `baseline_mib`: the latter, the backend's own; `images_per_second`,
      the mean of `calls`; `compile_seconds` of the first call.
    """
    config = config_lib.override(
        Config(),
        [
            f"model.variant={variant}",
            f"model.image_size={image_size}",
            f"model.tokens_mlp_dim={tokens_mlp_dim}",
            "model.precision=float32",
            f"train.batch_size={batch}",
            "train.steps=1000",
            f"train.xla={str(xla).lower()}",
        ],
    )
    from keras_mixer.engines import make

    chosen = choice.choose_engine("auto", os.environ)
    choice.use_engine(chosen)
    engine = make.make_engine(chosen.name, one_device=True)
    engine.sum_over_hosts(0.0)  # the backend starts
    baseline = psutil.Process().memory_info().rss
    subject = {"training": _training, "inference": _inference}[mode]
    call = subject(engine, config, batch)
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
