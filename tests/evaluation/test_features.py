"""Few-shot accuracy of a Mixer's features: data sets, replicas, training."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data, evaluation as evaluate
from keras_mixer.data.augment import images
from keras_mixer.evaluation import fewshot
from keras_mixer.run import checkpoint, config as config_lib, recipes
from keras_mixer.training import assembly, loop as trainer
from tests import reference
from tests.training.test_loop import (
    assert_same_weights,
    lines_of,
    small,
)

SETTINGS = (
    "fewshot.data=digits@train[:300]@test[:107]",
    "fewshot.shots=1,5,40",
    "fewshot.l2_reg=16,1024",
    "fewshot.seeds=2",
)


def random_model(config, strategy, classes=10):
    """A Mixer of random weights, the head's included."""
    with strategy.scope():
        model = assembly.build_mixer(config, classes)
    reference.random_weights(model)
    return model


def all_features(model, split, side=8):
    """The features of a whole split, by Keras alone; not of broken images."""
    inner = keras.Model(model.inputs, model.get_layer("avg_pool").output)
    pixels, labels = [], []
    for record in split.records():
        image = split.load(record)
        if image.dtype == tf.string:
            if image == b"nothing":
                continue
            image = images.decode(image)
        pixels.append(images.resize(image, None, side))
        labels.append(record["label"])
    x = images.to_value_range(np.stack(pixels))
    return inner.predict(x, verbose=0), np.array(labels)


