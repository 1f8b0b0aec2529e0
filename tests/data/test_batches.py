import collections
import dataclasses
import hashlib
import os
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data
from keras_mixer.data import batches as batches_lib, sources, splits
from keras_mixer.run import config

DIGITS_TEST_SHA256 = (
    "ac6ada28192bd51afee49bd7498331d97a9233e21e762b219700b723b191dbf1"
)


@pytest.fixture
def folder(tmp_path):
    """Ten 6 x 6 images in two classes; the red value is the image's number."""
    for i in range(10):
        path = tmp_path / ("cats" if i < 7 else "dogs") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        image = np.full((6, 6, 3), i * 10, np.uint8)
        path.write_bytes(tf.io.encode_png(image).numpy())
    return tmp_path


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory):
    """A TFDS data set of ten 6 x 6 images in three files."""
    import tensorflow_datasets as tfds

    class TinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "picture": tfds.features.Image(shape=(6, 6, 3)),
                        "shape": tfds.features.ClassLabel(names=["o", "x"]),
                    }
                )
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(10):
                image = np.full((6, 6, 3), i * 10, np.uint8)
                yield i, {"picture": image, "shape": i % 2}

    root = tmp_path_factory.mktemp("tfds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TFDS's own
        TinyShapes(data_dir=root).download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=3)
        )
    return root


@pytest.fixture(params=["folder", "tfrecords"])
def ten(request):
    """The ten images, as a table of files and as a stream of records."""
    if request.param == "folder":
        root = request.getfixturevalue("folder")
        return lambda split: data.open_split(f"folder:{root}", split)
    root = request.getfixturevalue("tiny_shapes")
    return lambda split: data.open_split("tiny_shapes", split, str(root))


def stream(split, steps, *, batch_size=4, seed=0, start_step=0, **options):
    """Returns the (number, label) pairs of `steps` training batches."""
    batches = data.train_batches(
        split,
        batch_size=batch_size,
        image_size=6,
        policy=options.pop("policy", "resize"),
        seed=seed,
        start_step=start_step,
        **options,
    )
    return [
        (b["image"].numpy(), b["label"].numpy()) for b in batches.take(steps)
    ]


