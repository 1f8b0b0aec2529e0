"""What a split of a data set is, and the order in which it is read.

Records are light: they name or hold the encoded image, and nothing is read or
decoded before it is known which host needs it. A table of records (a folder,
arrays in memory) is shuffled by the numbers of its rows, which are looked up
last; a stream (TFRecords) goes through a shuffle buffer.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil
import tensorflow as tf

from keras_mixer.run import suggest

Record = Mapping[str, tf.Tensor]
# Where the images of a whole split lie, begin, end. The first is the same for
# all names of a data set: the folder of the class folders, or TFDS' full name.
Range = tuple[str, int, int]

_CACHE_SHARE = 0.8  # of the free memory
_BUFFER_BYTES = 2**30
_BUFFER_RECORDS = 50_000  # where the size of a record is unknown

_image_of = operator.itemgetter("image")


class DataError(ValueError):
    """A data set is missing, or not what the run needs."""


def first_line(error: Exception) -> str:
    """Returns what an error says, without TensorFlow's additions."""
    line = str(error).strip().partition("\n")[0]
    return line.rpartition("}} ")[2].partition(" [Op:")[0][:200]


def _name_of(record: Record) -> tf.Tensor:
    return record.get("name", tf.constant("an image without a name"))


class Table(NamedTuple):
    """Records that are looked up in any order.

    `rows` maps numbers of rows, [] or [n], to records of the same leading
    shape, with labels in range. `order` maps a seed, int64 [2], to the numbers
    of all rows of a split in a random order.
    """

    rows: Callable[[tf.Tensor], Record]
    order: Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set."""

    name: str  # for people, "cifar10 train[:99%]"
    num_examples: int
    class_names: tuple[str, ...]  # in the order of the labels
    image_size: int | None  # side in pixels if all are squares of one size
    # Come in a fixed order, with "label", int64 [], and what `load` takes.
    records: Callable[[], tf.data.Dataset]
    # In the same order, int64 [num_examples]; without reading images where the
    # source allows it.
    labels: Callable[[], np.ndarray]
    ranges: Sequence[Range] = ()  # the parts of the data set's splits
    # Of a record: encoded bytes, string [], or uint8 [height, width, 3].
    load: Callable[[Record], tf.Tensor] = _image_of
    name_of: Callable[[Record], tf.Tensor] = _name_of  # a path if there is one
    table: Table | None = None  # None of a stream
    # Implements `in_order_of` of a stream. None: `records()` are buffered.
    shuffled: Callable[[tf.Tensor, Any, int], tf.data.Dataset] | None = None
    # Of all encoded images, None if unknown.
    num_bytes: Callable[[], int | None] = lambda: None
    # Records also have "labels", bool [num_classes]: all classes that are
    # right, or none where nobody knows. Such a split is for evaluation.
    is_multi_label: bool = False
    warning: str | None = None  # stands beside what is measured on the split

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def is_encoded(self) -> bool:
        """Whether `load` returns files, which can be broken."""
        image = self.records().element_spec.get("image")
        return image is None or image.dtype == tf.string

    def overlaps(self, other: "Split") -> bool:
        """Whether two splits share examples."""
        spans = [(*x, 0) for x in self.ranges] + [(*x, 1) for x in other.ranges]
        # Where the spans so far end, of a base and a side. A hold-out has many.
        ends: dict[tuple[str, int], int] = {}
        for base, begin, end, side in sorted(spans):
            if begin < min(end, ends.get((base, 1 - side), begin)):
                return True
            ends[base, side] = max(end, ends.get((base, side), end))
        return False

    def in_order_of(
        self, seed: tf.Tensor, first: Any, buffer: int
    ) -> tf.data.Dataset:
        """Returns all examples from the `first`-th on, in a seed's order.

        They are records of a stream, or row numbers of a table; `look_up` makes
        records of both. `seed` is int64 [2], `first` an integer or int64 [].
        Only a stream needs a `buffer`, whose size is in records.
        """
        if self.table is not None:
            order = self.table.order(seed)[first:]
            return tf.data.Dataset.from_tensor_slices(order)
        if self.shuffled is not None:
            return self.shuffled(seed, first, buffer)
        return shuffle(self.records(), seed, buffer).skip(first)

    def look_up(self, found: Any) -> Record:
        """Returns the records of elements of `in_order_of`, one or several."""
        if self.table is not None:
            return self.table.rows(found)
        return self.check_labels(found)

    def check_labels(self, records: Record) -> Record:
        """Fails for examples without a label, as public test splits have."""
        # An assertion costs as much as a hundredth of decoding an image, so
        # several records should be checked at once.
        labels = records["label"]
        tf.debugging.assert_equal(
            tf.logical_and(labels >= 0, labels < self.num_classes),
            True,
            message=f"{self.name} has an example without a label, or with one "
            f"that is not in 0 ... {self.num_classes - 1}. Choose another "
            "split.",
        )
        return records


def require_same_classes(split: Split, other: Split) -> None:
    """Raises DataError unless two splits have the same classes, in order."""
    if other.class_names != split.class_names:
        raise DataError(
            f"{split.name} has {split.num_classes} classes and "
            f"{other.name} has {other.num_classes}, or other names: "
            f"{suggest.difference(split.class_names, other.class_names)}."
        )


def read_split(split: str, infos: Mapping[str, Any], name: str) -> list[Range]:
    """Reads a TFDS split expression."""
    import tensorflow_datasets as tfds

    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise DataError(
            f"Cannot use the split {split!r} of {name!r}: {first_line(error)} "
            f"Its splits are {', '.join(infos)}. Parts of one are written as "
            "in train[:80%] (https://www.tensorflow.org/datasets/splits)"
        ) from error
    ranges = []
    for part in parts:
        length = infos[part.splitname].num_examples
        begin, end, _ = slice(part.from_, part.to).indices(length)
        ranges.append((part.splitname, begin, end))
    return ranges


def select(split: str, lengths: Mapping[str, int], name: str) -> Range:
    """Evaluates a split expression over splits that lie in memory."""
    import tensorflow_datasets as tfds

    infos = {
        key: tfds.core.SplitInfo(name=key, shard_lengths=[length], num_bytes=0)
        for key, length in lengths.items()
    }
    ranges = read_split(split, infos, name)
    if len(ranges) != 1:
        raise DataError(
            f"Cannot use the split {split!r}: {name!r} takes one part of one "
            "split, without '+'."
        )
    return ranges[0]


def buffer_size(split: Split, wanted: int | None) -> int:
    """Returns how many records of a stream to buffer: `wanted`, or 1 GiB."""
    if split.table is not None:
        return 1
    if wanted is None:
        size, wanted = split.num_bytes(), _BUFFER_RECORDS
        if size:
            wanted = max(_BUFFER_BYTES * split.num_examples // size, 1)
    return min(wanted, split.num_examples)


def choose(split: Split, indices: np.ndarray) -> Split:
    """Returns the examples at `indices`, each once, for evaluation alone.

    They keep the split's order. A stream is read whole to find them, so they
    stay in memory for the next time if their images take less than 1 GiB.
    """
    indices = np.sort(indices)
    size = None if split.table is not None else split.num_bytes()
    share = len(indices) / split.num_examples
    keep = size is not None and size * share < _BUFFER_BYTES
    is_wanted = tf.constant(np.isin(np.arange(split.num_examples), indices))

    def records() -> tf.data.Dataset:
        numbered = split.records().enumerate()
        chosen = numbered.filter(lambda i, record: is_wanted[i])
        chosen = chosen.map(lambda i, record: record)
        return chosen.cache() if keep else chosen

    return dataclasses.replace(
        split,
        num_examples=len(indices),
        records=records,
        labels=lambda: split.labels()[indices],
        table=None,
        shuffled=None,
    )


def cached(split: Split) -> Split:
    """Keeps encoded images in memory; raises DataError if they do not fit."""
    size = split.num_bytes()
    free = psutil.virtual_memory().available
    if size is not None and size > _CACHE_SHARE * free:
        raise DataError(
            f"data.cache=true: the images of {split.name} are "
            f"{size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free. "
            "Without the cache they are read anew every epoch."
        )

    def load(record: Record) -> dict[str, tf.Tensor]:
        return {**record, "image": split.load(record)}

    records = split.records()
    is_read = "image" in records.element_spec  # by the data set itself
    if not is_read:
        records = records.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    records = records.cache()

    def shuffled(seed: tf.Tensor, first: Any, buffer: int) -> tf.data.Dataset:
        del buffer  # it shares the images with the cache: all fit
        return shuffle(records, seed, split.num_examples).skip(first)

    return dataclasses.replace(
        split,
        records=lambda: records,
        load=split.load if is_read else _image_of,
        table=None,
        shuffled=shuffled,
    )


def shuffle(
    records: tf.data.Dataset, seed: tf.Tensor, buffer: int
) -> tf.data.Dataset:
    """Shuffles a stream by a buffer, in the order of a seed, int64 [2]."""
    # tf.data takes one number, reduces it modulo 2**31 - 1, and fails for
    # tensors where the global seed is 0; the caller's graph has a seed.
    number = tf.random.stateless_uniform([], seed, 0, 2**31 - 1, dtype=tf.int64)
    return records.shuffle(buffer, seed=number, reshuffle_each_iteration=False)


def permutation(seed: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the numbers 0 ... count - 1 in the order of a seed, int64 [2]."""
    # Takes 0.3 s for 1.3 million numbers.
    keys = tf.random.stateless_uniform([count], seed, None, None, tf.int64)
    return tf.argsort(keys)


def table_of(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a `Split` whose records are rows of columns.

    These are of equal length; "label", int64, is one of them.
    """
    labels = np.asarray(columns["label"], np.int64)
    tensors = {key: tf.constant(value) for key, value in columns.items()}

    def rows(numbers: tf.Tensor) -> Record:
        return {k: tf.gather(v, numbers) for k, v in tensors.items()}

    return {
        "num_examples": len(labels),
        "records": lambda: tf.data.Dataset.from_tensor_slices(tensors),
        "labels": lambda: labels,
        "table": Table(rows, lambda seed: permutation(seed, len(labels))),
    }
