"""Data sets of an evaluation, by their names or by the name of a suite."""

from typing import NamedTuple

from keras_mixer.data.augment import permutations, policy as policy_lib
from keras_mixer.data.sources import open_split
from keras_mixer.data.splits import DataError, Split, require_same_classes
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.run.suites import (
    parse_classification as parse_classification,
    parse_fewshot as parse_fewshot,
)


class FewshotData(NamedTuple):
    """A data set: support sets are drawn from `train`, `test` is classified.

    `name` is for people, `dataset` for `open_split`.
    """

    name: str
    dataset: str
    train: Split
    test: Split


def open_fewshot(config: Config) -> list[FewshotData]:
    """Opens the data sets of a few-shot evaluation. The config is resolved.

    Those that `fewshot.data` names, or else the run's own, with its classes.

    Raises:
      ConfigError: `fewshot.data` cannot be read, or a test split shares
        examples with its training split.
      DataError: A split cannot be used, or the two have different classes.
      ValueError: The preprocessing does not fit the images, or draws.
    """
    settings, own = config.fewshot, config.data
    classes = settings.classes
    if settings.data is not None:
        entries = parse_fewshot(settings.data)
    elif own.name:
        parts = (own.name, own.train_split, own.eval_split)
        entries = [(own.name, parts)]
        classes = own.classes if classes is None else classes
    else:
        raise ConfigError(
            "Give the data sets: fewshot.data=reference, or "
            "fewshot.data=NAME@TRAIN@TEST"
        )
    if len(entries) > 1 and classes is not None:
        raise ConfigError(
            "fewshot.classes chooses the classes of one data set. Received: "
            f"fewshot.data={settings.data}"
        )
    found = []
    for name, (dataset, *splits) in entries:
        train, test = (
            open_split(
                dataset,
                split,
                own.data_dir,
                classes=classes,
                hold_out=own.hold_out,
            )
            for split in splits
        )
        for part in (train, test):
            if part.is_multi_label:
                raise DataError(
                    f"{part.name} has several labels per image, and a "
                    "few-shot evaluation needs one."
                )
        require_same_classes(train, test)
        if train.overlaps(test):
            raise ConfigError(
                "The test examples of a few-shot evaluation must not be in "
                f"its training split. Received: {train.name} and {test.name}"
            )
        for part in (train, test):  # before anything is read
            policy_lib.parse(
                fewshot_policy(config, part),
                config.model.side,
                part.image_size,
                evaluation=True,
            )
        found.append(FewshotData(name, dataset, train, test))
    return found


def fewshot_policy(config: Config, split: Split) -> str:
    """Returns the preprocessing of a split for the few-shot evaluation.

    The authors resize both sides to 256 and cut out the centre of 224; other
    sizes keep the ratio. A permutation of the pixels that the model was
    trained on is applied here, too.
    """
    size = config.model.side
    if config.fewshot.policy is not None:
        return config.fewshot.policy
    _, shuffle = permutations.split(config.augment.eval_policy)
    end = "" if shuffle is None else f"|{shuffle}"
    if split.image_size == size:
        return f"resize{end}"
    return f"resize({round(size * 8 / 7)})|central_crop{end}"
