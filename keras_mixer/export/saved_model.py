"""`export`: writes a version, has it checked, and publishes it."""

import dataclasses
import json
import numbers
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf

from keras_mixer import data, weights
from keras_mixer.data.augment import policy as policy_lib
from keras_mixer.export import accuracy, card, fresh, proof, versions, warmup
from keras_mixer.export.classifier import (
    Classifier,
    Options,
    Precision,
    Probabilities,
    make_classifier,
)
from keras_mixer.export.errors import ExportError
from keras_mixer.export.formats import SAVED_MODEL, check_formats
from keras_mixer.export.signatures import Server
from keras_mixer.run import suggest

INT8_LOSS = 0.02
_MOST_IMAGES = 2048  # that calibrate; all are in memory


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """Where accuracy is measured and int8 files calibrated, see `export`."""

    split: data.Split | None
    calibration: data.Split | None
    int8_loss: float
    max_broken: float


def export(
    model: keras.Model,
    output: str | os.PathLike[str],
    *,
    eval_policy: str = "resize",
    class_names: Sequence[str] | None = None,
    probabilities: Probabilities | None = None,
    top_k: int = 5,
    precision: Precision = "float32",
    xla: bool = False,
    formats: Sequence[str] = (SAVED_MODEL,),
    split: data.Split | None = None,
    calibration: data.Split | None = None,
    int8_loss: float = INT8_LOSS,
    max_broken: float = 0.0,
    provenance: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a version into the next numbered folder of `output`.

    The folder, which is returned, appears when it is complete, and for each
    file a fresh process with its runtime alone has answered as `model` does.
    docs/export.md has the signatures and the formats. The card in the folder,
    export.json and README.md, describes the version.

    Args:
      model: Maps images `[batch, side, side, 3]` in [-1, 1] to
        `[batch, classes]`, in any precision; it ends in a Dense layer.
      output: Folder of the versions, on a local disk.
      eval_policy: The preprocessing that the model was evaluated with, before
        the mapping to [-1, 1]; see `policy.parse`.
      class_names: One per class; without them there are no `top_k_names`.
      probabilities: By default the head's activation, or softmax of logits. A
        model trained with the sigmoid loss needs "sigmoid".
      top_k: How many classes to name, at most.
      precision: Of the SavedModel's computation; the weights are float32.
      xla: Whether to compile the SavedModel, once for each size of a batch.
      formats: What to write, names of `formats.NAMES`.
      split: Where to measure the accuracy before and after.
      calibration: Images to calibrate int8 files with, which are then written,
        too. They may not be those of `split`.
      int8_loss: How much accuracy on `split` an int8 file may lose.
      max_broken: Share of a split's images that may be broken.
      provenance: Where the weights come from, for the card.

    Raises:
      ExportError: The model, an option or the output cannot be used, packages
        of a format are missing, or what was written is not the model. Earlier
        versions are untouched.
      ValueError: The policy cannot be read.
    """
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            "Export needs KERAS_BACKEND=tensorflow. Received: "
            f"{keras.backend.backend()!r}"
        )
    _check_types(xla, split, calibration, max_broken, int8_loss, provenance)
    wanted = check_formats(
        formats,
        int8=calibration is not None,
        measured=split is not None,
        precision=precision,
        xla=xla,
    )
    folder = versions.check_output(output)
    weights.require_model(model)
    classifier = make_classifier(
        model, precision=precision, probabilities=probabilities
    )
    options = Options(
        eval_policy, _to_names(class_names), top_k, precision, xla
    )
    _check(options, classifier, split)
    _check_calibration(calibration, split)
    content = card.describe(classifier, options, provenance)
    measuring = _Measuring(split, calibration, int8_loss, max_broken)
    with versions.draft(folder) as draft:
        _write(draft, content, model, classifier, options, wanted, measuring)
        card.write(draft, content)
        return versions.publish(draft)


def _write(
    draft: pathlib.Path,
    content: dict[str, Any],
    model: keras.Model,
    classifier: Classifier,
    options: Options,
    formats: Sequence[str],
    measuring: _Measuring,
) -> None:
    """Writes the files of a version, and adds to the card what they are."""
    if SAVED_MODEL in formats:
        content |= _write_saved_model(draft, classifier, options)
    split, calibration = measuring.split, measuring.calibration
    share = measuring.max_broken
    exam = calibrated_on = None
    if split is not None:
        exam = accuracy.Exam(model, classifier, options, split, share)
        if SAVED_MODEL in formats:
            entry = content["formats"][SAVED_MODEL]
            entry["accuracy"] = exam.grade_version(draft)
        content["accuracy"] = exam.content
    if calibration is not None:
        calibrated_on = accuracy.Images(
            calibration,
            classifier.image_size,
            options.eval_policy,
            data.BrokenImages(calibration, limit=share),
        )
    content["formats"] |= proof.write_files(
        draft, classifier, formats, exam, calibrated_on, measuring.int8_loss
    )


def _to_names(names: Any) -> tuple[str, ...] | None:
    """Returns the names of the classes, or raises ValueError."""
    if names is None:
        return None
    wanted = "a list of names, one per class"
    suggest.check_type("class_names", names, list | tuple | np.ndarray, wanted)
    for name in names:
        suggest.check_type("class_names", name, str, wanted)
    return tuple(names)


def _check_types(
    xla: Any,
    split: Any,
    calibration: Any,
    max_broken: Any,
    int8_loss: Any,
    provenance: Any,
) -> None:
    """Raises ValueError for arguments of `export` of another type."""
    suggest.check_type("xla", xla, bool, "True or False")
    for name, images in (("split", split), ("calibration", calibration)):
        if images is not None:
            wanted = "a Split, which data.open_split returns"
            suggest.check_type(name, images, data.Split, wanted)
    wanted = "a number from 0 to 1"
    for name, share in (("max_broken", max_broken), ("int8_loss", int8_loss)):
        suggest.check_type(name, share, numbers.Real, wanted)
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be {wanted}. Received: {share}")
    if provenance is not None:
        wanted = "a dictionary"
        suggest.check_type("provenance", provenance, Mapping, wanted)
        try:
            json.dumps(dict(provenance))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"provenance cannot be written as JSON: {error}"
            ) from error


def _check_calibration(
    calibration: data.Split | None, split: data.Split | None
) -> None:
    """Raises ExportError unless the images may calibrate int8 files."""
    if calibration is None or split is None:
        return
    if calibration.overlaps(split):
        raise ExportError(
            f"{calibration.name} shares images with {split.name}, on which the "
            "accuracy is measured. Calibrate on a part of the training images, "
            "train[:512] for example."
        )
    if calibration.num_examples > _MOST_IMAGES:
        raise ExportError(
            f"{calibration.name} has {calibration.num_examples:,} images. "
            f"At most {_MOST_IMAGES:,} calibrate, and some hundreds suffice: "
            "train[:512] for example."
        )


def _check(
    options: Options,
    classifier: Classifier,
    split: data.Split | None,
) -> None:
    """Raises ValueError for options that cannot be used together."""
    precisions = get_args(Precision)
    suggest.check_choice("precision", options.precision, precisions)
    suggest.check_type("eval_policy", options.eval_policy, str, "a text")
    policy_lib.parse(
        options.eval_policy, classifier.image_size, evaluation=True
    )
    classes = classifier.num_classes
    names = options.class_names
    if names is not None and len(names) != classes:
        raise ExportError(
            f"The model has {classes} classes. Received: {len(names)} names."
        )
    try:
        suggest.to_positive_int("top_k", options.top_k)
    except ValueError as error:
        raise ExportError(str(error)) from error
    if split is not None and split.num_classes != classes:
        raise ExportError(
            f"The model has {classes} classes, and {split.name} has "
            f"{split.num_classes}."
        )
    if split is not None and split.is_multi_label:
        raise ExportError(
            f"{split.name} has several labels per image; measure the accuracy "
            "of an export on a split with one."
        )


def _write_saved_model(
    draft: pathlib.Path, classifier: Classifier, options: Options
) -> dict[str, Any]:
    """Writes the SavedModel and checks it; returns what the card gets."""
    signatures = _save(draft, classifier, options)
    check = fresh.check(draft, classifier, options)
    entry = card.of_saved_model(draft, options.precision, check)
    return {
        "signatures": signatures,
        "check": {"by": "a fresh process with TensorFlow alone", **check},
        "formats": {SAVED_MODEL: entry},
    }


def _save(
    folder: pathlib.Path, classifier: Classifier, options: Options
) -> dict[str, Any]:
    """Writes the SavedModel; returns what its signatures take and return."""
    server = Server(classifier, options)
    concrete = {
        name: function.get_concrete_function()
        for name, function in server.make_signatures().items()
    }
    lean = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        tf.saved_model.save(
            server, str(folder), signatures=concrete, options=lean
        )
        warmup.write(folder, classifier.image_size)
    except (OSError, tf.errors.OpError) as error:
        raise ExportError(f"Cannot write {folder}: {error}") from error
    described = {}
    for name, function in concrete.items():
        inputs = {x.name: x for x in function.structured_input_signature[0]}
        described[name] = {
            "inputs": _describe_tensors(inputs),
            "outputs": _describe_tensors(function.structured_outputs),
        }
    return described


def _describe_tensors(tensors: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{tensor.dtype.name} {tensor.shape.as_list()}"
        for name, tensor in sorted(tensors.items())
    }
