import numpy as np
import pytest
import tensorflow as tf

from keras_mixer.data.augment import (
    images,
    policy as policy_lib,
    randaugment,
)


def ramp(height, width):
    """An image whose every pixel tells where it came from."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows + columns], -1).astype(np.uint8)


def both_modes(policy, image, side, seed):
    """Applies a policy eagerly and inside tf.data; they must agree."""
    apply = policy_lib.parse(policy, side)
    seed = tf.constant(seed, tf.int64)
    eager = apply(tf.constant(image), seed).numpy()
    dataset = tf.data.Dataset.from_tensors(tf.constant(image))
    graph = next(iter(dataset.map(lambda x: apply(x, seed)))).numpy()
    np.testing.assert_array_equal(eager, graph)
    return eager


def test_resize_is_the_identity_at_the_same_size():
    image = ramp(8, 8)
    np.testing.assert_array_equal(both_modes("resize", image, 8, (0, 0)), image)


def test_resize_halves_by_sampling_the_middle():
    # Bilinear without antialiasing: out[i] lies between in[2i] and in[2i + 1].
    image = (ramp(8, 8) * 10).astype(np.uint8)
    got = both_modes("resize", image, 4, (0, 0))
    np.testing.assert_array_equal(
        got[..., 0], np.arange(4)[:, None] * 20 + 5 + np.zeros((1, 4), int)
    )


def test_resize_small_keeps_the_aspect_ratio_and_the_crop_its_middle():
    image = ramp(20, 40)
    got = both_modes("resize_small(10)|central_crop", image, 8, (0, 0))
    # Area resizing by 2 averages pairs: row i is the mean of 2i and 2i + 1,
    # truncated. The 10 x 20 image is cut at (1, 6).
    want = np.stack(np.mgrid[1:9, 6:14] * 2, -1)
    np.testing.assert_array_equal(got[..., :2], want)


def interpolation(length, size):
    """`[size, length]`: bilinear weights, without antialiasing."""
    middle = (np.arange(size) + 0.5) * length / size - 0.5
    weights = np.zeros((size, length))
    for row, position in zip(weights, middle, strict=True):
        low = int(np.floor(position))
        row[np.clip(low, 0, length - 1)] += 1 - (position - low)
        row[np.clip(low + 1, 0, length - 1)] += position - low
    return weights


def average(length, size):
    """`[size, length]`: the share that each pixel has in the new one's area."""
    edges = np.arange(size + 1) * length / size
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1)
    overlap = overlap - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) * size / length


@pytest.mark.parametrize(
    ("policy", "weights", "shape"),
    [
        ("resize", interpolation, (24, 24)),
        ("resize_small(30)|central_crop", average, (30, 40)),
        ("resize_small(90)|central_crop", average, (90, 120)),
    ],
)
def test_resizing_against_its_definition(
    policy, weights, shape, imagenet_files
):
    """On a photograph of 4 : 3, made smaller and larger."""
    image = tf.io.decode_jpeg(tf.io.read_file(str(imagenet_files[1])))
    image = image[:75, 90:190].numpy()  # [75, 100, 3]
    got = both_modes(policy, image, 24, (0, 0))
    rows, columns = weights(75, shape[0]), weights(100, shape[1])
    want = np.einsum("yh,hwc,xw->yxc", rows, image.astype(float), columns)
    top, left = (shape[0] - 24) // 2, (shape[1] - 24) // 2
    want = want[top : top + 24, left : left + 24]
    # Truncated: floats just below a whole number become the one before.
    whole = np.abs(want - want.round()) < 1e-3
    assert whole.mean() < 0.5
    np.testing.assert_array_equal(got[~whole], np.floor(want[~whole]))
    below = want.round() - got
    assert set(below[whole]) <= {0, 1}


