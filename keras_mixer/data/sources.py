"""Where the images come from: a data set's name becomes a `Split`.

Three kinds of data set: `digits` (bundled with scikit-learn), any TFDS name,
and `folder:/path`. Each split is a fixed order of raw records.
"""

import dataclasses
import difflib
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

_FOLDER_ORDER_SEED = 0
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
_DIGITS_TEST_EXAMPLES = 360


class DataError(ValueError):
    """A data set is missing, or not what the run needs."""


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
      name: For people, "cifar10 train[:99%]".
      num_examples: Length of `records()`.
      class_names: One name per class, in the order of the labels.
      image_size: Side in pixels if all images are squares of one size.
      records: Makes the data set of records in a fixed order, `{"image":
        encoded bytes or uint8 [height, width, 3], "label": int64 []}`.
      labels: Returns the labels in the same order, int64 [num_examples],
        without reading images where the source allows it.
      ranges: The parts of the data set's splits, (name, begin, end).
    """

    name: str
    num_examples: int
    class_names: tuple[str, ...]
    image_size: int | None
    records: Callable[[], tf.data.Dataset]
    labels: Callable[[], np.ndarray]
    ranges: tuple[tuple[str, int, int], ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def overlaps(self, other: "Split") -> bool:
        """Whether two splits of one data set share examples."""
        return any(
            name == theirs and max(begin, start) < min(end, stop)
            for name, begin, end in self.ranges
            for theirs, start, stop in other.ranges
        )


def open_split(
    name: str,
    split: str,
    data_dir: str | None = None,
    *,
    classes: str | None = None,
) -> Split:
    """Finds one split of a data set, and downloads what TFDS can download.

    Args:
      name: "digits", "folder:/path", or a TFDS name ("imagenet2012:5.1.0").
      split: A TFDS split expression, "train[:99%]".
      data_dir: Where TFDS keeps prepared data sets; its default if None.
      classes: Names of the classes that are kept, with commas between them;
        their order is that of the new labels. All of them if None.

    Raises:
      DataError: The data set, the split or a class does not exist, the split
        is empty, cannot be downloaded, or has no image and label. The message
        says what to do.
    """
    if name == "digits":
        found = _digits(split)
    elif name.startswith("folder:"):
        found = _folder(name.removeprefix("folder:"), split)
    else:
        found = _tfds(name, split, data_dir)
    if classes is not None:
        found = _keep_classes(found, classes)
    if not found.num_examples:
        raise DataError(
            f"The split {split!r} of {name!r} has no examples. Check the "
            "expression: https://www.tensorflow.org/datasets/splits"
        )
    return found


def _keep_classes(split: Split, classes: str) -> Split:
    """Returns the examples of some classes, with labels from 0 on."""
    names = tuple(name.strip() for name in classes.split(","))
    unknown = [name for name in names if name not in split.class_names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], split.class_names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(split.class_names[:20])
        more = " ..." if split.num_classes > 20 else ""
        raise DataError(
            f"data.classes: {split.name} has no class {unknown[0]!r}.{hint} "
            f"Its classes: {known}{more}"
        )
    if len(set(names)) < len(names):
        raise DataError(f"data.classes={classes} names a class twice.")
    # The last entry is that of examples without a label (-1).
    new_label = np.full(split.num_classes + 1, -1, np.int64)
    for label, name in enumerate(names):
        new_label[split.class_names.index(name)] = label

    def labels() -> np.ndarray:
        found = new_label[split.labels()]
        return found[found >= 0]

    def records() -> tf.data.Dataset:
        def relabel(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            old = record["label"] % len(new_label)
            return {**record, "label": tf.gather(new_label, old)}

        return split.records().map(relabel).filter(lambda x: x["label"] >= 0)

    return dataclasses.replace(
        split,
        name=f"{split.name} ({', '.join(names)})",
        num_examples=len(labels()),
        class_names=names,
        records=records,
        labels=labels,
    )


def _select(
    split: str, lengths: Mapping[str, int], name: str
) -> tuple[str, slice]:
    """Evaluates a split expression over splits that lie in memory."""
    import tensorflow_datasets as tfds

    infos = {
        key: tfds.core.SplitInfo(name=key, shard_lengths=[length], num_bytes=0)
        for key, length in lengths.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise DataError(
            f"Cannot use the split {split!r} of {name!r}: its splits are "
            f"{', '.join(lengths)}, and parts of one are written as in "
            "train[:80%] (https://www.tensorflow.org/datasets/splits)"
        ) from error
    if len(parts) != 1:
        raise DataError(
            f"Cannot use the split {split!r}: {name!r} takes one part of one "
            "split, without '+'."
        )
    return parts[0].splitname, slice(parts[0].from_, parts[0].to)


@functools.cache
def _load_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the UCI handwritten digits: split -> images, labels."""
    from sklearn import datasets, model_selection

    bundle = datasets.load_digits()
    grey = np.round(bundle.images * (255 / 16)).astype(np.uint8)  # [n, 8, 8]
    rgb = np.repeat(grey[..., None], 3, axis=-1)  # [n, 8, 8, 3]
    labels = bundle.target.astype(np.int64)
    train, test = model_selection.train_test_split(
        np.arange(len(labels)),
        test_size=_DIGITS_TEST_EXAMPLES,
        random_state=0,
        stratify=labels,
    )
    return {
        "train": (rgb[train], labels[train]),
        "test": (rgb[test], labels[test]),
    }


