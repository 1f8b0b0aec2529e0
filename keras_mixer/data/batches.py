"""A split becomes the batches of training and of evaluation.

Everything random is a function of (seed, epoch) for the order and of (seed,
position in the training stream) for the augmentation and the mixing. So the
batches of a step depend on the seed and the step alone: not on the number of
devices or hosts, nor on where the run was interrupted.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_mixer.data.augment import keras_layers, policy as policy_lib
from keras_mixer.data.augment.keras_layers import Mixing
from keras_mixer.data.broken import BrokenImages, chunk_size, map_images
from keras_mixer.data.splits import (
    DataError,
    Record,
    Split,
    buffer_size,
    cached,
)
from keras_mixer.run.fields import MixupConfig

NO_LABEL = -1  # of an example that does not count
MIXING_GROUP = 8  # examples that a layer of keras-cv mixes with one another

_GRAPH_SEED = 1
_MIXUP_SEED = 2**32  # apart from the augmentation's
_MIXING_SEED = 2**33

# Maps an image, encoded or uint8 [height, width, 3], and a seed, int64 [2], to
# uint8 [image_size, image_size, 3].
Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Example = dict[str, tf.Tensor]


class TrainPolicy(NamedTuple):
    """A parsed policy: what `train_batches` does to images."""

    augment: Augment  # of each image
    mixing: Mixing | None  # of `MIXING_GROUP` images and their labels


def parse_train_policy(
    policy: str,
    split: Split,
    *,
    image_size: int,
    shard_size: int,
    mixup: MixupConfig | None = None,
) -> TrainPolicy:
    """Compiles the augmentation of single images and that of a batch.

    A policy is ops joined by `|`, see `policy.parse`. The last ones may be
    layers that mix images (keras_layers.py). `shard_size` is the number of
    examples in a part of the global batch.

    Raises:
      ValueError: `policy` cannot be read, or mixes what cannot be mixed.
      DataError: The split is for evaluation.
    """
    if split.is_multi_label:
        raise DataError(
            f"{split.name} has several labels for an image and is for "
            "evaluation alone."
        )
    of_images, mixing = policy_lib.split(policy)
    augment = policy_lib.parse(of_images, image_size, split.image_size)
    if not mixing:
        return TrainPolicy(augment, None)
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
    return TrainPolicy(augment, keras_layers.make_mixing(mixing, image_size))


def _mixing_share(seed: int, key: tf.Tensor, p: float) -> tf.Tensor:
    """Draws x from Beta(p, p); the example's own share is max(x, 1 - x)."""
    # Two gamma variables make a beta; in float64 a small p does not underflow.
    seeds = tf.stack([tf.constant(seed + _MIXUP_SEED, tf.int64), key])
    x = tf.random.stateless_gamma([2], seeds, p, dtype=tf.float64)
    share = x[0] / (x[0] + x[1])
    return tf.cast(tf.maximum(share, 1.0 - share), tf.float32)


