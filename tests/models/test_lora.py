"""LoRA on a Mixer."""

import keras
import numpy as np
import pytest

from keras_mixer import models, weights
from tests import reference

SMALL = models.Variant(2, 2, 16, 8, 16)


def mixer(**options):
    return models.Mixer(SMALL, input_shape=(8, 8, 3), classes=4, **options)


def test_answers_stay_and_little_trains():
    model = mixer()
    x = reference.random_images(2, 8, 8, 3)
    before = np.asarray(model(x))
    models.enable_lora(model, 3)
    np.testing.assert_array_equal(model(x), before)
    # A block's kernels are [16, 8], [8, 16], [16, 16] and [16, 16].
    factors = 3 * (24 + 24 + 32 + 32)
    biases = 8 + 16 + 16 + 16
    head = 16 * 4 + 4
    trained = sum(np.prod(v.shape) for v in model.trainable_weights)
    assert trained == 2 * (factors + biases) + head


def test_the_change_is_the_product_of_the_factors():
    model = mixer()
    kernel = weights.from_model(model, "before").values
    models.enable_lora(model, 2, alpha=6)
    rng = np.random.default_rng(0)
    name = "MixerBlock_1/channel_mixing/Dense_0"
    dense = model.get_layer("MixerBlock_1").channel_mixing.dense_0
    b = rng.standard_normal(dense.lora_kernel_b.shape)
    dense.lora_kernel_b.assign(b)
    a = np.asarray(dense.lora_kernel_a)
    assert 0.05 < a.std() < 0.5  # 1/4 expected of 32 values
    merged = weights.from_model(model, "after").values[f"{name}/kernel"]
    np.testing.assert_allclose(
        merged, kernel[f"{name}/kernel"] + 3 * a @ b, rtol=1e-5, atol=1e-6
    )


def test_the_same_seed_draws_the_same_factors():
    drawn = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        model = mixer()
        models.enable_lora(model, 2)
        mlp = model.get_layer("MixerBlock_0").token_mixing
        drawn.append(np.asarray(mlp.dense_0.lora_kernel_a))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).all()


@pytest.mark.parametrize("rank", [0, -1, 2.5, "2", True, None])
def test_a_rank_is_a_positive_integer(rank):
    with pytest.raises(ValueError, match="rank must be a positive integer"):
        models.enable_lora(mixer(), rank)


def test_what_cannot_have_it():
    model = mixer()
    with pytest.raises(ValueError, match="at most 8.*Received: rank=9"):
        models.enable_lora(model, 9)
    assert len(model.trainable_weights) == len(model.weights)
    models.enable_lora(model, 8)
    with pytest.raises(ValueError, match="has LoRA already"):
        models.enable_lora(model, 8)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="is not a Mixer"):
        models.enable_lora(other, 2)


def test_fit_moves_the_factors_alone():
    model = mixer()
    models.enable_lora(model, 2)
    # The head begins at 0, so B moves in the second step and A in the third.
    before = {v.path: np.asarray(v) for v in model.weights}
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    x = reference.random_images(8, 8, 8, 3)
    model.fit(x, np.arange(8) % 4, epochs=4, verbose=0)
    moved = {
        v.path.rpartition("/")[2]
        for v in model.weights
        if not np.array_equal(before[v.path], v)
    }
    assert moved == {"lora_kernel_a", "lora_kernel_b", "bias", "kernel"}
    kept = model.get_layer("MixerBlock_0").channel_mixing.dense_1._kernel
    np.testing.assert_array_equal(kept, before[kept.path])
