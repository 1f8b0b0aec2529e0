"""Folders of images, one folder per class, on a disk or in a bucket."""

import collections
import contextlib
import functools
import hashlib
import itertools
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from keras_mixer.data.splits import (
    DataError,
    Range,
    Record,
    Split,
    select,
    table_of,
)
from keras_mixer.run import files as files_lib, suggest

_ORDER_SEED = 0
# All names of what TensorFlow decodes.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp"),
    *(".png", ".apng", ".bmp", ".dib", ".gif", ".webp"),
)
_LAYOUTS = "<class>/*.jpg, or train/<class>/*.jpg and test/<class>/*.jpg"
_PATIENCE = 5.0  # seconds between two messages of a long listing

# Class -> paths of its images, relative to the class folder.
Listing = dict[str, list[str]]


def _is_remote(path: str) -> bool:
    return "://" in path


def _real(path: str) -> str:
    """Returns the path without links: the same for the same images."""
    return path if _is_remote(path) else os.path.realpath(path)


def is_image(name: str) -> bool:
    """Whether a file's name ends as those of images that TensorFlow reads."""
    return name.lower().endswith(SUFFIXES)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def count_suffixes(names: list[str]) -> str:
    """Returns "14 .tiff, 2 .txt" of the files that are no images, or ""."""
    suffixes = (pathlib.Path(name).suffix.lower() for name in names)
    counts = collections.Counter(x or "without a suffix" for x in suffixes)
    shown = [f"{n:,} {suffix}" for suffix, n in counts.most_common(10)]
    return ", ".join(shown) + (", ..." if len(counts) > 10 else "")


@functools.cache  # the splits of a run are listed one after another
def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _leads_back(path: str) -> bool:
    """Whether a folder is a link to one that contains it."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    here = os.path.realpath(os.path.dirname(path))
    return os.path.commonpath([here, target]) == target


def walk(root: str) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yields each folder, by the parts of its path, and its files' names."""
    if _is_remote(root):
        # One request per thousand files. A walk would need one per file, to
        # learn whether it is a folder. A bucket has no empty folders.
        found: dict[tuple[str, ...], list[str]] = {}
        for pattern in ("*/*", "*/*/*"):
            for path in tf.io.gfile.glob(f"{root}/{pattern}"):
                *folder, name = path.removeprefix(f"{root}/").split("/")
                if not _is_hidden(name):
                    found.setdefault(tuple(folder), []).append(name)
        yield from found.items()
        return

    def fail(error: OSError) -> None:
        raise DataError(f"Cannot list {error.filename}: {error.strerror}")

    seen: set[tuple[tuple[str, ...], str]] = set()
    for path, folders, names in os.walk(root, followlinks=True, onerror=fail):
        parts = pathlib.Path(path).relative_to(root).parts
        # Links among the folders of a class may lead in circles.
        key = (parts[:2], os.path.realpath(path))
        if key in seen:
            folders.clear()
            continue
        seen.add(key)
        folders[:] = [
            f
            for f in folders
            if not _is_hidden(f) and not _leads_back(f"{path}/{f}")
        ]
        yield parts, [name for name in names if not _is_hidden(name)]


def _list(root: str) -> tuple[dict[str, Listing], bool]:
    """Lists the images of a folder: sorted names by split and class.

    Also returns whether each split has a folder of its own. Without such
    folders everything is the split "train".
    """
    if not tf.io.gfile.isdir(root):
        raise DataError(f"There is no image folder {root}")
    folders: dict[tuple[str, ...], list[str]] = {}
    others: dict[tuple[str, ...], list[str]] = {}  # that are no images
    last = time.monotonic()
    for folder, names in walk(root):
        for depth in range(1, len(folder)):
            folders.setdefault(folder[:depth], [])
        folders[folder] = list(filter(is_image, names))
        others[folder] = [name for name in names if not is_image(name)]
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
    seen: set[tuple[str, str, str]] = set()
    for folder in sorted(f for f in folders if len(f) >= depth):
        split, class_name = ("train", *folder[:depth])[-2:]
        # Each real folder counts once per class.
        real = _real("/".join((root, *folder)))
        if (split, class_name, real) in seen:
            continue
        seen.add((split, class_name, real))
        inner = "".join(f"{part}/" for part in folder[depth:])
        names = listings.setdefault(split, {}).setdefault(class_name, [])
        names += [inner + name for name in folders[folder]]
    for split, listing in listings.items():
        for class_name, names in listing.items():
            names.sort()
            if not names:
                folder = (split, class_name) if nested else (class_name,)
                where = "/".join((root, *folder))
                left = [
                    name
                    for key, names in others.items()
                    if key[:depth] == folder
                    for name in names
                ]
                raise DataError(
                    f"The class folder {where} has no image "
                    f"({', '.join(SUFFIXES)}). Remove it or fill it."
                    + (f" It holds {count_suffixes(left)}." if left else "")
                )
    _tell_left_out(root, folders, others, depth)
    return listings, bool(nested)


def _tell_left_out(
    root: str,
    folders: Mapping[tuple[str, ...], list[str]],
    others: Mapping[tuple[str, ...], list[str]],
    depth: int,
) -> None:
    """Prints which files are left out, if any; `depth` is of class folders."""
    left = list(itertools.chain.from_iterable(others.values()))
    astray = sum(len(x) for f, x in folders.items() if len(f) < depth)
    parts = []
    if left:
        parts.append(f"{count_suffixes(left)} (not read by TensorFlow)")
    if astray:
        parts.append(f"{astray:,} images outside of the class folders")
    if parts:
        _tell(f"Left out in {root}: {'; '.join(parts)}.")


