"""Checkpoint formats, their errors, and the change of resolution.

The oracles are the NumPy forward of tests/reference.py and the property of
the paper's App. C. Weights are random: none can be downloaded here.
"""

import dataclasses
import itertools
import pathlib
import zipfile

import keras
import numpy as np
import pytest

import keras_mixer
from keras_mixer import models, weights
from keras_mixer.weights import merged, resolution, timm_layout
from tests import reference

SMALL = models.Variant(4, 2, 24, 12, 48)
OPTIONS = {"input_shape": (8, 8, 3), "classifier_activation": None}
RELEASED = sorted({r.variant for r in weights.RELEASES})


def random_parameters(variant, *, side=224, classes=7, seed=0):
    """Returns random non-zero weights by key, without building a model."""
    rng = np.random.default_rng(seed)
    v, tokens = variant, variant.num_tokens(side, side)
    values = {}

    def dense(key, *shape):
        scale = int(np.prod(shape[:-1])) ** -0.5
        values[f"{key}/kernel"] = (
            rng.standard_normal(shape, np.float32) * scale
        ).astype(np.float32)
        bias = rng.standard_normal(shape[-1:], np.float32)
        values[f"{key}/bias"] = bias * np.float32(0.2)

    def norm(key):
        for leaf, mean in (("scale", 1), ("bias", 0)):
            value = rng.standard_normal(v.hidden_dim, np.float32)
            values[f"{key}/{leaf}"] = np.float32(0.2) * value + np.float32(mean)

    dense("stem", v.patch_size, v.patch_size, 3, v.hidden_dim)
    for i in range(v.num_blocks):
        key = f"MixerBlock_{i}"
        norm(f"{key}/LayerNorm_0")
        norm(f"{key}/LayerNorm_1")
        dense(f"{key}/token_mixing/Dense_0", tokens, v.tokens_mlp_dim)
        dense(f"{key}/token_mixing/Dense_1", v.tokens_mlp_dim, tokens)
        dense(f"{key}/channel_mixing/Dense_0", v.hidden_dim, v.channels_mlp_dim)
        dense(f"{key}/channel_mixing/Dense_1", v.channels_mlp_dim, v.hidden_dim)
    norm("pre_head_layer_norm")
    dense("head", v.hidden_dim, classes)
    return values


def legacy(values):
    """The older layout, with its axes of size 1, as PAPER.md lists it."""
    out = {}
    for key, value in values.items():
        key = key.replace("stem/", "embedding/")
        key = key.replace("MixerBlock_", "Mixer/encoderblock_")
        key = key.replace("pre_head_layer_norm", "Mixer/encoder_norm")
        for n in "01":
            for leaf in ("kernel", "bias"):
                key = key.replace(
                    f"_mixing/Dense_{n}/{leaf}",
                    f"_mixing_phase_0/{leaf}{int(n) + 1}",
                )
        out[key] = value[None, :, None] if "_phase_0" in key else value
    return out


def timm(values):
    """timm's names; kernels transposed, the convolution OIHW."""
    names = {
        "pre_head_layer_norm": "norm",
        "LayerNorm_0": "norm1",
        "LayerNorm_1": "norm2",
        "token_mixing": "mlp_tokens",
        "channel_mixing": "mlp_channels",
        "Dense_0": "fc1",
        "Dense_1": "fc2",
        "stem": "stem.proj",
        "kernel": "weight",
        "scale": "weight",
    }
    out = {}
    for key, value in values.items():
        parts = [names.get(p, p) for p in key.split("/")]
        name = ".".join(parts).replace("MixerBlock_", "blocks.")
        if value.ndim == 4:
            value = np.einsum("hwio->oihw", value)
        out[name] = np.ascontiguousarray(value.T if value.ndim == 2 else value)
    return out


def save_timm(values, path):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(timm(values), path)


@pytest.fixture
def small(tmp_path):
    """Random parameters of SMALL and their .npz file."""
    values = random_parameters(SMALL, side=8)
    path = tmp_path / "small.npz"
    np.savez(path, **values)
    return values, path


def full_size(variant, layout):
    return pytest.param(
        models.get_variant(variant),
        224,
        layout,
        id=f"{variant}-{layout}",
        marks=pytest.mark.slow,
    )


