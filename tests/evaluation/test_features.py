"""Few-shot accuracy of a Mixer's features: data sets, replicas, training."""

import contextlib
import dataclasses
import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data
from keras_mixer.data.augment import images
from keras_mixer.evaluation import features, fewshot
from keras_mixer.models.preprocessing import to_value_range
from keras_mixer.run import checkpoint, config as config_lib, recipes
from keras_mixer.run.config import ConfigError
from keras_mixer.training import assembly, loop as trainer
from tests import reference
from tests.conftest import make_engine
from tests.training.common import (
    assert_same_weights,
    lines_of,
    small,
)

SETTINGS = (
    "model.num_blocks=1",
    "fewshot.data=digits@train[:300]@test[:107]",
    "fewshot.shots=1,5,40",
    "fewshot.l2_reg=16,1024",
    "fewshot.seeds=2",
)


def random_model(config, engine, classes=10):
    """A Mixer of random weights, the head's included."""
    with engine.scope():
        model = assembly.build_mixer(config, classes)
    reference.random_weights(model)
    return model


def all_features(model, split):
    """The features of a whole split, by Keras alone; not of broken images."""
    inner = keras.Model(model.inputs, model.get_layer("avg_pool").output)
    pixels, labels = [], []
    for record in split.records():
        image = split.load(record)
        if image.dtype == tf.string:
            if image == b"nothing":
                continue
            image = images.decode(image)
        assert image.shape == (8, 8, 3)
        pixels.append(image)
        labels.append(record["label"])
    x = to_value_range(np.stack(pixels))
    return np.asarray(inner(x, training=False)), np.array(labels)


def evaluator_of(model, config, engine):
    """The few-shot evaluation of the config's only data set."""
    (run,) = features.make_fewshot_evaluators(
        model, data.open_fewshot(config), config=config, engine=engine
    ).values()
    return run


def resolved(*overrides):
    config = small(*overrides)
    model = dataclasses.replace(config.model, image_size=8)
    return dataclasses.replace(config, model=model)


@pytest.mark.parametrize(
    ("replicas", "precision"),
    [
        (1, "bfloat16"),
        (2, "float32"),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                (1, "float32"),
                (2, "bfloat16"),
                (4, "float32"),
                (4, "bfloat16"),
            )
        ),
    ],
)
def test_equals_the_regression_of_all_features(replicas, precision, engine_of):
    """Though only the images of the support sets are computed; twice."""
    config = resolved(
        *SETTINGS, "train.batch_size=50", f"model.precision={precision}"
    )
    engine = engine_of(replicas)
    model = random_model(config, engine)
    run = evaluator_of(model, config, engine)
    tolerance = 0 if precision == "float32" else 0.03
    (found,) = data.open_fewshot(config)
    with tf.device("cpu:0"):
        train, test = (
            all_features(model, split) for split in (found.train, found.test)
        )
    want = fewshot.accuracies(
        *train,
        *test,
        num_classes=10,
        shots=(1, 5, 40),
        l2_regs=(16, 1024),
        seeds=(0, 1),
    )
    assert 0.2 < want.min() < want.max() < 1
    for _ in range(2):
        found = run()
        assert [(x["shots"], x["l2_reg"]) for x in found] == [
            (shots, l2) for shots in (1, 5, 40) for l2 in (16, 1024)
        ]
        for x, line in zip(found, want.reshape(6, 2), strict=True):
            np.testing.assert_allclose(x["accuracies"], line, atol=tolerance)
            assert x["accuracy"] == np.mean(x["accuracies"])
            assert x["count"] == 107
            assert x["data"] == "digits"


def test_compiled_once_and_follows_the_weights(engine_of, monkeypatch):
    config = resolved(*SETTINGS, "train.xla=true")
    engine = engine_of(1)
    model = random_model(config, engine)
    traced = []
    monkeypatch.setattr(
        features,
        "to_value_range",
        lambda image: traced.append(1) or to_value_range(image),
    )
    run = evaluator_of(model, config, engine)
    first = run()
    count = len(traced)
    assert count
    assert run() == first
    for weight in model.weights:
        weight.assign(weight * 0 + 0.01)
    blind = run()
    assert len(traced) == count
    assert blind != first
    # All features are equal, so all images are of one class.
    assert blind[0]["accuracy"] < 0.2
    model.get_layer("stem").bias.assign([np.nan] * 16)
    with pytest.raises(ValueError, match="digits: the model's features are"):
        run()


