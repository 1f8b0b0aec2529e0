"""Layers of Keras and keras-cv as steps, and as witnesses of our own ops."""

import contextlib
import random
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mixer.data.augment import (
    images,
    keras_layers,
    keyed,
    policy as policy_lib,
    randaugment,
)

pytest.importorskip("keras_cv")
from keras_cv import layers

JITTER = (
    "RandomColorJitter(brightness_factor=0.4, contrast_factor=0.4, "
    "saturation_factor=0.4, hue_factor=0.2)"
)
# Every layer that takes an image, with arguments, and how many of 12 images
# differ at least.
KERAS = {
    "AugMix": 12,
    "AugMix(all_ops=False, num_chains=1, chain_depth=1)": 7,
    "AutoContrast": 1,
    "ContrastLimitedAdaptiveHistogramEqualization": 1,
    "Equalization": 1,
    "RandAugment": 11,
    "RandomBrightness(factor=0.4)": 11,
    "RandomColorDegeneration(factor=0.7)": 12,
    JITTER: 12,
    "RandomContrast(factor=0.4)": 12,
    "RandomElasticTransform": 6,
    "RandomErasing": 4,
    "RandomErasing(factor=(1.0, 1.0), fill_value=None)": 4,
    "RandomFlip": 2,
    "RandomGaussianBlur(kernel_size=5, sigma=(0.5, 1.0))": 6,
    "RandomGrayscale(factor=0.5)": 2,
    "RandomHue(factor=0.4)": 12,
    "RandomInvert": 2,
    "RandomPerspective": 6,
    "RandomPosterization(factor=(2, 6))": 2,
    "RandomRotation(factor=0.2)": 12,
    "RandomSaturation(factor=0.9)": 6,
    "RandomSharpness(factor=0.9)": 12,
    "RandomShear(x_factor=0.3, y_factor=0.3)": 12,
    "RandomTranslation(height_factor=0.3, width_factor=0.3)": 12,
    "RandomZoom(height_factor=0.4)": 12,
    "Solarization": 1,
    "Solarization(addition_factor=0.3, threshold_factor=0.5)": 12,
}
KERAS_CV = {
    "AugMix": 12,
    "AutoContrast": 1,
    "ChannelShuffle": 4,  # of 3! = 6
    "Equalization": 1,
    "Grayscale(output_channels=3)": 1,
    "GridMask": 12,
    'GridMask(fill_mode="gaussian_noise")': 12,
    "Posterization(bits=3)": 1,
    "RandAugment": 11,
    "RandomBrightness(factor=0.4)": 11,
    "RandomChannelShift(factor=0.4)": 12,
    "RandomColorDegeneration(factor=0.7)": 12,
    JITTER: 12,
    "RandomContrast(factor=0.4)": 12,
    "RandomCutout(height_factor=0.5, width_factor=0.5)": 12,
    "RandomCutout(height_factor=(0.2, 0.5), width_factor=0.5, "
    "fill_mode='gaussian_noise')": 12,
    "RandomFlip": 2,
    "RandomGaussianBlur(kernel_size=5, factor=3.0)": 12,
    "RandomHue(factor=0.4)": 12,
    "RandomJpegQuality(factor=(5, 60))": 10,
    "RandomRotation(factor=0.2)": 12,
    "RandomSaturation(factor=(0.1, 0.9))": 12,
    "RandomSharpness(factor=0.9)": 12,
    "RandomShear(x_factor=0.3, y_factor=0.3)": 12,
    "RandomTranslation(height_factor=0.3, width_factor=0.3)": 12,
    "RandomZoom(height_factor=0.4)": 12,
    "Solarization": 1,
    "Solarization(addition_factor=30.0, threshold_factor=200.0)": 12,
}
RESIZING = {  # and the side that comes out of 36, None: any
    "keras.CenterCrop(height=24, width=24)": 24,
    "keras.RandomCrop(height=24, width=24)": 24,
    "keras.Resizing(height=24, width=24)": 24,
    "keras_cv.JitteredResize(target_size=(24, 24), scale_factor=(0.8, 1.25))": (
        24
    ),
    "keras_cv.RandomAspectRatio(factor=(0.7, 1.4))": None,
    "keras_cv.RandomCrop(height=24, width=24)": 24,
    "keras_cv.RandomCropAndResize(target_size=(24, 24), "
    "crop_area_factor=(0.3, 1.0), aspect_ratio_factor=(0.75, 1.33))": 24,
    "keras_cv.Resizing(height=24, width=24)": 24,
}
MIXING = (
    "keras.CutMix",
    "keras.MixUp(alpha=1.0)",
    "keras_cv.CutMix",
    "keras_cv.MixUp(alpha=1.0)",
    "keras_cv.FourierMix(alpha=1.0)",
)
KEEPING = {
    **{f"keras.{text}": count for text, count in KERAS.items()},
    **{f"keras_cv.{text}": count for text, count in KERAS_CV.items()},
}
# One layer for each way of drawing; the others are slow.
DAILY = {
    "keras.AugMix(all_ops=False, num_chains=1, chain_depth=1)",  # in loops
    "keras.RandAugment",  # layers in a layer
    "keras.RandomErasing",
    "keras.RandomFlip",
    "keras.RandomCrop(height=24, width=24)",
    "keras_cv.ChannelShuffle",
    'keras_cv.GridMask(fill_mode="gaussian_noise")',  # by a wrong name
    "keras_cv.JitteredResize(target_size=(24, 24), scale_factor=(0.8, 1.25))",
    "keras_cv.Posterization(bits=3)",
    "keras_cv.RandomContrast(factor=0.4)",  # tf.random.uniform
    "keras_cv.RandomCutout(height_factor=(0.2, 0.5), width_factor=0.5, "
    "fill_mode='gaussian_noise')",  # tf.random.normal
    "keras_cv.RandomFlip",  # a generator
}


