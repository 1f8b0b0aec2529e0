"""A trained model becomes a SavedModel that takes JPEG bytes.

`export` writes a numbered version (versions.py): the model in one precision
(classifier.py) behind signatures that preprocess as evaluation does
(signatures.py), and TFLite files on request. The version appears only after a
fresh process with TensorFlow alone has loaded it and answered as the model in
Python does (fresh.py), and its accuracy on a split is the same (accuracy.py).
"""

from typing import TYPE_CHECKING

from keras_mixer.run import lazy

if TYPE_CHECKING:
    from keras_mixer.export.classifier import ExportError as ExportError
    from keras_mixer.export.saved_model import (
        CARD as CARD,
        export as export,
        read_card as read_card,
    )
    from keras_mixer.export.signatures import SIGNATURES as SIGNATURES
    from keras_mixer.export.versions import check_output as check_output

# Where each name is. It is imported when it is first used, so that
# `python -m keras_mixer.export` answers before TensorFlow is imported.
_MODULES = {
    "classifier": ("ExportError",),
    "saved_model": (
        "CARD",
        "export",
        "read_card",
    ),
    "signatures": ("SIGNATURES",),
    "versions": ("check_output",),
}
__getattr__, __dir__ = lazy.attach(__name__, _MODULES)
