"""The regression against an independent solve; support sets by the rule."""

import json

import numpy as np
import pytest
from sklearn import datasets

from keras_mixer.evaluation import fewshot
from tests.project.test_imports import run_python

SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2_REGS = (1.0, 64.0, 1024.0, 2.0**14, 1e6)


def reference_support(labels, num_classes, shots, seed):
    """The rule as google-research/big_vision states it."""
    rng = np.random.default_rng(seed)
    chosen = []
    for i in range(num_classes):
        chosen.extend(rng.permutation(np.where(labels == i)[0])[:shots])
    return np.array(chosen)


def reference_predictions(x, y, test, num_classes, l2_reg):
    """The normal equations, solved in float64."""
    x, test = x.astype(np.float64), test.astype(np.float64)
    mean, std = x.mean(0), x.std(0) + 1e-5
    x, test = (x - mean) / std, (test - mean) / std
    x, test = (np.hstack([a, np.full([len(a), 1], 100.0)]) for a in (x, test))
    targets = np.where(y[:, None] == np.arange(num_classes), 1.0, -1.0)
    weights = np.linalg.solve(
        x.T @ x + l2_reg * np.eye(x.shape[1]), x.T @ targets
    )
    return weights, test @ weights


def random_features(width, num_classes=10, count=600, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (num_classes, width))
    labels = rng.integers(0, num_classes, count)
    features = centres[labels] * 2 / width**0.5 + rng.normal(
        0, 1, (count, width)
    )
    features[:, 0] = 3.0  # a dead unit
    return features.astype(np.float32), labels


def real_features():
    """Handwritten digits: grey values with units that are always 0."""
    images, labels = datasets.load_digits(return_X_y=True)
    return images.astype(np.float32), labels


@pytest.mark.parametrize("shots", SHOTS)
@pytest.mark.parametrize("data", ["narrow", "wide", "real"])
def test_golden(data, shots):
    """N < D and N >= D, three seeds, five strengths."""
    features, labels = {
        "narrow": lambda: random_features(7),
        "wide": lambda: random_features(120, num_classes=4),
        "real": real_features,
    }[data]()
    num_classes = 4 if data == "wide" else 10
    if data == "wide":
        assert num_classes * max(SHOTS) < features.shape[1] + 1
    half = len(labels) // 2
    train = features[:half], labels[:half]
    test = features[half:], labels[half:]
    found = fewshot.accuracies(
        *train,
        *test,
        num_classes=num_classes,
        shots=[shots],
        l2_regs=L2_REGS,
        seeds=SEEDS,
    )
    assert found.shape == (1, 5, 3)
    assert 0.1 < found.mean() < 1
    for j, seed in enumerate(SEEDS):
        chosen = reference_support(train[1], num_classes, shots, seed)
        np.testing.assert_array_equal(
            fewshot.support_set(
                train[1],
                num_classes=num_classes,
                shots=shots,
                seed=seed,
            ),
            chosen,
        )
        x, y = train[0][chosen], train[1][chosen]
        regression = fewshot.fit(x, y, num_classes=num_classes)
        for i, l2_reg in enumerate(L2_REGS):
            weights, scores = reference_predictions(
                x, y, test[0], num_classes, l2_reg
            )
            np.testing.assert_allclose(
                regression.weights(l2_reg), weights, rtol=1e-6, atol=1e-9
            )
            want = float(np.mean(scores.argmax(1) == test[1]))
            assert found[0, i, j] == want
            assert want == fewshot.accuracy(
                *train,
                *test,
                num_classes=num_classes,
                shots=shots,
                l2_reg=l2_reg,
                seed=seed,
            )


def test_both_ways_to_predict_are_the_same(monkeypatch):
    """Weights for each strength, or features that are rotated once."""
    features, labels = random_features(40, num_classes=30, count=400)
    regression = fewshot.fit(features, labels, num_classes=30)
    strengths = np.geomspace(1, 1e6, 20)
    calls = []
    original = fewshot.Regression.weights

    def counted(self, l2_reg):
        calls.append(l2_reg)
        return original(self, l2_reg)

    monkeypatch.setattr(fewshot.Regression, "weights", counted)
    monkeypatch.setattr(fewshot, "_CHUNK_BYTES", 8 * 41 * 7)  # seven rows
    rotated = regression.predict(features, strengths)
    assert not calls
    for i, l2_reg in enumerate(strengths):
        by_weights = regression.predict(features, [l2_reg])
        assert calls.pop() == l2_reg
        np.testing.assert_array_equal(rotated[i], by_weights[0])
        scores = reference_predictions(features, labels, features, 30, l2_reg)
        np.testing.assert_array_equal(rotated[i], scores[1].argmax(1))


def test_the_default_is_the_authors():
    assert fewshot.L2_REG == 1024
    assert fewshot.SHOTS == SHOTS
    features, labels = random_features(20)
    found = fewshot.accuracies(
        features, labels, features, labels, num_classes=10
    )
    assert found.shape == (4, 1, 3)
    assert found[1, 0, 2] == fewshot.accuracy(
        features,
        labels,
        features,
        labels,
        num_classes=10,
        shots=5,
        l2_reg=2.0**10,
        seed=2,
    )


