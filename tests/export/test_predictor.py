"""A model, a run and a version of an export predict alike."""

import importlib
import runpy
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_mixer
from keras_mixer import export
from keras_mixer.data import open_images
from keras_mixer.export import predictor
from keras_mixer.programs import predict as program
from keras_mixer.training import assembly
from tests.export.small_model import (
    CLASSES,
    NAMES,
    POLICY,
    in_python,
    make_model,
    picture,
    softmax,
)

SIZES = [(40, 57), (33, 32), (50, 41)]
PICTURES = [picture(*size, seed=i) for i, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def of_model(model):
    return predictor.OfModel(
        model,
        source="me",
        eval_policy=POLICY,
        class_names=NAMES,
        probabilities=None,
        trained_on=None,
    )


@pytest.fixture
def folder(tmp_path):
    """Forty photos, of which three cannot be read."""
    for i in range(40):
        encoded = tf.io.encode_png(PICTURES[i % 3]).numpy()
        (tmp_path / f"{i:02}.png").write_bytes(encoded)
    (tmp_path / "05.png").write_bytes(b"a text")
    (tmp_path / "36.png").write_bytes(encoded[:100])
    (tmp_path / "38.png").unlink()
    (tmp_path / "38.png").symlink_to("nowhere")
    return tmp_path


def assert_alike(one, other):
    assert [x[:2] for x in one] == [x[:2] for x in other]
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x.probabilities, y.probabilities, atol=1e-5)
        assert (x.error is None) == (y.error is None)


def test_arrays_get_the_answers_of_the_model(of_model, model, version):
    probabilities = softmax(in_python(model, PICTURES))
    photos = open_images(PICTURES)
    found = predictor.run(of_model, photos, 5)
    for i, x in enumerate(found):
        best = np.argsort(-probabilities[i])[:5]
        assert x.source == f"image {i}"
        assert x.classes == tuple(NAMES[j] for j in best)
        np.testing.assert_allclose(x.probabilities, probabilities[i, best])
        assert x.error is None
    assert_alike(found, keras_mixer.predict(version, PICTURES))


def test_broken_photos_have_their_reasons(of_model, version, folder):
    done = []
    photos = open_images(folder)
    found = predictor.run(of_model, photos, 3, done.append)
    assert done == [32, 40]
    broken = [i for i, x in enumerate(found) if x.error is not None]
    assert broken == [5, 36, 38]
    assert found[5].classes == found[5].probabilities == ()
    assert [x.classes for x in found[6:9]] == [x.classes for x in found[:3]]
    served = keras_mixer.predict(version, folder, top=3)
    assert_alike(found, served)
    assert [found[i].error for i in (5, 36)] == [
        served[i].error for i in (5, 36)
    ]
    assert "No such file" in served[38].error


def test_a_run_and_its_export_predict_alike(
    digits_workdir, tmp_path, folder, trusting
):
    trained = assembly.load_trained(digits_workdir)
    export.export(
        trained.model,
        tmp_path / "served",
        eval_policy=trained.config.augment.eval_policy,
        class_names=trained.class_names,
    )
    of_run = keras_mixer.predict(digits_workdir, folder, top=100)
    assert len(of_run[0].classes) == 10
    # By the folder of the versions, whose newest one answers.
    assert_alike(of_run, keras_mixer.predict(tmp_path / "served", folder, 100))
    assert sum(of_run[0].probabilities) == pytest.approx(1)


def test_versions_refuse_what_they_cannot_resize(version, of_model):
    """As a server does; the photos beside it are answered."""
    strip = np.zeros((1, 60, 3), np.uint8)
    good, bad = keras_mixer.predict(version, [PICTURES[0], strip])
    assert good.error is None
    assert "more than 50 times" in bad.error
    assert predictor.run(of_model, open_images(strip), 1)[0].error is None


def test_a_model_without_a_run():
    """It crops as released weights are evaluated, and has numbers."""
    model = make_model(classifier_activation="softmax")
    found = keras_mixer.predict(model, PICTURES, top=CLASSES)
    policy = "resize_small(37)|central_crop"
    want = in_python(model, PICTURES, policy)
    for x, probabilities in zip(found, want, strict=True):
        order = [int(name) for name in x.classes]
        np.testing.assert_allclose(x.probabilities, probabilities[order])
    model.class_names = NAMES
    named = keras_mixer.predict(model, PICTURES[0])
    assert named[0].classes[0] == NAMES[int(found[0].classes[0])]


def test_sigmoid(model):
    of_sigmoid = predictor.OfModel(
        model,
        source="me",
        eval_policy=POLICY,
        class_names=None,
        probabilities="sigmoid",
        trained_on=None,
    )
    (found,) = predictor.run(of_sigmoid, open_images(PICTURES[:1]), CLASSES)
    logits = in_python(model, PICTURES[:1])[0]
    want = np.sort(1 / (1 + np.exp(-logits)))[::-1]
    np.testing.assert_allclose(found.probabilities, want, rtol=1e-5)


def test_weights_that_are_not_finite():
    model = make_model()
    model.weights[0].assign(model.weights[0] * np.nan)
    with pytest.raises(ValueError, match="not finite"):
        keras_mixer.predict(model, PICTURES)


def test_the_module_is_the_function(model, monkeypatch):
    """Whatever was imported before; python -m needs a module of the name."""
    before = keras_mixer.predict
    found = before(model, PICTURES[0], top=1)
    module = importlib.import_module("keras_mixer.predict")
    assert module is keras_mixer.predict is before
    # As in a notebook; in a process of its own nothing was imported before. The
    # program itself would leave its flags defined.
    monkeypatch.setattr(program, "run", sys.exit)
    with pytest.warns(RuntimeWarning), pytest.raises(SystemExit):
        runpy.run_module("keras_mixer.predict", run_name="__main__")
    assert keras_mixer.predict(model, PICTURES[0], top=1) == found
