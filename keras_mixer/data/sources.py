"""Where the images come from: a data set's name becomes a `Split`.

There are three kinds of data set: `digits` (bundled with scikit-learn), any
TFDS name, and `folder:/path` (folders.py).
"""

import dataclasses
import functools
import numbers
import os
import socket
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mixer.data import folders
from keras_mixer.data.splits import (
    DataError,
    Record,
    Split,
    Table,
    first_line,
    permutation,
    read_split,
    select,
    shuffle,
    table_of,
)
from keras_mixer.run import quoting, suggest

_DIGITS_TEST_EXAMPLES = 360
_HOST = ("storage.googleapis.com", 443)  # TFDS asks it first
_NETWORK_SECONDS = 4.0
_FILES_AT_ONCE = 16  # of a TFRecord data set, read in turn
_RECORDS_AT_ONCE = 32  # of an array_record data set
_READ_BYTES = 8 * 2**20  # at once, as TFDS does: a bucket answers slowly


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
        found = _open_tfds(name, split, data_dir)
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
        known = ", ".join(split.class_names[:20])
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
    """Returns the UCI handwritten digits: split -> images, labels."""
    from sklearn import datasets, model_selection

    bundle = datasets.load_digits()
    grey = np.round(bundle.images * (255 / 16)).astype(np.uint8)  # [n, 8, 8]
    rgb = np.repeat(grey[..., None], 3, axis=-1)  # [n, 8, 8, 3]
    labels = bundle.target.astype(np.int64)
    parts = model_selection.train_test_split(
        np.arange(len(labels)),
        test_size=_DIGITS_TEST_EXAMPLES,
        random_state=0,
        stratify=labels,
    )
    train, test = ((rgb[part], labels[part]) for part in parts)
    return {"train": train, "test": test}


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


