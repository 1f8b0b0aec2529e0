"""Folders of images, one folder per class, on a disk or in a bucket."""

import contextlib
import itertools
import os
import pathlib
import time
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from keras_mixer.data.splits import DataError, Record, Split, select, table_of
from keras_mixer.run import suggest

_ORDER_SEED = 0
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
_LAYOUTS = "<class>/*.jpg, or train/<class>/*.jpg and test/<class>/*.jpg"
_PATIENCE = 5.0  # seconds between two messages of a long listing

# Class -> paths of its images, relative to the class folder.
Listing = dict[str, list[str]]


def _is_remote(path: str) -> bool:
    return "://" in path


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(_SUFFIXES)


def _leads_back(path: str) -> bool:
    """Whether a folder is a link to one that contains it."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    here = os.path.realpath(os.path.dirname(path))
    return os.path.commonpath([here, target]) == target


def _walk(root: str) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yields each folder, by the parts of its path, and its images' names."""
    if _is_remote(root):
        # One request per thousand files. A walk would need one per file, to
        # learn whether it is a folder. A bucket has no empty folders.
        found: dict[tuple[str, ...], list[str]] = {}
        for pattern in ("*/*", "*/*/*"):
            for path in tf.io.gfile.glob(f"{root}/{pattern}"):
                *folder, name = path.removeprefix(f"{root}/").split("/")
                if _is_image(name):
                    found.setdefault(tuple(folder), []).append(name)
        yield from found.items()
        return

    def fail(error: OSError) -> None:
        raise DataError(f"Cannot list {error.filename}: {error.strerror}")

    for path, folders, names in os.walk(root, followlinks=True, onerror=fail):
        folders[:] = [
            f
            for f in folders
            if not f.startswith(".") and not _leads_back(f"{path}/{f}")
        ]
        parts = pathlib.Path(path).relative_to(root).parts
        yield parts, list(filter(_is_image, names))


def _list(root: str) -> tuple[dict[str, Listing], bool]:
    """Lists the images of a folder: sorted names by split and class.

    Also returns whether each split has a folder of its own. Without such
    folders everything is the split "train".
    """
    if not tf.io.gfile.isdir(root):
        raise DataError(f"There is no image folder {root}")
    folders: dict[tuple[str, ...], list[str]] = {}
    last = time.monotonic()
    for folder, names in _walk(root):
        for depth in range(1, len(folder)):
            folders.setdefault(folder[:depth], [])
        folders[folder] = names
        if time.monotonic() - last > _PATIENCE:
            last = time.monotonic()
            count = sum(map(len, folders.values()))
            print(f"Listing {root}: {count:,} images ...", flush=True)
    top = {f[0] for f in folders if len(f) == 1}
    nested = {f[0] for f in folders if len(f) == 2}
    if not top:
        raise DataError(
            f"The image folder {root} has no folders. It should hold one "
            f"folder of images per class: {_LAYOUTS}."
        )
    if nested and nested != top:
        raise DataError(
            f"{root} mixes two layouts: {', '.join(sorted(nested)[:3])} hold "
            f"folders, {', '.join(sorted(top - nested)[:3])} do not. It should "
            f"be {_LAYOUTS}."
        )
    depth = 2 if nested else 1  # of a class folder
    listings: dict[str, Listing] = {}
    for folder in sorted(f for f in folders if len(f) >= depth):
        split, class_name = ("train", *folder[:depth])[-2:]
        inner = "".join(f"{part}/" for part in folder[depth:])
        names = listings.setdefault(split, {}).setdefault(class_name, [])
        names += [inner + name for name in folders[folder]]
    for split, listing in listings.items():
        for class_name, names in listing.items():
            names.sort()
            if not names:
                where = f"{root}/{split}" if nested else root
                raise DataError(
                    f"The class folder {where}/{class_name} has no image "
                    f"({', '.join(_SUFFIXES)}). Remove it or fill it."
                )
    return listings, bool(nested)


def _class_names(root: str, listings: Mapping[str, Listing]) -> tuple[str, ...]:
    """Returns the classes, which must be the same for all splits."""
    first, *others = listings
    for other in others:
        if set(listings[other]) != set(listings[first]):
            different = suggest.difference(
                list(listings[other]), list(listings[first])
            )
            raise DataError(
                f"The splits of {root} have different classes, {other} (here) "
                f"and {first} (there): {different}."
            )
    return tuple(listings[first])


def open_folder(path: str, split: str) -> Split:
    """Reads `path/<class>/*.jpg`, or `path/<split>/<class>/*.jpg`.

    Without split folders everything is the split "train", in an order that
    mixes the classes, so that train[:80%] and train[80%:] share them. The
    folder may be in a bucket, `gs://bucket/folder`. A table of 14 million names
    takes 0.8 GB; an image is read when it is needed.

    Raises:
      DataError: The folder is missing, or laid out in no known way.
    """
    root = path.rstrip("/") if _is_remote(path) else os.path.expanduser(path)
    listings, has_splits = _list(root)
    class_names = _class_names(root, listings)
    lengths = {key: sum(map(len, x.values())) for key, x in listings.items()}
    key, begin, end = select(split, lengths, f"folder:{path}")
    classes = listings[key].values()
    files = list(itertools.chain.from_iterable(classes))
    labels = np.repeat(np.arange(len(classes)), list(map(len, classes)))
    order = np.random.default_rng(_ORDER_SEED).permutation(len(files))
    order = order[begin:end]
    # TensorFlow takes bytes, so names need not be UTF-8.
    names = [os.fsencode(files[i]) for i in order]
    rows = table_of({"file": names, "label": labels[order]})
    top = f"{root}/{key}" if has_splits else root
    folders = tf.constant([os.fsencode(f"{top}/{x}/") for x in class_names])

    def path_of(record: Record) -> tf.Tensor:
        return tf.gather(folders, record["label"]) + record["file"]

    def num_bytes() -> int | None:
        if _is_remote(root):
            return None  # it would take a request per file
        size = 0
        paths = rows["records"]().batch(1024).map(path_of)
        for path in itertools.chain.from_iterable(paths.as_numpy_iterator()):
            with contextlib.suppress(OSError):  # a dead link has none
                size += os.path.getsize(path)
        return size

    return Split(
        name=f"folder:{path} {split}",
        class_names=class_names,
        image_size=None,
        ranges=[(key, begin, end)],
        load=lambda record: tf.io.read_file(path_of(record)),
        name_of=path_of,
        num_bytes=num_bytes,
        **rows,
    )
