"""Images per second and core of input pipelines, side by side.

    python benchmarks/input_pipeline.py [--folder=DIR] [--batches=200]
    python benchmarks/input_pipeline.py --folder=DIR --soak=20

The pipelines run on one thread over the same JPEGs and take turns batch by
batch. Time is seconds of CPU. So other programs on the machine disturb the
ratios little. Without a folder 64 pictures are drawn, with the pixels and bytes
of ImageNet's.

The last rows are all that a training waits for: `data.train_batches`, which
also reads the files. It works ahead, so it is measured alone, ten times between
the others.

keras-cv's and timm's rows make the same number of pixels from the same files,
as their users do: keras-cv augments batches, timm works on PIL images, decodes
them whole and resizes with antialiasing. Of the two operations that
`rand-m15-n2` draws, timm applies each with probability 1/2; "p1" both, as here.

timm's rows need (without them they say "not run"):

    pip install torch torchvision \\
        --index-url https://download.pytorch.org/whl/cpu
    pip install timm==1.0.31

--soak goes through the files again and again, and prints the memory.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import pathlib
import statistics
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from keras_mixer import data, images

_SIDE = 224
_BATCH = 32
_WARM_UP = 5  # batches: the start of a stream costs hundreds of images
_CROP = "inception_crop|flip"
_AUGMENT = f"{_CROP}|randaugment(2, 15)"
_PARTS = 10
_LIMIT = "decode_and_crop_jpeg, resize and cast alone"

Stream = Iterator[np.ndarray | tf.Tensor]


def draw_pictures(count: int) -> list[bytes]:
    """Makes JPEGs of noise that falls off with frequency, as photographs'."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        picture = np.zeros([375, 500, 3])
        for scale in (1, 4, 16, 64, 125):
            shape = (-(-375 // scale), -(-500 // scale), 3)
            noise = rng.normal(0, 7 + scale**0.6, shape)
            noise = noise.repeat(scale, 0).repeat(scale, 1)
            picture += noise[:375, :500]
        picture = np.clip(picture + 120, 0, 255).astype(np.uint8)
        encoded = tf.io.encode_jpeg(
            picture, quality=90, chroma_downsampling=False
        )
        files.append(encoded.numpy())
    return files


def limit(encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Does the least that can be done for a random crop of a JPEG."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(encoded),
        tf.zeros([0, 0, 4]),
        seed=seed,
        area_range=(0.05, 1.0),
        min_object_covered=0.0,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], 0)
    crop = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
    return tf.cast(tf.image.resize(crop, [_SIDE, _SIDE]), tf.uint8)


def one_thread(ahead: bool = False) -> tf.data.Options:
    """Returns options for one thread, and with `ahead` no other ones."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    if not ahead:
        options.autotune.enabled = False
        # tf.data makes maps parallel and prefetches by default, and would work
        # on the next batch while another pipeline is timed.
        options.experimental_optimization.apply_default_optimizations = False
    return options


def tf_stream(
    files: Sequence[bytes], function: Callable, on_batch: Callable | None = None
) -> Stream:
    """Returns an endless stream of batches, made on one thread.

    Args:
      files: JPEGs.
      function: Of a file and a seed, to an image.
      on_batch: Of a batch of images, after that.
    """
    batches = (
        tf.data.Dataset.from_tensor_slices(files)
        .repeat()
        .enumerate()
        .map(lambda i, file: function(file, tf.stack([tf.zeros_like(i), i])))
        .batch(_BATCH, drop_remainder=True)
    )
    if on_batch:
        batches = batches.map(on_batch)
    return iter(batches.with_options(one_thread()))


def keras_cv_augment() -> Callable:
    """Returns keras-cv's RandAugment, for batches."""
    import keras_cv

    layer = keras_cv.layers.RandAugment(
        value_range=(0, 255), augmentations_per_image=2, magnitude=0.5
    )
    return lambda batch: tf.cast(layer(batch, training=True), tf.uint8)


def timm_stream(files: Sequence[bytes], policy: str) -> Stream:
    """Yields what timm's own loader makes of a batch, uint8 as ours is."""
    import torch
    from PIL import Image
    from timm.data import create_transform

    torch.set_num_threads(1)
    transform = create_transform(
        _SIDE,
        is_training=True,
        scale=(0.05, 1.0),
        color_jitter=None,
        auto_augment=policy,
        interpolation="bilinear",
        use_prefetcher=True,  # ends in uint8: the device makes floats of it
    )
    index = 0
    while True:
        batch = []
        for _ in range(_BATCH):
            image = Image.open(io.BytesIO(files[index % len(files)]))
            batch.append(transform(image.convert("RGB")))
            index += 1
        yield torch.stack(batch)


def missing_for_timm() -> str | None:
    """Imports torchvision, or returns why timm cannot run."""
    names = ("torch", "torchvision", "timm")
    missing = [name for name in names if not importlib.util.find_spec(name)]
    if missing:
        return f"{', '.join(missing)} not installed, see --help"
    import torch

    def no_operator(*_: object, **__: object) -> Callable:
        return lambda function: function

    # A torchvision that was compiled for another build of torch registers
    # shapes of operators that did not load. The transforms use none of them.
    with unittest.mock.patch.object(
        torch.library, "register_fake", no_operator
    ):
        import torchvision  # noqa: F401
    return None


def streams(
    files: Sequence[bytes], paths: Sequence[str]
) -> tuple[dict[str, Stream], dict[str, str]]:
    """Returns name -> stream, and name -> reason of those that cannot run."""
    crop = images.parse_policy(_CROP, _SIDE)
    read = f"{_LIMIT}, of files"
    found = {
        _LIMIT: tf_stream(files, limit),
        read: tf_stream(paths, lambda x, seed: limit(tf.io.read_file(x), seed)),
        _CROP: tf_stream(files, crop),
        _AUGMENT: tf_stream(files, images.parse_policy(_AUGMENT, _SIDE)),
    }
    not_run = {}
    name = f"{_CROP}, then keras-cv's RandAugment(2, 0.5) on batches"
    if importlib.util.find_spec("keras_cv"):
        found[name] = tf_stream(files, crop, keras_cv_augment())
    else:
        not_run[name] = "pip install keras-cv"
    reason = missing_for_timm()
    for policy in ("rand-m15-n2", "rand-m15-n2-p1"):
        name = f"timm's transforms with {policy}, on PIL images"
        if reason:
            not_run[name] = reason
        else:
            found[name] = timm_stream(files, policy)
    return found, not_run


@contextlib.contextmanager
def class_folder(files: Sequence[bytes]) -> Iterator[str]:
    """Writes the files as the one class of a data set; yields its name."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder, "train", "all")
        place.mkdir(parents=True)
        for i, file in enumerate(files):
            (place / f"{i:06}.jpg").write_bytes(file)
        yield f"folder:{folder}"


def train_stream(name: str, policy: str) -> Stream:
    """Returns the input of a training, on one thread."""
    batches = data.train_batches(
        data.open_split(name, "train"),
        batch_size=_BATCH,
        image_size=_SIDE,
        policy=policy,
        seed=0,
    )
    return iter(batches.with_options(one_thread(ahead=True)))


def resident() -> float:
    """Returns the memory of this process in MB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(files: Sequence[bytes], epochs: int) -> None:
    """Prints the memory after each epoch."""
    print("| epoch | images | resident memory, MB |\n|---|---|---|")
    with class_folder(files) as name:
        stream = train_stream(name, _AUGMENT)
        batches = 0
        for epoch in range(1, epochs + 1):
            while batches * _BATCH < epoch * len(files):
                next(stream)
                batches += 1
            print(f"| {epoch} | {batches * _BATCH} | {resident():.0f} |")


def cell(name: str) -> str:
    """Returns the name as code in a table of Markdown, which `|` would end."""
    return "`" + name.replace("|", r"\|") + "`"


def time_batches(stream: Stream, count: int) -> list[float]:
    """Returns the seconds of CPU of each of the next batches."""
    seconds = []
    start = time.process_time()
    for _ in range(count):
        next(stream)
        now = time.process_time()
        seconds.append(now - start)
        start = now
    return seconds


def compare(files: Sequence[bytes], batches: int) -> None:
    """Prints the table."""
    whole = {f"train_batches, {p}": p for p in (_CROP, _AUGMENT)}
    with class_folder(files) as folder:
        root = pathlib.Path(folder.removeprefix("folder:"))
        found, not_run = streams(files, sorted(map(str, root.rglob("*.jpg"))))
        times: dict[str, list[float]] = {name: [] for name in (*found, *whole)}
        for stream in found.values():
            time_batches(stream, _WARM_UP)
        for _ in range(_PARTS):
            for _ in range(batches // _PARTS):
                for name, stream in found.items():
                    times[name] += time_batches(stream, 1)
            for name, policy in whole.items():
                stream = train_stream(folder, policy)
                time_batches(stream, 2 * _WARM_UP)
                times[name] += time_batches(stream, batches // _PARTS)
                del stream  # or it would read ahead while others are timed

    size = statistics.median(map(len, files)) / 1000
    print(
        f"{len(files)} JPEGs, {size:.0f} kB in the median, to {_SIDE} x "
        f"{_SIDE}; {batches // _PARTS * _PARTS * _BATCH} images each, in "
        f"{_PARTS} parts"
    )
    print("| pipeline | images/s per core | of the first | in the parts |")
    print("|---|---|---|---|")
    size = batches // _PARTS
    parts = [slice(i * size, (i + 1) * size) for i in range(_PARTS)]
    for name, seconds in times.items():
        rate = len(seconds) * _BATCH / sum(seconds)
        ratios = [sum(times[_LIMIT][p]) / sum(seconds[p]) for p in parts]
        ratio = sum(times[_LIMIT]) / sum(seconds)
        print(
            f"| {cell(name)} | {rate:.0f} | {ratio:.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    for name, reason in not_run.items():
        print(f"| {cell(name)} | not run: {reason} | | |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=pathlib.Path, help="of JPEGs")
    parser.add_argument("--batches", type=int, default=200, help="of 32")
    parser.add_argument(
        "--soak", type=int, metavar="EPOCHS", help="print the memory instead"
    )
    flags = parser.parse_args()
    if flags.batches < 10:
        parser.error("--batches is 10 or more")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    if flags.folder:
        paths = sorted(
            path
            for path in flags.folder.rglob("*")
            if path.suffix.lower() in (".jpg", ".jpeg")
        )
        files = [path.read_bytes() for path in paths]
        if not files:
            parser.error(f"no *.jpg or *.jpeg in {flags.folder}")
    else:
        files = draw_pictures(64)
    if flags.soak:
        soak(files, flags.soak)
    else:
        compare(files, flags.batches)


if __name__ == "__main__":
    main()
