"""Predicts the classes of photos: a program, and a function.

    python -m keras_mixer.predict --workdir=runs/photos photos/bees
    keras_mixer.predict("runs/photos", "photos/bees")

The program is programs/predict.py, the function `predict` in
export/predictor.py.

`python -m` needs a module of this name, and importing it would put the module
in the place of a function `keras_mixer.predict`. So the module itself is the
function: it has a class of its own, as Python's documentation of `__class__` of
modules shows. The name means the same then, whatever was imported before.
"""

import sys
import types
from typing import Any


class _Function(types.ModuleType):
    def __call__(self, model: Any, images: Any, top: int = 5) -> Any:
        """Predicts the classes of images; see export/predictor.py."""
        from keras_mixer.export import predictor

        return predictor.predict(model, images, top)


if __name__ == "__main__":
    from keras_mixer.programs.predict import run

    run()
else:
    sys.modules[__name__].__class__ = _Function