def rows(texts, daily=DAILY):
    return [
        pytest.param(text, marks=[] if text in daily else [pytest.mark.slow])
        for text in texts
    ]


@pytest.fixture
def blocks():
    """[36, 36, 3] of 6 x 6 blocks of one colour."""
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    return tf.constant(small.repeat(6, 0).repeat(6, 1))


@pytest.fixture
def photo(imagenet_files):
    image = tf.io.decode_jpeg(tf.io.read_file(str(imagenet_files[1])))
    return image[:230, 100:300]


@pytest.fixture
def batch(blocks):
    """Eight images that share no pixel's value, and their labels."""
    shifts = tf.cast(tf.range(8), tf.uint8)[:, None, None, None]
    return blocks[None] // 8 * 8 + shifts, tf.eye(8)


def seeds_of(count):
    return tf.constant([(3, i) for i in range(count)], tf.int64)


def eager_and_mapped(function, seeds):
    """Applies a function of a seed; eagerly, in tf.data and again: the same."""
    eager = [np.asarray(function(seed)) for seed in seeds]
    dataset = tf.data.Dataset.from_tensor_slices(seeds)
    mapped = dataset.map(function, num_parallel_calls=4)
    for want, got in zip(eager, mapped, strict=True):
        np.testing.assert_array_equal(got, want)
    return eager


@pytest.mark.parametrize("text", rows([*KEEPING, *RESIZING]))
def test_a_seed_is_an_image(text, blocks):
    step, side, _ = keras_layers.image_step(text, 36)
    got = eager_and_mapped(lambda seed: step(blocks, seed), seeds_of(12))
    assert side == RESIZING.get(text, 36)
    for image in got:
        assert image.dtype == np.uint8
        assert side is None or image.shape == (side, side, 3)
    different = len({(image.shape, image.tobytes()) for image in got})
    if text in KEEPING:
        assert (different == 1) == (KEEPING[text] == 1)
        assert different >= KEEPING[text]
    else:
        is_random = "Resizing" not in text and "Center" not in text
        assert different > 8 if is_random else different == 1
    # Deterministic layers do something as well.
    assert any(
        image.shape != (36, 36, 3) or (image != blocks.numpy()).any()
        for image in got
    )


