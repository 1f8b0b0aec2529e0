"""Losses and mixup.

Losses are per example, float32 `[batch]`: the caller knows the size of the
global batch, over which the mean is taken.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

LossFn = Callable[[Any, Any], Any]


def smooth_labels(labels: Any, amount: float) -> Any:
    """Spreads a share `amount` of `labels` `[batch, classes]` evenly."""
    if not amount:
        return labels
    return labels * (1.0 - amount) + amount / labels.shape[-1]


def mix(x: Any, partner: Any, share: Any) -> Any:
    """Mixes images or labels with their partners' (mixup, Zhang 2018).

    Both are float32 `[batch, ...]`; `share`, float32 `[batch]`, is that of `x`.
    """
    share = ops.reshape(share, [-1] + [1] * (len(x.shape) - 1))
    return share * x + (1.0 - share) * partner


def softmax_cross_entropy(labels: Any, logits: Any) -> Any:
    """Returns the cross-entropy of each example, in nats, `[batch]`.

    Labels are distributions over the classes, float32 `[batch, classes]`.
    """
    return ops.categorical_crossentropy(
        labels, ops.cast(logits, "float32"), from_logits=True
    )


def sigmoid_cross_entropy(labels: Any, logits: Any) -> Any:
    """Returns the binary cross-entropies summed over the classes, `[batch]`.

    The loss of big_vision's ImageNet recipe, used with a head bias of -6.9.
    """
    logits = ops.cast(logits, "float32")
    # -z log(sigmoid(x)) - (1 - z) log(1 - sigmoid(x)), without overflow.
    return ops.sum(ops.softplus(logits) - labels * logits, axis=-1)


LOSSES: dict[str, LossFn] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
}
