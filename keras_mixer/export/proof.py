"""Writes files for other runtimes, and proves that they are the model.

A file is run by a fresh process with its runtime alone, and compared with the
model in this process.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mixer.export import card, converters, fresh
from keras_mixer.export.accuracy import Exam, Images
from keras_mixer.export.classifier import Classifier
from keras_mixer.export.errors import ExportError
from keras_mixer.export.formats import FORMATS, INT8, SAVED_MODEL, int8_of
from keras_mixer.export.runtimes import (
    BATCHES,
    Runtime,
    make_pixels,
    to_milliseconds,
)
from keras_mixer.models.preprocessing import to_value_range

_REPEATS = 10
_OUTPUTS = ("logits", "probabilities")


def prove(
    runtime: Runtime,
    classifier: Classifier,
    *,
    precision: str,
) -> dict[str, Any]:
    """Returns a file's entry in the card, without its accuracy.

    What int8 loses is for a split to say; here its answers must be finite.

    Args:
      runtime: Has opened the file.
      classifier: What it was made from.
      precision: Of the file, "float32", "float16" or "int8".

    Raises:
      ExportError: The file answers differently, or not at all.
    """
    side = classifier.image_size
    pixels = make_pixels(side)
    with tf.device("/cpu:0"):
        answers = fresh.reference(classifier, to_value_range(pixels))
        ours = {key: np.asarray(answers[key]) for key in _OUTPUTS}
    worst = dict.fromkeys(_OUTPUTS, 0.0)
    same, latency = [], {}
    for batch in BATCHES:
        theirs = runtime(pixels[:batch], repeats=_REPEATS)
        for key in _OUTPUTS:
            found = fresh.difference(
                f"{runtime.file}, {key} of a batch of {batch}",
                ours[key][:batch],
                theirs[key],
                precision=precision,
            )
            worst[key] = max(worst[key], found)
        best = ours["logits"][:batch].argmax(-1)
        same.extend(theirs["logits"].argmax(-1) == best)
        latency[str(batch)] = to_milliseconds(theirs["seconds"])
    if precision == "float32" and not all(same):
        raise ExportError(
            f"{runtime.file}: the fresh process names another best class for "
            f"{same.count(False)} of {len(same)} images."
        )
    return {
        "precision": precision,
        "input": f"image: uint8 [batch, {side}, {side}, 3], RGB, decoded and "
        "resized by the caller; normalised inside",
        "outputs": f"logits, probabilities: float32 [batch, "
        f"{classifier.num_classes}]",
        "runtime": runtime.version,
        "largest_differences": worst,
        "same_top_1": float(np.mean(same)),
        "latency_ms": latency,
        "accuracy": card.NOT_MEASURED,
    }


def write_files(
    draft: pathlib.Path,
    classifier: Classifier,
    formats: Sequence[str],
    exam: Exam | None,
    calibration: Images | None,
    int8_loss: float,
) -> dict[str, dict[str, Any]]:
    """Writes and proves the files of other runtimes than the SavedModel's.

    Args:
      draft: Folder of the version.
      classifier: In float32.
      formats: Names of `formats.NAMES`.
      exam: Measures the accuracy; without one it is not measured.
      calibration: Images for int8 files; without them there are none.
      int8_loss: How much accuracy these may lose.

    Returns:
      The entries of the card by format; of an int8 file "onnx_int8".

    Raises:
      ExportError: A converter or a runtime fails, or a file answers
        differently.
    """
    names = [name for name in formats if name != SAVED_MODEL]
    found: dict[str, dict[str, Any]] = {}
    if not names:
        return found
    model = converters.make_pixel_model(classifier)
    for name in names:
        converters.write(model, name, draft)
        precision = FORMATS[name].precision
        found[name] = _prove_and_grade(draft, classifier, exam, name, precision)
    if calibration is None:
        return found
    images = calibration.pixels()
    for name in int8_of(names):
        converters.write(model, name, draft, images)
        entry = _prove_and_grade(draft, classifier, exam, name, INT8)
        if exam is not None:
            exam.require_small_loss(entry["file"], entry["accuracy"], int8_loss)
        split = calibration.split.name
        entry["calibration"] = {"split": split, "images": len(images)}
        found[f"{name}_{INT8}"] = entry
    return found


def _prove_and_grade(
    draft: pathlib.Path,
    classifier: Classifier,
    exam: Exam | None,
    name: str,
    precision: str,
) -> dict[str, Any]:
    """Returns the entry of a file in the card."""
    paths = [draft / file for file in FORMATS[name].files_of(precision)]
    with Runtime(name, paths[0]) as runtime:
        entry = {
            "file": paths[0].name,
            **card.describe_files(draft, paths),
            **prove(runtime, classifier, precision=precision),
        }
        if exam is not None:
            entry["accuracy"] = exam.grade_file(runtime, precision)
    return entry
