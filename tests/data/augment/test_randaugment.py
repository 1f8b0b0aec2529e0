"""RandAugment against the reference's formulas, PIL, and chance."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from keras_mixer.data.augment import randaugment
from tests.data.augment import randaugment_reference as reference

MAGNITUDES = range(31)
# Both ends, and both sides of where Solarize, Posterize and blends change.
DAILY = (0, 2, 5, 9, 10, 15, 22, 23, 30)
NAMES = tuple(randaugment.operations(0))
BLENDS = ("Color", "Contrast", "Sharpness")


def factor_of(magnitude):
    return magnitude / 10 * 1.8 + 0.1


@pytest.fixture
def noise():
    """Every value, odd sides, edges, and a channel that does not use 0..255."""
    image = np.random.default_rng(0).integers(0, 256, (33, 40, 3), np.uint8)
    image[..., 2] = image[..., 2] // 3 + 60
    image[10:20, 5:30] = (90, 200, 130)
    return image


@pytest.fixture
def photo(imagenet_files):
    image = tf.io.decode_jpeg(tf.io.read_file(str(imagenet_files[1])))
    return image[:230, 100:300].numpy()


def check_table(image, magnitudes):
    """Compares all operations with the reference, eagerly."""
    for magnitude in magnitudes:
        operations = randaugment.operations(magnitude)
        for name, operation in operations.items():
            for draws in ((0.2, 0.3, 0.9), (0.5, 0.99, 0.01)):
                draws = np.float32(draws)
                got = operation(tf.constant(image), tf.constant(draws)).numpy()
                want = reference.apply(name, image, magnitude, draws)
                assert got.dtype == np.uint8
                message = f"{name} at {magnitude}"
                if name in ("Rotate", "Color"):
                    # Floats of another order: sine and cosine, the grey
                    # image. Some pixel in 10 000 may tell.
                    differ = (got != want).any(-1)
                    assert differ.mean() <= 1e-4, message
                else:
                    np.testing.assert_array_equal(got, want, message)


def test_operations_equal_the_reference(noise, photo):
    check_table(noise, DAILY)
    check_table(photo, [15])


@pytest.mark.slow
def test_operations_equal_the_reference_at_all_magnitudes(noise, photo):
    check_table(noise, MAGNITUDES)
    check_table(photo, MAGNITUDES)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_one_value_has_no_contrast_to_stretch(value):
    image = tf.fill([9, 9, 3], tf.constant(value, tf.uint8))
    for name in ("AutoContrast", "Equalize", "Sharpness"):
        got = randaugment.operations(15)[name](image, tf.zeros([3]))
        np.testing.assert_array_equal(got, image, name)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 2), (3, 3)])
def test_small_images_keep_their_size(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    check_table(image, [0, 4, 15, 30])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("magnitude", "pil"),
    [(0, False), (7, False), (10, True), (15, False), (20, False), (30, True)],
)
def test_eager_is_graph(noise, magnitude, pil):
    image = tf.constant(noise)
    operations = randaugment.operations(magnitude, pil)

    def augment(number, draws):
        branches = [lambda f=f: f(image, draws) for f in operations.values()]
        return tf.switch_case(number, branches)

    for draws in ((0.7, 0.4, 0.6), (0.1, 0.99, 0.0)):
        draws = tf.constant(draws)
        dataset = tf.data.Dataset.from_tensor_slices(
            (tf.range(16), tf.tile(draws[None], [16, 1]))
        ).map(augment)
        for name, in_graph in zip(operations, dataset, strict=True):
            eager = operations[name](image, draws)
            np.testing.assert_array_equal(in_graph, eager, name)


@pytest.mark.parametrize(
    "size",
    [
        (33, 40),
        *(
            pytest.param(size, marks=pytest.mark.slow)
            for size in ((61, 80), (224, 224), (229, 199))
        ),
    ],
)
def test_rotations_are_the_same_in_a_graph(size):
    """To the pixel: graphs are optimized, and 45 degrees full of ties."""
    rng = np.random.default_rng(5)
    image = tf.constant(rng.integers(0, 256, (*size, 3), np.uint8))

    def known(angle):
        return randaugment.rotate(image, angle)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def angle_known(image):
        return randaugment.rotate(image, tf.constant(45.0))

    np.testing.assert_array_equal(angle_known(image), known(45.0))
    degrees = tf.range(-90.0, 91.0, 3.0)
    dataset = tf.data.Dataset.from_tensor_slices(degrees)
    unknown = tf.function(
        randaugment.rotate,
        input_signature=[
            tf.TensorSpec([None, None, 3], tf.uint8),
            tf.TensorSpec([], tf.float32),
        ],
    )
    for angle, in_graph in zip(degrees, dataset.map(known), strict=True):
        eager = known(angle)
        np.testing.assert_array_equal(in_graph, eager, str(angle))
        np.testing.assert_array_equal(unknown(image, angle), eager, str(angle))


def test_quirks_of_the_reference_by_their_numbers():
    """Figures of the paper's recipes, not formulas."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)

    def apply(name, magnitude, image=ramp, pil=False):
        operation = randaugment.operations(magnitude, pil)[name]
        return operation(tf.constant(image), tf.constant([0.9, 0.5, 0.5]))

    inverted = 255 - ramp
    for magnitude in (0, 10, 20, 30):
        np.testing.assert_array_equal(apply("Solarize", magnitude), inverted)
    at_128 = np.where(ramp < 128, ramp, inverted)
    for magnitude in (5, 15, 25):
        np.testing.assert_array_equal(apply("Solarize", magnitude), at_128)
    for magnitude in (10, 15, 20, 30):
        got = apply("Solarize", magnitude, pil=True)
        np.testing.assert_array_equal(got, ramp)

    bits = {0: 1, 2: 1, 3: 1, 5: 2, 10: 4, 15: 6, 20: 8, 22: 8, 23: 1, 30: 1}
    for magnitude, kept in bits.items():
        values = np.unique(apply("Posterize", magnitude))
        assert len(values) == 2**kept, magnitude
    assert len(np.unique(apply("Posterize", 30, pil=True))) == 256

    # 224 x 224 / 256 = 196: brighter than most photographs.
    image = np.full((224, 224, 3), 100, np.uint8)
    got = apply("Contrast", 15, image)  # 196 + 2.8 (100 - 196) < 0
    assert np.unique(got) == [0]
    got = apply("Contrast", 0, image)  # 196 + 0.1 (100 - 196) = 186.4
    assert np.unique(got) == [186]
    assert np.unique(apply("Contrast", 0, image, pil=True)) == [100]

    image = np.random.default_rng(2).integers(0, 256, (224, 224, 3), np.uint8)
    moved = apply("TranslateX", 15, image)
    np.testing.assert_array_equal(moved[:, :74], image[:, 150:])
    assert np.unique(moved[:, 74:]) == [128]
    moved = apply("TranslateY", 15, image)
    np.testing.assert_array_equal(moved[:74], image[150:])
    hole = np.array(apply("Cutout", 15, image))
    assert np.unique(hole[52:172, 52:172]) == [128]
    hole[52:172, 52:172] = image[52:172, 52:172]
    np.testing.assert_array_equal(hole, image)
    # 45 degrees, counterclockwise: the top of a cross' arm goes to the left.
    image = np.zeros((101, 101, 3), np.uint8)
    image[20, 50] = 255
    turned = apply("Rotate", 15, image).numpy()[..., 0]
    np.testing.assert_array_equal(
        np.argwhere(turned == 255).mean(0).round(), [29, 29]
    )
    # Row 40 of a shear by 0.45 comes from 18 pixels to the right.
    image = np.random.default_rng(3).integers(0, 256, (90, 90, 3), np.uint8)
    got = apply("ShearX", 15, image)
    np.testing.assert_array_equal(got[40, :72], image[40, 18:])
    got = apply("ShearY", 15, image)
    np.testing.assert_array_equal(got[:72, 40], image[18:, 40])


