"""Uses a SavedModel in a process that has TensorFlow alone.

fresh.py runs this file as a program:

    python -P fresh_process.py answer VERSION REQUEST ANSWER
    python -P fresh_process.py tflite VERSION REQUEST ANSWER

VERSION is the SavedModel, REQUEST a folder with images (pixels.npy, uint8
[batch, height, width, 3]; fitted.npy, float32 of the model's size; file_*),
ANSWER the .npz to write, with the outputs under "signature/output".
"""

import importlib.abc
import os
import pathlib
import sys
import warnings
from typing import Any

import numpy as np

_FORBIDDEN = ("keras_mixer", "keras_cv", "tensorflow_datasets")


class _Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.partition(".")[0] in _FORBIDDEN:
            raise ImportError(f"a server has no {name}")


def answer(version: str, request: pathlib.Path) -> dict[str, Any]:
    """Calls every signature; returns its outputs by name."""
    import tensorflow as tf

    loaded = tf.saved_model.load(version)
    pixels = np.load(request / "pixels.npy")
    files = [p.read_bytes() for p in sorted(request.glob("file_*"))]
    inputs = {
        "serving_default": tf.constant(pixels),
        "serve_float": tf.constant(pixels, tf.float32),
        "serve_bytes": tf.constant(files),
        "serve_features": tf.constant(pixels),
    }
    found = {}
    for name, value in inputs.items():
        call = loaded.signatures[name]
        (argument,) = call.structured_input_signature[1]
        for output, tensor in call(**{argument: value}).items():
            value = tensor.numpy()
            if value.dtype == object:  # names
                value = np.strings.decode(value.astype(bytes), "utf-8")
            found[f"{name}/{output}"] = value
    return found


def tflite(version: str, request: pathlib.Path) -> dict[str, Any]:
    """Writes model_float32.tflite and model_float16.tflite; runs both."""
    import tensorflow as tf

    loaded = tf.saved_model.load(version)
    function = loaded.classify_pixels.get_concrete_function()
    images = np.load(request / "fitted.npy")
    folder = pathlib.Path(version, "assets.extra")
    folder.mkdir(exist_ok=True)
    found = {}
    for name in ("float32", "float16"):
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [function], loaded
        )
        if name == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        path = folder / f"model_{name}.tflite"
        path.write_bytes(converter.convert())
        interpreter = tf.lite.Interpreter(str(path))
        run = interpreter.get_signature_runner()  # resizes to the input
        for batch in (1, len(images)):
            for output, value in run(image=images[:batch]).items():
                found[f"{name}_{batch}/{output}"] = value
    return found


def main() -> None:
    kind, version, request, target = sys.argv[1:]
    sys.meta_path.insert(0, _Forbid())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # tf.lite.Interpreter warns that it will move to another package.
    warnings.simplefilter("ignore")
    function = {"answer": answer, "tflite": tflite}[kind]
    np.savez(target, **function(version, pathlib.Path(request)))


if __name__ == "__main__":
    main()
