"""The preprocessing and the labels that come with weights.

The oracle is a NumPy forward pass on the input of the weights' source.
"""

import dataclasses
import json

import numpy as np
import pytest

import keras_mixer
from keras_mixer import models, weights
from keras_mixer.weights import (
    labels,
    parameters as parameters_lib,
    preprocessing,
)
from tests import reference
from tests.weights.test_weights import (
    OPTIONS,
    SMALL,
    random_parameters,
    save_timm,
)

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
STATISTICS = [
    {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},  # Google's
    {"mean": [0, 0, 0], "std": [1, 1, 1]},  # MIIL's
    IMAGENET,
]


@pytest.fixture(autouse=True)
def said_anew():
    parameters_lib.say_once.cache_clear()


def write_repository(folder, values, config):
    """Writes weights and their config as timm and the Hub lay them out."""
    folder.mkdir(exist_ok=True)
    save_timm(values, folder / "model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return folder / "model.safetensors"


@pytest.fixture
def values():
    return random_parameters(SMALL, side=8)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("shape", [(4, 4, 3), (3, 5, 3), (2, 2, 1)])
def test_the_fold_is_exact_in_float64(statistics, shape):
    rng = np.random.default_rng(0)
    channels = shape[2]
    found = weights.Preprocessing(
        statistics["mean"][:channels], statistics["std"][:channels]
    )
    kernel, bias = rng.normal(size=(*shape, 7)), rng.normal(size=7)
    patches = rng.uniform(-1, 1, (5, *shape))
    theirs = ((patches + 1) / 2 - found.mean) / found.std
    folded, shifted = preprocessing.fold_stem(kernel, bias, found)
    want = np.einsum("nhwi,hwio->no", theirs, kernel) + bias
    got = np.einsum("nhwi,hwio->no", patches, folded) + shifted
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * abs(want).max())


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_every_model_takes_the_same_images(
    statistics, nested, values, tmp_path, capsys
):
    config = {**statistics, "crop_pct": 0.9, "interpolation": "bicubic"}
    config["input_size"] = [3, 8, 8]
    if nested:
        config = {"num_classes": 7, "pretrained_cfg": config}
    path = write_repository(tmp_path / "repository", values, config)
    found = weights.read(path)
    model = models.Mixer(SMALL, weights=path.parent, **OPTIONS)  # the folder
    x = reference.random_images(3, 8, 8, 3)
    theirs = ((x + 1) / 2 - statistics["mean"]) / statistics["std"]
    want = reference.forward(theirs.astype(np.float32), values, exact=True)
    assert reference.relative_error(model(x), want) <= 1e-5
    said = capsys.readouterr().err
    is_ours = statistics == STATISTICS[0]
    assert said.count("is folded into the stem") == (not is_ours)
    assert is_ours or "exact GELU" in said
    assert found.preprocessing == weights.Preprocessing(
        statistics["mean"], statistics["std"], 8, 0.9, "bicubic"
    )
    assert found.preprocessing.eval_policy(224) == (
        "resize_small(248)|central_crop"
    )
    # What is saved takes the same images.
    with pytest.warns(UserWarning, match="tanh approximation"):
        weights.save_npz(model, tmp_path / "saved.npz")
    again = models.Mixer(
        SMALL,
        weights=tmp_path / "saved.npz",
        gelu_approximate=False,
        **OPTIONS,
    )
    np.testing.assert_array_equal(again(x), model(x))


def test_an_unknown_input_is_said(values, tmp_path, capsys):
    save_timm(values, tmp_path / "alone.safetensors")
    found = weights.read(tmp_path / "alone.safetensors")
    assert found.preprocessing is None
    said = capsys.readouterr().err
    assert "alone.safetensors: the mean and" in said
    assert said.count("\n") == 1
    found = weights.fold_input(found, weights.Preprocessing(0, 1))
    kernel = values["stem/kernel"]
    np.testing.assert_allclose(found.values["stem/kernel"], kernel / 2)
    with pytest.raises(weights.WeightsError, match=r"known, and in \[-1, 1\]"):
        weights.fold_input(found, weights.Preprocessing(0, 1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "line 1, column 2"),
        ("[]", "must hold an object"),
        ({"pretrained_cfg": 3}, "pretrained_cfg must be"),
        ({**IMAGENET, "mean": [123.7, 116.3, 103.5]}, r"mean.*divided by 255"),
        ({**IMAGENET, "std": [0, 1, 1]}, "std must be numbers"),
        ({**IMAGENET, "std": "wide"}, "std must be numbers.*'wide'"),
        ({**IMAGENET, "mean": [0.5, 0.5]}, "mean has 2 values.*3 channels"),
        ({**IMAGENET, "crop_pct": 3}, "crop_share.*Received: 3"),
        ({**IMAGENET, "num_classes": 9}, "7 classes, and its.*says 9"),
        ({**IMAGENET, "label_names": ["a", "b"]}, "7 classes, and its.*says 2"),
        ({**IMAGENET, "label_names": "a"}, "label_names must be a list"),
        (
            {**IMAGENET, "model_args": {"act_layer": "relu"}},
            "act_layer.*'relu'",
        ),
    ],
)
def test_wrong_descriptions_are_named(config, message, values, tmp_path):
    path = write_repository(tmp_path, values, config)
    with pytest.raises(weights.WeightsError, match=message) as error:
        weights.read(path)
    assert "\n" not in str(error.value)


