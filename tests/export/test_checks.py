"""What cannot be exported, or is not the model, is no version."""

import dataclasses
import os
import subprocess

import numpy as np
import pytest
import tensorflow as tf

import keras_mixer
from keras_mixer import data, export
from keras_mixer.export import accuracy, classifier, fresh, saved_model
from tests.export.small_model import (
    CLASSES,
    NAMES,
    POLICY,
    SIDE,
    VARIANT,
    in_python,
    make_model,
    picture,
    softmax,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": NAMES[1:]}, "23 classes. Received: 22 names"),
        ({"top_k": 0}, "positive integer. Received: 0"),
        ({"precision": "float16"}, "float32, bfloat16. Received: 'float16'"),
        ({"probabilities": "tanh"}, "softmax, sigmoid. Received: 'tanh'"),
        ({"eval_policy": "resize_small(40)"}, "of many sizes"),
        ({"eval_policy": "crop"}, "Unknown step 'crop'"),
        ({"eval_policy": "flip"}, "'flip' in the evaluation policy"),
        ({"xla": "no"}, "True or False"),
    ],
)
def test_options_are_checked_before_anything_is_written(
    model, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        export.export(model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_exported(tmp_path):
    broken = make_model()
    broken.get_layer("head").bias.assign(np.full(CLASSES, np.nan))
    for model, message in (
        (broken, "not finite: head/bias"),
        (make_model(include_top=False, classes=None), "include_top=True"),
        (make_model(classifier_activation="relu"), "activation 'relu'"),
        (
            keras_mixer.Mixer(VARIANT, input_shape=(SIDE, 2 * SIDE, 3)),
            "square RGB",
        ),
    ):
        with pytest.raises(export.ExportError, match=message):
            export.export(model, tmp_path)
    softmax_model = make_model(classifier_activation="softmax")
    with pytest.raises(export.ExportError, match="not in 'sigmoid'"):
        export.export(softmax_model, tmp_path, probabilities="sigmoid")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_what_is_served_has_the_kernels_that_are_applied(mode):
    """LoRA is merged, and what is quantised is dequantised."""
    changed = make_model()
    if mode:
        changed.quantize(mode)
    if mode != "int4":
        head = changed.get_layer("head")
        head.enable_lora(2)
        head.lora_kernel_b.assign(np.ones(head.lora_kernel_b.shape))
    image = np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 3))
    want = np.asarray(changed(image))
    for precision in ("float32", None):
        parts = classifier.make_classifier(changed, precision=precision)
        limit = 0.05 * np.abs(want).max()
        np.testing.assert_allclose(parts.model(image), want, atol=limit)
        np.testing.assert_allclose(parts(image)[1], want, atol=limit)


def test_outputs_that_cannot_be_used(model, tmp_path):
    (tmp_path / "file").write_text("")
    for output, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "is a file"),
        ("gs://bucket/served", "local folder"),
        ("/proc/served", "Cannot write"),
    ):
        with pytest.raises(export.ExportError, match=message):
            export.export(model, output)


@pytest.mark.parametrize(
    ("output", "change", "message"),
    [
        ("one/logits", lambda x: x + 0.01, "of one image: .* differs by"),
        ("logits", lambda x: x * 1.001, "differs by"),
        ("logits", lambda x: np.where(x == x.max(), np.nan, x), "not finite"),
        ("logits", lambda x: x[:1], "shape"),
        ("top_k_indices", lambda x: x[:, [1, 0, 2, 3, 4]], "other classes"),
        ("top_k_names", lambda x: x[:, [0, 1, 2, 4, 3]], "other classes"),
    ],
)
def test_another_answer_is_refused(
    model, exported, monkeypatch, output, change, message
):
    key = output if "/" in output else f"serve_bytes/{output}"
    theirs = {**exported.answers, key: change(exported.answers[key])}
    monkeypatch.setattr(fresh, "run", lambda *_: theirs)
    options = classifier.Options(
        eval_policy=POLICY,
        class_names=NAMES,
        top_k=5,
        precision="float32",
        xla=False,
    )
    parts = classifier.make_classifier(model)
    with pytest.raises(export.ExportError, match=message):
        fresh.check(exported.version, parts, options)


