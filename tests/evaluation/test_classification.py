import csv
import dataclasses
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data, weights
from keras_mixer.evaluation import classification, paper, passes, report
from keras_mixer.run import config as config_lib, files

EXAMPLES = 107
slow = pytest.mark.slow


def shown_classes(examples):
    return np.random.default_rng(0).integers(0, 7, examples)


def numbered_split(examples=EXAMPLES):
    """Images whose first pixel is a class; labels agree in two of three."""
    shown = shown_classes(examples)
    labels = np.where(np.arange(examples) % 3 == 0, (shown + 5) % 7, shown)
    pixels = np.repeat(shown.astype(np.uint8)[:, None], 12, 1) * 10
    pixels = pixels.reshape(examples, 2, 2, 3)
    split = data.Split(
        name="numbered test",
        num_examples=examples,
        class_names=tuple("abcdefg"),
        image_size=2,
        records=lambda: tf.data.Dataset.from_tensor_slices(
            {"image": pixels, "label": labels}
        ),
        labels=lambda: labels,
    )
    logits = -((shown[:, None] - np.arange(7)[None]) ** 2).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    # Of equal logits the lower class comes first.
    best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return split, {
        "accuracy": float((shown == labels).mean()),
        "top5_accuracy": float((best == labels[:, None]).any(1).mean()),
        "loss": float(-log_p[np.arange(examples), labels].mean()),
        "count": examples,
    }


def reading_model():
    """Returns -(class - shown)^2 for each class, from the first pixel."""
    image = keras.Input((2, 2, 3))
    shown = (image[:, 0, 0, :1] + 1.0) * 12.75
    return keras.Model(image, -((shown - keras.ops.arange(7.0)) ** 2))


def pass_over(split, engine, batch_size=16, **options):
    return passes.Pass(
        split,
        batch_size=batch_size,
        image_size=2,
        policy="resize",
        engine=engine,
        **options,
    )


def evaluator_of(model, split, engine, *, batch_size, loss, xla):
    return classification.make_evaluator(
        model,
        passes.Pass(
            split,
            batch_size=batch_size,
            image_size=2,
            policy="resize",
            engine=engine,
        ),
        loss=loss,
        xla=xla,
    )


def grid(chosen, rows):
    """Marks the rows of a grid as slow that are not among the chosen."""
    return [
        pytest.param(*row, marks=[] if row in chosen else slow) for row in rows
    ]


@pytest.mark.jax
@pytest.mark.parametrize(
    ("replicas", "examples", "batch_size", "xla"),
    grid(
        [
            (1, EXAMPLES, 10, True),
            (2, EXAMPLES, 1, False),
            (4, EXAMPLES, 512, False),
            (4, 10_007, 512, True),
        ],
        [
            (replicas, *row)
            for replicas in (1, 2, 4)
            for row in (
                (EXAMPLES, 1, False),
                (EXAMPLES, 10, True),
                (EXAMPLES, 512, False),
                (10_007, 512, True),
            )
        ],
    ),
)
def test_exact_for_any_batch_size_and_replicas(
    replicas, examples, batch_size, xla, engine_of
):
    split, want = numbered_split(examples)
    engine = engine_of(replicas)
    with engine.scope():
        model = reading_model()
    want["loss"] = pytest.approx(want["loss"], rel=1e-5)
    run = evaluator_of(
        model, split, engine, batch_size=batch_size, loss="softmax", xla=xla
    )
    for _ in range(2):  # it can be called again
        assert run() == want


@pytest.mark.parametrize(
    ("replicas", "examples", "batch_size"),
    grid(
        [(1, EXAMPLES, 9), (4, EXAMPLES, 9), (2, 10_007, 512)],
        [
            (replicas, *row)
            for replicas in (1, 2, 4)
            for row in ((EXAMPLES, 9), (10_007, 512))
        ],
    ),
)
def test_predictions_come_in_order(replicas, examples, batch_size, engine_of):
    """Every example's own, and the same scores as without them."""
    split, want = numbered_split(examples)
    engine = engine_of(replicas)
    with engine.scope():
        model = reading_model()
    over = pass_over(split, engine, batch_size)
    want["loss"] = pytest.approx(want["loss"], rel=1e-5)
    shown = shown_classes(examples)
    for _ in range(2):  # a pass can be made again
        got, rows = classification.predict(
            model, over, loss="softmax", xla=True
        )
        assert got == want
        np.testing.assert_array_equal(rows["index"], np.arange(examples))
        np.testing.assert_array_equal(rows["label"], split.labels())
        np.testing.assert_array_equal(rows["predicted"][:, 0], shown)
        np.testing.assert_array_equal(rows["correct"], shown == split.labels())


