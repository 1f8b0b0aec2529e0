"""LoRA on a Mixer: low-rank changes of the kernels of its blocks."""

import keras

from keras_mixer.models import layers
from keras_mixer.run import suggest


def enable_lora(
    model: keras.Model, rank: int, *, alpha: float | None = None
) -> None:
    """Freezes a Mixer except for LoRA in its blocks, their biases and the head.

    Each of the four kernels `[in, out]` of a block becomes `kernel + alpha /
    rank * A @ B` with `A` `[in, rank]` and `B` `[rank, out]` (Hu et al., 2021,
    arXiv 2106.09685). B starts at 0, so the model's answers stay as they are. A
    is drawn from a normal distribution with variance `1 / in`, the same for the
    same seed under every backend. Compile the model afterwards.

    Args:
      model: A Mixer, built.
      rank: At most the narrowest side of a kernel.
      alpha: Scale of the change; `rank` by default.

    Raises:
      ValueError: The model is not a Mixer, has LoRA already, or the rank does
        not fit.
    """
    blocks = [
        layer for layer in model.layers if isinstance(layer, layers.MixerBlock)
    ]
    if not blocks:
        raise ValueError(
            f"{model.name!r} is not a Mixer: it has no MixerBlock."
        )
    dense = [
        layer
        for block in blocks
        for mlp in (block.token_mixing, block.channel_mixing)
        for layer in (mlp.dense_0, mlp.dense_1)
    ]
    rank = suggest.to_positive_int("rank", rank)
    narrowest = min(min(layer.kernel.shape) for layer in dense)
    if rank > narrowest:
        raise ValueError(
            f"rank must be at most {narrowest}, the narrowest side of a kernel "
            f"of {model.name!r}. Received: rank={rank}"
        )
    if any(layer.lora_enabled for layer in dense):
        raise ValueError(f"{model.name!r} has LoRA already.")
    for layer in model.layers:
        layer.trainable = layer.name == "head" or layer in blocks
    for block in blocks:
        block.norm_0.trainable = block.norm_1.trainable = False
    for layer in dense:
        layer.enable_lora(
            rank, lora_alpha=alpha, a_initializer=layers.LecunNormal()
        )
