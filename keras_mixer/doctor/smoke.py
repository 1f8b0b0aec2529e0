"""Trains a few steps of a tiny Mixer, with the trainer's own parts.

The doctor runs this as a program. Its argument is a JSON object, the arguments
of `main`; the last line of its output is another, what `main` returns.
"""

import json
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from keras_mixer.engines import choice
from keras_mixer.run import config as config_lib, recipes

if TYPE_CHECKING:  # it imports Keras, for which no engine is chosen yet
    from keras_mixer.engines.engine import Engine

_TIMED_STEPS = 5


def train_steps(engine: "Engine", precision: str = "float32") -> dict[str, Any]:
    """Trains the recipe `digits` for one step, and then for some more.

    Returns:
      `precision`, `losses` and `gradient_norms` of all steps, whether
      these are `finite`, `first_seconds` of the first step (tracing and
      compiling) and `step_seconds` of a later one.
    """
    from keras_mixer import data
    from keras_mixer.training import assembly

    config = config_lib.override(
        recipes.digits(),
        [
            f"train.batch_size={8 * engine.replicas}",
            f"train.steps={1 + _TIMED_STEPS}",
            "optim.warmup_steps=0",
            f"model.precision={precision}",
        ],
    )
    split = data.open_split(config.data.name, "train")
    config = data.resolve(config, split)
    with engine.scope():
        model, optimizer, _ = assembly.build_training(config, split.num_classes)
    batches = assembly.train_batches(config, split, engine)
    function = engine.make_train_steps(model, optimizer, config)
    losses: list[float] = []
    norms: list[float] = []
    seconds = []
    for count in (1, _TIMED_STEPS):
        begun = time.perf_counter()
        loss, norm, _ = function(batches, count, False)
        losses += loss.tolist()
        norms += norm.tolist()
        seconds.append(time.perf_counter() - begun)
    return {
        "precision": precision,
        "losses": losses,
        "gradient_norms": norms,
        "finite": all(map(math.isfinite, losses + norms)),
        "first_seconds": seconds[0],
        "step_seconds": seconds[1] / _TIMED_STEPS,
    }


def main(
    *, engine: str, strategy: str, virtual_devices: int | None, tpu: str | None
) -> dict[str, Any]:
    """Makes the engine that train.py's flags of these names ask for.

    Returns:
      `engine` and `strategy` by name, the `reason` for the latter (of JAX both
      are empty), the `description`, and the `steps` that it trained in
      float32 and in the fastest precision, and whether there is `xla`.
    """
    flags = [f"--tpu={tpu}"] if tpu else []
    if strategy != "auto":
        flags.append(f"--strategy={strategy}")
    virtual = virtual_devices is not None
    name = choice.choose_engine(engine, os.environ, flags=flags)
    choice.use_engine(name, virtual=virtual)
    from keras_mixer.engines import make

    made = make.make_engine(
        name.name, virtual_devices=virtual_devices, strategy=strategy, tpu=tpu
    )
    chosen, xla = choice.Choice("", ""), True
    if made.name == "tensorflow":
        from keras_mixer.engines import distribute

        chosen = distribute.choose_strategy(strategy, cpu=virtual, tpu=tpu)
        xla = distribute.compiles()
    precisions = dict.fromkeys(["float32", made.best_precision().name])
    return {
        "engine": made.name,
        "strategy": chosen.name,
        "reason": chosen.reason,
        "description": made.describe(),
        "steps": [{**train_steps(made, p), "xla": xla} for p in precisions],
    }


if __name__ == "__main__":
    try:
        told = main(**json.loads(sys.argv[1]))
    except Exception as error:  # the doctor reports it
        told = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(told), flush=True)
