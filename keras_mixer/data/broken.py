"""Images that cannot be decoded: dropped, counted and named.

A broken image keeps its place in the batch, without weight: so the batches do
not depend on which images are broken, and every resume and every number of
hosts agrees on them.
"""

import pathlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mixer.data.splits import DataError, Split

_CHUNK = 32  # images that are tried at once, or one batch of that order
_SHOWN = 10  # of a split, on the screen


class BrokenImages:
    """Which images of a split are broken, and how many may be.

    Args:
      split: What the images are of.
      limit: The share of the split's images that may be broken. At the first
        one above, the input pipeline fails.
      file: Where to write them down, one `name<TAB>reason` a line, once: an
        interrupted run may have done it. None: nowhere.
    """

    def __init__(
        self,
        split: Split,
        *,
        limit: float = 0.0,
        file: pathlib.Path | None = None,
    ):
        self._split, self._limit, self._file = split, limit, file
        self._lock = threading.Lock()
        self._error: DataError | None = None
        self.names: set[str] = set()  # seen by this process
        self._written: set[str] = set()
        if file is not None and file.exists():
            lines = file.read_text(errors="replace").splitlines()
            self._written.update(line.partition("\t")[0] for line in lines)

    @property
    def allowed(self) -> int:
        """How many images may be broken."""
        return int(self._limit * self._split.num_examples)

    def report(self, name: str, reason: str) -> None:
        """Notes a broken image, once.

        Raises:
          DataError: Too many are broken.
        """
        with self._lock:
            if name in self.names:
                return
            self.names.add(name)
            self._write(name, reason)
            count, total = len(self.names), self._split.num_examples
            if count > self.allowed:
                error = DataError(
                    f"{count} of the {total:,} images of {self._split.name} "
                    f"cannot be decoded, the last one {name} ({reason}). "
                    "Mend them"
                    + (
                        " (removing them is for a new --workdir: it changes "
                        f"the order) (all are in {self._file})"
                        if self._file
                        else " or remove them"
                    )
                    + ", or let a larger share of them be dropped: "
                    f"data.max_broken={min(2 * count / total, 1):.2g}"
                )
                self._error = self._error or error
                raise error
            if count <= _SHOWN or self._file is None:
                self._tell(f"Dropped a broken image: {name} ({reason})")
            if count == _SHOWN and self._file is not None:
                self._tell(f"If there are more, {self._file} lists them.")

    def _write(self, name: str, reason: str) -> None:
        if self._file is None or name in self._written:
            return
        try:
            with self._file.open("a") as file:
                file.write(f"{name}\t{reason}\n")
        except OSError as error:  # the disk is full: no reason to stop
            self._tell(f"Cannot write to {self._file}: {error}")
            self._file = None

    @staticmethod
    def _tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def check(self) -> None:
        """Raises DataError if the input pipeline failed for too many."""
        if self._error is not None:
            raise self._error


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return line.rpartition("}} ")[2].partition(" [Op:")[0][:200]


def call_or_else(
    item: Any, function: Callable[..., Any], otherwise: Callable[..., Any]
) -> Any:
    """Returns `function` of an item, or `otherwise` of it where that fails.

    TensorFlow has no op that catches an error; only a data set can leave out
    an element. So the item is a data set of its own.

    Args:
      item: A tensor or a structure of them; of a tuple the functions take the
        parts.
      function: May fail, with any of TensorFlow's errors.
      otherwise: Its substitute, with the same types and compatible shapes.
    """
    alone = tf.data.Dataset.from_tensors(item)
    return (
        alone.map(function)
        .ignore_errors()
        .concatenate(alone.map(otherwise))
        .take(1)
        .get_single_element()
    )


def map_images(
    items: tf.data.Dataset,
    prepare: Callable[..., Any],
    *,
    otherwise: Callable[..., Any],
    check: Callable[..., Any],
    name_of: Callable[..., tf.Tensor],
    broken: BrokenImages,
    batch_size: int | None = None,
) -> tf.data.Dataset:
    """Maps items in parallel, and those that fail to something else.

    As in `call_or_else`, but some items are a data set together, and where one
    of them fails they are tried again one by one. To start that data set costs
    as much as a quarter of an image.

    Args:
      items: What to map, tuples of tensors or of dictionaries.
      prepare: May fail, with any of TensorFlow's errors.
      otherwise: Its substitute, with the same types and shapes.
      check: Passes several items on, or fails for good.
      name_of: Names an item that failed.
      broken: Is told of it.
      batch_size: Of the batches that are wanted, of items without end; None:
        no batches.

    Returns:
      What the functions return.
    """

    def tell(*flat: tf.Tensor) -> bool:
        item = tf.nest.pack_sequence_as(items.element_spec, flat)
        name = name_of(*item).numpy().decode(errors="replace")
        try:
            prepare(*item)
        except (tf.errors.OpError, ValueError) as error:
            broken.report(name, _first_line(error))
            return True
        # Either the pipeline is being taken down, and nobody hears this, or a
        # disk fails now and then: no image may be lost for that.
        raise OSError(f"{name} could not be read twice, then it could.")

    def substitute(*item: Any) -> Any:
        told = tf.py_function(tell, tf.nest.flatten(item), tf.bool)
        with tf.control_dependencies([told]):
            return tf.nest.map_structure(tf.identity, otherwise(*item))

    def rescue(*item: Any) -> Any:
        return call_or_else(item, prepare, substitute)

    def attempt(*chunk: Any) -> Any:
        one_by_one = tf.data.Dataset.from_tensor_slices(check(*chunk))
        size = one_by_one.cardinality()

        def of_all(function: Callable[..., Any]) -> tf.data.Dataset:
            # Not a map: tf.data would make it parallel, by a thread that
            # starts and ends here. After a failure fewer are left than a
            # whole batch.
            return one_by_one.scan(
                np.int64(0), lambda state, item: (state, function(*item))
            ).batch(size, drop_remainder=True)

        return (
            of_all(prepare)
            .ignore_errors()
            .concatenate(of_all(rescue))
            .take(1)
            .get_single_element()
        )

    # A chunk that is a batch is not copied once more.
    whole = batch_size and _CHUNK // 2 <= batch_size <= 2 * _CHUNK
    chunk_size = batch_size if whole else _CHUNK
    chunks = items.batch(chunk_size).map(
        attempt, num_parallel_calls=tf.data.AUTOTUNE
    )
    if batch_size is None:
        return chunks.unbatch()
    return chunks.rebatch(batch_size, drop_remainder=True)