@pytest.mark.parametrize(
    ("dims", "side", "layout"),
    [
        pytest.param(SMALL, 8, "official", id="small-official"),
        pytest.param(SMALL, 8, "legacy", id="small-legacy"),
        *(full_size(variant, "official") for variant in RELEASED),
        full_size("B/16", "legacy"),
    ],
)
def test_round_trip(dims, side, layout, tmp_path):
    values = random_parameters(dims, side=side)
    path = tmp_path / "mixer.npz"
    np.savez(path, **(legacy(values) if layout == "legacy" else values))
    model = models.Mixer(
        dims,
        weights=path,
        input_shape=(side, side, 3),
        classifier_activation=None,
    )
    if layout == "official":  # back again, all bits
        path.unlink()
        weights.save_npz(model, path)
        with np.load(path) as file:
            assert set(file.files) == set(values)
            for key, value in values.items():
                np.testing.assert_array_equal(file[key], value)
    path.unlink()
    images = reference.random_images(1, side, side, 3)
    want = reference.forward(images, values)
    assert reference.relative_error(model(images), want) <= 1e-5


def test_timm_is_built_with_the_exact_gelu(small, tmp_path):
    values, _ = small
    path = tmp_path / "timm.safetensors"
    save_timm(values, path)
    model = models.Mixer(SMALL, weights=path, **OPTIONS)
    assert model.get_layer("MixerBlock_1").gelu_approximate is False
    x = reference.random_images(3, 8, 8, 3)
    exact = reference.forward(x, values, exact=True)
    tanh = reference.forward(x, values)
    assert reference.relative_error(model(x), exact) <= 1e-5
    assert reference.relative_error(tanh, exact) > 1e-5
    with pytest.warns(UserWarning, match="exact GELU"):
        model = models.Mixer(
            SMALL, weights=path, gelu_approximate=True, **OPTIONS
        )
    assert reference.relative_error(model(x), tanh) <= 1e-5
    with pytest.warns(UserWarning, match="tanh approximation"):
        weights.save_npz(
            models.Mixer(SMALL, weights=path, **OPTIONS), tmp_path / "a.npz"
        )


def test_saved_bytes_are_stable(small, tmp_path):
    _, path = small
    model = models.Mixer(SMALL, weights=path, **OPTIONS)
    first, second = tmp_path / "1.npz", tmp_path / "2.npz"
    weights.save_npz(model, first)
    weights.save_npz(
        models.Mixer(SMALL, weights=first, dtype="mixed_bfloat16", **OPTIONS),
        second,
    )
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.glob("*.tmp")) == []
    with pytest.raises(ValueError, match=r"\.npz.*model\.bin"):
        weights.save_npz(model, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="not a Mixer"):
        weights.save_npz(keras.Sequential([keras.Input((2,))]), first)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["S/32", "S/16", "B/16"])
@pytest.mark.parametrize("k", [2, 3])
def test_expansion_at_full_size_is_the_mean_over_crops(variant, k, tmp_path):
    """App. C: logits of the large image = mean of those of its crops."""
    values = random_parameters(models.get_variant(variant))
    path = tmp_path / "mixer.npz"
    np.savez(path, **values)
    side = 224 * k
    image = reference.random_images(1, side, side, 3)
    options = {"weights": path, "classifier_activation": None}
    model = models.Mixer(variant, input_shape=(side, side, 3), **options)
    got = np.asarray(model(image))
    block = model.get_layer("MixerBlock_0")
    dims = models.get_variant(variant)
    assert block.tokens_mlp_dim == dims.tokens_mlp_dim * k * k
    del model
    crops = image.reshape(k, 224, k, 224, 3).swapaxes(1, 2)
    want = models.Mixer(variant, **options)(crops.reshape(-1, 224, 224, 3))
    want = np.asarray(want).mean(0, keepdims=True)
    assert reference.relative_error(got, want) <= 1e-5


