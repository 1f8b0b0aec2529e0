"""A small Mixer of random weights, and its answers in Python."""

import numpy as np
import tensorflow as tf

import keras_mixer
from keras_mixer import models
from keras_mixer.data.augment import policy as policy_lib
from keras_mixer.models.preprocessing import to_value_range

SIDE, CLASSES = 32, 23
POLICY = "resize_small(36)|central_crop"
NAMES = tuple(f"class {i} é" for i in range(CLASSES))
VARIANT = models.Variant(
    patch_size=8,
    num_blocks=1,
    hidden_dim=24,
    tokens_mlp_dim=12,
    channels_mlp_dim=32,
)


def make_model(**options):
    """Random weights everywhere, in the head too."""
    options = {"classifier_activation": None, "classes": CLASSES, **options}
    model = keras_mixer.Mixer(VARIANT, input_shape=(SIDE, SIDE, 3), **options)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        value = rng.normal(0, 0.3, weight.shape)
        weight.assign(value + (weight.path.endswith("gamma")))
    return model


def in_python(model, pictures, policy=POLICY):
    """Returns the model's answers for pictures or files, one by one."""
    apply = policy_lib.parse(policy, model.input_shape[1])
    seed = tf.zeros([2], tf.int64)
    prepared = [apply(tf.constant(x), seed) for x in pictures]
    image = to_value_range(tf.stack(prepared))
    return model(image, training=False).numpy()


def softmax(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return p / p.sum(axis=-1, keepdims=True)


def call(served, name, value):
    key = "image_bytes" if name == "serve_bytes" else "image"
    return served.signatures[name](**{key: tf.constant(value)})


def picture(height=40, width=57, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 7, channels)).astype(np.uint8)
    return coarse.repeat(9, axis=0).repeat(9, axis=1)[:height, :width]
