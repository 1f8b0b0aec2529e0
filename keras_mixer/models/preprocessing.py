"""From pixels to the models' input, and from their output to class names."""

from typing import Any

import keras
import numpy as np


def to_value_range(image: Any) -> Any:
    """Maps 0..255, of any shape and type, to float32 in [-1, 1]."""
    return keras.ops.cast(image, "float32") / 127.5 - 1.0


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Maps pixel values from [0, 255] to [-1, 1], as the models expect.

    `x` is an array or tensor of images `[..., height, width, 3]`, which is not
    changed in place. The result has floats of the same shape. A `data_format`
    other than "channels_last" is a ValueError.
    """
    if data_format not in (None, "channels_last"):
        raise ValueError(
            'Mixer reads images as "channels_last". '
            f"Received: data_format={data_format!r}"
        )
    if not isinstance(x, np.ndarray):  # Keras divides uint8 tensors in place
        x = keras.ops.cast(x, keras.config.floatx())
    return keras.applications.imagenet_utils.preprocess_input(
        x, data_format="channels_last", mode="tf"
    )


def decode_predictions(preds: Any, top: int = 5) -> list[list[tuple]]:
    """Names the `top` ImageNet-1k classes of `preds`, `[batch, 1000]`.

    Returns for each image a list of `(wordnet_id, name, score)`, best first.
    The first call downloads Keras' list of the class names. Another number of
    columns is a ValueError.
    """
    return keras.applications.imagenet_utils.decode_predictions(preds, top=top)
