"""A client: TensorFlow alone, nothing of this project.

python -I served_alone.py VERSION REQUEST ANSWER, which calls `answer` for
batches of 1, 7 and 32.
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


def answer(version, request, sizes):
    """Calls every signature with batches of these sizes.

    Args:
      version: A SavedModel.
      request: Folder of pixels.npy, uint8 [n, height, width, 3], and file_*.
      sizes: Of the batches.

    Returns:
      The outputs by "signature_size/output".
    """
    import numpy as np
    import tensorflow as tf

    served = tf.saved_model.load(str(version))
    request = pathlib.Path(request)
    pixels = np.load(request / "pixels.npy")
    files = np.array([p.read_bytes() for p in sorted(request.glob("file_*"))])
    inputs = {
        "serving_default": ("image", pixels),
        "serve_float": ("image", pixels.astype(np.float32)),
        "serve_bytes": ("image_bytes", files),
        "serve_features": ("image", pixels),
    }
    found = {}
    for name, (key, values) in inputs.items():
        call = served.signatures[name]
        for size in sizes:
            parts = [
                call(**{key: tf.constant(values[i : i + size])})
                for i in range(0, len(files), size)
            ]
            for output in parts[0]:
                value = np.concatenate([part[output].numpy() for part in parts])
                if value.dtype == object:
                    value = value.astype(bytes)
                found[f"{name}_{size}/{output}"] = value
    return found


if __name__ == "__main__":
    sys.meta_path.insert(0, Forbid())
    import numpy as np

    version, request, target = sys.argv[1:]
    np.savez(target, **answer(version, request, (1, 7, 32)))