def test_a_broken_image_is_missing_from_its_support_set(
    tmp_path, engine_of, capsys
):
    rng = np.random.default_rng(0)
    for name, shade in (("a", 60), ("b", 190)):
        for part, count in (("train", 6), ("test", 9)):
            where = tmp_path / part / name
            where.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(shade - 50, shade + 50, (8, 8, 3))
                png = tf.io.encode_png(pixels.astype(np.uint8)).numpy()
                (where / f"{i}.png").write_bytes(png)
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"nothing")
    (tmp_path / "test" / "b" / "3.png").write_bytes(b"nothing")
    config = resolved(
        "model.num_blocks=1",
        f"fewshot.data=folder:{tmp_path}",
        "fewshot.policy=resize",
        "fewshot.shots=6,7",
        "fewshot.seeds=1",
        "data.max_broken=0.2",
    )
    model = random_model(config, engine_of(2), classes=2)
    run = evaluator_of(model, config, engine_of(2))
    (sets,) = data.open_fewshot(config)
    with tf.device("cpu:0"):
        (x, y), (x_test, y_test) = (
            all_features(model, split) for split in (sets.train, sets.test)
        )
    assert (len(y), len(y_test)) == (11, 17)
    predicted = fewshot.fit(x, y, num_classes=2).predict(x_test)[0]
    for _ in range(2):
        found = run()
        assert [x["count"] for x in found] == [17, 17]
        for score in found:
            assert score["accuracy"] == np.mean(predicted == y_test)
    told = capsys.readouterr().err
    assert "2 of 2 classes have fewer than 7 examples (the fewest 6)" in told
    assert told.count("train/a/2.png") == 1
    assert told.count("test/b/3.png") == 1
    # Where none may be broken it stops, and says which.
    config = config_lib.override(config, ["data.max_broken=0"])
    run = evaluator_of(model, config, engine_of(1))
    with pytest.raises(data.DataError, match=r"train/a/2\.png"):
        run()


def test_a_stream_keeps_its_support_sets(cifar10_dir):
    """Of TFRecords all is read to find a few: once, not at every call."""
    split = data.open_split("cifar10", "train[:200]", str(cifar10_dir))
    indices = np.array([3, 199, 40, 41])
    records = list(split.records())
    reads = []

    def counted():
        def read(i):
            reads.append(int(i))
            return i

        numbered = split.records().enumerate()
        return numbered.map(
            lambda i, record: {
                **record,
                "read": tf.py_function(read, [i], tf.int64),
            }
        )

    chosen = data.choose(dataclasses.replace(split, records=counted), indices)
    twice = list(chosen.records().repeat(2))  # as a pass goes over it
    assert reads == list(range(200))
    assert len(twice) == 2 * chosen.num_examples == 8
    for i, record in zip([*sorted(indices)] * 2, twice, strict=True):
        assert record["image"] == records[i]["image"]
    np.testing.assert_array_equal(
        chosen.labels(), split.labels()[np.sort(indices)]
    )


