import dataclasses
import functools
import inspect
import itertools

import keras
import numpy as np
import pytest

import keras_mixer
from keras_mixer import models
from keras_mixer.models import mixer
from keras_mixer.weights import parameters
from tests import reference

# PAPER: Table 1; parameters with a head of 1000 classes at 224 x 224.
PARAMETERS = {
    "S/32": 19_104_624,
    "S/16": 18_528_264,
    "S/8": 20_646_504,
    "B/32": 60_293_428,
    "B/16": 59_880_472,
    "L/32": 206_939_264,
    "L/16": 208_196_168,
    "H/14": 432_350_952,
}
SMALL = models.Variant(4, 2, 24, 12, 48)


def factory(variant):
    return getattr(keras_mixer, "Mixer" + variant.replace("/", ""))


def test_no_variant_is_left_untested():
    assert set(PARAMETERS) == set(models.VARIANTS)
    exported = {
        name
        for name in keras_mixer.__all__
        if name.startswith("Mixer")
        and name[5:6] in "SBLH"
        and name[6:].isdigit()
    }
    assert exported == {"Mixer" + v.replace("/", "") for v in PARAMETERS}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameters_of_the_full_model(variant):
    """The count of the paper. The weights are not made."""
    with keras.StatelessScope(initialize_variables=False):
        model = factory(variant)()
    assert model.count_params() == PARAMETERS[variant]


@pytest.mark.parametrize(
    "variant",
    [
        "S/32",
        *(
            pytest.param(v, marks=pytest.mark.slow)
            for v in ("S/8", "B/16", "L/32", "H/14")
        ),
    ],
)
def test_logits_of_the_full_model(variant):
    """They equal those of NumPy in float64."""
    model = factory(variant)(classifier_activation=None)
    weights = reference.random_weights(model)
    assert len(weights) == len(model.weights)
    images = reference.random_images(1, 224, 224, 3)
    want = reference.forward(images, weights)
    assert np.ptp(want) > 0.1
    assert reference.relative_error(model(images), want) <= 1e-5


def test_variable_paths_are_the_checkpoints_keys():
    model = models.Mixer(SMALL, input_shape=(8, 8, 3))
    want = ["stem/kernel", "stem/bias"]
    for i in range(2):
        block = f"MixerBlock_{i}"
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            want += [f"{block}/{norm}/scale", f"{block}/{norm}/bias"]
        for mlp in ("token_mixing", "channel_mixing"):
            for dense in ("Dense_0", "Dense_1"):
                want += [
                    f"{block}/{mlp}/{dense}/kernel",
                    f"{block}/{mlp}/{dense}/bias",
                ]
    want += ["pre_head_layer_norm/scale", "pre_head_layer_norm/bias"]
    want += ["head/kernel", "head/bias"]
    paths = [reference.checkpoint_key(v.path) for v in model.weights]
    assert sorted(paths) == sorted(want)


def test_initial_weights_follow_flax():
    keras.utils.set_random_seed(0)
    dims = models.Variant(16, 2, 512, 256, 1024)
    model = models.Mixer(dims, input_shape=(64, 64, 3))
    for v in model.weights:
        values = np.asarray(v)
        if v.path == "head/kernel" or v.path.endswith(("bias", "beta")):
            assert (values == 0).all(), v.path
        elif v.path.endswith("gamma"):
            assert (values == 1).all(), v.path
        else:
            fan_in = np.prod(values.shape[:-1])
            assert values.std() == pytest.approx(fan_in**-0.5, rel=0.05)


def test_signature_is_that_of_keras_applications():
    # The arguments that every model of keras.applications takes.
    theirs = inspect.signature(keras.applications.ResNet50).parameters
    ours = inspect.signature(keras_mixer.MixerB16).parameters
    assert list(ours)[:7] == list(theirs)[:7]
    for name in list(theirs)[:7]:
        if name not in ("weights", "classes"):
            assert ours[name].default == theirs[name].default, name
    assert ours["weights"].default is None
    assert ours["classes"].default is None
    assert ours["name"].default == "mixer_b16"


