"""`export`: writes a version, has it checked, and publishes it."""

import datetime
import hashlib
import json
import numbers
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf

import keras_mixer
from keras_mixer import data, weights
from keras_mixer.data.augment import policy as policy_lib
from keras_mixer.export import accuracy, fresh, versions, warmup
from keras_mixer.export.classifier import (
    Classifier,
    ExportError,
    Options,
    Precision,
    Probabilities,
    make_classifier,
)
from keras_mixer.export.signatures import Server
from keras_mixer.run import files, suggest

CARD = "export.json"


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
    tflite: bool = False,
    split: data.Split | None = None,
    max_broken: float = 0.0,
    provenance: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a SavedModel into the next numbered folder of `output`.

    The folder, which is returned, appears when it is complete and a fresh
    process with TensorFlow alone has answered as `model` does. README.md,
    "Export and serving", has the signatures. The card beside the model,
    export.json, describes the version. The weights are float32.

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
      precision: Of the computation.
      xla: Whether to compile the forward pass, once for each size of a batch.
      tflite: Whether to write TFLite files too. If that fails, the version
        is written without them, and the card has the reason.
      split: Where to measure the accuracy before and after.
      max_broken: Share of the split's images that may be broken.
      provenance: Where the weights come from, for the card.

    Raises:
      ExportError: The model, an option or the output cannot be used, or what
        was written is not the model. Earlier versions are untouched.
      ValueError: The policy cannot be read.
    """
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            "Export needs KERAS_BACKEND=tensorflow. Received: "
            f"{keras.backend.backend()!r}"
        )
    folder = versions.check_output(output)
    weights.require_model(model)
    _check_types(xla, tflite, split, max_broken, provenance)
    classifier = make_classifier(
        model, precision=precision, probabilities=probabilities
    )
    options = Options(
        eval_policy, _to_names(class_names), top_k, precision, xla
    )
    _check(options, classifier, split, tflite)
    card = _describe(classifier, options, provenance)
    with versions.draft(folder) as draft:
        card["signatures"] = _save(draft, classifier, options)
        card["check"] = {
            "by": "a fresh process with TensorFlow alone",
            "largest_differences": fresh.check(draft, classifier, options),
        }
        card["accuracy"] = "not measured"
        if split is not None:
            card["accuracy"] = _measure(
                draft, model, classifier, options, split, max_broken
            )
        card["tflite"] = _try_tflite(draft, classifier) if tflite else None
        files.write_json(draft / CARD, card)
        return versions.publish(draft)


def _to_names(names: Any) -> tuple[str, ...] | None:
    """Returns the names of the classes, or raises ValueError."""
    if names is None:
        return None
    wanted = "a list of names, one per class"
    suggest.check_type("class_names", names, list | tuple | np.ndarray, wanted)
    for name in names:
        suggest.check_type("class_names", name, str, wanted)
    return tuple(names)


def read_card(version: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what a version's export.json says.

    Raises:
      ValueError: `version` is no path.
      OSError, WorkdirError: It cannot be read; the error names file and line.
    """
    suggest.check_path("version", version)
    return dict(files.read_json(pathlib.Path(version, CARD)))


def _check_types(
    xla: Any, tflite: Any, split: Any, max_broken: Any, provenance: Any
) -> None:
    """Raises ValueError for arguments of `export` of another type."""
    for name, flag in (("xla", xla), ("tflite", tflite)):
        suggest.check_type(name, flag, bool, "True or False")
    if split is not None:
        wanted = "a Split, which data.open_split returns"
        suggest.check_type("split", split, data.Split, wanted)
    wanted = "a number from 0 to 1"
    suggest.check_type("max_broken", max_broken, numbers.Real, wanted)
    if not 0 <= max_broken <= 1:
        raise ValueError(f"max_broken must be {wanted}. Received: {max_broken}")
    if provenance is not None:
        wanted = "a dictionary"
        suggest.check_type("provenance", provenance, Mapping, wanted)
        try:
            json.dumps(dict(provenance))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"provenance cannot be written as JSON: {error}"
            ) from error


def _check(
    options: Options,
    classifier: Classifier,
    split: data.Split | None,
    tflite: bool,
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
    if tflite and options.precision != "float32":
        raise ExportError(
            "TFLite files are made from the float32 model: leave precision at "
            f"'float32'. Received: {options.precision!r}"
        )


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
    card = {}
    for name, function in concrete.items():
        inputs = {x.name: x for x in function.structured_input_signature[0]}
        card[name] = {
            "inputs": _describe_tensors(inputs),
            "outputs": _describe_tensors(function.structured_outputs),
        }
    return card


def _describe_tensors(tensors: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{tensor.dtype.name} {tensor.shape.as_list()}"
        for name, tensor in sorted(tensors.items())
    }


def _measure(
    folder: pathlib.Path,
    model: keras.Model,
    classifier: Classifier,
    options: Options,
    split: data.Split,
    max_broken: float,
) -> dict[str, Any]:
    """Returns the accuracy before and after, or raises ExportError."""
    loss = classifier.probabilities
    same_precision = classifier.model is model
    if not same_precision:
        classifier = make_classifier(model, precision=None, probabilities=loss)
    before = accuracy.of_model(
        classifier,
        split,
        policy=options.eval_policy,
        broken=data.BrokenImages(split, limit=max_broken),
    )
    after = accuracy.of_version(folder, split, loss=loss)
    accuracy.require_same(before, after, same_precision=same_precision)
    measured = {"split": split.name, "before": before, "after": after}
    return measured | ({"warning": split.warning} if split.warning else {})


def _try_tflite(folder: pathlib.Path, classifier: Classifier) -> dict[str, Any]:
    """Writes TFLite files, or returns why there are none."""
    try:
        return fresh.write_tflite(folder, classifier)
    except ExportError as error:
        for path in (folder / "assets.extra").glob("*.tflite"):
            path.unlink()
        return {"error": str(error)}


def _digest(model: keras.Model) -> str:
    """Returns the SHA-256 of the weights, in their order."""
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(weight.path.encode())
        digest.update(np.asarray(weight.numpy(), np.float32).tobytes())
    return digest.hexdigest()


def _describe(
    classifier: Classifier,
    options: Options,
    provenance: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Returns the part of the card that is known before the export."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "created": now.isoformat(timespec="seconds"),
        "provenance": dict(provenance or {"source": "a model in Python"}),
        "model": {
            "name": classifier.model.name,
            "parameters": classifier.model.count_params(),
            "classes": classifier.num_classes,
            "precision": options.precision,
            "xla": options.xla,
            "weights_sha256": _digest(classifier.model),
        },
        "preprocessing": {
            "policy": options.eval_policy,
            "image_size": classifier.image_size,
            "value_range": [-1.0, 1.0],
        },
        "probabilities": classifier.probabilities,
        "class_names": options.class_names,
        "versions": {
            "keras_mixer": keras_mixer.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
