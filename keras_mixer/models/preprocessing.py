"""From pixels to the models' input, and from their output to class names."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_mixer.run import suggest

_IMAGENET_CLASSES = 1000


def to_value_range(image: Any) -> Any:
    """Maps 0..255, of any shape and type, to float32 in [-1, 1]."""
    return keras.ops.cast(image, "float32") / 127.5 - 1.0


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Maps pixel values from [0, 255] to [-1, 1], as the models expect.

    `x` is an array or tensor of images `[..., height, width, 3]`, which is not
    changed in place. The result has floats of the same shape. Floats that look
    like [0, 1] or [-1, 1] already are a warning, where the values are at hand.

    Raises:
      ValueError: A `data_format` other than "channels_last", or `x` is neither
        an array nor a tensor of numbers.
    """
    if data_format not in (None, "channels_last"):
        raise ValueError(
            'Mixer reads images as "channels_last". '
            f"Received: data_format={data_format!r}"
        )
    if not keras.utils.is_keras_tensor(x) and not keras.ops.is_tensor(x):
        x = suggest.to_numbers(
            "x", x, "an array or tensor of images with values of 0 to 255"
        )
        _warn_of_range(x)
    if not isinstance(x, np.ndarray):  # Keras divides uint8 tensors in place
        x = keras.ops.cast(x, keras.config.floatx())
    return keras.applications.imagenet_utils.preprocess_input(
        x, data_format="channels_last", mode="tf"
    )


def _warn_of_range(x: np.ndarray) -> None:
    """Warns of floats that do not look like 0 to 255.

    An image that is black all over is no mistake.
    """
    if x.dtype.kind != "f" or not x.size:
        return
    low, high = float(x.min()), float(x.max())
    if low < 0 or (0 < high <= 1):
        warnings.warn(
            f"preprocess_input expects values of 0 to 255. Received: {low:.3g} "
            f"to {high:.3g}. Multiply images in [0, 1] by 255; images in "
            "[-1, 1] need no preprocessing.",
            stacklevel=3,
        )


def _to_names(names: Any) -> list[str]:
    """Returns a list of names, or raises ValueError."""
    wanted = "a list of the names of the classes"
    suggest.check_type("class_names", names, list | tuple | np.ndarray, wanted)
    if not len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be {wanted}. Received: {names!r}")
    return list(names)


def decode_predictions(
    preds: Any, top: int = 5, class_names: Sequence[str] | None = None
) -> list[list[tuple]]:
    """Names the `top` classes of `preds`, `[batch, classes]`, best first.

    Args:
      preds: Scores of each image, probabilities or logits.
      top: How many classes to name; all if there are fewer `class_names`.
      class_names: In the order of the scores, such as `model.class_names`. By
        default those of ImageNet-1k, which the first call downloads.

    Returns:
      For each image a list of `(id, name, score)`. The id is that of WordNet
      for ImageNet-1k, and with `class_names` the number of the class.

    Raises:
      ValueError: `preds` has another number of columns than there are names, or
        `top` is no positive integer, or above 1000 without `class_names`.
      OSError: The list cannot be downloaded.
    """
    names = None if class_names is None else _to_names(class_names)
    classes = _IMAGENET_CLASSES if names is None else len(names)
    whose = (
        "the classes of ImageNet-1k; for others give class_names="
        if names is None
        else "one column for each of class_names"
    )
    wanted = f"of the shape (batch, {classes}), {whose}"
    if not keras.ops.is_tensor(preds):
        preds = suggest.to_numbers("preds", preds, wanted)
    shape = tuple(preds.shape)
    if len(shape) != 2 or shape[1] != classes:
        raise ValueError(f"preds must be {wanted}. Received: {shape}")
    top = suggest.to_positive_int("top", top)
    if names is not None:
        return [
            [(int(i), names[i], float(row[i])) for i in np.argsort(-row)[:top]]
            for row in np.asarray(keras.ops.convert_to_numpy(preds), np.float64)
        ]
    if top > _IMAGENET_CLASSES:
        raise ValueError(f"top must be 1 to 1000. Received: {top}")
    decode = keras.applications.imagenet_utils.decode_predictions
    try:
        return decode(preds, top=top)
    except Exception as error:  # Keras raises this class of a failed download
        if type(error) is not Exception:
            raise
        raise OSError(
            f"Cannot download the names of ImageNet's classes: {error}"
        ) from error