def numbers(batches):
    return [int(i[0, 0, 0]) // 10 for images, _ in batches for i in images]


def test_digits_are_fixed_and_stratified():
    train = data.open_split("digits", "train")
    test = data.open_split("digits", "test")
    assert (train.num_examples, test.num_examples) == (1437, 360)
    assert train.num_classes == 10
    assert train.image_size == 8
    # The published accuracies are of these 360 images.
    pixels = [r["image"] for r in test.records().as_numpy_iterator()]
    digest = hashlib.sha256(np.stack(pixels)[..., 0].tobytes()).hexdigest()
    assert digest == DIGITS_TEST_SHA256
    seen = set()
    for split in (train, test):
        records = list(split.records().as_numpy_iterator())
        assert len(records) == split.num_examples
        counts = collections.Counter(int(r["label"]) for r in records)
        for label in range(10):
            share = counts[label] / split.num_examples
            assert share == pytest.approx(0.1, abs=0.005)
        ours = {(r["image"].tobytes(), int(r["label"])) for r in records}
        assert not ours & seen, "an image is in both splits"
        seen |= ours
    first = next(iter(train.records()))["image"].numpy()
    assert first.shape == (8, 8, 3)
    assert first.dtype == np.uint8
    assert first.max() > 200


def test_splits_know_what_they_share(folder, cifar10_dir):
    for name, data_dir in (
        ("digits", None),
        (f"folder:{folder}", None),
        ("cifar10", str(cifar10_dir)),
    ):
        whole, first, second, middle = (
            data.open_split(name, split, data_dir)
            for split in (
                "train",
                "train[:60%]",
                "train[60%:]",
                "train[-50%:-30%]",
            )
        )
        assert not first.overlaps(second)
        for a, b in (
            (whole, second),
            (middle, first),
            (first, middle),
            (middle, second),
        ):
            assert a.overlaps(b), (name, a.ranges, b.ranges)
    assert not data.open_split("digits", "test").overlaps(
        data.open_split("digits", "train")
    )


def test_split_expressions():
    first = data.open_split("digits", "train[:50%]")
    second = data.open_split("digits", "train[50%:]")
    assert first.num_examples + second.num_examples == 1437
    images = [
        r["image"]
        for s in (first, second)
        for r in s.records().as_numpy_iterator()
    ]
    whole = data.open_split("digits", "train").records().as_numpy_iterator()
    np.testing.assert_array_equal(images, [r["image"] for r in whole])


def test_chosen_classes_get_new_labels():
    whole = data.open_split("digits", "train")
    old = list(whole.records().as_numpy_iterator())
    np.testing.assert_array_equal(whole.labels(), [r["label"] for r in old])
    part = data.open_split("digits", "train", classes="7, 2,9")
    assert part.class_names == ("7", "2", "9")
    expected = [
        (r["image"].tobytes(), [7, 2, 9].index(r["label"]))
        for r in old
        if r["label"] in (7, 2, 9)
    ]
    got = list(part.records().as_numpy_iterator())
    assert [(r["image"].tobytes(), r["label"]) for r in got] == expected
    assert part.num_examples == len(expected)
    np.testing.assert_array_equal(
        part.labels(), [label for _, label in expected]
    )


def test_examples_without_a_label_are_in_no_chosen_class():
    split = data.open_split("digits", "test")
    labels = np.array([0, -1, 1, -1])
    split = dataclasses.replace(
        split,
        class_names=("a", "b"),
        num_examples=4,
        records=lambda: tf.data.Dataset.from_tensor_slices(
            {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": labels}
        ),
        labels=lambda: labels,
    )
    chosen = sources._keep_classes(split, "b,a")
    got = [r["label"] for r in chosen.records().as_numpy_iterator()]
    assert got == chosen.labels().tolist() == [1, 0]
    assert chosen.num_examples == 2


def test_classes_of_a_tfds_data_set(cifar10_dir):
    split = data.open_split(
        "cifar10", "test[:10%]", str(cifar10_dir), classes="ship,cat"
    )
    counts = collections.Counter(
        int(r["label"]) for r in split.records().as_numpy_iterator()
    )
    assert counts == collections.Counter(split.labels().tolist())
    assert sum(counts.values()) == split.num_examples
    assert 150 < split.num_examples < 250


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("7,seven", "no class 'seven'. Its classes: 0, 1"),
        ("10", "no class '10'. Did you mean"),
        ("7,2,7", "names a class twice"),
        ("", "no class ''"),
    ],
)
def test_wrong_classes(classes, message):
    with pytest.raises(data.DataError, match=message):
        data.open_split("digits", "train", classes=classes)


