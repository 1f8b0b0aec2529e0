"""The batches of training and evaluation: order, shards, randomness."""

import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data
from keras_mixer.data import batches as batches_lib, splits
from keras_mixer.run import fields
from tests.data.streams import joined, numbers, shards_of, stream

CUTMIX = "resize|keras_cv.CutMix(alpha=1.0)"


def test_any_number_of_shards_and_hosts_has_the_same_batch():
    """Epochs of 50 examples: batches of 24 straddle them."""
    split = data.open_split("digits", "train[:50]")
    [[first], [second]] = shards_of(
        split, 2, num_shards=1, shards=[0], start_step=7
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
                start_step=7,
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


@pytest.mark.parametrize(
    ("num_shards", "hosts", "per_example"),
    [(1, [[0]], True), (4, [[0, 1], [2, 3]], False)],
)
def test_mixup_partners_are_the_rolled_batch(num_shards, hosts, per_example):
    split = data.open_split("digits", "train[:50]")
    plain = shards_of(split, 3, num_shards=1, shards=[0])
    mixup = fields.MixupConfig(p=0.5, per_example=per_example)
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

    @tf.function
    def draw(keys):
        return tf.map_fn(
            lambda key: batches_lib._mixing_share(5, key, p),
            keys,
            fn_output_signature=tf.float32,
        )

    keys = tf.range(3000, dtype=tf.int64)
    shares = draw(keys).numpy()

    def cdf(x):
        return stats.beta.cdf(x, p, p) - stats.beta.cdf(1 - x, p, p)

    assert np.isfinite(shares).all()
    assert stats.kstest(shares.astype(np.float64), cdf).pvalue > 0.001
    other = batches_lib._mixing_share(6, keys[0], p)
    assert float(other) != shares[0]


def test_hosts_share_an_evaluation():
    hosts = 3
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
    other = numbers(stream(split, 10, seed=1))
    assert other != first
    # Seeds that differ by one do not share their epochs.
    assert other[:10] not in (first[10:20], first[20:30])


def test_starting_later_continues_the_stream(ten):
    """Across the ends of epochs, with batches that straddle them."""
    split, policy = ten("train"), "pad_crop(1)|flip"
    whole = stream(split, 12, policy=policy, batch_size=3)
    for start in (4, 10):  # within an epoch, and at the start of one
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


@pytest.mark.parametrize("batch_size", [1, 4, 16])
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
            split, num_bytes=lambda n=num_bytes: n, table=None
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

    @tf.function
    def draw(epochs):
        return tf.map_fn(
            lambda i: splits.permutation(tf.stack([7, i]), 5)[0],
            epochs,
            fn_output_signature=tf.int32,
        )

    first = draw(tf.range(2000, dtype=tf.int64)).numpy()
    counts = np.bincount(first, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 18.5  # p = 0.001


@pytest.mark.slow
def test_layers_that_mix_do_it_the_same_on_any_number_of_hosts():
    split = data.open_split("digits", "train[:50]")
    [*whole] = shards_of(split, 3, num_shards=1, shards=[0], policy=CUTMIX)
    plain = shards_of(split, 3, num_shards=1, shards=[0], policy="resize")
    got = [
        shards_of(split, 3, num_shards=3, shards=shards, policy=CUTMIX)
        for shards in ([0], [1, 2])
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
            {"batch_size": 24, "mixup": fields.MixupConfig(p=0.2)},
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
