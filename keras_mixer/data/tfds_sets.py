"""Data sets of TensorFlow Datasets (TFDS), prepared as either kind of file."""

import contextlib
import functools
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mixer.data.splits import (
    DataError,
    Record,
    Split,
    first_line,
    permutation,
    read_split,
    shuffle,
)

_HOST = ("storage.googleapis.com", 443)  # of TFDS' files, and seldom down
_NETWORK_SECONDS = 4.0
_RETRIES = 3  # a second in all; the ten of TFDS take minutes
_FILES_AT_ONCE = 16  # of a TFRecord data set, read in turn
_RECORDS_AT_ONCE = 32  # of an array_record data set
_READ_BYTES = 8 * 2**20  # at once, as TFDS does: a bucket answers slowly


def _prepare(name: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of a data set that is on disk."""
    import tensorflow_datasets as tfds

    try:
        with _only_errors("absl"):  # it warns of each set that is not prepared
            builder = tfds.builder(name, data_dir=data_dir)
            is_prepared = builder.is_prepared()
    except (tfds.core.DatasetNotFoundError, AssertionError) as error:
        raise DataError(
            f"{name!r} is no data set of TFDS {tfds.__version__}: "
            f"{first_line(error)} Names: "
            "https://www.tensorflow.org/datasets/catalog. Without TFDS: "
            "data.name=digits, or data.name=folder:/path with one folder of "
            "images per class."
        ) from error
    if is_prepared:
        return builder
    try:
        # Manual downloads are on the disk.
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            _require_network()
        with _few_retries():
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


def open_tfds(name: str, split: str, data_dir: str | None) -> Split:
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


def _require_network() -> None:
    """Raises OSError if there is none, before TFDS tries for minutes."""
    address = _proxy() or _HOST
    try:
        socket.create_connection(address, timeout=_NETWORK_SECONDS).close()
    except OSError as error:
        raise OSError(f"no network: {address[0]}: {error}") from error


def _proxy() -> tuple[str, int] | None:
    """Returns host and port of the proxy that TFDS goes through, if any."""
    proxies = urllib.request.getproxies()
    found = [proxies[key] for key in ("https", "all", "http") if key in proxies]
    if not found:
        return None
    url = found[0] if "//" in found[0] else f"http://{found[0]}"
    parts = urllib.parse.urlsplit(url)
    usual = {"https": 443, "http": 80}.get(parts.scheme, 1080)
    return parts.hostname or "", parts.port or usual


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Within, TFDS asks a host that cannot be reached a few times."""
    from tensorflow_datasets.core.download import downloader

    before = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = _RETRIES
    try:
        with _only_errors("urllib3.connectionpool"):  # a warning for each
            yield
    finally:
        downloader.MAX_RETRIES = before


@contextlib.contextmanager
def _only_errors(name: str) -> Iterator[None]:
    """Within, a logger drops its warnings."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


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
