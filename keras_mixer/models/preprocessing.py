"""From pixels to the models' input, and from their output to class names."""

from typing import Any

import keras
import numpy as np


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Maps pixel values from [0, 255] to [-1, 1], as the models expect.

    Args:
      x: Array or tensor of images `[..., height, width, 3]`, values 0 to 255.
        It is not changed in place.
      data_format: None or "channels_last"; as in `keras.applications`.

    Returns:
      Floats of the same shape.

    Raises:
      ValueError: `data_format` is not "channels_last".
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

    Returns:
      For each image a list of `(wordnet_id, name, score)`, best first. The
      first call downloads Keras' list of the class names.

    Raises:
      ValueError: `preds` does not have 1000 columns.
    """
    return keras.applications.imagenet_utils.decode_predictions(preds, top=top)