def _digits(split: str) -> Split:
    arrays = _load_digits()
    lengths = {key: len(labels) for key, (_, labels) in arrays.items()}
    key, part = _select(split, lengths, "digits")
    pixels, labels = arrays[key][0][part], arrays[key][1][part]
    return Split(
        name=f"digits {split}",
        num_examples=len(labels),
        class_names=tuple(str(i) for i in range(10)),
        image_size=8,
        records=lambda: tf.data.Dataset.from_tensor_slices(
            {"image": pixels, "label": labels}
        ),
        labels=lambda: labels,
        ranges=((key, *part.indices(lengths[key])[:2]),),
    )


def _list_folder(
    root: pathlib.Path, class_names: list[str]
) -> tuple[list[str], list[int]]:
    """Lists the images of class folders in a fixed, mixed order."""
    files, labels = [], []
    for label, class_name in enumerate(class_names):
        found = sorted(
            str(path)
            for path in (root / class_name).rglob("*")
            if path.suffix.lower() in _IMAGE_SUFFIXES
            and not path.name.startswith(".")
        )
        if not found:
            raise DataError(
                f"The class folder {root / class_name} has no image "
                f"({', '.join(_IMAGE_SUFFIXES)}). Remove it or fill it."
            )
        files += found
        labels += [label] * len(found)
    order = np.random.default_rng(_FOLDER_ORDER_SEED).permutation(len(files))
    return [files[i] for i in order], [labels[i] for i in order]


def _subfolders(path: pathlib.Path) -> list[str]:
    return sorted(
        p.name
        for p in path.iterdir()
        if p.is_dir() and not p.name.startswith(".")
    )


