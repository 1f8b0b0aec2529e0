"""What a model says of photos, for people."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mixer
from keras_mixer import data
from keras_mixer.evaluation import predictions
from keras_mixer.evaluation.predictions import Answers, Prediction

CLASSES = ("ants", "bees", "cats")
FOUND = [
    Prediction("a", ("ants", "bees"), (0.6, 0.3)),
    Prediction("b", ("bees", "cats"), (0.7, 0.2)),
    Prediction("c", (), (), "it is cut"),
    Prediction("d", ("cats", "ants"), (0.9, 0.1)),
    Prediction("e", ("cats", "ants"), (0.5, 0.4)),
    Prediction("f", ("cats", "bees"), (0.4, 0.3)),
]
TRUTHS = ["ants", "cats", "ants", "bees", "cats", None]


def test_rank_orders_by_scores():
    """The probabilities of sigmoid may all round to 1."""
    scores = np.array([[40.0, 50.0, 45.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    probabilities = np.array([[1.0, 1.0, 1.0], [0.7, 0.7, 0.5], [0.0, 0, 0]])
    answers = Answers(scores, probabilities, [None, None, "it is cut"])
    found = list(predictions.rank("xyz", answers, CLASSES, 2))
    assert found == [
        ("x", ("bees", "cats"), (1.0, 1.0), None),
        ("y", ("ants", "bees"), (0.7, 0.7), None),  # the first of equal ones
        ("z", (), (), "it is cut"),
    ]
    whole = predictions.rank("xyz", answers, CLASSES, 100)
    assert [len(x.classes) for x in whole] == [3, 3, 0]


def test_rank_refuses_what_is_not_finite():
    bad = np.array([[np.nan, 1.0, 2.0]])
    with pytest.raises(ValueError, match="of x are not finite"):
        list(predictions.rank("x", Answers(bad, bad, [None]), CLASSES, 2))


def photos_of(*folders):
    names = tuple(map(str, range(len(folders))))
    return data.Photos(names, folders, "", None)


def test_true_classes_are_the_folders_around():
    photos = photos_of(
        ("ants", "train", "all"),
        ("deep", "bees", "all"),
        ("dogs", "all"),
        (),
    )
    truths = predictions.true_classes(photos, CLASSES)
    assert truths == ["ants", "bees", None, None]
    line = predictions.describe_unknown(photos, truths, CLASSES)
    assert line.startswith("Photos without a true class: 1.")
    assert "only here 'dogs'; only there 'ants'" in line
    alone = photos_of(("ants",), ())
    truths = predictions.true_classes(alone, CLASSES)
    assert predictions.describe_unknown(alone, truths, CLASSES) is None


def test_names_that_look_alike_are_said():
    photos = photos_of(("ants ",))
    line = predictions.describe_unknown(photos, [None], CLASSES)
    assert "look alike" in line


def test_counts():
    assert predictions.count_right(FOUND, TRUTHS) == (2, 4)


def test_the_worst_mistakes_come_first():
    order = predictions.worst_first(FOUND, TRUTHS)
    assert [FOUND[i].source for i in order] == ["d", "b", "f", "e", "a"]


def test_table():
    lines = predictions.table(FOUND, TRUTHS).splitlines()
    assert lines[0].replace(" ", "") == "|photo|true|predicted|2.|"
    assert lines[2].replace(" ", "") == "|a|ants|ants60.0%|bees30.0%|"
    assert "broken: it is cut" in lines[4]
    assert " true " not in predictions.table(FOUND, [None] * 6)
    many = predictions.table(FOUND * 10, TRUTHS * 10).splitlines()
    assert len(many) == 2 + predictions.MAX_LISTED


def test_rows_and_json():
    rows = predictions.to_rows(FOUND, TRUTHS)
    assert rows[1] == {
        "photo": "b",
        "true": "cats",
        "error": None,
        "class_1": "bees",
        "probability_1": 0.7,
        "class_2": "cats",
        "probability_2": 0.2,
    }
    assert rows[2]["error"] == "it is cut"
    assert rows[2]["class_1"] is None
    assert len({tuple(row) for row in rows}) == 1
    content = predictions.to_json(FOUND, TRUTHS)
    assert content["accuracy"] == 0.5
    assert content["predictions"][0]["classes"] == ("ants", "bees")
    assert predictions.to_json(FOUND, [None] * 6)["accuracy"] is None


@pytest.mark.jax
def test_a_model_of_either_backend_predicts():
    variant = keras_mixer.models.Variant(4, 1, 8, 8, 8)
    model = keras_mixer.Mixer(variant, input_shape=(8, 8, 3), classes=3)
    head = model.layers[-1]
    rng = np.random.default_rng(0)
    head.kernel.assign(rng.normal(size=head.kernel.shape))
    model.class_names = CLASSES
    images = rng.integers(0, 256, (5, 9, 9, 3)).astype(np.uint8)
    # The middle of images whose shorter side is 8/7 of the model's.
    inner = keras_mixer.preprocess_input(images[:, :8, :8])
    want = keras.ops.convert_to_numpy(model(inner))
    for x, row in zip(keras_mixer.predict(model, images), want, strict=True):
        order = np.argsort(-row)
        assert x.classes == tuple(CLASSES[i] for i in order)
        np.testing.assert_allclose(x.probabilities, row[order], rtol=1e-5)


def test_the_sheet_shows_the_worst_first(tmp_path):
    colors = [(200, 30, 10), (10, 200, 30), (9, 9, 9), (10, 30, 200)]
    for name, color in zip("abcd", colors, strict=True):
        image = np.full((30, 50, 3), color, np.uint8)
        file = tmp_path / f"{name}.png"
        file.write_bytes(tf.io.encode_png(image).numpy())
    photos = data.find_photos([tmp_path])
    named = [FOUND[3]._replace(classes=("$cats$", "ants")), *FOUND[:3]]
    found = [*named[1:], named[0]]
    figure = predictions.draw(photos, found, TRUTHS[:4], "runs/x")
    assert [axes.get_title() for axes in figure.axes] == [
        *("$cats$ 90 %\nis bees", "bees 70 %\nis cats", "ants 60 %\nright")
    ]
    shown = [colors[i] for i in (3, 1, 0)]
    for axes, color in zip(figure.axes, shown, strict=True):
        (image,) = axes.get_images()
        np.testing.assert_array_equal(image.get_array()[0, 0], color)
    assert figure.get_suptitle() == (
        "runs/x: 1 of 3 right, the worst mistakes first"
    )
    figure.savefig(tmp_path / "sheet.png")
