"""Few-shot accuracy of a model's features on several data sets."""

import sys
from collections.abc import Callable, Sequence
from typing import NotRequired, TypedDict

import keras
import numpy as np
from keras import ops

from keras_mixer import data
from keras_mixer.engines.engine import Batch, Engine
from keras_mixer.evaluation import fewshot
from keras_mixer.evaluation.passes import (
    Pass,
    RowsOfNext,
    make_collector,
    make_rows,
)
from keras_mixer.models.preprocessing import to_value_range
from keras_mixer.run.config import Config


class FewshotScore(TypedDict):
    """Of one data set, number of shots and strength of the regularisation.

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
    warning: NotRequired[str]  # that of the test split


def feature_model(model: keras.Model) -> keras.Model:
    """Returns the part of a Mixer up to its features, with its variables.

    The features are the mean over the tokens after the last LayerNorm, float32
    `[batch, hidden_dim]` (paper, sect. 3: frozen representations).
    """
    return keras.Model(
        model.inputs, model.get_layer("avg_pool").output, name="features"
    )


def make_features(
    model: keras.Model, engine: Engine, *, xla: bool
) -> RowsOfNext:
    """Returns what computes "features", float32 `[n, features]`, of a batch.

    All passes share it: it is compiled once for each size of the batch. The
    model maps images in [-1, 1] to the features.
    """

    def features_of(batch: Batch) -> Batch:
        x = model(to_value_range(batch["image"]), training=False)
        return {"features": ops.cast(x, "float32")}

    return make_rows(model, features_of, engine, xla=xla)


class _DataSet:
    """The few-shot evaluation of one data set.

    Only those images of the training split that are in a support set are read.
    """

    def __init__(
        self,
        config: Config,
        found: data.FewshotData,
        features_of_next: RowsOfNext,
        engine: Engine,
    ):
        self.found, self.settings = found, config.fewshot
        self.seeds = range(config.fewshot.seeds)
        self.labels = found.train.labels()
        most = max(self.settings.shot_numbers)
        every = [self._support(most, seed) for seed in self.seeds]
        # Sorted, as the rows are that `collect_support` returns.
        self.positions = np.unique(np.concatenate(every))
        self._tell_shortage(most)
        self.collect_support, self.collect_test = (
            make_collector(
                features_of_next,
                Pass.of(
                    config,
                    split,
                    engine,
                    policy=data.fewshot_policy(config, split),
                ),
            )
            for split in (data.choose(found.train, self.positions), found.test)
        )

    def _tell_shortage(self, shots: int) -> None:
        """Prints how many classes have too few examples, if any."""
        train = self.found.train
        counts = np.bincount(self.labels, minlength=train.num_classes)
        short = int(np.sum(counts < shots))
        if short:
            print(
                f"{train.name}: {short} of {len(counts)} classes have fewer "
                f"than {shots} examples (the fewest {counts.min()}); all of "
                "theirs are taken.",
                file=sys.stderr,
            )

    def _support(self, shots: int, seed: int) -> np.ndarray:
        return fewshot.support_set(
            self.labels,
            num_classes=self.found.train.num_classes,
            shots=shots,
            seed=seed,
        )

    def scores(self) -> list[FewshotScore]:
        """Computes the features and scores every setting."""
        support, test = self.collect_support(), self.collect_test()
        if not all(np.isfinite(x["features"]).all() for x in (support, test)):
            raise ValueError(
                f"{self.found.name}: the model's features are not finite "
                "numbers. Look for NaN in its weights."
            )
        # For each example of the split, the row of its features, or -1: it is
        # broken, or in no support set.
        row_of = np.full(len(self.labels), -1)
        places = self.positions[support["index"]]
        row_of[places] = np.arange(len(places))
        l2_regs = self.settings.l2_regs
        found: list[FewshotScore] = []
        for shots in self.settings.shot_numbers:
            by_seed = []
            for seed in self.seeds:
                rows = row_of[self._support(shots, seed)]
                rows = rows[rows >= 0]
                regression = fewshot.fit(
                    support["features"][rows],
                    support["label"][rows],
                    num_classes=self.found.train.num_classes,
                )
                by_seed.append(
                    regression.accuracies(
                        test["features"], test["label"], l2_regs
                    )
                )
            by_strength = np.transpose(by_seed).tolist()
            for l2_reg, accuracies in zip(l2_regs, by_strength, strict=True):
                score: FewshotScore = {
                    "data": self.found.name,
                    "train_split": self.found.train.name,
                    "test_split": self.found.test.name,
                    "shots": shots,
                    "l2_reg": l2_reg,
                    "accuracy": float(np.mean(accuracies)),
                    "accuracies": accuracies,
                    "count": len(test["label"]),
                }
                if self.found.test.warning:
                    score["warning"] = self.found.test.warning
                found.append(score)
        return found


def make_fewshot_evaluators(
    model: keras.Model,
    sets: Sequence[data.FewshotData],
    *,
    config: Config,
    engine: Engine,
) -> dict[str, Callable[[], list[FewshotScore]]]:
    """Returns a function for each data set that evaluates `model` on it.

    The function computes the features on all replicas and solves on the CPU,
    in float64. It may be called any number of times; only the first call
    compiles. The result is that of `fewshot.accuracies` on the features of the
    whole training split, but only those of the support sets are computed. A
    broken image is missing from its support set, or from the count.

    Args:
      model: A Mixer with its pooling layer, that returns logits or features.
      sets: From `data.open_fewshot`.
      config: A resolved config: `fewshot`, the preprocessing, the batch size.

    Raises:
      ValueError: A policy does not fit the images, or draws.
    """
    features_of_next = make_features(
        feature_model(model), engine, xla=config.train.xla
    )
    return {
        found.name: _DataSet(config, found, features_of_next, engine).scores
        for found in sets
    }