def test_folder(folder):
    split = data.open_split(f"folder:{folder}", "train")
    assert split.class_names == ("cats", "dogs")
    assert split.num_examples == 10
    assert split.image_size is None
    images, labels = zip(*stream(split, 5, batch_size=2), strict=True)
    got = sorted(
        (int(i[0, 0, 0]) // 10, int(label))
        for i, label in zip(
            np.concatenate(images), np.concatenate(labels), strict=True
        )
    )
    assert got == [(i, int(i >= 7)) for i in range(10)]
    part = data.open_split(f"folder:{folder}", "train[:80%]")
    assert part.num_examples == 8


def test_folder_with_splits(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("with_splits")
    (folder).rename(root / "train")
    (root / "test" / "cats").mkdir(parents=True)
    (root / "test" / "dogs").mkdir()
    for name in ("cats", "dogs"):
        source = next((root / "train" / name).iterdir())
        (root / "test" / name / "1.png").write_bytes(source.read_bytes())
    assert data.open_split(f"folder:{root}", "test").num_examples == 2
    assert data.open_split(f"folder:{root}", "train").num_examples == 10
    (root / "test" / "dogs").rename(root / "test" / "wolves")
    with pytest.raises(data.DataError, match="differ in dogs, wolves"):
        data.open_split(f"folder:{root}", "train")


def shards_of(split, steps, *, num_shards, shards, **options):
    """Returns, for each step, the parts of its batch as they come."""
    batches = data.train_batches(
        split,
        batch_size=24,
        image_size=8,
        policy=options.pop("policy", "pad_crop(2)|flip"),
        seed=3,
        num_shards=num_shards,
        shards=shards,
        **options,
    )
    parts = list(batches.take(steps * len(shards)).as_numpy_iterator())
    size = len(shards)
    return [parts[i * size : (i + 1) * size] for i in range(steps)]


def joined(parts, key, skip=0):
    return np.concatenate([part[key][skip:] for part in parts])


@pytest.mark.parametrize("start_step", [0, 7])
def test_any_number_of_shards_and_hosts_has_the_same_batch(start_step):
    """Epochs of 50 examples: batches of 24 straddle them."""
    split = data.open_split("digits", "train[:50]")
    [[first], [second]] = shards_of(
        split, 2, num_shards=1, shards=[0], start_step=start_step
    )
    np.testing.assert_array_equal(first["index"], np.arange(24))
    for num_shards, hosts in (
        (4, [[0, 1, 2, 3]]),
        (4, [[0, 1], [2, 3]]),
        (3, [[0], [1], [2]]),
    ):
        got = [
            shards_of(
                split,
                2,
                num_shards=num_shards,
                shards=shards,
                start_step=start_step,
            )
            for shards in hosts
        ]
        for step, whole in enumerate((first, second)):
            parts = [part for host in got for part in host[step]]
            assert [len(p["label"]) for p in parts] == [24 // num_shards] * (
                num_shards
            )
            for key in whole:
                np.testing.assert_array_equal(joined(parts, key), whole[key])


def test_a_host_decodes_its_own_share_alone(folder):
    """The images of the other shards may even be broken."""
    split = data.open_split(f"folder:{folder}", "train")
    options = {
        "batch_size": 10,
        "image_size": 6,
        "policy": "resize",
        "seed": 0,
        "num_shards": 2,
    }
    mine = next(iter(data.train_batches(split, shards=[1], **options)))
    own = set((mine["image"][:, 0, 0, 0].numpy() // 10).tolist())
    for path in folder.rglob("*.png"):
        if int(path.stem) not in own:
            path.write_bytes(b"broken")
    options["broken"] = data.BrokenImages(split, limit=1)
    again = next(iter(data.train_batches(split, shards=[1], **options)))
    np.testing.assert_array_equal(again["image"], mine["image"])
    np.testing.assert_array_equal(again["label"], mine["label"])
    other = next(iter(data.train_batches(split, shards=[0], **options)))
    np.testing.assert_array_equal(other["label"], [-1] * 5)


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize(
    ("num_shards", "hosts"), [(1, [[0]]), (4, [[0, 1], [2, 3]])]
)
def test_mixup_partners_are_the_rolled_batch(num_shards, hosts, per_example):
    split = data.open_split("digits", "train[:50]")
    plain = shards_of(split, 3, num_shards=1, shards=[0])
    mixup = config.MixupConfig(p=0.5, per_example=per_example)
    got = [
        shards_of(split, 3, num_shards=num_shards, shards=s, mixup=mixup)
        for s in hosts
    ]
    seen = []
    for step, [whole] in enumerate(plain):
        parts = [part for host in got for part in host[step]]
        for key in ("image", "label"):
            assert all(len(p[key]) == 24 // num_shards + 1 for p in parts)
            np.testing.assert_array_equal(joined(parts, key, 1), whole[key])
            partners = np.concatenate([part[key][:-1] for part in parts])
            np.testing.assert_array_equal(
                partners, np.roll(whole[key], 1, axis=0)
            )
        np.testing.assert_array_equal(joined(parts, "index"), np.arange(24))
        share = joined(parts, "share")
        assert share.dtype == np.float32
        assert ((share >= 0.5) & (share <= 1)).all()
        assert len(np.unique(share)) == (24 if per_example else 1)
        seen.append(share)
    assert len(np.unique(seen)) == (72 if per_example else 3)


@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
def test_mixing_shares_are_of_the_folded_beta(p):
    """Kolmogorov-Smirnov against max(X, 1 - X), X ~ Beta(p, p)."""
    from scipy import stats

    keys = tf.range(3000, dtype=tf.int64)
    shares = tf.map_fn(
        lambda key: batches_lib._mixing_share(5, key, p),
        keys,
        fn_output_signature=tf.float32,
    ).numpy()

    def cdf(x):
        return stats.beta.cdf(x, p, p) - stats.beta.cdf(1 - x, p, p)

    assert np.isfinite(shares).all()
    assert stats.kstest(shares.astype(np.float64), cdf).pvalue > 0.001
    other = batches_lib._mixing_share(6, keys[0], p)
    assert float(other) != shares[0]


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_hosts_share_an_evaluation(hosts):
    split = data.open_split("digits", "test[:50]")
    seen = []
    for host in range(hosts):
        batches = data.eval_batches(
            split,
            batch_size=12,
            image_size=8,
            policy="resize",
            num_hosts=hosts,
            host=host,
            replicas=6,
        )
        parts = list(batches.as_numpy_iterator())
        assert len(parts) == 5 * 6 // hosts  # as many on each host
        assert all(part["image"].shape == (2, 8, 8, 3) for part in parts)
        for part in parts:
            real = part["mask"] > 0
            seen += [
                (image.tobytes(), label)
                for image, label in zip(
                    part["image"][real], part["label"][real], strict=True
                )
            ]
    want = [
        (r["image"].tobytes(), r["label"])
        for r in split.records().as_numpy_iterator()
    ]
    assert sorted(seen) == sorted(want)


def test_a_tfds_data_set_is_prepared_and_read(tiny_shapes):
    split = data.open_split("tiny_shapes", "train[:80%]", str(tiny_shapes))
    assert split.num_examples == 8
    assert split.class_names == ("o", "x")
    assert split.image_size == 6
    batches = stream(split, 4, batch_size=2)
    labels = np.concatenate([labels for _, labels in batches])
    for number, label in zip(numbers(batches), labels, strict=True):
        assert number % 2 == label
    assert len(set(numbers(batches))) == 8
    with pytest.raises(data.DataError, match="'dev'.*train"):
        data.open_split("tiny_shapes", "dev", str(tiny_shapes))


@pytest.mark.parametrize("part", ["train", "train[25%:85%]"])
def test_files_in_any_order_hold_the_same_records(tiny_shapes, part):
    """TFDS reads them in its order, with its names; we read them ourselves."""
    split = data.open_split("tiny_shapes", part, str(tiny_shapes))

    def seen(records):
        return [
            (r["name"], r["label"], r["image"])
            for r in records.as_numpy_iterator()
        ]

    fixed = seen(split.records())
    seed = tf.constant([0, 1], tf.int64)
    one_record = seen(split.in_order_of(seed, 0, 1))
    assert sorted(one_record) == sorted(fixed)
    assert one_record != fixed, "the files keep their order"
    for first in (0, 3, len(fixed) - 1):
        whole = seen(split.in_order_of(seed, 0, 4))
        assert seen(split.in_order_of(seed, first, 4)) == whole[first:]


def test_cifar10(cifar10_dir):
    split = data.open_split("cifar10", "train[99%:]", str(cifar10_dir))
    assert split.num_examples == 500
    assert split.image_size == 32
    assert split.class_names[0] == "airplane"
    ((images, labels),) = stream(split, 1, batch_size=8)
    assert images.shape == (8, 6, 6, 3)
    assert images.std() > 20
    assert set(labels) <= set(range(10))


def test_photos_of_many_sizes(photos_dir):
    split = data.open_split(f"folder:{photos_dir}", "train")
    assert split.num_examples == 244
    batches = data.train_batches(
        split,
        batch_size=8,
        image_size=64,
        policy="inception_crop|flip",
        seed=0,
    )
    batch = next(iter(batches))
    assert batch["image"].shape == (8, 64, 64, 3)
    assert set(batch["label"].numpy()) == {0, 1}


def test_every_epoch_shows_every_example_in_its_own_order(ten):
    split = ten("train")
    order = numbers(stream(split, 15, batch_size=2))
    epochs = [tuple(order[i : i + 10]) for i in (0, 10, 20)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len(set(epochs)) == 3


def test_order_comes_from_the_seed_alone(ten):
    split = ten("train")
    first = numbers(stream(split, 10))
    tf.random.set_seed(0)
    assert numbers(stream(split, 10)) == first
    tf.random.set_seed(77)
    assert numbers(stream(split, 10)) == first
    assert numbers(stream(split, 10, seed=1)) != first
    # Seeds that differ by one do not share their epochs.
    assert numbers(stream(split, 10, seed=1))[:10] not in (
        first[10:20],
        first[20:30],
    )


@pytest.mark.parametrize("policy", ["resize", "pad_crop(1)|flip"])
def test_starting_later_continues_the_stream(ten, policy):
    """Across the ends of epochs, with batches that straddle them."""
    split = ten("train")
    whole = stream(split, 12, policy=policy, batch_size=3)
    for start in (1, 4, 7, 10):
        rest = stream(
            split, 12 - start, policy=policy, batch_size=3, start_step=start
        )
        for (a, b), (c, d) in zip(whole[start:], rest, strict=True):
            np.testing.assert_array_equal(a, c)
            np.testing.assert_array_equal(b, d)


def test_augmentation_is_keyed_by_the_position_not_by_the_batch(ten):
    split = ten("train")
    policy = "pad_crop(2)|flip"
    by_two = stream(split, 10, policy=policy, batch_size=2)
    by_five = stream(split, 4, policy=policy, batch_size=5)
    np.testing.assert_array_equal(
        np.concatenate([i for i, _ in by_two]),
        np.concatenate([i for i, _ in by_five]),
    )


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_evaluation_counts_every_example_once(folder, batch_size):
    split = data.open_split(f"folder:{folder}", "train")
    batches = data.eval_batches(
        split, batch_size=batch_size, image_size=6, policy="resize"
    )
    seen = []
    for batch in batches:
        assert batch["image"].shape == (batch_size, 6, 6, 3)
        for image, label, mask in zip(
            batch["image"].numpy(),
            batch["label"].numpy(),
            batch["mask"].numpy(),
            strict=True,
        ):
            if mask:
                number = int(image[0, 0, 0]) // 10
                assert label == int(number >= 7)
                seen.append(number)
    assert sorted(seen) == list(range(10))


def test_small_shuffle_buffers_still_show_every_example(ten):
    split = ten("train")
    order = numbers(stream(split, 5, batch_size=4, shuffle_buffer=3))
    for epoch in (order[:10], order[10:]):
        assert sorted(epoch) == list(range(10))


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digits", "valid", "splits are train, test"),
        ("digits", "train[:x]", r"Cannot use the split 'train\[:x\]'"),
        ("digits", "train[:0]", "no examples"),
        ("digits", "train+test", r"without '\+'"),
        ("folder:/nowhere/at/all", "train", "no image folder /nowhere"),
        ("no_such_data_set", "train", "no data set of TFDS.*folder:/path"),
    ],
)
def test_errors(name, split, message):
    with pytest.raises(data.DataError, match=message):
        data.open_split(name, split)


def test_folder_errors(tmp_path):
    with pytest.raises(data.DataError, match="has no folders"):
        data.open_split(f"folder:{tmp_path}", "train")
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    with pytest.raises(data.DataError, match="cats has no image"):
        data.open_split(f"folder:{tmp_path}", "train")


def test_mixed_folder_layouts_are_refused(tmp_path):
    for folder in ("train/cats", "raw"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(data.DataError, match="mixes two layouts: train.* raw"):
        data.open_split(f"folder:{tmp_path}", "train")


def test_hidden_files_are_no_images(folder):
    (folder / "cats" / "._0.png").write_bytes(b"written by macOS")
    assert data.open_split(f"folder:{folder}", "train").num_examples == 10


@pytest.mark.parametrize("label", [-1, 3])
def test_examples_without_a_label_stop_the_run(label):
    split = data.Split(
        name="tiny test",
        num_examples=1,
        class_names=("a", "b", "c"),
        image_size=2,
        records=lambda: tf.data.Dataset.from_tensors(
            {
                "image": tf.zeros((2, 2, 3), tf.uint8),
                "label": tf.constant(label, tf.int64),
            }
        ),
        labels=lambda: np.array([label]),
    )
    batches = data.eval_batches(
        split, batch_size=1, image_size=2, policy="resize"
    )
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="tiny test has an example without"
    ):
        next(iter(batches))


def test_what_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **_):
        raise OSError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(data.DataError) as caught:
        data.open_split("cifar100", "train", str(tmp_path))
    message = str(caught.value)
    for part in (
        f"'cifar100' is not in {tmp_path}",
        "OSError: no network",
        "data.data_dir",
        "tfds build cifar100",
        "data.name=digits",
    ):
        assert part in message


def test_wrong_split_of_a_tfds_name(cifar10_dir):
    with pytest.raises(data.DataError, match="'tran'.*train, test"):
        data.open_split("cifar10", "tran", str(cifar10_dir))


def test_a_cached_split_is_read_once(folder):
    split = data.open_split(f"folder:{folder}", "train")
    options = {
        "batch_size": 5,
        "image_size": 6,
        "policy": "flip",
        "seed": 0,
        "cache": True,
    }
    batches = data.train_batches(split, **options)
    got = []
    for number, batch in enumerate(batches.take(8)):
        if number == 2:  # the third epoch at the latest was read ahead
            shutil.rmtree(folder)
        got += list(batch["image"][:, 0, 0, 0].numpy() // 10)
    epochs = [tuple(got[i : i + 10]) for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 4


def test_a_cache_larger_than_the_memory_is_refused(folder, monkeypatch):
    split = data.open_split(f"folder:{folder}", "train")
    split = dataclasses.replace(split, num_bytes=lambda: 10**15)
    with pytest.raises(data.DataError, match=r"1000000\.0 GB, and .* are free"):
        data.train_batches(
            split,
            batch_size=5,
            image_size=6,
            policy="resize",
            seed=0,
            cache=True,
        )


def test_a_shuffle_buffer_holds_a_gibibyte(folder, tiny_shapes):
    split = data.open_split(f"folder:{folder}", "train")
    size = sum(path.stat().st_size for path in folder.rglob("*.png"))
    assert split.num_bytes() == size
    for num_bytes, expected in (
        (10 * 2**30, 1),
        (5 * 2**30, 2),
        (100 * 2**30, 1),
        (1000, 10),
        (None, 10),
    ):
        of_size = dataclasses.replace(
            split, num_bytes=lambda n=num_bytes: n, is_table=False
        )
        assert splits.buffer_size(of_size, None) == expected
        assert splits.buffer_size(of_size, 3) == 3
        assert splits.buffer_size(of_size, 30) == 10
    whole, part = (
        data.open_split("tiny_shapes", x, str(tiny_shapes))
        for x in ("train", "train[:50%]")
    )
    assert whole.num_bytes() > 10 * 75
    assert part.num_bytes() == whole.num_bytes() // 2


def test_permutations_are_uniform():
    """The first of five numbers, over 2000 epochs; 4 degrees of freedom."""
    first = [
        int(splits.permutation(tf.constant([7, i], tf.int64), 5)[0])
        for i in range(2000)
    ]
    counts = np.bincount(first, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 18.5  # p = 0.001


@pytest.mark.parametrize("nested", [False, True])
def test_folders_in_a_bucket(folder, nested):
    """TensorFlow's in-memory file system stands for gs://."""
    root = f"ram://bucket_{nested}/photos"
    for path in folder.rglob("*.png"):
        for split in ("test/", "train/") if nested else ("",):
            target = f"{root}/{split}{path.relative_to(folder)}"
            tf.io.gfile.makedirs(target.rpartition("/")[0])
            tf.io.gfile.copy(str(path), target)
    ours = data.open_split(f"folder:{root}/", "train[:80%]")
    local = data.open_split(f"folder:{folder}", "train[:80%]")
    assert ours.class_names == local.class_names == ("cats", "dogs")
    a, b = stream(ours, 4), stream(local, 4)
    for (images, labels), (want, want_labels) in zip(a, b, strict=True):
        np.testing.assert_array_equal(images, want)
        np.testing.assert_array_equal(labels, want_labels)
    with pytest.raises(data.DataError, match="no image folder ram://nowhere"):
        data.open_split("folder:ram://nowhere", "train")


def test_images_in_folders_of_a_class_folder(tmp_path):
    """As `train/<class>/images/*.JPEG` of Tiny ImageNet."""
    for i, name in enumerate(("train/a/images", "train/b/images", "test/a")):
        path = tmp_path / name / f"{i}.png"
        path.parent.mkdir(parents=True)
        image = np.full((6, 6, 3), i * 10, np.uint8)
        path.write_bytes(tf.io.encode_png(image).numpy())
    (tmp_path / "test" / "b").mkdir()
    shutil.copy(tmp_path / "test" / "a" / "2.png", tmp_path / "test" / "b")
    split = data.open_split(f"folder:{tmp_path}", "train")
    assert sorted(numbers(stream(split, 1, batch_size=2))) == [0, 1]


CUTMIX = "resize|keras_cv.CutMix(alpha=1.0)"


@pytest.mark.parametrize(
    ("num_shards", "hosts"), [(3, [[0, 1, 2]]), (3, [[0], [1, 2]])]
)
def test_layers_that_mix_do_it_the_same_on_any_number_of_hosts(
    num_shards, hosts
):
    split = data.open_split("digits", "train[:50]")
    [*whole] = shards_of(split, 3, num_shards=1, shards=[0], policy=CUTMIX)
    plain = shards_of(split, 3, num_shards=1, shards=[0], policy="resize")
    got = [
        shards_of(split, 3, num_shards=num_shards, shards=s, policy=CUTMIX)
        for s in hosts
    ]
    groups = []
    for step, ([all_of_it], [before]) in enumerate(
        zip(whole, plain, strict=True)
    ):
        parts = [part for host in got for part in host[step]]
        for key in ("image", "label", "index"):
            np.testing.assert_array_equal(joined(parts, key), all_of_it[key])
        assert all_of_it["label"].shape == (24, 10)
        np.testing.assert_allclose(all_of_it["label"].sum(-1), 1, rtol=1e-5)
        # Every pixel is of an image of the group of 8, at the same place.
        for begin in range(0, 24, 8):
            group = slice(begin, begin + 8)
            mixed, old = all_of_it["image"][group], before["image"][group]
            found = (mixed[:, None] == old[None]).all(-1).any(1)
            assert found.all()
            groups.append((mixed != old).tobytes())
    assert len(set(groups)) == len(groups), "groups are mixed in the same way"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 12}, "a multiple of 8. Received: 12"),
        ({"batch_size": 24, "num_shards": 2}, "a multiple of 8. Received: 12"),
        (
            {"batch_size": 24, "mixup": config.MixupConfig(p=0.2)},
            r"so does mixup.p=0.2\. Choose one",
        ),
    ],
)
def test_what_layers_that_mix_ask_for(options, message):
    split = data.open_split("digits", "train")
    with pytest.raises(ValueError, match=message):
        data.train_batches(
            split, image_size=8, policy=CUTMIX, seed=0, **options
        )


def test_links_that_lead_back_are_not_followed(folder):
    (folder / "cats" / "loop").symlink_to("..")
    (folder / "cats" / "self").symlink_to(".")
    split = data.open_split(f"folder:{folder}", "train")
    assert (split.num_examples, split.class_names) == (10, ("cats", "dogs"))


def test_linked_class_folders_are_followed(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("links")
    for name in ("cats", "dogs"):
        (root / name).symlink_to(folder / name)
    assert data.open_split(f"folder:{root}", "train").num_examples == 10


def test_a_folder_that_cannot_be_listed(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("dogs"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(data.DataError, match="Cannot list .*dogs: Permission"):
        data.open_split(f"folder:{folder}", "train")
