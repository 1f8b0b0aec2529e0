"""Arguments that are not allowed: each ends in one error that names it.

Of the public functions, in Python; test_bad_inputs.py has the programs.
"""

import functools
import pathlib

import keras
import numpy as np
import pytest

import keras_mixer
from keras_mixer import data, export, fewshot, layers, weights
from keras_mixer.run import config as config_lib, recipes, workdir
from keras_mixer.training import assembly, loop
from tests.conftest import make_engine

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


@functools.cache
def calls():
    """Returns each function by its name, with arguments that are right."""
    features, labels = np.ones((6, 4)), np.array([0, 0, 1, 1, 2, 2])
    parameters = weights.from_model(MODEL, "me")
    sets = {
        "train_features": features,
        "train_labels": labels,
        "test_features": features,
        "test_labels": labels,
    }
    digits = recipes.digits()
    run = {"config": digits, "workdir": "run", "engine": make_engine(1)}
    widths = {"tokens_mlp_dim": 4, "channels_mlp_dim": 4}
    model, named = {"model": MODEL}, {"name": "digits", "split": "train"}
    return {
        "accuracy": (fewshot.accuracy, {**sets, "num_classes": 3, "shots": 1}),
        "save_npz": (weights.save_npz, {**model, "path": "a.npz"}),
        "load": (weights.load, {**model, "parameters": parameters}),
        "load_keras": (weights.load_keras, {**model, "path": "a.h5"}),
        "read": (weights.read, {}),
        "read_workdir": (
            weights.read_workdir,
            {"workdir": "nowhere", "exact_gelu": False},
        ),
        "find_release": (
            weights.find_release,
            {"name": "sam", "variant": "B/16"},
        ),
        "resize_tokens": (
            weights.resize_tokens,
            {"parameters": parameters, "new_grid": (8, 8)},
        ),
        "preprocess_input": (keras_mixer.preprocess_input, {}),
        "decode_predictions": (keras_mixer.decode_predictions, {}),
        "fit": (loop.fit, run),
        "open_split": (data.open_split, named),
        "override": (
            config_lib.override,
            {"config": digits, "overrides": ["optim.lr=1"]},
        ),
        "resolve": (config_lib.resolve, {"config": digits}),
        "load_config": (config_lib.load, {}),
        "export": (export.export, {**model, "output": "served"}),
        "read_card": (export.read_card, {}),
        "predict": (keras_mixer.predict, {**model, "images": IMAGE}),
        "load_trained": (assembly.load_trained, {}),
        "read_config": (workdir.read_config, {}),
        "mixer_block": (layers.MixerBlock, widths),
        "stochastic_depth": (layers.StochasticDepth, {}),
    }