def resolved(*overrides):
    config = small(*overrides)
    model = dataclasses.replace(config.model, image_size=8)
    return dataclasses.replace(config, model=model)


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_equals_the_regression_of_all_features(
    replicas, precision, strategy_of
):
    """Though only the images of the support sets are computed; twice."""
    config = resolved(
        *SETTINGS, "train.batch_size=50", f"model.precision={precision}"
    )
    strategy = strategy_of(replicas)
    model = random_model(config, strategy)
    sets = data.open_fewshot(config)
    run = evaluate.make_fewshot_evaluators(
        model, sets, config=config, strategy=strategy
    )["digits"]
    tolerance = 0 if precision == "float32" else 0.03
    with tf.device("cpu:0"):
        train, test = (
            all_features(model, split)
            for split in (sets[0].train, sets[0].test)
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


def test_compiled_once_and_follows_the_weights(strategy_of, monkeypatch):
    config = resolved(*SETTINGS, "train.xla=true")
    strategy = strategy_of(1)
    model = random_model(config, strategy)
    traced = []
    original = images.to_value_range
    monkeypatch.setattr(
        images,
        "to_value_range",
        lambda image: traced.append(1) or original(image),
    )
    run = evaluate.make_fewshot_evaluators(
        model,
        data.open_fewshot(config),
        config=config,
        strategy=strategy,
    )["digits"]
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


def test_features_that_are_not_finite(strategy_of):
    config = resolved(*SETTINGS)
    model = random_model(config, strategy_of(1))
    model.get_layer("stem").bias.assign([np.nan] * 16)
    run = evaluate.make_fewshot_evaluators(
        model,
        data.open_fewshot(config),
        config=config,
        strategy=strategy_of(1),
    )["digits"]
    with pytest.raises(ValueError, match="digits: the model's features are"):
        run()


def test_a_broken_image_is_missing_from_its_support_set(
    tmp_path, strategy_of, capsys
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
        f"fewshot.data=folder:{tmp_path}",
        "fewshot.policy=resize",
        "fewshot.shots=6,7",
        "fewshot.seeds=1",
        "data.max_broken=0.2",
    )
    model = random_model(config, strategy_of(2), classes=2)
    sets = data.open_fewshot(config)
    run = evaluate.make_fewshot_evaluators(
        model, sets, config=config, strategy=strategy_of(2)
    )[f"folder:{tmp_path}"]
    with tf.device("cpu:0"):
        (x, y), (x_test, y_test) = (
            all_features(model, split)
            for split in (sets[0].train, sets[0].test)
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
    run = evaluate.make_fewshot_evaluators(
        model,
        data.open_fewshot(config),
        config=config,
        strategy=strategy_of(2),
    )[f"folder:{tmp_path}"]
    with pytest.raises(data.DataError, match=r"train/a/2\.png"):
        run()


def test_a_stream_keeps_its_support_sets(cifar10_dir):
    """Of TFRecords all is read to find a few: once, not at every call."""
    split = data.open_split("cifar10", "train[:2000]", str(cifar10_dir))
    indices = np.array([3, 1999, 40, 41])
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
    assert reads == list(range(2000))
    assert len(twice) == 2 * chosen.num_examples == 8
    for i, record in zip([*sorted(indices)] * 2, twice, strict=True):
        assert record["image"] == records[i]["image"]
    np.testing.assert_array_equal(
        chosen.labels(), split.labels()[np.sort(indices)]
    )


def test_while_training(tmp_path, strategy_of, capsys):
    """The scores are those of the checkpoints, and the run is another's."""
    common = ("train.checkpoint_every=6",)
    measured, plain = tmp_path / "measured", tmp_path / "plain"
    config = small(*common, *SETTINGS, "fewshot.every=6")
    strategy = strategy_of(2)
    trainer.fit(config, workdir=measured, strategy=strategy)
    shown = capsys.readouterr().out
    assert "digits: 1-shot l2=16 0." in shown
    assert "Evaluations took " in shown
    trainer.fit(small(*common), workdir=plain, strategy=strategy)
    assert_same_weights(measured, plain, rtol=0, atol=0)
    lines = lines_of(measured)
    found = [line for line in lines if line["kind"] == "fewshot"]
    assert [x for x in lines if x["kind"] != "fewshot"] == lines_of(plain)
    assert [x["step"] for x in found] == [6] * 6 + [12] * 6
    for step in (6, 12):
        model, config, _ = assembly.load_model(measured, step)
        run = evaluate.make_fewshot_evaluators(
            model,
            data.open_fewshot(config),
            config=config,
            strategy=strategy_of(1),
        )["digits"]
        for line, score in zip(
            [x for x in found if x["step"] == step], run(), strict=True
        ):
            assert line == {"step": step, "kind": "fewshot", **score}

    # A run may go on with other few-shot settings, and is the same run.
    trainer.fit(small(*common), workdir=measured, strategy=strategy)
    assert "is finished" in capsys.readouterr().out


def test_a_failing_few_shot_evaluation_loses_nothing(
    tmp_path, strategy_of, monkeypatch
):
    """The run is saved before it, and goes on with what is missing."""
    config = small(*SETTINGS, "fewshot.every=4", "train.steps=8")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer.fit(config, workdir=whole, strategy=strategy_of(1))
    original = fewshot.Regression.predict
    for steps, killed_at in (([4], 4), ([4, 8], 8)):
        calls = []

        def fail(self, *arguments, killed_at=killed_at, calls=calls):
            calls.append(1)  # 6 of them at a step: 3 shots, 2 seeds
            if killed_at == 4 or len(calls) > 6:
                raise OSError("the disk is gone")
            return original(self, *arguments)

        monkeypatch.setattr(fewshot.Regression, "predict", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            trainer.fit(config, workdir=parts, strategy=strategy_of(1))
        assert checkpoint.Checkpoints(parts).steps == steps
    monkeypatch.setattr(fewshot.Regression, "predict", original)
    trainer.fit(config, workdir=parts, strategy=strategy_of(1))

    def by_step(workdir):
        return sorted(map(json.dumps, lines_of(workdir)))

    assert by_step(whole) == by_step(parts)
    assert_same_weights(whole, parts, rtol=0, atol=0)


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
    overrides, message, tmp_path, strategy_of
):
    with pytest.raises(ValueError, match=message):
        trainer.fit(
            small(*overrides), workdir=tmp_path, strategy=strategy_of(1)
        )
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
    assert data.parse_classification("a,a@b", "test") == [
        ("a@test", ("a", "test")),
        ("a@b", ("a", "b")),
    ]
    import tensorflow_datasets as tfds

    for name, (dataset, *_) in data.parse_fewshot("reference,imagenet"):
        assert dataset.partition(":")[0] in tfds.list_builders(), name


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
