"""In how many parts a TPU computes its share of a batch.

A part at a time, more of a block's activations stay in the chip's memory
(VMEM, 128 MiB on a v5e) and cross to HBM and back less often. The gradients of
the parts are summed, so the result is that of the whole share. What the TPU
compiler makes of it: docs/benchmarks.md.
"""

from collections.abc import Iterator

import keras

from keras_mixer.models import layers

# Bytes of a part's widest activation: the hidden ones of channel mixing, for
# 64 images in B/16 at 224 px, in bfloat16. On a v5e parts of half the size
# were slower again.
_WIDEST = 80_000_000


def count_parts(model: keras.Model, examples: int, accumulate: int) -> int:
    """Returns the number of equal parts in which a TPU computes `examples`.

    It is a multiple of `accumulate`, which divides `examples`. A model without
    Mixer blocks, or a number with no suitable divisor, gives `accumulate`.
    """
    widths = list(_widths(model))
    if not widths:
        return accumulate
    fitting = _WIDEST // max(widths)
    for parts in range(accumulate, examples + 1, accumulate):
        size = examples // parts
        if examples % parts == 0 and size <= fitting:
            # Parts that are much too small waste the chip.
            return parts if 4 * size >= fitting else accumulate
    return accumulate


def _widths(model: keras.Model) -> Iterator[int]:
    """Yields the bytes of an example's hidden channels in each block."""
    for layer in model._flatten_layers():
        if isinstance(layer, layers.MixerBlock):
            tokens = layer.token_mixing.dense_0.kernel.shape[0]
            element = 2 if "16" in layer.compute_dtype else 4
            yield tokens * layer.channels_mlp_dim * element
