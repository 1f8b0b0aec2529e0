"""How long one image takes, served in different ways.

A Mixer with random weights at 224 px is exported with its TFLite files into a
temporary folder. Then these take turns, image by image, in one process and on
all cores:

  model in Python      the Keras model in a tf.function, from pixels that fit
  Keras predict        model.predict on the same, as a notebook calls it
  SavedModel, pixels   serving_default on the same pixels, uint8
  SavedModel, photo    serving_default on a photo of 500 x 375, uint8
  SavedModel, JPEG     serve_bytes on that photo
  ... XLA, bfloat16    the pixels with --xla, or with --precision=bfloat16
  TFLite               float32 and float16, from pixels that fit

    python benchmarks/export_latency.py [--models=S/16,B/16] [--repeats=30]
"""

import argparse
import os
import pathlib
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import keras_mixer
from keras_mixer import export
from keras_mixer.models.preprocessing import to_value_range

_POLICY = "resize_small(256)|central_crop"
_REFERENCE = "model in Python"


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


def make_lite(path: pathlib.Path, pixels: np.ndarray) -> Callable[[], Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the interpreter is about to move
        lite = tf.lite.Interpreter(str(path), num_threads=os.cpu_count())
    run = lite.get_signature_runner()
    return lambda: run(image=pixels)["logits"]


def ways(
    model: Any,
    version: pathlib.Path,
    variants: dict[str, pathlib.Path],
) -> dict[str, Callable[[], Any]]:
    """Returns name -> function that returns the logits of one image.

    Args:
      model: The Keras model.
      version: Its export.
      variants: Exports with other options.
    """
    photo = make_photo()
    jpeg = tf.io.encode_jpeg(photo, quality=95).numpy()
    side = model.input_shape[1]
    fitted = tf.image.resize(photo, (side, side)).numpy().astype(np.uint8)[None]
    floats = to_value_range(fitted)
    as_pixels = fitted.astype(np.float32)
    served = tf.saved_model.load(str(version))
    call = tf.function(lambda x: model(x, training=False))
    card = export.read_card(version)["tflite"]
    found = {
        _REFERENCE: lambda: call(floats).numpy(),
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
    for precision in ("float32", "float16"):
        path = version / card[precision]["file"]
        found[f"TFLite {precision}"] = make_lite(path, as_pixels)
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
        with tempfile.TemporaryDirectory() as output:
            version = export.export(
                model, output, eval_policy=_POLICY, tflite=True
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
            functions = ways(model, version, variants)
            seconds = measure(functions, options.repeats)
            card = export.read_card(version)
            total = sum(
                path.stat().st_size
                for path in version.rglob("*")
                if path.is_file() and path.suffix not in (".tflite", ".json")
            )
            print(f"\n{variant}: SavedModel {total / 1e6:.1f} MB, ", end="")
            print(
                ", ".join(
                    f"TFLite {name} {file['bytes'] / 1e6:.1f} MB (logits "
                    f"within {file['largest_difference']:.1e})"
                    for name, file in card["tflite"].items()
                )
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