def test_another_best_class_is_refused(model, exported, monkeypatch):
    """Even where the logits are within the tolerance."""
    answers = {
        name: values * 1e-6 if name.endswith("/logits") else values
        for name, values in exported.answers.items()
    }
    ours = {
        key: {"logits": -answers[f"{signature}/logits"]}
        for signature, key in (
            ("serving_default", "pixels"),
            ("serve_bytes", "files"),
        )
    }
    monkeypatch.setattr(fresh, "run", lambda *_: answers)
    given = iter(ours.values())
    monkeypatch.setattr(fresh, "reference", lambda *_: next(given))
    options = classifier.Options(
        eval_policy=POLICY,
        class_names=None,
        top_k=5,
        precision="float32",
        xla=False,
    )
    parts = classifier.make_classifier(model)
    with pytest.raises(export.ExportError, match="another best class for 21 "):
        fresh.check(exported.version, parts, options)


@pytest.fixture
def unsaved(monkeypatch):
    """Exports without the SavedModel, for tests of what comes after it."""
    monkeypatch.setattr(saved_model, "_save", lambda *_: {})


def test_another_answer_is_no_version(
    model, exported, unsaved, tmp_path, monkeypatch
):
    drafts = []

    def run(folder, request):
        drafts.append(folder)
        logits = exported.answers["serve_bytes/logits"] * 1.001
        return {**exported.answers, "serve_bytes/logits": logits}

    monkeypatch.setattr(fresh, "run", run)
    with pytest.raises(export.ExportError, match="differs by"):
        export.export(model, tmp_path, eval_policy=POLICY, class_names=NAMES)
    assert list(tmp_path.iterdir()) == []
    assert drafts[0].parent == tmp_path


def test_the_fresh_process_leaves_accelerators_alone(tmp_path, monkeypatch):
    seen = {}

    def run(command, **options):
        seen.update(options["env"])
        return subprocess.CompletedProcess(command, 1, "", "stopped here")

    monkeypatch.setattr(fresh.subprocess, "run", run)
    with pytest.raises(export.ExportError, match="stopped here"):
        fresh.run(tmp_path, tmp_path)
    assert seen["CUDA_VISIBLE_DEVICES"] == "-1"
    assert seen["TPU_LOAD_LIBRARY"] == "0"
    assert seen["PATH"], "the rest of the environment is kept"


@pytest.mark.parametrize("signature", ["serving_default", "serve_float"])
def test_the_best_classes_are_those_of_the_logits(signature):
    theirs = {
        f"{signature}/logits": np.array([[0.1, 0.3, 0.2], [3.0, 1.0, 2.0]]),
        f"{signature}/top_k_indices": np.array([[1, 2], [0, 2]]),
        f"{signature}/top_k_names": np.array([["b", "c"], ["a", "c"]]),
    }
    check = fresh._check_top_k
    check(signature, theirs, ("a", "b", "c"))
    check(signature, theirs, None)
    for key in ("top_k_indices", "top_k_names"):
        swapped = theirs[f"{signature}/{key}"][:, ::-1]
        wrong = {**theirs, f"{signature}/{key}": swapped}
        with pytest.raises(export.ExportError, match="other classes"):
            check(signature, wrong, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("precision", "share"),
    [("float32", 1e-4), ("bfloat16", 5e-2), ("float16", 2e-2)],
)
def test_the_tolerance_is_of_the_largest_value_or_one(precision, share):
    for largest in (0.01, 1.0, -4000.0):
        ours = np.array([largest, 0.0])
        allowed = share * max(1.0, abs(largest))
        near = ours + np.array([0, 0.99 * allowed])
        worst = fresh.difference("x", ours, near, precision=precision)
        assert worst == pytest.approx(0.99 * allowed)
        far = ours - np.array([0, 1.01 * allowed])
        with pytest.raises(export.ExportError, match="differs by"):
            fresh.difference("x", ours, far, precision=precision)