def _prepare(name: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of a data set that is on disk."""
    import tensorflow_datasets as tfds

    data_dir = os.path.expanduser(data_dir) if data_dir else None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, AssertionError) as error:
        raise DataError(
            f"{name!r} is no data set of TFDS {tfds.__version__}: "
            f"{first_line(error)} Names: "
            "https://www.tensorflow.org/datasets/catalog. Without TFDS: "
            "data.name=digits, or data.name=folder:/path with one folder of "
            "images per class."
        ) from error
    if builder.is_prepared():
        return builder
    try:
        _require_network(builder)
        builder.download_and_prepare()
    except Exception as error:  # whatever the network or the host raises
        raise DataError(
            f"{name!r} is not in {builder.data_path} and cannot be downloaded "
            f"({type(error).__name__}: {first_line(error)}). Ways out: (1) "
            "point data.data_dir at a folder that has it; (2) where there is "
            f"a network, run `tfds build {builder.name} --data_dir=DIR` and "
            "copy DIR here; (3) train on data.name=digits, which is bundled, "
            "or on data.name=folder:/path."
        ) from error
    return builder


def _feature(name: str, features: Any, kind: type, preferred: str) -> str:
    """Returns the key of a data set's one feature of a kind."""
    keys = [k for k, f in features.items() if type(f) is kind]
    if preferred in keys:
        return preferred
    if len(keys) != 1:
        raise DataError(
            f"{name!r} has no single {kind.__name__} feature: its features "
            f"are {', '.join(features)}. Image classification needs one image "
            "and one label."
        )
    return str(keys[0])


def _open_tfds(name: str, split: str, data_dir: str | None) -> Split:
    """Opens a split of TFDS; what TFDS raises becomes a DataError."""
    try:
        return _tfds(name, split, data_dir)
    except DataError:
        raise
    except Exception as error:  # a name can lead to anything in TFDS
        raise DataError(
            f"Cannot read {name!r} with TFDS: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def _loader(name: str, key: str, feature: Any) -> dict[str, Any]:
    """Returns `load` of a split, if its images are not ordinary files.

    TFDS writes the bits of a float32 image as the channels of a PNG.
    """
    if len(feature.shape) != 3:
        raise DataError(
            f"{name!r} has images of the shape {feature.shape} ({key!r}); "
            "(height, width, channels) can be read."
        )
    if np.dtype(feature.np_dtype) != np.float32:
        return {}

    def load(record: Record) -> tf.Tensor:
        image = feature.decode_example(record["image"])  # [height, width, 1]
        grey = tf.numpy_function(_to_grey, [image], tf.uint8)
        grey = tf.ensure_shape(grey, (None, None, 1))
        return tf.io.encode_png(grey, compression=0)

    return {"load": load}


def _to_grey(image: np.ndarray) -> np.ndarray:
    """Maps floats from [0, 1] to 0..255, or raises ValueError.

    No feature says what its range is, and [0, 1] is TensorFlow's for images.
    """
    if not ((image >= 0) & (image <= 1)).all():
        raise ValueError(
            f"float32 values of {image.min():.3g} to {image.max():.3g}; "
            "images of floats can be read if they are in [0, 1]"
        )
    return np.round(image * 255).astype(np.uint8)


def _require_network(builder: Any) -> None:
    """Raises OSError if there is none; TFDS would retry for a minute."""
    # A proxy looks names up itself, and manual downloads are on the disk.
    if urllib.request.getproxies() or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    try:
        socket.create_connection(_HOST, timeout=_NETWORK_SECONDS).close()
    except OSError as error:
        raise OSError(f"no network: {_HOST[0]}: {error}") from error


def _tfds(name: str, split: str, data_dir: str | None) -> Split:
    import tensorflow_datasets as tfds

    builder = _prepare(name, data_dir)
    splits, features = builder.info.splits, builder.info.features
    image_key = _feature(name, features, tfds.features.Image, "image")
    label_key = _feature(name, features, tfds.features.ClassLabel, "label")
    loader = _loader(name, image_key, features[image_key])
    ranges = read_split(split, splits, name)
    info = splits[split]
    decoders = {image_key: tfds.decode.SkipDecoding()}
    height, width, _ = features[image_key].shape
    class_names = tuple(features[label_key].names)
    is_multi_label = "real_label" in features  # ReaL (Beyer 2020)

    read = functools.partial(
        builder.as_dataset,
        split=split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(try_autocache=False, add_tfds_id=True),
    )

    @functools.cache
    def labels() -> np.ndarray:
        found = read(decoders=tfds.decode.PartialDecoding({label_key: True}))
        batches = found.batch(4096).as_numpy_iterator()
        return np.concatenate([batch[label_key] for batch in batches])

    def record(x: Mapping[str, tf.Tensor]) -> Record:
        image, label, name = x[image_key], x[label_key], x["tfds_id"]
        found = {"image": image, "label": label, "name": name}
        if is_multi_label:
            sets = tf.one_hot(x["real_label"], len(class_names), True, False)
            found["labels"] = tf.reduce_any(sets, axis=0)
        return found

    def parse(name: tf.Tensor, example: tf.Tensor) -> Record:
        x = features.deserialize_example(example, decoders=decoders)
        return record({**x, "tfds_id": name})

    def shuffled(seed: tf.Tensor, first: Any, buffer: int) -> tf.data.Dataset:
        raw = _shuffled_examples(info.file_instructions, seed, buffer)
        return raw.skip(first).map(parse, num_parallel_calls=tf.data.AUTOTUNE)

    wholes = [splits[key] for key, _, _ in ranges]
    whole = sum(x.num_examples for x in wholes)
    num_bytes = sum(x.num_bytes for x in wholes)
    form = builder.info.file_format
    if form == tfds.core.FileFormat.TFRECORD:
        order: dict[str, Any] = {
            "records": lambda: read(decoders=decoders).map(record),
            "labels": labels,
            "shuffled": shuffled,
        }
    elif form == tfds.core.FileFormat.ARRAY_RECORD:
        order = _array_records(builder, split, parse)
    else:
        raise DataError(
            f"{name!r} is prepared as {form.value}; tfrecord and array_record "
            f"can be read: tfds build {builder.name} --file_format=tfrecord"
        )
    return Split(
        name=f"{name} {split}",
        num_examples=info.num_examples,
        class_names=class_names,
        image_size=height if height == width else None,
        ranges=[
            (f"{builder.info.full_name}/{key}", begin, end)
            for key, begin, end in ranges
        ],
        num_bytes=lambda: int(info.num_examples / max(whole, 1) * num_bytes),
        is_multi_label=is_multi_label,
        **loader,
        **order,
    )


def _array_records(
    builder: Any, split: str, parse: Callable[[tf.Tensor, tf.Tensor], Record]
) -> dict[str, Any]:
    """Returns the fields of a `Split` whose records are read by number.

    So any order needs no buffer, and what is skipped is not read. `parse` makes
    a record of a name and a serialized example, both strings.
    """
    import tensorflow_datasets as tfds

    source = builder.as_data_source(
        split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )

    def fetch(numbers: np.ndarray) -> np.ndarray:
        return np.array(source.__getitems__(numbers.tolist()), object)

    def named(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        examples = tf.numpy_function(fetch, [numbers], tf.string)
        names = f"{builder.info.full_name} {split}, record "
        names += tf.strings.as_string(numbers)
        return names, tf.ensure_shape(examples, numbers.shape)

    def read(numbers: tf.data.Dataset) -> tf.data.Dataset:
        found = numbers.batch(_RECORDS_AT_ONCE).map(named).prefetch(1)
        return found.unbatch().map(parse, num_parallel_calls=tf.data.AUTOTUNE)

    def records() -> tf.data.Dataset:
        count = tf.data.experimental.assert_cardinality(len(source))
        return read(tf.data.Dataset.range(len(source))).apply(count)

    def shuffled(seed: tf.Tensor, first: Any, buffer: int) -> tf.data.Dataset:
        del buffer
        order = permutation(seed, len(source))[first:]
        return read(tf.data.Dataset.from_tensor_slices(order))

    @functools.cache
    def labels() -> np.ndarray:
        batches = records().map(lambda x: x["label"]).batch(4096)
        return np.concatenate(list(batches.as_numpy_iterator()))

    return {"records": records, "labels": labels, "shuffled": shuffled}


def _shuffled_examples(
    instructions: Sequence[Any], seed: tf.Tensor, buffer: int
) -> tf.data.Dataset:
    """Reads TFRecord files in a random order, several in turn.

    So a data set far larger than the buffer is mixed, too. Yields pairs of
    strings: a name as TFDS gives it, and the serialized example.
    """
    count = len(instructions)
    paths = tf.constant([i.filename for i in instructions])
    skips = tf.constant([i.skip for i in instructions], tf.int64)
    takes = tf.constant([i.take for i in instructions], tf.int64)

    def read(i: tf.Tensor) -> tf.data.Dataset:
        name = tf.strings.split(paths[i], "/")[-1] + "__"
        return (
            tf.data.TFRecordDataset(paths[i], buffer_size=_READ_BYTES)
            .skip(skips[i])
            .take(takes[i])
            .enumerate(skips[i])
            .map(lambda j, example: (name + tf.strings.as_string(j), example))
        )

    order = tf.data.Dataset.from_tensor_slices(permutation(seed, count))
    examples = order.interleave(
        read,
        cycle_length=_FILES_AT_ONCE,
        block_length=_FILES_AT_ONCE,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return shuffle(examples, seed, buffer)