@pytest.mark.parametrize("method", ["resize", "resize_small(37)|central_crop"])
def test_resizing_keeps_white_white_and_black_black(method):
    """Sums of shares, which floats round: 255.01 may not become another."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(37, 1000, 2)
        apply = policy_lib.parse(method, 37)
        for value in (0, 255):
            image = tf.fill([height, width, 3], tf.constant(value, tf.uint8))
            got = apply(image, tf.constant((0, 0), tf.int64)).numpy()
            # Truncated: 254.9999 is one below.
            assert set(np.unique(got)) <= {value, max(value - 1, 0)}


def test_flip_mirrors_half_of_the_images():
    image = ramp(4, 6)[:, :4]
    mirrored = 0
    for i in range(200):
        got = (
            both_modes("flip", image, 4, (3, i))
            if i < 5
            else (
                policy_lib.parse("flip", 4)(
                    tf.constant(image), tf.constant((3, i), tf.int64)
                ).numpy()
            )
        )
        if np.array_equal(got, image[:, ::-1]):
            mirrored += 1
        else:
            np.testing.assert_array_equal(got, image)
    assert 70 < mirrored < 130  # 4 standard deviations


def test_pad_crop_shifts_and_shows_black():
    image = ramp(6, 6) + 1
    shifts = set()
    eager = policy_lib.parse("pad_crop(1)", 6, source_size=6)
    for i in range(60):
        if i < 3:
            got = both_modes("resize|pad_crop(1)", image, 6, (0, i))
        else:
            seed = tf.constant((0, i), tf.int64)
            got = eager(tf.constant(image), seed).numpy()
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        found = [
            (y, x)
            for y in range(3)
            for x in range(3)
            if np.array_equal(padded[y : y + 6, x : x + 6], got)
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) == 9


def test_inception_crop_boxes():
    """Area 5 to 100 percent, aspect ratio 3/4 to 4/3, as in the reference."""
    image = ramp(200, 200)
    areas, ratios = [], []
    for i in range(300):
        seed = tf.constant((1, i), tf.int64)
        crop = images.inception_crop(tf.constant(image), seed, 64).numpy()
        # The ramp's slope tells the size of the box, within a pixel or two.
        rows = (int(crop[-1, 0, 0]) - int(crop[0, 0, 0])) * 64 / 63
        columns = (int(crop[0, -1, 1]) - int(crop[0, 0, 1])) * 64 / 63
        areas.append(rows * columns / 200**2)
        ratios.append(columns / rows)
    assert 0.03 < min(areas) < 0.12
    assert 0.8 < max(areas) <= 1.05
    assert 0.68 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.45
    both_modes("inception_crop|flip", image, 32, (1, 2))


def test_the_seed_alone_decides():
    image = ramp(50, 60)
    policy = "inception_crop|flip|pad_crop(2)"
    first = both_modes(policy, image, 32, (5, 6))
    np.testing.assert_array_equal(both_modes(policy, image, 32, (5, 6)), first)
    assert not np.array_equal(both_modes(policy, image, 32, (5, 7)), first)
    assert not np.array_equal(both_modes(policy, image, 32, (6, 6)), first)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("", "Unknown step ''"),
        ("rotate", r"Unknown step 'rotate'.*resize\(side\), resize_small"),
        ("flip|", "Unknown step ''"),
        ("flip(3)", r"Cannot use 'flip\(3\)'.*takes no number"),
        ("pad_crop(x)", "padding is a whole number from 1 to"),
        ("pad_crop(-1)", "padding is a whole number from 1 to"),
        ("resize(3.5)", "side is a whole number from 1 to 10000"),
        ("resize(9)", "leaves images of 9 x 9 pixels"),
        ("resize(7)|central_crop", "8 x 8 pixels out of .* has 7"),
        ("resize_small(7)|central_crop", "8 x 8 pixels out of .* has 7"),
        ("inception_crop(101)", "area_min is a whole number from 1 to 100"),
        ("inception_crop(,5)", "area_min is a whole number"),
        ("resize_small", r"written resize_small\(side\)"),
        ("pad_crop(1, 2)", r"written pad_crop\(padding\)"),
        ("flip()", "takes no number"),
        ("randaugment", r"written randaugment\(layers, magnitude\)"),
        ("randaugment(2)", "layers is a whole number from 1 to 10 and magn"),
        ("randaugment(0, 15)", "layers is a whole number from 1 to 10"),
        ("randaugment(2, 31)", "magnitude is a whole number from 0 to 30"),
        ("randaugment(2, 15, 1)", r"\(layers, magnitude\)"),
        ("randaugment(2, 1.5)", "magnitude is a whole number from 0 to 30"),
        ("resize_small(9)", "End it with central_crop"),
        ("central_crop|resize_small(9)|flip", "End it with central_crop"),
    ],
)
def test_policies_that_cannot_be_read(policy, message):
    with pytest.raises(ValueError, match=message):
        policy_lib.parse(policy, 8)


# What gives an image in another way with another seed.
RANDOM = (
    "flip",
    "pad_crop(2)",
    "inception_crop",
    "inception_crop(100)",
    "randaugment(2, 15)",
    "randaugment_pil(2, 15)",
    "keras_cv.RandomFlip",
    "keras.RandomBrightness(factor=0.2)",
)
FIXED = (
    "resize",
    "resize(16)|central_crop",
    "resize_small(12)|central_crop",
    "resize|shuffle_pixels(3)",
    "resize|keras_cv.Grayscale(output_channels=3)",
    "resize(8)|keras.CenterCrop(height=8, width=8)|resize",
)


@pytest.mark.parametrize("step", RANDOM)
def test_evaluation_policies_draw_nothing(step):
    policy = f"resize|{step}"
    policy_lib.parse(policy, 8)
    with pytest.raises(ValueError) as caught:
        policy_lib.parse(policy, 8, evaluation=True)
    message = str(caught.value)
    for part in (repr(step.partition("(")[0])[:-1], policy, "resize(side)"):
        assert part in message
    assert "random" in message and "\n" not in message


@pytest.mark.parametrize("policy", FIXED)
def test_fixed_policies_are_for_evaluation(policy):
    apply = policy_lib.parse(policy, 8, evaluation=True)
    image = tf.random.stateless_uniform([9, 20, 3], (1, 2), 0, 256, tf.int32)
    image = tf.cast(image, tf.uint8)
    first, second = (apply(image, (seed, 1)) for seed in (3, 4))
    np.testing.assert_array_equal(first, second)


def test_every_step_says_whether_it_draws():
    """The oracle: whether twenty seeds give different images."""
    image = tf.random.stateless_uniform([12, 12, 3], (1, 2), 0, 256, tf.int32)
    image = tf.cast(image, tf.uint8)
    for name, step in policy_lib._STEPS.items():
        numbers = [8] * (step.sized + (not step.optional) * len(step.numbers))
        seen = {
            step.function(image, (seed, 7), *numbers).numpy().tobytes()
            for seed in range(20)
        }
        assert step.draws == (len(seen) > 1), name


def test_randaugment_in_a_policy():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for name in ("randaugment", "randaugment_pil"):
        apply = policy_lib.parse(f"{name}( 2,15 )", 40)
        got = apply(tf.constant(image), tf.constant((1, 2), tf.int64))
        # The policy's own resize does nothing here and takes the first seed.
        seeds = tf.random.experimental.stateless_split(
            tf.constant((1, 2), tf.int64), 2
        )
        want = randaugment.randaugment(
            tf.constant(image), seeds[1], 2, 15, pil=name.endswith("pil")
        )
        np.testing.assert_array_equal(got, want)


def test_randaugment_pil_is_another_step():
    image = tf.zeros([40, 40, 3], tf.uint8)
    paper, pil = (
        policy_lib.parse(f"{name}(1, 10)", 40, source_size=40)
        for name in ("randaugment", "randaugment_pil")
    )
    seeds = [tf.constant((0, i), tf.int64) for i in range(80)]
    same = [np.array_equal(paper(image, s), pil(image, s)) for s in seeds]
    # Of black only Solarize differs, which is drawn one time in 16.
    assert 0 < same.count(False) < 15


def test_a_policy_without_a_size_begins_with_a_resize():
    image = ramp(8, 8)
    want = both_modes("resize", image, 4, (0, 0))
    got = both_modes("flip", image, 4, (0, 3))
    assert any(np.array_equal(got, w) for w in (want, want[:, ::-1]))
    apply = policy_lib.parse("flip", 4, source_size=8)
    again = apply(tf.constant(image), tf.constant((0, 3), tf.int64))
    np.testing.assert_array_equal(again, got)


def test_images_of_the_models_size_are_not_resized(monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(tf.image, "resize", fail)
    apply = policy_lib.parse("pad_crop(1)|flip", 8, source_size=8)
    apply(tf.constant(ramp(8, 8)), tf.constant((0, 3), tf.int64))


@pytest.mark.parametrize("shape", [(30, 40), (37, 148), (149, 38), (7, 7)])
def test_cutting_ends_leaves_ordinary_images_alone(shape):
    image = tf.random.stateless_uniform([*shape, 3], (1, 2), 0, 256, tf.int32)
    image = tf.cast(image, tf.uint8)
    both = [
        images.resize_small(image, (0, 0), 16, cropped=cropped)
        for cropped in (False, True)
    ]
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("length", [5000, 4999])
@pytest.mark.parametrize("upright", [False, True])
def test_a_strip_takes_no_more_than_its_middle(length, upright):
    """Once 5.4 GB for a file of 105 bytes."""
    strip = np.zeros((1, length, 3), np.uint8)
    strip[:, length // 2 - 1 : length // 2 + 2] = 200
    if upright:
        strip = strip.transpose(1, 0, 2)
    policy = "resize_small(256)|central_crop"
    crop = policy_lib.parse(policy, 224, evaluation=True)(strip, (0, 0))
    assert crop.shape == (224, 224, 3)
    np.testing.assert_array_equal(crop, 200)
    cut = images.resize_small(strip, (0, 0), 256, cropped=True)
    assert max(cut.shape) <= 5 * 256


def test_an_image_that_would_take_gigabytes_is_broken():
    strip = np.zeros((1, 5000, 3), np.uint8)
    apply = policy_lib.parse("resize_small(256)|resize", 224)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too long"):
        apply(strip, (0, 0))
