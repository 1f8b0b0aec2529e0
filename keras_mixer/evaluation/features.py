"""Few-shot accuracy of a model's features on several data sets."""

import sys
from collections.abc import Callable, Sequence
from typing import TypedDict

import keras
import numpy as np
import tensorflow as tf

from keras_mixer import data
from keras_mixer.data.augment import images, policy as policy_lib
from keras_mixer.evaluation import fewshot
from keras_mixer.evaluation.passes import (
    Batch,
    Pass,
    compile_for,
    make_collector,
)
from keras_mixer.run.config import Config


class FewshotScore(TypedDict):
    """Of one data set, number of shots and strength of regularisation.

    `accuracies` are those of the support sets of seeds 0, 1, ...; `accuracy`
    is their mean. `count` is the number of test examples.
    """

    data: str
    train_split: str
    test_split: str
    shots: int
    l2_reg: float
    accuracy: float
    accuracies: list[float]
    count: int


def feature_model(model: keras.Model) -> keras.Model:
    """Returns the part of a Mixer up to its features.

    They are the mean over the tokens after the last LayerNorm, float32
    `[batch, hidden_dim]` (paper, sect. 3: frozen representations). The
    variables are those of `model`.
    """
    return keras.Model(
        model.inputs, model.get_layer("avg_pool").output, name="features"
    )


Embed = Callable[[tf.Tensor], tf.Tensor]


def make_embed(
    model: keras.Model, strategy: tf.distribute.Strategy, *, xla: bool
) -> Embed:
    """Returns what computes the features of a batch of images.

    XLA compiles it once for each size of the batch, whatever passes share it.

    Args:
      model: Maps images in [-1, 1] to features `[batch, features]`.
      strategy: Where it computes.
      xla: Whether to compile the model, if there is one replica.
    """

    def embed(image: tf.Tensor) -> tf.Tensor:
        x = model(images.to_value_range(image), training=False)
        return tf.cast(x, tf.float32)

    return compile_for(strategy, embed, xla)


def make_features(
    embed: Embed, over: Pass
) -> Callable[[], dict[str, np.ndarray]]:
    """Returns a function that computes the features of a split.

    Args:
      embed: From `make_embed`.
      over: The split, and where to compute.

    Returns:
      A function that returns "features", float32 `[n, features]`, "label" and
      "index", in the order of the split, without broken images.
    """

    def features_of(batch: Batch) -> Batch:
        return {"features": embed(batch["image"])}

    return make_collector(features_of, over, xla=False)


def _tell_shortage(
    found: data.FewshotData, labels: np.ndarray, shots: int
) -> None:
    """Says so if there are too few examples of some classes."""
    counts = np.bincount(labels, minlength=found.train.num_classes)
    short = int(np.sum(counts < shots))
    if short:
        print(
            f"{found.train.name}: {short} of {len(counts)} classes have fewer "
            f"than {shots} examples (the fewest {counts.min()}); of those all "
            "are taken.",
            file=sys.stderr,
        )


class _DataSet:
    """What a few-shot evaluation does with one data set.

    Of the training split the images of the support sets alone are read.
    """

    def __init__(
        self,
        config: Config,
        found: data.FewshotData,
        embed: Embed,
        strategy: tf.distribute.Strategy,
    ):
        self.name, self.settings = found.name, config.fewshot
        self.splits = (found.train.name, found.test.name)
        self.num_classes = found.train.num_classes
        self.labels = found.train.labels()
        most = max(self.settings.shot_numbers)
        every = [self._support(most, seed) for seed in self.seeds]
        # Sorted: the order in which they are collected.
        self.positions = np.unique(np.concatenate(every))
        support = data.choose(found.train, self.positions)
        _tell_shortage(found, self.labels, most)
        assert config.model.image_size is not None
        self.collect_support, self.collect_test = (
            make_features(
                embed,
                Pass(
                    split,
                    batch_size=config.train.batch_size,
                    image_size=config.model.image_size,
                    policy=data.fewshot_policy(config, split),
                    strategy=strategy,
                    broken=data.BrokenImages(
                        split, limit=config.data.max_broken
                    ),
                ),
            )
            for split in (support, found.test)
        )

    @property
    def seeds(self) -> range:
        return range(self.settings.seeds)

    def _support(self, shots: int, seed: int) -> np.ndarray:
        return fewshot.support_set(
            self.labels, num_classes=self.num_classes, shots=shots, seed=seed
        )

    def scores(self) -> list[FewshotScore]:
        """Computes all features, solves and counts."""
        support, test = self.collect_support(), self.collect_test()
        for rows in (support["features"], test["features"]):
            if not np.isfinite(rows).all():
                raise ValueError(
                    f"{self.name}: the model's features are not finite "
                    "numbers. Look for NaN in its weights."
                )
        # Of an example of the split the row of its features; broken: -1.
        row = np.full(len(self.labels), -1)
        row[self.positions[support["index"]]] = np.arange(len(support["index"]))
        l2_regs = self.settings.l2_regs
        found: dict[tuple[int, float], list[float]] = {}
        for seed in self.seeds:
            for shots in self.settings.shot_numbers:
                rows = row[self._support(shots, seed)]
                rows = rows[rows >= 0]
                regression = fewshot.fit(
                    support["features"][rows],
                    support["label"][rows],
                    num_classes=self.num_classes,
                )
                accuracies = regression.accuracies(
                    test["features"], test["label"], l2_regs
                )
                for l2_reg, accuracy in zip(l2_regs, accuracies, strict=True):
                    found.setdefault((shots, l2_reg), []).append(
                        float(accuracy)
                    )
        return [
            {
                "data": self.name,
                "train_split": self.splits[0],
                "test_split": self.splits[1],
                "shots": shots,
                "l2_reg": l2_reg,
                "accuracy": float(np.mean(accuracies)),
                "accuracies": accuracies,
                "count": len(test["label"]),
            }
            for (shots, l2_reg), accuracies in found.items()
        ]


def make_fewshot_evaluators(
    model: keras.Model,
    sets: Sequence[data.FewshotData],
    *,
    config: Config,
    strategy: tf.distribute.Strategy,
) -> dict[str, Callable[[], list[FewshotScore]]]:
    """Returns a function for each data set that evaluates `model` on it.

    It computes the features on all replicas and solves on the CPU, in
    float64. It may be called as often as wanted: only the first call compiles.
    The result is that of `fewshot.accuracies` on the features of the whole
    training split, of which the support sets alone are computed. A broken
    image is missing from its support set, or from the count.

    Args:
      model: A Mixer with its pooling layer, that returns logits or features.
      sets: From `data.open_fewshot`.
      config: A resolved config: `fewshot`, image size, batch size.
      strategy: Where to compute.

    Raises:
      ValueError: A policy does not fit the images.
    """
    embed = make_embed(feature_model(model), strategy, xla=config.train.xla)
    size = config.model.image_size
    assert size is not None
    for found in sets:  # before the labels of any are read
        for split in (found.train, found.test):
            policy = data.fewshot_policy(config, split)
            policy_lib.parse(policy, size, split.image_size)
    return {
        found.name: _DataSet(config, found, embed, strategy).scores
        for found in sets
    }
