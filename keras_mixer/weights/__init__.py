"""Checkpoint formats, released weights, change of resolution.

A file is read into `Parameters`: NumPy arrays under the keys of the released
checkpoints. `resize_tokens` fits them to another patch grid, and `load` puts
them into a model.

Needs keras and NumPy alone; timm's files need the package safetensors.
"""

import keras as keras  # before the modules below: it imports keras_mixer.models

from keras_mixer.run.files import is_path as is_path
from keras_mixer.weights.formats import (
    is_keras_file as is_keras_file,
    load_keras as load_keras,
    read as read,
    read_workdir as read_workdir,
    save_npz as save_npz,
)
from keras_mixer.weights.parameters import (
    Parameters as Parameters,
    WeightsError as WeightsError,
    fold_input as fold_input,
    from_model as from_model,
    load as load,
    mixer_variables as mixer_variables,
    require_model as require_model,
)
from keras_mixer.weights.preprocessing import Preprocessing as Preprocessing
from keras_mixer.weights.releases import (
    RELEASES as RELEASES,
    find_release as find_release,
    get as get,
)
from keras_mixer.weights.resolution import (
    resize_tokens as resize_tokens,
    resized_mlp_dim as resized_mlp_dim,
    square_grid as square_grid,
)
