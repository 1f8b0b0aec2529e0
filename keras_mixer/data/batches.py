"""A split becomes the batches of training and of evaluation.

Everything random is a function of (seed, epoch) for the order and of (seed,
position in the training stream) for the augmentation. So the batches of a
step depend on the seed and the step alone: not on the number of devices or
hosts, nor on where the run was interrupted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mixer.data.augment import keras_layers, policy as policy_lib
from keras_mixer.data.augment.keras_layers import Mixing
from keras_mixer.data.broken import BrokenImages, map_images
from keras_mixer.data.splits import (
    DataError,
    Record,
    Split,
    buffer_size,
    cached,
    check_labels,
)
from keras_mixer.run.config import MixupConfig

NO_LABEL = -1  # of an example that does not count
MIXING_GROUP = 8  # examples that a layer of keras-cv mixes with one another

_GRAPH_SEED = 1
_MIXUP_SEED = 2**32  # apart from the augmentation's
_MIXING_SEED = 2**33


def parse_train_policy(
    policy: str,
    split: Split,
    *,
    image_size: int,
    shard_size: int,
    mixup: MixupConfig | None = None,
) -> tuple[Callable[[tf.Tensor, tf.Tensor], tf.Tensor], Mixing | None]:
    """Compiles the augmentation of single images and that of a batch.

    Args:
      policy: Steps joined by `|`, see `policy.parse`; the last ones may
        be layers that mix images (keras_layers.py).
      split: What it is applied to.
      image_size: Side of the images that the model takes, in pixels.
      shard_size: Examples of a part of the global batch.
      mixup: What else is to be mixed.

    Returns:
      A function of an image and a seed, and one of a group of
      `MIXING_GROUP` images, their labels and a seed, or None.

    Raises:
      ValueError: `policy` cannot be read, or mixes what cannot be mixed.
    """
    of_images, mixing = policy_lib.split(policy)
    apply = policy_lib.parse(of_images, image_size, split.image_size)
    if not mixing:
        return apply, None
    if mixup is not None and mixup.p:
        raise ValueError(
            f"The policy {policy!r} mixes images, and so does mixup.p="
            f"{mixup.p}. Choose one: mixup.p=0"
        )
    if shard_size % MIXING_GROUP:
        raise ValueError(
            f"{mixing[0]!r} mixes the images of groups of {MIXING_GROUP}, so "
            f"that any number of replicas mixes the same: the part of a batch "
            f"that a replica gets must be a multiple of {MIXING_GROUP}. "
            f"Received: {shard_size}"
        )
    return apply, keras_layers.make_mixing(mixing, image_size)


def _prepare(
    items: tf.data.Dataset,
    image_of: Callable[[tf.Tensor, Record], tf.Tensor],
    rest_of: Callable[[tf.Tensor, Record], dict[str, tf.Tensor]],
    *,
    split: Split,
    image_size: int,
    batch_size: int | None,
    dropped: Mapping[str, Any],
    broken: BrokenImages | None,
) -> tf.data.Dataset:
    """Makes examples of records, in parallel.

    Args:
      items: `(position, record)`.
      image_of: Makes uint8 [image_size, image_size, 3]; fails for a broken
        image.
      rest_of: Makes everything else.
      split: What the records are of.
      image_size: Side of the images.
      batch_size: Examples of a batch, for items without end; None: no batches.
      dropped: What replaces the rest of an example whose image is broken.
      broken: Is told of those; without it the first one is an error.
    """

    def prepare(position: tf.Tensor, record: Record) -> dict[str, tf.Tensor]:
        image = image_of(position, record)
        return {**rest_of(position, record), "image": image}

    def otherwise(position: tf.Tensor, record: Record) -> dict[str, tf.Tensor]:
        black = tf.zeros([image_size, image_size, 3], tf.uint8)
        return {**rest_of(position, record), "image": black, **dropped}

    def check(position: tf.Tensor, some: Record) -> Any:
        return position, some if split.is_table else check_labels(some, split)

    if split.is_encoded:
        return map_images(
            items,
            prepare,
            otherwise=otherwise,
            check=check,
            name_of=lambda _, record: split.name_of(record),
            broken=broken or BrokenImages(split),
            batch_size=batch_size,
        )
    examples = items.map(
        lambda *item: prepare(*check(*item)),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    if batch_size is None:
        return examples
    return examples.batch(batch_size, drop_remainder=True)


def _shard(
    records: tf.data.Dataset, batch_size: int, wanted: np.ndarray
) -> tf.data.Dataset:
    """Picks examples of every global batch, before they are decoded.

    Args:
      records: `(position, record)`, from the beginning of a batch on.
      batch_size: Examples of the global batch.
      wanted: Their indices in the global batch, in the order in which they
        are to come; some may come twice, others not at all.
    """

    def pick(position: tf.Tensor, record: Mapping[str, tf.Tensor]) -> Any:
        return tf.gather(position, wanted), {
            key: tf.gather(value, wanted) for key, value in record.items()
        }

    batches = records.batch(batch_size, drop_remainder=True)
    return batches.map(pick).unbatch()


def _mixing_share(seed: int, key: tf.Tensor, p: float) -> tf.Tensor:
    """Draws lambda from Beta(p, p), and takes max(lambda, 1 - lambda).

    At least 1/2, so that an example keeps the larger share of itself.
    """
    # Two gamma variables make a beta; in float64 a small p does not underflow.
    x = tf.random.stateless_gamma(
        [2],
        tf.stack([tf.constant(seed + _MIXUP_SEED, tf.int64), key]),
        p,
        dtype=tf.float64,
    )
    share = x[0] / (x[0] + x[1])
    return tf.cast(tf.maximum(share, 1.0 - share), tf.float32)


def train_batches(
    split: Split,
    *,
    batch_size: int,
    image_size: int,
    policy: str,
    seed: int,
    start_step: int = 0,
    shuffle_buffer: int | None = None,
    cache: bool = False,
    num_shards: int = 1,
    shards: Sequence[int] = (0,),
    mixup: MixupConfig | None = None,
    broken: BrokenImages | None = None,
) -> tf.data.Dataset:
    """Returns the endless training stream, from `start_step` on.

    Epochs follow one another without a gap, each in an order of its own; a
    batch may straddle two. Order, augmentation and mixing shares depend on
    `seed` and the position in the stream alone. An interrupted run skips to
    its position before anything is decoded, and a host decodes its shards
    alone (of a folder it also reads its files alone).

    Args:
      split: What to train on.
      batch_size: Examples of the global batch of one update.
      image_size: Side of the images, in pixels.
      policy: Augmentation, see `policy.parse`.
      seed: Of the run.
      start_step: Updates that have been done.
      shuffle_buffer: Encoded records in the shuffle buffer of TFRecords; as
        many as fill 1 GiB if None. Folders are shuffled whole, by name.
      cache: Keep all encoded images in memory; they are read before the
        first batch.
      num_shards: Parts of equal size into which a global batch is cut.
      shards: The parts that are wanted here, in this order.
      mixup: Whether a part begins with the partner of its first example.
      broken: What to do about images that cannot be decoded. Without it the
        first one is an error.

    Returns:
      For each update the parts of its batch, one after another: `{"image":
      uint8 [n, side, side, 3], "label": int32 [n], "index": int32 [n]}`,
      n = batch_size / num_shards; `index` is the place in the global batch.
      The label of a broken image is -1. With mixup images and labels have n +
      1 rows, of which row i is the partner of row i + 1 (the global batch
      rolled by one), and "share", float32 [n], is the share of the example
      itself. Where the policy ends with layers that mix a batch, labels are
      float32 [n, classes], and those of a broken image 0.

    Raises:
      ValueError: `policy` cannot be read, or does not fit the sizes.
      DataError: The split is for evaluation.
    """
    if split.is_multi_label:
        raise DataError(
            f"{split.name} has several labels for an image and is for "
            "evaluation alone."
        )
    size = batch_size // num_shards
    apply, mix = parse_train_policy(
        policy,
        split,
        image_size=image_size,
        shard_size=size,
        mixup=mixup,
    )
    start = start_step * batch_size
    first_epoch, offset = divmod(start, split.num_examples)
    buffer = buffer_size(split, shuffle_buffer)
    mixes = mixup is not None and mixup.p > 0
    partners = 1 if mixes else 0
    source = cached(split) if cache else split

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        # Of this function's graph alone: without it the order would depend on
        # the global seed of the process (and a global seed of 0 would fail).
        tf.random.set_seed(_GRAPH_SEED)
        order = tf.stack([tf.constant(seed, tf.int64), number])
        first = tf.where(
            number == first_epoch, tf.constant(offset, tf.int64), 0
        )
        return source.in_order_of(order, first, buffer)

    def image_of(position: tf.Tensor, record: Record) -> tf.Tensor:
        key = tf.stack([tf.constant(seed, tf.int64), position])
        return apply(source.load(record), key)

    def rest_of(position: tf.Tensor, record: Record) -> dict[str, tf.Tensor]:
        rest = {
            "label": tf.cast(record["label"], tf.int32),
            "index": tf.cast(position % batch_size, tf.int32),
        }
        if mix is not None:
            rest["position"] = position
        if mixes:
            assert mixup is not None
            step = position // batch_size
            rest["share"] = _mixing_share(
                seed, position if mixup.per_example else step, mixup.p
            )
        return rest

    def drop_partner(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        kept = {k: batch[k][partners:] for k in ("index", "share")}
        return {**batch, **kept}

    def mix_group(group: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        assert mix is not None
        number = group["position"][0] // MIXING_GROUP  # in the stream
        key = tf.stack([tf.constant(seed + _MIXING_SEED, tf.int64), number])
        # A good image stands in for a broken one, so that nobody is mixed
        # with black.
        good = group["label"] >= 0
        stand_in = tf.argmax(good, output_type=tf.int32)
        rows = tf.where(good, tf.range(MIXING_GROUP), stand_in)
        labels = tf.one_hot(tf.gather(group["label"], rows), split.num_classes)
        mixed, labels = mix(tf.gather(group["image"], rows), labels, key)
        labels *= tf.cast(good, tf.float32)[:, None]
        return {"image": mixed, "label": labels, "index": group["index"]}

    records = (
        tf.data.Dataset.counter(first_epoch).flat_map(epoch).enumerate(start)
    )
    if partners or tuple(shards) != tuple(range(num_shards)):
        wanted = [
            np.arange(part * size - partners, (part + 1) * size) % batch_size
            for part in shards
        ]
        records = _shard(records, batch_size, np.concatenate(wanted))
    batches = _prepare(
        records,
        image_of,
        rest_of,
        split=split,
        image_size=image_size,
        batch_size=size + partners if mix is None else MIXING_GROUP,
        dropped={"label": tf.constant(NO_LABEL)},
        broken=broken,
    )
    if mix is not None:
        batches = batches.map(
            mix_group, num_parallel_calls=tf.data.AUTOTUNE
        ).rebatch(size, drop_remainder=True)
    if partners:
        batches = batches.map(drop_partner)
    # Several hosts would ask one another at every step whether it has ended.
    endless = tf.data.experimental.assert_cardinality(
        tf.data.INFINITE_CARDINALITY
    )
    return batches.apply(endless).prefetch(tf.data.AUTOTUNE)


def train_batch_spec(
    policy: str,
    *,
    size: int,
    image_size: int,
    num_classes: int,
    mixup: MixupConfig | None = None,
) -> dict[str, tf.TensorSpec]:
    """Returns what `train_batches` makes for a replica, without any data.

    Args:
      policy: Augmentation, see `parse_train_policy`.
      size: Examples of the replica's part of a batch.
      image_size: Side of the images, in pixels.
      num_classes: Of the data set.
      mixup: Whether there are partners.
    """
    rows = size + (mixup is not None and mixup.p > 0)
    spec = {
        "image": tf.TensorSpec([rows, image_size, image_size, 3], tf.uint8),
        "label": tf.TensorSpec([rows], tf.int32),
        "index": tf.TensorSpec([size], tf.int32),
    }
    if policy_lib.split(policy)[1]:
        spec["label"] = tf.TensorSpec([rows, num_classes], tf.float32)
    elif rows > size:
        spec["share"] = tf.TensorSpec([size], tf.float32)
    return spec


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    image_size: int,
    policy: str,
    num_hosts: int = 1,
    host: int = 0,
    replicas: int = 1,
    broken: BrokenImages | None = None,
) -> tf.data.Dataset:
    """Returns every example of a split once, the last batch filled up.

    Args:
      split: What to evaluate on.
      batch_size: Examples per step, over all replicas of all hosts.
      image_size: Side of the images, in pixels.
      policy: Preprocessing, see `policy.parse`.
      num_hosts: Hosts that share the work, each with as many batches.
      host: Which of them this is; it gets every `num_hosts`-th example.
      replicas: Parts into which a batch is cut, over all hosts.
      broken: What to do about images that cannot be decoded. Without it the
        first one is an error.

    Returns:
      `num_batches` times the parts for this host, `{"image": uint8 [n, side,
      side, 3], "label": int32 [n], "index": int32 [n], "mask": float32 [n]}`,
      n = batch_size / replicas; `index` is the place in the split, the mask
      is 0 for filling and broken images, 1 otherwise. Of a split with several
      labels also "labels", bool [n, classes].

    Raises:
      ValueError: `policy` cannot be read.
    """
    apply = policy_lib.parse(policy, image_size, split.image_size)

    def image_of(_: tf.Tensor, record: Record) -> tf.Tensor:
        seed = tf.zeros([2], tf.int64)  # evaluation policies draw nothing
        return apply(split.load(record), seed)

    def rest_of(position: tf.Tensor, record: Record) -> dict[str, tf.Tensor]:
        rest = {
            "label": tf.cast(record["label"], tf.int32),
            "index": tf.cast(position * num_hosts + host, tf.int32),
            "mask": tf.ones([]),
        }
        if split.is_multi_label:
            rest["labels"] = record["labels"]
        return rest

    mine = len(range(host, split.num_examples, num_hosts))
    total = num_batches(split, batch_size) * batch_size // num_hosts
    real = _prepare(
        split.records().shard(num_hosts, host).enumerate(),
        image_of,
        rest_of,
        split=split,
        image_size=image_size,
        batch_size=None,
        dropped={"mask": tf.zeros([])},
        broken=broken,
    )
    nothing = {
        key: tf.zeros(spec.shape, spec.dtype)
        for key, spec in real.element_spec.items()
    }
    filling = tf.data.Dataset.from_tensors(nothing).repeat(total - mine)
    return (
        real.concatenate(filling)
        .batch(batch_size // replicas, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def num_batches(split: Split, batch_size: int) -> int:
    """Returns how many batches hold every example of a split."""
    return -(-split.num_examples // batch_size)
