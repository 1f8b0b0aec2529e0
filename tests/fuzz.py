"""Damages files and reads them: a value or the documented error must come.

    python tests/fuzz.py --minutes=60
    python tests/fuzz.py --readers=npz,image --seed=7 --minutes=5

It makes small good files, changes bytes, lengths and order, and calls the
reader of each kind. Another exception, a crash, or more than ten seconds is a
find: its file stays in --finds. The input is written there before it is read,
so that of a crash, too, the file is known. The same seed gives the same inputs.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf

import keras_mixer
from keras_mixer import weights
from keras_mixer.analysis import curves
from keras_mixer.data.augment import images
from keras_mixer.run import config, recipes
from keras_mixer.run.files import WorkdirError
from keras_mixer.weights import formats
from keras_mixer.weights.parameters import WeightsError

LIMIT = 10  # seconds a reader may take
_models: list[keras.Model] = []  # what a .weights.h5 is read into


def seeds_of_weights(folder: pathlib.Path) -> dict[str, list[bytes]]:
    """Returns a good .npz, a .safetensors and a .weights.h5."""
    variant = keras_mixer.models.Variant(
        patch_size=2,
        num_blocks=1,
        hidden_dim=4,
        tokens_mlp_dim=3,
        channels_mlp_dim=5,
    )
    model = keras_mixer.Mixer(variant, input_shape=(4, 4, 3), classes=2)
    weights.save_npz(model, folder / "good.npz")
    model.save_weights(folder / "good.weights.h5")
    tensors = {"stem.proj.weight": np.ones([4, 3, 2, 2], np.float32)}
    safetensors.numpy.save_file(tensors, folder / "good.safetensors")
    _models.append(model)
    return {
        kind: [(folder / f"good.{kind}").read_bytes()]
        for kind in ("npz", "safetensors", "weights.h5")
    }


def seeds_of_images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    return [
        tf.io.encode_jpeg(pixels).numpy(),
        tf.io.encode_jpeg(pixels, progressive=True).numpy(),
        tf.io.encode_png(pixels).numpy(),
    ]


def read_metrics(path: pathlib.Path) -> Any:
    return curves._read_lines(path.parent)


def read_image(path: pathlib.Path) -> Any:
    return images.decode(tf.constant(path.read_bytes()))


def read_h5(path: pathlib.Path) -> Any:
    return formats.load_keras(_models[0], path)


# The file's name, the reader, and the errors that it documents.
READERS: dict[str, tuple[str, Callable[[pathlib.Path], Any], tuple]] = {
    "npz": ("x.npz", weights.read, (WeightsError,)),
    "safetensors": ("x.safetensors", weights.read, (WeightsError,)),
    "weights.h5": ("x.weights.h5", read_h5, (WeightsError,)),
    "config": ("config.json", config.load, (config.ConfigError,)),
    "metrics": ("metrics.jsonl", read_metrics, (WorkdirError,)),
    "image": ("x.jpg", read_image, (tf.errors.InvalidArgumentError,)),
}


def make_seeds(folder: pathlib.Path) -> dict[str, list[bytes]]:
    config.save(recipes.digits(), folder / "config.json")
    lines = [
        json.dumps({"step": 10 * i, "loss": 1 / i, "time": i, "kind": "train"})
        for i in (1, 2, 3)
    ]
    return {
        **seeds_of_weights(folder),
        "config": [(folder / "config.json").read_bytes(), b"train:\n  seed: 1"],
        "metrics": ["\n".join(lines).encode()],
        "image": seeds_of_images(),
    }


def damage(data: bytes, rng: random.Random) -> bytes:
    """Returns the bytes with one to four changes."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 64))
        kind = rng.randrange(6)
        if kind == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[at:]
        elif kind == 2:
            found[at:at] = rng.randbytes(size)
        elif kind == 3:  # a length, or a number
            value = rng.choice((0, 1, 2**15, 2**31 - 1, 2**32 - 1, 2**62))
            found[at : at + size] = value.to_bytes(8, "little")[:size]
        elif kind == 4:
            del found[at : at + size]
        else:
            start = rng.randrange(len(found) + 1)
            found[at:at] = found[start : start + size]
    return bytes(found)


def too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--finds", default="runs/fuzz")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    finds = pathlib.Path(options.finds)
    finds.mkdir(parents=True, exist_ok=True)
    good = make_seeds(finds)
    signal.signal(signal.SIGALRM, too_long)
    rng = random.Random(options.seed)
    counts: collections.Counter[str] = collections.Counter()
    end, kinds = time.monotonic() + 60 * options.minutes, options.readers
    while time.monotonic() < end:
        kind = rng.choice(kinds.split(","))
        name, read, errors = READERS[kind]
        folder = finds / kind
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_bytes(damage(rng.choice(good[kind]), rng))
        counts[kind] += 1
        signal.alarm(LIMIT)
        try:
            read(path)
        except errors:
            pass
        except Exception as error:
            counts[f"{kind}: {type(error).__name__}"] += 1
            kept = finds / f"{kind}_{counts[kind]}_{name}"
            kept.write_bytes(path.read_bytes())
            print(f"{kept}\n{traceback.format_exc(limit=-3)}", flush=True)
        signal.alarm(0)
    for key, count in sorted(counts.items()):
        print(f"{key}: {count:,}")


if __name__ == "__main__":
    main()
