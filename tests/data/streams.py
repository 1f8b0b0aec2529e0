"""Training batches of small images, for several tests."""

import numpy as np

from keras_mixer import data


def stream(split, steps, *, batch_size=4, seed=0, start_step=0, **options):
    """Returns the (number, label) pairs of `steps` training batches."""
    batches = data.train_batches(
        split,
        batch_size=batch_size,
        image_size=6,
        policy=options.pop("policy", "resize"),
        seed=seed,
        start_step=start_step,
        **options,
    )
    return [
        (b["image"].numpy(), b["label"].numpy()) for b in batches.take(steps)
    ]


def numbers(batches):
    return [int(i[0, 0, 0]) // 10 for images, _ in batches for i in images]


def shards_of(split, steps, *, num_shards, shards, **options):
    """Returns, for each step, the parts of its batch as they come."""
    batches = data.train_batches(
        split,
        batch_size=24,
        image_size=8,
        policy=options.pop("policy", "pad_crop(2)|flip"),
        seed=3,
        num_shards=num_shards,
        shards=shards,
        **options,
    )
    parts = list(batches.take(steps * len(shards)).as_numpy_iterator())
    size = len(shards)
    return [parts[i * size : (i + 1) * size] for i in range(steps)]


def joined(parts, key, skip=0):
    return np.concatenate([part[key][skip:] for part in parts])
