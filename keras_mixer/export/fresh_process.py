"""Uses a SavedModel in a process that has TensorFlow alone.

fresh.py runs this file as a program:

    python -P fresh_process.py VERSION REQUEST ANSWER

VERSION is the SavedModel, REQUEST a folder with images (pixels.npy, uint8
[batch, height, width, 3]; fitted.npy, the same of the model's size; file_*),
ANSWER the .npz to write, with the outputs under "signature/output", the logits
of the first image alone under "one/logits", and the seconds of calls of
serving_default under "seconds/BATCH".
"""

import importlib.abc
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np

_REPEATS = 10
# Neither this project nor what TensorFlow imports where it is installed.
_FORBIDDEN = (
    *("keras_mixer", "keras_cv", "tensorflow_datasets"),
    *("sklearn", "matplotlib", "jax"),
)


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
    one = loaded.signatures["serving_default"](image=tf.constant(pixels[:1]))
    found["one/logits"] = one["logits"].numpy()
    fitted = np.load(request / "fitted.npy")
    for batch in (1, len(fitted)):
        found[f"seconds/{batch}"] = _time(
            loaded.signatures["serving_default"], tf.constant(fitted[:batch])
        )
    return found


def _time(call: Any, image: Any) -> list[float]:
    """Returns the seconds of some calls, after two that are not timed."""
    seconds: list[float] = []
    while len(seconds) < _REPEATS + 2:
        begun = time.perf_counter()
        call(image=image)["logits"].numpy()
        seconds.append(time.perf_counter() - begun)
    return seconds[2:]


def main() -> None:
    version, request, target = sys.argv[1:]
    sys.meta_path.insert(0, _Forbid())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    np.savez(target, **answer(version, pathlib.Path(request)))


if __name__ == "__main__":
    main()
