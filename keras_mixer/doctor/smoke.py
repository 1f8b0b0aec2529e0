"""Trains a few steps of a tiny Mixer, with the trainer's own parts.

The doctor runs this as a program. Its argument is a JSON object, the arguments
of `main`; the last line of its output is another, what `main` returns.
"""

import json
import math
import sys
import time
from typing import Any

import tensorflow as tf

from keras_mixer import data
from keras_mixer.engines import distribute, step as step_lib
from keras_mixer.run import config as config_lib, recipes
from keras_mixer.training import assembly

_TIMED_STEPS = 5


def train_steps(
    strategy: tf.distribute.Strategy, precision: str = "float32"
) -> dict[str, Any]:
    """Trains the recipe `digits` for one step, and then for some more.

    Returns:
      `precision`, `xla`, `losses` and `gradient_norms` of all steps, whether
      these are `finite`, `first_seconds` of the first step (tracing and
      compiling) and `step_seconds` of a later one.
    """
    replicas = strategy.num_replicas_in_sync
    config = config_lib.override(
        recipes.digits(),
        [
            f"train.batch_size={8 * replicas}",
            f"train.steps={1 + _TIMED_STEPS}",
            "optim.warmup_steps=0",
            f"model.precision={precision}",
        ],
    )
    split = data.open_split(config.data.name, "train")
    config = data.resolve(config, split)
    with strategy.scope():
        model, optimizer, _ = assembly.build_training(config, split.num_classes)
    iterator = assembly.train_batches(config, split, strategy)
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


def main(
    *, strategy: str, virtual_devices: int | None, tpu: str | None
) -> dict[str, Any]:
    """Makes the strategy that train.py's flags of these names ask for.

    Returns:
      `strategy` by name, the `reason` for it, its `description`, and the
      `steps` that it trained in each precision: on a TPU also in bfloat16.
    """
    assembly.require_tensorflow()
    virtual = virtual_devices is not None
    if virtual_devices is not None:
        distribute.split_cpu(virtual_devices)
    chosen = distribute.choose_strategy(strategy, cpu=virtual, tpu=tpu)
    made = distribute.make_strategy(strategy, cpu=virtual, tpu=tpu)
    precisions = ["float32", *(["bfloat16"] if distribute.is_tpu(made) else [])]
    return {
        "strategy": chosen.name,
        "reason": chosen.reason,
        "description": distribute.describe(made),
        "steps": [train_steps(made, precision) for precision in precisions],
    }


if __name__ == "__main__":
    try:
        told = main(**json.loads(sys.argv[1]))
    except Exception as error:  # the doctor reports it
        told = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(told), flush=True)