@pytest.mark.slow
def test_a_process_that_fails_is_no_version(model, tmp_path, monkeypatch):
    save = tf.saved_model.save

    def save_half(server, folder, **options):
        save(server, folder, **options)
        path = tmp_path.glob(".exporting-*/variables/variables.data*")
        os.truncate(next(path), 1000)

    monkeypatch.setattr(tf.saved_model, "save", save_half)
    with pytest.raises(export.ExportError, match="TensorFlow alone cannot"):
        export.export(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder_split(tmp_path):
    """40 PNGs of two classes and many sizes: 39 is broken and 10 is gone."""
    for i in range(40):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = picture(40 + i % 9, 50, seed=i)
        path.write_bytes(tf.io.encode_png(pixels).numpy())
    path.write_bytes(path.read_bytes()[:99])
    split = data.open_split(f"folder:{tmp_path / 'photos'}", "train")
    gone = tmp_path / "photos" / "a" / "10.png"
    gone.unlink()
    gone.symlink_to(tmp_path / "nowhere.png")
    return split


def test_accuracy_before_and_after(trusting, folder_split, tmp_path):
    model = make_model(classes=2, dtype="mixed_bfloat16")
    path = export.export(
        model,
        tmp_path / "served",
        eval_policy=POLICY,
        split=folder_split,
        max_broken=0.1,
    )
    measured = export.read_card(path)["accuracy"]
    before, after = measured["before"], measured["after"]
    assert before["count"] == after["count"] == 38
    kept = [i for i in range(39) if i != 10]
    files = [
        tf.io.encode_png(picture(40 + i % 9, 50, seed=i)).numpy() for i in kept
    ]
    labels = np.array(kept) % 2
    logits = in_python(make_model(classes=2), files)
    want = (logits.argmax(-1) == labels).mean()
    loss = -np.log(softmax(logits)[range(38), labels]).mean()
    assert after["accuracy"] == pytest.approx(want)
    assert after["loss"] == pytest.approx(loss, rel=1e-4)
    assert before["loss"] == pytest.approx(loss, rel=1e-2)


def test_too_many_broken_images(folder_split):
    with pytest.raises(data.DataError, match="max_broken"):
        accuracy.of_model(
            classifier.make_classifier(make_model(classes=2)),
            folder_split,
            policy=POLICY,
            broken=data.BrokenImages(folder_split),
        )


def test_another_accuracy_is_no_version(
    trusting, unsaved, model, tmp_path, monkeypatch
):
    before = {"accuracy": 0.5, "loss": 1.0, "count": 40}
    after = {**before, "loss": 1.1}
    monkeypatch.setattr(accuracy, "of_model", lambda *_, **__: before)
    monkeypatch.setattr(accuracy, "of_version", lambda *_, **__: after)
    split = dataclasses.replace(
        data.open_split("digits", "test"), class_names=NAMES
    )
    with pytest.raises(export.ExportError, match="the loss differs"):
        export.export(model, tmp_path, split=split)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 999}, "other images were refused"),
        ({"accuracy": 0.498}, "the accuracy differs"),
        ({"loss": 1.2}, "the loss differs"),
        ({"loss": float("nan")}, "the loss is not finite"),
        ({"accuracy": 0.499, "loss": 1.1009}, None),
    ],
)
def test_how_far_the_accuracy_may_be_off(change, message):
    before = {"accuracy": 0.5, "loss": 1.1, "count": 1000}
    after = {**before, **change}
    if message is None:
        accuracy.require_same(before, after, same_precision=True)
        return
    with pytest.raises(export.ExportError, match=message):
        accuracy.require_same(before, after, same_precision=True)
    if np.isfinite(after["loss"]) and after["count"] == 1000:
        near = {"accuracy": 0.491, "loss": 1.109, "count": 1000}
        accuracy.require_same(before, near, same_precision=False)


def test_accuracy_of_pixels_and_of_a_model_of_probabilities(
    trusting, model, tmp_path
):
    split = data.open_split("digits", "test[:50]")
    softmax_model = make_model(classes=10, classifier_activation="softmax")
    path = export.export(softmax_model, tmp_path, split=split)
    measured = export.read_card(path)["accuracy"]
    assert measured["after"]["count"] == 50
    for key in ("accuracy", "loss"):
        assert measured["before"][key] == pytest.approx(
            measured["after"][key], rel=1e-4
        )
    with pytest.raises(export.ExportError, match="23 classes, and digits"):
        export.export(model, tmp_path, split=split)
