"""Draws a contact sheet: what the model really gets.

The program behind `python -m keras_mixer.data`.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from keras_mixer import config as config_lib, pictures
from keras_mixer.train import define_config_flags, read_config, run_program

FLAGS = flags.FLAGS

_HELP = """Draws a contact sheet: what the model really gets.

  python -m keras_mixer.data --recipe=cifar10_scratch --output=grid.png \\
      data.data_dir=~/tensorflow_datasets
  python -m keras_mixer.data --recipe=imagenet_b --output=grid.png \\
      data.name=folder:~/photos data.train_split=train --images=64
  python -m keras_mixer.data --recipe=imagenet_b --output=eval.png --evaluation

Recipes and overrides are those of train.py, and so are the pictures: the batch
of update --step of that run, cropped, augmented, mixed and labelled as the
model sees it. Above each one is its class, or the two that mixup mixed and
their shares.
"""

_CELL = 1.5  # inches
_COLUMNS = 8
_MAX_IMAGES = 1024


def define_flags() -> list[str]:
    """Defines the flags of this program and returns their names."""
    flags.DEFINE_string(
        "output",
        None,
        "File of the picture: .png, .svg or .pdf.",
        required=True,
    )
    flags.DEFINE_integer(
        "images",
        32,
        "How many, at most.",
        lower_bound=1,
        upper_bound=_MAX_IMAGES,
    )
    flags.DEFINE_integer(
        "step", 0, "Updates before the batch that is shown.", lower_bound=0
    )
    flags.DEFINE_bool("evaluation", False, "Show what evaluation sees.")
    return [*define_config_flags(), "output", "images", "step", "evaluation"]


def _first_images(
    config: config_lib.Config, splits: Any, *, count: int, step: int
) -> tuple[np.ndarray, list[str]]:
    """Returns the first images of a training batch, and their captions.

    Returns:
      float32 [n, side, side, 3] in [-1, 1], and as many texts.
    """
    from keras_mixer import data, step as step_lib

    split, size = splits.train, config.train.batch_size
    # A shard of the batch is drawn as the whole one, and decoded alone.
    unit = math.gcd(size, data.MIXING_GROUP)
    fit = [n for n in range(unit, count + 1, unit) if size % n == 0]
    shard = max(fit, default=unit)
    assert config.model.image_size is not None
    batches = data.train_batches(
        split,
        batch_size=size,
        image_size=config.model.image_size,
        policy=config.augment.policy,
        seed=config.train.seed,
        start_step=step,
        shuffle_buffer=config.data.shuffle_buffer,
        num_shards=size // shard,
        mixup=config.mixup,
        broken=data.BrokenImages(split, limit=config.data.max_broken),
    )
    batch = step_lib.split_partners(next(iter(batches)))
    image, _ = step_lib.make_inputs(batch, split.num_classes, 0.0)
    values = {key: value.numpy() for key, value in batch.items()}
    return image.numpy()[:count], [
        _caption(_labels({k: v[i] for k, v in values.items()}), split)
        for i in range(min(len(image), count))
    ]


def _first_evaluated(
    config: config_lib.Config, splits: Any, *, count: int
) -> tuple[np.ndarray, list[str]]:
    """Returns the same of the evaluation split's first images."""
    from keras_mixer import data, images

    split = splits.evaluation
    assert config.model.image_size is not None
    batches = data.eval_batches(
        split,
        batch_size=min(count, split.num_examples),
        image_size=config.model.image_size,
        policy=config.augment.eval_policy,
        broken=data.BrokenImages(split, limit=config.data.max_broken),
    )
    batch = next(iter(batches))
    labels = np.where(np.asarray(batch["mask"]) > 0, batch["label"], -1)
    return images.to_value_range(batch["image"]).numpy(), [
        _caption([(label, 1.0)], split) for label in labels
    ]


def _labels(example: Mapping[str, np.ndarray]) -> list[tuple[int, float]]:
    """Returns the classes of a training example with their shares."""
    label = example["label"]
    if label.ndim:  # of a layer that mixed a batch
        order = np.argsort(-label, kind="stable")
        return [(i, label[i]) for i in order if label[i] > 0] or [(-1, 1.0)]
    if "share" not in example or example["partner_label"] < 0:
        return [(int(label), 1.0)]
    share = float(example["share"])
    return [(int(label), share), (int(example["partner_label"]), 1 - share)]


def _caption(labels: list[tuple[int, float]], split: Any) -> str:
    """Names the classes of an image: "cat", or "cat 0.71" and "dog 0.29"."""
    names = [
        split.class_names[i][:20] if i >= 0 else "broken" for i, _ in labels
    ]
    if len(labels) == 1 or labels[0][0] < 0:
        return names[0]
    return "\n".join(
        f"{name} {share:.2f}"
        for name, (_, share) in zip(names, labels, strict=True)
    )


def _draw(
    shown: np.ndarray, captions: list[str], title: str, output: pathlib.Path
) -> None:
    """Writes images [n, side, side, 3] in [-1, 1] as a grid."""
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = pictures.new_figure(
        figsize=(columns * _CELL, rows * (_CELL + 0.35) + 0.5)
    )
    figure.suptitle(title, fontsize=8)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture, caption in zip(grid.flat, shown, captions, strict=False):
        axes.imshow(np.clip(picture / 2 + 0.5, 0, 1), interpolation="nearest")
        axes.set_title(caption, fontsize=7, pad=2)
    pictures.save(figure, output)


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, draws, says where."""
    from keras_mixer import data

    output = pictures.check_file(FLAGS.output, "--output")
    config = read_config(argv[1:])
    splits = data.open_splits(config)
    config = data.resolve(config, splits.train)
    if FLAGS.evaluation:
        shown, captions = _first_evaluated(config, splits, count=FLAGS.images)
        split, what = splits.evaluation, config.augment.eval_policy
    else:
        shown, captions = _first_images(
            config, splits, count=FLAGS.images, step=FLAGS.step
        )
        split, what = splits.train, config.augment.policy
        if config.mixup.p:
            what += f", mixup {config.mixup.p}"
    _draw(shown, captions, f"{split.name}: {what}", output)
    print(f"Drew {len(shown)} images of {split.name}: {output}")


if __name__ == "__main__":
    run_program(main, names=define_flags(), help_text=_HELP)
