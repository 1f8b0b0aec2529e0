"""Files for other runtimes are the model, or are no version."""

import io
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data, export
from keras_mixer.export import (
    accuracy,
    classifier,
    converters,
    formats,
    fresh,
    proof,
    runtime_process,
    runtimes,
)
from keras_mixer.models.preprocessing import to_value_range
from tests.conftest import ROOT, SHARED
from tests.export.small_model import (
    CLASSES,
    NAMES,
    SIDE,
    make_model,
    softmax,
)

MISSING = {name: formats._missing(name) for name in formats.FORMATS}
HERE = [name for name, packages in MISSING.items() if not packages]


def needs(name, *marks):
    """A parameter whose test skips without the packages of a format."""
    missing = ", ".join(MISSING[name])
    skip = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")
    return pytest.param(name, marks=[skip, *marks])


EACH = [
    needs("onnx"),
    needs("litert"),
    needs("openvino", pytest.mark.slow),
    needs("litert_float16", pytest.mark.slow),
]


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """Returns a version of one format, made when it is first asked for."""
    found = {}

    def write(name):
        if name not in found:
            found[name] = export.export(
                model,
                tmp_path_factory.mktemp(name),
                formats=[name],
                class_names=NAMES,
            )
        return found[name]

    return write


@pytest.mark.parametrize("name", EACH)
def test_a_file_is_the_model(name, model, written):
    """By a fresh process; the card says so."""
    version = written(name)
    entry = export.read_card(version)["formats"].pop(name)
    files = {x.name for x in version.iterdir()}
    assert files == {"export.json", "README.md", *entry["sha256"]}
    kind = formats.FORMATS[name]
    assert entry["runtime"].startswith(kind.runtime)
    assert entry["bytes"] == sum(
        (version / x).stat().st_size for x in entry["sha256"]
    )
    limit = 2e-2 if name == "litert_float16" else 1e-4
    assert entry["largest_differences"]["logits"] < limit
    assert entry["same_top_1"] == 1
    assert set(entry["latency_ms"]) == {"1", "7"}
    image = np.random.default_rng(3).integers(0, 256, (4, SIDE, SIDE, 3))
    image = image.astype(np.uint8)
    want = model(to_value_range(image)).numpy()
    with runtimes.Runtime(name, version / entry["file"]) as runtime:
        got = runtime(image)
    np.testing.assert_allclose(got["logits"], want, atol=limit)
    p = tf.nn.softmax(want)
    np.testing.assert_allclose(got["probabilities"], p, atol=limit)
    text = (version / "README.md").read_text()
    assert entry["runtime"] in text
    assert all(digest in text for digest in entry["sha256"].values())


# What README.md says of each runtime. The process does not crash, and answers
# afterwards.
BAD_INPUTS = {
    "onnx": {
        "dtype": "InvalidArgument",
        "size": "InvalidArgument",
        "channels": "InvalidArgument",
        "rank": "InvalidArgument",
        "as many pixels": "InvalidArgument",
        "empty": [0, CLASSES],
    },
    "litert": {
        "dtype": "ValueError",
        "size": "RuntimeError",
        "channels": "RuntimeError",
        "rank": "RuntimeError",
        "as many pixels": [2, CLASSES],
        "empty": ("RuntimeError", [0, CLASSES]),  # one or the other
    },
    "openvino": {
        "dtype": [2, CLASSES],
        "size": "RuntimeError",
        "channels": "RuntimeError",
        "rank": "RuntimeError",
        "as many pixels": "RuntimeError",
        "empty": [0, CLASSES],
    },
}


@pytest.mark.parametrize("name", EACH[:3])
def test_bad_inputs(name, written):
    file = written(name) / formats.FORMATS[name].files[0]
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.export.bad_inputs",
            name,
            file,
            str(SIDE),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    found = json.loads(process.stdout)
    for bad, result in BAD_INPUTS[name].items():
        allowed = result if isinstance(result, tuple) else (result,)
        assert found[bad] in allowed, bad
        assert found[f"good after {bad}"] == [2, CLASSES], bad


@pytest.mark.parametrize("cut", [0, 4, 20])
def test_an_answer_that_ends_early_is_none(cut):
    stream = io.BytesIO()
    runtime_process.send(stream, logits=np.zeros(3))
    whole = stream.getvalue()
    found = runtime_process.receive(io.BytesIO(whole))
    np.testing.assert_array_equal(found["logits"], np.zeros(3))
    assert runtime_process.receive(io.BytesIO(whole[:cut])) is None


@pytest.mark.parametrize("name", EACH[:3])
def test_a_damaged_file_is_told(name, tmp_path):
    path = tmp_path / formats.FORMATS[name].files[0]
    path.write_bytes(b"no model")
    with (
        pytest.raises(export.ExportError, match=r"alone cannot use it \(exit"),
        runtimes.Runtime(name, path),
    ):
        pass


PLAIN = {
    "int8": False,
    "measured": True,
    "precision": "float32",
    "xla": False,
}