@dataclasses.dataclass(frozen=True)
class _Stream:
    """The stream of `train_batches`."""

    split: Split
    policy: TrainPolicy
    batch_size: int
    size: int  # of a part of the batch
    seed: int
    mixup: MixupConfig | None

    @property
    def partners(self) -> int:
        """How many partners precede the examples of a part."""
        return int(self.mixup is not None and self.mixup.p > 0)

    @property
    def rows(self) -> int:
        """Images that are batched once they are decoded."""
        return MIXING_GROUP if self.policy.mixing else self.size + self.partners

    def _key(self, number: tf.Tensor, offset: int = 0) -> tf.Tensor:
        return tf.stack([tf.constant(self.seed + offset, tf.int64), number])

    def _items(self, start: int, buffer: int) -> tf.data.Dataset:
        """Returns pairs from `start` on: a position, what was found there."""
        first_epoch, offset = divmod(start, self.split.num_examples)

        def epoch(number: tf.Tensor) -> tf.data.Dataset:
            # Of this graph alone: otherwise the order would depend on the
            # global seed of the process (and a global seed of 0 would fail).
            tf.random.set_seed(_GRAPH_SEED)
            first = tf.where(
                number == first_epoch, tf.constant(offset, tf.int64), 0
            )
            return self.split.in_order_of(self._key(number), first, buffer)

        epochs = tf.data.Dataset.counter(first_epoch)
        return epochs.flat_map(epoch).enumerate(start)

    def chunks(
        self, start_step: int, shards: Sequence[int], buffer: int
    ) -> tf.data.Dataset:
        """Returns what `map_images` takes, of `shards` and their partners."""
        items = self._items(start_step * self.batch_size, buffer)
        chunk = chunk_size(self.rows)
        parts = [
            np.arange(i * self.size - self.partners, (i + 1) * self.size)
            for i in shards
        ]
        wanted = np.concatenate(parts) % self.batch_size
        if np.array_equal(wanted, np.arange(self.batch_size)):
            return items.batch(chunk)

        def pick(*batch: Any) -> Any:
            return tf.nest.map_structure(lambda x: tf.gather(x, wanted), batch)

        batches = items.batch(self.batch_size, drop_remainder=True)
        return batches.map(pick).rebatch(chunk)

    def image_of(self, position: tf.Tensor, record: Record) -> tf.Tensor:
        """Returns the augmented image of a record."""
        return self.policy.augment(self.split.load(record), self._key(position))

    def rest_of(self, position: tf.Tensor, record: Record) -> Example:
        """Returns everything else of an example."""
        rest = {
            "label": tf.cast(record["label"], tf.int32),
            "index": tf.cast(position % self.batch_size, tf.int32),
        }
        if self.policy.mixing is not None:
            rest["position"] = position
        if self.mixup is not None and self.mixup.p > 0:
            step = position // self.batch_size
            key = position if self.mixup.per_example else step
            rest["share"] = _mixing_share(self.seed, key, self.mixup.p)
        return rest

    def finish(self, examples: tf.data.Dataset) -> tf.data.Dataset:
        """Makes parts of `size` examples from chunks, mixed if need be."""
        batches = examples.rebatch(self.rows, drop_remainder=True)
        if self.policy.mixing is not None:
            batches = batches.map(
                functools.partial(self._mix, self.policy.mixing),
                num_parallel_calls=tf.data.AUTOTUNE,
            ).rebatch(self.size, drop_remainder=True)
        if self.partners:  # of which only the image and the label are wanted
            batches = batches.map(
                lambda x: x | {"index": x["index"][1:], "share": x["share"][1:]}
            )
        # Otherwise hosts ask one another at every step whether it has ended.
        endless = tf.data.experimental.assert_cardinality(
            tf.data.INFINITE_CARDINALITY
        )
        return batches.apply(endless).prefetch(tf.data.AUTOTUNE)

    def _mix(self, mixing: Mixing, group: Example) -> Example:
        number = group["position"][0] // MIXING_GROUP  # in the stream
        # A good image stands in for a broken one, so that nothing is mixed
        # with black.
        good = group["label"] >= 0
        stand_in = tf.argmax(good, output_type=tf.int32)
        rows = tf.where(good, tf.range(MIXING_GROUP), stand_in)
        labels = tf.gather(group["label"], rows)
        mixed, labels = mixing(
            tf.gather(group["image"], rows),
            tf.one_hot(labels, self.split.num_classes),
            self._key(number, _MIXING_SEED),
        )
        labels *= tf.cast(good, tf.float32)[:, None]
        return {"image": mixed, "label": labels, "index": group["index"]}


