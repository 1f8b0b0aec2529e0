import numpy as np
import pytest
import tensorflow as tf

from keras_mixer.engines import objective

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
LABELS = np.array([[1.0, 0.0, 0.0], [0.0, 0.3, 0.7]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_softmax_cross_entropy(dtype):
    logits = tf.cast(LOGITS, dtype)
    x = tf.cast(logits, tf.float64).numpy()
    log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
    got = objective.softmax_cross_entropy(
        tf.constant(LABELS, tf.float32), logits
    )
    assert got.dtype == tf.float32
    np.testing.assert_allclose(got, -(LABELS * log_p).sum(-1), rtol=1e-6)


def test_sigmoid_cross_entropy_sums_over_classes():
    p = 1 / (1 + np.exp(-LOGITS))
    want = -(LABELS * np.log(p) + (1 - LABELS) * np.log(1 - p)).sum(-1)
    got = objective.sigmoid_cross_entropy(
        tf.constant(LABELS, tf.float32), tf.constant(LOGITS, tf.float32)
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_label_smoothing():
    labels = tf.constant([[0.0, 1.0, 0.0, 0.0]])
    got = objective.smooth_labels(labels, 0.2)
    np.testing.assert_allclose(got, [[0.05, 0.85, 0.05, 0.05]], atol=1e-7)
    assert objective.smooth_labels(labels, 0.0) is labels


def test_mix_is_linear_in_images_and_labels():
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.7, 1.0], np.float32)
    for shape in ((3, 4, 4, 3), (3, 5)):
        x, y = rng.standard_normal((2, *shape)).astype(np.float32)
        s = share.reshape(3, *[1] * (len(shape) - 1))
        got = objective.mix(tf.constant(x), tf.constant(y), share)
        np.testing.assert_allclose(got, s * x + (1 - s) * y, rtol=1e-6)
