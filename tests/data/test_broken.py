"""Images that cannot be decoded: the run goes on without them, or says why."""

import dataclasses
import json
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_mixer import data
from keras_mixer.engines import step
from keras_mixer.evaluation import classification, passes
from keras_mixer.run import config as config_lib, recipes
from keras_mixer.training import assembly, loop as trainer
from tests.training.common import assert_same_weights, lines_of, small


def png_header(side, rows):
    """A grey PNG of side x side pixels, of which some rows follow."""

    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
        )

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    row = b"\0" * (1 + -(-side // 8))
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(row) for _ in range(rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", body + packer.flush())
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def zoo(tmp_path):
    """24 good images, and every kind of file that users' folders have."""
    root = tmp_path / "zoo"
    rng = np.random.default_rng(0)
    for i in range(24):
        path = root / ("cats" if i % 2 else "dogs") / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
    whole = (root / "cats" / "01.jpg").read_bytes()
    broken = {
        "cats/truncated.jpg": whole[: len(whole) // 2],
        "cats/empty.jpg": b"",
        "dogs/text.jpg": b"These are not the pixels you are looking for.",
        "dogs/huge.png": png_header(30_000, 30_000),
    }
    for name, content in broken.items():
        (root / name).write_bytes(content)
    picture = Image.fromarray(rng.integers(0, 256, (20, 30, 4), np.uint8))
    Image.frombytes("CMYK", picture.size, picture.tobytes()).save(
        root / "dogs" / "cmyk.jpg"
    )
    Image.new("RGB", (1, 1), (200, 0, 0)).save(root / "cats" / "dot.png")
    return root, {str(root / name) for name in broken}


ZOO = (
    "data.eval_split=train",
    "data.allow_overlap=true",
    "model.image_size=8",
    "augment.policy=inception_crop|flip",
    "train.batch_size=12",
)


def zoo_config(root, *overrides):
    return small(
        f"data.name=folder:{root}", "data.train_split=train", *ZOO, *overrides
    )


def names_in(path):
    return {x.partition("\t")[0] for x in path.read_text().splitlines()}


@pytest.mark.parametrize(
    "policy",
    [
        "inception_crop|flip",
        pytest.param("resize", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_without_them(
    zoo, tmp_path, engine_of, capsys, policy
):
    root, broken = zoo
    config = zoo_config(root, "data.max_broken=0.2", f"augment.policy={policy}")
    run = tmp_path / "run"
    result = trainer.fit(config, workdir=run, engine=engine_of(1))
    assert result["count"] == 26  # with the CMYK and the 1 x 1
    assert np.isfinite(result["loss"])
    saved = json.loads((run / "config.json").read_text())
    assert saved["data"]["max_broken"] == 0.2
    for role in ("train", "evaluation"):
        assert names_in(run / f"broken_{role}.txt") == broken
    shown = capsys.readouterr().err
    for name in broken:
        assert shown.count(f"Dropped a broken image: {name}") == 2
    assert "Input is empty" in shown
    assert "One of JPEG" in shown


def test_the_run_stops_at_a_broken_image(zoo, tmp_path, engine_of):
    root, broken = zoo
    with pytest.raises(data.DataError) as caught:
        trainer.fit(
            zoo_config(root), workdir=tmp_path / "a", engine=engine_of(1)
        )
    message = str(caught.value)
    assert "1 of the 30 images" in message
    assert any(name in message for name in broken)
    assert "data.max_broken=0.067" in message


@pytest.mark.slow
def test_the_run_stops_where_too_many_are_broken(zoo, tmp_path, engine_of):
    """Three are allowed. The fourth stops the run, and stops it again."""
    root, broken = zoo
    # Good test images, so that it is the training split that stops the run.
    two = tmp_path / "two"
    for part in ("train", "test"):
        shutil.copytree(root, two / part)
    for name in broken:
        (two / "test" / "/".join(name.split("/")[-2:])).unlink()
    config = zoo_config(two, "data.eval_split=test", "data.max_broken=0.1")
    written = tmp_path / "b" / "broken_train.txt"
    for _ in range(2):
        with pytest.raises(data.DataError, match="4 of the 30 .* train cannot"):
            trainer.fit(config, workdir=tmp_path / "b", engine=engine_of(1))
        assert len(written.read_text().splitlines()) == 4
    # What the message says to do is allowed in the same workdir.
    config = config_lib.override(config, ["data.max_broken=0.27"])
    result = trainer.fit(config, workdir=tmp_path / "b", engine=engine_of(1))
    assert result["count"] == 26


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_any_number_of_replicas_drops_the_same(
    zoo, tmp_path, engine_of, replicas
):
    root, _ = zoo
    config = zoo_config(root, "data.max_broken=0.2", "mixup.p=0.5")
    for count in (1, replicas):
        trainer.fit(
            config, workdir=tmp_path / str(count), engine=engine_of(count)
        )
    one, several = tmp_path / "1", tmp_path / str(replicas)
    assert_same_weights(one, several, rtol=1e-5, atol=1e-5)
    evals = [
        [x for x in lines_of(run) if x["kind"] == "eval"]
        for run in (one, several)
    ]
    assert [x["count"] for x in evals[0]] == [26, 26]
    assert [x["count"] for x in evals[1]] == [26, 26]


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_a_broken_image_adds_nothing_to_loss_and_gradients(mixup):
    """The oracle: a batch that never had it, over the same batch size."""
    config = small(f"mixup.p={mixup}", "model.image_size=8")
    config = config_lib.override(config, ["train.batch_size=4"])
    model = assembly.build_mixer(config, 10)
    for variable in model.weights:
        variable.assign(np.random.default_rng(1).normal(0, 0.2, variable.shape))
    loss_of = step.make_loss(model, config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    images[1] = 0
    batch = {
        "image": images,
        "label": np.array([3, -1, 5, 7]),
        "index": np.arange(4),
    }
    left = [0, 2, 3]
    fewer = {key: value[left] for key, value in batch.items()}
    if mixup:
        share = np.array([0.6, 0.7, 0.8, 0.9], np.float32)
        roll = [3, 0, 1, 2]
        for of, rows in ((batch, range(4)), (fewer, left)):
            rows = list(rows)
            of["share"] = share[rows]
            of["partner_image"] = images[roll][rows]
            of["partner_label"] = np.array([3, -1, 5, 7])[roll][rows]
        # Example 2, whose partner is the broken one, stays as it is.
        fewer["share"] = np.array([0.6, 1.0, 0.9], np.float32)
        fewer["partner_label"][1] = 0
        fewer["partner_image"][1] = 255

    def gradients_of(batch):
        with tf.GradientTape() as tape:
            loss = loss_of(tf.nest.map_structure(tf.constant, batch), 0)
        return loss, tape.gradient(loss, model.trainable_variables)

    a, b = gradients_of(batch), gradients_of(fewer)
    assert float(a[0]) > 0
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
    for x, y in zip(a[1], b[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_batches_do_not_depend_on_what_is_broken(zoo):
    """The others are where they would be, whatever the chunk's size."""
    root, _ = zoo
    split = data.open_split(f"folder:{root}", "train")

    def run():
        return list(
            data.train_batches(
                split,
                batch_size=7,
                image_size=8,
                policy="inception_crop",
                seed=3,
                broken=data.BrokenImages(split, limit=1),
            )
            .take(9)
            .as_numpy_iterator()
        )

    before = run()
    names = sorted(root.rglob("*.jpg"))[::5]
    for name in names:
        name.write_bytes(b"broken, too")
    after = run()
    more = 0
    for a, b in zip(before, after, strict=True):
        more += (b["label"] == -1).sum() - (a["label"] == -1).sum()
        good = b["label"] >= 0
        for key in a:
            np.testing.assert_array_equal(a[key][good], b[key][good])
        assert (b["image"][~good] == 0).all()
    assert more >= len(names)


def test_a_file_that_went_away_is_a_broken_image(zoo):
    root, broken = zoo
    split = data.open_split(f"folder:{root}", "train")
    (root / "dogs" / "00.jpg").unlink()
    dropped = data.BrokenImages(split, limit=0.5)
    for _ in data.eval_batches(
        split, batch_size=5, image_size=8, policy="resize", broken=dropped
    ):
        pass
    assert dropped.names == {*broken, str(root / "dogs" / "00.jpg")}


def test_nothing_is_broken_without_a_word(zoo):
    """Without a BrokenImages the first one is an error that names it."""
    root, broken = zoo
    split = data.open_split(f"folder:{root}", "train")
    options = {"batch_size": 5, "image_size": 8, "policy": "resize"}
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        list(data.eval_batches(split, **options))
    assert any(name in str(caught.value) for name in broken)


@pytest.mark.slow
def test_a_test_split_without_one_good_image(zoo, tmp_path, engine_of):
    _, broken = zoo
    only = tmp_path / "only"
    for name in broken:
        path = only / "/".join(name.split("/")[-2:])
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, path)
    config = zoo_config(only, "data.max_broken=1", "train.steps=2")
    with pytest.raises(data.DataError, match="All images of .* are broken"):
        trainer.fit(config, workdir=tmp_path / "r", engine=engine_of(1))


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_wrong_limits(value):
    with pytest.raises(config_lib.ConfigError, match=r"data\.max_broken"):
        config_lib.override(recipes.digits(), [f"data.max_broken={value}"])


def test_a_list_that_cannot_be_written_does_not_stop(zoo, tmp_path, capsys):
    root, broken = zoo
    split = data.open_split(f"folder:{root}", "train")
    dropped = data.BrokenImages(
        split, limit=0.5, file=tmp_path / "missing" / "broken.txt"
    )
    batches = data.eval_batches(
        split, batch_size=5, image_size=8, policy="resize", broken=dropped
    )
    assert sum(b["mask"].sum() for b in batches.as_numpy_iterator()) == 26
    assert dropped.names == broken
    assert capsys.readouterr().err.count("Cannot write to") == 1


@pytest.mark.slow
def test_the_size_of_the_batch_changes_no_example(zoo):
    """Though it decides which images are tried at once, and how copied."""
    root, broken = zoo
    split = data.open_split(f"folder:{root}", "train")

    def stream(size):
        dropped = data.BrokenImages(split, limit=1)
        batches = data.train_batches(
            split,
            batch_size=size,
            image_size=8,
            policy="inception_crop|flip",
            seed=3,
            broken=dropped,
        )
        assert batches.element_spec["image"].shape == (size, 8, 8, 3)
        batches = list(batches.take(360 // size).as_numpy_iterator())
        assert dropped.names == broken
        return [
            np.concatenate([b[key] for b in batches])
            for key in ("image", "label")
        ]

    want = stream(40)
    for batch_size in (1, 20, 72):
        for got, expected in zip(stream(batch_size), want, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
def test_taking_a_pipeline_down_breaks_no_image(zoo):
    """What is cancelled fails, and is whole."""
    root, broken = zoo
    split = data.open_split(f"folder:{root}", "train")
    dropped = data.BrokenImages(split, limit=1)
    batches = data.train_batches(
        split,
        batch_size=8,
        image_size=32,
        policy="inception_crop|flip",
        seed=0,
        broken=dropped,
    )
    for _ in range(20):
        next(iter(batches))
    assert dropped.names <= broken


def test_names_that_are_not_utf_8(tmp_path):
    for name in (b"good", b"caf\xe9"):
        folder = os.path.join(os.fsencode(tmp_path), b"photos", name)
        os.makedirs(folder)
        Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
        shutil.copy(tmp_path / "one.png", os.path.join(folder, name + b".png"))
        with open(os.path.join(folder, b"x" + name + b".jpg"), "wb"):
            pass
    split = data.open_split(f"folder:{tmp_path}/photos", "train")
    dropped = data.BrokenImages(split, limit=0.5)
    batches = data.eval_batches(
        split, batch_size=4, image_size=8, policy="resize", broken=dropped
    )
    [batch] = batches.as_numpy_iterator()
    assert batch["mask"].sum() == 2
    assert len(dropped.names) == 2
    assert split.num_bytes() > 0


def test_an_image_that_is_read_now_and_then_is_not_lost(zoo):
    """A disk that fails twice is an error, not a broken image."""
    root, broken = zoo
    for name in broken:
        os.remove(name)
    split = data.open_split(f"folder:{root}", "train")
    tries = []

    def flaky(name):
        tries.append(name)
        if len(tries) <= 2:
            raise OSError("stale file handle")
        return tf.io.read_file(name)

    def load(record):
        name = split.name_of(record)
        return tf.cond(
            tf.strings.regex_full_match(name, ".*/00.jpg"),
            lambda: tf.py_function(flaky, [name], tf.string),
            lambda: tf.io.read_file(name),
        )

    split = dataclasses.replace(split, load=load)
    batches = data.eval_batches(
        split,
        batch_size=5,
        image_size=8,
        policy="resize",
        broken=data.BrokenImages(split, limit=1),
    )
    with pytest.raises(tf.errors.OpError, match="could not be read twice"):
        list(batches)


def test_layers_that_mix_mix_no_broken_image(zoo):
    root, _ = zoo
    split = data.open_split(f"folder:{root}", "train")
    batches = data.train_batches(
        split,
        batch_size=8,
        image_size=16,
        policy="resize|keras_cv.MixUp(alpha=1.0)",
        seed=0,
        broken=data.BrokenImages(split, limit=1),
    )
    sums = np.concatenate(
        [b["label"].sum(-1) for b in batches.take(8).as_numpy_iterator()]
    )
    assert ((sums == 0) | np.isclose(sums, 1)).all()
    assert (sums == 0).sum() >= 4


def test_hosts_that_saw_few_have_seen_too_many(zoo, engine_of):
    """Each is below the limit, all of them together are not."""
    root, broken = zoo
    split = data.open_split(f"folder:{root}", "train")
    model = assembly.build_mixer(zoo_config(root), split.num_classes)
    seen = data.BrokenImages(split, limit=0.1)
    seen.names |= broken  # as if another host had reported them
    evaluator = classification.make_evaluator(
        model,
        passes.Pass(
            split,
            batch_size=8,
            image_size=8,
            policy="resize",
            engine=engine_of(1),
            broken=seen,
        ),
        loss="softmax",
        xla=False,
    )
    with pytest.raises(data.DataError, match="4 of the 30 .* allows 3"):
        evaluator()
