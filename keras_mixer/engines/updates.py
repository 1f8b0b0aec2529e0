"""Keras' updates by TensorFlow's own kernels, one for each variable.

Keras writes Adam's update of a variable as twenty-five operations: each reads
and writes an array as large as the variable, and each is traced and scheduled.
TensorFlow has kernels with the same formulas.

Adam's kernel computes 1 - beta_2 from a float32, 0.00099998713 for 0.999, as
both do for the bias correction. Keras takes 0.001 in the mean of the squares:
its first updates are smaller by 6e-6 of themselves.
"""

from typing import Any

import tensorflow as tf


def update_by_adam(
    optimizer: Any, index: int, variable: Any, gradient: Any, lr: Any
) -> None:
    """Makes the update of `keras.optimizers.Adam`, of its variable `index`."""
    step = tf.cast(optimizer.iterations + 1, tf.float32)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=optimizer._momentums[index].value.handle,
        v=optimizer._velocities[index].value.handle,
        beta1_power=tf.pow(optimizer.beta_1, step),
        beta2_power=tf.pow(optimizer.beta_2, step),
        lr=lr,
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        epsilon=optimizer.epsilon,
        grad=gradient,
    )


def update_by_momentum(
    optimizer: Any, index: int, variable: Any, gradient: Any, lr: Any
) -> None:
    """Makes the update of `keras.optimizers.SGD`, of its variable `index`."""
    if not optimizer.momentum:
        tf.raw_ops.ResourceApplyGradientDescent(
            var=variable.handle, alpha=lr, delta=gradient
        )
        return
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=optimizer.momentums[index].value.handle,
        lr=lr,
        grad=gradient,
        momentum=optimizer.momentum,
    )
