"""The splits that a run's config names, and what follows from them."""

import dataclasses
import os
from typing import NamedTuple

from keras_mixer.data.augment import policy as policy_lib
from keras_mixer.data.sources import open_split
from keras_mixer.data.splits import DataError, Split, require_same_classes
from keras_mixer.run import config as config_lib, files
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.run.fields import DataConfig


class Splits(NamedTuple):
    """What a run reads; `validation` chooses the best checkpoint."""

    train: Split
    validation: Split | None
    evaluation: Split


def open_splits(config: Config) -> Splits:
    """Opens the splits of a run and checks that they fit together.

    Raises:
      ConfigError: `data.name` is empty, `data.val_split` shares examples with
        another split, or `data.eval_split` with `data.train_split` and
        `data.allow_overlap` is false.
      DataError: A split cannot be used, or the classes differ.
    """
    own = config.data
    if not own.name:
        raise ConfigError(
            f"The recipe {config.recipe!r} asks for a data set of yours: "
            "data.name=folder:/path with one folder of images per class, or "
            "data.name=<TFDS name>"
        )
    train, evaluation, *validations = (
        open_split(
            own.name,
            split,
            own.data_dir,
            classes=own.classes,
            hold_out=own.hold_out,
        )
        for split in (own.train_split, own.eval_split, own.val_split)
        if split is not None
    )
    for other in (evaluation, *validations):
        require_same_classes(train, other)
    others = {"train_split": train, "eval_split": evaluation}
    for validation in validations:
        for field, other in others.items():
            if validation.overlaps(other):
                raise ConfigError(
                    "data.val_split chooses the best checkpoint and must not "
                    f"share examples with data.{field}. Received: "
                    f"{own.val_split} and {getattr(own, field)}. Set a part of "
                    "the training split apart: "
                    "data.train_split=train[:98%] data.val_split=train[98%:]"
                )
    evaluation = warned(evaluation, train)
    if evaluation.warning and not own.allow_overlap:
        raise ConfigError(
            "data.eval_split shares images with data.train_split, so the "
            f"accuracy would be that of images seen in training. Received: "
            f"{own.eval_split} and {own.train_split}. Split them "
            "(data.train_split=train[:80%] data.eval_split=train[80%:]), or "
            "mean it: data.allow_overlap=true"
        )
    return Splits(train, validations[0] if validations else None, evaluation)


def warned(split: Split, trained_on: Split | None) -> Split:
    """Returns a split with a warning if a training split shares its images."""
    if trained_on is None or not trained_on.overlaps(split):
        return split
    warning = (
        f"{split.name} shares images with {trained_on.name}, on which the "
        "model was trained: this is not the accuracy on new images"
    )
    return dataclasses.replace(split, warning=warning)


def open_evaluated(
    name: str, split: str, own: DataConfig, trained_on: DataConfig | None
) -> Split:
    """Opens a split, with a warning if the run was trained on its images.

    `own` says where and how to read. `trained_on` is what the run was trained
    on, None of weights without a run.
    """
    found = open_split(
        name,
        split,
        own.data_dir,
        classes=own.classes,
        hold_out=own.hold_out,
    )
    if trained_on is None:
        return found
    return warned(found, training_split(trained_on, name, own.data_dir))


def training_split(
    own: DataConfig, name: str, data_dir: str | None
) -> Split | None:
    """Finds the training images of a run in the data set `name`.

    Args:
      own: What the run was trained on.
      name: Of the data set to evaluate, see `open_split`.
      data_dir: Where TFDS keeps it.

    Returns:
      The training split; None if the data sets differ, or if the training
      split is not there anymore.
    """
    return _find(own, own.train_split, name, data_dir)


def evaluation_split(
    own: DataConfig, name: str, data_dir: str | None
) -> Split | None:
    """Finds the images that a run is evaluated on, as `training_split`."""
    return _find(own, own.eval_split, name, data_dir)


def _find(
    own: DataConfig, split: str, name: str, data_dir: str | None
) -> Split | None:
    if not _may_share(own.name, name):
        return None
    # The same data set, so that nothing is downloaded; of a folder the run's
    # own path, which may be above or below this one.
    name = own.name if name.startswith("folder:") else name
    try:
        return open_split(name, split, data_dir, hold_out=own.hold_out)
    except DataError:
        return None


def _may_share(name: str, other: str) -> bool:
    """Whether two names may lead to the same images."""
    paths = []
    for text in (name, other):
        path = text.removeprefix("folder:")
        if path == text or "://" in path:
            return name.partition(":")[0] == other.partition(":")[0]
        paths.append(os.path.realpath(files.expand(path)))
    return os.path.commonpath(paths) in paths


def check_eval_policy(config: Config, splits: Splits) -> None:
    """Raises ValueError if `augment.eval_policy` cannot be used, or draws.

    The config is resolved.
    """
    for split in (splits.evaluation, splits.validation):
        if split is not None:
            policy_lib.parse(
                config.augment.eval_policy,
                config.model.side,
                split.image_size,
                evaluation=True,
            )


def resolve(config: Config, split: Split) -> Config:
    """Fills in what follows from the data set: steps and image size.

    Raises:
      ConfigError: The run has no length, or the image size is unknown.
    """
    config = config_lib.resolve(config, num_examples=split.num_examples)
    if config.model.image_size is not None:
        return config
    if split.image_size is None:
        raise ConfigError(
            f"The images of {split.name} have many sizes: choose the "
            "side that the model takes, model.image_size=224"
        )
    return config_lib.override(config, [f"model.image_size={split.image_size}"])
