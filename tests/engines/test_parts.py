"""In how many parts a TPU computes its share of a batch."""

import dataclasses

import keras
import pytest

from keras_mixer import models
from keras_mixer.engines import parts

ONE_BLOCK = dataclasses.replace(models.get_variant("B/16"), num_blocks=1)


@pytest.fixture(scope="module")
def one_block():
    return models.Mixer(ONE_BLOCK, dtype="mixed_bfloat16")


@pytest.mark.parametrize(
    ("examples", "accumulate", "expected"),
    [
        (64, 1, 1),
        (66, 1, 1),  # as many as fit
        (85, 1, 5),  # 17 at a time, which has no larger divisor
        (128, 1, 2),
        (129, 1, 3),
        (192, 1, 3),
        (192, 2, 4),
        (128, 4, 4),  # the user asked for so many
        (127, 1, 1),  # prime: one at a time would waste the chip
        (4096, 1, 64),
    ],
)
def test_at_most_66_images_of_b16(one_block, examples, accumulate, expected):
    """At 224 px in bfloat16: the hidden channels of 66 images fit."""
    assert parts.count_parts(one_block, examples, accumulate) == expected


@pytest.mark.parametrize(
    ("dtype", "side", "expected"),
    [
        ("mixed_bfloat16", 112, 1),
        ("mixed_bfloat16", 448, 8),
        ("float32", 224, 4),
    ],
)
def test_a_part_is_measured_in_bytes(dtype, side, expected):
    model = models.Mixer(ONE_BLOCK, input_shape=(side, side, 3), dtype=dtype)
    assert parts.count_parts(model, 128, 1) == expected


def test_other_models_are_computed_as_they_are():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    assert parts.count_parts(model, 4096, 1) == 1
    assert parts.count_parts(model, 4096, 2) == 2