@pytest.fixture
def all_here(monkeypatch):
    """As if the packages of all formats were installed."""
    monkeypatch.setattr(formats, "_missing", lambda _: [])


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["onxx"], {}, "Received: 'onxx'. Did you mean 'onnx'?"),
        ([], {}, "each once. Received: none"),
        (["onnx", "onnx"], {}, "each once. Received: onnx, onnx"),
        ("onnx", {}, "formats must be a list of names. Received: 'onnx'"),
        (["onnx"], {"int8": True, "measured": False}, "what accuracy it"),
        (["savedmodel"], {"int8": True}, "onnx, litert, openvino. Received"),
        (["litert_float16"], {"int8": True}, "Received: formats=litert_fl"),
        (["onnx"], {"precision": "bfloat16"}, "float32 model.*'bfloat16'"),
        (["onnx"], {"xla": True}, "xla compiles the savedmodel"),
    ],
)
def test_formats_are_checked(all_here, names, options, message):
    options = {**PLAIN, **options}
    with pytest.raises(ValueError, match=message):
        formats.check_formats(names, **options)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        export.ExportError,
        match=r"needs onnx, onnxruntime, tf2onnx: pip install "
        r"'keras-mixer\[onnx\]'. Formats that can be written here: savedmodel$",
    ):
        formats.check_formats(["onnx"], **PLAIN)
    assert formats.check_formats(["savedmodel"], **PLAIN) == ("savedmodel",)
    text = formats.help_text()
    for part in (
        "Formats that can be written here: savedmodel.",
        "Missing for litert, litert_float16: ai_edge_litert",
        "pip install 'keras-mixer[openvino]'",
    ):
        assert part in text


class Fake:
    """A runtime that answers as the model does, or nearly."""

    file, version = "model.onnx", "fake 1"

    def __init__(self, parts, change=lambda x: x):
        self._parts, self._change = parts, change

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self, image, *, repeats=0):
        answers = fresh.reference(self._parts, to_value_range(image))
        found = {key: np.array(answers[key]) for key in answers}
        found["logits"] = self._change(found["logits"])
        return {**found, "seconds": [0.001] * repeats}


@pytest.mark.parametrize(
    ("change", "precision", "message"),
    [
        (lambda x: x, "float32", None),
        (lambda x: x * 1.001, "float32", "logits of a batch of 1: .*differs"),
        (lambda x: x * 1.001, "float16", None),
        (lambda x: x * 1.1, "float16", "differs by"),
        (lambda x: x[:, ::-1], "int8", None),
        (lambda x: x * np.nan, "int8", "not finite"),
        (lambda x: x[:, 1:], "int8", "shape"),
    ],
)
def test_another_answer_is_refused(model, change, precision, message):
    parts = classifier.make_classifier(model)
    runtime = Fake(parts, change)
    if message is None:
        entry = proof.prove(runtime, parts, precision=precision)
        assert entry["precision"] == precision
        assert entry["same_top_1"] <= 1
        return
    with pytest.raises(export.ExportError, match=message):
        proof.prove(runtime, parts, precision=precision)


def test_another_best_class_is_refused():
    """Even where the logits are within the tolerance."""
    near = make_model()
    near.get_layer("head").kernel.assign(np.zeros([24, CLASSES]))
    near.get_layer("head").bias.assign(1e-6 * np.arange(CLASSES))
    parts = classifier.make_classifier(near)
    with pytest.raises(export.ExportError, match="another best class for 8 of"):
        proof.prove(
            Fake(parts, lambda x: x[:, ::-1]), parts, precision="float32"
        )


@pytest.mark.parametrize("fault", ["converter", "answer"])
def test_what_fails_is_no_version(
    fault, model, all_here, tmp_path, monkeypatch
):
    drafts = []

    def convert(pixel_model, name, path, **options):
        drafts.append(path.parent)
        path.write_bytes(b"a half")
        if fault == "converter":
            raise RuntimeError("no such op\nand more")

    parts = classifier.make_classifier(model)
    fake = Fake(parts, lambda x: x + 1)
    monkeypatch.setattr(converters, "_convert", convert)
    monkeypatch.setattr(proof, "Runtime", lambda *_: fake)
    message = {
        "converter": "^model.onnx: the converter fails: no such op$",
        "answer": "differs by 1",
    }[fault]
    with pytest.raises(export.ExportError, match=message):
        export.export(model, tmp_path, formats=["onnx"])
    assert drafts[0].parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_images_that_may_not_calibrate(model, all_here, tmp_path):
    """Before anything is written."""
    test, train = (data.open_split("digits", x) for x in ("test", "train"))
    ten = make_model(classes=10)
    for options, message in (
        ({"calibration": test}, "what accuracy it loses"),
        ({"calibration": test, "split": test}, "shares images with digits"),
        ({"calibration": train, "split": train}, "shares images with digits"),
    ):
        with pytest.raises(export.ExportError, match=message):
            export.export(ten, tmp_path, formats=["onnx"], **options)
    many = types.SimpleNamespace(
        name="many", num_examples=10**6, overlaps=lambda _: False
    )
    with pytest.raises(export.ExportError, match="many has 1,000,000 images"):
        export.saved_model._check_calibration(many, test)
    assert list(tmp_path.iterdir()) == []


