"""Photos that a person names: files, folders of them, or arrays.

They become a split without labels, so that they are read, preprocessed and,
where they are broken, dropped as those of an evaluation.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_mixer.data import folders as folder_lib
from keras_mixer.data.augment import policy as policy_lib
from keras_mixer.data.sources import open_split
from keras_mixer.data.splits import DataError, Split, table_of
from keras_mixer.run import files, suggest
from keras_mixer.run.fields import DataConfig

_WANTED = (
    "a path, a list of paths, an array uint8 [height, width, 3] or [batch, "
    "height, width, 3], or a list of such images"
)


class Photos(NamedTuple):
    """Photos in a fixed order.

    `names` are the paths for people, or "image 0" of an array. `folders` are
    the names of the folders around each photo, innermost first, up to the one
    that was given. `left_out` counts the files that are no images by suffix,
    "14 .tiff, 2 .txt". `split` has the encoded photos.
    """

    names: tuple[str, ...]
    folders: tuple[tuple[str, ...], ...]
    left_out: str
    split: Split


def find_photos(paths: Sequence[str | os.PathLike[str]]) -> Photos:
    """Finds photos, and those in folders at any depth, each once.

    Hidden files are passed over. Those in a folder are in the order of their
    paths.

    Raises:
      ConfigError: There is no such file or folder.
      DataError: A folder cannot be listed, or there is no photo.
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    left: list[str] = []
    for given in files.require_photos(paths):
        for path, above in sorted(_files_of(given)):
            if folder_lib.is_image(path):
                found.setdefault(os.path.abspath(path), (path, above))
            else:
                left.append(path)
    left_out = folder_lib.count_suffixes(left)
    if not found:
        held = f" What there is: {left_out}." if left_out else ""
        raise DataError(
            f"There is no photo in {', '.join(map(str, paths))}: no file that "
            f"ends in {', '.join(folder_lib.SUFFIXES)}.{held}"
        )
    photos, folders = zip(*found.values(), strict=True)
    names = tuple(os.fsencode(x).decode(errors="replace") for x in photos)
    split = _split(
        {"file": [os.fsencode(x) for x in photos]},
        load=lambda record: tf.io.read_file(record["file"]),
    )
    return Photos(names, folders, left_out, split)


def _files_of(path: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields files with the names of the folders around them."""
    if not os.path.isdir(path):
        yield path, ()
        return
    top = os.path.basename(os.path.abspath(path))
    for parts, names in folder_lib.walk(path):
        for name in names:
            yield os.path.join(path, *parts, name), (top, *parts)[::-1]


def open_images(images: Any) -> Photos:
    """Returns the photos of paths as `find_photos`, or those of arrays.

    Args:
      images: A path or a list of paths, of photos and folders; an array, uint8
        `[height, width, 3]` or `[batch, height, width, 3]`; or a list of arrays
        `[height, width, 3]` of any sizes.

    Raises:
      ValueError: It is something else, or as `find_photos`.
    """
    if isinstance(images, str | os.PathLike):
        images = [images]
    elif not isinstance(images, list | tuple):
        images = _to_pixels("images", images)
        images = images if images.ndim == 4 else [images]
    if not len(images):
        raise ValueError(f"images is empty: it must be {_WANTED}.")
    if isinstance(images[0], str | os.PathLike):
        for image in images:
            suggest.check_path("images", image)
        return find_photos(images)
    arrays = [_to_pixels(f"images[{i}]", x) for i, x in enumerate(images)]
    for i, array in enumerate(arrays):
        if array.ndim != 3:
            raise ValueError(
                f"images[{i}] must be uint8 [height, width, 3]. Received: the "
                f"shape {array.shape}"
            )
    names = tuple(f"image {i}" for i in range(len(arrays)))
    # A PNG keeps every pixel, and arrays of any sizes are strings then.
    encoded = [tf.io.encode_png(x).numpy() for x in arrays]
    split = _split({"file": list(names), "image": encoded})
    return Photos(names, ((),) * len(names), "", split)


def _to_pixels(name: str, value: Any) -> np.ndarray:
    """Returns pixels of one image or of a batch, or raises ValueError."""
    array = suggest.to_numbers(name, value, _WANTED)
    if array.dtype != np.uint8:
        raise ValueError(
            f"{name} must be uint8, with values of 0 to 255. Received: "
            f"{array.dtype}. Convert floats in [0, 1] with "
            "(255 * x).round().astype('uint8'), in [-1, 1] with "
            "(127.5 * x + 127.5).round().astype('uint8')"
        )
    sides = array.shape[-3:]
    if array.ndim not in (3, 4) or sides[-1] != 3 or 0 in sides:
        raise ValueError(
            f"{name} must be {_WANTED}. Received: the shape {array.shape}"
        )
    return array


def _split(columns: dict[str, list[Any]], **fields: Any) -> Split:
    """Returns a split of one class, whose records have a "file"."""
    label = np.zeros(len(columns["file"]), np.int64)
    return Split(
        name="the photos",
        class_names=("unknown",),
        image_size=None,
        name_of=lambda record: record["file"],
        **table_of({**columns, "label": label}),
        **fields,
    )


def count_trained_on(photos: Photos, own: DataConfig) -> int:
    """Returns how many photos are training images of a run's data.

    It is 0 of other data than folders, or if the folder is not there anymore.
    """
    root = os.path.realpath(files.expand(own.name.removeprefix("folder:")))
    paths = [os.path.realpath(name) for name in photos.names]
    if not own.name.startswith("folder:") or not any(
        path.startswith(f"{root}/") for path in paths
    ):
        return 0
    try:
        split = open_split(
            own.name,
            own.train_split,
            own.data_dir,
            classes=own.classes,
            hold_out=own.hold_out,
        )
    except DataError:
        return 0
    found = split.records().map(split.name_of).as_numpy_iterator()
    trained = {os.path.realpath(x.decode(errors="replace")) for x in found}
    return sum(path in trained for path in paths)


def thumbnails(
    photos: Photos, indices: Sequence[int], side: int
) -> list[np.ndarray]:
    """Returns the middle of photos, uint8 `[side, side, 3]`, for a picture.

    Raises:
      tf.errors.OpError: One of them is broken.
    """
    shrink = policy_lib.parse(f"resize_small({side})|central_crop", side)
    seed = tf.zeros([2], tf.int64)
    table, load = photos.split.table, photos.split.load
    assert table is not None
    return [shrink(load(table.rows(i)), seed).numpy() for i in indices]
