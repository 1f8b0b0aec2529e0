"""The splits that a run's config names, and what follows from them."""

import dataclasses
from typing import NamedTuple

from keras_mixer.data.sources import open_split
from keras_mixer.data.splits import Split, require_same_classes
from keras_mixer.run import config as config_lib
from keras_mixer.run.config import Config, ConfigError


class Splits(NamedTuple):
    """What a run reads; `validation` chooses the best checkpoint."""

    train: Split
    validation: Split | None
    evaluation: Split


def open_splits(config: Config) -> Splits:
    """Opens the splits of a run and checks one with the other.

    Raises:
      ConfigError: `data.name` is empty.
      DataError: A split cannot be used, or the two have different classes.
    """
    if not config.data.name:
        raise ConfigError(
            f"The recipe {config.recipe!r} asks for a data set of yours "
            "(JFT-300M is not public, and TFDS has no ImageNet-21k): "
            "data.name=<TFDS name> or data.name=folder:/path"
        )
    names = (
        config.data.train_split,
        config.data.val_split,
        config.data.eval_split,
    )
    splits = [
        open_split(
            config.data.name,
            split,
            config.data.data_dir,
            classes=config.data.classes,
        )
        for split in names
        if split is not None
    ]
    train = splits[0]
    for other in splits[1:]:
        require_same_classes(train, other)
    validation = splits[1] if len(splits) == 3 else None
    for field, other in (
        ("train_split", splits[0]),
        ("eval_split", splits[-1]),
    ):
        if validation and validation.overlaps(other):
            raise ConfigError(
                "data.val_split chooses the best checkpoint and must not "
                f"share examples with data.{field}. Received: "
                f"{config.data.val_split} and {getattr(config.data, field)}. "
                "Set a part of the training split apart: "
                "data.train_split=train[:98%] data.val_split=train[98%:]"
            )
    return Splits(train, validation, splits[-1])


def resolve(config: Config, split: Split) -> Config:
    """Fills in what follows from the data set: steps and image size.

    Raises:
      ConfigError: The run has no length, or the image size is unknown.
    """
    config = config_lib.resolve(config, num_examples=split.num_examples)
    if config.model.image_size is None:
        if split.image_size is None:
            raise ConfigError(
                f"The images of {split.name} have many sizes: choose the "
                "side that the model takes, model.image_size=224"
            )
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(
                config.model, image_size=split.image_size
            ),
        )
    return config