def test_the_gelu_follows_the_config(values, tmp_path):
    config = {**IMAGENET, "model_args": {"act_layer": "gelu_tanh"}}
    path = write_repository(tmp_path, values, config)
    model = models.Mixer(SMALL, weights=path, **OPTIONS)
    assert model.get_layer("MixerBlock_0").gelu_approximate is True


def test_official_files_take_our_images(values, tmp_path):
    np.savez(tmp_path / "a.npz", **values)
    found = weights.read(tmp_path / "a.npz")
    assert found.preprocessing == weights.Preprocessing()
    assert found.preprocessing.is_ours
    np.testing.assert_array_equal(
        found.values["stem/kernel"], values["stem/kernel"]
    )
    resized = weights.resize_tokens(found, (4, 4))
    assert resized.preprocessing == found.preprocessing


def test_miil_is_a_release():
    for name, classes in (("miil_in21k", 11221), ("miil_in21k_ft_in1k", 1000)):
        release = weights.find_release(name, "B/16")
        assert release == weights.find_release(f"mixer_b16_224.{name}", "B/16")
        assert (release.classes, release.exact_gelu) == (classes, True)
        assert release.url == (
            f"https://huggingface.co/timm/mixer_b16_224.{name}"
            "/resolve/main/model.safetensors"
        )
        assert release.preprocessing == weights.Preprocessing(
            (0,), (1,), 224, 0.875, "bilinear"
        )
    assert release.top1 == 82.3


def test_miil_weights_are_folded(values, tmp_path, monkeypatch):
    """The file in the cache has no config.json beside it."""
    folder = tmp_path / "models" / "keras_mixer"
    folder.mkdir(parents=True)
    save_timm(values, folder / "miil_in21k_ft_in1k_model.safetensors")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    found = weights.get("mixer_b16_224.miil_in21k_ft_in1k", "B/16")
    assert found.exact_gelu
    assert found.preprocessing.interpolation == "bilinear"
    want = preprocessing.fold_stem(
        values["stem/kernel"], values["stem/bias"], found.preprocessing
    )
    np.testing.assert_allclose(found.values["stem/bias"], want[1], rtol=1e-6)


def test_class_names_come_with_the_weights(values, tmp_path):
    config = {
        "pretrained_cfg": {"mean": [0.5], "std": [0.5]},
        "label_names": [f"n{i}" for i in range(7)],
        "label_descriptions": {"n3": "a bee"},
    }
    path = write_repository(tmp_path, values, config)
    model = models.Mixer(SMALL, weights=path, **OPTIONS)
    assert model.class_names == ("n0", "n1", "n2", "a bee", "n4", "n5", "n6")
    scores = np.eye(7, dtype=np.float32)[[3, 6]] * 5
    scores[0, 1] = 2
    names = model.class_names
    got = keras_mixer.decode_predictions(scores, top=2, class_names=names)
    assert got[0] == [(3, "a bee", 5.0), (1, "n1", 2.0)]
    assert got[1][0] == (6, "n6", 5.0)
    assert len(keras_mixer.decode_predictions(scores, 9, names)[0]) == 7
    for wrong in (names[:6], (*names, "more")):
        with pytest.raises(ValueError, match=f"{len(wrong)}.*class_names"):
            keras_mixer.decode_predictions(scores, class_names=wrong)
    for wrong in ("abcdefg", (), [3] * 7):
        with pytest.raises(ValueError, match="class_names must be a list"):
            keras_mixer.decode_predictions(scores, class_names=wrong)
    fresh = models.Mixer(SMALL, weights=path, head="fresh", **OPTIONS)
    assert fresh.class_names is None
    assert models.Mixer(SMALL, **OPTIONS).class_names is None


def test_names_of_imagenet(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert labels.of_imagenet(1000) is None
    index = {str(i): [f"n{i}", f"class_{i}"] for i in range(1000)}
    file = tmp_path / "models" / "imagenet_class_index.json"
    file.parent.mkdir()
    file.write_text(json.dumps(index))
    assert labels.of_imagenet(1000)[999] == "class_999"
    # Those of ImageNet-21k lie in the package timm, in two orders.
    info = tmp_path / "timm" / "data" / "_info"
    info.mkdir(parents=True)
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    assert labels.of_imagenet(11221) is None
    (info / "imagenet_synset_to_lemma.txt").write_text("n7\tbee, a\nn8\tant\n")
    for order, classes in (("goog", 21843), ("miil", 11221)):
        lines = "".join(f"n{i}\n" for i in range(classes))
        (info / f"imagenet21k_{order}_synsets.txt").write_text(lines)
        names = labels.of_imagenet(classes)
        assert names[7:10] == ("bee, a", "ant", "n9")
    assert labels.of_imagenet(7) is None


def test_one_value_may_stand_for_all_channels():
    a, b = weights.Preprocessing(0.2, 0.3), weights.Preprocessing([0.2], [0.3])
    assert a == b == dataclasses.replace(b)
    for wrong in ({"mean": True}, {"std": float("nan")}, {"image_size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            weights.Preprocessing(**wrong)