def real_split(sets):
    """The numbered split with several labels, or none, for an image."""
    split, _ = numbered_split(len(sets))
    several = np.zeros([len(sets), 7], bool)
    for row, labels in zip(several, sets, strict=True):
        row[list(labels)] = True

    def records():
        extra = tf.data.Dataset.from_tensor_slices(several)
        both = tf.data.Dataset.zip(split.records(), extra)
        return both.map(lambda record, row: {**record, "labels": row})

    return dataclasses.replace(split, records=records, is_multi_label=True)


@pytest.mark.parametrize(
    ("replicas", "loss"),
    grid(
        [(1, "softmax"), (2, "sigmoid")],
        [(n, loss) for n in (1, 2) for loss in ("softmax", "sigmoid")],
    ),
)
def test_several_labels(replicas, loss, engine_of):
    """ReaL: any of them is right, and without any an image does not count."""
    rng = np.random.default_rng(1)
    sets = [
        set(rng.choice(7, rng.integers(0, 4), replace=False)) for _ in range(61)
    ]
    split = real_split(sets)
    assert sum(not labels for labels in sets) > 5
    right, top5, losses = [], [], []
    for s, labels in zip(shown_classes(61), sets, strict=True):
        if not labels:
            continue
        logits = -((s - np.arange(7.0)) ** 2)
        best = np.argsort(-logits, kind="stable")[:5]
        right.append(s in labels)
        top5.append(bool(labels & set(best)))
        targets = np.isin(np.arange(7), list(labels))
        if loss == "softmax":
            log_p = logits - np.log(np.exp(logits).sum())
            losses.append(-log_p[targets].mean())
        else:
            p = 1 / (1 + np.exp(-logits))
            losses.append(-np.log(np.where(targets, p, 1 - p)).sum())
    engine = engine_of(replicas)
    with engine.scope():
        model = reading_model()
    scores, rows = classification.predict(
        model, pass_over(split, engine), loss=loss, xla=False
    )
    again = evaluator_of(
        model, split, engine, batch_size=7, loss=loss, xla=False
    )()
    for got in (scores, again):
        assert got["count"] == len(right) == sum(map(bool, sets))
        assert got["accuracy"] == np.mean(right)
        assert got["top5_accuracy"] == np.mean(top5)
        assert got["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert len(rows["label"]) == 61
    with pytest.raises(data.DataError, match="for evaluation alone"):
        data.train_batches(
            split, batch_size=4, image_size=2, policy="resize", seed=0
        )
    with pytest.raises(data.DataError, match="No image of .* has a label"):
        classification.predict(
            model,
            pass_over(real_split([set()] * 5), engine),
            loss=loss,
            xla=False,
        )


@pytest.fixture(scope="module")
def tiny_real(tmp_path_factory):
    """A TFDS data set with the features of imagenet2012_real."""
    import tensorflow_datasets as tfds

    class TinyReal(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=list("abcdefg"))
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(2, 2, 3)),
                        "original_label": label,
                        "real_label": tfds.features.Sequence(label),
                        "file_name": tfds.features.Text(),
                    }
                )
            )

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for i, labels in enumerate(([3], [], [1, 2], [6, 0, 5])):
                yield (
                    i,
                    {
                        "image": np.full((2, 2, 3), 10 * i, np.uint8),
                        "original_label": i,
                        "real_label": labels,
                        "file_name": f"{i}.jpg",
                    },
                )

    root = tmp_path_factory.mktemp("tfds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TFDS's own
        TinyReal(data_dir=root).download_and_prepare()
    return root


def test_real_labels_of_tfds(tiny_real, engine_of):
    split = data.open_split("tiny_real", "validation", str(tiny_real))
    assert split.is_multi_label
    assert split.class_names == tuple("abcdefg")
    found = {
        int(r["label"]): set(np.flatnonzero(r["labels"]))
        for r in split.records()
    }
    assert found == {0: {3}, 1: set(), 2: {1, 2}, 3: {6, 0, 5}}
    # Image i shows class i, which is among its labels for 2 alone.
    scores, _ = classification.predict(
        reading_model(),
        pass_over(split, engine_of(1), 3),
        loss="softmax",
        xla=True,
    )
    assert (scores["count"], scores["accuracy"]) == (3, pytest.approx(1 / 3))
    with pytest.raises(data.DataError, match="few-shot evaluation needs one"):
        data.open_fewshot(
            config_lib.override(
                config_lib.Config(),
                [
                    f"data.data_dir={tiny_real}",
                    "fewshot.data=tiny_real@validation[:2]@validation[2:]",
                ],
            )
        )
    # Of some classes the original label chooses the images.
    some = data.open_split(
        "tiny_real", "validation", str(tiny_real), classes="d,b,a"
    )
    kept = {int(r["label"]): list(r["labels"]) for r in some.records()}
    assert kept == {
        0: [False, False, True],
        1: [False, False, False],
        2: [True, False, False],
    }


def test_table_of_classes_and_confusions(tmp_path):
    names = ("cat", "dog", "emu", "yak")
    labels = np.array([0, 0, 0, 1, 1, 3, 3, 3, 3])
    first = np.array([0, 1, 1, 1, 0, 3, 0, 1, 1])
    rows = {
        "label": labels,
        "predicted": np.stack([first, labels], 1),
        "correct": (first == labels).astype(np.float32),
        "top5_correct": np.ones(9, np.float32),
    }
    classes = report.per_class(names, rows)
    assert [
        (x["images"], x["accuracy"], x["taken_for"], x["taken_for_images"])
        for x in classes
    ] == [
        (3, pytest.approx(1 / 3), "dog", 2),
        (2, 0.5, "cat", 1),
        (0, None, None, None),
        (4, 0.25, "dog", 2),
    ]
    path = tmp_path / "new" / "classes.csv"
    files.write_csv(path, classes)
    with path.open() as file:
        read = list(csv.DictReader(file))
    assert [x["class"] for x in read] == list(names)
    assert float(read[3]["accuracy"]) == 0.25
    shown = report.worst_classes(classes, count=2).splitlines()
    assert [line.split()[1] for line in shown[2:]] == ["yak", "cat"]
    matrix = report.confusion_matrix(labels, first, 4)
    np.testing.assert_array_equal(
        matrix, [[1, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 2, 0, 1]]
    )
    picture = tmp_path / "confusion.png"
    report.draw_confusion(picture, names, rows, "title")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"2,001.*--per_class"):
        report.draw_confusion(picture, ["x"] * 2001, rows, "")


