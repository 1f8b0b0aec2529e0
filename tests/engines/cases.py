"""Trains small models on the engine of Keras' backend, in its own process.

    KERAS_BACKEND=jax python -m tests.engines.cases OUT.npz REPLICAS CASE ...

A case is a list of overrides with commas between them. OUT.npz gets, for case
number i: "i/losses" and "i/norms" of every step; "i/first/NAME" and "i/NAME",
the weights and the optimizer's state before and after; "i/logits" of some
images. With AS_ON_A_TPU=1 the JAX engine computes two examples at a time, as it
does where more do not fit into a chip.
"""

import os
import sys

import numpy as np

from tests.training.common import small

STEPS = 20
CLASSES = 10


def arrays_of(engine, model, optimizer):
    variables = {v.path: v for v in [*model.weights, *optimizer.variables]}
    return {k: np.asarray(v) for k, v in engine.snapshot(variables).items()}


def logits_of(model):
    pixels = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 3))
    return np.asarray(model(pixels.astype(np.float32)))


def train(engine, overrides):
    """Returns the arrays of a case."""
    import keras

    from keras_mixer import data
    from keras_mixer.training import assembly

    config = small(f"train.steps={STEPS}", *overrides)
    split = data.open_split("digits", config.data.train_split)
    config = data.resolve(config, split)
    keras.utils.set_random_seed(config.train.seed)
    with engine.scope():
        model, optimizer, _ = assembly.build_training(config, CLASSES)
    first = arrays_of(engine, model, optimizer)
    steps = engine.make_train_steps(model, optimizer, config)
    losses, norms, _ = steps(
        assembly.train_batches(config, split, engine), STEPS, False
    )
    return {
        "losses": losses,
        "norms": norms,
        "logits": logits_of(model),
        **{f"first/{name}": value for name, value in first.items()},
        **arrays_of(engine, model, optimizer),
    }


def main(output, replicas, *cases):
    from keras_mixer.engines import choice, make

    name = os.environ["KERAS_BACKEND"]
    choice.use_engine(choice.Choice(name, "the test says so"), virtual=True)
    engine = make.make_engine(name, virtual_devices=int(replicas))
    assert (engine.name, engine.replicas) == (name, int(replicas))
    if "AS_ON_A_TPU" in os.environ:
        from keras_mixer.engines import parts

        engine.is_tpu = True
        parts.count_parts = lambda model, examples, least: examples // 2
    arrays = {}
    for i, case in enumerate(cases):
        found = train(engine, case.split(","))
        arrays |= {f"{i}/{key}": value for key, value in found.items()}
    np.savez(output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
