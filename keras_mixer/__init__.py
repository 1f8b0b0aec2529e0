"""MLP-Mixer (arXiv 2105.01601) for Keras 3.

    model = keras_mixer.MixerB16()

Importing the package imports nothing else: a name is imported when it is first
used. Models and weights need only keras and NumPy, under any Keras backend.
Training, data and evaluation need TensorFlow.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name is: module, or module:attribute.
_VARIANTS = ("S8", "S16", "S32", "B16", "B32", "L16", "L32", "H14")
_ROOMS = (
    *("analysis", "data", "doctor", "engines", "evaluation", "export"),
    *("models", "preflight", "programs", "run", "training", "weights"),
)
_PLACES = {
    **{room: room for room in _ROOMS},
    **{
        f"Mixer{name}": f"models.mixer:Mixer{name}" for name in ("", *_VARIANTS)
    },
    "MixerBlock": "models.layers:MixerBlock",
    "MlpBlock": "models.layers:MlpBlock",
    "StochasticDepth": "models.layers:StochasticDepth",
    "decode_predictions": "models.preprocessing:decode_predictions",
    "fewshot": "evaluation.fewshot",
    "layers": "models.layers",
    "predict": "predict",
    "preprocess_input": "models.preprocessing:preprocess_input",
    "trainer": "training.loop",
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
    "predict",
    "preprocess_input",
    "weights",
]

if TYPE_CHECKING:
    from keras_mixer import models, weights
    from keras_mixer.evaluation import fewshot
    from keras_mixer.export.predictor import predict
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
    if name not in _PLACES:
        raise AttributeError(f"module 'keras_mixer' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    found = importlib.import_module(f"keras_mixer.{module}")
    if attribute:
        found = getattr(found, attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


class _RegisterLayers:
    """Imports the layers, which registers them, right after Keras is imported.

    `keras.models.load_model` finds only registered layers, and importing them
    here would import Keras. A finder of `sys.meta_path` that returns Keras' own
    spec with a loader that does both.
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