def test_kerass_augmix_draws_its_operations(blocks):
    """One of seven, or none, whose image is the original's."""
    text = "keras.AugMix(all_ops=False, num_chains=1, chain_depth=1)"
    step, _, _ = keras_layers.image_step(text, 36)
    got = [step(blocks, seed).numpy() for seed in seeds_of(60)]
    unchanged = sum(np.array_equal(image, blocks) for image in got)
    assert 1 <= unchanged <= 20  # of 60 / 8
    assert len({image.tobytes() for image in got}) > 30


@pytest.mark.parametrize(
    "text",
    rows(
        [
            "keras.AugMix",
            "keras.RandomRotation(factor=0.2)",
            "keras_cv.AugMix",
            f"keras_cv.{JITTER}",
            "keras_cv.RandomRotation(factor=0.2)",
        ],
        daily={"keras_cv.RandomRotation(factor=0.2)"},
    ),
)
def test_a_seed_is_an_image_to_the_pixel(text, photo):
    """Layers whose last bits a graph's optimization of sums would change."""
    image = tf.cast(tf.image.resize(photo, (224, 224)), tf.uint8)
    step, _, _ = keras_layers.image_step(text, 224)
    eager_and_mapped(lambda seed: step(image, seed), seeds_of(6))


def test_no_layer_is_untested():
    (keras_base,) = keras.layers.CenterCrop.__bases__
    every = {
        f"{library.__name__}.{name}"
        for library, bases in (
            (keras, keras_base),
            (
                sys.modules["keras_cv"],
                (
                    layers.BaseImageAugmentationLayer,
                    layers.VectorizedBaseImageAugmentationLayer,
                ),
            ),
        )
        for name, layer in vars(library.layers).items()
        if isinstance(layer, type)
        and issubclass(layer, bases)
        and name not in keras_layers._REFUSED
    }
    tested = (*KEEPING, *RESIZING, *MIXING)
    assert {text.partition("(")[0] for text in tested} == every


@pytest.mark.parametrize(
    "text",
    [
        f"keras.{JITTER}",
        "keras.AugMix(all_ops=False, num_chains=1, chain_depth=1)",
        "keras_cv.RandomFlip",
    ],
)
def test_the_state_of_other_generators_does_not_matter(text, blocks):
    """Nor is it changed: a run's other draws are the same with such a step."""
    seed = tf.constant((5, 6), tf.int64)
    keras.utils.set_random_seed(1)
    keras_layers.image_step.cache_clear()
    first = keras_layers.image_step(text, 36)[0](blocks, seed)
    keras_layers.image_step.cache_clear()
    keras.utils.set_random_seed(2)
    state = random.getstate(), tf.random.get_global_generator().state.numpy()
    second = keras_layers.image_step(text, 36)[0](blocks, seed)
    np.testing.assert_array_equal(first, second)
    assert random.getstate() == state[0]
    np.testing.assert_array_equal(
        tf.random.get_global_generator().state, state[1]
    )