MODEL = keras_mixer.Mixer(SMALL, input_shape=(32, 32, 3), classes=5)
IMAGE = np.zeros((8, 9, 3), np.uint8)
NAN = float("nan")
NO_PATHS = [None, 3, b"x", ["x"], "", "x\0y"]
NO_MODELS = [None, "x", 3, [MODEL]]
NO_NUMBERS = ["x", None, [["a"]], [[1, 2], [3]], {}]
WRONG = {
    "accuracy": {
        "train_features": [*NO_NUMBERS, np.ones((6, 4), complex)],
        "train_labels": [*NO_NUMBERS, np.ones(6), [True] * 6, [9] * 6, []],
        "test_features": [*NO_NUMBERS, np.ones((6, 3)), np.full((6, 4), NAN)],
        "test_labels": [*NO_NUMBERS, [-1] * 6],
        "num_classes": ["3", None, 0, -1, 3.0, 2.5, True, NAN, [3]],
        "shots": ["1", None, 0, -1, 1.5, True, [1], NAN],
        "l2_reg": ["1", None, 0, -1, NAN, [1], 1j],
        "seed": ["a", None, -1, 1.5, NAN, [0], True],
    },
    "save_npz": {"model": NO_MODELS, "path": [*NO_PATHS, "a.txt", "no/a.npz"]},
    "load": {
        "model": NO_MODELS,
        "parameters": [None, "x", 3, {}, []],
        "head": ["x", None, 3],
    },
    "load_keras": {"model": NO_MODELS, "path": [*NO_PATHS, "nowhere.h5"]},
    "read": {"path": [*NO_PATHS, "nowhere.npz"]},
    "read_workdir": {
        "workdir": NO_PATHS,
        "which": ["last", None, 1.5, True, [], -1],
    },
    "find_release": {"name": ["x", 3], "variant": [None, 3, {}, "B/15"]},
    "resize_tokens": {
        "parameters": [None, "x", 3],
        "new_grid": [None, 3, "4x4", (4,), (0, 4), (4.5, 4), (-8, -8), (5, 5)],
        "method": [None, 3, "x"],
    },
    "preprocess_input": {"x": [*NO_NUMBERS, "cat.jpg", b"x", 1j]},
    "decode_predictions": {
        "preds": [
            *NO_NUMBERS,
            np.full((1, 1000), "a"),
            np.ones((1, 1000), complex),
        ]
    },
    "fit": {
        "config": [None, "digits", 3, {}],
        "workdir": NO_PATHS,
        "engine": [None, "tensorflow", 3],
        "build_model": ["x", 3, MODEL, len, lambda: 3, lambda config, n: 3],
    },
    "open_split": {
        "name": [None, [], b"digits", pathlib.Path("digits")],
        "split": [None, [], ["train"]],
        "data_dir": [3, [], b"x", True],
        "classes": [3, [], ["0", "1"], b"0,1", True],
        "hold_out": ["a", None, -1, 2, NAN, True],
    },
    "override": {
        "config": [None, "digits", 3, {}],
        "overrides": [None, "optim.lr=1", 3, [3], {"optim.lr": 1}, [b"x=1"]],
    },
    "resolve": {"num_examples": [None, "x", -1, 0, 1.5, True]},
    "load_config": {"path": [None, 3, {}, b"x", "nowhere.json"]},
    "export": {
        "model": [*NO_MODELS, keras.Sequential([keras.Input((4,))])],
        "output": NO_PATHS,
        "eval_policy": [None, 3, "", "flip", "x", b"resize"],
        "class_names": ["abcde", 3, ["a"], {}, [1, 2, 3, 4, 5], [None] * 5],
        "probabilities": ["x", 3, []],
        "top_k": ["5", None, 0, -1, 1.5, True, NAN, []],
        "precision": ["float16", None, 3, []],
        "xla": ["no", None, 3],
        "formats": ["onnx", None, 3, [], ["onxx"], [3], ["savedmodel"] * 2],
        "calibration": ["train", 3, []],
        "int8_loss": ["a", None, -1, 2, NAN, True],
        "split": ["test", 3, [], {}],
        "max_broken": ["a", None, -1, 2, NAN, True],
        "provenance": ["x", 3, [1], {"a": object()}],
    },
    "read_card": {"version": NO_PATHS},
    "predict": {
        "model": [
            *NO_PATHS,
            *("nowhere", [MODEL], keras.Sequential([keras.Input((4,))])),
            keras_mixer.Mixer(SMALL, input_shape=(32, 64, 3), classes=5),
            keras_mixer.Mixer(
                SMALL, input_shape=(32, 32, 3), include_top=False
            ),
        ],
        "images": [
            *NO_PATHS,
            *("nowhere.jpg", ["nowhere.jpg"], {}, [], (), 1.5, ["", 3]),
            *(np.zeros((8, 9, 3)), np.zeros((8, 9, 3), bool)),
            *([np.zeros((8, 9, 3), np.float32)], [IMAGE, "a.jpg"]),
            *(IMAGE[..., 0], IMAGE[..., :2], IMAGE[:0], [IMAGE[:, :0]]),
            *([IMAGE[None]], np.zeros((0, 8, 9, 3), np.uint8), [[1, 2], [3]]),
        ],
        "top": ["5", None, 0, -1, 1.5, True, NAN],
    },
    "load_trained": {"workdir": NO_PATHS},
    "read_config": {"workdir": NO_PATHS},
    "mixer_block": {
        "tokens_mlp_dim": ["a", None, 0, -1, 1.5, True],
        "channels_mlp_dim": ["a", 0],
        "gelu_approximate": ["no", 3, None],
        "stoch_depth_rescale": ["no", None],
    },
    "stochastic_depth": {"rate": ["a", None, -1, 2, NAN, True]},
}
# Messages that name the value alone, or something better than the argument.
NAMED_BY = {
    ("save_npz", "model"): "Keras model",
    ("load", "model"): "Keras model",
    ("load_keras", "model"): "Keras model",
    ("load_keras", "path"): "path|no file of weights",
    ("read", "path"): "path|no file of weights",
    ("save_npz", "path"): "path|must end in .npz|Cannot write",
    ("read_workdir", "which"): "checkpoint",
    ("find_release", "name"): "Unknown weights",
    ("find_release", "variant"): "were released for",
    ("resize_tokens", "new_grid"): "new_grid|cannot be expanded to 5 x 5",
    ("fit", "build_model"): "build_model|Keras model: 3",
    ("open_split", "name"): "name of a data set",
    ("open_split", "split"): "its split",
    ("load_config", "path"): "Cannot read|no config file",
    ("export", "model"): "Keras model|can be exported if",
    ("export", "eval_policy"): "policy",
    ("export", "class_names"): "names",
    ("predict", "model"): "model must be|A model can predict",
    ("predict", "images"): "images|There is no photo",
}


@pytest.mark.parametrize(
    ("function", "argument", "value"),
    [
        (function, argument, value)
        for function, arguments in WRONG.items()
        for argument, values in arguments.items()
        for value in values
    ],
    ids=lambda x: " ".join(repr(x).split())[:40],
)
def test_of_a_function(function, argument, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = NAMED_BY.get((function, argument), argument)
    call, right = calls()[function]
    with pytest.raises(ValueError, match=name) as raised:
        call(**{**right, argument: value})
    assert len(str(raised.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
