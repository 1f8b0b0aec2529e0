"""Exact accuracy: every example of a split counts once."""

from collections.abc import Callable
from typing import Any, TypedDict

import keras
import tensorflow as tf

from keras_mixer import data, images, objective, step


class Scores(TypedDict):
    """Of one split: `accuracy` in [0, 1], mean `loss`, number of examples."""

    accuracy: float
    loss: float
    count: int


def padded_batch_size(
    wanted: int, num_examples: int, strategy: tf.distribute.Strategy
) -> int:
    """Returns a batch size at most `wanted` that divides over the replicas."""
    replicas = strategy.num_replicas_in_sync
    whole = -(-num_examples // replicas) * replicas
    return min(max(wanted // replicas, 1) * replicas, whole)


def make_evaluator(
    model: keras.Model,
    split: data.Split,
    *,
    batch_size: int,
    image_size: int,
    policy: str,
    loss: str,
    strategy: tf.distribute.Strategy,
    xla: bool,
    broken: data.BrokenImages | None = None,
) -> Callable[[], Scores]:
    """Returns a function that evaluates `model` on `split`.

    The function is traced once and may be called as often as wanted. The last
    batch is filled up and the filling masked, so that the count is exact for
    any batch size and any number of replicas.

    Args:
      model: Maps images in [-1, 1] to logits `[batch, classes]`.
      split: What to evaluate on.
      batch_size: Examples per step, over all replicas.
      image_size: Side of the images that `model` takes.
      policy: Preprocessing, see `images.parse_policy`.
      loss: A name of `objective.LOSSES`.
      strategy: Where to evaluate.
      xla: Whether to compile the forward pass, if there is one replica.
      broken: How many images may be broken; none without it. They do not
        count.
    """
    batch_size = padded_batch_size(batch_size, split.num_examples, strategy)
    num_batches = data.num_batches(split, batch_size)
    broken = broken or data.BrokenImages(split)

    def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return data.eval_batches(
            split,
            batch_size=batch_size,
            image_size=image_size,
            policy=policy,
            num_hosts=context.num_input_pipelines,
            host=context.input_pipeline_id,
            replicas=context.num_replicas_in_sync,
            broken=broken,
        ).repeat()

    loss_fn = objective.LOSSES[loss]

    def score(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        logits = model(images.to_value_range(batch["image"]), training=False)
        labels, mask = batch["label"], batch["mask"]
        one_hot = tf.one_hot(labels, logits.shape[-1])
        losses = loss_fn(one_hot, logits)
        predicted = tf.argmax(logits, axis=-1, output_type=tf.int32)
        correct = tf.cast(predicted == labels, tf.float32)
        return (
            tf.reduce_sum(correct * mask),
            tf.reduce_sum(losses * mask),
            tf.reduce_sum(mask),
        )

    # On several CPUs XLA looks for the second replica's weights on the first.
    alone = strategy.num_replicas_in_sync == 1
    replica_fn = step.maybe_compile(score, xla and alone)

    @tf.function
    def pass_over(iterator: Any) -> tuple[tf.Tensor, ...]:
        """Returns the sums over all batches, float64."""
        correct, loss_sum, count = (tf.zeros([], tf.float64) for _ in range(3))
        for _ in tf.range(num_batches):
            sums = strategy.run(replica_fn, args=(next(iterator),))
            # Whole numbers below 2**24 are exact in float32: those of a batch.
            a, b, c = (
                tf.cast(
                    strategy.reduce(
                        tf.distribute.ReduceOp.SUM, value, axis=None
                    ),
                    tf.float64,
                )
                for value in sums
            )
            correct, loss_sum, count = correct + a, loss_sum + b, count + c
        return correct, loss_sum, count

    opened: list[Any] = []

    def evaluate() -> Scores:
        if not opened:
            opened.append(
                iter(strategy.distribute_datasets_from_function(batches))
            )
        try:
            correct, loss_sum, count = map(float, pass_over(opened[0]))
        except tf.errors.OpError:
            broken.check()
            raise
        missing = split.num_examples - int(count)
        assert missing >= 0, (count, split)
        if not count:
            raise data.DataError(f"All images of {split.name} are broken.")
        if missing > broken.allowed:  # of several hosts, none saw so many
            raise data.DataError(
                f"{missing} of the {split.num_examples:,} images of "
                f"{split.name} cannot be decoded; data.max_broken allows "
                f"{broken.allowed}. The hosts have named them."
            )
        return {
            "accuracy": correct / count,
            "loss": loss_sum / count,
            "count": int(count),
        }

    return evaluate