def test_rounds_of_a_loop_draw_their_own_numbers():
    """Their bodies are traced once; also within branches and other loops."""
    seeds = keyed.Seeds()

    def drawn(_):
        return tf.random.uniform([])

    @tf.function
    def traced(key):
        seeds.start(key)
        with keyed.in_place_of_tf_random(seeds):
            mapped = tf.map_fn(drawn, tf.zeros([5]))
            nested = tf.map_fn(
                lambda _: tf.cond(
                    key[1] > 0,
                    lambda: tf.map_fn(drawn, tf.zeros([3])),
                    lambda: tf.zeros([3]),
                ),
                tf.zeros([4]),
            )
            _, looped = tf.while_loop(
                lambda i, _: i < 5,
                lambda i, rows: (
                    i + 1,
                    tf.tensor_scatter_nd_update(rows, [[i]], [drawn(i)]),
                ),
                [tf.constant(0), tf.zeros([5])],
            )
            parts = [mapped, looped, tf.reshape(nested, [-1]), [drawn(0)]]
            return tf.concat(parts, 0)

    got = traced(tf.constant((1, 2), tf.int64)).numpy()
    assert len(set(got)) == 23
    assert got.min() > 0
    np.testing.assert_array_equal(traced(tf.constant((1, 2), tf.int64)), got)
    assert set(traced(tf.constant((1, 3), tf.int64)).numpy()).isdisjoint(got)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("uniform", ([2, 3], 1.0, 2.0)),
        ("uniform", ([4], 0, 7, tf.int32)),
        ("normal", ([2, 3], 5.0, 0.1)),
        ("gamma", ([4], [0.5, 2.0])),
        ("gamma", ((2,), 1.0)),
        ("shuffle", (tf.range(9),)),
    ],
)
def test_what_seeds_draw_is_what_tensorflow_draws(name, arguments):
    """Of the same shape, type and range: the signatures agree."""
    seeds = keyed.Seeds()
    wanted = getattr(tf.random, name)(*arguments).numpy()

    @tf.function
    def traced(key):
        seeds.start(key)
        return getattr(seeds, name)(*arguments, seed=None)

    got = traced(tf.constant((1, 2), tf.int64)).numpy()
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    if name == "uniform":
        assert (got >= arguments[1]).all() and (got < arguments[2]).all()
    if name == "normal":
        assert abs(got - 5).max() < 1
    if name == "shuffle":
        assert sorted(got) == list(range(9))


def test_other_threads_keep_their_own_generator():
    drawn = []

    def draw():
        tf.random.set_seed(7)
        drawn.append(float(tf.random.uniform([])))

    draw()
    original = tf.random.uniform
    seeds = keyed.Seeds()

    @tf.function
    def traced(key):
        seeds.start(key)
        with keyed.in_place_of_tf_random(seeds):
            thread = threading.Thread(target=draw)
            thread.start()
            thread.join()
            return tf.random.uniform([])

    assert float(traced(tf.constant((1, 2), tf.int64))) != drawn[0]
    assert drawn[0] == drawn[1]
    assert tf.random.uniform is original


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        ("keras.RandomFlip", "give"),  # a SeedGenerator's variable
        (f"keras.{JITTER}", "give"),  # of the layers in it
        ("keras_cv.RandomFlip", "give"),  # a generator
        ("keras_cv.RandomContrast(factor=0.4)", "in_place_of_tf_random"),
        ("keras_cv.AugMix", "in_place_of_tf_random"),  # in a loop
    ],
)
def test_what_is_not_keyed_is_refused(text, left_out, monkeypatch):
    keras_layers.image_step.cache_clear()
    monkeypatch.setattr(keyed, left_out, lambda *_: contextlib.nullcontext())
    with pytest.raises(ValueError, match="no seed repeats"):
        keras_layers.image_step(text, 36)
    keras_layers.image_step("keras_cv.AutoContrast", 36)


def test_files_and_the_other_steps(imagenet_files):
    """From the bytes of a file to the model's size, in one policy."""
    policy = (
        "inception_crop(30)|keras_cv.RandomHue(factor=0.1)|flip|"
        "keras_cv.RandAugment(value_range=(0, 255), augmentations_per_image=1, "
        "geometric=False, magnitude=0.5)|keras.RandomErasing"
    )
    apply = policy_lib.parse(policy, 48)
    encoded = tf.io.read_file(str(imagenet_files[0]))
    got = eager_and_mapped(lambda seed: apply(encoded, seed), seeds_of(4))
    assert {image.shape for image in got} == {(48, 48, 3)}
    assert len({image.tobytes() for image in got}) == 4
    seed = tf.constant((3, 1), tf.int64)
    from_pixels = apply(images.decode(encoded), seed)
    np.testing.assert_array_equal(from_pixels, got[1])


@pytest.mark.parametrize(
    ("policy", "source"),
    [
        ("keras_cv.RandomFlip", None),  # begins with a resize
        ("keras_cv.RandomAspectRatio(factor=(0.7, 1.4))|resize", None),
        ("keras_cv.Resizing(height=32, width=32)|flip", None),
        ("resize_small(40)|keras_cv.RandomCrop(height=32, width=32)", None),
        ("keras_cv.ChannelShuffle", 32),
    ],
)
def test_sizes(policy, source):
    apply = policy_lib.parse(policy, 32, source)
    image = tf.zeros([32, 32, 3] if source else [50, 70, 3], tf.uint8)
    assert apply(image, (0, 1)).shape == (32, 32, 3)


