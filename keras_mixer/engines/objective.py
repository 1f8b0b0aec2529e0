"""Losses and mixup.

Losses are per example, float32 `[batch]`: the caller knows the size of the
global batch, over which the mean is taken.
"""

from collections.abc import Callable

import tensorflow as tf

LossFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def smooth_labels(labels: tf.Tensor, amount: float) -> tf.Tensor:
    """Spreads a share `amount` of `labels` `[batch, classes]` evenly."""
    if not amount:
        return labels
    classes = tf.cast(tf.shape(labels)[-1], labels.dtype)
    return labels * (1.0 - amount) + amount / classes


def mix(x: tf.Tensor, partner: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Mixes images or labels with their partners' (mixup, Zhang 2018).

    Both are float32 `[batch, ...]`; `share`, float32 `[batch]`, is that of `x`.
    """
    share = tf.reshape(share, [-1] + [1] * (len(x.shape) - 1))
    return share * x + (1.0 - share) * partner


def softmax_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the cross-entropy of each example, in nats, `[batch]`.

    Labels are distributions over the classes, float32 `[batch, classes]`.
    """
    logits = tf.cast(logits, tf.float32)
    return tf.nn.softmax_cross_entropy_with_logits(labels, logits)


def sigmoid_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the binary cross-entropies summed over the classes, `[batch]`.

    The loss of big_vision's ImageNet recipe, used with a head bias of -6.9.
    """
    logits = tf.cast(logits, tf.float32)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
    return tf.reduce_sum(losses, axis=-1)


LOSSES: dict[str, LossFn] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
}
