"""How long one image takes, served in different ways.

A Mixer with random weights at 224 px is exported into a temporary folder, in
all formats that this environment can write. Then these take turns, image by
image, on all cores: TensorFlow in this process, the other runtimes each in a
process of its own (the pipe between them costs about 1 ms an image).

  model in Python      the Keras model in a tf.function, from pixels that fit
  Keras predict        model.predict on the same, as a notebook calls it
  SavedModel, pixels   serving_default on the same pixels, uint8
  SavedModel, photo    serving_default on a photo of 500 x 375, uint8
  SavedModel, JPEG     serve_bytes on that photo
  ... XLA, bfloat16    the pixels with --xla, or with --precision=bfloat16
  onnx, litert, ...    the other formats, from pixels that fit

Ratios are those to the SavedModel from the same pixels.

    python benchmarks/export_latency.py [--models=S/16,B/16] [--repeats=30]
"""

import argparse
import contextlib
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import keras_mixer
from keras_mixer import export
from keras_mixer.export import formats
from keras_mixer.export.runtimes import Runtime
from keras_mixer.models.preprocessing import to_value_range

_POLICY = "resize_small(256)|central_crop"
_REFERENCE = "SavedModel, pixels"


def make_model(variant: str) -> Any:
    """Returns a Mixer with random weights, the head too, 1000 classes."""
    model = keras_mixer.Mixer(variant, classifier_activation=None)
    head = model.get_layer("head").kernel
    head.assign(np.random.default_rng(0).normal(0, 0.02, head.shape))
    return model


def make_photo() -> np.ndarray:
    """Returns uint8 [375, 500, 3] that is as smooth as a photo."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3))
    photo = tf.image.resize(coarse.astype(np.float32), (375, 500), "bicubic")
    return tf.cast(tf.clip_by_value(photo, 0, 255), tf.uint8).numpy()


def ways(
    model: Any,
    version: pathlib.Path,
    variants: dict[str, pathlib.Path],
    stack: contextlib.ExitStack,
) -> dict[str, Callable[[], Any]]:
    """Returns name -> function that returns the logits of one image.

    Args:
      model: The Keras model.
      version: Its export.
      variants: Exports with other options.
      stack: Ends the processes of other runtimes.
    """
    photo = make_photo()
    jpeg = tf.io.encode_jpeg(photo, quality=95).numpy()
    side = model.input_shape[1]
    fitted = tf.image.resize(photo, (side, side)).numpy().astype(np.uint8)[None]
    floats = to_value_range(fitted)
    served = tf.saved_model.load(str(version))
    call = tf.function(lambda x: model(x, training=False))
    entries = export.read_card(version)["formats"]
    found = {
        "model in Python": lambda: call(floats).numpy(),
        "Keras predict": lambda: model.predict(floats, verbose=0),
    }
    pixels = {"image": tf.constant(fitted)}
    for name, loaded, signature, inputs in (
        ("pixels", served, "serving_default", pixels),
        (
            "photo",
            served,
            "serving_default",
            {"image": tf.constant(photo[None])},
        ),
        ("JPEG", served, "serve_bytes", {"image_bytes": tf.constant([jpeg])}),
        *(
            (name, tf.saved_model.load(str(path)), "serving_default", pixels)
            for name, path in variants.items()
        ),
    ):
        found[f"SavedModel, {name}"] = (
            lambda loaded=loaded, signature=signature, inputs=inputs: (
                loaded.signatures[signature](**inputs)["logits"].numpy()
            )
        )
    for name, entry in entries.items():
        if name != formats.SAVED_MODEL:
            runtime = Runtime(name, version / entry["file"])
            stack.enter_context(runtime)
            found[name] = lambda runtime=runtime: runtime(fitted)["logits"]
    return found


def measure(
    functions: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Returns seconds of each call; the functions take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(repeats + 3):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            if i >= 3:  # the first ones warm up
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="S/16,B/16")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
        f", TensorFlow {tf.__version__}; medians of {options.repeats} in turn"
    )
    for variant in options.models.split(","):
        model = make_model(variant)
        with (
            tempfile.TemporaryDirectory() as output,
            contextlib.ExitStack() as stack,
        ):
            version = export.export(
                model,
                output,
                eval_policy=_POLICY,
                formats=formats.writable(),
            )
            variants = {
                f"pixels, {name}": export.export(
                    model, output, eval_policy=_POLICY, **changes
                )
                for name, changes in (
                    ("XLA", {"xla": True}),
                    ("bfloat16", {"precision": "bfloat16"}),
                    (
                        "bfloat16 and XLA",
                        {"precision": "bfloat16", "xla": True},
                    ),
                )
            }
            functions = ways(model, version, variants, stack)
            seconds = measure(functions, options.repeats)
            print(f"\n{variant}:")
            for name, entry in export.read_card(version)["formats"].items():
                worst = entry["largest_differences"]["logits"]
                print(
                    f"  {name}: {entry['bytes'] / 1e6:.1f} MB, logits within "
                    f"{worst:.1e}, {entry['runtime']}"
                )
            reference = statistics.median(seconds[_REFERENCE])
            for name, values in seconds.items():
                middle = statistics.median(values)
                print(
                    f"| {name} | {1e3 * middle:.1f} ms | "
                    f"{middle / reference:.2f} | {1e3 * min(values):.1f} to "
                    f"{1e3 * max(values):.1f} ms |"
                )


if __name__ == "__main__":
    main()
