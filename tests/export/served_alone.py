"""A client: TensorFlow alone, nothing of this project.

Run by test_export.py: python -I served_alone.py VERSION REQUEST ANSWER.
REQUEST holds pixels.npy, uint8 [n, height, width, 3], and file_*.
"""

import importlib.abc
import pathlib
import sys


class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in (
            "keras_mixer",
            "keras_cv",
            "tensorflow_datasets",
            "omegaconf",
        ):
            raise ImportError(name)
        return


sys.meta_path.insert(0, Forbid())

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

version, request, answer = sys.argv[1:]
served = tf.saved_model.load(version)
pixels = np.load(f"{request}/pixels.npy")
files = [p.read_bytes() for p in sorted(pathlib.Path(request).glob("file_*"))]
inputs = {
    "serving_default": lambda i, j: {"image": tf.constant(pixels[i:j])},
    "serve_float": lambda i, j: {"image": tf.constant(pixels[i:j], tf.float32)},
    "serve_bytes": lambda i, j: {"image_bytes": tf.constant(files[i:j])},
    "serve_features": lambda i, j: {"image": tf.constant(pixels[i:j])},
}
found = {}
for name, arguments in inputs.items():
    call = served.signatures[name]
    for size in (1, 7, 32):
        parts = [
            call(**arguments(i, i + size)) for i in range(0, len(files), size)
        ]
        for output in parts[0]:
            value = np.concatenate([part[output].numpy() for part in parts])
            if value.dtype == object:
                value = value.astype(bytes)
            found[f"{name}_{size}/{output}"] = value
np.savez(answer, **found)
