"""Images per second and core of decoding, cropping and RandAugment.

    python benchmarks/augmentation.py [--folder=DIR] [--batches=500]

Every variant runs on one thread over the same JPEGs with the same seeds, and
they take turns batch by batch. Time is seconds of CPU. So other programs on
the machine disturb the ratios little. Without a folder it draws 64 pictures
with the pixels and bytes of ImageNet's.
"""

import argparse
import os
import pathlib
import statistics
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from keras_mixer import images

_SIDE = 224
_BATCH = 32
_WARM_UP = 5  # batches: the start of a stream costs hundreds of images
_WHOLE = "inception_crop|flip, decoded whole"
_FUSED = "inception_crop|flip"
_LIMIT = "decode_and_crop_jpeg and resize alone"


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


def variants() -> dict:
    """Returns name -> function of a file and a seed."""
    crop, augment = (
        images.parse_policy(f"{_FUSED}{more}", _SIDE)
        for more in ("", "|randaugment(2, 15)")
    )
    return {
        _LIMIT: limit,
        _FUSED: crop,
        _WHOLE: lambda file, seed: crop(images.decode(file), seed),
        f"{_FUSED}|randaugment(2, 15)": augment,
        f"{_FUSED}|randaugment(2, 15), decoded whole": lambda file, seed: (
            augment(images.decode(file), seed)
        ),
    }


def pipeline(files: list[bytes], function) -> Iterator:
    """Returns an endless stream of batches, made on one thread."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    # tf.data makes maps parallel and prefetches by default, and would work on
    # the next batch while another variant is timed.
    options.experimental_optimization.apply_default_optimizations = False
    return iter(
        tf.data.Dataset.from_tensor_slices(files)
        .repeat()
        .enumerate()
        .map(lambda i, file: function(file, tf.stack([tf.zeros_like(i), i])))
        .batch(_BATCH)
        .with_options(options)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, help="of JPEGs")
    parser.add_argument("--batches", type=int, default=500, help="of 32")
    flags = parser.parse_args()
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
    streams = {
        name: pipeline(files, function) for name, function in variants().items()
    }
    times: dict[str, list[float]] = {name: [] for name in streams}
    for batch in range(flags.batches + _WARM_UP):
        for name, stream in streams.items():
            start = time.process_time()
            next(stream)
            if batch >= _WARM_UP:
                times[name].append(time.process_time() - start)

    size = statistics.median(map(len, files)) / 1000
    print(
        f"{len(files)} JPEGs, {size:.0f} kB in the median, to {_SIDE} x "
        f"{_SIDE}; {flags.batches * _BATCH} images; tenths: the ratio of "
        "every tenth batch"
    )
    print("| variant | images/s per core | of the first | tenths |")
    print("|---|---|---|---|")
    parts = [slice(i, None, 10) for i in range(10)]
    for name, seconds in times.items():
        rate = len(seconds) * _BATCH / sum(seconds)
        ratios = [sum(times[_LIMIT][p]) / sum(seconds[p]) for p in parts]
        name = name.replace("|", r"\|")  # or Markdown ends the cell
        print(
            f"| `{name}` | {rate:.0f} | {sum(times[_LIMIT]) / sum(seconds):.2f}"
            f" | {min(ratios):.2f} to {max(ratios):.2f} |"
        )


if __name__ == "__main__":
    main()