def test_affine_is_tensorflows_projective_transform(noise):
    """Also where the nearest of two pixels is a matter of rounding."""
    height, width, _ = noise.shape
    rng = np.random.default_rng(4)
    transforms = [
        (1, 0.5, 0, 0, 1, 0),
        (1, -0.5, 0, 0, 1, 0),
        (1, 0, 0.5, 0, 1, -0.5),
        (1, 0, -0.5, 0, 1, 0.5),
        (-1, 0, width - 1, 0, -1, height - 1),
        (0.5, 0, 0.25, 0, 0.5, 0.25),
        *rng.normal(0, 1, (40, 6)) * [1, 1, 20, 1, 1, 20],
    ]
    for transform in np.float32(transforms):
        a, b, c, d, e, f = transform
        want = tf.raw_ops.ImageProjectiveTransformV3(
            images=noise[None],
            transforms=[[a, b, -c, d, e, -f, 0, 0]],
            output_shape=[height, width],
            fill_value=128,
            interpolation="NEAREST",
            fill_mode="CONSTANT",
        )[0]
        got = randaugment.affine(tf.constant(noise), tuple(transform))
        np.testing.assert_array_equal(got, want, str(transform))


def pil_operations(magnitude):
    """What PIL has, with the half-pixel of the shears taken out."""
    level, factor = magnitude / 10, factor_of(magnitude)
    nearest = {
        "resample": Image.Resampling.NEAREST,
        "fillcolor": (128, 128, 128),
    }

    def affine(image, *matrix):
        method = Image.Transform.AFFINE
        return image.transform(image.size, method, matrix, **nearest)

    shear = level * 0.3
    return {
        "AutoContrast": ImageOps.autocontrast,
        "Equalize": ImageOps.equalize,
        "Invert": ImageOps.invert,
        "Rotate": lambda x: x.rotate(level * 30, **nearest),
        "Posterize": lambda x: ImageOps.posterize(
            x, min(max(int(level * 4), 1), 8)
        ),
        "Solarize": lambda x: ImageOps.solarize(x, int(level * 256)),
        "Color": lambda x: ImageEnhance.Color(x).enhance(factor),
        "Contrast": lambda x: ImageEnhance.Contrast(x).enhance(factor),
        "Brightness": lambda x: ImageEnhance.Brightness(x).enhance(factor),
        "Sharpness": lambda x: ImageEnhance.Sharpness(x).enhance(factor),
        "ShearX": lambda x: affine(x, 1, shear, -shear / 2, 0, 1, 0),
        "ShearY": lambda x: affine(x, 1, 0, 0, shear, 1, -shear / 2),
        "TranslateX": lambda x: affine(x, 1, 0, 10 * magnitude, 0, 1, 0),
        "TranslateY": lambda x: affine(x, 1, 0, 0, 0, 1, 10 * magnitude),
    }


