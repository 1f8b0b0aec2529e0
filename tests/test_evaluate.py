import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data, evaluate

EXAMPLES = 107


def numbered_split(examples=EXAMPLES):
    """Images whose first pixel is a class; labels agree in two of three."""
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 5, examples)
    labels = np.where(np.arange(examples) % 3 == 0, (shown + 1) % 5, shown)
    pixels = np.repeat(shown.astype(np.uint8)[:, None], 12, 1) * 10
    pixels = pixels.reshape(examples, 2, 2, 3)
    split = data.Split(
        name="numbered test",
        num_examples=examples,
        class_names=tuple("abcde"),
        image_size=2,
        records=lambda: tf.data.Dataset.from_tensor_slices(
            {"image": pixels, "label": labels}
        ),
        labels=lambda: labels,
    )
    logits = -((shown[:, None] - np.arange(5)[None]) ** 2).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return split, {
        "accuracy": float((shown == labels).mean()),
        "loss": float(-log_p[np.arange(examples), labels].mean()),
        "count": examples,
    }


def reading_model():
    """Returns -(class - shown)^2 for each class, from the first pixel."""
    image = keras.Input((2, 2, 3))
    shown = (image[:, 0, 0, :1] + 1.0) * 12.75
    return keras.Model(image, -((shown - keras.ops.arange(5.0)) ** 2))


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize(
    ("batch_size", "xla"), [(1, False), (10, True), (512, False)]
)
def test_exact_for_any_batch_size_and_replicas(
    replicas, batch_size, xla, strategy_of
):
    split, want = numbered_split()
    strategy = strategy_of(replicas)
    with strategy.scope():
        model = reading_model()
    run = evaluate.make_evaluator(
        model,
        split,
        batch_size=batch_size,
        image_size=2,
        policy="resize",
        loss="softmax",
        strategy=strategy,
        xla=xla,
    )
    for _ in range(2):  # it can be called again
        got = run()
        assert got["count"] == want["count"]
        assert got["accuracy"] == want["accuracy"]
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)


def test_traced_once(strategy_of):
    split, _ = numbered_split()
    model = reading_model()
    calls = []
    original = model.call

    def counting(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    model.call = counting
    run = evaluate.make_evaluator(
        model,
        split,
        batch_size=16,
        image_size=2,
        policy="resize",
        loss="softmax",
        strategy=strategy_of(1),
        xla=False,
    )
    run()
    traced = len(calls)
    run()
    assert len(calls) == traced


def test_batch_size_for_small_splits(strategy_of):
    assert evaluate.padded_batch_size(4096, 10, strategy_of(4)) == 12
    assert evaluate.padded_batch_size(9, 100, strategy_of(4)) == 8
    assert evaluate.padded_batch_size(1, 100, strategy_of(4)) == 4