def test_floats_are_rounded_and_computed_in_float32(photo):
    """Also under a policy of bfloat16, whose 8 bits would show."""
    seed = tf.constant((0, 0), tf.int64)
    nested = f"keras.{JITTER}"
    keras_layers.image_step.cache_clear()
    before = keras.config.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        blur = "keras_cv.RandomGaussianBlur(kernel_size=5, factor=(2.0, 2.0))"
        got = keras_layers.image_step(blur, None)[0](photo, seed)
        augmented = keras_layers.image_step(nested, None)[0](photo, seed)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy(before)
    layer = layers.RandomGaussianBlur(kernel_size=5, factor=(2.0, 2.0))
    want = tf.round(layer(tf.cast(photo, tf.float32)))
    np.testing.assert_array_equal(got, want)
    keras_layers.image_step.cache_clear()
    again = keras_layers.image_step(nested, None)[0](photo, seed)
    np.testing.assert_array_equal(augmented, again)


def test_jpeg_quality_takes_its_own_range(photo):
    """Its layer takes floats for 0..1 alone."""
    text = "keras_cv.RandomJpegQuality(factor=(30, 30))"
    got = keras_layers.image_step(text, None)[0](photo, (0, 0))
    want = tf.image.adjust_jpeg_quality(photo, 30)
    np.testing.assert_array_equal(got, want)


def witness(photo, layer):
    """What a layer makes of a photograph, not rounded, but truncated."""
    values = layer(tf.cast(photo, tf.float32))
    return np.clip(np.asarray(values), 0, 255).astype(np.uint8)


def test_our_operations_against_the_layers_pixel_by_pixel(photo):
    """Those that are the same function: not a pixel differs.

    AutoContrast where both truncate: a policy rounds what layers return.
    """
    values = (0, 255)
    same = {
        "AutoContrast": (
            randaugment.autocontrast(photo),
            layers.AutoContrast(values),
        ),
        "Invert": (
            randaugment.operations(0)["Invert"](photo, tf.zeros([3])),
            layers.Solarization(values),
        ),
    }
    for limit in (1, 77, 128, 255):
        same[f"Solarize {limit}"] = (
            randaugment.solarize(photo, limit),
            layers.Solarization(values, 0.0, (float(limit),) * 2),
        )
    for bits in range(1, 9):
        same[f"Posterize {bits}"] = (
            randaugment.posterize(photo, bits),
            layers.Posterization(values, bits),
        )
    # Moves the other way, by a share of the size: 230 x 200.
    fill = {"interpolation": "nearest", "fill_mode": "constant"}
    for pixels in (-50, 7):
        same[f"TranslateX {pixels}"] = (
            randaugment.translate(photo, pixels, 1),
            layers.RandomTranslation(
                0.0, (-pixels / 200,) * 2, fill_value=128.0, **fill
            ),
        )
    for name, (ours, layer) in same.items():
        np.testing.assert_array_equal(ours, witness(photo, layer), name)


def test_our_blends_against_the_layers(photo):
    """Within a level: grey and the smoothed image are not rounded there."""
    for factor in (0.1, 0.5, 0.9):
        share = (1 - factor,) * 2
        for ours, layer in (
            (
                randaugment.color(photo, factor),
                layers.RandomColorDegeneration(share),
            ),
            (
                randaugment.sharpness(photo, factor),
                layers.RandomSharpness(share, (0, 255)),
            ),
        ):
            theirs = witness(photo, layer).astype(int)
            apart = np.abs(ours.numpy() - theirs)
            assert apart.max() <= 1, (layer.name, factor)
            assert apart.mean() < 0.35, (layer.name, factor)