def test_without_top():
    options = {"input_shape": (8, 12, 3), "include_top": False}
    tokens = models.Mixer(SMALL, **options)
    mean = models.Mixer(SMALL, pooling="avg", **options)
    largest = models.Mixer(SMALL, pooling="max", **options)
    weights = tokens.get_weights()
    for model in (mean, largest):
        model.set_weights(weights)
    x = reference.random_images(3, 8, 12, 3)
    y = np.asarray(tokens(x))
    assert y.shape == (3, 6, 24)
    np.testing.assert_allclose(mean(x), y.mean(1), atol=1e-6)
    np.testing.assert_allclose(largest(x), y.max(1), atol=1e-6)


def test_exact_gelu_is_an_option():
    model = models.Mixer(
        SMALL,
        input_shape=(8, 8, 3),
        classifier_activation=None,
        gelu_approximate=False,
    )
    weights = reference.random_weights(model)
    x = reference.random_images(2, 8, 8, 3)
    got = model(x)
    exact = reference.forward(x, weights, exact=True)
    tanh = reference.forward(x, weights, exact=False)
    assert reference.relative_error(got, exact) < 1e-5
    assert reference.relative_error(got, tanh) > 1e-5


def test_stochastic_depth_is_linear_in_depth():
    variant = models.Variant(4, 5, 8, 4, 8)
    model = models.Mixer(variant, input_shape=(8, 8, 3), stoch_depth=0.2)
    rates = [model.get_layer(f"MixerBlock_{i}").stoch_depth for i in range(5)]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2])
    one = models.Mixer(
        models.Variant(4, 1, 8, 4, 8), input_shape=(8, 8, 3), stoch_depth=0.2
    )
    assert one.get_layer("MixerBlock_0").stoch_depth == 0.0


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_half_precision_ends_in_float32(policy):
    model = models.Mixer(SMALL, input_shape=(8, 8, 3), classes=5, dtype=policy)
    assert model.get_layer("MixerBlock_1").compute_dtype == "bfloat16"
    assert model.get_layer("MixerBlock_1").token_mixing.compute_dtype == (
        "bfloat16"
    )
    weights = reference.random_weights(model)
    x = reference.random_images(4, 8, 8, 3)
    y = model(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    np.testing.assert_allclose(np.asarray(y).sum(-1), 1, atol=1e-6)
    logits = reference.forward(x, weights)
    want = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(y, want, atol=0.03)
    if policy == "mixed_bfloat16":
        assert {v.dtype for v in model.weights} == {"float32"}


def test_global_mixed_precision_is_followed():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.Mixer(SMALL, input_shape=(8, 8, 3))
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("stem").compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"


def test_input_tensor_joins_a_larger_model():
    image = keras.Input((16, 16, 3))
    scaled = keras.layers.Resizing(8, 8)(image)
    model = models.Mixer(SMALL, input_tensor=scaled, classes=3)
    assert model.input_shape == (None, 16, 16, 3)
    assert model(np.zeros((2, 16, 16, 3), np.float32)).shape == (2, 3)


def test_keras_round_trip_clone_and_config(tmp_path):
    model = models.Mixer(
        SMALL,
        input_shape=(8, 8, 3),
        dropout=0.1,
        stoch_depth=0.1,
        stoch_depth_rescale=True,
        gelu_approximate=False,
        head_bias_init=-2.0,
    )
    reference.random_weights(model)
    x = reference.random_images(2, 8, 8, 3)
    want = np.asarray(model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), want)
    for copy in (
        keras.models.clone_model(model),
        type(model).from_config(model.get_config()),
    ):
        copy.set_weights(model.get_weights())
        np.testing.assert_array_equal(copy(x), want)
        block = copy.get_layer("MixerBlock_1")
        assert block.stoch_depth == 0.1
        assert block.stoch_depth_rescale
        assert not block.gelu_approximate


def _freeze(model):
    for layer in model.layers:
        layer.trainable = layer.name == "head"


def _freeze_a_part(model):
    model.get_layer("MixerBlock_0").token_mixing.trainable = False
    model.get_layer("MixerBlock_1").trainable = False
    model.get_layer("MixerBlock_1").norm_1.trainable = True


def _add_lora(model):
    dense = model.get_layer("MixerBlock_0").token_mixing.dense_0
    dense.enable_lora(2, lora_alpha=3)
    dense.lora_kernel_b.assign(np.ones(dense.lora_kernel_b.shape))


def _add_lora_everywhere(model):
    models.enable_lora(model, 2, alpha=3)


