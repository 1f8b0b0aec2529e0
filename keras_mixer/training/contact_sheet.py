"""Contact sheets: pictures of what the model gets."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_mixer import data
from keras_mixer.engines import engine as engine_lib, step as step_lib
from keras_mixer.evaluation import pictures
from keras_mixer.models.preprocessing import to_value_range
from keras_mixer.run.config import Config


def draw(
    config: Config,
    splits: data.Splits,
    *,
    count: int = 32,
    step: int = 0,
    evaluation: bool = False,
) -> Any:
    """Draws the images of a batch, with their classes above them.

    Args:
      config: Of the run, resolved by `data.resolve`.
      count: Images, at most.
      step: Updates before the batch that is shown.
      evaluation: Show the evaluation split instead, as it is evaluated.

    Returns:
      A matplotlib figure with `count` axes, or as many as the batch has.

    Raises:
      ConfigError: matplotlib is not installed, or the config cannot be used.
      DataError: Too many images are broken.
    """
    data.check_eval_policy(config, splits)
    if evaluation:
        shown, captions = first_evaluated(config, splits, count=count)
        split, what = splits.evaluation, config.augment.eval_policy
    else:
        shown, captions = first_images(config, splits, count=count, step=step)
        split, what = splits.train, config.augment.policy
        if config.mixup.p:
            what += f", mixup {config.mixup.p}"
    return pictures.draw_sheet(
        np.clip(shown / 2 + 0.5, 0, 1), captions, f"{split.name}: {what}"
    )


def first_images(
    config: Config, splits: data.Splits, *, count: int, step: int
) -> tuple[np.ndarray, list[str]]:
    """Returns the first images of a training batch, and their captions.

    The images are float32 [n, side, side, 3] in [-1, 1].
    """
    split, size = splits.train, config.train.batch_size
    engine_lib.check_batch_memory(size, config.model.side, hosts=1)
    # A shard has the same images as the whole batch, and is decoded alone.
    unit = math.gcd(size, data.MIXING_GROUP)
    fit = [n for n in range(unit, count + 1, unit) if size % n == 0]
    shard = max(fit, default=unit)
    broken = data.BrokenImages(split, limit=config.data.max_broken)
    batches = data.train_batches(
        split,
        batch_size=size,
        image_size=config.model.side,
        policy=config.augment.policy,
        seed=config.train.seed,
        start_step=step,
        shuffle_buffer=config.data.shuffle_buffer,
        num_shards=size // shard,
        mixup=config.mixup,
        broken=broken,
    )
    with broken.errors():
        batch = step_lib.split_partners(next(batches.as_numpy_iterator()))
    image, _ = step_lib.make_inputs(batch, split.num_classes, 0.0)
    return np.asarray(image)[:count], [
        _caption(_labels({k: v[i] for k, v in batch.items()}), split)
        for i in range(min(len(image), count))
    ]


def first_evaluated(
    config: Config, splits: data.Splits, *, count: int
) -> tuple[np.ndarray, list[str]]:
    """Returns the same for the first images of the evaluation split."""
    split = splits.evaluation
    broken = data.BrokenImages(split, limit=config.data.max_broken)
    batches = data.eval_batches(
        split,
        batch_size=min(count, split.num_examples),
        image_size=config.model.side,
        policy=config.augment.eval_policy,
        broken=broken,
    )
    with broken.errors():
        batch = next(iter(batches))
    labels = np.where(np.asarray(batch["mask"]) > 0, batch["label"], -1)
    return np.asarray(to_value_range(batch["image"])), [
        _caption([(label, 1.0)], split) for label in labels
    ]


def _labels(example: Mapping[str, np.ndarray]) -> list[tuple[int, float]]:
    """Returns the classes of a training example with their shares."""
    label = example["label"]
    if label.ndim:  # a layer mixed the batch
        order = np.argsort(-label, kind="stable")
        return [(i, label[i]) for i in order if label[i] > 0] or [(-1, 1.0)]
    if "share" not in example or example["partner_label"] < 0:
        return [(int(label), 1.0)]
    share = float(example["share"])
    return [(int(label), share), (int(example["partner_label"]), 1 - share)]


def _caption(labels: list[tuple[int, float]], split: data.Split) -> str:
    """Names the classes of an image: "cat", or "cat 0.71" and "dog 0.29"."""
    names = [
        split.class_names[i][:20] if i >= 0 else "broken" for i, _ in labels
    ]
    if len(labels) == 1 or labels[0][0] < 0:
        return names[0]
    both = zip(names, labels, strict=True)
    return "\n".join(f"{name} {share:.2f}" for name, (_, share) in both)
