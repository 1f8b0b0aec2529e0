"""The paper's model: its layers, its eight variants, its preprocessing.

Needs keras and NumPy alone, under any Keras backend.
"""

from keras_mixer.models.lora import enable_lora as enable_lora
from keras_mixer.models.mixer import (
    DEFAULT_CLASSES as DEFAULT_CLASSES,
    DEFAULT_IMAGE_SIZE as DEFAULT_IMAGE_SIZE,
    VARIANTS as VARIANTS,
    Mixer as Mixer,
    MixerB16 as MixerB16,
    MixerB32 as MixerB32,
    MixerH14 as MixerH14,
    MixerL16 as MixerL16,
    MixerL32 as MixerL32,
    MixerS8 as MixerS8,
    MixerS16 as MixerS16,
    MixerS32 as MixerS32,
    Options as Options,
    Variant as Variant,
    fit_variant as fit_variant,
    get_variant as get_variant,
)
from keras_mixer.models.preprocessing import (
    decode_predictions as decode_predictions,
    preprocess_input as preprocess_input,
)
