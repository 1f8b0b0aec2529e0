"""Where the images come from: a data set's name becomes a `Split`.

There are three kinds of data set: `digits` (bundled with scikit-learn), any
TFDS name (tfds_sets.py), and `folder:/path` (folders.py).
"""

import dataclasses
import functools
import importlib.util
import numbers
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mixer.data import folders, tfds_sets
from keras_mixer.data.splits import (
    DataError,
    Record,
    Split,
    Table,
    select,
    table_of,
)
from keras_mixer.run import files, quoting, suggest

_DIGITS_TEST_EXAMPLES = 360


def open_split(
    name: str,
    split: str,
    data_dir: str | None = None,
    *,
    classes: str | None = None,
    hold_out: float = 0.0,
) -> Split:
    """Finds one split of a data set, and downloads what TFDS can download.

    Args:
      name: "digits", "folder:/path", or a TFDS name ("imagenet2012:5.1.0").
      split: A TFDS split expression, "train[:99%]".
      data_dir: Where TFDS keeps prepared data sets; its default if None.
      classes: Names of the classes that are kept, with commas between them
        (see quoting.py), in the order of the new labels.
      hold_out: Share of a folder without split folders that is its "test".

    Raises:
      DataError: The data set, the split or a class does not exist, the split
        is empty, cannot be downloaded, or has no image and label.
    """
    if not (isinstance(name, str) and isinstance(split, str)):
        raise DataError(
            "The name of a data set and its split are texts. Received: "
            f"{name!r} and {split!r}"
        )
    if data_dir is not None:
        suggest.check_path("data_dir", data_dir)
        data_dir = files.expand(data_dir)
    if classes is not None:
        wanted = "names with commas between them"
        suggest.check_type("classes", classes, str, wanted)
    suggest.check_type("hold_out", hold_out, numbers.Real, "a number")
    if not 0 <= hold_out < 1:
        raise DataError(f"hold_out must be in [0, 1). Received: {hold_out}")
    if name == "digits":
        found = _digits(split)
    elif name.startswith("folder:"):
        path = name.removeprefix("folder:")
        found = folders.open_folder(path, split, hold_out)
    else:
        found = tfds_sets.open_tfds(name, split, data_dir)
    if classes is not None:
        found = _keep_classes(found, _find_classes(found, classes))
    if found.num_classes == 1:
        raise DataError(
            f"{found.name} has one class, {found.class_names[0]!r}, and a "
            "classifier needs two."
        )
    if not found.num_examples:
        raise DataError(
            f"The split {split!r} of {name!r} has no examples. Check the "
            "expression: https://www.tensorflow.org/datasets/splits"
        )
    return found


def _find_classes(split: Split, classes: str) -> tuple[str, ...]:
    """Reads `data.classes`, names with commas between them."""
    names = quoting.names(classes)
    unknown = [name for name in names if name not in split.class_names]
    if unknown:
        hint = suggest.nearest(unknown[0], split.class_names)
        known = ", ".join(map(quoting.quote, split.class_names[:20]))
        more = " ..." if split.num_classes > 20 else ""
        if any("," in name for name in split.class_names):
            more += f". {quoting.RULE}"
        raise DataError(
            f"data.classes: {split.name} has no class {unknown[0]!r}.{hint} "
            f"Its classes: {known}{more}"
        )
    if len(set(names)) < len(names):
        raise DataError(f"data.classes={classes} names a class twice.")
    return names


def _keep_classes(split: Split, names: tuple[str, ...]) -> Split:
    """Returns the examples of some classes, with labels from 0 on."""
    # The last entry is that of examples without a label (-1).
    new_label = np.full(split.num_classes + 1, -1, np.int64)
    wanted = [split.class_names.index(name) for name in names]
    new_label[wanted] = np.arange(len(names))

    labels = new_label[split.labels()]
    is_kept = tf.constant(labels >= 0)
    labels = labels[labels >= 0]

    def relabel(record: Record) -> Record:
        old = record["label"]
        label = tf.gather(new_label, old % len(new_label))
        changed = {**record, "label": label, "old_label": old}
        if split.is_multi_label:
            changed["labels"] = tf.gather(record["labels"], wanted, axis=-1)
        return changed

    def old(record: Record) -> Record:
        return {**record, "label": record["old_label"]}

    def keep(records: tf.data.Dataset) -> tf.data.Dataset:
        return records.map(relabel).filter(lambda x: x["label"] >= 0)

    def kept_rows(table: Table) -> Table:
        def order(seed: tf.Tensor) -> tf.Tensor:
            rows = table.order(seed)
            return tf.boolean_mask(rows, tf.gather(is_kept, rows))

        return Table(lambda rows: relabel(table.rows(rows)), order)

    def shuffled(seed: tf.Tensor, first: Any, buffer: int) -> tf.data.Dataset:
        # Only what is left counts, so nothing can be skipped before.
        return keep(split.in_order_of(seed, 0, buffer)).skip(first)

    return dataclasses.replace(
        split,
        name=f"{split.name} ({', '.join(names)})",
        num_examples=len(labels),
        class_names=names,
        records=lambda: keep(split.records()),
        labels=lambda: labels,
        load=lambda record: split.load(old(record)),
        name_of=lambda record: split.name_of(old(record)),
        table=split.table and kept_rows(split.table),
        shuffled=shuffled,
    )


@functools.cache
def _load_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the UCI handwritten digits: split -> images, labels.

    scikit-learn has the file, whose rows are 64 pixels of 0 to 16 and a label.
    It is read without importing scikit-learn, which takes more than a second of
    every process. digits_order.npy has the rows in the order of its stratified
    `train_test_split(test_size=360, random_state=0)`.
    """
    rows = np.loadtxt(_digits_file(), delimiter=",")
    order = np.load(pathlib.Path(__file__).with_name("digits_order.npy"))
    grey = np.round(rows[order, :-1] * (255 / 16)).astype(np.uint8)
    rgb = np.repeat(grey.reshape(-1, 8, 8, 1), 3, axis=-1)
    labels = rows[order, -1].astype(np.int64)
    first = len(order) - _DIGITS_TEST_EXAMPLES
    return {
        "train": (rgb[:first], labels[:first]),
        "test": (rgb[first:], labels[first:]),
    }


def _digits_file() -> pathlib.Path:
    """Returns the file of scikit-learn's package.

    Raises:
      DataError: There is no such file.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or []:
        file = pathlib.Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return file
    raise DataError(
        "data.name=digits needs scikit-learn with its digits.csv.gz: "
        "pip install scikit-learn"
    )


def _digits(split: str) -> Split:
    arrays = _load_digits()
    lengths = {key: len(labels) for key, (_, labels) in arrays.items()}
    key, begin, end = select(split, lengths, "digits")
    pixels, labels = (x[begin:end] for x in arrays[key])
    return Split(
        name=f"digits {split}",
        class_names=tuple(str(i) for i in range(10)),
        image_size=8,
        ranges=[(f"digits/{key}", begin, end)],
        num_bytes=lambda: pixels.nbytes,
        **table_of({"image": pixels, "label": labels}),
    )