def test_tables_keep_reported_and_measured_apart():
    row = {
        "data": "imagenet2012",
        "split": "validation",
        "count": 50_000,
        "accuracy": 0.5,
        "top5_accuracy": 0.75,
        "loss": 1.25,
    }
    plain = report.classification_table([row], 6).splitlines()
    assert "reported" not in plain[0]
    assert "top-5" in plain[0]
    assert "top-5" not in report.classification_table([row], 5)
    theirs = {"reported": {"accuracy": 0.7644, "source": "paper, Table 3"}}
    both = report.classification_table([{**row, **theirs}, row], 1000)
    both = both.splitlines()
    header = [cell.strip() for cell in both[0].split("|")]
    cells = [cell.strip() for cell in both[2].split("|")]
    found = dict(zip(header, cells, strict=True))
    assert found["top-1"] == "0.5000"
    assert found["reported, not measured here"] == "0.7644"
    assert found["source"] == "paper, Table 3"
    assert len({len(line) for line in both}) == 1
    assert [cell.strip() for cell in both[3].split("|")][-3:-1] == ["", ""]


def test_reported_numbers_are_the_papers():
    """Tables 2 and 3, and what vision_transformer's README says."""
    find = paper.find
    val = ("imagenet2012", "validation", 224)
    assert find("B/16", "imagenet1k", *val).accuracy == pytest.approx(0.7644)
    assert find("L/16", "imagenet21k", *val).accuracy == pytest.approx(0.8289)
    real = ("imagenet2012_real:1.0.0", "validation", 448)
    found = find("H/14", "jft300m", *real)
    assert found.accuracy == pytest.approx(0.9018)
    assert found.source == "paper, Table 2"
    assert find("B/16", "imagenet1k", "imagenet2012", "train", 224) is None
    assert find("B/16", "sam", *val) is None
    assert find("B/16", None, *val) is None
    for release in weights.RELEASES:
        found = find(release.variant, release.name, *val)
        if release.top1 is not None:
            assert found.accuracy == pytest.approx(release.top1 / 100)
        else:
            assert found is None


def test_traced_once(engine_of):
    split, _ = numbered_split()
    model = reading_model()
    calls = []
    original = model.call

    def counting(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    model.call = counting
    run = evaluator_of(
        model, split, engine_of(1), batch_size=16, loss="softmax", xla=False
    )
    run()
    traced = len(calls)
    run()
    assert len(calls) == traced


def test_batch_size_for_small_splits():
    assert passes.padded_batch_size(4096, 10, 4) == 12
    assert passes.padded_batch_size(9, 100, 4) == 8
    assert passes.padded_batch_size(1, 100, 4) == 4
