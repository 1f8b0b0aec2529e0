"""Trains a few steps of a tiny Mixer, with the trainer's own parts.

Run as a program by the doctor; the last line of its output is a JSON object.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_mixer import data
from keras_mixer.engines import distribute, hosts, step as step_lib
from keras_mixer.run import (
    config as config_lib,
    recipes,
)
from keras_mixer.training import assembly

_TIMED_STEPS = 5


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where to compute, as train.py has them."""
    parser.add_argument("--strategy", default="auto", choices=hosts.STRATEGIES)
    parser.add_argument("--virtual_devices", type=int, default=None)
    parser.add_argument("--tpu", default=None)


def precisions_of(strategy: tf.distribute.Strategy) -> tuple[str, ...]:
    """Returns what runs would compute in: on a TPU also bfloat16."""
    if distribute.is_tpu(strategy):
        return ("float32", "bfloat16")
    return ("float32",)


def train_steps(
    strategy: tf.distribute.Strategy, precision: str = "float32"
) -> dict[str, Any]:
    """Trains the recipe `digits` for one step, and then for some more.

    Args:
      strategy: Where.
      precision: `model.precision` of the config.

    Returns:
      `precision`, `xla`, `losses` and `gradient_norms` of all steps,
      `first_seconds` of the first step (tracing and compiling) and
      `step_seconds` of a later one.
    """
    replicas = strategy.num_replicas_in_sync
    config = config_lib.override(
        recipes.digits(),
        [
            f"train.batch_size={8 * replicas}",
            f"train.steps={1 + _TIMED_STEPS}",
            "train.epochs=null",
            "optim.warmup_steps=0",
            "optim.warmup_epochs=null",
            f"model.precision={precision}",
        ],
    )
    split = data.open_split(config.data.name, "train")
    config = data.resolve(config, split)
    with strategy.scope():
        model, optimizer, _ = assembly.build_training(config, split.num_classes)
    image_size = config.model.image_size
    assert image_size is not None

    def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * local
        return data.train_batches(
            split,
            batch_size=config.train.batch_size,
            image_size=image_size,
            policy=config.augment.policy,
            seed=config.train.seed,
            num_shards=replicas,
            shards=range(first, first + local),
            mixup=config.mixup,
        )

    iterator = distribute.distribute_batches(strategy, batches)
    function = step_lib.make_train_steps(model, optimizer, config, strategy)
    losses: list[float] = []
    norms: list[float] = []
    seconds = []
    for count in (1, _TIMED_STEPS):
        begun = time.perf_counter()
        loss, norm, _ = function(
            iterator, tf.constant(count), tf.constant(False)
        )
        losses += loss.numpy().tolist()
        norms += norm.numpy().tolist()
        seconds.append(time.perf_counter() - begun)
    return {
        "precision": precision,
        "xla": distribute.compiles(),
        "losses": losses,
        "gradient_norms": norms,
        "finite": all(map(math.isfinite, losses + norms)),
        "first_seconds": seconds[0],
        "step_seconds": seconds[1] / _TIMED_STEPS,
    }


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Makes the strategy that the flags ask for, and trains on it."""
    parser = argparse.ArgumentParser()
    add_device_arguments(parser)
    flags = parser.parse_args(arguments)
    assembly.require_tensorflow()
    virtual = flags.virtual_devices is not None
    if virtual:
        distribute.split_cpu(flags.virtual_devices)
    given = {"cpu": virtual, "tpu": flags.tpu}
    chosen = distribute.choose_strategy(flags.strategy, **given)
    strategy = distribute.make_strategy(flags.strategy, **given)
    return {
        "strategy": chosen.name,
        "reason": chosen.reason,
        "description": distribute.describe(strategy),
        "steps": [train_steps(strategy, p) for p in precisions_of(strategy)],
    }


if __name__ == "__main__":
    try:
        told = main(sys.argv[1:])
    except Exception as error:  # all of it is for the doctor to tell
        told = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(told), flush=True)
    # Without freeing iterators over several CPUs, which hung now and then.
    os._exit(0)
