"""Checkpoint formats, where the released weights are, change of resolution.

A file is read into `Parameters`: NumPy arrays under the keys of the released
checkpoints. `resize_tokens` fits them to another patch grid, and `load` puts
them into a model: all of them, each once, and none before all are checked.

Needs keras and NumPy alone; timm's files need the package safetensors.
"""

from keras_mixer.weights.formats import (
    is_path,
    load_keras,
    read,
    read_workdir,
    save_npz,
)
from keras_mixer.weights.parameters import (
    Parameters,
    WeightsError,
    from_model,
    load,
    mixer_variables,
)
from keras_mixer.weights.releases import (
    RELEASE_NAMES,
    RELEASES,
    Release,
    download,
    find_release,
    get,
)
from keras_mixer.weights.resolution import resize_tokens, square_grid

__all__ = [
    "RELEASES",
    "RELEASE_NAMES",
    "Parameters",
    "Release",
    "WeightsError",
    "download",
    "find_release",
    "from_model",
    "get",
    "is_path",
    "load",
    "load_keras",
    "mixer_variables",
    "read",
    "read_workdir",
    "resize_tokens",
    "save_npz",
    "square_grid",
]
