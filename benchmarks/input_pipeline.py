"""Images per second and core of input pipelines, side by side.

    python benchmarks/input_pipeline.py [--folder=DIR] [--batches=200]
    python benchmarks/input_pipeline.py --folder=DIR --soak=20

The pipelines run on one core, one thread each, over the same JPEGs in the same
order, and take turns of five batches. Time is seconds of CPU, from one moment
when nothing is worked on ahead to the next. So every row pays for as many
batches as it is asked for, and other programs on the machine hardly disturb the
ratios. All rows keep freed memory, as a training does. Without a folder, 64
pictures are drawn with the pixels and bytes of ImageNet's.

The limit is the least work that makes a random crop of a JPEG. It cuts the same
boxes as our policies. It runs in three ways: on bytes in memory and on files,
one image after the other, and on files as users write a pipeline, with a
parallel map, a batch and a prefetch.

The last rows are everything that a training waits for: `data.train_batches`,
which also reads files.

keras-cv's and timm's rows make the same number of pixels from the same files,
in the way their users do: keras-cv augments batches; timm works on PIL images,
decodes them whole and resizes with antialiasing. `rand-m15-n2` draws two
operations, and timm applies each with probability 1/2. With "p1" it applies
both, as we do.

timm's rows say "not run" without:

    pip install torch torchvision \\
        --index-url https://download.pytorch.org/whl/cpu
    pip install timm==1.0.31

--soak reads the files again and again, and prints the memory.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import pathlib
import statistics
import tempfile
import threading
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from keras_mixer import data
from keras_mixer.data.augment import policy as policy_lib
from keras_mixer.engines import memory

_SIDE = 224
_BATCH = 32
_TURN = 5  # batches
_WARM_UP = 3  # turns: the start of a stream costs hundreds of images
_AHEAD = 2  # batches that are prefetched
_KNOWN = 50_000  # images whose order is known
_CROP = "inception_crop|flip"
_AUGMENT = f"{_CROP}|randaugment(2, 15)"
_PARTS = 10
_LIMIT = "decode_and_crop_jpeg, resize and cast alone"
_LIMIT_OF_FILES = f"{_LIMIT}, of files"
_LIMIT_AHEAD = f"{_LIMIT}, of files, parallel and prefetched"

Stream = Iterator[np.ndarray | tf.Tensor]


def draw_pictures(count: int) -> list[bytes]:
    """Makes JPEGs of noise that falls off with frequency, as in photographs."""
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
    """Does the least work that makes a random crop of a JPEG."""
    seed = tf.random.experimental.stateless_split(seed, 1)[0]  # as policies do
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
    """Returns options for one thread; without `ahead`, also for no prefetch."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    if not ahead:
        options.autotune.enabled = False
        # By default tf.data makes maps parallel and prefetches. It would work
        # on the next batch while another pipeline is timed.
        options.experimental_optimization.apply_default_optimizations = False
    return options


def tf_stream(
    positions: tf.data.Dataset,
    function: Callable,
    on_batch: Callable | None = None,
    ahead: bool = False,
) -> Stream:
    """Returns a stream of batches, made on one thread.

    Args:
      positions: Pairs of a position and the function's first argument.
      function: From a file and a seed to an image.
      on_batch: Applied to a batch of images afterwards.
      ahead: Whether to map in parallel and prefetch, as users do.
    """
    batches = positions.map(
        lambda i, x: function(x, tf.stack([tf.zeros_like(i), i])),
        num_parallel_calls=tf.data.AUTOTUNE if ahead else None,
    ).batch(_BATCH, drop_remainder=True)
    if on_batch:
        batches = batches.map(on_batch)
    if ahead:
        batches = batches.prefetch(_AHEAD)
    return iter(batches.with_options(one_thread(ahead)))