@pytest.mark.parametrize("factors", [(1, 2), (3, 1), (2, 2), (2, 3)])
def test_expansion_per_axis(small, factors, tmp_path):
    values, path = small
    height, width = 8 * factors[0], 8 * factors[1]
    image = reference.random_images(1, height, width, 3)
    model = models.Mixer(
        SMALL,
        weights=path,
        input_shape=(height, width, 3),
        classifier_activation=None,
    )
    crops = [
        image[:, y : y + 8, x : x + 8]
        for y, x in itertools.product(range(0, height, 8), range(0, width, 8))
    ]
    want = reference.forward(np.concatenate(crops), values).mean(0)[None]
    assert reference.relative_error(model(image), want) <= 1e-5
    found = weights.read(path)
    width_of_mlp = weights.resized_mlp_dim(
        found, (height // 4, width // 4), "expand", 4
    )
    block = model.get_layer("MixerBlock_0")
    assert block.tokens_mlp_dim == width_of_mlp
    assert width_of_mlp == SMALL.tokens_mlp_dim * factors[0] * factors[1]
    # What was expanded and saved loads again at its own size.
    weights.save_npz(model, tmp_path / "large.npz")
    if factors == (1, 2):  # 8 tokens are no square: taken as they are
        again = models.Mixer(
            SMALL,
            weights=tmp_path / "large.npz",
            input_shape=(height, width, 3),
            classifier_activation=None,
        )
        np.testing.assert_array_equal(again(image), model(image))


def test_an_expanded_file_loads_at_its_own_size(small, tmp_path):
    _, path = small
    options = {**OPTIONS, "input_shape": (16, 16, 3)}
    model = models.Mixer(SMALL, weights=path, **options)
    weights.save_npz(model, tmp_path / "large.npz")
    again = models.Mixer(SMALL, weights=tmp_path / "large.npz", **options)
    x = reference.random_images(2, 16, 16, 3)
    np.testing.assert_array_equal(again(x), model(x))


def test_as_many_patches_in_another_grid(small):
    """Weights of 2 x 2 patches do not fit 1 x 4, which are as many."""
    _, path = small
    options = {**OPTIONS, "input_shape": (4, 16, 3), "weights": path}
    with pytest.raises(ValueError, match="cannot be expanded to 4 x 16"):
        models.Mixer(SMALL, **options)


def test_resampling_is_asked_for(small):
    values, path = small
    options = {**OPTIONS, "input_shape": (12, 20, 3), "weights": path}
    with pytest.raises(
        ValueError, match=r"12 x 20.*one of 8, 16, 24.*resample"
    ):
        models.Mixer(SMALL, **options)
    model = models.Mixer(SMALL, resize_tokens="resample", **options)
    block = model.get_layer("MixerBlock_0")
    assert block.tokens_mlp_dim == SMALL.tokens_mlp_dim
    # A hidden unit sees a constant image as before: the sum of its weights.
    got = np.asarray(block.token_mixing.dense_0.kernel).sum(0)
    key = "MixerBlock_0/token_mixing/Dense_0/kernel"
    upsampled = weights.resize_tokens(
        weights.Parameters("x", values), (4, 4), method="resample"
    )
    np.testing.assert_allclose(
        upsampled.values[key].sum(0), values[key].sum(0), atol=1e-5
    )
    assert got.shape == (SMALL.tokens_mlp_dim,)
    assert np.isfinite(np.asarray(model(np.ones((1, 12, 20, 3))))).all()
    # Written out: columns of a 2 x 2 grid seen on a 2 x 4 grid.
    flat = np.arange(4.0, dtype=np.float32)[None]
    _, _, out, _ = resolution._resample(
        [flat.T, flat[0, :1], flat, flat[0]], (2, 2), (2, 4)
    )
    np.testing.assert_allclose(
        out, [[0, 0.25, 0.75, 1, 2, 2.25, 2.75, 3]], atol=1e-6
    )
    with pytest.raises(ValueError, match="'bicubic'"):
        models.Mixer(SMALL, resize_tokens="bicubic", **options)


def test_heads(small):
    values, path = small
    options = {**OPTIONS, "weights": path}
    x = reference.random_images(2, 8, 8, 3)
    want = reference.forward(x, values)
    for classes in (None, 7):
        model = models.Mixer(SMALL, classes=classes, **options)
        assert reference.relative_error(model(x), want) <= 1e-5
    with pytest.raises(ValueError, match="7 classes.*classes=10.*fresh"):
        models.Mixer(SMALL, classes=10, **options)
    fresh = models.Mixer(
        SMALL, classes=10, head="fresh", head_bias_init=-3.0, **options
    )
    np.testing.assert_array_equal(fresh(x), np.full((2, 10), -3.0))
    features = models.Mixer(SMALL, include_top=False, pooling="avg", **options)
    got = np.asarray(features(x)) @ values["head/kernel"] + values["head/bias"]
    assert reference.relative_error(got, want) <= 1e-5
    with pytest.raises(ValueError, match="'zero'"):
        models.Mixer(SMALL, head="zero", **options)


def test_keras_weights(small, tmp_path):
    _, path = small
    model = models.Mixer(SMALL, weights=path, **OPTIONS)
    file = tmp_path / "mixer.weights.h5"
    model.save_weights(file)
    x = reference.random_images(2, 8, 8, 3)
    again = models.Mixer(SMALL, weights=file, classes=7, **OPTIONS)
    np.testing.assert_array_equal(again(x), model(x))
    other = models.Mixer(SMALL, classes=9, **OPTIONS)
    before = other.get_weights()
    with pytest.raises(
        weights.WeightsError,
        match=r"Cannot load.*h5.*head/kernel is \(24, 7\).*not \(24, 9\)",
    ):
        weights.load_keras(other, file)
    same_weights(other, before)
    with pytest.raises(ValueError, match="save_npz"):
        models.Mixer(SMALL, weights=file, head="fresh", **OPTIONS)


def same_weights(model, before):
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


KERNEL = "MixerBlock_1/channel_mixing/Dense_0/kernel"


def _renamed(values):
    values["MixerBlock_1/oops"] = values.pop(KERNEL)


def _transposed(values):
    values[KERNEL] = values[KERNEL].T


def _nan(values):
    values[KERNEL] = values[KERNEL].copy()
    values[KERNEL][3, 4] = np.nan


def _pickled(values):
    values[KERNEL] = np.array([{"an": "object"}], dtype=object)


def _whole_numbers(values):
    values[KERNEL] = np.ones(values[KERNEL].shape, np.int32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_renamed, f"missing: {KERNEL}; not in the model: .*oops"),
        (_transposed, rf"wrong shape: {KERNEL} is \(48, 24\), not \(24, 48\)"),
        (_nan, f"{KERNEL} has 1 values that are not finite"),
        (_pickled, "Cannot read .*pickle"),
        (_whole_numbers, f"{KERNEL} has the type int32"),
    ],
)
def test_damage_is_one_clear_error(small, damage, message, tmp_path):
    values, _ = small
    damage(values)
    path = tmp_path / "damaged.npz"
    np.savez(path, **values)
    model = models.Mixer(SMALL, classes=7, **OPTIONS)
    before = model.get_weights()
    with pytest.raises(weights.WeightsError, match=message):
        weights.load(model, weights.read(path))
    same_weights(model, before)
    with pytest.raises(ValueError):
        models.Mixer(SMALL, weights=path, **OPTIONS)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [(10, 99, "compression"), (6, 99, "zip file version"), (8, 1, "encrypted")],
)
def test_a_zip_that_python_cannot_read(small, tmp_path, place, value, message):
    """`place` is in the central directory's entry of the first array."""
    path = tmp_path / "other.npz"
    data = bytearray(small[1].read_bytes())
    data[data.index(b"PK\x01\x02") + place] = value
    if place != 6:  # of the local header, too
        data[data.index(b"PK\x03\x04") + place - 2] = value
    path.write_bytes(data)
    with pytest.raises(weights.WeightsError, match=message):
        weights.read(path)