def near_a_half(name, magnitude, shape):
    """Pixels halfway between two of the image, within PIL's fixed point."""
    level = magnitude / 10
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    if name == "Rotate":
        y, x = y - (shape[0] - 1) / 2, x - (shape[1] - 1) / 2
        sine, cosine = np.sin(level * np.pi / 6), np.cos(level * np.pi / 6)
        x, y = cosine * x - sine * y, sine * x + cosine * y
        y, x = y + (shape[0] - 1) / 2, x + (shape[1] - 1) / 2
    elif name == "ShearX":
        x = x + level * 0.3 * y
    else:
        y = y + level * 0.3 * x
    return (abs(x % 1 - 0.5) < 0.01) | (abs(y % 1 - 0.5) < 0.01)


@pytest.mark.parametrize(
    ("picture", "magnitude"),
    [
        pytest.param(
            picture,
            magnitude,
            marks=[]
            if magnitude in DAILY and (picture == "noise" or magnitude == 15)
            else [pytest.mark.slow],
        )
        for picture in ("noise", "photo")
        for magnitude in MAGNITUDES
    ],
)
def test_pil_agrees(picture, magnitude, request):
    """Within 2 levels up to 15; beyond, as the module's docstring says."""
    image = request.getfixturevalue(picture)
    operations = randaugment.operations(magnitude, pil=True)
    paper = randaugment.operations(magnitude)
    draws = tf.constant([0.9, 0.0, 0.0])
    differ_from_pil = []
    for name, function in pil_operations(magnitude).items():
        got = operations[name](tf.constant(image), draws).numpy()
        want = np.asarray(function(Image.fromarray(image)))
        distance = np.abs(got.astype(int) - want)
        if name in ("Rotate", "ShearX", "ShearY"):
            ties = near_a_half(name, magnitude, image.shape)
            assert not distance[~ties].any(), name
        elif name in BLENDS:
            bound = max(1, 1 + abs(1 - factor_of(magnitude)))
            assert distance.max() <= (2 if magnitude <= 15 else bound), name
        elif name == "AutoContrast":
            assert distance.max() <= 1
        else:
            assert distance.max() == 0, name
        ours = paper[name](tf.constant(image), draws).numpy()
        if np.abs(ours.astype(int) - want).max() > 2 and not (
            name in ("Rotate", "ShearX", "ShearY", *BLENDS)
            and (ours == got).all()
        ):
            differ_from_pil.append(name)
    # The quirks, and no operation more.
    quirks = []
    if magnitude >= 10:
        quirks.append("Solarize")
    if magnitude >= 23:
        quirks.append("Posterize")
    if magnitude != 5:  # factor 1
        quirks.append("Contrast")
    assert sorted(differ_from_pil) == sorted(quirks)


