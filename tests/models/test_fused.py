"""A training step's gradients: those of fused.py, and those with `remat`."""

import functools
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer.engines import distribute, draws
from keras_mixer.models import fused, layers
from keras_mixer.training import loop as trainer
from tests.training.common import assert_same_weights, small

SHAPE = (7, 12, 16)  # odd batch, tokens, channels


def make_block(policy, **options):
    """A block with weights away from their start, the same each time."""
    block = layers.MixerBlock(24, 40, dtype=policy, **options)
    block.build((None, *SHAPE[1:]))
    rng = np.random.default_rng(0)
    for v in block.variables:
        if "seed" not in v.path:
            around = float(v.name == "gamma")
            v.assign(around + 0.3 * rng.standard_normal(v.shape))
    return block


def gradients(block, *, fuse=True, compiled=False):
    """The output and the gradients of a weighted sum of it, in float64."""
    rng = np.random.default_rng(1)
    x = tf.constant(rng.normal(1.5, 2, SHAPE), block.dtype)
    toward = tf.constant(rng.standard_normal(SHAPE), block.dtype)
    index = tf.range(SHAPE[0])
    if compiled and not distribute.compiles():
        pytest.skip("this TensorFlow has no XLA for CPUs")

    @tf.function(jit_compile=compiled)
    def compute(x):
        draw = draws.keyed_uniform(3, 5, index)
        with tf.GradientTape() as tape, layers.drawn_by(draw):
            tape.watch(x)
            y = block(x, training=True)
            total = tf.reduce_sum(tf.cast(y, toward.dtype) * toward)
        weights = [v.value for v in block.trainable_variables]
        return [y, *tape.gradient(total, [x, *weights])]

    applies = fused.applies if fuse else lambda block: False
    with mock.patch.object(fused, "applies", applies):
        return [np.asarray(tf.cast(g, tf.float64)) for g in compute(x)]


def errors(ours, theirs):
    """The largest difference of each pair, relative to the largest value."""
    return [
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(ours, theirs, strict=True)
    ]


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_those_of_the_equations(compiled):
    """The oracle is TensorFlow's own gradient of the plain layers, float64."""
    want = gradients(make_block("float64"))
    found = gradients(make_block("float32"), compiled=compiled)
    assert max(errors(found, want)) < 3e-6


def test_bfloat16_is_no_less_exact_than_the_plain_layers():
    want = gradients(make_block("float64"))
    fused = errors(gradients(make_block("mixed_bfloat16")), want)
    plain = errors(gradients(make_block("mixed_bfloat16"), fuse=False), want)
    assert max(fused) < 0.05
    assert np.mean(fused) < 1.1 * np.mean(plain)


def test_float64_and_changed_layers_are_left_to_keras():
    block = make_block("float32")
    dense = block.channel_mixing.dense_0
    assert fused.supports(dense)
    assert fused.applies(block)
    assert not fused.applies(make_block("float64"))
    dense.enable_lora(2)
    assert not fused.supports(dense)
    rng = np.random.default_rng(2)
    dense.lora_kernel_b.assign(rng.standard_normal(dense.lora_kernel_b.shape))
    # One of the two MLPs is fused, the other has its kernel from LoRA.
    found, plain = gradients(block), gradients(block, fuse=False)
    assert max(errors(found, plain)) < 3e-5


def test_one_pass_statistics_of_shifted_inputs():
    """bfloat16 values of mean 100 and standard deviation 1."""
    x = np.random.default_rng(0).normal(100, 1, (4, 3, 4096))
    x = tf.cast(tf.constant(x), tf.bfloat16)
    _, _, mean, scale = fused._layer_norm(x, 1.0, 0.0, 0.0)
    exact = np.asarray(tf.cast(x, tf.float64))
    np.testing.assert_allclose(mean[..., 0], exact.mean(-1), rtol=1e-6)
    np.testing.assert_allclose(scale[..., 0], 1 / exact.std(-1), rtol=5e-3)


@functools.cache
def kept(policy):
    """Gradients without remat, not compiled."""
    return gradients(make_block(policy, stoch_depth=0.5))


@pytest.mark.parametrize(
    ("remat", "compiled", "policy"),
    [  # what costs most is slow: compiling
        ("tokens", False, "float32"),
        ("tokens", False, "mixed_bfloat16"),
        ("block", False, "mixed_bfloat16"),
        ("block", True, "float32"),
        pytest.param("tokens", True, "mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param("tokens", True, "float32", marks=pytest.mark.slow),
        pytest.param("block", False, "float32", marks=pytest.mark.slow),
        pytest.param("block", True, "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_what_is_computed_again_is_the_same(remat, compiled, policy):
    """Stochastic depth has the masks of the forward pass."""
    again = gradients(
        make_block(policy, stoch_depth=0.5, remat=remat), compiled=compiled
    )
    limit = 3e-6 if policy == "float32" else 0.05
    assert max(errors(again, kept(policy))) < limit


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["tokens", "block"])
def test_a_run_with_remat_on_two_replicas(remat, tmp_path, engine_of):
    """It equals the run without remat on one replica, to rounding."""
    overrides = ["model.stoch_depth=0.3", "mixup.p=0.5", "train.accumulate=2"]
    for value, replicas in (("none", 1), (remat, 2)):
        trainer.fit(
            small(f"model.remat={value}", *overrides),
            workdir=tmp_path / value,
            engine=engine_of(replicas),
        )
    assert_same_weights(
        tmp_path / "none", tmp_path / remat, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remat": "all"}, "'none', 'tokens', 'block'.*'all'"),
        ({"remat": "block", "dropout": 0.1}, "dropout=0.1"),
    ],
)
def test_errors_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        layers.MixerBlock(3, 3, **options)
