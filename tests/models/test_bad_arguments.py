"""Arguments that are not allowed: each ends in one error that names it."""

import numpy as np
import pytest

import keras_mixer
from keras_mixer import data, weights
from keras_mixer.run import config as config_lib, recipes

SMALL = keras_mixer.models.Variant(8, 2, 16, 8, 32)


def mixer(**arguments):
    keras_mixer.Mixer(
        SMALL, **{"input_shape": (32, 32, 3), "classes": 5, **arguments}
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"classes": -1},
        {"classes": float("nan")},
        {"classes": True},
        {"classes": "10"},
        {"input_shape": (32, 32)},
        {"input_shape": "32"},
        {"input_shape": 224},
        {"input_shape": (None, None, 3)},
        {"input_shape": (33, 32, 3)},
        {"input_shape": (0, 32, 3)},
        {"input_shape": (32000, 32000, 3)},
        {"input_shape": {}},
        {"pooling": "x"},
        {"classifier_activation": "nope"},
        {"remat": "x"},
        {"gelu_approximate": "no"},
        {"stoch_depth_rescale": "no"},
        {"stoch_depth": 1.5},
        {"stoch_depth": float("nan")},
        {"dropout": "a"},
        {"head": "x"},
        {"resize_tokens": "x"},
        {"name": 3},
        {"weights": 3},
        {"weights": b"x"},
        {"weights": "nowhere"},
        {"in_channels": 0},
    ],
    ids=str,
)
def test_of_a_model(arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError) as raised:
        mixer(**arguments)
    text = str(raised.value)
    shown = value if isinstance(value, str) else repr(value)
    assert shown in text or name in text


@pytest.mark.parametrize("variant", [None, 3, "b/16", "B/15"])
def test_of_a_variant(variant):
    with pytest.raises(ValueError, match=f"Unknown variant {variant!r}"):
        keras_mixer.Mixer(variant)


def test_pooling_of_a_model_with_a_head_is_a_warning():
    with pytest.warns(UserWarning, match="include_top=False"):
        mixer(pooling="avg")


FILES = {
    "empty.npz": b"",
    "text.npz": b"hello",
    "zip.npz": b"PK\x03\x04garbage",
    "empty.safetensors": b"",
    "text.safetensors": b"hello, this is no safetensors file",
    "empty.weights.h5": b"",
    "text.weights.h5": b"hello",
}


@pytest.mark.parametrize("name", FILES)
def test_of_a_damaged_file_of_weights(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(FILES[name])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        mixer(weights=str(file))


@pytest.mark.parametrize(
    "predictions",
    ["x", 3, np.ones(1000), np.ones((1, 3)), np.ones((1, 1, 1000))],
    ids=str,
)
def test_of_predictions(predictions):
    with pytest.raises(ValueError, match="1000"):
        keras_mixer.decode_predictions(predictions)


@pytest.mark.parametrize("top", [0, -1, 1001, "5", None])
def test_of_top(top):
    with pytest.raises(ValueError, match="top"):
        keras_mixer.decode_predictions(np.ones((1, 1000)), top=top)


def test_what_is_no_model_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="no Keras model: 3"):
        weights.save_npz(3, tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        (3, "train"),
        ("digits", 3),
        ("digits", "tran"),
        ("digits", "train[5:2]"),
        ("digits", "train[:200%]"),
        ("digits", "train[a:b]"),
        ("folder:nowhere", "train"),
        ("", "train"),
        ("mnits", "train"),
        ("../x", "train"),
        ("a/b/c:d", "train"),
    ],
)
def test_of_a_split(name, split):
    with pytest.raises(data.DataError):
        data.open_split(name, split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "line"),
        (b"[1]", "c.json"),
        (bytes(range(256)), "c.json"),
        (b'{"optim": {"lr": "a"}}', "optim.lr"),
        (b'{"optm": 3}', "optm"),
    ],
    ids=str,
)
def test_of_a_config_file(tmp_path, content, message):
    file = tmp_path / "c.json"
    file.write_bytes(content)
    with pytest.raises(config_lib.ConfigError, match=message) as raised:
        config_lib.load(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    "override",
    [
        *("optim.lr=a", "optim.lr=", "optim.lr=nan", "optim.lr=-1"),
        *("optim.lr=inf", "optim", "=3", "optim.lr", "optim.lr=0x"),
        *("train.batch_size=0", "train.batch_size=1.5", "train.steps=-1"),
        *("train.epochs=0", "train.seed=a", "train.batch_size=[1]"),
        *("train.batch_size=1000000000000", "optim.lr={a: 1}", "x.y=1"),
        *("data=3", "optim.b1=1", "optim.name=adma", "train.loss=l2"),
        *("model.precision=float8", "data.hold_out=2", "fewshot.shots=a"),
        *("fewshot.shots=0", "fewshot.l2_reg=-1", "train.keep_checkpoints=0"),
        *("lr=0.1", "train.lr=0.1", "train.log_every=0"),
    ],
)
def test_of_an_override(override):
    with pytest.raises(config_lib.ConfigError):
        config_lib.override(recipes.digits(), [override])