def watched(*overrides):
    """A short run with checkpoints and few-shot evaluations at 6 and 12."""
    return small(
        *SETTINGS, "fewshot.every=6", "train.checkpoint_every=6", *overrides
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The finished run of `watched`, and what it printed."""
    workdir = tmp_path_factory.mktemp("measured") / "run"
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        trainer.fit(
            watched(),
            workdir=workdir,
            engine=make_engine(1),
        )
    return workdir, shown.getvalue()


def test_while_training(measured, tmp_path, engine_of, capsys):
    """The scores are those of the checkpoints, and the run is another's."""
    workdir, shown = measured
    assert "digits: 1-shot l2=16 0." in shown
    assert "Evaluations took " in shown
    plain = small("model.num_blocks=1", "train.checkpoint_every=6")
    trainer.fit(plain, workdir=tmp_path / "plain", engine=engine_of(1))
    assert_same_weights(workdir, tmp_path / "plain", rtol=0, atol=0)
    lines = lines_of(workdir)
    found = [line for line in lines if line["kind"] == "fewshot"]
    others = [line for line in lines if line["kind"] != "fewshot"]
    assert others == lines_of(tmp_path / "plain")
    assert [x["step"] for x in found] == [6] * 6 + [12] * 6
    model, config, *_ = assembly.load_trained(workdir, 12)
    run = evaluator_of(model, config, engine_of(1))
    for step in (12, 6):
        if step == 6:  # into the same model, which is compiled
            early = assembly.load_trained(workdir, step).model
            model.set_weights(early.get_weights())
        for line, score in zip(
            [x for x in found if x["step"] == step], run(), strict=True
        ):
            assert line == {"step": step, "kind": "fewshot", **score}

    # A run may go on with other few-shot settings, and is the same run.
    trainer.fit(plain, workdir=workdir, engine=engine_of(1))
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [6, 12])
def test_a_failing_few_shot_evaluation_loses_nothing(
    killed_at, measured, tmp_path, engine_of, monkeypatch
):
    """The run is saved before it, and goes on with what is missing."""
    calls = []
    original = fewshot.Regression.predict

    def fail(self, *arguments):
        calls.append(1)  # 6 of them at a step: 3 shots, 2 seeds
        if len(calls) > killed_at - 6:
            raise OSError("the disk is gone")
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fewshot.Regression, "predict", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            trainer.fit(watched(), workdir=tmp_path, engine=engine_of(1))
    steps = list(range(6, killed_at + 1, 6))
    assert checkpoint.Checkpoints(tmp_path).steps == steps
    trainer.fit(watched(), workdir=tmp_path, engine=engine_of(1))

    def by_step(workdir):
        return sorted(map(json.dumps, lines_of(workdir)))

    assert by_step(measured[0]) == by_step(tmp_path)
    assert_same_weights(measured[0], tmp_path, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fewshot.data=digits@train"], "cannot read 'digits@train'"),
        (["fewshot.data=digits,,"], "cannot read ''"),
        (["fewshot.data=digits,digits"], "digits@train@test twice"),
        (["fewshot.data=digits@train@train[:9]"], "must not be in"),
        (["fewshot.data=digits@train@test[:0]"], "has no examples"),
        (
            [
                "fewshot.data=digits,digits@train[:50%]@test",
                "fewshot.classes=1",
            ],
            "one data set",
        ),
        (["fewshot.data=digits", "fewshot.classes=1,ten"], "no class 'ten'"),
        (["fewshot.data=folder:/nowhere"], "no image folder /nowhere"),
        (["fewshot.data=digits", "fewshot.shots=1,x"], "1,x"),
        (["fewshot.data=digits", "fewshot.shots=0"], "positive whole"),
        (["fewshot.data=digits", "fewshot.shots=5,5"], "each once"),
        (["fewshot.data=digits", "fewshot.l2_reg=64,64.0"], "each once"),
        (["fewshot.every=5"], "fewshot.data, which is not given"),
        (["fewshot.data=digits", "fewshot.l2_reg=-1"], "positive numbers"),
        (["fewshot.data=digits", "fewshot.policy=resize(9)"], "9 x 9 pixels"),
        (
            ["fewshot.data=digits", "fewshot.policy=resize(7)|central_crop"],
            "smaller side has 7",
        ),
    ],
)
def test_errors_come_before_the_training(
    overrides, message, tmp_path, engine_of
):
    with pytest.raises(ValueError, match=message):
        trainer.fit(small(*overrides), workdir=tmp_path, engine=engine_of(1))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_data_sets_by_name():
    names = [name for name, _ in data.parse_fewshot("reference,imagenet")]
    assert names == [
        "caltech",
        "cars",
        "cifar100",
        "dtd",
        "pets",
        "uc_merced",
        "imagenet",
    ]
    found = data.parse_fewshot("uc_merced, a@b@c[:5], a@b@d")
    assert found == [
        ("uc_merced", ("uc_merced", "train[:1000]", "train[1000:]")),
        ("a@b@c[:5]", ("a", "b", "c[:5]")),
        ("a@b@d", ("a", "b", "d")),
    ]
    assert data.parse_classification("imagenet", "x")[2] == (
        "imagenet_v2",
        ("imagenet_v2", "test"),
    )
    path = 'folder:"gs://a,b@c"'
    assert data.parse_classification(f"{path}@x,d", "test") == [
        ("folder:gs://a,b@c", ("folder:gs://a,b@c", "x")),
        ("d", ("d", "test")),
    ]
    for text in ("folder:/a@b/c@x@y", "folder:/no,where"):
        with pytest.raises(ConfigError, match="in double quotes"):
            data.parse_classification(text, "test")
    assert data.parse_classification("a,a@b", "test") == [
        ("a@test", ("a", "test")),
        ("a@b", ("a", "b")),
    ]
    import tensorflow_datasets as tfds

    known = tfds.list_builders()
    for name, (dataset, *_) in data.parse_fewshot("reference,imagenet"):
        assert dataset.partition(":")[0] in known, name


def test_preprocessing_is_the_authors():
    config = config_lib.override(
        recipes.imagenet_b(), ["fewshot.data=cifar100"]
    )
    split = data.open_split("digits", "test")
    assert data.fewshot_policy(config, split) == "resize(256)|central_crop"
    same = dataclasses.replace(split, image_size=224)
    assert data.fewshot_policy(config, same) == "resize"
    config = config_lib.override(config, ["fewshot.policy=flip|resize"])
    assert data.fewshot_policy(config, same) == "flip|resize"


def test_durations():
    config = config_lib.resolve(
        small("fewshot.data=digits", "fewshot.every_epochs=2"),
        num_examples=240,
    )
    assert (config.fewshot.every, config.fewshot.every_epochs) == (20, None)
    assert "fewshot.every_epochs" in config_lib.field_help()
    text = json.dumps(dataclasses.asdict(config))
    assert "1,5,10,25" in text