def keras_cv_augment() -> Callable:
    """Returns keras-cv's RandAugment, for batches."""
    import keras_cv

    layer = keras_cv.layers.RandAugment(
        value_range=(0, 255), augmentations_per_image=2, magnitude=0.5
    )
    return lambda batch: tf.cast(layer(batch, training=True), tf.uint8)


def timm_stream(files: Sequence[bytes], policy: str) -> Stream:
    """Yields batches as timm's own loader makes them, uint8 like ours."""
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
        use_prefetcher=True,  # ends in uint8; the device converts to float
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

    # A torchvision compiled for another build of torch registers shapes of
    # operators that did not load. The transforms use none of these operators.
    with unittest.mock.patch.object(
        torch.library, "register_fake", no_operator
    ):
        import torchvision  # noqa: F401
    return None


def streams(
    paths: Sequence[bytes],
) -> tuple[dict[str, Stream], dict[str, str]]:
    """Returns name -> stream, and name -> reason for those that cannot run.

    Args:
      paths: The files, in reading order.
    """
    number = {path: i for i, path in enumerate(sorted(set(paths)))}
    files = [pathlib.Path(os.fsdecode(path)).read_bytes() for path in number]
    contents = tf.constant(files)
    order = [number[path] for path in paths]
    in_memory = tf.data.Dataset.from_tensor_slices(order).repeat().enumerate()
    on_disk = tf.data.Dataset.from_tensor_slices(paths).repeat().enumerate()

    def of_bytes(
        function: Callable, on_batch: Callable | None = None
    ) -> Stream:
        return tf_stream(
            in_memory,
            lambda i, seed: function(tf.gather(contents, i), seed),
            on_batch,
        )

    def read(path: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return limit(tf.io.read_file(path), seed)

    crop = policy_lib.parse(_CROP, _SIDE)
    found = {
        _LIMIT: of_bytes(limit),
        _LIMIT_OF_FILES: tf_stream(on_disk, read),
        _LIMIT_AHEAD: tf_stream(on_disk, read, ahead=True),
        _CROP: of_bytes(crop),
        _AUGMENT: of_bytes(policy_lib.parse(_AUGMENT, _SIDE)),
    }
    not_run = {}
    name = f"{_CROP}, then keras-cv's RandAugment(2, 0.5) on batches"
    if importlib.util.find_spec("keras_cv"):
        found[name] = of_bytes(crop, keras_cv_augment())
    else:
        not_run[name] = "pip install keras-cv"
    reason = missing_for_timm()
    for policy in ("rand-m15-n2", "rand-m15-n2-p1"):
        name = f"timm's transforms with {policy}, on PIL images"
        if reason:
            not_run[name] = reason
        else:
            found[name] = timm_stream([files[i] for i in order], policy)
    return found, not_run


@contextlib.contextmanager
def class_folder(files: Sequence[bytes]) -> Iterator[str]:
    """Writes the files as a data set of two classes; yields its name."""
    with tempfile.TemporaryDirectory() as folder:
        places = [pathlib.Path(folder, "train", name) for name in ("a", "b")]
        for place in places:
            place.mkdir(parents=True)
        for i, file in enumerate(files):
            (places[i % 2] / f"{i:06}.jpg").write_bytes(file)
        yield f"folder:{folder}"


def train_stream(split: data.Split, policy: str) -> Stream:
    """Returns the input of a training, on one thread."""

    def few(batches: tf.data.Dataset, _: int) -> tf.data.Dataset:
        return prefetch(batches, _AHEAD)  # autotuning would grow the buffer

    prefetch = tf.data.Dataset.prefetch
    with unittest.mock.patch.object(tf.data.Dataset, "prefetch", few):
        batches = data.train_batches(
            split, batch_size=_BATCH, image_size=_SIDE, policy=policy, seed=0
        )
    return iter(batches.with_options(one_thread(ahead=True)))


def train_order(split: data.Split) -> list[bytes]:
    """Returns the files in the order in which a training reads them."""

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        tf.random.set_seed(0)
        seed = tf.stack([tf.zeros_like(epoch), epoch])
        records = split.in_order_of(seed, 0, 1).map(split.look_up)
        return records.map(split.name_of)

    epochs = -(-_KNOWN // split.num_examples)
    names = tf.data.Dataset.range(epochs).flat_map(of_epoch)
    return list(names.as_numpy_iterator())


def resident() -> float:
    """Returns the memory of this process in MB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(files: Sequence[bytes], epochs: int) -> None:
    """Prints the memory after each epoch."""
    print("| epoch | images | resident memory, MB |\n|---|---|---|")
    with class_folder(files) as name:
        split = data.open_split(name, "train")
        stream = train_stream(split, _AUGMENT)
        batches = 0
        for epoch in range(1, epochs + 1):
            while batches * _BATCH < epoch * len(files):
                next(stream)
                batches += 1
            print(f"| {epoch} | {batches * _BATCH} | {resident():.0f} |")


def cell(name: str) -> str:
    """Returns the name as code for a Markdown table, with `|` escaped."""
    return "`" + name.replace("|", r"\|") + "`"


def at_work() -> bool:
    """Returns whether any other thread of this process runs."""
    own = str(threading.get_native_id())
    for thread in os.listdir("/proc/self/task"):
        if thread == own:
            continue
        with contextlib.suppress(OSError):  # the thread has ended
            line = pathlib.Path(f"/proc/self/task/{thread}/stat").read_text()
            if line.rpartition(")")[2].split()[0] in "RD":
                return True
    return False


def wait() -> None:
    """Waits until nothing is worked on ahead any more."""
    quiet = 0
    while quiet < 3:
        time.sleep(0.01)
        quiet = 0 if at_work() else quiet + 1


def time_turn(stream: Stream) -> float:
    """Returns the seconds of CPU of the next batches.

    The buffers are full before and after, so the work is that of the batches
    that are asked for. Waiting for the buffers is not counted.
    """
    start = time.process_time()
    for _ in range(_TURN):
        next(stream)
    waiting = time.thread_time()
    wait()
    waiting = time.thread_time() - waiting
    return time.process_time() - waiting - start


def compare(files: Sequence[bytes], batches: int) -> None:
    """Prints the table."""
    turns = batches // (_PARTS * _TURN)  # in each part
    with class_folder(files) as folder:
        split = data.open_split(folder, "train")
        found, not_run = streams(train_order(split))
        for policy in (_CROP, _AUGMENT):
            found[f"train_batches, {policy}"] = train_stream(split, policy)
        for stream in found.values():
            for _ in range(_WARM_UP):
                time_turn(stream)
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(_PARTS * turns):
            for name, stream in found.items():
                times[name].append(time_turn(stream))

    size = statistics.median(map(len, files)) / 1000
    print(
        f"{len(files)} JPEGs, {size:.0f} kB in the median, to {_SIDE} x "
        f"{_SIDE}; {_PARTS * turns * _TURN * _BATCH} images each, in "
        f"{_PARTS} parts"
    )
    print("| pipeline | images/s per core | of the first | of the third |")
    print("|---|---|---|---|")
    parts = [slice(i * turns, (i + 1) * turns) for i in range(_PARTS)]
    for name, seconds in times.items():
        cells = [f"{len(seconds) * _TURN * _BATCH / sum(seconds):.0f}"]
        for limit_name in (_LIMIT, _LIMIT_AHEAD):
            of = times[limit_name]
            ratios = [sum(of[p]) / sum(seconds[p]) for p in parts]
            cells.append(
                f"{sum(of) / sum(seconds):.3f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
        print(f"| {cell(name)} | {' | '.join(cells)} |")
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
    if flags.batches < _PARTS * _TURN:
        parser.error(f"--batches is {_PARTS * _TURN} or more")
    memory.keep_freed_memory()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
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