def train_batches(
    split: Split,
    *,
    batch_size: int,
    image_size: int,
    policy: str | TrainPolicy,
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
    batch may straddle two. An interrupted run skips to its position before
    anything is decoded. A host decodes only its shards, and of a folder it
    also reads only their files.

    Args:
      batch_size: Examples of the global batch of one update.
      policy: Augmentation, see `parse_train_policy` and its errors.
      shuffle_buffer: Encoded records in the shuffle buffer of TFRecords; as
        many as fill 1 GiB if None. Folders are shuffled whole, by name.
      cache: Keep all encoded images in memory; the first batch waits for it.
      num_shards: Parts of equal size into which a global batch is cut.
      shards: The parts that are wanted here, in this order.
      broken: Which images may be broken; without it the first is an error.

    Returns:
      For each update the parts of its batch, one after another, as
      `train_batch_spec` describes them.
    """
    size = batch_size // num_shards
    if isinstance(policy, str):
        policy = parse_train_policy(
            policy, split, image_size=image_size, shard_size=size, mixup=mixup
        )
    source = cached(split) if cache else split
    stream = _Stream(source, policy, batch_size, size, seed, mixup)
    examples = map_images(
        stream.chunks(start_step, shards, buffer_size(split, shuffle_buffer)),
        stream.image_of,
        stream.rest_of,
        split=source,
        records_of=source.look_up,
        image_size=image_size,
        dropped={"label": tf.constant(NO_LABEL)},
        broken=broken,
    )
    return stream.finish(examples)


def train_batch_spec(
    policy: str,
    *,
    size: int,
    image_size: int,
    num_classes: int,
    mixup: MixupConfig | None = None,
) -> dict[str, tf.TensorSpec]:
    """Describes the part of a batch that `train_batches` makes for a replica.

    "image" are uint8 [size, side, side, 3], "label" int32 [size] and "index",
    the places in the global batch, int32 [size]. The label of a broken image
    is -1. With mixup images and labels have size + 1 rows, of which row i is
    the partner of row i + 1 (the global batch rolled by one), and "share",
    float32 [size], is the share of the example itself. Where the policy ends
    with layers that mix a batch, labels are float32 [size, classes], and those
    of a broken image 0.
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
    policy: str | Augment,
    num_hosts: int = 1,
    host: int = 0,
    replicas: int = 1,
    broken: BrokenImages | None = None,
) -> tf.data.Dataset:
    """Returns every example of a split once, the last batch filled up.

    A batch has `batch_size` examples over all hosts and is cut into `replicas`
    parts. All hosts have as many batches; each gets every `num_hosts`-th
    example. For `policy` see `policy.parse` and its errors. Without `broken`
    the first broken image is an error.

    Returns:
      `num_batches` times the parts for this host, `{"image": uint8 [n, side,
      side, 3], "label": int32 [n], "index": int32 [n], "mask": float32 [n]}`,
      n = batch_size / replicas; `index` is the place in the split, the mask
      is 0 for filling and broken images, 1 otherwise. Of a split with several
      labels also "labels", bool [n, classes].
    """
    if isinstance(policy, str):
        policy = policy_lib.parse(
            policy, image_size, split.image_size, evaluation=True
        )
    preprocess = policy

    def image_of(_: tf.Tensor, record: Record) -> tf.Tensor:
        seed = tf.zeros([2], tf.int64)  # evaluation policies draw nothing
        return preprocess(split.load(record), seed)

    def rest_of(position: tf.Tensor, record: Record) -> Example:
        rest = {
            "label": tf.cast(record["label"], tf.int32),
            "index": tf.cast(position * num_hosts + host, tf.int32),
            "mask": tf.ones([]),
        }
        if split.is_multi_label:
            rest["labels"] = record["labels"]
        return rest

    size = batch_size // replicas
    records = split.records().shard(num_hosts, host).enumerate()
    examples = map_images(
        records.batch(chunk_size(size)),
        image_of,
        rest_of,
        split=split,
        records_of=split.check_labels,
        image_size=image_size,
        dropped={"mask": tf.zeros([])},
        broken=broken,
    )
    mine = len(range(host, split.num_examples, num_hosts))
    total = num_batches(split, batch_size) * batch_size // num_hosts
    nothing = {
        key: tf.zeros([1, *spec.shape[1:]], spec.dtype)
        for key, spec in examples.element_spec.items()
    }
    filling = tf.data.Dataset.from_tensors(nothing).repeat(total - mine)
    return (
        examples.concatenate(filling)
        .rebatch(size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def num_batches(split: Split, batch_size: int) -> int:
    """Returns how many batches hold every example of a split."""
    return -(-split.num_examples // batch_size)