def _folder(path: str, split: str) -> Split:
    """Reads `path/<class>/*.jpg`, or `path/<split>/<class>/*.jpg`.

    Without split folders everything is the split "train", in an order that
    mixes the classes: train[:80%] and train[80%:] make two parts.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"There is no image folder {root}")
    folders = _subfolders(root)
    nested = [f for f in folders if _subfolders(root / f)]
    if nested and len(nested) < len(folders):
        flat = sorted(set(folders) - set(nested))
        raise DataError(
            f"{root} mixes two layouts: {', '.join(nested[:3])} hold folders, "
            f"{', '.join(flat[:3])} do not. It should be <class>/*.jpg, or "
            "train/<class>/*.jpg and test/<class>/*.jpg."
        )
    has_splits = bool(nested)
    roots = {f: root / f for f in folders} if has_splits else {"train": root}
    names = {key: _subfolders(r) for key, r in roots.items()}
    if not any(names.values()):
        raise DataError(
            f"The image folder {root} has no folders. It should hold one "
            "folder of images per class, <class>/*.jpg, or train/<class>/"
            "*.jpg and test/<class>/*.jpg."
        )
    class_names = next(iter(names.values()))
    for key, theirs in names.items():
        if theirs != class_names:
            different = sorted(set(theirs) ^ set(class_names))
            raise DataError(
                f"The splits of {root} have different classes: {key} and "
                f"{next(iter(names))} differ in {', '.join(different[:5])}"
            )
    lists = {key: _list_folder(r, class_names) for key, r in roots.items()}
    lengths = {key: len(files) for key, (files, _) in lists.items()}
    key, part = _select(split, lengths, f"folder:{path}")
    files = np.array(lists[key][0][part])
    labels = np.array(lists[key][1][part], np.int64)

    def records() -> tf.data.Dataset:
        paths = tf.data.Dataset.from_tensor_slices(
            {"path": files, "label": labels}
        )
        return paths.map(
            lambda x: {
                "image": tf.io.read_file(x["path"]),
                "label": x["label"],
            },
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    return Split(
        name=f"folder:{path} {split}",
        num_examples=len(files),
        class_names=tuple(class_names),
        image_size=None,
        records=records,
        labels=lambda: labels,
        ranges=((key, *part.indices(lengths[key])[:2]),),
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _prepare(name: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of a data set that is on disk."""
    import tensorflow_datasets as tfds

    data_dir = os.path.expanduser(data_dir) if data_dir else None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, AssertionError) as error:
        raise DataError(
            f"{name!r} is no data set of TFDS "
            f"{tfds.__version__}: {_first_line(error)} Names: "
            "https://www.tensorflow.org/datasets/catalog. Without TFDS: "
            "data.name=digits, or data.name=folder:/path with one folder of "
            "images per class."
        ) from error
    if builder.is_prepared():
        return builder
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever the network or the host raises
        where = pathlib.Path(builder.data_path)
        raise DataError(
            f"{name!r} is not in {where} and could not be downloaded "
            f"({type(error).__name__}: {_first_line(error)}). Ways out: (1) "
            "point data.data_dir at a folder that has it; (2) where there is "
            f"a network, run `tfds build {builder.name} --data_dir=DIR` and "
            "copy DIR here; (3) train on data.name=digits, which is bundled, "
            "or on data.name=folder:/path."
        ) from error
    return builder


def _tfds(name: str, split: str, data_dir: str | None) -> Split:
    import tensorflow_datasets as tfds

    builder = _prepare(name, data_dir)
    features = builder.info.features

    def key_of(kind: type, preferred: str) -> str:
        keys = [k for k, f in features.items() if type(f) is kind]
        if preferred in keys:
            return preferred
        if len(keys) != 1:
            raise DataError(
                f"{name!r} has no single {kind.__name__} feature: its "
                f"features are {', '.join(features)}. Image classification "
                "needs one image and one label."
            )
        return str(keys[0])

    image_key = key_of(tfds.features.Image, "image")
    label_key = key_of(tfds.features.ClassLabel, "label")
    try:
        info = builder.info.splits[split]
    except (ValueError, KeyError, NotImplementedError) as error:
        raise DataError(
            f"Cannot use the split {split!r} of {name!r}: "
            f"{_first_line(error)} Splits: "
            f"{', '.join(builder.info.splits)}; parts are written as in "
            "train[:99%]"
        ) from error
    height, width, _ = features[image_key].shape

    def labels() -> np.ndarray:
        dataset = builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding({label_key: True}),
            read_config=tfds.ReadConfig(try_autocache=False),
        )
        found = [x[label_key] for x in dataset.batch(4096).as_numpy_iterator()]
        return np.concatenate(found)

    def records() -> tf.data.Dataset:
        dataset = builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders={image_key: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(try_autocache=False),
        )
        return dataset.map(
            lambda x: {"image": x[image_key], "label": x[label_key]}
        )

    return Split(
        name=f"{name} {split}",
        num_examples=info.num_examples,
        class_names=tuple(features[label_key].names),
        image_size=height if height == width else None,
        records=records,
        labels=functools.cache(labels),
        ranges=tuple(
            (
                part.splitname,
                *slice(part.from_, part.to).indices(
                    builder.info.splits[part.splitname].num_examples
                )[:2],
            )
            for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(
                builder.info.splits
            )
        ),
    )
