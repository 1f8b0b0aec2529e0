"""Random numbers that depend only on the seed, the step and the example.

Each example of the global batch has an index. Its draws are a function of
(seed, step, index, number of the draw in the step), so any number of replicas
or hosts and every backend draws the same, and a resumed run draws what it would
have drawn. The backends' generators take one key per call, not one per example.
Therefore this mixes the bits of counters, as counter-based generators do.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

# uniform[batch, ...] in [0, 1) for a shape.
Draw = Callable[[Sequence[Any]], Any]

_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads consecutive numbers


def _word(number: int) -> Any:
    return ops.convert_to_tensor(np.uint32(number))


def _mix(bits: Any) -> Any:
    """Applies MurmurHash3's finalizer, a bijection of uint32, elementwise.

    Every input bit affects every output bit.
    """
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = ops.bitwise_xor(bits, ops.right_shift(bits, _word(shift)))
        bits = ops.multiply(bits, _word(factor))
    return ops.bitwise_xor(bits, ops.right_shift(bits, _word(16)))


def _fold(bits: Any, number: Any) -> Any:
    """Mixes a number (element by element) into bits."""
    number = ops.multiply(ops.cast(number, "uint32"), _word(_GOLDEN))
    return _mix(ops.bitwise_xor(_mix(bits), number))


def keyed_uniform(seed: int, step: Any, index: Any) -> Draw:
    """Returns a function that makes new draws for a batch at each call.

    `step` is the update, an integer, and `index`, int `[batch]`, the place of
    each example in the global batch.

    Returns:
      `draw(shape)`: float32 in [0, 1) of `shape`. Its first axis is the batch;
      its other axes are known. Calls are counted, so the same order of calls
      gives the same draws.
    """
    calls = itertools.count(1)
    key = _fold(_word(seed % 2**32), step)

    def draw(shape: Sequence[Any]) -> Any:
        bits = _fold(_fold(key, next(calls)), index)  # [batch]
        rest = [int(n) for n in shape[1:]]
        bits = ops.reshape(bits, [-1] + [1] * len(rest))
        size = math.prod(rest)
        if size > 1:
            bits = _fold(bits, ops.reshape(ops.arange(size), [1, *rest]))
        # float32 holds 24 bits exactly.
        bits = ops.cast(ops.right_shift(bits, _word(8)), "int32")
        return ops.cast(bits, "float32") * 2.0**-24

    return draw
