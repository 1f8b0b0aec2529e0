"""One update of the weights, as a device sees it.

Each replica divides the sum of its examples' losses by the global batch size,
so that the sum of the replicas' gradients is the gradient of the mean. That sum
is made once, clipped, and given to the optimizer. A broken image has the label
-1, adds nothing to the loss, and is nobody's mixup partner.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_mixer.data.augment import images
from keras_mixer.engines import distribute, draws, objective
from keras_mixer.models import layers
from keras_mixer.run.config import Config

# (iterator, how many, whether this process wants to stop) -> losses and
# gradient norms, each float32 [how many], and how many replicas want to stop.
TrainSteps = Callable[
    [Any, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]
]
Batch = dict[str, tf.Tensor]
# (part of a batch, step) -> its share of the mean loss and of its gradients.
GradientFn = Callable[[Batch, tf.Tensor], tuple[tf.Tensor, list[tf.Tensor]]]


def maybe_compile(
    function: Callable[..., Any], xla: bool
) -> Callable[..., Any]:
    """Compiles a function with XLA if `xla` and this TensorFlow has XLA."""
    if not (xla and distribute.compiles()):
        return function
    return tf.function(function, jit_compile=True)


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


def make_inputs(
    batch: Batch, num_classes: int, label_smoothing: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the images that the model gets and the labels it should give.

    Takes what `split_partners` returns. Images in [-1, 1], float32
    `[batch, side, side, 3]`, and labels, float32 `[batch, classes]`, are mixed
    with their partners by mixup.
    """

    def labels_of(label: tf.Tensor) -> tf.Tensor:
        if label.dtype.is_integer:
            label = tf.one_hot(label, num_classes)
        return objective.smooth_labels(label, label_smoothing)

    image = images.to_value_range(batch["image"])
    labels = labels_of(batch["label"])
    if "share" not in batch:
        return image, labels
    share = tf.where(batch["partner_label"] >= 0, batch["share"], 1.0)
    partner = images.to_value_range(batch["partner_image"])
    return (
        objective.mix(image, partner, share),
        objective.mix(labels, labels_of(batch["partner_label"]), share),
    )


def make_loss_and_gradients(model: keras.Model, config: Config) -> GradientFn:
    """Returns the forward and backward pass of what `split_partners` makes."""
    loss_fn = objective.LOSSES[config.train.loss]
    run = config.train

    def loss_and_gradients(
        batch: Batch, step: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        image, labels = make_inputs(
            batch, model.output_shape[-1], run.label_smoothing
        )
        # All but broken images.
        label = batch["label"]
        counts = label >= 0
        if not label.dtype.is_integer:
            counts = tf.reduce_sum(label, axis=-1) > 0
        draw = draws.keyed_uniform(run.seed, step, batch["index"])
        with tf.GradientTape() as tape, layers.drawn_by(draw):
            logits = model(image, training=True)
            losses = tf.where(counts, loss_fn(labels, logits), 0.0)
            loss = tf.reduce_sum(losses) / run.batch_size
        return loss, tape.gradient(loss, model.trainable_variables)

    return loss_and_gradients


def accumulated(
    function: GradientFn, parts: int, variables: list[Any]
) -> GradientFn:
    """Computes loss and gradients in parts, one after another, and sums them.

    Only the activations of one part are in memory at a time.
    """
    if parts == 1:
        return function

    def in_parts(
        batch: Batch, step: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        cut = {
            key: tf.reshape(x, [parts, x.shape[0] // parts, *x.shape[1:]])
            for key, x in batch.items()
        }
        sums = [tf.zeros(v.shape, tf.float32) for v in variables]
        total = tf.zeros([], tf.float32)

        def add(i: tf.Tensor, total: tf.Tensor, sums: Any) -> Any:
            loss, gradients = function({k: x[i] for k, x in cut.items()}, step)
            sums = [a + b for a, b in zip(sums, gradients, strict=True)]
            return i + 1, total + loss, sums

        _, total, sums = tf.while_loop(
            lambda i, *_: i < parts,
            add,
            (tf.constant(0), total, sums),
            parallel_iterations=1,
        )
        return total, sums

    return in_parts


def apply_gradients(
    gradients: list[tf.Tensor],
    variables: list[Any],
    optimizer: Any,
    *,
    clip_norm: float | None,
) -> tf.Tensor:
    """Updates the variables by the gradients of all replicas.

    The gradients are summed before they are clipped. Keras' `global_clipnorm`
    clips those of each replica before the sum, so that 1, 2 and 4 replicas
    train three different models (Keras 3.15).

    Returns:
      The norm of the sum, before clipping.
    """
    context = tf.distribute.get_replica_context()
    gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    norm = tf.linalg.global_norm(gradients)
    if clip_norm is not None:
        gradients, _ = tf.clip_by_global_norm(
            gradients, clip_norm, use_norm=norm
        )
    optimizer.apply(gradients, variables)
    return norm


def make_replica_step(
    model: keras.Model, optimizer: Any, config: Config, *, xla: bool
) -> Callable[[Batch], tuple[tf.Tensor, tf.Tensor]]:
    """Returns one update, as a replica runs it.

    Its argument is the replica's part of a batch from `data.train_batches`. It
    returns the part's share of the loss and the norm of the summed gradients.
    `xla` compiles the forward and backward pass on their own.
    """
    gradient_fn = accumulated(
        maybe_compile(make_loss_and_gradients(model, config), xla),
        config.train.accumulate,
        model.trainable_variables,
    )

    def replica_step(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        step = tf.convert_to_tensor(optimizer.iterations)
        loss, gradients = gradient_fn(split_partners(batch), step)
        norm = apply_gradients(
            gradients,
            model.trainable_variables,
            optimizer,
            clip_norm=config.optim.clip_norm,
        )
        return loss, norm

    return replica_step


def make_train_steps(
    model: keras.Model,
    optimizer: Any,
    config: Config,
    strategy: tf.distribute.Strategy,
) -> TrainSteps:
    """Returns the traced function that runs several updates."""
    # A TPU compiles the whole update, whatever train.xla says.
    xla = config.train.xla and not distribute.is_tpu(strategy)
    replica_step = make_replica_step(model, optimizer, config, xla=xla)
    # XLA refuses the collective of several CPUs or GPUs. With one replica there
    # is none, and the whole update is compiled.
    alone = strategy.num_replicas_in_sync == 1
    step_fn = maybe_compile(replica_step, xla and alone)

    @tf.function
    def train_steps(
        iterator: Any, count: tf.Tensor, stop: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        losses = tf.TensorArray(tf.float32, size=count)
        norms = tf.TensorArray(tf.float32, size=count)
        for i in tf.range(count):
            loss, norm = strategy.run(step_fn, args=(next(iterator),))
            losses = losses.write(i, strategy.reduce("SUM", loss, axis=None))
            # The same number on every replica: the norm of the sum.
            norms = norms.write(i, strategy.reduce("MEAN", norm, axis=None))
        stops = strategy.run(lambda: tf.cast(stop, tf.float32))
        stops = strategy.reduce("SUM", stops, axis=None)
        return losses.stack(), norms.stack(), stops

    return train_steps
