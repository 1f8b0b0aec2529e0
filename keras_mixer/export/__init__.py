"""A trained model becomes files that servers and devices run.

`export` (saved_model.py) writes a numbered version (versions.py): a SavedModel
of one precision (classifier.py) behind signatures that preprocess as evaluation
does (signatures.py), and files of other formats (formats.py, converters.py).
The version appears only after a fresh process with TensorFlow alone (fresh.py),
or with a file's own runtime alone (runtimes.py, proof.py), has answered as the
model in Python does, and the accuracy on a split is the same (accuracy.py). Its
card says so (card.py).
"""

from typing import TYPE_CHECKING

from keras_mixer.run import lazy

if TYPE_CHECKING:
    from keras_mixer.export.card import CARD as CARD, read_card as read_card
    from keras_mixer.export.errors import ExportError as ExportError
    from keras_mixer.export.saved_model import export as export
    from keras_mixer.export.signatures import SIGNATURES as SIGNATURES
    from keras_mixer.export.versions import check_output as check_output

# Where each name is. It is imported when it is first used, so that
# `python -m keras_mixer.export` answers before TensorFlow is imported.
_MODULES = {
    "card": (
        "CARD",
        "read_card",
    ),
    "errors": ("ExportError",),
    "saved_model": ("export",),
    "signatures": ("SIGNATURES",),
    "versions": ("check_output",),
}
__getattr__, __dir__ = lazy.attach(__name__, _MODULES)
