"""MLP-Mixer (arXiv 2105.01601) for Keras 3.

    model = keras_mixer.MixerB16()

Layers and models need keras and numpy alone and run under every Keras backend.
The modules that need TensorFlow (data, trainer, evaluate ...) are imported
when they are first used, as `keras_mixer.data` or by an import of their own.
"""

import importlib
import sys
from typing import Any


def _is_doctor() -> bool:
    """Whether this is the start of `python -m keras_mixer.doctor`.

    It looks at what is installed before TensorFlow is imported, because with
    the wrong libtpu that import aborts the process.
    """
    return sys.argv[:1] == ["-m"] and any(
        argument.removeprefix("-m") == "keras_mixer.doctor"
        for argument in sys.orig_argv
    )


if not _is_doctor():
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