def is_uniform(numbers, classes):
    counts = np.bincount(numbers, minlength=classes)
    assert len(counts) == classes
    return stats.chisquare(counts).pvalue > 0.001


def test_operations_are_drawn_uniformly():
    seeds = tf.stack([tf.fill([20_000], 7), tf.range(20_000)], 1)
    chosen, draws = tf.vectorized_map(
        lambda seed: randaugment.draw(seed, 2), seeds
    )
    chosen, draws = chosen.numpy(), draws.numpy()
    assert is_uniform(chosen[:, 0], 16)
    assert is_uniform(chosen[:, 1], 16)
    # The layers do not depend on one another, nor do draws on the choice.
    assert is_uniform(chosen[:, 0] * 16 + chosen[:, 1], 256)
    signs = (draws[:, 0, 0] < 0.5).astype(int)
    assert is_uniform(chosen[:, 0] * 2 + signs, 32)
    squares = (draws[:, 0, 1:] * 8).astype(int)
    assert is_uniform(squares[:, 0] * 8 + squares[:, 1], 64)
    # The test can fail: one operation in 16 that is never or twice drawn.
    assert not is_uniform(np.minimum(chosen[:, 0], 14), 15)
    assert not is_uniform(np.where(chosen[:, 0] == 3, 4, chosen[:, 0]), 16)


def test_the_drawn_operations_are_applied_in_order(noise):
    operations = list(randaugment.operations(15).values())
    seen = set()
    for i in range(40):
        seed = tf.constant([i, 2**40 + i], tf.int64)
        chosen, draws = randaugment.draw(seed, 2)
        want = tf.constant(noise)
        for layer in range(2):
            want = operations[int(chosen[layer])](want, draws[layer])
        got = randaugment.randaugment(tf.constant(noise), seed, 2, 15)
        np.testing.assert_array_equal(got, want)
        seen |= set(chosen.numpy().tolist())
    assert len(seen) == 16


@pytest.mark.parametrize("layers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_same_seed_same_image_everywhere(noise, layers):
    # Large enough for a move by 150 pixels to leave something.
    image = tf.constant(np.tile(noise, (6, 5, 1)))

    def augment(seed):
        return randaugment.randaugment(image, seed, layers, 15)

    seeds = [(3, i) for i in range(30)]
    dataset = tf.data.Dataset.from_tensor_slices(
        tf.constant(seeds, tf.int64)
    ).map(augment, num_parallel_calls=4)
    distinct = set()
    for seed, in_data in zip(seeds, dataset, strict=True):
        seed = tf.constant(seed, tf.int64)
        eager = augment(seed).numpy()
        np.testing.assert_array_equal(in_data, eager)
        assert in_data.shape == image.shape
        distinct.add(eager.tobytes())
    assert len(distinct) > 10 * layers


def test_a_graph_does_not_inline_the_operations(noise):
    """tf.data would visit the nodes of all 16: a fifth of the time."""

    @tf.function
    def augment(seed):
        return randaugment.randaugment(tf.constant(noise), seed, 3, 15)

    graph = augment.get_concrete_function(tf.constant([0, 1])).graph
    cases = [op for op in graph.get_operations() if "Case" in op.type]
    assert len(cases) == 3
    for case in cases:
        assert len(case.get_attr("branches")) == 16
        assert "_lower_using_switch_merge" not in case.node_def.attr


def test_pil_switch_reaches_the_operations(noise):
    """Contrast, Solarize and Posterize differ at 25, all else is equal."""
    image = tf.constant(noise)
    paper, pil = (randaugment.operations(25, pil) for pil in (False, True))
    draws = tf.constant([0.1, 0.2, 0.3])
    differ = {
        name
        for name in NAMES
        if not np.array_equal(
            paper[name](image, draws), pil[name](image, draws)
        )
    }
    assert differ == {"Contrast", "Solarize", "Posterize"}
    chosen = {}
    for i in range(60):
        chosen[int(randaugment.draw((0, i), 1)[0][0])] = i
    seed = (0, chosen[NAMES.index("Posterize")])
    got = randaugment.randaugment(image, seed, 1, 25, pil=True)
    np.testing.assert_array_equal(got, noise)
