"""A Mixer layer as a training step computes it.

The result is that of `MixerBlock.call`. The gradient is computed differently:

- fused.py writes out the gradient of a LayerNorm and the Dense layer after it.
- `remat` computes activations again in the backward pass instead of keeping
  them (Chen 2016, arXiv 1604.06174).

Nothing depends on this but two lines of `MixerBlock.call`: without them, the
backend derives the gradients and keeps all activations.
"""

from typing import Any

import keras
from keras import ops

from keras_mixer.models import fused

# What the backward pass may compute again: the "tokens" branch, which is
# cheap, or the whole "block" except for its input.
REMAT = ("none", "tokens", "block")


def applies(block: Any) -> bool:
    """Whether `mix` differs from the plain layers of a `MixerBlock`."""
    dense = block.token_mixing.dense_0, block.channel_mixing.dense_0
    return block.remat != "none" or any(map(fused.supports, dense))


def mix(block: Any, x: Any) -> Any:
    """Returns `block(x, training=True)`.

    Args:
      block: A `MixerBlock`, built.
      x: `[batch, tokens, hidden_dim]`, of the block's compute dtype.

    Returns:
      The same shape and dtype.
    """
    masks = (None, None)
    if block.remat == "block" and block.drop.rate:
        # Drawn once, so that both passes use the same masks.
        masks = block.drop.draw(x), block.drop.draw(x)

    def drop(y: Any, mask: Any) -> Any:
        return block.drop(y, training=True) if mask is None else y * mask

    def mix_tokens(x: Any) -> Any:
        mlp = block.token_mixing
        hidden = fused.norm_tokens(x, block.norm_0, mlp.dense_0)
        return ops.transpose(mlp.finish(hidden, training=True), (0, 2, 1))

    if block.remat == "tokens":
        mix_tokens = keras.remat(mix_tokens)

    def mix_all(x: Any) -> Any:
        x = x + drop(mix_tokens(x), masks[0])
        mlp = block.channel_mixing
        hidden = fused.norm_channels(x, block.norm_1, mlp.dense_0)
        return x + drop(mlp.finish(hidden, training=True), masks[1])

    return keras.remat(mix_all)(x) if block.remat == "block" else mix_all(x)
