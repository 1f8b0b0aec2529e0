"""Compares the answers of a version, loaded by a fresh process, with ours."""

import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mixer.data.augment import policy as policy_lib
from keras_mixer.export import fresh_process, runtimes
from keras_mixer.export.classifier import Classifier, Options
from keras_mixer.export.errors import ExportError
from keras_mixer.models.preprocessing import to_value_range

_BATCH = 7
# Largest difference allowed, relative to the largest value, or to 1.
_TOLERANCES = {
    "float32": 1e-4,
    "bfloat16": 5e-2,
    "float16": 2e-2,
    "int8": float("inf"),  # what it loses is measured on a split
}
# What each signature gets: the pixels or the files of a request.
_INPUTS = {
    "serving_default": "pixels",
    "serve_float": "pixels",
    "serve_features": "pixels",
    "serve_bytes": "files",
}


def _write_request(folder: pathlib.Path, side: int) -> dict[str, list[Any]]:
    """Writes random images, of another size than the model's `side`.

    Returns:
      "pixels", uint8 `[height, width, 3]`, and encoded "files".
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (_BATCH, 5, 6, 3)).astype(np.uint8)
    # Large squares, so that the images still differ when they are resized.
    scale = side // 4 + 1
    pixels = coarse.repeat(scale, axis=1).repeat(scale, axis=2)
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "fitted.npy", runtimes.make_pixels(side))
    files = []
    encoders = itertools.cycle((tf.io.encode_jpeg, tf.io.encode_png))
    for i, encode in zip(range(_BATCH), encoders, strict=False):
        files.append(encode(pixels[i, : pixels.shape[1] - i]).numpy())
        (folder / f"file_{i}").write_bytes(files[i])
    return {"pixels": list(pixels), "files": files}


def run(version: pathlib.Path, request: pathlib.Path) -> dict[str, np.ndarray]:
    """Runs fresh_process.py on a version; returns its outputs by name.

    The folder `request` holds the images.

    Raises:
      ExportError: The process failed, or crashed.
    """
    script = pathlib.Path(fresh_process.__file__)
    target = request / "answer.npz"
    process = subprocess.run(
        [sys.executable, "-P", script, version, request, target],
        capture_output=True,
        text=True,
        env={**os.environ, **runtimes.ON_CPU},
    )
    if process.returncode:
        raise ExportError(
            "A fresh process with TensorFlow alone cannot use it (exit code "
            f"{process.returncode}): {runtimes.reason_of(process.stderr)}"
        )
    with np.load(target, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def difference(name: str, ours: Any, theirs: Any, *, precision: str) -> float:
    """Returns the largest difference of two arrays.

    Raises:
      ExportError: They differ by more than the precision explains, or are
        not finite.
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        raise ExportError(
            f"{name}: the fresh process returned the shape {theirs.shape} "
            f"instead of {ours.shape}."
        )
    for who, values in (("this", ours), ("the fresh", theirs)):
        if not np.isfinite(values).all():
            raise ExportError(
                f"{name}: {who} process returned values that are not finite."
            )
    worst = float(np.abs(ours - theirs).max())
    allowed = _TOLERANCES[precision] * max(1.0, float(np.abs(ours).max()))
    if worst > allowed:
        raise ExportError(
            f"{name}: the fresh process differs by {worst:.2g} from the model "
            f"in this process; {allowed:.2g} is allowed."
        )
    return worst


def check(
    version: pathlib.Path, classifier: Classifier, options: Options
) -> dict[str, Any]:
    """Returns how much a fresh process differs from the model in this one.

    Returns:
      "largest_differences", by "signature/output"; "same_top_1", the share of
      the answers with the model's best class; and "latency_ms", of pixels
      that fit, by size of the batch.

    Raises:
      ExportError: The process fails, or its answers differ.
    """
    side = classifier.image_size
    apply = policy_lib.parse(options.eval_policy, side, evaluation=True)
    answers = {}
    with tempfile.TemporaryDirectory() as folder, tf.device("/cpu:0"):
        request = pathlib.Path(folder)
        inputs = _write_request(request, side)
        theirs = run(version, request)
        seed = tf.zeros([2], tf.int64)
        for key, items in inputs.items():
            prepared = tf.stack([apply(tf.constant(x), seed) for x in items])
            image = to_value_range(prepared)
            answers[key] = reference(classifier, image)
    found, same = {}, []
    for signature, key in _INPUTS.items():
        for output, ours in answers[key].items():
            name = f"{signature}/{output}"
            if name in theirs:
                found[name] = difference(
                    name, ours, theirs[name], precision=options.precision
                )
        if signature != "serve_features":
            _check_top_k(signature, theirs, options.class_names)
            best = np.argmax(answers[key]["logits"], -1)
            same.extend(theirs[f"{signature}/logits"].argmax(-1) == best)
    if options.precision == "float32" and not all(same):
        raise ExportError(
            "The fresh process names another best class for "
            f"{same.count(False)} of {len(same)} images."
        )
    found["serving_default of one image/logits"] = difference(
        "serving_default of one image",
        answers["pixels"]["logits"][:1],
        theirs["one/logits"],
        precision=options.precision,
    )
    return {
        "largest_differences": found,
        "same_top_1": float(np.mean(same)),
        "latency_ms": {
            name.partition("/")[2]: runtimes.to_milliseconds(seconds)
            for name, seconds in theirs.items()
            if name.startswith("seconds/")
        },
    }


def _check_top_k(
    signature: str,
    theirs: Mapping[str, np.ndarray],
    class_names: tuple[str, ...] | None,
) -> None:
    """Raises ExportError if the best classes are not those of the logits."""
    logits = theirs[f"{signature}/logits"]
    indices = theirs[f"{signature}/top_k_indices"]
    best = -np.sort(-logits, axis=-1)[:, : indices.shape[-1]]
    good = np.array_equal(np.take_along_axis(logits, indices, -1), best)
    if class_names is not None:
        names = theirs[f"{signature}/top_k_names"]
        good &= np.array_equal(np.array(class_names)[indices], names)
    if not good:
        raise ExportError(
            f"{signature}: the fresh process names other classes than those "
            "with the largest logits."
        )


def reference(
    classifier: Classifier, image: tf.Tensor
) -> Mapping[str, tf.Tensor]:
    """Returns the whole model's outputs for images in [-1, 1]."""
    answer = classifier.model(image, training=False)
    features, logits = classifier(image)
    if classifier.returns_logits:
        logits = answer
        answer = classifier.probabilities_of(logits)
    return {"features": features, "logits": logits, "probabilities": answer}
