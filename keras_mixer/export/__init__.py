"""A trained model becomes a SavedModel that takes JPEG bytes.

`export` writes a numbered version (versions.py): the model in one precision
(classifier.py) behind signatures that preprocess as evaluation does
(signatures.py), and TFLite files on request. The version appears only after a
fresh process with TensorFlow alone has loaded it and answered as the model in
Python does (fresh.py), and its accuracy on a split is the same (accuracy.py).
"""

from keras_mixer.export.classifier import ExportError
from keras_mixer.export.saved_model import CARD, export, read_card
from keras_mixer.export.signatures import SIGNATURES
from keras_mixer.export.versions import check_output

__all__ = [
    "CARD",
    "SIGNATURES",
    "ExportError",
    "check_output",
    "export",
    "read_card",
]