def test_an_archive_with_another_file_in_it(tmp_path):
    path = tmp_path / "other.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("stem/kernel.npy", b"no array")
    with pytest.raises(weights.WeightsError, match="stem/kernel.* is no array"):
        weights.read(path)


def test_files_that_are_no_weights(small, tmp_path):
    _, path = small
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(weights.WeightsError, match="Cannot read"):
            weights.read(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    path.write_bytes(flipped)
    with pytest.raises(weights.WeightsError, match="CRC-32"):
        weights.read(path)
    path.with_suffix(".safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(weights.WeightsError, match="Cannot read"):
        weights.read(path.with_suffix(".safetensors"))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(weights.WeightsError, match="no Mixer.*are a"):
        models.Mixer(SMALL, weights=tmp_path / "other.npz", **OPTIONS)
    with pytest.raises(weights.WeightsError, match="There is no file"):
        models.Mixer(SMALL, weights="missing.npz", **OPTIONS)
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(weights.WeightsError, match=r"\.npz, \.safetensors"):
        weights.read(tmp_path / "x.bin")


def test_the_wrong_variant_names_both(small):
    _, path = small
    for changed, message in (
        ({"num_blocks": 3}, "The file: 2 blocks.*The model: 3 blocks"),
        (
            {"tokens_mlp_dim": 5},
            " 4 tokens, tokens_mlp_dim 12.* 4 tokens, tokens_mlp_dim 5",
        ),
        ({"hidden_dim": 32}, "width 24.*width 32"),
    ):
        wrong = dataclasses.replace(SMALL, **changed)
        with pytest.raises(weights.WeightsError, match=message):
            models.Mixer(wrong, weights=path, **OPTIONS)


def test_names_of_timm_and_back(small):
    """As the tests write timm's layout, which they read from timm's code."""
    values, _ = small
    found, want = timm_layout.to_timm(values), timm(values)
    assert found.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(found[key], value)
    back = dict(timm_layout.from_timm(k, v) for k, v in found.items())
    assert back.keys() == values.keys()
    for key, value in values.items():
        np.testing.assert_array_equal(back[key], value)


def test_bfloat16_files(small, tmp_path):
    values, _ = small
    ml_dtypes = pytest.importorskip("ml_dtypes")
    halves = {k: v.astype(ml_dtypes.bfloat16) for k, v in values.items()}
    np.savez(tmp_path / "half.npz", **halves)
    model = models.Mixer(SMALL, weights=tmp_path / "half.npz", **OPTIONS)
    x = reference.random_images(2, 8, 8, 3)
    exact = {k: v.astype(np.float32) for k, v in halves.items()}
    want = reference.forward(x, exact)
    assert reference.relative_error(model(x), want) <= 1e-5


def test_bfloat16_safetensors(small, tmp_path):
    values, _ = small
    ml_dtypes = pytest.importorskip("ml_dtypes")
    halves = {k: v.astype(ml_dtypes.bfloat16) for k, v in values.items()}
    save_timm(halves, tmp_path / "half.safetensors")
    found = weights.read(tmp_path / "half.safetensors")
    for key, value in halves.items():
        assert found.values[key].dtype == np.float32
        np.testing.assert_array_equal(found.values[key], value)


def test_a_file_that_cannot_be_written_is_named(small, tmp_path):
    _, path = small
    model = models.Mixer(SMALL, weights=path, **OPTIONS)
    target = tmp_path / "missing" / "model.npz"
    with pytest.raises(
        weights.WeightsError, match="Cannot write .*/model.npz: N"
    ):
        weights.save_npz(model, target)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize(
    ("mode", "lora", "error"),
    [
        (None, True, 1e-5),
        pytest.param("int8", False, 0.05, marks=pytest.mark.slow),
        ("int8", True, 0.05),
        ("int4", False, 1e-5),
        ("float8", False, 0.1),
    ],
)
def test_npz_has_the_kernels_that_are_applied(
    small, mode, lora, error, tmp_path
):
    _, path = small
    model = models.Mixer(SMALL, weights=path, **OPTIONS)
    if mode:
        model.quantize(mode)
    mlp = model.get_layer("MixerBlock_1").channel_mixing
    layers = [mlp.dense_0, model.get_layer("head")]
    if mode is None:
        layers.append(model.get_layer("stem"))
    for layer in layers if lora else []:
        layer.enable_lora(2, lora_alpha=3)
        b = layer.lora_kernel_b
        b.assign(np.random.default_rng(0).normal(0, 0.2, b.shape))
    weights.save_npz(model, tmp_path / "saved.npz")
    again = models.Mixer(SMALL, weights=tmp_path / "saved.npz", **OPTIONS)
    x = reference.random_images(4, 8, 8, 3)
    assert reference.relative_error(again(x), model(x)) < error


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_kernels_that_cannot_be_merged_are_refused(small, tmp_path):
    _, path = small
    model = models.Mixer(SMALL, weights=path, **OPTIONS)
    model.quantize("int4")
    model.get_layer("head").enable_lora(2)
    with pytest.raises(ValueError, match="'head'.*int4 and LoRA"):
        weights.save_npz(model, tmp_path / "saved.npz")
    assert not (tmp_path / "saved.npz").exists()


def test_the_factors_of_a_run_are_merged():
    rng = np.random.default_rng(0)
    kernel, a, b = (rng.standard_normal(s) for s in ((4, 6), (4, 2), (2, 6)))
    values = {
        "one/kernel": kernel,
        "one/bias": b[0],
        "one/lora_kernel_a": a,
        "one/lora_kernel_b": b,
        "two/kernel": kernel,
    }
    found = merged.merge_lora(values)
    assert list(found) == ["one/kernel", "one/bias", "two/kernel"]
    np.testing.assert_allclose(found["one/kernel"], kernel + a @ b)
    np.testing.assert_array_equal(found["two/kernel"], kernel)


def test_releases_are_those_of_the_bucket():
    """PAPER: the list of files in gs://mixer_models."""
    google = [r for r in weights.RELEASES if not r.hub]
    urls = {r.url.split("mixer_models/")[1] for r in google}
    want = {
        f"{name}/Mixer-{letter}_16.npz"
        for name in ("imagenet1k", "imagenet21k")
        for letter in "BL"
    }
    want |= {f"sam/Mixer-B_{patch}.npz" for patch in (16, 32)}
    want |= {
        f"gsam/Mixer-{v}.npz" for v in ("S_8", "S_16", "S_32", "B_16", "B_32")
    }
    assert urls == want
    for release in google:
        models.get_variant(release.variant)
        assert release.classes == (
            21843 if release.name == "imagenet21k" else 1000
        )


def test_one_mixer_at_a_time(small):
    _, path = small
    image = keras.Input((8, 8, 3))
    two = [
        models.Mixer(SMALL, input_shape=(8, 8, 3), name=name)
        for name in ("a", "b")
    ]
    both = keras.Model(image, two[0](image) + two[1](image))
    with pytest.raises(ValueError, match="twice"):
        weights.load(both, weights.read(path))


def test_options_are_checked_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(weights, "get", lambda *_: pytest.fail("read"))
    for options, message in (
        ({"head": "zero"}, "head.*'keep', 'fresh'.*'zero'"),
        ({"classes": 0}, "classes must be a positive integer"),
        ({"resize_tokens": "bicubic"}, "'resample'.*'bicubic'"),
        ({"input_shape": (225, 224, 3)}, "multiple of the patch size"),
    ):
        with pytest.raises(ValueError, match=message):
            keras_mixer.MixerB16(weights="imagenet1k", **options)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="Received: 5"):
        keras_mixer.MixerB16(weights=5)


def test_unknown_releases_name_what_there_is():
    with pytest.raises(ValueError, match=r"'sam'.*B/16, B/32.*S/16: gsam"):
        keras_mixer.MixerS16(weights="sam")
    with pytest.raises(ValueError, match="'imagenet1k'"):
        keras_mixer.MixerB16(weights="imagenet_1k")


@pytest.fixture
def fake_bucket(monkeypatch, tmp_path):
    """Keras' cache in a folder of the test, and downloads from a file."""
    folder = tmp_path / "home" / "models" / "keras_mixer"
    served = tmp_path / "served.npz"
    calls = []

    def get_file(fname, origin, cache_dir, cache_subdir):
        calls.append(origin)
        target = pathlib.Path(cache_dir, cache_subdir, fname)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(served.read_bytes())
        return str(target)

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    return served, folder, calls


def test_download_validates_before_it_renames(fake_bucket, monkeypatch):
    served, folder, calls = fake_bucket
    monkeypatch.setitem(models.VARIANTS, "S/32", SMALL)
    options = {"weights": "gsam", "input_shape": (8, 8, 3)}
    values = random_parameters(SMALL, side=8, classes=1000)
    np.savez(served, **values)
    whole = served.read_bytes()
    for broken in (whole[: len(whole) // 2], b"<html>404</html>"):
        served.write_bytes(broken)
        with pytest.raises(weights.WeightsError, match="Cannot read"):
            keras_mixer.MixerS32(**options)
        assert list(folder.iterdir()) == []
    served.write_bytes(whole)
    for _ in range(2):  # the second time from the cache
        model = keras_mixer.MixerS32(**options)
    np.testing.assert_array_equal(
        model.get_layer("head").kernel, values["head/kernel"]
    )
    assert [p.name for p in folder.iterdir()] == ["gsam_Mixer-S_32.npz"]
    assert calls[-1] == (
        "https://storage.googleapis.com/mixer_models/gsam/Mixer-S_32.npz"
    )
    assert len(calls) == 3


def test_a_download_that_fails_names_the_way_out(fake_bucket):
    served, folder, _ = fake_bucket
    assert not served.exists()  # read_bytes raises, as the network does
    with pytest.raises(
        weights.WeightsError, match=r"Cannot download https.*put the file at"
    ):
        keras_mixer.MixerB16(weights="imagenet1k")
    assert list(folder.iterdir()) == []
