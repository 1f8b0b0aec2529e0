"""Random numbers that depend only on the seed, the step and the example.

Each example of the global batch has an index. Its draws are a function of
(seed, step, index, number of the draw in the step), so any number of replicas
or hosts draws the same, and a resumed run draws what it would have drawn.
TensorFlow's stateless generators take one key per call, not one per example.
Therefore this mixes the bits of counters, as counter-based generators do.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# uniform[batch, ...] in [0, 1) for a shape.
Draw = Callable[[Sequence[Any]], tf.Tensor]

_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads consecutive numbers


def _mix(bits: tf.Tensor) -> tf.Tensor:
    """Applies MurmurHash3's finalizer, a bijection of uint32, elementwise.

    Every input bit affects every output bit.
    """
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        shift = tf.constant(shift, tf.uint32)
        bits = tf.bitwise.bitwise_xor(
            bits, tf.bitwise.right_shift(bits, shift)
        ) * tf.constant(factor, tf.uint32)
    shift = tf.constant(16, tf.uint32)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, shift))


def _fold(bits: tf.Tensor, number: Any) -> tf.Tensor:
    """Mixes a number (element by element) into bits."""
    number = tf.cast(number, tf.uint32) * tf.constant(_GOLDEN, tf.uint32)
    return _mix(tf.bitwise.bitwise_xor(_mix(bits), number))


def keyed_uniform(seed: int, step: Any, index: tf.Tensor) -> Draw:
    """Returns a function that makes new draws for a batch at each call.

    `step` is the update, an integer, and `index`, int `[batch]`, the place of
    each example in the global batch.

    Returns:
      `draw(shape)`: float32 in [0, 1) of `shape`. Its first axis is the batch;
      its other axes are known. Calls are counted, so the same order of calls
      gives the same draws.
    """
    calls = itertools.count(1)
    key = _fold(tf.constant(seed % 2**32, tf.uint32), step)

    def draw(shape: Sequence[Any]) -> tf.Tensor:
        bits = _fold(_fold(key, next(calls)), index)  # [batch]
        rest = [int(n) for n in shape[1:]]
        bits = tf.reshape(bits, [-1] + [1] * len(rest))
        size = math.prod(rest)
        if size > 1:
            bits = _fold(bits, tf.reshape(tf.range(size), [1, *rest]))
        # float32 holds 24 bits exactly.
        bits = tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32))
        return tf.cast(tf.cast(bits, tf.int32), tf.float32) * 2.0**-24

    return draw
