"""Properties of the few-shot regression."""

import numpy as np
from hypothesis import given, settings, strategies as st

from keras_mixer.evaluation import fewshot

few = settings(max_examples=40, deadline=None, derandomize=True)
SIZES = {
    "count": st.integers(2, 30),
    "width": st.integers(1, 12),
    "classes": st.integers(2, 5),
    "seed": st.integers(0, 2**31),
}


def make(count, width, classes, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, width))
    return features, rng.integers(0, classes, count)


@few
@given(**SIZES, l2_reg=st.floats(1e-2, 1e6))
def test_the_weights_solve_the_regression(count, width, classes, seed, l2_reg):
    """They equal the solution of the normal equations, more rows or fewer."""
    features, labels = make(count, width, classes, seed)
    found = fewshot.fit(features, labels, num_classes=classes)
    mean, std = features.mean(0), features.std(0) + 1e-5
    x = np.hstack([(features - mean) / std, np.full([count, 1], 100.0)])
    y = 2.0 * np.eye(classes)[labels] - 1
    want = np.linalg.solve(x.T @ x + l2_reg * np.eye(width + 1), x.T @ y)
    np.testing.assert_allclose(found.weights(l2_reg), want, atol=1e-6)
    test = np.random.default_rng(seed + 1).normal(size=(20, width))
    scores = np.hstack([(test - mean) / std, np.full([20, 1], 100.0)]) @ want
    clear = np.diff(np.sort(scores)[:, -2:])[:, 0] > 1e-6
    got = found.predict(test, [l2_reg])[0]
    np.testing.assert_array_equal(got[clear], scores.argmax(1)[clear])


@few
@given(**SIZES)
def test_the_order_of_the_examples_does_not_count(count, width, classes, seed):
    features, labels = make(count, width, classes, seed)
    order = np.random.default_rng(seed + 2).permutation(count)
    ours = fewshot.fit(features, labels, num_classes=classes)
    theirs = fewshot.fit(features[order], labels[order], num_classes=classes)
    np.testing.assert_allclose(
        ours.weights(1.0), theirs.weights(1.0), atol=1e-7
    )


@few
@given(**SIZES, shots=st.integers(1, 8))
def test_a_support_set_has_its_examples(count, width, classes, seed, shots):
    """So many of each class, or all; fewer shots are a part of more."""
    del width
    labels = np.random.default_rng(seed).integers(0, classes, count)
    found = fewshot.support_set(
        labels, num_classes=classes, shots=shots, seed=seed
    )
    assert len(set(found)) == len(found)
    have = np.bincount(labels, minlength=classes)
    got = np.bincount(labels[found], minlength=classes)
    np.testing.assert_array_equal(got, np.minimum(have, shots))
    more = fewshot.support_set(
        labels, num_classes=classes, shots=shots + 1, seed=seed
    )
    assert set(found) <= set(more)
