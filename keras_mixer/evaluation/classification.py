"""Exact accuracy: every example of a split counts once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict

import keras
import numpy as np
from keras import ops

from keras_mixer import data
from keras_mixer.engines import objective
from keras_mixer.engines.engine import Batch
from keras_mixer.evaluation import passes
from keras_mixer.evaluation.passes import Pass
from keras_mixer.models.preprocessing import to_value_range

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
    warning: NotRequired[str]  # that of the split


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
    logits = model(to_value_range(batch["image"]), training=False)
    classes = logits.shape[-1]
    counts = ops.ones_like(batch["mask"])
    if "labels" in batch:
        right = ops.cast(batch["labels"], "float32")
        number = ops.sum(right, axis=-1, keepdims=True)
        counts = ops.cast(number[:, 0] > 0, "float32")
        targets = right
        if loss == "softmax":
            targets = right / ops.maximum(number, 1.0)
    else:
        right = targets = ops.one_hot(batch["label"], classes, dtype="float32")
    # Of equal logits the first wins, as with argmax.
    predicted = ops.top_k(logits, min(TOP, classes))[1]
    hits = ops.take_along_axis(right, predicted, axis=1)  # [batch, 5], 0 or 1
    return {
        "predicted": predicted,
        "correct": hits[:, 0],
        "top5_correct": ops.max(hits, axis=-1),
        "loss": objective.LOSSES[loss](targets, logits),
        "counts": counts,
    }


def _mean_scores(split: data.Split, sums: Mapping[str, float]) -> Scores:
    """Returns the means of `_SUMMED`, whose sums over a split are given."""
    count = sums["counts"]
    if not count:
        raise data.DataError(f"No image of {split.name} has a label.")
    scores: Scores = {
        "accuracy": sums["correct"] / count,
        "top5_accuracy": sums["top5_correct"] / count,
        "loss": sums["loss"] / count,
        "count": int(count),
    }
    if split.warning:
        scores["warning"] = split.warning
    return scores


def make_evaluator(
    model: keras.Model, over: Pass, *, loss: str, xla: bool
) -> Callable[[], Scores]:
    """Returns a function that evaluates `model` on a split, see `score`.

    The function is traced once and may be called any number of times. Only
    sums leave the devices. Broken images do not count. XLA compiles the
    forward pass if `xla`, and if there is one replica.
    """

    def sums_of(batch: Batch) -> Any:
        scores, mask = score(model, loss, batch), batch["mask"]
        weight = mask * scores["counts"]
        # Where the weight is 0 the value may be anything, even NaN.
        sums = [
            ops.sum(ops.where(weight > 0, scores[key], 0.0)) for key in _SUMMED
        ]
        return ops.stack([*sums, ops.sum(mask)])

    pass_over = over.engine.make_sums(
        model, sums_of, size=len(_SUMMED) + 1, xla=xla
    )

    def evaluate() -> Scores:
        with over.broken.errors():
            *sums, decoded = pass_over(over.iterator, over.num_batches).tolist()
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
    rows_of_next = passes.make_rows(model, scores, over.engine, xla=xla)
    rows = passes.make_collector(rows_of_next, over)()
    counts = rows["counts"] > 0
    sums = {
        key: float(rows[key][counts].sum(dtype=np.float64)) for key in _SUMMED
    }
    return _mean_scores(over.split, sums), rows
