"""Asks a fresh process for the answers of a version, and compares them."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_mixer.data.augment import images, policy as policy_lib
from keras_mixer.export import fresh_process
from keras_mixer.export.classifier import Classifier, ExportError

_BATCH = 3
# The memory of a GPU and the TPU belong to this process. TensorFlow takes a TPU
# when it is imported, if it can; this variable says not to try.
ON_CPU = {"CUDA_VISIBLE_DEVICES": "-1", "TPU_LOAD_LIBRARY": "0"}
# Largest difference allowed, relative to the largest value, or 1.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 2e-2}


def _random_images(side: int) -> np.ndarray:
    """Returns uint8 [3, height, width, 3], of another size than the model's.

    Large squares, so that they differ after they have been made smaller.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (_BATCH, 5, 6, 3)).astype(np.uint8)
    scale = side // 4 + 1
    return coarse.repeat(scale, axis=1).repeat(scale, axis=2)


def _write_request(folder: pathlib.Path, pixels: np.ndarray) -> None:
    np.save(folder / "pixels.npy", pixels)
    encoders = (tf.io.encode_jpeg, tf.io.encode_png, tf.io.encode_jpeg)
    for i, encode in enumerate(encoders):
        picture = pixels[i, : pixels.shape[1] - i]  # of different sizes
        (folder / f"file_{i}").write_bytes(encode(picture).numpy())


def _prepared(
    request: pathlib.Path, policy: str, side: int
) -> dict[str, tf.Tensor]:
    """Returns what the model gets, eagerly: pixels and files in [-1, 1]."""
    apply = policy_lib.parse(policy, side)
    seed = tf.zeros([2], tf.int64)
    pixels = list(np.load(request / "pixels.npy"))
    files = [p.read_bytes() for p in sorted(request.glob("file_*"))]
    return {
        name: images.to_value_range(
            tf.stack([apply(tf.constant(x), seed) for x in items])
        )
        for name, items in (("pixels", pixels), ("files", files))
    }


def run(
    kind: str, version: pathlib.Path, request: pathlib.Path
) -> dict[str, np.ndarray]:
    """Runs fresh_process.py.

    Raises:
      ExportError: It failed, or crashed.
    """
    script = pathlib.Path(fresh_process.__file__)
    target = request / f"{kind}.npz"
    process = subprocess.run(
        [sys.executable, "-P", script, kind, version, request, target],
        capture_output=True,
        text=True,
        env={**os.environ, **ON_CPU},
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or ["it said nothing"]
        # The line of the exception, rather than notes behind it.
        named = [x for x in lines if re.match(r"[\w.]+(Error|Exception)\b", x)]
        reason = (named or lines)[-1][:500]
        failed = {
            "answer": "A fresh process with TensorFlow alone cannot use it",
            "tflite": "The TFLite converter or interpreter fails",
        }[kind]
        raise ExportError(
            f"{failed} (exit code {process.returncode}): {reason}"
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
            f"{name}: the fresh process returned the shape {theirs.shape} in "
            f"place of {ours.shape}."
        )
    for who, values in (("this", ours), ("the fresh", theirs)):
        if not np.isfinite(values).all():
            raise ExportError(
                f"{name}: in {who} process there are values that are not "
                "finite."
            )
    worst = float(np.abs(ours - theirs).max())
    allowed = TOLERANCES[precision] * max(1.0, float(np.abs(ours).max()))
    if worst > allowed:
        raise ExportError(
            f"{name}: the fresh process differs by {worst:.2g} from the model "
            f"in this one; {allowed:.2g} is allowed."
        )
    return worst


def check(
    version: pathlib.Path,
    classifier: Classifier,
    *,
    policy: str,
    class_names: tuple[str, ...] | None,
    precision: str,
) -> dict[str, float]:
    """Compares a fresh process with the model in this one.

    Returns:
      The largest difference of each output, by "signature/output".

    Raises:
      ExportError: The process fails, or answers something else.
    """
    side = classifier.image_size
    with tempfile.TemporaryDirectory() as name, tf.device("/cpu:0"):
        request = pathlib.Path(name)
        _write_request(request, _random_images(side))
        theirs = run("answer", version, request)
        prepared = _prepared(request, policy, side)
        answers = {
            key: _reference(classifier, image)
            for key, image in prepared.items()
        }
    found = {}
    for signature, key in (
        ("serving_default", "pixels"),
        ("serve_float", "pixels"),
        ("serve_features", "pixels"),
        ("serve_bytes", "files"),
    ):
        for output, ours in answers[key].items():
            name = f"{signature}/{output}"
            if name in theirs:
                found[name] = difference(
                    name, ours, theirs[name], precision=precision
                )
        if signature != "serve_features":
            _check_top_k(signature, theirs, class_names)
    return found


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
            "of the largest logits."
        )


def _reference(
    classifier: Classifier, image: tf.Tensor
) -> Mapping[str, tf.Tensor]:
    """Returns what the whole model says of images in [-1, 1]."""
    answer = classifier.model(image, training=False)
    features, logits = classifier(image)
    if classifier.returns_logits:
        logits = answer
        answer = classifier.probabilities_of(logits)
    return {
        "features": features,
        "logits": logits,
        "probabilities": answer,
    }


def write_tflite(
    version: pathlib.Path, classifier: Classifier
) -> dict[str, dict[str, Any]]:
    """Writes TFLite files into a version's assets.extra, and checks them.

    They take float32 `[batch, side, side, 3]`, 0 to 255, of the model's size.

    Returns:
      For "float32" and "float16" the file, its bytes, and the largest
      difference of its logits.

    Raises:
      ExportError: The converter fails, or the files answer something else.
    """
    side = classifier.image_size
    rng = np.random.default_rng(1)
    fitted = rng.uniform(0, 255, (_BATCH, side, side, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name, tf.device("/cpu:0"):
        request = pathlib.Path(name)
        np.save(request / "fitted.npy", fitted)
        theirs = run("tflite", version, request)
        ours = _reference(classifier, images.to_value_range(fitted))
    found: dict[str, dict[str, Any]] = {}
    for precision in ("float32", "float16"):
        worst = max(
            difference(
                f"model_{precision}.tflite, {output} of a batch of {batch}",
                ours[output][:batch],
                theirs[f"{precision}_{batch}/{output}"],
                precision=precision,
            )
            for batch in (1, _BATCH)
            for output in ("probabilities", "logits")
        )
        file = f"assets.extra/model_{precision}.tflite"
        found[precision] = {
            "file": file,
            "bytes": (version / file).stat().st_size,
            "largest_difference": worst,
        }
    return found
