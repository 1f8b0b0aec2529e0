"""Exact accuracy: every example of a split counts once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import keras
import numpy as np
import tensorflow as tf

from keras_mixer import data
from keras_mixer.data.augment import images
from keras_mixer.engines import objective
from keras_mixer.evaluation import passes
from keras_mixer.evaluation.passes import Batch, Pass

TOP = 5
_SUMMED = ("correct", "top5_correct", "loss", "counts")


class Scores(TypedDict):
    """Of one split: accuracies in [0, 1], mean loss, number of examples.

    An example of several labels (ReaL) is right if the prediction is one of
    them; one without any does not count (Beyer 2020).
    """

    accuracy: float
    top5_accuracy: float
    loss: float
    count: int


def score(model: keras.Model, loss: str, batch: Batch) -> Batch:
    """Scores each example of a batch of `data.eval_batches`.

    Args:
      model: Maps images in [-1, 1] to logits `[batch, classes]`.
      loss: A name of `objective.LOSSES`. The targets of several labels are
        equally probable (softmax), or all 1 (sigmoid).

    Returns:
      "predicted", int32 `[batch, 5]` (fewer if there are fewer classes), the
      best first; "correct", "top5_correct", "loss" and "counts" (1 if the
      example has a label), float32 `[batch]`.
    """
    logits = model(images.to_value_range(batch["image"]), training=False)
    classes = logits.shape[-1]
    counts = tf.ones_like(batch["mask"])
    if "labels" in batch:
        right = tf.cast(batch["labels"], tf.float32)
        number = tf.reduce_sum(right, axis=-1, keepdims=True)
        counts = tf.cast(number[:, 0] > 0, tf.float32)
        targets = right
        if loss == "softmax":
            targets = tf.math.divide_no_nan(right, number)
    else:
        right = targets = tf.one_hot(batch["label"], classes)
    # Of equal logits the first wins, as with argmax.
    predicted = tf.math.top_k(logits, min(TOP, classes)).indices
    hits = tf.gather(right, predicted, batch_dims=1)  # [batch, 5], 0 or 1
    return {
        "predicted": predicted,
        "correct": hits[:, 0],
        "top5_correct": tf.reduce_max(hits, axis=-1),
        "loss": objective.LOSSES[loss](targets, logits),
        "counts": counts,
    }


def _mean_scores(split: data.Split, sums: Mapping[str, float]) -> Scores:
    """Returns the means of `_SUMMED`, whose sums over a split are given."""
    count = sums["counts"]
    if not count:
        raise data.DataError(f"No image of {split.name} has a label.")
    return {
        "accuracy": sums["correct"] / count,
        "top5_accuracy": sums["top5_correct"] / count,
        "loss": sums["loss"] / count,
        "count": int(count),
    }


def make_evaluator(
    model: keras.Model, over: Pass, *, loss: str, xla: bool
) -> Callable[[], Scores]:
    """Returns a function that evaluates `model` on a split, see `score`.

    The function is traced once and may be called any number of times. Only
    sums leave the devices. Broken images do not count. XLA compiles the
    forward pass if `xla`, and if there is one replica.
    """
    strategy = over.strategy

    def sums_of(batch: Batch) -> list[tf.Tensor]:
        scores, mask = score(model, loss, batch), batch["mask"]
        weight = mask * scores["counts"]
        # Where the weight is 0 the value may be anything, even NaN.
        return [
            tf.reduce_sum(tf.where(weight > 0, scores[key], 0.0))
            for key in _SUMMED
        ] + [tf.reduce_sum(mask)]

    replica_fn = passes.compile_for(strategy, sums_of, xla)

    @tf.function
    def pass_over(iterator: Any) -> tf.Tensor:
        """Returns the sums over all batches, float64."""
        totals = tf.zeros([len(_SUMMED) + 1], tf.float64)
        for _ in tf.range(over.num_batches):
            sums = strategy.run(replica_fn, args=(next(iterator),))
            # The counts of a batch are exact in float32, below 2**24.
            sums = [strategy.reduce("SUM", value, axis=None) for value in sums]
            totals += tf.cast(tf.stack(sums), tf.float64)
        return totals

    def evaluate() -> Scores:
        with over.errors():
            *sums, decoded = pass_over(over.iterator).numpy().tolist()
        over.check_count(int(decoded))
        return _mean_scores(over.split, dict(zip(_SUMMED, sums, strict=True)))

    return evaluate


def predict(
    model: keras.Model, over: Pass, *, loss: str, xla: bool
) -> tuple[Scores, passes.Rows]:
    """Evaluates a model as `make_evaluator`, and keeps each example's result.

    Returns:
      The scores, and what `score` says of each example that is not broken, in
      the order of the split, with "label" and "index".
    """
    scores = functools.partial(score, model, loss)
    rows = passes.make_collector(scores, over, xla=xla)()
    counts = rows["counts"] > 0
    sums = {
        key: float(rows[key][counts].sum(dtype=np.float64)) for key in _SUMMED
    }
    return _mean_scores(over.split, sums), rows