def test_what_int8_may_lose(model, monkeypatch):
    before = {"accuracy": 0.9, "loss": 1.0, "count": 100}
    monkeypatch.setattr(accuracy, "of_model", lambda *_, **__: before)
    parts = classifier.make_classifier(model)
    options = classifier.Options("resize", None, 5, "float32", False)
    split = data.open_split("digits", "test")
    exam = accuracy.Exam(model, parts, options, split, 0.0)
    exam.require_small_loss("a", {**before, "accuracy": 0.89}, 0.01)
    with pytest.raises(
        export.ExportError,
        match=r"^a loses 0.0200 .*test \(0.9000 before, 0.8800 after\).*0.01",
    ):
        exam.require_small_loss("a", {**before, "accuracy": 0.88}, 0.01)


def test_accuracy_of_a_file(model):
    """That of its logits on the images as evaluation prepares them."""
    ten = make_model(classes=10)
    split = data.open_split("digits", "test[:70]")
    images = accuracy.Images(split, SIDE, "resize", data.BrokenImages(split))
    fake = Fake(classifier.make_classifier(ten))
    scores = accuracy.of_file(fake, images, loss="softmax")
    pixels, labels = images.pixels(), split.labels()
    assert pixels.shape == (70, SIDE, SIDE, 3)
    logits = ten(to_value_range(pixels)).numpy()
    loss = -np.log(softmax(logits)[range(70), labels]).mean()
    assert scores["loss"] == pytest.approx(loss, rel=1e-4)
    right = (logits.argmax(-1) == labels).mean()
    assert scores["accuracy"] == pytest.approx(right)
    assert scores["count"] == 70


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="no format's packages are here")
def test_int8_files_of_a_run(digits_workdir, tmp_path):
    """One command; each file within its loss, and the card says of what."""
    names = [x for x in ("onnx", "litert", "openvino") if x in HERE]
    process = subprocess.run(
        [
            *(sys.executable, "-m", "keras_mixer.export"),
            *(f"--workdir={digits_workdir}", "--output=served"),
            *(f"--formats=savedmodel,{','.join(names)}", "--int8=train[:100]"),
            *("--accuracy_split=test", "--int8_loss=0.1"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    card = export.read_card(tmp_path / "served" / "1")
    before = card["accuracy"]["before"]
    assert set(card["formats"]) == {
        *("savedmodel", *names),
        *(f"{name}_int8" for name in names),
    }
    for name, entry in card["formats"].items():
        assert entry["accuracy"]["count"] == before["count"]
        loss = before["accuracy"] - entry["accuracy"]["accuracy"]
        assert loss <= (0.1 if name.endswith("int8") else 1e-3), name
        assert name in process.stdout
    for name in names:
        entry = card["formats"][f"{name}_int8"]
        assert entry["calibration"] == {
            "split": "digits train[:100]",
            "images": 100,
        }
    text = (tmp_path / "served" / "1" / "README.md").read_text()
    assert text.count("calibrated on 100 images of digits train") == len(names)


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="no format's packages are here")
@pytest.mark.skipif(
    not (SHARED / "imagenet_samples").is_dir(), reason="no photos"
)
def test_photos_by_every_runtime(tmp_path):
    """S/16 at 224 px: the same best class, and logits within 1e-4."""
    import keras_mixer

    big = keras_mixer.MixerS16(classifier_activation=None)
    kernel = big.get_layer("head").kernel
    rng = np.random.default_rng(0)
    kernel.assign(rng.normal(0, 0.05, kernel.shape))
    names = [x for x in ("onnx", "litert", "openvino") if x in HERE]
    version = export.export(
        big,
        tmp_path,
        formats=["savedmodel", *names],
        eval_policy="resize_small(256)|central_crop",
    )
    files = sorted((SHARED / "imagenet_samples").glob("*.JPEG"))[:100]
    assert len(files) == 100
    prepare = data.augment.policy.parse("resize_small(256)|central_crop", 224)
    seed = tf.zeros([2], tf.int64)
    image = np.stack(
        [prepare(tf.constant(x.read_bytes()), seed) for x in files]
    )
    want = np.concatenate(
        [big(to_value_range(image[i : i + 10])) for i in range(0, 100, 10)]
    )
    served = tf.saved_model.load(str(version)).signatures["serve_bytes"]
    got = served(tf.constant([x.read_bytes() for x in files]))["logits"]
    np.testing.assert_allclose(got, want, atol=1e-4)
    for name in names:
        path = version / formats.FORMATS[name].files[0]
        with runtimes.Runtime(name, path) as runtime:
            for size in (1, 7):
                parts = [image[i : i + size] for i in range(0, 100, size)]
                got = np.concatenate([runtime(x)["logits"] for x in parts])
                np.testing.assert_allclose(got, want, atol=1e-4)
                np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))
