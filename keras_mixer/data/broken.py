"""Images that cannot be decoded: dropped, counted and named.

A broken image keeps its place in the batch, with weight 0. So the batches do
not depend on which images are broken, and are the same after a resume and for
any number of hosts.
"""

import contextlib
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mixer.data.splits import DataError, Record, Split, first_line
from keras_mixer.run import terminal

_CHUNK = 32  # images that are tried at once, or one batch of that order
_SHOWN = 10  # of a split, on the screen


class BrokenImages:
    """Which images of a split are broken, and how many may be.

    Args:
      limit: The share of the split's images that may be broken. The input
        pipeline fails at the first one above it.
      file: Lists them, one `name<TAB>reason` a line. Names that an
        interrupted run has listed are not repeated.
      silent: Print nothing; the caller reports the `reasons`.
    """

    def __init__(
        self,
        split: Split,
        *,
        limit: float = 0.0,
        file: pathlib.Path | None = None,
        silent: bool = False,
    ):
        self._split, self._limit, self._file = split, limit, file
        self._silent = silent
        self._lock = threading.Lock()
        self._error: DataError | None = None
        self.names: set[str] = set()  # seen by this process
        self.reasons: dict[str, str] = {}  # by name
        self._written: set[str] = set()
        if file is not None and file.exists():
            lines = file.read_text(errors="replace").splitlines()
            self._written.update(line.partition("\t")[0] for line in lines)

    @property
    def allowed(self) -> int:
        """How many images may be broken."""
        return int(self._limit * self._split.num_examples)

    def report(self, name: str, reason: str) -> None:
        """Notes a broken image, once; raises DataError if too many are."""
        with self._lock:
            if name in self.names:
                return
            self.names.add(name)
            self.reasons[name] = reason
            self._write(name, reason)
            count, total = len(self.names), self._split.num_examples
            if count > self.allowed:
                remedy = "Mend them or remove them"
                if self._file:
                    remedy = (
                        f"Mend them (all are in {self._file}; removing them "
                        "changes the order and needs a new --workdir)"
                    )
                error = DataError(
                    f"{count} of the {total:,} images of {self._split.name} "
                    f"cannot be decoded, the last one {name} ({reason}). "
                    f"{remedy}, or let a larger share of them be dropped: "
                    f"data.max_broken={min(2 * count / total, 1):.2g}"
                )
                self._error = self._error or error
                raise error
            if self._silent:
                return
            if count <= _SHOWN or self._file is None:
                _tell(f"Dropped a broken image: {name} ({reason})")
            if count == _SHOWN and self._file is not None:
                _tell(f"If there are more, {self._file} lists them.")

    def _write(self, name: str, reason: str) -> None:
        if self._file is None or name in self._written:
            return
        try:
            with self._file.open("a") as file:
                file.write(f"{name}\t{reason}\n")
        except OSError as error:  # a full disk is no reason to stop
            _tell(f"Cannot write to {self._file}: {error}")
            self._file = None

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raises DataError if the input pipeline failed for too many."""
        try:
            yield
        except tf.errors.OpError:
            if self._error is not None:
                raise self._error from None
            raise


def _tell(text: str) -> None:
    terminal.say(text, file=sys.stderr)


def call_or_else(
    item: Any, function: Callable[..., Any], otherwise: Callable[..., Any]
) -> Any:
    """Returns `function` of an item, or `otherwise` of it if that fails.

    TensorFlow has no op that catches an error, but a data set can leave out an
    element. So the item, a tensor or a structure of them, becomes a data set of
    its own. The parts of a tuple are separate arguments of the functions.
    These return the same types and compatible shapes.
    """
    alone = tf.data.Dataset.from_tensors(item)
    return (
        alone.map(function)
        .ignore_errors()
        .concatenate(alone.map(otherwise))
        .take(1)
        .get_single_element()
    )


def _map_one_by_one(
    items: tf.data.Dataset, function: Callable[..., Any]
) -> tf.data.Dataset:
    """Maps items of known number to one batch; fails where one of them does."""
    # tf.data would run a map in parallel, on a thread that starts and ends
    # here; it leaves a scan alone. After a failure no whole batch is left.
    return items.scan(
        np.int64(0), lambda state, item: (state, function(*item))
    ).batch(items.cardinality(), drop_remainder=True)


def chunk_size(batch_size: int) -> int:
    """Returns how many images of a batch to try at once.

    Each chunk is a data set, whose start costs as much as a quarter of an
    image. A batch of about the size of a chunk is one, and saves a copy.
    """
    whole = _CHUNK // 2 <= batch_size <= 2 * _CHUNK
    return batch_size if whole else _CHUNK


def map_images(
    chunks: tf.data.Dataset,
    image_of: Callable[[tf.Tensor, Record], tf.Tensor],
    rest_of: Callable[[tf.Tensor, Record], dict[str, tf.Tensor]],
    *,
    split: Split,
    records_of: Callable[[Any], Record],
    image_size: int,
    dropped: Mapping[str, Any],
    broken: BrokenImages | None,
) -> tf.data.Dataset:
    """Makes examples of chunks of records, several chunks in parallel.

    As `call_or_else`, but the records of a chunk share a data set. If one of
    them fails, all are tried again one by one.

    Args:
      chunks: `(positions, found)`, int64 [n] and what `records_of` takes.
      image_of: Makes uint8 [image_size, image_size, 3] of a position and a
        record; fails, with any of TensorFlow's errors, for a broken image.
      rest_of: Makes everything else of the example.
      records_of: Returns the records of a chunk, or fails for good.
      dropped: What replaces the rest of an example whose image is broken.
      broken: Is told of those; without it the first one is an error.
    """
    told = broken or BrokenImages(split)

    def prepare(position: tf.Tensor, record: Record) -> dict[str, tf.Tensor]:
        image = image_of(position, record)
        return {**rest_of(position, record), "image": image}

    def substitute(position: tf.Tensor, record: Record) -> dict[str, tf.Tensor]:
        def tell(position: tf.Tensor, *values: tf.Tensor) -> bool:
            seen = dict(zip(record, values, strict=True))
            name = split.name_of(seen).numpy().decode(errors="replace")
            try:
                prepare(position, seen)
            except (tf.errors.OpError, ValueError) as error:
                told.report(name, first_line(error))
                return True
            # Either the pipeline is being taken down, and nobody hears this,
            # or a disk fails now and then, which must not cost an image.
            raise OSError(f"{name} could not be read twice, then it could.")

        done = tf.py_function(tell, [position, *record.values()], tf.bool)
        with tf.control_dependencies([done]):
            black = tf.zeros([image_size, image_size, 3], tf.uint8)
            rest = {**rest_of(position, record), **dropped}
            return tf.nest.map_structure(tf.identity, {**rest, "image": black})

    def rescue(*item: Any) -> Any:
        return call_or_else(item, prepare, substitute)

    def of_chunk(positions: tf.Tensor, found: Any) -> dict[str, tf.Tensor]:
        items = tf.data.Dataset.from_tensor_slices(
            (positions, records_of(found))
        )
        made = _map_one_by_one(items, prepare)
        if is_encoded:
            again = _map_one_by_one(items, rescue)
            made = made.ignore_errors().concatenate(again).take(1)
        return made.get_single_element()

    is_encoded = split.is_encoded
    return chunks.map(of_chunk, num_parallel_calls=tf.data.AUTOTUNE)
