"""MLP-Mixer (arXiv 2105.01601) for Keras 3.

    model = keras_mixer.MixerB16()

Importing the package imports nothing else: a name is imported when it is first
used. Models and weights need keras and NumPy alone, under any Keras backend;
training, data and evaluation need TensorFlow.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULE_OF = {
    "Mixer": "models.mixer",
    "MixerB16": "models.mixer",
    "MixerB32": "models.mixer",
    "MixerBlock": "models.layers",
    "MixerH14": "models.mixer",
    "MixerL16": "models.mixer",
    "MixerL32": "models.mixer",
    "MixerS8": "models.mixer",
    "MixerS16": "models.mixer",
    "MixerS32": "models.mixer",
    "MlpBlock": "models.layers",
    "StochasticDepth": "models.layers",
    "decode_predictions": "models.preprocessing",
    "preprocess_input": "models.preprocessing",
}
_MODULES = {
    "analysis": "analysis",
    "data": "data",
    "doctor": "doctor",
    "engines": "engines",
    "evaluation": "evaluation",
    "export": "export",
    "fewshot": "evaluation.fewshot",
    "layers": "models.layers",
    "models": "models",
    "preflight": "preflight",
    "programs": "programs",
    "run": "run",
    "trainer": "training.loop",
    "training": "training",
    "weights": "weights",
}

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
    "fewshot",
    "layers",
    "models",
    "preprocess_input",
    "weights",
]

if TYPE_CHECKING:
    from keras_mixer import models, weights
    from keras_mixer.evaluation import fewshot
    from keras_mixer.models import layers
    from keras_mixer.models.layers import MixerBlock, MlpBlock, StochasticDepth
    from keras_mixer.models.mixer import (
        Mixer,
        MixerB16,
        MixerB32,
        MixerH14,
        MixerL16,
        MixerL32,
        MixerS8,
        MixerS16,
        MixerS32,
    )
    from keras_mixer.models.preprocessing import (
        decode_predictions,
        preprocess_input,
    )


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = importlib.import_module(f"keras_mixer.{_MODULES[name]}")
    elif name in _MODULE_OF:
        module = importlib.import_module(f"keras_mixer.{_MODULE_OF[name]}")
        found = getattr(module, name)
    else:
        raise AttributeError(f"module 'keras_mixer' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, *_MODULES})


class _RegisterLayers:
    """Registers the layers with Keras as soon as Keras is imported.

    So `keras.models.load_model` finds them after `import keras_mixer`. A finder
    of `sys.meta_path` that hands Keras' own loader on.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        del path, target
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("keras")
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            importlib.import_module("keras_mixer.models.layers")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "keras" in sys.modules:
    importlib.import_module("keras_mixer.models.layers")
else:
    sys.meta_path.insert(0, _RegisterLayers())
