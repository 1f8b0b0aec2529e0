"""Permutations of pixels as steps of a policy."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data
from keras_mixer.data.augment import permutations, policy as policy_lib
from tests.training.common import small

SEED = (3, 4)


def image_of(side):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (side, side, 3), np.uint8)


@pytest.mark.parametrize(("side", "patch"), [(8, 2), (12, 4), (6, 6), (6, 1)])
def test_patches_and_the_pixels_inside(side, patch):
    """The oracle: loops over tokens and their pixels."""
    step = permutations.Permutation(patch, 7)
    image = image_of(side)
    apply = policy_lib.parse(f"resize|shuffle_patches({patch}, 7)", side)
    found = apply(tf.constant(image), SEED).numpy()
    patches, inside = step.parts(side)
    assert sorted(patches) == list(range((side // patch) ** 2))
    assert sorted(inside) == list(range(patch**2))

    def pixel(picture, token, place):
        y, x = divmod(token, side // patch)
        dy, dx = divmod(place, patch)
        return picture[y * patch + dy, x * patch + dx]

    for i, token in enumerate(patches):
        for j, place in enumerate(inside):
            np.testing.assert_array_equal(
                pixel(found, i, j), pixel(image, token, place)
            )


def test_all_pixels_stay_whole_and_the_same_everywhere():
    apply = policy_lib.parse("shuffle_pixels(5)", 8, 8)
    first, second = image_of(8), 255 - image_of(8)
    found = apply(tf.constant(first), SEED).numpy()
    order = np.random.default_rng(5)
    order.permutation(1)  # the one patch
    order = order.permutation(64)
    np.testing.assert_array_equal(
        found.reshape(64, 3), first.reshape(64, 3)[order]
    )
    # Another image and another seed of the augmentation, in tf.data.
    mapped = tf.data.Dataset.from_tensors(second).map(
        lambda image: apply(image, (9, 9))
    )
    np.testing.assert_array_equal(
        next(iter(mapped)).numpy().reshape(64, 3),
        second.reshape(64, 3)[order],
    )
    other = policy_lib.parse("shuffle_pixels(6)", 8, 8)
    assert (other(tf.constant(first), SEED).numpy() != found).any()


@pytest.mark.parametrize("policy", ["pad_crop(1)|flip", "resize(9)|resize"])
def test_it_follows_the_augmentation_and_leaves_its_draws(policy):
    image = tf.constant(image_of(8))
    plain = policy_lib.parse(policy, 8)(image, SEED)
    step = permutations.Permutation(4, 0)
    found = policy_lib.parse(f"{policy}|{step}", 8)(image, SEED)
    np.testing.assert_array_equal(found, step(plain, 8))


def test_files_too():
    encoded = tf.io.encode_png(image_of(8))
    found = policy_lib.parse("shuffle_pixels(1)", 8)(encoded, SEED)
    want = permutations.Permutation(None, 1)(tf.constant(image_of(8)), 8)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("shuffle_patches(3, 0)", "patch=3. Those that do: 1, 2, 4, 8"),
        ("shuffle_patches(4)", "shuffle_patches(patch, seed)"),
        ("shuffle_patches(0, 1)", "shuffle_patches(patch, seed)"),
        ("shuffle_pixels", "shuffle_pixels(seed)"),
        ("shuffle_pixels(-1)", "shuffle_pixels(seed)"),
        ("shuffle_pixels(0)|flip", "the last step"),
        ("shuffle_pixels(0)|shuffle_pixels(1)", "the last step"),
        ("shuffle_pixel(0)", "shuffle_pixels(seed)"),
        ("resize_small(8)|shuffle_pixels(0)", "central_crop"),
    ],
)
def test_bad_policies(policy, message):
    with pytest.raises(ValueError) as error:
        policy_lib.parse(policy, 8)
    assert message in str(error.value)


def test_what_mixes_a_batch_does_not_go_with_it():
    with pytest.raises(ValueError, match="mix shuffled images"):
        policy_lib.split("shuffle_pixels(0)|keras_cv.CutMix(alpha=1.0)")


def test_few_shot_images_are_permuted_like_the_others():
    config = small(
        "augment.eval_policy=resize|shuffle_pixels(2)", "model.image_size=8"
    )
    split = data.open_splits(config).evaluation
    assert data.fewshot_policy(config, split) == "resize|shuffle_pixels(2)"
