"""The paper's model: its layers, its eight variants, its preprocessing.

Needs keras and NumPy alone, under any Keras backend.
"""

from keras_mixer.models.mixer import (
    DEFAULT_CLASSES,
    DEFAULT_IMAGE_SIZE,
    VARIANTS,
    Mixer,
    MixerB16,
    MixerB32,
    MixerH14,
    MixerL16,
    MixerL32,
    MixerS8,
    MixerS16,
    MixerS32,
    Variant,
    decode_predictions,
    fit_weights,
    get_variant,
    preprocess_input,
)

__all__ = [
    "DEFAULT_CLASSES",
    "DEFAULT_IMAGE_SIZE",
    "VARIANTS",
    "Mixer",
    "MixerB16",
    "MixerB32",
    "MixerH14",
    "MixerL16",
    "MixerL32",
    "MixerS8",
    "MixerS16",
    "MixerS32",
    "Variant",
    "decode_predictions",
    "fit_weights",
    "get_variant",
    "preprocess_input",
]