def test_types_of_features_do_not_matter():
    """Labels of any integer type; half-precision features are widened."""
    features, labels = random_features(20)
    features = features.astype(np.float16)
    want = fewshot.accuracies(
        features.astype(np.float64),
        labels,
        features.astype(np.float64),
        labels,
        num_classes=10,
    )
    for kind in (np.float16, np.float32):
        got = fewshot.accuracies(
            features.astype(kind),
            labels.astype(np.int32),
            features.astype(kind),
            labels.astype(np.uint8),
            num_classes=10,
        )
        np.testing.assert_array_equal(got, want)


def test_fewer_examples_than_shots_and_missing_classes():
    labels = np.array([0] * 7 + [2] * 2 + [3])
    chosen = fewshot.support_set(labels, num_classes=5, shots=3, seed=1)
    np.testing.assert_array_equal(chosen, reference_support(labels, 5, 3, 1))
    np.testing.assert_array_equal(labels[chosen], [0, 0, 0, 2, 2, 3])
    features = np.random.default_rng(0).normal(size=(10, 4))
    test = np.arange(5).repeat(2)  # of all classes: 1 and 4 are never right
    found = fewshot.accuracy(
        features,
        labels,
        features,
        test,
        num_classes=5,
        shots=3,
    )
    x, y = features[chosen], labels[chosen]
    scores = reference_predictions(x, y, features, 5, 1024.0)[1]
    assert found == np.mean(scores.argmax(1) == test)


def test_support_sets_of_fewer_shots_are_parts_of_those_of_more():
    labels = np.random.default_rng(0).integers(0, 6, 300)
    sets = [
        set(fewshot.support_set(labels, num_classes=6, shots=n, seed=3))
        for n in SHOTS
    ]
    assert sets[0] < sets[1] < sets[2] < sets[3]
    other = fewshot.support_set(labels, num_classes=6, shots=25, seed=4)
    assert sets[3] != set(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.zeros(3, int)}, r"\[3, features\]"),
        ({"train_labels": np.zeros(40)}, "integers of shape"),
        ({"train_labels": np.full(40, 4)}, "0 ... 3.*Received: 4"),
        ({"test_labels": np.arange(40) % 4 - 1}, "Received: -1$"),
        ({"train_labels": np.zeros(0, int)}, "train_labels is empty"),
        ({"test_features": np.zeros([40, 3])}, "5 columns.*3"),
        ({"test_features": np.full([40, 5], np.nan)}, "test_features has 200"),
        ({"train_features": np.zeros([40, 2, 5])}, r"\[40, 2, 5\]"),
        ({"shots": 0}, "shots must be positive whole numbers. Received: 0"),
        ({"shots": 2.5}, "whole numbers. Received: 2.5"),
        ({"l2_reg": 0.0}, "l2_reg must be positive and finite. Received: 0"),
        ({"l2_reg": float("inf")}, "Received: inf"),
        ({"train_features": np.zeros([40, 0])}, "train_features has no col"),
        ({"l2_reg": float("nan")}, "l2_reg must be positive"),
    ],
)
def test_errors_name_the_value(change, message):
    rng = np.random.default_rng(0)
    arguments = {
        "train_features": rng.normal(size=(40, 5)),
        "train_labels": np.arange(40) % 4,
        "test_features": rng.normal(size=(40, 5)),
        "test_labels": np.arange(40) % 4,
        "num_classes": 4,
        "shots": 2,
    }
    with pytest.raises(ValueError, match=message):
        fewshot.accuracy(**{**arguments, **change})


def test_arguments_have_names():
    """The four arrays may be named, and the others must be."""
    features, labels = random_features(300)  # more columns than small ints
    arrays = {
        "train_features": features,
        "train_labels": labels,
        "test_features": features.copy(),
        "test_labels": labels,
    }
    found = fewshot.accuracies(**arrays, num_classes=10, shots=(5,))
    assert found.mean() > 0.2  # 0.1 by chance
    for function in (fewshot.accuracies, fewshot.accuracy):
        with pytest.raises(TypeError, match="positional"):
            function(*arrays.values(), 10, shots=5)


def test_predictions_check_their_features():
    features, labels = random_features(4)
    regression = fewshot.fit(features, labels, num_classes=10)
    with pytest.raises(ValueError, match=r"of 4 features. Received: \[600, 1"):
        regression.predict(features[:, :1])
    with pytest.raises(ValueError, match="features has 1 values that are not"):
        regression.predict(np.where(features == features[5, 1], np.nan, 0.0))


@pytest.mark.parametrize(
    "line",
    [
        "from keras_mixer import fewshot",
        "import keras_mixer.evaluation.fewshot",
    ],
)
def test_it_needs_numpy_alone(line):
    found = run_python(
        f"import sys, json; before = set(sys.modules); {line};"
        "names = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(json.dumps(sorted(names - sys.stdlib_module_names)))"
    )
    assert json.loads(found) == ["keras_mixer", "numpy"]
