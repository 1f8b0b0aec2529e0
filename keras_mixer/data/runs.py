"""The splits that a run's config names, and what follows from them."""

from typing import NamedTuple

from keras_mixer.data.augment import policy as policy_lib
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
    """Opens the splits of a run and checks that they fit together.

    Raises:
      ConfigError: `data.name` is empty, or `data.val_split` shares examples
        with another split.
      DataError: A split cannot be used, or the classes differ.
    """
    own = config.data
    if not own.name:
        raise ConfigError(
            f"The recipe {config.recipe!r} asks for a data set of yours "
            "(JFT-300M is not public, and TFDS has no ImageNet-21k): "
            "data.name=<TFDS name> or data.name=folder:/path"
        )
    train, evaluation, *validations = (
        open_split(own.name, split, own.data_dir, classes=own.classes)
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
    return Splits(train, validations[0] if validations else None, evaluation)


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