def _require_no_level(
    root: str, listings: Mapping[str, Listing], split: str
) -> None:
    """Raises DataError if the one folder is no split that anybody names."""
    first, *others = listings
    if not others and first not in ("train", "test", split):
        raise DataError(
            f"{root} has one folder, {first!r}, with the class folders in it. "
            "Unzipping often adds such a level: give the folder that holds "
            f"the class folders, folder:{root.rstrip('/')}/{first}"
        )


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
    if len(listings[first]) == 1:
        (name,) = listings[first]
        raise DataError(
            f"{root} has one class, {name!r}, and a classifier needs two. It "
            f"should be {_LAYOUTS}. Unzipping often adds a level: give the "
            "folder that holds the class folders."
        )
    return tuple(listings[first])


def _draw(path: str) -> float:
    """Returns a number in [0, 1) that follows from the name of a file.

    It is the same for copies and links in other folders, and for the same name
    with another suffix.
    """
    stem = os.path.splitext(os.path.basename(_real(path)))[0].lower()
    digest = hashlib.sha256(os.fsencode(stem)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _held_out(top: str, listing: Listing, share: float) -> np.ndarray:
    """Returns which images are set apart, bool, in the order of the listing.

    The name of a file decides, whatever else is in the folder. Only in a class
    where chance would take less than half the share, or more than one and a
    half times, the names closest to it change sides.

    Raises:
      DataError: All images of a class have one name.
    """
    found = []
    for class_name, names in listing.items():
        draws = np.array([_draw(f"{top}/{class_name}/{x}") for x in names])
        different = np.unique(draws)  # ascending
        total = len(different)
        if total == 1:
            raise DataError(
                f"data.hold_out={share} sets images of each class apart, and "
                f"{top}/{class_name} has one, {names[0]!r} (a name with "
                "several suffixes counts once). Add images, or name the "
                "splits, data.train_split=train data.eval_split=..."
            )
        least = max(math.floor(share * total / 2), 1)
        most = min(math.ceil(share * total * 1.5), total - 1)
        count = np.clip((different < share).sum(), least, most)
        found.append(draws < different[count])
    return np.concatenate(found)


def _split_lengths(
    listings: Mapping[str, Listing], held: np.ndarray | None
) -> dict[str, int]:
    """Returns the number of images of each split."""
    if held is not None:
        return {"train": int((~held).sum()), "test": int(held.sum())}
    return {key: sum(map(len, x.values())) for key, x in listings.items()}


def _no_test(path: str, listings: Mapping[str, Listing]) -> str:
    """Says what to take in place of the split "test"."""
    others = [key for key in listings if key != "train"]
    way = "data.hold_out=0.2 sets a fifth of the images apart as test"
    if others:
        way = f"take another, data.eval_split={others[0]}"
    return (
        f"folder:{path} has no split 'test'. Its splits are "
        f"{', '.join(listings)}: {way}, or cut a part off, "
        "data.train_split=train[:80%] data.eval_split=train[80%:]"
    )


def _runs(base: str, rows: np.ndarray) -> list[Range]:
    """Returns ascending numbers of rows as ranges."""
    if not len(rows):
        return []
    parts = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return [(base, int(part[0]), int(part[-1]) + 1) for part in parts]


def open_folder(path: str, split: str, hold_out: float = 0.0) -> Split:
    """Reads `path/<class>/*.jpg`, or `path/<split>/<class>/*.jpg`.

    Without split folders everything is the split "train", in an order that
    mixes the classes, so that train[:80%] and train[80%:] share them; or, with
    a `hold_out`, this share of each class is the split "test". The folder may
    be in a bucket, `gs://bucket/folder`. A table of 14 million names takes
    0.8 GB; an image is read when it is needed.

    Raises:
      DataError: The folder is missing, or laid out in no known way.
    """
    if not path:
        raise DataError(
            "A path is missing behind folder: in the name of the data set. It "
            "is written folder:/path"
        )
    part = split.partition("[")[0]
    root = path.rstrip("/") if _is_remote(path) else files_lib.expand(path)
    listings, has_splits = _list(root)
    if has_splits:
        _require_no_level(root, listings, part)
    class_names = _class_names(root, listings)
    held = None
    if hold_out and list(listings) == ["train"]:
        top = f"{root}/train" if has_splits else root
        held = _held_out(top, listings["train"], hold_out)
    elif part == "test" and "test" not in listings:
        raise DataError(_no_test(path, listings))
    lengths = _split_lengths(listings, held)
    part, begin, end = select(split, lengths, f"folder:{path}")
    key = part if held is None else "train"
    classes = listings[key].values()
    files = list(itertools.chain.from_iterable(classes))
    labels = np.repeat(np.arange(len(classes)), list(map(len, classes)))
    order = np.random.default_rng(_ORDER_SEED).permutation(len(files))
    places = np.arange(len(files))
    if held is not None:
        places = places[held[order] == (part == "test")]
    places = places[begin:end]
    order = order[places]
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
        ranges=_runs(_real(top), places),
        load=lambda record: tf.io.read_file(path_of(record)),
        name_of=path_of,
        num_bytes=num_bytes,
        **rows,
    )