def equalized(channel, leave_out):
    """PIL's Equalize, where `leave_out` gives the count not to be spread."""
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (channel.size - leave_out(counts[counts > 0])) // 255
    below = np.cumsum(counts) - counts
    return np.clip((below + step // 2) // step, 0, 255)[channel]


def test_equalize_differs_in_the_step(photo):
    """PIL leaves the brightest value out of the step, keras-cv the rarest."""
    theirs = witness(photo, layers.Equalization((0, 255)))
    ours = randaugment.equalize(photo).numpy()
    assert 0 < np.abs(ours - theirs.astype(int)).max() <= 4
    for i in range(3):
        channel = photo[..., i].numpy()
        want = equalized(channel, lambda counts: counts[-1])
        np.testing.assert_array_equal(ours[..., i], want)
        want = equalized(channel, np.min)
        np.testing.assert_array_equal(theirs[..., i], want)


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("keras.AutoContrast", keras.layers.AutoContrast()),
        ("keras.Solarization", keras.layers.Solarization()),
        ("keras_cv.AutoContrast", layers.AutoContrast((0, 255))),
        ("keras_cv.Posterization(bits=3)", layers.Posterization((0, 255), 3)),
    ],
)
def test_a_step_is_its_layer(text, layer, photo):
    step, _, _ = keras_layers.image_step(text, None)
    want = tf.round(layer(tf.cast(photo, tf.float32)))
    np.testing.assert_array_equal(step(photo, (0, 0)), want)


@pytest.mark.slow
def test_randaugment_of_rate_0_does_nothing(photo):
    text = "keras_cv.RandAugment(rate=0.0, augmentations_per_image=1)"
    step, _, _ = keras_layers.image_step(text, None)
    np.testing.assert_array_equal(step(photo, (0, 0)), photo)


def test_split_policy():
    assert policy_lib.split("resize|flip") == ("resize|flip", ())
    assert policy_lib.split(
        "inception_crop|flip|keras_cv.CutMix(alpha=0.5) | keras_cv.MixUp"
    ) == (
        "inception_crop|flip",
        ("keras_cv.CutMix(alpha=0.5)", "keras_cv.MixUp"),
    )
    assert policy_lib.split("keras_cv.MixUp")[0] == "resize"
    with pytest.raises(ValueError, match="after all steps"):
        policy_lib.split("keras_cv.CutMix|flip")


@pytest.mark.parametrize("text", MIXING)
def test_mixing_is_keyed(text, batch):
    mix = keras_layers.make_mixing([text], 36)
    pixels, labels = batch

    def flat(seed):
        mixed, shares = mix(pixels, labels, seed)
        assert mixed.dtype == tf.uint8
        assert shares.dtype == tf.float32
        mixed = tf.cast(mixed, tf.float32)
        return tf.concat([tf.reshape(mixed, [8, -1]), shares], 1)

    got = eager_and_mapped(flat, seeds_of(4))
    assert len({values.tobytes() for values in got}) == 4
    for values in got:
        np.testing.assert_allclose(values[:, -8:].sum(1), 1, atol=1e-5)


def partners(labels):
    """The second image of each pair, and its share in the label."""
    other = labels - np.diag(np.diag(labels))
    return other.argmax(1), other.max(1)


def test_cutmix_takes_every_pixel_of_one_of_two_images(batch):
    """The label counts the box, also where it lies outside of the image."""
    mix = keras_layers.make_mixing(["keras_cv.CutMix"], 36)
    rows, labels = (part.numpy() for part in batch)
    inside = 0
    for seed in seeds_of(20):
        mixed, shares = (part.numpy() for part in mix(*batch, seed))
        second, share = partners(shares)
        for i in range(8):
            taken = (mixed[i] != rows[i]).any(-1)
            np.testing.assert_array_equal(mixed[i][~taken], rows[i][~taken])
            np.testing.assert_array_equal(
                mixed[i][taken], rows[second[i]][taken]
            )
            want = (1 - share[i]) * labels[i] + share[i] * labels[second[i]]
            np.testing.assert_allclose(shares[i], want, atol=1e-6)
            if second[i] == i or not taken.any():
                continue
            ys, xs = np.nonzero(taken)
            box = (np.ptp(ys) + 1) * (np.ptp(xs) + 1)
            assert taken.sum() == box
            at_edge = ys.min() == 0 or ys.max() == 35
            at_edge |= xs.min() == 0 or xs.max() == 35
            if at_edge:
                assert share[i] >= taken.mean() - 1e-6
            else:
                inside += 1
                np.testing.assert_allclose(share[i], taken.mean(), atol=1e-6)
    assert inside > 20


