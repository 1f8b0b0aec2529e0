"""One update of the weights, as a replica computes it, on any backend.

Each replica divides the sum of its examples' losses by the global batch size,
so that the sum of the replicas' gradients is the gradient of the mean. That sum
is made once, clipped, and given to the optimizer. A broken image has the label
-1, adds nothing to the loss, and is nobody's mixup partner.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_mixer.engines import draws, objective
from keras_mixer.engines.engine import Batch
from keras_mixer.models import layers
from keras_mixer.models.preprocessing import to_value_range
from keras_mixer.run.config import Config

# (part of a batch, step) -> its share of the mean loss.
LossOfBatch = Callable[[Batch, Any], Any]


def split_partners(batch: Batch) -> Batch:
    """Separates mixup partners: row i of the images belongs to row i + 1."""
    if "share" not in batch:
        return batch
    return {
        **batch,
        "image": batch["image"][1:],
        "label": batch["label"][1:],
        "partner_image": batch["image"][:-1],
        "partner_label": batch["label"][:-1],
    }


def split_into_parts(batch: Batch, parts: int) -> Batch:
    """Cuts each `[n, ...]` into `[parts, n / parts, ...]`, to accumulate."""
    return {
        key: ops.reshape(x, [parts, x.shape[0] // parts, *x.shape[1:]])
        for key, x in batch.items()
    }


def _is_integer(x: Any) -> bool:
    return "int" in keras.backend.standardize_dtype(x.dtype)


def make_inputs(
    batch: Batch, num_classes: int, label_smoothing: float
) -> tuple[Any, Any]:
    """Returns the images that the model gets and the labels it should give.

    Takes what `split_partners` returns. Images in [-1, 1], float32
    `[batch, side, side, 3]`, and labels, float32 `[batch, classes]`, are mixed
    with their partners by mixup.
    """

    def labels_of(label: Any) -> Any:
        if _is_integer(label):
            label = ops.one_hot(label, num_classes, dtype="float32")
        return objective.smooth_labels(label, label_smoothing)

    image = to_value_range(batch["image"])
    labels = labels_of(batch["label"])
    if "share" not in batch:
        return image, labels
    share = ops.where(batch["partner_label"] >= 0, batch["share"], 1.0)
    partner = to_value_range(batch["partner_image"])
    return (
        objective.mix(image, partner, share),
        objective.mix(labels, labels_of(batch["partner_label"]), share),
    )


def make_loss(model: keras.Model, config: Config) -> LossOfBatch:
    """Returns the loss of what `split_partners` makes, as a part of the mean.

    The model draws stochastic depth and dropout for each example.
    """
    loss_fn = objective.LOSSES[config.train.loss]
    run = config.train

    def loss_of(batch: Batch, step: Any) -> Any:
        image, labels = make_inputs(
            batch, model.output_shape[-1], run.label_smoothing
        )
        # All but broken images.
        label = batch["label"]
        counts = label >= 0
        if not _is_integer(label):
            counts = ops.sum(label, axis=-1) > 0
        draw = draws.keyed_uniform(run.seed, step, batch["index"])
        with layers.drawn_by(draw):
            logits = model(image, training=True)
        losses = ops.where(counts, loss_fn(labels, logits), 0.0)
        return ops.sum(losses) / run.batch_size

    return loss_of


def clip(
    gradients: Sequence[Any], clip_norm: float | None
) -> tuple[list[Any], Any]:
    """Scales the global batch's gradients to a norm of at most `clip_norm`.

    The gradients are summed over the replicas before they are clipped. Keras'
    `global_clipnorm` clips those of each replica before the sum, so that 1, 2
    and 4 replicas train three different models (Keras 3.15).

    Returns:
      The gradients, and their norm before clipping.
    """
    squares = [ops.sum(ops.square(g)) for g in gradients]
    norm = ops.sqrt(ops.sum(ops.stack(squares)))
    if clip_norm is not None:
        scale = clip_norm * ops.minimum(1.0 / norm, 1.0 / clip_norm)
        gradients = [g * scale for g in gradients]
    return list(gradients), norm
