"""MLP-Mixer (arXiv 2105.01601) for Keras 3.

    model = keras_mixer.MixerB16()

Layers and models need keras and numpy alone and run under every Keras backend.
The modules that need TensorFlow (data, trainer, evaluate ...) are imported
when they are first used, as `keras_mixer.data` or by an import of their own.
"""

import importlib
import os
import pathlib
import sys
from typing import Any


def _program() -> str | None:
    """Returns which of this package's programs starts; None in a library.

    That is X of `python -m keras_mixer.X`, or the name of a console script.
    """
    if sys.argv[:1] == ["-m"]:
        for argument in sys.orig_argv:
            name = argument.removeprefix("-m")
            if name.startswith("keras_mixer."):
                return name.removeprefix("keras_mixer.")
    script = pathlib.Path(*sys.argv[:1]).name
    return script if script.startswith("keras-mixer-") else None


_started = _program()
if _started is not None:
    # As in train.py, before TensorFlow is imported.
    _quiet = "2" if os.path.exists("/dev/nvidiactl") else "3"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _quiet)

# The doctor looks at what is installed before TensorFlow is imported, because
# with the wrong libtpu that import aborts the process.
if _started != "doctor":
    from keras_mixer import layers, models, weights
    from keras_mixer.layers import MixerBlock, MlpBlock, StochasticDepth
    from keras_mixer.models import (
        Mixer,
        MixerB16,
        MixerB32,
        MixerH14,
        MixerL16,
        MixerL32,
        MixerS8,
        MixerS16,
        MixerS32,
        decode_predictions,
        preprocess_input,
    )

__version__ = "0.1.0"

_LAZY_MODULES = (
    "analysis",
    "checkpoint",
    "config",
    "data",
    "distribute",
    "doctor",
    "draws",
    "evaluate",
    "export",
    "fewshot",
    "hosts",
    "images",
    "kerascv",
    "objective",
    "optim",
    "paper",
    "permutations",
    "pictures",
    "preemption",
    "progress",
    "randaugment",
    "recipes",
    "step",
    "trainer",
    "workdir",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"keras_mixer.{name}")
    raise AttributeError(f"module 'keras_mixer' has no attribute {name!r}")


__all__ = [
    "Mixer",
    "MixerB16",
    "MixerB32",
    "MixerBlock",
    "MixerH14",
    "MixerL16",
    "MixerL32",
    "MixerS8",
    "MixerS16",
    "MixerS32",
    "MlpBlock",
    "StochasticDepth",
    "decode_predictions",
    "layers",
    "models",
    "preprocess_input",
    "weights",
]
