"""Images in another value range than [-1, 1]: one warning for a model."""

import warnings

import keras
import numpy as np
import pytest

import keras_mixer
from tests import reference

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


def tensor(x):
    return keras.ops.convert_to_tensor(x)


def small(**options):
    return keras_mixer.Mixer(
        reference.SMALL,
        **{"input_shape": (32, 32, 3), "classes": 4, **options},
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (PIXELS, "Received: uint8"),
        (PIXELS.astype("float32"), "values of up to 255"),
        (tensor(PIXELS), "Received: uint8"),
        (tensor(PIXELS.astype("float32")), "values of up to 255"),
    ],
    ids=["array", "array of floats", "tensor", "tensor of floats"],
)
def test_pixels_are_a_warning_once(x, message):
    model = small()
    with pytest.warns(UserWarning, match=message):
        model(x)
    model(x)  # warnings are errors


def test_pixels_are_a_warning_of_predict():
    with pytest.warns(UserWarning, match=r"preprocess_input\(x\)"):
        small().predict(PIXELS.astype("float32"), verbose=0)


def test_integers_are_seen_while_traced():
    import tensorflow as tf

    model = small()
    with pytest.warns(UserWarning, match="Received: int32"):
        tf.function(model)(PIXELS.astype("int32"))


def test_other_inputs_are_no_warning():
    x = keras_mixer.preprocess_input(PIXELS)
    model = small()
    model(keras.Input((32, 32, 3)))
    model(np.random.default_rng(0).normal(size=x.shape))
    model(PIXELS.astype("float32"))  # the first images alone are looked at
    # A model that begins with its own preprocessing takes what it likes.
    image = keras.Input((32, 32, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 127.5, -1)(image)
    small(input_tensor=scaled, input_shape=None)(PIXELS)
    keras.Sequential([keras.layers.Rescaling(1 / 127.5, -1), model])(PIXELS)
    quantised = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' own
        quantised.quantize("int8")
    quantised(x)


def test_a_loaded_model_warns(tmp_path):
    small().save(tmp_path / "mixer.keras")
    loaded = keras.models.load_model(tmp_path / "mixer.keras")
    for model in (loaded, keras.models.clone_model(loaded)):
        with pytest.warns(UserWarning, match="Received: uint8"):
            model(PIXELS)
