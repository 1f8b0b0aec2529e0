"""A small ResNet to compare Mixer with in the permutation study.

He et al. 2015 (arXiv 1512.03385), sect. 4.2: 3 x 3 convolutions in three
stages of equal depth, for small images. The ResNets of `keras.applications`
have seven-pixel stems and at least 50 layers, and halve an image five times.

Deviates from He et al.: GroupNormalization (Wu and He 2018) replaces
BatchNormalization, whose moving means no gradient trains (see `trainer.fit`).
Where the shape changes, the shortcut is a 1 x 1 convolution.
"""

from typing import Any

import keras
from keras import layers

from keras_mixer.run.config import Config

_BLOCKS = 2  # per stage: 3 stages of 2 blocks of 2 layers, a ResNet-14
_WIDTHS = (16, 32, 64)  # channels of the stages
_GROUPS = 8


def _conv(width: int, kernel: int, stride: int, name: str) -> Any:
    return layers.Conv2D(
        width,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )


def _norm(name: str) -> Any:
    return layers.GroupNormalization(groups=_GROUPS, name=name)


def _block(x: Any, width: int, stride: int, name: str) -> Any:
    """Adds a basic block: `[batch, side, side, channels]`."""
    shortcut = x
    if stride > 1 or x.shape[-1] != width:
        shortcut = _conv(width, 1, stride, f"{name}_shortcut")(x)
        shortcut = _norm(f"{name}_shortcut_norm")(shortcut)
    x = _conv(width, 3, stride, f"{name}_conv_0")(x)
    x = layers.ReLU()(_norm(f"{name}_norm_0")(x))
    x = _norm(f"{name}_norm_1")(_conv(width, 3, 1, f"{name}_conv_1")(x))
    return layers.ReLU()(x + shortcut)


def build(config: Config, num_classes: int) -> keras.Model:
    """Builds the ResNet for `trainer.fit`; of the config it reads the side.

    It maps images in [-1, 1], `[batch, side, side, 3]`, to logits
    `[batch, classes]`.
    """
    side = config.model.side
    inputs = keras.Input((side, side, 3))
    x = _conv(_WIDTHS[0], 3, 1, "stem")(inputs)
    x = layers.ReLU()(_norm("stem_norm")(x))
    for stage, width in enumerate(_WIDTHS):
        for i in range(_BLOCKS):
            stride = 2 if stage and not i else 1
            x = _block(x, width, stride, f"stage_{stage}_block_{i}")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    head = layers.Dense(num_classes, kernel_initializer="zeros", name="head")
    return keras.Model(inputs, head(x), name="resnet14")