def test_kerass_cutmix_labels_by_the_area(batch):
    """Its box has no whole sides: within a pixel on each of four sides."""
    mix = keras_layers.make_mixing(["keras.CutMix"], 36)
    pixels = batch[0].numpy()
    mixed_rows = 0
    for seed in seeds_of(10):
        mixed, shares = (part.numpy() for part in mix(*batch, seed))
        second, share = partners(shares)
        for i in range(8):
            taken = (mixed[i] != pixels[i]).any(-1)
            np.testing.assert_array_equal(
                mixed[i],
                np.where(taken[..., None], pixels[second[i]], mixed[i]),
            )
            np.testing.assert_array_equal(mixed[i][~taken], pixels[i][~taken])
            if second[i] != i:
                assert abs(share[i] - taken.mean()) <= 2 / 36
                mixed_rows += 0.05 < share[i] < 0.95
    assert mixed_rows > 10


@pytest.mark.parametrize("library", ["keras", "keras_cv"])
def test_mixup_is_the_convex_combination(library, batch):
    mix = keras_layers.make_mixing([f"{library}.MixUp(alpha=1.0)"], 36)
    pixels = batch[0].numpy().astype(float)
    mixed, shares = (part.numpy() for part in mix(*batch, (1, 2)))
    second, share = partners(shares)
    share = share[:, None, None, None].astype(float)
    want = (1 - share) * pixels + share * pixels[second]
    assert np.abs(mixed - want).max() <= 0.5 + 1e-4
    assert len(set(share.ravel())) > 4  # one for each image


def test_fouriermix_shares_are_the_counted_ones(batch):
    mix = keras_layers.make_mixing(["keras_cv.FourierMix(alpha=1.0)"], 36)
    rows = batch[0].numpy()
    mixed, shares = (part.numpy() for part in mix(*batch, (1, 2)))
    second, share = partners(shares)
    masks = set()
    for i in range(8):
        taken = (mixed[i] != rows[i]).any(-1)
        np.testing.assert_array_equal(mixed[i][taken], rows[second[i]][taken])
        if second[i] != i:
            assert abs(taken.mean() - share[i]) <= 0.5 / 36**2 + 1e-6
            masks.add(taken.tobytes())
    assert len(masks) > 4


