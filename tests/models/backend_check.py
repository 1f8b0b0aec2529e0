r"""Run in a process of its own with KERAS_BACKEND set; prints one JSON line.

python -m tests.models.backend_check small|full WEIGHTS.npz LOGITS.npy \
    [--block-tensorflow]
"""

import importlib.abc
import json
import sys
import warnings


class _NoTensorFlow(importlib.abc.MetaPathFinder):
    """Makes TensorFlow look as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return


if "--block-tensorflow" in sys.argv:
    sys.meta_path.insert(0, _NoTensorFlow())

import keras
import numpy as np

import keras_mixer

imported = "tensorflow" in sys.modules
from tests import reference

size, weights_file, logits_file = sys.argv[1:4]
model, images = reference.model_and_images(size)
with np.load(weights_file) as weights:
    for variable in model.weights:
        variable.assign(weights[reference.checkpoint_key(variable.path)])
logits = keras.ops.convert_to_numpy(model(images))
np.save(logits_file, logits)

small = keras_mixer.Mixer(
    reference.SMALL,
    classes=4,
    input_shape=(32, 32, 3),
    stoch_depth=0.1,
    dropout=0.1,
)
small.compile("sgd", "sparse_categorical_crossentropy")
labels = np.array([0, 1, 2, 3])
history = small.fit(
    reference.random_images(4, 32, 32, 3), labels, epochs=2, verbose=0
)
small.predict(reference.random_images(4, 32, 32, 3), verbose=0)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for _ in range(2):
        small.predict(np.zeros((4, 32, 32, 3), np.uint8), verbose=0)
half = keras_mixer.Mixer(
    reference.SMALL,
    classes=4,
    input_shape=(32, 32, 3),
    dtype="mixed_bfloat16",
)
print(
    json.dumps(
        {
            "backend": keras.backend.backend(),
            "tensorflow_imported": imported,
            "tensorflow_imported_at_the_end": "tensorflow" in sys.modules,
            "warnings": [
                str(x.message) for x in warned if "[-1, 1]" in str(x.message)
            ],
            "losses": history.history["loss"],
            "half_output": keras.backend.standardize_dtype(half.output.dtype),
        }
    )
)
