"""How long saving a checkpoint holds up the training.

Mixer-B/16 with its AdamW state (0.72 GB). Updates of all weights with fixed
gradients, without forward and backward pass, follow one another. After one of
them the state is saved, in three ways: by this project (a thread writes, hashes
and syncs to the disk while the updates continue); the same, but waited for;
and with tf.train.Checkpoint, which writes at once and neither syncs nor hashes.

"blocked" is the time until the save call returns. "in all" is how much longer
the updates and the save took than the updates alone. It includes what the
thread takes from the processor (all of it where the updates use both cores).

    python benchmarks/checkpoint_save.py --output=/path/on/a/local/disk
"""

import argparse
import os
import pathlib
import shutil
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

import keras_mixer
from keras_mixer.engines import distribute, memory, optim, tensorflow
from keras_mixer.run import checkpoint
from keras_mixer.run.fields import OptimConfig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", default="runs/checkpoint_save")
    parser.add_argument("--model", default="B/16")
    parser.add_argument("--updates", type=int, default=20, help="after a save")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    memory.keep_freed_memory()
    engine = tensorflow.TensorFlowEngine(distribute.make_strategy("one_device"))
    output = pathlib.Path(options.output)
    model = keras_mixer.Mixer(options.model)
    config = OptimConfig(clip_norm=None)
    optimizer = optim.make_optimizer(
        config,
        schedule=optim.make_schedule(config, total_steps=10_000),
        variables=model.trainable_variables,
    )
    gradients = [tf.random.normal(v.shape) for v in model.trainable_variables]

    @tf.function(jit_compile=True)
    def update() -> None:
        optimizer.apply(gradients, model.trainable_variables)

    state = {
        "model": keras_mixer.weights.mixer_variables(model),
        "optimizer": {v.path: v for v in optimizer.variables},
    }
    gigabytes = 4e-9 * sum(
        v.shape.num_elements() for part in state.values() for v in part.values()
    )
    plain = tf.train.Checkpoint(model=model, optimizer=optimizer)

    def save_with_thread(checkpoints: checkpoint.Checkpoints, i: int) -> None:
        checkpoints.save(
            i,
            {
                part: engine.snapshot(variables)
                for part, variables in state.items()
            },
        )

    def save_and_wait(checkpoints: checkpoint.Checkpoints, i: int) -> None:
        save_with_thread(checkpoints, i)
        checkpoints.wait()

    def save_plain(checkpoints: checkpoint.Checkpoints, i: int) -> None:
        plain.write(str(output / f"plain-{i}"))

    def measure(save) -> tuple[list[float], list[float]]:
        blocked, in_all = [], []
        for i in range(options.repeats + 1):
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir(parents=True)
            checkpoints = checkpoint.Checkpoints(output)
            update()
            begun = time.perf_counter()
            if save is not None:
                save(checkpoints, i)
            returned = time.perf_counter()
            for _ in range(options.updates):
                update()
            checkpoints.wait()
            if i:  # the first warms up
                blocked.append(returned - begun)
                in_all.append(time.perf_counter() - begun)
        return blocked, in_all

    _, alone = measure(None)
    print(
        f"{options.model}: {gigabytes:.2f} GB; {options.updates} updates alone "
        f"{statistics.median(alone):.2f} s; medians of {options.repeats}"
    )
    rows = {
        name: measure(save)
        for name, save in (
            ("thread, synced, hashed (keras_mixer)", save_with_thread),
            ("the same, waited for", save_and_wait),
            ("tf.train.Checkpoint.write", save_plain),
        )
    }
    reference = statistics.median(rows["tf.train.Checkpoint.write"][0])
    for name, (blocked, in_all) in rows.items():
        block = statistics.median(blocked)
        print(
            f"{name:<38} blocked {block:6.3f} s ({block / reference:.2f} of "
            f"TensorFlow's)  in all "
            f"{statistics.median(in_all) - statistics.median(alone):6.2f} s"
        )
    shutil.rmtree(output, ignore_errors=True)


if __name__ == "__main__":
    main()