def test_mixing_steps_follow_each_other(batch):
    texts = ["keras_cv.CutMix", "keras.MixUp(alpha=1.0)"]
    both = keras_layers.make_mixing(texts, 36)
    seed = tf.constant((4, 5), tf.int64)
    got = both(*batch, seed)
    seeds = tf.random.experimental.stateless_split(seed, 2)
    want = batch
    for text, one in zip(texts, seeds, strict=True):
        step = keras_layers._mixing_step(text, 36)
        want = step(*want, tf.cast(one, tf.int64))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("keras_cv.RandAug", "no layer 'RandAug'. Did you mean 'RandAugment'"),
        (
            "keras_cv.RandAug",
            "https://keras.io/api/keras_cv/layers/preprocessing/",
        ),
        ("keras_cv.DropPath(rate=0.1)", "does not augment images. Allowed are"),
        ("keras_cv.Mosaic", "bounding boxes"),
        ("keras_cv.RandomApply(rate=0.5)", "takes a layer"),
        ("keras_cv.Rescaling(scale=2)", "stay in 0..255"),
        (
            "keras_cv.Posterization",
            "'bits'. keras_cv.Posterization takes value_r",
        ),
        (
            "keras_cv.Posterization(bits=9)",
            "between 1-8. Received bits: 9. keras_cv.P",
        ),
        (
            "keras_cv.Posterization(4)",
            "It is written keras_cv.<Layer>(argument=value",
        ),
        ("keras_cv.Posterization(**{'bits': 4})", "It is written"),
        ("keras_cv.Posterization(bits=int('4'))", "It is written"),
        ("keras_cv.Posterization(bits=4", "It is written"),
        ("keras_cv.RandAugment.mro()", "no layer 'RandAugment.mro'"),
        (
            "keras_cv.RandAugment(magnitud=1)",
            "no argument 'magnitud'. keras_cv.RandAug",
        ),
        ("keras_cv.RandAugment(seed=1)", "no argument 'seed'"),
        (
            "keras_cv.RandAugment(value_range=(0, 1))",
            "value_range is (0, 255) here",
        ),
        (
            "keras_cv.RandomRotation(factor=0.2, fill_mode='x')",
            "Got `fill_mode` x. ker",
        ),
        (
            "keras_cv.Grayscale",
            "1 channels, not 3. keras_cv.Grayscale takes output_cha",
        ),
        ("keras_cv.CutMix", "it mixes the images of a batch"),
        ("keras_cv.CutMix|flip", "it mixes the images of a batch"),
        (
            "keras_cv.RandomCrop(height=20, width=20)",
            "leaves images of 20 x 20 pixels",
        ),
        (
            "keras_cv.RandomAspectRatio(factor=(0.5, 2.0))",
            "leaves images of many sizes",
        ),
        ("keras.RandAug", "keras has no layer 'RandAug'. Did you mean 'Rand"),
        ("keras.RandAug", "https://keras.io/api/layers/preprocessing_layers"),
        ("keras.layers.RandomFlip", "no layer 'layers.RandomFlip'. Did you"),
        ("keras.Dense(units=3)", "does not augment images. Allowed are"),
        ("keras.Pipeline(layers=[])", "Cannot use keras.Pipeline: it takes"),
        ("keras.Rescaling(scale=2)", "stay in 0..255"),
        ("keras.Mosaic", "keras has no layer 'Mosaic'"),
        ("keras.RandomRotation", "'factor'. keras.RandomRotation takes factor"),
        ("keras.RandomRotation(0.2)", "It is written keras.<Layer>(argument="),
        ("keras.RandomHue(factor=2.0)", "Received: factor=2.0. keras.RandomHu"),
        ("keras.RandomFlip(seed=1)", "no argument 'seed'"),
        ("keras.RandomHue(factor=0.1, value_range=(0, 1))", "is (0, 255) here"),
        ("keras.MixUp|flip", "it mixes the images of a batch"),
    ],
)
def test_errors_tell_what_to_write(step, message):
    with pytest.raises(ValueError) as caught:
        policy_lib.parse(step, 32)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_layer_that_needs_one_size():
    policy = "resize_small(40)|keras_cv.ChannelShuffle|central_crop"
    with pytest.raises(ValueError, match="ChannelShuffle") as caught:
        policy_lib.parse(policy, 32)
    assert "after resize" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keras_cv.RandAugment", "does not mix images"),
        ("flip", "does not mix images"),
        ("keras_cv.CutMix(alpha=0)", "alpha must be positive"),
        ("keras_cv.CutMix(alpha='a')", "keras_cv.CutMix takes alpha"),
        ("keras_cv.MixUp(beta=1)", "no argument 'beta'"),
        ("keras.MixUp(alpha=0.0)", "alpha must be positive"),
        ("keras.CutMix(factor=2.0)", "keras.CutMix takes factor"),
        ("keras.FourierMix", "keras has no layer 'FourierMix'"),
    ],
)
def test_errors_of_mixing(text, message):
    with pytest.raises(ValueError, match=message):
        keras_layers.make_mixing([text], 36)


def test_policies_without_its_layers_do_not_import_keras_cv(monkeypatch):
    for name in ("keras_cv", "keras_cv.layers"):
        monkeypatch.setitem(sys.modules, name, None)
    keras_layers.image_step.cache_clear()
    policy = "inception_crop|flip|randaugment(2, 15)|keras.RandomFlip"
    policy_lib.parse(policy, 32)
    policy_lib.split("keras_cv.CutMix")
    with pytest.raises(ImportError):
        policy_lib.parse("keras_cv.RandomFlip", 32)
