import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import MixerBlock, MlpBlock, StochasticDepth
from keras_mixer.models import layers
from tests import reference


@pytest.mark.parametrize("approximate", [True, False])
def test_mlp_block_equals_the_formula(approximate):
    block = MlpBlock(7, gelu_approximate=approximate, name="mlp")
    x = reference.random_images(2, 3, 5) * 3
    block.build(x.shape)
    rng = np.random.default_rng(0)
    weights = {}
    for v in block.trainable_variables:
        value = rng.standard_normal(v.shape).astype(np.float32)
        v.assign(value)
        weights[v.path] = value.astype(np.float64)
    want = reference.mlp(x.astype(np.float64), weights, "mlp", not approximate)
    assert reference.relative_error(block(x), want) < 1e-6


def test_tanh_and_exact_gelu_can_be_told_apart():
    x = np.linspace(-3, 3, 50)
    assert (
        np.abs(reference.gelu(x) - reference.gelu(x, exact=True)).max() > 1e-4
    )


def test_mlp_dropout_only_while_training():
    keras.utils.set_random_seed(0)
    block = MlpBlock(64, dropout=0.5)
    x = np.ones((4, 32), np.float32)
    still = [np.asarray(block(x, training=False)) for _ in range(2)]
    drawn = [np.asarray(block(x, training=True)) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    assert (drawn[0] == 0).mean() == pytest.approx(0.5, abs=0.2)
    assert not np.array_equal(*drawn)


def test_patches_are_embedded_as_by_a_convolution():
    """While training, too: values and gradients, of images that are not square.

    The oracle is the convolution's own gradient, in float64.
    """
    layer = layers.PatchEmbedding(6, 4, strides=4, dtype="float64")
    rng = np.random.default_rng(0)
    images = tf.constant(rng.standard_normal((3, 8, 12, 2)))
    layer.build(images.shape)
    for v in layer.variables:
        v.assign(rng.standard_normal(v.shape))
    toward = rng.standard_normal((3, 2, 3, 6))
    found = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(images)
            y = layer(images, training=training)
            total = tf.reduce_sum(y * toward)
        weights = [v.value for v in layer.variables]
        found.append([y, *tape.gradient(total, [images, *weights])])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("rescale", [False, True])
def test_stochastic_depth_drops_whole_examples(rescale):
    layer = StochasticDepth(0.3, rescale=rescale, seed=1)
    x = np.full((4000, 2, 3), 2.0, np.float32)
    y = np.asarray(layer(x, training=True))
    kept = y[:, 0, 0] != 0
    want = 2.0 / 0.7 if rescale else 2.0
    np.testing.assert_allclose(y[kept], want, rtol=1e-6)
    assert (y[~kept] == 0).all()
    # 4000 draws: three standard deviations are 0.022.
    assert kept.mean() == pytest.approx(0.7, abs=0.025)
    np.testing.assert_array_equal(layer(x, training=False), x)
    again = np.asarray(layer(x, training=True))[:, 0, 0] != 0
    assert (again != kept).any()


def test_stochastic_depth_in_bfloat16_keeps_the_rate():
    layer = StochasticDepth(0.05, seed=1, dtype="bfloat16")
    y = layer(np.ones((20_000, 1), np.float32), training=True)
    share = np.asarray(keras.ops.cast(y, "float32")).mean()
    assert share == pytest.approx(0.95, abs=0.006)


def test_both_branches_of_a_block_are_dropped_on_their_own():
    keras.utils.set_random_seed(0)
    block = MixerBlock(4, 6, stoch_depth=0.5)
    x = reference.random_images(256, 3, 5)
    full = np.asarray(block(x))
    y = np.asarray(block(x, training=True))
    token = np.asarray(
        x
        + np.transpose(
            block.token_mixing(np.transpose(block.norm_0(x), (0, 2, 1))),
            (0, 2, 1),
        )
    )
    channel = np.asarray(x + block.channel_mixing(block.norm_1(x)))
    counts = [
        np.isclose(y, kind, atol=1e-6).all(axis=(1, 2)).sum()
        for kind in (x, token, channel, full)
    ]
    assert sum(counts) == 256
    assert min(counts) > 40  # 64 expected of each, 7 standard deviation


@pytest.mark.parametrize(
    "layer",
    [
        MlpBlock(3, dropout=0.1, gelu_approximate=False),
        StochasticDepth(0.2, rescale=True, seed=3),
        MixerBlock(
            3,
            5,
            dropout=0.1,
            stoch_depth=0.2,
            stoch_depth_rescale=True,
            gelu_approximate=False,
        ),
        MixerBlock(4, 5, remat="tokens"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_config_round_trip(layer):
    config = layer.get_config()
    copy = type(layer).from_config(config)
    assert copy.get_config() == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StochasticDepth(1.0), r"rate must be in \[0, 1\).*1\.0"),
        (lambda: StochasticDepth(-0.1), r"rate must be in \[0, 1\)"),
        (lambda: MlpBlock(0), "mlp_dim must be a positive integer.*0"),
        (lambda: MlpBlock(3, dropout=2), "dropout must be in"),
        (lambda: MixerBlock(3, 3, stoch_depth=1.5), "stoch_depth must be in"),
        (
            lambda: MixerBlock(3, 3).build((None, None, 8)),
            "fixed number of tokens",
        ),
    ],
)
def test_errors_name_the_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