def _quantize(mode):
    return lambda model: model.quantize(mode)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize(
    ("change", "nested"),
    [
        *itertools.product((_freeze, _freeze_a_part, _add_lora), (False, True)),
        (_add_lora_everywhere, False),
        (_quantize("int8"), True),
        (_quantize("int4"), False),
        (_quantize("float8"), True),
        # Quantising takes seconds.
        pytest.param(_quantize("int8"), False, marks=pytest.mark.slow),
        pytest.param(_quantize("int4"), True, marks=pytest.mark.slow),
        pytest.param(_quantize("float8"), False, marks=pytest.mark.slow),
    ],
)
def test_changed_sublayers_stay_changed(change, nested, tmp_path):
    """What trains, and the dtype policies, after a reload and in a copy."""
    model = models.Mixer(SMALL, input_shape=(8, 8, 3), classes=4)
    reference.random_weights(model)
    change(model)
    if nested:
        image = keras.Input((8, 8, 3))
        model = keras.Model(image, model(image))

    def state(model):
        trained = sorted(v.path for v in model.trainable_variables)
        layers = [x for x in model._flatten_layers() if x.weights]
        return trained, [(x.dtype_policy.name, x.trainable) for x in layers]

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = reference.random_images(2, 8, 8, 3)
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-6)
    for copy in (
        loaded,
        keras.models.clone_model(model),
        type(model).from_config(model.get_config()),
    ):
        assert state(copy) == state(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_int8_changes_logits_little():
    model = models.Mixer(
        SMALL, input_shape=(8, 8, 3), classes=4, classifier_activation=None
    )
    reference.random_weights(model)
    x = reference.random_images(8, 8, 8, 3)
    before = np.asarray(model(x))
    model.quantize("int8")
    change = np.asarray(model(x)) - before
    assert 0 < np.sqrt(np.mean(change**2)) < 0.05 * before.std()


@pytest.mark.parametrize(
    "variant",
    [
        models.Variant(16, 1, 64, 32, 128),
        pytest.param("S/16", marks=pytest.mark.slow),
    ],
    ids=["small", "S/16"],
)
def test_fit_save_load_evaluate(variant, tmp_path):
    """The plain Keras use of docs/models.md, on data that can be learnt."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 64)
    pixels = rng.integers(0, 60, (64, 32, 32, 3)) + labels[:, None, None, None]
    pixels[np.arange(64), labels * 3] = 255  # the label is a white row
    images = keras_mixer.preprocess_input(pixels.astype("uint8"))
    model = models.Mixer(variant, classes=10, input_shape=(32, 32, 3))
    model.compile(
        keras.optimizers.Adam(1e-3 if variant == "S/16" else 5e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile="auto" if variant == "S/16" else False,
    )
    before = model.evaluate(images, labels, verbose=0)
    # Batches of one size: each size is compiled.
    model.fit(images, labels, batch_size=32, epochs=15, verbose=0)
    after = model.evaluate(images, labels, verbose=0)
    assert before[0] == pytest.approx(np.log(10), rel=1e-5)  # zero head
    assert after[0] < before[0] / 2
    model.save(tmp_path / "mixer.keras")
    loaded = keras.models.load_model(tmp_path / "mixer.keras")
    again = loaded.evaluate(images, labels, verbose=0)
    np.testing.assert_allclose(again, after, rtol=1e-5)


def test_preprocess_input():
    pixels = np.array([[[[0, 255, 51]]]], np.uint8)
    got = keras_mixer.preprocess_input(pixels)
    np.testing.assert_allclose(got, [[[[-1, 1, -0.6]]]], atol=1e-6)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels.ravel(), [0, 255, 51])
    tensor = keras_mixer.preprocess_input(keras.ops.convert_to_tensor(pixels))
    np.testing.assert_allclose(tensor, got, atol=1e-6)
    with pytest.raises(ValueError, match="channels_first"):
        keras_mixer.preprocess_input(pixels, data_format="channels_first")


@pytest.mark.parametrize("low, high", [(0, 1), (-1, 1), (0, 0.5)])
def test_preprocess_input_warns_of_another_range(low, high):
    images = np.linspace(low, high, 48).reshape(1, 4, 4, 3)
    with pytest.warns(
        UserWarning, match="expects values of 0 to 255.*Received"
    ):
        keras_mixer.preprocess_input(images)
    # No warning, or the tests would fail.
    keras_mixer.preprocess_input(np.linspace(0, 255, 48).reshape(1, 4, 4, 3))
    keras_mixer.preprocess_input(np.zeros((1, 4, 4, 3)))


@pytest.mark.parametrize("value", ["cat.jpg", None, ["a", "b"]])
def test_preprocess_input_refuses_what_is_no_image(value):
    with pytest.raises(ValueError, match="array or tensor of images.*Received"):
        keras_mixer.preprocess_input(value)


def test_decode_predictions(monkeypatch):
    # Keras downloads this table; here it is put in its place.
    from keras.src.applications import imagenet_utils

    table = {str(i): (f"n{i:08d}", f"class_{i}") for i in range(1000)}
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", table)
    scores = np.zeros((2, 1000))
    scores[0, [7, 3]] = 0.6, 0.4
    scores[1, 999] = 1.0
    got = keras_mixer.decode_predictions(scores, top=2)
    assert [row[:2] for row in got[0]] == [
        ("n00000007", "class_7"),
        ("n00000003", "class_3"),
    ]
    assert got[1][0][1] == "class_999"
    with pytest.raises(ValueError, match="1000"):
        keras_mixer.decode_predictions(np.zeros((2, 10)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": (225, 224, 3)}, "multiple of the patch size, 16.*225"),
        ({"input_shape": (8, 8, 3)}, "nearest sides are 16 and 32"),
        ({"input_shape": (224, 224, 4)}, "3 channels.*224, 224, 4"),
        ({"input_shape": (3, 224, 224)}, "3 channels"),
        ({"input_shape": (224, 224)}, "height, width, channels"),
        ({"input_shape": (None, 224, 3)}, "must be fixed"),
        ({"weights": "imagenet"}, "Unknown weights 'imagenet'.*gsam"),
        ({"pooling": "mean", "include_top": False}, "pooling.*'mean'"),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "Keras tensor.*ndarray"),
        ({"classes": 0}, "classes must be a positive integer.*0"),
        ({"classes": "10"}, "classes must be a positive integer.*'10'"),
        ({"classes": 2.5}, "classes must be a positive integer.*2.5"),
        ({"classes": True}, "classes must be a positive integer.*True"),
        ({"in_channels": 0}, "in_channels must be a positive integer.*0"),
        ({"input_shape": 224}, "height, width, channels.*224"),
        ({"input_shape": "224"}, "height, width, channels.*'224'"),
        ({"input_shape": (224.0, 224, 3)}, "height, width, channels.*224.0"),
        ({"dropout": "a"}, r"dropout must be in \[0, 1\).*'a'"),
        ({"stoch_depth": 1.0}, r"stoch_depth must be in .*stoch_depth=1.0"),
        ({"stoch_depth": 1.5}, r"stoch_depth must be in .*stoch_depth=1.5"),
        ({"head_bias_init": "a"}, "head_bias_init must be a number.*'a'"),
        ({"include_top": "no"}, "include_top must be one of True, False.*'no'"),
        ({"name": 5}, "name must be a string.*5"),
    ],
)
def test_errors_name_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        keras_mixer.MixerS16(**options)


def test_numpy_integers_are_integers(tmp_path):
    side, three, classes = np.int64(8), np.int32(3), np.int64(5)
    model = models.Mixer(
        models.Variant(*np.array([4, 1, 8, 4, 8])),
        input_shape=(side, side, three),
        classes=classes,
    )
    assert model.output_shape == (None, 5)
    model.save(tmp_path / "model.keras")


def test_other_channel_counts_when_asked_for():
    model = models.Mixer(SMALL, input_shape=(8, 8, 1), in_channels=1)
    assert model.input_shape == (None, 8, 8, 1)


def test_unknown_variant_names_the_nearest():
    with pytest.raises(ValueError, match=r"'B/61'.*'B/16'.*S/32, S/16"):
        models.Mixer("B/61")
    with pytest.raises(ValueError, match=r"'b/16'. Did you mean 'B/16'"):
        models.Mixer("b/16")
    with pytest.raises(ValueError, match="patches of 15"):
        models.Mixer(models.Variant(15, 1, 8, 4, 8))
    with pytest.raises(ValueError, match="hidden_dim must be a positive"):
        models.Variant(16, 1, 0, 4, 8)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (functools.partial(keras_mixer.Mixer, "S/32"), "Mixer"),
        (keras_mixer.MixerS32, "MixerS32"),
    ],
)
@pytest.mark.parametrize(
    ("argument", "near"), [("clases", "classes"), ("drop_out", "dropout")]
)
def test_an_unknown_argument_suggests_a_known_one(build, name, argument, near):
    with pytest.raises(TypeError) as caught:
        build(**{argument: 3})
    assert str(caught.value).startswith(
        f"{name}() has no argument {argument!r}. Did you mean {near!r}?"
    )


def test_inner_features():
    """The Keras way: a model that ends at another layer."""
    model = models.Mixer(SMALL, input_shape=(8, 8, 3), classes=5)
    norm, head = (model.get_layer(n) for n in ("pre_head_layer_norm", "head"))
    head.kernel.assign(np.random.default_rng(0).normal(size=(24, 5)))
    x = reference.random_images(4, 8, 8, 3)
    names = ["stem", "tokens", "MixerBlock_0", "MixerBlock_1", "avg_pool"]
    inner = keras.Model(model.input, [model.get_layer(n).output for n in names])
    stem, tokens, first, last, pooled = map(np.asarray, inner(x))
    assert stem.shape == (4, 2, 2, SMALL.hidden_dim)
    np.testing.assert_array_equal(tokens, stem.reshape(4, 4, -1))
    assert first.shape == last.shape == tokens.shape
    norm, head = model.get_layer("pre_head_layer_norm"), model.get_layer("head")
    np.testing.assert_allclose(
        np.asarray(norm(last)).mean(1), pooled, atol=1e-5
    )
    np.testing.assert_allclose(head(pooled), model(x), atol=1e-5)


def test_linear_probing_of_a_block():
    """Stripes and checks in random colours have different inner features."""
    model = models.Mixer(SMALL, input_shape=(8, 8, 3), classes=5)
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    rows, columns = np.indices((8, 8))
    patterns = np.stack([rows % 2, (rows + columns) % 2])[labels]
    images = patterns[..., None] * rng.uniform(0.5, 1, (60, 1, 1, 3))
    block = model.get_layer("MixerBlock_0").output
    features = keras.Model(
        model.input, keras.layers.GlobalAveragePooling1D()(block)
    ).predict(images, verbose=0)
    accuracy = keras_mixer.fewshot.accuracy(
        features[:40],
        labels[:40],
        features[40:],
        labels[40:],
        num_classes=2,
        shots=10,
    )
    assert accuracy == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": (16, 8)}, r"square patches.*patch_size=\(16, 8\)"),
        ({"hidden_dim": 3}, "belongs to the variant.*hidden_dim=3"),
        ({"outputs": ["tokens"]}, "no argument 'outputs'.*gelu_approximate"),
    ],
)
def test_what_is_no_argument_of_a_model(options, message):
    with pytest.raises(TypeError, match=message):
        keras_mixer.MixerB16(**options)


def test_patches_are_square():
    with pytest.raises(ValueError, match=r"are square. Received: \(4, 8\)"):
        models.Variant((4, 8), 1, 8, 8, 8)
    model = models.Mixer(SMALL, input_shape=(8, 24, 3), classes=5)  # images not
    assert model.get_layer("tokens").output.shape == (None, 12, 24)


def test_the_most_patches():
    shape = (4096, 4096, 3)
    assert mixer._image_shape(shape, None, 16, 3) == shape
    with pytest.raises(ValueError, match="65,792 patches of 16 x 16"):
        mixer._image_shape((4096, 4112, 3), None, 16, 3)


def test_a_kept_head_has_the_names_of_its_classes():
    options = {"input_shape": (8, 8, 3), "classes": 2}
    variant = models.Variant(4, 1, 8, 4, 16)
    values = parameters.from_model(models.Mixer(variant, **options), "a run")
    found = dataclasses.replace(values, class_names=("ant", "bee"))
    kept = models.Mixer(variant, weights=found, **options)
    assert kept.class_names == ("ant", "bee")
    fresh = models.Mixer(variant, weights=found, head="fresh", **options)
    assert getattr(fresh, "class_names", None) is None
